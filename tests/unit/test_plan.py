"""The order of a sweep: ABBA over targets, every cell once."""

from __future__ import annotations

from itertools import product

from loadgen.record.cell import TargetSpec, plan_blocks

A, B, C = (TargetSpec(name=name, precision="fp16") for name in "abc")


def test_targets_and_concurrencies_are_reversed_in_every_second_repeat() -> None:
    blocks = plan_blocks([A, B], [1, 16, 64], 3)
    order = [(block.repeat, block.target.name, [cell.concurrency for cell in block.cells]) for block in blocks]
    assert order == [
        (1, "a", [1, 16, 64]),
        (1, "b", [1, 16, 64]),
        (2, "b", [64, 16, 1]),
        (2, "a", [64, 16, 1]),
        (3, "a", [1, 16, 64]),
        (3, "b", [1, 16, 64]),
    ]


def test_over_two_repeats_every_target_stands_at_the_same_mean_place_in_time() -> None:
    cells = [cell for block in plan_blocks([A, B, C], [1, 8], 2) for cell in block.cells]
    places = {key: [c.index for c in cells if (c.target, c.concurrency) == key] for key in product("abc", [1, 8])}
    assert {sum(indices) for indices in places.values()} == {1 + 12}


def test_every_cell_is_measured_once_and_numbered_in_the_order_it_runs() -> None:
    cells = [cell for block in plan_blocks([A, B, C], [4, 1], 4) for cell in block.cells]
    keys = [(cell.target, cell.concurrency, cell.repeat) for cell in cells]
    assert sorted(keys) == sorted(product("abc", [4, 1], [1, 2, 3, 4]))
    assert [cell.index for cell in cells] == list(range(1, 25))


def test_a_block_holds_the_cells_of_its_target_and_repeat() -> None:
    for block in plan_blocks([A, B], [1, 2], 2):
        assert {(cell.target, cell.repeat) for cell in block.cells} == {(block.target.name, block.repeat)}
