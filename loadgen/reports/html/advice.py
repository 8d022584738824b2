"""Advice for the reader's own rate: a table of a few rates, and with JavaScript a slider over many more."""

from __future__ import annotations

import json
from collections.abc import Sequence

from loadgen.analysis.advise import Advice, ArmAdvice
from loadgen.analysis.ratetable import RateAdvice, rate_table
from loadgen.analysis.run import Run
from loadgen.analysis.warnings import KEPT_SERVERS
from loadgen.reports.advise import arm_columns, sentences
from loadgen.reports.html.markup import Html, element, table
from loadgen.reports.rows import NAME, Column, Table, table_of
from loadgen.words import count, number

FEW = 5
"""Rates of the table without JavaScript."""
RATE, BEST, GPU_HOURS = "requests/s", "best", "GPU h/1,000 queries"
SHOWN = (
    "GPUs", "replicas", "in flight", "E2E mean, s", "SLO kept", "headroom", "W", "J/query", "95% CI",
    "kWh/1,000 queries",
)  # fmt: skip
Entry = tuple[RateAdvice, ArmAdvice]
"""A rate, and a target with its GPU hours."""


def advice(run: Run) -> Html:
    """Empty for an open loop, and where no target can be advised."""
    rates = rate_table(run) if run.arrival is None else ()
    if not rates:
        return Html("")
    entries = [(at, arm) for at in rates for arm in _by_target(run, at)]
    shown = table_of(_columns(rates[0].by_gpus), entries)
    kept = (BEST, GPU_HOURS)
    shown = shown.without(
        place for place, name in enumerate(shown.headings)
        if name not in kept and not any(row[place] for row in shown.rows)
    )  # fmt: skip
    targets = [arm.target for _, arm in entries[: len(entries) // len(rates)]]
    rows = [shown.rows[place : place + len(targets)] for place in range(0, len(shown.rows), len(targets))]
    few = sorted({round(k * (len(rates) - 1) / (FEW - 1)) for k in range(FEW)})
    made = table(
        Table(shown.headings, shown.kinds, [row for place in few for row in rows[place]]),
        label="Advice by rate", simulated=run.manifest.simulated, grouped_by=(RATE,),
    )  # fmt: skip
    texts: list[str] = []
    data = {
        "rates": [_told(at, ours, targets, texts) for at, ours in zip(rates, rows, strict=True)],
        "texts": texts,
        "start": len(rates) // 2,
    }
    slo = (
        f" {rates[0].by_joules.demand.attainment:.0%} of the requests keep {run.analysis.slo}."
        if run.analysis.slo
        else ""
    )
    note = (
        f"Requests arrive at random (Poisson) at this rate over all replicas.{slo} Best: the fewest joules a "
        "query, or with a price the fewest GPUs, then joules; only where its probability is at least 95%. For other "
        f"rates and objectives, right answers or a day's traffic: loadgen advise {run.path.name} --rate R."
    )
    of_kept = element("p", KEPT_SERVERS, class_="small") if run.manifest.kept_servers else ""
    return element(
        "div",
        element("p", note, class_="small"),
        made,
        of_kept,
        element("template", json.dumps(data, separators=(",", ":"))),
        class_="advice",
    )


def _by_target(run: Run, at: RateAdvice) -> Sequence[ArmAdvice]:
    """In the order of the run, which does not change with the rate."""
    arms = {arm.target: arm for arm in at.by_gpus.arms}
    return [arms[spec.name] for spec in run.manifest.config.targets]


def _columns(advice: Advice) -> list[Column[Entry]]:
    """Those of `loadgen advise` that count here."""
    ours = {column.heading: column for column in arm_columns(advice)}

    def of(column: Column[ArmAdvice]) -> Column[Entry]:
        return Column(column.heading, lambda entry: column.show(entry[1]), column.kind)

    return [
        Column("target", lambda entry: entry[1].target, NAME),
        Column(RATE, lambda entry: count(entry[0].rate_per_s)),
        Column(BEST, lambda entry: BEST if _best(entry[0].by_joules) == entry[1].target else ""),
        *(of(ours[heading]) for heading in SHOWN),
        Column(GPU_HOURS, lambda entry: number(entry[1].cost_per_1000)),
    ]


def _best(advice: Advice) -> str | None:
    """The choice, where it is decided."""
    return advice.choice if advice.decided else None


def _told(at: RateAdvice, rows: Sequence[Sequence[str]], targets: Sequence[str], texts: list[str]) -> dict[str, object]:
    """A rate as the page's script reads it; sentences are places in `texts`, to which it adds its own."""
    chosen = {}
    for name, advice in (("joules", at.by_joules), ("gpus", at.by_gpus)):
        said = [text for text in sentences(advice) if text != KEPT_SERVERS]
        texts += [text for text in dict.fromkeys(said) if text not in texts]
        best = _best(advice)
        chosen[name] = {
            "best": None if best is None else targets.index(best),
            "said": [texts.index(text) for text in said],
        }
    hours = {arm.target: arm.cost_per_1000 for arm in at.by_gpus.arms}
    return {
        **chosen,
        "rate": at.rate_per_s,
        "rows": ["|".join(row[1:]) for row in rows],
        "gpuHours": [None if hours[target] is None else float(f"{hours[target]:.6g}") for target in targets],
    }
