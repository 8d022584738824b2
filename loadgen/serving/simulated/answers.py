"""Answers of the simulated model: deterministic text of a set length and accuracy."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import msgspec

from loadgen.serving.simulated.behaviour import BEHAVIOURS, Behaviour, Fate, Fates
from loadgen.serving.simulated.tokens import split_tokens
from loadgen.workload.item import Item

MEAN_TOKENS = 64
LENGTH_SIGMA = 0.25
REASONING_LENGTH = 3.0

_FILLER = tuple(
    split_tokens(sentence)
    for sentence in (
        " First we note what the story tells us.",
        " Then we look at what is being asked.",
        " The parts have to be put together in the right order.",
        " We take each quantity as it is given.",
        " What was used up has to be taken away again.",
        " Equal groups can be counted by multiplying.",
        " Sharing fairly means dividing by the number of shares.",
        " This gives us the amount before the last change.",
        " Now only one step is missing.",
        " The units agree, so the amounts may be added.",
        " It helps to write this down on a separate line.",
        " The result so far is kept for the next step.",
        " Nothing else in the story changes this amount.",
        " We check that the figure is a sensible one.",
        " So the remaining part follows from the whole.",
        " Each time the same amount comes on top.",
    )
)
_OPENING = split_tokens(" Let us work through it.")
_QUESTION = re.compile(r"(?:Question|Problem|Q):\s*")
_ANSWER_CUE = re.compile(r"\n\s*(?:Answer|A|Solution|Options):|\nYour response")
_LETTERS = "ABCDE"


class Answer(msgspec.Struct, frozen=True):
    """What the model says, token by token, without the end-of-sequence token."""

    tokens: list[str]
    endless: bool
    """It goes on until something stops it."""


class AnswerBook:
    """What the simulated model says to each prompt."""

    def __init__(self, items: Iterable[Item], *, precision: str, seed: int, behaviour: Behaviour | None = None) -> None:
        """`behaviour` replaces the precision's own."""
        behaviour = behaviour or BEHAVIOURS[precision]
        self._items = {_normal(item.question): item for item in items}
        self._precision = precision
        self._fates = Fates(behaviour, precision=precision, seed=seed)
        self._mean_tokens = MEAN_TOKENS * behaviour.length_factor

    def find_item(self, prompt: str) -> Item | None:
        """The item that the prompt's last question asks, None when it is not in the book."""
        cues = list(_QUESTION.finditer(prompt))
        text = prompt[cues[-1].end() :] if cues else prompt
        cue = _ANSWER_CUE.search(text)
        for asked in (text[: cue.start()] if cue else text, text.split("\n", 1)[0]):
            if item := self._items.get(_normal(asked)):
                return item
        return None

    def answer(self, prompt: str, *, sample: str = "", batch: int | None = None) -> Answer:
        """The natural answer to a prompt that is served in a batch of that size.

        `sample` distinguishes draws from each other when the request asks for sampling.
        """
        item = self.find_item(prompt)
        key = item.question if item else prompt
        fate = self.fate(item, sample=sample, batch=batch) if item else "unparsed"
        target = self._target_tokens(key, sample)
        last = split_tokens(self._last_line(prompt, item, fate, sample)) if item else []
        tokens = list(_OPENING)
        for sentence in self._sentences(key, sample):
            if len(tokens) + len(sentence) // 2 + len(last) >= target:
                break
            tokens += sentence
        return Answer(tokens + last, endless=fate == "truncated")

    def fate(self, item: Item, *, sample: str = "", batch: int | None = None) -> Fate:
        """What becomes of the answer to an item."""
        return self._fates.of(item.question, sample=sample, batch=batch)

    def reasoning(self, prompt: str) -> list[str]:
        """Tokens that a thinking model spends before its answer: some three answers' worth."""
        item = self.find_item(prompt)
        key = item.question if item else prompt
        length = int(REASONING_LENGTH * self._target_tokens(key, "reasoning"))
        return list(islice(chain.from_iterable(self._sentences(key, "reasoning")), length))

    def continuation(self, prompt: str) -> Iterator[str]:
        """Endless tokens for a request that ignores the end of the sequence."""
        for sentence in self._sentences(prompt, "continuation"):
            yield from sentence

    def _last_line(self, prompt: str, item: Item, fate: Fate, sample: str) -> str:
        """The line that names the result, worded as the prompt's examples or instructions ask for it."""
        if fate in ("truncated", "unparsed"):
            return ""
        answer = item.gold if fate == "correct" else self._wrong(item, sample)
        if item.options:
            return f"\nThe answer is ({answer})."
        if item.exact:
            return f"\nThe answer is {answer}."
        if "The final answer is" in prompt:
            return f"\nThe final answer is {answer}"
        if "####" not in prompt and ("The answer is" in prompt or prompt.rstrip().endswith("step by step.")):
            return f"\nThe answer is {answer}."
        return f"\n#### {answer}"

    def _wrong(self, item: Item, sample: str) -> str:
        draw = self._fates.uniform("shift", self._precision, item.question, sample)
        if item.options:
            right = {item.gold, *item.accepted}
            letters = [letter for letter in _LETTERS[: len(item.options)] if letter not in right]
            return letters[int(draw * len(letters))]
        try:
            return str(int(item.gold) + 1 + int(20 * draw))
        except ValueError:
            return str(1 + int(20 * draw))

    def _target_tokens(self, key: str, sample: str) -> float:
        rng = random.Random(self._fates.hash("length", key, sample))
        mu = -(LENGTH_SIGMA**2) / 2
        return self._mean_tokens * rng.lognormvariate(mu, LENGTH_SIGMA)

    def _sentences(self, *key: str) -> Iterator[list[str]]:
        rng = random.Random(self._fates.hash("sentences", self._precision, *key))
        while True:
            yield _FILLER[int(rng.random() * len(_FILLER))]


def _normal(question: str) -> str:
    return " ".join(question.split())
