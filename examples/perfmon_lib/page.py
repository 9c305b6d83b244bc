"""A document as one HTML page. Charts by plotly (inline, or from a file beside the page), or drawn as SVG without any script.

Everything that comes from outside (kernel names, commands, messages) is escaped; the page loads nothing from the network.
"""
from __future__ import annotations

import html
import json
import os
from typing import Any, Iterable, NamedTuple, Sequence

import _common as c

from . import report as r
from .analyse import LATENCY_WORDS
from .metal import _thinned

BLUE, TEAL, ORANGE, RED, VIOLET, GREY = "#2563eb", "#0d9488", "#ea8a0c", "#dc2626", "#7c3aed", "#94a3b8"
PHASES = {"idle": "rgba(148,163,184,.35)", "partly busy": "#bfdbfe", "busy": "#3b82f6", "bandwidth-bound": "#f59e0b",
          "unknown": "#fecaca"}
POINTS = 3000           # per line in a page: what a screen can show
PLOTLY_FILE = "plotly.min.js"


class Line(NamedTuple):
    label: str
    values: Sequence[float | None]
    colour: str
    fill: bool = False
    dash: bool = False


class Panel(NamedTuple):
    title: str
    unit: str
    t: Sequence[float]
    lines: list[Line]
    top: float | None = None        # the axis ends here
    limit: tuple[str, float] | None = None
    low: float = 0.0                # the axis begins here
    steps: bool = False             # a value holds for the time before it: rates do


def html_text(doc: dict[str, Any], script: str = "inline", refresh_s: float | None = None,
              path: str = "report.html") -> str:
    """The page. refresh_s: it loads itself again while the run goes on. Without plotly the charts are SVG, and it says so."""
    plotly, note = _plotly(script, path, refresh_s)
    body = [_head(doc), _tiles(doc), _verdict(doc), _section("Over time", _charts(doc, plotly), _phase_legend(doc)),
            _saturation(doc),
            _kernels(doc, plotly), _queues(doc, plotly), _allocations(doc, plotly), _noticed(doc), _method(doc, note)]
    refresh = '<meta http-equiv="refresh" content="%d">' % max(1, round(refresh_s)) if refresh_s else ""
    scripts = "" if plotly is None else plotly.script + DRAW
    return ("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">%s<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
            "<title>%s</title><style>%s</style>%s</head><body><main>%s</main></body></html>\n") % (
        refresh, e("GPU report: " + (doc["machine"].get("chip") or doc["name"])), STYLE, scripts,
        "\n".join(b for b in body if b))


def e(text: Any) -> str:
    return html.escape(c.clean(text))


def _whole(text: Any) -> str:
    """Of our own words: a number stays on the line of its unit."""
    return e(text).replace(" %", "&nbsp;%").replace(" of ", " of&nbsp;")


# ---- plotly, or not

# Draws a chart in the colours that the reader's system asks for, and again when these change; small screens get small titles.
DRAW = """<script>function draw(id,f){var m=matchMedia("(prefers-color-scheme: dark)"),l=f.layout;
function paint(){var d=m.matches;l.paper_bgcolor=l.plot_bgcolor="rgba(0,0,0,0)";l.font.color=d?"#b4c0d2":"#334155";
l.hoverlabel={bgcolor:d?"#0b1120":"#fff"};
l.modebar={bgcolor:"rgba(0,0,0,0)",color:d?"#6b7a90":"#94a3b8",activecolor:d?"#e6ecf5":"#334155"};for(var k in l)if(/^[xy]axis/.test(k))l[k].gridcolor=l[k].linecolor=d?"#2a364b":"#eef2f7";
if(innerWidth<700)(l.annotations||[]).forEach(function(a){a.font.size=9});
Plotly.react(id,f.data,l,{responsive:true,displaylogo:false})}
m.addEventListener("change",paint);paint()}</script>"""

class _Plotly:
    """The module and the script tag that the page needs."""

    def __init__(self, go: Any, script: str) -> None:
        self.go, self.script, self._count = go, script, 0

    def div(self, figure: Any, height: int, left: int = 56, hover: str = "x unified") -> str:
        self._count += 1
        name = "chart%d" % self._count
        figure.update_layout(height=height, margin=dict(l=left, r=16, t=24, b=32),
                             font=dict(family="-apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", size=12),
                             hovermode=hover, legend=dict(orientation="h", y=1.0, yanchor="bottom", x=0))
        figure.update_xaxes(zeroline=False)
        figure.update_yaxes(zeroline=False)
        data = json.dumps(json.loads(figure.to_json()), separators=(",", ":")).replace("<", "\\u003c")
        return '<div id="%s" class="chart" style="height:%dpx"></div><script>draw("%s",%s);</script>' % (name, height, name, data)


def _plotly(script: str, path: str, refresh_s: float | None) -> tuple[_Plotly | None, str]:
    if script == "none":
        return None, ""
    if refresh_s is not None and script == "inline":
        return None, "While the run goes on the charts are plain SVG: a page of 4 MB every few seconds would disturb what it shows."
    try:
        import plotly.graph_objects as go
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None, "The charts are plain SVG: plotly is not installed (pip install plotly)."
    if script == "inline":
        return _Plotly(go, "<script>%s</script>" % get_plotlyjs()), ""
    beside = os.path.join(os.path.dirname(os.path.realpath(path)), PLOTLY_FILE) if path != "-" else PLOTLY_FILE
    text = get_plotlyjs()
    if not os.path.exists(beside) or os.path.getsize(beside) != len(text.encode()):
        r.write(beside, text)
    return _Plotly(go, '<script src="%s"></script>' % PLOTLY_FILE), ""


# ---- parts of the page

def _section(title: str, *content: str) -> str:
    inner = "".join(content)
    return "<section><h2>%s</h2>%s</section>" % (e(title), inner) if inner else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    def cell(tag: str, n: int, value: Any) -> str:
        text = value if isinstance(value, _Raw) else e(value) if n < left else _whole(value)
        return "<%s%s>%s</%s>" % (tag, "" if n < left else ' class="n"', text, tag)
    lines = ["<tr>%s</tr>" % "".join(cell("td", n, v) for n, v in enumerate(row)) for row in rows]
    if not lines:
        return ""
    return '<div class="scroll"><table><thead><tr>%s</tr></thead><tbody>%s</tbody></table></div>' % (
        "".join(cell("th", n, h) for n, h in enumerate(head)), "".join(lines))


class _Raw(str):
    """Markup made here."""


def _bar(share: float | None, colour: str = BLUE) -> _Raw:
    return _Raw('<span class="bar"><i style="width:%.1f%%;background:%s"></i></span>'
                % (100 * min(1.0, max(0.0, share or 0.0)), colour))


def _head(doc: dict[str, Any]) -> str:
    import time
    m = doc["machine"]
    marks = ['<b class="mark %s">%s</b>'
             % (("rec", "recording " + e(m.get("source"))) if m.get("recording") else ("live", "live"))]
    if doc["state"] != "finished":
        marks.append('<b class="mark run">%s</b>' % e(doc["state"]))
    facts = [m.get("model"), "%d GPU cores" % m["gpu_cores"] if m.get("gpu_cores") else "",
             "macOS " + m["macos"] if m.get("macos") else "",
             time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(doc["started_unix_s"])),
             "%s over %s" % (c.counted(doc["sampling"]["rows"], "sample"), r.milliseconds(doc["seconds"]))]
    run = '<p class="cmd">%s</p>' % e(r.command_text(doc)) if doc.get("command") else ""
    return "<header><h1>%s %s</h1><p>%s</p>%s</header>" % (e(m.get("chip") or m.get("gpu") or "GPU"), " ".join(marks),
                                                           e(" · ".join(f for f in facts if f)), run)


def _tiles(doc: dict[str, Any]) -> str:
    f, limits = doc["analysis"]["figures"], doc["limits"]
    joules = ((doc.get("energy") or {}).get("joules") or {}).get("gpu")

    def tile(label: str, column: str, note: str = "", statistic: str = "mean", second: str = "peak") -> str:
        one = f.get(column)
        if one is None:
            return '<div class="tile"><h3>%s</h3><p class="big none">not measured</p><p>%s</p></div>' % (e(label), e(r._why(doc, column)))
        rest = "%s %s" % (second, r.figure_text(column, one["max"] if second == "peak" else one["mean"]))
        return '<div class="tile"><h3>%s</h3><p class="big">%s</p><p>%s</p></div>' % (
            e(label), e(r.figure_text(column, one[statistic])), _whole(" · ".join(x for x in (rest, note) if x)))

    def of(column: str, limit: str, statistic: str) -> str:
        top = limits.get(limit)
        return "" if not top or column not in f else "%s of %s" % (r.ratio(f[column][statistic] / top),
                                                                   r.shown(top, r.unit_of(column)))
    tiles = [tile("GPU active", "gpu_utilization_ratio"),
             tile("Memory traffic", "memory_bytes_per_s", of("memory_bytes_per_s", "bandwidth_bytes_per_s", "mean")),
             tile("GPU power", "gpu_power_mw", "%s in all" % c.joules(joules) if joules is not None else ""),
             tile("GPU memory in use", "memory_used_bytes", of("memory_used_bytes", "memory_bytes", "max"), "max",
                  "average"),
             tile("Hottest GPU sensor", "gpu_temperature_max_celsius", "", "max", "average"),
             tile("GPU clock", "gpu_clock_mhz", of("gpu_clock_mhz", "clock_mhz", "mean"))]
    return '<div class="tiles">%s</div>' % "".join(tiles)


def _verdict(doc: dict[str, Any]) -> str:
    a = doc["analysis"]
    cards = []
    for b in a["bottlenecks"]:
        cards.append('<div class="card hit"><h3>%s <small>%s</small></h3><ul>%s</ul><h4>Consider</h4><ul>%s</ul></div>'
                     % (
            e(b["title"]), _whole(b["headline"]), "".join("<li>%s</li>" % e(x) for x in b["evidence"]),
            "".join("<li>%s</li>" % e(x) for x in b["recommendations"])))
    work = a["workload"]
    shares = "".join('<i style="width:%.2f%%;background:%s" title="%s %s"></i>'
                     % (100 * s, PHASES[k], e(k), r.ratio(s)) for k, s in work["shares"].items())
    shares_keys = " ".join('<i style="background:%s"></i>%s %s' % (PHASES[k], e(k), r.ratio(s))
                           for k, s in work["shares"].items())
    throttled = a["throttling"]
    cards.append('<div class="card"><h3>Kind of work <small>%s</small></h3><ul>%s</ul>%s<h4>Held back by power or heat: %s</h4><ul>%s</ul></div>' % (
        e(work["class"]), "".join("<li>%s</li>" % e(x) for x in work["evidence"]),
        '<div class="strip">%s</div><p class="keys">%s</p>' % (shares, shares_keys) if shares else "",
        e(throttled["state"]), "".join("<li>%s</li>" % e(x) for x in throttled["evidence"])))
    unknown = "".join("<li>%s: %s</li>" % (e(u["class"].replace("_", " ")), e(u["why"])) for u in a["not_assessed"])
    return '<section><h2>Verdict</h2><p class="sum">%s</p><div class="cards">%s</div>%s</section>' % (
        e(a["summary"]), "".join(cards),
        '<p class="dim more">Not judged here:</p><ul class="dim">%s</ul>' % unknown if unknown else "")


# ---- charts over time

def panels(doc: dict[str, Any]) -> list[Panel]:
    """What is drawn over time: only what was measured."""
    samples, limits = doc["samples"], doc["limits"]
    keep = _thinned(range(len(samples["t"])), POINTS)
    t = [samples["t"][n] for n in keep]
    made: list[Panel] = []

    def panel(title: str, unit: str, rows: Sequence[tuple[str, str, str, float]], top: float | None = None,
              limit: tuple[str, float] | None = None,
              fill: bool = True, floor: bool = False, steps: bool = True) -> None:
        lines = [Line(label, [None if samples[name][n] is None else samples[name][n] * scale for n in keep], colour,
                      fill and k == 0, name.startswith("gpu_device"))
                 for k, (name, label, colour, scale) in enumerate(rows) if name in samples]
        if lines:
            low = min((v for line in lines for v in line.values if v is not None), default=0.0) if floor else 0.0
            made.append(Panel(title, unit, t, lines, top, limit, 10 * ((low - 5) // 10) if floor else 0.0, steps))
    panel("GPU", "%",
          (("gpu_utilization_ratio", "active", BLUE, 100), ("gpu_scaled_ratio", "weighted by clock", TEAL, 100),
                       ("gpu_device_percent", "driver's own", GREY, 1)), 100, fill=False)
    peak = limits.get("bandwidth_bytes_per_s")
    panel("Memory traffic", "GB/s",
          (("memory_read_bytes_per_s", "read", BLUE, 1e-9), ("memory_write_bytes_per_s", "write", ORANGE, 1e-9)), None,
          ("chip's limit", peak / 1e9) if peak else None)
    cap = limits.get("power_mw")
    panel("Power", "W", tuple((rail + "_power_mw", label, colour, 1e-3) for rail, label, colour in (
        ("gpu", "GPU", BLUE), ("cpu", "CPU", ORANGE), ("ane", "Neural Engine", VIOLET), ("memory", "memory", TEAL),
        ("system", "whole Mac", GREY))),
        None, ("GPU cap", cap / 1000) if cap else None)
    total = limits.get("memory_bytes")
    panel("GPU memory, all processes", "GB",
          (("memory_used_bytes", "in use", BLUE, 1 / c.GIB), ("memory_allocated_bytes", "allocated", GREY, 1 / c.GIB)),
          None, ("limit", total / c.GIB) if total else None, steps=False)
    top_clock = limits.get("clock_mhz")
    panel("GPU clock", "MHz", (("gpu_clock_mhz", "requested", TEAL, 1),), None,
          ("highest", top_clock) if top_clock else None, False)
    panel("Temperature", "°C",
          (("gpu_temperature_max_celsius", "GPU, hottest", RED, 1), ("gpu_temperature_celsius", "GPU, mean", ORANGE, 1),
                                ("cpu_temperature_celsius", "CPU", GREY, 1)), None, None, False, True, False)
    if doc.get("fast"):
        fast = doc["fast"]
        few = _thinned(range(len(fast["t"])), POINTS)
        lines = [Line(label, [fast[name][n] for n in few], colour) for name, label, colour in (
            ("gpu_device_percent", "device", BLUE), ("gpu_renderer_percent", "renderer", TEAL),
            ("gpu_tiler_percent", "tiler", ORANGE))
            if any(v is not None for v in fast[name])]
        if lines:
            made.append(Panel("Driver's own, every %.0f ms" % doc["sampling"]["fast_ms"], "%",
                              [fast["t"][n] for n in few], lines, 100))
    return made


def _top(panel: Panel) -> float:
    """End of the axis: the limit too when the values come near it, else the values' own height."""
    high = max((v for line in panel.lines for v in line.values if v is not None), default=0.0)
    if panel.top:
        return panel.top
    if panel.limit and high >= 0.4 * panel.limit[1]:
        return 1.06 * max(high, panel.limit[1])
    return panel.low + 1.15 * (high - panel.low) or 1.0


def _charts(doc: dict[str, Any], plotly: _Plotly | None) -> str:
    drawn = panels(doc)
    if not drawn:
        return '<p class="dim">Nothing was sampled.</p>'
    return _svg_panels(doc, drawn) if plotly is None else _plotly_panels(doc, drawn, plotly)


def _end(doc: dict[str, Any], drawn: Sequence[Panel]) -> float:
    return max([p.t[-1] for p in drawn] + [1e-9])


def _plotly_panels(doc: dict[str, Any], drawn: Sequence[Panel], plotly: _Plotly) -> str:
    from plotly.subplots import make_subplots
    figure = make_subplots(rows=len(drawn), cols=1, shared_xaxes=True, vertical_spacing=0.035, subplot_titles=[
        "<b>%s</b>  %s   %s%s" % (p.title, p.unit, "  ".join('<span style="color:%s">\u25a0</span> %s'
                                                             % (line.colour, line.label) for line in p.lines),
                                "" if not p.limit or _top(p) >= p.limit[1] else "   (%s %.4g)" % p.limit)
                                for p in drawn])
    for row, p in enumerate(drawn, 1):
        for line in p.lines:
            figure.add_trace(plotly.go.Scatter(
                x=list(p.t), y=list(line.values), name=line.label, mode="lines",
                line=dict(color=line.colour, width=1.6, dash="dot" if line.dash else None,
                          shape="vh" if p.steps else None),
                fill="tozeroy" if line.fill else None, fillcolor=_pale(line.colour), showlegend=False,
                connectgaps=False,
                hovertemplate="%{y:.4g} " + p.unit), row=row, col=1)
        figure.update_yaxes(range=[p.low, (1.03 if p.top else 1) * _top(p)], row=row, col=1)
        if p.limit and _top(p) >= p.limit[1]:
            figure.add_hline(y=p.limit[1], line=dict(color=RED, width=1, dash="dash"),
                             annotation_text="%s %.4g" % p.limit, annotation_position="bottom right",
                             annotation_font=dict(size=10, color=RED), row=row, col=1)
    _mark(figure, doc)
    for note in figure.layout.annotations[:len(drawn)]:
        note.update(x=0, xanchor="left", yshift=3, font=dict(size=12))
    figure.update_xaxes(title_text="seconds", row=len(drawn), col=1)
    return plotly.div(figure, 60 + 165 * len(drawn))


def _mark(figure: Any, doc: dict[str, Any]) -> None:
    """Phases behind the first chart, events across all. Set at once: plotly's add_vrect takes a tenth of a second each."""
    shapes = list(figure.layout.shapes)
    for one in doc["analysis"]["phases"]:
        if one["kind"] != "unknown":
            shapes.append(dict(type="rect", xref="x", yref="y domain", x0=one["from_s"], x1=one["to_s"], y0=0, y1=1,
                               opacity=0.3, line_width=0,
                               fillcolor=PHASES[one["kind"]], layer="below"))
    notes = list(figure.layout.annotations)
    for one in doc["events"][:100]:
        shapes.append(dict(type="line", xref="x", yref="paper", x0=one["t"], x1=one["t"], y0=0, y1=1,
                           line=dict(color=RED, width=1, dash="dot")))
        notes.append(dict(x=one["t"], xref="x", y=1, yref="paper", text=e(one["kind"]), showarrow=False,
                          font=dict(size=10, color=RED), xanchor="left"))
    figure.update_layout(shapes=shapes, annotations=notes)


def _pale(colour: str) -> str:
    return "rgba(%d,%d,%d,0.10)" % tuple(int(colour[n:n + 2], 16) for n in (1, 3, 5))


WIDTH, HEIGHT, LEFT, ABOVE = 1000, 124, 56, 10


def _ticks(low: float, high: float, about: int = 3) -> list[float]:
    """Round numbers that cover a range."""
    import math
    rough = (high - low) / about or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9) * step
    return [first + n * step for n in range(int((high - first) / step + 1e-9) + 1)]


def _svg_panels(doc: dict[str, Any], drawn: Sequence[Panel]) -> str:
    end = _end(doc, drawn)
    return "".join(_svg_panel(p, end, doc if n == 0 else None, doc["events"]) for n, p in enumerate(drawn))


def _svg_panel(p: Panel, end: float, phases: dict[str, Any] | None, events: Sequence[dict[str, Any]]) -> str:
    top, wide, high = _top(p), WIDTH - LEFT - 8, HEIGHT - 20 - ABOVE

    def x(t: float) -> float:
        return LEFT + wide * t / end

    def y(v: float) -> float:
        return ABOVE + high * (1 - (min(v, top) - p.low) / (top - p.low))
    out = ['<svg viewBox="0 0 %d %d" class="svg" role="img"><title>%s</title>' % (WIDTH, HEIGHT, e(p.title))]
    for one in phases["analysis"]["phases"] if phases else ():
        out.append('<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s" opacity=".3"/>'
                   % (x(one["from_s"]), ABOVE, max(0.5, x(one["to_s"]) - x(one["from_s"])), high, PHASES[one["kind"]]))
    for value in _ticks(p.low, top):
        out.append('<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" class="grid"/><text x="%d" y="%.1f" class="tick e">%.4g</text>' % (
            LEFT, WIDTH - 8, y(value), y(value), LEFT - 6, y(value) + 4, value))
    for t in _ticks(0.0, end, 6):
        out.append('<text x="%.1f" y="%d" class="tick %s">%.4g s</text>'
                   % (x(t), HEIGHT - 4, "m" if t < 0.95 * end else "e", t))
    if p.limit and top >= p.limit[1]:
        out.append('<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" class="limit"/><text x="%d" y="%.1f" class="tick lim">%s %.4g</text>' % (
            LEFT, WIDTH - 8, y(p.limit[1]), y(p.limit[1]), LEFT + 4, y(p.limit[1]) - 3, e(p.limit[0]), p.limit[1]))
    for line in p.lines:
        for path in _paths(p.t, line.values, p.steps):
            points = " ".join("%.1f,%.1f" % (x(t), y(v)) for t, v in path)
            if line.fill:
                out.append('<polygon points="%.1f,%.1f %s %.1f,%.1f" fill="%s" opacity=".12"/>'
                           % (x(path[0][0]), y(p.low), points, x(path[-1][0]), y(p.low), line.colour))
            out.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="1.6"%s/>' % (
                points if len(path) > 1 else points + " " + points, line.colour,
                ' stroke-dasharray="3 3"' if line.dash else ""))
    for one in events:
        out.append('<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" class="event"/>'
                   % (x(one["t"]), x(one["t"]), ABOVE, high + ABOVE))
    keys = " ".join('<i style="background:%s"></i>%s' % (line.colour, e(line.label)) for line in p.lines)
    far = "" if not p.limit or top >= p.limit[1] else " · %s %.4g" % (e(p.limit[0]), p.limit[1])
    return '<p class="keys"><b>%s</b> %s%s <span class="key">%s</span></p>%s</svg>' % (e(p.title), e(p.unit), far, keys, "".join(out))


def _paths(t: Sequence[float], values: Sequence[float | None], steps: bool = False) -> list[list[tuple[float, float]]]:
    """Stretches without a gap: a line never crosses what was not measured."""
    paths: list[list[tuple[float, float]]] = [[]]
    for at, v in zip(t, values):
        if v is None:
            paths.append([])
            continue
        if steps and paths[-1]:
            paths[-1].append((paths[-1][-1][0], v))
        paths[-1].append((at, v))
    return [p for p in paths if p]


def _phase_legend(doc: dict[str, Any]) -> str:
    kinds = [k for k in dict.fromkeys(p["kind"] for p in doc["analysis"]["phases"]) if k != "unknown"]
    return '<p class="keys">Shades in the first chart: %s</p>' % " ".join('<i style="background:%s"></i>%s' % (PHASES[k], e(k)) for k in kinds) if kinds else ""


# ---- the rest

def _saturation(doc: dict[str, Any]) -> str:
    def shade(v: float | None) -> str:
        return GREY if v is None else RED if v >= 0.9 else ORANGE if v >= 0.6 else BLUE
    rows = []
    for s, (name, mean, peak, limit) in zip(doc["analysis"]["saturation"], r.saturation_rows(doc)):
        rows.append((name, _bar(s["mean"], shade(s["mean"])) if s["mean"] is not None else "", mean, peak, limit))
    return _section("Against the chip's own limits", _table(("", "", "average", "peak", "limit"), rows, 2))


def _kernels(doc: dict[str, Any], plotly: _Plotly | None) -> str:
    if not doc["kernels"]:
        return _section("Kernels",
                        '<p class="dim">No kernel was profiled: none ran through this library in the process, '
                        'or <code>--kernels</code> was not given.</p>')
    whole = sum(k["total_s"] or 0 for k in doc["kernels"]) or 1
    rows = [(row[0], _bar((k["total_s"] or 0) / whole), r.milliseconds(k["total_s"])) + row[1:]
            for k, row in zip(doc["kernels"], r.kernel_rows(doc))]
    chart = ""
    if plotly is not None:
        figure = plotly.go.Figure()
        for k in [k for k in doc["kernels"][:12] if k["samples_s"]][::-1]:
            figure.add_trace(plotly.go.Box(x=[1e3 * v for v in _thinned(k["samples_s"], 500)], name=e(k["name"])[:40],
                                           orientation="h", boxpoints="outliers",
                                           marker=dict(color=BLUE, size=3), line=dict(width=1.2), showlegend=False,
                                           hoverinfo="x+name"))
        figure.update_xaxes(title_text="milliseconds", type="log")
        if figure.data:
            chart = plotly.div(figure, 90 + 34 * len(figure.data), 150, "closest")
    return _section("Kernels", _table(("kernel", "", "total", "count", "average", "median", "95 %", "grid",
                                       "threadgroup", "tg memory", "overhead", "timed by"), rows, 2), chart)


def _queues(doc: dict[str, Any], plotly: _Plotly | None) -> str:
    if not doc["buffers"]:
        return ""
    rows = [(q["name"], q["buffers"], q["dispatches"], _bar(q["in_flight_ratio"]), r.ratio(q["in_flight_ratio"]),
             _bar(q["gpu_ratio"], TEAL), r.ratio(q["gpu_ratio"])) for q in doc["queues"]]
    queues = _table(("queue", "buffers", "dispatches", "", "in flight", "", "GPU at work"), rows)
    parts = [(n, s) for n, s in doc["latency"].items() if s and n != "total"]
    whole = sum(s["mean"] for _, s in parts) or 1
    colours = {"encode": VIOLET, "scheduling": ORANGE, "driver": GREY, "queued": RED, "gpu": TEAL, "notice": BLUE}
    strip = '<div class="strip tall">%s</div>' % "".join('<i style="width:%.2f%%;background:%s" title="%s"></i>' % (
        100 * s["mean"] / whole, colours[n], e(LATENCY_WORDS[n])) for n, s in parts)
    keys = '<p class="keys">Mean of %d command buffers: %s</p>' % (doc["buffer_count"], " ".join(
        '<i style="background:%s"></i>%s %s' % (colours[n], e(LATENCY_WORDS[n]), r.milliseconds(s["mean"]))
        for n, s in parts))
    return _section("Command buffers", queues, strip, keys, _table(("from submission to completion", "median", "95 %",
                                                                    "n"), r.latency_rows(doc)), _gantt(doc, plotly))


def _gantt(doc: dict[str, Any], plotly: _Plotly | None) -> str:
    """CPU and GPU side by side: the newest buffers."""
    buffers = doc["buffers"][-250:]
    lanes = (("CPU: commit to return", "commit_s", "done_s", BLUE), ("driver", "kernel_start_s", "kernel_end_s", GREY),
             ("GPU", "gpu_start_s", "gpu_end_s", TEAL))
    if plotly is None:
        return ""
    figure = plotly.go.Figure()
    for name, start, end, colour in lanes:
        told = [b for b in buffers if b[start] is not None and b[end] is not None]
        figure.add_trace(plotly.go.Bar(y=[name] * len(told), x=[b[end] - b[start] for b in told],
                                       base=[b[start] for b in told], orientation="h",
                                       marker=dict(color=colour, line=dict(color="rgba(255,255,255,.6)", width=0.5)), width=0.6,
                                       showlegend=False,
                                       hovertext=["%s<br>%s" % (e(b["label"]), r.milliseconds(b[end] - b[start]))
                                                  for b in told], hoverinfo="text"))
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="seconds since the monitor began (the newest %d buffers; the whole: --trace)"
                        % len(buffers))
    return plotly.div(figure, 210, 150, "closest")


def _allocations(doc: dict[str, Any], plotly: _Plotly | None) -> str:
    held = doc.get("allocations")
    if not held:
        return ""
    s = held["statistics"]
    words = [("allocated in all", r.size(s["total_allocated_bytes"])), ("now", r.size(s["current_allocated_bytes"])),
             ("peak", r.size(s["peak_allocated_bytes"])),
             ("shared", r.size(s["shared_bytes"])), ("private", r.size(s["private_bytes"])),
             ("allocations", s["allocations"]), ("freed", s["deallocations"]),
             ("per second", "%.1f" % held["rate_per_s"] if held["rate_per_s"] is not None else c.DASH),
             ("median life", r.milliseconds((held["lifetime_s"] or {}).get("median")))]
    line = '<p class="facts">%s</p>' % " ".join("<span><b>%s</b> %s</span>" % (e(v), e(k)) for k, v in words)
    t = [row[0] for row in held["timeline"]]
    end = max(t[-1] if t else 0.0, doc["metal_watched_s"], 1e-9)
    steps = [(at, before[1])
             for before, at in zip(held["timeline"], t[1:] + [end])]       # a size holds until the next change
    unit, scale = ("MB", 1 << 20) if s["peak_allocated_bytes"] >= 1 << 19 else ("KB", 1 << 10)
    path = [point for row, after in zip(held["timeline"], steps)
            for point in ((row[0], row[1] / scale), (after[0], after[1] / scale))]
    shown = Panel("Metal buffers of " + r.whose(held), unit, [p[0] for p in path],
                  [Line("held", [p[1] for p in path], VIOLET, True)])
    chart = _svg_panel(shown, end, None, ()) if len(t) > 1 else ""
    most = max((x["count"] for x in held["sizes"]), default=1)
    sizes = _table(("size up to", "", "allocations"),
                   [(r.size(x["up_to_bytes"]), _bar(x["count"] / most, VIOLET), x["count"]) for x in held["sizes"]])
    names = _table(("by name", "count", "total", "peak", "live"),
                   [(x["name"], x["count"], r.size(x["total_bytes"]), r.size(x["peak_bytes"]), x["live"])
                    for x in held["names"][:20]])
    left = _table(("still allocated at the end", "count", "bytes", "oldest", ""), [
        (x["name"], x["live"], r.size(x["bytes"]), r.milliseconds(x["oldest_s"]),
         "growing: none of them was ever freed" if x["growing"] else "") for x in held["still_allocated"][:20]])
    return _section("Metal memory of " + r.whose(held), line, chart, '<div class="cols">%s%s</div>' % (sizes, names), left)


def _noticed(doc: dict[str, Any]) -> str:
    a = doc["analysis"]
    notes = ["At %.1f s: %s" % (x["t"], x["text"]) for x in doc["events"]]
    notes += ["%s %s by %s in all, %s per minute (p = %.2g, %d stretches)" % (
        r.label_of(t["column"]), t["direction"], r.figure_text(t["column"], abs(t["change"])),
        r.figure_text(t["column"], abs(t["per_minute"])), t["p"], t["n"]) for t in a["trends"]]
    notes += [r.anomaly_text(x) for x in a["anomalies"][:15]] + a["kernel_notes"]
    return _section("Noticed", "<ul>%s</ul>" % "".join("<li>%s</li>" % e(n) for n in notes)) if notes else ""


def _method(doc: dict[str, Any], note: str) -> str:
    s = doc["sampling"]
    notes = list(s["notes"]) + ([note] if note else [])
    if s["cost_ratio"] is not None:
        notes.append("The monitor itself took %.2f %% of one CPU core." % (100 * s["cost_ratio"]))
    figures = _table(("figure", "average", "median", "95 %", "peak", "samples", "measured over", "age", "source"), (
        (r.label_of(n), r.figure_text(n, f["mean"]), r.figure_text(n, f["p50"]), r.figure_text(n, f["p95"]),
         r.figure_text(n, f["max"]), f["n"],
         r.milliseconds(_per(s, n)["interval_s"]), r.milliseconds(_per(s, n)["age_s"]),
         (_per(s, n)["source"] or "") + (" (estimate)" if _per(s, n)["estimated"] else ""))
        for n, f in doc["analysis"]["figures"].items() if r.unit_of(n) != "flag"))
    rails = _rails(doc)
    missing = _table(("not measured", "samples", "why"), ((r.label_of(n), "%d of %d" % (m["rows"], s["rows_ever"]),
                                                           m["message"]) for n, m in doc["missing"].items()
                                                          if r.unit_of(n) != "flag"))
    return _section("How it was measured", "<ul>%s</ul>" % "".join("<li>%s</li>" % e(n) for n in notes),
                    "<details open><summary>All figures</summary>%s</details>" % figures,
                    rails, "<details><summary>What was not measured, and why</summary>%s</details>" % missing
                    if missing else "")


def _per(sampling: dict[str, Any], name: str) -> dict[str, Any]:
    found = sampling["per"].get({"memory_bytes_per_s": "memory_read_bytes_per_s",
                                 "memory_gpu_bytes_per_s": "memory_gpu_read_bytes_per_s"}.get(name, name))
    return found or {"interval_s": None, "age_s": None, "source": None, "estimated": False}


def _rails(doc: dict[str, Any]) -> str:
    spent = doc.get("energy")
    if not spent:
        return ""
    spans = spent.get("spans_s") or {}          # a rail's last publication may be older than the end
    rows = [(rail, c.joules(j), c.joules(spent["uncertainty_joules"].get(rail)),
             c.watts(1000 * j / (spans.get(rail) or spent["seconds"])))
            for rail, j in spent["joules"].items() if j is not None]
    return "<details open><summary>Energy from the first to the last sample</summary>%s</details>" % _table(("rail", "energy", "at most off by", "mean power"), rows) if rows else ""


STYLE = """
:root{color-scheme:light dark;--ground:#f1f5f9;--card:#fff;--ink:#0f172a;--soft:#475569;--mute:#64748b;--faint:#94a3b8;--line:#e2e8f0;--bad:#dc2626}
@media (prefers-color-scheme:dark){:root{--ground:#0b1120;--card:#151e30;--ink:#e6ecf5;--soft:#b4c0d2;--mute:#93a1b5;--faint:#6b7a90;--line:#2a364b;--bad:#f87171}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:14px/1.5 -apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
main{max-width:1120px;margin:0 auto;padding:20px 16px 60px}h1{font-size:24px;margin:0 0 2px}h2{font-size:16px;margin:0 0 10px}h3{font-size:13px;margin:0 0 4px;color:var(--soft);font-weight:600}
h4{font-size:12px;margin:8px 0 2px;color:var(--soft)}p{margin:0 0 6px}header p{color:var(--soft)}.cmd{font:13px ui-monospace,Menlo,'DejaVu Sans Mono',monospace;background:var(--line);border-radius:6px;padding:6px 10px;display:inline-block;color:var(--ink);margin-top:6px;overflow-wrap:anywhere}
.mark{font-size:12px;font-weight:600;border-radius:10px;padding:2px 9px;vertical-align:middle;margin-left:4px}.rec{background:#ede9fe;color:#5b21b6}.live{background:#dcfce7;color:#166534}.run{background:#fef3c7;color:#92400e}
section{background:var(--card);border-radius:10px;padding:16px 18px;margin-top:14px;box-shadow:0 1px 2px rgba(15,23,42,.08)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:10px;margin-top:14px}.tile{background:var(--card);border-radius:10px;padding:12px 14px;box-shadow:0 1px 2px rgba(15,23,42,.08)}
.tile p{color:var(--mute);font-size:12px;margin:0}.tile .big{font-size:22px;font-weight:650;color:var(--ink);line-height:1.3;font-variant-numeric:tabular-nums}.tile .none{color:var(--faint);font-size:15px}
.sum{font-size:15px;font-weight:600}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:12px;margin-top:8px}.card{border:1px solid var(--line);border-left:4px solid var(--faint);border-radius:8px;padding:10px 14px}
.card.hit{border-left-color:var(--bad)}.card h3{font-size:14px;color:var(--ink)}.card small{color:var(--mute);font-weight:400}ul{margin:0;padding-left:18px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13px;margin:6px 0}th{text-align:left;color:var(--mute);font-weight:600;border-bottom:1px solid var(--line);padding:4px 8px;white-space:nowrap}
td{border-bottom:1px solid var(--ground);padding:4px 8px;vertical-align:top}.n{text-align:right;font-variant-numeric:tabular-nums}.bar{display:inline-block;width:110px;height:9px;background:var(--line);border-radius:5px;overflow:hidden}.bar i{display:block;height:100%}
.strip{display:flex;height:9px;border-radius:5px;overflow:hidden;background:var(--line);margin:6px 0}.strip.tall{height:18px;margin-top:12px}.strip i{display:block;height:100%}
.keys{font-size:12px;color:var(--soft);margin:4px 0}.keys i{display:inline-block;width:10px;height:10px;border-radius:2px;margin:0 4px 0 10px;vertical-align:-1px}.key{margin-right:14px}
.svg{width:100%;height:auto;display:block}.grid{stroke:var(--line);stroke-width:1}.tick{font-size:11px;fill:var(--mute)}.tick.e{text-anchor:end}.tick.m{text-anchor:start}.limit{stroke:var(--bad);stroke-dasharray:5 4}.lim{fill:var(--bad)}.event{stroke:var(--bad);stroke-dasharray:2 3}
.facts span{margin-right:18px;color:var(--mute)}.facts b{color:var(--ink)}.cols{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:20px}.more{margin-top:10px}.dim{color:var(--mute);font-size:13px}details{margin-top:8px}summary{cursor:pointer;font-weight:600;color:var(--soft)}
@media (prefers-color-scheme:dark){.rec{background:#3b2a6b;color:#ddd6fe}.live{background:#14432a;color:#bbf7d0}.run{background:#4d3308;color:#fde68a}}
@media (max-width:700px){.modebar{display:none!important}main{padding:12px 8px 40px}section{padding:14px 12px}.bar{width:56px}}
@media print{body{background:var(--card)}section,.tile{box-shadow:none;border:1px solid var(--line)}}
"""
