"""Is one quicker than the other, and is the difference real? Standard library only; scipy agrees with it in the tests.

Two sets of times are compared by ranks (Mann-Whitney), which asks nothing of their distribution; how much, by the
Hodges-Lehmann estimate of the ratio with the interval that belongs to that test. The verdict is one of four: a is quicker, b is
quicker, no difference (the whole interval lies within the tolerance), not enough evidence (it does not, or too few runs).
"""
from __future__ import annotations

import json
import math
import os
from statistics import median
from typing import Any, Callable, NamedTuple, Sequence

from _common import clean

from .metal import percentile

ALPHA, TOLERANCE, LEAST = 0.01, 0.05, 8
QUICKER_A, QUICKER_B, SAME, UNSURE = "a is quicker", "b is quicker", "no difference", "not enough evidence"


class Side(NamedTuple):
    name: str
    n: int
    median: float | None
    mean: float | None
    spread: float | None            # between the quartiles


class Comparison(NamedTuple):
    """b against a. ratio above 1: b takes longer; speedup_factor is the same, named as in the document."""
    a: Side
    b: Side
    ratio: float | None             # Hodges-Lehmann estimate of b / a
    ratio_low: float | None         # 99 % confidence interval of it
    ratio_high: float | None
    effect: float | None            # Cliff's delta: P(b > a) - P(b < a), -1 to 1
    p: float | None                 # Mann-Whitney, two-sided
    verdict: str
    recommendation: str

    @property
    def speedup_factor(self) -> float | None:
        return self.ratio

    @property
    def variant_a_avg_time_ms(self) -> float | None:
        return None if self.a.mean is None else 1e3 * self.a.mean

    @property
    def variant_b_avg_time_ms(self) -> float | None:
        return None if self.b.mean is None else 1e3 * self.b.mean

    def as_dict(self) -> dict[str, Any]:
        return dict(self._asdict(), a=self.a._asdict(), b=self.b._asdict())


def side(name: str, values: Sequence[float]) -> Side:
    ordered = sorted(values)
    if not ordered:
        return Side(name, 0, None, None, None)
    return Side(name, len(ordered), percentile(ordered, 0.5), sum(ordered) / len(ordered),
                percentile(ordered, 0.75) - percentile(ordered, 0.25))


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """(U of b over a, two-sided p). Exact without ties up to 20 a side, else normal with ties and continuity."""
    n, m = len(a), len(b)
    ranked = sorted([(v, 0) for v in a] + [(v, 1) for v in b])
    ranks, ties, i = 0.0, 0, 0
    while i < n + m:
        j = i
        while j < n + m and ranked[j][0] == ranked[i][0]:
            j += 1
        count = j - i
        ties += count ** 3 - count
        ranks += sum(which for _, which in ranked[i:j]) * (i + j + 1) / 2
        i = j
    u = ranks - m * (m + 1) / 2
    if not ties and max(n, m) <= 20:
        return u, _exact_p(n, m, u)
    whole = n + m
    variance = n * m / 12 * (whole + 1 - ties / (whole * (whole - 1)))
    if variance <= 0:
        return u, 1.0
    z = max(0.0, abs(u - n * m / 2) - 0.5) / math.sqrt(variance)
    return u, math.erfc(z / math.sqrt(2))


def _exact_p(n: int, m: int, u: float) -> float:
    """By counting the arrangements with each U."""
    counts = [1] + [0] * (n * m)
    for k in range(1, m + 1):               # the product of (1 - x^(n+k)) / (1 - x^k)
        for at in range(n * m, n + k - 1, -1):
            counts[at] -= counts[at - n - k]
        for at in range(k, n * m + 1):
            counts[at] += counts[at - k]
    low = min(u, n * m - u)
    return min(1.0, 2 * sum(counts[:int(low) + 1]) / math.comb(n + m, m))


def _ratios(a: Sequence[float], b: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """Hodges-Lehmann ratio b / a and its interval: the middle of all pairwise ratios, and the ranks the test would not refuse."""
    a, b = _thin(sorted(a), 400), _thin(sorted(b), 400)
    logs = sorted(math.log(y / x) for x in a for y in b)
    n, m = len(a), len(b)
    k = int(n * m / 2 - _normal_quantile(1 - alpha / 2) * math.sqrt(n * m * (n + m + 1) / 12))
    k = max(0, k)
    return math.exp(percentile(logs, 0.5)), math.exp(logs[k]), math.exp(logs[len(logs) - 1 - k])


def _thin(values: Sequence[float], most: int) -> Sequence[float]:
    if len(values) <= most:
        return values
    return [percentile(values, (n + 0.5) / most) for n in range(most)]


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist
    return NormalDist().inv_cdf(p)


def compare_samples(a: Sequence[float], b: Sequence[float], name_a: str = "a", name_b: str = "b", *,
                    alpha: float = ALPHA,
                    tolerance: float = TOLERANCE, least: int = LEAST) -> Comparison:
    """Compare two sets of times (seconds, above 0)."""
    a, b = [float(v) for v in a if v is not None], [float(v) for v in b if v is not None]
    if any(not 0 < v < math.inf for v in a + b):
        raise ValueError("times are above 0")
    one, two = side(name_a, a), side(name_b, b)
    if min(len(a), len(b)) < least:
        return Comparison(one, two, None, None, None, None, None, UNSURE,
                          "Measure at least %d runs of each: there are %d and %d." % (least, len(a), len(b)))
    u, p = mann_whitney(a, b)
    ratio, low, high = _ratios(a, b, alpha)
    effect = 2 * u / (len(a) * len(b)) - 1
    if p < alpha and (low > 1 or high < 1):
        verdict = QUICKER_A if ratio > 1 else QUICKER_B
    else:
        verdict = SAME if low >= 1 / (1 + tolerance) and high <= 1 + tolerance else UNSURE
    return Comparison(one, two, ratio, low, high, effect, p, verdict,
                      _advice(verdict, one, two, ratio, low, high, tolerance))


def _advice(verdict: str, a: Side, b: Side, ratio: float, low: float, high: float, tolerance: float) -> str:
    if verdict == QUICKER_A:
        return "Use %s: %s takes %.3g times as long (%.3g to %.3g)%s." % (a.name, b.name, ratio, low, high, _small(ratio, tolerance))
    if verdict == QUICKER_B:
        return "Use %s: %s takes %.3g times as long (%.3g to %.3g)%s." % (b.name, a.name, 1 / ratio, 1 / high, 1 / low, _small(ratio, tolerance))
    if verdict == SAME:
        return "Either: a difference above %.0f %% is ruled out." % (100 * tolerance)
    return "Measure more runs: %s may take between %.3g and %.3g times as long as %s." % (b.name, low, high, a.name)


def _small(ratio: float, tolerance: float) -> str:
    return "; real, but small" if abs(math.log(ratio)) < math.log(1 + tolerance) else ""


# ---- two runs

# key -> (label, how to read it from a document, lower is better (None: neither), unit scale for the report)
def _figure(column: str, statistic: str = "mean") -> Callable[[dict[str, Any]], float | None]:
    return lambda doc: doc.get("analysis", {}).get("figures", {}).get(column, {}).get(statistic)


HEADLINES: tuple[tuple[str, str, Callable[[dict[str, Any]], float | None], bool | None, str], ...] = (
    ("wall_s", "Wall time", lambda d: (d.get("command") or {}).get("seconds"), True, "s"),
    ("gpu_joules", "GPU energy", lambda d: ((d.get("energy") or {}).get("joules") or {}).get("gpu"), True, "J"),
    ("gpu_active_s", "GPU active time", lambda d: (d.get("energy") or {}).get("gpu_active_s"), True, "s"),
    ("gpu_utilization_ratio", "GPU active", _figure("gpu_utilization_ratio"), None, "ratio"),
    ("gpu_power_mw", "GPU power", _figure("gpu_power_mw"), None, "mW"),
    ("memory_bytes_per_s", "Memory traffic", _figure("memory_bytes_per_s"), None, "B/s"),
    ("memory_used_bytes", "GPU memory in use, peak", _figure("memory_used_bytes", "max"), True, "B"),
    ("gpu_temperature_max_celsius", "Hottest GPU sensor", _figure("gpu_temperature_max_celsius", "max"), None, "C"),
    ("metal_peak_bytes", "Metal memory, peak",
     lambda d: ((d.get("allocations") or {}).get("statistics") or {}).get("peak_allocated_bytes"), True, "B"),
    ("latency_total_s", "Command buffer latency, median",
     lambda d: ((d.get("latency") or {}).get("total") or {}).get("median"), True, "s"),
)


def compare_runs(a: dict[str, Any], b: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Two saved documents: kernels by a test on their times, the Mac's figures side by side.

    A run gives one wall time and one energy, and its samples resemble their neighbours: between single runs these are shown, not
    judged. For a judgement give several runs (a folder of baselines)."""
    times_a = {k["name"]: k["samples_s"] for k in a["kernels"]}
    times_b = {k["name"]: k["samples_s"] for k in b["kernels"]}
    kernels = [compare_samples(times_a[name], times_b[name], name, name, **options).as_dict() for name in times_a
               if name in times_b]
    figures = []
    for key, label, read, lower, unit in HEADLINES:
        one, two = read(a), read(b)
        figures.append({"key": key, "label": label, "a": one, "b": two, "unit": unit,
                        "ratio": two / one if one and two is not None else None, "lower_is_better": lower})
    return {"kernels": kernels, "figures": figures, "only_a": sorted(set(times_a) - set(times_b)),
            "only_b": sorted(set(times_b) - set(times_a)),
            "warnings": _apart(a, b)}


def _apart(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What makes two runs hard to compare."""
    said = []
    for key, label in (("gpu", "GPUs"), ("macos", "macOS versions"), ("gpu_cores", "core counts")):
        if a["machine"].get(key) != b["machine"].get(key):
            said.append("Different %s: %s and %s" % (label, a["machine"].get(key), b["machine"].get(key)))
    states = [d.get("analysis", {}).get("throttling", {}).get("state") for d in (a, b)]
    if states[0] != states[1]:
        said.append("Limited by power or heat: %s in the first, %s in the second" % tuple(states))
    one, two = (d.get("analysis", {}).get("figures", {}).get("gpu_clock_mhz", {}).get("p50") for d in (a, b))
    if one and two and abs(math.log(one / two)) > math.log(1.1):
        said.append("GPU clocks differ: %.0f and %.0f MHz" % (one, two))
    return said


# ---- regression tracking

def load(path: str) -> dict[str, Any]:
    """A saved document. ValueError with a sentence when it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            doc = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError("%s is no report: %s" % (path, error)) from None
    if not isinstance(doc, dict) or doc.get("tool") != "perfmon" or not isinstance(doc.get("schema"), int):
        raise ValueError("%s is no report of perfmon" % path)
    if doc["schema"] > 1:
        raise ValueError("%s was written by a newer perfmon (schema %d)" % (path, doc["schema"]))
    return doc


def baselines(folder: str) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """(reports by file name, what was left out and why) of a folder."""
    found, left = [], []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json"):
            try:
                found.append((name, load(os.path.join(folder, name))))
            except (ValueError, OSError) as error:
                left.append(clean(error))
    return found, left


def regressions(doc: dict[str, Any], before: Sequence[tuple[str, dict[str, Any]]], *, alpha: float = ALPHA,
                tolerance: float = TOLERANCE, least: int = 4) -> dict[str, Any]:
    """One run against several earlier ones. The runs vary among themselves; a figure is called worse when it lies outside of
    what one more run like them would give (prediction interval of their logarithms, Student's t) by more than the tolerance."""
    alike = [(n, d) for n, d in before if d["machine"].get("gpu") == doc["machine"].get("gpu")]
    rows = []
    for key, label, read, lower, unit in HEADLINES:
        rows.append(_against(key, label, unit, lower, read(doc), [read(d) for _, d in alike], alpha, tolerance, least))
    for k in doc["kernels"]:
        earlier = [one["seconds"]["median"] for _, d in alike for one in d["kernels"] if one["name"] == k["name"]
                   and one["seconds"]]
        now = k["seconds"]["median"] if k["seconds"] else None
        rows.append(_against("kernel:" + k["name"], "Kernel %s, median" % k["name"], "s", True, now, earlier, alpha,
                             tolerance, least))
    rows = [r for r in rows if r["now"] is not None or r["n"]]
    return {"rows": rows, "baselines": [n for n, _ in alike],
            "other_gpus": [n for n, d in before if (n, d) not in alike],
            "worse": [r["label"] for r in rows if r["verdict"] == "worse"]}


def _against(key: str, label: str, unit: str, lower: bool | None, now: float | None, given: Sequence[float | None],
             alpha: float,
             tolerance: float, least: int) -> dict[str, Any]:
    past = [v for v in given if v is not None and v > 0]
    row: dict[str, Any] = {"key": key, "label": label, "unit": unit, "now": now, "n": len(past),
                           "median": median(past) if past else None,
                           "low": None, "high": None, "ratio": None, "verdict": UNSURE}
    if now is None:
        return dict(row, verdict="not measured now")
    if past and row["median"]:
        row["ratio"] = now / row["median"]
    if len(past) < least or now <= 0:
        return row
    logs = [math.log(v) for v in past]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in logs) / (len(logs) - 1))
    reach = student_quantile(1 - alpha / 2, len(logs) - 1) * deviation * math.sqrt(1 + 1 / len(logs))
    row.update(low=math.exp(mean - max(reach, math.log(1 + tolerance))),
               high=math.exp(mean + max(reach, math.log(1 + tolerance))))
    if row["low"] <= now <= row["high"]:
        return dict(row, verdict="as before")
    more = now > row["high"]
    return dict(row, verdict=("higher" if more else "lower") if lower is None else "worse" if more == lower
                else "better")


def student_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t, by bisection of its integral (Simpson)."""
    low, high = 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        if _student_cdf(middle, degrees) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_cdf(t: float, degrees: int) -> float:
    """For t >= 0; the angle atan(t / sqrt(degrees)) makes the range finite."""
    top, steps = math.atan(t / math.sqrt(degrees)), 400
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    width = top / steps
    values = [math.cos(n * width) ** (degrees - 1) for n in range(steps + 1)]
    return 0.5 + scale * width / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))
