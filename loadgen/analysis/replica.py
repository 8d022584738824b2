"""Replica: one server of a target, by the batches that were measured; Load: the same under Poisson arrivals; Fleet: as
many replicas as a rate needs.

A replica that decodes n requests completes X(n) of them a second and draws P(n) watts: both measured in closed loops of
n requests. Under Poisson arrivals the number of requests in it is then a birth-death process with birth rate lambda and
death rates X(n). Its stationary distribution holds for requests of any lengths that share the server equally
(processor sharing: Kelly, Reversibility and Stochastic Networks, 1979), and an arriving request finds n others with the
probability of n (Wolff 1982). Nothing is extrapolated beyond the largest batch that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from statistics import fmean
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats, Mask
from loadgen.analysis.indices.formulas import RepeatNoise, Resampled
from loadgen.analysis.kvcache import mean_batch
from loadgen.analysis.run import Run
from loadgen.errors import UsageError

RESAMPLES, SEED = 1000, 20
NEGLIGIBLE, MOST_STATES = 1e-9, 100_000
"""Numbers of requests that are rarer than that, and further ones, are left out."""
OUTSIDE = 0.01
"""The largest share of time that a replica may hold more requests than were measured, or fewer than the fewest."""
_LEAST_LOG_WEIGHT = -50.0
"""Logarithm of a weight, to the largest one, below which a state does not count."""
Limit = Literal["range", "slo", "memory"]


class Replica(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One server of a target. The first row of each array is the estimate, the others are joint draws."""

    target: str
    precision: str
    gpus: int | None
    """That share the model; None: not known."""
    fewest: int
    """The smallest batch that was measured."""
    rate_per_s: Floats
    """X(n) for n = 1 to the largest measured batch, interpolated on logarithms; shape (draws + 1, n)."""
    power_w: Floats | None
    """P(n), the same shape; None: not measured."""
    rest_w: Floats | None
    """Power with nothing to do, shape (draws + 1,)."""
    slo_share: Floats | None
    """Requests that keep the objectives in a batch of n; None: there are no objectives."""
    accuracy: Floats | None
    """Shape (draws + 1,)."""
    tokens_per_answer: float = math.nan
    """Mean over all its cells, by which `rate_per_s` follows from tokens a second."""
    drawn: bool = True
    """Else something was measured in one repeat only: its draws are all the estimate."""
    memory_batch: int | None = None
    """The most requests that its KV cache holds without preemption; None: not known."""
    unjudged_batch: int | None = None
    """The largest batch with a valid load, where it does not count because its latencies are not valid."""

    @property
    def most(self) -> int:
        """The largest batch that was measured and that its memory holds."""
        return int(self.rate_per_s.shape[1])

    def within(self, memory_batch: int | None) -> Replica:
        """The same replica, which takes no more requests than its memory holds; at least the fewest measured."""
        if memory_batch is None:
            return self
        power_w, slo_share = self.power_w, self.slo_share
        return msgspec.structs.replace(
            self,
            memory_batch=memory_batch,
            rate_per_s=self.rate_per_s[:, :memory_batch],
            power_w=None if power_w is None else power_w[:, :memory_batch],
            slo_share=None if slo_share is None else slo_share[:memory_batch],
        )

    @property
    def saturated(self) -> bool:
        """Whether throughput gains less than 5% over the upper half of the measured batches; not of B = 1 alone."""
        rates = self.rate_per_s[0]
        return self.most > 1 and bool(rates[-1] < 1.05 * rates[max(self.most // 2, 1) - 1])

    def load(self, rate_per_s: Floats) -> Load:
        """The replica under Poisson arrivals; `rate_per_s` by draw, above 0."""
        rate_per_s = np.maximum(rate_per_s, np.finfo(float).tiny)
        full = rate_per_s / self.rate_per_s[:, -1]
        stable = full < 1
        logs, states = np.log(rate_per_s), np.arange(self.most + 1)
        most = states * logs.max() - self._work[0]
        states = states[: np.flatnonzero(most > most.max() + _LEAST_LOG_WEIGHT)[-1] + 1]
        weights = np.multiply.outer(logs, states)
        weights -= self._work[:, : len(states)]
        weights -= weights.max(axis=1, keepdims=True)
        np.exp(weights, out=weights)
        ratio = np.where(stable, full, 0.0)
        beyond = weights[:, -1] * ratio / (1 - ratio) if len(states) > self.most else np.zeros(len(weights))
        total = weights.sum(axis=1) + beyond
        weights /= total[:, None]
        beyond = np.where(stable, beyond / total, 1.0)
        in_flight = weights @ states + beyond * (self.most + 1 / (1 - ratio))
        return Load(rate_per_s=rate_per_s, share=weights, beyond=beyond, in_flight=in_flight)

    @cached_property
    def _work(self) -> Floats:
        """ln X(1) + ... + ln X(n) for n = 0 to the largest batch, by draw."""
        return np.concatenate([np.zeros((len(self.rate_per_s), 1)), np.log(self.rate_per_s).cumsum(axis=1)], axis=1)

    def kept(self, load: Load) -> Floats:
        """The share of requests that keep the objectives, by draw. One that joins a batch that was not measured keeps
        none."""
        if self.slo_share is None:
            return np.ones(len(load.beyond))
        joined = load.share[:, : self.most]
        return joined @ self.slo_share[: joined.shape[1]]

    def capacity_per_s(self, attainment: float) -> Floats:
        """The highest rate at which it keeps the objectives and stays within what was measured, by draw, those of the
        draws to 1 in 10,000; 0: there is none."""
        low, high = 1e-6 * self.rate_per_s[:, 0], self.rate_per_s[:, -1] * (1 - 1e-9)
        some = self.serves(low, attainment)
        for _ in range(18 if len(low) > 1 else 40):
            middle = np.sqrt(low * high)
            fits = self.serves(middle, attainment)
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        if len(low) > 1:
            low[:1] = msgspec.structs.replace(self, rate_per_s=self.rate_per_s[:1]).capacity_per_s(attainment)
        return np.where(some, low, 0.0)

    def serves(self, rate_per_s: Floats, attainment: float) -> Mask:
        """Whether it does both at these rates, by draw."""
        load = self.load(rate_per_s)
        return np.asarray((load.beyond <= OUTSIDE) & (self.kept(load) >= attainment))

    def misses(self, rate_per_s: float, attainment: float) -> bool:
        """Whether it misses the objectives at that rate even if they are kept in every batch that was not measured, by
        the estimate."""
        one = msgspec.structs.replace(self, rate_per_s=self.rate_per_s[:1])
        load = one.load(np.array([rate_per_s]))
        measured = float(load.share[0, : self.most].sum())
        return bool(one.kept(load)[0] + 1 - measured < attainment)

    def states(self, rate_per_s: float) -> Floats:
        """Share of time with 0, 1, 2, ... requests by the estimate, also beyond those that were measured; empty where
        the rate is more than it can complete."""
        one = msgspec.structs.replace(self, rate_per_s=self.rate_per_s[:1])
        load, ratio = one.load(np.array([rate_per_s])), rate_per_s / float(self.rate_per_s[0, -1])
        if ratio >= 1:
            return np.empty(0)
        tail = np.arange(1, min(math.ceil(math.log(NEGLIGIBLE) / math.log(ratio)), MOST_STATES) + 1)
        return np.concatenate([load.share[0], load.share[0, -1] * ratio**tail])

    def power(self, load: Load) -> Floats | None:
        """Mean watts by draw; None where it was not measured, or where the replica rests and that power is unknown."""
        if self.power_w is None or (self.rest_w is None and load.share[0, 0] > OUTSIDE):
            return None
        rest = self.power_w[:, 0] if self.rest_w is None else self.rest_w
        share = load.share[:, 1:]
        busy = np.einsum("dn,dn->d", share, self.power_w[:, : share.shape[1]]) + load.beyond * self.power_w[:, -1]
        return np.asarray(load.share[:, 0] * rest + busy)


def scatter(values: Floats, share: Floats, rate_per_s: float, window_s: float) -> float:
    """By how much the mean of `values` over a window scatters (standard deviation) between windows in which the same
    number of requests came, with answers of the same mean length; `values` and `share` of time by the number of
    requests in the replica, as `Replica.states`.

    The variance of the mean over a long window of a birth-death process (Whitt 1992, Management Science 38), less the
    parts that the numbers of arrivals and the mean length explain, which are equal (a mean depends on their product
    alone); and what the requests that are cut by the window's two edges add. For lengths that are exponentially
    distributed; it is less for more equal ones.
    """
    held = np.arange(len(share))
    above = (values - share @ values) * share
    flows = rate_per_s * share[:-1]
    passed = np.minimum(np.abs(above.cumsum()), np.abs(above[::-1].cumsum()[::-1] - above))[:-1]  # as exact as it gets
    variance = 2 * np.divide(passed**2, flows, where=flows > 0, out=np.zeros(len(flows))).sum()
    together, in_flight = float(above @ held), float(share @ held)
    explained = 2 * together**2 / rate_per_s
    slope = together / float(share @ (held - in_flight) ** 2)
    edges = 2 * in_flight * (slope * in_flight / rate_per_s / window_s) ** 2
    return math.sqrt(max(float(variance) - explained, 0.0) / window_s + edges)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A replica in its stationary state, by draw."""

    rate_per_s: Floats
    share: Floats
    """Share of time with n requests, from 0 to the largest measured batch, or to the largest that occurs at all; shape
    (draws, n + 1)."""
    beyond: Floats
    """Share of time with more."""
    in_flight: Floats


class Fleet:
    """As many replicas of a target as a demand needs; arrays are by draw, the estimate first."""

    def __init__(self, replica: Replica, attainment: float) -> None:
        self.replica = replica
        self.attainment = attainment

    @cached_property
    def capacity_per_s(self) -> float:
        """The most that one replica can take, by the estimate."""
        return float(self._capacities_per_s[0])

    @cached_property
    def _capacities_per_s(self) -> Floats:
        return self.replica.capacity_per_s(self.attainment)

    @cached_property
    def limit(self) -> Limit:
        """What ends the capacity: the largest measured batch, the objectives, or the KV cache."""
        if self.replica.misses(1.001 * self.capacity_per_s, self.attainment):
            return "slo"
        return "memory" if self.replica.most == self.replica.memory_batch else "range"

    def _counts(self, rate_per_s: float) -> Floats:
        """The replicas that each draw needs; inf: many more than the estimate's."""
        with np.errstate(divide="ignore"):
            counts = np.maximum(np.ceil(rate_per_s / self._capacities_per_s - 1e-9), 1)
        return np.where(counts < 1.2 * counts[0] + 3, counts, np.inf)

    def for_rate(self, rate_per_s: float) -> Share | str:
        """The smallest fleet for so many requests a second, or a sentence that says why there is none."""
        replica, capacity = self.replica, self.capacity_per_s
        if capacity <= 0:
            alone = 0.0 if replica.slo_share is None else replica.slo_share[0]
            return f"{alone:.0%} of its requests keep the objectives at B = 1, and {self.attainment:.0%} are asked for"
        count = self._counts(rate_per_s)
        possible = np.isfinite(count)
        load = replica.load(rate_per_s / np.where(possible, count, 1.0))
        if (few := float(load.share[0, 1 : replica.fewest].sum())) > OUTSIDE:
            return (
                f"its batch would be below {replica.fewest}, the smallest that was measured, for {few:.0%} of the "
                "time: measure --concurrency 1 too"
            )
        power = replica.power(load)
        return Share(
            count=count,
            load=load,
            power_w=None if power is None else power * count,
        )


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet at work, by draw."""

    count: Floats
    """Replicas."""
    load: Load
    """Of one."""
    power_w: Floats | None
    """Of all."""


def replicas_of(run: Run) -> list[Replica | str]:
    """The targets of a closed-loop run, in the order of the manifest; a sentence in place of one that no valid cell
    tells of. Raises UsageError for an open loop."""
    if run.arrival is not None:
        raise UsageError(f"{run.path} is an open loop: advice needs the closed-loop batches of `--concurrency`")
    started = (block.repeat for block in run.manifest.power_blocks)  # perhaps without a cell: the sweep was killed
    noise = RepeatNoise({*run.cells["repeat"].tolist(), *started}, resamples=RESAMPLES, seed=SEED)
    return [_replica(run, spec.name, spec.precision, noise) for spec in run.manifest.config.targets]


def _replica(run: Run, target: str, precision: str, noise: RepeatNoise) -> Replica | str:
    """Where there are objectives, of the cells alone that tell how many requests keep them.

    One mean length of an answer holds for all batches: a cell of few answers knows tokens a second well, and their
    length badly.
    """
    cells = run.valid_cells("tokens_per_s")
    cells = cells[(cells["target"] == target) & cells["output_tokens_mean"].gt(0) & cells["tokens_per_s"].gt(0)]
    if cells.empty:
        return "none of its cells has a valid load"
    judged, metered = run.valid_cells("goodput_share").index, run.valid_cells("power_w_mean").index
    loaded = int(cells["concurrency"].max())
    if run.analysis.slo is not None:
        cells = cells[cells.index.isin(judged) & cells["goodput_share"].notna()]
        if cells.empty:
            return "none of its cells has valid latencies, by which the objectives are judged"
    measured = Measured()
    tokens = float((cells["output_tokens_mean"] * cells["requests"]).sum() / cells["requests"].sum())
    read = ["concurrency", "repeat", "tokens_per_s", "output_tokens_mean", "power_w_mean", "goodput_share"]
    for place, row in zip(cells.index, cells[read].to_dict("records"), strict=True):
        b, repeat = int(row["concurrency"]), int(row["repeat"])
        measured.rate_per_s.setdefault(b, {})[repeat] = row["tokens_per_s"] / tokens
        if place in metered and row["power_w_mean"] > 0:
            measured.power_w.setdefault(b, {})[repeat] = row["power_w_mean"]
        if run.analysis.slo is not None:
            measured.slo_share.setdefault(b, []).append(row["goodput_share"])
    for block in run.manifest.power_blocks:
        if block.target == target and block.rest_w and all(block.rest_w.values()):
            measured.rest_w[block.repeat] = sum(watts for watts in block.rest_w.values() if watts is not None)
    gpus = int(cells["gpus"].max()) if "gpus" in cells and cells["gpus"].notna().any() else None
    counts, held = int(cells["concurrency"].max()), None
    if "kv_batch" in cells:
        held = mean_batch(zip(cells["kv_batch"].tolist(), cells["requests"].tolist(), strict=True))
    replica = measured.replica(target, precision, noise, gpus=gpus, accuracy=_accuracy(run, target))
    if held is not None and held < replica.fewest:
        return (
            f"its KV cache holds {held} requests of these lengths without preemption, and B = {replica.fewest} is the "
            f"smallest that was measured: measure up to B = {held}"
        )
    unjudged = loaded if loaded > counts and (held is None or held > counts) else None
    return msgspec.structs.replace(replica.within(held), tokens_per_answer=tokens, unjudged_batch=unjudged)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The closed loops of a target: by batch and repeat, at least one."""

    rate_per_s: dict[int, dict[int, float]] = {}
    power_w: dict[int, dict[int, float]] = {}
    slo_share: dict[int, list[float]] = {}
    """At every batch, or nowhere: there are no objectives."""
    rest_w: dict[int, float] = {}
    """By repeat."""

    def replica(
        self,
        target: str,
        precision: str,
        noise: RepeatNoise,
        *,
        gpus: int | None = None,
        accuracy: Floats | None = None,
    ) -> Replica:
        """The replica, with draws of `noise`."""
        batches = sorted(self.rate_per_s)
        across = _interpolation(batches)
        rate = np.exp(np.log(_drawn([noise.mean(self.rate_per_s[b]) for b in batches])) @ across)
        below = np.arange(1, batches[0]) / batches[0]  # never asked of a replica for more than `OUTSIDE` of its time
        power, share = None, None
        if self.power_w.keys() == self.rate_per_s.keys():
            power = _drawn([noise.mean(self.power_w[b]) for b in batches]) @ across
            power = np.concatenate([np.repeat(power[:, :1], len(below), axis=1), power], axis=1)
        if self.slo_share:
            share = np.array([fmean(self.slo_share[b]) for b in batches]) @ across
            share = np.concatenate([np.full(len(below), share[0]), share])
        repeats = (*self.rate_per_s.values(), *self.power_w.values(), *([self.rest_w] if self.rest_w else []))
        return Replica(
            target=target,
            precision=precision,
            gpus=gpus,
            fewest=batches[0],
            rate_per_s=np.concatenate([rate[:, :1] * below, rate], axis=1),
            power_w=power,
            rest_w=_drawn([noise.mean(self.rest_w)])[:, 0] if self.rest_w else None,
            slo_share=share,
            accuracy=accuracy,
            drawn=all(len(by) > 1 for by in repeats),
        )


def _interpolation(batches: Sequence[int]) -> Floats:
    """What turns values at these batches into values at every batch from the first to the last, linear in log n."""
    every = np.log(np.arange(batches[0], batches[-1] + 1))
    return np.array([np.interp(every, np.log(batches), row) for row in np.eye(len(batches))])


def _drawn(figures: Sequence[Resampled]) -> Floats:
    """A column for each figure: the estimate, below it the draws, or without draws the estimate again."""
    known = [np.full(RESAMPLES, one.value) if one.draws is None else one.draws for one in figures]
    return np.column_stack([[one.value, *draws] for one, draws in zip(figures, known, strict=True)])


def _accuracy(run: Run, target: str) -> Floats | None:
    rows = run.valid_cells("accuracy")
    rows = rows[(rows["target"] == target) & rows["accuracy"].notna() & rows["answers"].gt(0)]
    if rows.empty:
        return None
    p = float((rows["accuracy"] * rows["answers"]).sum() / rows["answers"].sum())
    questions = float(run.summary.loc[run.summary["target"] == target, "questions"].max())
    if not questions > 0 or not p > 0:
        return None
    error = math.sqrt(p * (1 - p) / questions)
    seed = [SEED, *target.encode()]
    drawn = p + error * np.random.default_rng(seed).standard_normal(RESAMPLES)
    return np.concatenate([[p], np.clip(drawn, 1e-9, 1.0)])
