"""Joules of a prompt token and of an output token apart: found again where they are known, or empty with the reason."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from made_run import answer, cell_data
from msgspec.structs import replace

from loadgen.analysis.cells import CellSummary, Lengths, summarize_cell
from loadgen.analysis.energy import CellEnergy
from loadgen.analysis.estimate import Estimate
from loadgen.analysis.tokenenergy import Spent, TokenEnergy, token_energies, token_energy
from loadgen.analysis.validity import Validity
from loadgen.reports.rows import TOKEN_ENERGY, table_of
from loadgen.reports.terminal import token_energy_lines
from loadgen.serving.simulated.cost import Cost, closed_loop, load_presets
from loadgen.words import MINUS, number, percent

LENGTHS = {"128/128": (128, 128), "1024/128": (1024, 128), "128/1024": (128, 1024)}
SHAPES = tuple(LENGTHS)
DOCS = Path(__file__).parents[2] / "docs" / "energy.md"
Start = Mapping[str, Spent]


def spent(prompt_j: float, output_j: float, shapes: Sequence[str] = SHAPES, noise: float = 0.0) -> Start:
    """What a start measures where a token costs exactly so much, `noise` times as much at every shape."""
    return {
        shape: Spent((prompt_j * LENGTHS[shape][0] + output_j * LENGTHS[shape][1]) * (1 + noise), *LENGTHS[shape])
        for shape in shapes
    }


def value(found: Estimate | None) -> float:
    assert found is not None
    return found.value


def test_joules_that_are_proportional_to_tokens_are_found_again() -> None:
    found = token_energy([spent(0.02, 0.5), spent(0.02, 0.5)], SHAPES)
    for estimate, truth in ((found.prompt_token_energy_j, 0.02), (found.output_token_energy_j, 0.5)):
        assert estimate is not None
        assert (estimate.value, estimate.lo, estimate.hi) == pytest.approx((truth, truth, truth))
    assert found.residual == pytest.approx(0, abs=1e-9)
    assert (found.repeats, found.why, found.notes) == (2, "", ())


def test_the_interval_covers_the_truth_as_often_as_it_says_where_starts_differ() -> None:
    rng, covered, studies = random.Random(7), 0, 400
    for _ in range(studies):
        found = token_energy([spent(0.02, 0.5, noise=rng.gauss(0, 0.03)) for _ in range(3)], SHAPES)
        estimate = found.prompt_token_energy_j
        assert estimate is not None
        assert estimate.lo is not None
        assert estimate.hi is not None
        covered += estimate.lo <= 0.02 <= estimate.hi
    assert covered / studies == pytest.approx(0.95, abs=0.035), "3 standard errors of a share of 400"


def closed_form(cost: Cost, b: int) -> tuple[Start, float, float]:
    """What a simulated server spends on each shape, and the joules of prompts and of answers over their tokens."""
    states = {shape: closed_loop(cost, b, *lengths) for shape, lengths in LENGTHS.items()}
    start = {
        shape: Spent(state.energy_per_token_j * LENGTHS[shape][1], *LENGTHS[shape]) for shape, state in states.items()
    }
    prompts_j = {shape: states[shape].prefill_share * start[shape].energy_j for shape in SHAPES}
    return (
        start,
        sum(prompts_j.values()) / sum(prompt for prompt, _ in LENGTHS.values()),
        sum(start[shape].energy_j - prompts_j[shape] for shape in SHAPES) / sum(out for _, out in LENGTHS.values()),
    )


def test_on_a_simulated_gpu_without_fixed_costs_prompts_and_answers_are_told_apart() -> None:
    cost = load_presets().cost("fp16")
    ideal = replace(cost, gpu=replace(cost.gpu, bandwidth_bytes_s=1e18, launch_s=0.0, sequence_s=1e-4))
    found = token_energy([closed_form(ideal, 16)[0]], SHAPES)
    prompt_j = ideal.step(batch=0, context_tokens=0, prefill_tokens=1).energy_j
    output_j = ideal.step(batch=1, context_tokens=0, prefill_tokens=0).energy_j
    assert value(found.prompt_token_energy_j) == pytest.approx(prompt_j, rel=1 / 128)
    assert value(found.output_token_energy_j) == pytest.approx(output_j, rel=1 / 128), "an answer's first token is free"


def test_the_error_on_simulated_servers_is_what_the_page_says() -> None:
    rows = re.findall(r"^\| (fp16|awq) \| (\d+) \| (.+) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 6
    for precision, b, told in rows:
        start, prompt_j, output_j = closed_form(load_presets().cost(precision), int(b))
        found = token_energy([start], SHAPES)
        a, o = value(found.prompt_token_energy_j), value(found.output_token_energy_j)
        assert told.split(" | ") == [
            number(1e3 * prompt_j), f"{number(1e3 * a)} ({100 * (a / prompt_j - 1):+.1f}%)".replace("-", MINUS),
            number(1e3 * output_j), f"{number(1e3 * o)} ({100 * (o / output_j - 1):+.1f}%)".replace("-", MINUS),
            percent(found.residual, 1),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("starts", "shapes", "why"),
    [
        ([spent(0.02, 0.5, SHAPES[:1])], SHAPES, "no repeat has two shapes with a valid energy (because)"),
        ([], SHAPES, "no repeat has two shapes with a valid energy (because)"),
        ([{"8/8": Spent(4.0, 8, 8), "64/64": Spent(32.0, 64, 64)}], ("8/8", "64/64"), "in about the same proportion"),
    ],
)
def test_without_two_shapes_that_differ_there_is_a_reason_and_no_figure(
    starts: list[Start], shapes: Sequence[str], why: str
) -> None:
    found = token_energy(starts, shapes, why="because")
    assert why in found.why
    assert (found.prompt_token_energy_j, found.output_token_energy_j, found.residual) == (None, None, None)


def test_two_shapes_and_one_start_have_neither_residual_nor_interval() -> None:
    found = token_energy([spent(0.02, 0.5, SHAPES[:2])], SHAPES[:2])
    assert value(found.prompt_token_energy_j) == pytest.approx(0.02)
    assert found.prompt_token_energy_j == Estimate(value=value(found.prompt_token_energy_j))
    assert found.residual is None
    assert [note.split(" ")[0] for note in found.notes] == ["one", "two"]


def test_a_start_that_lacks_a_shape_is_left_out_and_counted() -> None:
    starts = [spent(0.02, 0.5), spent(9.0, 9.0, SHAPES[:2]), spent(0.02, 0.5)]
    found = token_energy(starts, SHAPES, why="energy of shape 128/1024 is not valid in repeat 2")
    assert (found.repeats, value(found.prompt_token_energy_j)) == (2, pytest.approx(0.02))
    assert "1 of 3 repeats lack a shape and are left out (energy of shape 128/1024 is not" in found.notes[0]


def test_where_no_start_has_every_shape_those_with_the_most_count() -> None:
    starts = [spent(0.02, 0.5, SHAPES[1:]), spent(9.0, 9.0, SHAPES[2:]), spent(9.0, 9.0, SHAPES[2:])]
    found = token_energy(starts, SHAPES, why="because")
    assert (found.shapes, found.repeats, value(found.prompt_token_energy_j)) == (SHAPES[1:], 1, pytest.approx(0.02))
    assert found.notes[:2] == ("without 128/128 (because)", "2 of 3 repeats lack a shape and are left out (because)")


def test_no_negative_joules_are_shown_as_a_figure() -> None:
    uncertain = token_energy([spent(0.02, 0.5), spent(-0.01, 0.5)], SHAPES)
    negative = token_energy([spent(-0.02, 0.5), spent(-0.02, 0.5)], SHAPES)
    table = table_of(TOKEN_ENERGY, [uncertain, negative, token_energy([spent(-0.02, 0.5)], SHAPES)])
    place = table.headings.index("J/prompt token")
    assert [row[place] for row in table.rows] == ["not known"] * 3
    assert "the interval of joules per prompt token includes 0" in uncertain.notes[0]
    assert "joules per prompt token come out negative" in negative.notes[0]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_shows_a_row_for_each_fit_and_a_line_for_each_reason(width: int) -> None:
    fit = replace(token_energy([spent(0.02, 0.5)] * 2, SHAPES), target="awq", concurrency=16, simulated=True)
    none = replace(token_energy([], SHAPES, why="nothing was measured"), target="fp16", concurrency=16)
    lines = token_energy_lines([fit, none], width)
    assert max(map(len, lines)) <= width
    assert lines[0] == "SIMULATED"
    assert lines[2].split()[:3] == ["awq", "16", "0.0200"]
    assert " ".join(" ".join(lines[3:]).split()).startswith(
        "fp16, B = 16: no repeat has two shapes with a valid energy"
    )


def cells_of(tmp_path: Path, prompt_j: float, hits: float | None) -> list[CellSummary]:
    """A cell of each shape, in which a share of the prompt tokens was cached."""
    made = summarize_cell(cell_data(tmp_path, [answer(900, [(1500, 1)], end=1600)]), [None])
    return [
        replace(
            made,
            shape=shape,
            lengths=Lengths(prompt_tokens_mean=prompt),
            output_tokens_mean=output,
            cache_hit_share=hits,
            validity=Validity(energy=()),
            energy=CellEnergy(energy_j=1.0, energy_per_query_j=prompt_j * prompt * (1 - (hits or 0)) + 0.5 * output),
        )
        for shape, (prompt, output) in LENGTHS.items()
    ]


@pytest.mark.parametrize("hits", [None, 0.0, 0.75])
def test_prompt_tokens_that_were_cached_are_not_counted(tmp_path: Path, hits: float | None) -> None:
    [found] = token_energies(cells_of(tmp_path, 0.02, hits), SHAPES, prefix_cache=bool(hits))
    assert value(found.prompt_token_energy_j) == pytest.approx(0.02)
    assert (found.target, found.concurrency, found.shapes) == ("fp16", 1, SHAPES)


def test_where_cached_tokens_are_not_counted_nothing_is_said(tmp_path: Path) -> None:
    [found] = token_energies(cells_of(tmp_path, 0.02, None), SHAPES, prefix_cache=True)
    assert "does not count cached prompt tokens; measure without --prefix-cache" in found.why


def test_a_run_of_one_shape_or_without_energy_has_no_entry(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, 0.02, None)
    assert token_energies(cells, (), prefix_cache=False) == []
    assert token_energies([replace(c, energy=CellEnergy()) for c in cells], SHAPES, prefix_cache=False) == []


def test_a_cell_whose_energy_is_invalid_is_not_used(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, 0.02, None)
    cells[1:] = [replace(c, validity=Validity(energy=("another process used the GPU",))) for c in cells[1:]]
    [found] = token_energies(cells, SHAPES, prefix_cache=False)
    assert found == TokenEnergy(
        target="fp16", concurrency=1, shapes=SHAPES[:1], repeats=1,
        why="no repeat has two shapes with a valid energy "
        "(energy of shape 1024/128 is not valid in repeat 1)",
    )  # fmt: skip
