"""Item: one question of a dataset; ItemFacts: what of it is kept in a run directory to grade answers and know depth."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from loadgen.bounds import Count
from loadgen.errors import UsageError
from loadgen.folder import Folder, read_json
from loadgen.secret import error_text

FILE = "items.json"
_DECIMAL = re.compile(r"-?[0-9]{1,1000}(?:\.[0-9]{1,1000})?")


class ItemFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item without its question and solution."""

    gold: str = ""
    """The final answer alone: a number without thousands separators, or an upper-case letter A to E; empty: none is
    known, and the answer is not graded."""
    options: tuple[str, ...] = ()
    """The texts of options A, B, ... in order; empty for a question without options."""
    accepted: tuple[str, ...] = ()
    """Every answer that counts as right, gold included, where more than gold alone is right; else empty."""
    unit: str = ""
    """What gold counts, where the data file says so: an answer in another known unit is wrong."""
    exact: bool = False
    """Gold is a text and compared as such; else it is a letter or a number."""
    steps: Count | None = None
    """Reasoning steps, the primary depth: GSM8K solution lines, MathQA operations of `linear_formula`."""
    annotated_steps: Count | None = None
    """GSM8K's `<<...>>` calculations, the depth for sensitivity; None elsewhere."""
    flaws: tuple[str, ...] = ()
    """What is known to be wrong with the question: `identical options`, `removed by GSM8K-Platinum`."""

    input_tokens: Count | None = None
    """How many tokens the prompt is to have, whatever the server adds included; None: as many as its text has."""
    output_tokens: Count | None = None
    """How many tokens the answer is to have, exactly; None: as many as the model makes."""

    @property
    def can_be_graded(self) -> bool:
        """Whether gold, and what else is accepted, is a text, a letter or a decimal number (or there is none)."""
        return (
            not self.gold
            or self.exact
            or self.gold.isalpha()
            or all(map(_DECIMAL.fullmatch, (self.gold, *self.accepted)))
        )


class Item(ItemFacts, frozen=True, kw_only=True):
    """One question with its published answer."""

    id: str
    """Stable over releases: dataset, split and row, e.g. `gsm8k-test-0007`."""
    question: str
    solution: str = ""
    """The published worked answer, as it would appear in a few-shot example."""
    messages: tuple[dict[str, Any], ...] = ()
    """The conversation to send instead of `question`."""
    most_tokens: Count | None = None
    """Where an answer is cut off, instead of at the protocol's limit."""
    due_s: float | None = None
    """When a trace has it, from its first request."""
    blocks: tuple[int, ...] = ()
    """Numbers of its prompt's blocks: those of equal numbers have equal texts."""


def facts_of(item: Item) -> ItemFacts:
    """The item without its texts, but for options: an answer may name one by its value."""
    return ItemFacts(**{name: getattr(item, name) for name in ItemFacts.__struct_fields__})


def write_facts(run_dir: Path, items: Iterable[Item]) -> None:
    """items.json: item id to facts; whole or not at all, whatever happens meanwhile."""
    content = msgspec.json.encode({item.id: facts_of(item) for item in items})
    Folder(run_dir).write(FILE, content, durable=True)


def read_facts(run_dir: Path) -> dict[str, ItemFacts]:
    """The facts of items.json by item id, none if there is no such file; runs of 0.1 hold gold alone.

    Raises UsageError if the file is not readable as such.
    """
    try:
        kept = read_json(run_dir, FILE, dict[str, ItemFacts | str])
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UsageError(
            f"{run_dir / FILE} does not hold the items of a run ({error_text(error)}); restore it to grade this run"
        ) from None
    found = {item: ItemFacts(gold=facts) if isinstance(facts, str) else facts for item, facts in kept.items()}
    for item, facts in found.items():
        if not facts.can_be_graded:
            raise UsageError(
                f"{run_dir / FILE} has {facts.gold[:40]!r} as the answer of item {item[:40]!r}, which is neither a "
                "number nor a letter; restore the file to grade this run"
            )
    return found
