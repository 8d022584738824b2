"""Metric: a figure that two precisions are compared by, and the words for winning and losing."""

from __future__ import annotations

import msgspec

from loadgen.errors import UsageError


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One of the six metrics of a crossover; `wins` and `loses` stand between the target's name and "than"."""

    name: str
    higher_is_better: bool
    wins: str
    loses: str
    wins_briefly: str
    loses_briefly: str

    @property
    def sign(self) -> int:
        """Turns log(target / reference) into a log-advantage: above 0 where the target is better."""
        return 1 if self.higher_is_better else -1


def _energy(name: str, per: str) -> Metric:
    return Metric(
        name=name,
        higher_is_better=False,
        wins=f"uses less energy per {per} than",
        loses=f"uses more energy per {per} than",
        wins_briefly="less",
        loses_briefly="more",
    )


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            name="tokens_per_s", higher_is_better=True,
            wins="is faster than", loses="is slower than", wins_briefly="faster", loses_briefly="slower",
        ),
        _energy("energy_per_token_j", "token"),
        _energy("energy_per_query_j", "query"),
        _energy("energy_hli_per_query_j", "query by the HLI bound"),
        _energy("energy_per_correct_j", "correct answer"),
        Metric(
            name="si", higher_is_better=True,
            wins="has a higher SI than", loses="has a lower SI than", wins_briefly="higher", loses_briefly="lower",
        ),
    )
}  # fmt: skip
"""By name, in the order of reports."""


def metric_of(name: str) -> Metric:
    """The metric of that name; raises UsageError if there is none."""
    if name not in METRICS:
        raise UsageError(f"no crossover metric {name!r}; choose from {', '.join(METRICS)}")
    return METRICS[name]
