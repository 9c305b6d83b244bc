"""What the monitor knows: the newest snapshot, its history, alerts, and what psutil tells beside it."""
from __future__ import annotations

import os
import time
from typing import Any, Iterator, NamedTuple

import _common as c
from _common import ag

RANGES = ((60, "1 min"), (300, "5 min"), (900, "15 min"), (3600, "1 h"), (21600, "6 h"))
INTERVALS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

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
FLAT_SERIES = (     # histories of figures of a flat row
    "gpu_utilization_percent gpu_device_percent gpu_renderer_percent gpu_tiler_percent gpu_clock_mhz gpu_power_mw "
    "gpu_temperature_celsius memory_used_bytes ane_utilization_percent ane_power_mw cpu_utilization_percent cpu_power_mw "
    "system_power_mw package_power_mw memory_power_mw memory_read_bytes_per_s memory_write_bytes_per_s ram_used_bytes "
    "ram_app_bytes ram_cached_bytes ram_wired_bytes swap_used_bytes encode_bandwidth_bytes_per_s decode_bandwidth_bytes_per_s "
    "prores_bandwidth_bytes_per_s gpu_throttle_cltm_ratio gpu_throttle_ppm_percent").split()
HISTORY = (*FLAT_SERIES, "disk", "net", *("cluster%d" % n for n in range(8)), *("fan%d" % n for n in range(4)),
           *AGENT_SERIES.values())


def floor(series: str) -> float:
    """A history without a highest value of its own is drawn up to a round figure, and at least up to this: 1 mW is no full
    graph."""
    return 1000.0 if series.endswith("_mw") else 1e6 if series in ("disk", "net") else 1e9 if series.endswith("_per_s") or (
        series in AGENT_SERIES.values()) else 1.0


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
        self.history.add(now, series(snapshot, self.beside.values), gap if gap < 3 * max(self.interval_hint, 1.0) else 0.0)
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
            yield Alert("bad", "the GPU was restarted %s: a kernel hung or faulted" % c.counted(self._recovered, "time"))
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


def rate(*values: ag.Bandwidth | None) -> float | None:
    known = [v.bytes_per_s for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def series(s: ag.Snapshot, beside: dict[str, float | None]) -> dict[str, float | None]:
    """One value per history of a snapshot."""
    row: dict[str, float | None] = {name: c.FIGURES[name].read(s) for name in FLAT_SERIES}
    for name, one, other in (("disk", "disk_read", "disk_write"), ("net", "net_in", "net_out")):
        pair = [v for v in (beside[one], beside[other]) if v is not None]
        row[name] = sum(pair) if len(pair) == 2 else None
    row.update(("cluster%d" % n, cluster.utilization_percent) for n, cluster in enumerate((s.cpu_clusters or ())[:8]))
    row.update(("fan%d" % n, fan.rpm) for n, fan in enumerate((s.fans or ())[:4]))
    row.update((AGENT_SERIES[agent], rate(getattr(s, read), getattr(s, write))) for agent, read, write in c.AGENT_FIELDS)
    return row
