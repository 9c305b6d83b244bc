"""Which figures stand in which panel. `draw` makes lines of them."""
from __future__ import annotations

import re
from typing import Callable, Iterator, NamedTuple

import _common as c
from _common import Line, ag

from .state import AGENT_SERIES, Model, rate

# ---- panels

class Row(NamedTuple):
    """One figure of a panel."""
    label: str
    value: str
    share: float | None = None      # of a bar
    series: str | None = None       # its history
    top: float | None = None        # of the history's graph; None: a round figure above the highest value in the range
    note: str = ""                  # a list with commas, the most important first: what has no room is left out from its end
    style: str = ""                 # of the value
    bar: bool = True


def part(value: float | None, whole: float | None) -> float | None:
    return None if value is None or not whole else value / whole


def load_style(share: float | None) -> str:
    return c.level(share, 0.75, 0.95)


def heat_style(value: float | None) -> str:
    return c.level(value, *c.HOT)


def pressure(s: ag.Snapshot) -> tuple[str, str]:
    """The kernel's own judgement of memory, and its colour."""
    level = s.system_memory_pressure.level if s.system_memory_pressure else c.DASH
    return level, c.PRESSURE.get(level, "dim")


def thermal(s: ag.Snapshot) -> tuple[str, str]:
    level = s.thermal_pressure_level
    if level is None:
        return c.DASH, "dim"
    return ag.THERMAL_PRESSURE[level], "good" if level == 0 else "warn" if level == 1 else "bad"


def supply(s: ag.Snapshot) -> str:
    """"AC 80 %", "Battery 79 %, charging"."""
    source = s.system_power_source
    if source is None:
        return c.DASH
    share = "" if source.battery_percent is None else " " + c.percent(source.battery_percent)
    return c.clean(source.source).replace(" Power", "") + share + (", charging" if source.charging else "")


def cluster_name(cluster: ag.CpuCluster) -> str:
    return c.clean(cluster.name).replace("DIE_", "").replace("CPU", "") or "CPU"


def states(s: ag.Snapshot) -> str:
    """One block per clock from the lowest to the top: how long the GPU stood there."""
    shares: dict[int, float] = {}
    for state in s.gpu_states or ():
        if state.mhz:
            shares[state.mhz] = shares.get(state.mhz, 0.0) + state.ratio
    return c.spark([shares[mhz] for mhz in sorted(shares)], max(shares.values(), default=0) or 1.0)


def panel_gpu(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    use = part(s.gpu_utilization_percent, 100)
    clocks = [state.mhz for state in s.gpu_states or () if state.mhz]
    yield Row("Use", c.percent(s.gpu_utilization_percent), use, "gpu_utilization_percent", 100,
              "scaled %s, active %s" % (c.ratio(s.gpu_scaled_ratio), c.ratio(s.gpu_active_ratio)), load_style(use))
    for label, field in (("Driver", "gpu_device_percent"), ("Renderer", "gpu_renderer_percent"), ("Tiler", "gpu_tiler_percent")):
        yield Row(label, c.percent(getattr(s, field)), part(getattr(s, field), 100), field, 100)
    yield Row("Clock", c.mhz(s.gpu_clock_mhz), part(s.gpu_clock_mhz, s.gpu_max_clock_mhz), "gpu_clock_mhz", s.gpu_max_clock_mhz,
              "of %s" % c.mhz(s.gpu_max_clock_mhz))
    if clocks:
        yield Row("Range", "%d-%d" % (min(clocks), max(clocks)), bar=False, note="%s time at each clock" % states(s))
    yield Row("Power", c.watts(s.gpu_power_mw), part(s.gpu_power_mw, s.gpu_power_limit_mw), "gpu_power_mw", s.gpu_power_limit_mw,
              "cap %s" % c.watts(s.gpu_power_limit_mw) if s.gpu_power_limit_mw else "", "power", bool(s.gpu_power_limit_mw))
    yield Row("Heat", c.celsius(s.gpu_temperature_celsius), part(s.gpu_temperature_celsius, 110), "gpu_temperature_celsius", 110,
              "hottest %s" % c.celsius(s.gpu_temperature_max_celsius), heat_style(s.gpu_temperature_celsius))
    share = part(s.memory_used_bytes, s.memory_total_bytes)
    yield Row("Memory", c.size(s.memory_used_bytes), share, "memory_used_bytes", s.memory_total_bytes,
              "%s of %s" % (c.percent(s.memory_utilization_percent), c.size(s.memory_total_bytes)), load_style(share))
    yield Row("Headroom", c.size(s.memory_headroom_bytes), bar=False, note="alloc %s, wired limit %s" % (
        c.size(s.memory_allocated_bytes), c.wired_limit(s)))


def panel_ane(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    share = part(s.ane_utilization_percent, 100)
    yield Row("Use", c.ane_use(s), share, "ane_utilization_percent", 100, c.ane_method(s), load_style(share))
    yield Row("Power", c.watts(s.ane_power_mw), None, "ane_power_mw", None, "state %s" % c.show(s.ane_power_state, "%d"), "power", False)
    yield Row("Energy", c.joules(None if s.ane_energy_mj is None else s.ane_energy_mj / 1000), bar=False, note="since the driver began")
    yield Row("Traffic", c.bandwidth(s.memory_ane_read), note="read, write %s" % c.bandwidth(s.memory_ane_write), bar=False)


def panel_cpu(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    use, split = part(s.cpu_utilization_percent, 100), m.beside.values
    yield Row("Use", c.percent(s.cpu_utilization_percent), use, "cpu_utilization_percent", 100, "%s, %s" % (
        c.watts(s.cpu_power_mw), c.celsius(s.cpu_temperature_celsius)), load_style(use))
    for n, cluster in enumerate(s.cpu_clusters or ()):
        share = part(cluster.utilization_percent, 100)
        yield Row("%s x%s" % (cluster_name(cluster), c.show(cluster.cores, "%d")), c.percent(cluster.utilization_percent), share,
                  "cluster%d" % n if n < 8 else None, 100, "%s, %s, of %s" % (
                      c.mhz(cluster.clock_mhz), c.watts(cluster.power_mw), c.mhz(cluster.max_clock_mhz)), load_style(share))
    if split["load_1"] is not None:
        yield Row("Load", "%.2f" % split["load_1"], bar=False, note="%.2f %.2f, user %s, system %s" % (
            split["load_5"], split["load_15"], c.percent(split["cpu_user"]), c.percent(split["cpu_system"])))


def panel_power(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    whole = s.system_power_mw

    def row(label: str, field: str, note: str = "") -> Row:
        value = getattr(s, field)
        return Row(label, c.watts(value), part(value, whole), field, None, note, "power")
    yield row("Machine", "system_power_mw", supply(s))._replace(bar=False)
    yield row("Package", "package_power_mw", "CPU + GPU + ANE")
    yield row("GPU", "gpu_power_mw", "SRAM %s" % c.watts(s.gpu_sram_power_mw))
    yield row("CPU", "cpu_power_mw")
    yield row("ANE", "ane_power_mw")
    yield row("DRAM", "memory_power_mw")


def panel_memory(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    ram, swap = s.system_memory, s.system_swap
    level, style = pressure(s)
    total = ram.total_bytes if ram else None
    share = part(ram.used_bytes, total) if ram else None
    yield Row("RAM", c.size(ram.used_bytes if ram else None), share, "ram_used_bytes", total,
              "%s of %s" % (c.ratio(share), c.size(total)), style)
    yield Row("Pressure", level, bar=False, style=style, note="available %s, free %s" % (
        c.size(ram.available_bytes if ram else None), c.size(ram.free_bytes if ram else None)))
    if ram is not None:
        for label, count, other, second in (("App", ram.app_bytes, "active", ram.active_bytes),
                                            ("Cached", ram.cached_bytes, "inactive", ram.inactive_bytes),
                                            ("Wired", ram.wired_bytes, "compressed", ram.compressed_bytes)):
            yield Row(label, c.size(count), part(count, total), "ram_%s_bytes" % label.lower(), total, "%s %s" % (other, c.size(second)))
    most = swap.total_bytes or 1 if swap else None
    yield Row("Swap", c.size(swap.used_bytes if swap else None), part(swap.used_bytes, most) if swap else None, "swap_used_bytes", most,
              "of %s" % c.size(swap.total_bytes) if swap and swap.total_bytes else "")


def panel_bandwidth(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    most = s.memory_max_bytes_per_s
    for label, value, note in (("Read", s.memory_read, "of %s" % c.speed(most)),
                               ("Write", s.memory_write, "estimate" if s.memory_write and s.memory_write.estimated else "")):
        yield Row(label, c.bandwidth(value), part(value.bytes_per_s if value else None, most),
                  "memory_%s_bytes_per_s" % label.lower(), most, note, "traffic")
    known = [(agent, getattr(s, read), getattr(s, write)) for agent, read, write in c.AGENT_FIELDS]
    known = [row for row in known if row[1] is not None or row[2] is not None]
    for agent, read, write in known:
        yield Row(agent.upper() if len(agent) < 4 else agent.title(), c.bandwidth(read), part(rate(read, write), most),
                  AGENT_SERIES[agent], None, "write %s" % c.bandwidth(write))
    if not known:
        yield Row("Agents", c.DASH, bar=False)


def panel_heat(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    level, style = thermal(s)
    t = s.gpu_throttle
    cltm, budget = (t.cltm_ratio, t.ppm_percent) if t else (None, None)
    yield Row("Pressure", level, bar=False, style=style, note="CPU %s" % c.celsius(s.cpu_temperature_celsius))
    yield Row("Throttled", c.ratio(cltm), cltm, "gpu_throttle_cltm_ratio", 1.0, "of the time", "warn" if cltm else "")
    yield Row("Budget", c.percent(budget), part(budget, 100), "gpu_throttle_ppm_percent", 100, "restarts %s" % c.show(s.gpu_recovery_count, "%d"),
              "warn" if budget is not None and budget < 100 else "")
    for n, fan in enumerate(s.fans or ()):
        yield Row("Fan %d" % n, "%d rpm" % fan.rpm, part(fan.rpm, fan.max_rpm), "fan%d" % n if n < 4 else None, fan.max_rpm,
                  "%s-%s rpm" % (c.show(fan.min_rpm, "%d"), c.show(fan.max_rpm, "%d")))
    if not s.fans:
        yield Row("Fans", c.DASH if s.fans is None else "none", bar=False)


def panel_media(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    yield Row("Encode", c.bandwidth(s.encode_bandwidth), None, "encode_bandwidth_bytes_per_s", None, c.watts(s.encode_power_mw), "traffic", False)
    yield Row("Decode", c.bandwidth(s.decode_bandwidth), None, "decode_bandwidth_bytes_per_s", None, c.watts(s.decode_power_mw), "traffic", False)
    yield Row("ProRes", c.bandwidth(s.prores_bandwidth), None, "prores_bandwidth_bytes_per_s", None, "", "traffic", False)


def panel_io(m: Model, s: ag.Snapshot) -> Iterator[Row]:
    v = m.beside.values
    if m.beside.reason:
        yield Row("", c.DASH, bar=False, note=m.beside.reason)
        return
    yield Row("Disk read", c.speed(v["disk_read"]), None, "disk", None, "write %s" % c.speed(v["disk_write"]), bar=False)
    yield Row("Disk used", c.size(v["disk_used"]), part(v["disk_used"], v["disk_total"]), None, None, "of %s" % c.size(v["disk_total"]))
    yield Row("Net in", c.speed(v["net_in"]), None, "net", None, "out %s" % c.speed(v["net_out"]), bar=False)


class Panel(NamedTuple):
    title: str
    rows: Callable[[Model, ag.Snapshot], Iterator[Row]]
    lead: str       # the field whose reason stands where nothing of the panel is known


PANELS = {
    "gpu": Panel("GPU", panel_gpu, "gpu_utilization_percent"), "ane": Panel("Neural Engine", panel_ane, "ane_power_mw"),
    "cpu": Panel("CPU", panel_cpu, "cpu_utilization_percent"), "power": Panel("Power", panel_power, "system_power_mw"),
    "memory": Panel("Memory", panel_memory, "system_memory"), "bandwidth": Panel("Traffic", panel_bandwidth, "memory_read"),
    "heat": Panel("Heat", panel_heat, "gpu_throttle"), "media": Panel("Video", panel_media, "encode_bandwidth"),
    "io": Panel("Disk, network", panel_io, "")}


def _unknown(row: Row) -> Row:
    """A row without a value, with what its note says in figures nevertheless."""
    return row._replace(note=", ".join(part for part in row.note.split(", ") if any(char.isdigit() for char in part)))


def rows_of(name: str, m: Model, s: ag.Snapshot) -> list[Row]:
    """A panel's rows; where nothing of it is known one with the reason, and those whose note still holds a figure."""
    panel = PANELS[name]
    rows = list(panel.rows(m, s))
    if not panel.lead:
        return rows
    rows = [_unknown(row) if row.value == c.DASH else row for row in rows]
    if any(row.value != c.DASH for row in rows):
        return rows
    reason = re.split(r" [([]", c.why(s, panel.lead))[0].rpartition(": ")[2]     # without the error's name, details and source
    return [Row("", c.DASH, bar=False, note=reason)] + [row for row in rows if row.note]


# ---- the compact layout: one line per panel, two for the GPU

class Short(NamedTuple):
    """One line of the compact layout: a name, the history before its figures, the figures."""
    name: str
    series: str
    top: float | None
    pieces: Line


def short_gpu(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    use, mem = part(s.gpu_utilization_percent, 100), part(s.memory_used_bytes, s.memory_total_bytes)
    engines = tuple(c.show(v, "%d") for v in (s.gpu_device_percent, s.gpu_renderer_percent, s.gpu_tiler_percent))
    yield Short("GPU", "gpu_utilization_percent", 100, [
        ("%5s" % c.percent(s.gpu_utilization_percent), load_style(use)),
        ("%s/%s" % (c.show(s.gpu_clock_mhz, "%d"), c.mhz(s.gpu_max_clock_mhz)), ""), (c.watts(s.gpu_power_mw), "power"),
        (c.celsius(s.gpu_temperature_celsius), heat_style(s.gpu_temperature_celsius)),
        ("D/R/T %s/%s/%s" % engines, "note"), ("scaled %s" % c.ratio(s.gpu_scaled_ratio), "note")])
    yield Short("GMEM", "memory_used_bytes", s.memory_total_bytes, [
        ("%5s" % c.percent(s.memory_utilization_percent), load_style(mem)),
        (c.pair(s.memory_used_bytes, s.memory_total_bytes), ""), ("alloc %s" % c.size(s.memory_allocated_bytes), "note"),
        ("room %s" % c.size(s.memory_headroom_bytes), "note")])


def short_ane(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    yield Short("ANE", "ane_utilization_percent", 100, [
        ("%5s" % c.ane_use(s), load_style(part(s.ane_utilization_percent, 100))), (c.watts(s.ane_power_mw), "power"),
        (c.ane_method(s), "note"),
        ("r %s w %s" % (c.bandwidth(s.memory_ane_read), c.bandwidth(s.memory_ane_write)), "note")])


def short_cpu(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    clusters = [("%s %s" % (cluster_name(k), c.percent(k.utilization_percent)), "note") for k in s.cpu_clusters or ()]
    yield Short("CPU", "cpu_utilization_percent", 100, [
        ("%5s" % c.percent(s.cpu_utilization_percent), load_style(part(s.cpu_utilization_percent, 100))),
        (c.watts(s.cpu_power_mw), "power"), (c.celsius(s.cpu_temperature_celsius), heat_style(s.cpu_temperature_celsius)),
        *clusters])


def short_power(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    yield Short("POWER", "system_power_mw", None, [
        ("%7s" % c.watts(s.system_power_mw), "power"), ("package %s" % c.watts(s.package_power_mw), ""),
        ("DRAM %s" % c.watts(s.memory_power_mw), "note"), (supply(s), "note")])


def short_traffic(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    yield Short("MEM", "memory_read_bytes_per_s", s.memory_max_bytes_per_s, [
        ("r " + c.bandwidth(s.memory_read), "traffic"), ("w " + c.bandwidth(s.memory_write), "traffic"),
        ("GPU r %s w %s" % (c.bandwidth(s.memory_gpu_read), c.bandwidth(s.memory_gpu_write)), "note")])


def short_memory(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    ram = s.system_memory
    level, style = pressure(s)
    yield Short("RAM", "ram_used_bytes", ram.total_bytes if ram else None, [
        (c.pair(ram.used_bytes, ram.total_bytes) if ram else c.DASH, ""), (level, style),
        ("wired %s" % c.size(ram.wired_bytes if ram else None), "note"),
        ("swap %s" % c.swap(s), "note")])


def short_heat(m: Model, s: ag.Snapshot) -> Iterator[Short]:
    t, fans = s.gpu_throttle, "/".join("%d" % fan.rpm for fan in s.fans or ())
    yield Short("HEAT", "gpu_temperature_celsius", 110, [
        thermal(s), ("throttled %s" % c.ratio(t.cltm_ratio if t else None), "warn" if t and t.cltm_ratio else "note"),
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
