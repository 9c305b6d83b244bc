"""top.py and stat.py over the recordings: what they print, how they end, and that nothing unknown becomes 0."""
from __future__ import annotations

import asyncio
import csv
import gc
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:       # a job in the background of a script: its children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, HERE)

import _common as c  # noqa: E402
import _run  # noqa: E402
from _common import ag  # noqa: E402

pytest.importorskip("rich", reason="the tools need rich: pip install '.[examples]'")
NAMES = sorted(name[:-5] for name in os.listdir(os.path.join(HERE, "recordings")) if name.endswith(".json"))


def _load(name: str, file: str):
    """By path: `stat` is also a module of the standard library."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(HERE, file))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


stat = _load("applegpu_stat", "stat.py")
top = _load("applegpu_top", "top.py")
from top_lib import draw, panels, state  # noqa: E402


def recording(name: str) -> str:
    return os.path.join(HERE, "recordings", name + ".json")


def device(name: str, speed: float = 0, loop: bool = True):
    return ag.LibraryOpen(recording(name) if name in NAMES else name, speed=speed, loop=loop)


def model(name: str, samples: int = 5):
    m = state.Model(device(name))
    for _ in range(samples):
        m.take(ag.DeviceGetSnapshot(m.device, timeout=0))
    return m


def text(lines) -> list[str]:
    return ["".join(piece for piece, _ in line) for line in lines]


def run_stat(capsys, *arguments: str):
    code = stat.main(list(arguments))
    out = capsys.readouterr()
    return code, out.out, out.err


def shell(*arguments: str, tool: str = "stat.py", env=None):
    environ = {key: value for key, value in os.environ.items() if key != "PYAPPLEGPU_RECORDING"}
    return subprocess.run([sys.executable, os.path.join(HERE, tool), *arguments], capture_output=True, text=True, timeout=60,
                          env=dict(environ, **(env or {})))


# ---- helpers

@pytest.mark.parametrize("given, expected", [("500", 0.5), ("500ms", 0.5), ("0.5s", 0.5), ("1", 1), ("60", 60), ("2m", 120),
                                             ("100", 0.1), ("1.5", 1.5), (".25", 0.25), ("1h", 3600)])
def test_interval(given, expected):
    assert c.interval(given) == expected


@pytest.mark.parametrize("given", ["", "0", "-1", "x", "1d", "0ms", "nan", "9" * 20, "1000000s", "9" * 400])
def test_interval_refused(given):
    import argparse
    with pytest.raises(argparse.ArgumentTypeError):
        c.interval(given)


@pytest.mark.parametrize("form", [c.percent, c.ratio, c.watts, c.joules, c.size, c.speed, c.bandwidth, c.celsius, c.mhz, c.clock_time])
def test_unknown_is_a_dash(form):
    assert form(None) == "-"


@pytest.mark.parametrize("form, value, expected", [
    (c.percent, 0, "0 %"), (c.watts, 0, "0 mW"), (c.watts, 999, "999 mW"), (c.watts, 999.6, "1.0 W"), (c.watts, 18240, "18.2 W"),
    (c.size, 0, "0"), (c.size, 1572864, "1.5 MB"), (c.size, 10 << 20, "10 MB"), (c.size, 430571520, "411 MB"), (c.size, 31138512896, "29.0 GB"), (c.speed, 128e9, "128 GB/s"),
    (c.speed, 5.25e9, "5.2 GB/s"), (c.speed, 614e9, "614 GB/s"), (c.ratio, 0.1256, "13 %"), (c.clock_time, 9.65, "9.7s"),
    (c.clock_time, 100.3, "1:40"), (c.clock_time, 7384, "2:03:04"), (c.joules, 0.5, "500 mJ"), (c.joules, 12345, "12.35 kJ")])
def test_numbers(form, value, expected):
    assert form(value) == expected


def test_bandwidth_says_what_is_estimated():
    assert c.bandwidth(ag.Bandwidth(2e9, False, False)) == "2.0 GB/s"
    assert c.bandwidth(ag.Bandwidth(2e9, True, False)) == "~2.0 GB/s"
    assert c.bandwidth(ag.Bandwidth(2e9, True, True)) == ">2.0 GB/s"


def test_counted():
    assert c.counted(1, "sample") == "1 sample" and c.counted(0, "sample") == "0 samples"


def test_no_swap_is_none():
    assert [c.swap(ag.DeviceGetSnapshot(device(name), ["memory"])) for name in ("m5max-macos27", "m4-macos27")] == [
        "none", "1.0 / 2.0 GB"]
    assert c.swap(ag.DeviceGetSnapshot(device("m4-macos27"), ["gpu"])) == c.DASH


def test_spark_tells_zero_from_unknown():
    assert c.spark([0.0, float("nan"), 100.0], 100) == "▁ █"
    assert c.bar(None, 4) == ("", "····") and c.bar(0.0, 4) == ("", "░░░░") and "".join(c.bar(0.001, 4)) != "░░░░"


def test_graph():
    assert c.graph([0.0, 50.0, 100.0, float("nan")], 100, 2) == ["  █ ", "▁██ "]


def test_history_keeps_gaps_and_never_grows():
    h = c.History(["a"], [60, 3600])
    for t in range(1000, 1060):
        h.add(float(t), {"a": None if 1020 <= t < 1040 else t - 1000}, 1.0)
    values = h.values("a", 60, 30)
    assert len(values) == 30 and any(v != v for v in values[10:20])
    assert values[-1] == pytest.approx(59, abs=2) and values[1] < 8
    before = [len(ring) for rings in h._rings for ring in rings.values()]
    for t in range(5000, 9000):
        h.add(float(t), {"a": 1.0}, 1.0)
    assert [len(ring) for rings in h._rings for ring in rings.values()] == before


@pytest.mark.parametrize("width", [1, 7, 39, 59, 66, 80, 200, 480])
def test_history_fills_every_width(width):
    h = c.History(["a"], [60])
    for t in range(1000, 1300):
        h.add(float(t), {"a": 1.0}, 1.0)
    assert h.values("a", 60, width) == [1.0] * width


def test_history_leaves_the_time_nobody_looked_empty():
    h = c.History(["a"], [60])
    h.add(100.0, {"a": 5.0}, 1.0)
    h.add(130.0, {"a": 5.0}, 0.0)
    values = h.values("a", 60, 60)
    assert sum(v == v for v in values) <= 6


@pytest.mark.parametrize("name", NAMES)
def test_flat_rows_have_always_the_same_keys(name):
    first = c.flat(ag.DeviceGetSnapshot(device("m5max-macos27")))
    row = c.flat(ag.DeviceGetSnapshot(device(name)), 1.0)
    assert list(row) == list(first)
    assert all(v is None or isinstance(v, (int, float, str)) for v in row.values())
    assert all(re.fullmatch(r"[a-z0-9_]+", key) for key in row)
    json.dumps(row, allow_nan=False)


def test_a_part_not_asked_for_is_null_in_the_row():
    row = c.flat(ag.DeviceGetSnapshot(device("m5max-macos27"), parts=["gpu"]))
    assert row["gpu_device_percent"] is not None and row["memory_used_bytes"] is None and row["ram_total_bytes"] is None


def test_text_from_outside_cannot_drive_the_terminal():
    assert c.clean("a\x1b[2Jb\r\n\x9b") == "a?[2Jb???"


# ---- figures

# call of the recordings' `expected` -> (snapshot field, factor)
CALLS = {"DeviceGetName": "gpu_name", "DeviceCountGpuCores": "gpu_core_count", "DeviceGetUtilization": "gpu_utilization_percent",
         "DeviceGetActiveRatio": "gpu_active_ratio", "DeviceGetScaledRatio": "gpu_scaled_ratio", "DeviceGetClock": "gpu_clock_mhz",
         "DeviceGetMaxClock": "gpu_max_clock_mhz", "DeviceGetPowerUsage": "gpu_power_mw", "MemoryGetTotal": "memory_total_bytes",
         "MemoryGetUsed": "memory_used_bytes", "MemoryGetAllocated": "memory_allocated_bytes", "MemoryGetPower": "memory_power_mw",
         "AneGetPower": "ane_power_mw", "SystemGetPowerUsage": "system_power_mw", "SystemGetPackagePower": "package_power_mw",
         "SystemGetThermalPressure": "thermal_pressure_level"}


@pytest.mark.parametrize("name", NAMES)
def test_rows_hold_the_figures_the_recording_expects(name):
    with open(recording(name)) as file:
        cases = [case for case in json.load(file)["expected"] if case["call"] in CALLS and not case["args"]]
    assert len(cases) > 10
    for case in cases:
        field = CALLS[case["call"]]
        snapshot = c.settled(device(name), None, [field], 2.5)
        row = dict(c.flat(snapshot), gpu_name=snapshot.gpu_name, gpu_core_count=snapshot.gpu_core_count)
        if case.get("value") is None:
            assert row[field] is None and snapshot.reasons[field] == case.get("reason", snapshot.reasons[field]), case
        elif isinstance(case["value"], (int, float)):
            assert row[field] == pytest.approx(case["value"], rel=case.get("tolerance", 1e-3), abs=0.6), case
        else:
            assert row[field] == case["value"], case


@pytest.mark.parametrize("name, line", [
    ("m4-macos27", r"\[0\] Apple M4 \| 74°C, 17 % \| 0\.4 / 11\.8 GB \| 1\.2 W"),
    ("m5max-macos27", r"\[0\] Apple M5 Max \| 27°C, 100 % \| 29\.0 / 107\.5 GB \| 40\.0 W / 40\.0 W"),
    ("m1max", r"\[0\] Apple M1 Max \| 42°C, 1 % \| 0\.7 / 51\.8 GB \| 10 mW"),
    ("vm-macos15", r"\[0\] Apple Paravirtual device \| -, - \| - / 4\.7 GB \| -")])
def test_one_line(capsys, name, line):
    code, out, err = run_stat(capsys, "--recording", recording(name), "--speed", "0", "--no-color", "--timeout", "1")
    head, only = out.splitlines()
    assert code == 0 and not err and head.startswith("recording " + name)
    assert re.fullmatch(line, only), only


def test_engine_figures_of_the_m4(capsys):
    code, out, _ = run_stat(capsys, "--recording", recording("m4-macos27"), "--speed", "0", "-a", "--no-color")
    assert "device 17 %, renderer 15 %, tiler 15 %" in out and "restarts 0" in out and "fans none" in out


def test_a_frozen_rail_is_a_dash_with_its_reason(capsys):
    code, out, _ = run_stat(capsys, "--recording", recording("m3max-macos27"), "--speed", "0", "-P", "--why", "--no-color",
                            "--timeout", "1")
    assert re.search(r"GPU 21\.\d W, CPU -, ANE -, DRAM -", out)
    assert re.search(r"cpu_power_mw: .*a zero that cannot be true", out)


@pytest.mark.parametrize("layout", ["stacked", "classic", "compact"])
def test_a_guest_shows_no_zero_for_what_it_cannot_see(layout):
    m = model("vm-macos15")
    for name in ("gpu", "ane", "power", "heat", "media", "bandwidth"):
        for row in panels.PANELS[name][1](m, m.snapshot):
            assert row.value in ("-", "nominal"), (name, row)
            assert row.share is None and " 0 " not in " %s " % row.note
    lines = text(draw.board(m, 100, 50, draw.Look(layout)))
    assert not any(re.search(r"(GPU|ANE|POWER) .* 0 (%|mW)", line) for line in lines)


def test_graphs_over_the_panels():
    m = model("m5max-macos27", 30)
    lines = text(draw.graphs(m, 120, 6, draw.Look()))
    assert len(lines) == 6 and "─ GPU use  100 %" in lines[0] and "─ GPU power  40.0 W" in lines[0]
    assert lines[1].rstrip().endswith("█") and draw.graphs(m, 120, 6, draw.Look(hidden=frozenset({"graph"}))) == []
    guest = model("vm-macos15", 6)          # a virtual machine has neither use nor power of the GPU: what it has is drawn
    assert "CPU use" in text(draw.graphs(guest, 120, 6, draw.Look()))[0] and "GPU" not in text(draw.graphs(guest, 120, 6, draw.Look()))[0]
    idle = text(draw.graphs(model("m1-macos11", 30), 120, 6, draw.Look()))
    assert "1.0 W" in idle[0] and "█" not in "".join(idle)      # 1 mW does not fill a graph


def test_notes_leave_out_whole_figures():
    assert draw.trimmed("3183 MHz, 1.8 W, of 4380 MHz", 28) == "3183 MHz, 1.8 W, of 4380 MHz"
    assert draw.trimmed("3183 MHz, 1.8 W, of 4380 MHz", 20) == "3183 MHz, 1.8 W"
    assert draw.trimmed("3183 MHz, 1.8 W", 5) == "3183…"
    assert draw.trimmed("-, 1.8 W, of -", 28) == "1.8 W" and draw.trimmed("-, -, of -", 28) == ""


@pytest.mark.parametrize("values, least, expected", [
    ([], 1000, 1000), ([float("nan"), 3.0], 1000, 1000), ([1200.0], 1000, 1500), ([40000.0, 2.0], 1000, 50000), ([101.0], 1, 150),
    ([1000.0], 1, 1000), ([9.99e9], 1e9, 1e10)])
def test_a_graph_ends_at_a_round_figure(values, least, expected):
    assert c.ceiling(values, least) == pytest.approx(expected)


def test_everything_missing_has_a_sentence():
    m = model("vm-macos15")
    rows = c.missing(m.snapshot)
    assert len(rows) > 40 and all(sentence and reason for _, reason, sentence in rows)
    assert {field for field, _, _ in rows} >= set(m.snapshot.reasons)


# ---- stat.py: forms

GPUSTAT = {"index": int, "uuid": str, "name": str, "temperature.gpu": int, "fan.speed": int, "utilization.gpu": int,
           "utilization.enc": int, "utilization.dec": int, "power.draw": int, "enforced.power.limit": int, "memory.used": int,
           "memory.total": int, "processes": list}
GPUSTAT_PROCESS = {"username": str, "command": str, "full_command": list, "gpu_memory_usage": int, "cpu_percent": float,
                   "cpu_memory_usage": int, "pid": int}


@pytest.mark.parametrize("name", NAMES)
def test_json_is_gpustats_schema(capsys, name):
    code, out, _ = run_stat(capsys, "--recording", recording(name), "--speed", "0", "--json", "--timeout", "1")
    data = json.loads(out)
    assert code == 0 and list(data) == ["hostname", "driver_version", "query_time", "gpus"]
    time.strptime(data["query_time"], "%Y-%m-%dT%H:%M:%S")
    for gpu in data["gpus"]:
        assert list(gpu) == list(GPUSTAT)
        assert all(v is None or isinstance(v, GPUSTAT[k]) for k, v in gpu.items())
        for process in gpu["processes"] or ():
            assert set(process) == set(GPUSTAT_PROCESS)
            assert all(v is None or isinstance(v, GPUSTAT_PROCESS[k]) for k, v in process.items())


def test_json_figures(capsys):
    _, out, _ = run_stat(capsys, "--recording", recording("m5max-macos27"), "--speed", "0", "--json")
    gpu = json.loads(out)["gpus"][0]
    assert (gpu["name"], gpu["utilization.gpu"], gpu["power.draw"], gpu["enforced.power.limit"]) == ("Apple M5 Max", 100, 40, 40)
    assert (gpu["memory.used"], gpu["memory.total"], gpu["fan.speed"]) == (31138512896 >> 20, 115448725504 >> 20, 54)
    assert gpu["processes"][0]["pid"] == 4100 and gpu["processes"][0]["command"] == "python3.13"
    _, out, _ = run_stat(capsys, "--recording", recording("vm-macos15"), "--speed", "0", "--json", "--timeout", "0.2")
    gpu = json.loads(out)["gpus"][0]
    assert all(gpu[k] is None for k in ("utilization.gpu", "power.draw", "temperature.gpu", "memory.used", "fan.speed"))


def test_jsonl_of_metalstat(capsys):
    _, out, _ = run_stat(capsys, "--recording", recording("m4-macos27"), "--speed", "0", "--jsonl", "metalstat")
    row = json.loads(out)
    assert list(row) == ("t elapsed_s gpu_util gpu_freq_mhz cpu_util cpu_p_util cpu_e_util mem_used_gb mem_wired_gb mem_active_gb "
                         "mem_inactive_gb mem_compressed_gb mem_pressure_pct mem_pressure_level gpu_mem_allocated_gb swap_used_gb "
                         "cpu_w gpu_w ane_w dram_w pkg_w").split()
    assert row["cpu_p_util"] == 5 and row["cpu_e_util"] == 12 and row["mem_pressure_level"] == "green"


def test_jsonl_watch(capsys):
    _, out, _ = run_stat(capsys, "--recording", recording("m1max"), "--speed", "0", "--jsonl", "-i", "0.01", "--count", "4")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["elapsed_s"] for row in rows] == [0.0, 1.0, 2.0, 3.0]
    assert len({tuple(row) for row in rows}) == 1 and rows[0]["time_unix_s"] < rows[3]["time_unix_s"]


def test_csv(capsys):
    _, out, _ = run_stat(capsys, "--recording", recording("m5max-macos27"), "--speed", "0", "--csv", "-i", "0.01", "--count", "3")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 3 and float(rows[2]["gpu_power_mw"]) == pytest.approx(40000, rel=0.01) and rows[2]["gpu_sram_power_mw"] == ""


def test_meta_json(capsys):
    _, out, _ = run_stat(capsys, "--recording", recording("m5max-macos27"), "--meta-json", "--speed", "0")
    data = json.loads(out)
    assert (data["chip"], data["macos"], data["gpu_core_count"], data["ane_core_count"]) == ("Apple M5 Max", "27.0", 40, 16)
    assert data["cpu_cores"] == {"Performance": 12, "Super": 6} and data["hostname"] is None
    _, out, _ = run_stat(capsys, "--recording", recording("vm-macos15"), "--meta-json", "--speed", "0")
    data = json.loads(out)
    assert data["gpu_core_count"] is None and "metal_family" in data and "virtual machine" in data["reasons"]["gpu_core_count"]
    assert data["driver"] is None and "virtual machine" in data["reasons"]["driver"]


def test_snapshot_json(capsys):
    _, out, _ = run_stat(capsys, "--recording", recording("vm-macos15"), "--speed", "0", "--json", "snapshot", "--timeout", "0.2")
    data = json.loads(out)
    assert data["schema"] == 1 and data["gpu_power_mw"] is None and data["reasons"]["gpu_power_mw"] == "virtual_machine"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("name", ["m5max-macos27", "vm-macos15", "m1ultra-macos27"])
def test_sections_keep_to_the_width(capsys, monkeypatch, width, name):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run_stat(capsys, "--recording", recording(name), "--speed", "0", "-a", "-p", "--no-color", "--no-header",
                            "--timeout", "0.3")
    assert code == 0
    if width >= 60:     # a single figure is never cut
        assert all(len(line) <= max(width, 68) for line in out.splitlines()), max(out.splitlines(), key=len)


def test_the_line_of_a_gpu_breaks_between_figures(capsys, monkeypatch):
    arguments = ("--recording", recording("m5max-macos27"), "--speed", "0", "--no-color", "--timeout", "1")
    for width, expected in ((100, ["[0] Apple M5 Max | 27°C, 100 % | 29.0 / 107.5 GB | 40.0 W / 40.0 W"]),
                            (40, ["[0] Apple M5 Max | 27°C, 100 %", "    29.0 / 107.5 GB | 40.0 W / 40.0 W"])):
        monkeypatch.setenv("COLUMNS", str(width))
        assert run_stat(capsys, *arguments, "--no-header")[1].splitlines() == expected
    head = run_stat(capsys, *arguments)[1].splitlines()[:2]
    assert head[0] == "recording m5max-macos27" and re.fullmatch(r"\w{3} Sep \d+ \d\d:\d\d:\d\d 2026  macOS 27\.0", head[1])


def in_terminal(tool, *arguments, name, term="xterm-256color", until=b"", send=None, **env):
    """(exit code, what was shown) of a tool in a terminal of its own; a signal goes to it when `until` has been shown."""
    import pty
    master, slave = pty.openpty()
    environ = dict(os.environ, TERM=term, PYAPPLEGPU_RECORDING=recording(name), **env)
    process = subprocess.Popen([sys.executable, os.path.join(HERE, tool), *arguments], stdin=slave, stdout=slave, stderr=slave,
                               env=environ)
    os.close(slave)
    shown, watchdog = b"", threading.Timer(60, process.kill)
    watchdog.start()
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:         # Linux says so when the other side is closed
            break
        if not part:
            break
        shown += part
        if send is not None and until in shown:
            process.send_signal(send)
            send = None
    os.close(master)
    code = process.wait(20)
    watchdog.cancel()
    return code, shown


needs_pty = pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")


@needs_pty
def test_watching_in_a_terminal_leaves_its_last_look():
    code, shown = in_terminal("stat.py", "--speed", "0", "--no-loop", "-i", "0.05", "--timeout", "0", name="vm-macos15")
    after = shown.rpartition(b"\x1b[?1049l")[2].decode()
    assert code == 0 and "Paravirtual" in after and "the recording has ended" in after


@needs_pty
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("tool, arguments, until", [("top.py", (), b"WindowServer"), ("stat.py", ("-i", "0.2"), b"Apple")])
def test_a_signal_that_ends_it_leaves_the_terminal_as_it_was(tool, arguments, until, number):
    if tool == "top.py":
        pytest.importorskip("textual", reason="the monitor needs textual")
    code, shown = in_terminal(tool, *arguments, name="m4-macos27", until=until, send=number)
    assert code == 128 + number and b"Traceback" not in shown
    assert shown.rfind(b"\x1b[?1049l") > shown.rfind(b"\x1b[?1049h") > -1       # the screen that was there before
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l") > -1           # and its cursor


@needs_pty
@pytest.mark.parametrize("arguments", [(), ("--theme", "10")])
def test_no_color_means_no_colour(arguments):
    """Bold and dim at most, on the terminal's own ground: an ansi theme's green had become black on black."""
    pytest.importorskip("textual", reason="the monitor needs textual")
    code, shown = in_terminal("top.py", *arguments, name="m4-macos27", until=b"WindowServer", send=signal.SIGTERM, NO_COLOR="1")
    codes = {one for group in re.findall(rb"\x1b\[([0-9;]*)m", shown) for one in group.split(b";")}
    assert code == 143 and codes <= {b"", b"0", b"1", b"2", b"7", b"39", b"49"}, codes


def test_a_signal_after_the_screen_is_gone_still_ends_it():
    """The interval between the last frame and the end of the process has a handler, but no loop."""
    pytest.importorskip("textual", reason="the monitor needs textual")

    async def work():
        app = monitor(device("m4-macos27"), clocked=False)
        async with app.run_test():
            return app
    app = asyncio.run(work())
    with pytest.raises(SystemExit) as ended:
        app.end(143)
    assert ended.value.code == 143


def test_one_frame_without_rich_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert top.main(["--once", "--recording", recording("m4pro")]) == 1
    assert capsys.readouterr().err == "top.py needs rich: pip install rich\n"


@needs_pty
def test_a_terminal_that_cannot_move_its_cursor():
    pytest.importorskip("textual", reason="the monitor needs textual")
    code, shown = in_terminal("top.py", name="m4-macos27", term="dumb")
    assert code == 1 and b"TERM is dumb" in shown and b"\x1b" not in shown
    code, shown = in_terminal("stat.py", "-i", "0.05", "--count", "3", "--speed", "0", name="m4-macos27", term="dumb")
    assert code == 0 and shown.count(b"Apple M4") == 3 and b"\x1b[?" not in shown


def test_colour_is_asked_for(capsys, monkeypatch):
    arguments = ("--recording", recording("m4-macos27"), "--speed", "0", "--timeout", "0.2")
    assert "\x1b" not in run_stat(capsys, *arguments)[1]
    assert "\x1b[" in run_stat(capsys, *arguments, "--color")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", run_stat(capsys, *arguments, "--color", "--no-color")[1])


def test_processes(capsys):
    _, out, _ = run_stat(capsys, "--recording", recording("m1-macos11"), "--speed", "0", "-p", "-n", "3", "--no-header", "--no-color")
    lines = out.splitlines()
    assert re.match(r" +357 +0 % +4:09 +- +WindowServer", lines[2]) and "and 21 more; -n 24 shows all" in lines[5]


def test_the_options_that_gpustats_fingers_know(capsys):
    arguments = ("--recording", recording("m5max-macos27"), "--speed", "0", "--no-header", "--no-color", "--timeout", "1")
    users = run_stat(capsys, *arguments, "-u")[1]
    assert re.search(r"4100 .* 34\.0 GB  python3\.13 \(501\)\n", users) and "runningboardd (root)" in users
    assert "(501)" not in run_stat(capsys, *arguments, "-p")[1]
    assert "fans 3108 rpm (54 %) + 3110 rpm" in run_stat(capsys, *arguments, "-F")[1]


def test_exit_codes(tmp_path):
    assert shell("--recording", str(tmp_path / "none.json")).returncode == 1
    bad = tmp_path / "bad.json"
    bad.write_text('{"format": 99}')
    result = shell("--recording", str(bad))
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert shell("--nonsense").returncode == 2
    assert shell("--json", "--csv", "--recording", recording("m1max")).returncode == 2


@pytest.mark.skipif(sys.platform == "darwin", reason="here is a Mac to read")
def test_without_a_mac_it_says_what_to_do():
    result = shell()
    assert result.returncode == 1 and "PYAPPLEGPU_RECORDING" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("tool, arguments", [("stat.py", ("-a", "-p")), ("top.py", ("--once",))])
def test_a_terminal_without_unicode_gets_letters(tool, arguments):
    """cron and ssh with LC_ALL=C: no traceback, and nothing moves out of its column."""
    result = shell("--recording", recording("m5max-macos27"), "--speed", "0", *arguments, tool=tool,
                   env={"PYTHONIOENCODING": "ascii", "COLUMNS": "100"})
    assert result.returncode == 0 and not result.stderr and "27C" in result.stdout and result.stdout.isascii()
    if tool == "top.py":
        assert "- Neural Engine ---" in result.stdout


def test_once_exports_and_draws_what_there_was_of_a_recording_that_ends(tmp_path):
    path = str(tmp_path / "log.csv")
    result = shell("--recording", recording("vm-macos15"), "--speed", "0", "--no-loop", "--once", "--samples", "99",
                   "--export", path, tool="top.py")
    assert result.returncode == 0 and "the recording has ended" in result.stdout and "Apple M1 (Virtual)" in result.stdout
    with open(path, newline="") as file:
        assert len(list(csv.DictReader(file))) == 5      # of 6: the first frame waited for a second look


@pytest.mark.parametrize("arguments", [("-i", "99ms"), ("-i", "0.05"), ("--samples", "0"), ("--samples", "-3"), ("--size", "0x0"), ("--size", "9x9")])
def test_numbers_that_make_no_sense_are_refused(arguments):
    result = shell("--once", *arguments, tool="top.py", env={"PYAPPLEGPU_RECORDING": recording("m1max")})
    assert result.returncode == 2 and arguments[0] in result.stderr


@pytest.mark.parametrize("timeout", ["-1", "nan", "x"])
def test_a_timeout_that_makes_no_sense_is_refused(timeout):
    result = shell("--timeout", timeout, env={"PYAPPLEGPU_RECORDING": recording("m1max")})
    assert result.returncode == 2 and "--timeout" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("timeout", ["0", "0.0", ".0", "0."])
def test_a_timeout_of_nothing_does_not_wait(capsys, timeout):
    code, out, _ = run_stat(capsys, "--recording", recording("m1max"), "--timeout", timeout, "--csv")
    header, row = (line.split(",") for line in out.splitlines())
    assert code == 0 and dict(zip(header, row))["gpu_active_ratio"] == ""     # a rate: its second sample was not waited for


def test_options_before_run_are_told_their_place():
    result = shell("--recording", recording("m1max"), "run", "--", "true")
    assert result.returncode == 2 and "run comes first: stat.py run [options] -- COMMAND" in result.stderr
    result = shell("--nope")
    assert result.returncode == 2 and "unrecognized arguments: --nope" in result.stderr


def test_environment_names_the_recording():
    assert "Apple M1 Max" in shell("--speed", "0", env={"PYAPPLEGPU_RECORDING": recording("m1max")}).stdout


def test_a_pipe_that_closes():
    process = subprocess.Popen([sys.executable, os.path.join(HERE, "stat.py"), "--recording", recording("m1max"), "--speed", "0",
                                "--jsonl", "-i", "0.01"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert json.loads(process.stdout.readline())
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 0 and error == b""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_watch_ends_with_ctrl_c():
    process = subprocess.Popen([sys.executable, os.path.join(HERE, "stat.py"), "--recording", recording("m1max"), "--speed", "0",
                                "-i", "0.05"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130 and b"Traceback" not in error


def test_a_recording_that_ends(capsys):
    code, out, err = run_stat(capsys, "--recording", recording("vm-macos15"), "--speed", "0", "--no-loop", "--jsonl", "-i", "0.01",
                              "--timeout", "0")
    assert code == 0 and len(out.splitlines()) == 6 and "the recording has ended" in err


def test_a_recording_that_loops(capsys):
    code, out, _ = run_stat(capsys, "--recording", recording("vm-macos15"), "--speed", "0", "--jsonl", "-i", "0.01", "--count", "12")
    times = [json.loads(line)["time_unix_s"] for line in out.splitlines()]
    assert len(times) == 12 and times == sorted(set(times))


# ---- stat.py run

def run_tool(*arguments: str, **named):
    return shell("run", "--recording", recording("m5max-macos27"), *arguments, **named)


PYTHON = sys.executable


@pytest.mark.parametrize("code", [0, 3, 255])
def test_run_has_the_commands_exit_code(code):
    result = run_tool("--", PYTHON, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(%d)" % code)
    assert result.returncode == code and result.stdout == "out\n"
    assert result.stderr.startswith("err\n") and "exit code %d" % code in result.stderr


def test_run_without_dashes_and_quiet():
    result = run_tool("-q", PYTHON, "-c", "print(1)")
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


def test_run_command_not_found_or_not_executable(tmp_path):
    result = run_tool("--", "no-such-command-anywhere")
    assert result.returncode == 127 and "command not found" in result.stderr and result.stderr.count("\n") == 1
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert run_tool("--", str(plain)).returncode == 126
    assert run_tool().returncode == 2


CATCHER = """
import signal, sys, time
def caught(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    sys.exit(40 + number)
for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(s, caught)
print("ready", flush=True)
time.sleep(30)
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_run_forwards_signals(name):
    number = getattr(signal, name)
    process = subprocess.Popen([PYTHON, os.path.join(HERE, "stat.py"), "run", "--recording", recording("m1max"), "--", PYTHON, "-c",
                                CATCHER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert out == "got %s\n" % name and process.returncode == 40 + number and "exit code %d" % (40 + number) in err


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_signal_while_the_command_is_being_started_reaches_it(monkeypatch):
    start = subprocess.Popen

    def signalled(command, **named):
        process = start(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        os.kill(os.getpid(), signal.SIGUSR1)
        return process
    monkeypatch.setattr(_run.subprocess, "Popen", signalled)
    child = _run.Child([PYTHON, "-c", CATCHER])
    try:
        assert child.start() == 0 and child.ended.wait(20)
        assert child.code == 40 + signal.SIGUSR1
    finally:
        child.restore()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_run_of_a_command_that_a_signal_ended():
    assert run_tool("-q", "--", PYTHON, "-c", "import os; os.kill(os.getpid(), 9)").returncode == 128 + 9


def test_run_too_short_is_not_measured():
    result = run_tool("--", PYTHON, "-c", "pass")
    assert re.search(r"CPU +not measured", result.stderr) and "0 mJ" not in result.stderr


@pytest.mark.parametrize("samples", [4, 5, 6, 7])
def test_an_average_is_over_what_its_joules_cover(samples, monkeypatch):
    """The CPU's rail is published every two seconds: its last publication may be two seconds older than the end."""
    monkeypatch.setattr(_run.Meter, "_published_after", lambda self, last: None)
    meter = _run.Meter(device("m5max-macos27"))
    meter.begin()
    for _ in range(samples):
        meter.sample()
    report = meter.end()
    assert report.average_power_mw["cpu"] == pytest.approx(6500, rel=0.03)
    assert report.average_power_mw["gpu"] == pytest.approx(40000, rel=0.01)


def test_run_writes_its_log(tmp_path):
    prefix = str(tmp_path / "bench")
    result = run_tool("--log", prefix, "--capture", "--speed", "10", "-i", "100ms", "--", PYTHON, "-c",
                      "import sys, time; print('hello'); print('oops', file=sys.stderr); time.sleep(1.2)")
    assert result.returncode == 0 and result.stdout == "hello\n" and result.stderr.startswith("oops\n")     # each where it belongs
    with open(prefix + ".log") as file:
        assert sorted(file.read().split()) == ["hello", "oops"]
    with open(prefix + ".meta.json") as file:
        meta = json.load(file)
    assert meta["chip"] == "Apple M5 Max" and meta["driver"] == "360.34.5"
    with open(prefix + ".jsonl") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) >= 6 and list(rows[0]) == list(c.flat(ag.DeviceGetSnapshot(device("m1max"))))
    with open(prefix + ".summary.json") as file:
        summary = json.load(file)
    assert summary["exit_code"] == 0 and summary["samples"] == len(rows)
    # 40 W for about 12 recorded seconds; the counter is live, so its uncertainty is small.
    assert summary["average_power_mw"]["gpu"] == pytest.approx(40000, rel=0.02)
    assert summary["uncertainty_joules"]["gpu"] <= 0.1 * summary["joules"]["gpu"]
    assert 0 < summary["joules"]["cpu"] < summary["joules"]["gpu"]
    assert 0 < summary["uncertainty_joules"]["cpu"] < summary["joules"]["cpu"]
    assert summary["joules"]["decode"] is None and summary["reasons"]["decode"]
    assert summary["peak_memory_used_bytes"] == 31138512896
    assert summary["gpu_seconds"] is None and summary["reasons"]["gpu_seconds"] == "recording"


def test_run_goes_on_when_the_recording_ends(tmp_path):
    result = shell("run", "--recording", recording("vm-macos15"), "--speed", "50", "--no-loop", "-i", "0.05", "--", PYTHON, "-c",
                   "import time; time.sleep(0.6); print('done')")
    assert result.returncode == 0 and result.stdout == "done\n" and "the recording has ended" in result.stderr


def test_run_with_a_closed_stdout_lets_the_command_finish(tmp_path):
    out = tmp_path / "finished"
    process = subprocess.Popen([PYTHON, os.path.join(HERE, "stat.py"), "run", "--recording", recording("m1max"), "--log",
                                str(tmp_path / "x"), "--capture", "-q", "--", PYTHON, "-c",
                                "import sys\nfor n in range(20000): print('x' * 50)\nopen(%r, 'w').write('yes')" % str(out)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(30) == 0 and out.read_text() == "yes"
    process.stderr.close()
    assert (tmp_path / "x.log").stat().st_size == 20000 * 51


@pytest.mark.parametrize("tool, more, stream, code", [
    ("stat.py", ("run", "--", PYTHON, "-c", "raise SystemExit(3)"), "stderr", 3),
    ("stat.py", ("run", "--", "no-such-command-anywhere"), "stderr", 127),
    ("perfmon.py", ("run", "--speed", "0", "--", PYTHON, "-c", "raise SystemExit(3)"), "stderr", 3),
    ("perfmon.py", ("run", "--quiet", "--json", "-", "--", PYTHON, "-c", "raise SystemExit(3)"), "stdout", 3),
    ("top.py", ("--once",), "stdout", 0)])
def test_that_nobody_reads_changes_no_exit_code(tool, more, stream, code):
    """A pipe that is closed before anything is said: `| head`, `2>&1 | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: closed}
        done = subprocess.run([PYTHON, os.path.join(HERE, tool), *more], timeout=60, **pipes,
                              env=dict(os.environ, PYAPPLEGPU_RECORDING=recording("m1max")))
    assert (done.returncode, done.stdout or b"", done.stderr or b"") == (code, b"", b"")


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
@pytest.mark.parametrize("tool, more", [("stat.py", ()), ("stat.py", ("run", "--", "true")), ("top.py", ("--once",)),
                                        ("perfmon.py", ("watch", "--seconds", "0.2"))])
def test_without_stdout_or_stderr_nothing_fails(tool, more, closed):
    done = subprocess.run(["sh", "-c", 'exec "$@" ' + closed, "sh", PYTHON, os.path.join(HERE, tool), *more], timeout=60,
                          env=dict(os.environ, PYAPPLEGPU_RECORDING=recording("m1max")), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and b"exit code" not in done.stdout


def test_a_report_is_written_though_nobody_reads_the_one_on_stdout(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        done = subprocess.run([PYTHON, os.path.join(HERE, "perfmon.py"), "watch", "--seconds", "0.3", "--csv", "-", "--json", "-",
                               "--trace", str(tmp_path / "t.json"), "--recording", recording("m1max")], stdout=closed,
                              stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0 and (tmp_path / "t.json").stat().st_size
    assert done.stderr.startswith(b"=== Metal Performance Summary ===")     # what goes to stderr where a report has stdout, and
    assert b"perfmon: " not in done.stderr and b"Traceback" not in done.stderr      # no complaint


def test_run_closes_the_pipes_of_its_copy(tmp_path):
    result = run_tool("--log", str(tmp_path / "x"), "--capture", "-q", "--", PYTHON, "-c", "print(1)", env={"PYTHONDEVMODE": "1"})
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_run_goes_on_when_the_disk_is_full(tmp_path):
    os.symlink("/dev/full", str(tmp_path / "x.log"))
    result = run_tool("--log", str(tmp_path / "x"), "--capture", "-q", "--", PYTHON, "-c", "print('x' * 300000)")
    assert (result.returncode, result.stdout) == (0, "x" * 300000 + "\n")
    assert result.stderr == "%s: No space left on device\n" % (tmp_path / "x.log")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("file", ["summary.json", "jsonl"])
@pytest.mark.parametrize("code", [0, 3])
def test_run_says_what_it_could_not_write_and_has_the_commands_exit_code(tmp_path, file, code):
    os.symlink("/dev/full", str(tmp_path / ("x." + file)))
    result = run_tool("--log", str(tmp_path / "x"), "--", PYTHON, "-c", "raise SystemExit(%d)" % code)
    assert result.returncode == (code or 1) and "exit code %d after" % code in result.stderr
    assert result.stderr.count("x.%s: No space left on device" % file) == 1 and "Traceback" not in result.stderr


def test_run_starts_nothing_when_its_log_cannot_be_written(tmp_path):
    (tmp_path / "x.log").mkdir()
    done = tmp_path / "done"
    result = run_tool("--log", str(tmp_path / "x"), "--capture", "--", PYTHON, "-c", "open(%r, 'w')" % str(done))
    assert result.returncode == 1 and "x.log: Is a directory" in result.stderr
    time.sleep(0.5)
    assert not done.exists()


def test_measure_of_a_mac_that_no_longer_answers(monkeypatch):
    """One error, where the block ends; nothing from the thread, and the device that `measure` opened is closed."""
    thrown, opened, closed, open_ = [], [], [], ag.LibraryOpen
    monkeypatch.setattr(_run.threading, "excepthook", thrown.append)
    monkeypatch.setattr(ag, "LibraryOpen", lambda: opened.append(open_(recording("vm-macos15"), speed=100, loop=False)) or opened[0])
    monkeypatch.setattr(ag, "LibraryClose", closed.append)
    with pytest.raises(ag.AppleGPUError, match="has ended"):
        with _run.measure(interval=0.02):
            time.sleep(0.4)
    assert thrown == [] and closed == opened != []


def test_the_tree_of_a_command_follows_parents_only(monkeypatch):
    parents = {50: 10, 51: 50, 60: 1, 70: 71, 71: 70}
    monkeypatch.setattr(ag, "ProcessGetInfo", lambda device, pid: ag.ProcessInfo(pid, "p", None, parents[pid], 501))
    tree = _run.Tree(None, 10)

    def snapshot(*pids):
        return type("S", (), {"source": "live", "processes": [ag.GpuProcess(p, "p", 0, None, None, False) for p in pids]})
    assert tree(snapshot(10, 50, 51, 60)) == {10, 50, 51}
    parents[50] = 60        # the pid was reused by somebody else's process
    assert tree(snapshot(10)) == {10} and tree(snapshot(50)) == set()
    assert tree(type("S", (), {"source": "some.json", "processes": []})) is None


def test_measure_is_a_context_manager():
    with _run.measure(device("m5max-macos27", speed=0)) as m:
        for _ in range(5):
            m.meter.sample()
    r = m.report
    assert r.samples == 6 and r.joules["gpu"] == pytest.approx(240, rel=0.02)     # 40 W over 6 recorded seconds
    assert r.average_power_mw["gpu"] == pytest.approx(40000, rel=0.02)
    assert r.gpu_active_s == pytest.approx(6, rel=0.01) and r.joules["gpu_sram"] is None and r.reasons["gpu_sram"]
    assert r.peak_power_mw["system"] == 71500 and r.memory_rise_bytes == 0


def test_gpu_seconds_of_followed_processes():
    meter = _run.Meter(device("m5max-macos27"), lambda snapshot: {4100})
    meter.begin()
    for _ in range(4):
        meter.sample()
    r = meter.end()
    assert r.gpu_seconds == pytest.approx(0.93 * 5, rel=0.02) and 0 < r.gpu_seconds_covered <= 1
    assert r.peak_footprint_bytes == 36507222016 and "gpu_seconds" not in r.reasons


def test_measure_with_a_thread():
    end = time.monotonic() + 30
    with _run.measure(device("m5max-macos27", speed=50), interval=0.02) as m:
        time.sleep(0.3)
        while m.meter._samples <= 3 and time.monotonic() < end:     # a machine with other things to do
            time.sleep(0.02)
    assert m.report.samples > 3 and m.report.joules["gpu"] > 0
    assert m.meter.device is not None


# ---- a Mac that sleeps

@pytest.fixture
def sleeper(tmp_path):
    """The M4, asleep for eight hours between its fourth and fifth sample."""
    with open(recording("m4-macos27")) as file:
        data = json.load(file)
    count = len(data["time"]["ticks"])
    data["time"]["slept"] = [0] * 4 + [8 * 3600 * 10 ** 9] * (count - 4)
    data["expected"] = []
    path = tmp_path / "sleeper.json"
    path.write_text(json.dumps(data))
    return str(path)


def test_a_mac_that_sleeps(sleeper):
    m = state.Model(device(sleeper))
    seen = []
    for _ in range(7):
        m.take(ag.DeviceGetSnapshot(m.device, timeout=0))
        seen.append((m.snapshot.gpu_power_mw, m.snapshot.reasons.get("gpu_power_mw"), [a.text for a in m.alerts()],
                     text(draw.board(m, 80, 24, draw.Look("compact")))[0]))
    power = [row[0] for row in seen]
    assert seen[4][0] is None and seen[4][1] == "slept" and "the Mac slept: rates begin anew" in seen[4][2]
    assert all(p is None or 1000 < p < 1500 for p in power) and power[-1] is not None
    assert " - " in seen[4][3] and " - " not in seen[3][3]
    values = m.history.values("gpu_power_mw", 21600, 100)
    assert sum(v == v for v in values) <= 2         # eight hours that nobody measured are blank


def test_sleep_in_one_shot(sleeper, capsys):
    _, out, _ = run_stat(capsys, "--recording", sleeper, "--speed", "0", "--jsonl", "-i", "0.01", "--count", "6", "--timeout", "0")
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[4]["gpu_power_mw"] is None and rows[4]["elapsed_s"] > 8 * 3600
    assert rows[3]["gpu_power_mw"] == pytest.approx(1200, rel=0.1)


# ---- top.py: frames

@pytest.mark.parametrize("layout", draw.LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_frame_keeps_to_its_width(name, layout):
    m = model(name, 3)
    for width in (12, 20, 33, 40, 59, 60, 72, 80, 100, 119, 120, 140, 180, 240):
        for height in (5, 24, 45):
            for line in draw.board(m, width, height, draw.Look(layout)):
                assert draw.length(line) == width, (width, line)
            assert {draw.length(line) for line in draw.graphs(m, width, height, draw.Look(layout))} <= {width}
        assert all(draw.length(line) == width for line in [draw.header(m, width)] + draw.alert_lines(m, width, 3))
        for row in m.snapshot.processes or ():
            assert draw.length(draw.process_line(m, row, width, False)) == width


def test_layouts_fit_the_terminal():
    m = model("m5max-macos27")
    assert draw.resolve("auto", 80, 24) == "compact" and draw.resolve("auto", 100, 60) == "stacked"
    assert draw.resolve("auto", 140, 45) == "classic" and draw.resolve("stacked", 80, 24) == "stacked"
    assert len(draw.board(m, 80, 24, draw.Look())) == 8
    assert len(draw.board(m, 140, 45, draw.Look())) < 34 < len(draw.board(m, 100, 60, draw.Look()))


@pytest.mark.parametrize("width", [30, 40, 60, 80])
def test_the_compact_layout_shows_whole_figures(width):
    m = model("m1ultra-macos27")
    lines = [line.rstrip() for line in text(draw.board(m, width, 24, draw.Look()))]
    whole = [line.rstrip() for line in text(draw.board(m, 200, 24, draw.Look("compact")))]
    assert len(lines) == len(whole) == 8 and not any("…" in line for line in lines)
    for line, full in zip(lines, whole):        # cut at a space, wherever it is cut
        figures = line[7:].lstrip(" ▁▂▃▄▅▆▇█")
        assert figures and (full + " ").find(figures + " ") > 0, (line, full)


def test_alerts():
    frozen = model("m3max-macos27")
    assert any("frozen counter: CPU, ANE, DRAM" in alert.text for alert in frozen.alerts())
    capped = model("m5max-macos27")
    assert [alert.text for alert in capped.alerts()] == ["the GPU's power budget is 40 %, capped at 40.0 W"]
    assert not model("m1max").alerts()
    s = capped.snapshot
    s.gpu_recovery_count, s.memory_used_bytes, s.thermal_pressure_level = 2, s.memory_total_bytes + 1, 2
    s.gpu_throttle = ag.ThrottleState(0.25, 100.0, 2)
    s.system_memory_pressure = ag.MemoryPressure("critical", 3)
    capped._watch(s)
    words = " / ".join(alert.text for alert in capped.alerts())
    for part in ("restarted 2 times", "over its limit", "pressure is critical", "thermal pressure is heavy", "throttled by heat 25 %"):
        assert part in words
    lines = text(draw.alert_lines(capped, 60, 2))
    assert len(lines) == 2 and lines[1].rstrip().endswith("+3")


def test_a_wide_name_keeps_to_its_cells():
    from rich.cells import cell_len
    m = model("m4-macos27", 1)
    row = ag.GpuProcess(7, "\u691c\u7d22\u30a8\u30f3\u30b8\u30f3", 1, 2.0, 3, False)
    for width in (30, 50, 80):
        assert cell_len("".join(piece for piece, _ in draw.process_line(m, row, width, False))) == width


def test_processes_sort_and_filter():
    rows = [ag.GpuProcess(3, "beta", 10, 5.0, None, False), ag.GpuProcess(1, "alpha", 30, None, 9, False),
            ag.GpuProcess(2, "Gamma", 20, 7.0, 3, True)]

    def pids(*how):
        return [p.pid for p in draw.ordered(rows, *how)]
    assert pids("gpu", False, "") == [2, 3, 1] and pids("gpu", True, "") == [3, 2, 1]     # unknown comes last
    assert pids("time", False, "") == [1, 2, 3] and pids("memory", False, "") == [1, 2, 3]
    assert pids("name", False, "") == [1, 3, 2] and pids("pid", True, "") == [3, 2, 1]
    assert pids("gpu", False, "GAM") == [2] and pids("gpu", False, "3") == [3] and pids("gpu", False, "zz") == []


def test_disk_and_network_come_from_psutil_on_the_mac_only(monkeypatch):
    assert "recording" in model("m1max").beside.reason
    fake = type(sys)("psutil")

    def pair(a, b):
        return type("P", (), {"bytes_recv": a, "bytes_sent": b, "read_bytes": a, "write_bytes": b})
    counts = iter([pair(0, 0), pair(0, 0), pair(4_000_000, 2_000_000), pair(1_000_000, 500_000)])
    fake.disk_io_counters = fake.net_io_counters = lambda: next(counts)
    fake.cpu_times_percent = lambda interval: type("T", (), {"user": 10.0, "system": 5.0})
    fake.disk_usage = lambda path: type("U", (), {"used": 1 << 30, "total": 4 << 30})
    monkeypatch.setitem(sys.modules, "psutil", fake)
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(state.time, "monotonic", lambda: next(clock))
    beside = state.Beside(True)
    beside.sample()
    assert beside.values["disk_read"] is None
    beside.sample()
    assert beside.values["disk_read"] == 2_000_000 and beside.values["net_out"] == 250_000 and beside.values["cpu_user"] == 10.0
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert state.Beside(True).reason == "psutil is not installed"


def test_once_is_plain_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert top.main(["--recording", recording("m5max-macos27"), "--speed", "0", "--once", "--samples", "3"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and max(map(len, out.splitlines())) <= 80
    for part in ("─ GPU", "─ Neural Engine", "─ CPU", "─ Power", "─ Memory", "─ Traffic", "─ Heat", "─ Video", "python3.13",
                 "recording m5max-macos27", "338-1620", "40.0 W"):
        assert part in out


def test_debug_prints_a_raw_sample(capsys):
    assert top.main(["--recording", recording("m4-macos27"), "--speed", "0", "--debug"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["gpu_device_percent"] == 17 and data["reasons"]["gpu_power_limit_mw"] == "no_limit"


def test_hidden_panels():
    m = model("m4-macos27")
    shown = "\n".join(text(draw.board(m, 80, 60, draw.Look("stacked", 60, frozenset({"ane", "io"})))))
    assert "─ GPU" in shown and "Neural" not in shown and "Disk" not in shown
    assert not any(line.startswith(" ANE") for line in text(draw.board(m, 80, 24, draw.Look("compact", 60, frozenset({"ane"})))))


def test_memory_stays_flat():
    """10,000 refreshes were measured by hand; here as many as a test may take."""
    m = state.Model(device("m5max-macos27"))
    looks = [draw.Look(layout) for layout in ("stacked", "classic", "compact")]

    def refresh(times: int) -> None:
        for n in range(times):
            m.take(ag.DeviceGetSnapshot(m.device, timeout=0))
            draw.frame(m, 120, 40, looks[n % 3])
    blocks = []
    for times in (120, 200, 200):
        refresh(times)
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    assert blocks[2] - blocks[1] < 200      # one block kept per refresh would be 200


# ---- top.py: Textual's pilot

def monitor(*arguments, **named):
    from top_lib.screen import Top          # here: it needs textual
    return Top(*arguments, **named)


@pytest.fixture
def pilot_app():
    pytest.importorskip("textual", reason="the monitor needs textual: pip install '.[examples]'")

    def run(name, work, size=(100, 40), samples=3, loop=True, **named):
        async def go():
            app = monitor(device(name, loop=loop), clocked=False, **named)
            async with app.run_test(size=size) as pilot:
                for _ in range(samples):
                    await app.sample()
                await pilot.pause()
                await work(app, pilot)
        asyncio.run(go())
    return run


def screen(app) -> str:
    """What is on the screen, as text."""
    width, height = app.size
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in lines)


def test_screen_shows_the_mac(pilot_app):
    async def work(app, pilot):
        shown = screen(app)
        for part in ("Apple M5 Max", "macOS 27.0", "12P+6S", "recording m5max-macos27", "40.0 W", "python3.13", "quit", "self"):
            assert part in shown, part
    pilot_app("m5max-macos27", work)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(80, 24), (140, 45), (40, 12)])
def test_screen_at_every_size(pilot_app, name, size):
    async def work(app, pilot):
        shown = screen(app)
        assert app.model.snapshot is not None and "GPU" in shown and "PROCESS" in shown
    pilot_app(name, work, size=size, samples=2)


def test_resize_draws_again(pilot_app):
    async def work(app, pilot):
        assert "─ Neural Engine" in screen(app)
        for size in ((60, 20), (30, 8), (180, 50), (80, 24)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            await app.sample()
            await pilot.pause()
            assert "GPU" in screen(app)
            assert all(draw.length(line) in (size[0], size[0] - 1) for line in app.board_box.lines)
        assert "GMEM" in screen(app)
    pilot_app("m5max-macos27", work, size=(140, 45))


def test_keys_layout_theme_range_interval_pause(pilot_app):
    async def work(app, pilot):
        layouts = []
        for _ in range(3):
            await pilot.press("m")
            await pilot.pause()
            layouts.append(app.look.layout)
        assert sorted(layouts) == ["classic", "compact", "stacked"]
        theme = app.theme
        await pilot.press("t")
        await pilot.pause()
        assert app.theme != theme
        await pilot.press("w")
        assert app.look.span == 300
        await pilot.press("plus")
        assert app.interval == 2.0
        for _ in range(9):
            await pilot.press("minus")
        assert app.interval == 0.1
        await pilot.press("p")
        await pilot.pause()
        assert app.paused and "PAUSED" in screen(app)
        await pilot.press("space")
        assert not app.paused
        await pilot.press("1")
        assert app.look.hidden == {"gpu"}
        await pilot.press("1")
        assert not app.look.hidden
    pilot_app("m4-macos27", work)


def test_keys_help_and_reasons(pilot_app):
    async def work(app, pilot):
        await pilot.press("question_mark")
        await pilot.pause()
        assert "other way round" in screen(app)
        await pilot.press("escape")
        await pilot.pause()
        await pilot.press("r")
        await pilot.pause()
        assert "cpu_power_mw" in screen(app) and "zero that" in screen(app)
        await pilot.press("r")
        await pilot.pause()
        assert len(app.screen_stack) == 1
    pilot_app("m3max-macos27", work, size=(120, 60))


def test_reasons_stand_once_with_the_fields_that_share_them():
    rows = [("a", "not here"), ("b", "asleep " * 8), ("c", "not here")]
    assert draw.by_reason(rows, 30).splitlines() == ["not here", "    a, c", "asleep asleep asleep asleep", "asleep asleep asleep asleep", "    b"]
    guest = model("vm-macos15").snapshot
    shown = draw.by_reason([(field, text) for field, _, text in c.missing(guest)], 70)
    assert len(shown.splitlines()) < len(c.missing(guest)) and max(map(len, shown.splitlines())) <= 70
    assert all(field.rpartition(" ")[2] in shown for field, _, _ in c.missing(guest))


def test_keys_sort_choose_scroll_filter(pilot_app):
    async def work(app, pilot):
        table = app.table
        assert table.rows[0].name == "WindowServer" and len(table.rows) == 24
        await pilot.press("s", "s")
        assert table.sort == "memory" and table.rows[0].footprint_bytes == max(p.footprint_bytes or 0 for p in table.rows)
        await pilot.press("o")
        assert table.backwards
        known = [p.footprint_bytes for p in table.rows if p.footprint_bytes is not None]
        assert known == sorted(known) and table.rows[-1].footprint_bytes is None
        await pilot.press("down")
        assert table.at == 0
        await pilot.press("down", "down")
        assert table.at == 2
        await pilot.press("end")
        await pilot.pause()
        assert table.at == 23 and table.scroll_offset.y > 0
        chosen = table.chosen
        await app.sample()
        assert table.chosen == chosen           # the choice follows the process, not the line
        await pilot.press("home")
        await pilot.pause()
        assert table.at == 0 and table.scroll_offset.y == 0
        await pilot.press("pagedown")
        await pilot.pause()
        assert table.at > 1
        await pilot.press("enter")
        await pilot.pause()
        assert app.detail_box.display and str(table.chosen) in screen(app) and "parent" in screen(app)
        await pilot.press("slash", *"safari")
        await pilot.pause()
        assert [p.name for p in table.rows] == ["Safari"] and "q" not in app.wanted
        await pilot.press("enter")
        await pilot.pause()
        assert app.focused is table and len(table.rows) == 1
        assert "/safari" in screen(app).splitlines()[-1]        # who looks later must see why rows are missing
        await pilot.press("slash", *"zz")
        await pilot.pause()
        assert not table.rows and "no process matches" in screen(app)
        await pilot.press("escape")
        await pilot.pause()
        assert len(table.rows) == 24 and app.focused is table
    pilot_app("m1-macos11", work, size=(80, 24))


@pytest.mark.parametrize("width", [40, 57, 80, 120])
def test_the_last_line_shows_whole_words(width):
    line = "".join(part for part, _ in draw.bottom(width, "/python  1 s  self 2.0 %"))
    assert len(line) == width and line.endswith(" 2.0 % ") and line.startswith(" q quit")
    assert line.split("/python")[0].split() == [word for key, name, _ in draw.keys(width, "/python  1 s  self 2.0 %") for word in (key, name)]
    assert draw.keys(200, "") == list(draw.KEYS)


def test_the_words_on_the_last_line_can_be_clicked(pilot_app):
    async def work(app, pilot):
        await pilot.click("#bottom", offset=(19, 0))
        await pilot.pause()
        assert app.paused and screen(app).splitlines()[-1].startswith(" q quit ? help p pause m layout")
        await pilot.click("#bottom", offset=(99, 0))        # the status: nothing
        await pilot.click("#bottom", offset=(10, 0))
        await pilot.pause()
        assert len(app.screen_stack) == 2
    pilot_app("m1-macos11", work, size=(100, 30))


def test_what_a_guest_does_not_see_is_one_line_with_its_reason():
    m = model("vm-macos15")
    shown = {name: [(row.label, row.value, row.note) for row in panels.rows_of(name, m, m.snapshot)] for name in panels.PANELS}
    assert shown["ane"] == shown["bandwidth"] == shown["media"] == [("", "-", "a virtual machine does not see it")]
    assert [row[0] for row in shown["gpu"]] == ["", "Memory"] and "4.7 GB" in shown["gpu"][1][2]
    assert len(shown["cpu"]) == 2 and len(shown["memory"]) == 6


def test_mouse_sorts_chooses_and_scrolls(pilot_app):
    async def work(app, pilot):
        table = app.table
        await pilot.click("#processes", offset=(3, 0))
        assert table.sort == "pid"
        await pilot.click("#processes", offset=(3, 0))
        assert table.sort == "pid" and table.backwards
        await pilot.click("#processes", offset=(20, 2))
        assert table.at == 1
        top_row = table.scroll_offset.y
        for _ in range(3):
            table._on_mouse_scroll_down(_wheel(table))
        await pilot.pause(0.3)
        assert table.scroll_offset.y > top_row
        assert "PID" in screen(app)             # the title line stays
    pilot_app("m1-macos11", work, size=(80, 24))


def _wheel(widget):
    from textual.events import MouseScrollDown
    return MouseScrollDown(widget, 1, 1, 0, 1, 0, False, False, False)


def test_mouse_wheel_scrolls_tall_boards(pilot_app):
    async def work(app, pilot):
        assert app.board_box.virtual_size.height > app.board_box.size.height
        await pilot.press("right_square_bracket")
        await pilot.pause()
        assert app.board_box.scroll_offset.y == 3
        await pilot.press("left_square_bracket")
        await pilot.pause()
        assert app.board_box.scroll_offset.y == 0 and "─ GPU" in screen(app)
    pilot_app("m5max-macos27", work, size=(80, 24), look=draw.Look("stacked"))


def test_only_changed_lines_are_painted(pilot_app):
    async def work(app, pilot):
        painted = []
        refresh = type(app.board_box).refresh
        app.board_box.refresh = lambda *regions, **how: (painted.append(regions), refresh(app.board_box, *regions, **how))[1]
        await app.sample()
        assert painted and all(len(regions) == 1 and regions[0].height == 1 for regions in painted)
        assert len(painted) < len(app.board_box.lines)
        painted.clear()
        app.redraw()
        assert painted == []
    pilot_app("m1max", work, size=(140, 45), samples=6)


def test_recording_that_ends_stops_the_monitor(pilot_app):
    async def work(app, pilot):
        for _ in range(8):
            await app.sample()
        await pilot.pause()
        assert app.paused and "the recording has ended" in screen(app)
    pilot_app("vm-macos15", work, loop=False)


def test_recording_that_loops_goes_on(pilot_app):
    async def work(app, pilot):
        assert app.samples == 25 and not app.model.ended
        assert 0 < sum(v == v for v in app.model.history.values("cpu_utilization_percent", 60, 60)) <= 60
    pilot_app("vm-macos15", work, samples=25)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_export_appends_while_it_runs(pilot_app, tmp_path, ending):
    path = str(tmp_path / ("log." + ending))

    async def work(app, pilot):
        pass
    for _ in range(2):
        writer = c.RowWriter(path)
        pilot_app("m5max-macos27", work, samples=3, export=writer)
        writer.close()
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file)) if ending == "csv" else [json.loads(line) for line in file]
    assert len(rows) == 6 and float(rows[2]["gpu_power_mw"]) == pytest.approx(40000, rel=0.01)
    assert rows[0]["gpu_power_mw"] in ("", None)        # the first look has no rate yet


def test_export_into_another_table_is_refused(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("a,b\n1,2\n")
    result = shell("--recording", recording("m1max"), "--speed", "0", "--once", "--export", str(path), tool="top.py")
    assert result.returncode == 1 and result.stderr == "top.py: %s: holds a table with other columns\n" % path
    assert path.read_text() == "a,b\n1,2\n"


def test_without_a_terminal_it_says_what_prints():
    """From cron the escape codes would fill the log for ever."""
    pytest.importorskip("textual", reason="the monitor needs textual")
    result = shell("--recording", recording("m1max"), tool="top.py")
    assert result.returncode == 1 and "needs a terminal; --once" in result.stderr and "\x1b" not in result.stderr


def test_the_picture_key(pilot_app, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def work(app, pilot):
        await pilot.press("x")
        await pilot.pause()
        assert [path.suffix for path in tmp_path.iterdir()] == [".svg"]

        def full(*where):
            raise OSError(28, "No space left on device", "top.svg")
        monkeypatch.setattr(app, "save_screenshot", full)
        await pilot.press("x")
        await pilot.pause()
        assert "not saved: top.svg: No space left on device" in [notice.message for notice in app._notifications]
    pilot_app("m1max", work, samples=1)


def test_own_clock_samples_and_quits(pilot_app):
    async def go():
        app = monitor(device("m1max", speed=20), interval=0.1)
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.pause(1.6)
            assert app.samples >= 5 and app.cost is not None
            await pilot.press("p")
            await pilot.pause(0.2)
            seen = app.samples
            await pilot.pause(0.4)
            assert app.samples == seen
            await pilot.press("p", "q")
    asyncio.run(go())


def test_a_mac_that_does_not_answer_holds_up_no_end(pilot_app, monkeypatch):
    over, waited = threading.Event(), []
    monkeypatch.setattr(ag, "DeviceGetSnapshot", lambda *_: waited.append(over.wait(6)))

    async def go():
        app = monitor(device("m1max"), interval=0.1)
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.pause(0.1)
            await pilot.press("q")
    asyncio.run(go())
    assert waited == []         # the look is still being waited for, by nobody
    over.set()


@pytest.mark.parametrize("keys", [("q",), ("ctrl+c",), ("slash", "a", "ctrl+c")])
def test_keys_that_end_it(pilot_app, keys):
    async def work(app, pilot):
        await pilot.press(*keys)
        await pilot.pause()
        assert not app._alive and app.return_code == 0
    pilot_app("m1max", work, samples=1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_said_with_the_files_name(pilot_app, capsys):
    writer = c.RowWriter("/dev/full")

    async def work(app, pilot):
        assert app.export is None and app.samples == 3
        assert "export ended: /dev/full: No space left on device" in [notice.message for notice in app._notifications]
    pilot_app("m1max", work, export=writer)

    def work_that_fails():
        writer.close()
    assert c.quiet_pipe(work_that_fails) == 1 and "/dev/full: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("theme", ["textual-dark", "textual-light", "ansi-dark", "nord"])
def test_themes_have_every_colour(pilot_app, theme):
    async def work(app, pilot):
        assert set(app.styles_by_name) == set(draw.PLAIN)
        assert "Apple" in screen(app)
    pilot_app("m1max", work, theme=theme, samples=1)


def test_svg_picture(tmp_path):
    pytest.importorskip("textual", reason="the monitor needs textual")
    path = tmp_path / "top.svg"
    assert top.main(["--recording", recording("m4-macos27"), "--speed", "0", "--svg", str(path), "--samples", "4"]) == 0
    picture = path.read_text()
    assert "Apple" in picture and len(picture) < 150_000 and "cdnjs" not in picture


@pytest.mark.parametrize("theme", ["0", "8", "12", "99", "nord"])
def test_every_number_is_a_theme(theme, tmp_path):
    pytest.importorskip("textual", reason="the monitor needs textual")
    path = tmp_path / "top.svg"
    assert top.main(["--recording", recording("m4-macos27"), "--speed", "0", "--svg", str(path), "--color", theme]) == 0
    assert "Apple" in path.read_text()


def test_stat_picture(tmp_path, capsys):
    path = tmp_path / "stat.svg"
    assert run_stat(capsys, "--recording", recording("m4-macos27"), "--speed", "0", "-a", "--picture", str(path))[0] == 0
    assert "cdnjs" not in path.read_text()


FAKEMAC = os.path.join(HERE, "fakemac.py")
needs_fakemac = pytest.mark.skipif(sys.platform == "darwin" or not os.path.exists(FAKEMAC),
                                   reason="stand-ins for Apple's libraries are for other systems than a Mac")


@needs_fakemac
@pytest.mark.parametrize("arguments, part", [
    (("top.py", "--once", "--samples", "2"), r"Apple M4  macOS 27\.0 .*\d\d:\d\d:\d\d"),
    (("stat.py", "-a", "-p", "--timeout", "1"), r"\[0\] Apple M4 \| 74°C, \d+ % \| 0\.4 / 11\.8 GB"),
    (("stat.py", "run", "--", sys.executable, "-c", "import time; time.sleep(1.5)"), r"GPU time of the command's processes: 0\.00 s")])
def test_live_sources_of_a_stand_in_mac(arguments, part):
    """The same tools on the ctypes code, as on a Mac."""
    tool = os.path.join(HERE, arguments[0])
    result = shell("--recording", recording("m4-macos27"), "--speed", "4", tool, *arguments[1:], tool="fakemac.py")
    assert result.returncode == 0, result.stderr
    assert re.search(part, result.stdout + result.stderr) and "recording" not in result.stdout


def test_tools_need_nothing_but_their_extras():
    """--help works everywhere, and says what can be asked."""
    for tool, words in (("top.py", ("--once", "--export", "--layout", "--recording")), ("stat.py", ("--jsonl", "--show-all", "run"))):
        result = shell("--help", tool=tool)
        assert result.returncode == 0 and all(word in result.stdout for word in words)
