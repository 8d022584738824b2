"""Text from outside cannot command a terminal or a page."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from loadgen.reports.html.markup import element
from loadgen.reports.live import PlainView
from loadgen.secret import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("over\rwritten\x08\x00", r"over\rwritten\x08\x00"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("a\tb\nc ä 漢 🙂 <b>&", "a\tb\nc ä 漢 🙂 <b>&"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_would_be_obeyed_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_what_is_left_obeys_nobody_and_stays_as_it_is(text: str) -> None:
    shown = visible(text)
    assert all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") for c in shown)
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert turning.isdisjoint(map(unicodedata.bidirectional, shown))
    assert visible(shown) == shown
    shown.encode()


def test_a_terminal_and_a_page_are_given_nothing_to_obey() -> None:
    out = io.StringIO()
    PlainView(Console(file=out, force_terminal=True, width=200)).warn("\x1b[2J[bold]x[/]\u202e")
    assert out.getvalue() == "warning: \\x1b[2J[bold]x[/]\\u202e\n"
    assert element("p", "\x00<script>\u202e", title='"\x1b') == (
        '<p title="&quot;\\x1b">\\x00&lt;script&gt;\\u202e</p>'
    )
