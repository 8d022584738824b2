"""`loadgen report`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from loadgen.cli import CONTEXT


@click.command("report", context_settings=CONTEXT)
@click.argument("run", type=click.Path(path_type=Path))
def command(run: Path) -> None:
    """Recompute tables, figures and report.html of a run directory from its journal; also of a run that was killed.

    \b
    Example:
      loadgen report runs/2026-11-22-091500-tiny
    """
    from loadgen.analysis.analyse import analyse
    from loadgen.analysis.run import load_run
    from loadgen.report.html import write_report
    from loadgen.report.terminal import print_end

    analyse(run)
    opened = load_run(run)
    write_report(opened)
    print_end(opened, Console() if sys.stdout.isatty() else Console(width=200))
