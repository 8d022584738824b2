"""The tables and sentences of `loadgen advise`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import msgspec
from rich.console import Console

from loadgen.analysis.advise import Advice, ArmAdvice
from loadgen.analysis.day import Day, DayArm
from loadgen.analysis.estimate import Estimate
from loadgen.analysis.verification import ArmVerification, Compared, Verification
from loadgen.analysis.warnings import KEPT_SERVERS
from loadgen.reports.compare import print_table
from loadgen.reports.rows import INTERVAL, NAME, Column, table_of
from loadgen.words import SIMULATED, count, interval, number, percent, percents, span, stamped

DISPENSABLE = (
    "idle",
    "W",
    "batch p99",
    "replicas",
    "kWh/1,000 queries",
    "95% CI",
    "requests/s each",
    "right",
    "J/right",
)
"""Columns that a narrow terminal omits, the first ones first."""
MOST_BATCH = 256
"""The largest batch that is proposed at once."""


def arm_columns(advice: Advice) -> tuple[Column[ArmAdvice], ...]:
    """The columns of the table; those of what was not asked for stay empty."""
    per = "queries" if advice.demand.per == "query" else "right answers"
    return (
        Column("target", lambda arm: stamped(arm.target, simulated=advice.simulated), NAME),
        Column("GPUs", lambda arm: count(arm.gpus)),
        Column("replicas", lambda arm: count(arm.replicas) if arm.gpus != arm.replicas else ""),
        Column("requests/s each", lambda arm: number(arm.rate_per_replica_per_s)),
        Column("in flight", lambda arm: number(arm.in_flight)),
        Column("batch p99", lambda arm: count(arm.batch_p99)),
        Column("idle", lambda arm: percent(arm.idle_share, 0)),
        Column("E2E mean, s", lambda arm: number(arm.e2e_mean_s)),
        Column("SLO kept", lambda arm: percent(arm.slo_share, 1)),
        Column("headroom", lambda arm: percent(arm.headroom, 0)),
        Column("W", lambda arm: number(arm.power_w)),
        Column("J/query", lambda arm: _value(arm.energy_per_query_j)),
        Column("95% CI", lambda arm: _ends(arm.energy_per_query_j), INTERVAL),
        Column("J/right", lambda arm: _value(arm.energy_per_correct_j)),
        Column("right", lambda arm: percent(arm.accuracy, 1)),
        Column(f"kWh/1,000 {per}", lambda arm: number(arm.kwh_per_1000)),
        Column("kg CO2", lambda arm: number(arm.co2_kg_per_1000)),
        Column("cost", lambda arm: number(arm.cost_per_1000)),
    )


DAY = (
    Column[DayArm]("target", lambda arm: arm.target, NAME),
    Column[DayArm]("most GPUs", lambda arm: count(arm.most_gpus)),
    Column[DayArm]("most replicas", lambda arm: count(arm.most_replicas) if arm.most_gpus != arm.most_replicas else ""),
    Column[DayArm]("GPU hours", lambda arm: number(arm.gpu_h)),
    Column[DayArm]("kWh", lambda arm: _value(arm.kwh)),
    Column[DayArm]("95% CI", lambda arm: _ends(arm.kwh), INTERVAL),
    Column[DayArm]("kg CO2", lambda arm: number(arm.co2_kg)),
    Column[DayArm]("cost", lambda arm: number(arm.cost)),
)


def _value(estimate: Estimate | None) -> str:
    return "" if estimate is None else number(estimate.value)


def _ends(estimate: Estimate | None) -> str:
    return "" if estimate is None else interval(estimate.lo, estimate.hi, floor=0.0)


def sentences(advice: Advice) -> Iterator[str]:
    """The choice first, then what keeps an arm out of it, and what to measure next."""
    arms = {arm.target: arm for arm in advice.arms}
    if advice.choice is None:
        known = any(arm.refusal is None for arm in advice.arms)
        more = (
            "; a price (--price) chooses by the number of GPUs"
            if known and advice.demand.price_per_gpu_h is None
            else ""
        )
        yield f"No precision can be chosen: see below{more}."
    else:
        yield _choice(advice, arms[advice.choice])
    for arm in advice.arms:
        if arm.refusal is not None:
            yield f"{arm.target} cannot be advised: {arm.refusal}."
        elif arm.energy_note is not None:
            yield f"{arm.target}'s joules are not known: {arm.energy_note}."
    if advice.demand.price_per_gpu_h is not None:
        unknown = [arm.target for arm in advice.arms if arm.gpus is None and arm.refusal is None]
        yield from _without_gpus(unknown, some=any(arm.gpus is not None for arm in advice.arms))
    for arm in advice.arms:
        if arm.unjudged_batch is not None:
            yield (
                f"Batches of {arm.target} above {arm.largest_batch}, up to {arm.unjudged_batch}, do not count: their "
                "latencies are not valid, so loadgen cannot tell whether they keep the objectives; measure them again."
            )
    for arm in advice.arms:
        if arm.limit == "memory" and not arm.saturated:
            yield (
                f"Memory, not speed, limits a replica of {arm.target}: its KV cache holds {arm.memory_batch} requests "
                "of these lengths without preemption."
            )
    if short := [arm for arm in _growing(advice) if arm.unjudged_batch is None]:
        most = min(2 * max(arm.largest_batch or 1 for arm in short), max(MOST_BATCH, short[0].largest_batch or 1))
        held = min((arm.memory_batch for arm in short if arm.memory_batch is not None), default=None)
        most, fits = (most, "") if held is None else (min(most, held), ": the memory holds it")
        names = ", ".join(f"{arm.target} (B ≤ {arm.largest_batch})" for arm in short)
        yield (
            f"Throughput may rise further beyond the largest measured batch of {names}: fewer "
            f"{_units(short[0].gpus)} may be enough; "
            f"measure up to B = {most} first{fits}."
        )
    if advice.kept_servers and advice.choice is not None:
        yield KEPT_SERVERS


def _without_gpus(targets: Sequence[str], *, some: bool) -> Iterator[str]:
    """That their cost is not known; `some`: the GPUs of other targets are."""
    if targets:
        instead = "a price cannot choose them" if some else "replicas are compared instead"
        yield (
            f"The cost of {', '.join(targets)} is not known, as the GPUs of their servers are not: {instead}. loadgen "
            "knows GPUs whose power it measures, and those of servers that it starts on GPUs (--serve)."
        )


def _units(gpus: int | None, of: int = 2) -> str:
    """What a fleet consists of, as far as is known."""
    return ("replica" if gpus is None else "GPU") + "s" * (of != 1)


def _growing(advice: Advice) -> list[ArmAdvice]:
    """The arms that might need fewer GPUs at a batch that was not measured."""
    return [arm for arm in advice.arms if arm.limit == "range" and not arm.saturated and (arm.replicas or 0) > 1]


def _choice(advice: Advice, best: ArmAdvice) -> str:
    demand = advice.demand
    rate = f"{count(demand.rate_per_s)} requests/s"
    units = best.replicas or 0 if best.gpus is None else best.gpus
    need = f"{units} {_units(best.gpus, units)}"
    if best.energy_per_query_j is not None:
        need += f", {number(best.energy_per_query_j.value)} J a query"
    if advice.second is None:
        return f"{rate}: {best.target}, the only precision that can be advised ({need})."
    by = f"fewest {_units(best.gpus)}, then fewest joules" if demand.price_per_gpu_h is not None else "fewest joules"
    by += " per right answer" if demand.per == "correct" else ""
    if advice.probability is None:
        unsure = "its probability is unknown: something was measured in only one repeat"
        return f"{rate}: {best.target} ({need}) by the {by}; {unsure}."
    sure = f"best with a probability of {percent(advice.probability, 0)}" if advice.probability < 0.995 else "best"
    if not advice.decided:
        return f"{rate}: not decided between {best.target} ({need}, {sure}) and {advice.second}; measure more repeats."
    far = " as far as was measured" if any(arm is not best for arm in _growing(advice)) else ""
    return f"{rate}: {best.target} ({need}), {sure} by the {by}{far}; second {advice.second}."


def day_sentences(day: Day, *, priced: bool) -> Iterator[str]:
    """Which target in which hours, and what changing it saves."""
    if not day.chosen:
        yield "No precision serves the whole day: see the refusals."
    else:
        hours = zip(day.steps, day.chosen, strict=True)
        parts = []
        for name, group in groupby(hours, key=lambda pair: pair[1]):
            steps = [step for step, _ in group]
            parts.append(f"{span(count(steps[0].from_h), count(steps[-1].to_h))} h {name}")
        yield f"Best by the hour: {', '.join(parts)}."
    if day.saving is not None and len(set(day.chosen)) > 1:
        ends = percents(day.saving.lo, day.saving.hi)
        what = f"{_units(day.arms[0].most_gpus, 1)} hours" if priced else "joules"
        saved = percent(day.saving.value, 1) if day.saving.value >= 0.0005 else "none"
        shown = f" ({ends})" if ends and saved != "none" else ""
        yield f"A fleet that changes its precision saves {saved} of the {what} of {day.arms[0].target} alone{shown}."
    for arm in day.arms:
        if arm.refusal is not None:
            yield f"{arm.target} cannot be advised: {arm.refusal}."
    if priced:
        unknown = [arm.target for arm in day.arms if arm.most_gpus is None and arm.refusal is None]
        yield from _without_gpus(unknown, some=any(arm.most_gpus is not None for arm in day.arms))
    if day.kept_servers and day.chosen:
        yield KEPT_SERVERS


def print_advice(advice: Advice, console: Console) -> None:
    """The table, then the sentences."""
    _print_stamp(console, simulated=advice.simulated)
    rows = [arm for arm in advice.arms if arm.refusal is None]
    if rows:
        print_table(console, table_of(arm_columns(advice), rows), DISPENSABLE)
    for sentence in sentences(advice):
        console.print(sentence, soft_wrap=True)


def print_day(day: Day, console: Console, *, priced: bool) -> None:
    """The table, then the sentences."""
    _print_stamp(console, simulated=day.simulated)
    rows = [arm for arm in day.arms if arm.refusal is None]
    if day.switching is not None and len(set(day.chosen)) > 1:
        rows.append(day.switching)
    if rows:
        print_table(console, table_of(DAY, rows))
    for sentence in day_sentences(day, priced=priced):
        console.print(sentence, soft_wrap=True)


FIGURES = {
    "energy_per_query_j": "J/query",
    "in_flight": "in flight",
    "e2e_s": "E2E mean, s",
    "power_w": "W",
    "slo_share": "SLO kept",
}


class _Line(msgspec.Struct, frozen=True):
    """A figure of a target, or how many requests came."""

    target: str
    figure: str
    predicted: str
    measured: str
    ends: str = ""
    difference: str = ""


VERIFICATION = (
    Column[_Line]("target", lambda line: line.target, NAME),
    Column[_Line]("figure", lambda line: line.figure, NAME),
    Column[_Line]("predicted", lambda line: line.predicted),
    Column[_Line]("measured", lambda line: line.measured),
    Column[_Line]("95% CI", lambda line: line.ends, INTERVAL),
    Column[_Line]("difference", lambda line: line.difference),
)


def _lines(arm: ArmVerification, *, simulated: bool) -> Iterator[_Line]:
    asked = f"{number(arm.rate_asked_per_s)} asked"
    yield _Line(stamped(arm.target, simulated=simulated), "requests/s", asked, number(arm.rate_per_s))
    advised = f"{number(arm.tokens_advised)} advised"
    yield _Line("", "tokens/answer", advised, number(arm.tokens_per_answer))
    for one in sorted(arm.figures, key=lambda one: list(FIGURES).index(one.figure)):
        yield _line(one)


def _line(one: Compared) -> _Line:
    value, lo, hi = one.measured.value, one.measured.lo, one.measured.hi
    if one.figure == "slo_share":
        ends = percents(lo, None if hi is None else min(hi, 1.0))
        predicted, measured = percent(one.predicted, 1), percent(value, 1)
        far = percent(one.difference, 1, unit=" pp", sign=True)
    else:
        ends, predicted, measured = interval(lo, hi), number(one.predicted), number(value)
        far = percent(one.difference, 1, sign=True)
    return _Line("", FIGURES[one.figure], predicted, measured, ends, far)


def verification_sentences(verification: Verification) -> Iterator[str]:
    """How far apart the two are, and where chance does not explain it."""
    compared = [(arm.target, one) for arm in verification.arms for one in arm.figures]
    if compared:
        target, most = max(compared, key=lambda pair: abs(pair[1].difference))
        yield (
            "Predictions are for the requests that came, and for the length of their answers. The intervals hold the "
            "chance of one such window, not what another start of a server changes. The largest difference is "
            f"{_line(most).difference} ({target}, {FIGURES[most.figure]})."
        )
    off = [f"{target} {FIGURES[one.figure]} ({_line(one).difference})" for target, one in compared if not one.by_chance]
    if off:
        yield (f"More than chance explains: {', '.join(off)}; see docs/advise.md, What it does not know.")
    elif compared:
        yield "Chance explains every difference."
    for arm in verification.arms:
        if arm.refusal is not None:
            yield f"{arm.target} is not compared: {arm.refusal}."
    if not verification.complete:
        yield "To measure again, name another folder with --out."
    yield from (f"Not as when the advised run was measured: {sentence}." for sentence in verification.changed)
    yield f"Measured in {verification.path}; its report: {verification.path}/report.html"


def print_verification(verification: Verification, console: Console) -> None:
    """The table, then the sentences."""
    _print_stamp(console, simulated=verification.simulated)
    arms = [arm for arm in verification.arms if arm.figures]
    if arms:
        lines = [line for arm in arms for line in _lines(arm, simulated=verification.simulated)]
        print_table(console, table_of(VERIFICATION, lines))
    for sentence in verification_sentences(verification):
        console.print(sentence, soft_wrap=True)


def _print_stamp(console: Console, *, simulated: bool) -> None:
    if simulated:
        console.print(SIMULATED, style="bold red")
