"""The monitor on Textual: keys, mouse, clock and colours. What stands on it comes from `draw`."""
from __future__ import annotations

import asyncio
import functools
import os
import textwrap
import time
from collections import deque
from typing import Any, Sequence

import _common as c
from _common import Line, ag
from rich.segment import Segment
from rich.style import Style
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.color import Color
from textual.containers import VerticalScroll
from textual.geometry import Region, Size
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input, Static

from . import draw
from .draw import HIDEABLE, KEYS, PLAIN, SORTS, THEMES, Look, cut, fit, length, paragraphs, resolve
from .state import INTERVALS, RANGES, Model

# ---- colours


def palette(app: Any) -> dict[str, Any]:
    """Styles of PLAIN's names in the app's theme."""
    theme, v = app.current_theme, app.theme_variables
    if "ansi" in theme.name or "ansi" in v["foreground"]:
        return {name: Style.parse(style or "none") for name, style in PLAIN.items()}
    back, fore = Color.parse(v["background"]), Color.parse(v["foreground"])
    light = back.brightness > 0.5

    def of(color: Color, **more: Any) -> Style:
        return Style(color=color.rich_color, bgcolor=back.rich_color, **more)

    def ink(name: str) -> Color:
        """The theme's colour, dark enough for a light ground."""
        color = Color.parse(v[name]).blend(back, 0.0, 1.0)
        return color.darken(max(0.0, color.brightness - 0.4) / 2) if light else color
    muted, faint = fore.blend(back, 0.35, 1.0), fore.blend(back, 0.75, 1.0)
    good, warn, bad, main, accent = (ink(name) for name in ("success", "warning", "error", "primary", "accent"))
    violet = main.blend(bad, 0.5, 1.0).lighten(0.0 if light else 0.25)
    chosen = Style(color=main.get_contrast_text(1.0).rich_color, bgcolor=main.rich_color)
    bottom = fore.blend(back, 0.88, 1.0).rich_color
    return {"": of(fore), "rule": of(faint), "title": of(main, bold=True), "label": of(muted), "value": of(fore),
            "dim": of(fore.blend(back, 0.5, 1.0)), "note": of(muted), "good": of(good), "warn": of(warn),
            "bad": of(bad, bold=True), "bar": of(main), "empty": of(fore.blend(back, 0.85, 1.0)),
            "graph": of(main), "power": of(violet), "traffic": of(main),
            "head": of(muted, bold=True), "head on": of(fore, bold=True), "chosen": chosen, "self": of(fore, bold=True),
            "key": Style(color=accent.rich_color, bgcolor=bottom, bold=True), "keys": Style(color=fore.rich_color, bgcolor=bottom)}


HELP = (     # (key or word, meaning)
    ("q", "quit"), ("?", "this page"), ("p, space", "pause"), ("r", "what is missing, and why"),
    ("- +", "shorter, longer interval"), ("w", "range of the histories"),
    ("m", "layout: stacked, classic, compact"), ("t", "theme"),
    ("0 ... 9", "hide or show a panel: " + ", ".join(HIDEABLE)),
    ("arrows, page", "choose a process; also home, end, click, the mouse wheel"),
    ("s, o", "sort by the next column (or click its title), other way round"),
    ("/", "filter processes by name or pid; escape ends it"),
    ("enter", "more about the chosen process, on a line of its own"),
    ("[ ]", "scroll the panels"), ("x", "save the screen as an SVG picture"), ("", ""),
    ("-", "not known, never 0: r says why"), ("~", "an estimate, not a counter"),
    (">", "at least: the driver's highest bucket is full"),
    ("Use", "share of the time the GPU was active, what powermetrics prints"),
    ("scaled", "that, weighted by clock / top clock: 60 % at half the clock is 30 %"),
    ("Driver", "the GPU driver's own figure at this moment, with renderer and tiler"),
    ("Clock", "mean while active, as requested"), ("Range", "lowest and top clock, and how long it stood at each step"),
    ("Headroom", "what can still be allocated: the smaller of free RAM and the limit less what is in use"),
    ("GB", "of memory: 2^30 bytes, as in Activity Monitor; of traffic: 10^9"),
    ("Machine", "what the SMC measures for the whole Mac; Package is CPU + GPU + ANE, all three or none"),
    ("self", "what this monitor itself costs, in percent of one core"))


# ---- widgets

def strip(app: Any, line: Line, width: int) -> Strip:
    styles = app.styles_by_name
    segments = [Segment(text, styles[style]) for text, style in line]
    return Strip(segments, length(line)).adjust_cell_length(width, styles[""])


class LineBox(ScrollView, can_focus=False):
    """Lines of (text, style); only those that changed are painted again."""

    ALLOW_SELECT = False

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.lines: list[Line] = []

    def show(self, lines: list[Line], everything: bool = False) -> None:
        before, self.lines = self.lines, lines
        width = max((length(line) for line in lines), default=0)
        if len(before) != len(lines) or everything or self.virtual_size.width != width:
            self.virtual_size = Size(width, len(lines))
            self.refresh()
            return
        for y, line in enumerate(lines):
            if line != before[y]:
                self.refresh(Region(0, y - self.scroll_offset.y, self.size.width, 1))

    def render_line(self, y: int) -> Strip:
        at = y + self.scroll_offset.y
        if at >= len(self.lines):
            return Strip.blank(self.size.width, self.app.styles_by_name[""])
        return strip(self.app, self.lines[at], self.size.width)


class Processes(ScrollView, can_focus=True):
    """The process table: its title line stays, the rows scroll."""

    ALLOW_SELECT = False
    BINDINGS = [Binding("up", "cursor(-1)", show=False), Binding("down", "cursor(1)", show=False),
                Binding("pageup", "page(-1)", show=False), Binding("pagedown", "page(1)", show=False),
                Binding("home", "cursor(-100000)", show=False), Binding("end", "cursor(100000)", show=False)]

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.rows: list[ag.GpuProcess] = []
        self.note = ""
        self.chosen: int | None = None
        self.sort, self.backwards = "gpu", False
        self._drawn: list[Any] = []

    def show(self, rows: list[ag.GpuProcess], note: str = "", everything: bool = False) -> None:
        before = len(self.rows)
        self.rows, self.note = rows, note
        if before != len(rows):
            self.virtual_size = Size(0, len(rows) + 1)
        drawn = [self._line(y) for y in range(self.size.height)]
        for y, line in enumerate(drawn):
            if everything or y >= len(self._drawn) or line != self._drawn[y]:
                self.refresh(Region(0, y, self.size.width, 1))
        self._drawn = drawn

    @property
    def at(self) -> int | None:
        for n, row in enumerate(self.rows):
            if row.pid == self.chosen:
                return n
        return None

    def _line(self, y: int) -> Line:
        width = self.size.width - 1
        if y == 0:
            return draw.process_head(width, self.sort, self.backwards)
        n = y - 1 + self.scroll_offset.y
        if n < len(self.rows):
            return draw.process_line(self.app.model, self.rows[n], width, self.rows[n].pid == self.chosen)
        return [(" " + self.note, "dim")] if n == 0 and self.note else []

    def render_line(self, y: int) -> Strip:
        line = self._line(y)
        styles = self.app.styles_by_name
        known = self.size.width - 1 if len(line) > 1 else length(line)      # so process_line promises; not measured again
        return Strip([Segment(text, styles[style]) for text, style in line], known).adjust_cell_length(
            self.size.width, styles[""])

    def action_cursor(self, step: int) -> None:
        if self.rows:
            at = self.at
            self.choose(0 if at is None else min(len(self.rows) - 1, max(0, at + step)))

    def action_page(self, way: int) -> None:
        self.action_cursor(way * max(1, self.size.height - 2))

    def choose(self, n: int) -> None:
        self.chosen = self.rows[n].pid
        page = max(1, self.size.height - 1)
        top = self.scroll_offset.y
        if n < top or n >= top + page:
            self.scroll_to(y=n if n < top else n - page + 1, animate=False)
        self.app.redraw()

    def on_click(self, event: Any) -> None:
        if event.y == 0:
            left = 0
            for key, _, space in draw.columns(self.size.width - 1):
                left += space + (key in draw.LEFT)
                if event.x < left:
                    return self.app.sort_by("gpu" if key == "bar" else key)
        elif event.y - 1 + self.scroll_offset.y < len(self.rows):
            self.choose(event.y - 1 + self.scroll_offset.y)


class Bottom(LineBox):
    """The line of keys, which can also be clicked, and the status."""

    status = ""

    async def on_click(self, event: Any) -> None:
        left = 0
        for key, word, action in draw.keys(self.size.width, self.status):
            left += draw.key_length(key, word)
            if event.x < left:
                await self.app.run_action(action)
                return


class Page(ModalScreen):
    """A page of text over the monitor."""

    BINDINGS = [Binding(keys, "dismiss", show=False) for keys in ("escape", "q", "question_mark", "f1", "r", "enter")]
    DEFAULT_CSS = """
    Page { align: center middle; }
    Page > VerticalScroll { width: 100; max-width: 96%; height: auto; max-height: 90%; background: $surface;
                            border: round $primary; padding: 0 1; }
    """

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = self._title
            box.border_subtitle = "escape closes"
            yield Static(self._text, markup=False)


class Top(App):
    """The monitor. The frames come from `draw`; this holds the keys and the clock."""

    TITLE = "top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; overflow: hidden; }
    #header, #alerts, #detail, #bottom { height: 1; overflow: hidden; }
    #alerts, #detail { display: none; }
    #board { height: 1; overflow-x: hidden; scrollbar-size: 0 1; }
    #processes { height: 1fr; min-height: 2; overflow-x: hidden; scrollbar-size: 0 1; }
    #filter { display: none; height: 1; border: none; padding: 0 1; }
    """
    BINDINGS = [Binding(key, action, word) for key, word, action in KEYS] + [
        Binding("ctrl+c", "quit", priority=True), Binding("f1", "help"), Binding("space", "pause"), Binding("o", "other"),
        Binding("=", "interval(1)"), Binding("enter", "detail"), Binding("[", "board(-3)"), Binding("]", "board(3)"),
        Binding("x", "picture"), Binding("escape", "escape")] + [
        Binding(str(n), "panel(%d)" % n) for n in range(len(HIDEABLE))]

    def __init__(self, device: ag.Device, interval: float = 1.0, look: Look | None = None, theme: str = THEMES[0],
                 export: Any = None, parts: Sequence[str] = ag.PARTS, clocked: bool = True) -> None:
        # Where NO_COLOR is set Textual takes colours out of a screen in the terminal's colours, and makes any other one grey.
        super().__init__(**({"ansi_color": True} if os.environ.get("NO_COLOR") else {}))
        self.model, self.look, self.interval, self.parts = Model(device), look or Look(), interval, tuple(parts)
        self.model.interval_hint = interval
        self.export, self.clocked = export, clocked
        self.paused = self.detailed = False
        self.wanted = ""
        self.samples = 0
        self.cost: float | None = None
        self._spent: deque[tuple[float, float]] = deque(maxlen=12)
        self._wake: Any = None
        self._clockwork: asyncio.AbstractEventLoop | None = None
        self._alive = True
        self.styles_by_name: dict[str, Any] = {}
        self._first_theme = theme

    # -- screen

    def compose(self) -> ComposeResult:
        yield LineBox(id="header")
        yield LineBox(id="alerts")
        yield LineBox(id="board")
        yield Processes(id="processes")
        yield LineBox(id="detail")
        yield Input(placeholder="filter by name or pid", id="filter")
        yield Bottom(id="bottom")

    def on_mount(self) -> None:
        self._wake, self._clockwork = asyncio.Event(), asyncio.get_running_loop()
        self.board_box = self.query_one("#board", LineBox)
        self.table = self.query_one(Processes)
        self.head_box, self.alert_box = self.query_one("#header", LineBox), self.query_one("#alerts", LineBox)
        self.detail_box, self.bottom = self.query_one("#detail", LineBox), self.query_one(Bottom)
        self.theme = self._first_theme if self._first_theme in self.available_themes else THEMES[0]
        self.styles_by_name = palette(self)
        self.theme_changed_signal.subscribe(self, self._recolour)
        self.table.focus()
        if self.clocked:
            self.run_worker(self._clock(), exclusive=True, group="clock")

    def _recolour(self, theme: Any) -> None:
        self.styles_by_name = palette(self)
        self.redraw(True)

    def on_resize(self) -> None:
        self.call_after_refresh(self.redraw, True)

    def redraw(self, everything: bool = False) -> None:
        """Draw what is known now; only lines that changed reach the terminal."""
        if not self.styles_by_name or not self._alive:
            return
        m, width, height = self.model, self.size.width, self.size.height
        if everything:
            for box in (self.head_box, self.alert_box, self.board_box, self.detail_box, self.bottom):
                box.refresh()
        self.head_box.show([draw.header(m, width, self.paused)], everything)
        alerts = draw.alert_lines(m, width, 1 if height < 30 else 3)
        self._place(self.alert_box, len(alerts))
        self.alert_box.show(alerts, everything)
        lines = draw.board(m, width, height, self.look)
        most = max(1, height - len(alerts) - 2 - (6 if height < 34 else 8) - self.detailed)
        if len(lines) > most:
            lines = draw.board(m, width - 1, height, self.look)
        taken = 2 + len(alerts) + self.detailed + len(lines)
        lines = draw.graphs(m, width, draw.graph_rows(height, taken), self.look) + lines
        most = max(most, min(len(lines), height - len(alerts) - 8 - self.detailed))
        self._place(self.board_box, min(len(lines), most))
        self.board_box.show(lines, everything)
        self._show_processes(everything)
        self._show_detail(everything)
        self._show_status(everything)

    def _place(self, box: Any, height: int) -> None:
        if box.display != (height > 0):
            box.display = height > 0
        if height and (box.styles.height is None or box.styles.height.value != height):
            box.styles.height = height

    def _show_processes(self, everything: bool) -> None:
        s, note = self.model.snapshot, ""
        known = () if s is None else s.processes or ()
        rows = draw.ordered(known, self.table.sort, self.table.backwards, self.wanted)
        if s is not None and s.processes is None:
            note = c.DASH + " " + c.why(s, "processes")
        elif s is not None and not rows:
            note = "no process matches %r" % self.wanted if self.wanted else "no process uses the GPU"
        self.table.show(rows, note, everything)

    def _show_detail(self, everything: bool) -> None:
        at = self.table.at
        self._place(self.detail_box, 1 if self.detailed and at is not None else 0)
        if self.detailed and at is not None:
            line = [(" " + draw.detail(self.model, self.table.rows[at]), "note")]
            self.detail_box.show([fit(line, self.size.width)], everything)

    def _show_status(self, everything: bool) -> None:
        width, parts = self.size.width, [c.duration(self.interval)]
        if self.wanted:
            parts.insert(0, "/" + cut(c.clean(self.wanted), 12))
        if width >= 100:
            parts.append(dict(RANGES)[self.look.span])
        if width >= 60:
            parts.append("self %s" % c.show(self.cost, "%.1f %%"))
        self.bottom.status = "  ".join(parts)
        self.bottom.show([draw.bottom(width, self.bottom.status)], everything)

    # -- clock

    async def _clock(self) -> None:
        due = time.monotonic()
        while self._alive:
            if not self.paused:
                await self.sample()
            # The second look comes early: rates need two.
            due = max(due + (min(self.interval, 0.3) if self.samples == 1 else self.interval), time.monotonic() + 0.02)
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), due - time.monotonic())
                due = time.monotonic()
            except asyncio.TimeoutError:
                pass

    async def sample(self) -> None:
        """One look and the frame it gives. The look is taken beside the screen's loop: a first one may take seconds."""
        try:
            snapshot = await c.in_thread(ag.DeviceGetSnapshot, self.model.device, self.parts, 0.0)
        except ag.AppleGPUError as error:
            self.model.ended = c.clean(error)
            if error.reason == ag.REASON_RECORDING:
                self.paused = True
            self.redraw()
            return
        self.model.ended = ""
        self.model.take(snapshot)
        self.samples += 1
        if self.export is not None:
            try:
                self.export.write(self.model.row())
            except OSError as error:
                self.export = None
                self.notify("export ended: %s" % c.sentence(error), severity="error")
        self._measure()
        self.redraw()

    def _measure(self) -> None:
        now = time.monotonic(), time.process_time()
        self._spent.append(now)
        then = self._spent[0]
        if now[0] - then[0] > 0.9 and self.samples > 3:
            self.cost = 100 * (now[1] - then[1]) / (now[0] - then[0])

    # -- keys

    def action_help(self) -> None:
        self.push_screen(Page("keys", paragraphs(HELP, self._page_width(), 14)))

    def _page_width(self) -> int:
        return max(30, min(96, int(self.size.width * 0.96)) - 6)

    def action_reasons(self) -> None:
        s = self.model.snapshot
        rows = c.missing(s) if s is not None else []
        if self.model.beside.reason:
            rows.append(("disk, network, load", "", self.model.beside.reason))
        width = self._page_width()
        lines = [draw.by_reason([(field, text) for field, _, text in rows], width) or "nothing is missing"]
        estimated = s.estimated if s is not None else ()
        if estimated:
            lines += ["", textwrap.fill("estimates (~): " + ", ".join(sorted(set(estimated))), width)]
        self.push_screen(Page("not known, and why", "\n".join(lines)))

    def action_pause(self) -> None:
        self.paused = not self.paused
        self._wake.set()
        self.redraw()

    def action_interval(self, step: int) -> None:
        near = min(range(len(INTERVALS)), key=lambda n: abs(INTERVALS[n] - self.interval))
        self.interval = INTERVALS[min(len(INTERVALS) - 1, max(0, near + step))]
        self.model.interval_hint = self.interval
        self._wake.set()
        self.redraw()

    def action_layout(self) -> None:
        names = [name for name in draw.LAYOUTS if name != "auto"]
        now = resolve(self.look.layout, self.size.width, self.size.height)
        self.look = self.look._replace(layout=names[(names.index(now) + 1) % len(names)])
        self.redraw(True)

    def action_theme(self) -> None:
        known = [name for name in THEMES if name in self.available_themes]
        self.theme = known[(known.index(self.theme) + 1) % len(known) if self.theme in known else 0]

    def action_range(self) -> None:
        spans = [span for span, _ in RANGES]
        self.look = self.look._replace(span=spans[(spans.index(self.look.span) + 1) % len(spans)])
        self.redraw()

    def action_panel(self, n: int) -> None:
        self.look = self.look._replace(hidden=self.look.hidden ^ {HIDEABLE[n]})
        self.redraw(True)

    def sort_by(self, key: str) -> None:
        if key not in SORTS:
            return
        self.table.backwards = not self.table.backwards if key == self.table.sort else False
        self.table.sort = key
        self.redraw()

    def action_sort(self) -> None:
        self.table.sort, self.table.backwards = SORTS[(SORTS.index(self.table.sort) + 1) % len(SORTS)], False
        self.redraw()

    def action_other(self) -> None:
        self.table.backwards = not self.table.backwards
        self.redraw()

    def action_detail(self) -> None:
        self.detailed = not self.detailed
        if self.table.at is None and self.table.rows:
            self.table.chosen = self.table.rows[0].pid
        self.redraw()

    def action_board(self, step: int) -> None:
        self.board_box.scroll_relative(y=step, animate=False)

    def action_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def on_input_changed(self, event: Any) -> None:
        self.wanted = event.value
        self.redraw()

    def on_input_submitted(self, event: Any) -> None:
        event.input.display = False
        self.table.focus()

    def action_escape(self) -> None:
        box = self.query_one("#filter", Input)
        box.value, box.display = "", False
        self.table.focus()

    def action_picture(self) -> None:
        try:
            path = self.save_screenshot(time.strftime("top-%Y%m%d-%H%M%S.svg"), ".")
            c.local_fonts(path)
            self.notify("saved " + os.path.basename(path))
        except OSError as error:
            self.notify("not saved: " + c.sentence(error), severity="error")

    async def action_quit(self) -> None:
        self._alive = False
        self.exit()

    def end(self, code: int) -> None:
        """End from a signal's handler, which may have interrupted the screen's loop anywhere."""
        if self._clockwork is None or self._clockwork.is_closed():
            raise SystemExit(code)
        self._alive = False
        self._clockwork.call_soon_threadsafe(functools.partial(self.exit, return_code=code))
