"""The proof: every native function made to fail in every way, ownership, threads, forks, exits, and counted budgets, on a strict Mac."""
from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
EXAMPLES = os.path.join(HERE, "examples")
sys.path[:0] = [HERE, EXAMPLES]

import fakemac  # noqa: E402
import pyapplegpu as ag  # noqa: E402
from fakemac import Mac, Violation  # noqa: E402

RECORDINGS = os.path.join(EXAMPLES, "recordings")
LEVEL = int(os.environ.get("PROOF", "1"))      # 0 = a glance, 1 = all, 2 = longer runs


def recording(name):
    with open(os.path.join(RECORDINGS, name + ".json"), encoding="utf-8") as file:
        return json.load(file)


M4 = recording("m4-macos27")


def forget():
    """The library as in a new process: no handle of another Mac is used or released again."""
    ag._c.forked()
    made = ag._Library()
    made.hooked = ag._library.hooked
    ag._library.__dict__.update(made.__dict__)


@contextlib.contextmanager
def mac(data=M4, **options):
    """A Mac with a library that has seen no other."""
    forget()
    with Mac(data, **options) as made:
        try:
            yield made
        finally:
            made.live_at_end = made.live()
            forget()


def device():
    ag.LibraryInit()
    return ag.LibraryInitDeviceByIndex(0)


def figures(data):
    """Every function with the arguments of the recording's expectations."""
    return list(dict.fromkeys((case["call"], tuple(case["args"])) for case in data["expected"]))


def ask(call, arguments, dev):
    if call.startswith("native:"):
        return NATIVE[call](ag._library.live)
    return getattr(ag, call)(*([] if call.startswith(("System", "Library")) else [dev]), *arguments)


# What no flat function asks on every Mac, straight from the sources.
NATIVE = {
    "native:pids": lambda machine: machine.libproc.pids(),
    "native:hid": lambda machine: machine.hid.temperatures(),
    "native:path": lambda machine: machine.libproc.path(machine.libproc.pids()[0]),
    "native:timebase": lambda machine: machine.mach.timebase(),
}
EXTRA = [(name, ()) for name in NATIVE] + [("LibraryDiagnose", ()), ("DeviceGetSnapshot", ())]


def outcome(call, arguments, dev):
    """("value", value) or ("error", class, reason, source, text) or what must not happen."""
    try:
        return ("value", ask(call, arguments, dev))
    except ag.AppleGPUError as error:
        return ("error", type(error).__name__.rpartition("_")[2], error.reason, error.source, str(error))
    except Violation as violation:
        return ("violation", str(violation))
    except Exception:
        return ("bug", traceback.format_exc())


# ---- `expected` of every recording, over the player and over the C ABI ----

def same(want, got, tolerance):
    if isinstance(want, (list, tuple)):
        return isinstance(got, (list, tuple)) and len(want) == len(got) and all(map(same, want, got, [tolerance] * len(want)))
    if isinstance(want, dict):
        return isinstance(got, dict) and want.keys() == got.keys() and all(same(want[k], got[k], tolerance) for k in want)
    if isinstance(want, float) and isinstance(got, (int, float)):
        return abs(want - got) <= tolerance * max(1e-12, abs(want))
    return type(want) is type(got) and want == got


def as_expected(case, got):
    if "error" in case:
        return got[:3] == ("error", case["error"], case["reason"])
    if got[0] != "value":
        return False
    return bool(re.search(case["matches"], str(got[1]))) if "matches" in case else same(case["value"], got[1], case.get("tolerance", 1e-3))


NAMES = sorted(name[:-5] for name in os.listdir(RECORDINGS) if name.endswith(".json"))


@pytest.mark.parametrize("name", NAMES)
def test_expected_over_the_stand_ins(name):
    data, wrong = recording(name), []
    for case in data.get("expected", ()):
        with mac(data) as made:
            got = outcome(case["call"], tuple(case["args"]), device())
        if not as_expected(case, got):
            wrong.append((case["call"], case["args"], case.get("value", case.get("reason")), got))
        assert not [entry for entry in made.live_at_end if "autorelease" in entry.kind or "vm block" in entry.kind]
    assert wrong == []


@pytest.mark.parametrize("name", NAMES)
def test_player_and_stand_ins_agree(name):
    """The same calls in the same order: what the player answers, the ctypes code answers over C."""
    data = recording(name)
    with mac(data):
        dev = device()
        over_c = {case: outcome(*case, dev)[:3] for case in figures(data)}
    ag.LibraryInit(recording=os.path.join(RECORDINGS, name + ".json"), speed=0)
    dev = ag.LibraryInitDeviceByIndex(0)
    clock = ag._library.engine.machine.clock
    clock.step = lambda: None      # a Mac's clock does not step by itself
    played = {case: outcome(*case, dev)[:3] for case in figures(data)}
    forget()
    assert [(case, played[case], over_c[case]) for case in played if not same(list(played[case]), list(over_c[case]), 1e-6)] == []


# ---- 1. all native functions x all faults ----

STAGES = {      # where a function is needed: (recording, what is wrong already)
    "as recorded": (M4, ()),
    "no SMC": (dict(M4, smc=None), ()),
    "unknown record layout": (M4, ("IOReportCreateSamples=newlayout",)),
    "Metal lists nothing": (M4, ("MTLCopyAllDevices=short",)),
    "no property lists": (M4, ("CFPropertyListCreateData=null",)),
}
# Served by the Objective-C runtime stand-in and proven there; or never called in a healthy process.
ELSEWHERE = {"sel_getName", "objc_getProtocol", "class_getName", "class_getSuperclass", "class_isMetaClass", "class_getInstanceMethod",
             "class_copyMethodList", "class_copyProtocolList", "method_getName", "method_getTypeEncoding", "_protocol_getMethodTypeEncoding",
             "free", "_Block_copy", "_Block_release", "objc_getClass", "objc_retain", "object_getClass"}
ON_ERRORS_ONLY = {"IOServiceClose", "notify_cancel", "IOIteratorReset"}      # called when something else fails: tested below
HISTOGRAMS = {"IOReportHistogramGetBucketCount", "IOReportHistogramGetBucketHits"}
SYMBOLS = sorted(set(ag._PROTOTYPES) | {"objc_msgSend"} - ELSEWHERE)
SYMBOLS = [symbol for symbol in SYMBOLS if symbol not in ELSEWHERE | ON_ERRORS_ONLY | HISTOGRAMS]
# A failing release leaves what it was to release; that is the fault's own leak.
RELEASES = {"IOObjectRelease", "vm_deallocate", "IOServiceClose"}
# One odd answer stays for good, by decision: no such group; refused; a table or name read once.
LATCHED = {"IOReportCopyChannelsInGroup", "IOReportCreateSubscription", "CFDictionaryGetValue", "CFArrayGetCount", "CFArrayGetValueAtIndex",
           "IORegistryEntryCreateCFProperty", "objc_msgSend", "CFDataGetLength", "CFStringGetLength", "sysctlbyname", "host_processor_info",
           "IOReportCreateSamples", "IOServiceGetMatchingServices", "IORegistryEntryGetChildIterator", "IOIteratorNext"}
ERRORS = {      # (function, code) -> (class, reason) that must be among the errors it causes
    ("IOServiceOpen", 0xE00002E2): ("NoPermission", "sandbox"), ("IOServiceOpen", 0xE00002C1): ("NoPermission", "permission"),
    ("IOServiceOpen", 0xE00002C7): ("NotSupported", "macos"), ("IOServiceOpen", 0xE00002BC): ("OperatingSystem", "source_failed"),
    ("IOConnectCallStructMethod", 0xE00002C1): ("NoPermission", "permission"), ("IOConnectCallStructMethod", 0xE00002BC): ("OperatingSystem", "source_failed"),
    ("sysctlbyname", 1): ("NoPermission", "sandbox"), ("sysctlbyname", 5): ("OperatingSystem", "source_failed"),
    ("proc_pidinfo", 1): ("NoPermission", "permission"), ("proc_pidinfo", 3): ("NotFound", "absent"), ("proc_pidinfo", 5): ("OperatingSystem", "source_failed"),
    ("proc_pid_rusage", 1): ("NoPermission", "permission"), ("proc_pid_rusage", 3): ("NotFound", "absent"),
    ("proc_listallpids", 1): ("NoPermission", "sandbox"), ("proc_listallpids", 12): ("OperatingSystem", "source_failed"),
    ("host_statistics64", 5): ("OperatingSystem", "source_failed"), ("host_processor_info", 5): ("OperatingSystem", "source_failed"),
    ("host_page_size", 5): ("OperatingSystem", "source_failed"), ("mach_timebase_info", 5): ("OperatingSystem", "source_failed"),
    ("notify_get_state", 7): ("OperatingSystem", "source_failed"), ("notify_register_check", 1): ("OperatingSystem", "source_failed"),
    ("IORegistryEntryGetRegistryEntryID", 0xE00002BC): ("OperatingSystem", "source_failed"),
    ("IORegistryEntryGetChildIterator", 0xE00002E2): ("NoPermission", "sandbox"),
}
_baselines = {}
_ran = {"cases": 0, "answers": 0}


def tour(data, passes, calls, faults=()):
    """Every figure, several times, with time passing in between: outcomes, belongings after each pass, the Mac."""
    outcomes, belongings = [], []
    with mac(data, faults=faults) as made:
        try:
            dev = device()
        except ag.AppleGPUError as error:
            return [{("LibraryInit", ()): ("error", type(error).__name__.rpartition("_")[2], error.reason, error.source, str(error))}], [], made
        for _ in range(passes):
            outcomes.append({case: outcome(*case, dev) for case in calls})
            gc.collect()
            belongings.append(made.live())
            made.advance(8)
        hidden = [text for text in made.violations]
        made.violations.clear()      # they are judged here
    assert not hidden, hidden[0]
    return outcomes, belongings, made


def baseline(stage):
    if stage not in _baselines:
        data, wrong = STAGES[stage]
        calls = figures(M4) + EXTRA
        outcomes, belongings, made = tour(data, 3, calls, wrong)
        assert belongings[1] == belongings[2], stage
        uses = {}
        for case in calls:
            with mac(data, faults=wrong) as alone:
                outcome(*case, device())
            uses[case] = set(alone.calls)
        _baselines[stage] = outcomes, made.calls, uses
    return _baselines[stage]


def stage_of(symbol):
    return next((stage for stage in STAGES if symbol in baseline(stage)[1]), None)


def faults_of(symbol):
    kinds = list(fakemac.fault_kinds(symbol))
    kinds += ["error:%#x" % code for name, code in ERRORS if name == symbol]
    return ["%s=%s%s" % (symbol, kind, when) for kind in kinds for when in (("", "@1", "@4") if LEVEL else ("", "@1"))] + ["symbol:%s=absent" % symbol]


def false_zero(before, now):
    """A number that is 0 where no pass of the healthy Mac gave 0."""
    if isinstance(now, bool) or not isinstance(now, (int, float)):
        return False
    return now == 0 and all(isinstance(value, (int, float)) and value != 0 for value in before)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_faults(symbol):
    stage = stage_of(symbol)
    assert stage is not None, "no stage calls it"
    data, wrong = STAGES[stage]
    healthy, _, uses = baseline(stage)
    problems = []
    for fault in faults_of(symbol):
        outcomes, belongings, made = tour(data, 3, figures(M4) + EXTRA, (fault,) + wrong)
        _ran["cases"] += 1
        tested = next(one for one in made.fault_list if one.text == fault)
        assert tested.seen or tested.scope == "symbol", fault
        errors = set()
        for turn, answers in enumerate(outcomes):
            for case, got in answers.items():
                _ran["answers"] += 1
                was = [one.get(case, ("none",)) for one in healthy]
                if got[0] in ("violation", "bug"):
                    problems.append((fault, case, got))
                elif got[0] == "error":
                    errors.add((got[1], got[2]))
                    if got[1] not in ("NotFound", "InvalidArgument", "LibraryNotFound") and not got[2]:
                        problems.append((fault, case, "no reason", got))
                    if was[0][0] == "value" and symbol not in uses[case] and not symbol.startswith(("IOServiceClose",)):
                        problems.append((fault, case, "fails though it does not need it", got))
                    if turn == 2 and "@" in fault and was[2][0] == "value" and symbol not in LATCHED:
                        problems.append((fault, case, "stays broken after one failure", got))
                elif got[0] == "value" and false_zero([one[1] for one in was if one[0] == "value"], got[1]) \
                        and symbol not in IMPOSSIBLE and not fault.startswith("IORegistryEntryCreateCFProperty=short"):
                    problems.append((fault, case, "a zero that was not measured", got))
        if belongings and belongings[1] != belongings[2] and symbol not in RELEASES:
            problems.append((fault, "leaks", [entry for entry in belongings[2] if entry not in belongings[1]]))
        code = re.search(r"error:(\w+)$", fault)
        if code and (symbol, int(code[1], 0)) in ERRORS and ERRORS[symbol, int(code[1], 0)] not in errors:
            problems.append((fault, "wrong reason", errors))
    assert problems == [], "\n".join(str(problem)[:600] for problem in problems[:10])


# (A list cut to nothing by IORegistryEntryCreateCFProperty=short is an empty list: a client that used the GPU for 0 ns.)
# Nonsense that Apple's code cannot answer (a count below zero in a live array): typed errors and no leak are asked of it, no more.
IMPOSSIBLE = {"CFArrayGetCount", "CFArrayGetValueAtIndex", "CFDictionaryGetCount", "CFStringGetLength", "CFDataGetLength", "CFDictionaryGetValue"}


@pytest.mark.parametrize("library", sorted({row[0].rstrip("!") for row in ag._PROTOTYPES.values()} | {"CoreGraphics"}))
def test_a_library_absent(library):
    calls = figures(M4) + EXTRA
    outcomes, belongings, made = tour(M4, 3, calls, ("library:%s=absent" % library,))
    healthy, _, uses = baseline("as recorded")
    own = {symbol for symbol, row in ag._PROTOTYPES.items() if row[0].rstrip("!") == library}
    if library in ("objc", "CoreGraphics"):
        own |= {"objc_msgSend", "MTLCopyAllDevices"}
    if library == "System":
        own |= {"IOServiceOpen"}      # mach_task_self_ is data of libSystem
    for case, got in outcomes[0].items():
        assert got[0] in ("value", "error"), (case, got)
        if got[0] == "error" and case in uses and healthy[0][case][0] == "value":
            assert uses[case] & own, (case, got)
            assert got[1] in ("NotSupported", "NotReady", "NoData"), (case, got)
    assert not belongings or belongings[1] == belongings[2]


@pytest.mark.parametrize("group", ["Energy Model", "GPU Stats", "CPU Stats", "PMP0", "AMC Stats"])
@pytest.mark.parametrize("how", ["refuses", "absent"])
def test_a_group_refused_or_absent(group, how):
    outcomes, belongings, _ = tour(M4, 3, figures(M4) + EXTRA, ("group:%s=%s" % (group, how),))
    healthy, _, uses = baseline("as recorded")
    for case, got in outcomes[2].items():
        assert got[0] in ("value", "error"), (case, got)
        if got[0] == "error" and healthy[2][case][0] == "value":
            assert "IOReportCopyChannelsInGroup" in uses[case] and got[1] in ("NotSupported", "NotReady", "NoData") and got[2], (case, got)
    assert belongings[1] == belongings[2]


@pytest.mark.parametrize("first", [      # what makes the library call what is only called on errors
    ("notify_get_state=error", "notify_cancel"), ("notify_get_state=error@1", "notify_cancel"),
    ("IOIteratorIsValid=null@1", "IOIteratorReset"), ("IOIteratorIsValid=null@2", "IOIteratorReset"), ("IOIteratorIsValid=null", "IOIteratorReset"),
    ("IOConnectCallStructMethod=error:0x10000003@1", "IOServiceClose"), ("IOConnectCallStructMethod=error:0x10000003", "IOServiceClose")])
@pytest.mark.parametrize("second", ["", "=error", "absent"])
def test_functions_called_on_errors_only(first, second):
    fault, symbol = first
    if second == "=error" and "error" not in fakemac.fault_kinds(symbol):
        return
    faults = (fault,) + ((symbol + second,) if second == "=error" else ("symbol:%s=absent" % symbol,) if second else ())
    outcomes, belongings, made = tour(M4, 3, figures(M4) + EXTRA, faults)
    assert second == "absent" or made.calls[symbol], "it was not called"
    for answers in outcomes:
        assert not [got for got in answers.values() if got[0] not in ("value", "error")]
    if not second:
        assert not belongings or belongings[1] == belongings[2]
        if "@" in fault:
            assert [case for case, got in outcomes[2].items() if got[0] == "error" and baseline("as recorded")[0][2][case][0] == "value"] == []


@pytest.mark.parametrize("layout", ["", "IOReportCreateSamples=newlayout"])
def test_histogram_channels(layout):
    """No flat function needs a histogram channel; the recorder does. By raw records, and by the accessors."""
    data = recording("m1-macos11")
    with mac(data, faults=(layout,) if layout else ()) as made:
        ag.LibraryInit()
        subscription = ag._library.live.ioreport.subscribe((("GPU Stats", None),), lambda *channel: True)
        formats = [channel.format for channel in subscription.channels]
        rows = subscription.sample()
        theirs = {(channel.driver, channel.id): made.replay.row(channel, 0) for channel in made.replay.channels}
        for mine, got in zip(subscription.channels, rows):
            if mine.format == 3 and got is not None and (mine.driver, mine.channel) in theirs:
                assert tuple(got[1]) == theirs[mine.driver, mine.channel][1]
    assert 3 not in formats or not layout or made.calls["IOReportHistogramGetBucketHits"]


def test_zz_how_many_cases_ran(capsys):
    with capsys.disabled():
        print("\n%d faults of %d functions, %d answers judged; %d functions proven with the Objective-C runtime, %d called on errors only"
              % (_ran["cases"], len(SYMBOLS), _ran["answers"], len(ELSEWHERE & set(ag._PROTOTYPES)), len(ON_ERRORS_ONLY)))


# ---- 4. the prototype table against an independent list of signatures ----

OWNED = {"C": "+1", "O": "+1", "E": "+1"}
LETTER = {"C": "p", "O": "p", "E": "I", "M": "p", "s": "p"}
PORTS = {"IOIteratorNext", "IOServiceGetMatchingService", "mach_host_self"}


@pytest.mark.parametrize("symbol", sorted(set(ag._PROTOTYPES) & set(fakemac.SYMBOLS)))
def test_prototypes(symbol):
    """Written from Apple's headers for the stand-ins, from the facts for the library: width, sign, owner, library."""
    library, result, arguments, since = ag._PROTOTYPES[symbol]
    theirs = fakemac.SYMBOLS[symbol]
    letters = theirs.c.split()
    assert LETTER.get(result, result) in letters[0].split("/")
    assert len(arguments) == len(letters) - 1
    assert all(LETTER.get(mine, mine) in other.split("/") for mine, other in zip(arguments, letters[1:]))
    assert (result in "COE") == (theirs.own == "+1" or symbol in PORTS - {"mach_host_self"}), "owner of the result"
    assert [place for place, letter in enumerate(arguments) if letter == "M"] == ([] if theirs.consumes is None else [theirs.consumes])
    assert library.rstrip("!") in {"CoreFoundation", "IOKit", "IOReport", "System", "Metal", "objc"}
    assert 10 <= since <= 27


# ---- 2. leaks ----

def steady(made, turns, one):
    """Runs one() until nothing new appears, then counts what `turns` more leave behind: (objects, Python objects, bytes)."""
    for _ in range(60):
        one()
    gc.collect()
    live, objects, memory = made.live(), len(gc.get_objects()), resident()
    for _ in range(turns):
        one()
    gc.collect()
    return [entry for entry in made.live() if entry not in live], len(gc.get_objects()) - objects, resident() - memory


def resident():
    if not os.path.exists("/proc/self/statm"):
        return 0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_ten_thousand_samples():
    turns = (500, 10000, 50000)[LEVEL]
    with mac() as made:
        dev = device()

        def one():
            made.advance()
            snapshot = ag.DeviceGetSnapshot(dev, parts=("gpu", "memory", "power", "clocks", "temperature", "ane", "cpu", "processes"), timeout=0)
            assert snapshot.memory_total_bytes
            outcome("MemoryGetLimit", (), dev), ag.Try(ag.DeviceGetPowerUsage, dev, timeout=0)
        objects, pythons, memory = steady(made, turns, one)
    assert objects == [] and pythons < 300 and memory < 6 << 20, (objects, pythons, memory)
    assert made.calls["IOReportCreateSubscription"] <= 3 and made.calls["IOServiceOpen"] == 1 and made.calls["IOHIDEventSystemClientCreate"] <= 1


FLIPS = [(symbol, "result") for symbol, row in ag._PROTOTYPES.items() if symbol in fakemac.SYMBOLS and (row[1] in "COE" or row[1] == "p")]
FLIPS += [(symbol, "argument") for symbol, row in ag._PROTOTYPES.items() if "M" in row[2]]


def flipped(symbol, where):
    library, result, arguments, since = ag._PROTOTYPES[symbol]
    if where == "argument":
        return library, result, arguments.replace("M", "p"), since
    return library, {"C": "p", "O": "p", "E": "I", "p": "C"}[result], arguments, since


def ownership_tour(data, wrong):
    """Two passes of everything, one interrupted call of each maker, engines made and dropped: what is owned then, or the violation."""
    forget()
    try:
        with Mac(data, faults=wrong) as made:
            dev = device()
            for _ in range(2):
                for case in figures(M4) + EXTRA:
                    with contextlib.suppress(ag.AppleGPUError):
                        ask(*case, dev)
                made.advance(8)
            gc.collect()
            live = made.live()
            if made.violations:
                return "violation"
            ag._library.engine = ag._library.opened = dev = None
            gc.collect()
            return live, made.live()
    except Violation:
        return "violation"
    except Exception as problem:      # a wrong type in the table may also simply not work
        return repr(problem)
    finally:
        forget()


def interrupted_tour(data, wrong, symbol):
    """The first call of one function is interrupted (Ctrl-C) just as it returns; afterwards everything is asked for again."""
    forget()
    try:
        with Mac(data, faults=tuple(wrong) + (symbol + "=interrupt@1",)) as made:
            for _ in range(3):
                with contextlib.suppress(KeyboardInterrupt, ag.AppleGPUError):
                    dev = device()
                    break
            for _ in range(2):
                for case in figures(M4) + EXTRA:
                    with contextlib.suppress(ag.AppleGPUError, KeyboardInterrupt):
                        ask(*case, dev)
                made.advance(8)
            gc.collect()
            return "violation" if made.violations else made.live()
    except Violation:
        return "violation"
    finally:
        forget()


_owned = {}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("symbol, where", FLIPS)
def test_each_ownership_flag_matters(symbol, where, monkeypatch):
    """With one flag of the table turned over, the account no longer comes out."""
    stage = stage_of(symbol)
    if stage is None:
        pytest.skip("only called on errors" if symbol in ON_ERRORS_ONLY else "served by the Objective-C runtime stand-in")
    data, wrong = STAGES[stage]
    if stage not in _owned:
        _owned[stage] = ownership_tour(data, wrong)
        assert _owned[stage] != "violation" and ownership_tour(data, wrong) == _owned[stage], "the account itself wavers"
    interrupted = interrupted_tour(data, wrong, symbol)
    monkeypatch.setitem(ag._PROTOTYPES, symbol, flipped(symbol, where))
    assert ownership_tour(data, wrong) != _owned[stage] or interrupted_tour(data, wrong, symbol) != interrupted, "nobody noticed"


MAKERS = [symbol for symbol, row in ag._PROTOTYPES.items() if symbol in fakemac.SYMBOLS and row[1] in "COE"]


@pytest.mark.parametrize("symbol", MAKERS)
def test_interrupted_between_a_maker_and_its_owner(symbol):
    stage = stage_of(symbol)
    data, wrong = STAGES[stage]
    outcomes, belongings, _ = tour(data, 2, figures(M4) + EXTRA, wrong)
    assert interrupted_tour(data, wrong, symbol) == belongings[1]


@pytest.mark.parametrize("call", ["DeviceGetUtilization", "DeviceGetTemperature", "DeviceGetProcesses", "MemoryGetTotal", "SystemGetPowerSource", "SystemGetMemoryInfo"])
def test_interrupted_anywhere(call):
    """Ctrl-C before any bytecode of the library (not inside a finaliser, where Python itself drops it): nothing is lost or freed twice."""
    code = ag.__file__
    healthy = None

    def interrupted_at(number):
        state = {"left": number}

        def tracer(frame, event, argument):
            if frame.f_code.co_filename != code or frame.f_code.co_name in ("__del__", "<lambda>"):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                state["left"] -= 1
                if not state["left"]:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return tracer
        with mac() as made:
            dev = device()
            with contextlib.suppress(KeyboardInterrupt, ag.AppleGPUError):
                sys.settrace(tracer)
                try:
                    ask(call, (), dev)
                finally:
                    sys.settrace(None)
            gc.collect()
            for _ in range(2):
                made.advance()
                ask(call, (), dev)
            gc.collect()
            live = made.live()
        return live, state["left"] > 0
    healthy = interrupted_at(10**9)[0]
    number, step, tried = 1, 1, 0
    while True:
        live, finished = interrupted_at(number)
        assert live == healthy, (call, number, [entry for entry in live if entry not in healthy])
        tried += 1
        if finished or tried > (12, 50, 2000)[LEVEL]:
            break
        number, step = number + step, step + step // 8 + 1 if tried > 15 else 7
    assert tried > 10


# ---- 3. threads, storms, forks, exits ----

def test_eight_threads():
    rounds = (50, 1000, 3000)[LEVEL]
    calls = [("DeviceGetEngineUtilization", ()), ("MemoryGetUsed", ()), ("DeviceGetUtilization", ()), ("DeviceGetPowerUsage", ()), ("SystemGetMemoryInfo", ()),
             ("DeviceGetTemperature", ()), ("DeviceGetProcesses", ()), ("SystemGetThermalPressure", ()), ("MemoryGetTotal", ()), ("CpuGetUtilization", (0,))]
    with mac() as made:
        dev = device()
        for case in calls:
            outcome(*case, dev)
        gc.collect()
        before, bad = made.live(), []

        def work(number):
            for turn in range(rounds):
                case = calls[(number + turn) % len(calls)]
                got = outcome(*case, dev)
                if got[0] not in ("value", "error") or got[0] == "error" and got[2] not in ("first", "stale", "gpu_asleep", "absent", "reset", "slow"):
                    bad.append((case, got))
                if number == 0 and turn % 10 == 0:
                    made.advance()
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        gc.collect()
        assert bad == [] and made.live() == before
    assert made.calls["IOReportCreateSubscription"] <= 2


def test_thousand_inits():
    """NVML clients init and shut down at every poll."""
    with mac() as made:
        for turn in range((50, 1000, 1000)[LEVEL]):
            ag.LibraryInit()
            dev = ag.LibraryInitDeviceByIndex(0)
            ag.DeviceGetUtilization(dev), ag.DeviceGetPowerUsage(dev), ag.DeviceGetTemperature(dev), ag.MemoryGetUsed(dev)
            if turn == 20:
                gc.collect()
                live = made.live()
            ag.LibraryShutDown()
        gc.collect()
        assert made.live() == live
    assert (made.calls["IOReportCreateSubscription"], made.calls["IOServiceOpen"], made.calls["mach_host_self"]) == (1, 1, made.calls["mach_host_self"])
    assert made.calls["mach_host_self"] <= 1 and made.calls["IOHIDEventSystemClientCreate"] <= 1


def test_the_recorder_over_the_stand_ins(tmp_path):
    """It needs every channel, so it has subscriptions of its own: once, not once per recording. What it wrote replays."""
    with mac(allow=("second subscription",)) as made:
        dev = device()
        ag.DeviceGetUtilization(dev)
        ag.LibraryRecord(str(tmp_path / "one.json"), seconds=2.0, interval=1.0)
        gc.collect()
        live = made.live()
        ag.LibraryRecord(str(tmp_path / "two.json"), seconds=2.0, interval=1.0)
        gc.collect()
        assert [entry for entry in made.live() if entry not in live] == []
    with mac(json.loads((tmp_path / "two.json").read_text())):
        assert ag.DeviceGetName(device()) == "Apple M4"


def test_init_storm():
    with mac() as made:
        bad = []

        def work():
            for _ in range((20, 200, 500)[LEVEL]):
                try:
                    ag.LibraryInit()
                    ag.MemoryGetUsed(ag.LibraryInitDeviceByIndex(0))
                    ag.LibraryShutDown()
                except BaseException as problem:      # noqa: BLE001
                    bad.append(repr(problem))
        threads = [threading.Thread(target=work) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert bad == []
        with pytest.raises(ag.AppleGPUError):
            ag.LibraryShutDown()
    assert made.calls["IOServiceOpen"] <= 1


def test_private_engines_share_the_mac():
    path = os.path.join(RECORDINGS, "m1-macos11.json")
    with mac() as made:
        dev = device()
        ag.DeviceGetUtilization(dev), NATIVE["native:hid"](ag._library.live)
        for _ in range(3):
            other = ag.LibraryOpen(window=2.0)
            ag.DeviceGetUtilization(other), NATIVE["native:hid"](ag._library.live), ag.DeviceGetTemperature(other)
            ag.LibraryClose(other)
            del other
            gc.collect()
        ag.LibraryShutDown()
        ag.LibraryInit(recording=path, speed=0)
        ag.LibraryShutDown()
        ag.LibraryInit()
        gc.collect()
        ag.DeviceGetUtilization(ag.LibraryInitDeviceByIndex(0))
    assert made.calls["IOReportCreateSubscription"] == 1 and made.calls["IOHIDEventSystemClientCreate"] == 1 and made.calls["IOServiceOpen"] == 1


def program(text, *options, data="m4-macos27", code=0, timeout=120):
    source = "import sys; sys.path.insert(0, %r)\nimport pyapplegpu as ag, os, time, threading, gc\n" % HERE + textwrap.dedent(text)
    done = subprocess.run([sys.executable, os.path.join(EXAMPLES, "fakemac.py"), "--recording", os.path.join(RECORDINGS, data + ".json"), "--speed", "0",
                           *options, "-c", source], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == code, done.stderr[-3000:]
    return done


CHILD = '''
    def child(work):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                work()
                gc.collect()
                code = 0
            except BaseException as problem:
                sys.stderr.write(repr(problem) + "\\n")
            finally:
                sys.stderr.flush()
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    def look():
        dev = ag.LibraryInitDeviceByIndex(0)
        return ag.DeviceGetUtilization(dev), ag.MemoryGetUsed(dev), ag.DeviceGetTemperature(dev), ag.DeviceGetProcesses(dev), ag.SystemGetMemoryInfo(), ag.SystemGetThermalPressure()
'''
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
@pytest.mark.parametrize("text", [
    "assert child(lambda: (ag.LibraryInit(), look())) == 0; ag.LibraryInit(); look()",
    "ag.LibraryInit(); before = look(); assert child(look) == 0; assert child(look) == 0; look()",
    "ag.LibraryInit(); look(); assert child(lambda: (look(), ag.LibraryShutDown(), gc.collect())) == 0; look()",
    "ag.LibraryInit(); look(); assert child(lambda: (look(), child(look) and 1 / 0)) == 0; look()",
    "ag.LibraryInit(); look(); snap = ag.DeviceGetSnapshot(ag.LibraryInitDeviceByIndex(0))\n"
    "def metal():\n    try: ag.MemoryGetLimit(ag.LibraryInitDeviceByIndex(0))\n    except ag.AppleGPUError as e: assert e.reason == 'forked_child', e\nassert child(metal) == 0",
], ids=["before init", "after init", "child shuts down", "grandchild", "Metal"])
def test_fork(text):
    program(textwrap.dedent(CHILD) + text)


@needs_fork
def test_fork_while_threads_hold_locks_and_wait():
    program(textwrap.dedent(CHILD) + textwrap.dedent('''
        ag.LibraryInit(); look()
        stop = []
        def busy():
            dev = ag.LibraryInitDeviceByIndex(0)
            while not stop:
                try: ag.DeviceGetPowerUsage(dev), ag.DeviceGetProcesses(dev), ag.DeviceGetTemperature(dev)
                except ag.AppleGPUError: pass
        threads = [threading.Thread(target=busy) for _ in range(3)]
        [t.start() for t in threads]
        results = [child(look) for _ in range(8)]
        stop.append(1); [t.join() for t in threads]
        assert results == [0] * 8, results
        look()
    '''))


@pytest.mark.parametrize("text", [
    "ag.LibraryInit(); dev = ag.LibraryInitDeviceByIndex(0); ag.DeviceGetSnapshot(dev); keep = [dev]",
    "ag.LibraryInit(); dev = ag.LibraryInitDeviceByIndex(0); ag.DeviceGetSnapshot(dev); sys.exit(0)",
    "ag.LibraryInit(); dev = ag.LibraryInitDeviceByIndex(0); ag.DeviceGetSnapshot(dev); loop = [dev]; loop.append(loop); del ag",
    "ag.LibraryInit(); dev = ag.LibraryInitDeviceByIndex(0)\ndef forever():\n    while True:\n        try: ag.DeviceGetPowerUsage(dev), ag.DeviceGetTemperature(dev)\n"
    "        except Exception: pass\n[threading.Thread(target=forever, daemon=True).start() for _ in range(3)]\ntime.sleep(1); time.sleep(1)",
    "class Late:\n    def __del__(self):\n        try: ag.MemoryGetUsed(dev)\n        except Exception: pass\nag.LibraryInit(); dev = ag.LibraryInitDeviceByIndex(0); ag.DeviceGetSnapshot(dev); late = Late()",
], ids=["open", "sys.exit", "a ring", "daemon threads", "a late finaliser"])
def test_exit(text):
    assert program(text).stderr == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_garbage_collection_inside_a_native_call():
    """Finalisers release objects while another native call is running."""
    with mac() as made:
        dev = device()
        library, real = made.table["IORegistryEntryCreateCFProperty"]

        class Trouble:
            def __del__(self):
                made.calls["finalised"] += 1
                ag.MemoryGetUsed(dev)

        def collecting(*args):
            ring = [Trouble()]
            ring.append(ring)
            del ring
            if made.calls["finalised"] < 50:
                gc.collect()
            return real(*args)
        made.thunks.pop("IORegistryEntryCreateCFProperty", None)
        made.table["IORegistryEntryCreateCFProperty"] = (library, fakemac.c(real.c, real.own)(collecting))
        ag._c.__dict__.pop("IORegistryEntryCreateCFProperty", None)
        ag.DeviceGetEngineUtilization(dev)
        gc.collect()
        before = made.live()
        for _ in range(5):
            ag.DeviceGetEngineUtilization(dev)
        gc.collect()
        assert made.live() == before and made.calls["finalised"] > 0


def test_the_clock_goes_back_and_the_mac_sleeps():
    for fault in ("clock=-5s@9", "clock=+5s@9", "clock=+3600s@9", "sleep=3600@9", "clock=-100000s@12"):
        outcomes, belongings, _ = tour(M4, 3, figures(M4), (fault,))
        assert not [got for answers in outcomes for got in answers.values() if got[0] not in ("value", "error")], fault
        assert [case for case, got in outcomes[2].items() if got[0] == "error" and baseline("as recorded")[0][2][case][0] == "value"] == [], fault


# ---- 6. counting: native calls and bytecodes of an operation ----

def count(made, operation):
    """(what it gave, Counter of native calls): the harness for every budget that is a count."""
    before = made.calls.copy()
    value = operation()
    made.calls.update({})
    spent = made.calls - before
    return value, spent


def natives(spent):
    return sum(number for name, number in spent.items() if ":" not in name)


def opcodes(operation, file=None):
    """Bytecodes executed in the library's own file: a figure that does not depend on the machine."""
    total, file = [0], file or ag.__file__

    def tracer(frame, event, argument):
        if frame.f_code.co_filename != file:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        total[0] += event == "opcode"
        return tracer
    sys.settrace(tracer)
    try:
        operation()
    finally:
        sys.settrace(None)
    return total[0]


def test_budget_of_the_registry_poll():
    with mac() as made:
        dev = device()
        poll = (lambda: (ag.DeviceGetEngineUtilization(dev), ag.MemoryGetUsed(dev)))
        poll()
        for _ in range(3):
            made.advance()
            _, spent = count(made, poll)
            heavy = [name for name in spent if name.startswith(("IOReport", "MTL", "objc", "IOConnect"))]
            assert natives(spent) <= BUDGET_POLL and heavy == [], spent


BUDGET_POLL = 12


def test_budget_of_total_memory():
    with mac() as made:
        dev = device()
        _, first = count(made, lambda: ag.MemoryGetTotal(dev))
        assert first["MTLCopyAllDevices"] + first["MTLCreateSystemDefaultDevice"] == 1
        _, later = count(made, lambda: ag.MemoryGetTotal(dev))
        assert set(later) <= {"sysctlbyname"} and natives(later) <= 2, later


@pytest.mark.parametrize("name", ["m1-macos11", "m4-macos27", "m1ultra-macos27", "m5max-macos27"])
def test_budget_of_a_sample(name):
    """10 native calls and 4 per wanted channel, however many are listed; no string is made or read."""
    data = recording(name)
    with mac(data) as made:
        dev = device()
        outcome("DeviceGetPowerUsage", (), dev)
        feed = ag._library.engine.main
        made.advance()
        _, spent = count(made, feed.subscription.sample)
        wanted = len(feed.channels)
        assert natives(spent) <= 10 + 4 * wanted, (natives(spent), wanted, spent)
        assert not [call for call in spent if "String" in call or "GetName" in call or "ChannelName" in call]
        listed = sum(channel.group in ("Energy Model", "GPU Stats", "CPU Stats") for channel in made.replay.channels)
    assert listed >= wanted


def test_budget_of_one_poll():
    """Six getters of one poll take one sample."""
    with mac() as made:
        dev = device()
        getters = ("DeviceGetUtilization", "DeviceGetPowerUsage", "DeviceGetActiveRatio", "DeviceGetClock", "CpuGetPower", "AneGetPower")
        for getter in getters:
            outcome(getter, (), dev)
        made.advance()
        _, spent = count(made, lambda: [outcome(getter, (), dev) for getter in getters])
        assert spent["IOReportCreateSamples"] == 1, spent


def big_smc(keys=3739):
    """An SMC as large as the largest seen, in order, with GPU and CPU temperatures among its keys."""
    data = recording("m4-macos27")
    smc = data["smc"]
    names = {entry[0] for entry in smc["keys"]}
    extra, number = [], 0
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


def test_budget_of_the_first_temperature():
    with mac(big_smc()) as made:
        dev = device()
        assert len(made.libraries[1].smc_order) == 3739
        _, gpu = count(made, lambda: ag.DeviceGetTemperature(dev))
        assert gpu["IOConnectCallStructMethod"] <= 270, gpu["IOConnectCallStructMethod"]
        _, cpu = count(made, lambda: ag.CpuGetTemperature(dev))
        assert gpu["IOConnectCallStructMethod"] + cpu["IOConnectCallStructMethod"] <= 400, (gpu, cpu)


def test_parts_not_asked_for_cost_nothing():
    with mac() as made:
        dev = device()
        ag.DeviceGetSnapshot(dev)
        made.advance()
        _, spent = count(made, lambda: ag.DeviceGetSnapshot(dev, parts=("memory",)))
        assert not [name for name in spent if name.startswith(("IOReport", "IOConnect", "IOHID", "MTL", "objc", "proc_", "notify", "IOPS"))], spent
        _, nothing = count(made, lambda: ag.DeviceGetSnapshot(dev, parts=()))
        assert natives(nothing) <= 1, nothing


def test_opcodes_are_counted():
    with mac():
        dev = device()
        ag.MemoryGetUsed(dev)
        assert 0 < opcodes(lambda: ag.MemoryGetUsed(dev)) < 6000


if __name__ == "__main__":
    sys.exit(pytest.main([__file__] + sys.argv[1:]))
