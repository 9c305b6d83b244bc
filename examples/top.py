"""A live monitor for the GPU, Neural Engine, memory, power and heat of a Mac, as nvtop and metop are for theirs.

    python top.py                                               this Mac, no sudo
    python top.py --recording recordings/m5max-macos27.json     a recorded one, on any OS
    python top.py --once                                        one frame as text;  --debug: one raw sample
    python top.py -i 500ms --layout classic --export log.csv    every half second, also into a file

Keys: ? help, q quit. A dash is a figure that is not known (r lists the reasons), never 0.
"""
from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import textwrap
import time
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence

import _common as c
from _common import Line, ag

RANGES = ((60, "1 min"), (300, "5 min"), (900, "15 min"), (3600, "1 h"), (21600, "6 h"))
INTERVALS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
LAYOUTS = ("auto", "stacked", "classic", "compact")
THEMES = ("textual-dark", "textual-light", "nord", "gruvbox", "dracula", "tokyo-night", "monokai", "flexoki",
          "solarized-light", "catppuccin-mocha", "ansi-dark", "ansi-light", "textual-ansi")
PANELS = ("gpu", "ane", "cpu", "power", "memory", "bandwidth", "heat", "media", "io")
HIDEABLE = ("graph",) + PANELS       # by the keys 0 to 9
SORTS = ("gpu", "time", "memory", "pid", "name")

# ---- what is beside the GPU: psutil, only on the Mac itself


class Beside:
    """Disk and network throughput, load and CPU split of this machine; nothing when a recording is replayed."""

    def __init__(self, live: bool) -> None:
        self.reason = "" if live else "a recording does not hold this"
        self.values: dict[str, float | None] = dict.fromkeys(
            ("disk_read", "disk_write", "net_in", "net_out", "load_1", "load_5", "load_15", "cpu_user", "cpu_system",
             "disk_used", "disk_total"))
        self._before: tuple[float, dict[str, int]] | None = None
        self._psutil = None
        if live:
            try:
                import psutil
                self._psutil = psutil
            except ImportError:
                self.reason = "psutil is not installed"

    def sample(self) -> None:
        if self._psutil is None:
            return
        ps, now = self._psutil, time.monotonic()
        disk, net = ps.disk_io_counters(), ps.net_io_counters()
        counts = {"net_in": net.bytes_recv, "net_out": net.bytes_sent} if net else {}
        counts.update({"disk_read": disk.read_bytes, "disk_write": disk.write_bytes} if disk else {})
        if self._before is not None and now > self._before[0]:
            for key, count in counts.items():
                moved = count - self._before[1].get(key, count)
                self.values[key] = moved / (now - self._before[0]) if moved >= 0 else None
        self._before = now, counts
        times = ps.cpu_times_percent(None)
        load = os.getloadavg()
        usage = ps.disk_usage("/")
        self.values.update(cpu_user=times.user, cpu_system=times.system, load_1=load[0], load_5=load[1], load_15=load[2],
                           disk_used=usage.used, disk_total=usage.total)


# ---- the state that frames are drawn from

AGENT_SERIES = {agent: "traffic_" + agent for agent in ag.AGENTS}
HISTORY = ("gpu", "device", "renderer", "tiler", "clock", "gpu_w", "gpu_c", "gpu_mem", "ane", "ane_w", "cpu", "cpu_w", "cpu_c", "sys_w",
           "pkg_w", "dram_w", "read", "write", "ram", "swap", "encode", "decode", "disk", "net",
           "cltm") + tuple("cluster%d" % n for n in range(8)) + tuple("fan%d" % n for n in range(4)) + tuple(
    AGENT_SERIES.values())

# A history without a highest value of its own is drawn up to a round figure, and at least up to this: 1 mW is not a full graph.
FLOORS = dict([(name, 1000.0) for name in HISTORY if name.endswith("_w")] + [(name, 1e6) for name in ("disk", "net")] + [
    (name, 1e9) for name in ("read", "write", "encode", "decode", *AGENT_SERIES.values())])


class Alert(NamedTuple):
    style: str      # bad or warn
    text: str


class Model:
    """The newest snapshot, its history, and what is told about it."""

    def __init__(self, device: ag.Device, live: bool | None = None) -> None:
        self.device = device
        self.snapshot: ag.Snapshot | None = None
        self.history = c.History(HISTORY, [span for span, _ in RANGES])
        self.beside = Beside(False)
        self.facts: dict[str, Any] = {}
        self.ended = ""
        self._live = live
        self._recoveries: int | None = None
        self._recovered = 0
        self._slept_at: float | None = None
        self._who: dict[int, tuple[str, str]] = {}
        self._before: float | None = None
        self._began: float | None = None

    def take(self, snapshot: ag.Snapshot) -> None:
        first = self.snapshot is None
        if first:
            self.beside = Beside(not c.is_recording(snapshot) if self._live is None else self._live)
            self._began = snapshot.time_unix_s
            self.facts["ane_cores"] = ag.Try(ag.AneCountCores, self.device).value
        self.snapshot = snapshot
        here = {p.pid for p in snapshot.processes or ()}
        self._who = {pid: told for pid, told in self._who.items() if pid in here}       # pids are used again
        self.beside.sample()
        now = snapshot.time_unix_s
        gap = now - self._before if self._before is not None else 0.0
        self._before = now
        self.history.add(now, _series(snapshot, self.beside.values), gap if gap < 3 * max(self.interval_hint, 1.0) else 0.0)
        self._watch(snapshot)

    interval_hint = 1.0

    def who(self, pid: int) -> tuple[str, str]:
        """(user, path) of a process that is listed, asked for once; dashes where the system does not say."""
        if pid not in self._who:
            info = ag.Try(ag.ProcessGetInfo, self.device, pid).value
            live = self.snapshot is not None and not c.is_recording(self.snapshot)
            self._who[pid] = (c.DASH, c.DASH) if info is None else (c.user_name(info.uid, live), info.path or c.DASH)
        return self._who[pid]

    def row(self) -> dict[str, Any]:
        """The newest snapshot as --export writes it."""
        assert self.snapshot is not None and self._began is not None
        return c.flat(self.snapshot, round(self.snapshot.time_unix_s - self._began, 3))

    def _watch(self, s: ag.Snapshot) -> None:
        count = s.gpu_recovery_count
        if count is not None:
            if self._recoveries is not None and count > self._recoveries:
                self._recovered += count - self._recoveries
            self._recoveries = count
        if ag.REASON_SLEPT in s.reasons.values():
            self._slept_at = s.time_unix_s

    def alerts(self) -> list[Alert]:
        s = self.snapshot
        if self.ended:
            return [Alert("warn", self.ended)]
        return [] if s is None else list(self._alerts(s))

    def _alerts(self, s: ag.Snapshot) -> Iterator[Alert]:
        if self._recovered:
            yield Alert("bad", "the GPU was restarted %d time%s: a kernel hung or faulted" % (
                self._recovered, "s" if self._recovered > 1 else ""))
        if s.memory_used_bytes is not None and s.memory_total_bytes and s.memory_used_bytes > s.memory_total_bytes:
            yield Alert("bad", "GPU memory is over its limit: %s" % c.pair(s.memory_used_bytes, s.memory_total_bytes))
        pressure = s.system_memory_pressure
        if pressure is not None and pressure.level != "normal":
            yield Alert("bad" if pressure.level == "critical" else "warn", "memory pressure is %s" % pressure.level)
        if s.thermal_pressure_level:
            yield Alert("bad" if s.thermal_pressure_level > 1 else "warn",
                        "thermal pressure is %s" % ag.THERMAL_PRESSURE[s.thermal_pressure_level])
        t = s.gpu_throttle
        if t is not None and t.cltm_ratio:
            yield Alert("warn", "the GPU is throttled by heat %s of the time" % c.ratio(t.cltm_ratio))
        if t is not None and t.ppm_percent is not None and t.ppm_percent < 100:
            yield Alert("warn", "the GPU's power budget is %s%s" % (
                c.percent(t.ppm_percent), ", capped at " + c.watts(s.gpu_power_limit_mw) if s.gpu_power_limit_mw else ""))
        frozen = [name for name, field in RAILS if s.reasons.get(field) == ag.REASON_FROZEN]
        if frozen:
            yield Alert("warn", "frozen counter: %s (this macOS publishes a zero that cannot be)" % ", ".join(frozen))
        if self._slept_at is not None and s.time_unix_s - self._slept_at < 10:
            yield Alert("warn", "the Mac slept: rates begin anew")


RAILS = (("GPU", "gpu_power_mw"), ("CPU", "cpu_power_mw"), ("ANE", "ane_power_mw"), ("DRAM", "memory_power_mw"))


def _rate(*values: ag.Bandwidth | None) -> float | None:
    known = [v.bytes_per_s for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def _series(s: ag.Snapshot, beside: dict[str, float | None]) -> dict[str, float | None]:
    """One value per history of a snapshot."""
    ram, swap, fans, clusters = s.system_memory, s.system_swap, s.fans or (), s.cpu_clusters or ()
    disk = [beside["disk_read"], beside["disk_write"]]
    net = [beside["net_in"], beside["net_out"]]
    row: dict[str, float | None] = {
        "gpu": s.gpu_utilization_percent, "device": s.gpu_device_percent, "renderer": s.gpu_renderer_percent,
        "tiler": s.gpu_tiler_percent, "clock": s.gpu_clock_mhz,
        "gpu_w": s.gpu_power_mw, "gpu_c": s.gpu_temperature_celsius, "gpu_mem": s.memory_used_bytes,
        "ane": s.ane_utilization_percent, "ane_w": s.ane_power_mw, "cpu": s.cpu_utilization_percent, "cpu_w": s.cpu_power_mw,
        "cpu_c": s.cpu_temperature_celsius, "sys_w": s.system_power_mw, "pkg_w": s.package_power_mw,
        "dram_w": s.memory_power_mw, "read": _rate(s.memory_read), "write": _rate(s.memory_write),
        "ram": ram.used_bytes if ram else None,
        "swap": swap.used_bytes if swap else None,
        "encode": _rate(s.encode_bandwidth), "decode": _rate(s.decode_bandwidth),
        "disk": None if None in disk else sum(v for v in disk if v is not None),
        "net": None if None in net else sum(v for v in net if v is not None),
        "cltm": s.gpu_throttle.cltm_ratio if s.gpu_throttle else None}
    for n, cluster in enumerate(clusters[:8]):
        row["cluster%d" % n] = cluster.utilization_percent
    row.update(("fan%d" % n, fan.rpm) for n, fan in enumerate(fans[:4]))
    row.update((AGENT_SERIES[agent], _rate(getattr(s, read), getattr(s, write))) for agent, read, write in c.AGENT_FIELDS)
    return row


# ---- panels: a row is (label, value, share of a bar or None, history, top of its graph, note, style of the value).
# A note is a list with commas, the most important first: what has no room is left out from its end.

class Row(NamedTuple):
    label: str
    value: str
    share: float | None = None
    series: str | None = None
    top: float | None = None        # None: a round figure above the highest value in the range
    note: str = ""
    style: str = ""
    bar: bool = True


def _part(value: float | None, whole: float | None) -> float | None:
    return None if value is None or not whole else value / whole


def _load_style(share: float | None) -> str:
    return c.level(share, 0.75, 0.95)


def _heat_style(value: float | None) -> str:
    return c.level(value, *c.HOT)


def _pressure(s: ag.Snapshot) -> tuple[str, str]:
    """The kernel's own judgement of memory, and its colour."""
    level = s.system_memory_pressure.level if s.system_memory_pressure else c.DASH
    return level, c.PRESSURE.get(level, "dim")


def _thermal(s: ag.Snapshot) -> tuple[str, str]:
    level = s.thermal_pressure_level
    if level is None:
        return c.DASH, "dim"
    return ag.THERMAL_PRESSURE[level], "good" if level == 0 else "warn" if level == 1 else "bad"


def _supply(s: ag.Snapshot) -> str:
    """"AC 80 %", "Battery 79 %, charging"."""
    source = s.system_power_source
    if source is None:
        return c.DASH
    share = "" if source.battery_percent is None else " " + c.percent(source.battery_percent)
    return c.clean(source.source).replace(" Power", "") + share + (", charging" if source.charging else "")


def _cluster_name(cluster: ag.CpuCluster) -> str:
    return c.clean(cluster.name).replace("DIE_", "").replace("CPU", "") or "CPU"


def _states(s: ag.Snapshot) -> str:
    """One block per clock from the lowest to the top: how long the GPU stood there."""
    shares: dict[int, float] = {}
    for state in s.gpu_states or ():
        if state.mhz:
            shares[state.mhz] = shares.get(state.mhz, 0.0) + state.ratio
    return c.spark([shares[mhz] for mhz in sorted(shares)], max(shares.values(), default=0) or 1.0)


def panel_gpu(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    use = _part(s.gpu_utilization_percent, 100)
    clocks = [state.mhz for state in s.gpu_states or () if state.mhz]
    yield Row("Use", c.percent(s.gpu_utilization_percent), use, "gpu", 100,
              "scaled %s, active %s" % (c.ratio(s.gpu_scaled_ratio), c.ratio(s.gpu_active_ratio)), _load_style(use))
    for label, percent, series in (("Driver", s.gpu_device_percent, "device"), ("Renderer", s.gpu_renderer_percent, "renderer"),
                                   ("Tiler", s.gpu_tiler_percent, "tiler")):
        yield Row(label, c.percent(percent), _part(percent, 100), series, 100)
    yield Row("Clock", c.mhz(s.gpu_clock_mhz), _part(s.gpu_clock_mhz, s.gpu_max_clock_mhz), "clock", s.gpu_max_clock_mhz,
              "of %s" % c.mhz(s.gpu_max_clock_mhz))
    if clocks:
        yield Row("Range", "%d-%d" % (min(clocks), max(clocks)), bar=False, note="%s time at each clock" % _states(s))
    yield Row("Power", c.watts(s.gpu_power_mw), _part(s.gpu_power_mw, s.gpu_power_limit_mw), "gpu_w", s.gpu_power_limit_mw,
              "cap %s" % c.watts(s.gpu_power_limit_mw) if s.gpu_power_limit_mw else "", "power", bool(s.gpu_power_limit_mw))
    yield Row("Heat", c.celsius(s.gpu_temperature_celsius), _part(s.gpu_temperature_celsius, 110), "gpu_c", 110,
              "hottest %s" % c.celsius(s.gpu_temperature_max_celsius), _heat_style(s.gpu_temperature_celsius))
    share = _part(s.memory_used_bytes, s.memory_total_bytes)
    yield Row("Memory", c.size(s.memory_used_bytes), share, "gpu_mem", s.memory_total_bytes,
              "%s of %s" % (c.percent(s.memory_utilization_percent), c.size(s.memory_total_bytes)), _load_style(share))
    yield Row("Headroom", c.size(s.memory_headroom_bytes), bar=False, note="alloc %s, wired limit %s" % (
        c.size(s.memory_allocated_bytes), c.wired_limit(s)))


def panel_ane(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    share = _part(s.ane_utilization_percent, 100)
    yield Row("Use", c.ane_use(s), share, "ane", 100, c.ane_method(s), _load_style(share))
    yield Row("Power", c.watts(s.ane_power_mw), None, "ane_w", None, "state %s" % c.show(s.ane_power_state, "%d"), "power", False)
    yield Row("Energy", c.joules(None if s.ane_energy_mj is None else s.ane_energy_mj / 1000), bar=False, note="since the driver began")
    yield Row("Traffic", c.bandwidth(s.memory_ane_read), note="read, write %s" % c.bandwidth(s.memory_ane_write), bar=False)


def panel_cpu(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    use, split = _part(s.cpu_utilization_percent, 100), m.beside.values
    yield Row("Use", c.percent(s.cpu_utilization_percent), use, "cpu", 100, "%s, %s" % (
        c.watts(s.cpu_power_mw), c.celsius(s.cpu_temperature_celsius)), _load_style(use))
    for n, cluster in enumerate(s.cpu_clusters or ()):
        share = _part(cluster.utilization_percent, 100)
        yield Row("%s x%s" % (_cluster_name(cluster), c.show(cluster.cores, "%d")), c.percent(cluster.utilization_percent), share,
                  "cluster%d" % n if n < 8 else None, 100, "%s, %s, of %s" % (
                      c.mhz(cluster.clock_mhz), c.watts(cluster.power_mw), c.mhz(cluster.max_clock_mhz)), _load_style(share))
    if split["load_1"] is not None:
        yield Row("Load", "%.2f" % split["load_1"], bar=False, note="%.2f %.2f, user %s, system %s" % (
            split["load_5"], split["load_15"], c.percent(split["cpu_user"]), c.percent(split["cpu_system"])))


def panel_power(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    whole = s.system_power_mw

    def row(label: str, value: float | None, series: str | None = None, note: str = "") -> Row:
        return Row(label, c.watts(value), _part(value, whole), series, None, note, "power")
    yield row("Machine", whole, "sys_w", _supply(s))._replace(bar=False)
    yield row("Package", s.package_power_mw, "pkg_w", "CPU + GPU + ANE")
    yield row("GPU", s.gpu_power_mw, "gpu_w", "SRAM %s" % c.watts(s.gpu_sram_power_mw))
    yield row("CPU", s.cpu_power_mw, "cpu_w")
    yield row("ANE", s.ane_power_mw, "ane_w")
    yield row("DRAM", s.memory_power_mw, "dram_w")


def panel_memory(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    ram, swap = s.system_memory, s.system_swap
    level, style = _pressure(s)
    total = ram.total_bytes if ram else None
    share = _part(ram.used_bytes, total) if ram else None
    yield Row("RAM", c.size(ram.used_bytes if ram else None), share, "ram", total,
              "%s of %s" % (c.ratio(share), c.size(total)), style)
    yield Row("Pressure", level, bar=False, style=style, note="available %s, free %s" % (
        c.size(ram.available_bytes if ram else None), c.size(ram.free_bytes if ram else None)))
    if ram is not None:
        for label, count, other, second in (("App", ram.app_bytes, "active", ram.active_bytes),
                                            ("Cached", ram.cached_bytes, "inactive", ram.inactive_bytes),
                                            ("Wired", ram.wired_bytes, "compressed", ram.compressed_bytes)):
            yield Row(label, c.size(count), _part(count, total), None, None, "%s %s" % (other, c.size(second)))
    most = swap.total_bytes or 1 if swap else None
    yield Row("Swap", c.size(swap.used_bytes if swap else None), _part(swap.used_bytes, most) if swap else None, "swap", most,
              "of %s" % c.size(swap.total_bytes if swap else None))


def panel_bandwidth(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    most = s.memory_max_bytes_per_s
    for label, value, series in (("Read", s.memory_read, "read"), ("Write", s.memory_write, "write")):
        share = _part(value.bytes_per_s if value else None, most)
        yield Row(label, c.bandwidth(value), share, series, most, "of %s" % c.speed(most) if label == "Read" else
                  "estimate" if s.memory_read is not None and s.memory_read.estimated else "", "traffic")
    known = [(agent, getattr(s, read), getattr(s, write)) for agent, read, write in c.AGENT_FIELDS]
    known = [row for row in known if row[1] is not None or row[2] is not None]
    for agent, read, write in known:
        yield Row(agent.upper() if len(agent) < 4 else agent.title(), c.bandwidth(read), _part(_rate(read, write), most),
                  AGENT_SERIES[agent], None, "write %s" % c.bandwidth(write))
    if not known:
        yield Row("Agents", c.DASH, bar=False)


def panel_heat(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    level, style = _thermal(s)
    t = s.gpu_throttle
    cltm, budget = (t.cltm_ratio, t.ppm_percent) if t else (None, None)
    yield Row("Pressure", level, bar=False, style=style, note="CPU %s" % c.celsius(s.cpu_temperature_celsius))
    yield Row("Throttled", c.ratio(cltm), cltm, "cltm", 1.0, "of the time", "warn" if cltm else "")
    yield Row("Budget", c.percent(budget), _part(budget, 100), None, None, "restarts %s" % c.show(s.gpu_recovery_count, "%d"),
              "warn" if budget is not None and budget < 100 else "")
    for n, fan in enumerate(s.fans or ()):
        yield Row("Fan %d" % n, "%d rpm" % fan.rpm, _part(fan.rpm, fan.max_rpm), "fan%d" % n if n < 4 else None, fan.max_rpm,
                  "%s-%s rpm" % (c.show(fan.min_rpm, "%d"), c.show(fan.max_rpm, "%d")))
    if not s.fans:
        yield Row("Fans", c.DASH if s.fans is None else "none", bar=False)


def panel_media(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    yield Row("Encode", c.bandwidth(s.encode_bandwidth), None, "encode", None, c.watts(s.encode_power_mw), "traffic", False)
    yield Row("Decode", c.bandwidth(s.decode_bandwidth), None, "decode", None, c.watts(s.decode_power_mw), "traffic", False)
    yield Row("ProRes", c.bandwidth(s.prores_bandwidth), bar=False)


def panel_io(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    v = m.beside.values
    if m.beside.reason:
        yield Row("", c.DASH, bar=False, note=m.beside.reason)
        return
    yield Row("Disk read", c.speed(v["disk_read"]), None, "disk", None, "write %s" % c.speed(v["disk_write"]), bar=False)
    yield Row("Disk used", c.size(v["disk_used"]), _part(v["disk_used"], v["disk_total"]), None, None, "of %s" % c.size(v["disk_total"]))
    yield Row("Net in", c.speed(v["net_in"]), None, "net", None, "out %s" % c.speed(v["net_out"]), bar=False)


DRAW: dict[str, tuple[str, Callable[[Model, ag.Snapshot], Iterator[Row]]]] = {
    "gpu": ("GPU", panel_gpu), "ane": ("Neural Engine", panel_ane), "cpu": ("CPU", panel_cpu), "power": ("Power", panel_power),
    "memory": ("Memory", panel_memory), "bandwidth": ("Traffic", panel_bandwidth), "heat": ("Heat", panel_heat),
    "media": ("Video", panel_media), "io": ("Disk, network", panel_io)}

# ---- drawing: everything below is text in, lines out; Textual and --once print the same lines


class Look(NamedTuple):
    """How to draw: what the keys change."""
    layout: str = "auto"
    span: int = 60
    hidden: frozenset[str] = frozenset()


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[:width - 1] + "…" if width > 0 else ""


def length(line: Iterable[tuple[str, str]]) -> int:
    return sum(len(text) for text, _ in line)


def fit(line: Line, width: int) -> Line:
    """The line at exactly this width."""
    out, left = [], width
    for text, style in line:
        if len(text) > left:
            text = cut(text, left)
        if text:
            out.append((text, style))
            left -= len(text)
    return out + [(" " * left, "")] if left else out


LABEL, VALUE = 10, 11


def trimmed(note: str, width: int) -> str:
    """A list with commas without the parts at its end that have no room."""
    while len(note) > width and ", " in note:
        note = note.rpartition(", ")[0]
    return cut(note, width)


class Columns(NamedTuple):
    """What stands in a panel beside label and value, the same in all panels of a width, so that they line up."""
    room: int
    bar: int
    wave: int
    note: int


def columns_of(width: int) -> Columns:
    room = width - LABEL - VALUE - 1
    note = min(28, room * 46 // 100) if room >= 28 else 0       # figures before graphs, graphs before bars
    graph = room - note - (2 if note else 0)
    bar = min(24, graph // 2 - 1) if graph >= 16 else 0
    return Columns(room, bar, graph - bar - (3 if bar else 2), note)


def draw_rows(title: str, rows: Iterable[Row], width: int, m: Model, span: int) -> list[Line]:
    """A panel: title line, then label, value, bar, history and note, as many of them as the width holds."""
    at = columns_of(width)
    return [rule([(title, "title")], width)] + [fit(_draw_row(row, at, m, span), width) for row in rows]


def rule(pieces: Line, width: int, end: str = "") -> Line:
    """A line that carries a title, and at its end the scale of what is below."""
    used = 3 + length(pieces) + (len(end) + 3 if end else 0)
    tail: Line = [(" " + "─" * max(0, width - used), "rule")]
    return [("─ ", "rule"), *pieces, *tail, *([(" " + end, "note"), (" ─", "rule")] if end and used < width else [])]


def _draw_row(row: Row, at: Columns, m: Model, span: int) -> Line:
    line = [(" %-*s" % (LABEL - 1, cut(row.label, LABEL - 1)), "label"),
            ("%*s" % (VALUE, cut(row.value, VALUE)), "dim" if row.value == c.DASH else row.style or "value")]
    if not row.bar and row.series is None:
        return line + [("  " + trimmed(row.note, at.room - 1), "note")]
    graph = at.bar + at.wave + (1 if at.bar else 0)
    bar = at.bar if row.bar and row.series else graph if row.bar else 0
    if bar:
        filled, empty = c.bar(row.share, bar)
        line += [("  ", ""), (filled, row.style or "bar"), (empty, "empty")]
    wave = graph - bar - (1 if bar else 0)
    if row.series is not None and wave > 3:
        line += [(" " if bar else "  ", ""), (wave_of(m, row.series, row.top, span, wave), row.style or "graph")]
    elif not bar:
        line += [(" " * (graph + 2), "")]
    return line + ([("  " + trimmed(row.note, at.note), "note")] if at.note else [])


def wave_of(m: Model, series: str, most: float | None, span: int, width: int) -> str:
    """The history of a figure in one line."""
    values = m.history.values(series, span, width)
    return c.spark(values, most or c.ceiling(values, FLOORS.get(series, 1.0)))


class Graph(NamedTuple):
    """A figure that has a graph of several lines above the panels."""
    title: str
    series: str
    value: Callable[[ag.Snapshot], str]
    most: Callable[[ag.Snapshot], float | None]
    scale: Callable[[Any], str]
    style: str


GRAPHS = (
    Graph("GPU use", "gpu", lambda s: c.percent(s.gpu_utilization_percent), lambda s: 100, c.percent, ""),
    Graph("GPU power", "gpu_w", lambda s: c.watts(s.gpu_power_mw), lambda s: s.gpu_power_limit_mw, c.watts, "power"),
    Graph("GPU memory", "gpu_mem", lambda s: c.size(s.memory_used_bytes), lambda s: s.memory_total_bytes, c.size, "graph"),
    Graph("CPU use", "cpu", lambda s: c.percent(s.cpu_utilization_percent), lambda s: 100, c.percent, ""),
    Graph("RAM", "ram", lambda s: c.size(s.system_memory.used_bytes if s.system_memory else None),
          lambda s: s.system_memory.total_bytes if s.system_memory else None, c.size, "graph"))


def graphs(m: Model, width: int, rows: int, look: Look) -> list[Line]:
    """The chief figures over time, side by side in `rows` lines; those that this Mac has."""
    s = m.snapshot
    if s is None or rows < 3 or "graph" in look.hidden:
        return []
    count = max(1, min(3, width // 60)) if width >= 120 else 2 if width >= 72 else 1
    each = (width - count + 1) // count
    known = [graph for graph in GRAPHS if graph.value(s) != c.DASH or m.history.has(graph.series, look.span)]
    columns = [_draw_graph(m, s, graph, each, rows, look) for graph in known[:count]]
    columns += [[[(" " * each, "")]] * rows] * (count - len(columns)) if columns else []
    return [fit([piece for n, column in enumerate(columns) for piece in ([(" ", "")] if n else []) + fit(column[y], each)], width)
            for y in range(rows if columns else 0)]


def _draw_graph(m: Model, s: ag.Snapshot, graph: Graph, width: int, rows: int, look: Look) -> list[Line]:
    values = m.history.values(graph.series, look.span, width)
    most = graph.most(s) or c.ceiling(values, FLOORS.get(graph.series, 1.0))
    head = rule([(graph.title, "title"), ("  " + graph.value(s), "value")], width, "%s  %s" % (
        dict(RANGES)[look.span], graph.scale(most)))
    lines = c.graph(values, most, rows - 1)
    return [head] + [[(line, graph.style or _load_style((len(lines) - n - 0.5) / len(lines)))] for n, line in enumerate(lines)]


def graph_rows(height: int, used: int) -> int:
    """Lines for the graphs where `used` of the screen's are taken: what is left over, with room for some processes."""
    rows = min(height // 4, height - used - 7)
    return rows if rows >= 4 else 0


def header(m: Model, width: int, paused: bool = False) -> Line:
    s = m.snapshot
    if s is None:
        return fit([(" reading ...", "dim")], width)
    kinds = c.cores_by_kind(s)
    cores = "+".join("%d%s" % (n, kind[0]) for kind, n in kinds.items() if kind)
    ram = s.system_memory.total_bytes if s.system_memory else None
    facts = [c.clean(s.system_chip_name or s.gpu_name or "Apple GPU"), "macOS " + c.clean(s.system_os_version or c.DASH),
             "CPU %s%s" % (sum(kinds.values()) or c.DASH, " (%s)" % cores if cores else ""),
             "GPU %s" % c.show(s.gpu_core_count, "%d"), "ANE %s" % c.show(m.facts.get("ane_cores"), "%d"),
             c.size(ram).replace(".0", "")]
    place = ("PAUSED " if paused else "") + ("● " + c.source_name(s) if c.is_recording(s) else time.strftime("%H:%M:%S"))
    left = " " + facts[0]
    line = [(left, "title")]
    for fact in facts[1:]:
        if length(line) + len(fact) + 3 + len(place) + 2 <= width:
            line += [("  " + fact, "")]
    gap = width - length(line) - len(place) - 1
    return fit(line + [(" " * max(1, gap), ""), (place, "warn" if c.is_recording(s) or paused else "dim")], width)


def alert_lines(m: Model, width: int, most: int) -> list[Line]:
    alerts = m.alerts()
    lines = [fit([(" ▲ %s" % alert.text, alert.style)], width) for alert in alerts[:most]]
    if len(alerts) > most > 0:
        more = " +%d" % (len(alerts) - most)
        lines[-1] = fit([(" ▲ " + cut(alerts[most - 1].text, width - 4 - len(more)) + more, alerts[most - 1].style)], width)
    return lines


def resolve(layout: str, width: int, height: int) -> str:
    """What auto means at this size."""
    if layout != "auto":
        return layout
    return "compact" if height < 34 or width < 60 else "classic" if width >= 120 else "stacked"


def board(m: Model, width: int, height: int, look: Look) -> list[Line]:
    """All panels at this width."""
    s = m.snapshot
    if s is None:
        return [fit([(" waiting for the first sample", "dim")], width)]
    layout = resolve(look.layout, width, height)
    if layout == "compact":
        return [fit(line, width) for line in compact(m, s, width, look)]
    names = [name for name in PANELS if name not in look.hidden]
    columns = 1 if layout == "stacked" else max(1, min(3, width // 60))
    gap = 1
    each = (width - gap * (columns - 1)) // columns
    panels = [draw_rows(DRAW[name][0], DRAW[name][1](m, s), each, m, look.span) for name in names]
    return _columns(panels, columns, each, width)


def _columns(panels: list[list[Line]], columns: int, each: int,
             width: int) -> list[Line]:
    """Panels side by side, in order, each into the column that is shortest."""
    stacks: list[list[Line]] = [[] for _ in range(columns)]
    for panel in panels:
        min(stacks, key=len).extend(panel)
    lines = []
    for n in range(max((len(stack) for stack in stacks), default=0)):
        line: Line = []
        for at, stack in enumerate(stacks):
            line += ([(" ", "")] if at else []) + (stack[n] if n < len(stack) else [(" " * each, "")])
        lines.append(fit(line, width))
    return lines


class Short(NamedTuple):
    """One line of the compact layout: a name, the history before its figures, the figures."""
    name: str
    series: str
    top: float | None
    pieces: Line


def compact(m: Model, s: ag.Snapshot, width: int, look: Look) -> Iterator[Line]:
    """One line per panel, two for the GPU."""
    wave = 12 if width >= 72 else 6 if width >= 50 else 0
    for panel, shorts in SHORT:
        for short in [] if panel in look.hidden else shorts(m, s):
            line = [(" %-6s" % short.name, "label"),
                    (wave_of(m, short.series, short.top, look.span, wave) + " " if wave else "", "graph")]
            for n, (text, style) in enumerate(short.pieces):
                if n and length(line) + 1 + len(text) > width:
                    break               # whole figures only
                line += [(" ", ""), (text, "dim" if text.strip() == c.DASH else style)]
            yield line


def short_gpu(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    use, mem = _part(s.gpu_utilization_percent, 100), _part(s.memory_used_bytes, s.memory_total_bytes)
    engines = tuple(c.show(v, "%d") for v in (s.gpu_device_percent, s.gpu_renderer_percent, s.gpu_tiler_percent))
    yield Short("GPU", "gpu", 100, [
        ("%5s" % c.percent(s.gpu_utilization_percent), _load_style(use)),
        ("%s/%s" % (c.show(s.gpu_clock_mhz, "%d"), c.mhz(s.gpu_max_clock_mhz)), ""), (c.watts(s.gpu_power_mw), "power"),
        (c.celsius(s.gpu_temperature_celsius), _heat_style(s.gpu_temperature_celsius)),
        ("D/R/T %s/%s/%s" % engines, "note"), ("scaled %s" % c.ratio(s.gpu_scaled_ratio), "note")])
    yield Short("GMEM", "gpu_mem", s.memory_total_bytes, [
        ("%5s" % c.percent(s.memory_utilization_percent), _load_style(mem)),
        (c.pair(s.memory_used_bytes, s.memory_total_bytes), ""), ("alloc %s" % c.size(s.memory_allocated_bytes), "note"),
        ("room %s" % c.size(s.memory_headroom_bytes), "note")])


def short_ane(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    yield Short("ANE", "ane", 100, [
        ("%5s" % c.ane_use(s), _load_style(_part(s.ane_utilization_percent, 100))), (c.watts(s.ane_power_mw), "power"),
        (c.ane_method(s), "note"),
        ("r %s w %s" % (c.bandwidth(s.memory_ane_read), c.bandwidth(s.memory_ane_write)), "note")])


def short_cpu(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    clusters = [("%s %s" % (_cluster_name(k), c.percent(k.utilization_percent)), "note") for k in s.cpu_clusters or ()]
    yield Short("CPU", "cpu", 100, [
        ("%5s" % c.percent(s.cpu_utilization_percent), _load_style(_part(s.cpu_utilization_percent, 100))),
        (c.watts(s.cpu_power_mw), "power"), (c.celsius(s.cpu_temperature_celsius), _heat_style(s.cpu_temperature_celsius)),
        *clusters])


def short_power(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    yield Short("POWER", "sys_w", None, [
        ("%7s" % c.watts(s.system_power_mw), "power"), ("package %s" % c.watts(s.package_power_mw), ""),
        ("DRAM %s" % c.watts(s.memory_power_mw), "note"), (_supply(s), "note")])


def short_traffic(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    yield Short("MEM", "read", s.memory_max_bytes_per_s, [
        ("r " + c.bandwidth(s.memory_read), "traffic"), ("w " + c.bandwidth(s.memory_write), "traffic"),
        ("GPU r %s w %s" % (c.bandwidth(s.memory_gpu_read), c.bandwidth(s.memory_gpu_write)), "note")])


def short_memory(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    ram, swap = s.system_memory, s.system_swap
    level, style = _pressure(s)
    yield Short("RAM", "ram", ram.total_bytes if ram else None, [
        (c.pair(ram.used_bytes, ram.total_bytes) if ram else c.DASH, ""), (level, style),
        ("wired %s" % c.size(ram.wired_bytes if ram else None), "note"),
        ("swap %s" % (c.pair(swap.used_bytes, swap.total_bytes) if swap else c.DASH), "note")])


def short_heat(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    t, fans = s.gpu_throttle, "/".join("%d" % fan.rpm for fan in s.fans or ())
    yield Short("HEAT", "gpu_c", 110, [
        _thermal(s), ("throttled %s" % c.ratio(t.cltm_ratio if t else None), "warn" if t and t.cltm_ratio else "note"),
        ("budget %s" % c.percent(t.ppm_percent if t else None), "note"),
        ("fans %s" % (fans + " rpm" if fans else c.DASH if s.fans is None else "none"), "note")])


def short_io(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    v = m.beside.values
    if not m.beside.reason:
        yield Short("I/O", "disk", None, [("disk r %s w %s" % (c.speed(v["disk_read"]), c.speed(v["disk_write"])), ""),
                                          ("net in %s out %s" % (c.speed(v["net_in"]), c.speed(v["net_out"])), "note")])


SHORT: tuple[tuple[str, Callable[[Model, ag.Snapshot], Iterator[Short]]], ...] = (
    ("gpu", short_gpu), ("ane", short_ane), ("cpu", short_cpu), ("power", short_power), ("bandwidth", short_traffic),
    ("memory", short_memory), ("heat", short_heat), ("io", short_io))


# ---- processes

COLUMNS = (("pid", "PID", 8), ("user", "USER", 10), ("name", "PROCESS", 0), ("gpu", "GPU", 8), ("bar", "", 0),
           ("time", "GPU TIME", 10), ("memory", "MEMORY", 10), ("path", "PATH", 0))
LEFT = ("user", "name", "bar", "path")       # the others stand at the right of their columns


def ordered(rows: Iterable[ag.GpuProcess], sort: str, backwards: bool, wanted: str) -> list[ag.GpuProcess]:
    """Filtered and sorted; what is not known comes last either way."""
    keys: dict[str, Callable[[ag.GpuProcess], Any]] = {
        "gpu": lambda p: p.gpu_percent, "time": lambda p: p.gpu_time_ns, "memory": lambda p: p.footprint_bytes,
        "pid": lambda p: p.pid, "name": lambda p: p.name.lower()}
    rows = [p for p in rows if not wanted or wanted.lower() in p.name.lower() or wanted == str(p.pid)]
    known = [p for p in rows if keys[sort](p) is not None]
    falls = sort in ("gpu", "time", "memory")
    known.sort(key=lambda p: (keys[sort](p), p.gpu_time_ns, -p.pid), reverse=falls != backwards)
    return known + [p for p in rows if keys[sort](p) is None]


@functools.lru_cache(maxsize=8)
def columns(width: int) -> tuple[tuple[str, str, int], ...]:
    """Those that fit, with their widths: the narrower, the fewer; what is over goes to the name, a bar and the path."""
    gone = {"time"} if width < 56 else set()
    gone |= {"pid", "memory"} if width < 40 else set()
    gone |= {"user", "bar"} if width < 90 else set()
    gone |= {"path"} if width < 130 else set()
    kept = [row for row in COLUMNS if row[0] not in gone]
    room = max(6, width - sum(size for _, _, size in kept) - sum(row[0] in LEFT for row in kept))
    wide = {"name": room, "bar": 0, "path": 0}
    if "bar" not in gone:
        wide["name"] = min(room // 2, 28)
        wide["bar"] = room - wide["name"] if "path" in gone else min(24, (room - wide["name"]) // 2)
        wide["path"] = room - wide["name"] - wide["bar"]
    return tuple((key, title, size or wide[key]) for key, title, size in kept)


def process_head(width: int, sort: str, backwards: bool) -> Line:
    line: Line = []
    for key, title, space in columns(width):
        mark = ("▲" if (key in ("pid", "name")) != backwards else "▼") if key == sort else ""
        text = mark + title
        line.append((" " + text.ljust(space) if key in LEFT else text.rjust(space), "head on" if key == sort else "head"))
    return fit(line, width)


def process_line(m: Model, p: ag.GpuProcess, width: int, chosen: bool) -> Line:
    from rich.cells import set_cell_size
    style = "chosen" if chosen else "self" if p.is_self else ""
    share = None if p.gpu_percent is None else p.gpu_percent / 100
    line, wide = [], False
    for key, _, space in columns(width):
        if key == "bar":
            filled, empty = c.bar(share, space)
            line += [(" " + filled, style or _load_style(share)), (" " * len(empty), style)]
        elif key in LEFT:
            text = c.clean(p.name if key == "name" else m.who(p.pid)[key == "path"])
            cell = set_cell_size(text, space)
            wide = wide or len(cell) != space       # Chinese names are fewer characters than cells
            line.append((" " + cell, style or ("" if key == "name" else "note")))
        elif key == "gpu":
            line.append(("%*s" % (space, c.show(p.gpu_percent, "%.1f %%")), style or _load_style(share)))
        elif key == "memory":
            line.append(("%*s" % (space, c.size(p.footprint_bytes)), style or ("dim" if p.footprint_bytes is None else "")))
        else:
            line.append(("%*s" % (space, p.pid if key == "pid" else c.clock_time(p.gpu_time_ns / 1e9)), style or (
                "note" if key == "pid" else "")))
    return line if wide else fit(line, width)


def detail(m: Model, p: ag.GpuProcess) -> str:
    """What is known of one process beside its line."""
    parts = ["%d %s" % (p.pid, c.clean(p.name))]
    info = ag.Try(ag.ProcessGetInfo, m.device, p.pid)
    if info.value is not None:
        parts.append("user %s, parent %d" % (m.who(p.pid)[0], info.value.parent_pid))
    size = ag.Try(ag.ProcessGetFootprint, m.device, p.pid)
    if size.value is not None:
        parts.append("memory %s, peak %s" % (c.size(size.value.now_bytes), c.size(size.value.peak_bytes)))
    else:
        parts.append("memory - (%s)" % ("another user's" if size.reason == ag.REASON_PERMISSION else size.reason))
    cpu = ag.Try(ag.ProcessGetCpuTime, m.device, p.pid)
    if cpu.value is not None:
        parts.append("CPU time " + c.clock_time(cpu.value))
    energy = ag.Try(ag.ProcessGetEnergy, m.device, p.pid)
    if energy.value is not None:
        parts.append("CPU energy " + c.joules(energy.value / 1000))
    if info.value is not None and info.value.path:
        parts.append(c.clean(info.value.path))
    return "  ".join(parts)


def frame(m: Model, width: int, height: int, look: Look, sort: str = "gpu", tall: int = 0) -> list[Line]:
    """Everything as one text, for --once; the graphs `tall` lines high."""
    lines = [header(m, width)] + alert_lines(m, width, 4) + graphs(m, width, tall, look) + board(m, width, height, look)
    rows = ordered((m.snapshot.processes if m.snapshot else None) or (), sort, False, "")
    lines.append(process_head(width, sort, False))
    return lines + [process_line(m, p, width, False) for p in rows]


# ---- colours: names above, styles here

PLAIN = {"": "", "rule": "dim", "title": "bold", "label": "dim", "value": "", "dim": "dim", "note": "dim", "good": "green",
         "warn": "yellow", "bad": "bold red", "bar": "cyan", "empty": "dim", "graph": "cyan", "power": "magenta",
         "traffic": "blue", "head": "bold", "head on": "bold reverse", "chosen": "reverse", "self": "bold"}


def palette(app: Any) -> dict[str, Any]:
    """Styles of the names above in the app's theme."""
    from rich.style import Style
    from textual.color import Color
    theme, v = app.current_theme, app.theme_variables
    if "ansi" in theme.name or "ansi" in v["foreground"]:
        return {name: Style.parse(style or "none") for name, style in PLAIN.items()}
    back, fore = Color.parse(v["background"]), Color.parse(v["foreground"])

    def mix(name: str, share: float = 0.0) -> Color:
        return Color.parse(v[name]).blend(back, share, 1.0)

    def of(color: Color, **more: Any) -> Style:
        return Style(color=color.rich_color, bgcolor=back.rich_color, **more)
    light = back.brightness > 0.5
    muted, faint = fore.blend(back, 0.35, 1.0), fore.blend(back, 0.75, 1.0)
    inks = {name: mix(name).darken(0.16) if light else mix(name) for name in ("success", "warning", "error", "primary",
                                                                             "secondary", "accent")}
    violet = inks["primary"].blend(inks["error"], 0.5, 1.0)
    violet = violet.darken(0.05) if light else violet.lighten(0.25)
    chosen = Style(color=inks["primary"].get_contrast_text(1.0).rich_color, bgcolor=inks["primary"].rich_color)
    return {"": of(fore), "rule": of(faint), "title": of(inks["primary"], bold=True), "label": of(muted), "value": of(fore),
            "dim": of(fore.blend(back, 0.5, 1.0)), "note": of(muted), "good": of(inks["success"]), "warn": of(inks["warning"]),
            "bad": of(inks["error"], bold=True), "bar": of(inks["primary"]), "empty": of(fore.blend(back, 0.85, 1.0)),
            "graph": of(inks["primary"]), "power": of(violet), "traffic": of(inks["primary"]),
            "head": of(muted, bold=True), "head on": of(fore, bold=True), "chosen": chosen, "self": of(fore, bold=True)}


HELP = (     # (key or word, meaning)
    ("q", "quit"), ("?", "this page"), ("p, space", "pause"), ("r", "what is missing, and why"),
    ("- +", "shorter, longer interval"), ("w", "range of the histories"),
    ("m", "layout: stacked, classic, compact"), ("t", "theme"),
    ("0 ... 9", "hide or show a panel: " + ", ".join(HIDEABLE)),
    ("arrows, page", "choose a process; also home, end, click, the mouse wheel"),
    ("s, o", "sort by the next column (or click its title), other way round"),
    ("/", "filter processes by name or pid; escape ends it"),
    ("enter", "more about the chosen process, on a line of its own"),
    ("[ ]", "scroll the panels"), ("x", "save the screen as an SVG picture"), ("", ""),
    ("-", "not known, never 0: r says why"), ("~", "an estimate, not a counter"),
    (">", "at least: the driver's highest bucket is full"),
    ("Use", "share of the time the GPU was active, what powermetrics prints"),
    ("scaled", "that, weighted by clock / top clock: 60 % at half the clock is 30 %"),
    ("Driver", "the GPU driver's own figure at this moment, with renderer and tiler"),
    ("Clock", "mean while active, as requested"), ("Range", "lowest and top clock, and how long it stood at each step"),
    ("Headroom", "what can still be allocated: the smaller of free RAM and the limit less what is in use"),
    ("GB", "of memory: 2^30 bytes, as in Activity Monitor; of traffic: 10^9"),
    ("Machine", "what the SMC measures for the whole Mac; Package is CPU + GPU + ANE, all three or none"),
    ("self", "what this monitor itself costs, in percent of one core"))


def paragraphs(rows: Iterable[tuple[str, str]], width: int, indent: int) -> str:
    """A word and its meaning per paragraph, the meaning hanging."""
    return "\n".join(textwrap.fill(text, width, initial_indent="%-*s " % (indent - 1, word), subsequent_indent=" " * indent)
                     if text else "" for word, text in rows)


def textual_app() -> Any:
    """The classes that need Textual, made when it is there."""
    import asyncio
    from collections import deque

    from rich.segment import Segment
    from textual.app import App, ComposeResult
    from textual.binding import Binding
    from textual.containers import Horizontal, VerticalScroll
    from textual.geometry import Region, Size
    from textual.screen import ModalScreen
    from textual.scroll_view import ScrollView
    from textual.strip import Strip
    from textual.widgets import Footer, Input, Static

    def strip(app: Any, line: Line, width: int) -> Strip:
        styles = app.styles_by_name
        segments = [Segment(text, styles[style]) for text, style in line]
        return Strip(segments, length(line)).adjust_cell_length(width, styles[""])

    class LineBox(ScrollView, can_focus=False):
        """Lines of (text, style); only those that changed are painted again."""

        ALLOW_SELECT = False

        def __init__(self, **named: Any) -> None:
            super().__init__(**named)
            self.lines: list[Line] = []

        def show(self, lines: list[Line], everything: bool = False) -> None:
            before, self.lines = self.lines, lines
            width = max((length(line) for line in lines), default=0)
            if len(before) != len(lines) or everything or self.virtual_size.width != width:
                self.virtual_size = Size(width, len(lines))
                self.refresh()
                return
            for y, line in enumerate(lines):
                if line != before[y]:
                    self.refresh(Region(0, y - self.scroll_offset.y, self.size.width, 1))

        def render_line(self, y: int) -> Strip:
            at = y + self.scroll_offset.y
            if at >= len(self.lines):
                return Strip.blank(self.size.width, self.app.styles_by_name[""])
            return strip(self.app, self.lines[at], self.size.width)

    class Processes(ScrollView, can_focus=True):
        """The process table: its title line stays, the rows scroll."""

        ALLOW_SELECT = False
        BINDINGS = [Binding("up", "cursor(-1)", show=False), Binding("down", "cursor(1)", show=False),
                    Binding("pageup", "page(-1)", show=False), Binding("pagedown", "page(1)", show=False),
                    Binding("home", "cursor(-100000)", show=False), Binding("end", "cursor(100000)", show=False)]

        def __init__(self, **named: Any) -> None:
            super().__init__(**named)
            self.rows: list[ag.GpuProcess] = []
            self.note = ""
            self.chosen: int | None = None
            self.sort, self.backwards = "gpu", False
            self._drawn: list[Any] = []

        def show(self, rows: list[ag.GpuProcess], note: str = "", everything: bool = False) -> None:
            before = len(self.rows)
            self.rows, self.note = rows, note
            if before != len(rows):
                self.virtual_size = Size(0, len(rows) + 1)
            drawn = [self._line(y) for y in range(self.size.height)]
            for y, line in enumerate(drawn):
                if everything or y >= len(self._drawn) or line != self._drawn[y]:
                    self.refresh(Region(0, y, self.size.width, 1))
            self._drawn = drawn

        @property
        def at(self) -> int | None:
            for n, row in enumerate(self.rows):
                if row.pid == self.chosen:
                    return n
            return None

        def _line(self, y: int) -> Line:
            width = self.size.width - 1
            if y == 0:
                return process_head(width, self.sort, self.backwards)
            n = y - 1 + self.scroll_offset.y
            if n < len(self.rows):
                return process_line(self.app.model, self.rows[n], width, self.rows[n].pid == self.chosen)
            return [(" " + self.note, "dim")] if n == 0 and self.note else []

        def render_line(self, y: int) -> Strip:
            line = self._line(y)
            styles = self.app.styles_by_name
            known = self.size.width - 1 if len(line) > 1 else length(line)      # so process_line promises; not measured again
            return Strip([Segment(text, styles[style]) for text, style in line], known).adjust_cell_length(
                self.size.width, styles[""])

        def action_cursor(self, step: int) -> None:
            if self.rows:
                at = self.at
                self.choose(0 if at is None else min(len(self.rows) - 1, max(0, at + step)))

        def action_page(self, way: int) -> None:
            self.action_cursor(way * max(1, self.size.height - 2))

        def choose(self, n: int) -> None:
            self.chosen = self.rows[n].pid
            page = max(1, self.size.height - 1)
            top = self.scroll_offset.y
            if n < top or n >= top + page:
                self.scroll_to(y=n if n < top else n - page + 1, animate=False)
            self.app.redraw()

        def on_click(self, event: Any) -> None:
            if event.y == 0:
                left = 0
                for key, _, space in columns(self.size.width - 1):
                    left += space + (key in LEFT)
                    if event.x < left:
                        return self.app.sort_by("gpu" if key == "bar" else key)
            elif event.y - 1 + self.scroll_offset.y < len(self.rows):
                self.choose(event.y - 1 + self.scroll_offset.y)

    class Page(ModalScreen):
        """A page of text over the monitor."""

        BINDINGS = [Binding(keys, "dismiss", show=False) for keys in ("escape", "q", "question_mark", "f1", "r", "enter")]
        DEFAULT_CSS = """
        Page { align: center middle; }
        Page > VerticalScroll { width: 100; max-width: 96%; height: auto; max-height: 90%; background: $surface;
                                border: round $primary; padding: 0 1; }
        """

        def __init__(self, title: str, text: str) -> None:
            super().__init__()
            self._title, self._text = title, text

        def compose(self) -> ComposeResult:
            with VerticalScroll() as box:
                box.border_title = self._title
                box.border_subtitle = "escape closes"
                yield Static(self._text, markup=False)

    class Top(App):
        """The monitor. Frames come from the functions above; this holds the keys and the clock."""

        TITLE = "top"
        ENABLE_COMMAND_PALETTE = False
        CSS = """
        Screen { layout: vertical; overflow: hidden; }
        #header, #alerts, #detail { height: 1; overflow: hidden; }
        #alerts, #detail { display: none; }
        #board { height: 1; overflow-x: hidden; scrollbar-size: 0 1; }
        #processes { height: 1fr; min-height: 2; overflow-x: hidden; scrollbar-size: 0 1; }
        #filter { display: none; height: 1; border: none; padding: 0 1; }
        #bottom { height: 1; background: $footer-background; }
        #bottom Footer { dock: none; width: 1fr; }
        #bottom FooterKey { padding: 0 1 0 0; }
        #status { width: auto; height: 1; padding: 0 1; color: $footer-description-foreground; background: $footer-background; }
        """
        BINDINGS = [
            Binding("q", "quit", "quit"), Binding("question_mark", "help", "help", key_display="?"),
            Binding("p", "pause", "pause"), Binding("m", "layout", "layout"), Binding("s", "sort", "sort"),
            Binding("slash", "filter", "filter", key_display="/"), Binding("r", "reasons", "missing"),
            Binding("w", "range", "range"), Binding("minus", "interval(-1)", "faster", key_display="-"),
            Binding("plus", "interval(1)", "slower", key_display="+"), Binding("t", "theme", "theme"),
            Binding("ctrl+c", "quit", show=False, priority=True), Binding("f1", "help", show=False), Binding("space", "pause", show=False), Binding("o", "other", show=False),
            Binding("equals_sign", "interval(1)", show=False), Binding("enter", "detail", show=False),
            Binding("left_square_bracket", "board(-3)", show=False), Binding("right_square_bracket", "board(3)", show=False),
            Binding("x", "picture", show=False), Binding("escape", "escape", show=False)] + [
            Binding(str(n), "panel(%d)" % n, show=False) for n in range(len(HIDEABLE))]

        def __init__(self, device: ag.Device, interval: float = 1.0, look: Look | None = None, theme: str = THEMES[0],
                     export: Any = None, parts: Sequence[str] = ag.PARTS, clocked: bool = True) -> None:
            super().__init__()
            self.model, self.look, self.interval, self.parts = Model(device), look or Look(), interval, tuple(parts)
            self.model.interval_hint = interval
            self.export, self.clocked = export, clocked
            self.paused = self.detailed = False
            self.wanted = ""
            self.samples = 0
            self.cost: float | None = None
            self._spent: deque[tuple[float, float]] = deque(maxlen=12)
            self._wake: Any = None
            self._alive = True
            self.styles_by_name: dict[str, Any] = {}
            self._first_theme = theme

        # -- screen

        def compose(self) -> ComposeResult:
            yield LineBox(id="header")
            yield LineBox(id="alerts")
            yield LineBox(id="board")
            yield Processes(id="processes")
            yield LineBox(id="detail")
            yield Input(placeholder="filter by name or pid", id="filter")
            with Horizontal(id="bottom"):
                footer = Footer(show_command_palette=False)
                footer.set_reactive(Footer.compact, True) if hasattr(Footer, "compact") else None    # since Textual 1.1
                yield footer
                yield Static("", id="status", markup=False)

        def on_mount(self) -> None:
            self._wake = asyncio.Event()
            self.board_box = self.query_one("#board", LineBox)
            self.table = self.query_one(Processes)
            self.head_box, self.alert_box = self.query_one("#header", LineBox), self.query_one("#alerts", LineBox)
            self.detail_box, self.status = self.query_one("#detail", LineBox), self.query_one("#status", Static)
            self._status = ""
            self.theme = self._first_theme if self._first_theme in self.available_themes else THEMES[0]
            self.styles_by_name = palette(self)
            self.theme_changed_signal.subscribe(self, self._recolour)
            self.table.focus()
            if self.clocked:
                self.run_worker(self._clock(), exclusive=True, group="clock")

        def _recolour(self, theme: Any) -> None:
            self.styles_by_name = palette(self)
            self.redraw(True)

        def on_resize(self) -> None:
            self.call_after_refresh(self.redraw, True)

        def redraw(self, everything: bool = False) -> None:
            """Draw what is known now; only lines that changed reach the terminal."""
            if not self.styles_by_name or not self._alive:
                return
            m, width, height = self.model, self.size.width, self.size.height
            if everything:
                for box in (self.head_box, self.alert_box, self.board_box, self.detail_box):
                    box.refresh()
            self.head_box.show([header(m, width, self.paused)], everything)
            alerts = alert_lines(m, width, 1 if height < 30 else 3)
            self._place(self.alert_box, len(alerts))
            self.alert_box.show(alerts, everything)
            lines = board(m, width, height, self.look)
            most = max(1, height - len(alerts) - 2 - (6 if height < 34 else 8) - self.detailed)
            if len(lines) > most:
                lines = board(m, width - 1, height, self.look)
            taken = 2 + len(alerts) + self.detailed + len(lines)
            lines = graphs(m, width, graph_rows(height, taken), self.look) + lines
            most = max(most, min(len(lines), height - len(alerts) - 8 - self.detailed))
            self._place(self.board_box, min(len(lines), most))
            self.board_box.show(lines, everything)
            self._show_processes(everything)
            self._show_detail(everything)
            self._show_status()

        def _place(self, box: Any, height: int) -> None:
            if box.display != (height > 0):
                box.display = height > 0
            if height and (box.styles.height is None or box.styles.height.value != height):
                box.styles.height = height

        def _show_processes(self, everything: bool) -> None:
            s, note = self.model.snapshot, ""
            known = () if s is None else s.processes or ()
            rows = ordered(known, self.table.sort, self.table.backwards, self.wanted)
            if s is not None and s.processes is None:
                note = c.DASH + " " + c.why(s, "processes")
            elif s is not None and not rows:
                note = "no process matches %r" % self.wanted if self.wanted else "no process uses the GPU"
            self.table.show(rows, note, everything)

        def _show_detail(self, everything: bool) -> None:
            at = self.table.at
            self._place(self.detail_box, 1 if self.detailed and at is not None else 0)
            if self.detailed and at is not None:
                line = [(" " + detail(self.model, self.table.rows[at]), "note")]
                self.detail_box.show([fit(line, self.size.width)], everything)

        def _show_status(self) -> None:
            text = "%s  %s  self %s" % (c.duration(self.interval), dict(RANGES)[self.look.span],
                                        c.DASH if self.cost is None else "%.1f %%" % self.cost)
            if self.size.width < 100:
                text = "%s self %s" % (c.duration(self.interval), c.DASH if self.cost is None else "%.1f %%" % self.cost)
            if self.wanted:
                text = "/%s  %s" % (cut(c.clean(self.wanted), 12), text)
            if text != self._status:
                self._status = text
                self.status.update(text)

        # -- clock

        async def _clock(self) -> None:
            due = time.monotonic()
            while self._alive:
                if not self.paused:
                    await self.sample()
                # The second look comes early: rates need two.
                due = max(due + (min(self.interval, 0.3) if self.samples == 1 else self.interval), time.monotonic() + 0.02)
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), due - time.monotonic())
                    due = time.monotonic()
                except asyncio.TimeoutError:
                    pass

        async def sample(self) -> None:
            """One look and the frame it gives. The look is taken beside the screen's loop: a first one may take seconds."""
            try:
                snapshot = await c.in_thread(ag.DeviceGetSnapshot, self.model.device, self.parts, 0.0)
            except ag.AppleGPUError as error:
                self.model.ended = c.clean(error)
                if error.reason == ag.REASON_RECORDING:
                    self.paused = True
                self.redraw()
                return
            self.model.ended = ""
            self.model.take(snapshot)
            self.samples += 1
            if self.export is not None:
                try:
                    self.export.write(self.model.row())
                except OSError as error:
                    self.export = None
                    self.notify("export ended: %s" % c.sentence(error), severity="error")
            self._measure()
            self.redraw()

        def _measure(self) -> None:
            now = time.monotonic(), time.process_time()
            self._spent.append(now)
            then = self._spent[0]
            if now[0] - then[0] > 0.9 and self.samples > 3:
                self.cost = 100 * (now[1] - then[1]) / (now[0] - then[0])

        # -- keys

        def action_help(self) -> None:
            self.push_screen(Page("keys", paragraphs(HELP, self._page_width(), 14)))

        def _page_width(self) -> int:
            return max(30, min(96, int(self.size.width * 0.96)) - 6)

        def action_reasons(self) -> None:
            s = self.model.snapshot
            rows = c.missing(s) if s is not None else []
            if self.model.beside.reason:
                rows.append(("disk, network, load", "", self.model.beside.reason))
            width = self._page_width()
            found = paragraphs([(field, text) for field, _, text in rows], width, 28 if width > 60 else 2)
            lines = [found or "nothing is missing"]
            estimated = s.estimated if s is not None else ()
            if estimated:
                lines += ["", textwrap.fill("estimates (~): " + ", ".join(sorted(set(estimated))), width)]
            self.push_screen(Page("not known, and why", "\n".join(lines)))

        def action_pause(self) -> None:
            self.paused = not self.paused
            self._wake.set()
            self.redraw()

        def action_interval(self, step: int) -> None:
            near = min(range(len(INTERVALS)), key=lambda n: abs(INTERVALS[n] - self.interval))
            self.interval = INTERVALS[min(len(INTERVALS) - 1, max(0, near + step))]
            self.model.interval_hint = self.interval
            self._wake.set()
            self.redraw()

        def action_layout(self) -> None:
            names = [name for name in LAYOUTS if name != "auto"]
            now = resolve(self.look.layout, self.size.width, self.size.height)
            self.look = self.look._replace(layout=names[(names.index(now) + 1) % len(names)])
            self.redraw(True)

        def action_theme(self) -> None:
            known = [name for name in THEMES if name in self.available_themes]
            self.theme = known[(known.index(self.theme) + 1) % len(known) if self.theme in known else 0]

        def action_range(self) -> None:
            spans = [span for span, _ in RANGES]
            self.look = self.look._replace(span=spans[(spans.index(self.look.span) + 1) % len(spans)])
            self.redraw()

        def action_panel(self, n: int) -> None:
            self.look = self.look._replace(hidden=self.look.hidden ^ {HIDEABLE[n]})
            self.redraw(True)

        def sort_by(self, key: str) -> None:
            if key not in SORTS:
                return
            self.table.backwards = not self.table.backwards if key == self.table.sort else False
            self.table.sort = key
            self.redraw()

        def action_sort(self) -> None:
            self.table.sort, self.table.backwards = SORTS[(SORTS.index(self.table.sort) + 1) % len(SORTS)], False
            self.redraw()

        def action_other(self) -> None:
            self.table.backwards = not self.table.backwards
            self.redraw()

        def action_detail(self) -> None:
            self.detailed = not self.detailed
            if self.table.at is None and self.table.rows:
                self.table.chosen = self.table.rows[0].pid
            self.redraw()

        def action_board(self, step: int) -> None:
            self.board_box.scroll_relative(y=step, animate=False)

        def action_filter(self) -> None:
            box = self.query_one("#filter", Input)
            box.display = True
            box.focus()

        def on_input_changed(self, event: Any) -> None:
            self.wanted = event.value
            self.redraw()

        def on_input_submitted(self, event: Any) -> None:
            event.input.display = False
            self.table.focus()

        def action_escape(self) -> None:
            box = self.query_one("#filter", Input)
            box.value, box.display = "", False
            self.table.focus()

        def action_picture(self) -> None:
            try:
                path = self.save_screenshot(time.strftime("top-%Y%m%d-%H%M%S.svg"), ".")
                c.local_fonts(path)
                self.notify("saved " + os.path.basename(path))
            except OSError as error:
                self.notify("not saved: " + c.sentence(error), severity="error")

        async def action_quit(self) -> None:
            self._alive = False
            self.exit()

    return Top


# ---- ways to run

def _once(device: ag.Device, args: argparse.Namespace, look: Look, export: c.RowWriter | None) -> int:
    """One frame as text, as wide as the terminal; as the interactive frame where rates have settled."""
    from rich.console import Console
    from rich.text import Text
    m = Model(device)
    for number in range(args.samples):
        if number and args.speed:
            time.sleep(args.interval)
        try:
            m.take(ag.DeviceGetSnapshot(device, timeout=0) if number else c.settled(device))
        except ag.AppleGPUError as error:
            if error.reason != ag.REASON_RECORDING or not number:
                raise
            m.ended = c.clean(error)
            break
        if export is not None:
            export.write(m.row())
    size = os.get_terminal_size(sys.stdout.fileno()) if sys.stdout.isatty() else os.terminal_size((100, 50))
    width = int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdigit() else size.columns
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    for line in frame(m, width, 200 if look.layout == "auto" else size.lines, look, args.sort, 7 if args.samples > 1 else 0):
        text = Text(no_wrap=True, overflow="ignore", end="")
        for piece, style in line:
            text.append(piece, PLAIN[style] or None)
        text.rstrip()
        console.print(text)
    return 0


def _picture(make: Callable[[], Any], path: str, size: tuple[int, int], samples: int) -> int:
    """The screen after some samples as an SVG, without a terminal."""
    import asyncio

    async def work() -> None:
        app = make()        # here: before Python 3.10 a queue belongs to the loop that it was made in
        async with app.run_test(size=size) as pilot:
            for _ in range(samples):
                await app.sample()
                await pilot.pause()
            app.detailed = False
            app.cost = None
            app.redraw(True)
            await pilot.pause()
            c.local_fonts(app.save_screenshot(os.path.basename(path), os.path.dirname(path) or "."))
    asyncio.run(work())
    return 0


def _size(text: str) -> tuple[int, int]:
    wide, _, high = text.partition("x")
    if not wide.isdigit() or not high.isdigit() or not 20 <= int(wide) <= 1000 or not 5 <= int(high) <= 1000:
        raise argparse.ArgumentTypeError("%r is not a size such as 120x40, from 20x5 to 1000x1000" % text)
    return int(wide), int(high)


def _panels(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if set(names) - set(HIDEABLE):
        raise argparse.ArgumentTypeError("panels are %s" % ", ".join(HIDEABLE))
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="top.py", description="A live monitor for Apple GPUs: no sudo, nothing guessed.",
                                     epilog="Keys while it runs: ? shows them. NO_COLOR is honoured.")
    parser.add_argument("-i", "--interval", type=c.interval, default=1.0, metavar="TIME",
                        help="refresh every TIME: 500ms, 0.5s, 2m, or 500 (a bare number from 100 is milliseconds, below it "
                             "seconds); default 1s")
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="default: what fits the terminal")
    parser.add_argument("--theme", "--color", default=THEMES[0], metavar="NAME", help="%s, or 0 to %d" % (
        ", ".join(THEMES), len(THEMES) - 1))
    parser.add_argument("--range", dest="span", type=c.seconds, default=60, metavar="TIME", help="of the histories: %s" % (
        ", ".join(name for _, name in RANGES)))
    parser.add_argument("--sort", choices=SORTS, default="gpu", help="of the processes")
    parser.add_argument("--hide", type=_panels, default=[], metavar="PANELS", help="panels to leave out: %s" % ",".join(HIDEABLE))
    parser.add_argument("--no-ane", action="store_true", help="leave out the Neural Engine")
    parser.add_argument("--export", metavar="FILE", help="append every sample to FILE, CSV if it ends in .csv, else JSON lines")
    parser.add_argument("--once", action="store_true", help="print one frame as text and end")
    parser.add_argument("--svg", metavar="FILE", help="draw the screen into an SVG picture and end")
    parser.add_argument("--size", type=_size, default=(120, 42), metavar="WxH", help="of the picture")
    parser.add_argument("--samples", type=c.count, default=1, metavar="N", help="looks before --once or --svg, for the histories")
    parser.add_argument("--debug", action="store_true", help="print one raw sample with reasons, ages and sources, and end")
    parser.add_argument("-v", "--version", action="version", version="pyapplegpu " + ag.__version__)
    c.add_source_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    device = c.open_device(args)
    span = min((span for span, _ in RANGES), key=lambda s: abs(s - args.span))
    look = Look(args.layout, span, frozenset(args.hide) | (frozenset({"ane"}) if args.no_ane else frozenset()))
    if args.debug:
        print(json.dumps(c.settled(device).to_dict(), indent=2))
        return 0
    export = c.RowWriter(args.export) if args.export else None
    try:
        return _once(device, args, look, export) if args.once else _interactive(device, args, look, export)
    finally:
        if export is not None:
            export.close()


def _interactive(device: ag.Device, args: argparse.Namespace, look: Look, export: c.RowWriter | None) -> int:
    try:
        from textual.theme import BUILTIN_THEMES
        app_class = textual_app()
    except ImportError:
        print("top.py needs textual: pip install textual "
              "(--once works with rich alone)", file=sys.stderr)
        return 1
    known = [name for name in THEMES if name in BUILTIN_THEMES]         # they differ between versions of Textual
    theme = known[int(args.theme) % len(known)] if args.theme.isdigit() else args.theme
    if theme not in BUILTIN_THEMES:
        print("top.py: no theme %r; there are %s" % (theme, ", ".join(sorted(BUILTIN_THEMES))), file=sys.stderr)
        return 2
    make = functools.partial(app_class, device, max(INTERVALS[0], args.interval), look, theme, export,
                             clocked=args.svg is None)
    if args.svg:
        return _picture(make, args.svg, args.size, args.samples)
    if not sys.stdin.isatty() or not sys.stderr.isatty():       # Textual reads the one and draws on the other
        print("top.py needs a terminal; --once prints one frame without, and stat.py -i goes on printing", file=sys.stderr)
        return 1
    app = make()
    app.run()
    return int(app.return_code or 0)


if __name__ == "__main__":
    sys.exit(c.quiet_pipe(main))
