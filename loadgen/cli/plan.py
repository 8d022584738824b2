"""`loadgen plan`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import click

from loadgen.cli import CONTEXT, Command, completed, parameters
from loadgen.errors import UsageError
from loadgen.options import Option
from loadgen.words import percent

if TYPE_CHECKING:
    from loadgen.search.root import Noise

DATASETS = {"GSM8K": 1319, "MathQA": 2985}
"""Items of the published test splits."""
USUAL_RATES_PER_S = (1, 5, 20)


# fmt: off
class PlanOptions(TypedDict, total=False):
    accuracy_delta: Annotated[float | None, Option(
        "D", "The accuracy difference to be shown, as in 3.72% or 0.0372: 3.72 pp.", unit="share", zero=True)]
    equivalence_margin: Annotated[float | None, Option(
        "M", "Or: show that the difference is smaller than this, as in 2%.", unit="share", zero=True)]
    discordance: Annotated[float, Option(
        "P", "Share of items that only one side answers correctly.", default=0.15, unit="share", zero=True)]
    power: Annotated[float, Option("P", "Chance to show it if it is real.", default=0.8, unit="share", zero=True)]
    alpha: Annotated[float, Option("P", "Chance to claim it if it is not real.", default=0.05, unit="share", zero=True)]
    items: Annotated[int | None, Option("N", "Also say what N items can show.")]
    concurrency: Annotated[int | None, Option("B", "For the minutes: requests in flight.")]
    seconds_per_query: Annotated[float | None, Option("S", "For the minutes: what one answer takes at B.", unit="s")]
    tokens_per_s: Annotated[float | None, Option(
        "R", "For the minutes, instead of those two: the server's output tokens per second.")]
    tokens_per_answer: Annotated[float | None, Option("N", "With --tokens-per-s: output tokens per answer.")]
    find: Annotated[str | None, Option(
        "METRIC", "Or: what a search for B* takes (`loadgen sweep --find METRIC`).")]
    within: Annotated[float, Option(
        "SHARE", "For --find: how far the interval's ends may be from B*.", default=0.1, unit="share",
        between=(0.005, 0.5))]
    range: Annotated[str | None, Option("LOW:HIGH", "For --find: batch sizes to search.", otherwise="1:256")]
    noise: Annotated[str | None, Option(
        "RUN", "For --find: an earlier run of this GPU, whose repeats show the noise.")]
    seconds_per_cell: Annotated[float, Option("S", "For --find: a window with its warm-up.", default=75.0, unit="s")]
    seconds_per_start: Annotated[float, Option(
        "S", "For --find: a start of a server; 0 for servers that are kept running.", default=90.0, unit="s",
        zero=True)]
# fmt: on


@click.command("plan", cls=Command, context_settings=CONTEXT, params=parameters(PlanOptions))
def command(**_: Any) -> None:
    """Compute how many items and minutes a claim about accuracy needs, or what a search for B* takes.

    \b
    Example:
      loadgen plan --accuracy-delta 0.0372 --discordance 0.15
      loadgen plan --equivalence-margin 0.02 --discordance 0.06
      loadgen plan --find energy_per_query_j --within 10% --noise runs/earlier
    """
    o = completed(PlanOptions)
    if o["find"] is not None:
        _plan_search(o, o["find"])
        return
    delta, margin, items = o["accuracy_delta"], o["equivalence_margin"], o["items"]
    discordance, power, alpha = o["discordance"], o["power"], o["alpha"]
    if delta is None and margin is None:
        raise UsageError(
            "nothing to plan: give --accuracy-delta D or --equivalence-margin M, such as 2%, or --find METRIC"
        )
    _check_probability("--discordance", discordance, 1)
    _check_probability("--power", power, 1)
    _check_probability("--alpha", alpha, 0.5)
    if power <= alpha:
        raise UsageError(f"--power {power:g} is not above --alpha {alpha:g}; 0.8 or 0.9 are usual")
    if delta is not None:
        _check_probability("--accuracy-delta", abs(delta), 1)
        if abs(delta) > discordance:
            raise UsageError(
                f"--discordance {discordance:g} is below --accuracy-delta {delta:g}: "
                "accuracy cannot change by more than the share of items that change"
            )
    if margin is not None:
        _check_probability("--equivalence-margin", margin, 1)
    minutes = _minutes(o)

    from loadgen.analysis.trust.accuracy import (
        detectable_difference,
        items_for_difference,
        items_for_equivalence,
        power_of_equivalence,
        power_of_mcnemar,
        provable_margin,
    )

    sizes = {f"{name}, {size} items": size for name, size in DATASETS.items()}
    if items is not None:
        sizes = {f"{items} items": items, **sizes}

    def time(count: int) -> str:
        """The time for both sides; empty if nothing was said about speed."""
        if minutes is None:
            return ""
        both = 2 * minutes(count)
        return f", {both:.1f} minutes" if both < 10 else f", {both:.0f} minutes"

    def line(label: str, text: str) -> None:
        click.echo(f"  {label:<22}{text}")

    def heading(needed: int) -> None:
        line("needed", f"{needed} items{time(needed)}")
        if minutes is None:
            line("minutes for them", _minutes_at_usual_rates(needed))

    click.echo(f"{discordance:.1%} of the items change between the two sides; alpha {alpha:g}.")
    if minutes is not None:
        click.echo("Minutes are those of both sides together, one after the other, without warm-up.")
    if delta is not None:
        delta = abs(delta)
        needed = items_for_difference(delta, discordance, power=power, alpha=alpha)
        click.echo(f"\nTo show a difference of {_pp(delta)} (McNemar, {power:.0%} power)")
        heading(needed)
        for label, size in sizes.items():
            chance = power_of_mcnemar(size, delta, discordance, alpha=alpha)
            smallest = detectable_difference(size, discordance, power=power, alpha=alpha)
            shown = "no difference" if smallest is None else f"{_pp(smallest)} or more"
            line(label, f"power {_percent(chance)}; at {power:.0%} power they show {shown}{time(size)}")
    if margin is not None:
        needed = items_for_equivalence(margin, discordance, power=power, alpha=alpha)
        click.echo(f"\nTo show a difference below {_pp(margin)} where there is none (TOST, {power:.0%} power)")
        heading(needed)
        for label, size in sizes.items():
            chance = power_of_equivalence(size, margin, discordance, alpha=alpha)
            shown = _pp(provable_margin(size, discordance, power=power, alpha=alpha))
            line(label, f"power {_percent(chance)}; at {power:.0%} power they show {shown}{time(size)}")


def _plan_search(o: PlanOptions, asked: str) -> None:
    """Cells, starts and minutes of a search, by how steep the curve is at B*; beside them those of a grid."""
    from loadgen.analysis.crossover.curve import METRICS
    from loadgen.measure.search import range_sought
    from loadgen.notation import did_you_mean, spelled
    from loadgen.search.goal import MOST_REPEATS, Goal
    from loadgen.search.price import GENTLE, STEEP, USUAL, USUAL_NOISE, expected, stated_start_sd

    metric = spelled(asked, METRICS)
    if metric not in METRICS:
        hint = f"{did_you_mean(metric, METRICS)}known: {', '.join(METRICS)}"
        raise UsageError(f"--find {asked}: not a metric of crossovers; {hint}")
    low, high = range_sought(o["range"], None)
    noise, pair = _noise_of_run(Path(o["noise"]), metric) if o["noise"] else (None, "")
    goal = Goal(
        metrics=(metric,), low=low, high=high, within=o["within"], cell_s=o["seconds_per_cell"],
        start_s=o["seconds_per_start"], noise={metric: noise} if noise else {},
    )  # fmt: skip
    told = f"{percent(USUAL_NOISE)}, assumed: starts of a server differ by 1%, cells by 0.5%"
    if noise is not None:
        told = f"{percent(noise.sd)}: {pair}, {noise.degrees:.0f} degree{'s' * (noise.degrees != 1)} of freedom"
    within = percent(o["within"])
    click.echo(f"A search for B* by {metric} within ±{within}, from B = {low} to {high}, of one target")
    click.echo(f"Noise of one repeat: {told}\n")
    price = expected(goal, ("reference", "target"))
    for name, slope, repeats, cells, starts, minutes in zip(
        ("steep", "usual", "gentle"), (STEEP, USUAL, GENTLE),
        *((each.low, each.typical, each.high) for each in (price.repeats, price.cells, price.starts, price.minutes)),
        strict=True,
    ):  # fmt: skip
        curve = f"{name} curve, {100 * slope * math.log(2):.0f}% per doubling of B"
        most = " (the most without --most-minutes)" if repeats == MOST_REPEATS else ""
        click.echo(f"  {curve:<40}{repeats} repeats{most}, {cells} cells, {starts} starts: {minutes:.0f} minutes")
    minutes = (160 * goal.cell_s + 20 * goal.start_s) / 60
    click.echo(f"  {'a grid of 8 B × 10 repeats':<40}160 cells, 20 starts: {minutes:.0f} minutes\n")
    if noise is None:
        click.echo("An earlier run of this GPU tells its noise, so that a search takes fewer repeats: --noise RUN")
    else:
        stated = percent(stated_start_sd(noise))
        click.echo(f"To search with this noise: loadgen sweep --find {metric} --within {within} --start-sd {stated}")


def _noise_of_run(path: Path, metric: str) -> tuple[Noise, str]:
    """Of the target whose repeats differ most, with its name and the reference's."""
    from loadgen.analysis.run import Run
    from loadgen.search.price import noise_of

    run = Run(path)
    if metric not in run.cells.columns:
        raise UsageError(f"--noise {path}: cells.csv has no {metric} by cell; plan with energy_per_query_j instead")
    reference, cells = run.manifest.config.reference, run.valid_cells(metric)
    targets = [target for target in dict.fromkeys(cells["target"]) if target != reference]
    found = [(noise, f"{target} against {reference}") for target in targets
             if (noise := noise_of(cells, target, reference, metric))]  # fmt: skip
    if not found:
        raise UsageError(f"--noise {path}: no batch size has {metric} in two repeats of both sides; name another run")
    return max(found, key=lambda each: each[0].sd)


def _check_probability(option: str, value: float, upper: float) -> None:
    if not 0 < value < upper:
        raise UsageError(f"{option} {value:g} is not between 0 and {upper:g}; write it as in 0.05 or 5%")


def _minutes(o: PlanOptions) -> Callable[[int], float] | None:
    """Minutes that one side takes for a number of items; None if nothing was said about speed."""
    from loadgen.analysis.trust.accuracy import minutes_at_concurrency, minutes_at_rate

    concurrency, seconds_per_query = o["concurrency"], o["seconds_per_query"]
    tokens_per_s, tokens_per_answer = o["tokens_per_s"], o["tokens_per_answer"]
    speeds = {
        "--concurrency": concurrency, "--seconds-per-query": seconds_per_query, "--tokens-per-s": tokens_per_s,
        "--tokens-per-answer": tokens_per_answer,
    }  # fmt: skip
    given = [option for option, value in speeds.items() if value is not None]
    if not given:
        return None
    if len(given) == 2 and concurrency is not None and seconds_per_query is not None:
        return lambda items: minutes_at_concurrency(items, concurrency, seconds_per_query)
    if len(given) == 2 and tokens_per_s is not None and tokens_per_answer is not None:
        return lambda items: minutes_at_rate(items, tokens_per_s, tokens_per_answer)
    raise UsageError(
        f"no time follows from {' and '.join(given)}: give --concurrency with --seconds-per-query, "
        "or --tokens-per-s with --tokens-per-answer"
    )


def _minutes_at_usual_rates(items: int) -> str:
    """For both sides, where nothing was said about speed."""
    times = ", ".join(f"{2 * items / rate / 60:.3g}" for rate in USUAL_RATES_PER_S)
    rates = ", ".join(f"{rate:g}" for rate in USUAL_RATES_PER_S)
    return f"{times} at {rates} answers per second, both sides together; say yours with --concurrency ..."


def _percent(share: float) -> str:
    return "over 99%" if share > 0.99 else f"{share:.0%}"


def _pp(proportion: float) -> str:
    return f"{100 * proportion:.3g} pp"
