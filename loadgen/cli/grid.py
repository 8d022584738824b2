"""`loadgen grid`."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from loadgen.cli import CONTEXT, Command, completed, parameters
from loadgen.errors import Interrupted
from loadgen.options import GridOptions, OutputOptions


@click.command("grid", cls=Command, context_settings=CONTEXT,
               params=parameters(GridOptions) + parameters(OutputOptions))  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show tasks, GPUs and expected minutes; start nothing.")
@click.argument("study", metavar="[STUDY.toml]", required=False, type=click.Path(path_type=Path))
def command(study: Path | None, dry_run: bool, **_: Any) -> None:
    """Measure a study on the GPUs of a Ray cluster: models x precisions x datasets, a task per model and GPU.

    All precisions of a model are measured on the same GPU in one task, so that a difference between two GPUs is none
    between precisions. At the end all tasks are compared. Exit status: 0 done, 1 some tasks failed, 2 wrong use, 130
    interrupted (finished tasks are kept).

    \b
    Examples:
      loadgen grid study.toml --dry-run
      loadgen grid study.toml --ray-address auto --out grids/qwen3
      loadgen grid --resume grids/qwen3 --ray-address auto
    """
    from loadgen import compare
    from loadgen.cluster.run import archive_of, grid, rehearse
    from loadgen.record.grid import read_grid
    from loadgen.reports.grid import LiveTasks, PlainTasks, QuietTasks, failed_tasks, rehearsal_lines
    from loadgen.reports.output import write_comparison
    from loadgen.reports.terminal import console_of

    options, form = completed(GridOptions), completed(OutputOptions)["format"]
    result, messages = console_of(sys.stdout, width=200), console_of(sys.stderr, width=200)
    if dry_run:
        for line in rehearsal_lines(rehearse(study, options), result.width):
            result.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    with contextlib.ExitStack() as stack:
        view = QuietTasks(messages) if options["quiet"] else PlainTasks(messages)
        if messages.is_terminal and not messages.is_dumb_terminal and not options["quiet"]:
            view = stack.enter_context(LiveTasks(messages))
        try:
            folder = grid(study, options, view)
        except Interrupted as stop:
            kept = f"finished tasks are kept in {stop.run_dir}"
            click.echo(
                f"Interrupted: {kept}; to go on: loadgen grid --resume {shlex.quote(str(stop.run_dir))}", err=True
            )
            sys.exit(130)
    record = read_grid(folder)
    if failed := failed_tasks(record):
        again = f"to try again: loadgen grid --resume {shlex.quote(str(folder))}"
        click.echo(f"{len(failed)} of {len(record.tasks)} tasks failed: {', '.join(failed)}; {again}", err=True)
    if len(failed) < len(record.tasks):
        write_comparison(compare(folder, out=folder), form)
        if archive := archive_of(options):
            archive.put(folder, ("compare.csv", "compare.json", "compare.html", "figures"))
        click.echo(f"Report: {folder / 'compare.html'}", err=form != "table")
    sys.exit(1 if failed else 0)
