"""`--find`: which searches can be asked for, what they count as, and what becomes of their cells."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.record.cell import Start, Step, TargetSpec, check_steps, step_blocks

TWO = {"fp16": "http://127.0.0.1:8001", "awq": "http://127.0.0.1:8002"}
STEPS = (
    Step("locate", 1, (Start("fp16", (1, 16)), Start("awq", (1, 16)))),
    Step("repeat", 2, (Start("awq", (13,)), Start("fp16", (13,)))),
)


def refusal(**options: Any) -> str:
    with pytest.raises(UsageError) as error:
        configure(**{"targets": TWO} | options)
    return str(error.value)


def test_a_search_has_metrics_a_range_and_a_goal() -> None:
    config = configure(targets=TWO, find="tokens_per_s, SI", range="2:64", within="5%", most_minutes=30)
    assert (config.find, config.concurrency, config.within, config.most_s) == (
        ("tokens_per_s", "si"), (2, 64), 0.05, 1800.0,
    )  # fmt: skip
    assert config.sides == ("fp16", "awq")
    for written in ([2, 64], "2-64", "2..64", "2, 64"):
        assert configure(targets=TWO, find=["si"], range=written).concurrency == (2, 64)
    assert configure(targets=TWO, find="si").concurrency == (1, 256)


def test_servers_that_are_launched_hold_the_largest_b_of_the_range() -> None:
    assert configure(serve="fp16,awq=a/b", model="m", find="si", range="1:32").max_num_seqs == 40


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"find": "energy"}, "--find energy: not a metric of crossovers; "),
        ({"find": "si", "concurrency": "1,4"}, "--find and --concurrency exclude each other"),
        ({"find": "si", "repeats": 5}, "--find and --repeats exclude each other"),
        ({"find": "si", "arrival": "poisson:5"}, "--find needs a closed loop"),
        ({"find": "si", "targets": {"fp16": TWO["fp16"]}}, "--find compares targets, and fp16 is alone"),
        ({"find": "si", "range": "256:1"}, "--range 256:1: write the lowest and the highest B"),
        ({"find": "si", "range": "62"}, "--range 62: write the lowest and the highest B, as in 1:256"),
        ({"find": "si", "within": "60%"}, "--within 60%: give a share below 50%"),
        ({"range": "1:16"}, "--range 1:16 needs --find METRIC"),
        ({"within": "5%"}, "--within 5% needs --find METRIC"),
        ({"most_minutes": 5}, "--most-minutes 5 needs --find METRIC"),
    ],
    ids=str,
)  # fmt: skip
def test_what_makes_no_search_is_refused(options: dict[str, Any], said: str) -> None:
    assert refusal(**options).startswith(said)


def test_the_steps_of_a_search_are_blocks_whose_cells_say_what_they_are_for() -> None:
    blocks = step_blocks([TargetSpec(name="fp16"), TargetSpec(name="awq")], STEPS)
    cells = [cell for block in blocks for cell in block.cells]
    assert [cell.label for cell in cells] == [
        "001-fp16-b1-r1", "002-fp16-b16-r1", "003-awq-b1-r1", "004-awq-b16-r1", "005-awq-b13-r2", "006-fp16-b13-r2",
    ]  # fmt: skip
    assert [cell.phase for cell in cells] == ["locate"] * 4 + ["repeat"] * 2


def test_steps_of_unknown_targets_are_refused() -> None:
    with pytest.raises(UsageError, match="a step measures 'awq', which is not a target"):
        check_steps("runs/x", [TargetSpec(name="fp16")], STEPS)
