"""Answers of the simulated model: deterministic text of a set length and accuracy, in tokens of four characters.

How often a precision is right, on which items it differs from FP16, and how a request's limits cut an answer.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import msgspec

from loadgen.errors import UsageError
from loadgen.workload.dataset import items_of_file
from loadgen.workload.item import Item
from loadgen.workload.questions import own_shots, sample_items, warmup_items

_PIECE = re.compile(r"\s*\S{1,4}|\s+$")


def split_tokens(text: str) -> list[str]:
    """The tokens of a text; joined they are the text again."""
    return _PIECE.findall(text)


def count_prompt_tokens(text: str) -> int:
    """Tokens of a prompt: one per four characters begun, at least one."""
    return max(1, -(-len(text) // 4))


def known_items(data_file: Path | None = None) -> list[Item]:
    """The shipped problems, and the rows of a data file.

    Raises UsageError for a file that is missing or malformed.
    """
    return [*sample_items(), *warmup_items(), *own_shots(), *(items_of_file(data_file) if data_file else [])]


class Output(msgspec.Struct, frozen=True):
    """The tokens that a request will receive."""

    texts: list[str]
    """Text that each token adds to the stream; empty for the end-of-sequence token and while text is held back."""
    finish_reason: Literal["stop", "length"]
    stop_reason: str | None = None
    """The stop string that ended it; None: the end-of-sequence token or the limit."""


def cut_output(
    natural: list[str],
    continuation: Iterator[str],
    *,
    max_tokens: int,
    min_tokens: int = 0,
    ignore_eos: bool = False,
    stops: Sequence[str] = (),
) -> Output:
    """The tokens of an answer under vLLM's rules.

    The end-of-sequence token counts as a token; it is not generated before `min_tokens`, nor with `ignore_eos`. A stop
    string counts from token `min_tokens` on and is left out. Text is held back while a stop string may begin in it.
    """
    wanted = max_tokens if ignore_eos else max(len(natural), min_tokens - 1)
    tokens = natural + list(islice(continuation, max(0, wanted - len(natural))))
    ended = not ignore_eos and len(tokens) < max_tokens
    tokens = [*tokens, ""] if ended else tokens[:max_tokens]
    reason: Literal["stop", "length"] = "stop" if ended else "length"
    if not stops:
        return Output(tokens, reason)
    held = max(map(len, stops)) - 1
    text, sent = "", 0
    texts: list[str] = []
    for number, token in enumerate(tokens, start=1):
        searched_from = len(text)
        text += token
        if number > min_tokens:
            for stop in stops:
                found = text.find(stop, max(0, searched_from - len(stop) + 1))
                if found >= 0:
                    return Output([*texts, text[sent:found]], "stop", stop)
        until = max(sent, len(text) - held)
        texts.append(text[sent:until])
        sent = until
    texts[-1] += text[sent:]
    return Output(texts, reason)


REFERENCE_ACCURACY = 0.52
"""The share that simulated FP16 gets right; discordances refer to it."""
Fate = Literal["correct", "wrong", "truncated", "unparsed"]


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """How a precision answers; shares of all items, 0 to 1."""

    accuracy: float
    length_factor: float = 1.0
    """Mean answer length over that of FP16."""
    discordance: float = 0.0
    """Items that either it or the reference gets right, but not both."""
    truncated: float = 0.0
    """Answers that only a limit ends."""
    unparsed: float = 0.0
    """Answers that name no result."""
    batch_flips: float = 0.0
    """Items that become right or wrong with the batch size, the same number of each."""
    reference_accuracy: float = REFERENCE_ACCURACY

    def but(self, **shares: float | None) -> Behaviour:
        """The same with the shares that are not None; the other shares adapt where both cannot hold.

        Raises UsageError for shares outside of 0 to 1, or that cannot hold together.
        """
        changes = {name: share for name, share in shares.items() if share is not None}
        for name, share in changes.items():
            if not 0 <= share <= 1:
                raise UsageError(f"--{name.replace('_', '-')} {share:g} is not between 0 and 1")
        new = msgspec.structs.replace(self, **changes)
        a, reference = new.accuracy, new.reference_accuracy
        least, most = abs(reference - a), min(reference + a, 2 - reference - a)
        if "discordance" in changes and not least - 1e-9 <= new.discordance <= most + 1e-9:
            raise UsageError(
                f"--discordance {new.discordance:g} is not possible: accuracies {reference:g} and {a:g} differ on "
                f"{least:g} to {most:g} of the items"
            )
        given = changes.get("truncated", 0.0) + changes.get("unparsed", 0.0)
        if given > 1 - a + 1e-9:
            raise UsageError(f"--accuracy {a:g} leaves {1 - a:g} for --truncated and --unparsed, which are {given:g}")
        most_each = (1 - a - given) / 2
        adapted = {
            "discordance": min(max(new.discordance, least), most),
            "truncated": min(new.truncated, most_each),
            "unparsed": min(new.unparsed, most_each),
        }
        return msgspec.structs.replace(new, **{name: adapted[name] for name in adapted.keys() - changes.keys()})


BEHAVIOURS = {
    "fp16": Behaviour(accuracy=0.52, truncated=0.002, unparsed=0.006),
    "bf16": Behaviour(accuracy=0.52, discordance=0.03, truncated=0.002, unparsed=0.006),
    "fp8": Behaviour(accuracy=0.515, length_factor=1.01, discordance=0.06, truncated=0.002, unparsed=0.006),
    "int8": Behaviour(accuracy=0.51, length_factor=1.01, discordance=0.07, truncated=0.002, unparsed=0.006),
    "bnb-int8": Behaviour(
        accuracy=0.51, length_factor=1.01, discordance=0.07, truncated=0.002, unparsed=0.006, batch_flips=0.02
    ),
    "awq": Behaviour(accuracy=0.49, length_factor=1.04, discordance=0.12, truncated=0.003, unparsed=0.008),
    "gptq": Behaviour(accuracy=0.48, length_factor=1.05, discordance=0.13, truncated=0.003, unparsed=0.009),
    "bnb-nf4": Behaviour(accuracy=0.47, length_factor=1.06, discordance=0.14, truncated=0.004, unparsed=0.010),
}


class Fates:
    """The fate of each item at one precision: deterministic by seed, each share exact in expectation."""

    def __init__(self, behaviour: Behaviour, *, precision: str, seed: int) -> None:
        self._behaviour = behaviour
        self._precision = precision
        self._seed = seed

    def of(self, question: str, *, sample: str = "", batch: int | None = None) -> Fate:
        """The fate of one answer; `batch`: sequences in the batch, None: it does not matter.

        A draw shared by all precisions decides whether the reference is right, one per precision whether it differs.
        Lost and won items are (discordance ± difference of accuracies) / 2 of all.
        """
        b = self._behaviour
        a, reference = b.accuracy, b.reference_accuracy
        own = self.uniform("own", self._precision, question, sample)
        if self.uniform("answer", question, sample) < reference:
            right = own >= _ratio((b.discordance + reference - a) / 2, reference)
        else:
            right = own < _ratio((b.discordance - reference + a) / 2, 1 - reference)
        if batch is not None and b.batch_flips:
            flip = self.uniform("batch", self._precision, question, sample, str(round(math.log2(max(batch, 1)))))
            right ^= flip < _ratio(b.batch_flips / 2, a if right else 1 - a)
        if right:
            return "correct"
        how = self.uniform("how", self._precision, question, sample) * (1 - a)
        if how < b.truncated:
            return "truncated"
        return "unparsed" if how < b.truncated + b.unparsed else "wrong"

    def uniform(self, *key: str) -> float:
        """A draw from 0 to 1 that depends on the seed and the key alone."""
        return self.hash(*key) / 2**64

    def hash(self, *key: str) -> int:
        """64 bits that depend on the seed and the key alone."""
        data = "\0".join((str(self._seed), *key)).encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


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


class NaturalAnswer(msgspec.Struct, frozen=True):
    """The model's tokens before any limit, without the end-of-sequence token."""

    tokens: list[str]
    endless: bool
    """It continues until something stops it."""


class AnswerBook:
    """The simulated model's answer to each prompt."""

    def __init__(self, items: Iterable[Item], *, precision: str, seed: int, behaviour: Behaviour | None = None) -> None:
        """`behaviour` replaces the precision's own."""
        behaviour = behaviour or BEHAVIOURS[precision]
        self._items = {_normal(item.question): item for item in items}
        self._precision = precision
        self._fates = Fates(behaviour, precision=precision, seed=seed)
        self._mean_tokens = MEAN_TOKENS * behaviour.length_factor

    def find_item(self, prompt: str) -> Item | None:
        """The item of the prompt's last question; None when it is not in the book."""
        cues = list(_QUESTION.finditer(prompt))
        text = prompt[cues[-1].end() :] if cues else prompt
        cue = _ANSWER_CUE.search(text)
        for asked in (text[: cue.start()] if cue else text, text.split("\n", 1)[0]):
            if item := self._items.get(_normal(asked)):
                return item
        return None

    def answer(self, prompt: str, *, sample: str = "", batch: int | None = None) -> NaturalAnswer:
        """The natural answer to a prompt in a batch of that size; `sample` names the draw of a request that samples."""
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
        return NaturalAnswer(tokens + last, endless=fate == "truncated")

    def fate(self, item: Item, *, sample: str = "", batch: int | None = None) -> Fate:
        """The fate of the answer to an item."""
        return self._fates.of(item.question, sample=sample, batch=batch)

    def reasoning(self, prompt: str) -> list[str]:
        """Tokens that a thinking model spends before its answer, about three times as many as on the answer."""
        key = item.question if (item := self.find_item(prompt)) else prompt
        length = int(REASONING_LENGTH * self._target_tokens(key, "reasoning"))
        return list(islice(chain.from_iterable(self._sentences(key, "reasoning")), length))

    def continuation(self, prompt: str) -> Iterator[str]:
        """Endless tokens for a request that ignores the end of the sequence."""
        return chain.from_iterable(self._sentences(prompt, "continuation"))

    def _last_line(self, prompt: str, item: Item, fate: Fate, sample: str) -> str:
        """The line that names the result, in the form that the prompt's examples or instructions ask for."""
        if fate in ("truncated", "unparsed"):
            return ""
        answer = item.gold if fate == "correct" else self._wrong(item, sample)
        if item.options:
            return f"\nThe answer is ({answer})."
        if not item.exact and "The final answer is" in prompt:
            return f"\nThe final answer is {answer}"
        in_words = "The answer is" in prompt or prompt.rstrip().endswith("step by step.")
        if item.exact or ("####" not in prompt and in_words):
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
