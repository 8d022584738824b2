"""`sample`: the questions that ship with loadgen."""

from __future__ import annotations

import re
from decimal import Decimal

from loadgen.workload.grading import grade
from loadgen.workload.item import Item
from loadgen.workload.questions import own_shots, sample_items, warmup_items

ALL = [*sample_items(), *warmup_items(), *own_shots()]


def test_seventy_two_questions_of_which_eight_only_warm_up() -> None:
    assert (len(sample_items()), len(warmup_items())) == (64, 8)


def test_no_question_is_measured_that_warms_up_or_serves_as_an_example() -> None:
    groups = [{item.question for item in items} for items in (sample_items(), warmup_items(), own_shots())]
    assert [len(group) for group in groups] == [64, 8, 8], "a question stands there twice"
    assert len(set.union(*groups)) == 80
    assert len({item.id for item in ALL}) == 80


def last_number(item: Item) -> Decimal:
    marked = re.fullmatch(r".*\n#### (\S+)", item.solution, re.DOTALL)
    assert marked, f"{item.id} does not end in its #### line"
    return Decimal(marked[1].replace(",", ""))


def test_every_gold_answer_is_the_last_number_of_its_worked_solution() -> None:
    assert [last_number(item) for item in ALL] == [Decimal(item.gold) for item in ALL]


def test_an_items_steps_are_the_lines_of_its_solution_before_the_marked_one() -> None:
    assert [item.steps for item in ALL] == [item.solution.count("\n") for item in ALL]


def test_examples_offer_five_options_one_of_them_right() -> None:
    for shot in own_shots():
        assert len({Decimal(option) for option in shot.options}) == 5
        assert shot.gold in shot.options


def test_every_worked_solution_is_graded_correct() -> None:
    assert {grade(item.solution, item, protocol="sample", finish_reason="stop").outcome for item in ALL} == {"correct"}
