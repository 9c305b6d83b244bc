"""perfmon.py: every figure of a report against its input, the conclusions against recordings composed to have one cause each.

The composed Macs are the M1 Max recording with the counters of GPU states, traffic, energy, memory, heat and sleep replaced by what
a test asks for. Kernels run on the CPU through fakeobjc.py where a C compiler is there.
"""
from __future__ import annotations

import array
import html.parser
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import _browser                                                         # noqa: E402
import perfmon                                                          # noqa: E402
from _common import ag                                                  # noqa: E402
from perfmon_lib import analyse as judging                              # noqa: E402
from perfmon_lib import compare as comparing                            # noqa: E402
from perfmon_lib import engine, metal, page, report                     # noqa: E402

HERE = Path(__file__).resolve().parent
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:       # a job in the background of a script: its children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
RECORDINGS = HERE / "recordings"
NAMES = sorted(p.stem for p in RECORDINGS.glob("*.json"))
TICKS = 24_000_000
LIMIT = 400e9               # of the M1 Max
TOTAL = 55_662_788_608      # what its GPU may use
needs_compiler = pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")),
                                    reason="kernels run on the CPU only where there is a C compiler")


def compose(path, seconds, cap_mw=None):
    """A Mac whose every second is as told: dicts of active, state, read, write, gpu_w, used, pressure, cltm, slept_s."""
    data = json.loads((RECORDINGS / "m1max.json").read_text("ascii"))
    count = len(seconds) + 1
    first = data["time"]["ticks"][0]
    data["time"]["ticks"] = [first + n * TICKS for n in range(count)]
    slept, total = [0], 0
    for one in seconds:
        total += int(one.get("slept_s", 0) * 1e9)
        slept.append(total)
    if total:
        data["time"]["slept"] = slept
    for channel in data["ioreport"]["channels"]:
        kind = _kind(channel)
        if kind is None:
            _go_on(channel, count)
            continue
        rows, values = [channel["rows"][0]], list(channel["rows"][0][1:])
        for n, one in enumerate(seconds):
            for at, more in _moves(kind, one, len(values)):
                values[at] += more
            rows.append([rows[0][0] + (n + 1) * TICKS] + list(values))
        channel["rows"] = rows
    load = [bytes.fromhex(value) for _, value in data["mach"]["cpu_load"][:2]]
    ticks = [memoryview(part).cast("I").tolist() for part in load]
    data["mach"]["cpu_load"] = [[n, array.array("I", [a + n * (b - a) for a, b in zip(*ticks)]).tobytes().hex()]
                                for n in range(count)]
    gpu = next(node for node in data["registry"] if node["class"] == "AGXAcceleratorG13X")
    figures = gpu["series"]["PerformanceStatistics"][0][1]
    gpu["series"]["PerformanceStatistics"] = [[n, ["d", dict(figures[1], **_statistics(seconds[max(0, n - 1)]))]]
                                              for n in range(count)]
    if cap_mw is not None:
        gpu["properties"]["MaxGPUAbsolutePower"] = ["i64", cap_mw]
    data["notify"]["com.apple.system.thermalpressurelevel"] = [[n, seconds[max(0, n - 1)].get("pressure", 0)]
                                                               for n in range(count)]
    data["expected"] = []
    Path(path).write_text(json.dumps(data), "ascii")
    return str(path)


def _go_on(channel, count):
    """The recording is shorter than what is composed: every other counter goes on as in its first second."""
    rows = channel["rows"]
    if len(rows) >= 2 and None not in rows[:2]:
        channel["rows"] = [[a + n * (b - a) for a, b in zip(rows[0], rows[1])] for n in range(count)]


def _kind(channel):
    return {("GPU Stats", "GPUPH"): "states", ("AMC Stats", "GFX DCS RD"): "gpu_read", ("Energy Model", "GPU Energy"): "energy", ("AMC Stats", "DCS RD"): "read",
            ("AMC Stats", "DCS WR"): "write",
            ("GPU Stats", "GPU_CLTM"): "cltm"}.get((channel["group"], channel["name"]))


def _moves(kind, one, width):
    active, state = one.get("active", 0.0), one.get("state", 6)
    if kind == "states":
        return ((0, int(TICKS * (1 - active))), (state, int(TICKS * active)))
    if kind == "energy":
        return ((0, int(1e9 * one.get("gpu_w", 1.0))),)
    if kind == "cltm":
        return ((0, int(TICKS * (1 - one.get("cltm", 0.0)))), (3, int(TICKS * one.get("cltm", 0.0))))
    if kind == "gpu_read":
        return ((0, int(one.get("read", 1e9) * one.get("by_gpu", 0.9))),)
    return ((0, int(one.get(kind, 1e9))),)


def _statistics(one):
    return {"In use system memory": ["i64", int(one.get("used", 1 << 30))],
            "Device Utilization %": ["i64", int(100 * one.get("active", 0.0))]}


def watch(recording, samples, config=None, **options):
    """A monitor that took so many samples of a recording, one recorded second each: the start is the look at what does not
    change, so sample n is of second n."""
    monitor = perfmon.MetalPerformanceMonitor(config=config, recording=str(recording), speed=0, **options)
    monitor.begin()
    for _ in range(samples):
        monitor.sample()
    monitor.stop_monitoring()
    return monitor


def watched(recording, samples, config=None):
    monitor = watch(recording, samples, config)
    doc = monitor.document()
    monitor.close()
    return doc


def saved(path, doc):
    path.write_text(json.dumps(doc), "utf-8")
    return str(path)


def tool(*arguments, **named):
    return subprocess.run([sys.executable, str(HERE / "perfmon.py"), *map(str, arguments)], capture_output=True,
                          text=True, timeout=120, **named)


class _Text(html.parser.HTMLParser):
    """The words of a page, and its tags; complains of tags that do not match."""
    VOID = {"meta", "br", "line", "rect", "polyline", "polygon"}

    def __init__(self):
        super().__init__()
        self.words, self.open, self.tags, self.links = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag, "tags do not match"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)


def words(text):
    parser = _Text()
    parser.feed(text)
    parser.close()
    assert not parser.open, "tags left open: %s" % parser.open
    return " ".join(" ".join(parser.words).split()), parser


# ---- every figure against its input

@pytest.mark.parametrize("name", NAMES)
def test_each_figure_is_what_the_snapshots_held(name):
    device = ag.LibraryOpen(str(RECORDINGS / (name + ".json")), speed=0, window=0.1)
    ag.DeviceGetSnapshot(device, ("gpu", "system"), timeout=0)      # as the monitor's look at what does not change
    snapshots = [ag.DeviceGetSnapshot(device, engine.PerformanceMonitorConfig().parts, timeout=0) for _ in range(12)]
    doc = watched(RECORDINGS / (name + ".json"), 12)
    ag.LibraryClose(device)
    assert len(doc["samples"]["t"]) == 12
    for column in engine.COLUMNS:
        values = [column.read(s) for s in snapshots]
        told = [v for v in values if v is not None]
        if not told:
            assert column.name not in doc["samples"] and column.name not in doc["analysis"]["figures"]
            assert doc["missing"][column.name]["rows"] == 12 and doc["missing"][column.name]["message"]
            continue
        kept = doc["samples"][column.name]
        assert [v is None for v in kept] == [v is None for v in values]
        assert [v for v in kept if v is not None] == pytest.approx([float(v) for v in told])
        figure = doc["analysis"]["figures"][column.name]
        assert (figure["n"], figure["min"], figure["max"]) == (len(told), min(told), max(told))
        if name not in ("m1ultra-macos27",):            # its seconds are not equally long
            assert figure["mean"] == pytest.approx(sum(told) / len(told))
    for key, function in engine.LIMITS:
        device = ag.LibraryOpen(str(RECORDINGS / (name + ".json")), speed=0)
        assert doc["limits"][key] == ag.Try(function, device).value
        ag.LibraryClose(device)


def test_a_told_second_comes_out_in_every_format(tmp_path):
    told = dict(active=0.75, read=100e9, write=20e9, gpu_w=12.5, used=20 << 30)
    doc = watched(compose(tmp_path / "r.json", [told] * 12), 12)
    figures = doc["analysis"]["figures"]
    assert figures["gpu_utilization_ratio"]["mean"] == pytest.approx(0.75, abs=1e-6)
    assert figures["memory_bytes_per_s"]["mean"] == pytest.approx(120e9, rel=1e-6)
    assert figures["gpu_power_mw"]["mean"] == pytest.approx(12500, rel=1e-6)
    assert figures["memory_used_bytes"]["max"] == 20 << 30
    assert doc["energy"]["joules"]["gpu"] == pytest.approx(12.5 * doc["energy"]["seconds"], rel=1e-3)
    assert doc["energy"]["gpu_active_s"] == pytest.approx(0.75 * doc["energy"]["seconds"], rel=1e-3)
    saturation = {s["name"]: s["mean"] for s in doc["analysis"]["saturation"]}
    assert saturation["Memory bandwidth"] == pytest.approx(120e9 / LIMIT) and saturation["GPU memory"] == pytest.approx((20 << 30) / TOTAL)
    page_words, _ = words(page.html_text(doc, "none"))
    for text in (page_words, report.markdown(doc), report.terminal(doc)):
        assert "75.0 %" in text and "12.5 W" in text
    for text in (page_words, report.markdown(doc)):
        assert "120 GB/s" in text and "30.0 %" in text and "20.0 GB" in text and "51.8 GB" in text
    assert "Average: 120.0 GB/s" in report.terminal(doc)
    lines = report.csv_text(doc).splitlines()
    row = dict(zip(lines[0].split(","), lines[5].split(",")))
    assert float(row["gpu_power_mw"]) == 12500 and float(row["memory_read_bytes_per_s"]) == pytest.approx(100e9)
    assert json.loads(report.json_text(doc)) == json.loads(json.dumps(doc))


def test_a_missing_figure_is_a_dash_with_its_reason_and_never_0():
    doc = watched(RECORDINGS / "vm-macos15.json", 8)
    text, _ = words(page.html_text(doc, "none"))
    assert "not measured" in text and "virtual machine" in text
    assert "gpu_utilization_ratio" not in doc["samples"]
    assert "not measured" in report.terminal(doc) and "0.0 %" not in report.terminal(doc)
    lines = report.csv_text(watched(RECORDINGS / "m4-macos27.json", 5)).splitlines()
    first = dict(zip(lines[0].split(","), lines[1].split(",")))
    assert first["memory_read_bytes_per_s"] == ""          # a rate lacks its second sample


# ---- bottleneck classes: each from a Mac that has it, and not from the others

def busy(**more):
    return dict(dict(active=0.98, read=60e9, write=20e9, gpu_w=30.0), **more)


MACS = {
    "compute": ([busy()] * 12, None),
    "bandwidth": ([busy(read=230e9, write=100e9)] * 12, None),
    "memory": ([dict(active=0.3, used=int(0.95 * TOTAL))] * 12, None),
    "power_or_heat": ([busy(pressure=2)] * 12, None),
    "nothing": ([dict(active=0.3, read=10e9, write=5e9)] * 12, None),
    "idle": ([dict(active=0.01)] * 12, None),
}
VARIANTS = {"power_or_heat: held by thermal management": ([busy(cltm=0.4)] * 12, None),
            "power_or_heat: cap": ([busy(gpu_w=19.8)] * 12, 20000)}


@pytest.mark.parametrize("name", list(MACS) + list(VARIANTS))
def test_a_mac_shows_the_bottleneck_it_has_and_no_other(name, tmp_path):
    seconds, cap = {**MACS, **VARIANTS}[name]
    doc = watched(compose(tmp_path / "r.json", seconds, cap), 12)
    found = [b["class"] for b in doc["analysis"]["bottlenecks"]]
    kind = name.partition(":")[0]
    assert found == ([kind] if kind not in ("nothing", "idle") else []), doc["analysis"]["summary"]
    for one in doc["analysis"]["bottlenecks"]:
        said = judging.RECOMMENDATIONS[kind]
        if kind == "power_or_heat":     # no cap to lift where none is set, nothing to cool where only the cap holds the clock
            said = said[:2] if cap else said[:1] + said[2:]
        assert one["evidence"] and one["recommendations"] == list(said)
    assert {u["class"] for u in doc["analysis"]["not_assessed"]} == {"long_kernels", "launch_overhead"}


def with_work(doc_monitor, kernels=(), buffers=()):
    for name, seconds in kernels:
        doc_monitor.record_kernel(name, seconds)
    for one in buffers:
        doc_monitor.metal.record_buffer(one)
    return doc_monitor.document()


def buffer_at(start, host_s, gpu_s, queue="q"):
    """A command buffer that took host_s from commit to return, of which gpu_s on the GPU."""
    gap = (host_s - gpu_s) / 4
    return metal.BufferRun("b", queue, 1, None, start, start + gap, start + 2 * gap, start + 3 * gap,
                           start + 3 * gap + gpu_s, start + host_s)


@pytest.mark.parametrize("kind, kernels, buffers", [
    ("long_kernels", [("slow", 0.120 + 0.001 * n) for n in range(10)] + [("quick", 0.001)] * 10, []),
    ("launch_overhead", [("tiny", 0.00002)] * 50, [buffer_at(10 + n * 0.001, 0.0004, 0.00002) for n in range(50)]),
    (None, [("fine", 0.004)] * 50, [buffer_at(10 + n * 0.01, 0.0045, 0.004) for n in range(50)]),
])
def test_kernels_show_the_bottleneck_they_have_and_no_other(kind, kernels, buffers, tmp_path):
    monitor = watch(compose(tmp_path / "r.json", MACS["nothing"][0]), 12)
    doc = with_work(monitor, kernels, buffers)
    assert [b["class"] for b in doc["analysis"]["bottlenecks"]] == ([kind] if kind else [])
    if kind == "long_kernels":
        assert any("slow" in e for e in doc["analysis"]["bottlenecks"][0]["evidence"])
    if kind == "launch_overhead":
        assert doc["analysis"]["bottlenecks"][0]["share"] == pytest.approx(1 - 0.00002 / 0.0004)
    monitor.close()


def test_what_cannot_be_judged_is_said_so_and_not_counted_as_absent():
    doc = watched(RECORDINGS / "vm-macos15.json", 8)
    assert {u["class"] for u in doc["analysis"]["not_assessed"]} >= {"compute", "bandwidth"}
    assert "not judged" in doc["analysis"]["summary"]


def test_a_compute_bound_without_traffic_figures_admits_the_doubt(tmp_path):
    doc = watched(compose(tmp_path / "r.json", MACS["compute"][0]), 12,
                  perfmon.PerformanceMonitorConfig(enable_memory_bandwidth=False))
    compute = [b for b in doc["analysis"]["bottlenecks"] if b["class"] == "compute"][0]
    assert any("bandwidth bound looks the same" in e for e in compute["evidence"])


@pytest.mark.parametrize("seconds, kind", [
    (MACS["idle"][0], "idle"), (MACS["compute"][0], "prefill-like"), (MACS["bandwidth"][0], "bandwidth-bound"),
    (([dict(active=0.95)] * 2 + [dict(active=0.02)] * 3) * 3, "bursty"), (MACS["nothing"][0], "steady")])
def test_kind_of_work(seconds, kind, tmp_path):
    work = watched(compose(tmp_path / "r.json", seconds), len(seconds))["analysis"]["workload"]
    assert work["class"] == kind and work["evidence"]
    assert sum(work["shares"].values()) == pytest.approx(1)


def test_evidence_names_clock_and_who_moves_the_bytes(tmp_path):
    def evidence(seconds):
        return " | ".join(watched(compose(tmp_path / "r.json", seconds), 12)["analysis"]["bottlenecks"][0]["evidence"])
    assert "Clock 1296 MHz of 1296 MHz" in evidence(MACS["compute"][0])
    assert re.search(r"6\d % of it by the GPU$", evidence(MACS["bandwidth"][0]))
    assert "of other parts of the chip" in evidence([busy(read=230e9, write=100e9, by_gpu=0.2)] * 12)


def test_throttling_says_yes_no_or_that_it_cannot_tell(tmp_path):
    def state(seconds, config=None):
        return watched(compose(tmp_path / "r.json", seconds), 12, config)["analysis"]["throttling"]["state"]
    assert state(MACS["power_or_heat"][0]) == "yes" and state(MACS["compute"][0]) == "no"
    off = perfmon.PerformanceMonitorConfig(enable_thermal_monitoring=False, enable_power_monitoring=False)
    doc = watched(compose(tmp_path / "r.json", MACS["compute"][0]), 12, off)
    assert doc["analysis"]["throttling"]["state"] in ("cannot tell", "no")


def test_a_window_looks_at_the_newest_part_only(tmp_path):
    monitor = watch(compose(tmp_path / "r.json", [dict(active=0.9)] * 10 + [dict(active=0.1)] * 6), 16)
    assert monitor.analyze_performance(5000)["avg_gpu_utilization"] == pytest.approx(0.1, abs=1e-3)
    assert monitor.analyze_performance()["peak_gpu_utilization"] == pytest.approx(0.9, abs=1e-3)
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError):
            monitor.analyze_performance(bad)
    monitor.close()


# ---- trends and anomalies

def test_a_trend_is_found_and_noise_is_none(tmp_path):
    random.seed(5)
    rising = [dict(active=0.3 + 0.01 * n + random.uniform(-.01, .01), used=(4 << 30) + n * (64 << 20))
              for n in range(40)]
    doc = watched(compose(tmp_path / "a.json", rising), 40)
    found = {t["column"]: t for t in doc["analysis"]["trends"]}
    assert found["memory_used_bytes"]["direction"] == "rising"
    assert found["memory_used_bytes"]["per_minute"] == pytest.approx(60 * (64 << 20), rel=0.05)
    assert found["gpu_utilization_ratio"]["change"] == pytest.approx(0.39, abs=0.05)
    quiet = 0
    for seed in range(20):
        random.seed(seed)
        series = judging.Series({"samples": {"t": list(range(60)), "covers_s": [1.0] * 60,
                                             "gpu_power_mw": [20000 + random.gauss(0, 2000) for _ in range(60)]}}, None)
        quiet += not judging.trends(series)
    assert quiet >= 19


def test_one_odd_sample_is_an_anomaly_and_a_bursty_load_has_none(tmp_path):
    steady = [dict(active=0.3, gpu_w=10.0) for _ in range(40)]
    steady[20] = dict(active=0.95, gpu_w=30.0)
    doc = watched(compose(tmp_path / "a.json", steady), 40)
    assert {(a["what"], round(a["t"]))
            for a in doc["analysis"]["anomalies"]} >= {("gpu_power_mw", 20), ("gpu_utilization_ratio", 20)}
    assert not [a for a in doc["analysis"]["anomalies"] if round(a["t"]) != 20]
    bursty = ([dict(active=0.95, gpu_w=30.0)] * 2 + [dict(active=0.05, gpu_w=2.0)] * 6) * 5
    assert not watched(compose(tmp_path / "b.json", bursty), 40)["analysis"]["anomalies"]


# ---- sampling: sleep, history, intervals, settings

def test_sleep_in_the_middle_is_an_event_and_no_figure(tmp_path):
    seconds = [dict(active=0.5, gpu_w=10.0) for _ in range(14)]
    seconds[6] = dict(active=0.5, gpu_w=10.0, slept_s=3600)
    doc = watched(compose(tmp_path / "r.json", seconds), 14)
    assert [e["kind"] for e in doc["events"]] == ["slept"] and "3600" in doc["events"][0]["text"]
    assert [n for n, v in enumerate(doc["samples"]["gpu_power_mw"])
            if v is None] == [6]        # the second that it slept in
    assert doc["analysis"]["figures"]["gpu_power_mw"]["max"] == pytest.approx(10000, rel=1e-3)
    assert doc["analysis"]["figures"]["gpu_power_mw"]["min"] == pytest.approx(10000, rel=1e-3)
    assert doc["seconds"] == pytest.approx(13)                      # the hour is in no span
    text, _ = words(page.html_text(doc, "none"))
    assert "slept about 3600 s" in text


def test_the_history_is_bounded_and_says_so(tmp_path):
    monitor = watch(RECORDINGS / "m4-macos27.json", 40, perfmon.PerformanceMonitorConfig(history_buffer_size=10))
    doc = monitor.document()
    monitor.close()
    assert len(doc["samples"]["t"]) == 10 and doc["sampling"]["rows_ever"] == 40
    assert doc["samples"]["t"] == sorted(doc["samples"]["t"]) and doc["samples"]["t"][-1] == pytest.approx(39)
    assert any("newest 10 of 40" in n for n in doc["sampling"]["notes"])
    history = engine.History(("a",), 3)
    for n in range(5):
        history.append({"a": n})
    assert history.column("a") == [2, 3, 4]


def test_the_fast_lane_reads_only_what_is_cheap(tmp_path):
    config = perfmon.PerformanceMonitorConfig(sampling_interval_ms=10)
    began = time.monotonic()
    with perfmon.MetalPerformanceMonitor(config=config, recording=str(RECORDINGS / "m5max-macos27.json"),
                                         speed=20) as monitor:
        while monitor.fast.count < 10 or monitor._calls["slow"] < 2:
            assert time.monotonic() < began + 30
            time.sleep(0.05)
    spent = time.monotonic() - began
    doc = monitor.document()
    sampling = doc["sampling"]
    assert (sampling["fast_ms"], sampling["snapshots_ms"]) == (10, 50)
    assert 10 <= sampling["fast_rows"] <= spent / 0.01 + 2 and 2 <= monitor._calls["slow"] <= spent / 0.05 + 2
    assert doc["fast"]["gpu_device_percent"][-1] is not None and any("Every 10 ms only" in n for n in sampling["notes"])
    assert perfmon.PerformanceMonitorConfig().fast_s is None


def test_the_spans_that_figures_were_measured_over_are_told():
    doc = watched(RECORDINGS / "m5max-macos27.json", 12)
    assert doc["sampling"]["per"]["cpu_power_mw"]["interval_s"] == pytest.approx(2.1, abs=0.3)
    assert any("CPU power" in n and "2." in n for n in doc["sampling"]["notes"])


def test_a_part_switched_off_is_not_read():
    off = perfmon.PerformanceMonitorConfig(enable_memory_bandwidth=False, enable_power_monitoring=False)
    doc = watched(RECORDINGS / "m5max-macos27.json", 6, off)
    assert "memory_read_bytes_per_s" not in doc["samples"] and "gpu_power_mw" not in doc["samples"] and doc["energy"] is None
    assert doc["missing"]["gpu_power_mw"]["reason"] == ag.REASON_NOT_ASKED


@pytest.mark.parametrize("given, said", [
    ({"sampling_interval_ms": 5}, "10 to 10000"), ({"sampling_interval_ms": 60000}, "10 to 10000"),
    ({"sampling_interval_ms": "fast"}, "10 to 10000"),
    ({"sampling_interval_ms": float("nan")}, "10 to 10000"), ({"history_buffer_size": 0}, "10 to 1000000"),
    ({"enable_gpu_utilization": 1}, "True or False"),
    ({"enable_gpu_utilisation": True}, "did you mean enable_gpu_utilization"),
    ({"colour": "red"}, "no setting 'colour'")])
def test_a_bad_configuration_is_one_sentence(given, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        perfmon.PerformanceMonitorConfig.from_mapping(given)
    file = tmp_path / "c.json"
    file.write_text(json.dumps(given))
    done = tool("watch", "--config", file, "--recording", RECORDINGS / "m4-macos27.json", "--seconds", "1")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["[1, 2]", "{", "17"])
def test_a_configuration_file_that_is_none(text, tmp_path):
    file = tmp_path / "c.json"
    file.write_text(text)
    done = tool("run", "--config", file, "--recording", RECORDINGS / "m4-macos27.json", "--", "true")
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_defaults_are_the_documents():
    config = perfmon.PerformanceMonitorConfig()
    assert (config.sampling_interval_ms, config.history_buffer_size) == (100, 10000)
    flags = {k: v for k, v in vars(config).items() if k.startswith("enable_")}
    assert len(flags) == 8 and [k for k, v in flags.items() if not v] == ["enable_detailed_profiling"]


def test_a_manager_keeps_several_monitors_and_their_sums():
    manager = perfmon.PerformanceMonitorManager()
    for name in ("m4pro", "m5max-macos27"):
        manager.register(name, recording=str(RECORDINGS / (name + ".json")), speed=0).begin()
    for monitor in (manager["m4pro"], manager["m5max-macos27"]):
        for _ in range(6):
            monitor.sample()
    total = manager.aggregate()["total"]
    powers = [m.analyze_performance()["figures"]["gpu_power_mw"]["mean"]
              for m in (manager["m4pro"], manager["m5max-macos27"])]
    assert total["gpu_power_mw"] == {"value": pytest.approx(sum(powers)),
                                     "of": 2} and total["monitors"] == len(manager) == 2
    with pytest.raises(ValueError):
        manager.register("m4pro")
    manager.unregister("m4pro")
    assert list(manager) == ["m5max-macos27"]
    manager.close()


# ---- kernels, command buffers, allocations

def test_what_a_kernel_table_says_is_what_was_recorded():
    monitor = watch(RECORDINGS / "m4-macos27.json", 6)
    times = [0.001 * n for n in range(1, 21)]
    for seconds in times:
        monitor.record_kernel("gemm", seconds, threads=(1000, 1, 1), group=(48, 1, 1), simd_width=32, max_threads=1024,
                              flops=2e9, bytes=1e6)
    monitor.record_kernel("unknown", None, method="why not")
    doc = monitor.document()
    row = doc["kernels"][0]
    assert (row["name"], row["count"], row["timed"]) == ("gemm", 20, 20)
    assert row["mean_s"] == pytest.approx(sum(times) / 20) and row["total_s"] == pytest.approx(sum(times))
    assert row["seconds"]["median"] == pytest.approx(0.0105) and row["seconds"]["max"] == pytest.approx(0.02)
    assert row["flops_per_s"] == pytest.approx(20 * 2e9 / sum(times))
    assert doc["kernels"][1]["mean_s"] is None and doc["kernels"][1]["methods"] == ["why not"]
    notes = doc["analysis"]["kernel_notes"]
    assert any("no multiple of the SIMD width 32" in n for n in notes) and any("GFLOP/s" in n for n in notes)
    assert "10.50 ms" in "\n".join(report.kernel_lines(doc)) and monitor.get_kernel_profiling_data("gemm")[3].seconds == 0.004
    with pytest.raises(ValueError):
        monitor.record_kernel("gemm", -1.0)
    monitor.close()


def test_stamps_of_another_process_are_moved_only_from_another_clock():
    """Processes of one Mac share a clock, however late the file came (the Mac may have slept); a stand-in Mac has its own."""
    config = engine.PerformanceMonitorConfig()
    for moved in (False, True):
        here, there = metal.MetalActivity(config), metal.MetalActivity(config)
        here.zero_s = engine.uptime_s() - 10
        base = 5e6 if moved else here.zero_s
        there.record_kernel("k", 0.5, start_s=base + 2.0)
        data = {"kernels": [run._asdict() for run in there.runs("k")], "totals": {}, "buffers": [], "buffer_totals": [0] * 16, "zero_s": base + 1.0,
                "saved_s": base + 3.0, "allocations": {"timeline": [[0.5, 64, 1]]}, "lives": [], "over": True, "pid": 1}
        here.absorb(data, 4.0 if moved else 100.0)
        assert here.runs("k")[0].start_s - here.zero_s == pytest.approx(3.0 if moved else 2.0)
        assert here.document()["allocations"]["timeline"][0][0] == pytest.approx(2.5 if moved else 1.5)


def test_the_runs_of_several_processes_add_up_beyond_those_that_are_kept(tmp_path):
    config = engine.PerformanceMonitorConfig(history_buffer_size=10)
    here = metal.MetalActivity(config)
    for process, count in enumerate((30, 12, 4)):
        there = metal.MetalActivity(config)
        for n in range(count):
            there.record_kernel("k", 0.5)
            there.record_buffer(metal.BufferRun("b", "q", 1, None, n + 1.0, None, None, None, None, n + 1.003))
        there.save(str(tmp_path / ("%d.json" % process)))
        here.absorb(json.loads((tmp_path / ("%d.json" % process)).read_text()), 1.0)
    row = here.document()["kernels"][0]
    assert (row["count"], row["timed"], row["total_s"]) == (46, 46, 23.0)
    assert (here.buffer_count, sum(here.latency_counts), here.latency_sum_s) == (46, 46, pytest.approx(46 * 0.003))


@pytest.mark.parametrize("apart", [False, True])
def test_the_allocations_of_several_processes_are_shown_together(apart, tmp_path):
    """Two processes at once hold both their memory, one after the other never more than the larger."""
    config = engine.PerformanceMonitorConfig()
    here = metal.MetalActivity(config)
    here.zero_s = zero = engine.uptime_s() - 100
    for n, (pid, size) in enumerate(((11, 1000), (22, 600))):
        begin = zero + (20 * n if apart else n)
        there, ticks = metal.MetalActivity(config), iter([begin + 2, begin + 3, begin + 5, begin + 9])
        there.allocations = metal.Allocations(clock=lambda ticks=ticks: next(ticks, begin + 10))
        there.zero_s, there.stopped_s = begin, begin + 10
        there.allocations.born(1, size, "shared", "weights")
        there.allocations.born(2, size, "private", "scratch")
        there.allocations.died(2)
        there.save(str(tmp_path / "saved.json"))
        here.absorb(dict(json.loads((tmp_path / "saved.json").read_text()), pid=pid, saved_s=begin + 10), 99.0)
    held = here.document()["allocations"]
    assert held["processes"] == 2 and held["statistics"] == {
        "total_allocated_bytes": 3200, "current_allocated_bytes": 1600, "peak_allocated_bytes": 2000 if apart else 3200,
        "shared_bytes": 1600, "private_bytes": 0, "live": 2, "allocations": 4, "deallocations": 2, "unknown_frees": 0}
    assert [(r["name"], r["bytes"]) for r in held["still_allocated"]] == [("weights (pid 11)", 1000), ("weights (pid 22)", 600)]
    assert {r["name"] for r in held["names"]} == {"weights (pid 11)", "weights (pid 22)", "scratch (pid 11)", "scratch (pid 22)"}
    assert held["rate_per_s"] == pytest.approx(4 / (30 if apart else 11)) and held["lifetime_s"]["n"] == 2
    assert held["sizes"] == [{"up_to_bytes": 1024, "count": 4}] and held["timeline"][-1][1:] == [0, 0]
    assert held["timeline"] == sorted(held["timeline"])


def test_begin_and_end_come_in_pairs():
    monitor = watch(RECORDINGS / "m4-macos27.json", 2)
    monitor.begin_kernel_profiling("step")
    with pytest.raises(ValueError, match="already"):
        monitor.begin_kernel_profiling("other")
    with pytest.raises(ValueError, match="step"):
        monitor.end_kernel_profiling("other")
    time.sleep(0.02)
    monitor.end_kernel_profiling("step")
    run, = monitor.get_kernel_profiling_data("step")
    assert run.method == "host clock" and 0.02 <= run.seconds < 2
    monitor.close()


def test_latency_parts_add_up_and_queues_count_time_once():
    runs = [buffer_at(100.0, 1.0, 0.5, "a"), buffer_at(100.5, 1.0, 0.5, "a"), buffer_at(104.0, 1.0, 0.8, "a"),
            buffer_at(100.0, 2.0, 1.0, "b")]
    for run in runs:
        parts = run.parts()
        assert sum(parts[k]
                   for k in ("scheduling", "driver", "queued", "gpu", "notice")) == pytest.approx(parts["total"])
    rows = {q["name"]: q for q in metal.queues(runs, 10.0)}
    assert rows["a"]["in_flight_ratio"] == pytest.approx(2.5 / 10) and rows["b"]["in_flight_ratio"] == pytest.approx(0.2)
    assert rows["a"]["gpu_ratio"] == pytest.approx(metal.union_s([(r.gpu_start_s, r.gpu_end_s) for r in runs[:3]]) / 10)
    assert metal.latency(runs)["gpu"]["max"] == pytest.approx(1.0) and metal.latency(runs)["encode"] is None
    assert metal.union_s([]) == 0 and metal.union_s([(0, 2), (1, 3), (5, 6)]) == 4


def test_allocations_are_counted_by_name_kind_and_life():
    now = [0.0]
    held = metal.Allocations(clock=lambda: now[0])
    held.born(2, 3000, "shared", "start-up")
    held.born(1, 1000, "shared", "weights")
    assert held.died(2)
    for n in range(5):
        now[0] += 1.0
        held.born(10 + n, 300, "private", "cache")
        held.born(20 + n, 50, "shared", "scratch")
        now[0] += 0.5
        assert held.died(20 + n)
    assert not held.died(99)
    now[0] = 10.0
    stats = held.statistics()
    assert stats == metal.MemoryStatistics(3000 + 1000 + 1500 + 250, 2500, 4000, 1000, 1500, 6, 12, 6, 1)
    leaks = {r["name"]: r for r in held.leaks()}
    assert set(leaks) == {"weights", "cache"} and leaks["cache"]["growing"] and not leaks["weights"]["growing"]
    doc = held.document(0.0, 10.0)
    assert doc["rate_per_s"] == pytest.approx(1.2) and doc["lifetime_s"]["median"] == pytest.approx(0.5)
    assert {s["up_to_bytes"]: s["count"] for s in doc["sizes"]} == {4096: 1, 1024: 1, 512: 5, 64: 5}
    with pytest.raises(ValueError):
        held.born(1, -5)


PROGRAM = """
import array, sys
sys.path.insert(0, %r)
import pyapplegpu as ag
SOURCE = '''
#include <metal_stdlib>
using namespace metal;
kernel void twice(device float *x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] = 2 * x[i]; }
kernel void thrice(device float *x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] = 3 * x[i]; }
'''
library = ag.MetalCompile(SOURCE)
one, two = (ag.MetalPipeline(ag.MetalFunction(library, n), label=n) for n in ("twice", "thrice"))
data = ag.MetalBuffer(array.array("f", [1.0] * 4096), label="data")
queue = ag.MetalQueue(label="main queue")
for n in range(7):
    scratch = ag.MetalBuffer(65536, label="scratch")
    ag.MetalDispatch(one, 4096, data, queue=queue, group=128)
    work = ag.MetalBegin(queue, label="both")
    ag.MetalEncodeDispatch(work, one, 4096, data, group=128)
    ag.MetalEncodeDispatch(work, two, 4096, data)
    ag.MetalWait(ag.MetalCommit(work))
assert ag.MetalContents(data, "f")[0] == 12.0 ** 7
"""


@needs_compiler
def test_a_program_is_profiled_without_being_changed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM % str(HERE.parent))
    for detailed in (False, True):
        out = tmp_path / ("%s.json" % detailed)
        done = tool("run", "--recording", RECORDINGS / "m4pro.json", "--speed", "20", "--kernels",
                    *(["--detailed"] if detailed else []), "--json", out,
                    "--trace", tmp_path / "t.json", "--html", tmp_path / "p.html", "--script", "none", "--",
                    sys.executable, HERE / "fakeobjc.py", program)
        assert done.returncode == 0, done.stderr
        doc = json.loads(out.read_text())
        rows = {k["name"]: k for k in doc["kernels"]}
        assert (rows["twice"]["count"], rows["thrice"]["count"]) == (14, 7)
        assert rows["twice"]["timed"] == (14 if detailed else 7) and rows["thrice"]["timed"] == (7 if detailed else 0)
        assert rows["twice"]["threads"] == [4096, 1,
                                            1] and rows["twice"]["group"] == [128, 1, 1] and rows["twice"]["simd_width"] == 32
        assert doc["buffer_count"] == 14 and [q["name"] for q in doc["queues"]] == ["main queue"]
        assert doc["queues"][0]["dispatches"] == 21 and 0 < doc["queues"][0]["in_flight_ratio"] <= 1
        for one in doc["buffers"]:
            assert 0 <= one["commit_s"] <= one["gpu_start_s"] <= one["gpu_end_s"] <= one["done_s"] <= doc["command"]["seconds"] + 5
        held = doc["allocations"]["statistics"]
        assert held["allocations"] == 8 and held["total_allocated_bytes"] == 7 * 65536 + 16384 and held["private_bytes"] == 0
        assert held["peak_allocated_bytes"] == 2 * 65536 + 16384        # the new one is made before the old one goes
        text, _ = words((tmp_path / "p.html").read_text())
        assert "twice" in text and "main queue" in text
        check_trace(json.loads((tmp_path / "t.json").read_text()), doc)


def check_trace(trace, doc):
    events = trace["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert slices and all(e["dur"] >= 0 and {"name", "pid", "tid", "ts"} <= set(e) for e in slices)
    named = {(e["pid"], e["tid"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in slices} <= named
    gpu = sorted(e["ts"] for e in slices if e["pid"] == 2 and "dispatches" in e["args"])
    assert gpu == pytest.approx(sorted(1e6 * b["gpu_start_s"] for b in doc["buffers"]), abs=0.01)
    starts, ends = ({e["id"]: e["ts"] for e in events if e["ph"] == phase} for phase in "sf")
    assert set(starts) == set(ends) and all(starts[k] <= ends[k] for k in starts)
    counters = [e for e in events if e["ph"] == "C" and e["name"] == "gpu_power_mw"]
    assert [e["args"]["mW"] for e in counters] == [v for v in doc["samples"]["gpu_power_mw"] if v is not None]


@needs_compiler
def test_a_monitor_inside_the_program_sees_the_same(tmp_path):
    program = tmp_path / "inside.py"
    program.write_text("""
import sys, array
sys.path[:0] = [%r, %r]
import perfmon
from _common import ag
before = ag.MetalCommit
config = perfmon.PerformanceMonitorConfig(enable_detailed_profiling=True)
with perfmon.MetalPerformanceMonitor(config=config, recording=%r) as monitor:
    kernel = ag.MetalKernel("kernel void f(device float *x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] += 1; }", "f")
    data = ag.MetalBuffer(4096)
    for n in range(3):
        work = ag.MetalBegin()
        monitor.begin_kernel_profiling("mine", work)
        ag.MetalEncodeDispatch(work, kernel, 1024, data)
        monitor.end_kernel_profiling("mine", work)
        ag.MetalWait(ag.MetalCommit(work))
    def work(repeat):
        made = ag.MetalBegin()
        for n in range(repeat):
            ag.MetalEncodeDispatch(made, kernel, 1024, data)
        return made
    many = [ag.MetalCommit(work(1)) for n in range(60)]
    while many[-1].command_buffers[-1].status() < 4:
        pass
    assert len(monitor.metal._flight) <= 60
    for n in range(20):                             # the done ones are let go, and recorded, without a wait
        ag.MetalWait(ag.MetalCommit(work(1)))
    assert len(monitor.metal._flight) <= 40 and len(monitor.get_kernel_profiling_data("f")) >= 40
    del many
    unwaited = ag.MetalBegin()
    ag.MetalEncodeDispatch(unwaited, kernel, 1024, data)
    ag.MetalCommit(unwaited)
    result = monitor.compare_variants(lambda: work(1), lambda: work(40), n=12, names=("once", "forty times"))
    assert (result.a.n, result.b.n, result.verdict) == (12, 12, "a is quicker"), result
    ag.MetalRelease(data)
assert ag.MetalCommit is before, "the library is as it was"
assert [r.name for r in monitor.get_kernel_profiling_data("mine")] == ["mine"] * 3
assert monitor.get_kernel_profiling_data("mine")[0].group == (256, 1, 1), monitor.get_kernel_profiling_data("mine")[0]
assert monitor.get_kernel_profiling_data("f")[0].seconds is not None
stats = monitor.get_memory_statistics()
assert (stats.total_allocated_bytes, stats.current_allocated_bytes, stats.live) == (4096, 0, 0), stats
view = perfmon.MetalPerformanceVisualizer(monitor, perfmon.VisualizationConfig(format="markdown", output_path=%r))
view.generate_report()
view.print_performance_summary()
view.print_kernel_profiling_table()
view.print_memory_statistics()
""" % (str(HERE), str(HERE.parent), str(RECORDINGS / "m4pro.json"), str(tmp_path / "r.md")))
    done = subprocess.run([sys.executable, str(HERE / "fakeobjc.py"), str(program)], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    for title in ("=== Metal Performance Summary ===", "=== Top Kernels by Execution Time ===",
                  "=== Memory Statistics ==="):
        assert title in done.stdout
    assert re.search(r"^mine +\S+ \S+ +3 ", done.stdout, re.M) and "| mine | 3 |" in (tmp_path / "r.md").read_text()


# ---- comparison

def times(seed, n=30, scale=1.0, spread=0.03):
    rng = random.Random(seed)
    return [0.005 * scale * rng.lognormvariate(0, spread) * (1.6 if rng.random() < 0.03 else 1) for _ in range(n)]


def test_equal_kernels_show_no_difference_and_a_slower_one_does():
    same = [comparing.compare_samples(times(2 * s), times(2 * s + 1)).verdict for s in range(100)]
    assert same.count(comparing.SAME) >= 95, {v: same.count(v) for v in set(same)}
    slower = [comparing.compare_samples(times(2 * s), times(2 * s + 1, scale=1.1)) for s in range(100)]
    assert all(c.verdict == comparing.QUICKER_A for c in slower)
    assert sum(c.ratio_low <= 1.1 <= c.ratio_high for c in slower) >= 95 and "Use a" in slower[0].recommendation
    quicker = comparing.compare_samples(times(1), times(2, scale=0.9), "v1", "v2")
    assert quicker.verdict == comparing.QUICKER_B and quicker.recommendation.startswith("Use v2") and quicker.speedup_factor < 1


def test_too_few_or_too_noisy_runs_are_not_enough_evidence():
    few = comparing.compare_samples(times(1, 5), times(2, 5, 2.0))
    assert few.verdict == comparing.UNSURE and few.p is None and "at least 8" in few.recommendation
    noisy = comparing.compare_samples(times(3, 10, spread=0.5), times(4, 10, spread=0.5))
    assert noisy.verdict == comparing.UNSURE and "Measure more" in noisy.recommendation
    with pytest.raises(ValueError):
        comparing.compare_samples([0.0] * 10, [1.0] * 10)


def test_the_statistics_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for seed, (n, m, scale) in enumerate([(8, 9, 1.0), (20, 20, 1.02), (30, 45, 1.05), (200, 150, 1.0)]):
        a, b = times(seed, n), times(seed + 50, m, scale)
        u, p = comparing.mann_whitney(a, b)
        theirs = stats.mannwhitneyu(b, a, alternative="two-sided", method="exact" if max(n, m) <= 20 else "asymptotic")
        assert (u, p) == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue, rel=1e-6))
    tied_a, tied_b = [1, 2, 2, 3, 3, 3, 4, 5] * 3, [2, 3, 3, 4, 4, 5, 5, 6] * 3
    assert comparing.mann_whitney(tied_a, tied_b)[1] == pytest.approx(stats.mannwhitneyu(tied_b, tied_a, method="asymptotic").pvalue, rel=1e-6)
    for degrees in (3, 4, 9, 30):
        assert comparing.student_quantile(0.995, degrees) == pytest.approx(stats.t.ppf(0.995, degrees), rel=1e-5)
    points = [(float(n), v) for n, v in enumerate(times(7, 20))]
    slope, p = judging.mann_kendall(points)
    assert slope == pytest.approx(stats.theilslopes([v for _, v in points], [t for t, _ in points]).slope)
    assert p == pytest.approx(stats.kendalltau(*zip(*points), method="asymptotic").pvalue, abs=0.03)


def run_document(scale=1.0, seed=0, recording="m5max-macos27"):
    monitor = watch(RECORDINGS / (recording + ".json"), 8)
    for seconds in times(seed, 20, scale):
        monitor.record_kernel("gemm", seconds)
    doc = monitor.document()
    doc["command"] = {"argv": ["x"], "exit_code": 0, "seconds": 10.0 * scale * (1 + 0.004 * (seed % 5))}
    monitor.close()
    return doc


def test_regressions_against_a_folder(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    for seed in range(6):
        saved(folder / ("%d.json" % seed), run_document(seed=seed))
    saved(folder / "other.json", run_document(recording="m4pro"))
    (folder / "broken.json").write_text("{")
    found, left = comparing.baselines(str(folder))
    assert len(found) == 7 and len(left) == 1
    fine, slow = run_document(seed=77), run_document(1.15, seed=78)
    result = comparing.regressions(fine, found)
    assert len(result["baselines"]) == 6 and result["other_gpus"] == ["other.json"] and not result["worse"]
    worse = comparing.regressions(slow, found)
    assert set(worse["worse"]) == {"Wall time", "Kernel gemm, median"}
    unsure = comparing.regressions(slow, found[:2])
    assert not unsure["worse"] and all(r["verdict"] in (comparing.UNSURE, "not measured now") for r in unsure["rows"])
    done = tool("regress", saved(tmp_path / "slow.json", slow), folder)
    assert done.returncode == 1 and "worse" in done.stdout and "broken.json" in done.stdout
    assert tool("regress", saved(tmp_path / "fine.json", fine), folder).returncode == 0


def test_two_runs_side_by_side(tmp_path):
    a, b = saved(tmp_path / "a.json", run_document(seed=1)), saved(tmp_path / "b.json", run_document(1.2, seed=2))
    done = tool("compare", a, b)
    assert done.returncode == 0 and "A is quicker" in done.stdout and "shown, not judged" in done.stdout
    result = json.loads(tool("compare", a, b, "--json").stdout)
    assert result["kernels"][0]["ratio"] == pytest.approx(1.2, rel=0.05) and result["warnings"] == []
    assert any("GPUs" in w for w in comparing.compare_runs(run_document(), run_document(recording="m4pro"))["warnings"])
    assert tool("compare", a, b, "--kernel", "gemm", "nope").returncode == 2
    bad = tmp_path / "c.json"
    bad.write_text('{"tool": "other"}')
    assert tool("compare", a, bad).returncode == 2


# ---- reports

NASTY = '</script><script>alert(1)</script>|`$%{x}<b>&"\x1b[31m'


def test_names_from_outside_do_no_harm(tmp_path):
    monitor = watch(RECORDINGS / "m4pro.json", 6)
    for seconds in times(1, 10):
        monitor.record_kernel(NASTY, seconds)
    monitor.record_kernel("=1+1", 0.1)
    monitor.metal.record_buffer(metal.BufferRun(NASTY, NASTY, 1, None,
                                                *[metal.BufferRun("", "", 1, None, 10, 11, 12, 13, 14, 15)[n]
                                                  for n in range(4, 10)]))
    monitor.track_memory_allocation(1, 100, True, NASTY)
    monitor.command = {"argv": ["echo", NASTY], "exit_code": 0, "seconds": 1.0}
    doc = monitor.document()
    monitor.close()
    for text in (page.html_text(doc, "none"), report.markdown(doc), report.terminal(doc),
                 report.csv_text(doc, "kernels")):
        assert "\x1b" not in text
    text, parser = words(page.html_text(doc, "none"))
    assert "script" not in parser.tags and "alert(1)" in text and parser.links == []
    assert "<script" not in report.markdown(doc) and "'=1+1" in report.csv_text(doc, "kernels")


@pytest.mark.parametrize("script", ["inline", "file"])
def test_a_page_with_plotly_is_whole(script, tmp_path):
    pytest.importorskip("plotly", reason="plotly is not installed")
    monitor = watch(RECORDINGS / "m4pro.json", 10)
    for seconds in times(1, 10):
        monitor.record_kernel(NASTY, seconds)
    doc = monitor.document()
    monitor.close()
    out = tmp_path / "r.html"
    report.write(str(out), page.html_text(doc, script, None, str(out)))
    text = out.read_text("utf-8")
    _, parser = words(text)
    assert text.count('draw("chart') >= 2 and "alert(1)</script>" not in text
    assert parser.links == ([page.PLOTLY_FILE] if script == "file" else [])
    assert (tmp_path / page.PLOTLY_FILE).exists() == (script == "file") and (len(text) > 3_000_000) == (script == "inline")


@pytest.fixture(scope="module")
def browser():
    if _browser.find() is None:
        pytest.skip("no Chromium here")
    one = _browser.Browser(_browser.find())
    yield one
    one.close()


@pytest.mark.parametrize("script", ["inline", "none"])
def test_a_page_follows_the_readers_colours_and_width(script, browser, tmp_path):
    if script == "inline":
        pytest.importorskip("plotly", reason="plotly is not installed")
    out = tmp_path / "r.html"
    doc = run_document()
    report.write(str(out), page.html_text(doc, script, None, str(out)))
    browser.events.clear()
    seen = {}
    for scheme, width in (("light", 1200), ("dark", 1200), ("dark", 390)):
        browser.scheme(scheme)
        browser.size(width, 900)
        browser.open(out.as_uri())
        charts = "#chart1 .main-svg .ytick" if script == "inline" else "svg.svg polyline"
        assert browser.until("document.querySelectorAll(%s).length > 1" % json.dumps(charts))
        seen[scheme] = browser.run("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector("
                                   "%s)).fill]" % json.dumps("#chart1 .ytick text" if script == "inline" else ".tick"))
        assert browser.run("document.documentElement.scrollWidth") <= width
    assert seen["light"][0] != seen["dark"][0] and seen["light"][1] != seen["dark"][1]
    assert browser.troubles() == []


def test_a_page_without_script_loads_nothing_and_draws_everything():
    doc = watched(RECORDINGS / "m5max-macos27.json", 12)
    text = page.html_text(doc, "none")
    _, parser = words(text)
    assert not parser.links and "script" not in parser.tags and "http" not in text
    assert text.count("<svg") == len(page.panels(doc)) >= 6
    line = page._paths([0, 1, 2, 3, 4], [1, None, 2, 3, None])
    assert line == [[(0, 1)], [(2, 2), (3, 3)]]             # never across what was not measured


def test_csv_tables_have_their_columns():
    doc = run_document()
    for table in report.CSV_TABLES:
        rows = report.csv_text(doc, table).splitlines()
        assert rows and all(len(r.split(",")) == len(rows[0].split(",")) for r in rows[:5])
    assert len(report.csv_text(doc, "kernel_runs").splitlines()) == 21
    with pytest.raises(ValueError):
        report.csv_text(doc, "nope")


def test_a_saved_run_is_analysed_again(tmp_path):
    path = saved(tmp_path / "r.json", run_document())
    done = tool("report", path, "--markdown", "-", "--window", "3000")
    assert done.returncode == 0 and "# GPU performance report" in done.stdout
    assert "=== Metal Performance Summary ===" in tool("report", path).stdout
    done = tool("report", path, "--html", str(tmp_path / "no" / "r.html"), "--markdown", str(tmp_path / "r.md"))
    assert done.returncode == 1 and "%s was not written: No such file" % (tmp_path / "no" / "r.html") in done.stderr
    assert (tmp_path / "r.md").exists()             # the others still are
    for given in (["--window", "0"], ["--csv-table", "nope"]):
        assert tool("report", path, *given).returncode == 2


@pytest.mark.parametrize("how", [("watch", "--seconds", "0.3"), ("run", "--", sys.executable, "-c", "")])
def test_a_report_on_stdout_stands_there_alone(how):
    done = tool(how[0], "--recording", str(RECORDINGS / "m4pro.json"), "--json", "-", *how[1:])
    assert done.returncode == 0 and json.loads(done.stdout)["state"] == "finished"
    assert "=== Metal Performance Summary ===" in done.stderr


def test_prometheus_families():
    client = pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    from prometheus_client.parser import text_string_to_metric_families
    monitor = watch(RECORDINGS / "m5max-macos27.json", 4)
    for seconds in (0.010, 0.030):
        monitor.record_kernel("gemm", seconds)
    for n in range(4):
        monitor.metal.record_buffer(buffer_at(10 + n, 0.002, 0.001))
    monitor.track_memory_allocation(7, 4096, True, "x")
    registry = client.CollectorRegistry()
    monitor.register_prometheus_metrics(registry)
    found = {s.name: (s.labels, s.value)
             for f in text_string_to_metric_families(client.generate_latest(registry).decode()) for s in f.samples}
    assert found["metal_gpu_utilization_ratio"][1] == 1.0 and found["metal_power_consumption_watts"][1] == pytest.approx(39.99)
    assert found["metal_memory_bandwidth_gbps"][1] == pytest.approx(192) and found["metal_thermal_state"][1] == 0
    assert found["metal_kernel_execution_total"] == ({"device": monitor.machine["gpu"], "kernel": "gemm"}, 2)
    assert found["metal_kernel_execution_duration_milliseconds_sum"][1] == pytest.approx(40)
    assert found["metal_command_buffer_latency_milliseconds_count"][1] == 4
    families = {f.name: f for f in perfmon.prometheus_families(monitor)}
    assert set(families) == {"applegpu_kernel_executions", "applegpu_kernel_duration_seconds",
                             "applegpu_command_buffer_latency_seconds",
                             "applegpu_metal_buffer_bytes"}
    buckets = {s.labels["le"]: s.value for s in families["applegpu_command_buffer_latency_seconds"].samples
               if s.name.endswith("_bucket")}
    assert buckets["0.001"] == 0 and buckets["0.0025"] == 4 and buckets["+Inf"] == 4
    monitor.config.enable_prometheus_export = False
    assert list(perfmon.prometheus_families(monitor)) == []
    monitor.close()


def test_a_running_command_serves_prometheus(tmp_path):
    pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    import urllib.request
    port = _browser.free_port()
    running = start_run(tmp_path, "--listen", str(port))
    wait_for(tmp_path / "r.json")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = opener.open("http://127.0.0.1:%d/metrics" % port, timeout=5).read().decode()
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143
    running.stderr.close()
    assert re.search(r'^metal_gpu_utilization_ratio\{device="[^"]+"\} 1\.0$', text, re.M)
    assert tool("watch", "--listen", "nonsense", "--recording", RECORDINGS / "m4pro.json", "--seconds",
                "1").returncode == 2


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = tool("run", "--kernels", "--listen", "nonsense", "--recording", RECORDINGS / "m4pro.json", "--", "true")
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []


# ---- run: the command's own ways, a full disk, an end by force

def test_run_is_the_command_and_a_report(tmp_path):
    out = tmp_path / "r.html"
    done = tool("run", "--recording", RECORDINGS / "m5max-macos27.json", "--speed", "20", "--html", out, "--script",
                "none", "--json", tmp_path / "r.json", "--",
                sys.executable, "-c", "import time; print('hello'); time.sleep(1); raise SystemExit(3)")
    assert done.returncode == 3 and done.stdout == "hello\n"
    text, _ = words(out.read_text())
    assert "exit code 3" in text and "recording m5max-macos27.json" in text and "Limited by power or heat" in text
    assert "http-equiv" not in out.read_text()
    doc = json.loads((tmp_path / "r.json").read_text())
    assert doc["command"]["exit_code"] == 3 and doc["state"] == "finished" and len(doc["samples"]["t"]) >= 10
    assert tool("run", "--recording", RECORDINGS / "m4pro.json", "--", "no-such-command-here").returncode == 127
    assert tool("run").returncode == 2


def test_a_full_disk_is_said_and_keeps_the_old_report(tmp_path):
    done = tool("run", "--recording", RECORDINGS / "m4pro.json", "--refresh", "200", "--json", "/dev/full", "--quiet",
                "--",
                sys.executable, "-c", "import time; time.sleep(1)")
    assert done.returncode == 1 and done.stderr.count("No space left") == 2, done.stderr     # while running: once; and at the end
    old = tmp_path / "r.html"
    old.write_text("the old one")
    limited = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); " \
              "sys.argv = sys.argv[1:]; sys.path.insert(0, %r); import perfmon; sys.exit(perfmon.main(sys.argv[1:]))" % str(HERE)
    done = subprocess.run([sys.executable, "-c", limited, "x", "watch", "--recording", str(RECORDINGS / "m4pro.json"),
                           "--seconds", "0.5", "--quiet",
                           "--html", str(old), "--script", "none"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "was not written" in done.stderr
    assert old.read_text() == "the old one" and os.listdir(tmp_path) == ["r.html"]


def test_baselines_that_are_not_there_cost_no_run(tmp_path):
    done = tool("run", "--recording", RECORDINGS / "m4pro.json", "--baselines", tmp_path / "none", "--", sys.executable, "-c", "print('ran')")
    assert done.returncode == 1 and "none: No such file" in done.stderr and "ran" not in done.stdout


def start_run(tmp_path, *more):
    return subprocess.Popen([sys.executable, str(HERE / "perfmon.py"), "run", "--recording",
                             str(RECORDINGS / "m5max-macos27.json"), "--speed", "20",
                             "--refresh", "200", "--html", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json"),
                             "--quiet", *more, "--",
                             sys.executable, "-c", "import time; time.sleep(60)"], stderr=subprocess.PIPE)


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, "%s did not come" % path
        time.sleep(0.05)


def test_an_interrupted_run_ends_with_a_report(tmp_path):
    running = start_run(tmp_path, "--script", "none")
    wait_for(tmp_path / "r.json")
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143, running.stderr.read()
    running.stderr.close()
    doc = json.loads((tmp_path / "r.json").read_text())
    assert doc["state"] == "interrupted" and doc["command"]["exit_code"] == 143
    assert "interrupted" in words((tmp_path / "r.html").read_text())[0]


def test_a_killed_run_leaves_the_last_whole_report(tmp_path):
    running = start_run(tmp_path)
    wait_for(tmp_path / "r.html")
    wait_for(tmp_path / "r.json")
    end = time.monotonic() + 60
    while len(json.loads((tmp_path / "r.json").read_text())["samples"]["t"]) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    child = subprocess.run(["ps", "-o", "pid=", "--ppid", str(running.pid)], capture_output=True,
                           text=True).stdout.split() if shutil.which("ps") else []
    running.kill()
    running.wait(60)
    running.stderr.close()
    for pid in child:
        os.kill(int(pid), signal.SIGKILL)
    doc = json.loads((tmp_path / "r.json").read_text())
    assert doc["state"] == "running" and len(doc["samples"]["t"]) >= 2 and doc["analysis"]["summary"]
    text = (tmp_path / "r.html").read_text()
    assert "running" in words(text)[0] and 'http-equiv="refresh"' in text and "Plotly" not in text
    assert tool("report", tmp_path / "r.json", "--html", tmp_path / "again.html", "--script", "none").returncode == 0


def test_watch_ends_by_itself_and_by_ctrl_c(tmp_path):
    done = tool("watch", "--recording", RECORDINGS / "m4pro.json", "--speed", "20", "--seconds", "0.6", "--interval",
                "50")
    assert done.returncode == 0 and "=== Memory Statistics ===" in done.stdout
    running = subprocess.Popen([sys.executable, str(HERE / "perfmon.py"), "watch", "--recording",
                                str(RECORDINGS / "m4pro.json"), "--speed", "20",
                                "--json", str(tmp_path / "r.json"), "--refresh", "200", "--quiet"])
    wait_for(tmp_path / "r.json")
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 0 and json.loads((tmp_path / "r.json").read_text())["state"] == "finished"


def test_a_recording_that_ends_is_told_and_what_there_is_reported():
    done = tool("watch", "--recording", RECORDINGS / "m4pro.json", "--speed", "50", "--no-loop", "--seconds", "3",
                "--interval", "50")
    assert done.returncode == 0 and "sampling ended early" in done.stderr and "=== Metal Performance Summary ===" in done.stdout


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
