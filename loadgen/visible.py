"""Text from outside, made safe to show: what a terminal, a page or a spreadsheet would obey is written out instead."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable
from typing import Any

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed, and their 8-bit forms
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of writing
    "\u2028\u2029\ufeff"  # further line ends; a mark of byte order
    "\ud800-\udfff]"  # halves of characters
)
_FORMULA = re.compile(r"[\t\r\n]|\s*['=+@＝＋－＠-]")
"""What a spreadsheet runs begins with one of these (OWASP, CSV injection), or with its full-width form."""


MOST_SAID = 300


def visible(text: str) -> str:
    """The text with control characters, direction marks and the like as `\\x1b`, `\\u202e`; the same if it has none."""
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


def said(error: BaseException) -> str:
    """An error's words, on one line and MOST_SAID characters at most: they may quote a file or a server."""
    return visible(" ".join(str(error)[: 2 * MOST_SAID].split()))[:MOST_SAID] or type(error).__name__


def visible_line(text: str) -> str:
    """The same on one line: line feeds and tabs are written out as well."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def visible_message(text: str) -> str:
    """The same with the lines after the first indented: none of them passes for a message of its own."""
    return visible(text).rstrip("\n").replace("\n", "\n  ")


def visible_json(text: str) -> str:
    """JSON that means the same, where such characters are `\\u001b`, `\\u202e`."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def visible_cell(text: str) -> str:
    """A text as a cell of a CSV file: on one line, behind an apostrophe if a spreadsheet could run it."""
    return f"'{visible_line(text)}" if _FORMULA.match(text) else visible_line(text)


def text_of_cell(cell: str) -> str:
    """The text of a cell that `visible_cell` made, without the apostrophe before it."""
    return cell.removeprefix("'")


class VisibleStream:
    """A text stream that writes what is visible in a text, and is otherwise the stream that it was made of."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def show_only_visible() -> None:
    """From now on all that Python writes to stdout and stderr is visible: also warnings, logs and tracebacks."""
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None and not isinstance(stream, VisibleStream):
            setattr(sys, name, VisibleStream(stream))
    sys.excepthook = _show_traceback


def _show_traceback(*error: Any) -> None:
    """Without the colours of Python 3.13, which would be written out."""
    sys.stderr.write("".join(traceback.format_exception(*error)))
