"""The problems that the tiny model is trained on: right, distinct, readable as GSM8K, asked as the protocol asks."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from loadgen.serving.recipe import recipes_dir
from loadgen.workload.grading import grade
from loadgen.workload.gsm8k import read_gsm8k
from loadgen.workload.item import Item
from loadgen.workload.protocol import load_protocol

HELD_OUT = 300
EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
RESULT = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__}


@pytest.fixture(scope="module")
def grammar() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("word_problems", recipes_dir() / "cpu" / "word_problems.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where `dataclass` looks its annotations up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def items(grammar: ModuleType, tmp_path: Path) -> list[Item]:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(problem.row + "\n" for problem in grammar.held_out(HELD_OUT, seed=0)))
    return read_gsm8k(path, split="test")


def test_every_step_is_true_goes_on_from_the_last_and_uses_the_questions_numbers(grammar: ModuleType) -> None:
    for problem in grammar.held_out(HELD_OUT, seed=0):
        steps = EQUATION.findall(problem.completion)
        assert len(steps) == len(problem.steps)
        assert all(RESULT[sign](Fraction(a), Fraction(b)) == Fraction(c) for a, sign, b, c in steps)
        assert all(2 <= int(number) <= 99 for a, _, b, c in steps for number in (a, b, c))
        assert [step[0] for step in steps[1:]] == [step[3] for step in steps[:-1]]
        told = {"2" if "doubles" in problem.question else "", "3" if "triples" in problem.question else ""}
        assert {steps[0][0], *(step[2] for step in steps)} <= told | set(re.findall(r"\d+", problem.question))
        assert int(steps[-1][3]) == problem.gold


def test_the_file_is_gsm8k_and_holds_each_depth_equally_often(items: list[Item]) -> None:
    assert [item.steps for item in items] == [1, 2, 3] * (HELD_OUT // 3)
    assert [item.annotated_steps for item in items] == [item.steps for item in items]


def test_what_is_trained_is_the_protocols_prompt_and_an_answer_that_all_three_verdicts_take(
    grammar: ModuleType, items: list[Item]
) -> None:
    protocol = load_protocol("gsm8k_cot_zeroshot")
    for problem, item in zip(grammar.held_out(HELD_OUT, seed=0), items, strict=True):
        assert problem.prompt == protocol.prompt(item)
        assert not any(stop in problem.completion for stop in protocol.stops)
        verdict = grade(problem.completion, item, protocol=protocol.name, finish_reason="stop")
        assert (verdict.outcome, verdict.strict, verdict.flexible) == ("correct", True, True)


def test_no_question_is_held_out_twice_and_none_of_them_is_trained_on(grammar: ModuleType) -> None:
    asked = grammar.held_out(HELD_OUT, seed=0)
    assert len({problem.question for problem in asked}) == HELD_OUT
    # What a seed would train on, were it not held out:
    drawn = list(islice(grammar.training_problems(1, without=[]), HELD_OUT))
    trained = islice(grammar.training_problems(1, without=drawn), HELD_OUT)
    assert not {problem.question for problem in trained} & {problem.question for problem in drawn}


def test_the_seed_decides_everything(grammar: ModuleType) -> None:
    assert grammar.held_out(30, seed=4) == grammar.held_out(30, seed=4)
    assert grammar.held_out(30, seed=4) != grammar.held_out(30, seed=5)
    first, again = (list(islice(grammar.training_problems(1, without=[]), 30)) for _ in range(2))
    assert first == again
