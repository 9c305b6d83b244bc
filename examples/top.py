"""A live monitor for the GPU, Neural Engine, memory, power and heat of a Mac, as nvtop and metop are for theirs.

    python top.py                                               this Mac, no sudo
    python top.py --recording recordings/m5max-macos27.json     a recorded one, on any OS
    python top.py --once                                        one frame as text;  --debug: one raw sample
    python top.py -i 500ms --layout classic --export log.csv    every half second, also into a file

Keys: ? help, q quit. A dash is a figure that is not known (r lists the reasons), never 0.
"""
from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from typing import Any, Callable, Sequence

import _common as c
from _common import ag
from top_lib.draw import HIDEABLE, LAYOUTS, PLAIN, SORTS, THEMES, Look, frame
from top_lib.state import INTERVALS, RANGES, Model

# ---- ways to run

def _once(device: ag.Device, args: argparse.Namespace, look: Look, export: c.RowWriter | None) -> int:
    """One frame as text, as wide as the terminal; as the interactive frame where rates have settled."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        print("top.py needs rich: pip install rich", file=sys.stderr)
        return 1
    m = Model(device)
    for number in range(args.samples):
        if number and args.speed:
            time.sleep(args.interval)
        try:
            m.take(ag.DeviceGetSnapshot(device, timeout=0) if number else c.settled(device))
        except ag.AppleGPUError as error:
            if error.reason != ag.REASON_RECORDING or not number:
                raise
            m.ended = c.clean(error)
            break
        if export is not None:
            export.write(m.row())
    size = os.get_terminal_size(sys.stdout.fileno()) if sys.stdout.isatty() else os.terminal_size((100, 50))
    width = c.asked_width() or size.columns
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    for line in frame(m, width, 200 if look.layout == "auto" else size.lines, look, args.sort, 7 if args.samples > 1 else 0):
        text = Text(no_wrap=True, overflow="ignore", end="")
        for piece, style in line:
            text.append(piece, PLAIN[style] or None)
        text.rstrip()
        console.print(text)
    return 0


def _picture(make: Callable[[], Any], path: str, size: tuple[int, int], samples: int) -> int:
    """The screen after some samples as an SVG, without a terminal."""
    import asyncio

    async def work() -> None:
        app = make()        # here: before Python 3.10 a queue belongs to the loop that it was made in
        async with app.run_test(size=size) as pilot:
            for _ in range(samples):
                await app.sample()
                await pilot.pause()
            app.cost = None
            app.redraw(True)
            await pilot.pause()
            c.local_fonts(app.save_screenshot(os.path.basename(path), os.path.dirname(path) or "."))
    asyncio.run(work())
    return 0


def _size(text: str) -> tuple[int, int]:
    wide, _, high = text.partition("x")
    if not wide.isdigit() or not high.isdigit() or not 20 <= int(wide) <= 1000 or not 5 <= int(high) <= 1000:
        raise argparse.ArgumentTypeError("%r is not a size such as 120x40, from 20x5 to 1000x1000" % text)
    return int(wide), int(high)


def _panels(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if set(names) - set(HIDEABLE):
        raise argparse.ArgumentTypeError("panels are %s" % ", ".join(HIDEABLE))
    return names


def _interval(text: str) -> float:
    span = c.interval(text)
    if span < INTERVALS[0]:
        raise argparse.ArgumentTypeError("%r is shorter than %s, the shortest" % (text, c.duration(INTERVALS[0])))
    return span


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="top.py", description="A live monitor for Apple GPUs: no sudo, nothing guessed.",
                                     epilog="Keys while it runs: ? shows them. NO_COLOR is honoured.")
    parser.add_argument("-i", "--interval", type=_interval, default=1.0, metavar="TIME",
                        help="refresh every TIME: 500ms, 0.5s, 2m, or 500 (a bare number from 100 is milliseconds, below it "
                             "seconds), from 100ms; default 1s")
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="default: what fits the terminal")
    parser.add_argument("--theme", "--color", metavar="NAME", help="%s, or 0 to %d; default %s, with NO_COLOR the terminal's own" % (
        ", ".join(THEMES), len(THEMES) - 1, THEMES[0]))
    parser.add_argument("--range", dest="span", type=c.seconds, default=60, metavar="TIME", help="of the histories: %s" % (
        ", ".join(name for _, name in RANGES)))
    parser.add_argument("--sort", choices=SORTS, default="gpu", help="of the processes")
    parser.add_argument("--hide", type=_panels, default=[], metavar="PANELS", help="panels to leave out: %s" % ",".join(HIDEABLE))
    parser.add_argument("--no-ane", action="store_true", help="leave out the Neural Engine")
    parser.add_argument("--export", metavar="FILE", help="append every sample to FILE, CSV if it ends in .csv, else JSON lines")
    parser.add_argument("--once", action="store_true", help="print one frame as text and end")
    parser.add_argument("--svg", metavar="FILE", help="draw the screen into an SVG picture and end")
    parser.add_argument("--size", type=_size, default=(120, 42), metavar="WxH", help="of the picture")
    parser.add_argument("--samples", type=c.count, default=1, metavar="N", help="looks before --once or --svg, for the histories")
    parser.add_argument("--debug", action="store_true", help="print one raw sample with reasons, ages and sources, and end")
    parser.add_argument("-v", "--version", action="version", version="pyapplegpu " + ag.__version__)
    c.add_source_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    device = c.open_device(args)
    span = min((span for span, _ in RANGES), key=lambda s: abs(s - args.span))
    look = Look(args.layout, span, frozenset(args.hide) | (frozenset({"ane"}) if args.no_ane else frozenset()))
    if args.debug:
        print(json.dumps(c.settled(device).to_dict(), indent=2))
        return 0
    export = c.RowWriter(args.export) if args.export else None
    try:
        return _once(device, args, look, export) if args.once else _interactive(device, args, look, export)
    finally:
        if export is not None:
            export.close()


def _interactive(device: ag.Device, args: argparse.Namespace, look: Look, export: c.RowWriter | None) -> int:
    try:
        from textual.theme import BUILTIN_THEMES
        from top_lib.screen import Top
    except ImportError:
        print("top.py needs textual: pip install textual "
              "(--once works with rich alone)", file=sys.stderr)
        return 1
    known = [name for name in THEMES if name in BUILTIN_THEMES]         # they differ between versions of Textual
    theme = args.theme or next(name for name in known if "ansi" in name or not os.environ.get("NO_COLOR"))
    theme = known[int(theme) % len(known)] if theme.isdigit() else theme
    if theme not in BUILTIN_THEMES:
        print("top.py: no theme %r; there are %s" % (theme, ", ".join(sorted(BUILTIN_THEMES))), file=sys.stderr)
        return 2
    make = functools.partial(Top, device, args.interval, look, theme, export,
                             clocked=args.svg is None)
    if args.svg:
        return _picture(make, args.svg, args.size, args.samples)
    tty = sys.stdin.isatty() and sys.stderr.isatty()            # Textual reads the one and draws on the other
    if not tty or os.environ.get("TERM") == "dumb":
        print("top.py needs a terminal%s; --once prints one frame without, and stat.py -i goes on printing" % (
            " that can move its cursor (TERM is dumb)" if tty else ""), file=sys.stderr)
        return 1
    app = make()
    c.on_ending(app.end)
    app.run()
    return int(app.return_code or 0)


if __name__ == "__main__":
    sys.exit(c.quiet_pipe(main))
