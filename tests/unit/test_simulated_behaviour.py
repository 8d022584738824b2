"""How often a simulated precision is right, and where it differs from the others."""

import pytest

from loadgen.errors import UsageError
from loadgen.serving.simulated.answers import BEHAVIOURS, Behaviour, Fates

N = 4000
QUESTIONS = [f"question {n}" for n in range(N)]


def near(share):
    """4 standard errors of N answers."""
    return pytest.approx(share, abs=4 * (max(share, 0.01) * (1 - share) / N) ** 0.5)


def fates(behaviour, precision="awq", **how):
    drawn = Fates(behaviour, precision=precision, seed=1)
    return [drawn.of(question, **how) for question in QUESTIONS]


def right(behaviour, precision="awq", **how):
    return [fate == "correct" for fate in fates(behaviour, precision, **how)]


def share(flags):
    return sum(flags) / N


@pytest.mark.parametrize("precision", BEHAVIOURS)
def test_accuracy_and_discordance_to_fp16_are_those_set(precision):
    behaviour = BEHAVIOURS[precision]
    ours, reference = right(behaviour, precision), right(BEHAVIOURS["fp16"], "fp16")
    assert share(ours) == near(behaviour.accuracy)
    assert share(a != b for a, b in zip(ours, reference, strict=True)) == near(behaviour.discordance)
    lost = share(b and not a for a, b in zip(ours, reference, strict=True))
    assert lost == near((behaviour.discordance + 0.52 - behaviour.accuracy) / 2)


def test_another_reference_may_be_named():
    ours = Behaviour(accuracy=0.394, discordance=0.15, reference_accuracy=0.431)
    reference = Behaviour(accuracy=0.431, reference_accuracy=0.431)
    pairs = list(zip(right(ours), right(reference, "fp16"), strict=True))
    assert share(a for a, _ in pairs) == near(0.394)
    assert share(b for _, b in pairs) == near(0.431)
    assert share(a != b for a, b in pairs) == near(0.15)


def test_zero_and_one_are_exact():
    assert not any(right(BEHAVIOURS["awq"].but(accuracy=0.0)))
    assert all(right(BEHAVIOURS["awq"].but(accuracy=1.0)))


def test_truncated_and_unparsed_are_shares_of_all_answers():
    found = fates(Behaviour(accuracy=0.5, truncated=0.1, unparsed=0.05))
    assert share(fate == "truncated" for fate in found) == near(0.1)
    assert share(fate == "unparsed" for fate in found) == near(0.05)
    assert share(fate == "wrong" for fate in found) == near(0.35)


def test_the_batch_flips_as_many_answers_as_set_and_leaves_accuracy_alone():
    behaviour = Behaviour(accuracy=0.6, discordance=0.1, batch_flips=0.05)
    alone, at_1, at_64 = right(behaviour), right(behaviour, batch=1), right(behaviour, batch=64)
    assert share(a != b for a, b in zip(alone, at_64, strict=True)) == near(0.05)
    assert share(at_64) == near(0.6)
    assert at_1 != at_64
    assert right(behaviour, batch=63) == at_64, "a batch that is short of a sequence for a moment is the same batch"
    still = Behaviour(accuracy=0.6, discordance=0.1)
    assert right(still, batch=1) == right(still, batch=64)


def test_what_cannot_be_together_is_refused():
    fp16 = BEHAVIOURS["fp16"]
    for changes, sentence in (
        ({"accuracy": 1.5}, "--accuracy 1.5 is not between 0 and 1"),
        ({"batch_flips": -0.1}, "--batch-flips -0.1 is not between 0 and 1"),
        ({"accuracy": 0.4, "discordance": 0.05}, "--discordance 0.05 is not possible: accuracies 0.52 and 0.4"),
        ({"accuracy": 0.9, "truncated": 0.2, "unparsed": 0.0}, "--accuracy 0.9 leaves 0.1 for --truncated"),
    ):
        with pytest.raises(UsageError) as refused:
            fp16.but(**changes)
        assert str(refused.value).startswith(sentence)


def test_what_is_not_given_yields():
    behaviour = BEHAVIOURS["bnb-nf4"].but(accuracy=1.0)
    assert (behaviour.truncated, behaviour.unparsed) == (0, 0)
    assert behaviour.discordance == pytest.approx(0.48)
