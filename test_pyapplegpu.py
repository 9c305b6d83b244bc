"""Tests of pyapplegpu: decoders, sampling, recordings, the flat functions, the command line.

    python test_pyapplegpu.py          # the same as: python -m pytest test_pyapplegpu.py

Raw output of real Macs is read from the folder that PYAPPLEGPU_RAW names; tests that need it are skipped without.
"""
from __future__ import annotations

import ast
import functools
import glob
import inspect
import json
import math
import os
import random
import subprocess
import sys
import types
import gc
import textwrap
import traceback
import contextlib
import csv
import io
import signal
import stat
import re
from pathlib import Path
import copy
import shutil
import tempfile
import threading
from contextlib import contextmanager
import ctypes
import plistlib
import struct
import time

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:       # a job in the background of a script: its children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = [HERE, os.path.join(HERE, "examples")]

import bench  # noqa: E402
import fakemac  # noqa: E402
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
    points = [(-age * MS,) for age in sorted(ages_ms, reverse=True)] + [(0,)]
    got, late = ag._baseline(points, window_s * ag._NS, ag._SHORTEST)
    assert (None if got is None else -points[got][0] // MS) == chosen_ms and not late


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
SLOW_THEN_SILENT = SLOW[:-1] + [        # its gap is 58 s: twice as long it is a slow rail, then a dead one
    (160000, "same", 90000, "slow", 90000),
    (177000, "same", 90000, "stale", "stale"),
]
POLLED_EACH_15_S = [    # so rarely that nobody knows how long the driver was silent
    (1, 0.001, 0, "first", 0),
    (15000, "same", 0, "stale", "stale"),
    (30000, "same", 0, "stale", "stale"),
    (31500, 31000, 31000, 1.0, 31000),
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
    (2300, 1900, 7100, "reset", 7100),      # what was used was used
    (4001, 3900, 9100, 1.0, 9100),
]
TWICE_SLOW = [  # publications each twenty seconds or more, looks each nine: the age of one at first sight counts
    (1, 0.001, 0, "first", 0),
    (9000, "same", 0, "first", 0),
    (18000, "same", 0, "stale", "stale"),
    (27000, "same", 0, "stale", "stale"),
    (36000, 30000, 30000, "slow", 30000),
    (45000, "same", 30000, "slow", 30000),
    (54000, 50000, 50000, "slow", 50000),
    (55000, 54500, 54500, 1.0, 54500),
]
SOON_AFTER_SILENCE = [      # what comes 0.3 s after the silence is measured from its end, not across it
    (1, 0.001, 0, "first", 0),
] + [(t, "same", 0, "stale" if t > 10000 else "first", "stale" if t > 10000 else 0) for t in range(6000, 30001, 6000)] + [
    (30100, 30000, 90000, "slow", 90000),
    (30400, 30300, 90600, 2.0, 90600),
    (30700, 30600, 91200, 2.0, 91200),
]
DIES_AFTER_EIGHT_SECONDS = [    # two publications that were not too far apart promise nothing
    (1, 0.001, 0, "first", 0),
    (8001, 8000, 8000, 1.0, 8000),
    (18500, "same", 8000, "stale", "stale"),
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
                                  OLD_AT_FIRST_SIGHT, TWICE_SLOW, SOON_AFTER_SILENCE, DIES_AFTER_EIGHT_SECONDS,
                                  SLOW_THEN_SILENT, POLLED_EACH_15_S],
                         ids=["batched", "slow", "falls", "jumps", "missing", "early", "clock-back", "minutes", "old", "twice-slow", "soon-after",
                              "dies", "slow-silent", "15-s"])
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


def test_a_batch_without_stamps_may_come_at_once():
    """600 W in one step of two seconds, seen in a tenth of one."""
    e = energy()
    for t in range(1000, 14000, 100):
        look(e, t, None, 1200000 * (t // 2000))
    assert watts(e) == pytest.approx(600, rel=0.28)


def test_two_steps_that_are_too_much_together():
    e = energy("nJ")
    for t, joules in ((60000, 0), (60049, 49), (60051, 98)):
        look(e, t, t - 0.5, joules * 10 ** 9)
    assert watts(e) == "reset" and millijoules(e) == 98000


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

    def subscribe(self, groups, want, keep=None):
        picked = [pair for pair in self.lanes if pair[0].group in [g for g, _ in groups]
                  and want(pair[0].group, pair[0].subgroup, pair[0].name, pair[0].unit)]
        picked = [picked[i] for i in keep([c for c, _ in picked])] if keep else picked
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
    live_zero = Channel("CPU Energy", unit="nJ"), lambda t: (t, 0)
    engine, _ = engine_of(live_zero)
    assert ask(engine, engine.rail_energy, "cpu") == ask(engine, engine.rail_power, "cpu") == "frozen"


def test_a_zero_since_boot_is_waited_for_where_it_can_be_true():
    """An engine that nobody has used since boot: its first reading is 0 W, not a dead counter."""
    engine, mac = engine_of((CPU, batched(2)), (ANE, lambda t: (math.floor(t / 2000) * 2000, 0)))
    assert ask(engine, engine.rail_power, "ane", timeout=0) == "first"
    assert ask(engine, engine.rail_power, "ane") == 0.0


def test_an_idle_engine_beside_a_busy_gpu():
    engine, mac = engine_of((CPU, batched(2)), (ANE, lambda t: (math.floor(t / 2000) * 2000, 500)), gpuph(0.9))
    assert ask(engine, engine.rail_power, "ane") == 0.0


def test_nothing_since_boot_beside_a_dead_witness_is_not_waited_for():
    def zero(t):
        return math.floor(t / 2000) * 2000, 0
    engine, mac = engine_of((CPU, zero), (ANE, zero))
    assert ask(engine, engine.rail_power, "ane") == "frozen" and mac.slept_for == 0


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
    _, feed, lanes = engine.rail("gpu")
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


def test_a_counter_that_jumps_at_every_sample_holds_nobody():
    """Each look is a new baseline, and would begin the wait anew for ever."""
    engine, mac = engine_of((CPU, lambda t: (t, int(t) * 10 ** 9)))
    assert ask(engine, engine.rail_power, "cpu") == "reset" and mac.slept_for <= 5


def test_one_more_look_is_one():
    """Also where the next look comes late again, as in a recording of few instants."""
    engine, mac = engine_of((CPU, steps((0, 50000, 7000))))

    def sleep(seconds):
        mac.t, mac.slept_for = mac.t + 15000, mac.slept_for + seconds
        assert mac.slept_for < 1
    mac.sleep = sleep
    assert ask(engine, engine.rail_power, "cpu") == "stale" and mac.slept_for == 0.1


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


def test_what_was_published_before_sleep_is_no_baseline_also_after_a_missing_value():
    rows = steps((0, 98000, 0), (100000, 100000, 2000), (100700, 100000, ag.INT64_MIN), (100900, 100000, 2000), (101400, 101400, 900000))
    engine, mac = engine_of((CPU, rows), start=100500.0)
    engine.main.refresh()
    mac.asleep += 3600000
    for mac.t, reason in ((100600, "slept"), (100750, "absent"), (101000, "slept"), (101500, "slept")):
        assert ask(engine, engine.rail_power, "cpu", timeout=0) == reason, mac.t


def test_stamps_stay_usable_when_the_clock_goes_back():
    went_back = [0]
    engine, mac = engine_of((CPU, lambda t: (batched(2)(t)[0], batched(2)(t)[1] + 2 * went_back[0])))
    assert ask(engine, engine.rail_power, "cpu") == 2.0
    mac.t, went_back[0] = mac.t - 50000, 50000
    assert ask(engine, engine.rail_power, "cpu", timeout=0) == "reset"
    mac.t += 4000
    assert ask(engine, engine.rail_power, "cpu") == 2.0 and all(e.usable for e in engine.main.energies.values())


def test_a_rail_is_slow_for_who_asks_not_for_who_has_asked():
    """A publication each 30 s is a reading of a minute's window, and none of a second's, in either order."""
    for windows in ((1, 60), (60, 1)):
        engine, mac = engine_of((CPU, batched(1, every=30000)), start=300100.0)
        for n in range(200):
            got = {}
            for window in windows:
                try:
                    got[window] = engine.rail_power(window * ag._NS, "cpu").value
                except ag.NVMLError_NotReady as error:
                    got[window] = error.reason
            if n > 100:
                assert got == {60: 1000, 1: "slow"}, (windows, n)
            mac.t += 1000


def test_the_message_says_how_old_and_how_far_apart_publications_are():
    engine, mac = engine_of((CPU, steps((0, 98000, 0), (100100, 99500, 2000))))
    engine.rail("cpu"), engine.main.refresh()
    mac.t += 1000
    engine.main.refresh()
    mac.t += 20000
    with pytest.raises(ag.NVMLError_NotReady, match="cpu: .* its last publication is 21.5 s old, the one before came 1.5 s earlier"):
        engine.rail_power(ag._NS, "cpu")


def test_sleep_starts_live_counters_anew():
    engine, mac = engine_of((GPU, live(20)))
    ask(engine, engine.rail_power, "gpu")
    mac.t, mac.asleep = mac.t + 500, 9999999
    assert ask(engine, engine.rail_power, "gpu", timeout=0) == "slept"
    mac.t += 100
    assert ask(engine, engine.rail_power, "gpu", timeout=0) == 20.0


def ratio(engine, figure, *args, **more):
    got = ask(engine, figure, *args, **more)
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


def test_a_gpu_restart_is_only_the_gpus():
    cluster = Channel("ECPU", "CPU Stats", "24Mticks", ("IDLE", "V0P1"), "CPU Complex Performance States"), gpuph(0.25)[1]
    engine, mac = engine_of((CPU, batched(5)), (Channel("GPU Energy", unit="nJ"), live(3)), gpuph(0.5), cluster)
    for _ in range(4):
        engine.main.refresh(NS)
        mac.t += 1000
    engine.main.refresh(NS)
    engine._gpu_restarted()
    assert ratio(engine, engine.cpu_active, 0, timeout=0) == 0.25 and ratio(engine, engine.gpu_active, timeout=0) == ag.REASON_RESET
    assert ask(engine, engine.rail_power, "cpu", timeout=0) == pytest.approx(5)
    assert ask(engine, engine.rail_power, "gpu", timeout=0) == ag.REASON_RESET
    for _ in range(2):
        mac.t += 100
        engine.main.refresh()
    assert ask(engine, engine.rail_power, "gpu", timeout=0) == pytest.approx(3)


def test_a_changed_recovery_count_is_a_gpu_restart():
    engine, mac = engine_of((GPU, live(3)), gpuph(0.5))
    count = [1]
    mac.get = lambda entry, key: {"recoveryCount": count[0]} if key == "PerformanceStatistics" else None
    assert ask(engine, engine.rail_power, "gpu") == 3.0
    engine.clients.keep(mac.now()[0], {1: (7, "a", 100)})
    for new, reason in ((1, 3.0), (2, "reset")):
        count[0] = new
        mac.t += 1000
        engine.statistics()
        assert ask(engine, engine.rail_power, "gpu", timeout=0) == reason
    assert ratio(engine, engine.gpu_active, timeout=0) == "reset" and engine.clients.points == []


def bandwidth(engine, window=1):
    try:
        return engine.traffic(window * ag._NS, "RD").value.bytes_per_s
    except ag.NVMLError_NotReady as error:
        return error.reason


DCS_RD = Channel("DCS RD", "AMC Stats", "B", subgroup="Perf Counters")
DCS_WR = Channel("DCS WR", "AMC Stats", "B", subgroup="Perf Counters")


def test_bytes_that_are_missing_or_fall():
    values = [5000, ag.INT64_MIN, 7000, 9000, 100, 2100]
    engine, mac = engine_of((DCS_RD, lambda t: (t, values[int(t - 100000) // 1000])), (DCS_WR, lambda t: (t, t)))
    got = []
    for _ in values:
        got.append(bandwidth(engine))
        mac.t += 1000
    assert got == ["first", "absent", "reset", 2000.0, "reset", 2000.0]


def test_a_row_of_another_length_is_no_data():
    cltm = Channel("GPU_CLTM", "GPU Stats", "24Mticks", ("NO_CLTM", "P1"))
    engine, mac = engine_of((cltm, lambda t: (t, (1, 2, 3))), gpuph(0.5), (GPU, live(3)))
    assert ratio(engine, engine.gpu_active) == 0.5 and ask(engine, engine.rail_power, "gpu") == 3.0
    with pytest.raises(ag.NVMLError_NotReady, match="GPU_CLTM"):
        engine.main.ratios(0, ag._NS)


def test_stamps_are_ticks():
    """24 MHz: nanoseconds x 3 / 125."""
    engine, mac = engine_of((CPU, lambda t: (batched(2)(t)[0] * 3 / 125, batched(2)(t)[1])))
    mac.ticks_per_second = lambda: 24000000
    assert ask(engine, engine.rail_power, "cpu") == 2.0 and engine.main.energies[0].usable


def test_a_shorter_window_does_not_shorten_the_others():
    engine, mac = engine_of((GPU, live(3)), gpuph(0.5))
    spans = []
    engine.rail("gpu"), engine.main.refresh()
    for n in range(40):
        for window in (100, 1000):
            figure = engine.rail_power(window * MS, "gpu") if n else None
            if n > 20:
                spans.append((window, round(figure.interval_s, 1)))
        mac.t += 100
    assert set(spans) == {(100, 0.1), (1000, 1.0)}


def test_span_and_age_of_a_rail_are_the_longest():
    engine, mac = engine_of((Channel("DIE_0_CPU Energy"), batched(1, every=2000)), (CPU2, batched(2, every=3000)), start=120100.0)
    engine.rail("cpu"), engine.main.refresh()
    mac.t = 124500.0
    figure = engine.rail_power(ag._NS, "cpu")       # published at 124000 and 123000
    assert (figure.value, figure.interval_s, figure.age_s) == (3000, 4.0, 1.5)


def test_one_die_without_energy_leaves_the_group_without_its_witness():
    lanes = (Channel("DIE_0_CPU Energy"), batched(2)), (CPU2, lambda t: (math.floor(t / 2000) * 2000, 500))
    engine, mac = engine_of(*lanes, (ANE, lambda t: (math.floor(t / 2000) * 2000, 500)))
    assert ask(engine, engine.rail_power, "ane") == "frozen"


def test_energy_of_zero_and_its_witness():
    for cpu, expected in ((batched(2), 0.0), (lambda t: (math.floor(t / 2000) * 2000, 0), "frozen")):
        engine, mac = engine_of((CPU, cpu), (ANE, lambda t: (math.floor(t / 2000) * 2000, 0)))
        assert ask(engine, engine.rail_energy, "ane") == expected


def test_energy_is_floored():
    engine, mac = engine_of((GPU, lambda t: (t, 1999999)))
    assert engine.rail_energy(ag._NS, "gpu").value == 1


def test_an_estimate_is_marked():
    engine, mac = engine_of((CPU, lambda t: (None, math.floor(t / 2000) * 4000)))
    for _ in range(12):
        engine.main.refresh() if engine.main.subscription else engine.rail("cpu")
        mac.t += 1000
    figure = engine.rail_power(ag._NS, "cpu")
    assert figure.value == 2000 and figure.estimated


def test_a_die_that_comes_later_is_waited_for_from_its_own_baseline():
    late = steps((0, 1, ag.INT64_MIN), (102000, 102000, 500), (104000, 104000, 4500))
    engine, mac = engine_of((Channel("DIE_0_CPU Energy"), batched(1)), (CPU2, late))
    assert ask(engine, engine.rail_power, "cpu") == "absent"
    mac.t = 102100.0
    assert ask(engine, engine.rail_power, "cpu") == 3.0 and 1.9 <= mac.slept_for <= 2.1


def test_package_power_waits_once_for_rails_of_two_groups():
    engine, mac = engine_of((CPU, batched(2)), (GPU, live(3)), (Channel("DRAM", "PMP", "mJ", (), "Energy Counters"), batched(1)),
                            (Channel("ANE", "PMP", "mJ", (), "Energy Counters"), batched(1)), start=100100.0)
    assert ask(engine, engine.package_power) == 6.0 and mac.slept_for <= 2.3


def test_a_gauge_is_not_read_twice_within_50_ms():
    engine, mac = engine_of(gpuph(0.5))
    asked = []

    def get(entry, key):
        asked.append(key)
        return {"In use system memory": 5, "Alloc system memory": 7, "recoveryCount": 0} if key == "PerformanceStatistics" else None
    mac.get = get
    for later, times in ((0, 1), (49, 1), (1, 2)):
        mac.t += later
        assert (engine.memory_used().value, engine.memory_allocated(0).value) == (5, 7) and asked.count("PerformanceStatistics") == times


def test_who_a_client_is_stays():
    """An entry id is never reused: its creator is asked once, what it used at each sample."""
    engine, mac = engine_of(gpuph(0.5))
    asked, there = [], [11, 12]

    def get(entry, key):
        asked.append((entry, key))
        return "pid %d, app" % entry if key == "IOUserClientCreator" else [{"accumulatedGPUTime": 1000 * entry}]
    mac.get, mac.children, mac.identity, mac.own_pid = get, lambda entry: list(there), lambda entry: entry, lambda: 1
    mac.libproc = mac
    engine.process_footprint = lambda window, pid: ag._Figure(None)
    for now in ([11, 12], [12, 13], [13]):
        there[:] = now
        assert {p.pid for p in engine.processes(ag._NS).value} == set(now)
        mac.t += 1000
    assert [entry for entry, key in asked if key == "IOUserClientCreator"] == [11, 12, 13] and set(engine.clients.creators) == {13}


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


def test_a_caller_with_a_long_window_does_not_coarsen_the_others():
    engine, mac = engine_of(gpuph(0.5), (CPU, live(1)), (Channel("GPU Energy", unit="nJ"), live(3)))
    spans = []
    for second in range(200):
        for window in (ag._NS, 60 * ag._NS) if second % 5 == 0 else (ag._NS,):
            try:
                power, active = engine.rail_power(window, "gpu"), engine.gpu_active(window)
            except ag.AppleGPUError:
                continue
            if second > 120:
                spans.append((window // ag._NS, power.interval_s, active.interval_s))
        mac.t += 1000
    assert all(0.9 < s < 1.6 for w, *both in spans if w == 1 for s in both)
    assert all(40 < s < 90 for w, *both in spans if w == 60 for s in both)
    assert len(engine.main.points) <= 19


def test_a_long_window_once_does_not_make_an_old_baseline_new():
    engine, mac = engine_of(gpuph(0.5), (CPU, live(1)))
    with pytest.raises(ag.NVMLError_NotReady):
        engine.gpu_active(3600 * ag._NS)
    mac.t += 1800 * 1000
    figure = engine.settle(engine.gpu_active, ag._NS, engine.timeout)
    assert figure.interval_s < 3, "half an hour is not since the last poll"


@pytest.mark.parametrize("ages_ms, chosen_ms, late", [([200000], None, True), ([200000, 30], None, False), ([200000, 300], 300, False),
                                                     ([120000], 120000, False)])
def test_what_only_a_longer_window_kept_is_not_the_last_poll(ages_ms, chosen_ms, late):
    got = ag._baseline([(-age * MS,) for age in ages_ms] + [(0,)], ag._NS, ag._SHORTEST)
    assert got == (None if chosen_ms is None else ages_ms.index(chosen_ms), late)


SAMPLING_TESTS = [value for name, value in sorted(globals().items()) if name.startswith("test_")]
SLOW_ONES = (test_a_caller_with_a_long_window_does_not_coarsen_the_others, test_a_rail_is_slow_for_who_asks_not_for_who_has_asked,
             test_energy_channel_on_any_stamps_and_values, test_a_half_hour_rail_is_waited_for_once)
SAMPLING_TESTS.sort(key=lambda test: test in SLOW_ONES)      # last
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
    ("younger >= max(shortest, window // 2) and", "younger >= max(shortest, window // 4) and"), ("younger >= max(shortest, window // 2) and", "False and"),
    ("window - younger < age - window:", "window - younger <= age - window:"), ("newest - points[i][0] < enough:", "newest - points[i][0] < shortest:"),
    ("return (i if age >= shortest else None), False", "return i, False"), ("return (i if age >= shortest else None), False", "return None, False"),
    ("if age > max(_LONGEST, 2 * window) + window:", "if False:"), ("(i + 1 if younger >= shortest else None), not younger", "None, True"),
    ("if points[-1][0] - points[i][0] >= window:", "if points[-1][0] - points[i][0] >= window // 2:"),
    ("self.barrier = t - _SHORTEST if reason == REASON_SLEPT else min(self.barrier, t)", "self.barrier = 0"),
    ("self.barrier = t - _SHORTEST if reason == REASON_SLEPT else min(self.barrier, t)", "self.barrier = t - _SHORTEST if reason == REASON_SLEPT else 0"),
    ("if t < self.time:\n            self.time = 0", "if False:\n            self.time = 0"),
    ("if value is None or value < 0:\n            self.drop(t, REASON_ABSENT)", "if value is None:\n            self.drop(t, REASON_ABSENT)"),
    ("if stamp is None or stamp <= 0 or stamp > t + _LEAD:", "if stamp is None:"),
    ("return value != self.value\n        return stamp < self.time - _LEAD and value >= self.value", "return False\n        return stamp < self.time - _LEAD"),
    ("return stamp < self.time - _LEAD and value >= self.value", "return False"),
    ("self.points = [(self.time, self.value, 0)] if self.points and self.value is not None else []", "self.points = []"),
    ("self.usable, self.stood = False, 0", "self.usable = False"),
    ("if self.value is not None and value < self.value:", "if False:"),
    ("self.stood += self.lapse if self.lapse <= _HOLD else 0", "pass"),
    ("self.points, self.stood, self.began = [(clock, value, 0)], max(0, t - clock), t", "self.points, self.stood, self.began = [(clock, value, 0)], 0, t"),
    ("self.offset -= lost", "pass"), ("self._restart(t, clock, value, step)", "self._restart(t, clock, value)"),
    ("self._restart(t, clock, value)\n", "self._restart(t, clock, value, step)\n"), ("elif distance < 0:", "elif False:"),
    ("distance // 2 if distance > _LONGEST else 0)", "0)"), ("silence = max(self.stood, ", "silence = max(0, "),
    ("(distance, max(0, t - clock)) if slow else (0, 0)", "(0, max(0, t - clock)) if slow else (0, 0)"),
    ("(distance, max(0, t - clock)) if slow else (0, 0)", "(distance, 0) if slow else (0, 0)"),
    ("(distance, max(0, t - clock)) if slow else (0, 0)", "(distance, max(0, t - clock))"),
    ("slow = silence > max(_HOLD, finest)", "slow = silence > max(_HOLD, window)"), ("self.silent = self.silent or slow", "self.silent = slow"),
    ("if point[2] > max(_HOLD, window)), default=0)", "if point[2] > _HOLD), default=0)"),
    ("REASON_SLOW if since else self.reason", "self.reason"),
    ("return REASON_SLOW if self.gap and self.age() <= 2 * self.gap else REASON_STALE", "return REASON_STALE"),
    ("if self.age() > max(_HOLD, 2 * self.gap):", "if self.age() > _HOLD:"), ("if self.age() > max(_HOLD, 2 * self.gap):", "if False:"),
    ("if self.points and self.age() > max(_HOLD, window):", "if False:"),
    ("return (self.time is not None and 0 <= self.engine", "return (False and 0 <= self.engine"),
    ("if kept is None or not 0 <= now - kept[0] < age:", "if True:"),
    ("elif t < self.time:\n            self.drop(t, REASON_RESET)", "elif False:\n            pass"),
    ("elif asleep - before > _SLEPT:", "elif False:"), ("elif t - self.time > max(_LONGEST, 2 * self.window):", "elif False:"),
    ("if total == 0:\n        raise ValueError(REASON_STALE)", "if total == 0:\n        return [0.0 for _ in gone]"),
    ("if total * tick_ns > 1.25 * span_ns + 1e8:", "if False:"), ("if INT64_MIN in new:", "if False:"),
    ("if INT64_MIN in old or min(gone, default=0) < 0:", "if False:"), ("return list(map(total.__rtruediv__, gone))", "return [g * tick_ns / span_ns for g in gone]"),
    ("if rail.is_never_zero() or busy or energy.batched and not self._group_alive(rail.feed, window):", "if False:"), ("if rail.is_never_zero() or busy or", "if busy or"),
    ("if rail.is_never_zero() or busy or", "if rail.is_never_zero() or"), ("if rail.is_never_zero() or busy or energy.batched and not self._group_alive(rail.feed, window):", "if rail.is_never_zero() or busy:"),
    ("if rail.is_never_zero() or busy or energy.batched and", "if rail.is_never_zero() or busy or"), ('stands = rail.name == "gpu" and', "stands ="),
    ("return REASON_FIRST if change[1] < _SURE else REASON_FROZEN", "return REASON_FROZEN"),
    ("if self._is_dead(rail, energy):", "if False:"),
    ("energy.batched and not any(\n            e.value for e in self._witnesses(rail.feed)))", "energy.batched)"),
    ("rail.is_never_zero() or energy.batched and not any(\n            e.value for e in self._witnesses(rail.feed)))", "rail.is_never_zero())"), ("min(reasons, key=_BADNESS.index)", "max(reasons, key=_BADNESS.index)"),
    ("if error.reason == REASON_STALE and getattr", "if False and getattr"), ("if error.reason not in _WAITABLE:", "if False:"),
    ("return min(until, entered + 2 * timeout)", "return until"),
    ("gone = max(0, ns - before[2]) if before is not None else min(ns, span_ns)", "gone = ns - before[2] if before is not None else min(ns, span_ns)"),
    ("else min(ns, span_ns)", "else ns"), ("[change & 0xFFFFFFFF for", "[change for"),
    ("if not moved and whole and span >= _SURE:", "if False:"),
    ("(finest or window) // _GRAINS", "window // _GRAINS"), ("if now >= _hope(error, entered, timeout):", "if now >= _hope(error, now, timeout):"),
    ("self.window, self.finest = max(self.window, window), min(self.finest, window)", "self.window = window"),
    ("self.window, self.finest = max(self.window, window), min(self.finest, window)", "pass"),
    ("return max(_COARSE, window) if self.batched and not self.usable else window", "return window"),
    ("return _COARSE_SHORTEST if self.batched and not self.usable else _SHORTEST", "return _SHORTEST"),
    ("return bool(changes) and all(not isinstance(c, str) and c[0] > 0 for c in changes)", "return any(not isinstance(c, str) and c[0] > 0 for c in changes)"),
    ("if after == INT64_MIN:\n            raise self.missing(REASON_ABSENT, self.channels[i].name)", "if False:\n            pass"),
    ("if before == INT64_MIN or after < before:", "if before == INT64_MIN:"), ("if before == INT64_MIN or after < before:", "if after < before:"),
    ("any(e.batched and not e.usable for e in energies)", "False"),
    ("max(span for _, span in changes) / _NS", "min(span for _, span in changes) / _NS"),
    ("return _Figure(int(mw + 0.5), max(e.age() for e in energies)", "return _Figure(int(mw + 0.5), min(e.age() for e in energies)"),
    ("max(e.began for e in energies), max(e.lapse", "min(e.began for e in energies), max(e.lapse"),
    ("millijoules = sum(total * e.scale[0] // e.scale[1]", "millijoules = sum(-(-total * e.scale[0] // e.scale[1])"),
    ("if self.age() > max(_HOLD, 2 * self.gap):", "if self.age() > max(_HOLD, self.gap):"), ("if clock < self.barrier:", "if False:"),
    ("if rank == min(ranked)[0]]", "if rank == max(ranked)[0]]"),
    ("return [i for rank, i in ranked if rank == min(ranked)[0]]", "return [i for _, i in ranked]"),
    ("if before is not None and before != count:", "if False:"), ('if "GPU" in self.channels[i].name:', "if True:"),
    ("self.clients.drop(now, REASON_RESET)", "pass"), ("self.restarted = t\n", "pass\n"), ("self.restarted if channel.group == \"GPU Stats\" else 0)", "self.restarted)"),
    ("if got is not None and len(got[1]) == size else", "if got is not None else"), ("None if stamp is None else stamp * _NS // hz", "stamp"),
    ("dead = [REASON_FROZEN for e in energies if self._is_dead(rail, e)]", "dead = []"),
    ("for e in energies if self._is_dead(rail, e)]", "for e in energies if e.value == 0]"),
    ("if self.points and self.age() > max(_HOLD, window):", "if self.points and self.age() > _HOLD:"),
    ("self.stood += self.lapse if self.lapse <= _HOLD else 0", "self.stood += self.lapse"),
    ("return REASON_RESET if self._too_much(change, span) else (change, span)", "return change, span"),
    ("max(_COARSE if self.batched and not self.usable else _SHORTEST, distance)", "max(_SHORTEST, distance)"),
    ("max(_COARSE if self.batched and not self.usable else _SHORTEST, distance)", "max(1, distance)"),
    ("feed.refresh(window)        # both baselines", "pass        # both baselines"),
]


@functools.lru_cache(None)
def statements():
    """What sampling needs, and what stands above it: [(text, code)] of each statement. A mutant differs in one of them."""
    text = source()
    lines = text[:text.index("# API\n")].splitlines(True)
    starts = [min([node.lineno] + [d.lineno for d in getattr(node, "decorator_list", ())]) - 1 for node in ast.parse("".join(lines)).body]
    texts = ["".join(lines[start:end]) for start, end in zip(starts, starts[1:] + [len(lines)])]
    return [(text, compile(text, "mutant", "exec")) for text in texts]


def failing_cases(old="", new=""):
    """The sampling tests that fail over the library with one text changed, one by one."""
    changed = next(i for i, (text, _) in enumerate(statements()) if old in text)
    mutant = types.ModuleType("mutant")
    sys.modules["mutant"] = mutant
    for i, (text, code) in enumerate(statements()):
        exec(compile(text.replace(old, new, 1), "mutant", "exec") if i == changed else code, mutant.__dict__)
    with pytest.MonkeyPatch.context() as swapped:
        swapped.setitem(globals(), "ag", mutant)
        yield from filter(fails, SAMPLING_TESTS)


@pytest.mark.parametrize("old, new", MUTATIONS, ids=lambda text: text[:40])
def test_each_constant_and_rule_matters(old, new):
    assert any(failing_cases(old, new))


def test_with_nothing_changed_no_case_fails():
    assert not any(failing_cases())


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


def same(got, wanted, tolerance=1e-3):
    """Exact, but for floats: a share of the wanted value."""
    if isinstance(wanted, (list, tuple)):
        return isinstance(got, (list, tuple)) and len(got) == len(wanted) and all(same(g, w, tolerance) for g, w in zip(got, wanted))
    if isinstance(wanted, dict):
        return isinstance(got, dict) and got.keys() == wanted.keys() and all(same(got[k], wanted[k], tolerance) for k in wanted)
    if isinstance(wanted, float) and isinstance(got, (int, float)) and not isinstance(got, bool):
        return abs(got - wanted) <= tolerance * max(1e-12, abs(wanted))
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
        good = isinstance(got, str) and re.search(case["matches"], got)
    elif "error" in case:
        good = got == (case["error"], case["reason"])
    else:
        good = same(got, case["value"])
    return None if good else "%s%s: %r, wanted %r (%s)" % (
        case["call"], case["args"], got, case.get("value", (case.get("error"), case.get("reason"))), case["why"])


@pytest.mark.parametrize("mac", sorted(MACS))
def test_expected_over_the_player(mac, monkeypatch):
    """Each case over an engine of its own; the file is read and checked once."""
    machine, held = ag._RecordedMachine, ag._RecordedMachine(recording(mac)).recording
    monkeypatch.setattr(ag, "_RecordedMachine", lambda path, **more: machine(held, **more))
    wrong = [disagreement(ag, case, recording(mac)) for case in MACS[mac]["expected"]]
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


def test_a_snapshot_gives_a_stale_rail_one_more_look(monkeypatch):
    """As a call does that comes after a pause: a driver that nobody asked may publish with this very sample."""
    engine, mac = engine_of((CPU, steps((0, 50000, 7000))))
    device = ag.Device(engine, 0, True)
    monkeypatch.setattr(ag, "_SNAPSHOT", tuple(row for row in ag._SNAPSHOT if row[3][0][0] in ("cpu_power_mw", "processes")))
    slept = []
    for pause in (0, 3000, 15000, 1000):
        mac.t += pause
        before = mac.slept_for
        assert ag.DeviceGetSnapshot(device, ["power"]).reasons["cpu_power_mw"] == "stale"
        slept.append(round(mac.slept_for - before, 3))
    assert slept == [0.1, 0, 0.1, 0]


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
    assert 0 <= delta.gpu_active_s == pytest.approx(b.gpu_active_total_s - a.gpu_active_total_s) and delta.gpu_active_s <= delta.seconds
    assert delta.read_bytes is None and delta.reasons["read_bytes"] == b.reasons["memory_read_total_bytes"] == "macos"
    missing = [rail for rail, joules in delta.joules.items() if joules is None]
    assert set(missing) <= set(delta.reasons)


def test_counters_of_a_snapshot():
    """Counters need no second sample; one that stands where it cannot is not told: a flat one would be read as 0."""
    device = ag.LibraryOpen(recording("m1max"), speed=0)
    first = ag.DeviceGetSnapshot(device, ["gpu", "bandwidth"], timeout=0)
    assert first.reasons["gpu_active_ratio"] == "first" and first.gpu_active_total_s > 0 and first.memory_read_total_bytes > 0
    later = ag.DeviceGetSnapshot(device, ["gpu", "bandwidth"], timeout=0)
    share = (later.gpu_active_total_s - first.gpu_active_total_s) / (later.time_mono_s - first.time_mono_s)
    assert share == pytest.approx(later.gpu_active_ratio, rel=1e-3)
    delta = ag.SnapshotDelta(first, later)
    assert delta.read_bytes == later.memory_read_total_bytes - first.memory_read_total_bytes > 0
    assert delta.write_bytes == later.memory_write_total_bytes - first.memory_write_total_bytes > 0
    read = Channel("DCS RD", "AMC Stats", "B", subgroup="Perf Counters")
    for lane, reason in (((read, lambda t: (t, 77)), "frozen"), ((read, lambda t: (t, ag.INT64_MIN)), "absent"), (gpuph(0.5), "chip")):
        engine, mac = engine_of(lane)
        for _ in range(2):
            got = ag.Try(engine.traffic_total, ag._NS, "RD")
            mac.t += 1000
        assert got.reason == reason
    engine, mac = engine_of((Channel("GPUPH", "GPU Stats", "24Mticks", ("OFF", "P1")), lambda t: (t, (5, 5))))
    got = [ag.Try(engine.gpu_active_time, ag._NS)]
    mac.t += 1000
    got.append(ag.Try(engine.gpu_active_time, ag._NS))
    assert got[0].value.value == pytest.approx(5 / 24e6) and got[1].reason == "stale"


def snapshot_at(second, *lanes):
    """A snapshot of a machine whose CPU rail has published these (second, joules) on each die."""
    snapshot = object.__new__(ag.Snapshot)
    snapshot.time_mono_s, snapshot.source = float(second), "made"
    snapshot._points = {"cpu": [[(int(t * ag._NS), j * 1000.0) for t, j in lane] for lane in lanes]} if lanes else {}
    snapshot._clients = None
    snapshot.reasons = dict.fromkeys(("gpu_active_total_s", "memory_read_total_bytes", "memory_write_total_bytes"), ag.REASON_NOT_ASKED)
    snapshot.gpu_active_total_s = snapshot.memory_read_total_bytes = snapshot.memory_write_total_bytes = None
    return snapshot


@pytest.mark.parametrize("a, b, after, joules, unsure, span", [
    # publications each 2 s at 10 W; from 3 s to 9 s: exactly 60 J once the publication after the end is known
    (snapshot_at(3, [(2, 20)]), snapshot_at(9, [(6, 60), (8, 80)]), snapshot_at(10.1, [(8, 80), (10, 100)]), 60.0, 20.0, 6.0),
    # without it the last second is unknown: what lies before it, and its doubt
    (snapshot_at(3, [(2, 20)]), snapshot_at(9, [(6, 60), (8, 80)]), None, 50.0, 20.0, 5.0),
    # published at the very moments: exact
    (snapshot_at(2, [(2, 20)]), snapshot_at(8, [(8, 80)]), None, 60.0, 0.0, 6.0),
    # each die on its own stamps
    (snapshot_at(2, [(2, 20)], [(1, 5)]), snapshot_at(4, [(4, 40)], [(3, 15)]), snapshot_at(6, [(6, 60)], [(5, 25)]), 30.0, 10.0, 2.0),
    # nothing published meanwhile, or only before the end of a short run
    (snapshot_at(3, [(2, 20)]), snapshot_at(3.5, [(2, 20)]), None, None, None, None),
    (snapshot_at(3, [(2, 20)]), snapshot_at(3.5, [(2, 20)]), snapshot_at(4.1, [(4, 40)]), 5.0, 15.0, 0.5),
    (snapshot_at(3, [(2, 20)]), snapshot_at(9), None, None, None, None),
])
def test_joules_between_publications(a, b, after, joules, unsure, span):
    delta = ag.SnapshotDelta(a, b, after)
    assert (delta.joules["cpu"], "cpu" in delta.reasons) == (pytest.approx(joules) if joules is not None else None, joules is None)
    assert delta.uncertainty_joules["cpu"] == (pytest.approx(unsure) if unsure is not None else None)
    assert delta.spans_s["cpu"] == (pytest.approx(span) if span is not None else None)


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
    lambda d: ag.LibraryInit(speed=-1),
    lambda d: ag.LibraryOpen(speed="fast"),
    lambda d: ag.LibraryRecord("x", seconds=0),
    lambda d: ag.LibraryRecord(5),
])
def test_wrong_arguments(call):
    device = ag.LibraryOpen(recording("m4-macos27"), speed=0)
    with pytest.raises((ag.NVMLError_InvalidArgument, ag.NVMLError_Uninitialized)) as caught:
        call(device)
    assert len(str(caught.value)) > 20


def test_a_path_may_be_bytes():
    path = recording("m4-macos27")
    ag.LibraryInit(os.fsencode(path), speed=0)
    assert ag.LibraryGetSource() == path


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
    assert ag._state_clocks(("P8", "P9", "OFF"), tuple(A18_GPU_MHZ)) == (1053, 1170, 0) and ag._state_clocks(("P15",), (0, 396)) == (0,)
    assert max(A18_GPU_MHZ) == 1470


@pytest.mark.parametrize("data, clusters", [("160000000000000017010000000000000502000000000000", (22, 23, 5)), ("", ()), ("16", ())])
def test_acc_clusters(data, clusters):
    assert ag._acc_clusters(bytes.fromhex(data)) == clusters


def test_active_beyond_the_table_is_unknown_not_zero():
    states, clocks = ("OFF", "P1", "P10"), (0, 396, 528)
    assert ag._beyond(states, (0.03, 0.0, 0.97), clocks) and not ag._beyond(states, (0.5, 0.5, 0.0), clocks)
    channel = Channel("GPUPH", "GPU Stats", "24Mticks", states)
    engine, mac = engine_of((channel, lambda t: (t, (0, 0, int(t * 24000)))))
    mac.named, mac.get = lambda name: [name], lambda entry, key: bytes.fromhex(M1_GPU)
    for figure in (engine.gpu_clock, engine.gpu_scaled):
        assert ask(engine, figure) == "chip"


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
        _, feed, lanes = engine.rail(rail)
        assert [feed.channels[i].name for i in lanes] == channels
    assert not any("DTL" in c.name for c in engine.main.channels)
    assert len(engine.main.channels) < 40


@pytest.mark.parametrize("name, parsed", [
    ("GFX DCS RD", ("GFX", "RD", True)), ("GFX1 WR", ("GFX1", "WR", False)), ("DCS RD", ("", "RD", True)),
    ("PRIM GFX RD", ("GFX", "RD", False)), ("DIE0 DCS WR", ("", "WR", True)), ("NRT DISP RD", ("DISP", "RD", False)),
    ("PRIM DISPEXT1 DCS NON-RT RD", ("DISPEXT1", "RD", True)), ("DISPEXT0 RT RD", ("DISPEXT0", "RD", False)), ("RT", None),
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
    assert engine._kinds("EMP") == {"P": ("Super", 2), "M": ("Performance", 4), "E": ("Efficiency", 6)}
    assert engine._kinds(["E", "M", "M", "P"])["M"] == ("Performance", 2)


@pytest.mark.parametrize("listed", [["MCPU0", "MCPU1", "PCPU"], ["PCPU", "MCPU0", "MCPU1"], ["MCPU1", "PCPU", "MCPU0"]])
def test_clock_tables_of_an_m5_max_whatever_the_order_of_its_clusters(listed):
    """acc-clusters follows the cluster ids (0x16, 0x17, 0x05); nothing says that CPU Stats lists them so."""
    engine, mac = engine_of()
    tables = {"acc-clusters": bytes.fromhex("160000000000000017010000000000000502000000000000"),
              "voltage-states22-sram": struct.pack("<4I", 1344000, 1, 4380000, 1), "voltage-states23-sram": struct.pack("<4I", 1344000, 1, 4379000, 1),
              "voltage-states5-sram": struct.pack("<4I", 1308000, 1, 4608000, 1)}
    mac.named, mac.get = lambda name: ["node"], lambda entry, key: tables.get(key)
    got = engine._cpu_tables([ag._cluster_state(name) for name in listed])
    assert {name: clocks[-1] for name, clocks in zip(listed, got)} == {"MCPU0": 4380, "MCPU1": 4379, "PCPU": 4608}


MEGATRANSFERS = {"LPDDR4X": (4266,), "LPDDR5": (6400,), "LPDDR5X": (7500, 8533, 9600)}


@pytest.mark.parametrize("chip, row", [(chip, row) for chip, rows in ag._CHIPS.items() for row in rows.values()])
def test_memory_systems_add_up(chip, row):
    """Bandwidth is bus x rate of the memory's type; Apple rounds it down by up to 2.5 % (M3 Pro: 153.6 is sold as 150)."""
    sold, bits, kind = row
    assert any(0.975 * bits / 8 * rate / 1000 <= sold <= 1.002 * bits / 8 * rate / 1000 for rate in MEGATRANSFERS[kind])


@pytest.mark.parametrize("states, percent", [(("100%", "50%"), 75), (("100 % (max)", "50 % PPM"), 75), (("100", "50"), 75), (("NOMINAL", "50%"), None)])
def test_power_budget_by_the_percentage_that_begins_a_state_name(states, percent):
    assert ag._limit_figure("GPU_PPM", states, (0.5, 0.5)) == percent


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


def test_mypy_1_can_read_the_types():
    """A comment that begins with "type:" is a type to it, and one that is none ends the check of whoever imports this."""
    ast.parse(source(), type_comments=True)


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
    assert set(ast.literal_eval(done.stdout)) <= {"__future__", "_collections", "weakref", "_weakrefset", "_weakref", "_operator", "itertools"}


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
    for name, kind, what in re.findall(r"^\| `(\w+)\(.*?\)` \| `(.*?)`: (.*) \|$", table, re.M):
        function = getattr(ag, name)
        assert (kind, what) == (inspect.signature(function).return_annotation, inspect.getdoc(function).splitlines()[0]), name


def shown_signature(function):
    """Parameters and defaults without annotations: "device, window=None"."""
    shown = []
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not any(one.startswith("*") for one in shown):
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


# ======================================================================================================================
# the native sources, on a small Mac at the C ABI
# ======================================================================================================================

PLAIN = dict(ag._LETTERS, C=ctypes.c_void_p, O=ctypes.c_void_p, M=ctypes.c_void_p, E=ctypes.c_uint32)
KINDS = ("String", "Number", "Boolean", "Data", "Array", "Dictionary")
EPERM, ENOENT, ESRCH, ENOMEM, EINVAL = 1, 2, 3, 12, 22


class Object:
    def __init__(self, kind, value, held=()):
        self.kind, self.value, self.refs, self.held = kind, value, 1, list(held)


class Mac:
    """Counts every CF object, port and mapping; what a real Mac would crash on is a crime."""

    def __init__(self):
        self.heap, self.next, self.crimes, self.calls = {}, 0x7F0000001000, [], []
        self.ports, self.next_port, self.mapped, self.pools = {}, 0x1003, {}, 0
        self.missing, self.null, self.keep = set(), set(), []
        self.listing = []           # (driver, channel, group, subgroup, name, format, unit, states)
        self.order, self.gone, self.values, self.stamps = None, set(), {}, {}
        self.refuse, self.accessor_shift, self.listing_driver, self.listing_states = False, 0, True, True
        self.services = {"IOAccelerator": [("AGXAcceleratorG16G", {"model": "Apple M4", "gpu-core-count": 10,
                                            "PerformanceStatistics": {"Device Utilization %": 17, "x": -2, "Renderer Utilization %": 15,
                                                                                      "Tiler Utilization %": 15}})],
                         "AppleSMCKeysEndpoint": [("AppleSMCKeysEndpoint", {})]}
        self.ended = []             # services that terminated: their ports still answer
        self.kids = [("AGXDeviceUserClient", {"IOUserClientCreator": "pid 357, WindowServer"})] * 3
        self.smc = {"#KEY": ("ui32", struct.pack(">I", 3)), "Tg05": ("flt ", struct.pack("<f", 46.5)), "F0Ac": ("flt ", bytes(4))}
        self.smc_result, self.kr, self.answer_size = None, {}, 80
        self.sysctls = {"hw.memsize": struct.pack("<Q", 16 << 30), "machdep.cpu.brand_string": b"Apple M4\0",
                        "hw.tbfrequency": struct.pack("<Q", 24000000)}
        self.grow, self.vm_count, self.words = 0, 40, 8
        self.sensors = [("PMU tdie1", 7, 46.68), ("als-temp", None, None)]
        self.errors, self.rusage_v6 = {}, True
        self.blocks = {}
        self.zero = ctypes.create_string_buffer(64)
        self.task = ctypes.c_uint32(0x103)

    # ---- loading

    def CDLL(self, path, use_errno=False):
        if path in self.missing:
            raise OSError("dlopen(%s): no such file" % path)
        mac = self

        class Library:
            def __getitem__(self, symbol):
                return mac.symbol(symbol)
        return Library()

    def symbol(self, name):
        if name in self.missing:
            raise AttributeError(name)
        if name == "mach_task_self_":
            return ctypes.CFUNCTYPE(None)(ctypes.addressof(self.task))
        if name.startswith("kCF"):
            return ctypes.CFUNCTYPE(None)(ctypes.addressof(self.zero))
        if name == "objc_msgSend":
            return Send(self)
        _, result, arguments, _ = ag._PROTOTYPES[name]
        kind = ctypes.CFUNCTYPE(PLAIN[result], *[PLAIN[a] for a in arguments], use_errno=True)

        def call(*args):
            self.calls.append(name)
            try:
                if name in self.null:
                    return self.nothing(name, args)
                return getattr(self, name)(*args)
            except Exception as error:
                self.crimes.append("%s%r: %r" % (name, args, error))
                return 0
        thunk = kind(call)
        self.keep.append(thunk)
        return kind(ctypes.cast(thunk, ctypes.c_void_p).value)

    def nothing(self, name, args):
        if name.startswith("IOServiceGetMatchingServices"):
            self.CFRelease(args[1])
        return -1 if ag._PROTOTYPES[name][1] == "i" else 0

    # ---- CoreFoundation

    def new(self, kind, value, held=()):
        self.next += 16
        self.heap[self.next] = Object(kind, value, held)
        for ref in self.heap[self.next].held:
            self.heap[ref].refs += 1
        return self.next

    def cf(self, value):
        """An object of a Python value, owned by whoever asked."""
        if isinstance(value, dict):
            pairs = [(self.cf(k), self.cf(v)) for k, v in value.items()]
            made = self.new("Dictionary", {self.heap[k].value: (k, v) for k, v in pairs}, [r for p in pairs for r in p])
            for pair in pairs:
                self.CFRelease(pair[0]), self.CFRelease(pair[1])
            return made
        if isinstance(value, list):
            items = [self.cf(v) for v in value]
            made = self.new("Array", items, items)
            for item in items:
                self.CFRelease(item)
            return made
        kinds = {str: "String", bool: "Boolean", int: "Number", float: "Number", bytes: "Data", object: "Date"}
        return self.new(kinds[type(value)], value)

    def get(self, ref, kind):
        found = self.heap[ref]
        if found.kind != kind:
            raise TypeError("%s is no %s" % (found.kind, kind))
        return found

    def CFRelease(self, ref):
        found = self.heap[ref]
        found.refs -= 1
        if not found.refs:
            del self.heap[ref]
            for held in found.held:
                self.CFRelease(held)

    def CFGetTypeID(self, ref):
        kind = self.heap[ref].kind
        return 20 + KINDS.index(kind) if kind in KINDS else 99

    CFStringGetTypeID, CFNumberGetTypeID, CFBooleanGetTypeID, CFDataGetTypeID, CFArrayGetTypeID, CFDictionaryGetTypeID = (
        (lambda n: lambda self: n)(20 + i) for i in range(6))

    def CFStringCreateWithCString(self, _, text, encoding):
        assert encoding == 0x08000100
        return self.new("String", text.decode())

    def CFStringGetLength(self, ref):
        return len(self.get(ref, "String").value.encode("utf-16-le")) // 2

    def CFStringGetMaximumSizeForEncoding(self, n, encoding):
        return n * 3

    def CFStringGetCString(self, ref, buffer, size, encoding):
        data = self.get(ref, "String").value.encode() + b"\0"
        if len(data) > size:
            return 0
        ctypes.memmove(buffer, data, len(data))
        return 1

    def CFNumberCreate(self, _, kind, where):
        assert kind == 4
        return self.new("Number", ctypes.c_int64.from_address(where).value)

    def CFNumberIsFloatType(self, ref):
        return isinstance(self.get(ref, "Number").value, float)

    def CFNumberGetValue(self, ref, kind, where):
        {4: ctypes.c_int64, 6: ctypes.c_double}[kind].from_address(where).value = self.get(ref, "Number").value
        return 1

    def CFBooleanGetValue(self, ref):
        return self.get(ref, "Boolean").value

    def CFDataGetLength(self, ref):
        return len(self.get(ref, "Data").value)

    def CFDataGetBytePtr(self, ref):
        found = self.get(ref, "Data")
        found.memory = ctypes.create_string_buffer(found.value, len(found.value))
        return ctypes.addressof(found.memory)

    def CFArrayGetCount(self, ref):
        return len(self.get(ref, "Array").value)

    def CFArrayGetValueAtIndex(self, ref, i):
        return self.get(ref, "Array").value[i]

    def CFArrayCreateMutable(self, _, capacity, callbacks):
        assert callbacks
        return self.new("Array", [])

    def CFArrayAppendValue(self, ref, item):
        self.heap[item].refs += 1
        self.get(ref, "Array").value.append(item)
        self.heap[ref].held.append(item)

    def CFDictionaryGetCount(self, ref):
        return len(self.get(ref, "Dictionary").value)

    def CFDictionaryGetValue(self, ref, key):
        return self.get(ref, "Dictionary").value.get(self.get(key, "String").value, (0, 0))[1]

    def CFDictionaryGetKeysAndValues(self, ref, keys, values):
        for i, (k, v) in enumerate(self.get(ref, "Dictionary").value.values()):
            ctypes.c_void_p.from_address(keys + 8 * i).value = k
            ctypes.c_void_p.from_address(values + 8 * i).value = v

    def CFDictionaryCreateMutable(self, _, capacity, keys, values):
        assert keys and values
        return self.new("Dictionary", {})

    def CFDictionarySetValue(self, ref, key, value):
        self.get(ref, "Dictionary").value[self.get(key, "String").value] = (key, value)
        for held in (key, value):
            self.heap[held].refs += 1
            self.heap[ref].held.append(held)

    def plain(self, ref):
        found = self.heap[ref]
        if found.kind == "Array":
            return [self.plain(item) for item in found.value]
        if found.kind == "Dictionary":
            return {name: self.plain(value) for name, (_, value) in found.value.items()}
        if found.kind not in KINDS:
            raise TypeError(found.kind)
        return found.value

    def CFPropertyListCreateData(self, _, ref, format, options, error):
        assert (format, options, error) == (200, 0, None)
        try:
            return self.new("Data", plistlib.dumps(self.plain(ref), fmt=plistlib.FMT_BINARY))
        except TypeError:
            return 0

    # ---- IOKit

    def port(self, thing):
        self.next_port += 4
        self.ports[self.next_port] = thing
        return self.next_port

    def IOObjectRelease(self, port):
        del self.ports[port]
        return 0

    def IOServiceMatching(self, name):
        return self.cf({"IOProviderClass": name.decode()})

    def IOServiceNameMatching(self, name):
        return self.cf({"IONameMatch": name.decode()})

    def IOServiceGetMatchingServices(self, port, matching, where):
        assert port == 0
        (_, name), = self.get(matching, "Dictionary").value.values()
        name = self.heap[name].value
        self.CFRelease(matching)
        if self.kr.get("match"):
            return self.kr["match"]
        ctypes.c_uint32.from_address(where).value = self.port(list(self.services.get(name, ())))
        return 0

    def IORegistryEntryGetChildIterator(self, port, plane, where):
        assert plane == b"IOService"
        ctypes.c_uint32.from_address(where).value = self.port(list(self.kids))
        return 0

    def IOIteratorNext(self, port):
        return self.port(self.ports[port].pop(0)) if self.ports[port] else 0

    def IOIteratorIsValid(self, port):
        return 1

    def IOIteratorReset(self, port):
        pass

    def IOObjectGetClass(self, port, where):
        name = self.ports[port][0].encode() + b"\0"
        ctypes.memmove(where, name, len(name))
        return 0

    def IORegistryEntryGetRegistryEntryID(self, port, where):
        if port not in self.ports:
            return 0x10000003
        ctypes.c_uint64.from_address(where).value = 0x100000000 + port
        return 0

    def IORegistryEntryInPlane(self, port, plane):
        assert plane == b"IOService"
        return int(port in self.ports and self.ports[port] not in self.ended)

    def IORegistryEntryCreateCFProperty(self, port, key, _, options):
        properties = self.ports[port][1]
        key = self.get(key, "String").value
        return self.cf(properties[key]) if key in properties else 0

    def IOServiceOpen(self, port, task, kind, where):
        assert self.ports[port][0].startswith("AppleSMC") and task == 0x103 and kind == 0
        if self.kr.get("open"):
            return self.kr["open"]
        ctypes.c_uint32.from_address(where).value = 0xBEEF
        return 0

    def IOServiceClose(self, connection):
        assert connection == 0xBEEF
        self.closed = True
        return 0

    def IOConnectCallStructMethod(self, connection, selector, request, size, answer, answer_size):
        assert (connection, selector, size) == (0xBEEF, 2, 80)
        if self.kr.get("smc"):
            return self.kr["smc"]
        data = ctypes.string_at(request, 80)
        key, = struct.unpack_from("=I", data)
        key, size = key.to_bytes(4, "big").decode(), struct.unpack_from("=I", data, 28)[0]
        command, index = data[42], struct.unpack_from("=I", data, 44)[0]
        out = bytearray(80)
        if command == 8 and index < len(self.smc):
            struct.pack_into("=I", out, 0, int.from_bytes(sorted(self.smc)[index].encode(), "big"))
        elif command == 8 or key not in self.smc:
            out[40] = 132
        elif command == 9:
            kind, value = self.smc[key]
            struct.pack_into("=II", out, 28, len(value), int.from_bytes(kind.encode(), "big"))
        elif command == 5:
            assert size == len(self.smc[key][1])
            out[48:48 + size] = self.smc[key][1]
        if self.smc_result is not None:
            out[40] = self.smc_result
        ctypes.memmove(answer, bytes(out), 80)
        ctypes.c_uint64.from_address(answer_size).value = self.answer_size
        return 0

    def IOHIDEventSystemClientCreate(self, _):
        return self.new("Client", None)

    def IOHIDEventSystemClientSetMatching(self, client, matching):
        self.matching = matching
        found = self.get(matching, "Dictionary").value
        assert {k: self.heap[v[1]].value for k, v in found.items()} == {"PrimaryUsagePage": 0xFF00, "PrimaryUsage": 5}

    def IOHIDEventSystemClientCopyServices(self, client):
        assert self.matching in self.heap
        services = [self.new("Service", sensor) for sensor in self.sensors]
        made = self.new("Array", services, services)
        for service in services:
            self.CFRelease(service)
        return made

    def IOHIDServiceClientCopyProperty(self, service, key):
        name, location, _ = self.get(service, "Service").value
        value = {"Product": name, "LocationID": location}[self.get(key, "String").value]
        return 0 if value is None else self.cf(value)

    def IOHIDServiceClientCopyEvent(self, service, kind, options, stamp):
        assert (kind, options, stamp) == (15, 0, 0)
        value = self.get(service, "Service").value[2]
        return 0 if value is None else self.new("Event", value)

    def IOHIDEventGetFloatValue(self, event, field):
        assert field == 15 << 16
        return self.get(event, "Event").value

    def IOPSCopyPowerSourcesInfo(self):
        return self.cf({"source": "AC Power"})

    def IOPSGetProvidingPowerSourceType(self, info):
        return self.get(info, "Dictionary").value["source"][1]

    # ---- IOReport

    def records(self, i):
        driver, channel, _, _, _, format, _, _ = self.listing[i]
        values = self.values.get(i, (1,))
        head = struct.pack("<QQHHHHq", driver, channel, format, 1, len(values), 0, self.stamps.get(i, 1000 + i))
        places = {1: "<q24x", 2: "<16xq8x", 3: "<q24x"}
        return b"".join(head + struct.pack(places[format], v) for v in values)

    def channel(self, i, sample):
        driver, channel, group, subgroup, name, format, unit, states = self.listing[i]
        made = {"IOReportGroupName": group, "n": i}
        if sample or self.listing_driver:
            made["DriverID"] = driver
        if sample:
            made["RawElements"] = self.records(i)
        return made

    def IOReportCopyChannelsInGroup(self, group, subgroup, *zeros):
        assert zeros == (0, 0, 0)
        group, subgroup = self.heap[group].value, subgroup and self.heap[subgroup].value
        rows = [i for i, c in enumerate(self.listing) if c[2] == group and (not subgroup or c[3] == subgroup)]
        return self.cf({"IOReportChannels": [self.channel(i, False) for i in rows]}) if rows else 0

    def IOReportCreateSubscription(self, _, wanted, where, zero, null):
        assert not (_ or zero or null)
        if self.refuse is True:
            return 0
        items = self.get(self.heap[wanted].value["IOReportChannels"][1], "Array").value
        self.wanted = [self.number(item) for item in items]
        if self.refuse and self.refuse in [self.listing[i][2] for i in self.wanted]:
            return 0
        ctypes.c_void_p.from_address(where).value = self.cf({"IOReportChannels": []})
        return self.new("Subscription", None)

    def IOReportCreateSamples(self, handle, wanted, null):
        self.get(handle, "Subscription"), self.get(wanted, "Dictionary")
        order = self.order or self.wanted
        return self.cf({"IOReportChannels": [self.channel(i, True) for i in order if i not in self.gone]})

    def number(self, item):
        return self.heap[self.heap[item].value["n"][1]].value

    def field(self, item, i):
        """A +0 string: owned by the channel."""
        value = self.listing[self.number(item)][i]
        if value is None:
            return 0
        made = self.new("String", value)
        self.heap[item].held.append(made)
        return made

    def IOReportChannelGetGroup(self, item):
        return self.field(item, 2)

    def IOReportChannelGetSubGroup(self, item):
        return self.field(item, 3)

    def IOReportChannelGetChannelName(self, item):
        return self.field(item, 4)

    def IOReportChannelGetUnitLabel(self, item):
        return self.field(item, 6)

    def IOReportChannelGetFormat(self, item):
        return self.listing[self.number(item)][5]

    def IOReportChannelGetChannelID(self, item):
        return self.listing[self.number(item)][1]

    def IOReportSimpleGetIntegerValue(self, item, null):
        return self.values.get(self.number(item), (1,))[0] + self.accessor_shift

    def IOReportStateGetCount(self, item):
        if not self.listing_states and "RawElements" not in self.heap[item].value:
            return 0
        return len(self.listing[self.number(item)][7])

    def IOReportStateGetNameForIndex(self, item, k):
        made = self.new("String", self.listing[self.number(item)][7][k])
        self.heap[item].held.append(made)
        return made

    def IOReportStateGetResidency(self, item, k):
        return self.values[self.number(item)][k] + self.accessor_shift

    def IOReportHistogramGetBucketCount(self, item):
        return len(self.values[self.number(item)])

    def IOReportHistogramGetBucketHits(self, item, k):
        return self.values[self.number(item)][k] + self.accessor_shift

    # ---- libSystem

    def mach_host_self(self):
        return 0x203

    def mach_timebase_info(self, where):
        ctypes.memmove(where, struct.pack("<II", 125, 3), 8)
        return 0

    def host_page_size(self, host, where):
        ctypes.c_uint64.from_address(where).value = 16384
        return 0

    def host_statistics64(self, host, flavor, where, count):
        count = ctypes.c_uint32.from_address(count)
        assert (host, flavor, count.value) == (0x203, 4, 256)
        ctypes.memmove(where, bytes(range(1, 153)), 152)
        count.value = self.vm_count
        return self.kr.get("vm", 0)

    def host_processor_info(self, host, flavor, cpus, where, count):
        data = ctypes.create_string_buffer(struct.pack("<8I", *range(8)), 32)
        self.mapped[ctypes.addressof(data)] = data
        ctypes.c_uint32.from_address(cpus).value = 2
        ctypes.c_void_p.from_address(where).value = ctypes.addressof(data)
        ctypes.c_uint32.from_address(count).value = self.words
        return 0

    def vm_deallocate(self, task, start, size):
        assert task == 0x103 and size == self.words * 4
        del self.mapped[start]
        return 0

    def sysctlbyname(self, name, where, size, new, new_size):
        assert not new and not new_size
        size, data = ctypes.c_uint64.from_address(size), self.sysctls.get(name.decode())
        if data is None or self.errors.get("sysctl"):
            ctypes.set_errno(self.errors.get("sysctl", ENOENT))
            return -1
        if where:
            if self.grow:
                self.grow -= 1
                ctypes.set_errno(ENOMEM)
                return -1
            if size.value < len(data):
                ctypes.set_errno(ENOMEM)
                return -1
            ctypes.memmove(where, data, len(data))
        size.value = len(data)
        return 0

    def proc_listallpids(self, where, size):
        if self.errors.get("list"):
            ctypes.set_errno(self.errors["list"])
            return 0
        ids = [0, 1, 357, 4242]
        if where:
            ctypes.memmove(where, struct.pack("<4i", *ids), 16)
        return len(ids)

    def proc_pidinfo(self, pid, flavor, zero, where, size):
        assert (flavor, size) in ((4, 96), (13, 64)) and not zero
        code = self.errors.get(pid, ESRCH if pid > 5000 else 0)
        if code and not (flavor == 13 and code == EPERM):
            ctypes.set_errno(code)
            return 0
        ctypes.memmove(where, b"i" * size, size)
        return size

    def proc_pidpath(self, pid, where, size):
        path = b"/System/WindowServer" if pid == 357 else b""
        ctypes.memmove(where, path, len(path))
        return len(path)

    def proc_pid_rusage(self, pid, flavor, where):
        code = self.errors.get(pid, EINVAL if flavor == 6 and not self.rusage_v6 else 0)
        if code:
            ctypes.set_errno(code)
            return -1
        size = {6: 464, 4: 296}[flavor]
        ctypes.memmove(where, b"r" * size, size)
        return 0

    def notify_register_check(self, name, where):
        ctypes.c_int32.from_address(where).value = 77
        return self.kr.get("register", 0)

    def notify_get_state(self, token, where):
        assert token == 77
        ctypes.c_uint64.from_address(where).value = 2
        return self.kr.get("notify", 0)

    def notify_cancel(self, token):
        assert token == 77
        return 0

    # ---- Objective-C

    def objc_autoreleasePoolPush(self):
        self.pools += 1
        return self.pools

    def objc_autoreleasePoolPop(self, token):
        assert token == self.pools
        self.pools -= 1

    def sel_registerName(self, name):
        buffer = ctypes.create_string_buffer(name)
        self.keep.append(buffer)
        return ctypes.addressof(buffer)

    def objc_release(self, ref):
        self.CFRelease(ref)

    def MTLCopyAllDevices(self):
        device = self.new("Device", 0x100001007)
        made = self.new("NSArray", [device], [device])
        self.CFRelease(device)
        return made

    def MTLCreateSystemDefaultDevice(self):
        return self.new("Device", 0x100001007)

    def message(self, receiver, selector, *args):
        assert self.pools
        name, kind = ctypes.string_at(selector).decode(), self.heap[receiver].kind
        if kind == "NSArray":
            return {"count": lambda: 1, "objectAtIndex:": lambda i: self.heap[receiver].value[i]}[name](*args)
        if kind == "NSString":
            return self.heap[receiver].value
        assert kind == "Device", kind
        if name in ("name", "architecture"):
            made = self.new("NSString" if name == "name" else "Device", b"Apple M4")
            self.heap[receiver].held.append(made)
            return made
        return {"registryID": 0x100001007, "recommendedMaxWorkingSetSize": 12713115648, "maxBufferLength": 9534832640,
                "maxThreadgroupMemoryLength": 32768, "hasUnifiedMemory": 1, "supportsFamily:": int(args[:1] in ((1009,), (3003,))),
                "respondsToSelector:": 1}[name]


class Send:
    """objc_msgSend: complete prototypes only."""

    def __init__(self, mac):
        self.mac = mac

    def __call__(self, *args):
        assert len(args) == len(self.argtypes)
        return self.mac.message(*(getattr(a, "value", a) for a in args))


@pytest.fixture
def mac(monkeypatch):
    made = Mac()
    monkeypatch.setattr(ctypes, "CDLL", made.CDLL)
    monkeypatch.setattr(ctypes, "PyDLL", made.CDLL)
    monkeypatch.setattr(time, "CLOCK_UPTIME_RAW", time.CLOCK_MONOTONIC, raising=False)
    ag._c.forked()
    yield made
    ag._c.forked()
    assert made.crimes == []


def settle(mac):
    """Objects and ports alive, apart from the strings and handles that are kept on purpose."""
    return len(mac.heap), len(mac.ports), len(mac.mapped), mac.pools


# ---- pure parts

def test_every_row_of_the_prototype_table_is_complete():
    for name, (library, result, arguments, since) in ag._PROTOTYPES.items():
        assert library.rstrip("!") in ag._LIBRARIES, name
        assert result in set("vpsBiIqQd") | set(ag._OWNED) and set(arguments) <= set("psBiIqQdM"), name
        assert 10 <= since <= 27
        assert "Create" not in name and "Copy" not in name or result in "CO", "%s: who owns it?" % name


def test_smc_questions_and_answers_have_the_layout_of_the_kernel():
    asked = ag._smc_request(5, "Tg05", 4)
    assert len(asked) == 80
    assert struct.unpack_from("=I", asked, 0)[0] == 0x54673035          # big-endian characters in a native word
    assert struct.unpack_from("=I", asked, 28)[0] == 4 and asked[42] == 5
    assert struct.unpack_from("=I", ag._smc_request(8, index=7), 44)[0] == 7
    answer = bytearray(80)
    struct.pack_into("=I", answer, 0, 0x54673035)
    struct.pack_into("=II", answer, 28, 4, 0x666C7420)
    answer[40], answer[48:52] = 132, b"abcd"
    assert ag._smc_answer(bytes(answer)) == ("Tg05", 4, "flt ", 132, b"abcd" + bytes(28))


def test_records_give_driver_channel_stamp_and_the_value_of_their_format():
    head = struct.pack("<QQQq", 0x100000321, 0x4750555048, 0, 1234)
    simple, state = head + struct.pack("<4q", 5, 6, 7, 8), head + struct.pack("<4q", 1, 2, -3, 4)
    assert ag._record_layout(1, 1).unpack(simple) == (0x100000321, 0x4750555048, 1234, 5)
    assert ag._record_layout(2, 3).unpack(state + state + state) == (0x100000321, 0x4750555048, 1234, -3, -3, -3)
    assert ag._record_layout(3, 2).unpack(simple + state)[3:] == (5, 1)
    for format in (1, 2, 3):
        assert ag._record_layout(format, 16).size == 1024


def test_a_nameless_channel_is_called_by_the_characters_of_its_id():
    assert ag._channel_name(0x4750555048000000) == "GPUPH"
    assert ag._channel_name(0x4543505530202020) == "ECPU0   "


@pytest.mark.parametrize("value", [
    {"s": "p\u00e4 \U0001F600", "i": -5, "u": 200, "w": 70000, "big": (1 << 63) - 1, "min": -(1 << 63), "f": 2.5, "t": True,
     "n": False, "x": b"\0\1", "e": b"", "a": [1, "two", [3]], "d": {"k": {"deep": 1}}, "same": "two", "empty": [{}, []]},
    list(range(-300, 300)), "x" * 1000, b"y" * 70000, 17, -1, 0.25, True, {str(i): [i] for i in range(400)}])
def test_binary_property_lists_read_as_they_were_written(value):
    read = ag._plist(plistlib.dumps(value, fmt=plistlib.FMT_BINARY))
    assert read == value and type(read) is type(value)


def test_property_lists_of_noise_raise_our_error_only():
    noise, whole = random.Random(1), plistlib.dumps({"a": [1, {"b": "c" * 40}], "d": b"e"}, fmt=plistlib.FMT_BINARY)
    for _ in range(4000):
        data = bytearray(whole)
        for _ in range(noise.randrange(1, 6)):
            data[noise.randrange(8, len(data))] = noise.randrange(256)
        for broken in (bytes(data), bytes(data[:noise.randrange(len(data))]), b"bplist00" + noise.randbytes(60)):
            try:
                ag._plist(broken)
            except ag.AppleGPUError:
                pass


# ---- CoreFoundation

VALUE = {"s": "p\u00e4 \U0001F600", "i": -5, "big": (1 << 63) - 1, "f": 2.5, "t": True, "n": False, "x": b"\0\1", "e": b"",
         "a": [1, "two", [3]], "d": {"k": {"deep": 1}}}


def test_values_convert_with_their_types_and_leave_nothing(mac):
    ref = mac.cf(VALUE)
    read = ag._cf_value(ref)
    assert read == VALUE and type(read["t"]) is bool and type(read["i"]) is int and type(read["f"]) is float
    assert ag._cf_value(None) is None and ag._cf_text(None) is None and ag._cf_text(ref) is None
    mac.CFRelease(ref)
    assert not mac.heap


def test_a_reading_costs_the_same_whatever_its_size(mac):
    for value in ("Apple M4", VALUE, [VALUE] * 20):
        ref, mac.calls = mac.cf(value), []
        assert ag._cf_read(ref) == value and len(mac.calls) == 4
        mac.CFRelease(ref)
    assert not mac.heap


def test_what_has_not_changed_is_not_decoded_again(mac, monkeypatch):
    decoded, real = [], ag._plist
    monkeypatch.setattr(ag, "_plist", lambda data: decoded.append(data) or real(data))
    for value in (["idle"], ["idle"], *([n] for n in range(200)), ["idle"]):
        ref = mac.cf(value)
        assert ag._cf_read(ref) == value and len(ag._c.lists) <= ag._MOST_LISTS
        mac.CFRelease(ref)
    assert len(decoded) == 202 and not mac.heap


def test_an_unknown_type_is_none(mac):
    ref = mac.new("Date", 0)
    assert ag._cf_value(ref) is None and ag._cf_read(ref) is None
    held = mac.new("Array", [ref, ref], [ref, ref])
    assert ag._cf_read(held) == [None, None]


def test_dictionaries_own_what_they_hold(mac):
    made = ag._cf_dictionary({"PrimaryUsage": 5, "Name": "x"})
    assert ag._cf_value(made) == {"PrimaryUsage": 5, "Name": "x"}
    del made
    assert not mac.heap


def test_owners_release_once_and_never_null(mac):
    owner = ag._cf_string("x")
    assert len(mac.heap) == 1
    del owner
    assert not mac.heap
    del_null = ag._c.CFObject()
    del del_null


def test_a_missing_symbol_disables_its_own_figure_only(mac):
    mac.missing = {"IOReportCreateSamples", ag._LIBRARIES["Metal"]}
    machine = ag._LiveMachine()
    with pytest.raises(ag.AppleGPUError_NotSupported) as caught:
        machine.metal.device()
    assert caught.value.reason == ag.REASON_MACOS
    assert machine.sysctl.number("hw.memsize") == 16 << 30


# ---- registry

def test_registry(mac):
    registry = ag._LiveMachine().registry
    entry, = registry.services("IOAccelerator")
    assert registry.class_name(entry) == "AGXAcceleratorG16G" and registry.get(entry, "model") == "Apple M4"
    assert registry.get(entry, "PerformanceStatistics")["Device Utilization %"] == 17
    assert registry.get(entry, "nothing") is None and registry.alive(entry)
    assert registry.identity(entry) >> 32 == 1 and {entry: 1}[entry] == 1
    assert registry.services("Nothing") == [] and registry.named("pmgr") == []
    clients = registry.children(entry)
    assert [registry.get(c, "IOUserClientCreator") for c in clients] == ["pid 357, WindowServer"] * 3
    strings = len(ag._c.strings)
    del entry, clients
    assert not mac.ports and len(mac.heap) == strings


def test_a_restarted_gpu_is_matched_again(mac):
    """A terminated service keeps answering its id and its last properties."""
    machine = ag._LiveMachine()
    engine, now = ag._Engine(machine), [100 * NS]
    mac.kids = [("AGXDeviceUserClient", {"IOUserClientCreator": "pid 357, WindowServer", "AppUsage": []})]
    machine.clock.now = lambda: (now[0], now[0])
    assert engine.gpu_engines(NS).value.device_percent == 17
    old, = mac.services["IOAccelerator"]
    mac.ended.append(old)
    mac.services["IOAccelerator"] = [(old[0], dict(old[1], PerformanceStatistics=dict(old[1]["PerformanceStatistics"], **{"Device Utilization %": 40})))]
    engine.clients.refresh()
    now[0] += 11 * NS
    assert engine.gpu_engines(NS).value.device_percent == 40
    assert engine.clients.reason == ag.REASON_RESET
    assert mac.calls.count("IORegistryEntryInPlane") == 1, "not asked at every reading"


def test_registry_refusals_are_errors_and_the_dictionary_is_consumed(mac):
    mac.kr["match"] = 0xE00002E2 - (1 << 32)
    with pytest.raises(ag.AppleGPUError_NoPermission) as caught:
        ag._LiveMachine().registry.services("IOAccelerator")
    assert caught.value.reason == ag.REASON_SANDBOX and settle(mac) == (0, 0, 0, 0)


# ---- IOReport

native_GPU = 0x4750555048000000


def native_energy(mac, count=97):
    mac.listing = [(0x100000300, 0x4350000000 + i, "Energy Model", "", "rail %d" % i, 1, "mJ ", ()) for i in range(count)]
    mac.listing += [(0x100000321, native_GPU, "GPU Stats", "GPU Performance States", None, 2, "24Mticks", ("OFF", "P1", "P2")),
                    (0x100000322, 77, "PMP", "DCS BW", "AGX RD", 3, "", ())]
    mac.values = {count: (10, 20, 30), count + 1: (1, 2)}
    mac.stamps[count] = 555
    return [("Energy Model", None), ("GPU Stats", "GPU Performance States"), ("No Such Group", None), ("PMP", None)]


def test_a_subscription_reads_chosen_channels(mac):
    groups, seen = native_energy(mac), []
    report = ag._LiveMachine().ioreport
    def want(group, subgroup, name, unit):
        seen.append((group, subgroup, name, unit))
        return name in ("rail 3", "GPUPH", "AGX RD")
    made = report.subscribe(groups, want)
    assert ("Energy Model", "", "rail 0", "mJ") in seen and ("GPU Stats", "GPU Performance States", "GPUPH", "24Mticks") in seen
    assert [(c.driver, c.channel, c.name, c.format, c.unit) for c in made.channels] == [
        (0x100000300, 0x4350000003, "rail 3", 1, "mJ"), (0x100000321, native_GPU, "GPUPH", 2, "24Mticks"), (0x100000322, 77, "AGX RD", 3, "")]
    assert made.channels[1].states == ("OFF", "P1", "P2") and made.channels[0].states == ()
    mac.values[3] = (-(1 << 63),)
    assert made.sample() == [(1003, (-(1 << 63),)), (555, (10, 20, 30)), (1098, (1, 2))]
    assert made.note == ""
    assert report.subscribe(groups, lambda *a: False) is None
    assert report.subscribe([("Nope", None)], lambda *a: True) is None


@pytest.mark.parametrize("listed", [97, 364, 1500])
def test_a_sample_costs_four_calls_a_channel_and_leaves_nothing(mac, listed):
    made = ag._LiveMachine().ioreport.subscribe(native_energy(mac, listed), lambda g, s, name, u: name in ("rail 3", "rail 9", "GPUPH"))
    mac.order = list(range(len(mac.listing)))       # the driver lists more than was asked for
    made.sample()
    alive = len(mac.heap)
    for _ in range(5):
        mac.calls = []
        made.sample()
        assert len(mac.calls) <= 10 + 4 * 3 and not any("String" in c or "GetChannelName" in c for c in mac.calls)
    assert len(mac.heap) == alive


def test_a_moved_or_absent_channel_is_noticed(mac):
    made = ag._LiveMachine().ioreport.subscribe(native_energy(mac, 5), lambda g, s, n, u: True)
    first = made.sample()
    mac.order = list(reversed(range(7)))
    assert made.sample() == first
    mac.gone = {2, 5}
    rows = made.sample()
    assert rows[2] is None and rows[5] is None and rows[1] == first[1] and rows[6] == first[6]
    mac.calls = []
    assert made.sample() == rows and len(mac.calls) <= 10 + 4 * 7      # an absent channel is not searched again
    mac.gone = set()
    assert made.sample() == first
    mac.gone = {0, 1, 2, 3, 4, 5, 6}
    assert made.sample() == [None] * 7
    mac.gone = set()
    assert made.sample() == first


def test_a_channel_absent_from_the_first_sample_comes_later(mac):
    mac.gone = {1}
    made = ag._LiveMachine().ioreport.subscribe(native_energy(mac, 3), lambda g, s, n, u: True)
    assert made.sample()[1] is None
    mac.gone = set()
    assert made.sample()[1] == (1001, (1,))


def test_a_channel_that_only_its_names_tell_comes_later(mac):
    """Neither its driver nor its place is known from the listing, and the first sample does not hold it."""
    mac.gone, mac.listing_driver = {1}, False
    made = ag._LiveMachine().ioreport.subscribe(native_energy(mac, 3), lambda g, s, n, u: True)
    assert made.sample()[1] is None
    mac.gone = set()
    assert [row[1] for row in made.sample()] == [(1,), (1,), (1,), (10, 20, 30), (1, 2)]


@pytest.mark.parametrize("odd", [lambda whole: whole[:-64], lambda whole: whole[:-1], lambda whole: whole + whole[:64], lambda whole: b""],
                         ids=["short", "torn", "long", "empty"])
def test_an_odd_first_sample_spoils_nothing(mac, odd):
    groups, whole = native_energy(mac, 2), mac.records
    made = ag._LiveMachine().ioreport.subscribe(groups, lambda *a: True)
    mac.records = lambda i: odd(whole(i))
    made.sample()
    mac.records = whole
    for _ in range(2):
        mac.calls = []
        assert made.sample() == [(1000, (1,)), (1001, (1,)), (555, (10, 20, 30)), (1003, (1, 2))] and made.note == ""
    assert not any("Residency" in c or "GetIntegerValue" in c for c in mac.calls), "by the records again"


def test_a_state_name_missing_in_the_listing_comes_with_the_first_sample(mac):
    real, asked = mac.IOReportStateGetNameForIndex, []

    def name(item, k):
        asked.append(k)
        return 0 if asked.count(1) == 1 and k == 1 else real(item, k)
    mac.IOReportStateGetNameForIndex = name
    made = ag._LiveMachine().ioreport.subscribe(native_energy(mac, 2), lambda *a: True)
    assert made.channels[2].states == ("OFF", "P1", "P2")


def test_a_group_is_listed_once_for_all_its_subgroups(mac):
    """A listing has taken 2.5 s on an M5 Max (all-smi 374), so the groups of bandwidth are not asked for each of their parts."""
    mac.listing = [(1, 10 + i, "PMP0", subgroup, "AGX RD", 2, "24Mticks", ("   1GB/s",)) for i, subgroup in enumerate(("DCS BW", "Bandwidth"))]
    mac.values = {0: (5,), 1: (7,)}
    engine = ag._Engine(ag._LiveMachine())
    mac.calls = []
    engine.pmp.open()
    assert [c.subgroup for c in engine.pmp.channels] == ["DCS BW"]
    assert mac.calls.count("IOReportCopyChannelsInGroup") == 4      # PMP, PMP0, PMP1, Energy Counters


def test_equal_names_and_equal_ids_stay_apart(mac):
    mac.listing = [(7, 1, "E", "", "DTL", 1, "mJ", ()), (8, 1, "E", "", "DTL", 1, "mJ", ()),
                   (9, 5, "E", "", "ECPU", 1, "mJ", ()), (9, 5, "E", "", "PCPU", 1, "mJ", ())]
    mac.values = {i: (i,) for i in range(4)}
    made = ag._LiveMachine().ioreport.subscribe([("E", None)], lambda *a: True)
    mac.order = [3, 1, 0, 2]
    assert [row[1] for row in made.sample()] == [(0,), (1,), (2,), (3,)]
    assert [row[1] for row in made.sample()] == [(0,), (1,), (2,), (3,)]


def test_a_listing_without_driver_or_states_is_completed_by_the_first_sample(mac):
    mac.listing_driver = mac.listing_states = False
    made = ag._LiveMachine().ioreport.subscribe(native_energy(mac, 2), lambda *a: True)
    assert made.channels[2].states == ("OFF", "P1", "P2") and made.channels[2].driver == 0x100000321
    assert [row[1] for row in made.sample()] == [(1,), (1,), (10, 20, 30), (1, 2)]


def test_a_first_sample_that_fails_subscribes_once(mac):
    """The names of the states come with a sample; a subscription is never released, so it is not made anew for each attempt."""
    mac.listing_states, mac.null = False, {"IOReportCreateSamples"}
    groups, report = native_energy(mac, 2), ag._LiveMachine().ioreport
    want = lambda *a: True  # noqa: E731
    for _ in range(3):
        with pytest.raises(ag.AppleGPUError_OperatingSystem):
            report.subscribe(groups, want)
    mac.null = set()
    assert report.subscribe(groups, want).channels[2].states == ("OFF", "P1", "P2") and len(ag._c.subscriptions) == 1


def test_accessors_serve_for_good_where_records_differ(mac):
    mac.accessor_shift = 1000
    made = ag._LiveMachine().ioreport.subscribe(native_energy(mac, 2), lambda *a: True)
    assert [row[1] for row in made.sample()] == [(1001,), (1001,), (1010, 1020, 1030), (1001, 1002)]
    assert "accessors" in made.note and made.sample()[2] == (555, (1010, 1020, 1030))


def test_refused_and_failed_subscriptions(mac):
    groups = native_energy(mac, 2)
    report = ag._LiveMachine().ioreport
    mac.refuse = True
    with pytest.raises(ag.AppleGPUError_NotSupported) as caught:
        report.subscribe(groups, lambda *a: True)
    assert caught.value.reason == ag.REASON_MACOS and caught.value.detail == "refused"
    del caught
    assert len(mac.heap) == len(ag._c.strings)
    mac.refuse = False
    made = report.subscribe(groups, lambda *a: True)
    mac.null = {"IOReportCreateSamples"}
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        made.sample()
    mac.null = set()
    assert made.sample()[0] == (1000, (1,))


@pytest.mark.parametrize("refused", ["Energy Model", "GPU Stats", "PMP"])
def test_one_group_that_refuses_leaves_the_others(mac, refused):
    """On M5 Max PMP is listed and refuses while PMP0 is alive (SiliconScope 30); what PMP0 tells must not go with it."""
    groups = native_energy(mac, 2)
    mac.refuse = refused
    made = ag._LiveMachine().ioreport.subscribe(groups, lambda *a: True)
    assert {c.group for c in made.channels} == {"Energy Model", "GPU Stats", "PMP"} - {refused}
    assert all(made.sample()) and refused in made.note and len(ag._c.subscriptions) == 1


def test_short_and_odd_records_are_no_data(mac):
    groups = native_energy(mac, 2)
    made = ag._LiveMachine().ioreport.subscribe(groups, lambda *a: True)
    first = made.sample()
    whole = mac.records
    mac.records = lambda i: whole(i)[:-1] if i == 0 else b"" if i == 1 else whole(i)
    mac.calls = []
    rows = made.sample()
    assert rows[0] is None and rows[1] is None and rows[2:] == first[2:] and len(mac.calls) <= 10 + 4 * 4
    mac.order = [1, 0, 3, 2]
    assert made.sample() == rows and made.sample() == rows
    mac.records = whole
    assert made.sample() == first


# ---- SMC

def test_smc(mac):
    smc = ag._LiveMachine().smc
    assert smc.count() == 3 and [smc.key_at(i) for i in range(4)] == ["#KEY", "F0Ac", "Tg05", None]
    assert smc.info("Tg05") == (4, "flt ") and smc.read("Tg05") == struct.pack("<f", 46.5)
    assert smc.read("Nope") is None and smc.info("Nope") is None and smc.info("long key") is None
    mac.calls = []
    smc.read("Tg05")
    assert mac.calls == ["IOConnectCallStructMethod"]
    assert mac.ports == {}


@pytest.mark.parametrize("code, error, reason", [
    (0xE00002C1, ag.AppleGPUError_NoPermission, ag.REASON_PERMISSION), (0xE00002E2, ag.AppleGPUError_NoPermission, ag.REASON_SANDBOX),
    (0xE00002C7, ag.AppleGPUError_NotSupported, ag.REASON_MACOS), (0xE00002BC, ag.AppleGPUError_OperatingSystem, ag.REASON_SOURCE_FAILED)])
def test_smc_refusals(mac, code, error, reason):
    for call in ("open", "smc"):
        machine = ag._LiveMachine()
        mac.kr = {call: code - (1 << 32)}
        with pytest.raises(error) as caught:
            machine.smc.read("Tg05")
        assert caught.value.reason == reason and caught.value.source == "smc"
        mac.kr = {}
        assert machine.smc.read("Tg05") == struct.pack("<f", 46.5)      # nothing is latched


@pytest.mark.parametrize("code, error, reason", [(0xE00002E2, ag.AppleGPUError_NoPermission, ag.REASON_SANDBOX),
                                                 (0xE00002BC, ag.AppleGPUError_OperatingSystem, ag.REASON_SOURCE_FAILED)])
def test_a_temperature_that_is_refused_says_by_whom(mac, code, error, reason):
    """Not that this chip has no sensors; and HID is asked first."""
    mac.kr["open"] = code
    engine = ag._Engine(ag._LiveMachine())
    with pytest.raises(error) as caught:
        engine.temperature(NS, "GPU")
    assert caught.value.reason == reason
    mac.sensors.append(("GPU MTR Temp Sensor1", 9, 31.5))
    engine = ag._Engine(ag._LiveMachine())
    assert engine.temperature(NS, "GPU").value == 31.5


def test_smc_odd_answers(mac):
    machine = ag._LiveMachine()
    mac.smc_result = 0x85
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        machine.smc.read("Tg05")
    mac.smc_result, mac.answer_size = None, 40
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        machine.smc.read("Tg05")
    mac.answer_size, mac.smc["Big "] = 80, ("hex_", bytes(33))
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        machine.smc.read("Big ")


def test_no_smc_in_a_guest(mac):
    del mac.services["AppleSMCKeysEndpoint"]
    mac.sysctls["kern.hv_vmm_present"] = struct.pack("<I", 1)
    with pytest.raises(ag.AppleGPUError_NotSupported) as caught:
        ag._LiveMachine().smc.count()
    assert caught.value.reason == ag.REASON_VIRTUAL_MACHINE


# ---- HID, sysctl, mach, libproc, notify, power, Metal

def test_hid(mac):
    hid = ag._LiveMachine().hid
    assert hid.temperatures() == [("PMU tdie1", 7, 46.68), ("als-temp", 0, None)]
    alive, mac.calls = len(mac.heap), []
    for _ in range(20):
        hid.temperatures()
    assert len(mac.heap) == alive and "IOHIDEventSystemClientCopyServices" not in mac.calls
    hid.looked -= hid._REFRESH
    hid.temperatures()
    assert len(mac.heap) == alive and mac.calls.count("IOHIDEventSystemClientCopyServices") == 1
    assert "IOHIDEventSystemClientCreate" not in mac.calls
    mac.null = {"IOHIDEventSystemClientCopyServices"}
    hid.looked -= hid._REFRESH
    assert hid.temperatures() == []


def test_sysctl(mac):
    sysctl = ag._LiveMachine().sysctl
    assert sysctl.number("hw.memsize") == 16 << 30 and sysctl.text("machdep.cpu.brand_string") == "Apple M4"
    assert sysctl.raw("nothing") is None and sysctl.text("nothing") is None and sysctl.number("nothing") is None
    mac.calls = []
    sysctl.number("hw.memsize")
    assert mac.calls == ["sysctlbyname"]
    mac.grow = 2
    assert sysctl.number("hw.memsize") == 16 << 30
    mac.sysctls["long"] = bytes(range(256)) * 4
    assert sysctl.raw("long") == mac.sysctls["long"]
    mac.grow = 9
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        sysctl.raw("long")
    mac.grow = 0
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        sysctl.number("machdep.cpu.brand_string")
    mac.errors["sysctl"] = EPERM
    with pytest.raises(ag.AppleGPUError_NoPermission):
        sysctl.raw("hw.memsize")


def test_mach(mac):
    mach = ag._LiveMachine().mach
    assert mach.vm_statistics()[:152] == bytes(range(1, 153)) and len(mach.vm_statistics()) == 160
    assert mach.cpu_ticks() == struct.pack("<8I", *range(8)) and not mac.mapped
    assert mach.page_size() == 16384 and mach.timebase() == (125, 3)
    assert mac.calls.count("mach_host_self") == 1 and ag._c.kept["host"] == 0x203
    mac.vm_count = 37
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        mach.vm_statistics()
    mac.kr["vm"] = -307
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        mach.vm_statistics()
    mac.words = 7
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        mach.cpu_ticks()
    assert not mac.mapped


def test_libproc(mac):
    libproc = ag._LiveMachine().libproc
    assert libproc.pids() == [0, 1, 357, 4242] and libproc.own_pid() == os.getpid()
    assert libproc.path(357) == "/System/WindowServer" and libproc.path(1) is None
    assert len(libproc.short_info(1)) == 64 and libproc.short_info(9999) is None
    assert len(libproc.task_info(1)) == 96 and len(libproc.rusage(1)) == 464
    mac.errors[1] = EPERM
    assert len(libproc.short_info(1)) == 64
    for call in (libproc.task_info, libproc.rusage):
        with pytest.raises(ag.AppleGPUError_NoPermission) as caught:
            call(1)
        assert caught.value.reason == ag.REASON_PERMISSION
    with pytest.raises(ag.AppleGPUError_NotFound):
        libproc.task_info(9999)
    mac.rusage_v6 = False
    assert len(libproc.rusage(357)) == 296 and libproc.flavor == 4
    mac.errors["list"] = EPERM
    with pytest.raises(ag.AppleGPUError_NoPermission) as caught:
        libproc.pids()
    assert caught.value.reason == ag.REASON_SANDBOX


def test_notify_and_power(mac):
    machine = ag._LiveMachine()
    assert machine.notify.state("com.apple.system.thermalpressurelevel") == 2
    mac.kr["notify"] = 2
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        machine.notify.state("com.apple.system.thermalpressurelevel")
    assert machine.power.providing() == "AC Power" and not mac.heap
    mac.null = {"IOPSCopyPowerSourcesInfo"}
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        machine.power.providing()
    mac.null = {"IOPSGetProvidingPowerSourceType"}
    assert machine.power.providing() is None and not mac.heap


@pytest.mark.parametrize("absent", [set(), {"MTLCopyAllDevices"}, {"MTLCreateSystemDefaultDevice"}])
def test_metal_device(mac, absent):
    mac.null = absent
    said = ag._LiveMachine().metal.device(0x100001007)
    assert said["name"] == "Apple M4" and said["recommendedMaxWorkingSetSize"] == 12713115648
    assert said["families"] == (1009, 3003) and said["hasUnifiedMemory"] is True and said["maxThreadgroupMemoryLength"] == 32768
    assert not mac.heap and mac.pools == 0


def test_no_metal_device(mac):
    mac.null = {"MTLCopyAllDevices", "MTLCreateSystemDefaultDevice"}
    with pytest.raises(ag.AppleGPUError_NotReady):
        ag._LiveMachine().metal.device()
    assert mac.pools == 0


# ---- everything at once

def tour(machine):
    """Every method of every source; what could not be had."""
    failed = []
    def attempt(call, *args):
        try:
            return call(*args)
        except ag.AppleGPUError as error:
            failed.append(error)
            assert str(error) and error.reason
    for entry in attempt(machine.registry.services, "IOAccelerator") or ():
        for call in (machine.registry.identity, machine.registry.class_name, machine.registry.alive, machine.registry.children):
            attempt(call, entry)
        attempt(machine.registry.get, entry, "PerformanceStatistics")
    attempt(machine.registry.named, "pmgr")
    subscription = attempt(machine.ioreport.subscribe, [("Energy Model", None), ("GPU Stats", None), ("PMP", None)], lambda *a: True)
    for _ in range(2 if subscription else 0):
        attempt(subscription.sample)
    for call in (machine.smc.count, machine.hid.temperatures, machine.mach.vm_statistics, machine.mach.cpu_ticks,
                 machine.mach.page_size, machine.mach.timebase, machine.libproc.pids, machine.power.providing, machine.metal.device,
                 machine.clock.ticks_per_second):
        attempt(call)
    attempt(machine.smc.key_at, 1), attempt(machine.smc.read, "Tg05"), attempt(machine.sysctl.raw, "hw.memsize")
    for call in (machine.libproc.short_info, machine.libproc.task_info, machine.libproc.rusage, machine.libproc.path):
        attempt(call, 1)
    attempt(machine.notify.state, "com.apple.system.thermalpressurelevel")
    return failed


OPTIONAL = {"CFBooleanGetValue", "CFDictionaryGetCount", "CFDictionaryGetKeysAndValues", "CFPropertyListCreateData",
            "IOIteratorReset", "IORegistryEntryInPlane", "IOReportSimpleGetIntegerValue", "IOReportHistogramGetBucketCount",
            "IOReportHistogramGetBucketHits", "IOReportStateGetResidency", "MTLCreateSystemDefaultDevice"}
USED = sorted(symbol for symbol in ag._PROTOTYPES if hasattr(Mac, symbol) and symbol not in (
    "CFRelease", "notify_cancel", "IOServiceClose", "IOObjectRelease", "objc_release", "vm_deallocate", "objc_autoreleasePoolPop"))


@pytest.mark.parametrize("symbol", USED)
def test_each_function_failing_is_a_typed_error_and_leaves_nothing(mac, symbol):
    native_energy(mac, 2)
    assert tour(ag._LiveMachine()) == []
    void = ag._PROTOTYPES[symbol][1] == "v" or symbol in ("notify_register_check", "objc_autoreleasePoolPush")
    for way in ("missing",) if void else ("missing", "null"):
        ag._c.forked()
        mac.heap.clear(), mac.ports.clear(), mac.mapped.clear()
        setattr(mac, way, {symbol})
        failed = tour(ag._LiveMachine())
        assert way == "null" or failed or symbol in OPTIONAL
        setattr(mac, way, set())
        failed.clear()
        ag._c.forked()
        assert not mac.mapped and not mac.pools and not mac.ports
    mac.crimes = [c for c in mac.crimes if "CFGetTypeID" not in c]


def test_many_rounds_leave_nothing(mac):
    native_energy(mac, 4)
    machine = ag._LiveMachine()
    tour(machine)
    subscription = machine.ioreport.subscribe([("Energy Model", None)], lambda *a: True)
    subscription.sample()
    before = settle(mac)
    for _ in range(200):
        subscription.sample(), machine.hid.temperatures(), machine.mach.cpu_ticks(), machine.power.providing()
        machine.registry.get(machine.registry.services("IOAccelerator")[0], "PerformanceStatistics")
        machine.metal.device()
    assert settle(mac) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_forgets_without_releasing(mac):
    native_energy(mac, 2)
    machine = ag._LiveMachine()
    tour(machine)
    entry, = machine.registry.services("IOAccelerator")
    subscription = machine.ioreport.subscribe([("Energy Model", None)], lambda *a: True)
    kept = [entry, subscription, ag._cf_string("x"), ag._c.IOObject(mac.port(None))]
    pid = os.fork()
    if not pid:
        status = 1
        try:
            mac.calls = []
            machine.registry.lock.acquire()
            machine.forked()
            heap, ports = len(mac.heap), len(mac.ports)
            with pytest.raises(ag.AppleGPUError_NotReady):
                machine.registry.identity(entry)
            with pytest.raises(ag.AppleGPUError_NotReady):
                subscription.sample()
            with pytest.raises(ag.AppleGPUError_NotReady) as caught:
                machine.metal.device()
            assert caught.value.reason == ag.REASON_FORKED_CHILD and not machine.registry.alive(entry)
            del caught, entry, subscription
            kept.clear()
            assert (len(mac.heap), len(mac.ports)) == (heap, ports) and mac.calls == []
            assert all(e.source == "metal" for e in tour(machine))
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


# ======================================================================================================================
# recordings: the format, the replay, the recorder
# ======================================================================================================================

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
    ("format", 2, "format 2"), ("format", 0, "format 0"), ("time", ..., "'time'"), ("time", None, "time"), ("time", {}, "has no 'ticks'"),
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
    assert m.name == "tiny.json" and m.forked() is None


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


def test_player_unit_words():
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
    m, seen = machine(data), []
    sub = m.ioreport.subscribe([("Energy Model", None)], lambda *about: True)
    for _ in range(5):
        seen.append(sub.sample()[0][1][0])
        m.clock.sleep(1)
    assert seen == [500, 700, 10, 500, 700]


@pytest.mark.parametrize("phase", (0.0, 0.05, 0.9, 1.6, 2.05))
@pytest.mark.parametrize("seconds", (7, 8.5, 12))
def test_energy_goes_on_evenly_when_the_recording_starts_again(phase, seconds):
    """1 W in batches each 2.12 s: the seam falls anywhere between two of them."""
    data, moments = tiny(), [n * SECOND // 2 for n in range(int(seconds * 2) + 1)]
    data["time"] = {"timebase": [125, 3], "ticks": [T0 + t for t in moments]}
    stamps = [int((t / SECOND - phase) // 2.12 * 2.12 * SECOND + phase * SECOND) for t in moments]
    rows = [[T0 + stamp, 100000 + stamp * 1000 // SECOND] for stamp in stamps]
    data["ioreport"]["channels"][0].update(name="CPU Energy", rows=rows)
    engine = ag._Engine(machine(data))
    for step in range(4 * len(moments)):
        figure = ag.Try(lambda: engine.rail_power(ag._NS, "cpu"))
        assert figure.reason == "first" if step < 5 and figure.reason else 998 <= figure.value.value <= 1002, (step, figure)
        engine.machine.clock.sleep(1)


@pytest.mark.parametrize("mac", [name for name in MACS if not name.startswith("vm")])
def test_no_rail_jumps_when_a_recording_starts_again(mac):
    engine = ag.LibraryOpen(recording(mac), speed=0)._engine
    instants = engine.machine.recording.instants - 1
    rounds = [{}, {}, {}]
    for step in range(3 * instants + 1):
        for rail in ag.RAILS:
            got = ag.Try(engine.rail_power, ag._NS, rail)
            if step:
                rounds[(step - 1) // instants].setdefault(rail, []).append(got.value.value if got.value else got.reason)
        engine.machine.clock.sleep(1)
    for later in rounds[1:]:
        for rail, values in later.items():
            known = [v for v in rounds[0][rail] if isinstance(v, int)] or [rounds[0][rail][-1]]
            assert {type(v) for v in values} == {type(v) for v in known} and max(values) <= max(known) and min(values) >= min(known)


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


@pytest.mark.parametrize("guest, reason", [("01000000", ag.REASON_VIRTUAL_MACHINE), ("00000000", ag.REASON_NO_SUCH_PART)])
def test_why_there_is_no_smc_is_known_also_after_the_end(guest, reason):
    data = dict(tiny(), smc=None)
    data["sysctl"]["kern.hv_vmm_present"] = [[0, guest]]
    m = machine(data, loop=False)
    for _ in range(6):
        with raises(ag.ERROR_NOT_SUPPORTED, reason):
            m.smc.count()
        m.clock.sleep(1)


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
        m = machine()
        assert m.registry.get(m.registry.services("IOPlatformExpertDevice")[0], "IOPlatformUUID") not in text
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


def test_a_sensor_that_says_nonsense_is_not_written():
    m = machine(loop=False)
    inf, nan = float("inf"), float("nan")
    m.hid = type("HID", (), {"temperatures": lambda self: [("a", 1, nan), ("b", 2, inf), ("c", 3, -1e30), ("d", 4, 40.5), ("e", 5, None)]})()
    with folder() as path:
        name = os.path.join(path, "a.json")
        record(m, name)
        assert ag._RecordedMachine(name, 0).hid.temperatures() == [
            ("a", 1, None), ("b", 2, None), ("c", 3, None), ("d", 4, 40.5), ("e", 5, None)]


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


# ======================================================================================================================
# recordings against the raw output of real Macs
# ======================================================================================================================

FOLDER = Path(__file__).resolve().parent / "examples" / "recordings"
NAMES = ("m1-macos11", "m1max", "m1ultra-macos27", "m3max-macos27", "m4-macos27", "m4pro", "m5max-macos27", "vm-macos15")
PARTS = {"registry", "ioreport", "smc", "hid", "sysctl", "mach", "libproc", "notify", "power", "metal", "time"}
AGENTS = ("gpu", "cpu", "ane", "media", "display", "io")
ENGINES = ("encode", "decode", "prores")
# Not a plain value of one device: two devices, or a whole snapshot.
EXEMPT = {"DeviceGetSnapshot", "DeviceGetTopologyLevel", "DeviceGetP2PStatus"}


def raw_recording(name):
    return json.loads((FOLDER / (name + ".json")).read_text("ascii"))


def raw(name):
    folder = os.environ.get("PYAPPLEGPU_RAW")
    if not folder:
        pytest.skip("PYAPPLEGPU_RAW does not name the folder of raw recordings")
    return (Path(folder) / name).read_text("utf-8")


def lines(name):
    return [line for line in raw(name).splitlines() if line and not line.startswith("#")]


def raw_plain(value):
    kind, inner = value
    if kind == "a":
        return [raw_plain(item) for item in inner]
    return {k: raw_plain(v) for k, v in inner.items()} if kind == "d" else inner


def node(data, **want):
    found = [n for n in data["registry"] if all(n[k] == v for k, v in want.items())]
    assert len(found) == 1, want
    return found[0]


def first(entry, key):
    """A property at the first instant."""
    series = entry.get("series", {}).get(key)
    return raw_plain(series[0][1] if series else entry["properties"][key])


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
    provenance = raw_recording(name)["provenance"]
    assert set(provenance) == PARTS
    for part, said in provenance.items():
        assert set(said) == {"kind", "from"} and said["kind"] in ("observed", "composed") and len(said["from"]) > 5, part
        for file in re.findall(r"[\w.,-]+\.(?:txt|tsv)", said["from"]):
            if os.environ.get("PYAPPLEGPU_RAW") and not file.startswith("-"):
                assert (Path(os.environ["PYAPPLEGPU_RAW"]) / file).is_file(), (part, file)


@pytest.mark.parametrize("name", NAMES)
def test_expects_something_of_every_function(name):
    data = raw_recording(name)
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


# ---- M1 on macOS 11, against its registry dump ----

M1 = "m1-macos11"
M1_AGX = "m1-macos11.0.1-ioreg-sgx-agx-1.txt"


def test_m1_accelerator_and_every_user_client():
    text, data = raw(M1_AGX), raw_recording(M1)
    said, here = ioreg_node(text, "o AGXAcceleratorG13G_B0"), node(data, **{"class": "AGXAcceleratorG13G_B0"})
    assert here["id"] == int(re.search(r"AGXAcceleratorG13G_B0, id (0x\w+)", text)[1], 16)
    assert first(here, "PerformanceStatistics") == numbers(said["PerformanceStatistics"])
    assert first(here, "PerformanceStatistics")["In use system memory"] == 6373376
    compared = 0
    for key, value in here["properties"].items():
        if value[0] not in ("a", "d"):
            assert raw_plain(value) == ioreg(said[key]), key
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
        assert {k: raw_plain(v) for k, v in client["properties"].items()} == {
            "API": ioreg(props["API"]), "IOUserClientCreator": ioreg(props["IOUserClientCreator"]), "AppUsage": usage}
    assert sum(not raw_plain(c["properties"]["AppUsage"]) for c in clients) == 5
    window = raw_plain(clients[0]["properties"]["AppUsage"])
    assert [u["accumulatedGPUTime"] for u in window] == [249658696208, 5914750]


@pytest.mark.parametrize("name, file, head, least", [
    ("sgx", M1_AGX, "o sgx@", 12), ("pmgr", "m1-macos11.0.1-ioreg-pmgr-1.txt", "o pmgr@", 13),
    ("cpu0", "m1-macos11.0.1-ioreg-cpus-1.txt", "o cpu0@", 9), ("cpu4", "m1-macos11.0.1-ioreg-cpus-1.txt", "o cpu4@", 9),
    ("ane", "m1-macos11.0.1-ioreg-ane-1.txt", "o ane@", 4), ("H11ANEIn", "m1-macos11.0.1-ioreg-ane-1.txt", "o H11ANEIn ", 4),
    ("AppleSMC", "m1-macos11.0.1-ioreg-applesmc-1.txt", "o AppleSMC ", 4)])
def test_m1_device_tree(name, file, head, least):
    text, here = raw(file), node(raw_recording(M1), name=name)
    said = ioreg_node(text, head)
    assert here["id"] == int(re.search(r"%s.*?id (0x\w+)" % re.escape(head), text)[1], 16)
    for key, value in here["properties"].items():
        got = raw_plain(value)
        assert got == (numbers(said[key]) if value[0] == "d" else ioreg(said[key])), key
    assert len(here["properties"]) >= least


def test_m1_every_voltage_table():
    text, here = raw("m1-macos11.0.1-ioreg-pmgr-1.txt"), node(raw_recording(M1), name="pmgr")
    tables = dict(re.findall(r'"(voltage-states[\w-]+)" = <([0-9a-f]+)>', text))
    assert len(tables) == 9
    assert {k: raw_plain(v) for k, v in here["properties"].items() if k.startswith("voltage")} == tables
    assert [f // 10 ** 6 for f, _ in pairs(tables["voltage-states9"])] == [0, 396, 528, 720, 924, 1128, 1278]
    assert tables["voltage-states9"] == raw_plain(node(raw_recording(M1), name="sgx")["properties"]["perf-states"])


def test_m1_every_channel_of_its_groups():
    data = raw_recording(M1)
    want = [tuple(line.split("\t")[:6]) for line in lines("m1-macos11.0.1-ioreport-channels-1.tsv")]
    want = [row for row in want if row[0] in data["ioreport"]["groups"]]
    have = [(c["group"], c["subgroup"], c["name"] or "", int(c["channel"], 16), int(c["type"], 16), int(c["unit"], 16))
            for c in data["ioreport"]["channels"]]
    assert have == [row[:3] + tuple(int(word, 16) for word in row[3:]) for row in want]
    assert len(channels(data, "Energy Model")) == 97 and len(have) == 515


def test_m1_changes_follow_powermetrics():
    data = raw_recording(M1)
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
    assert [(raw_plain(s["properties"]["Product"]), s["value"][0][1]) for s in raw_recording(M1)["hid"]["services"]] == want


# ---- M4 on macOS 27 ----

M4 = "m4-macos27"


def test_m4_accelerator():
    said = ioreg_node(raw("m4-macos27-ioreg-ioaccelerator-1.txt"), "o AGXAcceleratorG16G")
    here = node(raw_recording(M4), **{"class": "AGXAcceleratorG16G"})
    assert here["id"] == 0x100000478
    assert first(here, "PerformanceStatistics") == numbers(said["PerformanceStatistics"])
    assert [v for i, v in here["series"]["PerformanceStatistics"]] == [here["series"]["PerformanceStatistics"][0][1]]
    computed = {"FilteredGPUPower", "MaxGPUAbsolutePower"}      # never in a dump: IORegistryEntryCreateCFProperty makes them
    assert computed.isdisjoint(said)
    for key, value in here["properties"].items():
        if key not in computed and value[0] not in ("a", "d"):
            assert raw_plain(value) == ioreg(said[key]), key
    for key in ("AGCInfo", "IOPowerManagement"):
        assert first(here, key) == numbers(said[key]), key
    config = first(here, "GPUConfigurationVariable")
    assert {k: v for k, v in config.items() if isinstance(v, int)} == numbers(said["GPUConfigurationVariable"])
    assert config["gpu_var"] == "G" and config["core_mask_list"] == [1023]


def test_m4_gpu_table():
    rows = [line.split() for line in raw("m4-macos15.5-sgx-perf-states-decoded-1.txt").splitlines() if re.match(r"P\d", line)]
    rows = [[cell for cell in row if cell.isdigit()][:3] for row in rows]
    assert len(rows) == 16
    sgx, pmgr = (node(raw_recording(M4), name=n)["properties"] for n in ("sgx", "pmgr"))
    assert pairs(raw_plain(sgx["perf-states"])) == [(int(f) * 10 ** 6, int(mv)) for f, mv, _ in rows]
    assert pairs(raw_plain(sgx["perf-states-sram"])) == [(int(f) * 10 ** 6, int(mv)) for f, _, mv in rows]
    assert pmgr["voltage-states9"] == sgx["perf-states"]


def test_m4_every_smc_key():
    smc, dump = raw_recording(M4)["smc"], smc_dump("m4-unknown-smc-full-Mac16,12-2.txt")
    assert len(dump) == 1728
    assert smc["keys"] == [[key, kind, len(data) // 2] for key, kind, data in dump]
    held = {key: data for key, kind, data in dump if key[0] in "TFP" or key.startswith("B0")}
    count = smc["values"].pop("#KEY")
    assert {key: series[0][1] for key, series in smc["values"].items()} == held
    assert int(count[0][1], 16) == len(smc["keys"])     # the Mac said 2129: its other keys are not in the file


def test_m4_every_sensor():
    rows = [line.split("\t") for line in lines("m4-macos27.0-iohid-temps-1.txt")]
    services = raw_recording(M4)["hid"]["services"]
    assert len(rows) == len(services) == 47
    for (location, _, product, celsius), service in zip(rows, services):
        assert {k: raw_plain(v) for k, v in service["properties"].items()} == {
            "Product": product, "LocationID": int(location), "PrimaryUsagePage": 0xFF00, "PrimaryUsage": 5}
        assert service["value"] == (None if celsius == "-" else [[0, float(celsius)]])


def test_m4_memory_pages():
    said = {k.strip('"'): int(v) for k, v in re.findall(r'(?m)^(?:Pages )?("?[\w -]+"?):\s+(\d+)\.', raw("m4-macos27-vm_stat-top-1.txt"))}
    v = struct.unpack("<4I9Q2I4Q4IQ", bytes.fromhex(raw_recording(M4)["mach"]["vm_statistics64"][0][1]))
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
    have = [(c["name"], int(c["unit"], 16)) for c in channels(raw_recording(name), "Energy Model")]
    assert have == [(n, word[u]) for n, u in (line.split("\t") for line in lines(file))]
    assert len(have) == count
    keys = [(c["driver"], c["channel"]) for c in channels(raw_recording(name), "Energy Model")]
    assert len(set(keys)) == count
    if "ultra" in name:
        assert len({n for n, _ in have if "DTL" in n}) * 2 == sum("DTL" in n for n, _ in have) == 260


def test_m1ultra_publishes_as_recorded():
    data = raw_recording("m1ultra-macos27")
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
    keys = raw_recording("m1ultra-macos27")["smc"]["values"]
    for key, celsius in re.findall(r'(?m)^(T\w{3})\tpresent type="flt " ([\d.]+) C', text):
        assert struct.unpack("<f", bytes.fromhex(keys[key][0][1]))[0] == pytest.approx(float(celsius), abs=1e-5)


def test_m5max_publishes_every_two_seconds():
    rows, = [c["rows"] for c in channels(raw_recording("m5max-macos27"), "Energy Model") if c["name"] == "CPU Energy"]
    stamps = sorted({row[0] for row in rows})
    assert all(2.03 <= (b - a) / 24e6 <= 2.23 for a, b in zip(stamps, stamps[1:])) and len(stamps) == 7


def test_m5max_tables_keys_and_cap():
    data = raw_recording("m5max-macos27")
    pmgr = node(data, name="pmgr")["properties"]
    for key, value, cut in re.findall(r'"([\w-]+)" = <([0-9a-f]+)(\.\.\.)?', raw("m5max-macos26.4-pmgr-voltage-states-hex-1.txt")):
        have = raw_plain(pmgr[key])
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
    data = raw_recording("m4pro")
    said = re.findall(r"(?<= )[0-9A-F]{2}(?= |$)", raw("m4pro-macos15-pmgr-voltage-states-hex-1.txt").split(":", 1)[1])
    assert raw_plain(node(data, name="pmgr")["properties"]["voltage-states1-sram"]).upper().startswith("".join(said)) and len(said) == 30
    samples = [plistlib.loads(p.strip().encode())["gpu"] for p in
               raw("m4pro-macos15.5-powermetrics-gpu-plist-multi-2.txt").split("\0") if p.strip()]
    clocks = [f // 10 ** 6 for f, _ in pairs(raw_plain(node(data, name="pmgr")["properties"]["voltage-states9"]))]
    assert clocks[1:] == [s["freq"] for s in samples[0]["dvfm_states"]]
    rows, = [c["rows"] for c in channels(data, "GPU Stats") if c["name"] == "GPUPH"]
    for sample, before, after in zip(samples, rows[2:], rows[3:]):
        spent = [b - a for a, b in zip(before, after)][1:]
        for ticks, state in zip(spent[1:], sample["dvfm_states"]):
            assert ticks / sum(spent) == pytest.approx(state["used_ratio"], abs=1e-6)


POWERMETRICS = ["m1-macos11.2-powermetrics-1.txt", "m1max-macos14.6-powermetrics-1.txt", "m3-macos26.3-powermetrics-gpu-1.txt",
                "m3-unknown-powermetrics-2.txt", "m3pro-unknown-powermetrics-1.txt"]


@pytest.mark.parametrize("name", POWERMETRICS)
def test_residencies_give_the_averages_that_powermetrics_printed(name):
    """Its clock and activity from its own shares, state by state: M3's tables fall and M3 Pro's repeats 1182."""
    found = re.findall(r"GPU(?: HW)? active frequency: (\d+) MHz\nGPU(?: HW)? active residency:\s+([\d.]+)% \((.*)\)", raw(name))
    assert found
    for mhz, active, rows in found:
        rows = [(int(clock), float(share)) for clock, share in re.findall(r"(\d+) ?MHz:\s*([\d.]+)%", rows)]
        states = ("OFF",) + tuple("P%d" % n for n in range(1, len(rows) + 1))
        ratios = [1 - float(active) / 100] + [share / 100 for _, share in rows]
        clocks = (0,) + tuple(clock for clock, _ in rows)
        # the shares are printed to two digits, of which a small active part keeps one
        assert ag._mean_clock(states, ratios, clocks) == pytest.approx(int(mhz), rel=0.005)
        assert ag._active(states, ratios) == pytest.approx(float(active) / 100, abs=0.006)


def test_m4pro_averages_of_every_plist_sample():
    for name in ("m4pro-macos15.5-powermetrics-gpu-plist-1.txt", "m4pro-macos15.5-powermetrics-gpu-plist-multi-2.txt"):
        for part in [part for part in raw(name).split("\0") if part.strip()]:
            gpu = plistlib.loads(part.strip().encode())["gpu"]
            clocks = (0,) + tuple(state["freq"] for state in gpu["dvfm_states"])
            ratios = [gpu["idle_ratio"]] + [state["used_ratio"] for state in gpu["dvfm_states"]]
            states = ["OFF"] + ["P%d" % n for n in range(1, len(clocks))]
            assert ag._mean_clock(states, ratios, clocks) == pytest.approx(gpu["freq_hz"], rel=1e-3)
            assert ag._active(states, ratios) == pytest.approx(1 - gpu["idle_ratio"], abs=1e-4)


@pytest.mark.parametrize("name", ["m1pro-macos12.6-ioreg-ioaccelerator-partial-2.txt", "m1max-unknown-ioreg-ioaccelerator-trimmed-1.txt",
                                  "m2-unknown-ioreg-perfstats-1.txt", "m3-unknown-ioreg-perfstats-1.txt", "m4-unknown-ioreg-perfstats-4.txt",
                                  "m4-unknown-ioreg-perfstats-idle-3.txt", "m4-macos26.6.2-ioreg-ioaccelerator-trimmed-2.txt"])
def test_statistics_of_every_chip_answer(name):
    """A key that an author trimmed is missing, not 0."""
    said = numbers(re.search(r'"PerformanceStatistics" = (.*)', raw(name))[1])
    engine, mac = engine_of()
    mac.get = lambda entry, key: said if key == "PerformanceStatistics" else None
    for figure, key in ((engine.memory_used, "In use system memory"), (engine.memory_allocated, "Alloc system memory"),
                        (engine.gpu_recoveries, "recoveryCount")):
        try:
            assert figure(NS).value == said[key]
        except ag.NVMLError_NotSupported:
            assert key not in said
    if "Tiler Utilization %" in said:
        assert engine.gpu_engines(NS).value == tuple(said[n + " Utilization %"] for n in ("Device", "Renderer", "Tiler"))


def test_m2max_tables_on_macos_13():
    """GPU clocks under voltage-states14, a second P cluster under 13, as one printed them in MHz and mV."""
    text = raw("m2max-macos13.6-macmon-debug-partial-1.txt")
    said = {(key, kind): [int(n) for n in row.split()] for key, kind, row in re.findall(r"(voltage-states[\w-]+): \(([vf])\) ([\d ]+)\n", text)}
    tables = {key: b"".join(struct.pack("<II", mhz * 1000000, mv) for mhz, mv in zip(said[key, "f"], said[key, "v"]))
              for key, kind in said if kind == "f" and max(said[key, "f"])}
    engine, mac = engine_of()
    mac.named, mac.get = lambda name: ["node"] if name == "pmgr" else [], lambda entry, key: tables.get(key)
    assert engine.gpu_clocks() == (0, 444, 612, 808, 968, 1110, 1236, 1338, 1398)
    efficiency, _, second = engine._cpu_tables([ag._cluster_state(name) for name in ("ECPU", "PCPU", "PCPU1")])
    assert efficiency[-1] == 2424 and (second[0], second[-1], len(second)) == (702, 3696, 19)


def test_m1max_accelerator_and_clocks():
    said = ioreg_node(raw("m1max-unknown-ioreg-ioaccelerator-trimmed-1.txt"), "o AGXAcceleratorG13X")
    here = node(raw_recording("m1max"), **{"class": "AGXAcceleratorG13X"})
    assert first(here, "PerformanceStatistics") == numbers(said["PerformanceStatistics"])
    for key in ("model", "gpu-core-count", "IOClass", "vendor-id", "MetalPluginName", "IONameMatched"):
        assert first(here, key) == ioreg(said[key]), key
    text = raw("m1max-macos14.6-powermetrics-1.txt")
    pmgr = node(raw_recording("m1max"), name="pmgr")["properties"]
    for line, table in (("GPU HW active residency", "voltage-states9"), ("E-Cluster HW active residency", "voltage-states1-sram"),
                        ("P0-Cluster HW active residency", "voltage-states5-sram")):
        words = re.search(r"(?m)^%s:.*\((.*)\)" % re.escape(line), text)[1]
        assert [round(f / 1e6) for f, _ in pairs(raw_plain(pmgr[table])) if f] == [int(m) for m in re.findall(r"(\d+) MHz", words)], table


def test_m3max_lists_what_it_refuses():
    data = raw_recording("m3max-macos27")
    said = re.findall(r"(?m)^(\w[\w/ ]*?)\s{2,}Simple\s+Perf Counters .*INT64_MIN$", raw("m3max-macos27-amcstats-partial-1.txt"))
    assert [c["name"] for c in channels(data, "AMC Stats")] == said and len(said) == 10
    assert all(c["rows"] == [[0, -(1 << 63)]] for c in channels(data, "AMC Stats"))
    assert data["ioreport"]["groups"]["AMC Stats"] == "refuses"
    both = float(re.search(r"AMCC -> ([\d.]+) GB/s", raw("m3max-macos27.0-pmp0-dcsbw-1.txt"))[1])
    here, = channels(data, "PMP0", "DCS BW")
    assert here["name"] == "AMCC RD+WR"     # the only one (SiliconScope 46): the sum is neither what is read nor what is written
    spent = [b - a for a, b in zip(here["rows"][0], here["rows"][1])][1:]
    assert sum(t * int(s.strip()[:-4]) for t, s in zip(spent, here["states"])) / sum(spent) == pytest.approx(both, abs=1e-3)
    rails = [c for c in channels(data, "Energy Model") if int(c["unit"], 16) == 0x300007C00000000]
    assert rails and all(row[1] == 0 for c in rails for row in c["rows"])


def test_vm_identity():
    data, text = raw_recording("vm-macos15"), raw("vm-macos15-identity-1.txt")
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
    device, = raw_recording(name)["metal"]["devices"]
    assert (str(device["recommendedMaxWorkingSetSize"]), str(device["maxBufferLength"]), device["architecture"]) == marks
    assert any(all(m in row for m in marks) for row in lines("many-unknown-metal-device_info-1.txt"))


# ======================================================================================================================
# what a second pair of eyes found
# ======================================================================================================================

NS = ag._NS


def changed(tmp_path, name, change, **more):
    with open(recording(name)) as file:
        data = json.load(file)
    change(data)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(data))
    return ag.LibraryOpen(str(path), speed=0, **more)


def test_one_lane_without_data_does_not_end_all_byte_counters():
    """An agent's counter that is absent says nothing of the totals, nor for later."""
    read, write = Channel("DCS RD", "AMC Stats", "B", (), "Perf Counters"), Channel("DCS WR", "AMC Stats", "B", (), "Perf Counters")
    display = Channel("DISP0 DCS RD", "AMC Stats", "B", (), "Perf Counters")
    engine, mac = engine_of((read, lambda t: (t, t * 1000)), (write, lambda t: (t, t * 1000)), (display, lambda t: (t, ag.INT64_MIN)))
    for _ in range(3):
        for agent in ("display", None):
            try:
                figure = engine.traffic(NS, "RD", agent)
                assert agent is None and figure.value.bytes_per_s == pytest.approx(1e6)
            except ag.NVMLError_NotReady as error:
                assert error.reason in ((ag.REASON_ABSENT, ag.REASON_FIRST) if agent else (ag.REASON_FIRST,))
                assert mac.t < 101000 or agent, "the totals are there"
        mac.t += 1000
    assert engine.facts["amc"] is True


def gb(channel, *shares):
    """A lane of a bandwidth histogram: the share of time in each of its buckets of 1, 2, 3 ... GB/s (times `floor`)."""
    return channel, lambda t: (t, tuple(int(t * 24000 * share) for share in shares))


def flow(name, subgroup="DCS BW", floor=1, count=2):
    return Channel(name, "PMP0", "24Mticks", ["%4dGB/s" % (floor * n) for n in range(1, count + 1)], subgroup)


FLOWS = [       # (lanes of PMP0, agent, GB/s read)
    ([gb(flow("DISPEXT0 RD"), 0.5, 0.5), gb(flow("DISPEXT0 RT RD"), 0.5, 0.5), gb(flow("DISPEXT0 RD+WR"), 0.0, 1.0), gb(flow("AGX RD"), 0.0, 1.0)],
     None, 3.5),                        # real-time reads are in the reads, as M5 Max lists them (SiliconScope 30)
    ([gb(flow("AGX RD"), 0.0, 1.0), gb(flow("AGX RD", "AF BW"), 1.0, 0.0), gb(flow("ANE L0 RD", "AF BW"), 0.0, 1.0)], "ane", 2),
    ([gb(flow("AGX RD"), 0.0, 1.0), gb(flow("AGX RD", "AF BW"), 1.0, 0.0), gb(flow("ANE L0 RD", "AF BW"), 0.0, 1.0)], None, 2),
    ([gb(flow("AMCC RD", floor=16), 0.5, 0.5), (flow("AGX RD"), lambda t: (t, (7, 7)))], None, 24),     # a silent agent is not asked
    ([gb(flow("AMCC RD", floor=16), 1.0, 0.0), (flow("AGX RD"), lambda t: (t, (7, 7)))], None, 16),     # nor in the way
    ([gb(flow("AMCC RD", floor=16), 1.0, 0.0), gb(flow("AGX RD"), 0.0, 1.0)], None, 2),
]


@pytest.mark.parametrize("lanes, agent, read", FLOWS)
def test_bandwidth_from_histograms(lanes, agent, read):
    engine, mac = engine_of(*lanes)
    figure = engine.settle(lambda w: engine.traffic(w, "RD", agent), engine.window, engine.timeout)
    assert figure.value.bytes_per_s == pytest.approx(read * 1e9, rel=1e-3) and figure.estimated


@pytest.mark.parametrize("why", ["refused", "silent"])
def test_byte_counters_that_come_late_replace_the_histograms(why):
    """As everything that was refused once AMC Stats is asked again, ever more rarely, while PMP answers."""
    live_bytes = Channel("DCS RD", "AMC Stats", "B", (), "Perf Counters")
    late, asked = [True], []
    engine, mac = engine_of((live_bytes, lambda t: (t, ag.INT64_MIN if late[0] else t * 1000)), gb(flow("AGX RD"), 0.0, 1.0))
    real = mac.subscribe

    def subscribe(groups, *picks):
        asked.extend(groups)
        if groups[0][0] == "AMC Stats" and late[0] and why == "refused":
            raise ag._fail(ag.ERROR_NOT_SUPPORTED, ag.REASON_MACOS, "ioreport:AMC Stats", "refused")
        return real(groups, *picks)
    mac.subscribe = subscribe
    for _ in range(120):
        assert engine.settle(lambda w: engine.traffic(w, "RD"), engine.window, engine.timeout).value.estimated
        assert ag.Try(engine.traffic_total, engine.window, "RD").reason == ag.REASON_MACOS
        mac.t += 1000
    if why == "refused":
        assert 3 <= len([g for g in asked if g[0] == "AMC Stats"]) <= 6
    late[0] = False
    mac.t += 400000
    figure = engine.settle(lambda w: engine.traffic(w, "RD"), engine.window, engine.timeout)
    assert figure.value == (pytest.approx(1e6), False, False)


@pytest.mark.parametrize("sysctls, limit", [
    ({"iogpu.wired_limit_mb": 57344}, 57344 << 20), ({"debug.iogpu.wired_limit": 26843545600}, 26843545600),
    ({"iogpu.wired_limit_mb": 0}, "no_limit"), ({"debug.iogpu.wired_limit": 0}, "no_limit"), ({}, "macos"),
])
def test_wired_limit_by_either_name(sysctls, limit):
    """debug.iogpu.wired_limit, the name until macOS 13, counts bytes."""
    engine, mac = engine_of()
    mac.number = sysctls.get
    try:
        got = engine.memory_wired(NS).value
    except ag.AppleGPUError as error:
        got = error.reason
    assert got == limit


@pytest.mark.parametrize("refusal", [None, (ag.ERROR_NOT_SUPPORTED, ag.REASON_MACOS), (ag.ERROR_NO_PERMISSION, ag.REASON_SANDBOX)],
                         ids=["nothing listed", "refused", "sandbox"])
def test_what_seems_lacking_is_asked_for_again_ever_more_rarely(refusal):
    """A driver may come late (a monitor that starts with the Mac), but listing a group may take seconds."""
    engine, mac = engine_of(gpuph(0.5), (CPU, batched(1)))
    asked, real = [], mac.subscribe

    def subscribe(groups, *picks):
        if groups[0][0] != "Energy Model":
            return None
        asked.append(int(mac.t / 1000) - 100)
        if len(asked) > 4:
            return real(groups, *picks)
        if refusal is None:
            return None
        raise ag._fail(*refusal, source="ioreport:Energy Model", detail="refused")
    mac.subscribe = subscribe
    for _ in range(80):
        try:
            ratio = engine.gpu_active(NS).value
            break
        except ag.AppleGPUError as error:
            assert error.reason in (ag.REASON_CHIP, ag.REASON_FIRST, *(refusal or ())[1:])
        mac.t += 1000
    assert asked == [0, 5, 15, 35, 75] and ratio == pytest.approx(0.5)
    mac.t += 10000
    assert ask(engine, engine.rail_power, "cpu") == pytest.approx(1) and len(asked) == 5


def test_a_flow_is_subscribed_to_once():
    """RD+WR is both again, the fabric's side is needed only for whom the DRAM side does not list."""
    names = ["AGX RD", "AGX WR", "AGX RD+WR", "DISPINT RD", "DISPINT RT RD"]
    engine, _ = engine_of(*[gb(flow(n), 1.0, 0.0) for n in names], *[gb(flow(n, "AF BW"), 1.0, 0.0) for n in names + ["ANE L0 RD", "PRORES WR"]])
    engine.pmp.open()
    assert [(c.subgroup, c.name) for c in engine.pmp.channels] == [
        ("DCS BW", "AGX RD"), ("DCS BW", "AGX WR"), ("DCS BW", "DISPINT RD"), ("AF BW", "ANE L0 RD"), ("AF BW", "PRORES WR")]


def test_ane_use_is_of_both_dies():
    """Each die has a floor of its own in PMP0 and PMP1; the second may be the one that works."""
    def floor(group, share):
        lane = Channel("ANE-AF-BW", group, "24Mticks", ("VMIN", "VNOM"), "SOC Floor")
        return lane, lambda t: (t, (int(t * 24000 * (1 - share)), int(t * 24000 * share)))
    engine, _ = engine_of(floor("PMP0", 0.0), floor("PMP1", 0.5))
    figure = engine.settle(engine.ane_utilization, engine.window, engine.timeout)
    assert figure.value == (50, ag.ANE_METHOD_FLOOR)


@pytest.mark.parametrize("devices", [0, 1], ids=["no device", "no name"])
def test_a_guest_without_metal_has_a_name(tmp_path, devices):
    def change(data):
        data["metal"].update(devices=[dict(d, name="") for d in data["metal"]["devices"]][:devices], default=None)
    assert ag.DeviceGetName(changed(tmp_path, "vm-macos15", change)) == "Apple M1 (Virtual)"


def test_cpu_time_under_rosetta(tmp_path):
    """mach_timebase_info says 1/1 there while proc_taskinfo counts ticks of 24 MHz: 41.7 times too few seconds."""
    device = changed(tmp_path, "m1-macos11", lambda data: data["time"].update(timebase=[1, 1]))
    assert ag.ProcessGetCpuTime(device, 929) == pytest.approx(80.00003870833334)


def test_names_under_rosetta(tmp_path):
    """The brand string may be Rosetta's, and the performance levels have no names there."""
    def change(data):
        data["sysctl"]["machdep.cpu.brand_string"] = [[0, b"VirtualApple @ 2.50GHz processor\0".hex()]]
        for level in (0, 1):
            data["sysctl"].pop("hw.perflevel%d.name" % level)
    device = changed(tmp_path, "m5max-macos27", change)
    assert ag.MemoryGetBusWidth(device) == 512 and ag.AneCountCores(device) == 16
    snapshot = ag.DeviceGetSnapshot(device, ["cpu", "system"])
    assert snapshot.system_chip_name == "Apple M5 Max"
    assert [(c.name, c.core_type) for c in snapshot.cpu_clusters] == [("MCPU0", "Performance"), ("MCPU1", "Performance"), ("PCPU", "Super")]


def test_utilisation_without_residency_data_is_the_drivers(tmp_path):
    def gone(data):
        for c in data["ioreport"]["channels"]:
            if c["group"] == "GPU Stats":
                c["rows"] = [[row[0]] + [ag.INT64_MIN] * (len(row) - 1) for row in c["rows"]]
    device = changed(tmp_path, "m1max", gone)
    assert ag.DeviceGetUtilization(device) == ag.DeviceGetEngineUtilization(device).device_percent
    snapshot = ag.DeviceGetSnapshot(device, ["gpu"])
    assert snapshot.sources["gpu_utilization_percent"] == "registry"
    assert ag.DeviceGetThrottleState(device).thermal_pressure is not None       # known whatever GPU Stats says


def test_utilisation_survives_a_failed_sample():
    engine, mac = engine_of(gpuph(0.5))
    engine.main.state_lanes("GPUPH")

    def fails(functions):
        raise ag._broken("ioreport", "IOReportCreateSamples gave nothing")
    mac.sample = fails
    mac.get = lambda entry, key: {n + " Utilization %": 17 for n in ("Device", "Renderer", "Tiler")} if key == "PerformanceStatistics" else None
    figure = engine.gpu_utilization(NS)
    assert (figure.value, figure.source) == (17, "registry")


def test_a_refused_energy_model_does_not_hide_what_pmp_counts():
    dram = Channel("DRAM", "PMP", "mJ", (), "Energy Counters")
    engine, mac = engine_of((dram, batched(2)), (Channel("CPU Energy"), batched(5)))
    real = mac.subscribe

    def subscribe(groups, *picks):
        if groups[0][0] == "Energy Model":
            raise ag._fail(ag.ERROR_NOT_SUPPORTED, ag.REASON_MACOS, "ioreport:Energy Model", "refused")
        return real(groups, *picks)
    mac.subscribe = subscribe
    assert ask(engine, engine.rail_power, "dram") == pytest.approx(2)
    with pytest.raises(ag.NVMLError_NotSupported) as caught:
        engine.rail_power(NS, "cpu")
    assert caught.value.reason == ag.REASON_MACOS and "refused" in str(caught.value.detail)


def test_a_delta_never_pairs_one_die_with_another():
    die0, die1 = steps((0, 99999, 1000)), steps((0, 99999, ag.INT64_MIN))
    engine, mac = engine_of((CPU, die0), (CPU2, die1))
    engine.rail("cpu")
    engine.main.refresh()
    assert engine.rail_points("cpu") == []
    die0, die1 = steps((0, 99999, 1000)), steps((0, 99999, 7000))
    engine, mac = engine_of((CPU, die0), (CPU2, die1))
    engine.rail("cpu")
    engine.main.refresh()
    assert [lane[-1][1] for lane in engine.rail_points("cpu")] == [1000, 7000]


def test_a_figure_that_went_missing_keeps_no_age(monkeypatch):
    """The rows of a snapshot that had to wait are all taken anew; what was there the first time may be gone the second."""
    device, turns = ag.LibraryOpen(recording("m5max-macos27"), speed=0), []
    real = ag._Engine.rail_power

    def power(engine, window, rail):
        if rail == "cpu":
            turns.append(rail)
            if len(turns) == 1:
                return ag._Figure(5, 0.1, 1.0, "x", True)
            raise ag._not_ready(ag.REASON_ABSENT, "x", "gone", 0)
        return real(engine, window, rail)
    rows = tuple((parts, power if figure is real else figure, *more) for parts, figure, *more in ag._SNAPSHOT)
    monkeypatch.setattr(ag, "_SNAPSHOT", rows)
    snapshot = ag.DeviceGetSnapshot(device, ["power"], timeout=0.1)
    assert len(turns) > 1 and snapshot.cpu_power_mw is None and snapshot.reasons["cpu_power_mw"] == "absent"
    for table in (snapshot.ages, snapshot.intervals, snapshot.sources, snapshot.estimated):
        assert "cpu_power_mw" not in table


@pytest.mark.parametrize("call", ["processes", "process_gpu_time", "process_utilization"])
def test_clients_forgotten_by_another_thread_are_not_an_index_error(call):
    device = ag.LibraryOpen(recording("m4-macos27"), speed=0)
    engine = device._engine
    real = engine.clients.refresh

    def refresh(window=None):
        real(window)
        engine._gpu_restarted()         # as another thread's statistics() does
    engine.clients.refresh = refresh
    with pytest.raises(ag.NVMLError_NotReady) as caught:
        getattr(engine, call)(NS, *(() if call == "processes" else (1,)))
    assert caught.value.reason == ag.REASON_RESET


@pytest.mark.parametrize("smc", ["answers", "refuses"])
@pytest.mark.parametrize("name", NAMES)
def test_a_poll_leaves_nothing_to_the_garbage_collector(name, smc):
    """An error that the frame it passed through still names would keep both, and all that the frame holds, until gc looks."""
    device = ag.LibraryOpen(recording(name), speed=0)
    engine = device._engine
    if smc == "refuses":
        def temperatures(prefixes):
            raise ag._fail(ag.ERROR_NO_PERMISSION, ag.REASON_SANDBOX, "smc", "refused")
        engine.sensors.temperatures = temperatures
    for _ in range(3):
        ag.DeviceGetSnapshot(device)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            ag.DeviceGetSnapshot(device)
            for figure in (ag.DeviceGetTemperature, ag.CpuGetTemperature, ag.DeviceGetPowerUsage, ag.MemoryGetPower):
                ag.Try(figure, device)
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("inside", ["subscribe", "sample", "keep", "tell"])
def test_a_signal_handler_may_ask_while_its_thread_samples(inside):
    """A host's handler of SIGTERM that reads a last figure runs between two steps of ours: it gets what is known by then."""
    engine, mac = engine_of(gpuph(0.5), (CPU, batched(2)), (GPU, live(20)))
    if inside != "subscribe":
        assert ask(engine, engine.gpu_power) == pytest.approx(20)
    mac.t += 1000
    got, real = [], {"subscribe": (mac, "subscribe"), "sample": (mac, "sample"), "keep": (engine.main, "keep"),
                     "tell": (engine, "_all_told")}[inside]
    owner, name = real
    function = getattr(owner, name)

    def interrupted(*args, **named):
        setattr(owner, name, function)
        got.append((ask(engine, engine.gpu_power, timeout=0), ask(engine, engine.rail_power, "cpu", timeout=0)))
        return function(*args, **named)
    setattr(owner, name, interrupted)
    thread = threading.Thread(target=lambda: got.append(ask(engine, engine.gpu_power)), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for itself"
    first, last = got
    assert first[0] == ("first" if inside == "subscribe" else pytest.approx(20)) and last == pytest.approx(20)
    mac.t += 1000
    assert ask(engine, engine.gpu_power) == pytest.approx(20)


def test_a_delta_made_or_pickled_by_a_program_that_knows_eight_fields():
    """Fields are only ever added."""
    delta = ag.Delta(1.0, {"cpu": 2.0}, {"cpu": 0.0}, None, {}, None, None, {})
    assert delta.joules == {"cpu": 2.0} and delta.spans_s == {}


def test_two_threads_find_no_bandwidth_together():
    """Where neither AMC Stats nor PMP is there, what was found of the one is forgotten after each call: by one thread first."""
    engine, _ = engine_of(gpuph(0.5))
    meet, errors, real = threading.Barrier(2, timeout=30), [], engine.pmp.open

    def open_together():
        meet.wait()
        real()

    def call():
        try:
            engine.traffic(NS, "RD")
        except Exception as error:
            errors.append(type(error))
    engine.pmp.open = open_together
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [ag.NVMLError_NotSupported] * 2


def test_a_nested_init_keeps_the_times_of_the_first():
    path = recording("m4-macos27")
    ag.LibraryInit(path, speed=0, window=5, timeout=0)
    ag.LibraryInit(path, speed=0)           # a library that came along, as nvmlInit does
    assert ag._library.engine.window == 5 * NS and ag._library.engine.timeout == 0
    with pytest.raises(ag.AppleGPUError):
        ag.LibraryInit(path, speed=0, window=0)
    assert ag._library.count == 2
    ag.LibraryShutDown(), ag.LibraryShutDown()
    with pytest.raises(ag.AppleGPUError):
        ag.LibraryInit(path, speed=0, window=9, timeout=-1)
    assert ag._library.engine.window == 5 * NS and not ag._library.count
    ag.LibraryInit(path, speed=0)
    assert ag._library.engine.window == NS


def test_parts_of_the_wrong_kind_are_wrong_arguments():
    device = ag.LibraryOpen(recording("m4-macos27"), speed=0)
    for parts in (5, [["gpu"]], [None], "nothing"):
        with pytest.raises(ag.NVMLError_InvalidArgument):
            ag.DeviceGetSnapshot(device, parts)
    assert ag.DeviceGetSnapshot(device, iter(["gpu"])).parts == ("gpu",)


def test_a_dead_way_to_ane_use_gives_way_to_the_next(tmp_path):
    def dead(data):
        for c in data["ioreport"]["channels"]:
            if c["name"] == "ANE-AF-BW":
                c["rows"] = [[row[0]] + [ag.INT64_MIN] * (len(row) - 1) for row in c["rows"]]
    for name in ("m1max", "m3max-macos27", "m5max-macos27", "m4pro"):
        device = changed(tmp_path, name, dead)
        assert ag.Try(ag.AneGetUtilization, device).reason != ag.REASON_ABSENT


def test_throttling_does_not_need_the_notification(tmp_path):
    device = changed(tmp_path, "m5max-macos27", lambda data: data.update(notify={}))
    state = ag.DeviceGetThrottleState(device)
    assert state.cltm_ratio is not None and state.thermal_pressure is None


# ======================================================================================================================
# the command line
# ======================================================================================================================

MODULE = os.path.join(HERE, "pyapplegpu.py")
COLOURS = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "PYAPPLEGPU_RECORDING")


def path_of(name):
    return name if os.sep in name else recording(name)


@contextlib.contextmanager
def environment(**values):
    before = {name: os.environ.pop(name, None) for name in COLOURS + tuple(values)}
    os.environ.update({name: str(value) for name, value in values.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def cli(*argv, recording="m4-macos27", speed="0", **env):
    """(exit code, stdout, stderr) of main() in this process."""
    args = list(argv) + (["--recording", path_of(recording), "--speed", speed] if recording else [])
    out, err = io.StringIO(), io.StringIO()
    if not ag._library.count:
        ag._library.engine = ag._library.opened = None      # the replay begins anew, as in a process of its own
    with environment(**env), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = ag.main(args)
    return code, out.getvalue(), err.getvalue()


def good(*argv, **named):
    code, out, err = cli(*argv, **named)
    assert (code, err) == (0, ""), (code, err)
    return out


def process(*argv, recording="m4-macos27", **named):
    """The same as a process of its own, stdout and stderr piped."""
    env = {k: v for k, v in os.environ.items() if k not in COLOURS}
    env.update(named.pop("env", {}))
    args = [sys.executable, MODULE, *argv] + (["--recording", path_of(recording)] if recording else [])
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=HERE, **named)


def variant(tmp_path, change, base="m4-macos27"):
    """A recording with something changed."""
    with open(path_of(base), encoding="utf-8") as file:
        data = json.loads(change(file.read()))
    where = str(tmp_path / "variant.json")
    with open(where, "w", encoding="utf-8") as file:
        json.dump(data, file)
    return where


def renamed(name):
    quoted = json.dumps(name)[1:-1]
    return lambda text: text.replace('"pid 404, WindowServer"', '"pid 404, %s"' % quoted)


def columns(text):
    return ag._width(text)


# ---- the view

def test_view_of_the_m4():
    view = good()
    for text in ("recording m4-macos27.json", "Mac16,12", "macOS 27.0", "driver 360.34.5", "GPU 0  Apple M4, 10 cores",
                 "device / renderer / tiler  17 / 15 / 15 %", "Use        17 % [###.............]",
                 "In use        430,571,520  410.6 MiB", "Allocated   4,597,121,024    4.3 GiB",
                 "Limit      12,713,115,648   11.8 GiB", "Headroom    3,601,793,024    3.4 GiB",
                 "Clock     723 MHz (338 to 1578)", "Power     1.20 W, no cap", "Throttle  none", "GB/s of 120",
                 "ANE use   0 %, by soc_floor", "nominal pressure", "Fans      none", "Package       2.10 W"):
        assert text in view, text
    assert re.search(r"404  WindowServer +15\.0 % +39\.96 s +N/A", view)
    assert re.search(r"ECPU       6 1680/2892  12%  300 mW", view)


def test_view_of_the_m1():
    view = good(recording="m1-macos11")
    for text in ("Apple M1, 8 cores", "0 / 0 / 0 %", "6,373,376    6.1 MiB", "(396 to 1278)", "macOS 11.0.1",
                 "Power     1 mW, cap N/A", "16 more with -v"):
        assert text in view, text
    assert re.search(r" 357  WindowServer +0\.0 % +249\.66 s", view)
    assert "more with -v" not in good("-v", recording="m1-macos11")


def test_view_of_the_m5_max():
    view = good(recording="m5max-macos27")
    for text in ("Apple M5 Max, 40 cores", "99 / 99 / 31 %", "Use       100 % [################]", "39.99 W, cap 40.00 W",
                 "power budget 40 %", "3108, 3110 rpm (54, 54 %)", ">28.80", "MCPU0", "MCPU1", "PCPU"):
        assert text in view, text


@pytest.mark.parametrize("name", sorted(MACS))
@pytest.mark.parametrize("width", (40, 60, 79, 80, 100, 119, 120, 200))
def test_view_fits(name, width):
    lines = good(recording=name, COLUMNS=width).splitlines()
    assert all(columns(line) <= min(width, 160) for line in lines)
    boxed = [line for line in lines if line[:1] in "+|"]
    assert {columns(line) for line in boxed} == {min(width, 160)}
    assert len(boxed) >= (23 if width >= 120 else 32)
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("name", sorted(MACS))
def test_view_clips_nothing_at_80_and_120(name):
    for width in (80, 120):
        for line in good(recording=name, COLUMNS=width).splitlines():
            assert not re.search(r"\S~ *[|]", line), line       # the mark of a clipped text


def test_layout_follows_the_width():
    titles = ("| GPU  ", "| GPU memory", "| Power, energy")
    one, two, three = (good(COLUMNS=w).splitlines() for w in (79, 80, 120))
    for lines, together in ((one, 1), (two, 2), (three, 3)):
        line = next(line for line in lines if line.startswith("| GPU   "))
        assert sum(t in line for t in titles) == together


def test_missing_is_never_zero():
    view = good(recording="vm-macos15")
    for label in ("Use       N/A", "Power     N/A, cap N/A", "In use    N/A", "Temp      N/A", "Fans      N/A"):
        assert label in view, label
    assert "5,010,800,640" in view and " 0 %" not in view and "0 mW" not in view


def test_verbose_says_why():
    assert "Not available" not in good(recording="m3max-macos27")
    text = " ".join(good("-v", recording="m3max-macos27").split())
    assert "Not available:" in text
    assert "cpu_power_mw, cpu_energy_mj, package_power_mw: Not Ready: cpu: the driver publishes a zero" in text
    assert "ECPU power_mw, PCPU power_mw, PCPU1 power_mw" in text and "(frozen)" in text


def test_a_small_power_is_not_zero():
    assert ag._watts(1) == "1 mW" and ag._watts(999) == "999 mW" and ag._watts(1000) == "1.00 W" and ag._watts(None) == "N/A"


def test_throttling_is_shown():
    assert ag._throttle_text(None) == ag._throttle_text(ag.ThrottleState(None, None, 0)) == "N/A"
    assert ag._throttle_text(ag.ThrottleState(0.0, 100.0, 0)) == "none"
    assert ag._throttle_text(ag.ThrottleState(0.25, 0.0, 0)) == "heat 25 % of the time, power budget 0 %"
    assert ag._throttle_text(ag.ThrottleState(None, 60.0, 0)) == "power budget 60 %"


# ---- colours and names

def test_colours():
    assert "\033" not in good() and "\033" not in good(TERM="xterm-256color")
    assert "\033[32m###\033[0m" in good(FORCE_COLOR=1) and "\033[31m" in good(FORCE_COLOR=1, recording="m5max-macos27")
    assert "\033" not in good(FORCE_COLOR=1, NO_COLOR=1)
    for plain, painted in zip(good().splitlines(), good(FORCE_COLOR=1).splitlines()):
        assert re.sub(r"\033\[\d*m", "", painted) == plain
    for argv in (["-q"], ["-L"], ["--json"], ["--doctor"], ["--query-gpu=name,power.limit"]):
        assert "\033" not in good(*argv, FORCE_COLOR=1)


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
@pytest.mark.parametrize("env, coloured", (({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False),
                                           ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb", "FORCE_COLOR": "1"}, True)))
def test_colours_on_a_terminal(env, coloured):
    import pty
    ours, theirs = pty.openpty()
    base = {k: v for k, v in os.environ.items() if k not in COLOURS}
    child = subprocess.Popen([sys.executable, MODULE, "--recording", path_of("m4-macos27"), "--speed", "0"], stdout=theirs,
                             stderr=theirs, env=dict(base, COLUMNS="80", **env))
    os.close(theirs)
    got = b""
    with contextlib.suppress(OSError):
        while True:
            part = os.read(ours, 65536)
            if not part:
                break
            got += part
    os.close(ours)
    assert child.wait() == 0 and (b"\033[" in got) == coloured and b"17 / 15 / 15 %" in got


EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\x7f\r\n\u202e\u2028x"
MODES = ([], ["-v"], ["-q"], ["-q", "-v"], ["--json"], ["--jsonl"], ["--selftest"], ["--doctor"], ["-L"],
         ["-q", "-x"], ["-q", "-d", "PIDS"], ["pmon", "-c", "1"], ["--query-compute-apps=pid,name", "--format=csv"])


@pytest.mark.parametrize("argv", MODES, ids=" ".join)
def test_no_control_character_reaches_the_terminal(monkeypatch, argv):
    totals = ag._client_totals      # a recording may not hold such names, a Mac may
    monkeypatch.setattr(ag, "_client_totals", lambda clients: {
        pid: (EVIL if pid == 404 else name, ns) for pid, (name, ns) in totals(clients).items()})
    if "apps" in "".join(argv):
        assert "404, ?]0;owned??[31m?2J?????x" in good(*argv)
    for text in (good(*argv), re.sub("\033\\[\\d+m", "", good(*argv, FORCE_COLOR=1))):
        assert not [c for c in text if c not in ("\n", "\t" if "-x" in argv else "") and not c.isprintable()]
    if "--json" in argv:
        assert json.loads(good("--json"))["processes"][0]["name"] == EVIL


def test_the_name_of_a_recording_is_cleaned_too(tmp_path):
    where = tmp_path / "a\x1b[31m.json"
    with open(path_of("m4-macos27"), "rb") as file:
        where.write_bytes(file.read())
    assert "\x1b" not in good(recording=str(where)) + good("-q", recording=str(where))
    code, out, err = cli(recording=str(tmp_path / "no\x1b.json"))
    assert code == 2 and "\x1b" not in err and out == ""


def test_wide_names_keep_the_frame(tmp_path):
    where = variant(tmp_path, renamed("\u56fe\u5f62\u670d\u52a1\u5668"))
    for width in (40, 80, 120):
        lines = good(recording=where, COLUMNS=width).splitlines()
        assert {columns(line) for line in lines if line[:1] in "+|"} == {width}
    child = process("--speed", "0", recording=where, env={"PYTHONIOENCODING": "ascii"})
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, b"") and b"?????" in out


def test_a_comma_in_a_name_stays_one_field(tmp_path):
    out = good("--query-compute-apps=pid,name,used_memory", recording=variant(tmp_path, renamed('a, "b"')))
    assert ["404", 'a, "b"', "[N/A]"] in list(csv.reader(io.StringIO(out), skipinitialspace=True))


# ---- lists and queries

def test_list_gpus():
    for name in sorted(MACS):
        assert re.fullmatch(r"GPU 0: Apple .+ \(UUID: GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\)\n", good("-L", recording=name))
    assert good("--list-gpus") == good("-L")


def test_query_all():
    text = good("-q", recording="m5max-macos27")
    for line in ("Source                                      : recording m5max-macos27.json",
                 "        UUID                                : GPU-", "        Metal Family                        : Apple10",
                 "        Peak FP32                           : 16.59 TFLOPS", "        Utilization                         : 100 %",
                 "        Power Limit                         : 40.000 W", "            P9                              :  58.33 %  1278 MHz",
                 "        GPU Read                            : 28.80 GB/s, estimated, saturated",
                 "            Tg0C                            : 27.3 C", "    Neural Engine", "        Process 4100",
                 "            Battery Temperature             : 29.9 C", "        Pressure Level                      : nominal",
                 "            Thermal Pressure                : nominal"):
        assert line in text, line
    assert "SRAM Power                          : N/A\n" in text
    assert "SRAM Power                          : N/A (Not Supported: there is no energy channel" in good("-qv", recording="m5max-macos27")


def test_query_all_names_every_figure_of_a_snapshot():
    out = good("-q")
    labels = re.findall(r"^ {8}(\S.*?) *(?::|$)", out, re.M)
    fields = [field for row in ag._SNAPSHOT for field, _ in row[3]]
    assert len(labels) >= len(fields)


QUERY = "name,uuid,index,utilization.gpu,memory.total,memory.used,memory.free,power.draw,power.limit,temperature.gpu," \
        "clocks.gr,clocks.max.sm,fan.speed,pstate,utilization.memory,clocks_throttle_reasons.sw_power_cap,compute_mode"


def test_query_gpu():
    head, row = good("--query-gpu=" + QUERY, "--format=csv", recording="m5max-macos27").splitlines()
    assert head == ("name, uuid, index, utilization.gpu [%], memory.total [MiB], memory.used [MiB], memory.free [MiB], power.draw [W], "
                    "power.limit [W], temperature.gpu, clocks.current.graphics [MHz], clocks.max.sm [MHz], fan.speed [%], pstate, "
                    "utilization.memory [%], clocks_throttle_reasons.sw_power_cap, compute_mode")
    uuid = re.search(r"GPU-[-0-9a-f]+", row).group()
    assert row == ("Apple M5 Max, %s, 0, 100 %%, 110100 MiB, 29696 MiB, 80404 MiB, 39.99 W, 40.00 W, 27, 1238 MHz, 1620 MHz, 54 %%, "
                   "[N/A], [N/A], Active, Default" % uuid)


def test_query_gpu_formats():
    fields = "--query-gpu=name,memory.used,power.draw,power.limit"
    assert good(fields) == good(fields, "--format=csv") == (
        "name, memory.used [MiB], power.draw [W], power.limit [W]\nApple M4, 410 MiB, 1.20 W, [N/A]\n")
    assert good(fields, "--format=csv,noheader") == good(fields, "--format=noheader,csv") == "Apple M4, 410 MiB, 1.20 W, [N/A]\n"
    assert good(fields, "--format", "csv, noheader, nounits") == "Apple M4, 410, 1.20, [N/A]\n"
    assert good(fields, "--format=csv,nounits").splitlines()[0] == "name, memory.used [MiB], power.draw [W], power.limit [W]"
    assert good("--query-gpu= name , index ", "--format=csv,noheader") == "Apple M4, 0\n"


def test_query_gpu_timestamp_and_aliases():
    with environment(TZ="UTC"):
        if hasattr(time, "tzset"):
            time.tzset()
        try:
            out = good("--query-gpu=timestamp,gpu_name,gpu_uuid,clocks.sm,clocks.mem", "--format=csv", TZ="UTC")
        finally:
            os.environ.pop("TZ", None)
            if hasattr(time, "tzset"):
                time.tzset()
    head, row = out.splitlines()
    assert head == "timestamp, name, uuid, clocks.current.sm [MHz], clocks.current.memory [MHz]"
    assert re.match(r"2026/09/21 14:13:2\d\.500, Apple M4, GPU-.*, 723 MHz, \[N/A\]$", row)


def test_every_field_answers_everywhere():
    table = ag._query_table()
    assert len(table) > 230 and len([name for name in table if name.startswith("apple.")]) >= 40
    names = ",".join(table)
    for recording in sorted(MACS):
        head, row = csv.reader(io.StringIO(good("--query-gpu=" + names, "--format=csv", recording=recording)), skipinitialspace=True)
        assert len(head) == len(row) == len(table) and all(row)
    plain = next(csv.reader(io.StringIO(good("--query-gpu=" + names, "--format=csv,noheader,nounits", recording="m4-macos27")),
                            skipinitialspace=True))
    for name, cell in zip(table, plain):
        if ag._unit(table[name][2]) and cell != "[N/A]":
            float(cell)


def test_fields_are_those_of_the_snapshot():
    fields = {field for row in ag._SNAPSHOT for field, _ in row[3]}
    for mode in ag._QUERIES:
        for name, (_, source, _, _) in ag._query_table(mode).items():
            start = source.split(".")[0]
            assert not source or source[0] in "!=" or start in ("process", "clock") or start in fields or callable(getattr(ag, start)), name


def test_unknown_field():
    for option in ("--query-gpu", "--query-compute-apps"):
        code, out, err = cli(option + "=name,cuda_version", "--format=csv")
        assert (code, out, err) == (2, "", 'Field "cuda_version" is not a valid field to query.\n')
    assert cli("--query-gpu=")[0] == 2


def test_help_query():
    """In nvidia-smi's form: exporters find the fields as the first quoted word after an empty line, and ask for them all."""
    for mode in ("query_gpu", "query_compute_apps", "query_supported_clocks"):
        query = "--" + mode.replace("_", "-")
        text = good(query.replace("--", "--help-"), recording=None)
        for name in ag._query_table(mode):
            assert '"%s"' % name in text, name
        found = re.findall(r'(?m)\n\s*\n^"([^"]+)"', text)
        heads = good(query + "=" + ",".join(found), "--format=csv").splitlines()[0].split(", ")
        assert len(found) == len(heads) == len(set(heads))      # each figure once
    assert '"memory.used" [MiB]\n    in use by every process' in good("--help-query-gpu", recording=None)
    assert '"name" or "gpu_name"\n' in good("--help-query-gpu", recording=None)


def test_query_compute_apps():
    out = good("--query-compute-apps=pid,process_name,used_gpu_memory,apple.gpu_percent,apple.gpu_time,apple.footprint", "--format=csv",
               recording="m5max-macos27")
    assert out.splitlines()[:2] == [
        "pid, process_name, used_gpu_memory [MiB], apple.gpu_percent [%], apple.gpu_time [s], apple.footprint [MiB]",
        "4100, python3.13, [N/A], 93.0 %, 5.930 s, 34816 MiB"]
    assert good("--query-compute-apps=pid,name", "--format=csv", recording="vm-macos15") == "pid, process_name\n"
    assert good("--query-compute-apps=gpu_bus_id,gpu_serial,pid", "--format=csv,noheader").startswith("[N/A], [N/A], 404\n")
    assert good("--query-compute-apps=gpu_name", "--format=csv,noheader") == "Apple M4\n" * 3        # no figure of a process


@pytest.mark.parametrize("name", sorted(MACS))
def test_query_supported_clocks(name):
    """The list that scripts take the highest or lowest clock of, the same as in -q -d SUPPORTED_CLOCKS."""
    clocks = good("--query-supported-clocks=gr", "--format=csv,noheader,nounits", recording=name).splitlines()
    assert clocks == re.findall(r": (\d+) MHz", good("-q", "-d", "SUPPORTED_CLOCKS", recording=name))
    assert clocks == sorted(clocks, key=int, reverse=True) and (clocks or name == "vm-macos15")
    head, *lines = good("--query-supported-clocks=gpu_name,mem,graphics", "--format=csv", recording=name).splitlines()
    assert head == "gpu_name, memory [MHz], graphics [MHz]" and [line.split(", ")[1:] for line in lines] == [
        ["[N/A]", mhz + " MHz"] for mhz in clocks]


@pytest.mark.parametrize("name", sorted(MACS))
def test_every_section_of_nvidia_smi(name):
    """-q -d: each field of its table is one of --query-gpu; all sections together, in nvidia-smi's columns."""
    known = re.search(r"-d takes, with commas, (.*)\. Please", cli("-q", "-d", "nothing")[2]).group(1).replace(" ", "")
    lines = good("-q", "-d", known, recording=name).splitlines()
    assert lines[1] == "==============NVSMI LOG==============" and lines[7] == "GPU 0"
    assert {line.index(" : ") for line in lines if " : " in line} == {41}
    fields = [line.split("|")[2] for line in ag._LOG.splitlines() if line.split("|")[2]]
    assert set(fields) <= set(ag._query_table()) and len(lines) > len(fields)


def test_sections():
    text = good("-q", "-d", "memory,POWER,ECC,PIDS", recording="m5max-macos27")
    for part in ("    FB Memory Usage\n        Total                             : 110100 MiB\n", "Used                              : 29696 MiB\n",
                 "        Power Draw                        : 39.99 W\n", "    ECC Mode                              : N/A\n",
                 "        Process ID                        : 4100\n", "            Name                          : python3.13\n"):
        assert part in text, part
    assert "Utilization" not in text and "Temperature" not in text
    assert "        GPU Current Temp                  : 74 C\n" in good("-q", "--display=TEMPERATURE")
    assert good("-q", "-d", "supported_clocks").count(" MHz") == 15
    assert good("-q", "-d", "PIDS", recording="vm-macos15").endswith("    Processes\n\n")


@pytest.mark.parametrize("name", sorted(MACS))
def test_xml(name):
    """What monitoring agents read out of nvidia-smi -q -x."""
    import xml.etree.ElementTree as tree
    text = good("-q", "-x", recording=name)
    assert text.startswith('<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n')
    top = tree.fromstring(text)
    csv_row = good("--query-gpu=name,uuid,memory.total,memory.used,utilization.gpu,power.draw,clocks.sm,fan.speed", "--format=csv,noheader",
                   recording=name).strip().split(", ")
    found = [top.findtext("gpu/" + path) for path in (
        "product_name", "uuid", "fb_memory_usage/total", "fb_memory_usage/used", "utilization/gpu_util", "gpu_power_readings/power_draw",
        "clocks/sm_clock", "fan_speed")]
    assert found == [cell.replace("[N/A]", "N/A") for cell in csv_row] and top.findtext("attached_gpus") == "1"
    pids = good("--query-compute-apps=pid", "--format=csv,noheader", recording=name).split()
    assert [p.findtext("pid") for p in top.iterfind("gpu/processes/process_info")] == pids
    assert top.findtext("gpu/temperature/gpu_temp") in ("N/A", good(
        "--query-gpu=temperature.gpu", "--format=csv,noheader", recording=name).strip() + " C")


def test_xml_of_a_strange_name(tmp_path):
    import xml.etree.ElementTree as tree
    out = tree.fromstring(good("-q", "-x", recording=variant(tmp_path, renamed("<a> & b"))))
    assert out.findtext("gpu/processes/process_info/process_name") == "<a> & b"


def test_dmon():
    assert good("dmon", "-c", "2", "-d", "0.01", recording="m5max-macos27").splitlines() == [
        "# gpu    pwr  gtemp  mtemp     sm    mem    enc    dec    jpg    ofa   mclk   pclk",
        "# Idx      W      C      C      %      %      %      %      %      %    MHz    MHz"] + [
        "    0     40     27      -    100      -      -      -      -      -      -   1238"] * 2
    assert len(good("dmon", "-c", "1.5", "-sc").splitlines()) == 3
    head, units, line = good("dmon", "-c", "1", "-s", "pm", "-o", "DT").splitlines()
    assert head == "#Date       Time        gpu    pwr  gtemp  mtemp     fb   bar1   ccpm"
    assert units == "#YYYYMMDD   HH:MM:SS    Idx      W      C      C     MB     MB     MB"
    assert re.fullmatch(r" \d{8}   \d\d:\d\d:\d\d      0      1     74      -    410      -      -", line)
    for letters in ("pucvmet", "t"):
        lines = good("dmon", "-c", "1", "-s", letters, recording="vm-macos15").splitlines()
        assert {len(line.replace("# ", "").split()) for line in lines} == {22 if letters != "t" else 3}


def test_pmon():
    assert good("pmon", "-c", "1", recording="m5max-macos27").splitlines()[:3] == [
        "# gpu         pid   type     sm    mem    enc    dec    jpg    ofa    command        ",
        "# Idx           #    C/G      %      %      %      %      %      %    name           ",
        "    0        4100      -     93      -      -      -      -      -    python3.13     "]
    assert good("pmon", "-c", "1", "-s", "m", "-o", "T").splitlines()[0].split() == "#Time gpu pid type fb ccpm command".split()
    assert good("pmon", "-c", "1", recording="vm-macos15").splitlines()[2].split() == ["0"] + ["-"] * 9


def test_a_file_instead_of_stdout(tmp_path):
    where = tmp_path / "log.csv"
    for argv in (["--query-gpu=name", "--format=csv"], ["-q", "-x"], ["--doctor"], [], ["-L"]):
        assert good("-f", str(where), *argv) == ""
        text = where.read_text(encoding="utf-8")
        assert "Apple M4" in text and "\033" not in text
    code, out, err = cli("-L", "-f", str(tmp_path / "none" / "x"))
    assert code == 1 and out == "" and "No such file" in err and err.count("\n") == 1


@pytest.mark.parametrize("argv", ("-pm 1", "-pl 200", "-lgc=1200,1500", "--gpu-reset", "--query-retired-pages=gpu_uuid", "topo -m", "mig"))
def test_what_macos_does_not_offer(argv):
    code, out, err = cli(*argv.split())
    assert (code, out) == (3, "") and err == "%s is not supported for this GPU: macOS offers no such thing.\n" % re.split("[ =]", argv)[0]


def test_unknown_option_in_the_words_of_nvidia_smi():
    assert cli("--nonsense")[2] == "ERROR: Option --nonsense is not recognized. Please run 'pyapplegpu -h'.\n"
    assert cli("-f", "topo", "--bogus")[0] == 2 and not os.path.exists("topo")


def test_a_query_asks_only_for_its_parts():
    rows = [ag._query_table()[name] for name in ("memory.used", "name", "uuid")]
    assert ag._parts_of(row[1] for row in rows) == ("memory", "gpu")
    assert ag._parts_of(["process.pid"]) == ("processes",)


def test_id():
    uuid = good("--query-gpu=uuid", "--format=csv,noheader").strip()
    for chosen in ("0", uuid, uuid.upper().replace("GPU-", "gpu-")):
        assert good("-i", chosen, "--query-gpu=index", "--format=csv,noheader") == "0\n"
    assert good("--id=0,0", "--query-gpu=index", "--format=csv,noheader") == "0\n0\n"
    for chosen in ("1", "-1", "GPU-0", "", "99999999999"):
        code, out, err = cli("--id=" + chosen, "-L")
        assert code == 6 and out == "" and "No devices were found" in err


# ---- programs written for nvidia-smi, unchanged

GPUTIL = r"""
import subprocess
fields = "index,uuid,utilization.gpu,memory.total,memory.used,memory.free,driver_version,name,gpu_serial,display_active," \
         "display_mode,temperature.gpu"
text = subprocess.run(["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader,nounits"], stdout=subprocess.PIPE,
                      check=True, text=True).stdout
def number(word):
    try:
        return float(word)
    except ValueError:
        return float("nan")
for line in text.split("\n")[:-1]:
    v = line.split(", ")
    assert len(v) == 12, v
    print(int(v[0]), v[1][:4], number(v[2]) / 100, number(v[3]), number(v[4]), number(v[5]), v[6], v[7], v[9], number(v[11]))
"""
SHELL = r"""
IFS=, read -r temp power used total name < <(nvidia-smi --id=0 --query-gpu=temperature.gpu,power.draw,memory.used,memory.total,name \
    --format=csv,noheader,nounits 2>/dev/null | head -1)
echo "t=${temp// /} p=${power// /} used=$(( ${used// /} * 100 / ${total// /} ))% name=${name# }"
nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader -lms 20 | head -3 | awk '{s += $1} END {print "mean", s / NR}'
nvidia-smi -L | grep -c UUID
nvidia-smi -q -d Memory | grep -A4 GPU | grep Used | awk '{print "used", $3}'
nvidia-smi dmon -s u -c 3 -d 0.02 | awk '!/^#/ {s += $2} END {print "dmon", s / 3}'
nvidia-smi -q -x | grep -o '<gpu_util>[0-9]*'
nvidia-smi --query-gpu=bogus --format=csv; echo "rc=$?"
"""


@pytest.fixture
def nvidia_smi(tmp_path):
    """An environment in which `nvidia-smi` is this program over the M4's recording."""
    if os.name == "nt":
        pytest.skip("a shell script")
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\nexec "%s" "%s" --recording "%s" --speed 0 "$@"\n' % (sys.executable, MODULE, path_of("m4-macos27")))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return dict(os.environ, PATH=str(tmp_path) + os.pathsep + os.environ["PATH"])


def test_a_python_script_for_nvidia_smi(nvidia_smi):
    out = subprocess.run([sys.executable, "-c", GPUTIL], env=nvidia_smi, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert out == "0 GPU- 0.17 12124.0 410.0 11713.0 27.0 Apple M4 [N/A] 74.0\n"


def test_a_published_client_of_nvidia_smi(nvidia_smi):
    """nvsmi parses --query-gpu and --query-compute-apps; unmodified, from PyPI."""
    pytest.importorskip("nvsmi", reason="its test needs nvsmi: pip install nvsmi")
    text = "import nvsmi; print([(g.name, g.gpu_util, g.mem_used, g.mem_total) for g in nvsmi.get_gpus()], " \
           "sorted(p.pid for p in nvsmi.get_gpu_processes()))"
    out = subprocess.run([sys.executable, "-c", text], env=nvidia_smi, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert out == "[('Apple M4', 17.0, 410.0, 12124.0)] [404, 444, 835]\n"


def test_a_shell_script_for_nvidia_smi(nvidia_smi):
    if not os.path.exists("/bin/bash"):
        pytest.skip("no bash")
    done = subprocess.run(["/bin/bash", "-c", SHELL], env=nvidia_smi, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.stdout.splitlines() == ["t=74 p=1.20 used=3% name=Apple M4", "mean 17", "1", "used 410",
                                        "dmon 17", "<gpu_util>17",
                                        'Field "bogus" is not a valid field to query.', "rc=2"]


# ---- JSON: keys are only ever added

KEYS = """schema time_unix_s time_mono_s interval_s source parts reasons messages ages intervals sources estimated
gpu_name gpu_core_count gpu_utilization_percent gpu_device_percent gpu_renderer_percent gpu_tiler_percent gpu_active_ratio
gpu_scaled_ratio gpu_active_total_s gpu_recovery_count gpu_clock_mhz gpu_max_clock_mhz gpu_states memory_total_bytes memory_used_bytes memory_free_bytes
memory_allocated_bytes memory_wired_limit_bytes memory_headroom_bytes memory_utilization_percent gpu_power_mw gpu_energy_mj
gpu_power_limit_mw gpu_sram_power_mw cpu_power_mw cpu_energy_mj ane_power_mw ane_energy_mj memory_power_mw memory_energy_mj
package_power_mw system_power_mw gpu_temperature_celsius gpu_temperature_max_celsius cpu_temperature_celsius gpu_throttle
thermal_pressure_level fans memory_read memory_write memory_gpu_read memory_gpu_write memory_cpu_read memory_cpu_write memory_ane_read
memory_ane_write memory_media_read memory_media_write memory_display_read memory_display_write memory_io_read memory_io_write
memory_read_total_bytes memory_write_total_bytes memory_max_bytes_per_s ane_utilization_percent ane_utilization_method ane_power_state cpu_utilization_percent cpu_clusters
encode_power_mw decode_power_mw encode_bandwidth decode_bandwidth prores_bandwidth processes system_model system_chip_name
system_os_version system_driver_version system_memory system_swap system_memory_pressure system_power_source""".split()
NESTED = {
    "gpu_states": "name mhz ratio", "gpu_throttle": "cltm_ratio ppm_percent thermal_pressure",
    "fans": "rpm min_rpm max_rpm percent", "memory_read": "bytes_per_s estimated saturated",
    "cpu_clusters": "name core_type cores clock_mhz max_clock_mhz active_ratio utilization_percent power_mw reasons",
    "processes": "pid name gpu_time_ns gpu_percent footprint_bytes is_self",
    "system_memory": "total_bytes used_bytes available_bytes available_psutil_bytes app_bytes wired_bytes active_bytes inactive_bytes "
                     "compressed_bytes cached_bytes free_bytes", "system_swap": "total_bytes used_bytes free_bytes",
    "system_memory_pressure": "level available_percent",
    "system_power_source": "source battery_percent charging battery_power_mw cycle_count battery_celsius"}


@pytest.mark.parametrize("name", sorted(MACS))
def test_json_schema(name):
    data = json.loads(good("--json", recording=name))
    assert set(KEYS) <= set(data) and data["schema"] == 1
    for key in [k for k in KEYS[12:]]:
        assert (data[key] is None) == (key in data["reasons"]) == (key in data["messages"]), key
        assert data["reasons"].get(key, ag.REASON_FIRST) in {v for k, v in vars(ag).items() if k.startswith("REASON_")}
    for key, fields in NESTED.items():
        for item in data[key] if isinstance(data[key], list) else [data[key]]:
            assert item is None or set(fields.split()) <= set(item), key


def test_first_view_has_rates():
    """No `first` anywhere: the first view waits for the second sample, in real time."""
    began = time.monotonic()
    data = json.loads(good("--json", speed="1"))
    assert 0.5 < time.monotonic() - began < 8
    assert data["interval_s"] > 0.5 and data["gpu_utilization_percent"] == 17 and data["gpu_power_mw"] == 1200
    assert ag.REASON_FIRST not in data["reasons"].values()
    assert not any(c["reasons"] for c in data["cpu_clusters"])


def test_jsonl():
    line = good("--jsonl")
    assert line.count("\n") == 1 and json.loads(line)["gpu_device_percent"] == 17
    child = process("--jsonl", "-lms", "20", "--speed", "0")
    got = [json.loads(child.stdout.readline()) for _ in range(3)]
    child.stdout.close()
    assert child.wait(20) == 141 and child.stderr.read() == b""
    assert [b["time_unix_s"] - a["time_unix_s"] for a, b in zip(got, got[1:])] == [1.0, 1.0]


# ---- doctor, selftest, recorder

@pytest.mark.parametrize("name", sorted(MACS))
def test_selftest(name):
    out = good("--selftest", recording=name)
    last = out.splitlines()[-1]
    assert re.fullmatch(r"\d+ functions: \d+ values, \d+ reasons, 0 failed", last)
    called = {line.split()[1] for line in out.splitlines()[:-1]}
    flat = {n for n in ag.__all__ if re.match(r"(Device|Memory|Ane|Cpu|Vpu|Process|System)(Get|Count)|Snapshot.", n)}
    assert flat <= called and {"LibraryDiagnose", "ErrorString", "SnapshotDelta"} <= called
    assert all(line.split()[0] in ("value", "reason") for line in out.splitlines()[:-1])


def test_selftest_finds_a_fault(monkeypatch):
    def broken(device):
        raise KeyError("surprise")
    monkeypatch.setattr(ag, "DeviceGetName", broken)
    code, out, err = cli("--selftest")
    assert code == 1 and re.search(r"^FAILED +DeviceGetName +KeyError\('surprise'\)$", out, re.M) and " 1 failed" in out


def test_doctor():
    out = good("--doctor", recording="m5max-macos27")
    assert out.startswith("```\npyapplegpu " + ag.__version__) and out.endswith("```\n")
    assert "Mac17,7, Apple M5 Max, macOS 27.0, driver 360.34.5\nrecording m5max-macos27.json\n" in out
    for source in ("registry", "ioreport:AMC Stats", "smc", "hid", "sysctl", "mach", "libproc", "notify", "power", "metal"):
        assert re.search(r"^%s +(ok|macos|chip) +\d" % source, out, re.M), source
    assert re.search(r"^ioreport:AMC Stats +macos .*refused", out, re.M) and "  AMC Stats: Not Supported: refused" in out
    assert "  PMP0 / DCS BW: " in out and "GPU-" not in out and os.path.dirname(recording("")) not in out
    assert re.search(r"^snapshot: \d+ figures, \d+ missing, \d+ ms", out, re.M)


def test_doctor_counts_native_calls():
    fakemac = os.path.join(HERE, "examples", "fakemac.py")
    done = subprocess.run([sys.executable, fakemac, "--recording", path_of("m4-macos27"), MODULE, "--doctor"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^registry +ok +[\d.]+ +[1-9]\d*  AGXAcceleratorG16G", done.stdout, re.M)
    assert re.search(r"^snapshot: .* [1-9]\d{2,} calls", done.stdout, re.M) and "\nlive\n" in done.stdout


def test_record_and_replay(tmp_path, monkeypatch):
    where = str(tmp_path / "mac.json")
    code, out, err = cli("--record", where, "--seconds", "2")
    assert code == 0 and err.startswith("recording for 2 s") and out.startswith(where) and "no UUID" in out
    assert "17 / 15 / 15 %" in good(recording=where)
    monkeypatch.setattr(ag._Recorder, "run", None)      # told before the recording, not after an hour
    for refused in (tmp_path / "none" / "x.json", tmp_path):
        code, out, err = cli("--record", str(refused), "--seconds", "3600")
        assert code == 17 and err.count("\n") == 2 and "cannot write" in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_record_replaces_files_only(tmp_path):
    """A link stays a link, a pipe or device stays what it is: run as root, --record /dev/stdout must not make it a file."""
    link, file, pipe = (str(tmp_path / name) for name in ("link.json", "file.json", "pipe"))
    os.symlink(file, link)
    assert cli("--record", link, "--seconds", "0.3")[0] == 0
    assert os.path.islink(link) and "17 / 15 / 15 %" in good(recording=file)
    if os.path.exists("/dev/stdout"):
        child = process("--record", "/dev/stdout", "--seconds", "0.3")
        assert json.loads(child.communicate(timeout=60)[0])["format"] == 1 and child.returncode == 0
    os.mkfifo(pipe)
    reader = subprocess.Popen([sys.executable, "-c", "import json, sys; print(json.load(open(sys.argv[1]))['format'])", pipe],
                              stdout=subprocess.PIPE)
    assert cli("--record", pipe, "--seconds", "0.3")[0] == 0
    assert reader.communicate(timeout=60)[0] == b"1\n" and stat.S_ISFIFO(os.stat(pipe).st_mode)
    assert sorted(os.listdir(tmp_path)) == ["file.json", "link.json", "pipe"]


# ---- arguments, exit codes, pipes, signals

WRONG = (["--nonsense"], ["stray"], ["-l", "x"], ["-l", "0"], ["-l", "-1"], ["-l", "nan"], ["-l", "inf"], ["-lms", "0"], ["-lms"],
         ["-l", "1", "-lms", "5"], ["-L", "-q"], ["--json", "--jsonl"], ["--format=csv"], ["--query-gpu=name", "--format=xml"],
         ["--query-gpu=name", "--format=noheader"], ["--query-gpu"], ["--seconds", "3"], ["--names"], ["--record", "x", "--seconds", "0"],
         ["-l", "1", "--doctor"], ["-l", "1", "--record", "x"], ["-x"], ["-x", "-q", "-d", "ECC"], ["-d", "ECC"], ["-q", "-d", ""], ["-c", "3"],
         ["-s", "p"], ["-o", "T"], ["dmon", "-s", "z"], ["pmon", "-s", "p"], ["dmon", "-c", "0"], ["dmon", "-d", "x"], ["dmon", "-q"],
         ["dmon", "-o", "X"], ["--query-supported-clocks=name"], ["dmon", "-l", "1"], ["dmon", "pmon"], ["--format=csv", "-L"], ["--speed", "-1"], ["--speed", "nan"], ["--quer"], ["--query-gpu=,"])


@pytest.mark.parametrize("argv", WRONG, ids=" ".join)
def test_cli_wrong_arguments(argv):
    named = {} if "--speed" in argv else {"recording": "m4-macos27"}
    out, err = io.StringIO(), io.StringIO()
    with environment(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = ag.main(argv + (["--recording", path_of("m4-macos27")] if named else []))
    assert code == 2 and out.getvalue() == "" and 0 < err.getvalue().count("\n") <= 3 and "Traceback" not in err.getvalue()


def test_version_and_help():
    assert good("--version", recording=None) == "pyapplegpu %s\n" % ag.__version__
    text = good("--help", recording=None)
    for option in ("-L", "-q", "--query-gpu", "--help-query-gpu", "-i", "-l", "-lms", "--json", "--jsonl", "--doctor", "--selftest",
                   "--record", "--seconds", "--names", "--recording", "--speed", "--version", "--format", "exit codes"):
        assert option in text, option
    for width in (40, 80):      # everything wraps, text above and below the options too; names of options are not broken
        text = good("--help", recording=None, COLUMNS=width)
        assert [line for line in text.splitlines() if len(line) > width and line[:3] not in ("usa", "  -")] == []


def test_loop_spellings():
    for argv in (["-l"], ["-l", "5"], ["-l=5"], ["-l5"], ["--loop=5"], ["--loop", "5"], ["-lms", "5000"], ["-lms=5000"], ["--loop-ms=5000"]):
        assert ag._arguments(argv).every == 5.0, argv
    assert ag._arguments([]).every is None


@pytest.mark.skipif(sys.platform == "darwin", reason="there is an Apple GPU here")
def test_off_a_mac():
    for argv in ([], ["-L"], ["--json"], ["--doctor"], ["--selftest"], ["--query-gpu=name"], ["--record", os.devnull]):
        code, out, err = cli(*argv, recording=None)
        assert code == 12 and out == "" and err.count("\n") == 1 and "--recording FILE" in err, argv


def test_bad_recordings(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    newer = tmp_path / "newer.json"
    newer.write_text('{"format": 99}')
    for where in (tmp_path / "absent.json", broken, newer, tmp_path):
        code, out, err = cli(recording=str(where))
        assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("pyapplegpu: "), err


def test_the_environment_names_a_recording():
    code, out, err = cli("-L", recording=None, PYAPPLEGPU_RECORDING=path_of("m4-macos27"))
    assert code == 0 and "Apple M4" in out


def test_main_leaves_the_library_as_it_was():
    before = ag._library.count
    cli("-L"), cli("-i", "7"), cli("--query-gpu=bogus")
    assert ag._library.count == before


@pytest.mark.parametrize("argv", (["-lms", "20"], ["-lms", "20", "--jsonl"], ["-lms", "20", "--query-gpu=name", "--format=csv"], []),
                         ids=("view", "jsonl", "csv", "once"))
@pytest.mark.skipif(os.name == "nt", reason="no SIGPIPE")
def test_a_closed_pipe_ends_it_quietly(argv):
    child = process("--speed", "0", *argv)
    if argv:
        child.stdout.readline()
    child.stdout.close()
    assert child.wait(30) == 141 and child.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, MODULE, "-L", "--recording", path_of("m4-macos27")], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"No space left" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for a child")
@pytest.mark.parametrize("argv", (["-l", "30"], ["-lms", "30", "--jsonl"], ["--record", os.devnull, "--seconds", "60"]), ids=" ".join)
def test_ctrl_c_ends_it_quietly(argv):
    child = process(*argv)
    (child.stderr if "--record" in argv else child.stdout).readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130 and err == b""


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM")
def test_sigterm_ends_it_quietly():
    child = process("-l", "30")
    child.stdout.readline()
    child.terminate()
    assert child.communicate(timeout=30)[1] == b"" and child.returncode == -signal.SIGTERM


def test_the_schedule_neither_drifts_nor_catches_up(monkeypatch):
    now, slept = [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds
    monkeypatch.setattr(ag.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ag.time, "sleep", sleep)
    stops = []
    for work in (0.3, 0.1, 0.0, 2.5, 600.2, 0.4):       # 600 s: the Mac slept, on a system where this clock goes on
        now[0] += work
        ag._sleep_until(100.0, 1.0)
        stops.append(round(now[0] - 100.0, 6))
    assert stops == [1, 2, 3, 6, 607, 608] and min(slept) > 0


def test_a_loop_survives_a_sleep(tmp_path):
    def slept(text):
        data = json.loads(text)
        data["time"]["slept"] = [0, 0, 0] + [3600 * 10 ** 9] * (len(data["time"]["ticks"]) - 3)
        return json.dumps(data)
    child = process("-lms", "15", "--query-gpu=utilization.gpu,memory.used,power.draw", "--format=csv,noheader", "--speed", "0",
                    recording=variant(tmp_path, slept))
    lines = [child.stdout.readline().decode().strip() for _ in range(7)]
    child.stdout.close()
    child.wait(20)
    assert child.stderr.read() == b"" and lines[0] == "17 %, 410 MiB, 1.20 W"
    assert [line.count("[N/A]") for line in lines] == [0, 0, 2, 0, 0, 0, 0]     # one interval is not known, then all is well
    assert all(re.fullmatch(r"(\d+ %|\[N/A\]), 410 MiB, (1\.20 W|\[N/A\])", line) for line in lines)


@pytest.mark.parametrize("fault", ("IORegistryEntryGetRegistryEntryID=error@9", "IORegistryEntryCreateCFProperty=null@40+",
                                   "IOReportCreateSamples=null@3"))
def test_a_loop_survives_a_gpu_restart(fault):
    """The accelerator's entry stops answering for once, its properties for ever, a sample fails: the loop goes on."""
    child = subprocess.Popen(
        [sys.executable, os.path.join(HERE, "examples", "fakemac.py"), "--recording", path_of("m4-macos27"), "--speed", "5",
         "--fault", fault, MODULE, "-lms", "100", "--query-gpu=utilization.gpu,memory.used,power.draw", "--format=csv,noheader"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = [child.stdout.readline().decode().strip() for _ in range(6)]
    child.send_signal(signal.SIGINT)
    assert b"Traceback" not in child.communicate(timeout=30)[1]
    assert all(re.fullmatch(r"(\d+ %|\[N/A\]), (410 MiB|\[N/A\]), (1\.20 W|\[N/A\])", line) for line in lines), lines
    assert "1.20 W" in lines[-1]


def test_all_three_ways_to_start_are_one():
    outs = []
    for argv in ([MODULE], ["-m", "pyapplegpu"], ["-c", "import sys, pyapplegpu; sys.exit(pyapplegpu.main())"]):
        outs.append(subprocess.run([sys.executable, *argv, "--recording", path_of("m4-macos27"), "--speed", "0"], cwd=HERE,
                                   env={k: v for k, v in os.environ.items() if k not in COLOURS}, stdout=subprocess.PIPE).stdout)
    assert outs[0] == outs[1] == outs[2] and b"17 / 15 / 15 %" in outs[0]


# ---- README tells the truth

def page(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return file.read()


def anchors(text):
    """The anchors that headings make, as GitHub spells them."""
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("name", ("README.md", "examples/README.md"))
def test_links_and_names_of_the_pages_exist(name):
    text, folder = page(name), os.path.dirname(name)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(folder, path)) if path else name
        assert link.startswith("http") or os.path.exists(os.path.join(HERE, target)), link
        assert not anchor or anchor in anchors(page(target)), link
    commands = re.findall(r"^    (?:\$ )?python3? (\w[\w./-]*\.py)", text, re.M)
    for path in re.findall(r"(?<![\w/.-])examples/[\w./-]+\.(?:py|json|svg|png)", text) + commands:
        assert os.path.exists(os.path.join(HERE, path)), path
    for word in re.findall(r"`((?:Library|Device|Memory|Ane|Cpu|Vpu|Process|System|Snapshot)[A-Z]\w+)", text):
        assert hasattr(ag, word) or word.endswith("Get") or word in ("LibraryNotFound", "SystemMonitor"), word


def test_every_example_is_named():
    text = page("examples/README.md").partition("\n## ")[0]
    found = [n for n in os.listdir(os.path.join(HERE, "examples")) if n.endswith(".py") and not n.startswith(("test_", "_"))]
    assert len(found) > 20 and not [name for name in found if "`%s`" % name not in text]


def test_readme_is_right_about_reasons_fields_and_keys():
    text = page("README.md")
    errors = text.partition("\n## Errors")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z]\w+)`", errors.partition("|---|")[2])) - {"timeout"} == {
        v for k, v in vars(ag).items() if k.startswith("REASON_")}
    fields = page("examples/README.md").partition("### Fields of --query-gpu")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z]\w*(?:\.\w+)+)`", fields))
    assert named and named <= set(ag._query_table()) | set(ag._query_table("query_compute_apps")), named - set(ag._query_table())
    for start, more in re.findall(r"`(apple\.[\w.]+)`((?: `\.\w+`)+)", fields):       # `apple.power.cpu` `.ane`: short for apple.power.ane
        named |= {start.rpartition(".")[0] + end for end in re.findall(r"`(\.\w+)`", more)}
    known = {**ag._query_table(), **ag._query_table("query_compute_apps")}
    assert {name for name in named if name.startswith("apple.")} == {name for name in known if name.startswith("apple.")}
    keys = re.findall(r"^\| (`.*?) \|", text.partition("### JSON")[2].partition("\n## ")[0], re.M)
    patterns = [re.escape(key).replace("\\*", "\\w*").replace("<agent>", "[a-z]+").replace("_read/_write", "_(read|write)")
                for row in keys for key in re.findall(r"`(.*?)`", row)]
    data = json.loads(good("--json"))
    assert not [key for key in data if not any(re.fullmatch(pattern, key) for pattern in patterns)]
    assert all(any(re.fullmatch(pattern, key) for key in data) for pattern in patterns)


def test_readme_is_right_about_error_classes():
    rows = re.findall(r"^\| (`.*?`) \| ([\d, ]+) \|", page("README.md").partition("\n## Errors")[2].partition("\n## ")[0], re.M)
    named = {}
    for classes, numbers in rows:
        named.update(zip(re.findall(r"`(\w+)`", classes), map(int, numbers.split(","))))
    assert named.pop("MetalError") == ag.MetalError.value == 999
    known = {name.partition("_")[2]: getattr(ag, name).value for name in dir(ag) if name.startswith("AppleGPUError_")}
    assert named == {name: value for name, value in known.items() if name != "Unknown"}


def test_table_of_nvml_names():
    """Each is there; those that the table calls NotSupported refuse."""
    table = page("README.md").partition("| NVML | here |")[2].partition("\n\n")[0]
    count, refusing = 0, []
    for row in re.findall(r"^\| `(?:nvml|Get).*\|$", table, re.M):
        nvml, meaning = row.split("|")[1], row.split("|")[3].strip()
        for name in re.findall(r"`(\w+)", nvml):
            function = getattr(ag, name if name.startswith("nvml") else "nvmlDevice" + name)
            count += 1
            refusing += [function] if meaning == "NotSupported" else []
    assert count > 25 and len(refusing) == 3
    ag.LibraryInit(recording("m5max-macos27"), speed=0)
    try:
        for function in refusing:
            pytest.raises(ag.NVMLError_NotSupported, function, ag.LibraryInitDeviceByIndex(0))
    finally:
        ag.LibraryShutDown()


@pytest.mark.parametrize("name", ("README.md", "examples/README.md"))
def test_fields_of_results_are_listed(name):
    """Every NamedTuple a function gives, with its fields; those of Metal on the page about Metal."""
    wanted = ["%s(%s)" % (n, ", ".join(getattr(ag, n)._fields)) for n in ag.__all__ if hasattr(getattr(ag, n), "_fields")
              and n.startswith("Metal") == (name != "README.md")]
    assert "<!-- values -->\n```\n%s\n```\n<!-- /values -->" % "\n".join(wanted) in page(name)


def test_metal_functions_are_listed_with_their_signatures():
    table = page("examples/README.md").partition("<!-- metal -->")[2].partition("<!-- /metal -->")[0]
    rows = {name: (given, kind) for name, given, kind in re.findall(r"^\| `(\w+)\((.*?)\)` \| `(.*?)`: .* \|$", table, re.M)}
    assert rows == {n: (shown_signature(getattr(ag, n)), inspect.signature(getattr(ag, n)).return_annotation)
                    for n in ag.__all__ if n.startswith("Metal") and inspect.isfunction(getattr(ag, n))}


def test_costs_of_the_two_pages_agree():
    """What README says of costs stands in the whole table, which the benchmark wrote."""
    numbers = re.compile(r"\d[\d,]*(?:\.\d+)?")
    here = page("README.md").partition("\n## Costs")[2].partition("\n## ")[0].partition("|---|---|---|")[2]
    whole = page("examples/README.md").partition("\n## What the library costs")[2].replace(",", "")
    known = {float(n) for n in numbers.findall(whole)} | {round(float(n), 1) for n in numbers.findall(whole)}
    said = [float(n.replace(",", "")) for row in re.findall(r"^\|.*\|$", here, re.M) for cell in row.split("|")[2:]
            for n in numbers.findall(re.sub(r"\([^)]*\)", "", cell))]
    pymtml = float(re.search(r"pymtml ([\d.]+)", here).group(1))       # the one that is computed of two
    ratio = {peer: float(re.search(r"from .pyc: CPU time / %s \| ([\d.]+) x" % peer, whole).group(1)) for peer in ("pynvml", "pymtml")}
    assert pymtml == pytest.approx(ratio["pynvml"] / ratio["pymtml"], abs=0.01)
    assert len(said) > 12 and not [n for n in said if n not in known | {pymtml}], said


def test_commands_of_the_readme():
    """Each line of the command-line block is a command line that is understood; the first command shows a Mac."""
    block = re.search(r"```\n(pyapplegpu .*?)```", page("README.md"), re.S).group(1)
    count = 0
    for line in block.splitlines():
        words = re.split(r" {3,}", line)[0]
        for alternative in words[len("pyapplegpu"):].split(" | "):
            ag._arguments(alternative.split())
            count += 1
    assert count >= 16
    for option in re.findall(r"`(--?[a-z][\w-]*)", page("README.md").partition("## Command line")[2].partition("\n## ")[0]):
        assert option in ag._parser().format_help() or option in ag._CANNOT, option
    first = re.search(r"^    python3 pyapplegpu\.py .*add: (--recording \S+)$", page("README.md"), re.M).group(1)
    assert "17 / 15 / 15 %" in good(*first.replace("examples", os.path.join(HERE, "examples")).split(), recording=None)


def test_python_of_the_readme():
    use, vendored = re.findall(r"```python\n(.*?)```", page("README.md"), re.S)[:2]
    child = "import os, sys; os.environ['PYAPPLEGPU_RECORDING'] = sys.argv[1]\n" + use + vendored.replace("from ._vendor ", "") + "print(limit)"
    done = subprocess.run([sys.executable, "-c", child, path_of("m4-macos27")], cwd=HERE, stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout.splitlines()[:2] == ["Apple M4 17 %", "430571520 of 12713115648 bytes; 3601793024 to spare"]
    assert done.stdout.splitlines()[-1] == "12713115648"


# ---- README's picture: the default view, drawn; `python -c "import test_pyapplegpu as t; open(t.PICTURE, 'w').write(t.picture())"` draws it anew

PICTURE = os.path.join(HERE, "examples", "pyapplegpu.svg")
INK = {"1": 'font-weight="bold"', "2": 'fill="#7d8590"', "31": 'fill="#ff7b72"', "32": 'fill="#56d364"', "33": 'fill="#e3b341"'}


def picture():
    """The view of the M5 Max in 80 columns, as SVG."""
    from xml.sax.saxutils import escape
    with environment(TZ="UTC", FORCE_COLOR=1, COLUMNS=80):
        lines = subprocess.run([sys.executable, MODULE, "--speed", "0", "--recording", path_of("m5max-macos27")], check=True,
                               stdout=subprocess.PIPE).stdout.decode().splitlines()
    high = 20 * len(lines) + 24
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 %d" width="720" height="%d">' % (high, high),
             '<rect width="720" height="%d" rx="6" fill="#0d1117"/>' % high,
             '<g font-family="ui-monospace,Menlo,Consolas,\'DejaVu Sans Mono\',monospace" font-size="14" fill="#e6edf3">']
    for n, line in enumerate(lines):
        pieces = re.split(r"\033\[(\d+)m(.*?)\033\[0m", line)
        text = escape(pieces[0])
        for style, inked, plain in zip(pieces[1::3], pieces[2::3], pieces[3::3]):
            text += "<tspan %s>%s</tspan>%s" % (INK[style], escape(inked), escape(plain))
        length = len(re.sub(r"\033\[\d+m", "", line))
        parts.append('<text x="12" y="%d" textLength="%d" xml:space="preserve">%s</text>' % (20 * n + 26, 8.7 * length, text))
    return "\n".join(parts + ["</g></svg>", ""])


def test_the_picture_is_what_is_printed():
    with open(PICTURE, encoding="utf-8") as file:
        drawn = file.read()
    assert drawn == picture(), "draw it anew: python %s" % os.path.basename(__file__)


# ======================================================================================================================
# the proof: faults, ownership, growth, threads, forks, exits, budgets
# ======================================================================================================================

EXAMPLES = os.path.join(HERE, "examples")
LEVEL = int(os.environ.get("PROOF", "0"))      # 0 = a glance, 1 = all, 2 = longer runs
REPLAY = fakemac.Replay(MACS["m4-macos27"])


def forget():
    """The library as in a new process: no handle of another Mac is used or released again."""
    ag._c.forked()
    made = ag._Library()
    made.hooked = ag._library.hooked
    ag._library.__dict__.update(made.__dict__)


@contextlib.contextmanager
def proof_mac(data=REPLAY, **options):
    """A Mac with a library that has seen no other."""
    forget()
    with fakemac.Mac(data, **options) as made:
        try:
            yield made
        finally:
            made.live_at_end = made.live()
            forget()


def device():
    ag.LibraryInit()
    return ag.LibraryInitDeviceByIndex(0)


def figures(mac):
    """Every function with the arguments of the recording's expectations."""
    return list(dict.fromkeys((case["call"], tuple(case["args"])) for case in MACS[mac]["expected"]))


def proof_ask(call, arguments, dev):
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
CALLS = figures("m4-macos27") + [(name, ()) for name in NATIVE] + [("LibraryDiagnose", ()), ("DeviceGetSnapshot", ())]


def outcome(call, arguments, dev):
    """("value", value) or ("error", class, reason, source, text) or what must not happen."""
    try:
        return ("value", proof_ask(call, arguments, dev))
    except ag.AppleGPUError as error:
        return ("error", type(error).__name__.rpartition("_")[2], error.reason, error.source, str(error))
    except fakemac.Violation as violation:
        return ("violation", str(violation))
    except Exception:
        return ("bug", traceback.format_exc())


# ---- `expected` of every recording, over the player and over the C ABI ----

def as_expected(case, got):
    if "error" in case:
        return got[:3] == ("error", case["error"], case["reason"])
    if got[0] != "value":
        return False
    return bool(re.search(case["matches"], str(got[1]))) if "matches" in case else same(got[1], case["value"], case.get("tolerance", 1e-3))


@pytest.mark.parametrize("name", sorted(MACS))
def test_expected_over_the_stand_ins(name):
    replay, wrong = fakemac.Replay(MACS[name]), []
    for case in MACS[name]["expected"]:
        with proof_mac(replay) as made:
            got = outcome(case["call"], tuple(case["args"]), device())
        if not as_expected(case, got):
            wrong.append((case["call"], case["args"], case.get("value", case.get("reason")), got))
        assert not [entry for entry in made.live_at_end if "autorelease" in entry.kind or "vm block" in entry.kind]
    assert wrong == []


@pytest.mark.parametrize("name", sorted(MACS))
def test_player_and_stand_ins_agree(name):
    """The same calls in the same order: what the player answers, the ctypes code answers over C."""
    with proof_mac(MACS[name]):
        dev = device()
        over_c = {case: outcome(*case, dev)[:3] for case in figures(name)}
    ag.LibraryInit(recording=recording(name), speed=0)
    dev = ag.LibraryInitDeviceByIndex(0)
    clock = ag._library.engine.machine.clock
    clock.step = lambda: None      # a Mac's clock does not step by itself
    played = {case: outcome(*case, dev)[:3] for case in figures(name)}
    forget()
    assert [(case, played[case], over_c[case]) for case in played if not same(over_c[case], played[case], 1e-6)] == []


# ---- 1. all native functions x all faults ----

STAGES = {      # where a function is needed: (recording, what is wrong already)
    "as recorded": (REPLAY, ()),
    "no SMC": (fakemac.Replay(dict(MACS["m4-macos27"], smc=None)), ()),
    "unknown record layout": (REPLAY, ("IOReportCreateSamples=newlayout",)),
    "Metal lists nothing": (REPLAY, ("MTLCopyAllDevices=short",)),
    "no property lists": (REPLAY, ("CFPropertyListCreateData=null",)),
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
# One odd answer stays for good, by decision: a group that seemed missing beside others that were there; how many CPUs there are.
LATCHED = {"IOReportCopyChannelsInGroup", "CFDictionaryGetValue", "CFArrayGetCount", "host_processor_info"}
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
_ran = {"cases": 0, "answers": 0}


def proof_tour(data, passes, calls, faults=()):
    """Every figure, several times, with time passing in between: outcomes, belongings after each pass, the fakemac.Mac."""
    outcomes, belongings = [], []
    gc.collect()
    gc.freeze()         # what stands by now is not gone through at each of the thousand collects to come
    with proof_mac(data, faults=faults) as made:
        try:
            dev = device()
        except ag.AppleGPUError as error:
            return [{("LibraryInit", ()): ("error", type(error).__name__.rpartition("_")[2], error.reason, error.source, str(error))}], [], made
        for _ in range(passes):
            made.before_last_pass = {fault.text: fault.seen for fault in made.fault_list}
            outcomes.append({case: outcome(*case, dev) for case in calls})
            gc.collect()
            belongings.append(made.live())
            made.advance(8)
        hidden = [text for text in made.violations]
        made.violations.clear()      # they are judged here
    assert not hidden, hidden[0]
    return outcomes, belongings, made


@functools.lru_cache(None)
def baseline(stage):
    """Of the Mac without a further fault: outcomes and belongings of each pass, and what was called."""
    data, wrong = STAGES[stage]
    outcomes, belongings, made = proof_tour(data, 3, CALLS, wrong)
    assert belongings[1] == belongings[2], stage
    return outcomes, belongings, made.calls


@functools.lru_cache(None)
def uses(stage, case):
    """The native functions behind one figure that nothing was asked for before."""
    data, wrong = STAGES[stage]
    with proof_mac(data, faults=wrong) as alone:
        outcome(*case, device())
    return set(alone.calls)


def stage_of(symbol):
    return next((stage for stage in STAGES if symbol in baseline(stage)[2]), None)


def faults_of(symbol):
    kinds = list(fakemac.fault_kinds(symbol))
    kinds += ["error:%#x" % code for name, code in ERRORS if name == symbol]
    once = ["%s=%s@%d" % (symbol, kind, turn) for kind in kinds[:None if LEVEL else 1] for turn in ((1, 4) if LEVEL else (1,))]
    return ["%s=%s" % (symbol, kind) for kind in kinds] + once + ["symbol:%s=absent" % symbol]


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
    healthy = baseline(stage)[0]
    problems = []
    for fault in faults_of(symbol):
        outcomes, belongings, made = proof_tour(data, 3, CALLS, (fault,) + wrong)
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
                    if was[0][0] == "value" and symbol not in uses(stage, case) and not symbol.startswith(("IOServiceClose",)):
                        problems.append((fault, case, "fails though it does not need it", got))
                    over = turn == 2 and tested.last is not None and made.before_last_pass[fault] >= tested.last
                    if over and was[2][0] == "value" and symbol not in LATCHED:
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
    outcomes, belongings, made = proof_tour(REPLAY, 3, CALLS, ("library:%s=absent" % library,))
    healthy = baseline("as recorded")[0]
    own = {symbol for symbol, row in ag._PROTOTYPES.items() if row[0].rstrip("!") == library}
    if library in ("objc", "CoreGraphics"):
        own |= {"objc_msgSend", "MTLCopyAllDevices"}
    if library == "System":
        own |= {"IOServiceOpen"}      # mach_task_self_ is data of libSystem
    for case, got in outcomes[0].items():
        assert got[0] in ("value", "error"), (case, got)
        if got[0] == "error" and case in healthy[0] and healthy[0][case][0] == "value":
            assert uses("as recorded", case) & own, (case, got)
            assert got[1] in ("NotSupported", "NotReady", "NoData"), (case, got)
    assert not belongings or belongings[1] == belongings[2]


@pytest.mark.parametrize("group", ["Energy Model", "GPU Stats", "CPU Stats", "PMP0", "AMC Stats"])
@pytest.mark.parametrize("how", ["refuses", "absent"])
def test_a_group_refused_or_absent(group, how):
    outcomes, belongings, _ = proof_tour(REPLAY, 3, CALLS, ("group:%s=%s" % (group, how),))
    healthy = baseline("as recorded")[0]
    for case, got in outcomes[2].items():
        assert got[0] in ("value", "error"), (case, got)
        if got[0] == "error" and healthy[2][case][0] == "value":
            assert "IOReportCopyChannelsInGroup" in uses("as recorded", case) and got[1] in ("NotSupported", "NotReady", "NoData") and got[2], (case, got)
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
    outcomes, belongings, made = proof_tour(REPLAY, 3, CALLS, faults)
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
    with proof_mac(MACS["m1-macos11"], faults=(layout,) if layout else ()) as made:
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
    with proof_mac() as made:
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
        with fakemac.Mac(data, faults=wrong) as made:
            dev = device()
            for _ in range(2):
                for case in CALLS:
                    with contextlib.suppress(ag.AppleGPUError):
                        proof_ask(*case, dev)
                made.advance(8)
            gc.collect()
            live = made.live()
            if made.violations:
                return "violation"
            ag._library.engine = ag._library.opened = dev = None
            gc.collect()
            return live, made.live()
    except fakemac.Violation:
        return "violation"
    except Exception as problem:      # a wrong type in the table may also simply not work
        return repr(problem)
    finally:
        forget()


def interrupted_tour(data, wrong, symbol):
    """The first call of one function is interrupted (Ctrl-C) just as it returns; afterwards everything is asked for again."""
    forget()
    try:
        with fakemac.Mac(data, faults=tuple(wrong) + (symbol + "=interrupt@1",)) as made:
            for _ in range(3):
                with contextlib.suppress(KeyboardInterrupt, ag.AppleGPUError):
                    dev = device()
                    break
            for _ in range(2):
                for case in CALLS:
                    with contextlib.suppress(ag.AppleGPUError, KeyboardInterrupt):
                        proof_ask(*case, dev)
                made.advance(8)
            gc.collect()
            return "violation" if made.violations else made.live()
    except fakemac.Violation:
        return "violation"
    finally:
        forget()


@functools.lru_cache(None)
def owned(stage):
    account = ownership_tour(*STAGES[stage])
    assert account != "violation" and ownership_tour(*STAGES[stage]) == account, "the account itself wavers"
    return account


@functools.lru_cache(None)
def owned_after_interrupt(stage, symbol):
    return interrupted_tour(*STAGES[stage], symbol)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("symbol, where", FLIPS)
def test_each_ownership_flag_matters(symbol, where, monkeypatch):
    """With one flag of the table turned over, the account no longer comes out."""
    stage = stage_of(symbol)
    if stage is None:
        pytest.skip("only called on errors" if symbol in ON_ERRORS_ONLY else "served by the Objective-C runtime stand-in")
    healthy = owned(stage)
    with monkeypatch.context() as turned:
        turned.setitem(ag._PROTOTYPES, symbol, flipped(symbol, where))
        if ownership_tour(*STAGES[stage]) != healthy:
            return
        then = interrupted_tour(*STAGES[stage], symbol)
    assert then != owned_after_interrupt(stage, symbol), "nobody noticed"


MAKERS = [symbol for symbol, row in ag._PROTOTYPES.items() if symbol in fakemac.SYMBOLS and row[1] in "COE"]


@pytest.mark.parametrize("symbol", MAKERS)
def test_interrupted_between_a_maker_and_its_owner(symbol):
    stage = stage_of(symbol)
    assert owned_after_interrupt(stage, symbol) == baseline(stage)[1][1]


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
        with proof_mac() as made:
            dev = device()
            with contextlib.suppress(KeyboardInterrupt, ag.AppleGPUError):
                sys.settrace(tracer)
                try:
                    proof_ask(call, (), dev)
                finally:
                    sys.settrace(None)
            gc.collect()
            for _ in range(2):
                made.advance()
                proof_ask(call, (), dev)
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
    with proof_mac() as made:
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
    with proof_mac() as made:
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
    with proof_mac(allow=("second subscription",)) as made:
        dev = device()
        ag.DeviceGetUtilization(dev)
        ag.LibraryRecord(str(tmp_path / "one.json"), seconds=2.0, interval=1.0)
        gc.collect()
        live = made.live()
        ag.LibraryRecord(str(tmp_path / "two.json"), seconds=2.0, interval=1.0)
        gc.collect()
        assert [entry for entry in made.live() if entry not in live] == []
    with proof_mac(json.loads((tmp_path / "two.json").read_text())):
        assert ag.DeviceGetName(device()) == "Apple M4"


def test_init_storm():
    with proof_mac() as made:
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
    path = recording("m1-macos11")
    with proof_mac() as made:
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
    done = subprocess.run([sys.executable, os.path.join(EXAMPLES, "fakemac.py"), "--recording", recording(data), "--speed", "0",
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
    with proof_mac() as made:
        dev = device()
        library, real = made.table["IORegistryEntryCreateCFProperty"]

        class Trouble:
            def __del__(self):
                made.calls["finalised"] += 1
                ag.MemoryGetUsed(dev)

        def collecting(*args):
            if made.calls["finalised"] < 50:
                ring = [Trouble()]
                ring.append(ring)
                del ring
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
        while gc.collect():     # a finaliser makes a ring of its own: none is left for a later test
            pass
        assert made.live() == before and made.calls["finalised"] > 0


def test_the_clock_goes_back_and_the_mac_sleeps():
    for fault in ("clock=-5s@9", "clock=+5s@9", "clock=+3600s@9", "sleep=3600@9", "clock=-100000s@12"):
        outcomes, belongings, _ = proof_tour(REPLAY, 3, figures("m4-macos27"), (fault,))
        assert not [got for answers in outcomes for got in answers.values() if got[0] not in ("value", "error")], fault
        assert [case for case, got in outcomes[2].items() if got[0] == "error" and baseline("as recorded")[0][2][case][0] == "value"] == [], fault


# ---- 6. counting: native calls and bytecodes of an operation ----

def count(made, operation):
    """(what it gave, Counter of native calls): the harness for every budget that is a count."""
    before = made.calls.copy()
    value = operation()
    spent = made.calls - before
    return value, spent


def natives(spent):
    return sum(number for name, number in spent.items() if ":" not in name)


def test_budget_of_the_registry_poll():
    with proof_mac() as made:
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
    with proof_mac() as made:
        dev = device()
        _, first = count(made, lambda: ag.MemoryGetTotal(dev))
        assert first["MTLCopyAllDevices"] + first["MTLCreateSystemDefaultDevice"] == 1
        _, later = count(made, lambda: ag.MemoryGetTotal(dev))
        assert set(later) <= {"sysctlbyname"} and natives(later) <= 2, later


@pytest.mark.parametrize("name", ["m1-macos11", "m4-macos27", "m1ultra-macos27", "m5max-macos27"])
def test_budget_of_a_sample(name):
    """10 native calls and 4 per wanted channel, however many are listed; no string is made or read."""
    with proof_mac(MACS[name]) as made:
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
    with proof_mac() as made:
        dev = device()
        getters = ("DeviceGetUtilization", "DeviceGetPowerUsage", "DeviceGetActiveRatio", "DeviceGetClock", "CpuGetPower", "AneGetPower")
        for getter in getters:
            outcome(getter, (), dev)
        made.advance()
        _, spent = count(made, lambda: [outcome(getter, (), dev) for getter in getters])
        assert spent["IOReportCreateSamples"] == 1, spent


def test_budget_of_the_first_temperature():
    with proof_mac(bench.big_smc()) as made:
        dev = device()
        assert len(made.libraries[1].smc_order) == 3739
        _, gpu = count(made, lambda: ag.DeviceGetTemperature(dev))
        assert gpu["IOConnectCallStructMethod"] <= 270, gpu["IOConnectCallStructMethod"]
        _, cpu = count(made, lambda: ag.CpuGetTemperature(dev))
        assert gpu["IOConnectCallStructMethod"] + cpu["IOConnectCallStructMethod"] <= 400, (gpu, cpu)


def test_parts_not_asked_for_cost_nothing():
    with proof_mac() as made:
        dev = device()
        ag.DeviceGetSnapshot(dev)
        made.advance()
        _, spent = count(made, lambda: ag.DeviceGetSnapshot(dev, parts=("memory",)))
        assert not [name for name in spent if name.startswith(("IOReport", "IOConnect", "IOHID", "MTL", "objc", "proc_", "notify", "IOPS"))], spent
        _, nothing = count(made, lambda: ag.DeviceGetSnapshot(dev, parts=()))
        assert natives(nothing) <= 1, nothing


def test_opcodes_are_counted():
    with proof_mac():
        dev = device()
        ag.MemoryGetUsed(dev)
        assert 0 < bench.opcodes(lambda: ag.MemoryGetUsed(dev), ag.__file__.__eq__) < 6000


# ======================================================================================================================
# live: this Mac (skipped elsewhere). Nothing is changed on the machine; the report at the end can be pasted
# ======================================================================================================================

@pytest.fixture
def here():
    """The GPU of this Mac."""
    if sys.platform != "darwin":
        pytest.skip("live tests need a Mac")
    try:
        ag.LibraryInit()
    except ag.NVMLError_LibraryNotFound as error:
        pytest.skip("no Apple GPU here: %s" % error)
    yield ag.LibraryInitDeviceByIndex(0)
    ag.LibraryShutDown()


def live_calls(device):
    """(text, call) of every function, with the arguments that this Mac offers."""
    more = {"DeviceGetFanRpm": range(3), "DeviceGetFanSpeed": range(3), "CpuGetClusterName": range(4),
            "VpuGetPower": ag.ENGINES, "VpuGetBandwidth": ag.ENGINES, "VpuGetUtilization": ag.ENGINES,
            "DeviceGetP2PStatus": [(device, 0)], "DeviceGetTopologyLevel": [device]}
    for name in sorted(ag.__all__):
        function = getattr(ag, name)
        if not inspect.isfunction(function) or name.startswith(("nvml", "Metal", "Library", "Snapshot", "_", "Try", "Error", "main")):
            continue
        needs_pid = "pid" in inspect.signature(function).parameters
        for extra in [os.getpid()] if needs_pid else more.get(name, [()]):
            extra = extra if isinstance(extra, tuple) else (extra,)
            args = extra if name.startswith("System") else (device, *extra)
            yield "%s%s" % (name, extra or ""), lambda f=function, a=args: f(*a)


def test_live_every_function_answers_or_says_why(here, capsys):
    lines = []
    for text, call in live_calls(here):
        try:
            value = str(call())[:120]
            private = text.startswith(("DeviceGetUUID", "ProcessGetInfo", "DeviceGetProcesses"))     # identity, paths, names
            lines.append("%-40s %s" % (text, "answers" if private else value))
        except ag.AppleGPUError as error:
            assert error.reason or isinstance(error, (ag.NVMLError_InvalidArgument, ag.NVMLError_NotFound)), (text, error)
            lines.append("%-40s -- %s (%s)" % (text, error, error.reason))
    with capsys.disabled():
        print("\n---- pyapplegpu %s, live report: paste this into an issue ----" % ag.__version__)
        print("\n".join(lines + ["%-42s %-6s %s" % (r.source, "ok" if r.ok else r.reason, r.detail) for r in ag.LibraryDiagnose()]))


def test_live_figures_are_plausible(here):
    snapshot = ag.DeviceGetSnapshot(here, timeout=2.5)
    for field in FIELDS:
        value = getattr(snapshot, field)
        assert (value is None) == (field in snapshot.reasons), field
        if isinstance(value, (int, float)) and field.endswith("_percent"):
            assert 0 <= value <= 100, field
        if isinstance(value, (int, float)) and field.endswith(("_bytes", "_mw", "_mj", "_mhz")):
            assert value >= 0, field
    if snapshot.gpu_clock_mhz and snapshot.gpu_max_clock_mhz:
        assert snapshot.gpu_clock_mhz <= snapshot.gpu_max_clock_mhz
    if snapshot.gpu_power_mw is not None:
        assert snapshot.gpu_power_mw < 1000000
    if snapshot.memory_used_bytes is not None and snapshot.system_memory is not None:
        assert snapshot.memory_used_bytes <= snapshot.system_memory.total_bytes


def test_live_energy_agrees_with_power(here):
    a = ag.DeviceGetSnapshot(here, ["power", "gpu"], timeout=2.5)
    if a.gpu_energy_mj is None:
        pytest.skip("no GPU energy here: %s" % a.messages["gpu_energy_mj"])
    ag._library.engine.machine.clock.sleep(2.0)
    b = ag.DeviceGetSnapshot(here, ["power", "gpu"], timeout=0)
    delta = ag.SnapshotDelta(a, b)
    assert b.gpu_energy_mj >= a.gpu_energy_mj
    assert delta.joules["gpu"] is None or delta.joules["gpu"] <= 1000 * delta.seconds
    assert delta.gpu_active_s is None or 0 <= delta.gpu_active_s <= 1.3 * delta.seconds


def test_live_raw_records_are_as_the_accessors_say(here):
    ag.Try(ag.DeviceGetPowerUsage, here)
    for feed in ag._library.engine.feeds():
        assert feed.subscription is None or not feed.subscription.note, feed.subscription.note


def test_live_recording_replays_the_same_facts(here, tmp_path):
    path = tmp_path / "mac.json"
    try:
        ag.LibraryRecord(path, seconds=1.5, interval=0.5)
    except fakemac.Violation as violation:      # the stand-ins allow one subscription to a group; a Mac allows more
        pytest.skip(str(violation))
    replayed = ag.LibraryOpen(path)
    for function in (ag.DeviceGetName, ag.DeviceCountGpuCores, ag.DeviceGetMaxClock, ag.MemoryGetTotal, ag.AneCountCores):
        assert ag.Try(function, replayed)[:2] == ag.Try(function, here)[:2], function.__name__
    text = path.read_text()
    for secret in (os.path.expanduser("~"), os.uname().nodename):
        assert len(secret) < 4 or secret not in text


if __name__ == "__main__":
    sys.exit(pytest.main([__file__] + sys.argv[1:]))
