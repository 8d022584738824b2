"""Pareto points: what is on the frontier, what is worse beyond the noise, and what cannot be told."""

from __future__ import annotations

import msgspec
import pytest
from made_answer import cells
from made_run import answer, cell_data

from loadgen.analysis.celldata import Traffic
from loadgen.analysis.cells import CellSummary, summarize_cell
from loadgen.analysis.estimate import Estimate
from loadgen.analysis.pareto import pareto_points, ranks
from loadgen.analysis.validity import Validity


def point(x: float, y: float, noise: float | None = 0.0) -> tuple[Estimate, Estimate]:
    """Two figures with intervals of +- `noise`; None: a single repeat."""
    if noise is None:
        return Estimate(value=x), Estimate(value=y)
    return tuple(Estimate(value=v, lo=v - noise, hi=v + noise) for v in (x, y))  # type: ignore[return-value]


def test_the_frontier_is_what_no_other_point_is_as_good_as_in_both_and_better_in_one() -> None:
    """Equal points do not beat each other; an equal speed with more throughput does."""
    points = {
        ("fp16", 1): point(100, 100), ("awq", 1): point(200, 50), ("gptq", 1): point(200, 50),
        ("fp16", 2): point(100, 90), ("nf4", 1): point(60, 80),
    }  # fmt: skip
    found = ranks(points)
    assert {key for key, rank in found.items() if rank.status == "frontier"} == {
        ("fp16", 1), ("awq", 1), ("gptq", 1),
    }  # fmt: skip
    assert (found["nf4", 1].status, found["nf4", 1].better) == ("worse", "fp16 at B = 1")
    assert found["fp16", 2].status == "undecided", "equal in one of the two, so not worse in both"


@pytest.mark.parametrize(("noise", "status"), [(0.0, "worse"), (4.0, "worse"), (6.0, "undecided"), (None, "undecided")])
def test_a_difference_within_the_noise_is_not_decided(noise: float | None, status: str) -> None:
    """90 and 100 are 10 apart: intervals of +-4 do not meet, of +-6 they do. A single repeat has none."""
    found = ranks({("fp16", 1): point(100, 100, noise), ("awq", 1): point(90, 90, noise)})
    assert (found["fp16", 1].status, found["awq", 1].status) == ("frontier", status)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> CellSummary:
    data = cell_data(tmp_path_factory.mktemp("pareto"), [answer(1100, [(1200, 1), (1300, 1)])])
    return msgspec.structs.replace(summarize_cell(data, [None]), validity=Validity(energy=()))


def with_figures(cell: CellSummary, gpus: int | None) -> CellSummary:
    """TPOT and energy follow from its tokens/s: B requests share them, at 300 W."""
    assert cell.tokens_per_s is not None
    energy = msgspec.structs.replace(cell.energy, energy_per_token_j=300 / cell.tokens_per_s)
    return msgspec.structs.replace(
        cell, tpot_ms_p50=1000 * cell.concurrency / cell.tokens_per_s, energy=energy, gpus=gpus,
        tokens_per_s_per_gpu=cell.tokens_per_s / gpus if gpus else None,
    )  # fmt: skip


def test_points_are_means_over_valid_repeats_with_their_intervals(base: CellSummary) -> None:
    """fp16 makes 100 tokens/s for each of B users at every B. awq 400 at B = 1 and half of fp16's at 64; it has two
    GPUs. At B = 16 its first repeat has invalid latencies, so that the others alone tell the speed of a user."""
    made = [with_figures(cell, 2 if cell.target == "awq" else 1) for cell in cells(base)]
    made = [
        msgspec.structs.replace(cell, validity=Validity(latency=("late",), energy=()))
        if (cell.target, cell.concurrency, cell.repeat) == ("awq", 16, 1) else cell
        for cell in made
    ]  # fmt: skip
    found = {(point.target, point.concurrency): point for point in pareto_points(made)}
    assert len(found) == 8
    alone, many = found["awq", 1], found["fp16", 64]
    assert alone.tokens_per_s_per_user.value == pytest.approx(400)
    assert alone.tokens_per_s_per_gpu.value == pytest.approx(200)
    assert many.tokens_per_s_per_user.value == pytest.approx(100)
    assert many.tokens_per_s_per_gpu.value == pytest.approx(6400)
    assert alone.tokens_per_s_per_user.lo is not None and alone.tokens_per_s_per_user.lo < 400 * 0.99
    assert found["awq", 16].tokens_per_s_per_user.value == pytest.approx(100 * (1.0 + 0.99) / 2)
    assert found["awq", 16].tokens_per_s_per_gpu.value == pytest.approx(800)
    assert (alone.throughput.status, many.throughput.status) == ("frontier", "frontier")
    assert found["awq", 64].throughput.status == "worse", "50 per user and 1600 per GPU, against 100 and 6400"
    assert found["awq", 64].energy is not None and found["awq", 64].energy.status == "worse"


def test_what_is_missing_is_left_out(base: CellSummary) -> None:
    """GPUs that nobody knows are servers; where some are known, targets without are left out. An open loop has none."""
    made = cells(base)
    assert {point.gpus for point in pareto_points([with_figures(cell, None) for cell in made])} == {None}
    some = pareto_points([with_figures(cell, 1 if cell.target == "fp16" else None) for cell in made])
    assert {point.target for point in some} == {"fp16"}
    opened = [msgspec.structs.replace(cell, traffic=Traffic(arrival="poisson:4")) for cell in made]
    assert pareto_points([with_figures(cell, 1) for cell in opened]) == ()
