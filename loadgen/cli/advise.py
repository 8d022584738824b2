"""`loadgen advise`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from loadgen.cli import CONTEXT, Command, given_options, parameters, say
from loadgen.errors import Interrupted, UsageError
from loadgen.options import AdviseOptions


@click.command("advise", cls=Command, context_settings=CONTEXT, params=parameters(AdviseOptions))
@click.argument("run", type=click.Path(path_type=Path))
def command(run: Path, **_: Any) -> None:
    """Say which precision serves your traffic best: GPUs, joules, CO2 and cost, from the closed-loop batches of a run.

    The number of requests in a replica follows from the measured rates at every batch and Poisson arrivals. Nothing is
    extrapolated beyond the largest batch that was measured. With --verify, each of the run's servers is started again
    as it was, gets one replica's share of the rate as Poisson arrivals, and what is measured stands beside the advice.
    Of a grid's folder, every model gets its advice.
    Exit status: 0 done, 1 something could not be compared, 2 wrong use, 130 interrupted (the same command goes on).

    \b
    Examples:
      loadgen advise runs/mistral-7b --rate 20 --slo ttft:200ms,tpot:50ms
      loadgen advise runs/mistral-7b --rate 20 --price 2.5/h --per correct
      loadgen advise runs/mistral-7b --traffic diurnal:40/5 --carbon 0.4
      loadgen advise runs/mistral-7b --rate 20 --verify --duration 2m
    """
    from loadgen.record.pool import runs_in

    options, runs = given_options(AdviseOptions), runs_in(run)
    if len(runs) > 1 and options.get("verify"):
        raise UsageError(f"--verify: {run} is a grid of {len(runs)} models; name one of them, as in {runs[0]}")
    for one in runs:
        if len(runs) > 1:
            click.echo(f"\n{one.name}")
        _advise(one, options)


def _advise(run: Path, options: Mapping[str, Any]) -> None:
    from loadgen import advise, load_run
    from loadgen.analysis.advise import ONLY_TO_VERIFY, Advice
    from loadgen.reports.advise import print_advice, print_day, print_verification
    from loadgen.reports.terminal import console_of

    console, opened = console_of(sys.stdout, width=200), load_run(run)
    if opened.shape is not None:
        others = [shape for shape in opened.manifest.config.shapes if shape != opened.shape]
        how = f"`loadgen report {run} --shape {others[0]}` changes it"
        click.echo(f"for requests of the shape {opened.shape} (tokens of prompt/answer); {how}")
    verify = options.get("verify", False)
    shown = {name: value for name, value in options.items() if name not in ("verify", *ONLY_TO_VERIFY)}
    found = advise(run, **(shown if verify and "traffic" not in options else options))
    if isinstance(found, Advice):
        print_advice(found, console)
        rate, known = found.demand.rate_per_s, bool(found.rates)
    else:
        print_day(found, console, priced="price" in options)
        rate, known = max(step.rate_per_s for step in found.steps), bool(found.chosen)
    if not verify:
        if known:
            console.print(f"Check it on the servers: {_command(run, rate, options)}", soft_wrap=True, highlight=False)
        return
    try:
        again = advise(run, **options)
    except Interrupted as stop:
        say(f"interrupted: what was measured is kept in {stop.run_dir}; the same command goes on")
        sys.exit(130)
    verification = again.verification if isinstance(again, Advice) else None
    assert verification is not None
    print_verification(verification, console)
    sys.exit(0 if verification.complete else 1)


def _command(run: Path, rate: float, options: Mapping[str, Any]) -> str:
    """What to type to verify."""
    kept = {name: value for name, value in options.items() if name not in ("traffic", "verify")} | {"rate": rate}
    typed = [f"--{name} {shlex.quote(f'{v:g}' if isinstance(v, float) else str(v))}" for name, v in kept.items()]
    return f"loadgen advise {shlex.quote(str(run))} {' '.join(typed)} --verify"
