"""A monitor's figures as prometheus_client metric families: for the exporter, or `MetalPerformanceMonitor.register_prometheus_metrics`.

    from perfmon import prometheus_families
    yield from prometheus_families(monitor)                     # in a collector of one's own: base units, a name per meaning
    yield from prometheus_families(monitor, names="triton")     # the eight names of the document, for its dashboards

A figure that was not measured has no series. Kernel times are a summary (sum and count), latencies a histogram, both over the
whole life of the monitor, so that rate() works.
"""
from __future__ import annotations

from typing import Any, Iterator

from .metal import LATENCY_BOUNDS_MS


def prometheus_families(monitor: Any, names: str = "applegpu") -> Iterator[Any]:
    """Metric families of one monitor; empty when its configuration switches the export off."""
    if names not in ("applegpu", "triton"):
        raise ValueError("names is applegpu or triton, not %r" % (names,))
    if monitor.config.enable_prometheus_export:
        yield from _families(monitor, names == "triton")


def _families(monitor: Any, triton: bool) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, SummaryMetricFamily
    device = monitor.machine.get("gpu") or monitor.name
    scale, unit = (1000, "milliseconds") if triton else (1, "seconds")
    if triton:
        yield from _gauges(monitor, device, GaugeMetricFamily)
    metal = monitor.metal
    with metal._lock:
        kernels = [(name, row.count, row.timed, row.total_s) for name, row in metal.kernels.items()]
        counts, total, sum_s = list(metal.latency_counts), metal.buffer_count, metal.latency_sum_s
    first = "metal_" if triton else "applegpu_"
    runs = CounterMetricFamily(first + ("kernel_execution" if triton else "kernel_executions"),
                               "Runs of a kernel (perfmon)", labels=["device", "kernel"])
    times = SummaryMetricFamily(first + ("kernel_execution_duration_" if triton else "kernel_duration_") + unit,
                                "GPU time of the runs that could be timed (MTLCommandBuffer GPUStartTime/GPUEndTime, counters)", labels=["device", "kernel"])
    for name, count, timed, seconds in kernels:
        runs.add_metric([device, name], count)
        if timed:
            times.add_metric([device, name], timed, seconds * scale)
    yield runs
    yield times
    if total:
        waits = HistogramMetricFamily(first + "command_buffer_latency_" + unit,
                                      "Commit to completion of command buffers (perfmon)", labels=["device"])
        buckets, running = [], 0
        for bound, count in zip([b * scale / 1000 for b in LATENCY_BOUNDS_MS] + [float("inf")], counts):
            running += count
            buckets.append(("+Inf" if bound == float("inf") else "%g" % bound, running))
        waits.add_metric([device], buckets, sum_s * scale)
        yield waits
    held = metal.allocations.statistics()
    if held.allocations:
        name = "metal_memory_allocated_bytes" if triton else "applegpu_metal_buffer_bytes"
        memory = GaugeMetricFamily(name, "Metal buffers of this process now (perfmon)",
                                   labels=["device", "type" if triton else "mode"])
        memory.add_metric([device, "shared"], held.shared_bytes)
        memory.add_metric([device, "device" if triton else "private"], held.private_bytes)
        yield memory


def _gauges(monitor: Any, device: str, gauge: Any) -> Iterator[Any]:
    """The document's gauges; the exporter has these figures in base units under names of its own."""
    last = monitor.last
    if last is None:
        return
    moved = None if last.memory_read is None or last.memory_write is None else last.memory_read.bytes_per_s + last.memory_write.bytes_per_s
    busy = last.gpu_active_ratio if last.gpu_active_ratio is not None else None if last.gpu_utilization_percent is None else last.gpu_utilization_percent / 100
    for name, help_text, value in (
            ("metal_gpu_utilization_ratio", "GPU active residency, 0-1", busy),
            ("metal_memory_bandwidth_gbps", "DRAM read and write, GB/s (1e9)", None if moved is None else moved / 1e9),
            ("metal_power_consumption_watts", "GPU power",
             None if last.gpu_power_mw is None else last.gpu_power_mw / 1000),
            ("metal_thermal_state", "Thermal pressure: 0 nominal, 1 moderate, 2 heavy, 3 and above trapping",
             last.thermal_pressure_level)):
        if value is not None:
            family = gauge(name, help_text, labels=["device"])
            family.add_metric([device], value)
            yield family


class MonitorCollector:
    """For a prometheus_client registry: asks the monitor at each scrape, in the document's names."""

    def __init__(self, monitor: Any, names: str = "triton") -> None:
        self._monitor, self._names = monitor, names

    def collect(self) -> Iterator[Any]:
        return prometheus_families(self._monitor, self._names)

    def describe(self) -> list[Any]:
        return []           # names depend on what the machine has; a registry must not collect to learn them
