"""A document as text: terminal tables, Markdown, JSON, CSV; and writing any report so that a reader never sees half of one."""
from __future__ import annotations

import csv
import io
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Sequence

import _common as c
from _common import clean

from .engine import BY_NAME

FORMATS = ("html", "json", "csv", "markdown", "terminal", "trace")


# ---- numbers with their units

def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return c.DASH
    if seconds == 0:
        return "0 s"
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * scale >= 1 or unit == "us":
            return "%.*f %s" % (2 if seconds * scale < 100 else 1, seconds * scale, unit)
    return c.DASH


def ratio(value: float | None) -> str:
    return c.DASH if value is None else "%.1f %%" % (100 * value)


_UNITS: dict[str, Callable[[float], str]] = {
    "1": ratio, "%": lambda v: "%.0f %%" % v, "MHz": c.mhz, "B/s": c.speed, "B": lambda v: size(v), "mW": c.watts,
    "°C": lambda v: "%.1f °C" % v,
    "index": lambda v: "%.0f" % v, "count": lambda v: "%.0f" % v, "rpm": lambda v: "%.0f rpm" % v,
    "flag": lambda v: "yes" if v else "no",
    "s": milliseconds, "J": c.joules, "ratio": ratio, "C": lambda v: "%.1f °C" % v}
EXTRA = {"memory_bytes_per_s": ("Memory traffic", "B/s"),
         "memory_gpu_bytes_per_s": ("Memory traffic by the GPU", "B/s")}


def unit_of(column: str) -> str:
    return EXTRA[column][1] if column in EXTRA else BY_NAME[column].unit if column in BY_NAME else "s"


def label_of(column: str) -> str:
    return EXTRA[column][0] if column in EXTRA else BY_NAME[column].label if column in BY_NAME else column


def shown(value: float | None, unit: str) -> str:
    return c.DASH if value is None else _UNITS[unit](value)


def figure_text(column: str, value: float | None) -> str:
    return shown(value, unit_of(column))


def headline(doc: dict[str, Any]) -> str:
    m = doc["machine"]
    parts = [m.get("chip") or m.get("gpu") or "GPU", "%d GPU cores" % m["gpu_cores"] if m.get("gpu_cores") else "",
             "macOS " + m["macos"] if m.get("macos") else "",
             "recording " + str(m.get("source")) if m.get("recording") else "live"]
    return ", ".join(p for p in parts if p)


def command_text(doc: dict[str, Any]) -> str:
    run = doc.get("command")
    if not run:
        return ""
    import shlex
    end = "running" if run.get("exit_code") is None else "exit code %d" % run["exit_code"]
    return "%s: %s after %s" % (clean(" ".join(shlex.quote(a) for a in run["argv"])), end,
                                milliseconds(run.get("seconds")))


def size(count: float | None) -> str:
    return "%d B" % count if count is not None and 0 < count < 1024 else c.size(count)


# ---- terminal: the document's three tables, then what it does not have

def summary_lines(doc: dict[str, Any]) -> list[str]:
    a = doc.get("analysis") or {"figures": {}}
    out = ["=== Metal Performance Summary ===", "", headline(doc)]
    if doc.get("command"):
        out.append(command_text(doc))
    out.append("%s over %s%s" % (c.counted(doc["sampling"]["rows"], "sample"), milliseconds(doc["seconds"]),
                                 "" if doc["state"] == "finished" else ", " + doc["state"]))

    def block(title: str, column: str, scale: Callable[[float], str]) -> None:
        figure = a["figures"].get(column)
        out.extend(["", title])
        if figure is None:
            out.append("  not measured: %s" % _why(doc, column))
            return
        out.extend(["  Average: %s" % scale(figure["mean"]), "  Peak:    %s" % scale(figure["max"])])
    block("GPU Utilization:", "gpu_utilization_ratio", ratio)
    block("Memory Bandwidth:", "memory_bytes_per_s", lambda v: "%.1f GB/s" % (v / 1e9))
    block("GPU Power:", "gpu_power_mw", c.watts)
    times = [(k["total_s"], k["timed"]) for k in doc["kernels"] if k["timed"]]
    out += ["", "Kernel Execution:",
            "  Average Time: %s" % milliseconds(sum(t for t, _ in times) / sum(n for _, n in times)) if times else
            "  no kernel was profiled"]
    spent = (doc.get("energy") or {}).get("joules") or {}
    told = ["%s %s" % (rail, c.joules(j)) for rail, j in spent.items() if j is not None]
    if told:
        out += ["", "Energy: " + ", ".join(told)]
    return out


def _why(doc: dict[str, Any], column: str) -> str:
    source = {"memory_bytes_per_s": "memory_read_bytes_per_s"}.get(column, column)
    miss = doc["missing"].get(source)
    return miss["message"] if miss else "nothing was sampled"


def kernel_lines(doc: dict[str, Any], most: int = 20) -> list[str]:
    rows = doc["kernels"][:most]
    out = ["=== Top Kernels by Execution Time ===", ""]
    if not rows:
        return out + ["no kernel was profiled"]
    out += ["%-30s %12s %8s %12s %12s" % ("Kernel Name", "Avg Time", "Count", "p95", "Overhead"),
            "-" * 30 + " " + "-" * 12 + " " + "-" * 8 + " " + "-" * 12 + " " + "-" * 12]
    for k in rows:
        out.append("%-30s %12s %8d %12s %12s" % (clean(k["name"])[:30], milliseconds(k["mean_s"]), k["count"],
                                                 milliseconds(k["seconds"]["p95"] if k["seconds"] else None),
                                                 milliseconds(k["overhead_s"]["median"] if k["overhead_s"] else None)))
    return out


def whose(held: dict[str, Any]) -> str:
    return "the process" if held.get("processes", 1) == 1 else "%d processes" % held["processes"]


def memory_lines(doc: dict[str, Any]) -> list[str]:
    out = ["=== Memory Statistics ===", ""]
    held = doc.get("allocations")
    if held:
        s = held["statistics"]
        out += ["Total Allocated:   %s in %s" % (size(s["total_allocated_bytes"]), c.counted(s["allocations"], "allocation")),
                "Current Allocated: %s (shared %s, private %s)"
                % (size(s["current_allocated_bytes"]), size(s["shared_bytes"]), size(s["private_bytes"])),
                "Peak Allocated:    %s" % size(s["peak_allocated_bytes"])]
    elif doc.get("command"):
        out.append("No Metal buffer was seen; --kernels follows those of a Python program that uses pyapplegpu.")
    else:
        out.append("This process made no Metal buffer.")
    used = (doc.get("analysis") or {"figures": {}})["figures"].get("memory_used_bytes")
    if used:
        out.append("All processes:     peak %s of %s the GPU may use"
                   % (size(used["max"]), size(doc["limits"].get("memory_bytes"))))
    return out


def analysis_lines(doc: dict[str, Any]) -> list[str]:
    a = doc["analysis"]
    out = ["=== Analysis ===", "", a["summary"]]
    for b in a["bottlenecks"]:
        out += ["", "%s (%s of the time it was judged on)" % (b["title"], ratio(b["share"]))]
        out += ["  because    %s" % e for e in b["evidence"]] + ["  consider   %s" % r for r in b["recommendations"]]
    out += ["  not judged %s: %s" % (u["class"].replace("_", " "), u["why"]) for u in a["not_assessed"]]
    out += ["  trend      %s %s by %s in %s (p = %.2g)"
            % (label_of(t["column"]), t["direction"], figure_text(t["column"], abs(t["change"])),
                                                       milliseconds(doc["seconds"]), t["p"]) for t in a["trends"]]
    out += ["  anomaly    " + anomaly_text(x) for x in a["anomalies"][:5]]
    out += ["  kernel     " + n for n in a["kernel_notes"]]
    out += ["  event      at %.1f s: %s" % (e["t"], e["text"]) for e in doc["events"]]
    out += ["  sampling   " + n for n in doc["sampling"]["notes"]]
    return out


def anomaly_text(x: dict[str, Any]) -> str:
    if x["t"] is None:
        return "%s, run %d: %s, usually %s" % (x["what"], x["run"] + 1, milliseconds(x["value"]),
                                               milliseconds(x["typical"]))
    return "%s at %.1f s: %s, around it %s" % (label_of(x["what"]), x["t"], figure_text(x["what"], x["value"]),
                                               figure_text(x["what"], x["typical"]))


def terminal(doc: dict[str, Any]) -> str:
    return "\n".join(summary_lines(doc) + [""] + kernel_lines(doc) + [""] + memory_lines(doc) + [""] + analysis_lines(doc)) + "\n"


# ---- Markdown

def _cell(value: Any) -> str:
    return clean(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    return ["| " + " | ".join(head) + " |",
            "|" + "---|" * len(head)] + ["| " + " | ".join(_cell(v) for v in row) + " |" for row in rows] + [""]


def markdown(doc: dict[str, Any]) -> str:
    a = doc["analysis"]
    out = ["# GPU performance report", "",
           _cell(headline(doc)) + ". " + ("Command " + _cell(command_text(doc)) + ". " if doc.get("command") else "") +
           "%s over %s." % (c.counted(doc["sampling"]["rows"], "sample"), milliseconds(doc["seconds"])), "",
           "**%s**" % _cell(a["summary"]), ""]
    for b in a["bottlenecks"]:
        out += ["## %s" % b["title"], ""] + ["* %s" % _cell(e) for e in b["evidence"]] + ["", "Recommendations:", ""]
        out += ["* %s" % _cell(r) for r in b["recommendations"]] + [""]
    out += ["## Figures", ""] + table(("figure", "average", "median", "95 %", "peak", "samples"), (
        (label_of(n), figure_text(n, f["mean"]), figure_text(n, f["p50"]), figure_text(n, f["p95"]),
         figure_text(n, f["max"]), f["n"])
        for n, f in a["figures"].items() if unit_of(n) != "flag"))
    out += ["## Against the chip's own limits", ""] + table(("", "average", "peak", "limit"), saturation_rows(doc))
    if doc["kernels"]:
        out += ["## Kernels", ""] + table(("kernel", "count", "average", "median", "95 %", "threads", "threadgroup",
                                           "threadgroup memory", "overhead", "method"),
                                           kernel_rows(doc))
    if doc["queues"]:
        out += ["## Queues", ""] + table(("queue", "buffers", "dispatches", "buffer in flight", "GPU at work"), (
            (q["name"], q["buffers"], q["dispatches"], ratio(q["in_flight_ratio"]), ratio(q["gpu_ratio"]))
            for q in doc["queues"]))
        out += table(("from submission to completion", "median", "95 %", "n"), latency_rows(doc))
    held = doc.get("allocations")
    if held:
        out += ["## Metal memory of %s" % whose(held), ""] + [line for line in memory_lines(doc)[2:]] + [""]
        out += table(("still allocated", "count", "bytes", "oldest", ""),
                     ((r["name"], r["live"], size(r["bytes"]), milliseconds(r["oldest_s"]),
                                                                           "growing" if r["growing"] else "")
                      for r in held["still_allocated"][:20]))
    notes = [anomaly_text(x)
             for x in a["anomalies"][:10]] + a["kernel_notes"] + ["At %.1f s: %s" % (e["t"], e["text"])
                                                                  for e in doc["events"]]
    notes += ["%s %s: %s in all (p = %.2g)" % (label_of(t["column"]), t["direction"],
                                               figure_text(t["column"], abs(t["change"])), t["p"]) for t in a["trends"]]
    if notes:
        out += ["## Noticed", ""] + ["* " + _cell(n) for n in notes] + [""]
    out += ["## How it was measured", ""] + ["* " + _cell(n) for n in doc["sampling"]["notes"]] + [""]
    if doc["missing"]:
        out += table(("not measured", "in samples", "why"),
                     ((label_of(n), "%d of %d" % (m["rows"], doc["sampling"]["rows_ever"]), m["message"])
                                                             for n, m in doc["missing"].items()
                      if unit_of(n) != "flag"))
    return "\n".join(out)


def saturation_rows(doc: dict[str, Any]) -> list[tuple[Any, ...]]:
    unit = {"memory_bytes_per_s": "B/s", "memory_used_bytes": "B", "gpu_clock_mhz": "MHz", "gpu_power_mw": "mW"}
    rows = []
    for s in doc["analysis"]["saturation"]:
        limit = "%.1f TFLOP/s" % (s["limit"] / 1e12) if s["column"] == "gpu_scaled_ratio" and s["limit"] else shown(s["limit"], unit[s["column"]]) if s["column"] in unit else c.DASH
        rows.append((s["name"], ratio(s["mean"]), ratio(s["peak"]), limit if not s["why"] else s["why"]))
    return rows


def kernel_rows(doc: dict[str, Any], most: int = 50) -> list[tuple[Any, ...]]:
    def shape(parts: Any) -> str:
        return c.DASH if not parts else " x ".join(str(p) for p in (parts[:1] if list(parts[1:]) == [1, 1] else parts))
    return [(k["name"], k["count"], milliseconds(k["mean_s"]),
             milliseconds(k["seconds"]["median"] if k["seconds"] else None),
             milliseconds(k["seconds"]["p95"] if k["seconds"] else None), shape(k["threads"]), shape(k["group"]),
             c.DASH if k["threadgroup_memory_bytes"] is None else "%d B" % k["threadgroup_memory_bytes"],
             milliseconds(k["overhead_s"]["median"] if k["overhead_s"] else None), "; ".join(k["methods"]))
            for k in doc["kernels"][:most]]


def latency_rows(doc: dict[str, Any]) -> list[tuple[Any, ...]]:
    from .analyse import LATENCY_WORDS
    return [(LATENCY_WORDS[n], milliseconds(s["median"] if s else None), milliseconds(s["p95"] if s else None),
             s["n"] if s else 0)
            for n, s in doc["latency"].items()]


# ---- CSV

CSV_TABLES = ("samples", "kernels", "kernel_runs", "buffers", "allocations")


def csv_text(doc: dict[str, Any], what: str = "samples") -> str:
    """One table for a spreadsheet; an empty cell is a figure that was not measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in _csv_rows(doc, what):
        writer.writerow(["" if v is None else _unformula(v) for v in row])
    return out.getvalue()


def _unformula(value: Any) -> Any:
    """A kernel named =1+1 stays text in a spreadsheet."""
    return "'" + value if isinstance(value, str) and value[:1] in "=+-@\t\r" else value


def _csv_rows(doc: dict[str, Any], what: str) -> Iterable[Sequence[Any]]:
    if what == "samples":
        yield list(doc["samples"])
        yield from zip(*doc["samples"].values())
    elif what == "kernels":
        keys = ("name", "count", "timed", "total_s", "mean_s", "threadgroup_memory_bytes", "simd_width", "max_threads",
                "flops_per_s", "bytes_per_s")
        yield keys + ("median_s", "p95_s", "threads", "group", "overhead_median_s")
        for k in doc["kernels"]:
            yield [k[key] for key in keys] + [(k["seconds"] or {}).get("median"), (k["seconds"] or {}).get("p95"),
                                              "x".join(map(str, k["threads"] or ())),
                                              "x".join(map(str, k["group"] or ())),
                                              (k["overhead_s"] or {}).get("median")]
    elif what == "kernel_runs":
        yield ("kernel", "seconds")
        for k in doc["kernels"]:
            for seconds in k["samples_s"]:
                yield k["name"], seconds
    elif what == "buffers":
        keys = ("label", "queue", "dispatches", "encode_s", "commit_s", "kernel_start_s", "kernel_end_s", "gpu_start_s",
                "gpu_end_s", "done_s")
        yield keys
        for one in doc["buffers"]:
            yield [one[k] for k in keys]
    elif what == "allocations":
        yield ("name", "count", "total_bytes", "live", "live_bytes", "peak_bytes")
        for row in (doc["allocations"] or {"names": []})["names"]:
            yield list(row.values())
    else:
        raise ValueError("the tables are %s, not %r" % (", ".join(CSV_TABLES), what))


# ---- writing

def json_text(doc: dict[str, Any]) -> str:
    return json.dumps(doc, allow_nan=False)


def write(path: str, text: str) -> None:
    """The file is the old one or the new one, never half of one: written beside, then renamed. A device (/dev/stdout, a pipe)
    is written directly; "-" is standard output."""
    if path == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return
    path = os.path.realpath(path)       # a link stays a link
    handle, part = tempfile.mkstemp(prefix="." + os.path.basename(path) + ".", suffix=".part",
                                    dir=os.path.dirname(path))
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, _mode(path))
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def _mode(path: str) -> int:
    if os.path.exists(path):
        return os.stat(path).st_mode & 0o7777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@dataclass
class VisualizationConfig:
    """What the document's visualizer is told."""
    format: str = "html"
    output_path: str = "performance_report.html"
    auto_refresh: bool = False
    refresh_interval_ms: int = 1000
    script: str = "inline"              # inline, file, none: where the page has its plotting script from
    csv_table: str = "samples"          # one of CSV_TABLES

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError("format is one of %s, not %r" % (", ".join(FORMATS), self.format))
        if self.script not in ("inline", "file", "none"):
            raise ValueError("script is inline, file or none, not %r" % (self.script,))
        if not isinstance(self.refresh_interval_ms, int) or not 100 <= self.refresh_interval_ms <= 3_600_000:
            raise ValueError("refresh_interval_ms is a number from 100 to 3600000, not %r"
                             % (self.refresh_interval_ms,))


def render(doc: dict[str, Any], config: VisualizationConfig) -> str:
    """The report in its format. A page refreshes itself only while the run goes on."""
    if config.format == "html":
        from .page import html_text
        again = config.refresh_interval_ms / 1000 if config.auto_refresh and doc["state"] == "running" else None
        return html_text(doc, config.script, again, config.output_path)
    if config.format == "trace":
        from .metal import trace
        return json.dumps(trace(doc))
    if config.format == "csv":
        return csv_text(doc, config.csv_table)
    return {"json": json_text, "markdown": markdown, "terminal": terminal}[config.format](doc)


class MetalPerformanceVisualizer:
    """Reports of one monitor."""

    def __init__(self, monitor: Any, config: VisualizationConfig | None = None) -> None:
        self.monitor, self.config = monitor, config or VisualizationConfig()

    def generate_report(self) -> str:
        """Write the report; returns its path. OSError when it cannot be written, an older report then stays as it was."""
        write(self.config.output_path, render(self.monitor.document(), self.config))
        return self.config.output_path

    def print_performance_summary(self) -> None:
        print("\n".join(summary_lines(self.monitor.document())))

    def print_kernel_profiling_table(self) -> None:
        print("\n".join(kernel_lines(self.monitor.document())))

    def print_memory_statistics(self) -> None:
        print("\n".join(memory_lines(self.monitor.document())))


class Writer:
    """Writes reports. What cannot be written (a full disk) is said once, and tried again the next time; the others still are."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.failed: dict[str, str] = {}

    def write(self, doc: dict[str, Any], configs: Sequence[VisualizationConfig]) -> bool:
        """False when one could not be written."""
        for one in configs:
            path = one.output_path
            try:
                write(path, render(doc, one))
                self.failed.pop(path, None)
            except BrokenPipeError:
                c.drop_unread()     # nobody reads it: no failure
            except OSError as error:
                why = error.strerror or str(error)
                if self.failed.get(path) != why:
                    self._say("%s was not written: %s" % (path, why))
                self.failed[path] = why
        return not any(one.output_path in self.failed for one in configs)


class Publisher:
    """Writes a running monitor's reports again and again."""

    def __init__(self, monitor: Any, configs: Sequence[VisualizationConfig], say: Callable[[str], None],
                 before: Callable[[], object] = lambda: None) -> None:
        self.monitor, self.configs, self.writer, self._before = monitor, list(configs), Writer(say), before
        self._due = 0.0

    def tick(self) -> None:
        """Write what is due. Called with every sample."""
        live = [one for one in self.configs if one.auto_refresh]
        if live and time.monotonic() >= self._due:
            began = time.monotonic()
            self.publish(live)
            spent = time.monotonic() - began        # a report that takes long is written less often: at most 5 % of the time
            self._due = time.monotonic() + max(min(one.refresh_interval_ms for one in live) / 1000, 20 * spent)

    def publish(self, configs: Sequence[VisualizationConfig] | None = None) -> bool:
        """Write them; False when one could not be written."""
        self._before()
        return self.writer.write(self.monitor.document(), self.configs if configs is None else configs)
