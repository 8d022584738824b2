"""Answers of the simulated model: deterministic text of a set length and accuracy."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import msgspec

from loadgen.serving.simulated.tokens import split_tokens
from loadgen.workload.item import Item

MEAN_TOKENS = 64
LENGTH_SIGMA = 0.25
OWN_DRAW_SHARE = 0.15


class Behaviour(msgspec.Struct, frozen=True):
    """How a precision answers."""

    accuracy: float
    """Probability that an item is answered correctly."""
    length_factor: float
    """Mean answer length over that of FP16."""


BEHAVIOURS = {
    "fp16": Behaviour(0.52, 1.00),
    "bf16": Behaviour(0.52, 1.00),
    "fp8": Behaviour(0.515, 1.01),
    "int8": Behaviour(0.51, 1.01),
    "bnb-int8": Behaviour(0.51, 1.01),
    "awq": Behaviour(0.49, 1.04),
    "gptq": Behaviour(0.48, 1.05),
    "bnb-nf4": Behaviour(0.47, 1.06),
}

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
_ANSWER_CUE = re.compile(r"\n\s*(?:Answer|A|Solution):")


class AnswerBook:
    """What the simulated model says to each prompt."""

    def __init__(self, items: Iterable[Item], *, precision: str, seed: int, accuracy: float | None = None) -> None:
        behaviour = BEHAVIOURS[precision]
        self._items = {_normal(item.question): item for item in items}
        self._precision = precision
        self._seed = seed
        self._accuracy = behaviour.accuracy if accuracy is None else accuracy
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

    def answer(self, prompt: str, *, sample: str = "") -> list[str]:
        """The tokens of the natural answer, without the end-of-sequence token.

        `sample` distinguishes draws from each other when the request asks for sampling.
        """
        item = self.find_item(prompt)
        key = item.question if item else prompt
        target = self._target_tokens(key, sample)
        last = split_tokens(f"\n#### {self._number(item, sample)}") if item else []
        tokens = list(_OPENING)
        for sentence in self._sentences(key, sample):
            if len(tokens) + len(sentence) // 2 + len(last) >= target:
                break
            tokens += sentence
        return tokens + last

    def continuation(self, prompt: str) -> Iterator[str]:
        """Endless tokens for a request that ignores the end of the sequence."""
        for sentence in self._sentences(prompt, "continuation"):
            yield from sentence

    def is_correct(self, item: Item, *, sample: str = "") -> bool:
        """Whether the item is answered correctly.

        Most items are decided by a draw that all precisions share, the others by one of their own: precisions
        then differ on few answers, in both directions, and each has exactly its accuracy in expectation.
        """
        question = item.question
        own = self._uniform("own?", self._precision, question) < OWN_DRAW_SHARE
        draw = self._uniform("answer", self._precision if own else "", question, sample)
        return draw < self._accuracy

    def _number(self, item: Item | None, sample: str) -> str:
        if item is None or self.is_correct(item, sample=sample):
            return item.gold if item else ""
        shift = 1 + int(20 * self._uniform("shift", self._precision, item.question, sample))
        try:
            return str(int(item.gold) + shift)
        except ValueError:
            return str(shift)

    def _target_tokens(self, key: str, sample: str) -> float:
        rng = random.Random(self._hash("length", key, sample))
        mu = -(LENGTH_SIGMA**2) / 2
        return self._mean_tokens * rng.lognormvariate(mu, LENGTH_SIGMA)

    def _sentences(self, *key: str) -> Iterator[list[str]]:
        rng = random.Random(self._hash("sentences", self._precision, *key))
        while True:
            yield _FILLER[int(rng.random() * len(_FILLER))]

    def _uniform(self, *key: str) -> float:
        return self._hash(*key) / 2**64

    def _hash(self, *key: str) -> int:
        data = "\0".join((str(self._seed), *key)).encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def _normal(question: str) -> str:
    return " ".join(question.split())
