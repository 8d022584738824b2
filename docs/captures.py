"""Captures of a command in a terminal: `pip install pyte`, then

    python docs/captures.py 80x24 sweep.svg loadgen sweep --concurrency 1,16

runs the command in a pseudo-terminal of that size and draws its screen as it was every `--every` seconds, one after the
other, in an SVG without scripts; `--text FILE` also writes the screens as text, `--last` draws the last one alone.
docs/images/sweep-terminal.svg shows three servers of `loadgen simulate --gpu a100 --model qwen2.5-32b`:

    python docs/captures.py --every 6 --speed 10 100x30 docs/images/sweep-terminal.svg loadgen sweep \\
        --target fp16=http://127.0.0.1:8001 --target awq=http://127.0.0.1:8002 --target bnb-nf4=http://127.0.0.1:8003 \\
        --concurrency 1,16 --dataset sample --repeats 2 --duration 8
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

import pyte

CHAR_W, LINE_H, MARGIN = 8.4, 18, 12
"""Pixels."""
COLOURS = {
    "default": "#d8dee9", "red": "#ff7b72", "green": "#7ee787", "brown": "#e3b341", "yellow": "#e3b341",
    "cyan": "#79c0ff", "blue": "#79c0ff", "magenta": "#d2a8ff", "white": "#ffffff", "black": "#8b949e",
}  # fmt: skip
BACKGROUND = "#0d1117"
CALM = "@media(prefers-reduced-motion){g{animation:none!important}}"
STILL = 50.0
"""Percent of the time; what is there then is drawn where nothing moves."""


@dataclass(frozen=True)
class Run:
    """Characters of one look, beside each other on a line."""

    column: int
    text: str
    colour: str
    bold: bool


Screen = tuple[tuple[Run, ...], ...]


def screens(argv: Sequence[str], columns: int, lines: int, every_s: float) -> Iterator[tuple[float, Screen]]:
    """Seconds since the start, and the screen; each time that it has changed when `every_s` more are over."""
    display = pyte.Screen(columns, lines)
    stream = pyte.ByteStream(display)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    begun_s, before, running = time.monotonic(), None, True
    due_s = every_s
    while running:
        if select.select([ours], [], [], 0.05)[0]:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the terminal's other end is closed
                data = b""
            running = bool(data)
            stream.feed(data)
        now_s = time.monotonic() - begun_s
        if now_s >= due_s or not running:
            due_s = now_s + every_s
            if (shown := _shown(display)) != before:
                before = shown
                yield now_s, shown
    process.wait()
    os.close(ours)


def _shown(display: pyte.Screen) -> Screen:
    rows = []
    for line in range(display.lines):
        characters = [display.buffer[line][column] for column in range(display.columns)]
        looks = groupby(enumerate(characters), key=lambda at: (at[1].fg, at[1].bold))
        runs = []
        for (colour, bold), group in looks:
            at = list(group)
            text = "".join(character.data for _, character in at)
            if text.strip():
                indent = len(text) - len(text.lstrip())
                runs.append(Run(at[0][0] + indent, text.strip(), COLOURS.get(colour, f"#{colour}"), bold))
        rows.append(tuple(runs))
    return tuple(rows)


def as_text(screen: Screen) -> str:
    """The screen's characters."""
    lines = []
    for row in screen:
        line = ""
        for run in row:
            line = line.ljust(run.column) + run.text
        lines.append(line)
    return "\n".join(lines).rstrip()


def as_svg(taken: Sequence[tuple[float, Screen]], columns: int, lines: int, *, hold_s: float = 6.0) -> str:
    """The screens one after the other, each as long as it was there; the last one for `hold_s`. A line that stays is
    drawn once."""
    width, height = columns * CHAR_W + 2 * MARGIN, lines * LINE_H + 2 * MARGIN
    begun_s, whole_s = taken[0][0], taken[-1][0] - taken[0][0] + hold_s
    ends_s = [*(at_s for at_s, _ in taken[1:]), begun_s + whole_s]
    there: dict[tuple[int, tuple[Run, ...]], list[tuple[float, float]]] = {}
    for (at_s, screen), end_s in zip(taken, ends_s, strict=True):
        first, last = (round((second_s - begun_s) / whole_s * 100, 2) for second_s in (at_s, end_s))
        for place, row in enumerate(screen):
            spans = there.setdefault((place, row), [])
            spans.append((spans.pop()[0] if spans and spans[-1][1] == first else first, last))
    names = {spans: f"a{k}" for k, spans in enumerate(dict.fromkeys(map(tuple, there.values())))}
    style = (
        f"@keyframes {name}{{0%{{opacity:0}}{''.join(f'{on}%{{opacity:1}}{off}%{{opacity:0}}' for on, off in spans)}}}"
        f".{name}{{opacity:{sum(on <= STILL < off for on, off in spans)};"
        f"animation:{name} {whole_s:.1f}s step-end infinite}}"
        for spans, name in names.items()
        if spans != ((0.0, 100.0),)
    )
    drawn = (
        f'<g class="{names[tuple(spans)]}">{"".join(_drawn(place, row))}</g>'
        for (place, row), spans in there.items()
        if row
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" font-size="14" '
        f'font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace">'
        f"<style>text{{white-space:pre}}{''.join(style)}{CALM}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>{"".join(drawn)}</svg>\n'
    )


def _drawn(line: int, row: Sequence[Run]) -> Iterator[str]:
    for run in row:
        x, y = MARGIN + run.column * CHAR_W, MARGIN + (line + 0.75) * LINE_H
        bold = ' font-weight="bold"' if run.bold else ""
        length = f'textLength="{len(run.text) * CHAR_W:.1f}" lengthAdjust="spacingAndGlyphs"'
        yield f'<text x="{x:.1f}" y="{y:.1f}" fill="{run.colour}"{bold} {length}>{escape(run.text)}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", metavar="COLUMNSxLINES")
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=float, default=2.0, metavar="S")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="so many times faster than it was")
    parser.add_argument("--last", action="store_true")
    parser.add_argument("--text", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    columns, lines = map(int, asked.size.split("x"))
    seen = screens(asked.command, columns, lines, asked.every)
    taken = [(at_s / asked.speed, screen) for at_s, screen in seen]
    if asked.text:
        parts = (f"--- {at_s:.1f} s\n{as_text(screen)}\n" for at_s, screen in taken)
        asked.text.write_text("".join(parts), encoding="utf-8")
    asked.out.write_text(as_svg(taken[-1:] if asked.last else taken, columns, lines), encoding="utf-8")


if __name__ == "__main__":
    main()
