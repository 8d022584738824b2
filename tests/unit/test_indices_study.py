"""The indices of a run: what is compared, over which repeats and items, and what it says in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from scipy import stats

from loadgen.analysis.estimate import BatchResult, Estimate, by_span
from loadgen.analysis.indices.formulas import IndexSettings
from loadgen.analysis.indices.point import OperatingPoint, Repeat, batch_refusal
from loadgen.analysis.indices.study import TargetIndices, index_study
from loadgen.analysis.trust.answers import PairedItems
from loadgen.analysis.trust.significance import trust_ratio
from loadgen.errors import UsageError
from loadgen.words import spanned

ITEMS = [f"item-{place}" for place in range(100)]
ONE_PERCENT = (0.99, 1.0, 1 / 0.99)
"""Three repeats whose logarithms have mean 0 and standard deviation 0.01005."""


def scores(right: int, *, first: int = 0) -> dict[str, float]:
    return {item: float(first <= place < first + right) for place, item in enumerate(ITEMS)}


def point(
    target: str,
    b: int = 16,
    *,
    tps: Sequence[float | None] = (1000.0,) * 3,
    joules: Sequence[float | None] = (10.0,) * 3,
    right: int | None = 80,
    **others: float | None,
) -> OperatingPoint:
    """Repeats with these rates and joules; whatever else is the same in all of them."""
    figures = {"memory_needed_bytes": 8e9, "tokens_per_query": 200.0, "running_mean": float(b), **others}
    return OperatingPoint(
        target=target,
        concurrency=b,
        repeats=tuple(
            Repeat(repeat=at, tokens_per_s=rate, energy_per_query_j=energy, **figures)
            for at, (rate, energy) in enumerate(zip(tps, joules, strict=True))
        ),
        scores={} if right is None else scores(right),
    )


def against(target: OperatingPoint, reference: OperatingPoint, settings: IndexSettings | None = None) -> TargetIndices:
    study = index_study([reference, target], reference=reference.target, settings=settings, resamples=4000)
    (entry,) = study.indices
    return entry


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


def ends(estimate: Estimate | None) -> tuple[float, float]:
    assert estimate is not None
    assert estimate.lo is not None
    assert estimate.hi is not None
    return estimate.lo, estimate.hi


def test_every_index_of_a_known_target() -> None:
    """60 of 80 right, 4/5 of the speed, twice the joules, a quarter of the memory, 10% longer answers."""
    target = point("awq", tps=(800,) * 3, joules=(20,) * 3, right=60, memory_needed_bytes=2e9, tokens_per_query=220.0)
    entry = against(target, point("fp16"), IndexSettings(carbon_kg_per_kwh=0.4))
    e = 1 / (0.5 / 0.8 + 0.5 / 4)
    si = 0.34 * 0.75 + 0.33 * e + 0.33 * 0.5
    assert value(entry.cor_tps) == pytest.approx(0.25)
    assert value(entry.t_si) == pytest.approx(0.75)
    assert value(entry.e_si.value) == pytest.approx(e)
    assert (value(entry.e_si.eta), value(entry.e_si.rho)) == pytest.approx((0.8, 4))
    assert entry.e_si.floor == pytest.approx(1 / (0.5 / 0.8 + 0.5))
    assert value(entry.s_si) == pytest.approx(0.5)
    assert value(entry.si) == pytest.approx(si)
    assert value(entry.deficit) == pytest.approx(1 - si)
    assert value(entry.improvement) == pytest.approx(1 / si - 1)
    assert value(entry.si_geometric) == pytest.approx(0.75**0.34 * e**0.33 * 0.5**0.33)
    assert value(entry.caes_kg_per_query) == pytest.approx(20 * 0.4 / 3.6e6)


def test_energy_per_query_is_energy_per_token_times_length() -> None:
    entry = against(point("awq", joules=(22,) * 3, tokens_per_query=220.0), point("fp16", tokens_per_query=200.0))
    assert entry.energy is not None
    assert value(entry.energy.ratio) == pytest.approx(2.2)
    assert value(entry.energy.increase_percent) == pytest.approx(120)
    assert value(entry.energy.tokens_ratio) == pytest.approx(1.1)
    assert value(entry.energy.per_token_ratio) == pytest.approx(2.0)


def test_joules_per_query_are_compared_over_the_items_that_both_completed() -> None:
    """The same answers and joules per token; awq got to 90 longer items, the reference to the first 30 of them."""
    long = {item: 100.0 + place for place, item in enumerate(ITEMS[:90])}
    short = dict(list(long.items())[:30])
    fast = point("awq", joules=(0.5 * 144.5,) * 3, tokens_per_query=144.5)
    slow = point("fp16", joules=(0.5 * 114.5,) * 3, tokens_per_query=114.5)
    entry = against(msgspec.structs.replace(fast, lengths=long), msgspec.structs.replace(slow, lengths=short))
    assert entry.energy is not None
    assert value(entry.s_si_raw) == value(entry.energy.tokens_ratio) == pytest.approx(1)
    assert value(entry.energy.per_token_ratio) == pytest.approx(1)
    few = dict(list(long.items())[:19])
    refused = against(msgspec.structs.replace(fast, lengths=long), msgspec.structs.replace(slow, lengths=few))
    assert refused.s_si is refused.si is refused.energy is None
    assert refused.energy_refusal == "19 items were completed by both sides; a comparison of answer lengths needs 20"


def test_the_choice_of_items_is_in_the_interval_of_s() -> None:
    """Every second of 100 items is twice as long with awq: the ratio 1.5 has the error of a mean of 100."""
    lengths = dict.fromkeys(ITEMS, 100.0)
    doubled = {item: 100.0 * (1 + place % 2) for place, item in enumerate(ITEMS)}
    target = msgspec.structs.replace(point("awq", joules=(15.0,) * 3, tokens_per_query=150.0), lengths=doubled)
    reference = msgspec.structs.replace(point("fp16", tokens_per_query=100.0), lengths=lengths)
    entry = against(target, reference)
    assert entry.energy is not None and entry.energy.tokens_ratio is not None
    half = float(stats.t.ppf(0.975, 99)) * float(np.std(list(doubled.values()), ddof=1)) / 10 / 150
    expected = [math.log(1.5) - half, math.log(1.5) + half]
    assert np.log(ends(entry.energy.tokens_ratio)) == pytest.approx(expected, abs=0.1 * half)
    assert np.log(ends(entry.energy.ratio)) == pytest.approx(expected, abs=0.1 * half)


def test_s_above_one_is_clamped_in_si_and_kept_beside_it() -> None:
    entry = against(point("awq", joules=(5,) * 3), point("fp16"))
    assert (value(entry.s_si), value(entry.s_si_raw)) == pytest.approx((1, 2))
    assert value(entry.si) == pytest.approx(1)
    assert value(entry.si_raw) == pytest.approx(1.33)


@pytest.mark.parametrize(
    ("form", "s"),
    [("linear", 519.79 / 1110.56), ("log_j", 0.892), ("log_kgco2e", 519.79 / 1110.56)],
)
def test_the_form_of_s_is_named(form: str, s: float) -> None:
    settings = IndexSettings(sustainability=form, carbon_kg_per_kwh=0.4)  # type: ignore[arg-type]
    entry = against(point("nf4", joules=(1110.56,) * 3), point("fp16", joules=(519.79,) * 3), settings)
    assert entry.sustainability == form
    assert value(entry.s_si) == pytest.approx(s, abs=0.0005)


def test_paired_repeats_cancel_what_they_share() -> None:
    """A hot second and a cold third repeat on both sides: the ratio is exact, though each rate varies by 10%."""
    common = np.array([1.0, 0.9, 1.1])
    entry = against(
        point("awq", tps=tuple(800 * common)), point("fp16", tps=tuple(1000 * common))
    )  # fmt: skip
    assert ends(entry.cor_tps) == pytest.approx((0.25, 0.25))


def test_the_interval_of_a_ratio_is_students_over_paired_repeats() -> None:
    """Three repeats: mean log ratio +- 4.303 standard errors."""
    entry = against(point("awq", tps=tuple(800 * np.array(ONE_PERCENT))), point("fp16"))
    error = -math.log(0.99) / math.sqrt(3)
    half = float(stats.t.ppf(0.975, 2)) * error
    assert np.log1p(ends(entry.cor_tps)) == pytest.approx(
        [math.log(1.25) - half, math.log(1.25) + half], abs=0.1 * half
    )


def test_only_shared_repeats_are_compared() -> None:
    """The reference's slow third repeat has no partner: 1000/800, not 900/800."""
    target = point("awq", tps=(800, 800, None))
    reference = point("fp16", tps=(1000, 1000, 729))
    assert value(against(target, reference).cor_tps) == pytest.approx(0.25)


def test_speed_and_energy_keep_their_correlation() -> None:
    """At constant power joules are 1 / rate, so eta = S in every draw. alpha = 1, no weight on T: SI is eta exactly."""
    rates = 800 * np.array(ONE_PERCENT)
    target = point("awq", tps=tuple(rates), joules=tuple(10_000 / rates))
    entry = against(target, point("fp16"), IndexSettings(alpha=1.0, weights=(0.0, 0.5, 0.5)))
    assert value(entry.si_raw) == pytest.approx(0.8)
    eta = ends(entry.e_si.eta)
    assert ends(entry.s_si_raw) == pytest.approx(eta)
    assert ends(entry.si_raw) == pytest.approx(eta)


def test_t_si_is_the_one_of_the_trust_tests() -> None:
    entry = against(point("awq", right=60), point("fp16"))
    ids = tuple(ITEMS)
    pairs = PairedItems(
        item_ids=ids,
        reference=np.array(list(scores(80).values())),
        target=np.array(list(scores(60).values())),
    )
    trust = trust_ratio(pairs, resamples=4000)
    assert value(entry.t_si) == pytest.approx(0.75)
    assert entry.t_si == Estimate(value=value(entry.t_si), lo=trust.lo, hi=trust.hi)


def test_items_that_only_one_side_answered_do_not_count() -> None:
    """The target answered the first 50 items: 40 right where the reference has 50."""
    target = msgspec.structs.replace(point("awq"), scores={item: float(at < 40) for at, item in enumerate(ITEMS[:50])})
    entry = against(target, point("fp16"))
    assert value(entry.t_si) == pytest.approx(0.8)
    assert value(entry.si) == pytest.approx(0.34 * 0.8 + 0.66)


def test_a_single_repeat_has_values_but_proves_nothing() -> None:
    study = index_study(
        [point("fp16", tps=(1000,), joules=(10,)), point("awq", tps=(500,), joules=(30,), right=40)], reference="fp16"
    )
    (entry,) = study.indices
    assert value(entry.cor_tps) == pytest.approx(1)
    assert entry.cor_tps is not None
    assert entry.cor_tps.lo is entry.cor_tps.hi is None
    assert entry.cor_class == "unresolved"
    assert entry.trap == "cannot tell"
    assert study.traps[0].sentence == "cannot tell at B = 16 (SI 0.50; no interval)"
    assert study.weight_space[0].clamped[0].lo is None


def test_unequal_batches_leave_only_the_accuracy() -> None:
    entry = against(point("awq", right=60, running_mean=15.0), point("fp16"))
    assert entry.refusal is not None
    assert "15 sequences of awq ran at a time, 16 of fp16" in entry.refusal
    assert entry.cor_tps is entry.e_si.value is entry.s_si is entry.si is None
    assert value(entry.t_si) == pytest.approx(0.75)
    assert entry.trap == "cannot tell"


def test_batches_within_three_percent_are_equal() -> None:
    assert batch_refusal(point("awq", running_mean=15.6), point("fp16")) is None
    assert batch_refusal(point("awq", running_mean=None), point("fp16")) is None
    refusal = batch_refusal(point("awq", 64), point("fp16", 16))
    assert refusal is not None
    assert "measured at B = 64, fp16 at B = 16" in refusal


def test_without_memory_there_is_no_e_si_unless_speed_is_all_of_it() -> None:
    target, reference = point("awq", tps=(800,) * 3, memory_needed_bytes=None), point("fp16")
    assert against(target, reference).e_si.value is None
    assert against(target, reference).si is None
    alone = against(target, reference, IndexSettings(alpha=1.0))
    assert value(alone.e_si.value) == pytest.approx(0.8)
    assert alone.si is not None


def test_memory_is_compared_like_with_like() -> None:
    """Needed bytes where both know them, else both sides' peaks; never one against the other."""
    reference = point("fp16", memory_peak_bytes=70e9)
    target = point("awq", memory_needed_bytes=None, memory_peak_bytes=35e9)
    entry = against(target, reference)
    assert (value(entry.e_si.rho), entry.e_si.memory_source) == (pytest.approx(2), "peak")
    assert against(target, point("fp16")).e_si.rho is None


def test_the_bound_stands_in_for_energy_and_says_so() -> None:
    reference = point("fp16", energy_hli_per_query_j=20.0)
    target = point("awq", joules=(None,) * 3, energy_hli_per_query_j=30.0)
    entry = against(target, reference)
    assert entry.energy is not None
    assert (entry.energy.source, value(entry.s_si)) == ("hli", pytest.approx(2 / 3))
    both = against(point("awq", joules=(8,) * 3, energy_hli_per_query_j=30.0), reference)
    assert both.energy is not None
    assert both.energy_hli is not None
    assert (both.energy.source, value(both.energy.ratio)) == ("measured", pytest.approx(0.8))
    assert value(both.energy_hli.ratio) == pytest.approx(1.5)
    assert against(target, point("fp16")).s_si is None


def test_speed_is_told_per_sequence_too() -> None:
    study = index_study([point("fp16", 16, running_mean=15.5)], reference="fp16")
    (speed,) = study.speeds
    assert speed.tokens_per_s == pytest.approx(1000)
    assert speed.tokens_per_s_per_sequence == pytest.approx(1000 / 15.5)
    assert speed.step_s == pytest.approx(0.0155)
    assert study.indices == ()


def test_a_concurrency_without_the_reference_has_no_indices() -> None:
    study = index_study([point("fp16", 1), point("awq", 1), point("awq", 64)], reference="fp16")
    assert [entry.concurrency for entry in study.indices] == [1]
    assert study.entry("awq", 64) is None


def test_the_trap_over_batch_sizes_in_words() -> None:
    """Memory to a quarter; from 1.4 times the speed at B of 1 and 16 to a third of it at B = 128."""
    points = []
    for b, speed in ((1, 1.4), (16, 1.4), (128, 1 / 3)):
        points += [
            point("fp16", b),
            point("awq", b, tps=(1000 * speed,) * 3, joules=(10 / speed,) * 3, memory_needed_bytes=2e9),
        ]
    study = index_study(points, reference="fp16", resamples=1000)
    high, low = (0.34 + 0.33 / (0.5 / speed + 0.125) + 0.33 * min(speed, 1) for speed in (1.4, 1 / 3))
    assert study.traps[0].sentence == (f"no at B ≤ 16 (SI {high:.2f}), yes at B = 128 (SI {low:.2f})")
    assert study.cor_curves[0].sentence == "dissolved at B ≤ 16 (COR −0.29), casting-dominant at B = 128 (COR 2.00)"
    assert [p.cor_class for p in study.cor_curves[0].points] == ["dissolved", "dissolved", "casting-dominant"]


def test_neighbours_are_joined_and_what_lies_between_is_not() -> None:
    measured = (1, 4, 16, 64)
    said = [spanned(batches, measured) for batches in ((64,), (1,), (1, 4), (4, 16), (1, 16, 64), (1, 4, 64))]
    assert said == ["B = 64", "B = 1", "B ≤ 4", "B = 4–16", "B = 1, 16–64", "B = 1–4, 64"]


def test_a_span_whose_reasons_differ_names_the_batches_of_each() -> None:
    def one(b: int, value: float | None, why: str) -> BatchResult:
        estimate = None if value is None else Estimate(value=value, lo=None, hi=None)
        return BatchResult(concurrency=b, word="cannot tell", estimate=estimate, decided=False, why=why)

    said = [one(1, None, "no energy"), one(4, None, "no energy"), one(16, 0.93, "no interval")]
    assert by_span(said, "SI") == (
        "cannot tell at every B measured, 1–16 (B ≤ 4: no energy; B = 16: SI 0.93; no interval)"
    )


def test_a_figure_that_is_not_known_has_no_interval_in_words() -> None:
    cor = BatchResult(
        concurrency=2, word="unresolved", estimate=Estimate(value=0.21, lo=-0.999, hi=1624.59), decided=False
    )
    assert by_span([cor], "COR") == "unresolved at B = 2 (COR 0.21, not known: the repeats differ too much)"


def test_one_verdict_for_all_batch_sizes_is_said_once() -> None:
    points = [made for b in (4, 8, 64) for made in (point("fp16", b), point("nf4", b, tps=(400,) * 3, right=b))]
    study = index_study(points, reference="fp16", resamples=1000)
    assert study.cor_curves[0].sentence == "casting-dominant at every B measured, 4–64 (COR 1.50)"
    assert study.cor_curves[0].brief == "casting-dominant at every B measured, 4–64"
    """SI = .34 right / 80 + .33 / 1.75 + .33."""
    assert study.traps[0].sentence == "yes at every B measured, 4–64 (SI 0.54 to 0.79)"
    assert study.traps[0].brief == "yes at every B measured, 4–64"


def test_a_verdict_that_the_clamp_decides_is_told_both_ways() -> None:
    """A tenth of the answers lost for half the energy: SI .966 with S clamped, 1.296 without."""
    points = [point("fp16"), point("awq", right=72, joules=(5,) * 3)]
    study = index_study(points, reference="fp16", resamples=1000)
    (entry,) = study.indices
    assert (entry.trap, entry.trap_raw) == ("trap", "no trap")
    assert study.traps[0].sentence == ("yes at B = 16 (SI 0.97); with S not clamped at 1: no at B = 16 (SI 1.30)")


def test_the_reference_under_another_name_is_no_trap_and_no_benefit() -> None:
    rates = tuple(1000 * np.array(ONE_PERCENT))
    study = index_study([point("fp16", tps=rates), point("again", tps=rates)], reference="fp16", resamples=1000)
    (entry,) = study.indices
    lo, hi = ends(entry.si)
    assert lo < 1 < hi, "no answer of 100 changed, which is no proof that none would"
    assert (entry.trap, entry.cor_class) == ("cannot tell", "unresolved")
    assert {d.verdict for d in study.dominance} == {"cannot tell"}
    assert study.weight_space[0].clamped[0].share == 1


def test_what_is_missing_is_named() -> None:
    points = [point("fp16"), point("awq", joules=(None,) * 3, right=None)]
    study = index_study(points, reference="fp16", resamples=1000)
    assert study.traps[0].sentence == "cannot tell at B = 16 (no accuracy, no energy)"
    assert study.weight_space[0].left_out == ("awq",)


def test_a_reference_without_a_right_answer_has_no_ratio() -> None:
    assert against(point("awq"), point("fp16", right=0)).t_si is None


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_a_figure_that_cannot_have_been_measured_is_refused(wrong: float) -> None:
    with pytest.raises(UsageError, match="tokens_per_s of repeat 3 is"):
        Repeat(repeat=3, tokens_per_s=wrong)


def test_the_study_is_json() -> None:
    study = index_study([point("fp16"), point("awq", right=60)], reference="fp16", resamples=1000)
    decoded = msgspec.json.decode(msgspec.json.encode(study))
    assert decoded["indices"][0]["e_si"]["alpha"] == 0.5
    assert decoded["dominance"][0]["verdict"] == "dominates"
