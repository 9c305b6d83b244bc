"""Prometheus exporter and dashboard for one Mac; a rack of them is Prometheus' job (prometheus/ beside this file).

    python examples/exporter.py                                                      # this Mac
    python examples/exporter.py --recording examples/recordings/m5max-macos27.json   # a recorded one, on any OS

and open http://127.0.0.1:19835/. Needs `pip install starlette uvicorn prometheus-client 'plotly>=6'`.

    /               dashboard, live and historical      /metrics        Prometheus text or OpenMetrics, by Accept
    /api/snapshot   Snapshot.to_dict() as JSON          /api/events     the same as server-sent events
    /api/history    columns for the charts              /healthz        200 while the Mac answers, else 503

One scrape is one snapshot. A figure without a value is an absent series, never 0: applegpu_metric_available says why.
Energy and active time are the hardware's own counters: a restarted exporter loses nothing.
"""
from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import json
import math
import os
import plistlib
import re
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from array import array
from collections import deque
from typing import Any, AsyncIterator, Callable, Iterator, NamedTuple, Sequence

import _common as common
from _common import ag, source_name     # type: ignore[attr-defined]    # found beside this folder where not installed

HERE = os.path.dirname(os.path.abspath(__file__))
PORT = 19835

# ---- metrics: a table, and what has as many series as the Mac has parts


class Metric(NamedTuple):
    """One name. series: (value of the label or "", Snapshot field with .attributes, factor to the base unit)."""
    name: str
    kind: str                       # gauge or counter
    text: str                       # HELP; ends with the original source
    label: str
    series: tuple[tuple[str, str, float], ...]


def _plain(name: str, kind: str, text: str, field: str, factor: float = 1.0) -> Metric:
    """A metric of one series, without a label."""
    return Metric(name, kind, text, "", (("", field, factor),))


_MILLI, _MEGA, _PERCENT = 0.001, 1e6, 0.01
METRICS = (
    Metric("applegpu_utilization_ratio", "gauge",
           "The driver's own instantaneous utilisation [registry PerformanceStatistics]",
           "kind", tuple((k, "gpu_%s_percent" % k, _PERCENT) for k in ("device", "renderer", "tiler"))),
    _plain("applegpu_active_ratio", "gauge",
           "Share of the interval the GPU was not idle, what powermetrics prints [ioreport GPU Stats]",
           "gpu_active_ratio"),
    _plain("applegpu_scaled_ratio", "gauge",
           "Active share weighted by clock / highest clock [ioreport GPU Stats]", "gpu_scaled_ratio"),
    _plain("applegpu_active_seconds", "counter",
           "Time the GPU was not idle since its driver started: rate() is the utilisation over any window "
           "[ioreport GPU Stats]",
           "gpu_active_total_s"),
    _plain("applegpu_frequency_hertz", "gauge",
           "Mean clock while active, as requested by the driver [ioreport GPU Stats]", "gpu_clock_mhz", _MEGA),
    _plain("applegpu_frequency_max_hertz", "gauge",
           "Highest clock of the chip's table [registry]", "gpu_max_clock_mhz", _MEGA),
    Metric("applegpu_energy_joules", "counter",
           "Energy as the hardware counts it; rate() is watts [ioreport Energy Model]",
           "rail", (("gpu", "gpu_energy_mj", _MILLI), ("cpu", "cpu_energy_mj", _MILLI),
               ("ane", "ane_energy_mj", _MILLI), ("dram", "memory_energy_mj", _MILLI))),
    Metric("applegpu_power_watts", "gauge",
           "Mean power between two publications of the driver [ioreport Energy Model]",
           "rail", (("gpu", "gpu_power_mw", _MILLI), ("gpu_sram", "gpu_sram_power_mw", _MILLI),
               ("cpu", "cpu_power_mw", _MILLI), ("ane", "ane_power_mw", _MILLI),
               ("dram", "memory_power_mw", _MILLI), ("encode", "encode_power_mw", _MILLI),
               ("decode", "decode_power_mw", _MILLI))),
    _plain("applegpu_package_power_watts", "gauge",
           "CPU + GPU + ANE, all three or none [ioreport Energy Model]", "package_power_mw", _MILLI),
    _plain("applegpu_system_power_watts", "gauge", "The whole machine [smc PSTR]", "system_power_mw", _MILLI),
    _plain("applegpu_power_limit_watts", "gauge",
           "Cap on the GPU's power, where one is set [registry MaxGPUAbsolutePower]", "gpu_power_limit_mw", _MILLI),
    Metric("applegpu_temperature_celsius", "gauge",
           "Mean or highest of the die's plausible sensors [smc, hid]",
           "sensor", (("gpu_mean", "gpu_temperature_celsius", 1), ("gpu_max", "gpu_temperature_max_celsius", 1),
               ("cpu_mean", "cpu_temperature_celsius", 1))),
    _plain("applegpu_thermal_pressure_level", "gauge",
           "0 nominal, 1 moderate, 2 heavy, 3 trapping, 4 sleeping [notify]", "thermal_pressure_level"),
    _plain("applegpu_throttle_ratio", "gauge",
           "Share of the interval thermal management held the clock down [ioreport GPU_CLTM]",
           "gpu_throttle.cltm_ratio"),
    _plain("applegpu_power_budget_ratio", "gauge",
           "Power granted of the GPU's maximum [ioreport GPU_PPM]", "gpu_throttle.ppm_percent", _PERCENT),
    _plain("applegpu_recoveries", "counter",
           "Times the driver restarted a hung GPU [registry recoveryCount]", "gpu_recovery_count"),
    _plain("applegpu_memory_used_bytes", "gauge",
           "GPU memory in use by every process [registry In use system memory]", "memory_used_bytes"),
    _plain("applegpu_memory_allocated_bytes", "gauge",
           "GPU memory allocated by every process [registry Alloc system memory]", "memory_allocated_bytes"),
    _plain("applegpu_memory_headroom_bytes", "gauge",
           "What the GPU may still take: the smaller of free RAM and limit - used [registry, mach]",
           "memory_headroom_bytes"),
    _plain("applegpu_memory_read_bytes_per_second", "gauge",
           "DRAM bytes read [ioreport AMC Stats or PMP]", "memory_read.bytes_per_s"),
    _plain("applegpu_memory_write_bytes_per_second", "gauge",
           "DRAM bytes written [ioreport AMC Stats or PMP]", "memory_write.bytes_per_s"),
    _plain("applegpu_memory_read_bytes", "counter",
           "DRAM bytes read since start, where the chip counts bytes [ioreport AMC Stats]", "memory_read_total_bytes"),
    _plain("applegpu_memory_write_bytes", "counter",
           "DRAM bytes written since start, where the chip counts bytes [ioreport AMC Stats]", "memory_write_total_bytes"),
    Metric("applegpu_memory_agent_read_bytes_per_second", "gauge",
           "DRAM bytes read by one part of the chip [ioreport AMC Stats or PMP]",
           "agent", tuple((a, "memory_%s_read.bytes_per_s" % a, 1) for a in ag.AGENTS)),
    Metric("applegpu_memory_agent_write_bytes_per_second", "gauge",
           "DRAM bytes written by one part of the chip [ioreport AMC Stats or PMP]",
           "agent", tuple((a, "memory_%s_write.bytes_per_s" % a, 1) for a in ag.AGENTS)),
    _plain("applegpu_memory_bandwidth_limit_bytes_per_second", "gauge",
           "What Apple sells the chip with [table]", "memory_max_bytes_per_s"),
    Metric("applegpu_media_bytes_per_second", "gauge",
           "DRAM traffic of a video engine [ioreport]",
           "engine", tuple((e, "%s_bandwidth.bytes_per_s" % e, 1) for e in ag.ENGINES)),
    _plain("applegpu_ane_power_state", "gauge",
           "The Neural Engine driver's power state [registry H11ANEIn]", "ane_power_state"),
    _plain("applegpu_cpu_total_utilization_ratio", "gauge",
           "All CPU cores, scheduler ticks [mach]", "cpu_utilization_percent", _PERCENT),
    _plain("applegpu_ram_total_bytes", "gauge", "Main memory [sysctl hw.memsize]", "system_memory.total_bytes"),
    _plain("applegpu_ram_used_bytes", "gauge",
           "App + wired + compressed, as Activity Monitor [mach vm_statistics64]", "system_memory.used_bytes"),
    _plain("applegpu_ram_available_bytes", "gauge",
           "Total - used [mach vm_statistics64]", "system_memory.available_bytes"),
    _plain("applegpu_ram_wired_bytes", "gauge", "Wired pages [mach vm_statistics64]", "system_memory.wired_bytes"),
    _plain("applegpu_ram_compressed_bytes", "gauge",
           "Held by the compressor [mach vm_statistics64]", "system_memory.compressed_bytes"),
    _plain("applegpu_swap_used_bytes", "gauge", "Swap in use [sysctl vm.swapusage]", "system_swap.used_bytes"),
    _plain("applegpu_swap_total_bytes", "gauge", "Swap files [sysctl vm.swapusage]", "system_swap.total_bytes"),
    _plain("applegpu_battery_ratio", "gauge",
           "Charge [registry AppleSmartBattery]", "system_power_source.battery_percent", _PERCENT),
)
# Names whose series are not known beforehand, for the documentation and the tests: (name, kind, labels, help).
DYNAMIC = (
    ("applegpu_up", "gauge", "", "1 while the Mac answers; 0 with every other series but the exporter's own absent"),
    ("applegpu_info", "gauge", "name, chip, cores, model, os, driver, metal_family, source",
     "What it is; join on it instead of labelling every series"),
    ("applegpu_metric_available", "gauge", "metric, of, reason",
     "1 and reason \"\" where the series is there, else 0 and why not"),
    ("applegpu_metric_estimated", "gauge", "metric, of", "1 for a figure that is an estimate by nature"),
    ("applegpu_sample_age_seconds", "gauge", "figure", "Seconds since the newest thing measured for a figure"),
    ("applegpu_sample_interval_seconds", "gauge", "figure", "The span a gauge that is a rate was measured over"),
    ("applegpu_sample_timestamp_seconds", "gauge", "", "When the snapshot was taken, Unix time"),
    ("applegpu_scrape_duration_seconds", "gauge", "", "What taking the snapshot cost"),
    ("applegpu_memory_limit_bytes", "gauge", "source",
     "What the GPU may use: source wired_limit (iogpu.wired_limit_mb) or metal"),
    ("applegpu_state_residency_ratio", "gauge", "state, hertz",
     "Share of the interval in each clock state [ioreport GPU Stats]"),
    ("applegpu_memory_bandwidth_saturated", "gauge", "",
     "1 when the histogram's top bucket was full: the truth is higher"),
    ("applegpu_ane_utilization_ratio", "gauge", "method", "Neural Engine use, an estimate by the method named"),
    ("applegpu_cpu_utilization_ratio", "gauge", "core_type, cpu", "Scheduler ticks of one group of cores [mach]"),
    ("applegpu_cpu_active_ratio", "gauge", "core_type, cpu", "Residency outside idle states [ioreport CPU Stats]"),
    ("applegpu_cpu_frequency_hertz", "gauge", "core_type, cpu", "Mean clock while active [ioreport CPU Stats]"),
    ("applegpu_cpu_power_watts", "gauge", "core_type, cpu", "Power of one group of cores [ioreport Energy Model]"),
    ("applegpu_fan_rpm", "gauge", "fan", "Fan speed [smc]"),
    ("applegpu_fan_ratio", "gauge", "fan", "Fan speed of the fan's own maximum [smc]"),
    ("applegpu_memory_pressure", "gauge", "level", "1 for the kernel's present judgement, 0 for the others [sysctl]"),
    ("applegpu_on_ac_power", "gauge", "", "1 on mains power [IOPS]"),
    ("applegpu_process_gpu_seconds_total", "counter", "pid, name",
     "GPU time of a process; --processes only [registry AppUsage]"),
    ("applegpu_process_memory_bytes", "gauge", "pid, name", "Footprint of a process; --processes only [libproc]"),
)
# The eight names of Triton's Metal monitor; --triton-names adds those that can be had from outside the process that
# launches the kernels. metal_kernel_* and metal_command_buffer_* cannot: they belong to that process.
TRITON = (
    ("metal_gpu_utilization_ratio", "gpu_active_ratio", 1.0, "GPU utilisation (0-1); applegpu_active_ratio"),
    ("metal_memory_bandwidth_gbps", "bandwidth", 1e-9,
     "Memory bandwidth in GB/s; applegpu_memory_{read,write}_bytes_per_second"),
    ("metal_memory_allocated_bytes", "memory_allocated_bytes", 1.0,
     "Allocated GPU memory; applegpu_memory_allocated_bytes"),
    ("metal_power_consumption_watts", "gpu_power_mw", _MILLI, "GPU power; applegpu_power_watts{rail=\"gpu\"}"),
    ("metal_thermal_state", "thermal_state", 1.0,
     "0 nominal 1 fair 2 serious 3 critical; applegpu_thermal_pressure_level"),
)
_AGES = (("utilization", "gpu_utilization_percent"), ("power_gpu", "gpu_power_mw"), ("power_cpu", "cpu_power_mw"),
         ("power_ane", "ane_power_mw"), ("power_dram", "memory_power_mw"), ("power_system", "system_power_mw"),
         ("temperature", "gpu_temperature_celsius"), ("bandwidth", "memory_read"))


def figure(snapshot: ag.Snapshot, path: str) -> Any:
    """The value at "field" or "field.attribute", None where there is none."""
    if path in _MADE:
        return _MADE[path](snapshot)
    field, _, attribute = path.partition(".")
    value = getattr(snapshot, field)
    return getattr(value, attribute) if attribute and value is not None else value


def reason(snapshot: ag.Snapshot, path: str) -> str:
    """Why figure() is None."""
    return snapshot.reasons.get(path.partition(".")[0]) or ag.REASON_CHIP


def _bandwidth(snapshot: ag.Snapshot) -> float | None:
    read, write = snapshot.memory_read, snapshot.memory_write
    return None if read is None or write is None else read.bytes_per_s + write.bytes_per_s


def _thermal_state(snapshot: ag.Snapshot) -> int | None:
    level = snapshot.thermal_pressure_level
    return None if level is None else min(level, 3)


_MADE: dict[str, Callable[[ag.Snapshot], float | None]] = {"bandwidth": _bandwidth, "thermal_state": _thermal_state}


class Families:
    """Collects metric families; the one place where a value becomes a series, and a missing one does not."""

    def __init__(self, host_label: str | None) -> None:
        self.host = {"host": host_label} if host_label else {}
        self._found: dict[str, Any] = {}

    def add(self, name: str, kind: str, text: str, labels: dict[str, Any], value: float | None) -> None:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
        if value is None or not math.isfinite(value):
            return
        labels = {**labels, **self.host}
        family = self._found.get(name)
        if family is None:
            make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            family = self._found[name] = make(name, text, labels=tuple(labels))
        family.add_metric([str(v) for v in labels.values()], float(value))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._found.values())


class Sampled(NamedTuple):
    """A snapshot with what it cost, or the sentence why there is none."""
    snapshot: ag.Snapshot | None
    error: str
    seconds: float
    taken: float        # time.monotonic()


def take(device: ag.Device, parts: Sequence[str], facts: dict[str, str], timeout: float = 0.1) -> Sampled:
    """One snapshot; the first that succeeds fills `facts` too."""
    began = time.monotonic()
    try:
        snapshot = ag.DeviceGetSnapshot(device, parts, timeout=timeout)
        facts.update(facts or facts_of(device, snapshot))
        return Sampled(snapshot, "", time.monotonic() - began, began)
    except ag.AppleGPUError as error:
        return Sampled(None, str(error), time.monotonic() - began, began)


def parts_of(args: argparse.Namespace) -> tuple[str, ...]:
    """What a snapshot has to hold: processes only when asked for."""
    return tuple(p for p in ag.PARTS if p != "processes" or args.processes)


def families(sampled: Sampled, facts: dict[str, str], host_label: str | None = None, processes: bool = False,
             triton: bool = False) -> Families:
    """Every series of one scrape."""
    out = Families(host_label)
    texts = {name: text for name, _, _, text in DYNAMIC}

    def put(name: str, labels: dict[str, Any], value: float | None) -> None:
        out.add(name, "gauge", texts[name], labels, value)

    snapshot = sampled.snapshot
    put("applegpu_up", {}, 0 if snapshot is None else 1)
    put("applegpu_scrape_duration_seconds", {}, sampled.seconds)
    if snapshot is None:
        return out
    put("applegpu_info", facts, 1)
    put("applegpu_sample_timestamp_seconds", {}, snapshot.time_unix_s)
    for metric in METRICS:
        _from_table(out, put, snapshot, metric)
    for name, field in _AGES:
        put("applegpu_sample_age_seconds", {"figure": name}, snapshot.ages.get(field))
        put("applegpu_sample_interval_seconds", {"figure": name}, snapshot.intervals.get(field))
    for part in (_put_memory, _put_states, _put_bandwidth, _put_ane, _put_cpu, _put_fans, _put_power_source):
        part(put, snapshot)
    if processes:
        _put_processes(out, put, snapshot)
    for name, path, factor, text in TRITON if triton else ():
        value = figure(snapshot, path)
        out.add(name, "gauge", text, {}, None if value is None else value * factor)
    return out


def full_name(metric: Metric) -> str:
    """As it stands in the text: prometheus-client adds _total to counters by itself."""
    return metric.name + ("_total" if metric.kind == "counter" else "")


Put = Callable[[str, "dict[str, Any]", "float | None"], None]


def _available(put: Put, name: str, of: str, why: str) -> None:
    put("applegpu_metric_available", {"metric": name, "of": of, "reason": why}, 0 if why else 1)


def _from_table(out: Families, put: Put, snapshot: ag.Snapshot, metric: Metric) -> None:
    full = full_name(metric)
    for of, path, factor in metric.series:
        value = figure(snapshot, path)
        _available(put, full, of, reason(snapshot, path) if value is None else "")
        if value is None:
            continue
        out.add(metric.name, metric.kind, metric.text, {metric.label: of} if metric.label else {}, value * factor)
        if path.partition(".")[0] in snapshot.estimated:
            put("applegpu_metric_estimated", {"metric": full, "of": of}, 1)


def _put_memory(put: Put, snapshot: ag.Snapshot) -> None:
    name, wired = "applegpu_memory_limit_bytes", snapshot.memory_wired_limit_bytes
    put(name, {"source": "metal" if wired is None else "wired_limit"}, snapshot.memory_total_bytes)
    _available(put, name, "", "" if snapshot.memory_total_bytes is not None else reason(snapshot, "memory_total_bytes"))
    pressure = snapshot.system_memory_pressure
    if pressure is not None:
        for level in ag.MEMORY_PRESSURE.values():
            put("applegpu_memory_pressure", {"level": level}, int(level == pressure.level))


def _put_states(put: Put, snapshot: ag.Snapshot) -> None:
    name = "applegpu_state_residency_ratio"
    for state in snapshot.gpu_states or ():
        put(name, {"state": state.name, "hertz": "" if state.mhz is None else state.mhz * 1000000}, state.ratio)
    _available(put, name, "", "" if snapshot.gpu_states else reason(snapshot, "gpu_states"))


def _put_bandwidth(put: Put, snapshot: ag.Snapshot) -> None:
    known = [b for b in (snapshot.memory_read, snapshot.memory_write) if b is not None]
    put("applegpu_memory_bandwidth_saturated", {}, int(any(b.saturated for b in known)) if known else None)


def _put_ane(put: Put, snapshot: ag.Snapshot) -> None:
    name, percent = "applegpu_ane_utilization_ratio", snapshot.ane_utilization_percent
    _available(put, name, "", "" if percent is not None else reason(snapshot, "ane_utilization_percent"))
    if percent is not None:
        put(name, {"method": snapshot.ane_utilization_method}, percent * _PERCENT)
        put("applegpu_metric_estimated", {"metric": name, "of": ""}, 1)


_CPU = (("applegpu_cpu_utilization_ratio", "utilization_percent", _PERCENT),
        ("applegpu_cpu_active_ratio", "active_ratio", 1.0),
        ("applegpu_cpu_frequency_hertz", "clock_mhz", _MEGA), ("applegpu_cpu_power_watts", "power_mw", _MILLI))


def _put_cpu(put: Put, snapshot: ag.Snapshot) -> None:
    for name, field, factor in _CPU:
        if snapshot.cpu_clusters is None:
            _available(put, name, "", reason(snapshot, "cpu_clusters"))
        for cluster in snapshot.cpu_clusters or ():
            value = getattr(cluster, field)
            _available(put, name, cluster.name, "" if value is not None else cluster.reasons.get(field, ag.REASON_CHIP))
            if value is not None:
                put(name, {"core_type": cluster.core_type, "cpu": cluster.name}, value * factor)


def _put_fans(put: Put, snapshot: ag.Snapshot) -> None:
    if snapshot.fans is None:
        _available(put, "applegpu_fan_rpm", "", reason(snapshot, "fans"))
    for number, fan in enumerate(snapshot.fans or ()):
        put("applegpu_fan_rpm", {"fan": number}, fan.rpm)
        put("applegpu_fan_ratio", {"fan": number}, None if fan.percent is None else fan.percent * _PERCENT)


def _put_power_source(put: Put, snapshot: ag.Snapshot) -> None:
    source = snapshot.system_power_source
    put("applegpu_on_ac_power", {}, None if source is None else int(source.source == "AC Power"))


def _put_processes(out: Families, put: Put, snapshot: ag.Snapshot) -> None:
    if snapshot.processes is None:
        _available(put, "applegpu_process_gpu_seconds_total", "", reason(snapshot, "processes"))
    for process in snapshot.processes or ():
        labels = {"pid": process.pid, "name": process.name}
        out.add("applegpu_process_gpu_seconds", "counter", {d[0]: d[3] for d in DYNAMIC}[
            "applegpu_process_gpu_seconds_total"], labels, process.gpu_time_ns / 1e9)
        put("applegpu_process_memory_bytes", labels, process.footprint_bytes)


def facts_of(device: ag.Device, snapshot: ag.Snapshot) -> dict[str, str]:
    """Labels of applegpu_info: what does not change while the exporter runs; "" where it cannot be had."""
    family = ag.Try(ag.DeviceGetMetalFamily, device)
    values = {"name": snapshot.gpu_name, "chip": snapshot.system_chip_name, "cores": snapshot.gpu_core_count,
              "model": snapshot.system_model, "os": snapshot.system_os_version, "driver": snapshot.system_driver_version,
              "metal_family": family.value, "source": source_name(snapshot)}
    return {key: "" if value is None else str(value) for key, value in values.items()}


def render(found: Families, accept: str = "") -> tuple[bytes, str]:
    """(text, content type): OpenMetrics for those who accept it."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    class Collector:
        def collect(self) -> Iterator[Any]:
            return iter(found)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def as_dict(snapshot: ag.Snapshot) -> dict[str, Any]:
    return {**snapshot.to_dict(), "source": source_name(snapshot)}


# ---- history: what the charts draw from, in arrays that never grow

COLUMNS = tuple(dict.fromkeys(
    [path for m in METRICS for _, path, _ in m.series if m.kind == "gauge" and not m.name.startswith("applegpu_ram")
     and not m.name.startswith(("applegpu_swap", "applegpu_battery"))]
    + ["memory_total_bytes", "ane_utilization_percent", "gpu_utilization_percent", "system_memory.used_bytes"]))
TIERS = ((1.0, 900), (10.0, 8640))      # (seconds a slot, slots): 15 minutes fine, a day coarse


class History:
    """Recent values of COLUMNS: the last value of each slot, nan where there was none; and why, in spans."""

    def __init__(self, tiers: Sequence[tuple[float, int]] = TIERS) -> None:
        self.tiers = tuple(tiers)
        self.times = [array("d", [math.nan]) * slots for _, slots in tiers]
        self.rings = [{c: array("d", [math.nan]) * slots for c in COLUMNS} for _, slots in tiers]
        self.gaps: dict[str, deque[list[Any]]] = {c: deque(maxlen=50) for c in COLUMNS}
        self.last = 0.0
        self._lock = threading.Lock()       # the event loop adds while a thread answers: held for a copy only

    def add(self, snapshot: ag.Snapshot) -> None:
        row = {c: figure(snapshot, c) for c in COLUMNS}
        with self._lock:
            self._add(snapshot, row)

    def _add(self, snapshot: ag.Snapshot, row: dict[str, float | None]) -> None:
        t = snapshot.time_unix_s
        for (step, slots), times, rings in zip(self.tiers, self.times, self.rings):
            at = int(t / step) % slots
            times[at] = t
            for column, value in row.items():
                rings[column][at] = math.nan if value is None else value
        for column, value in row.items():
            if value is None:
                self._gap(column, t, reason(snapshot, column))
        self.last = t

    def _gap(self, column: str, t: float, why: str) -> None:
        spans = self.gaps[column]
        if spans and spans[-1][2] == why and spans[-1][1] >= self.last - 0.001:
            spans[-1][1] = t
        else:
            spans.append([t, t, why])

    def answer(self, seconds: float, points: int = 600, until: float = math.inf) -> dict[str, Any]:
        """Columns over the seconds before `until`, at most about `points` rows, a row of nulls where nobody measured."""
        with self._lock:
            until = min(until, self.last)
            which = 0 if self.last - until + seconds <= self.tiers[0][0] * self.tiers[0][1] else 1
            step, times, rings = self.tiers[which][0], self.times[which][:], {c: r[:] for c, r in self.rings[which].items()}
            kept = {c: [list(span) for span in spans] for c, spans in self.gaps.items()}
        rows = sorted((t, i) for i, t in enumerate(times) if until - seconds <= t <= until)
        stride = max(1, -(-len(rows) // max(1, points)))
        places = self._with_breaks(rows[::-1][::stride][::-1], 3.5 * step * stride)
        columns = {c: [None if i is None or math.isnan(ring[i]) else ring[i] for _, i in places]
                   for c, ring in rings.items()}
        gaps = {c: [g for g in spans if until - seconds <= g[1] and g[0] <= until] for c, spans in kept.items()}
        return {"time_unix_s": [round(t, 3) for t, _ in places], "step_s": step * stride, "columns": columns,
                "gaps": {c: g for c, g in gaps.items() if g}}

    def answer_json(self, *asked: Any) -> bytes:
        """In a thread, while the event loop may add."""
        return json.dumps(self.answer(*asked), allow_nan=False).encode()

    def _with_breaks(self, rows: list[tuple[float, int]], most: float) -> list[tuple[float, int | None]]:
        out: list[tuple[float, int | None]] = []
        for t, i in rows:
            if out and t - out[-1][0] > max(most, self._idle):
                out.append((out[-1][0] + 0.001, None))
            out.append((t, i))
        return out

    _idle = 25.0        # longer silence than between two background samples is a break in the line


# ---- taking snapshots: one at a time, one for everybody who asks at once

LATE = "the Mac did not answer in time"


class Sampler:
    """Takes snapshots in a thread, one at a time; the event loop never waits for the Mac."""

    FRESH = 0.25        # seconds a snapshot serves everybody: a flood of scrapes costs what one costs
    PATIENCE = 8.0      # seconds a Mac may take to answer

    def __init__(self, device: ag.Device, args: argparse.Namespace) -> None:
        self.device, self.parts = device, parts_of(args)
        self.live, self.idle = args.live, args.interval
        self.history = History()
        self.history._idle = 2.5 * max(self.live, self.idle or 10)
        self.latest: Sampled | None = None
        self.facts: dict[str, str] = {}
        self.count, self.watchers, self.closing = 0, 0, False
        self.news = asyncio.Condition()
        self.event = b""
        self._task: asyncio.Task[Sampled] | None = None
        self._wake = asyncio.Event()

    def take(self) -> Sampled:
        """In the thread."""
        return take(self.device, self.parts, self.facts)

    async def get(self) -> Sampled:
        """A snapshot taken now, or up to FRESH seconds ago; raises TimeoutError when the Mac does not answer."""
        if self.latest is not None and time.monotonic() - self.latest.taken < self.FRESH:
            return self.latest
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._take())
        return await asyncio.wait_for(asyncio.shield(self._task), self.PATIENCE)

    async def _take(self) -> Sampled:
        sampled: Sampled = await common.in_thread(self.take)
        self.latest = sampled
        if sampled.snapshot is not None:
            self.history.add(sampled.snapshot)
        await self._tell(sampled)
        return sampled

    async def _tell(self, sampled: Sampled) -> None:
        """Wake the event streams."""
        self.event = b"data: " + self.event_json(sampled) + b"\n\n"
        async with self.news:
            self.count += 1
            self.news.notify_all()

    def stuck(self) -> Sampled:
        """What there is to say while a call hangs."""
        return Sampled(None, LATE, self.PATIENCE, time.monotonic() - self.PATIENCE)

    def event_json(self, sampled: Sampled) -> bytes:
        if sampled.snapshot is None:
            return json.dumps({"error": sampled.error}).encode()
        return json.dumps(as_dict(sampled.snapshot), allow_nan=False).encode()

    async def pump(self) -> None:
        """Samples for the dashboard: every `live` seconds while somebody looks, else every `idle` for its history."""
        due: float | None = time.monotonic()
        while not self.closing:
            try:
                await self.get()
            except asyncio.TimeoutError:
                await self._tell(self.stuck())
            every = self.live if self.watchers else self.idle or None
            due = None if every is None else max((due or 0) + every, time.monotonic() + every / 10)
            self._wake.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), None if due is None else due - time.monotonic())
                due = time.monotonic()      # woken: somebody began to look

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.watchers += 1
        if self.watchers == 1:
            self._wake.set()
        try:
            yield
        finally:
            self.watchers -= 1

    async def next(self, seen: int, patience: float) -> bool:
        """Wait for a snapshot that is not number `seen`; False when none came."""
        async with self.news:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.news.wait_for(lambda: self.count != seen or self.closing), patience)
        return self.count != seen

    def ended(self, pump: asyncio.Task[None]) -> None:
        """A pump that fails (a defect, not a missing figure) ends the exporter: launchd starts it again."""
        if not pump.cancelled() and pump.exception() is not None:
            print("exporter: %r" % pump.exception(), file=sys.stderr, flush=True)
            signal.raise_signal(signal.SIGTERM)

    async def close(self) -> None:
        self.closing = True
        self._wake.set()
        async with self.news:
            self.news.notify_all()


# ---- pages

CSP = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
       "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
_HEADERS = ((b"content-security-policy", CSP.encode()), (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"), (b"cross-origin-resource-policy", b"same-origin"))


class Guard:
    """ASGI middleware: the Host header (against DNS rebinding), the token, and headers for every answer."""

    def __init__(self, app: Any, token: str | None, hosts: set[str] | None) -> None:
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        refusal = self._refuse(scope["path"], headers)
        app = self.app if refusal is None else refusal
        await app(scope, receive, with_headers)

    def _refuse(self, path: str, headers: dict[bytes, bytes]) -> Any:
        from starlette.responses import PlainTextResponse
        host = _host_of(headers.get(b"host", b"").decode("latin-1"))
        if self.hosts is not None and host not in self.hosts:
            return PlainTextResponse("this exporter does not answer for that host name (--allow-host)\n", 421)
        if self.token and path != "/healthz" and not self._admitted(headers.get(b"authorization", b"")):
            return PlainTextResponse("a token is needed\n", 401, {"www-authenticate": 'Basic realm="applegpu"'})
        return None

    def _admitted(self, header: bytes) -> bool:
        """Bearer TOKEN, or Basic with the token as password (so that a browser asks for it)."""
        scheme, _, given = header.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except ValueError:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(given.strip(), (self.token or "").encode())


def _host_of(text: str) -> str:
    """The host of a Host header, without port or brackets."""
    if text.startswith("["):
        return text[1:].partition("]")[0].lower()
    return text.partition(":")[0].lower()


def plotly_js() -> bytes:
    """plotly.min.js of the installed plotly package."""
    import importlib.util
    found = importlib.util.find_spec("plotly")
    if found is None or not found.origin:
        raise SystemExit("exporter: the dashboard needs plotly: pip install plotly (or start with --no-dashboard)")
    with open(os.path.join(os.path.dirname(found.origin), "package_data", "plotly.min.js"), "rb") as file:
        script = file.read()
    if b"no-inline-styles" not in script:       # before plotly.js 3 it cannot run under the content security policy
        raise SystemExit("exporter: the dashboard needs plotly 6 or later (or start with --no-dashboard)")
    return script


class Static:
    """A file that does not change while the exporter runs: read once, compressed once, known by its ETag."""

    def __init__(self, body: bytes, content_type: str) -> None:
        self.body, self.type = body, content_type
        self.tag = '"%s"' % hashlib.sha256(body).hexdigest()[:20]
        self.packed = gzip.compress(body, 6, mtime=0)

    async def respond(self, request: Any) -> Any:
        from starlette.responses import Response
        headers = {"etag": self.tag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self.packed, headers={**headers, "content-encoding": "gzip"}, media_type=self.type)
        return Response(self.body, headers=headers, media_type=self.type)


def _static_files() -> dict[str, Static]:
    kinds = {"index.html": ("/", "text/html"), "app.js": ("/app.js", "text/javascript"),
             "style.css": ("/style.css", "text/css"), "icon.svg": ("/icon.svg", "image/svg+xml")}
    found = {}
    for name, (path, kind) in kinds.items():
        with open(os.path.join(HERE, "dashboard", name), "rb") as file:
            found[path] = Static(file.read(), kind)
    script = plotly_js()
    # Parts of plotly.js bring styles of their own (its maps), which the policy forbids, unless an element has their id.
    ids = sorted(set(re.findall(rb'getElementById\("([0-9a-f]{64})"\)', script)))
    page = found["/"].body.replace(b"<!-- plotly styles -->", b"".join(b'<meta id="%s">' % i for i in ids))
    return {**found, "/": Static(page, "text/html"), "/plotly.min.js": Static(script, "text/javascript")}


class EventStream:
    """Server-sent events: each client gets the newest snapshot when it can take one, there is no queue."""

    def __init__(self, sampler: Sampler, most: int) -> None:
        self.sampler, self.most = sampler, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse
        if scope["method"] == "HEAD":
            await self._start(send)
            return await send({"type": "http.response.body", "body": b""})
        if scope["method"] != "GET":
            return await PlainTextResponse("GET only\n", 405, {"allow": "GET, HEAD"})(scope, receive, send)
        if self.sampler.watchers >= self.most:
            return await PlainTextResponse("too many event streams\n", 503, {"retry-after": "5"})(scope, receive, send)
        with self.sampler.watching():
            gone = asyncio.ensure_future(self._gone(receive))
            feed = asyncio.ensure_future(self._feed(send))
            try:
                await asyncio.wait({gone, feed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (gone, feed):
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, OSError):
                        await task

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _body(self, send: Any, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _start(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [      # a new one each time: others add to it
            (b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]})

    async def _feed(self, send: Any) -> None:
        await self._start(send)
        await self._body(send, b"retry: 2000\n\n")
        seen = self.sampler.count - 1 if self.sampler.event else self.sampler.count
        while not self.sampler.closing:
            if await self.sampler.next(seen, 15):
                seen = self.sampler.count
                await self._body(send, self.sampler.event)
            else:
                await self._body(send, b": still here\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def application(sampler: Sampler, args: argparse.Namespace) -> Any:
    """The ASGI application."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    no_store, reading = {"cache-control": "no-store"}, asyncio.Lock()

    async def metrics(request: Request) -> Response:
        try:
            sampled = await sampler.get()
        except asyncio.TimeoutError:
            sampled = sampler.stuck()
        found = families(sampled, sampler.facts, args.host_label, args.processes, args.triton_names)
        text, content_type = render(found, request.headers.get("accept", ""))
        return Response(text, headers={**no_store, "content-type": content_type})

    async def snapshot(request: Request) -> Response:
        sampled = await sampler.get()
        return Response(sampler.event_json(sampled), 200 if sampled.snapshot else 503, no_store, "application/json")

    async def history(request: Request) -> Response:
        asked = request.query_params
        try:
            seconds, points = float(asked.get("seconds", 300)), int(asked.get("points", 600))
            until = float(asked.get("until", "inf"))
        except ValueError:
            seconds, points, until = -1.0, 0, 0.0
        if not (0 < seconds <= 1e6 and 0 < points <= 5000 and until > 0):
            return PlainTextResponse("seconds, points and until must be positive numbers\n", 400)
        async with reading:     # a day of every column takes a tenth of a second: never in the way of a scrape
            answer = await common.in_thread(sampler.history.answer_json, seconds, points, until)
        return Response(answer, headers=no_store, media_type="application/json")

    async def health(request: Request) -> Response:
        try:
            sampled = await sampler.get()
        except asyncio.TimeoutError:
            return JSONResponse({"status": "stuck"}, 503, no_store)
        fine = sampled.snapshot is not None
        return JSONResponse({"status": "ok" if fine else "failed"}, 200 if fine else 503, no_store)

    async def late(request: Request, error: Exception) -> Response:
        return PlainTextResponse(LATE + "\n", 503)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        pump = asyncio.create_task(sampler.pump())
        pump.add_done_callback(sampler.ended)
        yield
        await sampler.close()
        pump.cancel()

    routes = [Route("/metrics", metrics), Route("/api/snapshot", snapshot), Route("/api/history", history),
              Route("/healthz", health), Route("/api/events", EventStream(sampler, args.max_streams))]
    if args.dashboard:
        routes += [Route(path, page.respond) for path, page in _static_files().items()]
    app = Starlette(routes=routes, lifespan=lifespan,
                    exception_handlers={asyncio.TimeoutError: late, TimeoutError: late})
    return Guard(app, args.token, args.hosts)


# ---- serving


_KEEP_ALIVE = 75        # seconds a connection may rest between requests; Prometheus scrapes every 15 to 60


def _server(app: Any, args: argparse.Namespace, sampler: Sampler) -> Any:
    """uvicorn with what it lacks: time limits for a slow sender and a reader that stops, a share for each address."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    held: dict[str, int] = {}
    share = max(1, args.max_connections // 2)

    class Protocol(H11Protocol):
        address, sender, reader, resting = "", None, None, False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            peer = transport.get_extra_info("peername")
            self.address = peer[0] if peer else "?"
            held[self.address] = held.get(self.address, 0) + 1
            if held[self.address] > share:
                self.connections.discard(self)      # or a burst of them would make uvicorn refuse everybody's requests
                transport.abort()
            else:
                self._expect(args.request_timeout)

        def connection_lost(self, error: Any) -> None:
            super().connection_lost(error)
            held[self.address] -= 1
            if not held[self.address]:
                del held[self.address]
            for timer in (self.sender, self.reader):
                if timer is not None:
                    timer.cancel()

        def _expect(self, seconds: float) -> None:
            """The next request must be here, and whole, in this time."""
            if self.sender is not None:
                self.sender.cancel()
            self.sender = self.loop.call_later(seconds, self._too_slow)

        def _too_slow(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

        def data_received(self, data: bytes) -> None:
            if self.resting:        # the first bytes of a further request on a kept connection
                self.resting = False
                self._expect(args.request_timeout)
            super().data_received(data)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing():
                self.resting = True
                self._expect(_KEEP_ALIVE)

        def pause_writing(self) -> None:
            super().pause_writing()
            self.reader = self.loop.call_later(args.write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.reader is not None:
                self.reader.cancel()

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            await sampler.close()
            await super().shutdown(sockets)

    return Server(uvicorn.Config(
        app, http=Protocol, ws="none", lifespan="on", log_level="error", access_log=False, server_header=False,
        proxy_headers=False, limit_concurrency=args.max_connections, timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=3, h11_max_incomplete_event_size=16384,
        ssl_certfile=args.tls_cert, ssl_keyfile=args.tls_key))


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is one sentence and port 0 can be named."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise SystemExit("exporter: cannot listen on %s port %d: %s" % (host, port, error)) from None
    return listener


async def _serve(device: ag.Device, args: argparse.Namespace) -> None:
    sampler = Sampler(device, args)
    server = _server(application(sampler, args), args, sampler)
    listener = _listen(args.host, args.port)
    host = "[%s]" % args.host if ":" in args.host else args.host
    print("exporter: http%s://%s:%d/" % ("s" if args.tls_cert else "", host, listener.getsockname()[1]),
          file=sys.stderr, flush=True)
    if not _is_loopback(args.host) and not args.token:
        print("exporter: anybody who reaches this address can read it; consider --token-file", file=sys.stderr,
              flush=True)
    await server.serve(sockets=[listener])


# ---- other ways out


def write_textfile(path: str, text: bytes) -> None:
    """For node_exporter's textfile collector: it never sees half a file."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(path)), prefix=".applegpu-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:       # Ctrl-C too
        os.unlink(temporary)
        raise


def _run_once(device: ag.Device, args: argparse.Namespace) -> int:
    """--once and --textfile: no server. The first text already has the rates."""
    facts: dict[str, str] = {}
    said, written = "", False
    while True:
        sampled = take(device, parts_of(args), facts, timeout=2.5)
        text, _ = render(families(sampled, facts, args.host_label, args.processes, args.triton_names))
        trouble = sampled.error
        if not args.textfile:
            sys.stdout.write(text.decode())
        else:
            try:
                write_textfile(args.textfile, text)
                written = True
            except OSError as error:        # a full disk may be empty again; until then the old file stays, with its time
                error.filename = args.textfile      # not that of the file which was to replace it
                if not written:
                    raise
                trouble = common.sentence(error)
        if trouble not in ("", said):
            print("exporter: %s" % trouble, file=sys.stderr, flush=True)
        said = trouble
        if args.once:
            return int(bool(trouble))
        time.sleep(args.interval or 10)


def launchd_plist(argv: Sequence[str]) -> bytes:
    """A LaunchAgent that runs this exporter with the same options."""
    rest = [_without_folder(word, before) for before, word in zip(["", *argv], argv) if word != "--launchd-plist"]
    return plistlib.dumps({
        "Label": "org.pyapplegpu.exporter",
        "ProgramArguments": [sys.executable, os.path.join(HERE, "exporter.py"), *rest],
        "RunAtLoad": True, "KeepAlive": True, "ThrottleInterval": 10, "ProcessType": "Background",
        "StandardErrorPath": os.path.expanduser("~/Library/Logs/applegpu-exporter.log")})


def _without_folder(word: str, before: str) -> str:
    """A word of the command line that means the same in every folder."""
    name, equals, path = word.partition("=")
    if equals and name in _PATHS:
        return name + "=" + os.path.abspath(path)
    return os.path.abspath(word) if before in _PATHS else word


_PATHS = ("--recording", "--token-file", "--tls-cert", "--tls-key", "--textfile")


def metric_table() -> str:
    """Every metric as a Markdown table."""
    lines = ["| metric | type | labels | what it is [source] |", "|---|---|---|---|"]
    for m in METRICS:
        label = "%s: %s" % (m.label, ", ".join(of for of, _, _ in m.series)) if m.label else ""
        lines.append("| `%s` | %s | %s | %s |" % (full_name(m), m.kind, label, m.text))
    lines += ["| `%s` | %s | %s | %s |" % (name, kind, labels, text) for name, kind, labels, text in DYNAMIC]
    return "\n".join(lines) + "\n"


# ---- command line


def _span(text: str) -> float:
    """Seconds, as everywhere in the tools, but 0 is allowed."""
    return 0.0 if text.strip() in ("0", "0s") else common.seconds(text)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def check(text: str) -> int:
        if text.isdigit() and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError("%r is not a number from %d to %d" % (text, low, high))
    return check


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="exporter.py", description="Prometheus exporter and dashboard for one Mac.",
                                     allow_abbrev=False)       # launchd_plist() knows the options by their names
    add = parser.add_argument
    common.add_source_options(parser)
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    add("--port", type=_whole(0, 65535), default=PORT, help="port to listen on, 0 for any (%d)" % PORT)
    add("--allow-host", action="append", default=[], metavar="NAME", help="host name to answer for; repeat for more")
    add("--token-file", metavar="FILE", help="ask for this token (or APPLEGPU_TOKEN), as Bearer or Basic's password")
    add("--tls-cert", metavar="FILE", help="certificate chain, PEM")
    add("--tls-key", metavar="FILE", help="its key, PEM")
    add("--processes", action="store_true", help="also per-process figures, with names")
    add("--host-label", metavar="NAME", help="add host=NAME to every series (none: Prometheus adds instance)")
    add("--triton-names", action="store_true", help="also under the metal_* names of Triton's Metal monitor")
    add("--no-dashboard", dest="dashboard", action="store_false", help="no page at /; plotly is not needed")
    add("--interval", type=_span, default=10.0, metavar="TIME", help="between samples of the history, 0: none (10s)")
    add("--live", type=_span, default=1.0, metavar="TIME", help="between samples while a dashboard is open (1s)")
    add("--max-connections", type=_whole(4, 65536), default=128, metavar="N",
        help="at once, half of them per address (128)")
    add("--max-streams", type=_whole(1, 65536), default=32, metavar="N", help="event streams at once (32)")
    add("--request-timeout", type=_span, default=10.0, metavar="TIME", help="for a request to arrive whole (10s)")
    add("--write-timeout", type=_span, default=30.0, metavar="TIME", help="for a reader that stopped reading (30s)")
    add("--once", action="store_true", help="print the metrics and end")
    add("--textfile", metavar="FILE", help="write the metrics to FILE every --interval, for node_exporter; no server")
    add("--launchd-plist", action="store_true", help="print a launchd agent that runs this with the other options")
    add("--list-metrics", action="store_true", help="print every metric as a Markdown table")
    return parser


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _complete(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What follows from the options; a wrong one ends the program with exit code 2."""
    if bool(args.tls_cert) != bool(args.tls_key):
        parser.error("--tls-cert and --tls-key go together")
    for path in (args.tls_cert, args.tls_key, args.token_file, args.recording):
        if path and not os.path.isfile(path):
            parser.error("no such file: %s" % path)
    if args.tls_cert:
        try:        # a password would be asked for on a terminal that a service has not
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(args.tls_cert, args.tls_key, password="")
        except (OSError, ValueError) as error:
            parser.error("--tls-cert and --tls-key are not a certificate with its unencrypted key: %s" % error)
    if not args.live:
        parser.error("--live must be longer than 0")
    args.token = os.environ.get("APPLEGPU_TOKEN") or None
    if args.token_file:
        with open(args.token_file, encoding="utf-8") as file:
            args.token = file.read().strip()
        if not args.token:
            parser.error("%s is empty" % args.token_file)
    args.hosts = None
    if args.allow_host or _is_loopback(args.host):
        args.hosts = {"127.0.0.1", "::1", "localhost", args.host.lower(), *(h.lower() for h in args.allow_host)}


def open_device(args: argparse.Namespace) -> ag.Device:
    """The Mac, or the recording; looped, it goes on since it was made: a restart does not set its counters back."""
    device = common.open_device(args)
    machine: Any = device._engine.machine    # type: ignore[union-attr]
    if machine.name != "live" and args.speed and args.loop:
        machine.clock._origin = time.monotonic() - max(0.0, time.time() - machine.clock.unix())
    return device


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list_metrics:
        sys.stdout.write(metric_table())
        return 0
    _complete(parser, args)
    if args.launchd_plist:
        if args.token and not args.token_file:
            parser.error("launchd does not know APPLEGPU_TOKEN: use --token-file")
        sys.stdout.write(launchd_plist(argv).decode())
        return 0
    try:
        device = open_device(args)
        if args.once or args.textfile:
            return _run_once(device, args)
        asyncio.run(_serve(device, args))
    except BrokenPipeError:
        raise
    except (ag.AppleGPUError, OSError) as error:
        print("exporter: %s" % common.sentence(error), file=sys.stderr)
        return 1
    except ImportError as error:
        print("exporter: %s; pip install starlette uvicorn prometheus-client plotly" % error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(common.quiet_pipe(main))
