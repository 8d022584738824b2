"""The search for B*: what it measures next, and what it says, on curves whose crossings are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from loadgen.search.answer import Answer
from loadgen.search.design import Reading, Search, search
from loadgen.search.goal import Goal
from loadgen.search.price import expected, noise_of
from loadgen.search.root import Noise, Point, root_of

SPEED, ENERGY = "tokens_per_s", "energy_per_query_j"
Curve = Callable[[float], float]
"""The log-advantage of the target at a batch."""


def falling(b_star: float, per_octave: float = 0.2) -> Curve:
    return lambda b: per_octave * math.log2(b_star / b)


def readings_of(
    done: Search, curves: dict[str, Curve], rng: np.random.Generator, *, starts: float, cells: float
) -> list[Reading]:
    """What the next step reads: relative noise of a server's start, and of a cell."""
    assert done.next is not None
    found = []
    for start in done.next.starts:
        common = starts * rng.standard_normal()
        for b in start.concurrency:
            ours = start.side != "fp16"
            values = {}
            for metric, curve in curves.items():
                better = 1 if metric == SPEED else -1
                level = better * curve(b) if ours else 0.0
                values[metric] = 100 * math.exp(level + common + cells * rng.standard_normal())
            found.append(
                Reading(repeat=done.next.repeat, side=start.side, concurrency=b, running=float(b), values=values)
            )
    return found


def played(
    curves: dict[str, Curve], goal: Goal | None = None, *, starts: float = 0.003, cells: float = 0.003, seed: int = 1
) -> tuple[Search, list[Reading]]:
    goal = goal or Goal(metrics=tuple(curves))
    rng = np.random.default_rng(seed)
    readings: list[Reading] = []
    while (done := search(goal, ("fp16", "awq"), readings)).next is not None:
        readings += readings_of(done, curves, rng, starts=starts, cells=cells)
    return done, readings


def answer_of(curves: dict[str, Curve], goal: Goal | None = None, **noise: float) -> Answer:
    return played(curves, goal, **noise)[0].answers[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("b_star", [4.5, 20.0, 61.0, 117.0])
def test_a_crossing_is_found_in_the_fewest_repeats_that_an_interval_takes(b_star: float) -> None:
    """0.2 per octave and 0.6% of noise: after six repeats t(4 degrees, 4.5%) * 0.006 / (0.29 * sqrt(6)) is 0.03, a
    third of ln 1.1."""
    done, readings = played({SPEED: falling(b_star)})
    answer = done.answers[0]
    assert (answer.status, answer.reached, len(readings)) == ("crosses", True, 10 + 12)
    (found,) = answer.crossings
    assert found.lo is not None and found.hi is not None
    assert b_star / 1.21 < found.lo < b_star < found.hi < b_star * 1.21
    assert found.direction == "wins_below"
    assert found.bracket[0] is not None and found.bracket[0] < b_star
    assert "is faster than fp16 below B* = " in answer.sentence


def test_the_first_step_starts_each_side_once_over_the_whole_range() -> None:
    first = search(Goal(metrics=(SPEED,), low=1, high=256), ("fp16", "awq"), ()).next
    assert first is not None
    assert (first.phase, first.repeat) == ("locate", 1)
    assert [(start.side, start.concurrency) for start in first.starts] == [
        ("fp16", (1, 4, 16, 64, 256)),
        ("awq", (1, 4, 16, 64, 256)),
    ]


def test_repeats_lie_in_turn_below_and_above_and_a_steady_drift_cancels() -> None:
    done, _ = played({SPEED: falling(40.0)})
    repeats = [step for step in done.steps if step.phase == "repeat"]
    assert {len(start.concurrency) for step in repeats for start in step.starts} == {1}
    below = [step for step in repeats if step.starts[0].concurrency[0] < 40]
    above = [step for step in repeats if step.starts[0].concurrency[0] > 40]
    assert len(below) == len(above) == 3
    for side in (below, above):
        assert [step.starts[0].side for step in side][:2] in (["fp16", "awq"], ["awq", "fp16"])


def test_a_search_that_is_cut_anywhere_goes_on_as_if_it_had_not_been() -> None:
    done, readings = played({SPEED: falling(40.0)})
    for count in range(len(readings)):
        again = search(Goal(metrics=(SPEED,)), ("fp16", "awq"), readings[:count][::-1])
        assert again.next == done.steps[len(again.steps)]


def test_no_crossing_is_an_answer_after_three_starts_of_each_side() -> None:
    """0.15 to 0.47 better; Student's t with two degrees at 2% is 7, and three repeats have an error of 0.35%."""
    done, readings = played({SPEED: lambda b: 0.15 + 0.04 * math.log2(256 / b)})
    answer = done.answers[0]
    assert (answer.status, answer.proven) == ("better", (1, 4, 16, 64, 256))
    assert len(readings) == 30
    assert answer.sentence.startswith("awq is faster than fp16 at every B from 1 to 256")


def test_two_crossings_are_both_found() -> None:
    answer = answer_of({SPEED: lambda b: 0.5 - 0.12 * abs(math.log2(b) - 4.3) ** 1.3}, starts=0.003, cells=0.003)
    true = [2 ** (4.3 - (0.5 / 0.12) ** (1 / 1.3)), 2 ** (4.3 + (0.5 / 0.12) ** (1 / 1.3))]
    assert [found.direction for found in answer.crossings] == ["wins_above", "wins_below"]
    for b, found in zip(true, answer.crossings, strict=True):
        assert found.lo is not None and found.hi is not None
        assert found.lo < b < found.hi


def test_several_metrics_share_their_starts() -> None:
    done, readings = played({SPEED: falling(20.0), ENERGY: falling(60.0)})
    assert [answer.reached for answer in done.answers] == [True, True]
    assert len(done.steps) == 7
    assert len(readings) == 10 + 2 * 12


def test_a_level_curve_ends_early_and_says_what_is_out_of_reach() -> None:
    done, readings = played({SPEED: falling(20.0, 0.01)}, starts=0.02, cells=0.01)
    answer = done.answers[0]
    assert not answer.reached and answer.ended
    assert len(readings) < 60


@pytest.mark.parametrize(("per_octave", "seed"), [(0.03, 10), (0.02, 6), (0.02, 11)])
def test_a_gentle_curve_is_not_given_up_for_what_its_first_repeats_show(per_octave: float, seed: int) -> None:
    """0.03 per octave and 0.6% of noise: (2 * 0.006 / (0.043 * 0.0755))^2 = 14 repeats of 48, 0.0755 being what the
    bend and the uncertain slope leave of ln 1.1; 0.02: 30. These draws seem gentler at first: six repeats know the
    slope to a quarter, and the first step to a tenth."""
    assert answer_of({SPEED: falling(20.0, per_octave)}, starts=0.003, cells=0.003, seed=seed).reached


@pytest.mark.parametrize("seed", range(4))
def test_a_curve_that_takes_more_repeats_than_there_are_is_given_up(seed: int) -> None:
    """0.005 per octave and 0.6%: 480 repeats of 48. It is given up once it is proven to be flatter than `FLAT`."""
    [found] = answer_of({SPEED: falling(20.0, 0.005)}, starts=0.003, cells=0.003, seed=seed).crossings
    assert found.end == "out of reach"
    assert found.repeats < 16


@pytest.mark.parametrize("seed", range(4))
def test_where_noise_is_large_a_gentle_curve_is_given_up_early(seed: int) -> None:
    """0.1 per octave and 3.2%: (2 * 0.032 / (0.144 * 0.0755))^2 = 35 repeats of 48, but the slope is known to a fifth
    only, and 0.6 of it would take 96."""
    [found] = answer_of({SPEED: falling(20.0, 0.1)}, starts=0.02, cells=0.01, seed=seed).crossings
    assert found.end == "out of reach"
    assert found.repeats < 16


@pytest.mark.parametrize("seed", range(4))
def test_a_crossing_above_which_the_curve_is_level_is_found(seed: int) -> None:
    """The cubic through the first step is 0 near 175. Both batches beside it prove to be above B* = 110, and the curve
    through them is level, so that its chord points anywhere."""
    done, _ = played({SPEED: lambda b: max(0.36 * math.log(110 / b), -0.06)}, seed=seed)
    [found] = done.answers[0].crossings
    assert found.reached and found.lo is not None and found.hi is not None
    assert found.lo <= 110 <= found.hi


@pytest.mark.parametrize("seed", range(3))
def test_a_curve_that_is_quite_level_breaks_nothing(seed: int) -> None:
    """Slopes near 0 put the root at any distance."""
    done, _ = played({SPEED: lambda b: 0.0, ENERGY: lambda b: 0.0}, starts=0.02, cells=0.01, seed=seed)
    assert all(answer.ended and not answer.reached for answer in done.answers)


def test_time_that_is_up_ends_it() -> None:
    goal = Goal(metrics=(SPEED,), most_s=1000 + 4 * 330)
    done, _ = played({SPEED: falling(20.0, 0.1)}, goal, starts=0.03)
    assert len(done.steps) == 5
    assert done.answers[0].end == "time"
    assert "--most-minutes" in done.answers[0].sentence


def test_known_noise_saves_repeats() -> None:
    """0.2 per octave and 0.6%: after two repeats 2.1 * 0.006 / (0.29 * sqrt(2)) is 0.03."""
    noise = {SPEED: Noise(sd=0.006, degrees=math.inf)}
    done, readings = played({SPEED: falling(61.0)}, Goal(metrics=(SPEED,), noise=noise))
    assert done.answers[0].reached
    assert len(readings) == 10 + 4


def test_a_batch_that_cannot_be_measured_leaves_the_others() -> None:
    rng = np.random.default_rng(1)
    goal, readings = Goal(metrics=(SPEED,)), list[Reading]()
    while (done := search(goal, ("fp16", "awq"), readings)).next is not None:
        new = readings_of(done, {SPEED: falling(40.0)}, rng, starts=0.003, cells=0.003)
        readings += [
            Reading(repeat=r.repeat, side=r.side, concurrency=r.concurrency, values={}) if r.concurrency == 256 else r
            for r in new
        ]
    assert done.answers[0].reached
    assert done.answers[0].range == (1, 64)
    assert sum(r.concurrency == 256 for r in readings) == 4


def test_nothing_that_can_be_measured_ends_it() -> None:
    goal, readings = Goal(metrics=(SPEED,)), list[Reading]()
    while (done := search(goal, ("fp16", "awq"), readings)).next is not None:
        readings += [
            Reading(repeat=done.next.repeat, side=start.side, concurrency=b, values={SPEED: None})
            for start in done.next.starts
            for b in start.concurrency
        ]
    assert done.answers[0].end == "unreadable"
    assert len(done.steps) == 2


def cells(noise: np.ndarray, batches: tuple[int, ...] = (1, 8)) -> pd.DataFrame:
    """Log-advantages by repeat and batch, as rows of cells.csv."""
    return pd.DataFrame(
        [
            {"target": side, "concurrency": b, "repeat": r, SPEED: 100 * math.exp(noise[r, i] if side == "awq" else 0)}
            for side in ("fp16", "awq")
            for i, b in enumerate(batches)
            for r in range(len(noise))
        ]
    )


def test_the_noise_of_an_earlier_run_is_that_of_its_repeats() -> None:
    """Variances about the means 1e-4 and 4e-4 of three repeats, two degrees each: together 2.5e-4. Both batches share
    their starts, so that three repeats are two degrees."""
    table = cells(np.array([[-0.01, -0.02], [0.0, 0.0], [0.01, 0.02]]))
    noise = noise_of(table, "awq", "fp16", SPEED)
    assert noise is not None
    assert noise.sd == pytest.approx(math.sqrt(2.5e-4))
    assert noise.degrees == 2
    assert noise_of(table[table["repeat"] == 0], "awq", "fp16", SPEED) is None


def test_repeats_of_a_search_are_a_start_each() -> None:
    """Three below and three above B*, in starts of their own: six less two."""
    table = cells(np.array([[-0.01, 0.0], [0.0, 0.0], [0.01, 0.01]]))
    table["repeat"] += 10 * table["concurrency"]
    noise = noise_of(table, "awq", "fp16", SPEED)
    assert noise is not None and noise.degrees == 4


def test_a_price_falls_with_known_noise() -> None:
    unknown = expected(Goal(metrics=(SPEED,)), ("fp16", "awq"))
    known = expected(Goal(metrics=(SPEED,), noise={SPEED: Noise(0.005, 4)}), ("fp16", "awq"))
    assert known.cells.typical < unknown.cells.typical
    assert unknown.cells.low == 10 + 2 * 6
    assert unknown.starts.low == 2 * 7


def bent(b_star: float) -> Curve:
    """0.17 per octave at B*, as cost models usually have; monotone from B = 1 to 256."""
    return lambda b: 0.25 * math.log(b_star / b) + 0.02 * math.log(b_star / b) ** 2


def test_intervals_of_many_searches_hold_the_truth_and_cost_less_than_a_grid() -> None:
    """At least as many hold B* as come in all but one of a thousand trials at 95%; fewer than 36 cells in the mean."""
    rng = np.random.default_rng(21)
    covered = reported = measured = 0
    for study in range(24):
        star = math.exp(rng.uniform(math.log(4), math.log(117)))
        done, readings = played({SPEED: bent(star)}, starts=0.01, cells=0.005, seed=study)
        measured += len(readings)
        for found in done.answers[0].crossings:
            if found.lo is not None and found.hi is not None:
                reported += 1
                covered += found.lo <= star <= found.hi
    assert reported >= 20
    assert covered >= stats.binom.ppf(0.001, reported, 0.95)
    assert measured / 24 < 36


def test_one_look_at_a_straight_line_errs_in_four_and_a_half_percent() -> None:
    """Fieller's set without the margin for the bend, four repeats on each side: what docs/find.md says of one look."""
    rng, draws = np.random.default_rng(22), 2000
    half = math.log(1.25)
    covered = 0
    for _ in range(draws):
        zero = rng.uniform(-half, half)
        at = [-half, half] * 4
        root = root_of([Point(x, zero - x + 0.05 * rng.standard_normal()) for x in at])
        assert root is not None
        assert root.lo is not None
        assert root.hi is not None
        covered += root.lo + root.bend <= zero <= root.hi - root.bend
    assert stats.binom.ppf(0.001, draws, 0.955) <= covered <= stats.binom.ppf(0.999, draws, 0.955)


def test_how_many_repeats_a_goal_takes_does_not_hang_on_where_b_star_seems_to_be() -> None:
    """An estimate far from both batches, as the first repeats may give, would ask for any number."""
    scatter = [0.01, -0.02, 0.02, -0.01, 0.015, -0.015]
    points = [Point(0.2 * (-1) ** k, 0.05 * (-1) ** k + error) for k, error in enumerate(scatter)]
    centred, away = (root_of([Point(p.batch, p.advantage + up) for p in points]) for up in (0.0, 0.2))
    assert centred is not None and away is not None and abs(away.at) > 0.6
    assert away.needed(0.1, 0.25) == pytest.approx(centred.needed(0.1, 0.25)) and centred.needed(0.1, 0.25) < 100
