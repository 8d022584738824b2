"""Item: one question of a dataset."""

from __future__ import annotations

import msgspec


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One question with its published answer."""

    id: str
    """Stable over releases: dataset, split and row, e.g. `gsm8k-test-0007`."""
    question: str
    solution: str
    """The published worked answer, as it would stand in a few-shot example."""
    gold: str
    """The final answer alone: a number without thousands separators, or an upper-case letter A to E."""
    options: tuple[str, ...] = ()
    """The texts of options A, B, ... in order; empty for a question without options."""
    accepted: tuple[str, ...] = ()
    """Every answer that counts as right, gold included, where more than gold alone is right; else empty."""
    unit: str = ""
    """What gold counts, where the data file says so: an answer in another known unit is wrong."""
    exact: bool = False
    """Gold is a text and compared as such; else it is a letter or a number."""
    steps: int | None = None
    """Reasoning steps, the primary depth: GSM8K solution lines, MathQA operations of `linear_formula`."""
    flaws: tuple[str, ...] = ()
    """What is known to be wrong with the question: `identical options`, `removed by GSM8K-Platinum`."""
    annotated_steps: int | None = None
    """GSM8K's `<<...>>` calculations, the depth for sensitivity; None elsewhere."""
