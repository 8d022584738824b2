"""Verification: what advice predicts of each target's replica, beside what an open loop on its server measured.

Predictions are for the requests a second that came, and for the mean length of their answers, not for those that were
asked for: how many come in a window, and how long they are, is chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.estimate import NORMAL_95, Estimate
from loadgen.analysis.replica import Replica, replicas_of, scatter
from loadgen.analysis.run import Run, judged
from loadgen.errors import UsageError
from loadgen.load.openloop import Arrivals
from loadgen.record.cell import NOT_MEASURED
from loadgen.record.manifest import Manifest

FACTS = ("version", "model", "checkpoint_identity", "quantization", "kv_cache_dtype", "kernels")
"""Of a server: with another one the run's figures are those of something else."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a replica."""

    figure: str
    """`in_flight`, `e2e_s` (mean), `power_w`, `energy_per_query_j` or `slo_share`."""
    predicted: float
    measured: Estimate
    """With the 95% interval of one such window, by chance alone: when requests came, and which were long."""

    @property
    def difference(self) -> float:
        """Measured over predicted - 1; of a share measured - predicted."""
        if self.figure == "slo_share":
            return self.measured.value - self.predicted
        return self.measured.value / self.predicted - 1

    @property
    def by_chance(self) -> bool:
        """Whether the prediction is inside the interval."""
        return not self.measured.above(self.predicted) and not self.measured.below(self.predicted)


class ArmVerification(msgspec.Struct, frozen=True, kw_only=True):
    """A target's replica at its share of the rate."""

    target: str
    rate_asked_per_s: float
    rate_per_s: float | None = None
    """Requests that came."""
    tokens_advised: float | None = None
    """Mean length of an answer in the advised run."""
    tokens_per_answer: float | None = None
    """Of the requests that came."""
    window_s: float | None = None
    figures: tuple[Compared, ...] = ()
    """Those that are predicted and were validly measured."""
    refusal: str | None = None
    """Why nothing is compared."""


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """Every target that was advised."""

    path: str
    """The run directory of the open loop."""
    arms: tuple[ArmVerification, ...]
    changed: tuple[str, ...]
    """What is not as it was when the advised run was measured, a sentence each."""
    simulated: bool

    @property
    def complete(self) -> bool:
        """Whether something is compared of every target."""
        return all(arm.figures for arm in self.arms)


def arrivals_asked(manifest: Manifest, rates: Mapping[str, float]) -> str:
    """The `--arrival` of the open loop; a target without a rate is not measured. Raises UsageError where none has."""
    if not rates:
        raise UsageError("--verify has nothing to measure: no target can be advised at this rate")
    own = [(spec.name, rates.get(spec.name)) for spec in manifest.config.targets]
    return ",".join(f"{name}={NOT_MEASURED if rate is None else Arrivals('poisson', rate)}" for name, rate in own)


def verification_of(run: Run, measured: Run, rates: Mapping[str, float], slo: str | None = None) -> Verification:
    """The closed-loop `run` beside the open loop `measured` at `rates`, requests a second by target; `slo`: objectives
    in place of the runs' own."""
    with judged(run, slo) as advised, judged(measured, slo) as beside:
        replicas = {one.target: one for one in replicas_of(advised) if isinstance(one, Replica)}
        arms = tuple(_arm(replicas[name], beside, rate) for name, rate in rates.items())
    return Verification(
        path=str(measured.path),
        arms=arms,
        changed=tuple(_changed(run.manifest, measured.manifest)),
        simulated=measured.manifest.simulated,
    )


def _arm(replica: Replica, measured: Run, rate_asked_per_s: float) -> ArmVerification:
    tokens = replica.tokens_per_answer
    arm = ArmVerification(target=replica.target, rate_asked_per_s=rate_asked_per_s, tokens_advised=tokens)
    cells = measured.cells[measured.cells["target"] == replica.target]
    if cells.empty:
        failed = [one.error for one in measured.manifest.failures if one.target == replica.target]
        return msgspec.structs.replace(arm, refusal=failed[0] if failed else "it was not measured")
    row = cells.iloc[0]
    rate, window_s = float(row["rate_per_s"]), float(row["window_s"])
    arm = msgspec.structs.replace(arm, rate_per_s=rate, window_s=window_s)
    if rate == 0:
        return msgspec.structs.replace(
            arm,
            refusal=f"no request came in {window_s:.3g} s at {rate_asked_per_s:.3g} a second; give a longer --duration",
        )
    if not row["valid"]:
        return msgspec.structs.replace(arm, refusal=str(row["reasons"]))
    if not rate > 0 or not row["output_tokens_mean"] > 0:
        return msgspec.structs.replace(arm, refusal="no answer was measured in the window")
    came = float(row["output_tokens_mean"])
    arm = msgspec.structs.replace(arm, tokens_per_answer=came)
    replica = msgspec.structs.replace(replica, rate_per_s=replica.rate_per_s * (tokens / came))
    share = replica.states(rate)
    if not share.size:
        most = f"more than the {replica.rate_per_s[0, -1]:.3g} that it completes at B = {replica.most}"
        return msgspec.structs.replace(arm, refusal=f"{rate:.3g} requests a second came by chance, {most}")
    found = {
        figure: float(cell.iloc[0][column]) * factor
        for figure, column, factor in (
            ("in_flight", "inflight_mean", 1.0), ("e2e_s", "e2e_ms_mean", 1e-3), ("power_w", "power_w_mean", 1.0),
            ("energy_per_query_j", "energy_per_query_j", 1.0), ("slo_share", "goodput_share", 1.0),
        )
        if not (cell := measured.valid_cells(column)[lambda rows: rows["target"] == replica.target]).empty
    }  # fmt: skip
    compared = [
        Compared(
            figure=figure,
            predicted=value,
            measured=Estimate(
                value=found[figure], lo=found[figure] - NORMAL_95 * error, hi=found[figure] + NORMAL_95 * error
            ),
        )
        for figure, value, error in _predicted(replica, share, rate, window_s)
        if not math.isnan(found.get(figure, math.nan))
    ]
    return msgspec.structs.replace(arm, figures=tuple(compared))


def _predicted(replica: Replica, share: Floats, rate: float, window_s: float) -> Iterator[tuple[str, float, float]]:
    """Each figure with its standard error in one window."""
    held = np.arange(len(share))
    batch = np.clip(held, 1, replica.most) - 1
    load = replica.load(np.full(len(replica.rate_per_s), rate))
    in_flight, error = float(share @ held), scatter(held.astype(float), share, rate, window_s)
    yield "in_flight", in_flight, error
    yield "e2e_s", in_flight / rate, error / rate
    power = replica.power(load)
    if power is not None and replica.power_w is not None:
        rest = replica.power_w[0, 0] if replica.rest_w is None else replica.rest_w[0]
        error = scatter(np.where(held == 0, rest, replica.power_w[0, batch]), share, rate, window_s)
        yield "power_w", float(power[0]), error
        yield "energy_per_query_j", float(power[0]) / rate, error / rate
    if replica.slo_share is not None:
        kept = float(replica.kept(load)[0])
        joined = np.where(held < replica.most, replica.slo_share[np.minimum(held, replica.most - 1)], 0.0)
        requests = rate * window_s
        error = math.hypot(scatter(joined, share, rate, window_s), math.sqrt(kept * (1 - kept) / requests))
        yield "slo_share", kept, error


def _changed(before: Manifest, now: Manifest) -> Iterator[str]:
    for server in now.servers:
        first = next((one for one in before.servers if one.name == server.name), None)
        for fact in FACTS if first is not None else ():
            was, is_now = getattr(first, fact), getattr(server, fact)
            if was and is_now and was != is_now:
                what = f"{fact.replace('_', ' ')} of {server.name}'s server"
                yield f"the {what} was {_text(was)} and is {_text(is_now)} now"
    gpus = [sorted({gpu.name or "" for gpu in one.gpu or ()}) for one in (before, now)]
    if all(gpus) and gpus[0] != gpus[1]:
        yield f"the GPU was {', '.join(gpus[0])} and is {', '.join(gpus[1])} now"


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
