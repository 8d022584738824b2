"""Simulated tokens: word pieces of about four characters."""

from __future__ import annotations

import re

_PIECE = re.compile(r"\s*\S{1,4}|\s+$")


def split_tokens(text: str) -> list[str]:
    """The pieces of a text; joined they are the text again."""
    return _PIECE.findall(text)


def count_prompt_tokens(text: str) -> int:
    """Tokens that a prompt is billed as: one per four characters begun, at least one."""
    return max(1, -(-len(text) // 4))
