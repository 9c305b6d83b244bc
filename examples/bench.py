#!/usr/bin/env python3
"""What pyapplegpu costs, beside its peers: counts first (they hold on any machine), then ratios, then times of this one.

    python examples/bench.py [--json] [--quick] [--only SECTION ...] [--path DIR ...]

Everything runs on stand-ins at the C ABI (fakemac.py, fakeobjc.py), so Linux and macOS give the same counts; on a Mac the
section "live" asks the real frameworks too. Peers are measured where they are installed, in this interpreter or in --path DIR:

    pip install nvidia-ml-py mthreads-ml-py gpustat nvitop '.[examples]' && pip install --no-deps metalstat

Own time: what passes outside the stand-ins' functions, less what entering a Python callback costs, which no Mac pays.
"""
from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import importlib
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from typing import Any, Callable, Iterator

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
LIBRARY = os.path.join(ROOT, "pyapplegpu.py")
RECORDINGS = os.path.join(HERE, "recordings")
MACS = {"M1": "m1-macos11", "M1 Ultra": "m1ultra-macos27", "M5 Max": "m5max-macos27"}
COUNT, RATIO, TIME = "counts", "ratios", "times"
NOT_HERE = "not installed"
now, cpu = time.perf_counter_ns, time.process_time_ns

rows: list[dict[str, Any]] = []


def row(kind: str, what: str, ours: float | str, unit: str = "", peer: str = "", theirs: float | str | None = None,
        most: float | None = None, least: bool = False) -> None:
    """A line of the table; `most` is the budget, judged for counts and ratios only."""
    met = None if most is None or isinstance(ours, str) else ours <= most
    rows.append({"kind": kind, "what": what, "ours": ours, "unit": unit, "peer": peer, "theirs": theirs, "budget": most, "met": met})


# ---- tools of measuring

def recording(name: str) -> Any:
    with open(os.path.join(RECORDINGS, name + ".json"), encoding="utf-8") as file:
        return json.load(file)


def resident() -> float:
    """MiB of this process."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2 ** 20
    except OSError:     # macOS: the peak is what the standard library knows
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20


STAND_INS = ("fakemac.py", "fakeobjc.py")


def opcodes(operation: Callable[[], Any], files: Callable[[str], bool]) -> int:
    """Bytecodes executed in files of one side: a figure that does not depend on the machine. What a stand-in works out is no
    Mac's work, also where it replays the recording with the library's own player."""
    total = inside = 0

    def standing_in(frame: Any, event: str, argument: Any) -> Any:
        nonlocal inside
        inside -= event == "return"
        return standing_in

    def tracer(frame: Any, event: str, argument: Any) -> Any:
        nonlocal total, inside
        frame.f_trace_lines = False
        if os.path.basename(frame.f_code.co_filename) in STAND_INS:
            inside += 1
            return standing_in
        if inside or not files(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes = True
        total += event == "opcode"
        return tracer
    sys.settrace(tracer)
    try:
        operation()
    finally:
        sys.settrace(None)
    return total


def metered(data: Any, **options: Any) -> Any:
    """A fakemac.Mac that knows how much time its own functions took."""
    fakemac: Any = importlib.import_module("fakemac")

    class Metered(fakemac.Mac):     # type: ignore[misc]
        inside = 0

        def guarded(self, symbol: str, function: Any, nothing: Any) -> Any:
            entry = super().guarded(symbol, function, nothing)

            def timed(*args: Any) -> Any:
                began = now()
                try:
                    return entry(*args)
                finally:
                    self.inside += now() - began
            return timed

        def uptime_ns(self) -> int:
            began = now()
            try:
                return int(super().uptime_ns())
            finally:
                self.inside += now() - began

        def continuous_ns(self) -> int:
            began = now()
            try:
                return int(super().continuous_ns())
            finally:
                self.inside += now() - began
    return Metered(data, **options)


def callback_cost() -> float:
    """ns that a call of a stand-in takes outside its function, beyond a call of a C function."""
    spent = [0]

    def timed(a: int, b: int) -> int:
        began = now()
        try:
            return 0
        finally:
            spent[0] += now() - began
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    through = kind(timed)
    direct = ctypes.CDLL(None).abs
    direct.restype, direct.argtypes = ctypes.c_int, [ctypes.c_int]
    best = []
    for _ in range(30):
        spent[0], began = 0, now()
        for _ in range(200):
            through(1, 2)
        out, middle = now() - began - spent[0], now()
        for _ in range(200):
            direct(1)
        best.append((out - (now() - middle)) / 200)
    return max(0.0, min(best))


def natives(mac: Any) -> int:
    return sum(count for name, count in mac.calls.items() if ":" not in name)


def of_kinds(mac: Any, operation: Callable[[], Any], kinds: tuple[str, ...]) -> int:
    """Native calls of an operation whose names begin so."""
    before = dict(mac.calls)
    operation()
    return sum(count - before.get(name, 0) for name, count in mac.calls.items() if name.startswith(kinds))


class Cost:
    """Native calls, opcodes and own µs of one operation, asked after each instant of the recording."""

    def __init__(self, mac: Any, operation: Callable[[], Any], files: Callable[[str], bool], turns: int, entering: float) -> None:
        times, calls = [], []
        for _ in range(3):
            mac.advance()
            operation()
        gc.collect()
        gc.freeze()     # the recording is not there on a Mac: the collector has not to walk it
        for _ in range(turns):
            mac.advance()
            called, inside, began = natives(mac), mac.inside, now()
            operation()
            spent = now() - began - (mac.inside - inside)
            calls.append(natives(mac) - called)
            times.append((spent - calls[-1] * entering) / 1000)
        mac.advance()
        self.opcodes = opcodes(operation, files)
        self.calls, self.us = max(calls), max(0.0, sorted(times)[len(times) // 4])      # others use this machine too
        self.best = max(0.0, min(times))


def best_ns(operation: Callable[[], Any], loops: int = 2000, rounds: int = 15) -> float:
    found = []
    for _ in range(rounds):
        began = now()
        for _ in range(loops):
            operation()
        found.append((now() - began) / loops)
    return min(found)


def child(code: str, *arguments: str, flags: tuple[str, ...] = (), env: dict[str, str] | None = None) -> list[str]:
    done = subprocess.run([sys.executable, *flags, "-c", code, *arguments], env=env, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "exit %d" % done.returncode)
    return done.stdout.split()


def found(module: str) -> str | None:
    """The file of an installed module."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


# ---- import

IMPORT = """
import site, sys, time
def resident():
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
sys.path.insert(0, sys.argv[1])
resident()
before, began = resident(), time.process_time_ns()
if sys.argv[2]:
    __import__(sys.argv[2])
print(time.process_time_ns() - began, resident() - before)
"""


def section_import(quick: bool) -> None:
    modules = {"pyapplegpu": LIBRARY, "pynvml": found("pynvml"), "pymtml": found("pymtml")}
    for name in ("pynvml", "pymtml"):
        if modules[name] is None:
            row(RATIO, "import beside %s" % name, NOT_HERE)
    have = {name: path for name, path in modules.items() if path}
    with tempfile.TemporaryDirectory() as folder:
        for how, rounds in (("compiled", 3 if quick else 25), ("bare", 2 if quick else 7)):
            place = os.path.join(folder, how)
            os.mkdir(place)
            for path in have.values():
                shutil.copy(path, place)
            if how == "compiled":
                subprocess.run([sys.executable, "-m", "compileall", "-q", place], check=True)
            took: dict[str, list[int]] = {name: [] for name in have}
            memory: dict[str, list[int]] = {name: [] for name in have}
            for _ in range(rounds):
                for name in have:
                    one = child(IMPORT, place, name, flags=("-S", "-E", "-B"))
                    took[name].append(int(one[0]))
                    memory[name].append(int(one[1]))
            low = {name: statistics.median(sorted(took[name])[:max(1, rounds // 2)]) / 1e6 for name in have}
            grown = {name: statistics.median(memory[name]) / 1024 for name in have}
            text = "import, from .pyc" if how == "compiled" else "import, a bare copy without .pyc (compiled each time)"
            for name in have:
                if name != "pyapplegpu":
                    budget = 0.5 if (how, name) == ("compiled", "pynvml") else None
                    row(RATIO, text + ": CPU time / %s" % name, low["pyapplegpu"] / low[name], "x", most=budget)
                    row(RATIO, text + ": memory / %s" % name, grown["pyapplegpu"] / grown[name], "x")
            row(TIME, text, low["pyapplegpu"], "ms", "pynvml", low.get("pynvml"))
            row(TIME, text + ": memory", grown["pyapplegpu"], "MiB", "pynvml", grown.get("pynvml"))
            if "pymtml" in have:
                row(TIME, text, low["pyapplegpu"], "ms", "pymtml", low["pymtml"])


# ---- what a reading costs

def device_of(ag: Any) -> Any:
    ag.LibraryInit()
    return ag.LibraryInitDeviceByIndex(0)


def own(name: str) -> bool:
    return name == LIBRARY


def section_readings(quick: bool) -> None:
    """Each Mac in a process of its own: metalstat keeps what it opened for the first one."""
    for chip, name in MACS.items():
        if not (quick and chip == "M1 Ultra"):
            done = again("reading:" + name, quick)
            for one in done:
                one["what"] = chip + ": " + one["what"]
            rows.extend(done)


STRINGS = ("CFString", "IOReportChannelGet", "IOReportStateGetName")
# No budget, but a guard: a quarter to a half more than the largest of these Macs took on 3.11 when this was written.
OPCODES = {"engine utilisation + memory": 1500, "power reading": 15000, "full snapshot": 145000}


def section_reading(quick: bool, name: str) -> None:
    ag: Any = importlib.import_module("pyapplegpu")
    data, turns, entering = recording(name), 3 if quick else 25, callback_cost()
    mine: dict[str, Cost] = {}
    with metered(data) as mac:
        dev = device_of(ag)
        operations: dict[str, Callable[[], Any]] = {
            "engine utilisation + memory": lambda: (ag.DeviceGetEngineUtilization(dev), ag.MemoryGetUsed(dev)),
            "power reading": lambda: ag.Try(ag.DeviceGetPowerUsage, dev, timeout=0),
            "full snapshot": lambda: ag.DeviceGetSnapshot(dev, timeout=0),
        }
        for what, operation in operations.items():
            mine[what] = Cost(mac, operation, own, turns, entering)
            if what == "power reading":
                feed = ag._library.engine.main
                mac.advance()
                before = natives(mac)
                strings = of_kinds(mac, feed.subscription.sample, STRINGS)
                sampling, wanted = natives(mac) - before, len(feed.channels)
            elif what.startswith("engine"):
                mac.advance()
                heavy = of_kinds(mac, operation, ("IOReport", "IOConnect", "IOHID", "objc_", "sel_", "MTL"))
        listed = sum(channel.group in ("Energy Model", "GPU Stats") for channel in mac.replay.channels)
        total = (natives(mac), ag.MemoryGetTotal(dev))[0]
        row(COUNT, "native calls of MemoryGetTotal, later calls", (ag.MemoryGetTotal(dev), natives(mac) - total)[1] // 2, most=2)
    theirs = metalstat_costs(data, turns, entering)
    row(COUNT, "calls to IOReport, SMC, HID, Objective-C or Metal, engine utilisation + memory", heavy, most=0)
    row(COUNT, "string conversions of a sample", strings, most=0)
    row(COUNT, "native calls of a sample of %d wanted channels (%d listed)" % (wanted, listed), sampling, most=10 + 4 * wanted)
    for what, cost in mine.items():
        other = theirs.get(what)
        peer = "metalstat" if other else "metalstat " + NOT_HERE
        row(COUNT, "native calls, " + what, cost.calls, "", peer, other and other.calls, 12 if what.startswith("engine") else None)
        row(COUNT, "opcodes, " + what, cost.opcodes, "", peer, other and other.opcodes, OPCODES[what])
        if other:
            row(RATIO, "own time, %s / metalstat" % what, cost.us / max(other.us, 0.1), "x")
        row(TIME, "own time, " + what, cost.us, "µs", peer, other and other.us)
    row(TIME, "own share of a core, full snapshot at 1 Hz, best tick", mine["full snapshot"].best / 1e4, "%", most=None if quick else 0.3)


def metalstat_costs(data: Any, turns: int, entering: float) -> dict[str, Any]:
    """metalstat's ioreport, gpu and power modules doing the same work on the same stand-ins. Its memory figure is a
    subprocess (ioreg), left out in its favour; its snapshot here is GPU and power only."""
    path = found("metalstat")
    if path is None:
        return {}
    folder = os.path.dirname(path)
    mac = metered(data)
    mac.__enter__()
    try:
        ioreport, gpus, powers = (importlib.import_module("metalstat." + name) for name in ("ioreport", "gpu", "power"))
        sampler = ioreport.IOReportSampler()

        def gpu() -> Any:
            return gpus.parse_gpu_metrics(sampler.sample_delta(0.05), [338, 618, 796])

        def power() -> Any:
            return powers.parse_power_metrics(sampler.sample_delta(0.05), 50.0)

        def both() -> Any:
            channels = sampler.sample_delta(0.05)
            return gpus.parse_gpu_metrics(channels, [338, 618, 796]), powers.parse_power_metrics(channels, 50.0)

        return {what: Cost(mac, operation, lambda name: name.startswith(folder), max(3, turns // 3), entering) for what, operation in (
            ("engine utilisation + memory", gpu), ("power reading", power), ("full snapshot", both))}
    finally:
        mac.violations.clear()      # it leaks the channels it merged; that is test_fakemac.py's to say
        mac.__exit__(None, None, None)


# ---- first temperature among the most SMC keys that a Mac was seen with

def big_smc(keys: int = 3739) -> Any:
    data = recording("m4-macos27")
    smc = data["smc"]
    names = {entry[0] for entry in smc["keys"]}
    extra: list[list[Any]] = []
    number = 0
    while len(smc["keys"]) + len(extra) < keys:
        text = "%04X" % number
        number += 17
        for first in "ABCDGHIMNPRUVZ":
            name = first + text[1:]
            if name not in names and len(smc["keys"]) + len(extra) < keys:
                names.add(name)
                extra.append([name, "ui8 ", 1])
    head, rest = smc["keys"][:1], smc["keys"][1:]
    smc["values"].pop("#KEY", None)
    smc["keys"] = head + sorted(rest + extra, key=lambda entry: entry[0].encode("latin-1"))
    return data


def section_smc(quick: bool) -> None:
    ag: Any = importlib.import_module("pyapplegpu")
    with metered(big_smc()) as mac:
        dev = device_of(ag)
        ag.DeviceGetTemperature(dev)
        gpu = mac.calls["IOConnectCallStructMethod"]
        ag.CpuGetTemperature(dev)
        both = mac.calls["IOConnectCallStructMethod"]
    peer = "a walk of all keys, 2 calls each"
    row(COUNT, "SMC calls to the first GPU temperature among 3,739 keys", gpu, "", peer, 7478, 270)
    row(COUNT, "SMC calls to the first GPU and CPU temperature", both, "", peer, 7478, 400)


def section_poll(quick: bool) -> None:
    """What the budgets say of six getters, of the first Metal device, and of first readings."""
    ag: Any = importlib.import_module("pyapplegpu")
    getters = ("DeviceGetUtilization", "DeviceGetPowerUsage", "DeviceGetActiveRatio", "DeviceGetClock", "CpuGetPower", "AneGetPower")
    with metered(recording("m4-macos27")) as mac:
        dev = device_of(ag)
        for name in getters:
            ag.Try(getattr(ag, name), dev)
        mac.advance()
        before = mac.calls["IOReportCreateSamples"]
        for name in getters:
            ag.Try(getattr(ag, name), dev)
        row(COUNT, "IOReport samples of six getters of one poll", mac.calls["IOReportCreateSamples"] - before, most=1)
        ag.MemoryGetTotal(dev)
        made = mac.calls["MTLCopyAllDevices"] + mac.calls["MTLCreateSystemDefaultDevice"]
        row(COUNT, "Metal devices made by the first MemoryGetTotal", made, most=1)
    for what, name in () if quick else (("utilisation", "DeviceGetUtilization"), ("power", "DeviceGetPowerUsage"), ("snapshot", "DeviceGetSnapshot")):
        first = json.loads(" ".join(again_raw("first:" + name, quick)))
        row(TIME, "first %s after init, native calls of the subscription / all" % what, "%d / %d" % (first["subscribing"], first["all"]))
        row(TIME, "first %s after init, own time" % what, first["us"] / 1000, "ms")


SUBSCRIBING = ("IOReportCopyChannelsInGroup", "IOReportCreateSubscription", "IOReportChannelGet", "IOReportStateGetName", "IOReportMerge", "CFString",
               "CFPropertyList")


def section_first(quick: bool, name: str) -> dict[str, Any]:
    ag: Any = importlib.import_module("pyapplegpu")
    entering = callback_cost()
    with metered(recording("m5max-macos27")) as mac:
        dev = device_of(ag)
        before, inside, began, seen = natives(mac), mac.inside, now(), dict(mac.calls)
        getattr(ag, name)(dev)
        spent, called = now() - began - (mac.inside - inside), natives(mac) - before
        subscribing = sum(count - seen.get(symbol, 0) for symbol, count in mac.calls.items() if symbol.startswith(SUBSCRIBING))
    return {"us": (spent - called * entering) / 1000, "all": called, "subscribing": subscribing}


# ---- the NVML names, and NVML's own clients

STUB = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned gpu, memory; } rates;
static int device;
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned f) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strcpy(s, "1.0"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = &device; return 0; }
int nvmlDeviceGetIndex(void *d, unsigned *i) { *i = 0; return 0; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) { strcpy(s, "Stub"); return 0; }
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) { strcpy(s, "GPU-0"); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory *m) { m->total = 16ull << 30; m->used = 1ull << 30; m->free = 15ull << 30; return 0; }
int nvmlDeviceGetUtilizationRates(void *d, rates *r) { r->gpu = 5; r->memory = 0; return 0; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = 5000; return 0; }
int nvmlDeviceGetTemperature(void *d, int s, unsigned *t) { *t = 40; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, void *p) { *n = 0; return 0; }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, unsigned *n, void *p) { *n = 0; return 0; }
"""


def stub_library(folder: str) -> str | None:
    """A NVML that answers at once, or None without a C compiler."""
    compiler = next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), None)
    if compiler is None:
        return None
    source, library = os.path.join(folder, "stub.c"), os.path.join(folder, "libnvidia-ml.so.1")
    with open(source, "w") as file:
        file.write(STUB)
    subprocess.run([compiler, "-w", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def section_nvml(quick: bool) -> None:
    ag: Any = importlib.import_module("pyapplegpu")
    calls = ("nvmlDeviceGetName", "nvmlDeviceGetIndex", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage")
    entering = callback_cost()
    with metered(recording("m4-macos27")) as mac:
        dev = device_of(ag)
        ag.nvmlInit()
        mine = {name: Cost(mac, functools.partial(getattr(ag, name), dev), own, 3 if quick else 50, entering) for name in calls}
    with tempfile.TemporaryDirectory() as folder:
        library = stub_library(folder)
        path = found("pynvml")
        if path is None or library is None:
            row(RATIO, "NVML-named calls beside pynvml", NOT_HERE if path is None else "no C compiler")
        else:
            pynvml: Any = importlib.import_module("pynvml")
            pynvml.nvmlLib = ctypes.CDLL(library)
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        for name, cost in mine.items():
            theirs = codes = None
            if path and library:
                call = functools.partial(getattr(pynvml, name), handle)
                theirs = best_ns(call, 300 if quick else 2000, 5) / 1000
                codes = opcodes(call, lambda file: file == path)
            peer = "pynvml over a stub" if theirs else ""
            row(COUNT, "opcodes of " + name, cost.opcodes, "", peer, codes)
            row(TIME, "own time of " + name, cost.best, "µs", peer, theirs)
        if not quick:
            clients(folder, library)


def clients(folder: str, library: str | None) -> None:
    """gpustat and nvitop end to end: over us with a replayed Mac, and over the stub."""
    for name, arguments in (("gpustat", ("-m", "gpustat", "--json")), ("nvitop", ("-m", "nvitop", "--once", "--ascii"))):
        if found(name) is None:
            row(TIME, name + ", end to end", NOT_HERE)
            continue
        base = dict(os.environ, PYTHONDONTWRITEBYTECODE="")
        place = os.pathsep.join([os.path.join(HERE, "nvml_alias"), ROOT] + ([base["PYTHONPATH"]] if base.get("PYTHONPATH") else []))
        ours = run_cpu([sys.executable, *arguments], dict(base, PYTHONPATH=place, PYAPPLEGPU_RECORDING=os.path.join(RECORDINGS, "m4-macos27.json")))
        stub = run_cpu([sys.executable, *arguments], dict(base, LD_LIBRARY_PATH=folder)) if library and sys.platform != "darwin" else None
        row(TIME, name + ", end to end, CPU time (ours reads a recording first)", ours, "ms", "over a stub NVML" if stub else "", stub)


def run_cpu(command: list[str], env: dict[str, str] | None = None, rounds: int = 2) -> float | str:
    """CPU ms of a command and its children, the better of some runs; a text when it fails."""
    if sys.platform == "win32":
        return "not on Windows"
    import resource
    took = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            return "fails: " + (done.stderr.strip().splitlines() or ["exit %d" % done.returncode])[-1][:60]
        took.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3)
    return min(took)


# ---- a loop

def section_loop(quick: bool) -> None:
    ag: Any = importlib.import_module("pyapplegpu")
    parts = ("gpu", "memory", "power", "clocks", "temperature", "ane", "cpu", "processes")
    with metered(recording("m1-macos11"), allow=()) as mac:
        started = resident()
        dev = device_of(ag)
        marks: dict[int, tuple[int, float]] = {}
        turns, checks = (120, (20, 120)) if quick else (10000, (100, 1000, 10000))
        entering, spent, called, began_all = callback_cost(), 0, 0, time.monotonic()
        for turn in range(1, turns + 1):
            mac.advance()
            inside, before, began = mac.inside, natives(mac), now()
            if turn <= 1000:
                ag.DeviceGetSnapshot(dev, parts=parts, timeout=0)
            else:
                ag.DeviceGetEngineUtilization(dev), ag.MemoryGetUsed(dev), ag.Try(ag.DeviceGetPowerUsage, dev, timeout=0)
            if 100 < turn <= 1000:
                spent += now() - began - (mac.inside - inside)
                called += natives(mac) - before
            if turn % 100 == 0 or turn in checks:
                for graves in (mac.dead, mac.dead_ports, mac.graves, mac.bodies):       # the stand-ins remember what was released
                    graves.clear()
            if turn in checks:
                gc.collect()
                marks[turn] = (sys.getallocatedblocks(), resident() - started)
            if time.monotonic() - began_all > 60:       # on a busy machine, so that all sections end in five minutes
                break
    last = max(marks)
    for turn, (_, memory) in marks.items():
        row(TIME, "memory after %d ticks, stand-ins and recording included" % turn, memory, "MiB")
    first = min(marks)
    growth = (marks[last][0] - marks[first][0]) * 1000 / max(1, last - first)
    row(COUNT, "Python blocks gained per 1,000 ticks after the first %d" % first, round(growth), most=None if quick else 50)
    row(TIME, "memory gained from tick %d to %d" % (first, last), marks[last][1] - marks[first][1], "MiB")
    if not quick:
        row(TIME, "own time of a tick, 8 parts, M1", (spent - called * entering) / 900 / 1000, "µs")


# ---- tools

def section_tools(quick: bool) -> None:
    record = os.path.join(RECORDINGS, "m4-macos27.json")
    base = dict(os.environ, PYTHONDONTWRITEBYTECODE="")
    bare = run_cpu([sys.executable, "-c", "pass"], base)
    row(TIME, "start to end of a bare interpreter, CPU time", bare, "ms")
    commands = [("the command, one snapshot", [LIBRARY, "--recording", record]), ("stat.py", [os.path.join(HERE, "stat.py"), "--recording", record]),
                ("top.py --once", [os.path.join(HERE, "top.py"), "--once", "--recording", record]),
                ("exporter.py --once", [os.path.join(HERE, "exporter.py"), "--once", "--recording", record])]
    for what, arguments in commands[:1] if quick else commands:
        row(TIME, "start to first frame, CPU time: " + what, run_cpu([sys.executable, *arguments], base), "ms")
    if quick:
        return
    if not found("prometheus_client"):
        row(TIME, "a scrape", "prometheus_client " + NOT_HERE)
        return
    exporter = importlib.import_module("exporter")
    ag: Any = importlib.import_module("pyapplegpu")
    device = ag.LibraryOpen(record, speed=0)
    facts = exporter.facts_of(device, ag.DeviceGetSnapshot(device))
    took: list[list[float]] = [[], []]
    for _ in range(30):
        began = now()
        snapshot = ag.DeviceGetSnapshot(device, timeout=0)
        middle = now()
        sampled = exporter.Sampled(snapshot, "", 0.0, time.monotonic())
        text = exporter.render(exporter.families(sampled, facts))[0]
        took[0].append((middle - began) / 1e6)
        took[1].append((now() - middle) / 1e6)
    row(TIME, "a scrape: snapshot from the player", min(took[0]), "ms")
    row(TIME, "a scrape: text of %d bytes" % len(text), min(took[1]), "ms")


# ---- what watching costs, over the player

def section_watching(quick: bool) -> None:
    """Shares of a core at 1 Hz: the live monitor in a terminal, the exporter with one event stream."""
    if sys.platform == "win32":
        return
    missing = [name for name in ("psutil", "textual", "uvicorn", "starlette") if not found(name)]
    if missing:
        row(TIME, "share of a core at 1 Hz", "%s %s" % (", ".join(missing), NOT_HERE))
        return
    import fcntl
    import pty
    import socket
    import struct
    import termios
    record = os.path.join(RECORDINGS, "m4-macos27.json")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 42, 120, 0, 0))
    monitor = subprocess.Popen([sys.executable, os.path.join(HERE, "top.py"), "--recording", record], stdin=theirs, stdout=theirs, stderr=theirs,
                               env=dict(os.environ, TERM="xterm-256color"), start_new_session=True)
    os.close(theirs)
    server = subprocess.Popen([sys.executable, os.path.join(HERE, "exporter.py"), "--no-dashboard", "--port", "0", "--recording", record],
                              stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        port = int(server.stderr.readline().rpartition(":")[2].rstrip("/\n"))
        with socket.create_connection(("127.0.0.1", port)) as stream:
            stream.sendall(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            shares = shares_of((monitor, server), (ours, stream.fileno()), *((1, 1) if quick else (5, 10)))
    finally:
        for process in (monitor, server):
            process.kill()
            process.wait()
        os.close(ours)
    row(TIME, "share of a core at 1 Hz: top.py, 120 x 42", shares[0], "%", most=None if quick else 3)
    row(TIME, "share of a core at 1 Hz: exporter.py with an event stream", shares[1], "%", most=None if quick else 1.5)


def shares_of(processes: Any, readable: tuple[int, ...], settle: float, span: float) -> list[float]:
    """Percent of a core each process takes over `span` seconds, while what they write is read."""
    import select
    psutil: Any = importlib.import_module("psutil")

    def used() -> list[float]:
        return [sum(psutil.Process(process.pid).cpu_times()[:2]) for process in processes]

    def reading(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for one in select.select(readable, [], [], max(0.0, end - time.monotonic()))[0]:
                os.read(one, 1 << 16)
    reading(settle)
    before, began = used(), time.monotonic()
    reading(span)
    took = time.monotonic() - began
    return [100 * (after - was) / took for was, after in zip(before, used())]


RACK = """
import asyncio, sys
sys.path[:0] = sys.argv[1:3]
import exporter
async def rack():
    args = exporter._parser().parse_args(["--recording", sys.argv[3], "--no-dashboard", "--interval", "0", "--port", "0"])
    args.token = args.hosts = None
    serving = []
    for _ in range(int(sys.argv[4])):
        sampler = exporter.Sampler(exporter.open_device(args), args)
        listener = exporter._listen("127.0.0.1", 0)
        serving.append(exporter._server(exporter.application(sampler, args), args, sampler).serve(sockets=[listener]))
        print(listener.getsockname()[1], flush=True)
    await asyncio.gather(*serving)
asyncio.run(rack())
"""


def section_rack(quick: bool) -> None:
    """1 to 100 exporters (in one process: a hundred Macs would not share two cores) under one real Prometheus."""
    missing = [name for name in ("psutil", "uvicorn", "starlette", "prometheus_client") if not found(name)]
    if missing or not shutil.which("prometheus"):
        row(TIME, "exporters under one Prometheus", "%s %s" % (", ".join(missing) or "prometheus", NOT_HERE))
        return
    done = {count: under_prometheus(count, 5 if count > 10 else 0.5, 1 if quick else 5 if count > 10 else 6) for count in ((2,) if quick else (1, 10, 100))}
    hosts = "%s exporters under one Prometheus" % ", ".join(map(str, done))
    row(COUNT, hosts + ": samples of a scrape", " / ".join("%d" % one["samples"] for one in done.values()))
    if not quick:
        row(RATIO, "CPU time of the exporter for a scrape, 100 under one Prometheus / 1", done[100]["exporter"] / max(0.1, done[1]["exporter"]), "x")
    row(TIME, hosts + ": CPU time of the exporter for a scrape", " / ".join("%.1f" % one["exporter"] for one in done.values()), "ms")
    row(TIME, hosts + ": CPU time of Prometheus for a scrape", " / ".join("%.1f" % one["prometheus"] for one in done.values()), "ms")
    row(TIME, hosts + ": a scrape, start to end", " / ".join("%.0f" % one["duration"] for one in done.values()), "ms")


def under_prometheus(count: int, every: float, span: float) -> dict[str, float]:
    """What a scrape costs each side, in ms, once all are up."""
    import socket
    import urllib.parse
    import urllib.request
    psutil: Any = importlib.import_module("psutil")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    rack = subprocess.Popen([sys.executable, "-c", RACK, ROOT, HERE, os.path.join(RECORDINGS, "m4-macos27.json"), str(count)],
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert rack.stdout is not None
    targets = ["127.0.0.1:" + rack.stdout.readline().strip() for _ in range(count)]

    def ask(query: str) -> float:
        try:
            where = "http://127.0.0.1:%d/api/v1/query?query=" % port + urllib.parse.quote(query)
            with urllib.request.urlopen(where, timeout=10) as answer:
                return float(json.loads(answer.read())["data"]["result"][0]["value"][1])
        except (OSError, ValueError, IndexError):
            return 0.0

    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "prometheus.yml"), "w") as file:
            json.dump({"global": {"scrape_interval": "%dms" % (1000 * every), "scrape_timeout": "%dms" % (1000 * every)},
                       "scrape_configs": [{"job_name": "rack", "static_configs": [{"targets": targets}]}]}, file)
        keeper = subprocess.Popen(["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.listen-address=127.0.0.1:%d" % port],
                                  cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 60
            while ask("sum(up)") < count:
                if time.monotonic() > end:
                    raise RuntimeError("only %d of %d exporters are up" % (ask("sum(up)"), count))
                time.sleep(0.5)
            before = [sum(psutil.Process(process.pid).cpu_times()[:2]) for process in (rack, keeper)]
            time.sleep(span)
            used = [sum(psutil.Process(process.pid).cpu_times()[:2]) for process in (rack, keeper)]
            scrapes = count * span / every
            return {"exporter": 1e3 * (used[0] - before[0]) / scrapes, "prometheus": 1e3 * (used[1] - before[1]) / scrapes,
                    "duration": 1e3 * ask("avg(scrape_duration_seconds)"), "samples": ask("avg(scrape_samples_scraped)")}
        finally:
            for process in (rack, keeper):
                process.kill()
                process.wait()


# ---- Metal

def section_metal(quick: bool) -> None:
    if sys.platform != "darwin" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        row(COUNT, "Metal", "no C compiler for the stand-in")
        return
    fake = None
    if sys.platform != "darwin":
        fake = importlib.import_module("fakeobjc").install()
    ag: Any = importlib.import_module("pyapplegpu")
    metal_sends(ag, quick)
    metal_dispatch(ag, fake, quick)
    if fake:
        ag._disarm()


def raw_send(ag: Any, receiver: Any, selector: str, result: Any, *kinds: Any) -> Any:
    """objc_msgSend with a complete prototype and a ready selector: the least that ctypes can do."""
    library = ctypes.CDLL("/usr/lib/libobjc.A.dylib")
    register = library["sel_registerName"]
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    send = library["objc_msgSend"]
    send.restype, send.argtypes = result, [ctypes.c_void_p, ctypes.c_void_p, *kinds]
    return send, receiver._pointer, register(selector.encode())


def metal_sends(ag: Any, quick: bool) -> None:
    loops, rounds = (30, 3) if quick else (300, 200)
    device, queue = ag.MetalDevice(), ag.MetalQueue()
    buffer = ag.MetalBuffer(4096)

    class Range(ctypes.Structure):
        _fields_ = [("location", ctypes.c_uint64), ("length", ctypes.c_uint64)]
    with ag.MetalPool():
        utf8 = raw_send(ag, buffer, "UTF8String", ctypes.c_char_p)
        named, pointer_, selector_ = raw_send(ag, device, "name", ctypes.c_void_p)

        def raw_text(*_: Any) -> str:
            text = utf8[0](named(pointer_, selector_), utf8[2])
            return str(text.decode())
        library, text_class = ctypes.CDLL("/usr/lib/libobjc.A.dylib"), ag.MetalClass("NSString")
        retain, release = library["objc_retain"], library["objc_release"]
        retain.restype, retain.argtypes, release.restype, release.argtypes = ctypes.c_void_p, [ctypes.c_void_p], None, [ctypes.c_void_p]
        alloc = raw_send(ag, text_class, "alloc", ctypes.c_void_p)
        init = raw_send(ag, text_class, "initWithBytes:length:encoding:", ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64)
        set_label = raw_send(ag, buffer, "setLabel:", None, ctypes.c_void_p)
        command = raw_send(ag, queue, "commandBuffer", ctypes.c_void_p)

        def raw_label(*_: Any) -> None:
            data = LABEL.encode()
            made = init[0](alloc[0](alloc[1], alloc[2]), init[2], data, len(data), 4)
            set_label[0](set_label[1], set_label[2], made)
            release(made)

        def raw_object(*_: Any) -> None:
            made = command[0](command[1], command[2])
            retain(made)
            release(made)
        ready = raw_send(ag, buffer, "length", ctypes.c_uint64)
        kinds = [       # statements as one writes them, so that neither side pays for a wrapper of this file
            ("scalar result", 2, "buffer.length()", ready, ""),
            ("void, struct argument", 2, "buffer.didModifyRange_(pair)", raw_send(ag, buffer, "didModifyRange:", None, Range), ", span"),
            ("wrapped result", 2, "buffer.device()", raw_send(ag, buffer, "device", ctypes.c_void_p), ""),
            ("scalar argument", 2, "device.supportsFamily_(1007)", raw_send(ag, device, "supportsFamily:", ctypes.c_bool, ctypes.c_int64), ", 1007"),
            ("string result (raw: send, UTF8String, decode)", 3, "device.name()", (raw_text, 0, 0), ""),
            ("string argument (raw: encode, alloc, init, send, release)", 3, "buffer.setLabel_(label)", (raw_label, 0, 0), ""),
            ("new object (raw: send, retain, release)", 3, "queue.commandBuffer()", (raw_object, 0, 0), ""),
        ]
        for what, most, mine, (send, pointer, selector), arguments in kinds:
            names = {"buffer": buffer, "device": device, "queue": queue, "label": LABEL, "pair": (0, 16), "span": Range(0, 16), "send": send, "p": pointer, "s": selector}
            timers = timeit.Timer(mine, globals=names), timeit.Timer("send(p, s%s)" % arguments, globals=names)
            pair: list[list[float]] = [[], []]
            for _ in range(rounds):         # alternating: both meet the same neighbours
                for taken, timer in zip(pair, timers):
                    taken.append(timer.timeit(loops) / loops * 1e9)
            row(RATIO, "Metal send / raw ctypes call: " + what, min(pair[0]) / min(pair[1]), "x", most=most)
            row(TIME, "Metal send: " + what, min(pair[0]), "ns", "raw ctypes", min(pair[1]))


LABEL = "a label too long to be a tagged pointer"


ADD = """#include <metal_stdlib>
using namespace metal;
kernel void add(device const float *a [[buffer(0)]], device const float *b [[buffer(1)]], device float *c [[buffer(2)]],
                uint i [[thread_position_in_grid]]) { c[i] = a[i] + b[i]; }
"""


def metal_dispatch(ag: Any, fake: Any, quick: bool) -> None:
    try:
        kernel = ag.MetalKernel(ADD, "add")
    except ag.AppleGPUError as problem:
        row(COUNT, "sends of a compute dispatch", "no kernel: " + str(problem)[:50])
        return
    a, b, c, queue = ag.MetalBuffer(256), ag.MetalBuffer(256), ag.MetalBuffer(256), ag.MetalQueue()
    took = []
    for _ in range(10 if quick else 200):
        before, began = fake.counts()["sends"] if fake else 0, now()
        work = ag.MetalBegin(queue)
        ag.MetalEncodeDispatch(work, kernel, 64, a, b, c)
        ag.MetalCommit(work)
        took.append((now() - began) / 1000)
        sent = fake.counts()["sends"] - before if fake else 0
        ag.MetalWait(work)
    if fake:
        row(COUNT, "sends to encode and commit one compute dispatch", sent, most=12)
    row(TIME, "encode and commit one compute dispatch", min(took), "µs")
    metal_launch(ag, quick, kernel, (a, b, c), queue)


def raw_launch(ag: Any, kernel: Any, buffers: Any, queue: Any) -> Any:
    """The sends of MetalCommit for one dispatch, with plain pointers and ready structs; returns the command buffer."""
    class Size(ctypes.Structure):
        _fields_ = [("width", ctypes.c_uint64), ("height", ctypes.c_uint64), ("depth", ctypes.c_uint64)]
    word, size = ctypes.c_void_p, ctypes.c_uint64
    library = ctypes.CDLL("/usr/lib/libobjc.A.dylib")
    push, pop, retain = library["objc_autoreleasePoolPush"], library["objc_autoreleasePoolPop"], library["objc_retain"]
    push.restype, retain.restype, pop.restype, push.argtypes, pop.argtypes, retain.argtypes = word, word, None, [], [word], [word]
    rows_ = ("commandBuffer", word), ("computeCommandEncoder", word), ("setComputePipelineState:", None, word), \
        ("setBuffer:offset:atIndex:", None, word, size, size), ("dispatchThreads:threadsPerThreadgroup:", None, Size, Size), \
        ("endEncoding", None), ("commit", None)
    (begin, _, begin_), (encode, _, encode_), (pipeline, _, pipeline_), (bind, _, bind_), (run, _, run_), (end, _, end_), (commit, _, commit_) = [
        raw_send(ag, queue, *one) for one in rows_]
    pointers, grid = [one._pointer for one in (queue, kernel, *buffers)], Size(64, 1, 1)

    def launch() -> int:
        token = push()
        try:
            command = begin(pointers[0], begin_)
            retain(command)
            encoder = encode(command, encode_)
            pipeline(encoder, pipeline_, pointers[1])
            bind(encoder, bind_, pointers[2], 0, 0)
            bind(encoder, bind_, pointers[3], 0, 1)
            bind(encoder, bind_, pointers[4], 0, 2)
            run(encoder, run_, grid, grid)
            end(encoder, end_)
            commit(command, commit_)
        finally:
            pop(token)
        return int(command)
    return launch


def metal_launch(ag: Any, quick: bool, kernel: Any, buffers: Any, queue: Any) -> None:
    """The library's own launch path: a recorded work is committed, in turn with the same sends made raw."""
    launch, taken = raw_launch(ag, kernel, buffers, queue), ([], [])        # type: tuple[list[int], list[int]]
    for _ in range(30 if quick else 2000):
        began = now()
        command = launch()
        taken[1].append(now() - began)
        ag.MetalWrap(command, owned=True).waitUntilCompleted()
        work = ag.MetalBegin(queue)
        ag.MetalEncodeDispatch(work, kernel, 64, *buffers)
        began = now()
        ag.MetalCommit(work)
        taken[0].append(now() - began)
        ag.MetalWait(work)
    ours, raw = [sorted(one)[len(one) // 2] for one in taken]       # the middle: a queue's thread wakes up beside both
    row(RATIO, "MetalCommit of one dispatch / the same sends raw", ours / raw, "x", most=1.3)
    row(TIME, "MetalCommit of one dispatch", ours / 1000, "µs", "raw ctypes", raw / 1000)


# ---- growth

def padded(listed: int) -> Any:
    """The M4 with so many channels listed in Energy Model, of which nobody wants the new ones."""
    data = recording("m4-macos27")
    channels = data["ioreport"]["channels"]
    model = next(channel for channel in channels if channel["group"] == "Energy Model" and channel["name"])
    have = sum(channel["group"] in ("Energy Model", "GPU Stats") for channel in channels)
    for number in range(max(0, listed - have)):
        channels.append(dict(model, name="ZZZ%d" % number, channel="0x%x" % (0x5a00000000000000 + number)))
    return data


def crowded(clients: int) -> Any:
    """The M4 with so many AGX user clients."""
    data = recording("m4-macos27")
    entries = data["registry"]
    users = [entry for entry in entries if "UserClient" in entry["class"]]
    for number in range(max(0, clients - len(users))):
        entries.append(dict(users[number % len(users)], id=0x200000000 + number))
    return data


def section_growth(quick: bool) -> None:
    ag: Any = importlib.import_module("pyapplegpu")
    entering, turns = callback_cost(), 3 if quick else 15
    counts, times = {}, {}
    for listed in (97, 1500) if quick else (97, 364, 1500):
        with metered(padded(listed)) as mac:
            dev = device_of(ag)
            cost = Cost(mac, functools.partial(ag.Try, ag.DeviceGetPowerUsage, dev, timeout=0), own, turns, entering)
            counts[listed], times[listed] = cost.calls, cost.us
        forget(ag)
    row(COUNT, "native calls of a power reading: " + ", ".join("%d listed" % n for n in counts), " / ".join(map(str, counts.values())))
    row(COUNT, "calls gained by a power reading from 97 to 1,500 listed channels", counts[1500] - counts[97], most=0)
    row(TIME, "own time of a power reading: " + ", ".join("%d listed" % n for n in times), " / ".join("%.0f" % t for t in times.values()), "µs")
    lots = {}
    for clients in (24, 200) if quick else (24, 1000):
        with metered(crowded(clients)) as mac:
            dev = device_of(ag)
            lots[clients] = Cost(mac, functools.partial(ag.DeviceGetSnapshot, dev, parts=("processes",), timeout=0), own, 3, entering)
        forget(ag)
    most = max(lots)
    row(COUNT, "native calls of the process list: 24, %d AGX clients" % most, " / ".join(str(cost.calls) for cost in lots.values()))
    row(TIME, "own time of the process list: 24, %d AGX clients" % most, " / ".join("%.0f" % cost.us for cost in lots.values()), "µs")
    with metered(recording("m4-macos27")) as mac:
        dev = device_of(ag)

        def work() -> int:
            mac.advance()
            return opcodes(lambda: ag.Try(ag.DeviceGetPowerUsage, dev, timeout=0), own)
        marks = (20, 60) if quick else (20, 100, 500)
        codes = {turn: got for turn in range(1, marks[-1] + 1) if (mac.advance() or True) and (
            got := work() if turn in marks else (ag.Try(ag.DeviceGetPowerUsage, dev, timeout=0), 1)[1])}
    row(COUNT, "opcodes of a power reading after %s samples" % ", ".join(map(str, marks)), " / ".join(str(codes[turn]) for turn in marks))
    forget(ag)


def forget(ag: Any) -> None:
    """The library as in a new process: no handle of another Mac is used or released again."""
    ag._c.forked()
    made = ag._Library()
    made.hooked = ag._library.hooked
    ag._library.__dict__.update(made.__dict__)


def section_memory(quick: bool) -> None:
    """Import and one reading, in a process that has the stand-ins already."""
    code = """
import ctypes, sys, time
sys.path[:0] = sys.argv[1:3]
import bench, fakemac
mac = fakemac.Mac(bench.recording("m4-macos27")); mac.__enter__()
fakemac.library()
before = bench.resident()
import pyapplegpu as ag
ag.LibraryInit(); dev = ag.LibraryInitDeviceByIndex(0)
middle = bench.resident()
ag.DeviceGetPowerUsage(dev); ag.MemoryGetUsed(dev)
print(middle - before, bench.resident() - middle)
"""
    bare = statistics.median(int(child(IMPORT, ROOT, "ctypes", flags=("-S", "-E"))[1]) / 1024 for _ in range(3))
    env = dict(os.environ)
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    took = [[float(part) for part in child(code, ROOT, HERE, env=env)] for _ in range(1 if quick else 5)][-3:]
    reading = statistics.median(one[1] for one in took)
    fresh = statistics.median(int(child(IMPORT, place, "pyapplegpu", flags=("-S", "-E"))[1]) / 1024 for place in [compiled()] * 3)
    row(TIME, "memory of ctypes / of import with ctypes / of one reading", "%.1f / %.1f / %.1f" % (bare, fresh, reading), "MiB")
    row(TIME, "memory over a bare interpreter after import and one reading", fresh + reading, "MiB", most=4)


def compiled() -> str:
    """A folder with a compiled copy of the library; it goes with the process."""
    folder = tempfile.TemporaryDirectory()
    KEEP.append(folder)
    shutil.copy(LIBRARY, folder.name)
    subprocess.run([sys.executable, "-m", "compileall", "-q", folder.name], check=True)
    return folder.name


KEEP: list[Any] = []


# ---- the real frameworks

def section_live(quick: bool) -> None:
    if sys.platform != "darwin":
        return
    ag: Any = importlib.import_module("pyapplegpu")
    dev = device_of(ag)
    for what, operation in (("engine utilisation + memory", lambda: (ag.DeviceGetEngineUtilization(dev), ag.MemoryGetUsed(dev))),
                            ("power reading", lambda: ag.Try(ag.DeviceGetPowerUsage, dev, timeout=0)),
                            ("full snapshot", lambda: ag.DeviceGetSnapshot(dev, timeout=0))):
        operation()
        took: list[tuple[int, int, float]] = []
        for _ in range(3 if quick else 10):
            time.sleep(1)
            began, used, system = now(), cpu(), os.times().system
            operation()
            took.append((now() - began, cpu() - used, os.times().system - system))
        row(TIME, "this Mac, %s: wall / CPU / of that kernel" % what, " / ".join("%.2f" % part for part in (
            statistics.median(t[0] for t in took) / 1e6, statistics.median(t[1] for t in took) / 1e6, sum(t[2] for t in took) / len(took) * 1e3)), "ms")


# ---- the table

SECTIONS: dict[str, Callable[..., Any]] = {
    "import": section_import, "memory": section_memory, "readings": section_readings, "smc": section_smc, "poll": section_poll,
    "nvml": section_nvml, "loop": section_loop, "tools": section_tools, "watching": section_watching, "rack": section_rack, "metal": section_metal,
    "growth": section_growth, "live": section_live}


def again_raw(section: str, quick: bool) -> list[str]:
    """The output of one section in a process of its own."""
    command = [sys.executable, os.path.abspath(__file__), "--section", section] + ["--quick"] * quick
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["exit %d" % done.returncode])[-1])
    return [done.stdout]


def again(section: str, quick: bool) -> list[dict[str, Any]]:
    try:
        return list(json.loads(again_raw(section, quick)[0]))
    except (RuntimeError, ValueError, subprocess.TimeoutExpired) as problem:
        return [{"kind": COUNT, "what": "section " + section.split(":")[0], "ours": "failed: " + str(problem)[:120], "unit": "",
                 "peer": "", "theirs": None, "budget": None, "met": False}]


def one_section(section: str, quick: bool) -> None:
    sys.path[:0] = [ROOT, HERE]
    name, _, argument = section.partition(":")
    if name == "reading":
        section_reading(quick, argument)
    elif name == "first":
        print(json.dumps(section_first(quick, argument)))
        return
    else:
        SECTIONS[name](quick)
    print(json.dumps(rows))


def number(value: Any, unit: str = "") -> str:
    if value is None or isinstance(value, str):
        return (value or "") + (" " + unit if value and unit else "")
    text = "%d" % value if isinstance(value, int) else "%.2f" % value if abs(value) < 100 else "%.0f" % value
    return text + (" " + unit if unit else "")


def budget(one: dict[str, Any]) -> str:
    return "" if one["budget"] is None else "%s %s" % (number(one["budget"]), {True: "met", False: "NOT MET", None: ""}[one["met"]])


def table() -> Iterator[str]:
    for kind, title in ((COUNT, "Counts"), (RATIO, "Ratios"), (TIME, "Times of this machine")):
        yield ""
        yield "| %s | pyapplegpu | peer | at most |" % title
        yield "|---|---:|---|---|"
        for one in rows:
            if one["kind"] == kind:
                peer = "" if one["theirs"] is None else "%s (%s)" % (number(one["theirs"], one["unit"]), one["peer"])
                yield "| %s | %s | %s | %s |" % (one["what"], number(one["ours"], one["unit"]), peer or one["peer"], budget(one))


def machine() -> str:
    system = "%s %s" % (platform.system(), platform.machine())
    if sys.platform == "darwin":
        chip = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        system = "%s, macOS %s" % (chip.stdout.strip(), platform.mac_ver()[0])
    return "%d-core %s, Python %s" % (os.cpu_count() or 0, system, platform.python_version())


def main() -> int:
    parser = argparse.ArgumentParser(description="What pyapplegpu costs, beside its peers.")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.add_argument("--quick", action="store_true", help="counts with few repetitions; times are not worth reading")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these sections")
    parser.add_argument("--path", action="append", default=[], metavar="DIR", help="where peers are installed, beside this Python's own")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        one_section(args.section, args.quick)
        return 0
    if args.path:
        os.environ["PYTHONPATH"] = os.pathsep.join(args.path + [path for path in [os.environ.get("PYTHONPATH")] if path])
    began = time.monotonic()
    for name in args.only or SECTIONS:
        part = time.monotonic()
        rows.extend(again(name, args.quick))
        if not args.json:
            print("%s: %.0f s" % (name, time.monotonic() - part), file=sys.stderr)
    head = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "seconds": round(time.monotonic() - began)}
    if args.json:
        print(json.dumps(dict(head, rows=rows), indent=1))
    else:
        print("\n".join(["%(date)s, %(machine)s, %(seconds)d s" % head, *table()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
