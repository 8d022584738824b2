"""`loadgen compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loadgen.cli import CONTEXT, Command, completed, parameters
from loadgen.errors import UsageError
from loadgen.options import OutputOptions


@click.command("compare", cls=Command, context_settings=CONTEXT, params=parameters(OutputOptions))
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--size", "sizes", metavar="NAME=N", multiple=True,
              help="Parameters of a run's, model's or target's model, as 7.25B. Repeatable.")  # fmt: skip
@click.option("--import", "imports", metavar="TOOL[:LABEL]=FILE", multiple=True,
              help="Also another tool's result: vllm-bench, guidellm or aiperf. Repeatable.")  # fmt: skip
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path),
              help="Write compare.csv, compare.json and compare.html there.")  # fmt: skip
def command(
    runs: tuple[Path, ...], sizes: tuple[str, ...], imports: tuple[str, ...], out: Path | None, **_: Any
) -> None:
    """Compare runs: two as a difference, several by COR over model size with N*; and published figures with ours.

    \b
    Example:
      loadgen compare runs/before runs/after --out compared
      loadgen compare runs/qwen-7b runs/qwen-14b runs/qwen-32b --out compared
      loadgen compare runs/mistral-7b --size mistral-7b=7.25B --import vllm-bench:fp16=fp16.json
    """
    from loadgen import compare
    from loadgen.reports.output import write_comparison

    form, size = completed(OutputOptions)["format"], {}
    for entry in sizes:
        name, equals, number = entry.rpartition("=")
        if not equals or not name:
            raise UsageError(f"--size {entry} is not NAME=N; write --size RUN=7.25B")
        size[name] = number
    comparison = compare(*runs, size=size, imports=imports, out=out)
    write_comparison(comparison, form)
    if out is not None:
        click.echo(f"Report: {out / 'compare.html'}", err=form != "table")
