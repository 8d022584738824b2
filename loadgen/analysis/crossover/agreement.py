"""Whether the HLI bound and the measured energy decide alike."""

from __future__ import annotations

from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.crossover.metric import metric_of
from loadgen.analysis.indices.spans import spanned


def hli_disagreement(measured: Crossover, hli: Crossover) -> str | None:
    """A warning that names the B at which power limit times time proves the opposite of what the meter proves; None if
    there is no such B.

    `measured`: `energy_per_query_j`; `hli`: `energy_hli_per_query_j` of the same target and reference.
    """
    proven = {point.concurrency: point.proven for point in hli.points}
    against = {
        sign: [p.concurrency for p in measured.points if p.proven == sign and proven.get(p.concurrency) == -sign]
        for sign in (1, -1)
    }
    words, asked = metric_of(measured.metric), {*proven, *measured.left_out}
    parts = [
        f"{words.loses_briefly if sign > 0 else words.wins_briefly} at {spanned(batches, asked)}, "
        f"where the meter proves {words.wins_briefly if sign > 0 else words.loses_briefly}"
        for sign, batches in against.items()
        if batches
    ]
    if not parts:
        return None
    return (
        "the HLI bound (power limit times time) contradicts the measured energy per query: it has "
        f"{measured.target} use {' and '.join(parts)} than {measured.reference}; believe the meter"
    )
