"""Sampling: the configuration, a bounded history, one monitor, several monitors.

Two lanes. The slow lane takes whole snapshots at the sampling interval, 50 ms to 10 s: nothing that IOReport serves is
asked for more often. Below 50 ms (from 10 ms) a fast lane takes only what a registry read and a Metal property give: the
driver's own percentages, memory in use, Metal's allocation size. The document says at what span each figure was measured.
"""
from __future__ import annotations

import collections
import math
import os
import threading
import time
from array import array
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any, Callable, Iterator, Mapping, NamedTuple

from _common import FIGURES, Figure, ag, clean

NAN = math.nan
FAST_FLOOR_MS, SLOW_FLOOR_MS, CEILING_MS = 10, 50, 10_000
SCHEMA = 1


@dataclass
class PerformanceMonitorConfig:
    """The flags and defaults of the document, in snake case."""
    enable_gpu_utilization: bool = True
    enable_memory_bandwidth: bool = True
    enable_kernel_profiling: bool = True
    enable_power_monitoring: bool = True
    enable_thermal_monitoring: bool = True
    enable_queue_monitoring: bool = True
    enable_detailed_profiling: bool = False         # an encoder per dispatch, timed by MTLCounterSampleBuffer
    sampling_interval_ms: int = 100
    history_buffer_size: int = 10_000
    enable_prometheus_export: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("enable_") and not isinstance(value, bool):
                raise ValueError("%s is True or False, not %r" % (field.name, value))
        self.sampling_interval_ms = self._whole("sampling_interval_ms", FAST_FLOOR_MS, CEILING_MS)
        self.history_buffer_size = self._whole("history_buffer_size", 10, 1_000_000)

    def _whole(self, name: str, low: int, high: int) -> int:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or not low <= value <= high:
            raise ValueError("%s is a number from %d to %d, not %r" % (name, low, high, value))
        return int(value)

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> PerformanceMonitorConfig:
        """From a JSON object; a key that does not exist is an error with the nearest one that does."""
        if not isinstance(given, Mapping):
            raise ValueError("the configuration is an object of settings, not %r" % (given,))
        known = [field.name for field in fields(cls)]
        for key in given:
            if key not in known:
                import difflib
                near = difflib.get_close_matches(str(key), known, 1)
                raise ValueError("there is no setting %r%s" % (key, "; did you mean %s?" % near[0] if near else ""))
        return cls(**given)

    @property
    def parts(self) -> tuple[str, ...]:
        """Snapshot parts to ask for. What is switched off costs nothing."""
        chosen = ["memory", "system"]
        for on, more in ((self.enable_gpu_utilization, ("gpu", "clocks", "cpu")),
                         (self.enable_memory_bandwidth, ("bandwidth",)),
                         (self.enable_power_monitoring, ("power", "ane")),
                         (self.enable_thermal_monitoring, ("temperature",))):
            chosen += more if on else ()
        return tuple(chosen)

    @property
    def slow_s(self) -> float:
        return max(self.sampling_interval_ms, SLOW_FLOOR_MS) / 1000

    @property
    def fast_s(self) -> float | None:
        return self.sampling_interval_ms / 1000 if self.sampling_interval_ms < SLOW_FLOOR_MS else None


# ---- what is kept of a snapshot

class Column(NamedTuple):
    name: str
    unit: str
    field: str                              # of the snapshot: where its reason, age and source stand
    read: Callable[[Any], float | None]
    label: str


def _busy(s: Any) -> float | None:
    """Residency outside the idle state; where there is none, the driver's percentage (the source says which)."""
    if s.gpu_active_ratio is not None:
        return float(s.gpu_active_ratio)
    return None if s.gpu_utilization_percent is None else s.gpu_utilization_percent / 100


def _pressure(s: Any) -> float | None:
    return None if s.system_memory_pressure is None else {"normal": 0, "warning": 1, "critical": 2}.get(s.system_memory_pressure.level)


def _saturated(way: str) -> Figure:
    return Figure("memory_" + way, lambda s: getattr(getattr(s, "memory_" + way), "saturated", None))


def _columns() -> tuple[Column, ...]:
    rows: list[Column] = []

    def add(name: str, unit: str, label: str, figure: Figure | None = None) -> None:
        field, read = figure or FIGURES[name]
        rows.append(Column(name, unit, field, read, label))
    add("gpu_utilization_ratio", "1", "GPU active", Figure("gpu_utilization_percent", _busy))
    add("gpu_scaled_ratio", "1", "GPU active, weighted by clock")
    add("gpu_device_percent", "%", "Driver: device")
    add("gpu_renderer_percent", "%", "Driver: renderer")
    add("gpu_tiler_percent", "%", "Driver: tiler")
    add("gpu_clock_mhz", "MHz", "GPU clock (requested)")
    for way in ("read", "write"):
        add("memory_%s_bytes_per_s" % way, "B/s", "Memory %s" % way)
        add("memory_%s_saturated" % way, "flag", "Memory %s beyond the counter" % way, _saturated(way))
    for way in ("read", "write"):
        add("memory_gpu_%s_bytes_per_s" % way, "B/s", "Memory %s by the GPU" % way)
    add("memory_used_bytes", "B", "GPU memory in use")
    add("memory_allocated_bytes", "B", "GPU memory allocated")
    add("memory_headroom_bytes", "B", "GPU memory headroom")
    add("swap_used_bytes", "B", "Swap in use")
    add("memory_pressure_level", "index", "Memory pressure", Figure("system_memory_pressure", _pressure))
    for rail, label in (("gpu", "GPU"), ("cpu", "CPU"), ("ane", "Neural Engine"), ("memory", "Memory"),
                        ("package", "Package"),
                        ("system", "Whole Mac")):
        add(rail + "_power_mw", "mW", label + " power")
    add("gpu_temperature_celsius", "°C", "GPU temperature, mean")
    add("gpu_temperature_max_celsius", "°C", "GPU temperature, hottest")
    add("cpu_temperature_celsius", "°C", "CPU temperature")
    add("thermal_pressure_level", "index", "Thermal pressure")
    add("throttle_cltm_ratio", "1", "Time limited by thermal management", FIGURES["gpu_throttle_cltm_ratio"])
    add("throttle_ppm_percent", "%", "Power budget granted", FIGURES["gpu_throttle_ppm_percent"])
    add("fan_max_rpm", "rpm", "Fan, fastest")
    add("cpu_utilization_percent", "%", "CPU use")
    add("ane_utilization_percent", "%", "Neural Engine use (estimate)")
    add("gpu_recovery_count", "count", "GPU restarts since boot")
    return tuple(rows)


COLUMNS = _columns()
BY_NAME = {column.name: column for column in COLUMNS}
FAST = ("gpu_device_percent", "gpu_renderer_percent", "gpu_tiler_percent", "memory_used_bytes", "metal_allocated_bytes")
LIMITS = (("bandwidth_bytes_per_s", ag.MemoryGetMaxBandwidth), ("memory_bytes", ag.MemoryGetTotal),
          ("clock_mhz", ag.DeviceGetMaxClock), ("power_mw", ag.DeviceGetPowerLimit), ("flops", ag.DeviceGetPeakFlops))


class History:
    """The newest rows of named numbers, in arrays that never grow beyond `size`. A missing number is nan."""

    def __init__(self, names: tuple[str, ...], size: int) -> None:
        self.names, self.size, self.count = names, size, 0
        self._arrays = {name: array("d") for name in names}

    def append(self, row: Mapping[str, float | None]) -> None:
        place = self.count % self.size
        for name, values in self._arrays.items():
            value = row.get(name)
            number = NAN if value is None else float(value)
            if len(values) < self.size:
                values.append(number)
            else:
                values[place] = number
        self.count += 1

    def __len__(self) -> int:
        return min(self.count, self.size)

    def column(self, name: str) -> list[float | None]:
        values = self._arrays[name]
        at = self.count % self.size if self.count > self.size else 0
        return [None if v != v else v for v in list(values[at:]) + list(values[:at])]


class _Missing:
    """Why a figure was not there: the newest reason, and in how many rows."""
    __slots__ = ("reason", "message", "rows")

    def __init__(self) -> None:
        self.reason, self.message, self.rows = "", "", 0


def uptime_s() -> float:
    """Metal's own clock: host time, which stands while the Mac sleeps."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_UPTIME_RAW", time.CLOCK_MONOTONIC)) * 1e-9


# ---- one monitor

class MetalPerformanceMonitor:
    """Watches one GPU, and the Metal work of this process.

        with MetalPerformanceMonitor() as monitor:          # this Mac; or device=ag.LibraryOpen(recording)
            ...
        print(monitor.analyze_performance(5000)["summary"])

    A device given is the caller's to close. on_event hears of sleep and trouble, in the sampling thread.
    """

    def __init__(self, device: Any = None, config: PerformanceMonitorConfig | None = None, *, name: str = "gpu",
                 recording: str | None = None, speed: float = 1.0, loop: bool = True) -> None:
        from .metal import MetalActivity
        self.config, self.name = config or PerformanceMonitorConfig(), name
        self._own = device is None
        self._options: dict[str, Any] = dict(recording=recording, window=min(max(self.config.slow_s, 0.05), 10.0),
                                             speed=speed, loop=loop)
        self.device = device
        self.history = History(("t", "time_unix_s", "covers_s") + tuple(c.name for c in COLUMNS),
                               self.config.history_buffer_size)
        self.fast = History(("t",) + FAST, self.config.history_buffer_size)
        self.metal = MetalActivity(self.config)
        self.missing: dict[str, _Missing] = {}
        self.events: collections.deque[dict[str, Any]] = collections.deque(maxlen=1000)
        self.held = 0                                   # looks at a Mac (or recording) that had nothing new
        self.first: Any = None
        self.last: Any = None
        self.state = "new"
        self.trouble: str | None = None
        self.limits: dict[str, float | None] = {}
        self.machine: dict[str, Any] = {}
        self.command: dict[str, Any] | None = None
        self._spans = {c.name: array("d") for c in COLUMNS}
        self._ages = {c.name: array("d") for c in COLUMNS}
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._lock = threading.RLock()
        self._cost_s = self._began = self._ended = 0.0
        self._calls: dict[str, int] = {"slow": 0, "fast": 0}

    # -- start and stop
    def initialize(self) -> MetalPerformanceMonitor:
        """Open the device and read what does not change. Raises LibraryNotFound where there is no Apple GPU."""
        if self.device is None:
            self.device = ag.LibraryOpen(**self._options)
        if not self.machine:
            self.machine, self.limits = describe(self.device)
        if self.state == "new":
            self.state = "ready"
        return self

    def start_monitoring(self) -> MetalPerformanceMonitor:
        self.begin()
        self.start_lanes()
        return self

    def start_lanes(self, slow: bool = True) -> None:
        """Sample in threads from now on. slow=False: only what is sampled below 50 ms, the caller takes the snapshots."""
        self._stop.clear()
        lanes: list[tuple[float, Callable[[], object], str]] = [(self.config.slow_s, self.sample, "slow")] if slow else []
        if self.config.fast_s:
            lanes.append((self.config.fast_s, self.sample_fast, "fast"))
        for interval, work, lane in lanes:
            thread = threading.Thread(target=self._loop, args=(interval, work, lane), name="perfmon-" + lane,
                                      daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop_lanes(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5.0)
        self._threads = []

    def begin(self) -> None:
        """As start_monitoring, but without threads: the caller samples (`sample`, `add_snapshot`)."""
        if self.state == "running":
            raise RuntimeError("this monitor is running already")
        self.initialize()
        self.state, self._began = "running", time.monotonic()
        self.metal.start(uptime_s(), time.time())

    def stop_monitoring(self, state: str = "finished") -> MetalPerformanceMonitor:
        if self.state != "running":
            return self
        self.stop_lanes()
        self.metal.stop(uptime_s())
        self.state, self._ended = state, time.monotonic()
        return self

    def close(self) -> None:
        self.stop_monitoring()
        if self._own and self.device is not None:
            ag.LibraryClose(self.device)
            self.device = None

    def __enter__(self) -> MetalPerformanceMonitor:
        return self.start_monitoring()

    def __exit__(self, kind: Any, *error: object) -> None:
        self.stop_monitoring("finished" if kind is None else "interrupted")
        self.close()

    def _loop(self, interval: float, work: Callable[[], object], lane: str) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            spent = time.thread_time()
            try:
                work()
            except (ag.AppleGPUError, OSError) as error:
                with self._lock:
                    self.trouble = clean(error)
                    self._event("stopped", "sampling ended: %s" % clean(error))
                return
            self._cost_s += time.thread_time() - spent
            due = max(due + interval, time.monotonic())         # a late sampler skips, it does not catch up
            self._stop.wait(max(0.0, due - time.monotonic()))

    # -- sampling
    def sample(self) -> Any:
        """One snapshot into the history."""
        snapshot = ag.DeviceGetSnapshot(self.device, self.config.parts, timeout=0)
        self.add_snapshot(snapshot)
        return snapshot

    def add_snapshot(self, snapshot: Any, elapsed_s: float | None = None) -> bool:
        """Keep a snapshot that somebody took; False when it is no later than the one before."""
        with self._lock:
            self._calls["slow"] += 1
            before = self.last
            if before is not None and snapshot.time_mono_s <= before.time_mono_s:
                self.held += 1
                return False
            if before is not None:
                self._note_gap(before, snapshot)
            if self.first is None:
                self.first = snapshot
            row: dict[str, float | None] = {column.name: column.read(snapshot) for column in COLUMNS}
            row["t"] = snapshot.time_mono_s - self.first.time_mono_s
            row["time_unix_s"] = snapshot.time_unix_s
            row["covers_s"] = self._covers(before, snapshot)
            self.history.append(row)
            self._note_quality(snapshot, row)
            self.last = snapshot
            return True

    def _covers(self, before: Any, snapshot: Any) -> float:
        """The time a row stands for: since the row before, but never more than it was measured over."""
        span = snapshot.interval_s or self.config.slow_s
        return min(snapshot.time_mono_s - before.time_mono_s,
                   max(span, 2 * self.config.slow_s)) if before is not None else span

    def _note_gap(self, before: Any, snapshot: Any) -> None:
        asleep = (snapshot.time_unix_s - before.time_unix_s) - (snapshot.time_mono_s - before.time_mono_s)
        if ag.REASON_SLEPT in snapshot.reasons.values() and ag.REASON_SLEPT not in before.reasons.values() or asleep > 2:
            self._event("slept", "the Mac slept%s; rates begin anew" % (" about %.0f s" % asleep if asleep > 2 else ""),
                        snapshot)
        if ag.REASON_RESET in snapshot.reasons.values() and ag.REASON_RESET not in before.reasons.values():
            self._event("reset", "a counter fell or jumped; its rate begins anew", snapshot)
        if None not in (before.gpu_recovery_count,
                        snapshot.gpu_recovery_count) and snapshot.gpu_recovery_count > before.gpu_recovery_count:
            self._event("gpu_restart", "the driver restarted the GPU", snapshot)

    def _event(self, kind: str, text: str, snapshot: Any = None) -> None:
        at = snapshot or self.last
        t = at.time_mono_s - self.first.time_mono_s if at is not None and self.first is not None else 0.0
        self.events.append({"t": t, "kind": kind, "text": text})

    def _note_quality(self, snapshot: Any, row: Mapping[str, float | None]) -> None:
        for column in COLUMNS:
            if row[column.name] is None:
                miss = self.missing.setdefault(column.name, _Missing())
                miss.reason = snapshot.reasons.get(column.field, ag.REASON_CHIP)
                miss.message = clean(snapshot.messages.get(column.field, "this chip does not publish it"))
                miss.rows += 1
                continue
            for kept, given in ((self._spans, snapshot.intervals), (self._ages, snapshot.ages)):
                if column.field in given and len(kept[column.name]) < 2000:
                    kept[column.name].append(given[column.field])

    def sample_fast(self) -> None:
        """The driver's own percentages, memory in use, and what this process allocated in Metal."""
        row: dict[str, float | None] = {}
        engines = ag.Try(ag.DeviceGetEngineUtilization, self.device).value
        if engines is not None:
            row.update(gpu_device_percent=engines.device_percent, gpu_renderer_percent=engines.renderer_percent,
                       gpu_tiler_percent=engines.tiler_percent)
        row["memory_used_bytes"] = ag.Try(ag.MemoryGetUsed, self.device).value
        row["metal_allocated_bytes"] = self.metal.device_allocated()
        row["t"] = time.monotonic() - self._began
        with self._lock:
            self._calls["fast"] += 1
            self.fast.append(row)

    # -- the document's calls on Metal work; metal.py does them
    def begin_kernel_profiling(self, name: str, work: Any = None) -> None:
        self.metal.begin_kernel(name, work)

    def end_kernel_profiling(self, name: str, work: Any = None) -> None:
        self.metal.end_kernel(name, work)

    def get_kernel_profiling_data(self, name: str) -> list[Any]:
        return self.metal.runs(name)

    def record_kernel(self, name: str, seconds: float, **facts: Any) -> None:
        """A run of a kernel that the caller timed."""
        self.metal.record_kernel(name, seconds, **facts)

    def track_memory_allocation(self, thing: Any, size: int, is_shared: bool = True, name: str = "") -> None:
        self.metal.allocations.born(thing, size, "shared" if is_shared else "private", name)

    def track_memory_deallocation(self, thing: Any) -> bool:
        return self.metal.allocations.died(thing)

    def get_memory_statistics(self) -> Any:
        return self.metal.allocations.statistics()

    # -- results
    def analyze_performance(self, window_ms: float | None = None, thresholds: Any = None) -> dict[str, Any]:
        """What the last `window_ms` (default: everything) showed."""
        from .analyse import analyse
        return analyse(self.document(analysed=False), window_ms, thresholds)

    def compare_kernel_performance(self, a: str, b: str) -> Any:
        from .compare import compare_samples
        return compare_samples([r.seconds for r in self.metal.runs(a) if r.seconds is not None],
                               [r.seconds for r in self.metal.runs(b) if r.seconds is not None], a, b)

    def compare_variants(self, a: Callable[[], Any], b: Callable[[], Any], n: int = 30, warmup: int = 3,
                         names: tuple[str, str] = ("a", "b")) -> Any:
        """Run two pieces of work in turn (each a function that returns a MetalWork) and compare their GPU times: what the
        clock and the heat do meanwhile then happens to both. The times are kept as kernels of these names."""
        for turn in range(warmup + n):
            pairs = list(zip(names, (a, b)))
            for name, function in pairs if turn % 2 else pairs[::-1]:
                work = function()
                times = ag.MetalTimes(ag.MetalWait(work if work.committed_ns else ag.MetalCommit(work)))
                if turn >= warmup:
                    self.record_kernel(name, times.gpu_s if times.gpu_s is not None else times.total_s,
                                       method="command buffer" if times.gpu_s is not None else "host clock")
        return self.compare_kernel_performance(*names)

    def register_prometheus_metrics(self, registry: Any) -> Any:
        """Register with a prometheus_client registry; returns the collector (for `unregister`)."""
        from .prometheus import MonitorCollector
        collector = MonitorCollector(self)
        registry.register(collector)
        return collector

    def document(self, analysed: bool = True) -> dict[str, Any]:
        """Everything that was measured, as plain data: what is saved as JSON and what every report is made from."""
        with self._lock:
            t = self.history.column("t")
            shown = {c.name: self.history.column(c.name) for c in COLUMNS}
            doc: dict[str, Any] = {
                "schema": SCHEMA, "tool": "perfmon", "name": self.name, "state": self.state,
                "machine": dict(self.machine), "limits": dict(self.limits), "config": asdict(self.config),
                "started_unix_s": self.first.time_unix_s if self.first is not None else time.time(),
                "seconds": (t[-1] or 0.0) if t else 0.0,
                "wall_s": (self._ended or time.monotonic()) - self._began if self._began else 0.0,
                "sampling": self._sampling(),
                "samples": {"t": t, "time_unix_s": self.history.column("time_unix_s"),
                            "covers_s": self.history.column("covers_s"),
                            **{name: values for name, values in shown.items() if any(v is not None for v in values)}},
                "fast": {name: self.fast.column(name) for name in self.fast.names} if len(self.fast) else None,
                "events": list(self.events),
                "missing": {name: {"reason": m.reason, "message": m.message, "rows": m.rows}
                            for name, m in self.missing.items()},
                "energy": self._energy(), "command": self.command}
            doc.update(self.metal.document())
        if analysed:
            from .analyse import analyse
            doc["analysis"] = analyse(doc)
        return doc

    def _sampling(self) -> dict[str, Any]:
        wall = (self._ended or time.monotonic()) - self._began if self._began else 0.0
        per = {}
        for column in COLUMNS:
            source = self.last.sources.get(column.field) if self.last is not None else None
            if self._spans[column.name] or self._ages[column.name] or source:
                per[column.name] = {"interval_s": _middle(self._spans[column.name]),
                                    "age_s": _middle(self._ages[column.name]),
                                    "source": source,
                                    "estimated": self.last is not None and column.field in self.last.estimated}
        return {"asked_ms": self.config.sampling_interval_ms, "snapshots_ms": 1000 * self.config.slow_s,
                "fast_ms": 1000 * self.config.fast_s if self.config.fast_s else None, "rows": len(self.history),
                "rows_ever": self.history.count, "held": self.held, "fast_rows": self.fast.count,
                "cost_ratio": self._cost_s / wall if wall > 0 and self._cost_s else None, "per": per,
                "notes": self._sampling_notes(per)}

    def _sampling_notes(self, per: Mapping[str, Any]) -> list[str]:
        """What a reader must know about the spans: said once, in words."""
        asked, slow = self.config.sampling_interval_ms / 1000, self.config.slow_s
        notes = []
        if self.config.fast_s:
            notes.append("Every %d ms only the driver's own percentages, memory in use and Metal's allocation size are read; "
                         "the rest every %d ms, the least that IOReport serves." % (1000 * asked, 1000 * slow))
        slower: dict[str, list[str]] = {}
        for name, one in per.items():
            if one["interval_s"] is not None and one["interval_s"] > 1.5 * slow and BY_NAME[name].unit != "flag":
                slower.setdefault("%.3g s" % one["interval_s"], []).append(BY_NAME[name].label)
        for span, names in slower.items():
            notes.append("Measured over about %s, not %.3g s: %s." % (span, slow, "; ".join(names)))
        if self.machine.get("recording") and (self.metal.kernels or self.metal.buffer_count):
            notes.append("The GPU's figures are replayed from a recording; the kernels ran here and now, and have no part in them.")
        if self.history.count > len(self.history):
            notes.append("The history holds the newest %d of %d samples." % (len(self.history), self.history.count))
        if self.held > self.history.count:
            notes.append("%d of %d looks found nothing newer than the look before (a recording moves in its own steps)." % (
                self.held, self.held + self.history.count))
        return notes

    def _energy(self) -> dict[str, Any] | None:
        """Joules between the first and last snapshot: differences of the hardware's counters."""
        a, b = self.first, self.last
        if a is None or b is None or b.time_mono_s <= a.time_mono_s or not self.config.enable_power_monitoring:
            return None
        spent = ag.SnapshotDelta(a, b)
        return {"seconds": spent.seconds, "joules": dict(spent.joules),
                "uncertainty_joules": dict(spent.uncertainty_joules), "spans_s": dict(spent.spans_s),
                "gpu_active_s": spent.gpu_active_s, "read_bytes": spent.read_bytes, "write_bytes": spent.write_bytes,
                "reasons": dict(spent.reasons)}


def _middle(values: Any) -> float | None:
    return median(values) if len(values) else None


def describe(device: Any) -> tuple[dict[str, Any], dict[str, float | None]]:
    """(what this machine is, its own limits); None where it does not say."""
    still = ag.DeviceGetSnapshot(device, ("gpu", "system"), timeout=0)
    cores = ag.Try(ag.DeviceCountGpuCores, device).value
    machine = {"gpu": clean(still.gpu_name or "GPU"), "chip": clean(still.system_chip_name or ""),
               "model": clean(still.system_model or ""), "macos": clean(still.system_os_version or ""),
               "gpu_cores": cores,
               "dies": ag.Try(ag.DeviceCountDie, device).value, "recording": still.source != "live",
               "source": "live" if still.source == "live" else os.path.basename(still.source)}
    limits: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, function in LIMITS:
        reading = ag.Try(function, device)
        limits[name] = reading.value
        if reading.value is None:
            reasons[name] = reading.message or reading.reason or ""
    machine["limit_reasons"] = reasons
    return machine, limits


# ---- several monitors

class PerformanceMonitorManager:
    """Named monitors side by side (several recordings, several Macs' recordings, differing settings), and their sums."""

    def __init__(self) -> None:
        self._monitors: dict[str, MetalPerformanceMonitor] = {}

    def register(self, name: str, monitor: MetalPerformanceMonitor | None = None,
                 **options: Any) -> MetalPerformanceMonitor:
        """Add a monitor under a name; made from `options` when none is given."""
        if name in self._monitors:
            raise ValueError("there is a monitor %r already" % name)
        made = monitor or MetalPerformanceMonitor(name=name, **options)
        made.name = name
        self._monitors[name] = made
        return made

    def unregister(self, name: str) -> None:
        self._monitors.pop(name).close()

    def __getitem__(self, name: str) -> MetalPerformanceMonitor:
        return self._monitors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._monitors)

    def __len__(self) -> int:
        return len(self._monitors)

    def start_all(self) -> None:
        for monitor in self._monitors.values():
            monitor.start_monitoring()

    def stop_all(self) -> None:
        for monitor in self._monitors.values():
            monitor.stop_monitoring()

    def close(self) -> None:
        for monitor in self._monitors.values():
            monitor.close()

    def __enter__(self) -> PerformanceMonitorManager:
        self.start_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop_all()
        self.close()

    def aggregate(self, window_ms: float | None = None) -> dict[str, Any]:
        """Means and sums over the monitors that have the figure; `of` says how many had it."""
        each = {name: monitor.analyze_performance(window_ms) for name, monitor in self._monitors.items()}
        total: dict[str, Any] = {"monitors": len(each)}
        for key, column, statistic, way in (
                ("average_gpu_utilization", "gpu_utilization_ratio", "mean", "mean"),
                ("peak_gpu_utilization", "gpu_utilization_ratio", "max", "max"),
                ("gpu_power_mw", "gpu_power_mw", "mean", "sum"),
                ("memory_used_bytes", "memory_used_bytes", "last", "sum"),
                ("memory_read_bytes_per_s", "memory_read_bytes_per_s", "mean", "sum"),
                ("memory_write_bytes_per_s", "memory_write_bytes_per_s", "mean", "sum")):
            values = [a["figures"][column][statistic] for a in each.values() if column in a["figures"]]
            value = None if not values else max(values) if way == "max" else sum(values) / (len(values) if way == "mean" else 1)
            total[key] = {"value": value, "of": len(values)}
        return {"total": total, "each": each}
