"""The recordings: whole, said where from, true to the raw output of the Macs they come from, and answered as they expect.

The raw texts are read from the folder that PYAPPLEGPU_RAW names; without it those tests are skipped.
"""
from __future__ import annotations

import json
import os
import plistlib
import re
import struct
from pathlib import Path

import pytest

import pyapplegpu as ag

FOLDER = Path(__file__).resolve().parent / "examples" / "recordings"
NAMES = ("m1-macos11", "m1max", "m1ultra-macos27", "m3max-macos27", "m4-macos27", "m4pro", "m5max-macos27", "vm-macos15")
PARTS = {"registry", "ioreport", "smc", "hid", "sysctl", "mach", "libproc", "notify", "power", "metal", "time"}
AGENTS = ("gpu", "cpu", "ane", "media", "display", "io")
ENGINES = ("encode", "decode", "prores")
# Not a plain value of one device: two devices, or a whole snapshot.
EXEMPT = {"DeviceGetSnapshot", "DeviceGetTopologyLevel", "DeviceGetP2PStatus"}


def recording(name):
    return json.loads((FOLDER / (name + ".json")).read_text("ascii"))


def raw(name):
    folder = os.environ.get("PYAPPLEGPU_RAW")
    if not folder:
        pytest.skip("PYAPPLEGPU_RAW does not name the folder of raw recordings")
    return (Path(folder) / name).read_text("utf-8")


def lines(name):
    return [line for line in raw(name).splitlines() if line and not line.startswith("#")]


def plain(value):
    kind, inner = value
    if kind == "a":
        return [plain(item) for item in inner]
    return {k: plain(v) for k, v in inner.items()} if kind == "d" else inner


def node(data, **want):
    found = [n for n in data["registry"] if all(n[k] == v for k, v in want.items())]
    assert len(found) == 1, want
    return found[0]


def first(entry, key):
    """A property at the first instant."""
    series = entry.get("series", {}).get(key)
    return plain(series[0][1] if series else entry["properties"][key])


def ioreg(text):
    """The value of one ioreg property as plain Python; <...> as hex."""
    text = text.strip()
    if text in ("Yes", "No"):
        return text == "Yes"
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"<[0-9a-f]*>", text):
        return text[1:-1]
    if text.startswith("<"):
        return "".join((part + "\0").encode().hex() for part in text[2:-2].split('","'))
    return re.sub(r'^"(.*)"$', r"\1", text)


def ioreg_node(text, head):
    """Properties of the first node whose line holds `head`, as far as the closing brace."""
    block = text[text.index(head):]
    block = block[:re.search(r"\n[ |]*\}", block).start()]
    return dict(re.findall(r'\n[ |]*"([^"]+)" = (.*)', block))


def numbers(text):
    return {k: int(v) for k, v in re.findall(r'"([^"]+)"=(\d+)', text)}


def pairs(hexes):
    words = struct.unpack("<%dI" % (len(hexes) // 8), bytes.fromhex(hexes))
    return list(zip(words[::2], words[1::2]))


def smc_dump(name):
    return [(m[1], m[2], m[3].replace(" ", "")) for m in
            re.finditer(r"(?m)^  (.{4})  \[(.{4})\].*?\(bytes ?([0-9a-f ]*)\)$", raw(name))]


def channels(data, group, subgroup=None):
    return [c for c in data["ioreport"]["channels"] if c["group"] == group and subgroup in (None, c["subgroup"])]


# ---- every recording ----

def test_all_eight_are_there():
    assert sorted(p.stem for p in FOLDER.glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_whole_small_and_anonymous(name):
    text = (FOLDER / (name + ".json")).read_text("ascii")
    data = json.loads(text)
    assert len(text) <= 1 << 20 and max(map(len, text.splitlines())) < 60000
    assert data["format"] == 1 and 6 <= len(data["time"]["ticks"]) <= 20
    assert not re.search(r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-|[Ss]erial|IOPlatformUUID|/Users/", text)
    smc = data["smc"] or {"keys": [], "values": {}}
    assert {kind for key, kind, _ in smc["keys"] if key in smc["values"]} <= set(
        ("flt ", "ioft", "flag", "ui8 ", "ui16", "ui32", "ui64", "si8 ", "si16", "si32", "si64", "fp1f"))
    for channel in data["ioreport"]["channels"]:
        rows = [row for row in channel["rows"] if row]
        for at, (before, after) in enumerate(zip(rows, rows[1:])):
            assert all(a <= b for a, b in zip(before, after)), (channel["name"], at)
        assert all(row[0] <= t for row, t in zip(rows, data["time"]["ticks"])), channel["name"]
        if int(channel["type"], 16) & 0xFF != 1:
            assert len(channel["states"]) == int(channel["type"], 16) >> 32 & 0xFFFF, channel["name"]


@pytest.mark.parametrize("name", NAMES)
def test_says_where_each_part_is_from(name):
    provenance = recording(name)["provenance"]
    assert set(provenance) == PARTS
    for part, said in provenance.items():
        assert set(said) == {"kind", "from"} and said["kind"] in ("observed", "composed") and len(said["from"]) > 5, part
        for file in re.findall(r"[\w.,-]+\.(?:txt|tsv)", said["from"]):
            if os.environ.get("PYAPPLEGPU_RAW") and not file.startswith("-"):
                assert (Path(os.environ["PYAPPLEGPU_RAW"]) / file).is_file(), (part, file)


@pytest.mark.parametrize("name", NAMES)
def test_expects_something_of_every_function(name):
    data = recording(name)
    asked = {}
    for case in data["expected"]:
        assert case["why"] and callable(getattr(ag, case["call"])), case["call"]
        assert ("value" in case) + ("matches" in case) + ("error" in case) == 1, case
        if "error" in case:
            assert issubclass(getattr(ag, "NVMLError_" + case["error"]), ag.AppleGPUError)
            assert case["reason"] is None or case["reason"] in vars(ag).values(), case
        asked.setdefault(case["call"], []).append(tuple(case["args"]))
    public = {f for f in vars(ag) if re.match(r"(Device|Memory|Ane|Cpu|Vpu|Process|System)(Get|Count)[A-Z]", f)}
    assert public - EXEMPT <= set(asked), sorted(public - EXEMPT - set(asked))
    clusters = [c["value"] for c in data["expected"] if c["call"] == "CpuCountClusters"][0]
    each = [(i,) for i in range(clusters)]
    for call in ("ClusterName", "MaxClock", "Clock"):
        assert asked["CpuGet" + call] == each, call
    for call in ("CpuCountCores", "CpuGetUtilization", "CpuGetPower", "CpuGetEnergy"):
        assert set(asked[call]) == set(each + [(None,)]), call
    for call in ("MemoryGetReadBandwidth", "MemoryGetWriteBandwidth"):
        assert asked[call] == [()] + [(a,) for a in AGENTS]
    for call in ("VpuGetPower", "VpuGetBandwidth", "VpuGetUtilization"):
        assert sorted(asked[call]) == sorted((e,) for e in ENGINES)
    pids = {p["pid"] for p in data["libproc"]["processes"]}
    assert all(args[0] in pids or args[0] == 99998 for call in asked for args in asked[call] if call.startswith("ProcessGet"))


def alike(got, want, tolerance):
    if isinstance(want, list):
        return isinstance(got, (list, tuple)) and len(got) == len(want) and all(alike(g, w, tolerance) for g, w in zip(got, want))
    if isinstance(want, float) and isinstance(got, (int, float)) and not isinstance(got, bool):
        return abs(got - want) <= max(tolerance * abs(want), 1e-9)
    return type(got) is type(want) and got == want


def answer(path, case):
    call = getattr(ag, case["call"])
    if case["call"].startswith("System"):
        ag.LibraryInit(recording=path, speed=0)
        try:
            return call(*case["args"])
        finally:
            ag.LibraryShutDown()
    device = ag.LibraryOpen(path, speed=0)
    try:
        return call(device, *case["args"])
    finally:
        ag.LibraryClose(device)


@pytest.mark.parametrize("name", NAMES)
def test_answers_as_expected(name):
    path, wrong = str(FOLDER / (name + ".json")), []
    for case in recording(name)["expected"]:
        try:
            got = answer(path, case)
        except ag.AppleGPUError as error:
            said = (type(error).__name__.replace("NVMLError_", ""), error.reason)
            if "error" not in case or said != (case["error"], case["reason"]):
                wrong.append((case["call"], case["args"], said, str(error), case))
            continue
        if "matches" in case:
            good = bool(re.match(case["matches"], got))
        else:
            good = "value" in case and alike(got, case["value"], case.get("tolerance", 1e-3))
        if not good:
            wrong.append((case["call"], case["args"], got, case))
    assert not wrong, "\n".join(map(repr, wrong))


# ---- M1 on macOS 11, against its registry dump ----

M1 = "m1-macos11"
M1_AGX = "m1-macos11.0.1-ioreg-sgx-agx-1.txt"


def test_m1_accelerator_and_every_user_client():
    text, data = raw(M1_AGX), recording(M1)
    said, here = ioreg_node(text, "o AGXAcceleratorG13G_B0"), node(data, **{"class": "AGXAcceleratorG13G_B0"})
    assert here["id"] == int(re.search(r"AGXAcceleratorG13G_B0, id (0x\w+)", text)[1], 16)
    assert first(here, "PerformanceStatistics") == numbers(said["PerformanceStatistics"])
    assert first(here, "PerformanceStatistics")["In use system memory"] == 6373376
    compared = 0
    for key, value in here["properties"].items():
        if value[0] not in ("a", "d"):
            assert plain(value) == ioreg(said[key]), key
            compared += 1
    assert compared >= 14
    for key in ("AGCInfo", "IOPowerManagement"):
        assert first(here, key) == numbers(said[key]), key
    heads = re.findall(r"AGXDeviceUserClient, id (0x\w+),.*?\n(.*?)\n[ |]*\}", text, re.S)
    clients = [n for n in data["registry"] if n["class"] == "AGXDeviceUserClient"]
    assert len(heads) == len(clients) == 24
    for (number, block), client in zip(heads, clients):
        props = dict(re.findall(r'"(API|AppUsage|IOUserClientCreator)" = (.*)', block))
        usage = [{"API": api, "lastSubmittedTime": int(last), "accumulatedGPUTime": int(ns)} for api, last, ns in
                 re.findall(r'"API"="([^"]+)","lastSubmittedTime"=(\d+),"accumulatedGPUTime"=(\d+)', props["AppUsage"])]
        assert client["id"] == int(number, 16) and client["parent"] == here["id"] and "series" not in client
        assert {k: plain(v) for k, v in client["properties"].items()} == {
            "API": ioreg(props["API"]), "IOUserClientCreator": ioreg(props["IOUserClientCreator"]), "AppUsage": usage}
    assert sum(not plain(c["properties"]["AppUsage"]) for c in clients) == 5
    window = plain(clients[0]["properties"]["AppUsage"])
    assert [u["accumulatedGPUTime"] for u in window] == [249658696208, 5914750]


@pytest.mark.parametrize("name, file, head, least", [
    ("sgx", M1_AGX, "o sgx@", 12), ("pmgr", "m1-macos11.0.1-ioreg-pmgr-1.txt", "o pmgr@", 13),
    ("cpu0", "m1-macos11.0.1-ioreg-cpus-1.txt", "o cpu0@", 9), ("cpu4", "m1-macos11.0.1-ioreg-cpus-1.txt", "o cpu4@", 9),
    ("ane", "m1-macos11.0.1-ioreg-ane-1.txt", "o ane@", 4), ("H11ANEIn", "m1-macos11.0.1-ioreg-ane-1.txt", "o H11ANEIn ", 4),
    ("AppleSMC", "m1-macos11.0.1-ioreg-applesmc-1.txt", "o AppleSMC ", 4)])
def test_m1_device_tree(name, file, head, least):
    text, here = raw(file), node(recording(M1), name=name)
    said = ioreg_node(text, head)
    assert here["id"] == int(re.search(r"%s.*?id (0x\w+)" % re.escape(head), text)[1], 16)
    for key, value in here["properties"].items():
        got = plain(value)
        assert got == (numbers(said[key]) if value[0] == "d" else ioreg(said[key])), key
    assert len(here["properties"]) >= least


def test_m1_every_voltage_table():
    text, here = raw("m1-macos11.0.1-ioreg-pmgr-1.txt"), node(recording(M1), name="pmgr")
    tables = dict(re.findall(r'"(voltage-states[\w-]+)" = <([0-9a-f]+)>', text))
    assert len(tables) == 9
    assert {k: plain(v) for k, v in here["properties"].items() if k.startswith("voltage")} == tables
    assert [f // 10 ** 6 for f, _ in pairs(tables["voltage-states9"])] == [0, 396, 528, 720, 924, 1128, 1278]
    assert tables["voltage-states9"] == plain(node(recording(M1), name="sgx")["properties"]["perf-states"])


def test_m1_every_channel_of_its_groups():
    data = recording(M1)
    want = [tuple(line.split("\t")[:6]) for line in lines("m1-macos11.0.1-ioreport-channels-1.tsv")]
    want = [row for row in want if row[0] in data["ioreport"]["groups"]]
    have = [(c["group"], c["subgroup"], c["name"] or "", int(c["channel"], 16), int(c["type"], 16), int(c["unit"], 16))
            for c in data["ioreport"]["channels"]]
    assert have == [row[:3] + tuple(int(word, 16) for word in row[3:]) for row in want]
    assert len(channels(data, "Energy Model")) == 97 and len(have) == 515


def test_m1_changes_follow_powermetrics():
    data = recording(M1)
    sample = raw("m1-macos11.2-powermetrics-1.txt").split("*** Sampled")[1]

    def change(group, subgroup, name):
        channel, = [c for c in channels(data, group, subgroup) if (c["name"] or bytes.fromhex(c["channel"][2:].zfill(16)).strip(b"\0").decode()) == name]
        return [b - a for a, b in zip(channel["rows"][0], channel["rows"][-1])][1:], channel
    seconds = (data["time"]["ticks"][-1] - data["time"]["ticks"][0]) / 24e6

    def milliwatt(label):
        return int(re.search(r"(?m)^%s: (\d+) mW" % label, sample)[1])
    assert change("Energy Model", "", "CPU Energy")[0][0] / seconds == milliwatt("Clusters Total Power")
    assert change("Energy Model", "", "GPU Energy")[0][0] / seconds / 1e6 == milliwatt("GPU Power")
    for rail in ("DRAM", "ANE"):
        assert change("PMP", "Energy Counters", rail)[0][0] / seconds == milliwatt(rail + " Power")
    active, _ = change("GPU Stats", "GPU Performance States", "GPUPH")
    assert round(100 - 100 * active[0] / sum(active), 2) == float(re.search(r"GPU active residency:\s+([\d.]+)%", sample)[1])
    for i, core in enumerate(["ECPU%d" % i for i in range(4)] + ["PCPU%d" % i for i in range(4)]):
        spent, _ = change("CPU Stats", "CPU Core Performance States", core)
        said = float(re.search(r"cpu %d active residency:\s+([\d.]+)%%" % i, sample)[1])
        assert 100 - 100 * spent[0] / sum(spent) == pytest.approx(said, abs=0.006), core


def test_m1_sensor_names():
    want = [(n, float(v)) for n, v in re.findall(r'\("([^"]+)", (-?[\d.]+)\)', raw("m1-macos26-iohid-temps-2.txt"))]
    assert [(plain(s["properties"]["Product"]), s["value"][0][1]) for s in recording(M1)["hid"]["services"]] == want


# ---- M4 on macOS 27 ----

M4 = "m4-macos27"


def test_m4_accelerator():
    said = ioreg_node(raw("m4-macos27-ioreg-ioaccelerator-1.txt"), "o AGXAcceleratorG16G")
    here = node(recording(M4), **{"class": "AGXAcceleratorG16G"})
    assert here["id"] == 0x100000478
    assert first(here, "PerformanceStatistics") == numbers(said["PerformanceStatistics"])
    assert [v for i, v in here["series"]["PerformanceStatistics"]] == [here["series"]["PerformanceStatistics"][0][1]]
    computed = {"FilteredGPUPower", "MaxGPUAbsolutePower"}      # never in a dump: IORegistryEntryCreateCFProperty makes them
    assert computed.isdisjoint(said)
    for key, value in here["properties"].items():
        if key not in computed and value[0] not in ("a", "d"):
            assert plain(value) == ioreg(said[key]), key
    for key in ("AGCInfo", "IOPowerManagement"):
        assert first(here, key) == numbers(said[key]), key
    config = first(here, "GPUConfigurationVariable")
    assert {k: v for k, v in config.items() if isinstance(v, int)} == numbers(said["GPUConfigurationVariable"])
    assert config["gpu_var"] == "G" and config["core_mask_list"] == [1023]


def test_m4_gpu_table():
    rows = [line.split() for line in raw("m4-macos15.5-sgx-perf-states-decoded-1.txt").splitlines() if re.match(r"P\d", line)]
    rows = [[cell for cell in row if cell.isdigit()][:3] for row in rows]
    assert len(rows) == 16
    sgx, pmgr = (node(recording(M4), name=n)["properties"] for n in ("sgx", "pmgr"))
    assert pairs(plain(sgx["perf-states"])) == [(int(f) * 10 ** 6, int(mv)) for f, mv, _ in rows]
    assert pairs(plain(sgx["perf-states-sram"])) == [(int(f) * 10 ** 6, int(mv)) for f, _, mv in rows]
    assert pmgr["voltage-states9"] == sgx["perf-states"]


def test_m4_every_smc_key():
    smc, dump = recording(M4)["smc"], smc_dump("m4-unknown-smc-full-Mac16,12-2.txt")
    assert len(dump) == 1728
    assert smc["keys"] == [[key, kind, len(data) // 2] for key, kind, data in dump]
    held = {key: data for key, kind, data in dump if key[0] in "TFP" or key.startswith("B0")}
    count = smc["values"].pop("#KEY")
    assert {key: series[0][1] for key, series in smc["values"].items()} == held
    assert int(count[0][1], 16) == len(smc["keys"])     # the Mac said 2129: its other keys are not in the file


def test_m4_every_sensor():
    rows = [line.split("\t") for line in lines("m4-macos27.0-iohid-temps-1.txt")]
    services = recording(M4)["hid"]["services"]
    assert len(rows) == len(services) == 47
    for (location, _, product, celsius), service in zip(rows, services):
        assert {k: plain(v) for k, v in service["properties"].items()} == {
            "Product": product, "LocationID": int(location), "PrimaryUsagePage": 0xFF00, "PrimaryUsage": 5}
        assert service["value"] == (None if celsius == "-" else [[0, float(celsius)]])


def test_m4_memory_pages():
    said = {k.strip('"'): int(v) for k, v in re.findall(r'(?m)^(?:Pages )?("?[\w -]+"?):\s+(\d+)\.', raw("m4-macos27-vm_stat-top-1.txt"))}
    v = struct.unpack("<4I9Q2I4Q4IQ", bytes.fromhex(recording(M4)["mach"]["vm_statistics64"][0][1]))
    assert (v[0] - v[14], v[1], v[2], v[14], v[20], v[3], v[13], v[8], v[9], v[19]) == tuple(said[k] for k in (
        "free", "active", "inactive", "speculative", "throttled", "wired down", "purgeable", "Translation faults",
        "copy-on-write", "occupied by compressor"))
    assert v[21] + v[22] == v[1] + v[2] + v[14]     # file-backed + anonymous: what the file does not say must still add up


# ---- the others ----

@pytest.mark.parametrize("name, file, count", [
    ("m5max-macos27", "m5max-macos27.0-ioreport-energymodel-1.tsv", 364),
    ("m1ultra-macos27", "m1ultra-macos27.0-ioreport-energymodel-1.tsv", 321)])
def test_complete_energy_lists_in_order(name, file, count):
    word = {"mJ": 0x300007C00000000, "uJ": 0x300007900000000, "nJ": 0x300007600000000}
    have = [(c["name"], int(c["unit"], 16)) for c in channels(recording(name), "Energy Model")]
    assert have == [(n, word[u]) for n, u in (line.split("\t") for line in lines(file))]
    assert len(have) == count
    keys = [(c["driver"], c["channel"]) for c in channels(recording(name), "Energy Model")]
    assert len(set(keys)) == count
    if "ultra" in name:
        assert len({n for n, _ in have if "DTL" in n}) * 2 == sum("DTL" in n for n, _ in have) == 260


def test_m1ultra_publishes_as_recorded():
    data = recording("m1ultra-macos27")
    want = [(25679, 9851, 1689.8), (6808, 1837, 461.0), (24078, 6609, 1622.1), (6260, 1190, 416.1), (392, 53, 26.3),
            (24150, 5755, 1613.7), (7497, 2627, 497.2), (24610, 5128, 1612.4)]
    dies = []
    for die in (0, 1):
        rows, = [c["rows"] for c in channels(data, "Energy Model") if c["name"] == "DIE_%d_CPU Energy" % die]
        dies.append(sorted(set(map(tuple, rows))))
    stamps = [row[0] for row in dies[0]]
    assert [row[0] for row in dies[1]] == stamps
    # the tail of 26.3 ms is never seen alone: it comes with the publication before it or after it
    at, total = [0.0], [(0, 0)]
    for a, b, span in want:
        at.append(at[-1] + span)
        total.append((total[-1][0] + a, total[-1][1] + b))
    for stamp, zero, one in zip(stamps, dies[0], dies[1]):
        i = min(range(len(at)), key=lambda k: abs(at[k] - (stamp - stamps[0]) / 24000))
        assert abs(at[i] - (stamp - stamps[0]) / 24000) < 0.01
        assert (zero[1] - dies[0][0][1], one[1] - dies[1][0][1]) == total[i]
    assert len(stamps) == 9
    text = raw("m1ultra-macos27.0-all-smi-ioreport-diag-partial-1.txt")
    for channel, change in re.findall(r"\| ((?:ANE|DRAM)0_[01]) dv=(\d+)mJ dts=497.2ms", text):
        rows, = [c["rows"] for c in channels(data, "Energy Model") if c["name"] == channel]
        values = sorted({tuple(row) for row in rows})
        assert int(change) in [b[1] - a[1] for a, b in zip(values, values[1:])], channel
    keys = recording("m1ultra-macos27")["smc"]["values"]
    for key, celsius in re.findall(r'(?m)^(T\w{3})\tpresent type="flt " ([\d.]+) C', text):
        assert struct.unpack("<f", bytes.fromhex(keys[key][0][1]))[0] == pytest.approx(float(celsius), abs=1e-5)


def test_m5max_publishes_every_two_seconds():
    rows, = [c["rows"] for c in channels(recording("m5max-macos27"), "Energy Model") if c["name"] == "CPU Energy"]
    stamps = sorted({row[0] for row in rows})
    assert all(2.03 <= (b - a) / 24e6 <= 2.23 for a, b in zip(stamps, stamps[1:])) and len(stamps) == 7


def test_m5max_tables_keys_and_cap():
    data = recording("m5max-macos27")
    pmgr = node(data, name="pmgr")["properties"]
    for key, value, cut in re.findall(r'"([\w-]+)" = <([0-9a-f]+)(\.\.\.)?', raw("m5max-macos26.4-pmgr-voltage-states-hex-1.txt")):
        have = plain(pmgr[key])
        assert have[:len(value) // 16 * 16] == value[:len(value) // 16 * 16] if cut else have == value, key
    smc, dump = data["smc"], smc_dump("m5max-unknown-smc-tkeys-1.txt")
    assert [k for k in smc["keys"] if k[0][0] == "T"] == [[k, t, len(v) // 2] for k, t, v in dump] and len(dump) == 361
    assert all(smc["values"][k] == [[0, v]] for k, _, v in dump)
    cap = [line.split() for line in raw("m5max-macos26.5-agx-power-cap-1.txt").splitlines() if re.match(r" 40 ", line)][0]
    accelerator = node(data, **{"class": "AGXAcceleratorG17X"})
    assert first(accelerator, "MaxGPUAbsolutePower") == 1000 * int(cap[0])
    assert first(accelerator, "FilteredGPUPower") == round(1000 * float(cap[3]))
    clock, = [c["value"] for c in data["expected"] if c["call"] == "DeviceGetClock"]
    assert clock == int(cap[1])


def test_m4pro_table_and_samples():
    data = recording("m4pro")
    said = re.findall(r"(?<= )[0-9A-F]{2}(?= |$)", raw("m4pro-macos15-pmgr-voltage-states-hex-1.txt").split(":", 1)[1])
    assert plain(node(data, name="pmgr")["properties"]["voltage-states1-sram"]).upper().startswith("".join(said)) and len(said) == 30
    samples = [plistlib.loads(p.strip().encode())["gpu"] for p in
               raw("m4pro-macos15.5-powermetrics-gpu-plist-multi-2.txt").split("\0") if p.strip()]
    clocks = [f // 10 ** 6 for f, _ in pairs(plain(node(data, name="pmgr")["properties"]["voltage-states9"]))]
    assert clocks[1:] == [s["freq"] for s in samples[0]["dvfm_states"]]
    rows, = [c["rows"] for c in channels(data, "GPU Stats") if c["name"] == "GPUPH"]
    for sample, before, after in zip(samples, rows[2:], rows[3:]):
        spent = [b - a for a, b in zip(before, after)][1:]
        for ticks, state in zip(spent[1:], sample["dvfm_states"]):
            assert ticks / sum(spent) == pytest.approx(state["used_ratio"], abs=1e-6)


def test_m1max_accelerator_and_clocks():
    said = ioreg_node(raw("m1max-unknown-ioreg-ioaccelerator-trimmed-1.txt"), "o AGXAcceleratorG13X")
    here = node(recording("m1max"), **{"class": "AGXAcceleratorG13X"})
    assert first(here, "PerformanceStatistics") == numbers(said["PerformanceStatistics"])
    for key in ("model", "gpu-core-count", "IOClass", "vendor-id", "MetalPluginName", "IONameMatched"):
        assert first(here, key) == ioreg(said[key]), key
    text = raw("m1max-macos14.6-powermetrics-1.txt")
    pmgr = node(recording("m1max"), name="pmgr")["properties"]
    for line, table in (("GPU HW active residency", "voltage-states9"), ("E-Cluster HW active residency", "voltage-states1-sram"),
                        ("P0-Cluster HW active residency", "voltage-states5-sram")):
        words = re.search(r"(?m)^%s:.*\((.*)\)" % re.escape(line), text)[1]
        assert [round(f / 1e6) for f, _ in pairs(plain(pmgr[table])) if f] == [int(m) for m in re.findall(r"(\d+) MHz", words)], table


def test_m3max_lists_what_it_refuses():
    data = recording("m3max-macos27")
    said = re.findall(r"(?m)^(\w[\w/ ]*?)\s{2,}Simple\s+Perf Counters .*INT64_MIN$", raw("m3max-macos27-amcstats-partial-1.txt"))
    assert [c["name"] for c in channels(data, "AMC Stats")] == said and len(said) == 10
    assert all(c["rows"] == [[0, -(1 << 63)]] for c in channels(data, "AMC Stats"))
    assert data["ioreport"]["groups"]["AMC Stats"] == "refuses"
    both = float(re.search(r"AMCC -> ([\d.]+) GB/s", raw("m3max-macos27.0-pmp0-dcsbw-1.txt"))[1])
    here, = [c for c in channels(data, "PMP0", "DCS BW") if c["name"] == "AMCC RD+WR"]
    spent = [b - a for a, b in zip(here["rows"][0], here["rows"][1])][1:]
    assert sum(t * int(s.strip()[:-4]) for t, s in zip(spent, here["states"])) / sum(spent) == pytest.approx(both, abs=1e-3)
    rails = [c for c in channels(data, "Energy Model") if int(c["unit"], 16) == 0x300007C00000000]
    assert rails and all(row[1] == 0 for c in rails for row in c["rows"])


def test_vm_identity():
    data, text = recording("vm-macos15"), raw("vm-macos15-identity-1.txt")
    for key in ("hw.model", "machdep.cpu.brand_string"):
        assert bytes.fromhex(data["sysctl"][key][0][1])[:-1].decode() == re.search(r"(?m)^%s: (.*)" % re.escape(key), text)[1]
    for key in ("hw.logicalcpu", "hw.physicalcpu", "hw.perflevel0.physicalcpu", "hw.memsize"):
        assert int.from_bytes(bytes.fromhex(data["sysctl"][key][0][1]), "little") == int(re.search(r"(?m)^%s: (\d+)" % re.escape(key), text)[1])
    assert data["registry"][0]["class"] == "AppleParavirtGPU" and data["smc"] is None and not data["ioreport"]["channels"]
    line = [row for row in lines("many-unknown-metal-device_info-1.txt") if "Paravirtual device'" in row][0]
    device, = data["metal"]["devices"]
    assert "'max_recommended_working_set_size': %d" % device["recommendedMaxWorkingSetSize"] in line
    assert "'max_buffer_length': %d" % device["maxBufferLength"] in line


@pytest.mark.parametrize("name, marks", [("m5max-macos27", ("115448725504", "86586540032", "applegpu_g17s")),
                                         ("m4pro", ("40200896512", "30150672384", "applegpu_g16s"))])
def test_metal_limits(name, marks):
    device, = recording(name)["metal"]["devices"]
    assert (str(device["recommendedMaxWorkingSetSize"]), str(device["maxBufferLength"]), device["architecture"]) == marks
    assert any(all(m in row for m in marks) for row in lines("many-unknown-metal-device_info-1.txt"))
