#!/usr/bin/env python3
"""Performance monitor for Apple GPUs: profiling, analysis, comparison, reports.

    python perfmon.py run --html report.html -- python train.py         a command, and a report of what the GPU did meanwhile
    python perfmon.py run --kernels --trace t.json -- python kernels.py ... with every Metal kernel it ran through pyapplegpu
    python perfmon.py watch --seconds 30 --html report.html             this Mac, without a command (Ctrl-C ends it)
    python perfmon.py report run.json --markdown report.md              a saved run in another form; --window 5000: its last 5 s
    python perfmon.py compare a.json b.json                             two runs: figures side by side, kernels by a test
    python perfmon.py regress run.json baselines/                       a run against earlier ones; exits with 1 when it is worse
    python perfmon.py run --recording recordings/m5max-macos27.json --speed 10 --html r.html -- sleep 3       without a Mac

In a program of one's own:

    from perfmon import MetalPerformanceMonitor, MetalPerformanceVisualizer, PerformanceMonitorConfig
    with MetalPerformanceMonitor(config=PerformanceMonitorConfig(enable_detailed_profiling=True)) as monitor:
        run_my_kernels()
        print(monitor.analyze_performance(5000)["summary"])
    MetalPerformanceVisualizer(monitor).generate_report()

A figure that was not measured is a dash with its reason, never 0.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Sequence

import _common as c
import _run
from _common import ag
from perfmon_lib import compare as comparing
from perfmon_lib import report as reports
from perfmon_lib.analyse import Thresholds, analyse
from perfmon_lib.compare import Comparison, compare_runs, compare_samples, regressions
from perfmon_lib.engine import MetalPerformanceMonitor, PerformanceMonitorConfig, PerformanceMonitorManager
from perfmon_lib.metal import Allocations, BufferRun, KernelRun, MemoryStatistics, trace
from perfmon_lib.prometheus import MonitorCollector, prometheus_families
from perfmon_lib.report import MetalPerformanceVisualizer, Publisher, VisualizationConfig, Writer

__all__ = ["Allocations", "BufferRun", "Comparison", "KernelRun", "MemoryStatistics", "MetalPerformanceMonitor",
           "MetalPerformanceVisualizer", "MonitorCollector", "PerformanceMonitorConfig", "PerformanceMonitorManager",
           "Publisher",
           "Thresholds", "VisualizationConfig", "analyse", "compare_runs", "compare_samples", "prometheus_families",
           "regressions", "trace"]

ZERO = "began"          # a file made when the run began: times of files are compared with its time, by one clock
INJECT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "perfmon_lib", "inject")


def say(text: str) -> None:
    c.tell("perfmon: " + text)


# ---- options

def _add_outputs(parser: argparse.ArgumentParser, refresh: bool) -> None:
    group = parser.add_argument_group("reports", "a path each, - for standard output; several are fine")
    group.add_argument("--html", metavar="FILE", help="a page with charts")
    group.add_argument("--json", metavar="FILE", help="everything; report, compare and regress read it")
    group.add_argument("--markdown", metavar="FILE")
    group.add_argument("--csv", metavar="FILE", help="one table for a spreadsheet")
    group.add_argument("--csv-table", choices=reports.CSV_TABLES, default="samples")
    group.add_argument("--trace", metavar="FILE", help="timeline for ui.perfetto.dev or chrome://tracing")
    group.add_argument("--script", choices=("inline", "file", "none"), default="inline",
                       help="the page's plotting script: inside it (4 MB), in a file beside it, or none (charts as SVG)")
    group.add_argument("--quiet", action="store_true", help="no summary on the terminal")
    if refresh:
        group.add_argument("--listen", metavar="[HOST:]PORT",
                           help="serve Prometheus metrics meanwhile (default host 127.0.0.1)")
        group.add_argument("--refresh", type=int, default=5000, metavar="MS",
                           help="write page and JSON again while it runs, so often; the page reloads itself (default 5000; 0: only at the end)")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    c.add_source_options(parser)
    parser.set_defaults(window=None)
    group = parser.add_argument_group("sampling")
    group.add_argument("--interval", type=float, metavar="MS",
                       help="10 to 10000, default 100; below 50 only the driver's own "
                       "percentages and memory are read so often")
    group.add_argument("--config", metavar="FILE",
                       help="settings as a JSON object: %s" % ", ".join(PerformanceMonitorConfig.__annotations__))
    group.add_argument("--disable", action="append", default=[], metavar="WHAT", choices=(
        "gpu_utilization", "memory_bandwidth", "kernel_profiling", "power_monitoring", "thermal_monitoring",
        "queue_monitoring"),
        help="leave out a part; it then costs nothing")
    group.add_argument("--detailed", action="store_true", help="time each dispatch by itself (MTLCounterSampleBuffer)")
    group.add_argument("--history", type=int, metavar="N", help="samples kept, default 10000")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="perfmon.py", description=(__doc__ or "").split("\n\n")[0])
    ways = parser.add_subparsers(dest="way", required=True, metavar="run | watch | report | compare | regress")
    run = ways.add_parser("run", help="run a command and report; exits with its exit code",
                          usage="perfmon.py run [options] [--] COMMAND [ARGUMENT ...]")
    _add_sampling(run)
    _add_outputs(run, True)
    run.add_argument("--kernels", action="store_true",
                     help="profile the Metal work that a Python command does through pyapplegpu")
    run.add_argument("--log", metavar="FILE", help="copy of the command's output")
    run.add_argument("--baselines", metavar="DIR", help="compare with the earlier runs there")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    watch = ways.add_parser("watch", help="watch without a command")
    _add_sampling(watch)
    _add_outputs(watch, True)
    watch.add_argument("--seconds", type=float, metavar="S", help="how long (default: until Ctrl-C)")
    again = ways.add_parser("report", help="a saved run in another form")
    again.add_argument("file")
    again.add_argument("--window", type=float, metavar="MS", help="analyse only the last so many milliseconds")
    _add_outputs(again, False)
    two = ways.add_parser("compare", help="two saved runs")
    two.add_argument("a")
    two.add_argument("b")
    two.add_argument("--kernel", nargs=2, metavar=("KA", "KB"),
                     help="compare kernel KA of the first with KB of the second")
    past = ways.add_parser("regress", help="a saved run against a folder of earlier ones")
    past.add_argument("file")
    past.add_argument("folder")
    for one in (two, past):
        one.add_argument("--tolerance", type=float, default=100 * comparing.TOLERANCE, metavar="PERCENT",
                         help="differences up to this are of no interest (default 5)")
        one.add_argument("--json", action="store_true", help="as JSON")
    return parser


def configuration(args: argparse.Namespace) -> PerformanceMonitorConfig:
    """From --config, then the options. ValueError with a sentence."""
    given: dict[str, Any] = {}
    if args.config:
        with open(args.config, encoding="utf-8") as file:
            try:
                given = json.load(file)
            except ValueError as error:
                raise ValueError("%s is no JSON: %s" % (args.config, error)) from None
        if not isinstance(given, dict):
            raise ValueError("%s does not hold an object of settings" % args.config)
    given = dict(given)
    if args.interval is not None:
        given["sampling_interval_ms"] = args.interval
    if args.history is not None:
        given["history_buffer_size"] = args.history
    if args.detailed:
        given["enable_detailed_profiling"] = True
    given.update({"enable_" + part: False for part in args.disable})
    return PerformanceMonitorConfig.from_mapping(given)


def outputs(args: argparse.Namespace) -> list[VisualizationConfig]:
    refresh = getattr(args, "refresh", 0)
    if refresh and not 100 <= refresh <= 3_600_000:
        raise ValueError("--refresh is 0, or 100 to 3600000 milliseconds, not %r" % refresh)
    made = []
    for kind in ("html", "json", "markdown", "csv", "trace"):
        path = getattr(args, kind)
        if path is not None:
            live = bool(refresh) and kind in ("html", "json") and path != "-"
            made.append(VisualizationConfig(kind, path, live, refresh or 1000, args.script, args.csv_table))
    return made


def _monitor(args: argparse.Namespace) -> MetalPerformanceMonitor:
    config = configuration(args)
    window = args.window if args.window is not None else min(max(config.slow_s, 0.05), 10.0)
    device = ag.LibraryOpen(args.recording, window=window, speed=args.speed, loop=args.loop)
    return MetalPerformanceMonitor(device, config)


def _finish(publisher: Publisher, args: argparse.Namespace, screen: Any) -> tuple[dict[str, Any], bool]:
    monitor = publisher.monitor
    doc = monitor.document()
    fine = Writer(say).write(doc, publisher.configs)        # afresh: what is still not there is said at the end
    if not args.quiet:      # where a report goes to stdout, nothing else does
        screen = sys.stderr if any(one.output_path == "-" for one in publisher.configs) else screen
        c.tell(reports.terminal(doc).rstrip("\n"), screen)
    if monitor.trouble:
        say("sampling ended early: %s" % monitor.trouble)
    return doc, fine


# ---- run

def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("which command? perfmon.py run -- COMMAND")
    if args.baselines:
        os.listdir(args.baselines)      # a folder that is not there must not cost the whole run
    made, monitor = outputs(args), _monitor(args)
    listener = _listen(args.listen, monitor)
    monitor.begin()
    monitor.metal.detach()              # this process does no Metal work of its own
    monitor.command = {"argv": command, "exit_code": None, "seconds": 0.0}
    folder = tempfile.mkdtemp(prefix="perfmon-") if args.kernels else None
    if folder is not None:
        open(os.path.join(folder, ZERO), "w").close()
    publisher = Publisher(monitor, made, say, lambda: _absorb(monitor, folder))

    def sampled(snapshot: Any, elapsed: float) -> None:
        monitor.command["seconds"] = elapsed        # type: ignore[index]
        monitor.add_snapshot(snapshot)
        publisher.tick()
    before = dict(os.environ)
    if folder is not None:
        os.environ.update(PERFMON_KERNELS=folder,
                          PYTHONPATH=os.pathsep.join([INJECT] + [p for p in [os.environ.get("PYTHONPATH")] if p]),
                          PERFMON_CONFIG=json.dumps({"enable_detailed_profiling": monitor.config.enable_detailed_profiling,
                                                     "history_buffer_size": monitor.config.history_buffer_size}))
    monitor.start_lanes(slow=False)
    spent = time.process_time()
    try:
        code, cost = _run.run_command(monitor.device, command, monitor.config.slow_s, sampled, args.log,
                                      monitor.config.parts + ("processes",))
        monitor.stop_lanes()
        monitor._cost_s = time.process_time() - spent       # of this process, the reports written meanwhile included
        if cost is None and code in (126, 127):
            return code
        monitor.command.update(exit_code=code, **_command_figures(cost))
        if folder is not None and not _absorb(monitor, folder):
            say("no kernels came back: the command imported no pyapplegpu, ran no Metal work, or was Python with -I or -E")
    finally:
        monitor.stop_lanes()
        listener()
        os.environ.clear()
        os.environ.update(before)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    monitor.stop_monitoring("interrupted" if code in (130, 143, 129) else "finished")
    doc, fine = _finish(publisher, args, sys.stderr)
    if args.baselines and not _against(doc, args.baselines):
        say("worse than the runs in %s" % args.baselines)
    return code or (0 if fine else 1)


def _command_figures(cost: Any) -> dict[str, Any]:
    if cost is None:
        return {}
    return {"seconds": cost.seconds, "gpu_seconds": cost.gpu_seconds, "gpu_seconds_covered": cost.gpu_seconds_covered,
            "peak_footprint_bytes": cost.peak_footprint_bytes, "memory_rise_bytes": cost.memory_rise_bytes}


def _absorb(monitor: MetalPerformanceMonitor, folder: str | None) -> int:
    """Take what the command's processes have saved so far; how many have."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".json")) if folder is not None else []
    fresh = monitor.metal.again()
    for name in names:
        with open(os.path.join(folder or "", name), encoding="utf-8") as file:
            since = os.fstat(file.fileno()).st_mtime - os.stat(os.path.join(folder or "", ZERO)).st_mtime
            fresh.absorb(json.load(file), since)
    if names:
        monitor.metal = fresh
    return len(names)


def _listen(where: str | None, monitor: MetalPerformanceMonitor) -> Callable[[], object]:
    """Serve the monitor's figures to Prometheus; returns what ends it."""
    if where is None:
        return lambda: None
    host, _, port = where.rpartition(":")
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise ValueError("--listen needs prometheus-client (pip install prometheus-client)") from None
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("--listen is a port or HOST:PORT, not %r" % where)
    registry = CollectorRegistry()
    registry.register(MonitorCollector(monitor))
    registry.register(MonitorCollector(monitor, "applegpu"))
    started = start_http_server(int(port), host or "127.0.0.1", registry)

    def end() -> None:
        if started is None:         # before prometheus-client 0.20: its thread ends with this process
            return
        server, thread = started
        server.shutdown()
        server.server_close()
        thread.join(2.0)
    return end


def _against(doc: dict[str, Any], folder: str) -> bool:
    """Prints the table; False when something is worse."""
    found, left = comparing.baselines(folder)
    result = regressions(doc, found)
    c.tell(regression_text(result, left))
    return not result["worse"]


# ---- watch

def watch(args: argparse.Namespace) -> int:
    if args.seconds is not None and not args.seconds > 0:
        raise ValueError("--seconds is above 0")
    made, monitor = outputs(args), _monitor(args)
    publisher, listener = Publisher(monitor, made, say), _listen(args.listen, monitor)
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    monitor.start_monitoring()
    end = None if args.seconds is None else time.monotonic() + args.seconds
    try:
        while not stopped.is_set() and (end is None or time.monotonic() < end) and not monitor.trouble:
            publisher.tick()
            stopped.wait(0.2 if end is None else max(0.0, min(0.2, end - time.monotonic())))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener()
        monitor.stop_monitoring("interrupted" if stopped.is_set() and end is not None else "finished")
    _, fine = _finish(publisher, args, sys.stdout)
    return 0 if fine else 1


# ---- saved runs

def report(args: argparse.Namespace) -> int:
    doc = comparing.load(args.file)
    doc["analysis"] = analyse(doc, args.window)
    made = outputs(args)
    fine = Writer(say).write(doc, made)
    if not made and not args.quiet:
        print(reports.terminal(doc), end="")
    return 0 if fine else 1


def compare(args: argparse.Namespace) -> int:
    a, b = comparing.load(args.a), comparing.load(args.b)
    if args.kernel:
        pair = []
        for doc, name in zip((a, b), args.kernel):
            found = [k["samples_s"] for k in doc["kernels"] if k["name"] == name]
            if not found:
                raise ValueError("there is no kernel %r; there are %s"
                                 % (name, ", ".join(k["name"] for k in doc["kernels"]) or "none"))
            pair.append(found[0])
        one = compare_samples(pair[0], pair[1], *args.kernel, tolerance=args.tolerance / 100)
        print(json.dumps(one.as_dict()) if args.json else comparison_text(one.as_dict()))
        return 0
    result = compare_runs(a, b, tolerance=args.tolerance / 100)
    print(json.dumps(result) if args.json else runs_text(result, args.a, args.b))
    return 0


def regress(args: argparse.Namespace) -> int:
    found, left = comparing.baselines(args.folder)
    found = [(name, doc) for name, doc in found if not os.path.samefile(os.path.join(args.folder, name), args.file)]
    result = regressions(comparing.load(args.file), found, tolerance=args.tolerance / 100)
    print(json.dumps(result) if args.json else regression_text(result, left))
    return 1 if result["worse"] else 0


def comparison_text(one: dict[str, Any]) -> str:
    lines = []
    for key in ("a", "b"):
        s = one[key]
        lines.append("%s  %-24s n %-5d median %-11s spread %s"
                     % (key, c.clean(s["name"])[:24], s["n"], reports.milliseconds(s["median"]),
                        reports.milliseconds(s["spread"])))
    if one["ratio"] is not None:
        lines.append("b / a = %.3f (99 %% interval %.3f to %.3f), Cliff's delta %+.2f, Mann-Whitney p = %.2g" % (
            one["ratio"], one["ratio_low"], one["ratio_high"], one["effect"], one["p"]))
    lines.append("%s. %s" % (one["verdict"].capitalize(), one["recommendation"]))
    return "\n".join(lines)


def runs_text(result: dict[str, Any], name_a: str, name_b: str) -> str:
    lines = ["a = %s, b = %s" % (c.clean(name_a), c.clean(name_b))] + ["warning: " + w for w in result["warnings"]] + [
        "", "%-32s %14s %14s %8s" % ("", "a", "b", "b / a")]
    for row in result["figures"]:
        if row["a"] is not None or row["b"] is not None:
            lines.append("%-32s %14s %14s %8s"
                         % (row["label"], reports.shown(row["a"], row["unit"]), reports.shown(row["b"], row["unit"]),
                                                  "-" if row["ratio"] is None else "%.3f" % row["ratio"]))
    lines.append("Single runs: these are shown, not judged. For a judgement: perfmon.py regress RUN FOLDER.")
    for one in result["kernels"]:
        lines += ["", comparison_text(one)]
    for which, key in (("a", "only_a"), ("b", "only_b")):
        if result[key]:
            lines += ["", "Only in %s: %s" % (which, ", ".join(c.clean(n) for n in result[key]))]
    return "\n".join(lines)


def regression_text(result: dict[str, Any], left: Sequence[str]) -> str:
    lines = ["Against %s" % c.counted(len(result["baselines"]), "earlier run")]
    if result["other_gpus"]:
        lines.append("Left out, of other GPUs: %s" % c.counted(len(result["other_gpus"]), "run"))
    lines += ["left out: " + text for text in left]
    lines += ["", "%-36s %12s %12s %25s %4s  %s" % ("", "now", "before", "expected", "n", "")]
    for row in result["rows"]:
        expected = "-" if row["low"] is None else "%s to %s" % (reports.shown(row["low"], row["unit"]),
                                                                reports.shown(row["high"], row["unit"]))
        lines.append("%-36s %12s %12s %25s %4d  %s"
                     % (c.clean(row["label"])[:36], reports.shown(row["now"], row["unit"]),
                        reports.shown(row["median"], row["unit"]),
                                                       expected, row["n"], row["verdict"]))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        if args.way == "run":
            return run(args, parser)
        return {"watch": watch, "report": report, "compare": compare, "regress": regress}[args.way](args)
    except ValueError as error:
        say(str(error))
        return 2


if __name__ == "__main__":
    sys.exit(c.quiet_pipe(main))
