"""One look at an Apple GPU from the shell, what gpustat is to NVIDIA; and what a command costs.

    python stat.py                          [0] Apple M1 Max | 45°C, 37 % | 12.1 / 51.8 GB | 18.2 W
    python stat.py -a -p                    everything, and who uses the GPU
    python stat.py -i 2                     again every 2 seconds
    python stat.py --json                   gpustat's schema;  --jsonl: one flat row per look
    python stat.py run -- make bench        the command's exit code, and its joules per rail
    python stat.py --recording recordings/m5max-macos27.json -a        any of it without a Mac

A dash is a figure that is not known; --why lists them with their reasons. It never stands for 0.
"""
from __future__ import annotations

import argparse
import functools
import json
import os
import socket
import sys
import time
from typing import Any, Callable, Iterable, Iterator, Sequence

import _common as c
import _run
from _common import Line, ag

try:
    from rich.console import Console
    from rich.text import Text
except ImportError:
    sys.exit("stat.py needs rich: pip install rich")

__all__ = ["main", "measure"]
measure = _run.measure

SECTIONS = (    # option, long option, name, snapshot parts, what it shows
    ("-c", "--show-cpu", "cpu", ("cpu", "clocks"), "CPU: use, clusters with clock and power"),
    ("-P", "--show-power", "power", ("power", "ane", "media"), "power per rail, package, whole machine"),
    ("-m", "--show-memory", "memory", ("memory",), "main memory by kind of page, pressure"),
    ("-g", "--show-gpu-mem", "gpumem", ("memory",), "GPU memory: in use, limit, allocated, headroom"),
    ("-s", "--show-swap", "swap", ("memory",), "swap"),
    ("-t", "--show-thermal", "thermal", ("temperature",), "temperatures, thermal pressure, throttling, fans"),
    ("-b", "--show-bandwidth", "bandwidth", ("bandwidth",), "memory traffic, whole and per agent"),
    ("-e", "--show-codec", "codec", ("media",), "video engines"),
    (None, "--ane", "ane", ("ane", "power", "bandwidth"), "Neural Engine: use (an estimate), power, traffic"),
)
LINE_FIELDS = ("gpu_utilization_percent", "gpu_temperature_celsius", "memory_used_bytes", "gpu_power_mw")
SECTION_FIELDS = {
    "gpu": ("gpu_active_ratio", "gpu_scaled_ratio", "gpu_clock_mhz"),
    "cpu": ("cpu_utilization_percent", "cpu_clusters", "cpu_power_mw"),
    "power": ("cpu_power_mw", "ane_power_mw", "memory_power_mw", "package_power_mw", "system_power_mw"),
    "thermal": ("gpu_throttle",), "bandwidth": ("memory_read", "memory_write"),
    "ane": ("ane_utilization_percent", "ane_power_mw"), "codec": ("encode_power_mw", "decode_power_mw"),
}


def _patience(text: str) -> float:
    """A time, or 0: wait for nothing."""
    return 0.0 if text.strip("0") in ("", ".") and text.strip(".") else c.seconds(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stat.py", description=(__doc__ or "").split("\n\n")[0], epilog="stat.py run --help: "
                                     "measure a command. Exit code: 0 ok, 1 no GPU or an error, 2 wrong usage.")
    shown = parser.add_argument_group("what to show beside the line per GPU")
    for short, long, name, _, text in SECTIONS:
        names = [short, long] if short else [long, "--show-" + name]
        names += ["-F", "--show-fan-speed"] if name == "thermal" else []        # gpustat's
        shown.add_argument(*names, dest=name, action="store_true", help=text)
    shown.add_argument("-p", "--show-procs", "--show-pid", dest="procs", action="store_true",
                       help="processes by true GPU time")
    shown.add_argument("-u", "--show-user", dest="user", action="store_true", help="the same, with their users")
    shown.add_argument("-n", "--num-procs", type=c.count, default=8, metavar="N", help="how many processes (default 8)")
    shown.add_argument("-a", "--show-all", dest="all", action="store_true", help="all of the above but processes")
    shown.add_argument("--why", action="store_true", help="list what is missing, each with its reason")
    shown.add_argument("--id", type=int, default=None, metavar="N", help="only the GPU of this index")
    form = parser.add_argument_group("how to show it")
    form.add_argument("--json", nargs="?", const="gpustat", choices=("gpustat", "snapshot"), metavar="SCHEMA",
                      help="JSON: gpustat's schema (default), or `snapshot`: every figure, reason, age and source")
    form.add_argument("--jsonl", nargs="?", const="flat", choices=("flat", "metalstat"), metavar="SCHEMA",
                      help="one flat JSON row per look, always the same keys, null for unknown; `metalstat`: its keys")
    form.add_argument("--csv", action="store_true", help="the flat row as CSV")
    form.add_argument("--meta-json", action="store_true", help="what does not change (chip, cores, limits), and exit")
    form.add_argument("--color", "--force-color", dest="color", action="store_true", default=None, help="colour into a pipe")
    form.add_argument("--no-color", dest="color", action="store_false", help="no colour (as NO_COLOR=1)")
    form.add_argument("--no-header", dest="header", action="store_false", help="no line with host, time and system")
    parser.add_argument("-i", "--interval", "--watch", type=c.seconds, nargs="?", const=1.0, metavar="TIME",
                        help="again every TIME (default 1s; 500ms, 2, 1m)")
    parser.add_argument("--count", type=c.count, metavar="N", help="with -i: stop after N looks")
    parser.add_argument("--timeout", type=_patience, default=2.5, metavar="TIME",
                        help="wait this long for figures that come late: power rails publish every 2 s (default 2.5)")
    parser.add_argument("--debug", action="store_true", help="where every source stands, and tracebacks")
    parser.add_argument("-v", "--version", action="version", version="pyapplegpu " + ag.__version__)
    c.add_source_options(parser)
    parser.set_defaults(**{"sample_duration": None})
    parser.add_argument("--sample-duration", dest="window", type=c.seconds, help=argparse.SUPPRESS)     # metalstat's name
    return parser


# ---- what is read

class Look:
    """One look: the snapshot and what does not change."""

    def __init__(self, device: ag.Device, index: int, snapshot: ag.Snapshot) -> None:
        self.device, self.index, self.snapshot = device, index, snapshot


class Reader:
    """Opens what the options name and takes looks at it."""

    def __init__(self, args: argparse.Namespace) -> None:
        ag.LibraryInit(args.recording, window=args.window, speed=args.speed, loop=args.loop)
        self.args = args
        count = ag.LibraryCountDevice()
        if args.id is not None and not 0 <= args.id < count:
            raise SystemExit("stat.py: there is no GPU %d: %d found" % (args.id, count))
        self.devices = [(n, ag.LibraryInitDeviceByIndex(n)) for n in range(count) if args.id in (None, n)]
        self.parts, self.fields = _wanted(args)
        self.ended = ""         # why there are no more looks

    def look(self, wait: bool = True) -> list[Look]:
        timeout = self.args.timeout if wait else 0.0
        return [Look(device, n, c.settled(device, self.parts, self.fields, timeout)) for n, device in self.devices]

    def close(self) -> None:
        ag.LibraryShutDown()


def _wanted(args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Snapshot parts to ask for, and the fields worth waiting for (None: all)."""
    if args.json == "snapshot" or args.jsonl or args.csv or args.why or args.debug:
        return ag.PARTS, None
    parts, fields = {"gpu", "memory", "power", "temperature", "system"}, set(LINE_FIELDS)
    if args.json:
        return tuple(parts | {"processes"}), tuple(fields)
    chosen = [row for row in SECTIONS if args.all or getattr(args, row[2])]
    for _, _, name, more, _ in chosen:
        parts.update(more)
        fields.update(SECTION_FIELDS.get(name, ()))
    if args.all or args.gpumem:
        parts.add("clocks")
        fields.update(SECTION_FIELDS["gpu"])
    if args.procs or args.user:
        parts.add("processes")
        fields.add("processes")
    return tuple(parts), tuple(fields)


# ---- as text: a line is a list of (text, style)

COLOURS = {"dim": "dim", "good": "green", "warn": "yellow", "bad": "red"}


def _heat(value: float | None, warm: float, hot: float) -> str:
    return COLOURS[c.level(value, warm, hot)]


def header(look: Look) -> Line:
    s = look.snapshot
    stamp = time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(s.time_unix_s))
    host = c.source_name(s) if c.is_recording(s) else socket.gethostname()
    line = [(host, "bold"), ("  ", ""), (stamp, ""), ("  ", ""), ("macOS %s" % (s.system_os_version or c.DASH), "dim")]
    return line + ([("  ", ""), ("driver %s" % c.clean(s.system_driver_version), "dim")] if s.system_driver_version else [])


def one_line(look: Look) -> Line:
    """[0] Apple M1 Max | 45°C, 37 % | 12.1 / 51.8 GB | 18.2 W"""
    s = look.snapshot
    limit = s.gpu_power_limit_mw
    return [("[%d]" % look.index, "cyan"), (" ", ""), (c.clean(s.gpu_name or "Apple GPU"), "bold blue"), (" | ", ""),
            (c.celsius(s.gpu_temperature_celsius), _heat(s.gpu_temperature_celsius, *c.HOT)), (", ", ""),
            (c.percent(s.gpu_utilization_percent), _heat(s.gpu_utilization_percent, 30, 101)), (" | ", ""),
            (c.pair(s.memory_used_bytes, s.memory_total_bytes), "yellow" if s.memory_used_bytes is not None else "dim"),
            (" | ", ""), (c.watts(s.gpu_power_mw), "magenta" if s.gpu_power_mw is not None else "dim"),
            (" / %s" % c.watts(limit) if limit is not None else "", "magenta")]


def _list(*pairs: tuple[str, str]) -> Line:
    """name value, name value"""
    out: Line = []
    for name, value in pairs:
        out += [(", " if out else "", ""), (name + " " if name else "", "dim"), (value, "dim" if value == c.DASH else "")]
    return out


def _both(one: str, other: str, between: str = " ") -> str:
    """Two figures as one; a dash where neither is known."""
    return one + between + other if {one, other} != {c.DASH} else c.DASH


def section_gpu(s: ag.Snapshot) -> Iterator[tuple[str, Line]]:
    clocks = [state.mhz for state in s.gpu_states or () if state.mhz]
    span = "%d to %s" % (min(clocks), c.mhz(s.gpu_max_clock_mhz)) if clocks else c.mhz(s.gpu_max_clock_mhz)
    yield "GPU", _list(("device", c.percent(s.gpu_device_percent)), ("renderer", c.percent(s.gpu_renderer_percent)),
                       ("tiler", c.percent(s.gpu_tiler_percent)), ("active", c.ratio(s.gpu_active_ratio)),
                       ("scaled", c.ratio(s.gpu_scaled_ratio)))
    yield "", _list(("clock", _both(c.mhz(s.gpu_clock_mhz), span, " of ")), ("cores", c.show(s.gpu_core_count, "%d")),
                    ("restarts", c.show(s.gpu_recovery_count, "%d")))


def section_cpu(s: ag.Snapshot) -> Iterator[tuple[str, Line]]:
    yield "CPU", _list(("", c.percent(s.cpu_utilization_percent)), ("power", c.watts(s.cpu_power_mw)),
                       ("cores", " + ".join(("%d %s" % (n, kind)).strip() for kind, n in c.cores_by_kind(s).items()) or c.DASH))
    for cluster in s.cpu_clusters or ():
        yield "", _list(("%-10s" % (c.clean(cluster.name) or "all"), "%6s" % c.percent(cluster.utilization_percent)),
                        ("clock", _both(c.mhz(cluster.clock_mhz), c.mhz(cluster.max_clock_mhz), " of ")),
                        ("power", c.watts(cluster.power_mw)), ("cores", c.show(cluster.cores, "%d")))


def section_power(s: ag.Snapshot) -> Iterator[tuple[str, Line]]:
    yield "Power", _list(("machine", c.watts(s.system_power_mw)), ("package", c.watts(s.package_power_mw)),
                         ("GPU", c.watts(s.gpu_power_mw)), ("CPU", c.watts(s.cpu_power_mw)),
                         ("ANE", c.watts(s.ane_power_mw)), ("DRAM", c.watts(s.memory_power_mw)))
    source = s.system_power_source
    yield "", _list(("GPU cap", c.watts(s.gpu_power_limit_mw)), ("GPU SRAM", c.watts(s.gpu_sram_power_mw)),
                    ("encoder", c.watts(s.encode_power_mw)), ("decoder", c.watts(s.decode_power_mw)),
                    ("from", c.DASH if source is None else c.clean(source.source)),
                    ("battery", c.DASH if source is None else c.percent(source.battery_percent)))


def section_memory(s: ag.Snapshot) -> Iterator[tuple[str, Line]]:
    m, pressure = s.system_memory, s.system_memory_pressure
    level = pressure.level if pressure is not None else None
    yield "Memory", [(c.pair(m.used_bytes, m.total_bytes) if m else c.DASH, ""),
                     ("  ● " + (level or c.DASH), COLOURS[c.PRESSURE.get(level or "", "dim")]),
                     (", %s available" % c.percent(pressure.available_percent) if pressure else "", "dim")]
    if m is not None:
        yield "", _list(*((name, c.size(getattr(m, name + "_bytes"))) for name in (
            "wired", "active", "inactive", "compressed", "app", "cached", "free")))


def section_gpumem(s: ag.Snapshot) -> Iterator[tuple[str, Line]]:
    yield "Metal", [(c.pair(s.memory_used_bytes, s.memory_total_bytes), ""), (", ", "")] + _list(
        ("", c.percent(s.memory_utilization_percent)), ("allocated", c.size(s.memory_allocated_bytes)),
        ("headroom", c.size(s.memory_headroom_bytes)),
        ("wired limit", c.wired_limit(s)))


def section_swap(s: ag.Snapshot) -> Iterator[tuple[str, Line]]:
    yield "Swap", [(c.swap(s), "")]


def section_ane(s: ag.Snapshot) -> Iterator[tuple[str, Line]]:
    yield "ANE", _list(("", ("%s %s" % (c.ane_use(s), c.ane_method(s))).strip()), ("power", c.watts(s.ane_power_mw)),
                       ("state", c.show(s.ane_power_state, "%d")), ("read", c.bandwidth(s.memory_ane_read)),
                       ("write", c.bandwidth(s.memory_ane_write)))


def section_thermal(s: ag.Snapshot) -> Iterator[tuple[str, Line]]:
    throttle, level = s.gpu_throttle, s.thermal_pressure_level
    fans = " + ".join("%d rpm (%s)" % (fan.rpm, c.percent(fan.percent)) for fan in s.fans or ())
    yield "Heat", _list(("GPU", c.celsius(s.gpu_temperature_celsius)), ("hottest", c.celsius(s.gpu_temperature_max_celsius)),
                        ("CPU", c.celsius(s.cpu_temperature_celsius)),
                        ("pressure", c.DASH if level is None else ag.THERMAL_PRESSURE[level]))
    yield "", _list(("throttled", c.ratio(throttle.cltm_ratio if throttle else None)),
                    ("power budget", c.percent(throttle.ppm_percent if throttle else None)),
                    ("fans", fans or ("none" if s.fans is not None else c.DASH)))


def section_bandwidth(s: ag.Snapshot) -> Iterator[tuple[str, Line]]:
    yield "Traffic", _list(("read", c.bandwidth(s.memory_read)), ("write", c.bandwidth(s.memory_write)),
                           ("of", c.speed(s.memory_max_bytes_per_s)))
    known = [(agent, getattr(s, read), getattr(s, write)) for agent, read, write in c.AGENT_FIELDS]
    pairs = [(agent, "%s / %s" % (c.bandwidth(read), c.bandwidth(write))) for agent, read, write in known
             if read is not None or write is not None]
    for start in range(0, len(pairs), 3):
        yield "", _list(*pairs[start:start + 3])


def section_codec(s: ag.Snapshot) -> Iterator[tuple[str, Line]]:
    yield "Video", _list(("encoder", _both(c.bandwidth(s.encode_bandwidth), c.watts(s.encode_power_mw))),
                         ("decoder", _both(c.bandwidth(s.decode_bandwidth), c.watts(s.decode_power_mw))),
                         ("ProRes", c.bandwidth(s.prores_bandwidth)))


DRAW: dict[str, Callable[[ag.Snapshot], Iterator[tuple[str, Line]]]] = {
    "gpu": section_gpu, "cpu": section_cpu, "power": section_power, "memory": section_memory, "gpumem": section_gpumem,
    "swap": section_swap, "thermal": section_thermal, "bandwidth": section_bandwidth, "codec": section_codec,
    "ane": section_ane}


def processes(look: Look, most: int, users: bool = False) -> Iterator[Line]:
    s = look.snapshot
    yield [("    %7s %6s %9s %9s  %s" % ("PID", "GPU", "GPU time", "memory", "process"), "dim")]
    rows = s.processes
    if rows is None:
        yield [("    " + c.DASH + " " + c.why(s, "processes"), "dim")]
    elif not rows:
        yield [("    no process uses the GPU", "dim")]
    for p in (rows or ())[:most]:
        share = c.percent(p.gpu_percent)
        yield [("    %7d " % p.pid, ""), ("%6s" % share, _heat(p.gpu_percent, 30, 101)),
               (" %9s" % c.clock_time(p.gpu_time_ns / 1e9), ""), (" %9s  " % c.size(p.footprint_bytes), "dim" if p.footprint_bytes is None else "yellow"),
               (c.clean(p.name), "bold" if p.is_self else ""),
               (" (%s)" % (_user(look, p.pid) or c.DASH) if users else "", "dim")]
    if rows and len(rows) > most:
        yield [("    and %d more; -n %d shows all" % (len(rows) - most, len(rows)), "dim")]


def page(looks: Sequence[Look], args: argparse.Namespace, width: int) -> list[Line]:
    """Every line of one look."""
    lines = list(_broken(header(looks[0]), width, 0)) if args.header and looks else []
    names = [row[2] for row in SECTIONS if args.all or getattr(args, row[2])]
    if args.all:
        names.insert(0, "gpu")
    for look in looks:
        lines += _broken(one_line(look), width, 4)
        for name in names:
            for title, pieces in DRAW[name](look.snapshot):
                lines += _wrapped(title, pieces, width)
        if args.procs or args.user:
            lines += list(processes(look, args.num_procs, args.user))
        if args.why:
            lines += [[("    %s: " % field, ""), (sentence, "dim")] for field, _, sentence in c.missing(look.snapshot)]
    return lines


def _wrapped(title: str, pieces: Line, width: int) -> Iterator[Line]:
    """A section's line, broken between figures where the terminal is too narrow."""
    head = "    %-8s" % title
    return _broken([(head, "cyan")] + pieces, width, len(head))


SEPARATORS = (", ", " | ", "  ")


def _broken(pieces: Line, width: int, indent: int) -> Iterator[Line]:
    """As many lines as the width asks for; a line ends before a separator, which then goes."""
    groups: list[Line] = []
    for piece in pieces:
        if piece[0] in SEPARATORS or not groups:
            groups.append([])
        groups[-1].append(piece)
    line, used = groups[0], sum(len(text) for text, _ in groups[0])
    for group in groups[1:]:
        length = sum(len(text) for text, _ in group)
        if used > indent and used + length > width:
            yield line
            line, group = [(" " * indent, "")], group[1:]
            used, length = indent, sum(len(text) for text, _ in group)
        line, used = line + group, used + length
    yield line


def text_of(lines: Iterable[Line]) -> Text:
    text = Text(no_wrap=True, overflow="ignore", end="")
    for number, line in enumerate(lines):
        text.append("\n" if number else "")
        for piece, style in line:
            text.append(piece, style or None)
    return text


# ---- as data

def gpustat_json(looks: Sequence[Look]) -> dict[str, Any]:
    """gpustat --json: the same keys, units (°C, %, W, MiB) and types; what is not known is null."""
    return {"hostname": socket.gethostname() if looks and not c.is_recording(looks[0].snapshot) else
            c.source_name(looks[0].snapshot) if looks else "", "driver_version": looks[0].snapshot.system_driver_version if looks else None,
            "query_time": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(looks[0].snapshot.time_unix_s)) if looks else None,
            "gpus": [_gpustat_gpu(look) for look in looks]}


def _gpustat_gpu(look: Look) -> dict[str, Any]:
    s = look.snapshot
    fans = [fan.percent for fan in s.fans or () if fan.percent is not None]

    def mib(count: int | None) -> int | None:
        return None if count is None else count >> 20

    def whole(value: float | None, unit: float = 1) -> int | None:
        return None if value is None else int(round(value / unit))
    return {"index": look.index, "uuid": ag.Try(ag.DeviceGetUUID, look.device).value, "name": s.gpu_name,
            "temperature.gpu": whole(s.gpu_temperature_celsius), "fan.speed": max(fans) if fans else None,
            "utilization.gpu": s.gpu_utilization_percent, "utilization.enc": None, "utilization.dec": None,
            "power.draw": whole(s.gpu_power_mw, 1000), "enforced.power.limit": whole(s.gpu_power_limit_mw, 1000),
            "memory.used": mib(s.memory_used_bytes), "memory.total": mib(s.memory_total_bytes),
            "processes": None if s.processes is None else [_gpustat_process(look, p) for p in s.processes]}


def _gpustat_process(look: Look, p: ag.GpuProcess) -> dict[str, Any]:
    info = ag.Try(ag.ProcessGetInfo, look.device, p.pid).value
    path = info.path if info is not None and info.path else p.name
    return {"username": _user(look, p.pid), "command": p.name, "full_command": [path], "gpu_memory_usage": None,
            "cpu_percent": None, "cpu_memory_usage": p.footprint_bytes, "pid": p.pid}


def _user(look: Look, pid: int) -> str | None:
    info = ag.Try(ag.ProcessGetInfo, look.device, pid).value
    return None if info is None else c.user_name(info.uid, not c.is_recording(look.snapshot))


def metalstat_row(s: ag.Snapshot, elapsed: float) -> dict[str, Any]:
    """metalstat --jsonl: its keys and units. Pressure is the kernel's own level in its colours."""
    row = c.flat(s)

    def gib(key: str) -> float | None:
        return None if row[key] is None else round(row[key] / c.GIB, 2)

    def w(key: str) -> float | None:
        return None if row[key] is None else round(row[key] / 1000, 2)
    available = row["memory_pressure_available_percent"]
    performance = row["cpu_performance_utilization_percent"]
    return {"t": round(s.time_unix_s, 3), "elapsed_s": elapsed, "gpu_util": row["gpu_utilization_percent"],
            "gpu_freq_mhz": row["gpu_clock_mhz"], "cpu_util": row["cpu_utilization_percent"],
            "cpu_p_util": row["cpu_super_utilization_percent"] if performance is None else performance,
            "cpu_e_util": row["cpu_efficiency_utilization_percent"], "mem_used_gb": gib("ram_used_bytes"),
            "mem_wired_gb": gib("ram_wired_bytes"), "mem_active_gb": gib("ram_active_bytes"),
            "mem_inactive_gb": gib("ram_inactive_bytes"), "mem_compressed_gb": gib("ram_compressed_bytes"),
            "mem_pressure_pct": None if available is None else 100 - available,
            "mem_pressure_level": COLOURS.get(c.PRESSURE.get(row["memory_pressure_level"], "")),
            "gpu_mem_allocated_gb": gib("memory_used_bytes"), "swap_used_gb": gib("swap_used_bytes"),
            "cpu_w": w("cpu_power_mw"), "gpu_w": w("gpu_power_mw"), "ane_w": w("ane_power_mw"), "dram_w": w("memory_power_mw"),
            "pkg_w": w("package_power_mw")}


def meta(device: ag.Device, s: ag.Snapshot) -> dict[str, Any]:
    """What does not change while the Mac runs; null with the reason where it is not known."""
    asked = {"uuid": ag.DeviceGetUUID, "architecture": ag.DeviceGetArchitecture, "metal_family": ag.DeviceGetMetalFamily,
             "dies": ag.DeviceCountDie, "peak_fp32_flops": ag.DeviceGetPeakFlops, "gpu_clocks_mhz": ag.DeviceGetSupportedClocks,
             "ane_core_count": ag.AneCountCores, "memory_type": ag.MemoryGetType, "memory_bus_bits": ag.MemoryGetBusWidth,
             "memory_limit_bytes": ag.MemoryGetLimit}
    read = {key: ag.Try(function, device) for key, function in asked.items()}
    answers = {key: list(r.value) if isinstance(r.value, tuple) else r.value for key, r in read.items()}
    named = {"model": "system_model", "chip": "system_chip_name", "macos": "system_os_version", "driver": "system_driver_version"}
    rows = {"schema": 1, "tool": "pyapplegpu " + ag.__version__, "source": c.source_name(s),
            "hostname": None if c.is_recording(s) else socket.gethostname(), "time_unix_s": round(s.time_unix_s, 3),
            **{key: getattr(s, field) for key, field in named.items()},
            "gpu_name": s.gpu_name, "gpu_core_count": s.gpu_core_count, "gpu_max_clock_mhz": s.gpu_max_clock_mhz,
            "cpu_cores": c.cores_by_kind(s) or None, "ram_bytes": s.system_memory.total_bytes if s.system_memory else None,
            "memory_total_bytes": s.memory_total_bytes, "memory_max_bytes_per_s": s.memory_max_bytes_per_s, **answers}
    rows["reasons"] = {key: r.message for key, r in read.items() if r.value is None}
    rows["reasons"].update((key, c.why(s, named.get(key, key))) for key in rows if named.get(key, key) in s.reasons)
    return rows


# ---- ways to run

def _console(args: argparse.Namespace) -> Console:
    colour = args.color if args.color is not None else None
    width = c.asked_width() or (None if sys.stdout.isatty() else 160)      # into a pipe nothing is cut
    return Console(force_terminal=colour or None, no_color=True if colour is False else None, width=width,
                   highlight=False, markup=False, emoji=False, soft_wrap=True)


def _ticks(args: argparse.Namespace) -> Iterator[int]:
    """0, 1, 2 ... at the interval; drift does not add up."""
    due, number = time.monotonic(), 0
    while True:
        yield number
        number += 1
        if args.interval is None or number == args.count:
            return
        due = max(due + args.interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def _looks(reader: Reader, args: argparse.Namespace) -> Iterator[list[Look]]:
    """A look per tick, until a recording that does not loop has ended."""
    for number in _ticks(args):
        try:
            looks = reader.look(wait=number == 0)
        except ag.AppleGPUError as error:
            if error.reason != ag.REASON_RECORDING or not number:
                raise
            reader.ended = str(error.detail or error)
            return
        yield looks


def _print_data(reader: Reader, args: argparse.Namespace) -> int:
    began, rows = None, c.RowWriter(sys.stdout, "csv" if args.csv else "jsonl")
    for looks in _looks(reader, args):
        s = looks[0].snapshot
        began = s.time_unix_s if began is None else began
        elapsed = round(s.time_unix_s - began, 3)
        if args.json:
            data = gpustat_json(looks) if args.json == "gpustat" else s.to_dict()
            print(json.dumps(data, indent=None if args.interval else 4 if args.json == "gpustat" else 2), flush=True)
        else:
            rows.write(metalstat_row(s, elapsed) if args.jsonl == "metalstat" else c.flat(s, elapsed))
    return 0


def _print_text(reader: Reader, args: argparse.Namespace) -> int:
    console = _console(args)
    if args.interval is None or not console.is_terminal or console.is_dumb_terminal:
        for looks in _looks(reader, args):
            console.print(text_of(page(looks, args, console.width)))
            sys.stdout.flush()
        return 0
    from rich.live import Live
    looks: list[Look] = []
    c.on_ending()
    try:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            for looks in _looks(reader, args):
                live.update(text_of(page(looks, args, console.width)), refresh=True)
    finally:        # that screen is gone, also after Ctrl-C: what was last on it stays
        if looks:
            console.print(text_of(page(looks, args, console.width)))
    return 0


def _picture(reader: Reader, args: argparse.Namespace, path: str) -> int:
    """The page as an SVG (for documentation)."""
    import io
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, highlight=False,
                      color_system="truecolor")
    console.print(text_of(page(reader.look(), args, 98)))
    console.save_svg(path, title="stat.py " + " ".join(a for a in sys.argv[1:] if a.startswith("-") and len(a) == 2),
                     unique_id="stat")
    c.local_fonts(path)
    return 0


def _debug() -> int:
    for report in ag.LibraryDiagnose():
        print("%-4s %-28s %6.0f ms  %s" % ("ok" if report.ok else "-", report.source, 1000 * report.seconds,
                                           c.clean(report.detail)))
    return 0


# ---- run

def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stat.py run", description="Run a command; say what it cost. Exits with the command's "
                                     "code (128 + n for signal n), 127 when it is not found, and forwards signals to it.",
                                     usage="stat.py run [options] [--] COMMAND [ARGUMENT ...]")
    parser.add_argument("-o", "--log", "--output", metavar="PREFIX", help="write PREFIX.meta.json, PREFIX.jsonl (a flat row per "
                        "sample) and PREFIX.summary.json")
    parser.add_argument("--capture", action="store_true", help="with --log: a copy of the command's output in PREFIX.log")
    parser.add_argument("-i", "--interval", type=c.seconds, default=1.0, metavar="TIME", help="between samples (default 1s)")
    parser.add_argument("--json", action="store_true", help="the summary as JSON (on stderr, as the text would be)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no summary on stderr")
    c.add_source_options(parser)
    parser.add_argument("--sample-duration", dest="window", type=c.seconds, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def run(arguments: Sequence[str]) -> int:
    parser = _run_parser()
    args = parser.parse_args(arguments)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("which command? stat.py run -- COMMAND")
    if args.capture and not args.log:
        parser.error("--capture needs --log PREFIX")
    device = c.open_device(args)
    rows = None
    if args.log:
        _write_json(args.log + ".meta.json", meta(device, ag.DeviceGetSnapshot(device, timeout=0)))
        open(args.log + ".jsonl", "w").close()
        rows = c.RowWriter(args.log + ".jsonl", "jsonl")

    failed: list[OSError] = []

    def keep(write: Callable[[], object]) -> None:
        """A log that cannot be written is said once; it costs neither the measurement nor the command's exit code."""
        try:
            write()
        except OSError as error:
            if not failed:
                c.tell("stat.py: " + c.sentence(error))
            failed.append(error)

    def sampled(snapshot: ag.Snapshot, elapsed: float) -> None:
        if rows is not None and not failed:
            keep(functools.partial(rows.write, c.flat(snapshot, round(elapsed, 3))))
    code, report = _run.run_command(device, command, args.interval, sampled, args.log + ".log" if args.capture else None,
                                    ag.PARTS if args.log else _run.PARTS)
    if rows is not None:
        keep(rows.close)
    if report is not None:
        summary = {"command": command, "exit_code": code, "source": device_source(args), **report._asdict()}
        if args.log:
            keep(lambda: _write_json(args.log + ".summary.json", summary))
        if not args.quiet:
            c.tell(json.dumps(summary) if args.json else summary_text(report, code))
    return code or (1 if failed else 0)


def device_source(args: argparse.Namespace) -> str:
    return str(args.recording or os.environ.get("PYAPPLEGPU_RECORDING") or "live")


def _write_json(path: str, value: dict[str, Any]) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
    except OSError as error:        # of a full disk it does not tell the name
        error.filename = path
        raise


RAIL_NAMES = {"gpu": "GPU", "gpu_sram": "GPU SRAM", "cpu": "CPU", "ane": "ANE", "dram": "DRAM", "encode": "encoder",
              "decode": "decoder"}


def summary_text(r: _run.Report, code: int) -> str:
    """What `run` says at the end."""
    lines = ["-- exit code %d after %s, %s%s" % (code, _span(r.seconds), c.counted(r.samples, "sample"),
                                                 "; the Mac slept meanwhile" if r.slept else "")]
    for rail in ag.RAILS:
        name = RAIL_NAMES[rail]
        j, unsure = r.joules[rail], r.uncertainty_joules[rail]
        peak = r.peak_power_mw.get(rail)
        if j is not None:
            lines.append("   %-9s %10s +- %-9s average %-8s peak %s" % (
                name, c.joules(j), c.joules(unsure), c.watts(r.average_power_mw[rail]), c.watts(peak)))
        elif r.reasons.get(rail) == ag.REASON_STALE:
            lines.append("   %-9s not measured: it published nothing in so short a run" % name)
        elif rail in ("gpu", "cpu", "ane", "dram"):
            lines.append("   %-9s not measured (%s)" % (name, r.reasons.get(rail, "?")))
    lines.append("   %-33s average %-8s peak %s" % (
        "whole Mac", c.watts(r.average_system_power_mw), c.watts(r.peak_power_mw["system"])))
    lines.append("   GPU busy %s, hottest %s; its memory at most %s in use, %s above the start" % (
        c.show(r.gpu_active_s, "%.1f s"), c.celsius(r.peak_gpu_temperature_celsius), c.size(r.peak_memory_used_bytes),
        c.size(r.memory_rise_bytes)))
    if r.gpu_seconds is None:
        lines.append("   GPU time of the command's processes: not measured (%s)" % r.reasons.get("gpu_seconds"))
    else:
        lines.append("   GPU time of the command's processes: %.2f s, sampled over %.0f %% of the run%s" % (
            r.gpu_seconds, 100 * (r.gpu_seconds_covered or 0),
            "; footprint at most %s" % c.size(r.peak_footprint_bytes) if r.peak_footprint_bytes is not None else ""))
    return "\n".join(lines)


def _span(seconds: float) -> str:
    return "%.2f s" % seconds if seconds < 100 else c.clock_time(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["run"]:
        return run(arguments[1:])
    parser = _parser()
    parser.add_argument("--picture", metavar="FILE", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args(arguments)
    if rest:
        parser.error("run comes first: stat.py run [options] -- COMMAND" if "run" in rest else
                     "unrecognized arguments: " + " ".join(rest))
    if bool(args.json) + bool(args.jsonl) + args.csv + args.meta_json > 1:
        parser.error("one of --json, --jsonl, --csv, --meta-json")
    reader = Reader(args)
    try:
        if args.meta_json:
            device = reader.devices[0][1]
            print(json.dumps(meta(device, ag.DeviceGetSnapshot(device, timeout=0)), indent=2))
            return 0
        if args.picture:
            return _picture(reader, args, args.picture)
        if args.debug:
            return _debug()
        code = (_print_data if args.json or args.jsonl or args.csv else _print_text)(reader, args)
        if reader.ended:
            print("stat.py: " + reader.ended, file=sys.stderr)
        return code
    finally:
        reader.close()


if __name__ == "__main__":
    sys.exit(c.quiet_pipe(main))
