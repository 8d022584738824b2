"""Crossovers: what is better, worse, crosses or stays open, from curves whose answer is known."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from loadgen.analysis.crossover.crossing import hochberg, shared_sizes
from loadgen.analysis.crossover.crossover import Crossover, crossover, hli_disagreement, place, worded
from loadgen.analysis.crossover.curve import METRICS, Curve, CurvePoint
from loadgen.errors import UsageError

GRID = (1, 2, 4, 8, 16, 32, 64, 128)
NOISE = (-0.01, 0.0, 0.01)
"""Three repeats about their mean."""


def curve(name: str, logs: Sequence[Sequence[float | None]], grid: Sequence[int] = GRID) -> Curve:
    return Curve(
        target=name,
        points=tuple(
            CurvePoint(
                concurrency=b,
                running=float(b),
                values=tuple(None if log is None else 100 * math.exp(log) for log in row),
            )
            for b, row in zip(grid, logs, strict=True)
        ),
    )


def compared(
    means: Sequence[float],
    metric: str = "tokens_per_s",
    *,
    grid: Sequence[int] = GRID,
    noise: Sequence[float] = NOISE,
    item_errors: dict[int, float] | None = None,
) -> Crossover:
    """A target whose log ratio has these means; the noise of neighbouring points has opposite signs."""
    rows = [[mean + (-1) ** i * e for e in noise] for i, mean in enumerate(means)]
    reference = curve("fp16", [[0.0] * len(noise)] * len(grid), grid)
    return crossover(curve("awq", rows, grid), reference, metric, item_errors=item_errors)


def falling(zero: float, per_octave: float = 0.1, grid: Sequence[int] = GRID) -> list[float]:
    return [per_octave * (math.log2(zero) - math.log2(b)) for b in grid]


def test_a_straight_fall_on_log_batch_crosses_where_it_was_built_to() -> None:
    result = compared(falling(45.0))
    assert result.status == "crosses"
    (found,) = result.crossings
    assert found.b == pytest.approx(45.0, rel=1e-3)
    assert (found.bracket, found.direction, found.established) == ((32, 64), "wins_below", True)
    assert found.lo is not None and found.hi is not None and 32 < found.lo < 45 < found.hi < 64
    assert found.probability is not None and found.probability > 0.99
    assert result.suspected == ()


@pytest.mark.parametrize("metric", METRICS)
def test_the_same_ratio_wins_or_loses_by_what_is_better(metric: str) -> None:
    higher = compared([0.3] * len(GRID), metric).status
    assert higher == ("better" if metric in ("tokens_per_s", "si") else "worse")
    assert {compared([-0.3] * len(GRID), metric).status, higher} == {"better", "worse"}


def test_swapping_the_sides_mirrors_everything() -> None:
    rows = [[mean + e for e in NOISE] for mean in falling(45.0)]
    ours, theirs = curve("awq", rows), curve("fp16", [[0.0] * 3] * len(GRID))
    there = crossover(ours, theirs, "tokens_per_s").crossings[0]
    back = crossover(theirs, ours, "tokens_per_s").crossings[0]
    assert (there.direction, back.direction) == ("wins_below", "wins_above")
    assert (back.b, back.lo, back.hi) == pytest.approx((there.b, there.lo, there.hi))


def test_two_crossings_are_found_with_their_directions() -> None:
    result = compared([-0.3, -0.2, 0.1, 0.3, 0.3, 0.1, -0.2, -0.4])
    assert [(c.direction, c.bracket) for c in result.crossings] == [("wins_above", (2, 4)), ("wins_below", (32, 64))]
    assert result.crossings[0].b < result.crossings[1].b


def test_the_axis_is_the_measured_batch() -> None:
    def side(name: str, share: float, values: Sequence[float]) -> Curve:
        points = [
            CurvePoint(concurrency=b, running=b * share, values=tuple(v * math.exp(e) for e in NOISE))
            for b, v in zip(GRID, values, strict=True)
        ]
        return Curve(target=name, points=tuple(points))

    ours = side("awq", 0.98, [math.exp(v) for v in falling(45.0)])
    flat = Curve(
        target="fp16",
        points=tuple(CurvePoint(concurrency=b, running=float(b), values=(1.0, 1.0, 1.0)) for b in GRID),
    )
    (found,) = crossover(ours, flat, "tokens_per_s").crossings
    assert found.b == pytest.approx(45 * math.sqrt(0.98), rel=1e-3)


def test_point_intervals_without_noise_between_starts_are_students() -> None:
    """Repeats that all points share cancel out of nothing: sd 0.01 between three repeats, the same at every point, is
    the standard error 0.01 / sqrt(3) with two degrees of freedom."""
    rows = [[0.1 + e for e in NOISE]] * len(GRID)
    point = crossover(curve("awq", rows), curve("fp16", [[0.0] * 3] * len(GRID)), "tokens_per_s").points[0]
    assert point.lo is not None
    assert point.log_advantage - point.lo == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-6)


def test_repeats_are_paired() -> None:
    """Drift of a factor 2 between repeats, common to both sides, leaves no trace."""
    drift = [0.0, 0.7, -0.7]
    ours = curve("awq", [[0.05 + d + e for d, e in zip(drift, NOISE, strict=True)] for _ in GRID])
    theirs = curve("fp16", [drift] * len(GRID))
    assert crossover(ours, theirs, "tokens_per_s").status == "better"
    shuffled = curve("fp16", [[0.7, -0.7, 0.0]] * len(GRID))
    assert crossover(ours, shuffled, "tokens_per_s").status == "unresolved"


def test_noise_of_the_items_is_added() -> None:
    """Two standard errors of 4% are 8%: an advantage of 5% is no longer proven."""
    assert compared([0.05] * len(GRID), "si").status == "better"
    errors = dict.fromkeys(GRID, 0.04)
    assert compared([0.05] * len(GRID), "si", item_errors=errors).status == "unresolved"
    plain, wide = (compared([0.05] * len(GRID), "si", item_errors=e).points[0] for e in (None, errors))
    assert plain.hi is not None and wide.hi is not None
    assert (wide.hi - 0.05) ** 2 - (plain.hi - 0.05) ** 2 == pytest.approx((1.959964 * 0.04) ** 2, rel=1e-5)


def test_equal_sides_are_unresolved() -> None:
    result = compared([0.0] * len(GRID))
    assert result.status == "unresolved"
    assert result.crossings == ()
    assert compared([0.0] * len(GRID), noise=(0.0, 0.0, 0.0)).status == "unresolved"


def test_a_sign_change_inside_the_noise_is_suspected_only() -> None:
    result = compared(falling(45.0, per_octave=0.0005))
    assert result.status == "unresolved"
    (maybe,) = result.suspected
    assert not maybe.established
    assert maybe.b == pytest.approx(45.0, rel=0.02)
    assert maybe.probability is not None and maybe.probability < 0.95
    assert (maybe.lo, maybe.hi) == (None, None)


def test_one_open_point_forbids_better() -> None:
    result = compared([0.3] * 7 + [0.001])
    assert result.status == "unresolved"
    assert [point.sign for point in result.points] == ["wins"] * 7 + ["open"]
    (end,) = result.beyond
    assert end.side == "above" and 64 < end.batch < 128


def test_an_advantage_that_shrinks_towards_the_end_has_its_crossing_beyond_if_anywhere() -> None:
    result = compared(falling(500.0))
    assert (result.status, [(end.side, end.batch) for end in result.beyond]) == ("better", [("above", 128.0)])
    assert compared([0.3] * len(GRID)).beyond == ()
    grid = (16, 32, 64, 128)
    below = compared(falling(3.0, grid=grid), grid=grid)
    assert (below.status, [(end.side, end.batch) for end in below.beyond]) == ("worse", [("below", 16.0)])


def test_between_far_apart_batches_the_interval_is_nearly_all_of_the_bracket() -> None:
    grid = (1, 16, 64, 128)
    result = compared([0.5, -0.5, -0.6, -0.7], grid=grid)
    (found,) = result.crossings
    assert found.lo is not None and found.hi is not None
    assert 1 <= found.lo < 1.1 and 14 < found.hi <= 16
    assert result.notes == ("B* is somewhere between B = 1 and 16: to place it, measure --concurrency 1,2,4,8,16",)


def test_the_interval_holds_any_bend_that_the_neighbours_allow() -> None:
    """Level up to 8, -0.4 in the next octave and -0.8 in the one after, hardly any noise.

    With s the share of the octave the chord is 0.3 - 0.4 s (zero at 8 * 2^0.75 = 13.45). The fall beyond 16, twice as
    sharp a bend and prolonged, leaves 0.8 (1 - s) above it: zero at s = 11/12, so 15.10. The earliest is that of an
    octave's early curve, 1 - (1 - s)^k = 0.75 with 1/k = 1 - (ln 2 / ln 6)^2: s = 0.6923, so 12.93.
    """
    result = compared([0.3, 0.3, 0.3, 0.3, -0.1, -0.9, -1.7, -2.5], noise=(-1e-6, 0.0, 1e-6))
    (found,) = result.crossings
    assert (found.lo, found.hi) == (pytest.approx(12.93, abs=0.01), pytest.approx(15.10, abs=0.01))
    assert 13.45 < found.b < 14.67


STEP = [0.20, 0.19, 0.18, 0.17, -0.23, -0.24, -0.25, -0.26]


def test_a_jump_is_noticed_and_b_star_is_anywhere_within_it() -> None:
    """A fall of 1% an octave, and 40% between 8 and 16."""
    result = compared(STEP, noise=(-0.002, 0.0, 0.002))
    (found,) = result.crossings
    assert (found.lo, found.hi, found.bracket, found.step) == (8.0, 16.0, (8, 16), "measured")
    assert result.sentence == (
        "awq is faster than fp16 up to B = 8 and slower from B = 16 on (B* anywhere from 8.0 to 16, where the curve "
        "may jump)"
    )
    assert result.brief.startswith("faster B ≤ 8, slower B ≥ 16 (B* anywhere from 8.0 to 16")
    assert result.notes[0].endswith("measure --concurrency 8,10,11,13,16")


def test_two_repeats_bound_b_star_by_the_proven_batches_only() -> None:
    (found,) = compared(falling(45.0, per_octave=0.6), noise=(-0.002, 0.002)).crossings
    assert (found.lo, found.hi, found.bracket) == (32.0, 64.0, (32, 64))


def test_across_a_factor_of_four_a_smooth_fall_is_no_jump() -> None:
    result = compared([0.9, 0.3, -0.4, -0.6], grid=(1, 16, 64, 128), noise=(-0.002, 0.0, 0.002))
    assert [found.step for found in result.crossings] == [None]


def test_a_straight_fall_and_a_kink_are_no_jumps() -> None:
    kinked = [0.2, 0.2, 0.2, 0.2, -0.2, -0.6, -1.0, -1.4]
    for means in (falling(45.0), falling(45.0, per_octave=0.4), kinked):
        assert [found.step for found in compared(means, noise=(-0.001, 0.0, 0.001)).crossings] == [None]


def test_an_interval_reaches_to_the_sizes_that_both_servers_captured() -> None:
    """Zero at 45; the reference pads to multiples of 8, the target to powers of 2: between 32 and 64 both pad."""
    ours, theirs = (1, 2, 4, 8, 16, 32, 64, 128), (1, 2, 4, *range(8, 129, 8))
    assert shared_sizes(ours, theirs) == ours
    rows = [[mean + (-1) ** i * e for e in NOISE] for i, mean in enumerate(falling(45.0))]
    sides = curve("awq", rows), curve("fp16", [[0.0] * 3] * len(GRID))
    (padded,) = crossover(*sides, "tokens_per_s", graph_sizes=ours).crossings
    assert (padded.lo, padded.hi, padded.step) == (32.0, 64.0, "graphs")
    finer = crossover(*sides, "tokens_per_s", graph_sizes=theirs)
    assert finer.crossings[0].lo in theirs and finer.crossings[0].hi in theirs and finer.crossings[0].lo > 32
    assert finer.notes[-1].endswith("measure --concurrency 32,33,40,41,48,49,56,57,64")
    (eager,) = crossover(*sides, "tokens_per_s", graph_sizes=()).crossings
    assert eager.step is None


def test_what_neither_server_pads() -> None:
    assert shared_sizes((), (1, 2, 4)) == (1, 2, 4), "a server without graphs pads nothing"
    assert shared_sizes((1, 2), (1, 2, 4, 8)) == (1, 2, 4, 8), "above its largest graph a server pads nothing"
    assert shared_sizes(None, (1, 2)) is None
    assert shared_sizes((), ()) == ()


def test_missing_repeats_and_missing_points() -> None:
    rows: list[list[float | None]] = [[mean - 0.01, mean, mean + 0.01] for mean in falling(45.0)]
    rows[0] = [None, None, None]
    rows[3][1] = None
    result = crossover(curve("awq", rows), curve("fp16", [[0.0] * 3] * len(GRID)), "tokens_per_s")
    assert [point.repeats for point in result.points] == [3, 3, 2, 3, 3, 3, 3]
    assert result.status == "crosses"
    assert result.notes == ("B = 1: no repeat has this figure on both sides",)


def test_one_repeat_has_no_interval_and_no_verdict_whatever_its_windows_know() -> None:
    ours, theirs = windowed("awq", falling(45.0)), windowed("fp16", [0.0] * len(GRID))
    result = crossover(ours, theirs, "energy_per_query_j")
    assert result.status == "unresolved"
    assert {(point.lo, point.hi, point.p, point.sign) for point in result.points} == {(None, None, None, "open")}
    assert result.suspected[0].lo is None and result.beyond == ()
    assert result.suspected[0].b == pytest.approx(45.0)
    assert result.notes == (
        "one repeat has no interval: measure three (--repeats 3), or state the noise between starts (--start-sd)",
    )


def test_two_repeats_that_share_no_batch_are_like_one() -> None:
    rows: list[list[float | None]] = [[m, None] if i % 2 else [None, m] for i, m in enumerate(falling(45.0))]
    result = crossover(curve("awq", rows), curve("fp16", [[0.0] * 2] * len(GRID)), "tokens_per_s")
    assert result.status == "unresolved" and result.points[0].lo is None
    assert result.notes[0].startswith("no B is valid in two repeats: measure three")


def test_a_stated_noise_between_starts_gives_one_repeat_its_intervals() -> None:
    """Variance of a log-advantage: both sides' starts and windows, 2 (0.02^2 + 0.01^2)."""
    ours, theirs = windowed("awq", falling(45.0)), windowed("fp16", [0.0] * len(GRID))
    known = crossover(ours, theirs, "tokens_per_s", start_sd=0.02)
    assert known.status == "crosses"
    half = 1.959964 * math.sqrt(2 * (0.02**2 + 0.01**2))
    assert known.points[0].lo == pytest.approx(known.points[0].log_advantage - half, rel=1e-5)
    assert known.notes[-1:] == ("no B is valid in two repeats: the intervals rest on the stated --start-sd 2.00%",)
    assert crossover(windowed("awq", [0.05] * 8), theirs, "tokens_per_s", start_sd=0.02).status == "unresolved"


def test_a_window_whose_noise_is_not_known_leaves_its_batch_out_and_is_not_noiseless() -> None:
    known, theirs = windowed("awq", falling(45.0)), windowed("fp16", [0.0] * len(GRID))

    def losing(count: int) -> Curve:
        points = [msgspec.structs.replace(point, window_errors=(None,)) for point in known.points[:count]]
        return Curve(target="awq", points=(*points, *known.points[count:]))

    some = crossover(losing(2), theirs, "energy_per_query_j", start_sd=0.02)
    assert some.left_out == (1, 2)
    assert [point.concurrency for point in some.points] == list(GRID[2:])
    reason = "the noise inside its windows is not known: measure longer (energy_interval_note in cells.csv)"
    assert some.notes[:2] == (f"B = 1: left out, {reason}", f"B = 2: left out, {reason}")
    none = crossover(losing(len(GRID)), theirs, "energy_per_query_j", start_sd=0.02)
    assert (none.status, none.points) == ("unresolved", ())
    assert none.refusal is not None and none.refusal.endswith(f"{reason}; a curve needs 2 batches")
    without = crossover(losing(2), theirs, "energy_per_query_j")
    assert without.left_out == () and len(without.points) == len(GRID), "no interval rests on the windows"


def test_three_repeats_need_no_stated_noise() -> None:
    rows = [[mean + e for e in NOISE] for mean in falling(45.0)]
    sides = curve("awq", rows), curve("fp16", [[0.0] * 3] * len(GRID))
    assert crossover(*sides, "tokens_per_s", start_sd=0.2) == crossover(*sides, "tokens_per_s")


def windowed(name: str, means: Sequence[float]) -> Curve:
    """One repeat whose windows know their own noise, 1%."""
    points = [
        CurvePoint(concurrency=b, running=float(b), values=(math.exp(m),), window_errors=(0.01,))
        for b, m in zip(GRID, means, strict=True)
    ]
    return Curve(target=name, points=tuple(points))


def test_what_cannot_be_compared_is_refused() -> None:
    flat = [[0.0] * 3]
    apart = crossover(curve("awq", flat * 2, (1, 2)), curve("fp16", flat * 2, (4, 8)), "si")
    assert (apart.status, apart.refusal) == (
        "unresolved",
        "no concurrency was measured on both sides, and a curve needs 2",
    )
    empty = curve("awq", [[None]] * 2, (1, 2))
    assert crossover(empty, curve("fp16", flat * 2, (1, 2)), "si").refusal == (
        "no concurrency has this figure on both sides, and a curve needs 2"
    )
    with pytest.raises(UsageError, match=r"no crossover metric 'watts'; choose from tokens_per_s"):
        crossover(empty, empty, "watts")
    zero = Curve(target="awq", points=(CurvePoint(concurrency=1, running=1.0, values=(0.0,)),))
    with pytest.raises(UsageError, match=r"awq at B = 1 has the value 0; give positive figures"):
        crossover(zero, zero, "si")


def test_a_batch_that_did_not_grow_is_left_out() -> None:
    def capped(name: str, log: float) -> Curve:
        points = [
            CurvePoint(concurrency=b, running=min(b, 40.0), values=tuple(math.exp(log + e) for e in NOISE))
            for b in GRID
        ]
        return Curve(target=name, points=tuple(points))

    result = crossover(capped("awq", 0.3), capped("fp16", 0.0), "tokens_per_s")
    assert [point.concurrency for point in result.points] == [1, 2, 4, 8, 16, 32, 64]
    assert result.notes == ("B = 128: left out, it ran at a batch of 40, no larger than B = 64 did",)


def test_the_json_has_the_published_shape() -> None:
    entry = msgspec.to_builtins(compared(falling(45.0)))
    assert {"target", "metric", "status", "crossings"} <= entry.keys()
    assert {"b", "lo", "hi", "bracket", "direction"} <= entry["crossings"][0].keys()
    assert entry["crossings"][0]["bracket"] == (32, 64)


@pytest.mark.parametrize(
    ("means", "metric", "words"),
    [
        (
            falling(45.0, per_octave=0.5),
            "tokens_per_s",
            r"awq is faster than fp16 up to B = 32 and slower from B = 64 on \(B\* = 45, 95% CI 4\d–4\d, "
            r"if there is no step between\)",
        ),
        (
            falling(45.0, per_octave=-0.5),
            "energy_per_query_j",
            r"awq uses less energy per query than fp16 up to B = 32 and more from B = 64 on \(B\* = 45, "
            r"95% CI 4\d–4\d, if there is no step between\)",
        ),
        (
            [-0.3, -0.2, 0.1, 0.3, 0.3, 0.1, -0.2, -0.4],
            "tokens_per_s",
            r"awq is slower than fp16 up to B = 2, faster from B = 4 to 32, and slower from B = 64 on \(B\* = 3\.\d, "
            r"95% CI .*–.* and B\* = \d+, 95% CI .*–.*, if there is no step between\)",
        ),
        (
            [0.3] * 8,
            "energy_per_correct_j",
            r"awq uses more energy per correct answer than fp16 at every B measured \(1–128\)",
        ),
        ([0.3] * 8, "si", r"awq has a higher SI than fp16 at every B measured \(1–128\)"),
        (
            falling(500.0),
            "tokens_per_s",
            r"awq is faster than fp16 at every B measured \(1–128\); if a B\* exists, it is above 128",
        ),
        (
            [0.0] * 8,
            "tokens_per_s",
            r"not decided: whether awq is faster than fp16; no difference is proven at any B measured \(1–128\)",
        ),
        (
            [0.3] * 7 + [0.001],
            "tokens_per_s",
            r"not decided: whether awq is faster than fp16 at every B measured; faster at B ≤ 64, "
            r"open at B = 128; if a B\* exists, it is above 1?\d\d",
        ),
    ],
)  # fmt: skip
def test_in_words(means: Sequence[float], metric: str, words: str) -> None:
    assert re.fullmatch(words, compared(means, metric).sentence), compared(means, metric).sentence


def test_an_interval_of_more_than_a_factor_of_10_is_no_b_star() -> None:
    """The batches that prove both sides stand, and the file keeps the figures."""
    found = compared(falling(45.0, per_octave=0.5))
    wide = msgspec.structs.replace(found.crossings[0], lo=4.0, hi=41.0, bracket=(4, 64))
    crossed = worded(msgspec.structs.replace(found, crossings=(wide,)))
    assert crossed.sentence == (
        "awq is faster than fp16 up to B = 4 and slower from B = 64 on (B* not known: the repeats differ too much)"
    )
    assert crossed.brief == "faster B ≤ 4, slower B ≥ 64 (B* not known: the repeats differ too much)"
    assert place(wide) == "a B* between 4 and 64"
    assert place(msgspec.structs.replace(wide, hi=40.0)) == "B* = 45"
    points = tuple(msgspec.structs.replace(point, repeats=2) for point in found.points)
    assert "B* not known: two repeats differ" in worded(msgspec.structs.replace(crossed, points=points)).sentence


def test_what_is_decided_comes_first_where_words_are_few() -> None:
    said = compared([0.3] * 7 + [0.001], "tokens_per_s").brief
    assert said.startswith("faster at B ≤ 64, not decided at B = 128; a B* only above 1")


def test_one_repeat_and_refusals_in_words() -> None:
    assert compared(falling(45.0), noise=(0.0,)).sentence == (
        "not decided: whether awq is faster than fp16; one repeat has no interval; the means cross at B = 45, "
        "which noise may have made"
    )
    alone = compared([0.1], grid=(4,))
    assert alone.sentence == (
        "not decided: whether awq is faster than fp16; 1 concurrency was measured on both sides, and a curve needs 2"
    )


def test_the_hli_bound_is_checked_against_the_meter() -> None:
    meter = compared(falling(45.0, per_octave=-0.1), "energy_per_query_j")
    same = compared(falling(47.0, per_octave=-0.1), "energy_hli_per_query_j")
    later = compared(falling(90.0, per_octave=-0.1), "energy_hli_per_query_j")
    assert hli_disagreement(meter, same) is None
    assert hli_disagreement(meter, later) == (
        "the HLI bound (power limit times time) contradicts the measured energy per query: it has awq use less "
        "at B = 64, where the meter proves more than fp16; believe the meter"
    )
    open_everywhere = compared([0.0] * 8, "energy_hli_per_query_j")
    assert hli_disagreement(meter, open_everywhere) is None


def test_hochberg_is_that_of_statsmodels() -> None:
    p = np.random.default_rng(0).random(9) ** 3
    assert hochberg(p) == pytest.approx(multipletests(p, method="simes-hochberg")[1])


def test_every_point_significant_by_itself_proves_every_sign() -> None:
    assert max(hochberg(np.full(9, 0.049))) == pytest.approx(0.049)


def test_a_batch_that_is_left_out_is_in_no_span() -> None:
    """B = 1 was measured, but its items are too few: nothing is said of it, and the first span is what was compared."""
    found = compared((-0.3, -0.2, 0.2, 0.4), "energy_per_query_j", grid=(16, 32, 64, 128))
    assert found.brief.startswith("less B = 16–32, more B ≥ 64")
    assert found.sentence.startswith("awq uses less energy per query than fp16 from B = 16 to 32 and more from B = 64")
    single = compared((-0.3, 0.2, 0.4), "energy_per_query_j", grid=(16, 64, 128))
    assert single.brief.startswith("less B = 16, more B ≥ 64")
    always = compared((-0.3, -0.2), "energy_per_query_j", grid=(16, 32))
    assert always.brief.startswith("less at every B measured (16–32)")
    assert worded(msgspec.structs.replace(always, left_out=(1,))).brief.startswith("less at every B compared (16–32)")
