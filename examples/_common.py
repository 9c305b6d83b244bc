"""What the example tools share: finding pyapplegpu, opening a Mac or a recording, snapshots as flat rows, numbers as text.

A figure that is missing is None here and a dash on the screen; `why` has the reason. Nothing turns it into 0.
"""
from __future__ import annotations

import argparse
import codecs
import errno
import json
import math
import os
import re
import signal
import sys
import time
from operator import attrgetter
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Sequence, TextIO, Tuple

try:
    import pyapplegpu as ag
except ImportError:     # not installed: the file stands next to this folder
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
    import pyapplegpu as ag

DASH = "-"
Line = List[Tuple[str, str]]      # pieces of text with the names of their styles
GIB = 1 << 30
PASSING = (ag.REASON_FIRST, ag.REASON_SLEPT, ag.REASON_RESET, ag.REASON_STALE)     # worth waiting for

# ---- options and opening


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """The options every tool has: which Mac to read."""
    group = parser.add_argument_group("source")
    group.add_argument("--recording", metavar="FILE", help="replay a recorded Mac instead of reading this one, on any OS "
                       "(default: the environment's PYAPPLEGPU_RECORDING)")
    group.add_argument("--speed", type=float, default=1.0, metavar="X",
                       help="replay X times as fast; 0 moves one recorded sample per reading")
    group.add_argument("--no-loop", dest="loop", action="store_false", help="stop where the recording ends")
    group.add_argument("--window", type=seconds, default=1.0, metavar="TIME",
                       help="span over which rates are averaged (default 1s)")


def open_device(args: argparse.Namespace) -> ag.Device:
    """The Mac that the options name, as a private device. Raises AppleGPUError or OSError with a sentence to show."""
    return ag.LibraryOpen(args.recording, window=args.window, speed=args.speed, loop=args.loop)


def seconds(text: str) -> float:
    """"500ms", "0.5s", "2m" or a number of seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|sec|m|min|h)?\s*", text)
    span = float(match.group(1)) * {"ms": 0.001, "m": 60, "min": 60, "h": 3600}.get(match.group(2) or "", 1) if match else 0
    if not 0 < span < 1e6:
        raise argparse.ArgumentTypeError("%r is not a time such as 500ms, 0.5s or 2m" % text)
    return span


def interval(text: str) -> float:
    """As `seconds`, but a bare number from 100 is milliseconds: nobody refreshes every 100 seconds, metop counts in ms."""
    if re.fullmatch(r"\s*\d+\s*", text) and int(text) >= 100:
        text += "ms"
    return seconds(text)


def count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError("%r is not a whole number from 1" % text)
    return int(text)


def is_recording(snapshot: ag.Snapshot) -> bool:
    return bool(snapshot.source != "live")


def source_name(snapshot: ag.Snapshot) -> str:
    """"live", or "recording NAME": stands in every header."""
    if not is_recording(snapshot):
        return "live"
    return "recording " + clean(os.path.splitext(os.path.basename(snapshot.source))[0])


# ---- snapshots


def late(snapshot: ag.Snapshot, fields: Iterable[str] | None = None) -> list[str]:
    """The fields (default: all) that lack only a second sample, and are there a moment later."""
    wanted = list(snapshot.reasons if fields is None else fields)
    found = [field for field in wanted if snapshot.reasons.get(field) in PASSING]
    if fields is None or "processes" in wanted:
        rows = snapshot.processes or ()
        found += ["processes"] if rows and all(p.gpu_percent is None for p in rows) else []
    if fields is None or "cpu_clusters" in wanted:
        for cluster in snapshot.cpu_clusters or ():
            found += ["cpu_clusters"] if any(r in PASSING for r in cluster.reasons.values()) else []
    return found


def settled(device: ag.Device, parts: Sequence[str] | None = None, fields: Iterable[str] | None = None,
            timeout: float = 2.5) -> ag.Snapshot:
    """A snapshot whose rates have their second sample; waits only for the fields that are wanted."""
    end = time.monotonic() + timeout
    while True:
        snapshot = ag.DeviceGetSnapshot(device, parts, timeout=0)
        if not late(snapshot, fields) or time.monotonic() >= end:
            return snapshot
        time.sleep(0.1)


def user_name(uid: int, live: bool) -> str:
    """The name of a user of this machine; of a recorded one only the number is known."""
    if live:
        import pwd
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            pass
    return "root" if uid == 0 else str(uid)


def why(snapshot: ag.Snapshot, field: str) -> str:
    """The sentence for a missing figure."""
    return clean(snapshot.messages.get(field) or "the source did not say")


_SCALARS = (
    "gpu_utilization_percent gpu_active_ratio gpu_scaled_ratio gpu_device_percent gpu_renderer_percent gpu_tiler_percent "
    "gpu_clock_mhz gpu_max_clock_mhz gpu_recovery_count gpu_power_mw gpu_energy_mj gpu_power_limit_mw gpu_sram_power_mw "
    "gpu_temperature_celsius gpu_temperature_max_celsius cpu_temperature_celsius thermal_pressure_level "
    "memory_total_bytes memory_used_bytes memory_free_bytes memory_allocated_bytes memory_wired_limit_bytes "
    "memory_headroom_bytes memory_utilization_percent cpu_power_mw cpu_energy_mj ane_power_mw ane_energy_mj "
    "memory_power_mw memory_energy_mj package_power_mw system_power_mw encode_power_mw decode_power_mw "
    "memory_max_bytes_per_s ane_utilization_percent ane_utilization_method ane_power_state cpu_utilization_percent").split()
_RATES = ("memory_read", "memory_write") + tuple(
    "memory_%s_%s" % (agent, way) for agent in ag.AGENTS for way in ("read", "write")) + (
    "encode_bandwidth", "decode_bandwidth", "prores_bandwidth")
_NESTED = (
    ("gpu_throttle", "cltm_ratio", "gpu_throttle_cltm_ratio"), ("gpu_throttle", "ppm_percent", "gpu_throttle_ppm_percent"),
    ("system_memory", "total_bytes", "ram_total_bytes"), ("system_memory", "used_bytes", "ram_used_bytes"),
    ("system_memory", "available_bytes", "ram_available_bytes"), ("system_memory", "app_bytes", "ram_app_bytes"),
    ("system_memory", "wired_bytes", "ram_wired_bytes"), ("system_memory", "active_bytes", "ram_active_bytes"),
    ("system_memory", "inactive_bytes", "ram_inactive_bytes"),
    ("system_memory", "compressed_bytes", "ram_compressed_bytes"), ("system_memory", "cached_bytes", "ram_cached_bytes"),
    ("system_memory", "free_bytes", "ram_free_bytes"), ("system_swap", "total_bytes", "swap_total_bytes"),
    ("system_swap", "used_bytes", "swap_used_bytes"), ("system_memory_pressure", "level", "memory_pressure_level"),
    ("system_memory_pressure", "available_percent", "memory_pressure_available_percent"),
    ("system_power_source", "source", "power_source"), ("system_power_source", "battery_percent", "battery_percent"),
    ("system_power_source", "battery_power_mw", "battery_power_mw"))
AGENT_FIELDS = tuple((agent, "memory_%s_read" % agent, "memory_%s_write" % agent) for agent in ag.AGENTS)
CORE_TYPES = ("Efficiency", "Performance", "Super")


class Figure(NamedTuple):
    """One cell of a flat row: the snapshot's field (its reason, age and source stand under this name), and what of it."""
    field: str
    read: Callable[[ag.Snapshot], Any]


def _figure(field: str, attribute: str | None = None) -> Figure:
    whole = attrgetter(field)
    return Figure(field, whole if attribute is None else lambda snapshot: getattr(whole(snapshot), attribute, None))


def _of_clusters(kind: str) -> dict[str, Figure]:
    """Use (mean by cores), clock (highest) and power (sum) of the clusters of a kind of core."""
    def group(snapshot: ag.Snapshot) -> list[ag.CpuCluster]:
        return [cluster for cluster in snapshot.cpu_clusters or () if cluster.core_type == kind]

    def use(snapshot: ag.Snapshot) -> float | None:
        pairs = [(cluster.utilization_percent, cluster.cores) for cluster in group(snapshot)]
        known = bool(pairs) and all(u is not None and n for u, n in pairs)
        return round(sum(u * n for u, n in pairs) / sum(n for _, n in pairs), 1) if known else None

    def clock(snapshot: ag.Snapshot) -> float | None:
        return max((cluster.clock_mhz for cluster in group(snapshot) if cluster.clock_mhz is not None), default=None)

    def power(snapshot: ag.Snapshot) -> float | None:
        watts = [cluster.power_mw for cluster in group(snapshot)]
        return sum(watts) if watts and None not in watts else None
    return {"cpu_%s_%s" % (kind.lower(), name): Figure("cpu_clusters", read)
            for name, read in (("utilization_percent", use), ("clock_mhz", clock), ("power_mw", power))}


FIGURES: dict[str, Figure] = {
    **{field: _figure(field) for field in _SCALARS}, **{field + "_bytes_per_s": _figure(field, "bytes_per_s") for field in _RATES},
    "memory_bandwidth_estimated": _figure("memory_read", "estimated"),
    **{key: _figure(field, attribute) for field, attribute, key in _NESTED},
    **{key: one for kind in CORE_TYPES for key, one in _of_clusters(kind).items()},
    "fan_max_rpm": Figure("fans", lambda s: max((fan.rpm for fan in s.fans or ()), default=None)),
    "gpu_process_count": Figure("processes", lambda s: None if s.processes is None else len(s.processes))}


def flat(snapshot: ag.Snapshot, elapsed_s: float | None = None) -> dict[str, Any]:
    """One flat row with always the same keys, None where there is no value: what CSV, JSON lines and histories hold."""
    return {"time_unix_s": round(snapshot.time_unix_s, 3), "elapsed_s": elapsed_s, "interval_s": snapshot.interval_s,
            **{key: figure.read(snapshot) for key, figure in FIGURES.items()}}


def ane_use(snapshot: ag.Snapshot) -> str:
    """"~25 %": Apple publishes no use of the Neural Engine, every figure is an estimate."""
    use = snapshot.ane_utilization_percent
    return DASH if use is None else "~" + percent(use)


def ane_method(snapshot: ag.Snapshot) -> str:
    """"by soc floor": from what `ane_use` was estimated; "" when it was not."""
    method = snapshot.ane_utilization_method
    return "by " + method.replace("_", " ") if method else ""


def wired_limit(snapshot: ag.Snapshot) -> str:
    """The limit that an administrator set, or "default"."""
    if snapshot.reasons.get("memory_wired_limit_bytes") == ag.REASON_NO_LIMIT:
        return "default"
    return size(snapshot.memory_wired_limit_bytes)


def cores_by_kind(snapshot: ag.Snapshot) -> dict[str, int]:
    """{"Efficiency": 4, "Performance": 6}, kinds this Mac has; {} when the clusters are not known."""
    kinds: dict[str, int] = {}
    for cluster in snapshot.cpu_clusters or ():
        if cluster.cores:
            kinds[cluster.core_type] = kinds.get(cluster.core_type, 0) + cluster.cores
    return kinds


def missing(snapshot: ag.Snapshot) -> list[tuple[str, str, str]]:
    """(field, reason, sentence) of everything that was asked for and is not there, the clusters' figures included."""
    rows = [(field, reason, why(snapshot, field)) for field, reason in snapshot.reasons.items()
            if reason != ag.REASON_NOT_ASKED]
    for cluster in snapshot.cpu_clusters or ():
        rows += [("%s %s" % (cluster.name or "CPU", field), reason, _SENTENCES.get(reason, reason))
                 for field, reason in cluster.reasons.items()]
    throttle = snapshot.gpu_throttle
    rows += [("gpu_throttle." + field, ag.REASON_CHIP, "this chip does not publish it")
             for field in ("cltm_ratio", "ppm_percent") if throttle is not None and getattr(throttle, field) is None]
    return rows


_SENTENCES = {ag.REASON_CPU_ASLEEP: "the cluster was off for the whole interval", ag.REASON_FIRST: "a rate needs a second "
              "sample", ag.REASON_FROZEN: "the driver publishes a zero that cannot be true", ag.REASON_CHIP: "this chip "
              "does not publish it", ag.REASON_STALE: "the driver has published nothing new"}

# ---- writing rows


class RowWriter:
    """Appends flat rows to a file, as CSV or JSON lines by its ending; a row is on disk when `write` returns. Or to a stream."""

    def __init__(self, path: str | TextIO, kind: str | None = None) -> None:
        self.columns: list[str] | None = None
        if not isinstance(path, str):
            self.csv, self.file = kind == "csv", path
            return
        self.csv = (kind or ("csv" if path.lower().endswith(".csv") else "jsonl")) == "csv"
        self.file = open(path, "a", encoding="utf-8", newline="")
        if self.csv and self.file.tell():       # goes on below an earlier run: in its columns, which are ours or none
            with open(path, encoding="utf-8") as earlier:
                self.columns = earlier.readline().rstrip("\n").split(",")

    def write(self, row: dict[str, Any]) -> None:
        try:
            self._write(row)
        except OSError as error:
            error.filename = self.file.name
            raise

    def _write(self, row: dict[str, Any]) -> None:
        if self.csv:
            if self.columns is None:
                self.columns = list(row)
                self.file.write(",".join(self.columns) + "\n")
            if self.columns != list(row):
                raise OSError(errno.EINVAL, "holds a table with other columns")
            self.file.write(",".join(_csv(row.get(column)) for column in self.columns) + "\n")
        else:
            self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        try:
            self.file.close()
        except OSError as error:        # a full disk: what could not be written at once is tried once more
            error.filename = self.file.name
            raise


def _csv(value: Any) -> str:
    text = "" if value is None else str(value)
    return '"%s"' % text.replace('"', '""') if any(c in text for c in ',"\r\n') else text


# ---- judgements, the same in every tool

HOT = (80, 95)          # °C: from here on warm, hot
PRESSURE = {"normal": "good", "warning": "warn", "critical": "bad"}     # the kernel's own words for the pressure on memory


def level(value: float | None, warn: float, bad: float) -> str:
    """The style of a figure: good, warn, bad; dim when it is not known."""
    return "dim" if value is None else "bad" if value >= bad else "warn" if value >= warn else "good"


# ---- numbers as text

def clean(text: Any) -> str:
    """Text from outside (process names, recordings) without control characters, so that it cannot drive the terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def show(value: Any, form: Callable[[Any], str] | str) -> str:
    """The value in a form, or a dash."""
    if value is None:
        return DASH
    return form % value if isinstance(form, str) else form(value)


def percent(value: float | None) -> str:
    return show(value, "%.0f %%")


def ratio(value: float | None) -> str:
    return DASH if value is None else "%.0f %%" % (100 * value)


def watts(milliwatts: float | None) -> str:
    """"12.3 W"; below a watt "123 mW"."""
    if milliwatts is None:
        return DASH
    return "%.0f mW" % milliwatts if milliwatts < 999.5 else "%.1f W" % (milliwatts / 1000)


def joules(value: float | None) -> str:
    if value is None:
        return DASH
    if value < 0.9995:
        return "%.0f mJ" % (value * 1000)
    return "%.1f J" % value if value < 9999.5 else "%.2f kJ" % (value / 1000)


def size(count: float | None) -> str:
    """Memory, in GB of 2**30 bytes as Activity Monitor counts them."""
    if count is None:
        return DASH
    for power, unit in ((40, "TB"), (30, "GB"), (20, "MB")):
        if count >= 1 << power:
            return "%.*f %s" % (0 if unit == "MB" and count >= 10 << 20 else 1, count / (1 << power), unit)
    return "%.0f KB" % (count / 1024) if count else "0"


def pair(used: float | None, total: float | None) -> str:
    """"29.0 / 107.5 GB", "6.2 MB / 10.7 GB"."""
    if used is None and total is None:
        return DASH
    if used and used < 0.05 * GIB:
        return "%s / %s" % (size(used), size(total))
    return "%s / %s GB" % (show(used, lambda v: "%.1f" % (v / GIB)), show(total, lambda v: "%.1f" % (v / GIB)))


def swap(snapshot: ag.Snapshot) -> str:
    """As `pair`; "none" where there is no swap file."""
    found = snapshot.system_swap
    return DASH if found is None else pair(found.used_bytes, found.total_bytes) if found.total_bytes else "none"


def counted(count: float, noun: str) -> str:
    """"1 sample", "2 samples"."""
    return "%d %s%s" % (count, noun, "" if count == 1 else "s")


def speed(bytes_per_s: float | None) -> str:
    """Traffic, in powers of ten."""
    if bytes_per_s is None:
        return DASH
    for power, unit in ((12, "TB/s"), (9, "GB/s"), (6, "MB/s"), (3, "kB/s")):
        if bytes_per_s >= 10 ** power:
            scaled = bytes_per_s / 10 ** power
            return "%.*f %s" % (1 if scaled < 99.95 and power > 6 else 0, scaled, unit)
    return "%.0f B/s" % bytes_per_s


def bandwidth(value: ag.Bandwidth | None) -> str:
    """"~128 GB/s": ~ estimated from histograms; ">" the truth is higher (the top bucket is full)."""
    if value is None:
        return DASH
    return (">" if value.saturated else "~" if value.estimated else "") + speed(value.bytes_per_s)


def celsius(value: float | None) -> str:
    return show(value, "%.0f°C")


def mhz(value: float | None) -> str:
    return show(value, "%.0f MHz")


def clock_time(span_s: float | None) -> str:
    """"0:09.6", "1:40", "2:03:10": GPU time as `top` prints it."""
    if span_s is None:
        return DASH
    if span_s < 60:
        return "%.1fs" % span_s
    minutes, rest = divmod(int(span_s), 60)
    return "%d:%02d" % (minutes, rest) if minutes < 60 else "%d:%02d:%02d" % (minutes // 60, minutes % 60, rest)


def duration(span_s: float) -> str:
    return "%.0f ms" % (span_s * 1000) if span_s < 0.9995 else "%g s" % round(span_s, 2) if span_s < 60 else (
        "%g min" % round(span_s / 60, 2))


BLOCKS = " ▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉█"


def bar(share: float | None, width: int) -> tuple[str, str]:
    """(filled, empty) of a bar; both of them dots when the share is not known."""
    if share is None:
        return "", "·" * width
    eighths = int(round(min(1.0, max(0.0, share)) * width * 8))
    if share > 0:
        eighths = max(1, eighths)
    filled = "█" * (eighths // 8) + (_PARTS[eighths % 8] if eighths % 8 else "")
    return filled, "░" * (width - len(filled))


def ceiling(values: Iterable[float], least: float) -> float:
    """A round figure (1, 1.5, 2, 3, 5, 7.5, 10 ...) above every value (nan: unknown) and `least`: where a graph ends."""
    highest = max((v for v in values if v == v), default=0.0)
    if highest <= least:
        return least
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 1.5, 2, 3, 5, 7.5, 10, 15) if step * power >= highest)


def spark(values: Sequence[float], top: float) -> str:
    """One character per value: blank where unknown (nan), the lowest block for 0."""
    return graph(values, top, 1)[0]


def graph(values: Sequence[float], top: float, height: int) -> list[str]:
    """As spark, over several lines, the first one on top."""
    steps = [-1 if v != v else max(1, min(8 * height, int(round(v * 8 * height / top)))) if top > 0 else 1 for v in values]
    return ["".join(BLOCKS[min(8, max(0, step - 8 * level))] for step in steps) for level in range(height - 1, -1, -1)]


# ---- histories

NAN = math.nan


class History:
    """Recent values of named series over several ranges at once, in arrays that never grow."""

    SLOTS = 480             # of a range
    KEPT = 2 * SLOTS        # a graph whose columns do not divide the range shows a little more than it

    def __init__(self, names: Iterable[str], ranges: Sequence[float]) -> None:
        from array import array
        self.names, self.ranges = tuple(names), tuple(ranges)
        self._rings = [{name: array("d", [NAN]) * self.KEPT for name in self.names} for _ in self.ranges]
        self._slot: list[int | None] = [None] * len(self.ranges)
        self._count = [0] * len(self.ranges)

    def add(self, t: float, row: dict[str, Any], covers: float) -> None:
        """Values that hold for the last `covers` seconds up to t; time nobody measured stays unknown."""
        for which, span in enumerate(self.ranges):
            self._add(which, t * self.SLOTS / span, covers * self.SLOTS / span, row)

    def _add(self, which: int, at: float, covers: float, row: dict[str, Any]) -> None:
        slot, before = int(at), self._slot[which]
        rings, slots = self._rings[which], self.KEPT
        if before is None or slot < before or slot - before >= slots:
            fresh: Iterator[int] | range = range(slot - slots + 1, slot + 1)
            first = slot
        else:
            fresh, first = range(before + 1, slot + 1), max(before + 1, int(at - covers) + 1)
        again = before == slot
        self._count[which] = self._count[which] + 1 if again else 1
        for name in self.names:
            value = row.get(name)
            ring = rings[name]
            value = NAN if value is None else float(value)
            if again:
                old = ring[slot % slots]
                if value == value:      # not nan
                    ring[slot % slots] = value if old != old else old + (value - old) / self._count[which]
            else:
                for n in fresh:
                    ring[n % slots] = value if n >= first else NAN
        self._slot[which] = slot

    def has(self, name: str, span: float) -> bool:
        """Something is known of it over this range."""
        return any(v == v for v in self.values(name, span, 24))

    def values(self, name: str, span: float, width: int) -> list[float]:
        """`width` means over equal parts of the range, the newest last, nan where nothing is known."""
        which = self.ranges.index(span)
        newest = self._slot[which]
        if newest is None or width < 1:
            return [NAN] * max(0, width)
        ring, oldest = self._rings[which][name], newest + 1 - self.KEPT
        ordered = ring[oldest % self.KEPT:] + ring[:oldest % self.KEPT]
        group = -(-self.SLOTS // width)
        # Columns keep their place in time, so that a graph moves but does not shimmer; the newest may not be full yet.
        begin = (newest // group - width + 1) * group - oldest
        columns = []
        for start in range(begin, begin + width * group, group):
            part = ordered[max(0, start):max(0, start + group)]
            total = sum(part)
            if total != total:              # nan: not all of them are known
                part = [v for v in part if v == v]
                total = sum(part)
            columns.append(total / len(part) if len(part) else NAN)
        return columns


# ---- running

def local_fonts(path: str) -> None:
    """Take the web fonts out of an SVG that rich or Textual wrote: a picture loads nothing."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    text = re.sub(r"@font-face\s*\{[^}]*\}", "", text).replace("Fira Code", "ui-monospace, Menlo, DejaVu Sans Mono")
    with open(path, "w", encoding="utf-8") as file:
        file.write(re.sub(r"<!--.*?-->", "", text))


async def in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives that may take long, made beside the event loop. Not in an executor (asyncio.to_thread), whose threads
    are waited for at the end: a Mac that does not answer must not hold up `q` or Ctrl-C."""
    import asyncio
    import threading
    from concurrent.futures import Future
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:      # whoever waits gets it
            future.set_exception(error)
    threading.Thread(target=run, name="snapshot", daemon=True).start()
    return await asyncio.wrap_future(future)


_ASCII = str.maketrans(dict({"°": "", "…": "~", "─": "-", "●": "*", "▲": "^", "▼": "v", "░": ".", "·": "."}, **{
    block: "_.-=+*#@"[n] for n, block in enumerate("▁▂▃▄▅▆▇█")}, **dict.fromkeys("▏▎▍▌▋▊▉", "#")))


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start:error.end].translate(_ASCII)
    return "".join(char if char.isascii() else "?" for char in text), error.end


def sentence(error: Exception) -> str:
    """An error without Python's number: "log.csv: No space left on device"."""
    if isinstance(error, OSError) and error.strerror:
        return "%s: %s" % (error.filename, error.strerror) if error.filename else error.strerror
    return str(error)


def plain_where_needed() -> None:
    """Let stdout, and stderr that Textual draws on, write what their encoding lacks (LC_ALL=C in a cron job) as the nearest
    letters, not as a traceback; and to nowhere where they are closed (`>&-`)."""
    codecs.register_error("applegpu-ascii", _in_ascii)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="applegpu-ascii")


def tell(text: str, stream: Any = None) -> None:
    """A text to stderr, or to `stream`; that nobody reads it is no failure of what was done."""
    try:
        print(text, file=stream or sys.stderr, flush=True)
    except BrokenPipeError:
        drop_unread()


def asked_width() -> int | None:
    """What the environment's COLUMNS asks for."""
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isdigit() and int(text) else None


ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def _exit(code: int) -> None:
    raise SystemExit(code)


def on_ending(end: Callable[[int], None] = _exit) -> None:
    """What draws on the whole terminal must give it back when it is told to end: call `end` with the exit code then (default:
    raise SystemExit)."""
    for number in ENDING:
        signal.signal(number, lambda number, _: end(128 + number))


def drop_unread() -> None:
    """What nobody reads goes nowhere from now on, also when the interpreter flushes it at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def quiet_pipe(work: Callable[[], int]) -> int:
    """Run a tool's main; a reader that closes the pipe (`| head`) ends it without a traceback, an error is one sentence."""
    try:
        plain_where_needed()
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        drop_unread()
        return 0
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):      # rich's way of ending
            return 0
        raise
    except KeyboardInterrupt:
        return 130
    except (ag.AppleGPUError, OSError) as error:
        print("%s: %s" % (os.path.basename(sys.argv[0]), sentence(error)), file=sys.stderr)
        return 1
