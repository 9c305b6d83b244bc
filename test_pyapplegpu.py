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


@pytest.mark.parametrize("rows", [BATCHED, SLOW, FALLS, JUMPS, MISSING, EARLY, CLOCK_BACK],
                         ids=["batched", "slow", "falls", "jumps", "missing", "early", "clock-back"])
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


def engine_of(*lanes, window=1.0, start=100000.0):
    mac = ScriptedMac(list(lanes), start)
    return ag._Engine(mac, window, 2.5), mac


def ask(engine, figure, *args, timeout=2.5, window=1.0):
    """Watts of a power figure, or the reason."""
    try:
        return engine.settle(lambda w: figure(w, *args), int(window * ag._NS), int(timeout * ag._NS)).value / 1000
    except ag.AppleGPUError as error:
        return error.reason


CPU, CPU2, ANE, ANE2, GPU = (Channel("CPU Energy"), Channel("DIE_1_CPU Energy"), Channel("ANE0"), Channel("ANE0_1"),
                             Channel("GPU Energy", unit="nJ"))


@pytest.mark.parametrize("cpu, expected", [(batched(2), 0.0), (steps((0, 1, 0)), "frozen"), (steps((0, 99999, 0)), "frozen")])
def test_zero_of_a_rail_depends_on_the_rail_that_is_never_zero(cpu, expected):
    engine, mac = engine_of((CPU, cpu), (ANE, lambda t: (math.floor(t / 2000) * 2000, 500)))
    assert ask(engine, engine.rail_power, "ane") == expected


def test_cpu_energy_of_zero_is_frozen_also_on_one_die_of_two():
    engine, _ = engine_of((CPU, lambda t: (math.floor(t / 2000) * 2000, 0)))
    assert ask(engine, engine.rail_power, "cpu") == "frozen"
    assert ask(engine, engine.rail_energy, "cpu") == "frozen"
    both = (Channel("DIE_0_CPU Energy"), batched(2)), (CPU2, lambda t: (math.floor(t / 2000) * 2000, 0))
    engine, _ = engine_of(*both)
    assert ask(engine, engine.rail_power, "cpu") == "frozen"


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
    engine, _ = engine_of(*lanes)
    assert ask(engine, engine.rail_power, "cpu") == "absent"


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


@pytest.mark.parametrize("pause_ms, asleep_ms, waited", [(60000, 0, 0.0), (121000, 0, 0.1), (1000, 3600000, 0.1)])
def test_waiting_after_a_pause(pause_ms, asleep_ms, waited):
    engine, mac = engine_of((GPU, live(20)))
    ask(engine, engine.rail_power, "gpu")
    before = mac.slept_for
    mac.t += pause_ms
    mac.asleep += asleep_ms
    assert ask(engine, engine.rail_power, "gpu") == 20.0
    assert round(mac.slept_for - before, 3) == waited


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
        engine._limited("GPU_CLTM", ag._NS)
    assert caught.value.reason == "absent"
    state["gone"] = False
    mac.t += 1000
    assert ratio(engine, engine.gpu_active) == 0.75
    with pytest.raises(ag.NVMLError_NotReady) as caught:
        engine._limited("GPU_CLTM", ag._NS)
    assert caught.value.reason == "reset"


@pytest.mark.parametrize("old, new, span_ms, expected", [
    ((10, 10), (10, 10), 1000, "stale"),
    ((10, 10), (9, 20), 1000, "reset"),
    ((0, 0), (9 * 24000000, 0), 1000, "reset"),
    ((0, 0), (ag.INT64_MIN, 5), 1000, "absent"),
    ((ag.INT64_MIN, 5), (7, 5), 1000, "reset"),
    ((0, 0), (6000000, 18000000), 1000, [0.25, 0.75]),
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
