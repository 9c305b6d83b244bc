"""What a document says about a run: figures, saturation, throttling, bottlenecks, trends, anomalies, kind of work.

Pure functions from a document (engine.MetalPerformanceMonitor.document) to plain data. A conclusion names its evidence; what
cannot be judged is listed with the reason (`not_assessed`) instead of counting as absent.
"""
from __future__ import annotations

import math
from bisect import bisect_left, insort
from statistics import median
from typing import Any, Callable, Iterable, NamedTuple, Sequence

from _common import ag, bandwidth, clean, counted, mhz, percent, size, speed, watts     # noqa: F401  (units in sentences)

from .metal import percentile


class Thresholds(NamedTuple):
    """Where a class begins. Shares are of time."""
    busy: float = 0.5               # GPU active ratio of a sample that counts as work
    full: float = 0.9               # of one that has no room left
    idle: float = 0.1
    bandwidth: float = 0.6          # of the chip's bandwidth: what well-written copies reach is 0.8 to 0.9 of it
    memory: float = 0.9             # of what the GPU may use
    power: float = 0.95             # of the power cap
    cltm: float = 0.05              # share of a sample in which thermal management held the clock
    share: float = 0.3              # of the busy time that a class must hold for
    least: float = 0.05             # of the window
    long_kernel_s: float = 0.05     # a frame at 60 Hz is 0.017 s; the GPU is not shared inside a kernel's threadgroups
    overhead: float = 0.5           # share of submission-to-completion outside the GPU
    small_kernel_s: float = 0.001
    few: int = 5                    # samples below which nothing is concluded
    few_buffers: int = 20


# The document's own recommendations, then ours.
RECOMMENDATIONS = {
    "compute": ("Consider kernel fusion to reduce launch overhead",
                "Optimize arithmetic intensity: lower precision (half, int8), fewer operations per result",
                "Review threadgroup configuration: whole SIMD groups, enough threadgroups for all cores"),
    "bandwidth": ("Optimize memory access patterns: neighbouring threads read neighbouring addresses",
                  "Use threadgroup (shared) memory for frequently accessed data",
                  "Consider data compression: half or quantised weights, packed formats"),
    "memory": ("Implement memory pooling: reuse buffers and heaps", "Use streaming for large operations",
               "Review memory allocation patterns: what is still allocated at the end, largest first"),
    "long_kernels": ("Split into smaller kernels", "Optimize algorithm complexity",
                     "Review parallelization strategy: more threadgroups, less work per thread"),
    "launch_overhead": ("Put more dispatches into one command buffer, and commit less often", "Fuse small kernels",
                        "Do not wait after every command buffer: keep two or three in flight"),
    "power_or_heat": ("Expect a lower clock, not a higher load: compare runs only at equal clocks",
                      "Lift the cap where it is deliberate (Low Power Mode, adapter, power limit)",
                      "Cool the Mac, or spread the load: the clock comes back with the temperature"),
}
TITLES = {"compute": "GPU compute bound", "bandwidth": "Memory bandwidth bound", "memory": "High memory usage",
          "long_kernels": "Long kernel execution", "launch_overhead": "Launch overhead",
          "power_or_heat": "Limited by power or heat"}


class Series:
    """The samples of a window: time, weights and columns, with the sums that several figures share."""

    def __init__(self, doc: dict[str, Any], window_s: float | None) -> None:
        samples = doc["samples"]
        times = samples["t"]
        start = 0
        if window_s is not None and times:
            while times[start] < times[-1] - window_s:
                start += 1
        self._columns = {name: values[start:] for name, values in samples.items()}
        self.t: list[float] = self._columns["t"]
        self.weights = [w if w and w > 0 else 0.0 for w in self._columns["covers_s"]]
        self._columns["memory_bytes_per_s"] = self._sum("memory_read_bytes_per_s", "memory_write_bytes_per_s")
        self._columns["memory_gpu_bytes_per_s"] = self._sum("memory_gpu_read_bytes_per_s",
                                                            "memory_gpu_write_bytes_per_s")

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, name: str) -> list[float | None]:
        values = self._columns.get(name)
        return values if values is not None else [None] * len(self.t)

    def _sum(self, *names: str) -> list[float | None]:
        """Row by row; a row that lacks one of them has no sum."""
        rows = zip(*(self[name] for name in names))
        return [None if None in row else sum(v for v in row if v is not None) for row in rows]

    def names(self) -> list[str]:
        return [n for n, v in self._columns.items() if n not in ("t", "time_unix_s", "covers_s")
                and any(x is not None for x in v)]

    def has(self, name: str) -> bool:
        return any(v is not None for v in self[name])

    def figure(self, name: str) -> dict[str, float] | None:
        """n, time-weighted mean, percentiles of the samples, extremes, first and last."""
        pairs = [(v, w) for v, w in zip(self[name], self.weights) if v is not None]
        if not pairs:
            return None
        values = sorted(v for v, _ in pairs)
        weight = sum(w for _, w in pairs)
        mean = sum(v * w for v, w in pairs) / weight if weight > 0 else sum(values) / len(values)
        return {"n": len(values), "mean": mean, "min": values[0], "p50": percentile(values, 0.5),
                "p95": percentile(values, 0.95),
                "p99": percentile(values, 0.99), "max": values[-1], "first": pairs[0][0], "last": pairs[-1][0]}

    def share(self, test: Callable[[int], bool | None], among: Sequence[int] | None = None) -> float | None:
        """Share of the time in which a test of a row holds, of the rows where it can be answered (None: it cannot)."""
        known = held = 0.0
        for i in range(len(self)) if among is None else among:
            answer = test(i)
            if answer is not None:
                known += self.weights[i]
                held += self.weights[i] if answer else 0.0
        return held / known if known > 0 else None

    def time(self, rows: Iterable[int]) -> float:
        return sum(self.weights[i] for i in rows)


def analyse(doc: dict[str, Any], window_ms: float | None = None,
            thresholds: Thresholds | None = None) -> dict[str, Any]:
    """The whole analysis. window_ms: only the newest part of the run."""
    if window_ms is not None and not window_ms > 0:
        raise ValueError("a window is a number of milliseconds above 0, not %r" % (window_ms,))
    limit = thresholds or Thresholds()
    series = Series(doc, None if window_ms is None else window_ms / 1000)
    judge = _Judge(doc, series, limit)
    figures = {name: f for name in series.names() for f in [series.figure(name)] if f is not None}
    found = [b for b in (judge.compute(), judge.bandwidth(), judge.memory(), judge.long_kernels(),
                         judge.launch_overhead(),
                         judge.power_or_heat()) if b is not None]
    found.sort(key=lambda b: -b["share"])
    work = judge.workload()
    result = {
        "window_s": (series.t[-1] - series.t[0]) if series.t else 0.0, "covered_s": sum(series.weights),
        "samples": len(series),
        "figures": figures, "saturation": judge.saturation(), "throttling": judge.throttling(), "bottlenecks": found,
        "not_assessed": judge.unknown, "workload": work, "phases": judge.phases(), "trends": trends(series),
        "anomalies": anomalies(series) + kernel_anomalies(doc), "kernel_notes": kernel_notes(doc),
        "performance_bottlenecks": [TITLES[b["class"]] for b in found],
        "optimization_recommendations": list(dict.fromkeys(r for b in found for r in b["recommendations"])),
        "avg_gpu_utilization": _of(figures, "gpu_utilization_ratio", "mean"),
        "peak_gpu_utilization": _of(figures, "gpu_utilization_ratio", "max"),
        "avg_memory_bandwidth_gbps": _of(figures, "memory_bytes_per_s", "mean", 1e-9),
        "peak_memory_bandwidth_gbps": _of(figures, "memory_bytes_per_s", "max", 1e-9),
    }
    result["summary"] = _sentence(result, len(series), limit)
    return result


def _of(figures: dict[str, Any], name: str, statistic: str, scale: float = 1.0) -> float | None:
    return figures[name][statistic] * scale if name in figures else None


def _pc(ratio: float | None) -> str:
    return "-" if ratio is None else "%.0f %%" % (100 * ratio)


def _sentence(result: dict[str, Any], n: int, limit: Thresholds) -> str:
    if n < limit.few:
        return "Too few samples (%d) to conclude anything." % n
    if result["bottlenecks"]:
        text = "; ".join("%s (%s)" % (TITLES[b["class"]], b["headline"]) for b in result["bottlenecks"])
    else:
        text = "No bottleneck found"
        if result["not_assessed"]:
            text += " among those that can be judged here (not judged: %s)" % ", ".join(
                TITLES[u["class"]].lower() for u in result["not_assessed"])
    return "%s. Work: %s." % (text, result["workload"]["class"])


class _Judge:
    """One method per class: None, or {class, title, share, headline, evidence, recommendations}."""

    def __init__(self, doc: dict[str, Any], series: Series, limit: Thresholds) -> None:
        self.doc, self.s, self.limit = doc, series, limit
        self.limits: dict[str, float | None] = doc["limits"]
        self.unknown: list[dict[str, str]] = []
        self.active, self.scaled = series["gpu_utilization_ratio"], series["gpu_scaled_ratio"]
        self.traffic = series["memory_bytes_per_s"]
        self.busy = [i for i, v in enumerate(self.active) if v is not None and v >= limit.busy]
        self.full = [i for i, v in enumerate(self.active) if v is not None and v >= limit.full]
        self.enough = len(series) >= limit.few

    def _row(self, kind: str, share: float, headline: str, evidence: list[str]) -> dict[str, Any]:
        return {"class": kind, "title": TITLES[kind], "share": share, "headline": headline, "evidence": evidence,
                "recommendations": list(RECOMMENDATIONS[kind])}

    def _cannot(self, kind: str, why: str) -> None:
        self.unknown.append({"class": kind, "why": why})

    def _why(self, column: str) -> str:
        miss = self.doc["missing"].get(column)
        return miss["message"] if miss else "nothing was sampled"

    # -- tests of one row; None where it cannot be told
    def traffic_ratio(self, i: int) -> float | None:
        top, moved = self.limits.get("bandwidth_bytes_per_s"), self.traffic[i]
        return None if not top or moved is None else moved / top

    def at_bandwidth(self, i: int) -> bool | None:
        if self.s["memory_read_saturated"][i] or self.s["memory_write_saturated"][i]:
            return True
        ratio = self.traffic_ratio(i)
        return None if ratio is None else ratio >= self.limit.bandwidth

    def at_power(self, i: int) -> bool | None:
        known = False
        pressure, cltm = self.s["thermal_pressure_level"][i], self.s["throttle_cltm_ratio"][i]
        if pressure is not None:
            known = True
            if pressure >= 1:
                return True
        if cltm is not None:
            known = True
            if cltm >= self.limit.cltm:
                return True
        cap, power = self.limits.get("power_mw"), self.s["gpu_power_mw"][i]
        if cap and power is not None:
            known = True
            if power >= self.limit.power * cap:
                return True
        return False if known else None

    def _busy_enough(self, rows: Sequence[int]) -> bool:
        whole = self.s.time(range(len(self.s)))
        return self.enough and whole > 0 and self.s.time(rows) / whole >= self.limit.least

    # -- classes
    def compute(self) -> dict[str, Any] | None:
        if not self.s.has("gpu_utilization_ratio"):
            self._cannot("compute", self._why("gpu_utilization_ratio"))
            return None
        if not self._busy_enough(self.busy):
            return None
        rows = [i for i in self.full if not self.at_bandwidth(i) and not self.at_power(i)]
        share = self.s.time(rows) / self.s.time(self.busy)
        if share < self.limit.share or not self._busy_enough(rows):
            return None
        evidence = ["GPU active %s or more in %s of the busy time (mean there %s)" % (
            _pc(self.limit.full), _pc(share), _pc(self._mean("gpu_utilization_ratio", rows)))]
        ratio = self._mean_of([self.traffic_ratio(i) for i in rows], rows)
        if ratio is not None:
            evidence.append("Memory traffic meanwhile %s of the chip's %s: not what holds it back" % (
                _pc(ratio), speed(self.limits["bandwidth_bytes_per_s"])))
        else:
            evidence.append("Memory traffic is not known here (%s), so a bandwidth bound looks the same"
                            % self._why("memory_read_bytes_per_s"))
        clock, top = self._mean("gpu_clock_mhz", rows), self.limits.get("clock_mhz")
        if clock is not None and top:
            evidence.append("Clock %s of %s" % (mhz(clock), mhz(top)))
        return self._row("compute", share, "active %s, traffic %s"
                         % (_pc(self._mean("gpu_utilization_ratio", rows)), _pc(ratio)), evidence)

    def bandwidth(self) -> dict[str, Any] | None:
        top = self.limits.get("bandwidth_bytes_per_s")
        if not self.s.has("memory_bytes_per_s"):
            self._cannot("bandwidth", self._why("memory_read_bytes_per_s"))
            return None
        if not top:
            self._cannot("bandwidth", "this chip's bandwidth is not known")
            return None
        if not self._busy_enough(self.busy):
            return None
        rows = [i for i in self.busy if self.at_bandwidth(i)]
        share = self.s.time(rows) / self.s.time(self.busy)
        if share < self.limit.share:
            return None
        mean = self._mean("memory_bytes_per_s", rows)
        evidence = ["Memory traffic %s in %s of the busy time: %s of the chip's %s" % (
            speed(mean), _pc(share), _pc(None if mean is None else mean / top), speed(top))]
        by_gpu = self._mean("memory_gpu_bytes_per_s", rows)
        if by_gpu is not None:
            share_of_gpu = by_gpu / mean if mean else None
            evidence.append("%s of it by the GPU%s" % (_pc(share_of_gpu), "" if share_of_gpu is None or share_of_gpu >= 0.5 else
                            ": most of the traffic is of other parts of the chip, with which the GPU competes"))
        if any(self.s["memory_read_saturated"][i] or self.s["memory_write_saturated"][i] for i in rows):
            evidence.append("The counter's top bucket was full: the true traffic is higher")
        if "estimated" in str(self.doc["sampling"]["per"].get("memory_read_bytes_per_s")) and \
                self.doc["sampling"]["per"]["memory_read_bytes_per_s"]["estimated"]:
            evidence.append("Estimated from histograms, not counted in bytes")
        return self._row("bandwidth", share, "%s of %s" % (speed(mean), speed(top)), evidence)

    def memory(self) -> dict[str, Any] | None:
        total = self.limits.get("memory_bytes")
        used = self.s.figure("memory_used_bytes")
        if used is None and not self.s.has("memory_pressure_level"):
            self._cannot("memory", self._why("memory_used_bytes"))
            return None
        if not self.enough:
            return None
        evidence, ratio = [], 0.0
        if used is not None and total:
            ratio = used["max"] / total
            if ratio >= self.limit.memory:
                evidence.append("GPU memory in use peaked at %s: %s of the %s it may use"
                                % (size(used["max"]), _pc(ratio), size(total)))
        pressed = self.s.share(_holds(self.s["memory_pressure_level"], 1))
        if pressed is not None and pressed >= 0.1:
            evidence.append("macOS reported memory pressure in %s of the time" % _pc(pressed))
        swap = self.s.figure("swap_used_bytes")
        if evidence and swap is not None and swap["last"] - swap["first"] > 1 << 26:
            evidence.append("Swap grew by %s" % size(swap["last"] - swap["first"]))
        if not evidence:
            return None
        room = self.s.figure("memory_headroom_bytes")
        if room is not None:
            evidence.append("The GPU could still take %s at the tightest moment" % size(room["min"]))
        return self._row("memory", max(ratio, pressed or 0.0), "%s of the limit" % _pc(ratio), evidence)

    def long_kernels(self) -> dict[str, Any] | None:
        timed = [k for k in self.doc["kernels"] if k["seconds"]]
        if not self.doc["kernels"]:
            self._cannot("long_kernels", "no kernel was profiled")
            return None
        long = [k for k in timed if k["seconds"]["p95"] >= self.limit.long_kernel_s]
        if not long:
            return None
        whole = sum(k["total_s"] for k in timed)
        evidence = ["%s: 95th percentile %.1f ms over %s, longest %.1f ms, threadgroup %s of at most %s" % (
            k["name"], 1e3 * k["seconds"]["p95"], counted(k["seconds"]["n"], "run"), 1e3 * k["seconds"]["max"], _size_text(k["group"]),
            k["max_threads"] or "?") for k in long[:5]]
        share = sum(k["total_s"] for k in long) / whole if whole else 0.0
        evidence.append("%s of all kernel time" % _pc(share))
        return self._row("long_kernels", share, "%s %.0f ms" % (long[0]["name"], 1e3 * long[0]["seconds"]["p95"]),
                         evidence)

    def launch_overhead(self) -> dict[str, Any] | None:
        pairs = []
        for one in self.doc["buffers"]:
            end = one["done_s"]
            if end is not None and one["gpu_start_s"] is not None and one["gpu_end_s"] is not None and end > one["commit_s"]:
                pairs.append((end - one["commit_s"] + (one["encode_s"] or 0.0), one["gpu_end_s"] - one["gpu_start_s"]))
        if not pairs:
            self._cannot("launch_overhead", "no command buffer was followed from commit to completion")
            return None
        if len(pairs) < self.limit.few_buffers:
            return None
        whole, gpu = sum(p[0] for p in pairs), sum(p[1] for p in pairs)
        share, typical = 1 - gpu / whole, median(p[1] for p in pairs)
        if share < self.limit.overhead or typical >= self.limit.small_kernel_s:
            return None
        parts = self.doc["latency"]
        where = max((n for n in ("encode", "scheduling", "driver", "queued", "notice") if parts.get(n)),
                    key=lambda n: parts[n]["mean"], default=None)
        evidence = ["%s of the time from commit to completion was not GPU time (%d command buffers, GPU time typically %.0f us)" % (
            _pc(share), len(pairs), 1e6 * typical)]
        if where:
            evidence.append("Most of it: %s, %.0f us on average" % (LATENCY_WORDS[where], 1e6 * parts[where]["mean"]))
        each = sum(b["dispatches"] for b in self.doc["buffers"]) / len(self.doc["buffers"])
        evidence.append("%.1f dispatches per command buffer" % each)
        return self._row("launch_overhead", share, "%s outside the GPU" % _pc(share), evidence)

    def power_or_heat(self) -> dict[str, Any] | None:
        if all(self.at_power(i) is None for i in range(len(self.s))):
            self._cannot("power_or_heat", self._why("thermal_pressure_level"))
            return None
        if not self._busy_enough(self.busy):
            return None
        rows = [i for i in self.busy if self.at_power(i)]
        share = self.s.time(rows) / self.s.time(self.busy)
        if share < self.limit.share:
            return None
        evidence = self._heat_evidence(rows)
        clock, top = self._mean("gpu_clock_mhz", rows), self.limits.get("clock_mhz")
        if clock is not None and top:
            evidence.append("Clock meanwhile %s of %s (requested; the hardware may run lower)" % (mhz(clock), mhz(top)))
        row = self._row("power_or_heat", share, "%s of the busy time" % _pc(share), evidence)
        return {**row, "recommendations": self._against_heat(row["recommendations"], rows)}

    def _against_heat(self, all_three: list[str], rows: Sequence[int]) -> list[str]:
        """Without the advice to lift a cap that is not there, or to cool a Mac that only its cap holds back."""
        held, level, granted = (self._mean(name, rows) for name in (
            "throttle_cltm_ratio", "thermal_pressure_level", "throttle_ppm_percent"))
        capped = bool(self.limits.get("power_mw")) or granted is not None and granted < 99.5
        cool = capped and held == 0 and level == 0
        return [text for text, fits in zip(all_three, (True, capped, not cool)) if fits]

    def _heat_evidence(self, rows: Sequence[int]) -> list[str]:
        evidence = []
        cap, power = self.limits.get("power_mw"), self._mean("gpu_power_mw", rows)
        if cap and power is not None and power >= self.limit.power * cap:
            evidence.append("GPU power %s at a cap of %s" % (watts(power), watts(cap)))
        granted = self._mean("throttle_ppm_percent", rows)
        if granted is not None and granted < 99.5:
            evidence.append("The power manager grants %.0f %% of the GPU's budget" % granted)
        held = self._mean("throttle_cltm_ratio", rows)
        if held is not None and held >= self.limit.cltm:
            evidence.append("Thermal management held the clock in %s of that time" % _pc(held))
        level = max((v for v in (self.s["thermal_pressure_level"][i] for i in rows) if v is not None), default=0)
        if level >= 1:
            evidence.append("macOS reported thermal pressure: %s"
                            % ag.THERMAL_PRESSURE[min(int(level), len(ag.THERMAL_PRESSURE) - 1)])
        hottest = max((v for v in (self.s["gpu_temperature_max_celsius"][i] for i in rows) if v is not None),
                      default=None)
        if hottest is not None:
            evidence.append("Hottest GPU sensor %.0f °C" % hottest)
        return evidence

    def _mean(self, name: str, rows: Sequence[int]) -> float | None:
        return self._mean_of([self.s[name][i] for i in rows], rows)

    def _mean_of(self, values: Sequence[float | None], rows: Sequence[int]) -> float | None:
        pairs = [(v, self.s.weights[i]) for v, i in zip(values, rows) if v is not None]
        weight = sum(w for _, w in pairs)
        return sum(v * w for v, w in pairs) / weight if weight > 0 else None

    # -- the rest
    def saturation(self) -> list[dict[str, Any]]:
        """Mean and peak against the chip's own limits, as read from the machine."""
        rows = []
        for name, column, limit in (("Memory bandwidth", "memory_bytes_per_s", "bandwidth_bytes_per_s"),
                                    ("GPU memory", "memory_used_bytes", "memory_bytes"),
                                    ("GPU clock", "gpu_clock_mhz", "clock_mhz"),
                                    ("GPU power", "gpu_power_mw", "power_mw")):
            top, figure = self.limits.get(limit), self.s.figure(column)
            row = {"name": name, "column": column, "limit": top, "mean": None, "peak": None, "why": None}
            if figure is None:
                row["why"] = self._why("memory_read_bytes_per_s" if column == "memory_bytes_per_s" else column)
            elif not top:
                row["why"] = self.doc["machine"].get("limit_reasons", {}).get(limit) or "this chip's limit is not known"
            else:
                row.update(mean=figure["mean"] / top, peak=figure["max"] / top)
            rows.append(row)
        flops, scaled = self.limits.get("flops"), self.s.figure("gpu_scaled_ratio")
        rows.append({"name": "Arithmetic, at most", "column": "gpu_scaled_ratio", "limit": flops,
                     "why": None if scaled else
                     self._why("gpu_scaled_ratio"), "mean": scaled["mean"] if scaled else None,
                     "peak": scaled["max"] if scaled else None})
        return rows

    def throttling(self) -> dict[str, Any]:
        """"yes", "no" or "cannot tell", with evidence."""
        whole = range(len(self.s))
        answers = [self.at_power(i) for i in whole]
        if all(a is None for a in answers):
            return {"state": "cannot tell", "share": None, "evidence": [self._why("thermal_pressure_level")]}
        rows = [i for i in whole if answers[i]]
        share = self.s.time(rows) / max(1e-12, self.s.time(i for i in whole if answers[i] is not None))
        if not rows:
            seen = [t for c, t in (("thermal_pressure_level", "thermal pressure nominal"), ("throttle_cltm_ratio",
                    "the clock was not held by thermal management"),
                                   ("throttle_ppm_percent", "power budget granted in full"))
                    if self.s.has(c)
                    and not (c == "throttle_ppm_percent" and (self.s.figure(c) or {"min": 0})["min"] < 99.5)]
            return {"state": "no", "share": 0.0, "evidence": seen}
        return {"state": "yes", "share": share, "evidence": self._heat_evidence(rows)}

    def _state(self, i: int) -> str:
        active = self.active[i]
        if active is None:
            return "unknown"
        if active < self.limit.idle:
            return "idle"
        if active >= self.limit.busy and self.at_bandwidth(i):
            return "bandwidth-bound"
        return "busy" if active >= self.limit.full else "partly busy"

    def phases(self) -> list[dict[str, Any]]:
        """Stretches of one kind; shorter than two samples belong to the one before."""
        runs: list[list[Any]] = []
        for i in range(len(self.s)):
            state = self._state(i)
            if runs and runs[-1][0] == state:
                runs[-1][2] = i
            else:
                runs.append([state, i, i])
        merged: list[list[Any]] = []
        for run in runs:
            if merged and (run[0] == merged[-1][0] or run[2] == run[1]):
                merged[-1][2] = run[2]
            else:
                merged.append(run)
        return [{"kind": kind, "from_s": self.s.t[max(0, a - 1)] if a else self.s.t[a], "to_s": self.s.t[b]}
                for kind, a, b in merged][:200]

    def workload(self) -> dict[str, Any]:
        """idle, bursty, bandwidth-bound (decode-like), prefill-like, steady: with evidence."""
        figure = self.s.figure("gpu_utilization_ratio")
        if figure is None:
            return {"class": "unknown", "evidence": [self._why("gpu_utilization_ratio")], "shares": {}}
        if not self.enough or figure["n"] < self.limit.few:
            return {"class": "unknown", "evidence": ["only %s" % counted(figure["n"], "sample")], "shares": {}}
        shares: dict[str, float] = {}
        whole = self.s.time(i for i, v in enumerate(self.active) if v is not None)
        for i, v in enumerate(self.active):
            if v is not None:
                shares[self._state(i)] = shares.get(self._state(i), 0.0) + self.s.weights[i] / whole
        kind, evidence = self._kind(figure, shares)
        return {"class": kind, "evidence": evidence, "shares": shares}

    def _kind(self, figure: dict[str, float], shares: dict[str, float]) -> tuple[str, list[str]]:
        said = ["GPU active %s on average, %s at the 95th percentile" % (_pc(figure["mean"]), _pc(figure["p95"]))]
        if figure["mean"] < 0.1 and figure["p95"] < 0.2:
            return "idle", said
        low = self.s.share(lambda i: None if self.active[i] is None else (self.active[i] or 0) < 0.2) or 0.0
        high = self.s.share(lambda i: None if self.active[i] is None else (self.active[i] or 0) > 0.6) or 0.0
        changes = _crossings([v for v in self.active if v is not None], 0.2, 0.6)
        if changes >= 3 and low >= 0.15 and high >= 0.1:
            return "bursty", said + ["%d changes between idle and busy; below 20 %% in %s of the time, above 60 %% in %s" % (
                changes, _pc(low), _pc(high))]
        bound = shares.get("bandwidth-bound", 0.0)
        if bound >= 0.5:
            return "bandwidth-bound", said + ["Memory traffic near the chip's limit in %s of the time: like token generation" % _pc(bound)]
        if shares.get("busy", 0.0) >= 0.6:
            ratio = self._mean_of([self.traffic_ratio(i) for i in self.full], self.full)
            if ratio is None:
                return "busy", said + ["Memory traffic is not known here, so prefill-like and bandwidth-bound work look the same"]
            if ratio < 0.5 * self.limit.bandwidth + 0.15:
                return "prefill-like", said + ["Full in %s of the time with memory traffic at only %s of the limit: arithmetic, like prompt "
                                               "processing" % (_pc(shares["busy"]), _pc(ratio))]
            return "busy", said + ["Memory traffic at %s of the limit: neither clearly arithmetic nor bandwidth"
                                   % _pc(ratio)]
        return "steady", said + ["Partly busy in %s of the time" % _pc(shares.get("partly busy", 0.0))]


LATENCY_WORDS = {"encode": "encoding on the CPU", "scheduling": "commit until the driver took it up",
                 "driver": "the driver's scheduling",
                 "queued": "waiting for the GPU", "gpu": "on the GPU", "notice": "until the program noticed",
                 "total": "commit to return"}


def _holds(values: Sequence[float | None], least: float) -> Callable[[int], bool | None]:
    return lambda i: None if values[i] is None else values[i] >= least      # type: ignore[operator]


def _crossings(values: Sequence[float], low: float, high: float) -> int:
    state, changes = 0, 0
    for v in values:
        new = 1 if v > high else -1 if v < low else state
        changes += 1 if state and new != state else 0
        state = new
    return changes


def _size_text(group: Sequence[int] | None) -> str:
    return "?" if group is None else " x ".join(str(g) for g in group)


def kernel_notes(doc: dict[str, Any]) -> list[str]:
    """What a threadgroup's shape says, for the kernels that took the most time."""
    notes = []
    cores = doc["machine"].get("gpu_cores")
    for k in doc["kernels"][:10]:
        if k["group"] and k["simd_width"]:
            threads = math.prod(k["group"])
            if threads % k["simd_width"]:
                notes.append("%s: %d threads per threadgroup is no multiple of the SIMD width %d"
                             % (k["name"], threads, k["simd_width"]))
            groups = math.prod(-(-t // g) for t, g in zip(k["threads"], k["group"])) if k["threads"] else None
            if groups is not None and cores and groups < cores:
                notes.append("%s: %s for %d GPU cores: some have nothing to do"
                             % (k["name"], counted(groups, "threadgroup"), cores))
        flops, moved = doc["limits"].get("flops"), doc["limits"].get("bandwidth_bytes_per_s")
        if k["flops_per_s"] and flops:
            notes.append("%s: %.1f GFLOP/s, %.1f %% of the chip's peak"
                         % (k["name"], k["flops_per_s"] / 1e9, 100 * k["flops_per_s"] / flops))
        if k["bytes_per_s"] and moved:
            notes.append("%s: %.1f GB/s of its own data, %.1f %% of the chip's bandwidth"
                         % (k["name"], k["bytes_per_s"] / 1e9, 100 * k["bytes_per_s"] / moved))
    return notes


# ---- trends

# column -> least change worth a word, in its unit
TRENDS = {"gpu_utilization_ratio": 0.05, "gpu_clock_mhz": 50, "gpu_power_mw": 500, "memory_bytes_per_s": 2e9,
          "memory_used_bytes": 1 << 26,
          "gpu_temperature_celsius": 2, "gpu_temperature_max_celsius": 2, "swap_used_bytes": 1 << 26,
          "system_power_mw": 1000}


def trends(series: Series, blocks: int = 24) -> list[dict[str, Any]]:
    """Rises and falls that a rank test takes for real (Mann-Kendall, p < 0.01) and that are worth a word.

    The samples of a run resemble their neighbours, which such a test must not take for evidence: it looks at the medians of
    at most `blocks` stretches. slope: Theil-Sen, per minute."""
    found = []
    for name, least in TRENDS.items():
        points = [(t, v) for t, v in zip(series.t, series[name]) if v is not None]
        if len(points) < 8:
            continue
        width = -(-len(points) // blocks)
        means = [(median(t for t, _ in part), median(v for _, v in part)) for part in
                 (points[n:n + width] for n in range(0, len(points), width))]
        if len(means) < 8:
            continue
        slope, p = mann_kendall(means)
        change = slope * (means[-1][0] - means[0][0])
        base = median(v for _, v in means)
        if p < 0.01 and abs(change) >= max(least, 0.03 * abs(base)):
            found.append({"column": name, "per_minute": 60 * slope, "change": change, "from": means[0][1],
                          "to": means[-1][1], "p": p,
                          "n": len(means), "direction": "rising" if slope > 0 else "falling"})
    return found


def mann_kendall(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(Theil-Sen slope, two-sided p) by the normal approximation with ties."""
    score, slopes, n = 0, [], len(points)
    for i in range(n):
        for j in range(i):
            rise = points[i][1] - points[j][1]
            score += (rise > 0) - (rise < 0)
            if points[i][0] > points[j][0]:
                slopes.append(rise / (points[i][0] - points[j][0]))
    counts: dict[float, int] = {}
    for _, v in points:
        counts[v] = counts.get(v, 0) + 1
    variance = (n * (n - 1) * (2 * n + 5) - sum(c * (c - 1) * (2 * c + 5) for c in counts.values())) / 18
    if variance <= 0 or not slopes:
        return 0.0, 1.0
    z = (abs(score) - 1) / math.sqrt(variance) if score else 0.0
    return median(slopes), math.erfc(max(z, 0.0) / math.sqrt(2))


# ---- anomalies

# column -> least distance from the neighbourhood's median worth a word
ANOMALIES = {"gpu_utilization_ratio": 0.2, "gpu_power_mw": 1000, "memory_bytes_per_s": 5e9,
             "memory_used_bytes": 1 << 27, "gpu_clock_mhz": 100,
             "gpu_temperature_celsius": 5, "gpu_temperature_max_celsius": 5, "system_power_mw": 3000}


def anomalies(series: Series, reach: int = 15, score: float = 6.0) -> list[dict[str, Any]]:
    """Samples far from the median of their neighbours, in units of the neighbours' own spread (median absolute deviation):
    a bursty load repeats itself and so has no anomalies. The strongest 50."""
    found: list[dict[str, Any]] = []
    for name, least in ANOMALIES.items():
        points = [(t, v) for t, v in zip(series.t, series[name]) if v is not None]
        if len(points) < reach + 5:
            continue
        near = sorted(v for _, v in points[:reach])         # a window that moves along, kept in order
        for i, (t, v) in enumerate(points):
            if i + reach < len(points):
                insort(near, points[i + reach][1])
            if i > reach:
                del near[bisect_left(near, points[i - reach - 1][1])]
            middle = near[len(near) // 2]
            if abs(v - middle) < least:
                continue
            spread = max(1.4826 * median(abs(w - middle) for w in near), least / score)
            z = (v - middle) / spread
            alike = sum(1 for w in near if abs(w - middle) >= 0.5 * abs(v - middle))
            if abs(z) >= score and alike <= 2:         # a third one like it makes a pattern
                found.append({"what": name, "t": t, "value": v, "typical": middle, "score": z})
    return sorted(found, key=lambda a: -abs(float(a["score"])))[:50]


def kernel_anomalies(doc: dict[str, Any], score: float = 8.0) -> list[dict[str, Any]]:
    """Single runs of a kernel that took far longer than its others."""
    found = []
    for k in doc["kernels"]:
        times = k["samples_s"]
        if len(times) < 20:
            continue
        middle = median(times)
        spread = max(1.4826 * median(abs(v - middle) for v in times), 0.05 * middle)
        for n, v in enumerate(times):
            if spread > 0 and (v - middle) / spread >= score:
                found.append({"what": "kernel " + clean(k["name"]), "t": None, "run": n, "value": v, "typical": middle,
                              "score": (v - middle) / spread})
    return sorted(found, key=lambda a: -a["score"])[:20]
