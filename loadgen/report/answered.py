"""Answered: the lines of the terminal on how many answers an accuracy rests on, and what it does not show of them."""

from __future__ import annotations

import math
import textwrap

import pandas as pd

SHARES = {
    "truncated_rate": "truncated",
    "unparsed_rate": "unparsed",
    "guessed_rate": "guessed",
    "stopped_rate": "ended by a stop string",
}


def answered_lines(summary: pd.DataFrame, width: int) -> list[str]:
    """Per target, equal ones together: questions, and the shares of its answers that are not 0 at some B, over B."""
    said: dict[str, list[str]] = {}
    graded = summary[summary["questions"].notna()].sort_values("concurrency", kind="stable")
    for target, rows in graded.groupby("target", sort=False):
        shares = [
            f"{_listed([_percent(value) for value in rows[column]])}% {words}"
            for column, words in SHARES.items()
            if any(value > 0 for value in rows[column])
        ]
        count = _listed([f"{int(n)}" for n in rows["questions"]])
        told = ", ".join(shares) or "none truncated, unparsed or guessed"
        said.setdefault(f"n {count}; {told}", []).append(str(target))
    every = len(said) == 1 and graded["target"].nunique() > 1
    return [
        line
        for told, targets in said.items()
        for line in textwrap.wrap(
            f"answers{'' if every else ' of ' + ', '.join(targets)}: {told}", width, subsequent_indent="  "
        )
    ]


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}".removesuffix(".0")


def _listed(values: list[str]) -> str:
    """One value where all are the same."""
    return values[0] if len(set(values)) == 1 else "/".join(values)
