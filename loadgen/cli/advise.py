"""`loadgen advise`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from loadgen.cli import CONTEXT, Command, given_options, parameters
from loadgen.options import AdviseOptions


@click.command("advise", cls=Command, context_settings=CONTEXT, params=parameters(AdviseOptions))
@click.argument("run", type=click.Path(path_type=Path))
def command(run: Path, **_: Any) -> None:
    """Say which precision serves your traffic best: GPUs, joules, CO2 and cost, from the closed-loop batches of a run.

    The number of requests in a replica follows from the measured rates at every batch and Poisson arrivals. Nothing is
    extrapolated beyond the largest batch that was measured.

    \b
    Examples:
      loadgen advise runs/mistral-7b --rate 20 --slo ttft:200ms,tpot:50ms
      loadgen advise runs/mistral-7b --rate 20 --price 2.5/h --per correct
      loadgen advise runs/mistral-7b --traffic diurnal:40/5 --carbon 0.4
    """
    from loadgen import advise, load_run
    from loadgen.analysis.advise import Advice
    from loadgen.reports.advise import print_advice, print_day
    from loadgen.reports.terminal import console_of

    options, opened = given_options(AdviseOptions), load_run(run)
    if opened.shape is not None:
        others = [shape for shape in opened.manifest.config.shapes if shape != opened.shape]
        how = f"`loadgen report {run} --shape {others[0]}` changes it"
        click.echo(f"for requests of the shape {opened.shape} (tokens of prompt/answer); {how}", err=True)
    found, console = advise(run, **options), console_of(sys.stdout, width=200)
    if isinstance(found, Advice):
        print_advice(found, console)
    else:
        print_day(found, console, priced="price" in options)
