"""`loadgen regrade`."""

from __future__ import annotations

from pathlib import Path

import click

from loadgen.cli import CONTEXT, Command


@click.command("regrade", cls=Command, context_settings=CONTEXT)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--grader",
    is_flag=True,
    help="List each answer that the stored grader and this one read differently, with both readings and their rules.",
)
def command(run: Path, grader: bool) -> None:
    """Grade the stored answers of a run again, without GPU or server, and rewrite its tables and report.

    Prints how many verdicts changed, and from what to what.

    \b
    Example:
      loadgen regrade runs/2026-11-22-091500-tiny
      loadgen regrade --grader runs/2026-11-22-091500-tiny
    """
    from loadgen.analysis.run import load_run, regrade
    from loadgen.reports.html import write_report
    from loadgen.secret import visible_line

    result = regrade(run)
    write_report(load_run(run))
    changed = result.changed
    if changed is None:
        click.echo(f"{result.graded} answers graded for the first time")
        return
    click.echo(f"{result.graded} answers graded, {sum(changed.values())} verdicts changed")
    if grader:
        click.echo(f"grader {result.before} → {result.now}: docs/grading.md says what each version reads")
    for (old, new), count in changed.items():
        click.echo(f"{count:6}  {visible_line(old)} → {visible_line(new)}")
    for change in result.changes if grader else ():
        click.echo(visible_line(f"{change.times:6}  {change.item_id}: {change.before} → {change.now}"))
