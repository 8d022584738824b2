"""Advice: which precision serves a given traffic best, with how many GPUs, joules and how much money."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.day import Day, DayArm, Step, traffic_of
from loadgen.analysis.estimate import Estimate
from loadgen.analysis.indices.formulas import JOULES_PER_KWH, TAIL, carbon_kg
from loadgen.analysis.replica import Fleet, Limit, Replica, Share, replicas_of
from loadgen.analysis.run import Run, judged
from loadgen.analysis.verification import Verification
from loadgen.errors import UsageError
from loadgen.options import AdviseOptions, dashed

DECIDED = 0.95
Per = Literal["query", "correct"]


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """The traffic, and what counts. Raises UsageError for values without a meaning."""

    rate_per_s: float
    """Requests a second of the whole fleet, Poisson."""
    attainment: float = 0.99
    """The share of requests that must keep the service level objectives."""
    price_per_gpu_h: float | None = None
    carbon_kg_per_kwh: float | None = None
    per: Per = "query"

    def __post_init__(self) -> None:
        if not 0 < self.rate_per_s < math.inf:
            raise UsageError(f"--rate {self.rate_per_s:g}: give the requests a second, above 0")
        if not 0 < self.attainment <= 1:
            raise UsageError(f"--attainment {self.attainment:g}: give a share above 0 and up to 1, such as 0.99")


class ArmAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """What one target needs for the demand. A figure is None where it is not known, and where there is a `refusal`."""

    target: str
    precision: str
    refusal: str | None = None
    """Why it cannot serve the demand, as far as it was measured."""
    replicas: int | None = None
    gpus: int | None = None
    """Of all replicas; None also where nobody knows how many share a model: their cost is then not known."""
    rate_per_replica_per_s: float | None = None
    in_flight: float | None = None
    """Mean number of requests in a replica."""
    batch_p99: int | None = None
    """99% of the arriving requests join no larger batch."""
    idle_share: float | None = None
    e2e_mean_s: float | None = None
    """By Little's law."""
    slo_share: float | None = None
    """Requests that keep the objectives."""
    headroom: float | None = None
    """How much more traffic these replicas can take: 0.25 is 25%."""
    limit: Limit | None = None
    """What ends the headroom: the largest measured batch, the objectives, or the KV cache."""
    largest_batch: int | None = None
    """That was measured, and that the KV cache holds."""
    memory_batch: int | None = None
    """The most requests that the KV cache holds without preemption."""
    unjudged_batch: int | None = None
    """Batches above `largest_batch` up to this one do not count: their latencies are not valid."""
    saturated: bool | None = None
    """Throughput gains less than 5% over the upper half of the measured batches, so that a larger one adds little."""
    power_w: float | None = None
    """Of all replicas."""
    energy_per_query_j: Estimate | None = None
    energy_per_correct_j: Estimate | None = None
    energy_note: str | None = None
    """Why the joules are not known."""
    accuracy: float | None = None
    kwh_per_1000: float | None = None
    """Of 1,000 queries, or of 1,000 correct answers (`Demand.per`); so the next two."""
    co2_kg_per_1000: float | None = None
    cost_per_1000: float | None = None
    """In the unit of the price."""


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The arms, best first, and which to choose: by the GPUs where they have a price (equal ones by joules), else by
    joules. Where the GPUs of no target are known, replicas stand for them; where those of some are, the others are not
    chosen by a price."""

    demand: Demand
    slo: str | None
    arms: tuple[ArmAdvice, ...]
    choice: str | None
    """The best by the estimates; None where none can be chosen."""
    probability: float | None
    """That it is the best, over joint draws of the repeats; None with a single repeat, or a single arm."""
    second: str | None
    simulated: bool
    kept_servers: bool = False
    """The repeats are of servers that were not restarted between them: their scatter lacks what a start changes."""
    verification: Verification | None = None
    """None: it was not asked for."""

    @property
    def decided(self) -> bool:
        return self.probability is not None and self.probability >= DECIDED

    @property
    def rates(self) -> dict[str, float]:
        """Requests a second of one replica, by the targets that can be advised."""
        return {arm.target: arm.rate_per_replica_per_s for arm in self.arms if arm.rate_per_replica_per_s is not None}


def advise(run: Run, demand: Demand) -> Advice:
    """The targets of a closed-loop run for this demand, best first. Raises UsageError as `replicas_of`."""
    return Fleets.of(run, demand.attainment).advise(demand)[0]


def _told(run: Run) -> tuple[list[Replica], list[ArmAdvice]]:
    """The targets that can be advised, and the others."""
    found = list(zip(run.manifest.config.targets, replicas_of(run), strict=True))
    refused = [
        ArmAdvice(target=spec.name, precision=spec.precision, refusal=one)
        for spec, one in found
        if isinstance(one, str)
    ]
    return [one for _, one in found if isinstance(one, Replica)], refused


def choose(replicas: Sequence[Replica], demand: Demand, *, slo: str | None = None, simulated: bool = False) -> Advice:
    """The same of replicas, whose targets differ; `slo`: what their `slo_share` asks for."""
    return Fleets(replicas, demand.attainment, slo=slo, simulated=simulated).advise(demand)[0]


class Fleets:
    """A fleet of each of several targets, which differ, for demands of one attainment."""

    def __init__(
        self, replicas: Sequence[Replica], attainment: float, refused: Sequence[ArmAdvice] = (), *,
        slo: str | None = None, simulated: bool = False, kept_servers: bool = False,
    ) -> None:  # fmt: skip
        """`refused`: targets that no advice can be given of."""
        self.by_target = {one.target: Fleet(one, attainment) for one in replicas}
        self._refused = refused
        self._facts: dict[str, Any] = {"slo": slo, "simulated": simulated, "kept_servers": kept_servers}

    @classmethod
    def of(cls, run: Run, attainment: float) -> Fleets:
        """Those of a closed-loop run. Raises UsageError as `replicas_of`."""
        slo, simulated = run.analysis.slo, run.analysis.simulated
        replicas, refused = _told(run)
        kept = run.manifest.kept_servers
        return cls(replicas, attainment, refused, slo=slo, simulated=simulated, kept_servers=kept)

    def advise(self, *demands: Demand) -> list[Advice]:
        """For each of several demands of the same rate."""
        fleets, rate = self.by_target, demands[0].rate_per_s
        shares = {name: fleet.for_rate(rate) for name, fleet in fleets.items()}
        arms = {name: _arm(fleet, shares[name], rate) for name, fleet in fleets.items()}
        found = []
        for demand in demands:
            scores = _scores(fleets, shares, demand)
            order = sorted(scores, key=lambda name: tuple(scores[name][0]))
            rest = [name for name in fleets if name not in scores]
            drawn = _all_drawn(fleets, order)
            advice = Advice(
                demand=demand,
                arms=(*(_costed(arms[name], demand) for name in (*order, *rest)), *self._refused),
                choice=order[0] if order else None,
                probability=_probability([scores[name] for name in order]) if drawn else None,
                second=order[1] if len(order) > 1 else None,
                **self._facts,
            )
            found.append(advice)
        return found


def _all_drawn(fleets: Mapping[str, Fleet], names: Sequence[str]) -> bool:
    return all(fleets[name].replica.drawn for name in names)


def _scores(fleets: Mapping[str, Fleet], shares: Mapping[str, Share | str], demand: Demand) -> dict[str, Floats]:
    """By target and draw, what is compared from left to right, smaller is better; those without it are left out."""
    found, counted = {}, any(fleet.replica.gpus for fleet in fleets.values())
    priced = demand.price_per_gpu_h is not None
    for name, share in shares.items():
        if isinstance(share, str) or (priced and counted and fleets[name].replica.gpus is None):
            continue
        replica, energy = fleets[name].replica, share.power_w
        columns = [] if energy is None else [energy]
        if priced:
            columns.insert(0, share.count * (replica.gpus or 1))
        if demand.per == "correct":
            columns = [] if replica.accuracy is None else [column / replica.accuracy for column in columns]
        if columns:
            found[name] = np.column_stack(columns)
    widths = {score.shape[1] for score in found.values()}
    return {name: score[:, : min(widths)] for name, score in found.items()}


def _probability(scores: Sequence[Floats]) -> float | None:
    """The share of the joint draws in which the first is the best; one that ties counts half."""
    if len(scores) < 2:
        return None
    best = np.ones(len(scores[0]) - 1)
    for other in scores[1:]:
        wins = np.full(len(best), 0.5)
        for ours, theirs in zip(scores[0].T[::-1], other.T[::-1], strict=True):
            mine, its = ours[1:], theirs[1:]
            wins = np.where(mine < its, 1.0, np.where(mine > its, 0.0, wins))
        best = np.minimum(best, wins)
    return float(best.mean())


def _estimate(values: Floats, drawn: bool) -> Estimate:
    """With the draws' percentiles; without ends where nothing was drawn, or some draw has no value."""
    if not drawn or not np.isfinite(values).all():
        return Estimate(value=float(values[0]))
    lo, hi = np.quantile(values[1:], [TAIL, 1 - TAIL])
    return Estimate(value=float(values[0]), lo=float(lo), hi=float(hi))


def _arm(fleet: Fleet, share: Share | str, rate_per_s: float) -> ArmAdvice:
    """Without its costs."""
    replica = fleet.replica
    if isinstance(share, str):
        return ArmAdvice(target=replica.target, precision=replica.precision, refusal=share)
    load, count = share.load, int(share.count[0])
    rate = float(load.rate_per_s[0])
    energy = None if share.power_w is None else _estimate(share.power_w / rate_per_s, replica.drawn)
    right, correct = None, None
    if replica.accuracy is not None:
        right = float(replica.accuracy[0])
        if share.power_w is not None:
            correct = _estimate(share.power_w / rate_per_s / replica.accuracy, replica.drawn)
    return ArmAdvice(
        target=replica.target,
        precision=replica.precision,
        replicas=count,
        gpus=None if replica.gpus is None else count * replica.gpus,
        rate_per_replica_per_s=rate,
        in_flight=float(load.in_flight[0]),
        batch_p99=min(int(np.searchsorted(np.cumsum(load.share[0]), 0.99)) + 1, replica.most),
        idle_share=float(load.share[0, 0]),
        e2e_mean_s=float(load.in_flight[0]) / rate,
        slo_share=None if replica.slo_share is None else float(replica.kept(load)[0]),
        headroom=max(fleet.capacity_per_s / rate - 1, 0.0),
        limit=fleet.limit,
        largest_batch=replica.most,
        memory_batch=replica.memory_batch,
        unjudged_batch=replica.unjudged_batch,
        saturated=replica.saturated,
        power_w=None if share.power_w is None else float(share.power_w[0]),
        energy_per_query_j=energy,
        energy_per_correct_j=correct,
        energy_note=_energy_note(replica, share),
        accuracy=right,
    )


def _costed(arm: ArmAdvice, demand: Demand) -> ArmAdvice:
    """With what 1,000 queries or correct answers cost."""
    if arm.replicas is None:
        return arm
    joules, good = (arm.energy_per_query_j, 1.0) if demand.per == "query" else (arm.energy_per_correct_j, arm.accuracy)
    gpu_h = None if arm.gpus is None else arm.gpus / demand.rate_per_s * 1000 / 3600
    price, carbon = demand.price_per_gpu_h, demand.carbon_kg_per_kwh
    return msgspec.structs.replace(
        arm,
        kwh_per_1000=None if joules is None else joules.value * 1000 / JOULES_PER_KWH,
        co2_kg_per_1000=None if joules is None or carbon is None else 1000 * carbon_kg(joules.value, carbon),
        cost_per_1000=None if price is None or gpu_h is None or not good else gpu_h * price / good,
    )


def _energy_note(replica: Replica, share: Share) -> str | None:
    if share.power_w is not None:
        return None
    if replica.power_w is None:
        return "its energy was not measured at every batch"
    rests = float(share.load.share[0, 0])
    return f"it would be idle for {rests:.0%} of the time, and its power at rest was not measured"


NOTHING_PER_S = 1e-6
"""In place of no traffic: one replica stays up."""


def advise_day(run: Run, demand: Demand, steps: Sequence[Step]) -> Day:
    """The day under `demand`, whose rate does not matter here. Raises UsageError as `replicas_of`."""
    replicas, refused = _told(run)
    fleets = {one.target: Fleet(one, demand.attainment) for one in replicas}
    rates = [max(step.rate_per_s, NOTHING_PER_S) for step in steps]
    shares = {name: [fleet.for_rate(rate) for rate in rates] for name, fleet in fleets.items()}
    scored = [_scores(fleets, {name: shares[name][at] for name in fleets}, demand) for at in range(len(steps))]
    hours = np.array([step.to_h - step.from_h for step in steps])
    totals = {
        name: sum(hour * score[name] for hour, score in zip(hours, scored, strict=True))
        for name in fleets
        if all(name in score for score in scored)
    }
    order = sorted(totals, key=lambda name: tuple(totals[name][0]))
    rest = [name for name in fleets if name not in order]
    chosen = tuple(min((tuple(of[0]), name) for name, of in score.items())[1] for score in scored if score)

    def arm(label: str, names: Sequence[str]) -> DayArm:
        parts = [shares[name][at] for at, name in enumerate(names)]
        if (refusal := next((part for part in parts if isinstance(part, str)), None)) is not None:
            return DayArm(target=label, refusal=refusal)
        known = [part for part in parts if isinstance(part, Share)]
        counts = [int(part.count[0]) for part in known]
        gpus = [n * each for n, name in zip(counts, names, strict=True) if (each := fleets[name].replica.gpus)]
        gpu_h = float(np.dot(hours, gpus)) if len(gpus) == len(counts) else None
        powers = [part.power_w for part in known]
        energy = [hour * power / 1000 for hour, power in zip(hours, powers, strict=True) if power is not None]
        kwh = _estimate(np.sum(energy, axis=0), _all_drawn(fleets, names)) if len(energy) == len(hours) else None
        price, carbon = demand.price_per_gpu_h, demand.carbon_kg_per_kwh
        return DayArm(
            target=label, most_replicas=max(counts), most_gpus=None if gpu_h is None else max(gpus), gpu_h=gpu_h,
            kwh=kwh, cost=None if price is None or gpu_h is None else gpu_h * price,
            co2_kg=None if kwh is None or carbon is None else kwh.value * carbon,
        )  # fmt: skip

    complete = len(chosen) == len(steps)
    switching, saving = None, None
    if complete and order:
        switching = arm(" and ".join(dict.fromkeys(chosen)), chosen)
        mixed = np.sum([h * score[name] for h, score, name in zip(hours, scored, chosen, strict=True)], axis=0)
        with np.errstate(invalid="ignore"):  # a draw in which a fleet has no end: the saving then has no interval
            saving = _estimate(1 - mixed[:, 0] / totals[order[0]][:, 0], _all_drawn(fleets, [*chosen, order[0]]))
    return Day(
        steps=tuple(steps),
        chosen=chosen if complete else (),
        arms=(
            *(arm(name, [name] * len(steps)) for name in (*order, *rest)),
            *(DayArm(target=one.target, refusal=one.refusal) for one in refused),
        ),
        kept_servers=run.manifest.kept_servers,
        switching=switching,
        saving=saving,
        simulated=run.analysis.simulated,
    )


ONLY_TO_VERIFY = ("duration", "out", "wait_ready", "extra_body")


def advise_run(run: Run, o: AdviseOptions) -> Advice | Day:
    """By the completed options. Raises UsageError where they contradict each other, and as `replicas_of`."""
    rate, traffic = o["rate"], o["traffic"]
    given = cast(Mapping[str, Any], o)
    if not o["verify"] and (asked := next((name for name in ONLY_TO_VERIFY if given[name] not in (None, 0.0)), None)):
        what = f"--{dashed(asked)} {given[asked]}"
        raise UsageError(f"{what} needs --verify: without it nothing is measured")
    if (rate is None) == (traffic is None):
        raise UsageError("give either --rate R, the requests a second, or --traffic, a day of them")
    steps = () if traffic is None else traffic_of(str(traffic))
    carbon = o["carbon"] if o["carbon"] is not None else run.manifest.config.carbon_kg_per_kwh
    if o["verify"] and steps:
        peak = max(step.rate_per_s for step in steps)
        raise UsageError(f"--verify measures one rate: give --rate {peak:g}, the peak, instead of --traffic {traffic}")
    demand = Demand(
        rate_per_s=rate if rate is not None else max(step.rate_per_s for step in steps),
        attainment=o["attainment"], price_per_gpu_h=o["price"], carbon_kg_per_kwh=carbon, per=o["per"],
    )  # fmt: skip
    with judged(run, o["slo"]) as again:
        return advise_day(again, demand, steps) if steps else advise(again, demand)
