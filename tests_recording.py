"""Section recording: the file format, the replay rules, the recorder."""
from __future__ import annotations

import ast
import copy
import glob
import inspect
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import threading
from contextlib import contextmanager

import pyapplegpu as ag

HERE = os.path.dirname(os.path.abspath(__file__))
MJ, NJ, TICKS, DEGREES = "0x300007c00000000", "0x300007600000000", "0x100007980000018", "0xa00000000000000"
T0, SECOND = 24000000000, 24000000


def channel(name, rows, kind="0x100020001", unit=MJ, group="Energy Model", subgroup="", number=1, **more):
    return dict({"driver": "0x100000abc", "channel": "0x%x" % number, "group": group, "subgroup": subgroup, "name": name,
                 "type": kind, "unit": unit, "rows": rows}, **more)


def usage(*times):
    return ["a", [["d", {"API": ["s", "Metal"], "lastSubmittedTime": ["i64", 7], "accumulatedGPUTime": ["i64", t]}]
                  for t in times]]


def rusage(cpu, energy, size=464):
    raw = bytearray(size)
    raw[:16] = b"\xAB" * 16
    struct.pack_into("<QQ", raw, 16, cpu, 5)
    struct.pack_into("<Q", raw, 72, 1 << 20)
    if size == 464:
        struct.pack_into("<Q", raw, 336, energy)
    return raw.hex()


def short_info(pid, name):
    return (struct.pack("<4I", pid, 1, 1, 2) + name.encode().ljust(16, b"\0") + bytes(32)).hex()


def tiny():
    """Four instants at 0, 1, 2, 4 s; the Mac sleeps half a second."""
    stamps = [T0 - 100, T0 + SECOND - 100, T0 + 2 * SECOND - 100, T0 + 4 * SECOND - 100]
    cpu = [struct.pack("<4I", 4294967000 + 1000 * i & 0xFFFFFFFF, 10, 20 * i, 0).hex() for i in range(4)]
    return {
        "format": 1, "title": "Apple M9, macOS 99.0", "macos": "99.0", "chip": "Apple M9", "unknown key": [[{}]],
        "time": {"timebase": [125, 3], "unix": 1790000000.5, "slept": [0, 0, 500000000, 500000000],
                 "ticks": [T0, T0 + SECOND, T0 + 2 * SECOND, T0 + 4 * SECOND]},
        "registry": [
            {"id": 4294968440, "class": "AGXAcceleratorG99G", "conforms": ["IOAccelerator"], "name": "AGXAcceleratorG99G",
             "parent": None,
             "properties": {"model": ["s", "Apple M9"], "gpu-core-count": ["i32", 10], "data": ["x", "00ff"],
                            "half": ["f32", 0.1], "big": ["i64", (1 << 64) - 1], "GPUConfigurationVariable":
                            ["d", {"num_cores": ["i64", 10], "gpu_var": ["s", "G"], "core_mask_list": ["a", [["i64", 1023]]]}]},
             "series": {"PerformanceStatistics": [[0, ["d", {"Device Utilization %": ["i64", 17]}]],
                                                  [2, ["d", {"Device Utilization %": ["i64", 40]}]]]}},
            {"id": 4294968500, "class": "AGXDeviceUserClient", "name": "AGXDeviceUserClient", "parent": 4294968440,
             "properties": {"IOUserClientCreator": ["s", "pid 357, WindowServer"]},
             "series": {"AppUsage": [[0, usage(1000, 50)], [1, usage(1600, 50)], [3, usage(2000, 50)]]}},
            {"id": 4294968501, "class": "AGXDeviceUserClient", "name": "AGXDeviceUserClient", "parent": 4294968440,
             "properties": {"IOUserClientCreator": ["s", "pid 900, SecretApp"], "AppUsage": usage(9)}},
            {"id": 4294967400, "class": "AppleARMIODevice", "name": "pmgr",
             "properties": {"voltage-states9": ["x", "00000000" * 2]}},
        ],
        "ioreport": {"groups": {"Energy Model": "ok", "GPU Stats": "ok", "AMC Stats": "refuses", "PMP0": "refuses"}, "channels": [
            channel("CPU Energy", [[s, v] for s, v in zip(stamps, (100, 200, 300, 500))]),
            channel("GPU Energy", [[stamps[0], 5], None, [stamps[2], ag.INT64_MIN], [stamps[3], 25]], unit=NJ, number=2),
            channel("ANE", [[stamps[0], 7]], number=3),
            channel(None, [[s, 10 * i, 30 * i] for i, s in enumerate(stamps)], "0x200020002", TICKS, "GPU Stats",
                    "GPU Performance States", 0x4750555048000000, states=["OFF", "P1"]),
            channel("hot", [[s, 40 + i] for i, s in enumerate(stamps)], unit=DEGREES, group="GPU Stats", number=5),
            channel("buckets", [[stamps[0], 1, 2, 3]], "0x300020003", "0x0", "GPU Stats", "x", 6),
            channel("DCS RD", [[stamps[0], 1]], unit="0x900820000000000", group="AMC Stats", number=7),
        ]},
        "smc": {"keys": [["#KEY", "ui32", 4], ["B0SN", "ch8*", 4], ["RPlt", "ch8*", 4], ["Tg05", "flt ", 4]],
                "values": {"Tg05": [[0, struct.pack("<f", 40).hex()], [1, struct.pack("<f", 41).hex()]],
                           "B0SN": [[0, "53455249"]]}},
        "hid": {"services": [
            {"properties": {"Product": ["s", "PMU tdie1"], "LocationID": ["i32", 1], "PrimaryUsagePage": ["i32", 65280],
                            "PrimaryUsage": ["i32", 5]}, "value": [[0, 46.68]]},
            {"properties": {"Product": ["s", "als-temp"]}, "value": None},
            {"properties": {"Product": ["s", "VP0u"], "PrimaryUsagePage": ["i32", 65288]}, "value": [[0, 1]]}]},
        "sysctl": {"hw.tbfrequency": [[0, struct.pack("<Q", SECOND).hex()]], "hw.model": [[0, b"Mac99,1\0".hex()]],
                   "kern.hostname": [[0, b"secret-host\0".hex()]], "kern.memorystatus_level": [[0, "32000000"], [2, "31000000"]]},
        "mach": {"page_size": 16384, "vm_statistics64": [[0, "01" * 152]], "cpu_load": [[i, v] for i, v in enumerate(cpu)]},
        "libproc": {"processes": [
            {"pid": 357, "name": "WindowServer", "path": "/System/Library/WindowServer",
             "short_info": [[0, short_info(357, "WindowServer")]], "task_info": None, "rusage": None},
            {"pid": 900, "name": "SecretApp", "path": "/Users/secret-user/SecretApp",
             "short_info": [[0, short_info(900, "SecretApp")]], "task_info": [[0, "11" * 96]],
             "rusage": [[0, rusage(1000, 50)], [3, rusage(1300, 80)]]}]},
        "notify": {"com.apple.system.thermalpressurelevel": [[0, 0], [1, 1]]},
        "power": {"providing": [[0, "AC Power"]]},
        "metal": {"devices": [{"name": "Apple M9", "registryID": 4294968440, "recommendedMaxWorkingSetSize": 1 << 33,
                               "supportsFamily:": [1001, 5001]}], "default": None},
    }


def machine(data=None, speed=0, loop=True, **more):
    return ag._RecordedMachine(ag._Recording(tiny() if data is None else data, "tiny.json", loop), speed, loop, **more)


@contextmanager
def raises(code, reason=None, text=""):
    try:
        yield
    except ag.AppleGPUError as error:
        assert error.value == code and error.reason == reason and text in str(error), (error.reason, str(error))
    else:
        raise AssertionError("nothing was raised; expected %s" % text)


@contextmanager
def folder():
    path = tempfile.mkdtemp()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def put(path, value):
    """A fault: the value at a dotted place; ... deletes."""
    def fault(data):
        keys = [int(k) if k.isdigit() else k for k in path.split("/")]
        for key in keys[:-1]:
            data = data[key]
        if value is ...:
            del data[keys[-1]]
        else:
            data[keys[-1]] = value
    return fault


FAULTS = [      # where, what stands there, what the error must name
    ("format", ..., "no \"format\""), ("format", "1", "no \"format\""), ("format", True, "no \"format\""),
    ("format", 2, "format 2"), ("format", 0, "format 0"), ("time", ..., "'time'"), ("time", None, "time"),
    ("time/ticks", [], "time.ticks"), ("time/ticks", [1, 1], "ascending"), ("time/ticks", [-1], "time.ticks.0"),
    ("time/ticks/1", "x", "time.ticks.1"), ("time/ticks/1", 1.5, "time.ticks.1"), ("time/timebase", [0, 3], "time.timebase.0"),
    ("time/slept", [0], "slept"), ("time/slept", [0, 9, 3, 9], "slept"), ("time/unix", "now", "time.unix"),
    ("time/unix", float("nan"), "time.unix"), ("title", 5, "title"), ("title", "\x1b[2J", "control"),
    ("chip", "\ud800", "control"), ("title", "x" * 300, "title"),
    ("registry", {}, "registry"), ("registry/0", 1, "registry.0"), ("registry/0/id", "1", "registry.0.id"),
    ("registry/0/class", None, "registry.0.class"), ("registry/1/id", 4294968440, "registry id"),
    ("registry/0/properties/model", "Apple M9", "registry.0.properties.model"),
    ("registry/0/properties/model", ["s", 1], "registry.0.properties.model"),
    ("registry/0/properties/model", ["q", 1], "unknown type"), ("registry/0/properties/model", [["s"], 1], "model"),
    ("registry/0/properties/data", ["x", "0"], "hex"), ("registry/0/properties/data", ["x", "0 f "], "hex"),
    ("registry/0/properties/data", ["x", "zz"], "hex"), ("registry/0/properties/gpu-core-count", ["i8", 256], "number"),
    ("registry/0/properties/half", ["f32", 1e39], "number"), ("registry/0/properties/half", ["f64", float("inf")], "number"),
    ("registry/0/properties/half", ["b", 1], "one of"), ("registry/0/properties/half", ["a", {}], "list"),
    ("registry/0/properties/half", ["d", []], "object"),
    ("registry/0/series/PerformanceStatistics", [], "PerformanceStatistics"),
    ("registry/0/series/PerformanceStatistics/0/0", 1, "the first 0"),
    ("registry/0/series/PerformanceStatistics/1/0", 0, "ascending"),
    ("registry/0/series/PerformanceStatistics/1/0", 4, "0 to 3"),
    ("registry/0/series/PerformanceStatistics/1", [1], "pairs"),
    ("registry/0/series/PerformanceStatistics/1/1", None, "PerformanceStatistics.2"),
    ("ioreport/groups", ..., "groups"), ("ioreport/groups/GPU Stats", "perhaps", "ioreport.groups.GPU Stats"),
    ("ioreport/groups/GPU Stats", ..., "does not name"), ("ioreport/channels/0/driver", 5, "ioreport.channels.0.driver"),
    ("ioreport/channels/0/driver", "0x", "0x"), ("ioreport/channels/0/driver", "0x" + "1" * 17, "0x"),
    ("ioreport/channels/0/driver", "0x1_0", "0x"), ("ioreport/channels/0/type", "0x9", "format"),
    ("ioreport/channels/3/states", ..., "state"), ("ioreport/channels/3/states", ["OFF"], "length"),
    ("ioreport/channels/3/rows/1", [1, 2], "length"), ("ioreport/channels/0/rows/1", [1, 2, 3], "length"),
    ("ioreport/channels/0/rows/1", [1, 1 << 63], "ioreport.channels.0.rows.1.1"),
    ("ioreport/channels/0/rows/1", [1, 2.5], "rows.1.1"), ("ioreport/channels/0/rows/1", [1, True], "rows.1.1"),
    ("ioreport/channels/0/rows", [[1, 1]] * 5, "rows"), ("ioreport/channels/0/name", 3, "name"),
    ("smc", [], "smc"), ("smc/keys/0", ["#KEY", "ui32"], "smc.keys.0"), ("smc/keys/0", ["#KEYS", "ui32", 4], "smc.keys.0"),
    ("smc/keys/0", [4, "ui32", "#KEY"], "SMC key"), ("smc/values/Tg05", [[0, "00"]], "Tg05"),
    ("smc/values/Tzzz", [[0, "00000000"]], "Tzzz"), ("hid/services/0/value", 46.68, "hid.services.0.value"),
    ("sysctl/hw.model", "Mac99,1", "sysctl.hw.model"), ("sysctl/hw.tbfrequency", [[0, "0100000000000000"]], "ticks per second"),
    ("mach/page_size", 0, "mach.page_size"), ("mach/vm_statistics64", [[0, "00" * 100]], "vm_statistics64"),
    ("mach/cpu_load/0", [0, "00" * 12], "cpu_load"), ("mach/cpu_load/1", [1, "00" * 32], "length"),
    ("libproc/processes/0/pid", 357.0, "pid"), ("libproc/processes/1/pid", 357, "pid"),
    ("libproc/processes/0/short_info", [[0, "00"]], "short_info"), ("libproc/processes/1/rusage", [[0, "00"]], "rusage"),
    ("notify/x", [[0, -1]], "notify.x"), ("power/providing", "AC Power", "power.providing"),
    ("metal/devices/0/name", ..., "name"), ("metal/default", 1, "default"),
    ("metal/devices/0/supportsFamily:", ["1001"], "supportsFamily"),
]


def test_each_fault_is_refused_and_named():
    assert ag._Recording(tiny(), "x").instants == 4
    for place, value, text in FAULTS:
        data = tiny()
        put(place, value)(data)
        with raises(ag.ERROR_INVALID_ARGUMENT, None, text):
            ag._Recording(data, "x.json")


def test_files_that_are_not_recordings():
    with folder() as path:
        cases = [(b"", "not a recording"), (b"[]", "format"), (b"null", "format"), (b"{", "not a recording"),
                 (b"\xff\xfe", "not a recording"), (b"[" * 200000, "not a recording"), (b'{"format":NaN}', "NaN"),
                 (b'{"format":' + b"9" * 5000 + b"}", "digits"), (b"\xef\xbb\xbf{}", "not a recording"),
                 (b" " * (16 * 1024 * 1024 + 1), "larger than 16 MiB")]
        for content, text in cases:
            name = os.path.join(path, "a.json")
            with open(name, "wb") as file:
                file.write(content)
            with raises(ag.ERROR_INVALID_ARGUMENT, None, text):
                ag._RecordedMachine(name)
        for name in (os.path.join(path, "none.json"), path, "a\0b", 5, None, ["x"]):
            with raises(ag.ERROR_INVALID_ARGUMENT):
                ag._RecordedMachine(name)
    deep = ["i64", 1]
    for _ in range(100):
        deep = ["a", [deep]]
    data = tiny()
    data["registry"][0]["properties"]["deep"] = deep
    with raises(ag.ERROR_INVALID_ARGUMENT, None, "registry.0.properties.deep"):
        ag._Recording(data, "x")


def test_every_source_answers_or_raises_its_own_error():
    m = machine()
    gpu = m.registry.services("IOAccelerator")[0]
    assert m.registry.services("AGXAcceleratorG99G") == [gpu] and m.registry.identity(gpu) == 4294968440
    assert m.registry.class_name(gpu) == "AGXAcceleratorG99G" and m.registry.alive(gpu) and len({gpu}) == 1
    assert m.registry.get(gpu, "model") == "Apple M9" and m.registry.get(gpu, "none") is None
    assert m.registry.get(gpu, "data") == b"\0\xff" and m.registry.get(gpu, "big") == -1
    assert m.registry.get(gpu, "half") == struct.unpack("<f", struct.pack("<f", 0.1))[0]
    assert m.registry.get(gpu, "GPUConfigurationVariable") == {"num_cores": 10, "gpu_var": "G", "core_mask_list": [1023]}
    clients = m.registry.children(gpu)
    assert [m.registry.get(c, "IOUserClientCreator") for c in clients] == ["pid 357, WindowServer", "pid 900, SecretApp"]
    assert m.registry.services("AGXDeviceUserClient") == [] and len(m.registry.named("pmgr")) == 1
    assert m.smc.count() == 4 and m.smc.key_at(3) == "Tg05" and m.smc.key_at(4) is None and m.smc.key_at(-1) is None
    assert m.smc.info("Tg05") == (4, "flt ") and m.smc.info("Tg06") is None and m.smc.read("Tg06") is None
    assert struct.unpack("<f", m.smc.read("Tg05")) == (40,) and m.smc.read("#KEY") == b"\0\0\0\4"
    with raises(ag.ERROR_NO_DATA, ag.REASON_RECORDING, "RPlt"):
        m.smc.read("RPlt")
    assert m.hid.temperatures() == [("PMU tdie1", 1, 46.68), ("als-temp", 0, None)]
    assert m.sysctl.text("hw.model") == "Mac99,1" and m.sysctl.number("hw.tbfrequency") == SECOND
    assert m.sysctl.raw("none") is None and m.sysctl.text("none") is None and m.sysctl.number("none") is None
    assert len(m.mach.vm_statistics()) == 152 and m.mach.page_size() == 16384 and m.mach.timebase() == (125, 3)
    assert m.libproc.pids() == [357, 900] and m.libproc.path(357) == "/System/Library/WindowServer"
    assert m.libproc.path(5) is None and m.libproc.short_info(5) is None and m.libproc.own_pid() not in m.libproc.pids()
    assert m.libproc.short_info(357)[16:28] == b"WindowServer" and len(m.libproc.rusage(900)) == 464
    with raises(ag.ERROR_NO_PERMISSION, ag.REASON_PERMISSION):
        m.libproc.task_info(357)
    with raises(ag.ERROR_NOT_FOUND, ag.REASON_ABSENT):
        m.libproc.rusage(5)
    assert m.notify.state("com.apple.system.thermalpressurelevel") == 0 and m.power.providing() == "AC Power"
    with raises(ag.ERROR_NO_DATA, ag.REASON_RECORDING):
        m.notify.state("other")
    said = m.metal.device()
    assert said == m.metal.device(4294968440) and said["families"] == (1001, 5001) and said["architecture"] is None
    assert said["recommendedMaxWorkingSetSize"] == 1 << 33 and said["maxBufferLength"] is None
    assert m.name == "tiny.json" and m.calls == {} and m.forked() is None


def test_ioreport_subscriptions():
    m = machine()
    everything = (lambda *about: True)
    sub = m.ioreport.subscribe([("Energy Model", None), ("none", None), ("GPU Stats", "GPU Performance States")], everything)
    assert [c.name for c in sub.channels] == ["CPU Energy", "GPU Energy", "ANE", "GPUPH"] and sub.note == ""
    last = sub.channels[-1]
    assert (last.driver, last.channel, last.format, last.unit) == (0x100000abc, 0x4750555048000000, 2, "24Mticks")
    assert last.states == ("OFF", "P1") and last.subgroup == "GPU Performance States"
    assert sub.sample() == [(T0 - 100, (100,)), (T0 - 100, (5,)), (T0 - 100, (7,)), (T0 - 100, (0, 0))]
    seen = []
    assert m.ioreport.subscribe([("Energy Model", None)], lambda *about: seen.append(about)) is None
    assert seen[1] == ("Energy Model", "", "GPU Energy", "nJ")
    assert m.ioreport.subscribe([("GPU Stats", "none"), ("none", None)], everything) is None
    for group in ("AMC Stats", "PMP0"):     # PMP0 lists nothing: the recorder of a Mac that refuses it wrote no channels
        with raises(ag.ERROR_NOT_SUPPORTED, ag.REASON_MACOS, "refused"):
            m.ioreport.subscribe([(group, None)], everything)
    assert m.ioreport.subscribe([("AMC Stats", None)], lambda *about: False) is None
    assert m.ioreport.subscribe([("GPU Stats", "x")], everything).channels[0].states == ()      # a histogram


def test_unit_words():
    for word, text in [(MJ, "mJ"), (NJ, "nJ"), ("0x300007900000000", "uJ"), (TICKS, "24Mticks"), ("0x900820000000000", "B"),
                       ("0x6400000000000000", "events"), ("0x100007900000000", "us"), ("0x100007600000000", "ns"), ("0x0", ""),
                       ("0x9008c0000000000", "KiB"), ("0x900960000000000", "MiB"), ("0xffffffffffffffff", "")]:
        assert ag._unit_text(int(word, 16)) == text, (word, text)
    for text, word in ag._UNIT_WORDS.items():
        assert ag._unit_text(word) == text


def test_absent_parts_answer_as_a_mac_without_them():
    data = {"format": 1, "time": tiny()["time"]}
    for parts in ({}, {part: None for part in ag._RECORDING_PARTS if part != "time"}):
        m = machine(dict(data, **parts))
        with raises(ag.ERROR_NOT_SUPPORTED, ag.REASON_NO_SUCH_PART):
            m.smc.count()
        with raises(ag.ERROR_NOT_READY, ag.REASON_SOURCE_FAILED):
            m.metal.device()
        for call in (m.mach.vm_statistics, m.mach.cpu_ticks, m.mach.page_size):
            with raises(ag.ERROR_NO_DATA, ag.REASON_RECORDING):
                call()
        assert m.hid.temperatures() == [] and m.power.providing() is None and m.libproc.pids() == []
        assert m.ioreport.subscribe([("Energy Model", None)], lambda *about: True) is None
        assert m.registry.services("IOAccelerator") == [] and m.sysctl.raw("hw.model") is None
        assert m.clock.ticks_per_second() == SECOND
    guest = machine(dict(data, sysctl={"kern.hv_vmm_present": [[0, "01000000"]]}))
    with raises(ag.ERROR_NOT_SUPPORTED, ag.REASON_VIRTUAL_MACHINE):
        guest.smc.read("Tg05")


def test_the_uuid_is_made_of_the_content():
    def uuid(data):
        m = machine(data)
        [entry] = m.registry.services("IOPlatformExpertDevice")
        return m.registry.get(entry, "IOPlatformUUID")
    first = uuid(tiny())
    assert len(first) == 36 and [len(p) for p in first.split("-")] == [8, 4, 4, 4, 12] and first == first.upper()
    assert first == uuid(dict(tiny(), expected=[{"call": "DeviceGetUUID"}])) == uuid(json.loads(json.dumps(tiny(), indent=1)))
    other = tiny()
    other["registry"][0]["properties"]["model"][1] = "Apple M8"
    assert uuid(other) != first
    planted = tiny()
    planted["registry"].append({"id": 5, "class": "IOPlatformExpertDevice", "properties": {"IOPlatformUUID": ["s", "mine"]}})
    assert uuid(planted) not in (first, "mine")


def test_counters_and_clocks_go_on_when_the_recording_starts_again():
    m = machine()
    sub = m.ioreport.subscribe([("Energy Model", None), ("GPU Stats", None)], lambda *about: True)
    gpu = m.registry.services("IOAccelerator")[0]
    client = m.registry.children(gpu)[0]
    span, start = 4 * SECOND, m.clock.now()
    rows = []
    for step in range(9):
        instant, rounds = step % 3, step // 3
        at = (0, 1, 2)[instant] + 4 * rounds
        asleep = (0, 0, 500000000)[instant] + 500000000 * rounds
        up, awake = m.clock.now()
        assert up - start[0] == at * 1000000000 and awake - up == asleep
        assert abs(m.clock.unix() - (1790000000.5 + at + asleep / 1e9)) < 1e-5
        cpu, energy, ane, states, hot, buckets = sub.sample()
        stamp = T0 - 100 + (0, 1, 2)[instant] * SECOND + rounds * span
        assert cpu == (stamp, ((100, 200, 300)[instant] + 400 * rounds,))
        assert energy == ((stamp, (5 + 20 * rounds,)), None, (stamp, (ag.INT64_MIN,)))[instant]
        assert ane == (T0 - 100, (7,)), "what its driver never published is not new in the next round"
        assert states == (stamp, (10 * instant + 30 * rounds, 30 * instant + 90 * rounds))
        assert hot == (stamp, (40 + instant,)) and buckets == (T0 - 100, (1, 2, 3))
        assert m.registry.get(gpu, "PerformanceStatistics") == {"Device Utilization %": (17, 17, 40)[instant]}
        times = [item["accumulatedGPUTime"] for item in m.registry.get(client, "AppUsage")]
        assert times == [(1000, 1600, 1600)[instant] + 1000 * rounds, 50]
        user, system, idle, nice = struct.unpack("<4I", m.mach.cpu_ticks())
        assert user == (4294967000 + 1000 * instant + 3000 * rounds) % (1 << 32) and (system, nice) == (10, 0)
        assert idle == 20 * instant + 60 * rounds
        raw = m.libproc.rusage(900)
        assert struct.unpack_from("<QQ", raw, 16) == (1000 + 300 * rounds, 5) and raw[:16] == b"\xAB" * 16
        assert struct.unpack_from("<Q", raw, 336) == (50 + 30 * rounds,) and struct.unpack_from("<Q", raw, 72) == (1 << 20,)
        rows.append((up, cpu))
        m.clock.sleep(0.1)
    assert rows == sorted(rows)


def test_a_counter_that_fell_is_not_carried_below_itself():
    data = tiny()
    data["ioreport"]["channels"][0]["rows"] = [[T0, 500], [T0 + SECOND, 700], [T0 + 2 * SECOND, 10], [T0 + 3 * SECOND, 20]]
    r = ag._Recording(data)
    assert [r.row(data["ioreport"]["channels"][0], s)[1][0] for s in (0, 1, 2, 3, 4)] == [500, 700, 10, 500, 700]


def test_a_short_rusage_is_carried_as_far_as_it_goes():
    data = tiny()
    data["libproc"]["processes"][1]["rusage"] = [[0, rusage(1, 0, 296)], [3, rusage(3, 0, 296)]]
    m = machine(data)
    for _ in range(3):
        m.clock.sleep(1)
    assert struct.unpack_from("<Q", m.libproc.rusage(900), 16) == (3,) and len(m.libproc.rusage(900)) == 296


def test_the_end_without_loop():
    m = machine(loop=False)
    sub = m.ioreport.subscribe([("Energy Model", None)], lambda *about: True)
    for _ in range(3):
        m.clock.sleep(1)
    assert sub.sample()[0] == (T0 + 4 * SECOND - 100, (500,)) and m.clock.now()[0] == (T0 + 4 * SECOND) * 125 // 3
    m.clock.sleep(1)
    gpu = m.registry.services("IOAccelerator")[0]
    assert m.registry.get(gpu, "model") == "Apple M9"       # what does not change is still there
    for call in (sub.sample, m.clock.now, m.clock.unix, m.mach.cpu_ticks, lambda: m.registry.get(gpu, "PerformanceStatistics"),
                 lambda: m.smc.read("Tg05"), m.hid.temperatures, lambda: m.libproc.rusage(900)):
        with raises(ag.ERROR_NO_DATA, ag.REASON_RECORDING, "ended"):
            call()


def test_one_instant_is_a_mac_that_stands_still():
    data = tiny()
    data["time"].update(ticks=[T0], slept=[0])
    data = json.loads(json.dumps(data))
    for c in data["ioreport"]["channels"]:
        c["rows"] = c["rows"][:1]

    def cut(value):
        if isinstance(value, dict):
            return {k: cut(v) for k, v in value.items()}
        first = isinstance(value, list) and value and isinstance(value[0], list) and len(value[0]) == 2 and value[0][0] == 0
        return value[:1] if first and type(value[0][0]) is int else [cut(v) for v in value] if isinstance(value, list) else value
    m = machine(cut(data))
    before = m.clock.now()[0]
    sub = m.ioreport.subscribe([("Energy Model", None)], lambda *about: True)
    row = sub.sample()[0]
    m.clock.sleep(1)
    assert m.clock.now()[0] - before == 1000000000 and sub.sample()[0] == row
    assert struct.unpack_from("<I", m.mach.cpu_ticks()) == (4294967000,)


def test_speed_zero_moves_by_calls():
    m = machine()
    up = [m.clock.now()[0]]
    for move in (m.clock.step, m.clock.step, lambda: m.clock.sleep(0.1), m.clock.step):
        move()
        up.append(m.clock.now()[0])
    assert [round((u - up[0]) / 1e9) for u in up] == [0, 0, 1, 2, 4]


def test_speed_follows_real_time_and_answers_recorded_time():
    for speed in (1.0, 2, 0.5):
        now, slept = [50.0], []
        m = machine(speed=speed, monotonic=lambda: now[0], sleep=slept.append)
        start = m.clock.now()[0]
        for real, recorded in [(0, 0), (0.99, 0), (1.0, 1), (1.9, 1), (2.5, 2), (3.99, 2), (4.0, 4), (5.0, 5), (402.0, 402)]:
            now[0] = 50.0 + real / speed
            assert m.clock.now()[0] - start == recorded * 1000000000, (speed, real)
        m.clock.step()
        assert m.clock.now()[0] - start == 402 * 1000000000      # steps are for speed 0
        now[0] = 50.0
        m.clock.sleep(0.1)
        m.clock.sleep(30)
        now[0] = 50.0 + 1.75 / speed
        m.clock.sleep(1)
        m.clock.sleep(0)
        m.clock.sleep(-1)
        assert [round(s * speed, 3) for s in slept] == [0.1, 1.0, 0.25, 0, 0]
        now[0] = 40.0       # a clock that goes back does not take the recording with it
        assert m.clock.now()[0] == start


def test_real_time_without_loop_ends_after_the_last_instant():
    now = [0.0]
    m = machine(speed=1, loop=False, monotonic=lambda: now[0], sleep=lambda s: None)
    m.clock.now()
    now[0] = 5.9
    assert m.clock.now()[0] == (T0 + 4 * SECOND) * 125 // 3
    m.clock.sleep(1)
    now[0] = 6.1
    with raises(ag.ERROR_NO_DATA, ag.REASON_RECORDING):
        m.clock.now()


def test_wrong_speeds():
    for speed in (-1, float("nan"), float("inf"), 1e-9, 1e9, "1", None, True, [1]):
        with raises(ag.ERROR_INVALID_ARGUMENT, None, "speed"):
            machine(speed=speed)


def test_steps_for_agrees_with_ticks():
    r = ag._Recording(tiny())
    for step in range(40):
        elapsed = r.ticks(step) - r.ticks(0)
        assert r.steps_for(elapsed) == step and r.steps_for(elapsed - 1) == max(0, step - 1)


def test_threads_count_every_step():
    m = machine()
    threads = [threading.Thread(target=lambda: [m.clock.sleep(1) for _ in range(500)]) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert m.clock.current() == 2000


def everything(m):
    """Asks everything of a machine."""
    def ask(function, *args):
        try:
            return function(*args)
        except ag.AppleGPUError as error:
            return (type(error).__name__, error.reason)
    out = [ask(m.clock.now), ask(m.clock.unix), ask(m.smc.count), ask(m.hid.temperatures), ask(m.mach.vm_statistics)]
    out += [ask(m.mach.cpu_ticks), ask(m.mach.page_size), ask(m.power.providing), ask(m.metal.device)]
    for kind in ("IOAccelerator", "AppleSmartBattery", "H11ANEIn"):
        for entry in m.registry.services(kind):
            for child in [entry] + m.registry.children(entry):
                out += [ask(m.registry.get, child, k) for k in ag._RECORDED_PROPERTIES[kind] + ("IOUserClientCreator", "AppUsage")]
    out += [(n, ask(m.registry.get, e, k)) for n in ("pmgr", "sgx", "cpu0", "cpu7") for e in m.registry.named(n)
            for k in ag._RECORDED_PROPERTIES[n[:3] if n[:3] == "cpu" else n]]
    for group in ag._RECORDED_GROUPS:
        sub = ask(m.ioreport.subscribe, [(group, None)], lambda *about: True)
        out.append(sub if sub is None or isinstance(sub, tuple) else [[tuple(c) for c in sub.channels], ask(sub.sample)])
    out += [ask(m.smc.read, m.smc.key_at(i)) for i in range(m.smc.count())] if isinstance(out[2], int) else []
    out += [ask(f, pid) for pid in m.libproc.pids() for f in (m.libproc.short_info, m.libproc.task_info, m.libproc.rusage)]
    out += [ask(m.sysctl.raw, name) for name in ag._RECORDED_SYSCTLS]
    out.append(ask(m.notify.state, "com.apple.system.thermalpressurelevel"))
    return out


def mutate(data, rng):
    """Changes one thing somewhere."""
    node, key = data, rng.choice(list(data))
    while isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.9:
        node = node[key]
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    junk = [None, True, -1, 0, 1, 1 << 31, 1 << 63, 1 << 70, -(1 << 63), 1.5, float("nan"), float("inf"), "", "0x", "00", "zz", "\0",
            "\ud83d", "x" * 5000, [], {}, [[]], [[0]], [[0, 0]], [None], ["s", None], ["d", {"a": 1}], {"a": {}}, {"": []}]
    action = rng.random()
    if action < 0.15:
        del node[key]
    elif action < 0.25 and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    elif action < 0.4 and type(node[key]) is int:
        node[key] += rng.choice([-1, 1, 1 << 32, -(1 << 40)])
    elif action < 0.5 and isinstance(node[key], str) and node[key]:
        i = rng.randrange(len(node[key]))
        node[key] = node[key][:i] + rng.choice(["", "0", "\x7f", "ff"]) + node[key][i + 1:]
    else:
        node[key] = copy.deepcopy(rng.choice(junk))


def test_random_changes_give_answers_or_our_errors():
    rng = random.Random(20261120)
    refused = read = 0
    for _ in range(3000):
        data = tiny()
        for _ in range(rng.choice((1, 1, 2, 5))):
            mutate(data, rng)
        try:
            m = machine(data, loop=rng.random() < 0.8)
        except ag.AppleGPUError as error:
            assert error.value == ag.ERROR_INVALID_ARGUMENT
            refused += 1
            continue
        read += 1
        for _ in range(5):
            everything(m)
            m.clock.sleep(1)
    assert refused > 500 and read > 300, (refused, read)


def gently(data, rng):
    """Changes values, not shapes: most of what comes out is a recording, of a Mac that lies."""
    def walk(node):
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()):
            yield node, key, value
            yield from walk(value)
    spots = list(walk({part: data[part] for part in ag._RECORDING_PARTS if part != "time" and data.get(part)}))
    for _ in range(rng.choice((1, 3, 30, 300))):
        node, key, value = rng.choice(spots)
        if isinstance(value, str) and len(value) >= 8 and not value.strip("0123456789abcdef") and len(value) % 2 == 0:
            size = len(value) // 2
            node[key] = rng.choice((bytes(size), b"\xff" * size, bytes(rng.randrange(256) for _ in range(size)))).hex()
        elif type(value) is int and key != 0:
            node[key] = rng.choice((0, 1, -1, (1 << 63) - 1, -(1 << 63), value + 1, value - 1, rng.randrange(1 << 40), -value))
        elif isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and rng.random() < 0.3:
            node[key] = copy.deepcopy(rng.choice((["s", "z"], ["i64", -1], ["b", True], ["x", ""], ["a", []], ["d", {}],
                                                  ["f64", 1e300], ["a", [["i64", 1]]], ["d", {"a": ["s", "b"]}])))
        elif isinstance(value, str) and rng.random() < 0.2:
            node[key] = rng.choice(("", "\xe9", "pid x, y", "pid 99999999999999999999, a", "   9GB/s", "V99P1", "P999999",
                                    "ECPU99", "DIE_9_CPU Energy", "GPU Energy", "flt ", "ui8 "))


def test_a_mac_that_lies_gives_answers_or_our_errors():
    rng, sources = random.Random(20261121), sorted(glob.glob(os.path.join(HERE, "examples", "recordings", "*.json")))
    bases = []
    for source in sources:
        with open(source) as file:
            bases.append(json.load(file))
    extra = {"pid": 357, "fan": 0, "engine": "encode", "caps": 0}
    calls = []
    for name, function in vars(ag).items():
        if inspect.isfunction(function) and name.startswith(("Device", "Memory", "Ane", "Cpu", "Vpu", "Process")):
            needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
            calls.append((function, [extra.get(p.name, "device") for p in needed]))
    answers = refusals = 0
    for _ in range(100 if bases else 0):
        data = copy.deepcopy(rng.choice(bases))
        gently(data, rng)
        with folder() as path:
            name = os.path.join(path, "a.json")
            with open(name, "w") as file:
                json.dump(data, file)
            try:
                device = ag.LibraryOpen(name, speed=0)
            except ag.AppleGPUError:
                continue
        for function, names in calls:
            try:
                function(*[device if n == "device" else n for n in names])
                answers += 1
            except ag.AppleGPUError:
                refusals += 1
        ag.LibraryClose(device)
    assert not bases or (answers > 1000 and refusals > 300), (answers, refusals)


def test_random_bytes_of_a_file_give_our_errors():
    rng, text = random.Random(7), json.dumps(tiny()).encode()
    with folder() as path:
        name = os.path.join(path, "a.json")
        for _ in range(300):
            raw = bytearray(text)
            for _ in range(rng.choice((1, 3, 20))):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            with open(name, "wb") as file:
                file.write(raw[:rng.choice((len(raw), len(raw), rng.randrange(len(raw))))])
            try:
                everything(ag._RecordedMachine(name, 0))
            except ag.AppleGPUError as error:
                assert error.value == ag.ERROR_INVALID_ARGUMENT


# ---- the recorder ----

def record(source, path, seconds=100.0, names=False, interval=1.0):
    m = source if hasattr(source, "clock") else ag._RecordedMachine(source, 0, loop=False)
    ag._write_recording(m, path, seconds, interval, names)
    with open(path) as file:
        return file.read()


def test_a_recording_of_a_recording_is_the_same():
    sources = sorted(glob.glob(os.path.join(HERE, "examples", "recordings", "*.json")))
    with folder() as path:
        own, first, second = (os.path.join(path, n) for n in ("own.json", "first.json", "second.json"))
        with open(own, "w") as file:
            json.dump(tiny(), file)
        for source in [own] + sources:
            assert record(source, first) == record(first, second), source
            assert os.path.getsize(first) <= 1 << 20
        for name in os.listdir(path):
            assert not name.endswith(".tmp")


def test_a_recording_answers_as_what_was_recorded():
    with folder() as path:
        name = os.path.join(path, "a.json")
        record(machine(loop=False), name, names=True)
        a, b = machine(loop=False), ag._RecordedMachine(name, 0, loop=False)
        for _ in range(4):
            for x, y in zip(tiny_answers(a), tiny_answers(b)):
                assert x == y, (x, y)
            a.clock.sleep(1)
            b.clock.sleep(1)


def tiny_answers(m):
    gpu = m.registry.services("IOAccelerator")[0]
    yield m.clock.now()
    yield abs(m.clock.unix()) // 1
    yield [m.registry.get(gpu, k) for k in ("model", "gpu-core-count", "GPUConfigurationVariable", "PerformanceStatistics")]
    yield [[m.registry.get(c, k) for k in ("IOUserClientCreator", "AppUsage")] for c in m.registry.children(gpu)]
    yield m.registry.get(m.registry.named("pmgr")[0], "voltage-states9")
    sub = m.ioreport.subscribe([("Energy Model", None), ("GPU Stats", None)], lambda *about: True)
    yield [tuple(c) for c in sub.channels]
    yield sub.sample()
    yield [m.smc.key_at(i) for i in range(m.smc.count())], m.smc.info("RPlt"), m.smc.read("Tg05")
    yield [m.sysctl.raw(n) for n in ("hw.model", "kern.memorystatus_level", "hw.tbfrequency")]
    yield m.mach.vm_statistics(), m.mach.cpu_ticks(), m.mach.page_size(), m.mach.timebase()
    yield m.hid.temperatures(), m.power.providing(), m.metal.device()
    yield m.notify.state("com.apple.system.thermalpressurelevel")
    yield m.libproc.path(357), m.libproc.short_info(900), m.libproc.short_info(357)


class Talkative:
    """A machine that answers every registry property, sysctl and SMC key with something private."""

    def __init__(self):
        inner = machine(loop=False)
        self.__dict__.update(vars(inner), name="live")
        talk = self

        class Registry:
            def __getattr__(self, name):
                return getattr(inner.registry, name)

            def get(self, entry, key):
                value = inner.registry.get(entry, key)
                if key in ("AppUsage", "GPUConfigurationVariable", "PerformanceStatistics"):
                    private = {"serial": talk.text, "user": talk.raw, "list": [talk.text], "nested": {"deep": talk.text}}
                    return [dict(v, **private) for v in value] if isinstance(value, list) else dict(value, **private)
                return talk.text * 9 if value is None else value

        class Sysctl:
            text, number = inner.sysctl.text, inner.sysctl.number

            def raw(self, name):
                value = inner.sysctl.raw(name)
                return value if value is not None or name in ag._RECORDED_SYSCTLS else talk.raw
        self.registry, self.sysctl = Registry(), Sysctl()

    text, raw = "C02SERIAL777", b"C02SERIAL777"


def test_nothing_but_what_is_permitted_is_written():
    private = ["C02SERIAL777", b"C02SERIAL777".hex(), "SecretApp", b"SecretApp".hex(), "secret", b"secret-host".hex(),
               "ab" * 16, "53455249", "IOPlatformUUID", "lastName", "serial"]
    with folder() as path:
        text = record(Talkative(), os.path.join(path, "a.json"))
        for word in private:
            assert word not in text, word
        uuid = machine().recording.uuid()
        assert uuid not in text
        data = json.loads(text)
        assert "WindowServer" in text and "pid 900, app900" in text and b"app900".hex() in text
        assert data["smc"]["values"].keys() == {"Tg05"} and "B0SN" in [k[0] for k in data["smc"]["keys"]]
        assert set(data["sysctl"]) <= set(ag._RECORDED_SYSCTLS)
        permitted = {key for keys in ag._RECORDED_PROPERTIES.values() for key in keys}
        for node in data["registry"]:
            assert set(node["properties"]) | set(node["series"]) <= permitted
            assert node["class"] != "IOPlatformExpertDevice"
        named = record(machine(loop=False), os.path.join(path, "b.json"), names=True)
        assert "pid 900, SecretApp" in named and "secret-user" not in named and "secret-host" not in named


def test_who_is_a_system_program():
    for name, path, public in [
            ("WindowServer", "/System/Library/PrivateFrameworks/SkyLight.framework/Resources/WindowServer", True),
            ("com.apple.WebKit", "/System/Library/Frameworks/WebKit.framework/com.apple.WebKit.GPU", True),
            ("WindowServer", "/Users/me/WindowServer", False), ("python3.13", "/usr/local/bin/python3.13", False),
            ("SecretApp", "/System/Library/WindowServer", False), ("zsh", "/usr/bin/zsh", True), ("", "/usr/bin/zsh", False),
            ("Dock", None, True), ("com.apple.x", None, True), ("SecretApp", None, False)]:
        assert ag._is_system_program(name, path) is public, (name, path)


def test_a_large_recording_loses_instants_not_channels():
    data = tiny()
    data["time"] = {"timebase": [125, 3], "ticks": [T0 + i * SECOND for i in range(64)]}
    rows = [[T0 + i * SECOND] + [i * 1234567890123 + k for k in range(60)] for i in range(64)]
    data["ioreport"]["channels"] = [
        channel("c%d" % n, rows, "0x3c00020002", TICKS, number=n, states=["P%d" % k for k in range(60)]) for n in range(40)]
    with folder() as path:
        text = record(machine(data, loop=False), os.path.join(path, "a.json"))
        said = json.loads(text)
        assert len(text) <= 1 << 20 and len(said["ioreport"]["channels"]) == 40 and len(said["time"]["ticks"]) in (16, 32)


def test_the_recorder_survives_sources_that_fail():
    class Broken:
        def __getattr__(self, name):
            def fail(*args):
                raise ag.AppleGPUError(ag.ERROR_OPERATING_SYSTEM, ag.REASON_SOURCE_FAILED)
            return fail
    sources = ("registry", "ioreport", "smc", "hid", "sysctl", "mach", "libproc", "notify", "power", "metal")
    with folder() as path:
        name = os.path.join(path, "a.json")
        for broken in [(s,) for s in sources] + [sources]:
            m = machine(loop=False)
            for source in broken:
                setattr(m, source, Broken())
            record(m, name)
            everything(ag._RecordedMachine(name, 0))


def test_recording_again_subscribes_no_more():
    m, made = machine(), []
    real = m.ioreport.subscribe
    m.ioreport.subscribe = lambda groups, want: made.append(groups) or real(groups, want)
    with folder() as path:
        record(m, os.path.join(path, "a.json"), 3)
        first = len(made)
        record(m, os.path.join(path, "a.json"), 3)
    again = [group for group, _ in sum(made[first:], [])]
    assert first == len(ag._RECORDED_GROUPS) and not {"Energy Model", "GPU Stats"} & set(again)


def test_a_full_disk_and_wrong_arguments():
    with folder() as path:
        name = os.path.join(path, "a.json")
        with open(name, "w") as file:
            file.write("before")
        real = os.fsync

        def full(descriptor):
            raise OSError(28, "No space left on device")
        os.fsync = full
        try:
            with raises(ag.ERROR_OPERATING_SYSTEM, ag.REASON_SOURCE_FAILED, "No space left on device"):
                ag._write_recording(machine(loop=False), name, 100, 1)
        finally:
            os.fsync = real
        assert os.listdir(path) == ["a.json"] and open(name).read() == "before"
        with raises(ag.ERROR_OPERATING_SYSTEM, ag.REASON_SOURCE_FAILED, "none"):
            ag._write_recording(machine(loop=False), os.path.join(path, "none", "a.json"), 100, 1)
        for args in (("x", -1), ("x", "3"), ("x", 3, 0), ("x", float("nan")), ("x", 3600, 0.01), (5,), (None,)):
            with raises(ag.ERROR_INVALID_ARGUMENT):
                ag._write_recording(machine(), *args)


def test_a_recording_at_real_speed_takes_only_new_instants():
    now = [0.0]

    def sleep(seconds):
        now[0] += max(seconds, 0.001)
    with folder() as path:
        name = os.path.join(path, "a.json")
        ag._write_recording(machine(speed=1, monotonic=lambda: now[0], sleep=sleep), name, 8, 0.25)
        with open(name) as file:
            ticks = json.load(file)["time"]["ticks"]
        assert [(t - T0) // SECOND for t in ticks] == [0, 1, 2, 4, 5, 6, 8]


def test_no_section_redefines_a_name_of_another():
    with open(ag.__file__) as file:
        body = ast.parse(file.read()).body
    names = [n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    names += [t.id for n in body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    assert not {name for name in names if names.count(name) > 1}


if __name__ == "__main__":
    tests = [(name, test) for name, test in list(globals().items()) if name.startswith("test_") and callable(test)]
    for name, test in tests:
        if len(sys.argv) == 1 or any(word in name for word in sys.argv[1:]):
            test()
            print("ok", name)
