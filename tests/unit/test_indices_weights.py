"""For which weights a precision wins, and whether it is better in everything."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from loadgen.analysis.indices.dominance import Dominance, dominance, weight_space
from loadgen.analysis.indices.formulas import Resampled
from loadgen.analysis.indices.point import Energy, Ratios, reference_ratios

REFERENCE = reference_ratios("fp16")


def drawn(value: float, error: float = 0.0, seed: int = 0) -> Resampled:
    """Normal draws."""
    return Resampled(value=value, draws=value + error * np.random.default_rng(seed).standard_normal(2000))


def pillars(target: str, t: Resampled, e: Resampled, s: Resampled) -> Ratios:
    return Ratios(target=target, t=t, e=e, s=s)


def metrics(t: Resampled | None, eta: Resampled, saving: Resampled, rho: Resampled, source: str = "measured") -> Ratios:
    one = drawn(1)
    energy = Energy(source=source, target_j=one, reference_j=one)  # type: ignore[arg-type]
    return Ratios(target="awq", t=t, eta=eta, saving=saving, rho=rho, memory_source="needed", energy=energy)


def test_a_precision_wins_the_weights_on_its_side_of_a_line() -> None:
    """-.1 w_T + .5 w_E - .2 w_S > 0: a triangle at the corner of E, of 5/6 and 5/7 of the sides."""
    awq = pillars("awq", drawn(0.9), drawn(1.5), drawn(0.8))
    fp16, ours = weight_space(16, [REFERENCE, awq]).clamped
    assert ours.share == pytest.approx(5 / 6 * 5 / 7, abs=0.01)
    assert fp16.share == pytest.approx(1 - 5 / 6 * 5 / 7, abs=0.01)
    assert (ours.lo, ours.hi) == pytest.approx((ours.established, ours.established))


def test_the_clamp_takes_the_weights_of_energy_away() -> None:
    """Clamped, S ties: -.1 w_T + 0 w_S - .1 w_E < 0 everywhere. Raw, S of 2 wins the corner where w_S > 1/11."""
    awq = pillars("awq", drawn(0.9), drawn(0.9), drawn(2.0))
    space = weight_space(16, [REFERENCE, awq])
    assert space.clamped[1].share == 0
    assert space.raw[1].share == pytest.approx((10 / 11) ** 2, abs=0.01)


def test_three_precisions_share_all_weights() -> None:
    t, e = pillars("t", drawn(2), drawn(0.5), drawn(0.5)), pillars("e", drawn(0.5), drawn(2), drawn(0.5))
    shares = weight_space(1, [REFERENCE, t, e]).raw
    assert sum(share.share for share in shares) == pytest.approx(1)
    assert shares[1].share == pytest.approx(shares[2].share, abs=0.02)


def test_uncertain_pillars_leave_weights_that_nobody_has_for_sure() -> None:
    """T = 1 and S = 1 for sure, E = 1.1 +- 0.1: established at 5% nowhere, as P(E > 1) is .84."""
    awq = pillars("awq", drawn(1), drawn(1.1, 0.1), drawn(1))
    fp16, ours = weight_space(16, [REFERENCE, awq]).clamped
    assert ours.share == 1
    assert (ours.lo, ours.hi) == (0, 1)
    assert fp16.established == ours.established == 0


def decide(one: Ratios) -> Dominance:
    return dominance(16, one, REFERENCE)


def test_better_in_everything_dominates() -> None:
    found = decide(metrics(drawn(1.02, 0.005), drawn(1.2, 0.01), drawn(1.3, 0.01), drawn(3)))
    assert found.verdict == "dominates"
    assert found.better == ("accuracy", "tokens_per_s", "energy_per_query_j", "memory_bytes")


def test_as_good_in_three_and_better_in_one_dominates() -> None:
    assert decide(metrics(drawn(1), drawn(1), drawn(1), drawn(3))).verdict == "dominates"
    assert decide(metrics(drawn(1), drawn(1), drawn(1), drawn(1))).verdict == "cannot tell"


def test_worse_in_one_does_not_dominate_whatever_the_rest() -> None:
    found = decide(metrics(drawn(0.95, 0.01), drawn(2), drawn(2), drawn(3)))
    assert (found.verdict, found.worse) == ("does not", ("accuracy",))
    unknown = decide(metrics(None, drawn(0.5), drawn(2), drawn(3)))
    assert (unknown.verdict, unknown.unknown) == ("does not", ("accuracy",))


def test_what_may_be_worse_leaves_dominance_open() -> None:
    """Accuracy 1 standard error below, then unknown: neither proves anything."""
    assert decide(metrics(drawn(0.99, 0.01), drawn(2), drawn(2), drawn(3))).verdict == "cannot tell"
    assert decide(metrics(None, drawn(2), drawn(2), drawn(3))).verdict == "cannot tell"


def test_worse_is_established_over_all_four_metrics_together() -> None:
    """2.1 standard errors are 98.2%: enough for one metric, not for four (99.4%); 3 are 99.9%."""
    assert decide(metrics(drawn(0.979, 0.01), drawn(2), drawn(2), drawn(3))).worse == ()
    assert decide(metrics(drawn(0.97, 0.01), drawn(2), drawn(2), drawn(3))).worse == ("accuracy",)


def test_fp16_does_not_dominate_what_fits_in_less_memory() -> None:
    awq = metrics(drawn(0.9), drawn(0.5), drawn(0.5), drawn(3))
    assert dominance(16, REFERENCE, awq).worse == ("memory_bytes",)


def test_memories_within_one_percent_are_equal() -> None:
    assert decide(metrics(drawn(1), drawn(1.2), drawn(1), drawn(0.995))).verdict == "dominates"
    assert decide(metrics(drawn(1), drawn(1.2), drawn(1), drawn(0.98))).verdict == "does not"


def test_a_measured_energy_is_not_compared_with_a_bound() -> None:
    measured = metrics(drawn(1), drawn(1.2), drawn(1), drawn(1))
    bound = metrics(drawn(1), drawn(1), drawn(1), drawn(1), source="hli")
    assert dominance(16, measured, bound).unknown == ("energy_per_query_j",)


def graded(right: int, n: int = 300) -> dict[str, float]:
    return {str(item): float(item < right) for item in range(n)}


@pytest.mark.parametrize(
    ("ours", "theirs", "n", "verdict"),
    [
        (40, 40, 64, "cannot tell"),
        (200, 200, 300, "dominates within margin"),
        (198, 200, 300, "cannot tell"),
        (230, 200, 300, "dominates"),
        (170, 200, 300, "does not"),
    ],
)
def test_dominance_needs_a_proof_of_the_accuracy(ours: int, theirs: int, n: int, verdict: str) -> None:
    """No change of 64 leaves Tango's interval at -z^2 / (n + z^2) = -5.7 pp, of 300 at -1.3 pp: within 2 pp. With two
    lost of 300 it reaches beyond them."""
    one = metrics(drawn(ours / theirs), drawn(2), drawn(2), drawn(3))
    one = msgspec.structs.replace(one, scores=graded(ours, n))
    assert dominance(16, one, reference_ratios("fp16", graded(theirs, n))).verdict == verdict


def test_two_targets_that_lost_the_same_items_are_compared_with_each_other() -> None:
    awq, gptq = (
        msgspec.structs.replace(metrics(drawn(0.9), drawn(speed), drawn(speed), drawn(3)), scores=graded(40, 64))
        for speed in (2, 1)
    )
    assert dominance(16, awq, gptq).verdict == "cannot tell"
