"""Tests of pyapplegpu: decoders, sampling, recordings, the flat functions, the command line.

    python test_pyapplegpu.py          # the same as: python -m pytest test_pyapplegpu.py

Raw output of real Macs is read from the folder that PYAPPLEGPU_RAW names; tests that need it are skipped without.
"""
from __future__ import annotations

import ast
import glob
import inspect
import json
import math
import os
import random
import subprocess
import sys
import types

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import pyapplegpu as ag  # noqa: E402

RECORDINGS = sorted(glob.glob(os.path.join(HERE, "examples", "recordings", "*.json")))
MS = 1000000


def recording(name):
    """Path of one of the project's recordings."""
    return os.path.join(HERE, "examples", "recordings", name + ".json")


@pytest.fixture(autouse=True)
def fresh_library(monkeypatch):
    """Each test starts uninitialised, with no recording in the environment."""
    monkeypatch.delenv("PYAPPLEGPU_RECORDING", raising=False)
    yield
    ag._library.count, ag._library.engine, ag._library.opened = 0, None, None


# ======================================================================================================================
# SAMPLING: histories and energy channels
# ======================================================================================================================

@pytest.mark.parametrize("ages_ms, window_s, chosen_ms", [
    ([100 * n for n in range(1, 30)], 1, 1000),
    ([100, 980], 1, 980),
    ([980, 1960], 1, 980),
    ([700, 1400], 1, 700),
    ([600, 1200], 1, 1200),
    ([300, 5000], 1, 5000),
    ([500, 1500], 1, 1500),         # a tie: the older
    ([100, 300], 1, 300),
    ([100], 1, 100),
    ([40], 1, None),
    ([], 1, None),
    ([10000 * n for n in range(1, 9)], 60, 60000),
])
def test_baseline(ages_ms, window_s, chosen_ms):
    clocks = sorted([-age * MS for age in ages_ms]) + [0]
    got = ag._baseline(clocks, window_s * ag._NS, ag._SHORTEST)
    assert (None if got is None else -clocks[got] // MS) == chosen_ms


def energy(unit="mJ"):
    return ag._Energy(ag._ENERGY_UNITS[unit], unit != "nJ")


def look(e, t, stamp, value, window=1000):
    """One look; times in ms, "same" repeats the last stamp."""
    if stamp == "same":
        stamp = e.stamp
    elif stamp is not None:
        stamp = int(stamp * MS)
    e.look(int(t * MS), stamp, value, window * MS)


def watts(e, window=1000):
    """W to three digits, or the reason."""
    change = e.change(window * MS)
    if isinstance(change, str):
        return change
    return round(change[0] * e.scale[0] / e.scale[1] / 1000 / (change[1] / ag._NS), 3)


def millijoules(e):
    total = e.total()
    return total if isinstance(total, str) else total[0] * e.scale[0] // e.scale[1]


BATCHED = [     # (look at, stamp, value, W, mJ): rows follow one another
    (10, 0.001, 1000000, "first", 1000000),
    (2053, 2043, 1004969, 2.432, 1004969),
    (2500, "same", 1004969, 2.432, 1004969),
    (3000, "same", 1004969, 2.432, 1004969),
    (3100, 2057.8, 1005034, 2.446, 1005034),
    (4205, 4200, 1010034, 2.348, 1010034),
]
SLOW = [
    (1, 0.001, 0, "first", 0),
    (2001, 2000, 2000, 1.0, 2000),
    (11999, "same", 2000, 1.0, 2000),
    (12001, "same", 2000, "stale", "stale"),
] + [(t, "same", 2000, "stale", "stale") for t in range(15000, 55001, 5000)] + [
    (60100, 60000, 90000, "slow", 90000),
    (62100, 62050, 92050, 1.0, 92050),
]
FALLS = [
    (1, 0.001, 5000, "first", 5000),
    (2001, 2000, 7000, 1.0, 7000),
    (4001, 4000, 100, "reset", 7000),
    (6001, 6000, 4100, 2.0, 11000),
]
JUMPS = [
    (1, 0.001, 5000, "first", 5000),
    (2001, 2000, 7000, 1.0, 7000),
    (4001, 4000, 10 ** 12, "reset", 7000),
    (6001, 6000, 10 ** 12 + 4000, 2.0, 11000),
]
MISSING = [
    (1, 0.001, 5000, "first", 5000),
    (2001, 2000, 7000, 1.0, 7000),
    (4001, 4000, ag.INT64_MIN, "absent", "absent"),
    (6001, 6000, 11000, "first", 11000),
    (8001, 8000, 13000, 1.0, 13000),
]
EARLY = [       # stamps 5 ms after the look
    (1, 6, 5000, "first", 5000),
    (2001, 2006, 7000, 1.0, 7000),
]
CLOCK_BACK = [  # a stamp earlier than the last one, but not long before our last look
    (1, 0.001, 5000, "first", 5000),
    (2001, 2000, 7000, 1.0, 7000),
    (2300, 1900, 7100, "reset", 7000),
    (4001, 3900, 9100, 1.0, 9000),
]


POLLED_EACH_MINUTE = [     # a silence of more than two minutes is no reading, though no look was long enough to count
    (1, 0.001, 0, "first", 0),
    (60001, "same", 0, "stale", "stale"),
    (120001, "same", 0, "stale", "stale"),
    (135000, 134000, 134000, "slow", 134000),
]
OLD_AT_FIRST_SIGHT = [
    (10501, 1, 5000, "stale", "stale"),
    (12500, 12001, 17000, "slow", 17000),
]


@pytest.mark.parametrize("rows", [BATCHED, SLOW, FALLS, JUMPS, MISSING, EARLY, CLOCK_BACK, POLLED_EACH_MINUTE,
                                  OLD_AT_FIRST_SIGHT],
                         ids=["batched", "slow", "falls", "jumps", "missing", "early", "clock-back", "minutes", "old"])
def test_energy_channel(rows):
    e = energy()
    for t, stamp, value, power, count in rows:
        look(e, t, stamp, value)
        assert (t, watts(e), millijoules(e)) == (t, power, count)


@pytest.mark.parametrize("window, after_publication, later", [(1000, "slow", "slow"), (3600000, 1.0, 1.0)])
def test_a_rail_that_publishes_each_half_hour(window, after_publication, later):
    """First look 600 s after a publication, looks each second, the next publication 1800 s after the first."""
    e = energy()
    look(e, 600001, 1, 5000000, window)
    assert (watts(e, window), millijoules(e)) == ("stale" if window == 1000 else "first", "stale")
    for t in range(601001, 1800001, 1000):
        look(e, t, "same", 5000000, window)
    look(e, 1800500, 1800001, 5000000 + 1800000, window)
    assert (watts(e, window), millijoules(e)) == (after_publication, 6800000)
    for t in range(1801500, 3000500, 1000):
        look(e, t, "same", 6800000, window)
    assert watts(e, window) == later
    if window == 1000:              # the gap is known, so the counter is not taken for a dead one
        assert millijoules(e) == 6800000


@pytest.mark.parametrize("stamp", [
    lambda t: None,                     # no stamp
    lambda t: 500,                      # stands while the value moves
    lambda t: t + 60000,                # ahead
    lambda t: t * 24 / 1000,            # raw ticks
], ids=["none", "stands", "ahead", "ticks"])
def test_unusable_stamps_of_a_live_counter(stamp):
    e = energy("nJ")
    look(e, 60000, stamp(60000), 10 ** 9)
    look(e, 60100, stamp(60100), 10 ** 9 + 2 * 10 ** 9)
    assert not e.usable
    assert watts(e) == 20.0


def test_batches_without_stamps_are_an_estimate_over_ten_seconds():
    e, got = energy(), {}
    for second in range(0, 11):
        look(e, 1000 + second * 1000, None, 2000 * (second // 2))
        got[second] = watts(e)
    assert got[7] == "first" and got[10] == 1.0 and not e.usable
    for second in range(11, 26):
        look(e, 1000 + second * 1000, None, 10000 + 4000 * ((second - 10) // 2))
    assert watts(e) == 2.0          # of the last ten seconds


def test_live_counter_slides_over_its_window():
    e = energy("nJ")
    for n in range(1, 31):
        t = n * 100
        look(e, t, t - 0.5, min(t, 2000) * 20 * 10 ** 6)
        if t == 2500:
            assert watts(e) == 10.0
    assert watts(e) == 0.0


def test_live_tail_of_an_m1_ultra():
    e = energy("nJ")
    look(e, 1, 0.001, 0)
    look(e, 125.2, 125.1, 3585260)
    look(e, 254, 137.9, 3585260)
    assert watts(e) == 0.026


ULTRA = [(25679, 9851, 1689.8), (6808, 1837, 461.0), (24078, 6609, 1622.1), (6260, 1190, 416.1), (392, 53, 26.3),
         (24150, 5755, 1613.7), (7497, 2627, 497.2), (24610, 5128, 1612.4)]
ULTRA_WATTS = [21.026, 20.539, 18.918, 18.711, 18.688, 18.506, 18.938, 18.443]


def test_m1_ultra_cadence_as_recorded():
    """Both dies' CPU counters with the spans that a real M1 Ultra published (macOS 27.0)."""
    dies, t, counts = (energy(), energy()), 1000.0, [0, 0]
    for e in dies:
        look(e, t + 5, t, 0)
    got = []
    for first, second, span in ULTRA:
        t, counts = t + span, [counts[0] + first, counts[1] + second]
        for e, count in zip(dies, counts):
            look(e, t + 5, t, count)
        got.append(round(sum(c[0] / c[1] * ag._NS / 1000 for c in (e.change(ag._NS) for e in dies)), 3))
    assert got == ULTRA_WATTS


def test_a_wider_window_keeps_few_points():
    e = energy("nJ")
    for n in range(40):
        look(e, 1000 + 70 * n, 1000 + 70 * n, n)
    for n in range(1, 30):
        look(e, 5000 + 240000 * n, 5000 + 240000 * n, 40 + n, 3600000)
        assert len(e.points) <= 19


def test_energy_channel_on_any_stamps_and_values():
    """A reading in [0, 1000] W or a reason; energy never falls; at most 19 points."""
    rng = random.Random(4)
    for _ in range(300):
        e, t, stamp, value, total = energy(rng.choice(("mJ", "nJ"))), 10 ** 9, 10 ** 9, 10 ** 6, 0
        window = rng.choice((50, 1000, 20000))
        for _ in range(60):
            t += rng.choice((1, 20 * MS, 60 * MS, 400 * MS, 3000 * MS, 20000 * MS, 200000 * MS))
            stamp = rng.choice((stamp, t, t - 5 * MS, t - 3000 * MS, t + 5 * MS, t + 9 * ag._NS, 0, -1, None))
            value += rng.choice((0, 1, 100, 2000, 10 ** 8, 10 ** 13, -50, -10 ** 9))
            value = rng.choice((value, value, value, ag.INT64_MIN, 0))
            e.look(t, stamp, value, window * MS)
            value = max(value, 0)
            power, count = watts(e, window), millijoules(e)
            assert power in ag._BADNESS or 0 <= power <= 1000.001
            assert len(e.points) <= 19
            if not isinstance(count, str):
                assert count >= total
                total = count


# ======================================================================================================================
# SAMPLING: rails, waiting, other rates, events, on a scripted Mac
# ======================================================================================================================

class Channel:
    def __init__(self, name, group="Energy Model", unit="mJ", states=(), subgroup=""):
        self.driver, self.channel = 1, abs(hash((name, group)))
        self.name, self.group, self.subgroup, self.unit, self.states = name, group, subgroup, unit, tuple(states)
        self.format = 2 if states else 1


class ScriptedMac:
    """A machine whose counters are functions of time: lanes = [(channel, f(ms) -> (stamp ms, values))]."""

    name = "scripted"

    def __init__(self, lanes, start_ms=100000.0):
        self.lanes, self.t, self.asleep, self.samples, self.slept_for = lanes, start_ms, 0.0, 0, 0.0
        self.clock = self.ioreport = self.registry = self.sysctl = self.mach = self
        self.channels = tuple(channel for channel, _ in lanes)
        self.ticks = b""

    def forked(self):
        pass

    def now(self):
        return int(self.t * MS), int((self.t + self.asleep) * MS)

    def ticks_per_second(self):
        return ag._NS

    def sleep(self, seconds):
        self.t += seconds * 1000
        self.slept_for += seconds
        assert self.slept_for < 60, "nobody waits that long"

    def step(self):
        pass

    def unix(self):
        return 0.0

    def subscribe(self, groups, want):
        picked = [pair for pair in self.lanes if pair[0].group in [g for g, _ in groups]
                  and want(pair[0].group, pair[0].subgroup, pair[0].name, pair[0].unit)]
        if not picked:
            return None
        return types.SimpleNamespace(channels=tuple(c for c, _ in picked), note="",
                                     sample=lambda: self.sample([f for _, f in picked]))

    def sample(self, functions):
        self.samples += 1
        out = []
        for f in functions:
            stamp, values = f(self.t)
            out.append((None if stamp is None else int(stamp * MS), values if isinstance(values, tuple) else (int(values),)))
        return out

    def number(self, name):
        return None

    def text(self, name):
        return None

    def get(self, entry, key):
        return None

    def named(self, name):
        return []

    def services(self, name):
        return ["gpu"] if name == "IOAccelerator" else []

    def class_name(self, entry):
        return "AGXAcceleratorG13G"

    def alive(self, entry):
        return True

    def cpu_ticks(self):
        return self.ticks


def batched(watt, every=2000.0, phase=0.0, start=0):
    """A counter published each `every` ms."""
    def f(t):
        n = math.floor((t - phase) / every)
        stamp = n * every + phase
        return stamp, start + stamp * watt
    return f


def live(watt):
    """A counter in nJ stamped when sampled."""
    return lambda t: (t, t * watt * 1000000)


def steps(*rows):
    """(from ms, stamp, value) rows."""
    def f(t):
        current = rows[0]
        for row in rows:
            if t >= row[0]:
                current = row
        return current[1], current[2]
    return f


def gpuph(active, start=0.0):
    """GPUPH with a share active, in 24 MHz ticks of the clock since boot."""
    def f(t):
        ticks = int(t * 24000)
        return t, (ticks - int(ticks * active), int(ticks * active))
    return Channel("GPUPH", "GPU Stats", "24Mticks", ("OFF", "P1"), "GPU Performance States"), f


def engine_of(*lanes, start=100000.0):
    mac = ScriptedMac(list(lanes), start)
    return ag._Engine(mac), mac


def ask(engine, figure, *args, timeout=None):
    """Watts of a power figure, or the reason."""
    try:
        wait = engine.timeout if timeout is None else int(timeout * ag._NS)
        return engine.settle(lambda w: figure(w, *args), engine.window, wait).value / 1000
    except ag.AppleGPUError as error:
        return error.reason


CPU, CPU2, ANE, ANE2, GPU = (Channel("CPU Energy"), Channel("DIE_1_CPU Energy"), Channel("ANE0"), Channel("ANE0_1"),
                             Channel("GPU Energy", unit="nJ"))


@pytest.mark.parametrize("cpu, expected", [(batched(2), 0.0), (steps((0, 1, 0)), "frozen"), (steps((0, 99999, 0)), "frozen")])
def test_zero_of_a_rail_depends_on_the_rail_that_is_never_zero(cpu, expected):
    engine, mac = engine_of((CPU, cpu), (ANE, lambda t: (math.floor(t / 2000) * 2000, 500)))
    assert ask(engine, engine.rail_power, "ane") == expected


def test_cpu_energy_of_zero_is_frozen_also_on_one_die_of_two():
    engine, mac = engine_of((CPU, lambda t: (math.floor(t / 2000) * 2000, 0)))
    assert ask(engine, engine.rail_power, "cpu") == "frozen" and mac.slept_for == 0
    assert ask(engine, engine.rail_energy, "cpu") == "frozen"
    both = (Channel("DIE_0_CPU Energy"), batched(2)), (CPU2, lambda t: (math.floor(t / 2000) * 2000, 0))
    engine, _ = engine_of(*both)
    assert ask(engine, engine.rail_power, "cpu") == "frozen"


def test_dram_is_never_zero():
    engine, _ = engine_of((CPU, batched(2)), (Channel("DRAM0"), lambda t: (math.floor(t / 2000) * 2000, 500)))
    assert ask(engine, engine.rail_power, "dram") == "frozen"


def test_one_ane_die_idle():
    engine, _ = engine_of((CPU, batched(2)), (Channel("ANE0_0"), batched(1)),
                          (ANE2, lambda t: (math.floor(t / 2000) * 2000, 500)))
    assert ask(engine, engine.rail_power, "ane") == 1.0


def test_dies_on_their_own_stamps():
    """Die 0 publishes at 0 and 2000, die 1 at 25 and 2025: the rail has a reading once both have one."""
    lanes = (Channel("DIE_0_CPU Energy"), batched(1)), (CPU2, batched(2, phase=25))
    engine, mac = engine_of(*lanes, start=100030.0)
    assert ask(engine, engine.rail_power, "cpu", timeout=0) == "first"
    mac.t = 102010.0
    assert ask(engine, engine.rail_power, "cpu", timeout=0) == "first"
    mac.t = 102080.0
    assert ask(engine, engine.rail_power, "cpu", timeout=0) == 3.0


def test_absent_die_leaves_the_rail_without_a_reading():
    lanes = (Channel("DIE_0_CPU Energy"), batched(1)), (CPU2, lambda t: (t, ag.INT64_MIN))
    engine, mac = engine_of(*lanes)
    assert ask(engine, engine.rail_power, "cpu") == "absent" and mac.slept_for == 0


@pytest.mark.parametrize("active, gap, expected", [(0.03, 1000, 0.0), (0.63, 1000, "frozen"), (0.63, 100, "first")])
def test_gpu_zero_beside_activity(active, gap, expected):
    engine, mac = engine_of((GPU, lambda t: (t, 5000)), gpuph(active))
    ask(engine, engine.rail_power, "gpu", timeout=0)
    mac.t += gap
    assert ask(engine, engine.rail_power, "gpu", timeout=0) == expected


def test_gpu_energy_wins_over_gpu0_and_is_never_added():
    engine, _ = engine_of((Channel("GPU0"), batched(3)), (GPU, live(3)), (CPU, batched(1)))
    feed, lanes = engine.rail("gpu")
    assert [feed.channels[i].name for i in lanes] == ["GPU Energy"]
    assert ask(engine, engine.rail_power, "gpu") == 3.0


def test_a_poller_each_minute_and_one_that_paused():
    """nJ 0, 60 s = 600 J; 120.001 s later 601 J; 0.1 s later +2 J."""
    def f(t):
        t -= 100000
        return t + 100000, int((0 if t < 1 else 600e9 if t < 60001 else 601e9 if t < 180101 else 603e9))
    engine, mac = engine_of((GPU, f))
    power = engine.rail_power
    assert ask(engine, power, "gpu", timeout=0) == "first"
    mac.t = 160000
    assert ask(engine, power, "gpu", timeout=0) == 10.0
    mac.t = 160000 + 120002
    assert ask(engine, power, "gpu", timeout=0) == "first"


def test_waiting_of_a_live_counter():
    engine, mac = engine_of((GPU, live(20)))
    power = engine.rail_power
    assert ask(engine, power, "gpu", timeout=0) == "first" and mac.slept_for == 0
    engine, mac = engine_of((GPU, live(20)))
    power = engine.rail_power
    assert ask(engine, power, "gpu") == 20.0 and (mac.samples, round(mac.slept_for, 3)) == (2, 0.1)
    for later, samples in ((0, 2), (45, 2), (10, 3)):
        mac.t += later
        assert ask(engine, power, "gpu") == 20.0 and mac.samples == samples
    assert round(mac.slept_for, 3) == 0.1


@pytest.mark.parametrize("pause_ms, asleep_ms, waited", [(60000, 0, 0.0), (119000, 0, 0.0), (121000, 0, 0.1), (1000, 3600000, 0.1)])
def test_waiting_after_a_pause(pause_ms, asleep_ms, waited):
    engine, mac = engine_of((GPU, live(20)))
    ask(engine, engine.rail_power, "gpu")
    before = mac.slept_for
    mac.t += pause_ms
    mac.asleep += asleep_ms
    assert ask(engine, engine.rail_power, "gpu") == 20.0
    assert round(mac.slept_for - before, 3) == waited


def test_the_default_window_is_a_second():
    engine, mac = engine_of((GPU, lambda t: (t, int(min(t, 102000) * 20e6))))
    for _ in range(25):
        ask(engine, engine.rail_power, "gpu", timeout=0)
        mac.t += 100
    assert ask(engine, engine.rail_power, "gpu") == 10.0


def test_waiting_of_a_batched_counter():
    engine, mac = engine_of((CPU, batched(2, every=2100)))
    assert ask(engine, engine.rail_power, "cpu") == 2.0
    assert 0 < mac.slept_for <= 2.3
    before = mac.slept_for
    assert ask(engine, engine.rail_power, "cpu") == 2.0 and mac.slept_for == before


def test_a_counter_that_never_publishes_makes_nobody_wait_twice():
    engine, mac = engine_of((CPU, steps((0, 50000, 7000))))
    assert ask(engine, engine.rail_power, "cpu") == "stale" and round(mac.slept_for, 3) == 2.5
    before, samples = mac.slept_for, mac.samples
    mac.t += 60
    assert ask(engine, engine.rail_power, "cpu") == "stale" and mac.slept_for == before
    mac.t += 15000
    assert ask(engine, engine.rail_power, "cpu", timeout=0) == "stale" and mac.slept_for == before
    mac.t += 15000
    samples = mac.samples
    assert ask(engine, engine.rail_power, "cpu") == "stale"
    assert (round(mac.slept_for - before, 3), mac.samples - samples) == (0.1, 2)


def test_a_half_hour_rail_is_waited_for_once():
    engine, mac = engine_of((CPU, batched(1, every=1800000)), start=2400000.0)
    assert ask(engine, engine.rail_power, "cpu") == "stale" and round(mac.slept_for, 3) == 2.5
    while mac.t < 5500000:
        mac.t += 1000
        assert ask(engine, engine.rail_power, "cpu") in ("stale", "slow")
    assert round(mac.slept_for, 3) == 2.5
    assert ask(engine, engine.rail_power, "cpu") == "slow"
    assert ask(engine, engine.rail_energy, "cpu") == 5400.0


def test_sleep_starts_batched_counters_anew():
    rows = steps((0, 98000, 0), (100000, 100000, 2000), (101400, 101400, 900000), (103500, 103500, 902100))
    engine, mac = engine_of((CPU, rows), start=100500.0)
    assert ask(engine, engine.rail_energy, "cpu") == 2.0
    mac.asleep += 3600000
    mac.t += 100
    assert ask(engine, engine.rail_power, "cpu", timeout=0) == "slept"
    assert ask(engine, engine.rail_energy, "cpu") == 2.0
    mac.t = 101500
    assert ask(engine, engine.rail_power, "cpu", timeout=0) == "slept"
    assert ask(engine, engine.rail_energy, "cpu") == 900.0
    mac.t = 103600
    assert ask(engine, engine.rail_power, "cpu", timeout=0) == 1.0


def test_sleep_starts_live_counters_anew():
    engine, mac = engine_of((GPU, live(20)))
    ask(engine, engine.rail_power, "gpu")
    mac.t, mac.asleep = mac.t + 500, 9999999
    assert ask(engine, engine.rail_power, "gpu", timeout=0) == "slept"
    mac.t += 100
    assert ask(engine, engine.rail_power, "gpu", timeout=0) == 20.0


def ratio(engine, figure, **more):
    got = ask(engine, figure, **more)
    return got if isinstance(got, str) else round(got * 1000, 3)


def test_a_lane_without_data_does_not_hide_its_neighbour():
    cltm = Channel("GPU_CLTM", "GPU Stats", "24Mticks", ("NO_CLTM", "P1"))
    state = {"gone": False}

    def lane(t):
        return t, ((ag.INT64_MIN,) * 2 if state["gone"] else (int(t * 24000), 0))
    engine, mac = engine_of(gpuph(0.75), (cltm, lane))
    state["gone"] = True
    engine.main.refresh()
    mac.t += 1000
    assert ratio(engine, engine.gpu_active) == 0.75
    with pytest.raises(ag.NVMLError_NotReady) as caught:
        engine.main.ratios(1, ag._NS)
    assert caught.value.reason == "absent"
    state["gone"] = False
    mac.t += 1000
    assert ratio(engine, engine.gpu_active) == 0.75
    with pytest.raises(ag.NVMLError_NotReady) as caught:
        engine.main.ratios(1, ag._NS)
    assert caught.value.reason == "reset"


@pytest.mark.parametrize("old, new, span_ms, expected", [
    ((10, 10), (10, 10), 1000, "stale"),
    ((10, 10), (9, 20), 1000, "reset"),
    ((0, 0), (9 * 24000000, 0), 1000, "reset"),
    ((0, 0), (ag.INT64_MIN, 5), 1000, "absent"),
    ((ag.INT64_MIN, 5), (7, 5), 1000, "reset"),
    ((0, 0), (6000000, 18000000), 1000, [0.25, 0.75]),
    ((0, 0), (5000000, 15000000), 1000, [0.25, 0.75]),      # of the residencies' sum, not of time
])
def test_residencies(old, new, span_ms, expected):
    try:
        got = ag._ratios(old, new, span_ms * MS, 1000 / 24)
    except ValueError as error:
        got = str(error)
    assert got == expected


def test_residencies_over_40_ms_are_no_reading():
    engine, mac = engine_of(gpuph(0.5))
    engine.main.refresh()
    mac.t += 40
    assert ratio(engine, engine.gpu_active, timeout=0) == "first"


def test_counter_that_fell_and_clock_that_went_back():
    engine, mac = engine_of(gpuph(0.5))
    assert ratio(engine, engine.gpu_active) == 0.5
    mac.t -= 50000
    assert ratio(engine, engine.gpu_active, timeout=0) == "reset"
    mac.t += 100
    assert ratio(engine, engine.gpu_active) == 0.5


def test_six_getters_of_one_poll_take_one_sample():
    engine, mac = engine_of((GPU, live(20)), (CPU, batched(2)), gpuph(0.5))
    ask(engine, engine.rail_power, "gpu")
    mac.t += 1000
    before = mac.samples
    for figure, args in ((engine.rail_power, ("gpu",)), (engine.rail_energy, ("gpu",)), (engine.gpu_active, ()),
                         (engine.gpu_utilization, ()), (engine.rail_energy, ("cpu",)), (engine.gpu_residency, ())):
        engine.settle(lambda w, f=figure, a=args: f(w, *a), ag._NS, 0)
    assert mac.samples - before == 1


def test_frozen_byte_totals():
    lanes = [(Channel("DCS RD", "AMC Stats", "B", subgroup="Perf Counters"), lambda t: (t, 77))]
    engine, mac = engine_of(*lanes)
    engine.amc.refresh()
    mac.t += 1000
    with pytest.raises(ag.NVMLError_NotReady) as caught:
        engine.settle(lambda w: engine.traffic(w, "RD"), ag._NS, 0)
    assert caught.value.reason == "frozen"


def test_cpu_ticks_need_200_ms_and_wrap():
    engine, mac = engine_of()
    mac.ticks = (2 ** 32 - 10).to_bytes(4, "little") + bytes(12)
    engine.ticks.refresh()
    mac.t += 100
    mac.ticks = (2 ** 32 - 5).to_bytes(4, "little") + bytes(12)
    with pytest.raises(ag.NVMLError_NotReady):
        engine.cpu_utilization(ag._NS, None)
    mac.t += 200
    mac.ticks = (20).to_bytes(4, "little") + bytes(4) + (10).to_bytes(4, "little") + bytes(4)
    assert engine.cpu_utilization(ag._NS, None).value == 75


def test_per_process_gpu_time():
    old = {1: (7, "a", 100), 2: (7, "a", 500), 3: (8, "b", 900)}
    new = {1: (7, "a", 400), 3: (8, "b", 100), 4: (9, "c", 10 ** 12), 5: (7, "a", 200)}
    shares = ag._client_shares(old, new, 1000)
    assert shares == {7: 50.0, 8: 0.0, 9: 100.0}        # closed: 0, fallen: 0, new: at most the interval


SAMPLING_TESTS = [value for name, value in sorted(globals().items()) if name.startswith("test_")]
MUTATIONS = [       # (text of the library, what it is changed to): each must make a case above fail
    ("_WINDOW = _NS ", "_WINDOW = 2 * _NS "), ("_WINDOW = _NS ", "_WINDOW = _NS // 2 "),
    ("_SHORTEST = 50 *", "_SHORTEST = 30 *"), ("_SHORTEST = 50 *", "_SHORTEST = 90 *"),
    ("_HOLD = 10 *", "_HOLD = 9 *"), ("_HOLD = 10 *", "_HOLD = 13 *"),
    ("_LONGEST = 120 *", "_LONGEST = 110 * "), ("_LONGEST = 120 *", "_LONGEST = 130 * "), ("_LONGEST = 120 *", "_LONGEST = 50 * "),
    ("_TIMEOUT = 5 * _NS // 2", "_TIMEOUT = 2 * _NS"), ("_TIMEOUT = 5 * _NS // 2", "_TIMEOUT = 3 * _NS"),
    ("_STEP = _NS // 10", "_STEP = _NS // 20"), ("_STEP = _NS // 10", "_STEP = _NS // 5"),
    ("_LEAD = _NS ", "_LEAD = 100 * _NS "), ("_LEAD = _NS ", "_LEAD = 1 "),
    ("_SURE = _NS ", "_SURE = _NS // 20 "), ("_SURE = _NS ", "_SURE = 5 * _NS // 2 "),
    ("_BUSY = 0.20", "_BUSY = 0.01"), ("_BUSY = 0.20", "_BUSY = 0.70"),
    ("_MAX_WATTS = 1000", "_MAX_WATTS = 10 ** 12"), ("_MAX_WATTS = 1000", "_MAX_WATTS = 10"),
    ("_COARSE = 10 *", "_COARSE = 4 *"), ("_COARSE = 10 *", "_COARSE = 30 *"), ("_COARSE_SHORTEST = 8 *", "_COARSE_SHORTEST = 5 *"),
    ("_GRAINS = 16", "_GRAINS = 1000"), ("_GRAINS = 16", "_GRAINS = 2"),
    ("_SLEPT = _NS // 2", "_SLEPT = 10 ** 6 * _NS"), ("_MOST_POINTS = 19", "_MOST_POINTS = 40"), ("_MOST_POINTS = 19", "_MOST_POINTS = 3"),
    ("_TICKS_SHORTEST = _NS // 5", "_TICKS_SHORTEST = _NS // 20"), ("_TICKS_SHORTEST = _NS // 5", "_TICKS_SHORTEST = _NS"),
    ("max(shortest, window // 2)]", "max(shortest, window // 4)]"), ("(abs(ages[i] - window), -ages[i])", "(abs(ages[i] - window), ages[i])"),
    ("return 0 if ages and ages[0] >= shortest else None", "return None"),
    ("if points[-1][0] - points[i][0] >= window:", "if points[-1][0] - points[i][0] >= window // 2:"),
    ("self.barrier = t - _SHORTEST if reason == REASON_SLEPT else None", "self.barrier = None"),
    ("if value is None or value < 0:\n            self.drop(t, REASON_ABSENT)", "if value is None:\n            self.drop(t, REASON_ABSENT)"),
    ("if stamp is None or stamp <= 0 or stamp > t + _LEAD:", "if stamp is None:"),
    ("return value != self.value\n        return stamp < self.time - _LEAD and value >= self.value", "return False\n        return stamp < self.time - _LEAD"),
    ("return stamp < self.time - _LEAD and value >= self.value", "return False"),
    ("self.points = [(self.time, self.value)] if self.points and self.value is not None else []", "self.points = []"),
    ("self.usable, self.stood = False, 0", "self.usable = False"),
    ("if self.value is not None and value < self.value:", "if False:"),
    ("self.stood += self.lapse if self.lapse <= _HOLD else 0", "pass"),
    ("self.points, self.stood = [(clock, value)], max(0, t - clock)", "self.points, self.stood = [(clock, value)], 0"),
    ("self.offset += (self.value or 0) - value", "pass"),
    ("if distance < 0 or self._too_much", "if self._too_much"),
    ("or distance > max(_LONGEST, 2 * window)", ""), ("self.stood > max(_HOLD, window) or", ""),
    ("self.points, self.reason, self.gap = [(clock, value)], REASON_SLOW, distance", "self.points, self.reason = [(clock, value)], REASON_SLOW"),
    ("return REASON_SLOW if self.gap and self.age() <= 2 * self.gap else REASON_STALE", "return REASON_STALE"),
    ("if self.age() > max(_HOLD, 2 * self.gap):", "if self.age() > _HOLD:"), ("if self.age() > max(_HOLD, 2 * self.gap):", "if False:"),
    ("if self.points and self.age() > max(_HOLD, window):", "if False:"),
    ("if self.time is not None and 0 <= now - self.time < _SHORTEST:", "if False:"),
    ("elif t < self.time:\n            self.drop(t, REASON_RESET)", "elif False:\n            pass"),
    ("elif asleep - before > _SLEPT:", "elif False:"), ("elif t - self.time > max(_LONGEST, 2 * self.window):", "elif False:"),
    ("if total == 0:\n        raise ValueError(REASON_STALE)", "if total == 0:\n        return [0.0 for _ in gone]"),
    ("if total * tick_ns > 1.25 * span_ns + 1e8:", "if False:"), ("if INT64_MIN in new:", "if False:"),
    ("if INT64_MIN in old or any(n < o for o, n in zip(old, new)):", "if False:"), ("return [g / total for g in gone]", "return [g * tick_ns / span_ns for g in gone]"),
    ('return rail in ("cpu", "dram") or (energy.batched and not alive) or (rail == "gpu" and busy)', "return False"),
    ('return rail in ("cpu", "dram") or', "return"), ("(energy.batched and not alive) or", ""), ('or (rail == "gpu" and busy)', ""),
    ("return REASON_FIRST if change[1] < _SURE else REASON_FROZEN", "return REASON_FROZEN"),
    ("if doubtful and energy.value == 0 and energy.batched:", "if False:"), ("min(reasons, key=_BADNESS.index)", "max(reasons, key=_BADNESS.index)"),
    ("if error.reason == REASON_STALE and getattr", "if False and getattr"), ("or error.reason in (REASON_FROZEN, REASON_ABSENT):", ":"),
    ("if timeout <= 0 or now >= until", "if now >= until"),
    ("gone = max(0, ns - before[2]) if before is not None else min(ns, span_ns)", "gone = ns - before[2] if before is not None else min(ns, span_ns)"),
    ("else min(ns, span_ns)", "else ns"), ("gone = [(a - b) & 0xFFFFFFFF", "gone = [(a - b)"),
    ("if not moved and not stems and span >= _SURE:", "if False:"),
]


@pytest.mark.parametrize("old, new", MUTATIONS, ids=lambda text: text[:40])
def test_each_constant_and_rule_matters(old, new, monkeypatch):
    text = source()
    assert old in text
    mutant = types.ModuleType("mutant")
    sys.modules["mutant"] = mutant
    exec(compile(text.replace(old, new, 1), "mutant", "exec"), mutant.__dict__)
    monkeypatch.setitem(globals(), "ag", mutant)
    assert any(fails(test) for test in SAMPLING_TESTS)


def fails(test):
    """True when a case of a sampling test fails."""
    marks = [m for m in getattr(test, "pytestmark", ()) if m.name == "parametrize"]
    names = [n.strip() for n in marks[0].args[0].split(",")] if marks else []
    cases = [c if len(names) > 1 else (c,) for c in marks[0].args[1]] if marks else [()]
    for case in cases:
        try:
            test(**dict(zip(names, case)))
        except (AssertionError, ZeroDivisionError, IndexError, KeyError, ValueError, TypeError, RecursionError, pytest.fail.Exception):
            return True
        except Exception as error:
            if isinstance(error, ag.AppleGPUError):
                return True
            raise
    return False


# ======================================================================================================================
# recordings: what each Mac must answer, over the player and over the C ABI
# ======================================================================================================================

MACS = {os.path.basename(path)[:-5]: json.load(open(path, encoding="utf-8")) for path in RECORDINGS}
CODE = compile(open(os.path.join(HERE, "pyapplegpu.py"), encoding="utf-8").read(), "pyapplegpu.py", "exec")


def load_copy(name):
    """A fresh copy of the module under another name, as a vendored one."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(CODE, module.__dict__)
    return module


def plain(value):
    """NamedTuples and tuples as lists, the way JSON has them."""
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def same(got, wanted):
    """Exact, but for floats: 1e-3 of the wanted value."""
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(same, got, wanted))
    if isinstance(got, dict) and isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(same(got[k], wanted[k]) for k in wanted)
    if isinstance(got, float) or isinstance(wanted, float):
        return isinstance(got, (int, float)) and isinstance(wanted, (int, float)) and abs(got - wanted) <= max(
            1e-9, 1e-3 * abs(wanted))
    return type(got) is type(wanted) and got == wanted


def answer(module, case, source):
    """What a function says of a fresh engine: a value, or (error name, reason)."""
    function = getattr(module, case["call"])
    try:
        if case["call"].startswith("System"):
            module.LibraryInit(source, speed=0)
            try:
                return plain(function(*case["args"]))
            finally:
                module.LibraryShutDown()
                module._library.engine = None
        device = module.LibraryOpen(source, speed=0)
        first = [device, device] if case["call"] in ("DeviceGetTopologyLevel", "DeviceGetP2PStatus") else [device]
        return plain(function(*first, *[a for a in case["args"] if a != "device"]))
    except module.AppleGPUError as error:
        return (type(error).__name__.split("_")[-1], error.reason)


def disagreement(module, case, source):
    """None when the case holds, else both sides."""
    got = answer(module, case, source)
    if "matches" in case:
        import re
        good = isinstance(got, str) and re.search(case["matches"], got)
    elif "error" in case:
        good = got == (case["error"], case["reason"])
    else:
        good = same(got, case["value"])
    return None if good else "%s%s: %r, wanted %r (%s)" % (
        case["call"], case["args"], got, case.get("value", (case.get("error"), case.get("reason"))), case["why"])


@pytest.mark.parametrize("mac", sorted(MACS))
def test_expected_over_the_player(mac):
    wrong = [disagreement(ag, case, recording(mac)) for case in MACS[mac]["expected"]]
    assert [w for w in wrong if w] == []


@pytest.mark.parametrize("mac", sorted(MACS))
def test_expected_over_the_c_abi(mac, monkeypatch):
    """The same ctypes code as on a Mac, against stand-ins that check every call; nothing may be left behind."""
    monkeypatch.syspath_prepend(os.path.join(HERE, "examples"))
    fakemac = pytest.importorskip("fakemac")
    wrong = []
    for case in MACS[mac]["expected"]:
        with fakemac.Mac(MACS[mac], speed=0):
            module = load_copy("pyapplegpu_on_a_mac")
            wrong.append(disagreement(module, case, None))
    assert [w for w in wrong if w] == []


def test_every_function_is_expected_of_every_mac():
    functions = {n for n in ag.__all__ if n.startswith(("Device", "Memory", "Ane", "Cpu", "Vpu", "Process", "System"))
                 and inspect.isfunction(getattr(ag, n))} - {
        "DeviceGetSnapshot", "DeviceGetTopologyLevel", "DeviceGetP2PStatus"}
    for mac, data in MACS.items():
        asked = {case["call"] for case in data["expected"]}
        fans = next(c for c in data["expected"] if c["call"] == "DeviceCountFan")
        missing = functions - asked - (set() if fans.get("value") else {"DeviceGetFanRpm", "DeviceGetFanSpeed"})
        assert not missing, (mac, missing)


def test_refusals_only_fall():
    """README counts answers and refusals per recording; a change may only lower the refusals."""
    counted = {mac: [sum("error" not in c for c in data["expected"]), sum("error" in c for c in data["expected"])]
               for mac, data in MACS.items()}
    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as f:
        readme = f.read()
    for mac, (answers, refusals) in counted.items():
        assert "| `%s` | %d | %d |" % (mac, answers, refusals) in readme, (mac, answers, refusals)


def test_first_sight_of_two_macs():
    """The figures that the project promises of its two anchored recordings."""
    m4, m1 = ag.LibraryOpen(recording("m4-macos27")), ag.LibraryOpen(recording("m1-macos11"))
    assert ag.DeviceGetEngineUtilization(m4) == (17, 15, 15)
    assert (ag.MemoryGetUsed(m4), ag.MemoryGetAllocated(m4)) == (430571520, 4597121024)
    assert ag.DeviceGetEngineUtilization(m1) == (0, 0, 0)
    assert (ag.MemoryGetUsed(m1), ag.DeviceCountGpuCores(m1)) == (6373376, 8)
    assert (ag.DeviceGetSupportedClocks(m1)[0], ag.DeviceGetMaxClock(m1)) == (396, 1278)
    busiest = ag.DeviceGetProcesses(m1, timeout=0)[0]
    assert (busiest.pid, busiest.name) == (357, "WindowServer") and round(busiest.gpu_time_ns / 1e9, 2) == 249.66


# ======================================================================================================================
# snapshots, deltas, Try, lifecycle, arguments
# ======================================================================================================================

FIELDS = [field for row in ag._SNAPSHOT for field, _ in row[3]]


@pytest.mark.parametrize("mac", sorted(MACS))
def test_a_snapshot_holds_a_value_or_a_reason(mac):
    device = ag.LibraryOpen(recording(mac), speed=0)
    for _ in range(3):
        snapshot = ag.DeviceGetSnapshot(device)
        for field in FIELDS:
            assert (getattr(snapshot, field) is None) == (field in snapshot.reasons), field
        assert set(snapshot.reasons) == set(snapshot.messages)
    json.dumps(snapshot.to_dict())


def test_snapshot_fields_are_declared_once_and_documented():
    assert len(FIELDS) == len(set(FIELDS))
    assert set(FIELDS) <= set(ag.Snapshot.__annotations__)


@pytest.mark.parametrize("part", ag.PARTS)
def test_a_part_not_asked_for_costs_nothing(part):
    device = ag.LibraryOpen(recording("m4-macos27"), speed=0)
    snapshot = ag.DeviceGetSnapshot(device, parts=[part])
    for row in ag._SNAPSHOT:
        for field, _ in row[3]:
            assert (snapshot.reasons.get(field) == "not_asked") == (part not in row[0]), field
    feeds = {"bandwidth": "amc", "processes": "clients", "cpu": "ticks"}
    for other, feed in feeds.items():
        if part != other and (part, other) != ("clocks", "cpu"):        # clusters are of both parts
            assert getattr(device._engine, feed).time is None, (part, feed)


def test_snapshot_delta_is_exact_and_nobody_elses_business():
    device = ag.LibraryOpen(recording("m5max-macos27"), speed=0)
    a = ag.DeviceGetSnapshot(device)
    for _ in range(4):
        ag.DeviceGetSnapshot(device, timeout=0)
    b = ag.DeviceGetSnapshot(device, timeout=0)
    delta = ag.SnapshotDelta(a, b)
    assert delta.seconds == pytest.approx(b.time_mono_s - a.time_mono_s)
    assert delta.joules["gpu"] == pytest.approx((b.gpu_energy_mj - a.gpu_energy_mj) / 1000, abs=0.01)
    assert delta.uncertainty_joules["gpu"] < delta.uncertainty_joules["cpu"] < delta.joules["cpu"]
    assert 0 <= delta.gpu_active_s <= delta.seconds
    missing = [rail for rail, joules in delta.joules.items() if joules is None]
    assert set(missing) <= set(delta.reasons)


def snapshot_at(second, *lanes):
    """A snapshot of a machine whose CPU rail has published these (second, joules) on each die."""
    snapshot = object.__new__(ag.Snapshot)
    snapshot.time_mono_s, snapshot.source = float(second), "made"
    snapshot._points = {"cpu": [[(int(t * ag._NS), j * 1000.0) for t, j in lane] for lane in lanes]} if lanes else {}
    snapshot._active_ns, snapshot._bytes, snapshot._clients, snapshot.reasons = None, {}, None, {}
    return snapshot


@pytest.mark.parametrize("a, b, after, joules, unsure", [
    # publications each 2 s at 10 W; from 3 s to 9 s: exactly 60 J once the publication after the end is known
    (snapshot_at(3, [(2, 20)]), snapshot_at(9, [(6, 60), (8, 80)]), snapshot_at(10.1, [(8, 80), (10, 100)]), 60.0, 20.0),
    # without it the last second is unknown: what lies before it, and its doubt
    (snapshot_at(3, [(2, 20)]), snapshot_at(9, [(6, 60), (8, 80)]), None, 50.0, 20.0),
    # published at the very moments: exact
    (snapshot_at(2, [(2, 20)]), snapshot_at(8, [(8, 80)]), None, 60.0, 0.0),
    # each die on its own stamps
    (snapshot_at(2, [(2, 20)], [(1, 5)]), snapshot_at(4, [(4, 40)], [(3, 15)]), snapshot_at(6, [(6, 60)], [(5, 25)]), 30.0, 10.0),
    # nothing published meanwhile, or only before the end of a short run
    (snapshot_at(3, [(2, 20)]), snapshot_at(3.5, [(2, 20)]), None, None, None),
    (snapshot_at(3, [(2, 20)]), snapshot_at(3.5, [(2, 20)]), snapshot_at(4.1, [(4, 40)]), 5.0, 15.0),
    (snapshot_at(3, [(2, 20)]), snapshot_at(9), None, None, None),
])
def test_joules_between_publications(a, b, after, joules, unsure):
    delta = ag.SnapshotDelta(a, b, after)
    assert (delta.joules["cpu"], "cpu" in delta.reasons) == (pytest.approx(joules) if joules is not None else None, joules is None)
    assert delta.uncertainty_joules["cpu"] == (pytest.approx(unsure) if unsure is not None else None)


def test_published_tells_when_a_region_is_settled():
    device = ag.LibraryOpen(recording("m5max-macos27"), speed=0)
    ag.DeviceGetSnapshot(device, timeout=2.5)
    a = ag.DeviceGetSnapshot(device, ["power"], timeout=0)
    for _ in range(3):
        b = ag.DeviceGetSnapshot(device, ["power"], timeout=0)
    after = b
    while after.published["cpu"] < b.time_mono_s:
        after = ag.DeviceGetSnapshot(device, ["power"], timeout=0)
    settled = ag.SnapshotDelta(a, b, after)
    assert settled.joules["cpu"] == pytest.approx(b.cpu_power_mw / 1000 * settled.seconds, rel=0.15)
    assert ag.SnapshotDelta(a, b).joules["cpu"] < settled.joules["cpu"]


@pytest.mark.parametrize("a, b", [(None, None), (1, 2)])
def test_snapshot_delta_arguments(a, b):
    with pytest.raises(ag.NVMLError_InvalidArgument):
        ag.SnapshotDelta(a, b)


def test_try_never_raises_for_a_missing_figure():
    vm = ag.LibraryOpen(recording("vm-macos15"), speed=0)
    missing = ag.Try(ag.DeviceGetPowerUsage, vm)
    assert missing.value is None and missing.reason == "virtual_machine" and "virtual machine" in missing.message
    m4 = ag.LibraryOpen(recording("m4-macos27"), speed=0)
    assert ag.Try(ag.MemoryGetUsed, m4)[:2] == (430571520, None)
    power = ag.Try(ag.DeviceGetPowerUsage, m4)
    assert power.value == 1200 and power.interval_s == pytest.approx(1.0) and power.age_s < 1
    with pytest.raises(ag.NVMLError_InvalidArgument):
        ag.Try(ag.DeviceGetPowerUsage, "gpu")


def test_lifecycle():
    with pytest.raises(ag.NVMLError_Uninitialized):
        ag.LibraryCountDevice()
    with pytest.raises(ag.NVMLError_Uninitialized):
        ag.LibraryShutDown()
    ag.LibraryInit(recording("m4-macos27"))
    ag.LibraryInit(recording("m4-macos27"))
    device = ag.LibraryInitDeviceByIndex(0)
    assert {device: 1}[ag.LibraryInitDeviceByUuid(ag.DeviceGetUUID(device))] == 1
    with pytest.raises(ag.NVMLError_InvalidArgument):
        ag.LibraryInit(recording("m1-macos11"))
    ag.LibraryShutDown()
    assert ag.MemoryGetUsed(device) == 430571520
    ag.LibraryShutDown()
    with pytest.raises(ag.NVMLError_Uninitialized):
        ag.MemoryGetUsed(device)
    ag.LibraryInit(recording("m4-macos27"))
    assert ag.MemoryGetUsed(device) == 430571520        # valid again, and on the same histories
    ag.LibraryShutDown()
    ag.LibraryInit(recording("m1-macos11"))
    with pytest.raises(ag.NVMLError_NotFound):
        ag.MemoryGetUsed(device)


def test_private_engines_side_by_side():
    m4, m1 = ag.LibraryOpen(recording("m4-macos27")), ag.LibraryOpen(recording("m1-macos11"))
    assert ag.MemoryGetUsed(m4) != ag.MemoryGetUsed(m1) and m4 != m1
    ag.LibraryClose(m4)
    with pytest.raises(ag.NVMLError_Uninitialized):
        ag.MemoryGetUsed(m4)
    assert ag.MemoryGetUsed(m1) == 6373376


def test_rates_survive_init_and_shutdown_around_each_poll():
    seen = []
    for _ in range(4):
        ag.LibraryInit(recording("m5max-macos27"), speed=0)
        seen.append(ag.Try(ag.DeviceGetPowerUsage, ag.LibraryInitDeviceByIndex(0), timeout=0).value)
        ag.LibraryShutDown()
    assert seen[0] is None and all(isinstance(v, int) for v in seen[1:])


@pytest.mark.parametrize("call", [
    lambda d: ag.DeviceGetUtilization(None),
    lambda d: ag.DeviceGetUtilization(d, window=0.01),
    lambda d: ag.DeviceGetUtilization(d, window="1"),
    lambda d: ag.DeviceGetUtilization(d, window=float("nan")),
    lambda d: ag.DeviceGetUtilization(d, timeout=-1),
    lambda d: ag.DeviceGetFanRpm(d, -1),
    lambda d: ag.DeviceGetFanRpm(d, True),
    lambda d: ag.CpuGetClock(d, 99),
    lambda d: ag.CpuGetClock(d, "0"),
    lambda d: ag.MemoryGetReadBandwidth(d, "tpu"),
    lambda d: ag.VpuGetPower(d, "av1"),
    lambda d: ag.ProcessGetGpuTime(d, -5),
    lambda d: ag.DeviceGetSnapshot(d, parts=["cpus"]),
    lambda d: ag.DeviceGetSnapshot(d, timeout=None),
    lambda d: ag.LibraryClose(None),
    lambda d: ag.LibraryInit(window=0),
    lambda d: ag.LibraryInit(recording=3.5),
    lambda d: ag.LibraryOpen(recording("m4-macos27"), speed=-1),
    lambda d: ag.LibraryRecord("x", seconds=0),
])
def test_wrong_arguments(call):
    device = ag.LibraryOpen(recording("m4-macos27"), speed=0)
    with pytest.raises((ag.NVMLError_InvalidArgument, ag.NVMLError_Uninitialized)) as caught:
        call(device)
    assert len(str(caught.value)) > 20


def test_without_an_apple_gpu_every_entry_point_says_so():
    if sys.platform == "darwin":
        pytest.skip("this is a Mac")
    for enter in (ag.LibraryInit, ag.LibraryOpen):
        with pytest.raises(ag.NVMLError_LibraryNotFound) as caught:
            enter()
        assert "recording" in str(caught.value)
    for command in ([sys.executable, os.path.join(HERE, "pyapplegpu.py")], [sys.executable, "-m", "pyapplegpu"]):
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
        assert done.returncode == ag.ERROR_LIBRARY_NOT_FOUND and done.stdout == ""
        assert len(done.stderr.strip().splitlines()) == 1 and "--recording" in done.stderr


# ======================================================================================================================
# decoders, on the bytes of real Macs
# ======================================================================================================================

M1_GPU = "0000000090010000007b9a175402000000a4781f770200000054ea2a96020000001f1337f702000000ea3b435203000080bb2c4c93030000"
M1_E_SRAM = "0046c32303030000008bef390303000000b5644f2003000000fa9065770300000024067bc2030000"
M5_SUPER = "60f51300f802000020b818001103000060361e003403000020f9220057030000205e27007503000000f22b0098030000e0853000b6030000" \
           "405e3400d403000000aa3700f203000020693a00fc03000080ca3c0015040000409f3e002904000060e73f0033040000e0a2400033040000" \
           "605e41003304000020bc410033040000e019420033040000e09043003304000000d94400600400000050460060040000"
M5_SUPER_PERIODS = "b7c3000085020000069e0000b20200004a810000c6020000b16f0000df020000"
A18_GPU_MHZ = (0, 338, 492, 618, 796, 928, 952, 1056, 1053, 1170, 1152, 1278, 1204, 1338, 1326, 1470)


@pytest.mark.parametrize("decode, hexed, first, last, count", [
    (ag._gpu_clocks, M1_GPU, 0, 1278, 7),
    (ag._cpu_clocks, M1_E_SRAM, 600, 2064, 5),                 # Hz
    (ag._cpu_clocks, M5_SUPER, 1308, 4608, 20),                # kHz
    (ag._period_clocks, M5_SUPER_PERIODS, 1308, 2292, 4),      # periods
])
def test_clock_tables(decode, hexed, first, last, count):
    got = decode(bytes.fromhex(hexed))
    assert (got[0], got[-1], len(got)) == (first, last, count)


def test_unsorted_tables_keep_their_positions():
    assert ag._state_clock("P8", A18_GPU_MHZ) == 1053 and ag._state_clock("P9", A18_GPU_MHZ) == 1170
    assert ag._state_clock("P15", (0, 396)) is None and ag._state_clock("OFF", A18_GPU_MHZ) is None
    assert max(A18_GPU_MHZ) == 1470


@pytest.mark.parametrize("data, clusters", [("160000000000000017010000000000000502000000000000", (22, 23, 5)), ("", ()), ("16", ())])
def test_acc_clusters(data, clusters):
    assert ag._acc_clusters(bytes.fromhex(data)) == clusters


def test_sgx_tables():
    table = bytes.fromhex(M1_GPU)
    assert ag._sgx_clocks(table, 7, 1)[-1] == 1278
    assert ag._sgx_clocks(table * 4, 7, 4) == ag._sgx_clocks(table, 7, 1)       # M2 Max: 9 x 4
    assert ag._sgx_clocks(table, 9, 4) == ()


@pytest.mark.parametrize("states, ratios, clocks, mhz", [
    (("OFF", "P4", "P5"), (0.0, 0.41, 0.59), (0, 1, 2, 3, 924, 1056), 1002),        # M4 Pro, powermetrics
    (("OFF", "P6"), (0.013, 0.987), (0, 396, 528, 720, 924, 1128, 1278), 1278),     # M1 at its peak
    (("OFF", "P1"), (1.0, 0.0), (0, 396), None),
])
def test_mean_clock_as_powermetrics(states, ratios, clocks, mhz):
    got = ag._mean_clock(states, ratios, clocks)
    assert (None if got is None else round(got)) == mhz


@pytest.mark.parametrize("key, kind, data, value", [
    ("Tg0C", "flt ", "00002042", 40.0),
    ("B0CT", "ui16", "7b00", 123),              # battery integers are little-endian
    ("FNum", "ui8 ", "02", 2),
    ("#KEY", "ui32", "00000d09", 3337),
    ("xxxx", "si16", "ff9c", -100),
    ("Ta0P", "sp78", "1a80", 26.5),
    ("F0Ac", "fpe2", "1518", 1350.0),
    ("TG0x", "ioft", "00801c0000000000", 28.5),
    ("x", "flt ", "0000", None),
    ("x", "ch8*", "41", None),
    ("x", "{fds", "00" * 16, None),
])
def test_smc_numbers(key, kind, data, value):
    assert ag._smc_number(key, kind, bytes.fromhex(data)) == value


@pytest.mark.parametrize("celsius, good", [(0.0, 0), (-8.8, 0), (8.4, 0), (14.9, 0), (15.0, 1), (96, 1), (131, 0), (float("nan"), 0), (None, 0)])
def test_plausible_temperatures(celsius, good):
    assert ag._plausible_celsius(celsius) == bool(good)


@pytest.mark.parametrize("word, text", [
    (0x0300007C00000000, "mJ"), (0x0300007900000000, "uJ"), (0x0300007600000000, "nJ"), (0x0900820000000000, "B"),
    (0x0100007980000018, "24Mticks"), (0x0100007900000000, "us"), (0x6400000000000000, "events"), (0, ""),
])
def test_unit_words(word, text):
    assert ag._unit_text(word) == text


RAIL_NAMES = [
    ("CPU Energy", "cpu", 0), ("DIE_0_CPU Energy", "cpu", 0), ("DIE_1_CPU Energy", "cpu", 0), ("GPU Energy", "gpu", 0),
    ("GPU0", "gpu", 1), ("GPU0_0", "gpu", 1), ("GPU", "gpu", 1), ("GPU SRAM0_0", "gpu_sram", 0), ("ANE", "ane", 0),
    ("ANE0", "ane", 0), ("ANE0_1", "ane", 0), ("DRAM0", "dram", 0), ("AVE0", "encode", 0), ("AVD0", "decode", 0),
    ("VDEC", "decode", 0), ("GPU CS0_0", None, 0), ("ECPU", None, 0), ("PCPUDTL3e", None, 0), ("AMCC0", None, 0),
    ("DRAM_X", None, 0), ("ANE0_", None, 0), ("MCPU0_CPU Energy", None, 0), ("PCIe Port 0 Energy", None, 0),
]


@pytest.mark.parametrize("name, rail, rank", RAIL_NAMES)
def test_rails_are_exact_names(name, rail, rank):
    assert ag._rail_of("Energy Model", "", name) == (None if rail is None else (rail, rank))
    assert ag._rail_of("GPU Stats", "", name) is None


@pytest.mark.parametrize("mac, cpu, wanted", [
    ("m5max-macos27", ["CPU Energy"], {"gpu": ["GPU Energy"], "ane": ["ANE0"], "dram": ["DRAM0"]}),
    ("m1ultra-macos27", ["DIE_0_CPU Energy", "DIE_1_CPU Energy"],
     {"gpu": ["GPU Energy"], "ane": ["ANE0_0", "ANE0_1"], "dram": ["DRAM0_0", "DRAM0_1"]}),
])
def test_selection_on_complete_lists(mac, cpu, wanted):
    """364 and 321 real channels: CPU power once, GPU0 beside GPU Energy never added, DTL noise ignored."""
    engine = ag.LibraryOpen(recording(mac), speed=0)._engine
    names = [c["name"] for c in MACS[mac]["ioreport"]["channels"] if c["group"] == "Energy Model"]
    assert len(names) == {"m5max-macos27": 364, "m1ultra-macos27": 321}[mac]
    for rail, channels in dict(wanted, cpu=cpu).items():
        feed, lanes = engine.rail(rail)
        assert [feed.channels[i].name for i in lanes] == channels
    assert not any("DTL" in c.name for c in engine.main.channels)
    assert len(engine.main.channels) < 40


@pytest.mark.parametrize("name, parsed", [
    ("GFX DCS RD", ("GFX", "RD", True)), ("GFX1 WR", ("GFX1", "WR", False)), ("DCS RD", ("", "RD", True)),
    ("PRIM GFX RD", ("GFX", "RD", False)), ("DIE0 DCS WR", ("", "WR", True)), ("NRT DISP RD", ("DISP", "RD", False)),
    ("ANE L0 RD+WR", ("ANE L0", "RD+WR", False)), ("DCS CAS", None), ("DCS SR CYCLES", None), ("DCS", None),
])
def test_bandwidth_names(name, parsed):
    assert ag._traffic(name) == parsed


@pytest.mark.parametrize("letters, energy, key", [
    ("ECPU", "EACC_CPU", ("", "E", "0")), ("PCPU1", "PACC1_CPU", ("", "P", "1")), ("PCPU", "PACC0_CPU", ("", "P", "0")),
    ("DIE_1_PCPU", "DIE_1_PACC0_CPU", ("DIE_1_", "P", "0")), ("MCPU1", "MCPU1", ("", "M", "1")), ("PCPU", "PCPU", ("", "P", "0")),
])
def test_cluster_names(letters, energy, key):
    assert ag._numbered(ag._cluster_state(letters)) == key
    assert ag._numbered(ag._cluster_energy(energy)) == key


@pytest.mark.parametrize("name", ["ECPM", "PCPM", "PCPM_IDLE", "PACC_0", "MCPU0_3", "PCPU0_SRAM", "DIE_0_EACC_CPU0", "GPU"])
def test_what_is_no_cluster(name):
    assert ag._cluster_energy(name) is None and ag._cluster_state(name) is None


def test_three_levels_of_an_m6():
    """Super 2, Performance 4, Efficiency 6: fastest first (m6-macos27.0.1-sysctl-topology-1)."""
    engine, mac = engine_of()
    answers = {"hw.nperflevels": 3, "hw.perflevel0.physicalcpu": 2, "hw.perflevel1.physicalcpu": 4, "hw.perflevel2.physicalcpu": 6,
               "hw.perflevel0.name": "Super", "hw.perflevel1.name": "Performance", "hw.perflevel2.name": "Efficiency"}
    mac.number = mac.text = answers.get
    assert engine._core_types("EMP") == {"P": "Super", "M": "Performance", "E": "Efficiency"}
    assert [engine._cluster_cores("EMP", letter, 0) for letter in "PME"] == [2, 4, 6]
    assert engine._cluster_cores(["E", "M", "M", "P"], "M", 0) == 2


def test_cores_of_an_m3_ultra():
    """gpu-core-count says 60 where the design's variable counts 80."""
    engine, mac = engine_of()
    mac.get = lambda entry, key: {"gpu-core-count": 60, "GPUConfigurationVariable": {"num_cores": 80}}.get(key)
    assert engine.gpu_cores().value == 60


def test_decoders_on_random_bytes():
    """Only AppleGPUError, or ValueError with a reason, comes out of bytes and names that no Mac has."""
    rng = random.Random(11)
    text = "PVE0123456789_ DIERDWR+GB/s\u00e9\0%"
    for _ in range(3000):
        data = bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
        name = "".join(rng.choice(text) for _ in range(rng.randrange(14)))
        for decode in (ag._gpu_clocks, ag._cpu_clocks, ag._period_clocks, ag._acc_clusters, ag._pairs):
            decode(data)
        ag._sgx_clocks(data, rng.randrange(-2, 20), rng.randrange(-2, 5))
        ag._smc_number(name, rng.choice(("flt ", "ui16", "si8 ", "ui99", "{x", name)), data)
        for parse in (ag._strip_die, ag._cluster_energy, ag._cluster_state, ag._traffic, ag._bucket_gb, ag._state_number,
                      ag._client_pid, ag._architecture):
            parse(name)
        ag._rail_of("Energy Model", "", name)
        ag._client_gpu_ns(rng.choice((None, [], [name], [{"accumulatedGPUTime": name}], {}, 7)))
        row = [rng.choice((0, 5, 2 ** 62, ag.INT64_MIN)) for _ in range(3)]
        try:
            ag._ratios(row, [rng.choice((0, 9, ag.INT64_MIN)) for _ in range(3)], rng.randrange(1, 10 ** 10), 41.6)
        except ValueError as error:
            assert str(error) in ag._BADNESS


# ======================================================================================================================
# errors
# ======================================================================================================================

def test_errors():
    import pickle
    error = ag.NVMLError(3, "chip", "smc", "no such key")
    assert type(error) is ag.NVMLError_NotSupported is ag.AppleGPUError_NotSupported and ag.NVMLError is ag.AppleGPUError
    assert (error.value, error.code, error.reason, error.source, error.detail) == (3, 3, "chip", "smc", "no such key")
    assert str(error) == "Not Supported: no such key [smc]" and "nvml" in type(error).__name__.lower()
    assert error != None and error != 3 and error == ag.NVMLError(3, "chip", "smc", "no such key")      # noqa: E711
    assert {error: 1}[pickle.loads(pickle.dumps(error))] == 1
    assert ag.NVMLError_NoData().value == 21 and type(ag.NVMLError(4711)) is ag.AppleGPUError
    other = load_copy("vendored_pyapplegpu")
    theirs = pickle.loads(pickle.dumps(other.NVMLError(27, "first")))
    assert type(theirs) is other.NVMLError_NotReady and theirs.reason == "first" and theirs != ag.NVMLError(27, "first")


def test_every_reason_has_advice():
    reasons = {value for name, value in vars(ag).items() if name.startswith("REASON_")}
    assert reasons == set(ag._ADVICE)


# ======================================================================================================================
# the file itself
# ======================================================================================================================

SECTIONS = ["constants", "errors", "values", "prototypes", "bridge", "sources", "recording", "decoders", "chips", "engine",
            "API", "Metal", "NVML names", "main"]


def source():
    with open(os.path.join(HERE, "pyapplegpu.py"), encoding="utf-8") as f:
        return f.read()


def section_starts(text):
    lines = text.split("\n")
    rule = "# " + "=" * 118
    return {lines[i + 1][2:]: i + 2 for i in range(len(lines) - 2) if lines[i] == rule and lines[i + 2] == rule}


def test_a_section_uses_only_the_sections_above_it():
    """Names used when a section runs or is called must be defined above, or in it."""
    text = source()
    starts = section_starts(text)
    assert list(starts) == SECTIONS
    order = sorted(starts.items(), key=lambda pair: pair[1])

    def section_of(line):
        return max((n for n, (_, start) in enumerate(order) if start <= line), default=-1)
    tree = ast.parse(text)
    defined = {}
    for node in tree.body:
        names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else [
            t.id for target in getattr(node, "targets", [getattr(node, "target", None)]) for t in ast.walk(target or ast.Pass())
            if isinstance(t, ast.Name)]
        for name in names:
            defined.setdefault(name, section_of(node.lineno))
    wrong = sorted({(order[section_of(n.lineno)][0], n.id, order[defined[n.id]][0]) for n in ast.walk(tree)
                    if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and n.id in defined
                    and defined[n.id] > section_of(n.lineno) and not is_annotation(tree, n)})
    assert wrong == []


def is_annotation(tree, name):
    """True for a name inside an annotation (those are strings at run time)."""
    if not hasattr(tree, "_annotated"):
        tree._annotated = set()
        for node in ast.walk(tree):
            for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
                if part is not None:
                    tree._annotated.update(id(n) for n in ast.walk(part))
    return id(name) in tree._annotated


def test_no_name_is_defined_twice():
    seen, twice = set(), []
    for node in ast.parse(source()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            twice += [node.name] if node.name in seen else []
            seen.add(node.name)
    assert twice == []


def test_public_functions_say_what_they_give():
    bare = [name for name in ag.__all__ if inspect.isfunction(getattr(ag, name)) and not name.lstrip("_").startswith("nvml")
            and not inspect.getdoc(getattr(ag, name))]
    assert bare == []


def test_nothing_catches_everything():
    import re
    assert re.findall(r"except\s*(?:Exception|BaseException)?\s*:", source()) == []


def test_imports_are_the_cheap_ones():
    """typing, collections, threading, dataclasses, enum, ctypes.util and the like would cost start-up."""
    code = ("import sys; before = set(sys.modules); import ctypes, struct, array; mine = set(sys.modules)\n"
            "import pyapplegpu; print(sorted(set(sys.modules) - mine - {'pyapplegpu'}))")
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout)) <= {"__future__", "weakref", "_weakrefset", "_weakref", "_operator", "itertools"}


def test_runs_without_what_other_systems_lack():
    code = ("import os, time\nfor m, n in ((os, 'fork'), (os, 'getuid'), (time, 'CLOCK_UPTIME_RAW'), (os, 'register_at_fork')):\n"
            "    m.__dict__.pop(n, None)\nimport pyapplegpu as ag\nd = ag.LibraryOpen(%r)\nprint(ag.MemoryGetUsed(d))"
            % recording("m4-macos27"))
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert done.stdout == "430571520\n", done.stderr


@pytest.mark.parametrize("how", ["isolated", "zip", "package"])
def test_copied_elsewhere(how, tmp_path):
    import shutil
    import zipfile
    home = os.path.join(HERE, "pyapplegpu.py")
    ask_it = "print(ag.MemoryGetUsed(ag.LibraryOpen(%r)))" % recording("m4-macos27")
    if how == "zip":
        with zipfile.ZipFile(tmp_path / "lib.zip", "w") as z:
            z.write(home, "third_party_gpu.py")
        code, path = "import third_party_gpu as ag\n", tmp_path / "lib.zip"
    elif how == "package":
        (tmp_path / "host" / "third_party").mkdir(parents=True)
        shutil.copy(home, tmp_path / "host" / "third_party" / "_gpu.py")
        code, path = "from host.third_party import _gpu as ag\n", tmp_path
    else:
        shutil.copy(home, tmp_path / "ag.py")
        code, path = "import ag\n", tmp_path
    done = subprocess.run([sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, %r)\n" % str(path) + code + ask_it],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "430571520\n", done.stderr


def test_two_copies_in_one_process():
    one, two = load_copy("copy_one"), load_copy("copy_two")
    one.LibraryInit(recording("m4-macos27"))
    two.LibraryInit(recording("m1-macos11"))
    assert one.MemoryGetUsed(one.LibraryInitDeviceByIndex(0)) == 430571520
    assert two.MemoryGetUsed(two.LibraryInitDeviceByIndex(0)) == 6373376
    with pytest.raises(two.NVMLError_InvalidArgument):
        two.MemoryGetUsed(one.LibraryInitDeviceByIndex(0))


def test_star_import_brings_the_api():
    space = {}
    exec("from pyapplegpu import *", space)
    for name in ("AneGetPower", "DeviceGetUtilization", "LibraryInit", "Try", "AppleGPUError", "Snapshot", "nvmlInit"):
        assert name in space
    assert "ctypes" not in space and "os" not in space


def test_readme_lists_every_function_with_its_signature():
    import re
    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as f:
        table = f.read().split("<!-- functions -->")[1].split("<!-- /functions -->")[0]
    rows = dict(re.findall(r"^\| `(\w+)\((.*?)\)`", table, re.M))
    functions = [n for n in ag.__all__ if inspect.isfunction(getattr(ag, n)) and not n.lstrip("_").startswith("nvml")
                 and not n.startswith(("Metal", "main"))]
    for name in functions:
        assert rows.get(name) == shown_signature(getattr(ag, name)), name
    assert set(rows) <= set(ag.__all__)


def shown_signature(function):
    """Parameters and defaults without annotations: "device, window=None"."""
    shown = []
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        shown.append(str(p).split(":")[0] if p.default is p.empty else "%s=%r" % (p.name, p.default))
    return ", ".join(shown)


def test_forked_child_starts_anew():
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    device = ag.LibraryOpen(recording("m4-macos27"), speed=0)
    ag.DeviceGetPowerUsage(device)
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if (ag.Try(ag.DeviceGetPowerUsage, device, timeout=0).reason == "first"
                         and ag.MemoryGetUsed(device) == 430571520) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    sys.exit(pytest.main([__file__] + sys.argv[1:]))
