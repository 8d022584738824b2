"""Markdown: the few forms a study's text is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from textwrap import fill

from loadgen.words import NOT_KNOWN, too_wide

WIDTH = 120


def paragraph(text: str) -> str:
    return fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def number(value: float | None, form: str = ".4g") -> str:
    """Empty for what was not measured; whole numbers without an exponent."""
    if value is None or math.isnan(value):
        return ""
    text = f"{value:{form}}"
    return f"{value:,.0f}" if "e+" in text else text


def spread(value: float | None, low: float | None, high: float | None, form: str = ".4g") -> str:
    """A value with its 95% interval, where it has one."""
    if value is None or low is None or high is None or math.isnan(low) or math.isnan(high):
        return number(value, form)
    if too_wide(low, high):
        return f"{number(value, form)} ({NOT_KNOWN})"
    return f"{number(value, form)} ({number(low, form)} to {number(high, form)})"
