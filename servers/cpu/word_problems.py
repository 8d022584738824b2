"""Word problems of one to three steps from a small grammar, with their worked answers.

Standard library only: the training script runs under the server environment's Python, the tests under loadgen's.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

LARGEST = 99
"""Of every number in a question or a step; the smallest is 2."""
DEPTHS = (1, 2, 3)
PROMPT = "Q: {question}\nA: Let's think step by step."
"""The prompt of the protocol `gsm8k_cot_zeroshot`."""

NAMES = (
    "Ada", "Bela", "Cora", "Dino", "Edda", "Finn", "Gita", "Hugo", "Ines", "Jonas", "Kira", "Lars", "Mina", "Nils",
    "Olga", "Pavel",
)  # fmt: skip
THINGS = (
    "apples", "shells", "stamps", "marbles", "candles", "buttons", "pencils", "cards", "stones", "plums", "eggs",
    "ribbons", "coins", "books", "kites", "bells",
)  # fmt: skip
BOXES = "{name} has {a} boxes with {b} {things} each."
STARTS = ("{name} has {a} {things}.", "There are {a} {things} in the bag of {name}.")
MORE = (
    "{friend} gives {name} {b} more.",
    "{name} buys {b} more.",
    "Then {b} more come by post.",
    "{name} finds {b} under the bed.",
)
FEWER = (
    "{name} gives {b} to {friend}.",
    "{name} loses {b} on the way.",
    "{name} sells {b} at the market.",
    "Then {b} of them break.",
)
TIMES = {2: "Then the number doubles.", 3: "Then the number triples."}
ASK = "How many {things} does {name} have now?"
STEP = "{name} has {a} {sign} {b} = {c} {things}."
OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True)
class Step:
    """`a sign b = c`."""

    a: int
    sign: str
    b: int

    @property
    def c(self) -> int:
        return OPERATORS[self.sign](self.a, self.b)


@dataclass(frozen=True)
class Problem:
    """A question, its steps in order, and whose things are counted."""

    question: str
    name: str
    things: str
    steps: tuple[Step, ...]

    @property
    def gold(self) -> int:
        return self.steps[-1].c

    @property
    def prompt(self) -> str:
        return PROMPT.format(question=self.question)

    @property
    def completion(self) -> str:
        """What the model is to write after the prompt, up to its end token."""
        worked = " ".join(self._sentence(step, str(step.c)) for step in self.steps)
        return f" {worked} The answer is {self.gold}."

    @property
    def row(self) -> str:
        """The problem as a line of JSON in GSM8K's schema, one line of the answer for each step."""
        worked = [self._sentence(step, f"<<{step.a}{step.sign}{step.b}={step.c}>>{step.c}") for step in self.steps]
        return json.dumps({"question": self.question, "answer": "\n".join([*worked, f"#### {self.gold}"])})

    def _sentence(self, step: Step, result: str) -> str:
        return STEP.format(name=self.name, things=self.things, a=step.a, sign=step.sign, b=step.b, c=result)


def problem(random: Random, depth: int) -> Problem:
    """One problem of `depth` steps, every number from 2 to LARGEST."""
    while True:
        drawn = _draw(random, depth)
        if all(2 <= number <= LARGEST for step in drawn.steps for number in (step.a, step.b, step.c)):
            return drawn


def held_out(count: int, seed: int) -> list[Problem]:
    """Different questions, depths 1, 2, 3, 1, 2, 3, ..."""
    random, found = Random(seed), dict[str, Problem]()
    while len(found) < count:
        drawn = problem(random, DEPTHS[len(found) % len(DEPTHS)])
        found.setdefault(drawn.question, drawn)
    return list(found.values())


def training_problems(seed: int, without: list[Problem]) -> Iterator[Problem]:
    """Endless; deeper ones more often; none asks a question of `without`."""
    random, excluded = Random(seed), {problem.question for problem in without}
    while True:
        drawn = problem(random, random.choice((1, 2, 2, 3, 3, 3)))
        if drawn.question not in excluded:
            yield drawn


def _draw(random: Random, depth: int) -> Problem:
    name, friend = random.sample(NAMES, 2)
    things = random.choice(THINGS)
    steps: list[Step] = []
    if random.random() < 0.35:
        steps.append(Step(random.randint(2, 5), "*", random.randint(2, 12)))
        value = steps[0].c
        sentences = [BOXES.format(name=name, things=things, a=steps[0].a, b=steps[0].b)]
    else:
        value = random.randint(3, 40)
        sentences = [random.choice(STARTS).format(name=name, things=things, a=value)]
    while len(steps) < depth:
        sign = random.choice("+-+-*")
        if sign == "*":
            other = random.choice(tuple(TIMES))
            sentence = TIMES[other]
        else:
            other = random.randint(2, 30)
            sentence = random.choice(MORE if sign == "+" else FEWER)
        sentences.append(sentence.format(name=name, friend=friend, b=other))
        steps.append(Step(value, sign, other))
        value = steps[-1].c
    sentences.append(ASK.format(name=name, things=things))
    return Problem(" ".join(sentences), name, things, tuple(steps))
