"""`loadgen report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from loadgen.analysis.indices.formulas import Form
from loadgen.cli import CONTEXT
from loadgen.errors import UsageError


@click.command("report", context_settings=CONTEXT)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--alpha", type=float, default=0.5, show_default=True, metavar="A",
              help="Speed's share of E_SI; memory has the rest.")  # fmt: skip
@click.option("--weights", default="0.34,0.33,0.33", show_default=True, metavar="T,E,S", help="Of the pillars in SI.")
@click.option("--s-form", type=click.Choice(get_args(Form)), default="linear", show_default=True,
              help="Of S_SI: the ratio of joules, or Eq. 5's logarithms with their unit.")  # fmt: skip
@click.option("--carbon", type=float, metavar="G", help="Grid intensity, kgCO2e/kWh [default: the sweep's].")
@click.option("--slo", metavar="LIMITS", help="What a good request keeps: ttft:200ms,tpot:50ms [default: the sweep's].")
@click.option("--start-sd", metavar="SD",
              help="One repeat: the noise between starts of a server, as 1.5% [default: the sweep's].")  # fmt: skip
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path),
              help="Write everything there and nothing into RUN: for runs that you may only read.")  # fmt: skip
def command(run: Path, weights: str, **choices: Any) -> None:
    """Recompute tables, figures and report.html of a run directory from its journal; also of a run that was killed.

    \b
    Examples:
      loadgen report runs/2026-11-22-091500-tiny
      loadgen report runs/2026-11-22-091500-tiny --weights 0.6,0.2,0.2 --alpha 1
      loadgen report runs/2026-11-22-091500-tiny --slo ttft:200ms,tpot:50ms
      loadgen report /mnt/colleague/runs/a --out a-report
    """
    from loadgen import report
    from loadgen.reports.terminal import print_end
    from loadgen.reports.words import stdout_console

    print_end(report(run, weights=_three(weights), **choices), stdout_console(width=200))


def _three(text: str) -> tuple[float, float, float]:
    try:
        t, e, s = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--weights {text} is not three numbers; write T,E,S such as 0.34,0.33,0.33") from None
    return t, e, s
