"""Text from outside, made safe to show: what a terminal or a page would obey is written out instead."""

from __future__ import annotations

import re

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed, and their 8-bit forms
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of writing
    "\u2028\u2029\ufeff"  # further line ends; a mark of byte order
    "\ud800-\udfff]"  # halves of characters
)


def visible(text: str) -> str:
    """The text with control characters, direction marks and the like as `\\x1b`, `\\u202e`; the same if it has none."""
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)
