"""`loadgen report`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import click

from loadgen.cli import CONTEXT, Command, completed, given_options, parameters
from loadgen.errors import UsageError
from loadgen.notation import entries, number
from loadgen.options import OutputOptions, ReportOptions


@click.command(
    "report", cls=Command, context_settings=CONTEXT, params=parameters(ReportOptions) + parameters(OutputOptions)
)
@click.argument("run", type=click.Path(path_type=Path))
def command(run: Path, **_: Any) -> None:
    """Recompute tables, figures and report.html of a run directory from its journal; also of a run that was killed.

    Of a grid's folder: report.html of every run, the comparison, and a report.html that leads to them.

    \b
    Examples:
      loadgen report runs/2026-11-22-091500-tiny
      loadgen report runs/2026-11-22-091500-tiny --weights 0.6,0.2,0.2 --alpha 1
      loadgen report runs/2026-11-22-091500-tiny --slo ttft:200ms,tpot:50ms
      loadgen report /mnt/colleague/runs/a --out a-report
      loadgen report runs/2026-11-22-091500-tiny --format markdown > result.md
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is loaded: threads that wait for work spin

    from loadgen import report
    from loadgen.record.grid import is_grid
    from loadgen.reports.output import write_run

    options, form = given_options(ReportOptions), completed(OutputOptions)["format"]
    if "weights" in options:
        options["weights"] = _three(options["weights"])
    if is_grid(run):
        from loadgen.reports.html.grid import write_index

        if "out" in options:
            raise UsageError(
                f"--out {options['out']}: {run} is a grid, whose pages are written into its folder; omit it"
            )
        click.echo(f"Report: {write_index(run, partial(report, **options))}")
        return
    write_run(report(run, **options), form)


def _three(text: str) -> tuple[float, float, float]:
    try:
        t, e, s = (number(part, "share") for part in entries(text))
    except ValueError:
        raise UsageError(
            f"--weights {text} is not three numbers; write T,E,S such as 0.34,0.33,0.33 or 34%,33%,33%"
        ) from None
    return t, e, s
