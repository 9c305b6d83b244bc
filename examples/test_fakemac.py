"""The Mac at the C ABI, judged by programs that know nothing of it: right ones pass, wrong ones are caught."""
from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import textwrap
import time

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
EXAMPLES = HERE
sys.path.insert(0, EXAMPLES)

import fakemac  # noqa: E402
from fakemac import Mac, Violation  # noqa: E402

SECOND = 24_000_000


def channel(group, name, number, kind, unit, rows, states=None, subgroup=""):
    made = {"driver": "0x100000abc", "channel": hex(number), "group": group, "subgroup": subgroup, "name": name,
            "type": hex(kind), "unit": hex(unit), "rows": rows}
    if states:
        made["states"] = states
    return made


def tiny():
    """A small Mac: two energy channels, one state channel, a GPU, two SMC keys, two sensors, two processes."""
    times = [10 * SECOND, 11 * SECOND, 12 * SECOND]
    return {
        "format": 1, "title": "a small Mac", "macos": "27.0", "chip": "Apple M4",
        "time": {"timebase": [125, 3], "unix": 1790000000.5, "ticks": times, "slept": [0, 0, 5_000_000_000]},
        "registry": [
            {"id": 0x100000200, "class": "AGXAcceleratorG16G", "conforms": ["IOAccelerator"], "name": "AGXAcceleratorG16G", "parent": None,
             "properties": {"model": ["s", "Apple M4"], "blob": ["x", "000102030405"], "on": ["b", True], "list": ["a", [["i32", 5], ["f64", 0.5]]]},
             "series": {"PerformanceStatistics": [[0, ["d", {"In use system memory": ["i64", 100]}]], [1, ["d", {"In use system memory": ["i64", 200]}]]]}},
            {"id": 0x100000300, "class": "AGXDeviceUserClient", "conforms": [], "name": "AGXDeviceUserClient", "parent": 0x100000200,
             "properties": {"IOUserClientCreator": ["s", "pid 7, thing"]}, "series": {}}],
        "ioreport": {"groups": {"Energy Model": "ok", "GPU Stats": "ok", "AMC Stats": "refuses"}, "channels": [
            channel("Energy Model", "CPU Energy", 1, 0x100010001, 0x0300007C00000000, [[1, 1000], [2, 3000], [3, 4000]]),
            channel("Energy Model", None, 0x4750553000000000, 0x100010001, 0x0300007600000000, [[1, 5], [2, -(1 << 63)], None]),
            channel("GPU Stats", "GPUPH", 3, 0x300000002, 0x0100007980000018, [[1, 10, 20, 30], [2, 110, 20, 30], [3, 110, 220, 30]],
                    ["OFF", "P1", "P2"], "GPU Performance States")]},
        "smc": {"keys": [["#KEY", "ui32", 4], ["Tg05", "flt ", 4]], "values": {"Tg05": [[0, "00002842"]]}},
        "hid": {"services": [{"properties": {"Product": ["s", "PMU tdie1"], "PrimaryUsagePage": ["i32", 0xFF00], "PrimaryUsage": ["i32", 5]}, "value": [[0, 46.5]]},
                             {"properties": {"Product": ["s", "keyboard"], "PrimaryUsagePage": ["i32", 1], "PrimaryUsage": ["i32", 6]}, "value": None}]},
        "sysctl": {"hw.memsize": [[0, "0000000004000000"]], "hw.tbfrequency": [[0, "00366e0100000000"]]},
        "mach": {"page_size": 16384, "vm_statistics64": [[0, "01" * 160]], "cpu_load": [[0, "00" * 32]]},
        "libproc": {"processes": [{"pid": 7, "name": "thing", "path": "/bin/thing", "short_info": [[0, "07" * 64]], "task_info": [[0, "07" * 96]], "rusage": [[0, "07" * 464]]},
                                  {"pid": 9, "name": "other", "path": None, "short_info": [[0, "09" * 64]], "task_info": None, "rusage": None}]},
        "notify": {"com.apple.system.thermalpressurelevel": [[0, 1]]}, "power": {"providing": [[0, "AC Power"]]},
        "metal": {"devices": [{"name": "Apple M4", "registryID": 0x100000200, "recommendedMaxWorkingSetSize": 1 << 34, "maxBufferLength": 1 << 33, "hasUnifiedMemory": True,
                               "maxThreadgroupMemoryLength": 32768, "architecture": None, "supportsFamily:": [1001, 1009]}], "default": 0},
    }


# A small binding that is right, for the programs below: f("CFRelease") is a function with its true prototype.
BINDING = textwrap.dedent('''
    import ctypes, os, sys, time
    from ctypes import *
    PATHS = {"CF": "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation", "IOKit": "/System/Library/Frameworks/IOKit.framework/IOKit",
             "IOReport": "/usr/lib/libIOReport.dylib", "System": "/usr/lib/libSystem.B.dylib", "objc": "/usr/lib/libobjc.A.dylib",
             "Metal": "/System/Library/Frameworks/Metal.framework/Metal", "CG": "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics"}
    T = {"v": None, "p": c_void_p, "s": c_char_p, "i": c_int32, "I": c_uint32, "q": c_int64, "Q": c_uint64, "B": c_uint8, "d": c_double}
    def f(lib, name, result, arguments=""):
        function = ctypes.CDLL(PATHS[lib], use_errno=True)[name]
        function.restype, function.argtypes = T[result], [T[a] for a in arguments]
        return function
    release, retain = f("CF", "CFRelease", "v", "p"), f("CF", "CFRetain", "p", "p")
    string_ = f("CF", "CFStringCreateWithCString", "p", "psI")
    string = lambda text: string_(None, text.encode(), 0x08000100)
    lookup, item, count = f("CF", "CFDictionaryGetValue", "p", "pp"), f("CF", "CFArrayGetValueAtIndex", "p", "pq"), f("CF", "CFArrayGetCount", "q", "p")
    matching, get_services = f("IOKit", "IOServiceMatching", "p", "s"), f("IOKit", "IOServiceGetMatchingServices", "i", "Ipp")
    advance, drop = f("IOKit", "IOIteratorNext", "I", "I"), f("IOKit", "IOObjectRelease", "i", "I")
    prop = f("IOKit", "IORegistryEntryCreateCFProperty", "p", "IppI")
    def services(name=b"IOAccelerator"):
        it = c_uint32()
        assert get_services(0, matching(name), byref(it)) == 0
        out = []
        while it.value:
            entry = advance(it.value)
            if not entry: break
            out.append(entry)
        if it.value: drop(it.value)
        return out
    def get(entry, name):
        key = string(name); value = prop(entry, key, None, 0); release(key); return value
    group, subscribe = f("IOReport", "IOReportCopyChannelsInGroup", "p", "ppQQQ"), f("IOReport", "IOReportCreateSubscription", "p", "pppQp")
    sample, delta = f("IOReport", "IOReportCreateSamples", "p", "ppp"), f("IOReport", "IOReportCreateSamplesDelta", "p", "ppp")
    def listing(name):
        key = string(name); found = group(key, None, 0, 0, 0); release(key); return found
    def subscription(name):
        chosen = listing(name); out = c_void_p(); made = subscribe(None, chosen, byref(out), 0, None)
        release(chosen); return made, out
    def element(sampled, index):
        key = string("IOReportChannels"); found = item(lookup(sampled, key), index); release(key); return found
''')


def run(program, recording=None, **options):
    """Runs a small program in this process; the Mac is returned after it."""
    scope = {}
    with Mac(recording or tiny(), **options) as mac:
        scope["mac"] = mac
        exec(BINDING + textwrap.dedent(program), scope)
    mac.scope = scope
    return mac


def cli(*arguments, recording=None, **environment):
    return subprocess.run([sys.executable, os.path.join(EXAMPLES, "fakemac.py"), "--recording", str(recording), *arguments], text=True, capture_output=True,
                          timeout=120, env={**os.environ, **environment})


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(tiny()))
    return path


# ---- right programs ----

RIGHT = {
    "registry": '''
        gpu, = services()
        kids = c_uint32()
        assert f("IOKit", "IORegistryEntryGetChildIterator", "i", "Isp")(gpu, b"IOService", byref(kids)) == 0
        kid = advance(kids.value); assert advance(kids.value) == 0
        name = create_string_buffer(128); f("IOKit", "IOObjectGetClass", "i", "Ip")(kid, name)
        assert name.value == b"AGXDeviceUserClient" and services(b"AGXDeviceUserClient") == []
        identity = c_uint64(); f("IOKit", "IORegistryEntryGetRegistryEntryID", "i", "Ip")(gpu, byref(identity)); assert identity.value == 0x100000200
        blob = get(gpu, "blob"); start = f("CF", "CFDataGetBytePtr", "p", "p")(blob)
        assert string_at(start, f("CF", "CFDataGetLength", "q", "p")(blob)) == bytes(range(6)); release(blob)
        assert get(gpu, "nothing") is None
        stats = get(gpu, "PerformanceStatistics"); key = string("In use system memory"); x = c_int64()
        assert f("CF", "CFNumberGetValue", "B", "pqp")(lookup(stats, key), 4, byref(x)) == 1 and x.value == 100
        release(key); release(stats); drop(kid); drop(kids.value); drop(gpu)
    ''',
    "whole dictionary": '''
        gpu, = services(); out = c_void_p()
        assert f("IOKit", "IORegistryEntryCreateCFProperties", "i", "IppI")(gpu, byref(out), None, 0) == 0
        n = f("CF", "CFDictionaryGetCount", "q", "p")(out); keys, values = (c_void_p * n)(), (c_void_p * n)()
        f("CF", "CFDictionaryGetKeysAndValues", "v", "ppp")(out, keys, values)
        text = create_string_buffer(99); get_text = f("CF", "CFStringGetCString", "B", "ppqI")
        names = set()
        for key in keys: assert get_text(key, text, 99, 0x08000100); names.add(text.value)
        assert names == {b"model", b"blob", b"on", b"list", b"PerformanceStatistics"}
        release(out); drop(gpu)
    ''',
    "energy": '''
        sub, channels = subscription("Energy Model")
        a = sample(sub, channels, None); time.sleep(0.1); b = sample(sub, channels, None); d = delta(a, b, None)
        value = f("IOReport", "IOReportSimpleGetIntegerValue", "q", "pi")
        assert (value(element(a, 0), 0), value(element(b, 0), 0), value(element(d, 0), 0)) == (1000, 3000, 2000)
        assert value(element(b, 1), 0) == -2**63
        key = string("RawElements"); raw = lookup(element(b, 0), key); release(key)
        record = string_at(f("CF", "CFDataGetBytePtr", "p", "p")(raw), 64)
        import struct; assert struct.unpack_from("<QQ8xQq", record) == (0x100000abc, 1, 2, 3000)
        time.sleep(0); c = sample(sub, channels, None)
        key = string("IOReportChannels"); array = lookup(c, key); release(key)
        assert count(array) == 2        # the next round: its first instant holds both again
        for one in (a, b, c, d, channels, sub): release(one)
    ''',
    "states, and a block": '''
        sub, channels = subscription("GPU Stats"); a = sample(sub, channels, None)
        first = element(a, 0)
        assert f("IOReport", "IOReportChannelGetFormat", "B", "p")(first) == 2 and f("IOReport", "IOReportStateGetCount", "i", "p")(first) == 3
        assert [f("IOReport", "IOReportStateGetResidency", "q", "pi")(first, i) for i in range(3)] == [10, 20, 30]
        seen = []
        call = CFUNCTYPE(c_int32, c_void_p, c_void_p)(lambda block, one: seen.append(one) or 0)
        block = (c_uint64 * 4)(0, 0, cast(call, c_void_p).value, 0)
        f("IOReport", "IOReportIterate", "v", "pp")(a, addressof(block)); assert seen == [first]
        release(a); release(channels); release(sub)
    ''',
    "own containers": '''
        callbacks = lambda name: cast(ctypes.CDLL(PATHS["CF"])[name], c_void_p).value
        array = f("CF", "CFArrayCreateMutable", "p", "pqp")(None, 0, callbacks("kCFTypeArrayCallBacks"))
        text = string("some longer text"); f("CF", "CFArrayAppendValue", "v", "pp")(array, text); release(text)
        assert item(array, 0) == text and f("CF", "CFStringGetLength", "q", "p")(text) == 16
        pairs = f("CF", "CFDictionaryCreateMutable", "p", "pqpp")(None, 0, callbacks("kCFTypeDictionaryKeyCallBacks"), callbacks("kCFTypeDictionaryValueCallBacks"))
        key = string("k"); f("CF", "CFDictionarySetValue", "v", "ppp")(pairs, key, array); release(array); assert lookup(pairs, key) == array
        copy = f("CF", "CFDictionaryCreateMutableCopy", "p", "pqp")(None, 0, pairs); release(pairs); assert lookup(copy, key) == array
        kept = retain(text); release(copy); assert f("CF", "CFStringGetLength", "q", "p")(kept) == 16
        release(kept); release(key)
    ''',
    "smc": '''
        smc, = services(b"AppleSMC"); task = c_uint32.from_address(cast(ctypes.CDLL(PATHS["System"])["mach_task_self_"], c_void_p).value).value
        con = c_uint32(); assert f("IOKit", "IOServiceOpen", "i", "IIIp")(smc, task, 0, byref(con)) == 0
        call = f("IOKit", "IOConnectCallStructMethod", "i", "IIpQpp")
        def ask(command, key=0, index=0, size=0):
            import struct
            request, answer, room = bytearray(80), create_string_buffer(80), c_uint64(80)
            struct.pack_into("<I", request, 0, key); struct.pack_into("<I", request, 28, size); struct.pack_into("<I", request, 44, index); request[42] = command
            assert call(con.value, 2, bytes(request), 80, answer, byref(room)) == 0; return answer.raw
        assert ask(8, index=1)[:4] == b"50gT" and ask(8, index=9)[40] == 0x84
        key = int.from_bytes(b"Tg05", "big")
        assert ask(9, key)[28:36] == b"\\4\\0\\0\\0 tlf" and cast(ask(5, key, size=4)[48:52], POINTER(c_float))[0] == 42.0
        assert ask(5, int.from_bytes(b"#KEY", "big"), size=4)[48:52] == b"\\0\\0\\0\\2"
        f("IOKit", "IOServiceClose", "i", "I")(con.value); drop(smc)
    ''',
    "hid": '''
        address = lambda name: cast(ctypes.CDLL(PATHS["CF"])[name], c_void_p).value
        match = f("CF", "CFDictionaryCreateMutable", "p", "pqpp")(None, 0, address("kCFTypeDictionaryKeyCallBacks"), address("kCFTypeDictionaryValueCallBacks"))
        for name, number in (("PrimaryUsagePage", 0xFF00), ("PrimaryUsage", 5)):
            key = string(name); value = f("CF", "CFNumberCreate", "p", "pqp")(None, 3, byref(c_int32(number)))
            f("CF", "CFDictionarySetValue", "v", "ppp")(match, key, value); release(key); release(value)
        client = f("IOKit", "IOHIDEventSystemClientCreate", "p", "p")(None); f("IOKit", "IOHIDEventSystemClientSetMatching", "v", "pp")(client, match)
        found = f("IOKit", "IOHIDEventSystemClientCopyServices", "p", "p")(client); assert count(found) == 1
        event = f("IOKit", "IOHIDServiceClientCopyEvent", "p", "pqiq")(item(found, 0), 15, 0, 0)
        assert f("IOKit", "IOHIDEventGetFloatValue", "d", "pi")(event, 15 << 16) == 46.5
        for one in (event, found, client, match): release(one)
    ''',
    "system": '''
        n, buf = c_uint64(8), c_uint64(); sysctl = f("System", "sysctlbyname", "i", "sppPQ".replace("P", "p"))
        assert sysctl(b"hw.memsize", byref(buf), byref(n), None, 0) == 0 and buf.value == 1 << 34
        assert sysctl(b"no.such", byref(buf), byref(n), None, 0) == -1 and get_errno() == 2
        host = f("System", "mach_host_self", "I")(); task = c_uint32.in_dll(ctypes.CDLL(PATHS["System"]), "mach_task_self_").value if mac.data.dll else 0x203
        words, n = (c_int32 * 256)(), c_uint32(256); assert f("System", "host_statistics64", "i", "Iipp")(host, 4, words, byref(n)) == 0 and n.value == 40
        n = c_uint32(38); assert f("System", "host_statistics64", "i", "Iipp")(host, 4, words, byref(n)) == -307
        cpus, block, n = c_uint32(), c_void_p(), c_uint32()
        assert f("System", "host_processor_info", "i", "Iippp")(host, 2, byref(cpus), byref(block), byref(n)) == 0 and cpus.value == 2
        f("System", "vm_deallocate", "i", "IQQ")(task, block.value, n.value * 4); f("System", "mach_port_deallocate", "i", "II")(task, host)
        info = create_string_buffer(96); proc = f("System", "proc_pidinfo", "i", "iiQpi")
        assert proc(7, 4, 0, info, 96) == 96 and proc(9, 4, 0, info, 96) == 0 and get_errno() == 1 and proc(8, 13, 0, info, 64) == 0 and get_errno() == 3
        ids = (c_int32 * 9)(); assert f("System", "proc_listallpids", "i", "pi")(ids, 36) == 2 and ids[:2] == [7, 9]
        assert f("System", "proc_listpids", "i", "IIpi")(1, 0, ids, 36) == 8
        token, state = c_int32(), c_uint64(); assert f("System", "notify_register_check", "I", "sp")(b"com.apple.system.thermalpressurelevel", byref(token)) == 0
        f("System", "notify_get_state", "I", "ip")(token, byref(state)); assert state.value == 1; f("System", "notify_cancel", "I", "i")(token)
        info = f("IOKit", "IOPSCopyPowerSourcesInfo", "p")(); text = create_string_buffer(64)
        f("CF", "CFStringGetCString", "B", "ppqI")(f("IOKit", "IOPSGetProvidingPowerSourceType", "p", "p")(info), text, 64, 0x600); assert text.value == b"AC Power"; release(info)
    ''',
    "metal": '''
        push, pop = f("objc", "objc_autoreleasePoolPush", "p"), f("objc", "objc_autoreleasePoolPop", "v", "p"); pool = push()
        sel = f("objc", "sel_registerName", "p", "s"); send = lambda result, arguments="": f("objc", "objc_msgSend", result, "pp" + arguments)
        default = f("Metal", "MTLCreateSystemDefaultDevice", "p"); assert default() is None
        ctypes.CDLL(PATHS["CG"]); one = default(); all_ = f("Metal", "MTLCopyAllDevices", "p")(); assert send("Q")(all_, sel(b"count")) == 1
        device = send("p", "Q")(all_, sel(b"objectAtIndex:"), 0)
        assert send("s")(send("p")(device, sel(b"name")), sel(b"UTF8String")) == b"Apple M4" and send("Q")(device, sel(b"registryID")) == 0x100000200
        family = send("B", "q"); assert family(device, sel(b"supportsFamily:"), 1009) == 1 and family(device, sel(b"supportsFamily:"), 1010) == 0
        assert send("B", "p")(device, sel(b"respondsToSelector:"), sel(b"architecture")) == 0
        assert send("Q")(None, sel(b"registryID")) == 0 and send("p")(None, sel(b"name")) is None
        bare = CFUNCTYPE(c_uint64, c_void_p, c_void_p)(cast(send("Q"), c_void_p).value)     # the one address, no prototype of ours behind it
        if mac.data.dll: assert bare(device, sel(b"registryID")) == 0x100000200
        release(all_); f("objc", "objc_release", "v", "p")(one); pop(pool)
    ''',
    "PyDLL, cdll, attribute": '''
        lib = ctypes.PyDLL(PATHS["CF"]); lib.CFRelease.restype, lib.CFRelease.argtypes = None, [c_void_p]; lib.CFRelease(string("x"))
        lib = ctypes.cdll.LoadLibrary(PATHS["CF"]); lib.CFRelease.restype, lib.CFRelease.argtypes = None, [c_void_p]; lib.CFRelease(string("x"))
        whole = ctypes.CDLL(None); whole.getpid.restype = c_int32; assert whole.getpid() == os.getpid()
        whole["mach_absolute_time"].restype = c_uint64; assert isinstance(lib, ctypes.CDLL)
        import ctypes.util; assert ctypes.util.find_library("IOKit") == PATHS["IOKit"]
        called = CFUNCTYPE(None, c_void_p)(cast(release, c_void_p).value); called(string("y"))
    ''',
}


@pytest.mark.parametrize("name", RIGHT)
def test_right(name):
    mac = run(RIGHT[name])
    assert mac.live() == [] and mac.violations == []


def test_clean_report_and_exit(small, tmp_path):
    program = tmp_path / "right.py"
    program.write_text(BINDING + "\ndrop(services()[0])\nprint(sys.platform, sys.argv[1:], __name__)\n")
    done = cli("--leaks", "--report", str(tmp_path / "out"), str(program), "-x", "1", recording=small)
    assert (done.returncode, done.stdout, done.stderr) == (0, "darwin ['-x', '1'] __main__\n", "")
    assert "nothing is live" in (tmp_path / "out").read_text()


# ---- wrong programs: (program, what the report says) ----

WRONG = {
    "a CF object released as a port": ('drop(string("some longer text") & 0xFFFFFFFF)', "a CF object .* is used as a port"),
    "a port released as a CF object": ("release(services()[0])", "a port .* is used as a CF object"),
    "a pointer cut to int": ('g = ctypes.CDLL(PATHS["CF"])["CFRetain"]; g.argtypes = [c_void_p]; g(string("long enough to be real"))', "result declared c_int, in C pointer"),
    "a pointer argument as int": ('g = ctypes.CDLL(PATHS["CF"])["CFRelease"]; g.restype, g.argtypes = None, [c_int32]; g(5)', "argument 1 declared c_int, in C pointer"),
    "a cut pointer used": ('retain(string("long enough to be real") & 0xFFFFFFFF)', "cut to 32 bits"),
    "no argtypes": ('g = ctypes.CDLL(PATHS["CF"])["CFRelease"]; g.restype = None; g(string("x"))', "argtypes are not declared"),
    "more arguments than argtypes": ('g = ctypes.CDLL(PATHS["CF"])["CFRetain"]; g.restype, g.argtypes = c_void_p, [c_void_p]; g(string("x"), None)', "variadic"),
    "argtypes too short": ('g = ctypes.CDLL(PATHS["CF"])["CFArrayGetValueAtIndex"]; g.restype, g.argtypes = c_void_p, [c_void_p]; g(string("x"))', "1 argument types declared, 2 in C"),
    "a wrong width": ('g = ctypes.CDLL(PATHS["CF"])["CFArrayGetValueAtIndex"]; g.restype, g.argtypes = c_void_p, [c_void_p, c_int32]; g(None, 0)', "argument 2 declared c_int, in C int64"),
    "a wrong sign": ('g = ctypes.CDLL(PATHS["CF"])["CFArrayGetCount"]; g.restype, g.argtypes = c_uint64, [c_void_p]; g(None)', "result declared .* in C int64"),
    "a child of a released container": ('d = get(services()[0], "PerformanceStatistics"); k = string("In use system memory"); v = lookup(d, k); release(d); retain(v)', "use after release: CFNumber"),
    "bytes of a released data": ('b = get(services()[0], "blob"); p = f("CF", "CFDataGetBytePtr", "p", "p")(b); release(b); assert string_at(p, 6) == b"\\xdb" * 6; retain(b)', "use after release: CFData"),
    "over-release": ('s = string("x"); release(s); release(s)', "use after release"),
    "release of a +0 object": ('a = get(services()[0], "list"); release(item(a, 0))', "not owned by the program"),
    "release of a unit label": ('a = listing("GPU Stats"); release(f("IOReport", "IOReportChannelGetUnitLabel", "p", "p")(element(a, 0)))', "not owned"),
    "CFRelease(NULL)": ("release(None)", "NULL"),
    "NULL dictionary": ('lookup(None, string("x"))', "NULL where Apple's code crashes"),
    "NULL out parameter": ('get_services(0, matching(b"IOService"), None)', "NULL"),
    "a number taken for a string": ('f("CF", "CFStringGetLength", "q", "p")(item(get(services()[0], "list"), 0))', "wrong CF type: CFNumber"),
    "array index": ('item(get(services()[0], "list"), 2)', "array index 2 out of range"),
    "state index": ('f("IOReport", "IOReportStateGetResidency", "q", "pi")(element(listing("GPU Stats"), 0), 3)', "state index 3"),
    "a made-up handle": ("retain(0x123456789)", "never given out"),
    "a port used after release": ("g = services()[0]; drop(g); get(g, 'model')", "use after release: port"),
    "matching released after the services took it": ('m = matching(b"IOService"); it = c_uint32(); get_services(0, m, byref(it)); release(m)', "use after release"),
    "an iterator used as an entry": ('it = c_uint32(); get_services(0, matching(b"IOAccelerator"), byref(it)); get(it.value, "model")', "wrong port: io_iterator_t"),
    "two subscriptions": ('subscription("GPU Stats"); subscription("GPU Stats")', "second subscription"),
    "a released subscription": ('s, c = subscription("GPU Stats"); release(s); sample(s, c, None)', "use after release: IOReportSubscription"),
    "a sample taken for a subscription": ('s, c = subscription("GPU Stats"); sample(c, c, None)', "wrong CF type: CFDictionary"),
    "two HID clients": ('make = f("IOKit", "IOHIDEventSystemClientCreate", "p", "p"); make(None); make(None)', "second HID client"),
    "HID matching released first": ('c = f("IOKit", "IOHIDEventSystemClientCreate", "p", "p")(None); m = matching(b"x"); f("IOKit", "IOHIDEventSystemClientSetMatching", "v", "pp")(c, m); release(m)', "before its client"),
    "callbacks read instead of pointed to": ('f("CF", "CFArrayCreateMutable", "p", "pqp")(None, 0, 0x5555)', "are not the address of"),
    "a constant dictionary changed": ('d = get(services()[0], "PerformanceStatistics"); k = string("k"); f("CF", "CFDictionarySetValue", "v", "ppp")(d, k, k)', "not mutable"),
    "an unknown selector": ('f("objc", "objc_msgSend", "p", "pp")(f("Metal", "MTLCopyAllDevices", "p")(), f("objc", "sel_registerName", "p", "s")(b"frobnicate"))', "unrecognised selector"),
    "a message with the wrong result": ('f("objc", "objc_msgSend", "i", "pp")(f("Metal", "MTLCopyAllDevices", "p")(), f("objc", "sel_registerName", "p", "s")(b"count"))', "result declared c_int, in C uint64"),
    "a message without its argument": ('f("objc", "objc_msgSend", "p", "pp")(f("Metal", "MTLCopyAllDevices", "p")(), f("objc", "sel_registerName", "p", "s")(b"objectAtIndex:"))', "2 argument types declared, 3 in C"),
    "a pool popped twice": ('p = f("objc", "objc_autoreleasePoolPush", "p")(); g = f("objc", "objc_autoreleasePoolPop", "v", "p"); g(p); g(p)', "not an open pool"),
    "a vm block of the wrong size": ('h = f("System", "mach_host_self", "I")(); a, b, c = c_uint32(), c_void_p(), c_uint32(); f("System", "host_processor_info", "i", "Iippp")(h, 2, byref(a), byref(b), byref(c)); f("System", "vm_deallocate", "i", "IQQ")(0x203, b.value, c.value)', "vm_deallocate of 8 bytes"),
    "a sysctl written": ('f("System", "sysctlbyname", "i", "spppQ")(b"hw.memsize", None, None, byref(c_int32()), 4)', "sysctlbyname writes"),
    "a data symbol called": ('ctypes.CDLL(PATHS["CF"])["kCFBooleanTrue"]()', "data, not a function"),
    "through a bare address": ('g = CFUNCTYPE(c_void_p, c_void_p)(cast(retain, c_void_p).value); g(0x123456789)\n1 / 0', "never given out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name):
    program, message = WRONG[name]
    with pytest.raises(Violation, match=message):
        run(program)


def test_a_violation_ends_the_program(small, tmp_path):
    program = tmp_path / "wrong.py"
    program.write_text(BINDING + "\ntry:\n    release(None)\nexcept BaseException:\n    pass\nprint('went on')\n")
    done = cli(str(program), recording=small)
    assert done.returncode == fakemac.EXIT_CODE and done.stdout == "went on\n"
    assert "VIOLATION: CFRelease" in done.stderr and "wrong.py" in done.stderr


def test_in_another_thread():
    with pytest.raises(Violation, match="NULL"):
        run("import threading; kept, threading.excepthook = threading.excepthook, lambda problem: None\n"
            "t = threading.Thread(target=lambda: release(None)); t.start(); t.join()\nthreading.excepthook = kept")


def test_leak_at_exit_is_shown(small):
    done = cli("--leaks", "-c", BINDING + "\nstring('a leaked string')", recording=small)
    assert done.returncode == fakemac.EXIT_CODE and "CFString from CFStringCreateWithCString, 1 reference" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("use, caught", [
    ("release(text)", True), ("get(gpu, 'model')", True), ("drop(gpu)", True), ("sample(sub, channels, None)", True),
    ("release(string('x')); drop(services()[0]); subscription('GPU Stats')", False)])
def test_fork(use, caught):
    program = '''
        text = string("made by the parent"); gpu, = services(); sub, channels = subscription("GPU Stats")
        child = os.fork()
        if not child:
            code = 1
            try:
                %s
                code = 0
            except BaseException as problem:
                code = 2 if "forked child uses its parent's" in str(problem) else 3
            finally:
                os._exit(code)
        result = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        release(text)
    ''' % use
    assert run(program).scope["result"] == (2 if caught else 0)


# ---- time ----

def test_time_stands_on_recorded_instants():
    with Mac(tiny()) as mac:
        start, unix = time.clock_gettime_ns(time.CLOCK_UPTIME_RAW), time.time()
        assert start == 10_000_000_000 and unix == 1790000000.5
        time.sleep(100)
        assert time.clock_gettime_ns(time.CLOCK_UPTIME_RAW) - start == 1_000_000_000 and time.time() == unix + 1
        mac.advance()
        assert time.clock_gettime_ns(time.CLOCK_UPTIME_RAW) - start == 2_000_000_000
        assert time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - time.clock_gettime_ns(time.CLOCK_UPTIME_RAW) == 5_000_000_000


def test_real_time_moves_in_steps(monkeypatch):
    slept, sleep = [], time.sleep
    monkeypatch.setitem(fakemac.REAL, "sleep", lambda seconds: (slept.append(seconds), sleep(seconds)))
    with Mac(tiny(), speed=50):
        start = time.clock_gettime_ns(time.CLOCK_UPTIME_RAW)
        time.sleep(2)
        assert slept == [2 / 50]
        assert (time.clock_gettime_ns(time.CLOCK_UPTIME_RAW) - start) % 1_000_000_000 == 0


def test_the_clock_jumps_and_the_mac_sleeps():
    with Mac(tiny(), faults=["clock=-5s@2", "sleep=3600@3"]):
        first, second = (time.clock_gettime_ns(time.CLOCK_UPTIME_RAW) for _ in range(2))
        assert second - first == -5_000_000_000
        assert time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - second == 3600_000_000_000


def test_everything_is_put_back():
    names = [(sys, "platform"), (ctypes, "CDLL"), (ctypes, "PyDLL"), (time, "sleep"), (time, "time"), (time, "clock_gettime_ns"), (os, "uname"), (platform, "machine")]
    before = [getattr(*name) for name in names]
    with pytest.raises(ZeroDivisionError):
        with Mac(tiny()):
            assert sys.platform == "darwin" and platform.machine() == "arm64" and os.uname().sysname == "Darwin"
            import urllib.request  # noqa: F401
            1 / 0
    assert [getattr(*name) for name in names] == before and hasattr(time, "CLOCK_UPTIME_RAW") == (sys.platform == "darwin")


def test_children_live_on_the_same_mac(small):
    code = """import subprocess, sys
inner = "import sys, ctypes; print(sys.platform); ctypes.CDLL('/usr/lib/libIOReport.dylib')['IOReportIterate'](*%r)"
sys.exit(subprocess.run([sys.executable, '-c', inner]).returncode)"""
    done = cli("-c", code % "[]" + "\n", recording=small)
    assert done.returncode == fakemac.EXIT_CODE and done.stdout == "darwin\n" and "argtypes are not declared" in done.stderr
    done = cli("-c", code.replace("(*%r)", ""), recording=small)
    assert (done.returncode, done.stdout, done.stderr) == (0, "darwin\n", "")


def test_module_and_other_libraries(small):
    assert cli("-m", "json.tool", "--help", recording=small).returncode == 0
    code = "import ctypes\ntry: ctypes.CDLL('/System/Library/Frameworks/NoSuch.framework/NoSuch')\nexcept OSError as e: print(e)\nctypes.CDLL(None).getpid"
    assert cli("-c", code, recording=small).stdout.startswith("dlopen(/System/Library/Frameworks/NoSuch")


# ---- faults ----

FAULTS = [
    ("IOReportCreateSamples=null@2", 's, c = subscription("GPU Stats"); assert [bool(sample(s, c, None)) for _ in range(3)] == [True, False, True]'),
    ("IOReportCreateSamples=null@2+", 's, c = subscription("GPU Stats"); assert [bool(sample(s, c, None)) for _ in range(3)] == [True, False, False]'),
    ("IOReportCreateSamples=int64min", 's, c = subscription("GPU Stats"); assert f("IOReport", "IOReportStateGetResidency", "q", "pi")(element(sample(s, c, None), 0), 1) == -2**63'),
    ("IOReportSimpleGetIntegerValue=int64min", 'assert f("IOReport", "IOReportSimpleGetIntegerValue", "q", "pi")(None, 0) == -2**63'),
    ("IOReportCreateSubscription=null", 's, c = subscription("GPU Stats"); assert s is None and not c'),
    ("IOServiceGetMatchingServices=error:0xE00002C1", 'assert get_services(0, matching(b"IOService"), byref(c_uint32())) & 0xFFFFFFFF == 0xE00002C1'),
    ("sysctlbyname=error:1", 'assert f("System", "sysctlbyname", "i", "spppQ")(b"hw.memsize", None, None, None, 0) == -1 and get_errno() == 1'),
    ("proc_pidinfo=short", 'assert f("System", "proc_pidinfo", "i", "iiQpi")(7, 4, 0, create_string_buffer(96), 96) == 48'),
    ("IORegistryEntryCreateCFProperty=wrongtype", 'm = get(services()[0], "model"); assert f("CF", "CFGetTypeID", "Q", "p")(m) == f("CF", "CFNumberGetTypeID", "Q")(); release(m)'),
    ("IORegistryEntryCreateCFProperty=short", 'm = get(services()[0], "blob"); assert f("CF", "CFDataGetLength", "q", "p")(m) < 6; release(m)'),
    ("group:GPU Stats=refuses", 's, c = subscription("GPU Stats"); assert s is None'),
    ("group:GPU Stats=absent", 'assert listing("GPU Stats") is None'),
    ("symbol:IOReportIterate=absent", 'try: ctypes.CDLL(PATHS["IOReport"])["IOReportIterate"]\nexcept AttributeError: pass\nelse: assert 0'),
    ("library:IOReport=absent", 'try: ctypes.CDLL(PATHS["IOReport"])\nexcept OSError: pass\nelse: assert 0'),
]


@pytest.mark.parametrize("fault, program", FAULTS, ids=[fault for fault, _ in FAULTS])
def test_faults(fault, program):
    if fault.startswith("library"):
        with Mac(tiny(), faults=[fault]):
            exec(BINDING.partition("release, retain")[0] + program, {})
        return
    run(program, faults=[fault])


def test_refused_by_itself_and_in_company():
    run('''
        assert subscription("AMC Stats")[0] is None
        merge = f("IOReport", "IOReportMergeChannels", "v", "ppp")
        all_, amc = listing("GPU Stats"), listing("AMC Stats"); merge(all_, amc, None); release(amc); out = c_void_p()
        made = subscribe(None, all_, byref(out), 0, None); key = string("IOReportChannels")
        assert made and count(lookup(out, key)) == 1
    ''')


def test_interrupt_leaves_the_owner_its_chance():
    mac = run('''
        class Owned(c_void_p):
            def __del__(self):
                if self: release(self)
        make = f("CF", "CFStringCreateWithCString", "p", "psI"); make.restype = Owned
        try: make(None, b"interrupted", 0x08000100)
        except KeyboardInterrupt: pass
        else: assert 0
    ''', faults=["CFStringCreateWithCString=interrupt"])
    assert mac.live() == []


def test_unknown_faults_are_refused():
    for text in ("CFRelease=explode", "NoSuchFunction=null", "group:X=null", "library:X=short"):
        with pytest.raises(ValueError):
            Mac(tiny(), faults=[text])
    assert fakemac.fault_kinds("IOReportCreateSamples") == ("null", "int64min", "wrongtype", "short", "moved", "newlayout")


# ---- the account under load ----

def test_threads_and_garbage():
    mac = run('''
        import gc, threading
        class Owned(c_void_p):
            def __del__(self):
                if self: release(self)
        make = f("CF", "CFStringCreateWithCString", "p", "psI"); make.restype = Owned
        gc.set_threshold(1)
        def work():
            for _ in range(200):
                ring = [make(None, b"kept in a ring of garbage", 0x08000100)]; ring.append(ring)
                for entry in services(): drop(entry)
        threads = [threading.Thread(target=work) for _ in range(8)]
        sys.setswitchinterval(1e-5)
        for t in threads: t.start()
        for t in threads: t.join()
        sys.setswitchinterval(0.005); gc.set_threshold(700, 10, 10); gc.collect()
    ''')
    assert mac.live() == [] and mac.calls["CFStringCreateWithCString"] == 1600


def test_calls_are_counted():
    mac = run('drop(services()[0])')
    assert (mac.calls["IOServiceMatching"], mac.calls["IOIteratorNext"], mac.calls["IOObjectRelease"]) == (1, 2, 2)


# ---- foreign programs ----

def test_metalstat(tmp_path):
    """The ioreport module of metalstat, as published: reads what was recorded, and leaks the channels that it merged."""
    found = os.environ.get("METALSTAT") or None
    if found is None:
        spec = __import__("importlib.util").util.find_spec("metalstat")
        found = os.path.dirname(os.path.dirname(spec.origin)) if spec else None
    if found is None:
        pytest.skip("metalstat is not installed: pip install --no-deps metalstat")
    path = tmp_path / "small.json"
    path.write_text(json.dumps(tiny()))
    program = ("import sys; sys.path.insert(0, %r)\nfrom metalstat.ioreport import IOReportSampler\n"
               "for c in IOReportSampler().sample_delta(): print(c.group, c.channel_name, c.unit.strip(), c.int_value, c.state_residencies)" % found)
    done = cli("--speed", "0", "--leaks", "-c", program, recording=path)
    assert done.stdout.splitlines() == ["GPU Stats GPUPH 24Mticks None {'OFF': 100, 'P1': 0, 'P2': 0}", "Energy Model CPU Energy mJ 2000 {}",
                                        "Energy Model  nJ -9223372036854775808 {}"]
    assert done.returncode == fakemac.EXIT_CODE and "VIOLATION" not in done.stderr
    assert "live at the end: CFDictionary from IOReportCopyChannelsInGroup(Energy Model), 1 reference" in done.stderr


def test_every_signature_has_its_c_type():
    for name, function in fakemac.SYMBOLS.items():
        for letters in function.c.split():
            assert all(letter in fakemac.LETTERS for letter in letters.split("/")), name
        assert function.own in (None, "+0", "+1", "out")


def test_without_a_compiler(small):
    done = cli("-c", BINDING + "\ndrop(services()[0])\nprint(bool(string('x')))", recording=small, CC="no-such-compiler")
    assert (done.returncode, done.stdout) == (0, "True\n")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__] + sys.argv[1:]))
