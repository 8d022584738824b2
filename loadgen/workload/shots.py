"""Shots: the worked examples of a prompt, where they come from, and which of them a question gets."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from loadgen.errors import UsageError
from loadgen.workload import gsm8k, mathqa, sample
from loadgen.workload.dataset import existing_file
from loadgen.workload.item import Item
from loadgen.workload.lmeval import PINNED, HarnessTask, installed_task, read_task
from loadgen.workload.published import PublishedFile, fetch, sha256_of

DRAW_SEED = 1234
"""What lm-evaluation-harness seeds its draws with unless told otherwise."""
MAX_RATIONALE_CHARACTERS = 300

Origin = Literal["published", "custom", "own"]
"""The pinned text; another file that was named; examples written for this project."""

_ROW = re.compile(r"(\d+)$")
_CLOSING = re.compile(r"\W*\b(?:(?:hence|so|the|final|correct)\s+)*(?:answer|ans)\b(?:\s+is)?[\s:=(]*[a-e]?\W*$")


class Shots(msgspec.Struct, frozen=True):
    """Worked examples: `question` and `options` make the question turn, `solution` is the answer turn."""

    items: tuple[Item, ...]
    origin: Origin


def drawn(pool: int, count: int, item_id: str) -> tuple[int, ...]:
    """Which `count` of `pool` examples a question gets: for row r of a dataset, draw r+1 of one seeded sequence.

    That is what lm-evaluation-harness 0.4.13 does with documents in their order (`ContextSampler`, seed 1234). The
    row is the number at the end of the id, 0 where there is none.
    """
    row = _ROW.search(item_id)
    return _sequence(pool, count).draw(int(row[1]) if row else 0)


class _Sequence:
    """One draw without replacement after another, all from one generator."""

    def __init__(self, pool: int, count: int) -> None:
        self._pool, self._count = range(pool), count
        self._random = random.Random(DRAW_SEED)
        self._made: list[tuple[int, ...]] = []

    def draw(self, number: int) -> tuple[int, ...]:
        while len(self._made) <= number:
            self._made.append(tuple(self._random.sample(self._pool, self._count)))
        return self._made[number]


_sequence = functools.cache(_Sequence)


def train_shots(shots_file: Path | None, *, needed: int) -> Shots:
    """All of GSM8K's train split (`shots_file`, else cache or download), else the project's own eight.

    Raises UsageError for a missing or malformed file, or one with fewer than `needed` examples.
    """
    path = _published(gsm8k.TRAIN, shots_file)
    if path is None:
        return Shots(tuple(sample.own_shots()), "own")
    items = gsm8k.read_gsm8k(path, split="train")
    if len(items) < needed:
        raise UsageError(f"--shots-file {path} holds {len(items)} examples; the protocol needs {needed}")
    return Shots(tuple(items), _origin(path, gsm8k.TRAIN))


def task_shots(name: str, shots_file: Path | None) -> tuple[HarnessTask, Origin] | None:
    """The wording and examples of an lm-evaluation-harness task: of `shots_file`, else of the installed package.

    None where neither is at hand. Raises UsageError for a file that is no such task.
    """
    if shots_file is not None:
        task: HarnessTask | None = read_task(existing_file(shots_file, "--shots-file"))
    else:
        task = installed_task(name)
    if task is None:
        return None
    return task, "published" if task.sha256 == PINNED[name] else "custom"


def own_sentences(closing: str) -> Shots:
    """The project's own examples as running text that ends in `closing`, `{gold}` standing for the number."""
    return Shots(tuple(_replied(shot, f"{_running_text(shot)} {closing}") for shot in sample.own_shots()), "own")


def letter_shots(shots_file: Path | None, closing: str) -> Shots:
    """Five examples with options, each letter right once: from MathQA's dev split, else the project's own.

    Of dev: per letter the first row whose formula comes to its answer, with no second right letter and a rationale in
    plain ASCII of at most `MAX_RATIONALE_CHARACTERS`. Raises UsageError for a file without such rows.
    """
    path = _published(mathqa.DEV, shots_file)
    if path is None:
        lettered = (replace(s, gold=mathqa.LETTERS[s.options.index(s.gold)]) for s in sample.own_shots())
        return Shots(tuple(_replied(s, f"{_running_text(s)} {closing}") for s in _one_per_letter(lettered)), "own")
    usable = (
        item
        for item in mathqa.read_clean(path, split="dev")
        if item.solution.isascii() and len(item.solution) <= MAX_RATIONALE_CHARACTERS and not item.accepted
    )
    chosen = _one_per_letter(usable)
    if len(chosen) < len(mathqa.LETTERS):
        raise UsageError(f"--shots-file {path} holds no usable example for some letter; give MathQA's dev split")
    return Shots(
        tuple(_replied(shot, f"{rationale(shot.solution)}. {closing}") for shot in chosen), _origin(path, mathqa.DEV)
    )


def rationale(published: str) -> str:
    """A published rationale without its quotation marks, its closing mention of the letter and its full stop."""
    return _CLOSING.sub("", published.strip().strip('"').strip()).rstrip(" .")


def _one_per_letter(items: Iterable[Item]) -> list[Item]:
    """The first item of each gold letter, in the items' order."""
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.gold, item)
    return list(first.values())


def _replied(shot: Item, text: str) -> Item:
    return replace(shot, solution=text.replace("{gold}", shot.gold))


def _running_text(shot: Item) -> str:
    """The lines of a worked answer one after another, without the `####` line."""
    return " ".join(shot.solution.splitlines()[:-1])


def _published(file: PublishedFile, shots_file: Path | None) -> Path | None:
    if shots_file is not None:
        return existing_file(shots_file, "--shots-file")
    try:
        return fetch(file)
    except UsageError:
        return None


def _origin(path: Path, file: PublishedFile) -> Origin:
    return "published" if sha256_of(path) == file.sha256 else "custom"
