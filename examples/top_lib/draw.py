"""Lines of text from what is known; Textual and --once print the same ones."""
from __future__ import annotations

import functools
import textwrap
import time
from typing import Any, Callable, Iterable, Iterator, NamedTuple

import _common as c
from _common import Line, ag

from .panels import PANELS, SHORT, Row, load_style, rows_of
from .state import RANGES, Model, floor

LAYOUTS = ("auto", "stacked", "classic", "compact")
HIDEABLE = ("graph", *PANELS)        # by the keys 0 to 9
SORTS = ("gpu", "time", "memory", "pid", "name")


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
    """A list with commas, without the parts that are not known and those at its end that have no room."""
    parts = [part for part in note.split(", ") if not part.endswith(c.DASH)]
    while len(", ".join(parts)) > width and len(parts) > 1:
        parts.pop()
    return cut(", ".join(parts), width)


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
    return Columns(room, bar, max(0, graph - bar - (3 if bar else 2)), note)


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
    if at.bar or at.wave:
        line += [("  ", "")]
    if at.bar:
        filled, empty = c.bar(row.share, at.bar) if row.bar else ("", " " * at.bar)
        line += [(filled, row.style or "bar"), (empty, "empty"), (" ", "")]
    if at.wave:
        wave = wave_of(m, row.series, row.top, span, at.wave) if row.series else " " * at.wave
        line += [(wave, row.style or "graph")]
    return line + ([("  " + trimmed(row.note, at.note), "note")] if at.note else [])


def wave_of(m: Model, series: str, most: float | None, span: int, width: int) -> str:
    """The history of a figure in one line."""
    values = m.history.values(series, span, width)
    return c.spark(values, most or c.ceiling(values, floor(series)))


class Graph(NamedTuple):
    """A figure that has a graph of several lines above the panels."""
    title: str
    series: str
    value: Callable[[ag.Snapshot], str]
    most: Callable[[ag.Snapshot], float | None]
    scale: Callable[[Any], str]
    style: str


GRAPHS = (
    Graph("GPU use", "gpu_utilization_percent", lambda s: c.percent(s.gpu_utilization_percent), lambda s: 100, c.percent, ""),
    Graph("GPU power", "gpu_power_mw", lambda s: c.watts(s.gpu_power_mw), lambda s: s.gpu_power_limit_mw, c.watts, "power"),
    Graph("GPU memory", "memory_used_bytes", lambda s: c.size(s.memory_used_bytes), lambda s: s.memory_total_bytes, c.size, "graph"),
    Graph("CPU use", "cpu_utilization_percent", lambda s: c.percent(s.cpu_utilization_percent), lambda s: 100, c.percent, ""),
    Graph("RAM", "ram_used_bytes", lambda s: c.size(s.system_memory.used_bytes if s.system_memory else None),
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
    most = graph.most(s) or c.ceiling(values, floor(graph.series))
    head = rule([(graph.title, "title"), ("  " + graph.value(s), "value")], width, "%s  %s" % (
        dict(RANGES)[look.span], graph.scale(most)))
    lines = c.graph(values, most, rows - 1)
    return [head] + [[(line, graph.style or load_style((len(lines) - n - 0.5) / len(lines)))] for n, line in enumerate(lines)]


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
    panels = [draw_rows(PANELS[name].title, rows_of(name, m, s), each, m, look.span) for name in names]
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
            line += [(" " + filled, style or load_style(share)), (" " * len(empty), style)]
        elif key in LEFT:
            text = c.clean(p.name if key == "name" else m.who(p.pid)[key == "path"])
            cell = set_cell_size(text, space)
            wide = wide or len(cell) != space       # Chinese names are fewer characters than cells
            line.append((" " + cell, style or ("" if key == "name" else "note")))
        elif key == "gpu":
            line.append(("%*s" % (space, c.show(p.gpu_percent, "%.1f %%")), style or load_style(share)))
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


# ---- keys and words

KEYS = (    # as it stands on the last line, the word beside it, what it does
    ("q", "quit", "quit"), ("?", "help", "help"), ("p", "pause", "pause"), ("m", "layout", "layout"), ("s", "sort", "sort"),
    ("/", "filter", "filter"), ("r", "missing", "reasons"), ("w", "range", "range"), ("-", "faster", "interval(-1)"),
    ("+", "slower", "interval(1)"), ("t", "theme", "theme"))


def key_length(key: str, word: str) -> int:
    return len(key) + len(word) + 2


def keys(width: int, status: str) -> list[tuple[str, str, str]]:
    """Those of KEYS that have room beside the status."""
    shown, left = [], width - len(status) - 2
    for key, word, action in KEYS:
        left -= key_length(key, word)
        if left < 0:
            break
        shown.append((key, word, action))
    return shown


def bottom(width: int, status: str) -> Line:
    """The last line: keys, and the status at its end."""
    line: Line = []
    for key, word, _ in keys(width, status):
        line += [(" " + key, "key"), (" " + word, "keys")]
    return line + [(cut(status, width - 1).rjust(width - length(line) - 1) + " ", "keys")]


def paragraphs(rows: Iterable[tuple[str, str]], width: int, indent: int) -> str:
    """A word and its meaning per paragraph, the meaning hanging."""
    return "\n".join(textwrap.fill(text, width, initial_indent="%-*s " % (indent - 1, word), subsequent_indent=" " * indent)
                     if text else "" for word, text in rows)


def by_reason(rows: Iterable[tuple[str, str]], width: int) -> str:
    """(field, reason) as a paragraph per reason, the fields that share it below, indented."""
    groups: dict[str, list[str]] = {}
    for field, reason in rows:
        groups.setdefault(reason, []).append(field)
    return "\n".join(textwrap.fill(reason, width) + "\n" + textwrap.fill(
        ", ".join(fields), width, initial_indent="    ", subsequent_indent="    ") for reason, fields in groups.items())


# ---- colours: names above, styles here

PLAIN = {"": "", "rule": "dim", "title": "bold", "label": "dim", "value": "", "dim": "dim", "note": "dim", "good": "green",
         "warn": "yellow", "bad": "bold red", "bar": "cyan", "empty": "dim", "graph": "cyan", "power": "magenta",
         "traffic": "blue", "head": "bold", "head on": "bold reverse", "chosen": "reverse", "self": "bold",
         "key": "bold", "keys": "dim"}

THEMES = ("textual-dark", "textual-light", "nord", "gruvbox", "dracula", "tokyo-night", "monokai", "flexoki",
          "solarized-light", "catppuccin-mocha", "ansi-dark", "ansi-light", "textual-ansi")
