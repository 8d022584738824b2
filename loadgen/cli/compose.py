"""`loadgen compose`: the Docker Compose project, for those without a checkout."""

from __future__ import annotations

from pathlib import Path

import click

from loadgen.cli import CONTEXT
from loadgen.serving.compose import write_project
from loadgen.serving.recipe import data_dir


@click.command("compose", context_settings=CONTEXT)
@click.option("--dir", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path("loadgen-compose"),
              show_default=True, help="Where to write it.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the project's files in a folder that already holds them.")
@click.option("--print-dir", is_flag=True, help="Show where the packaged files are and write nothing.")
def command(folder: Path, force: bool, print_dir: bool) -> None:
    """Write out the Docker Compose project: servers, exporter, Prometheus, Grafana and its dashboards.

    \b
    Example:
      loadgen compose --dir stack
      cd stack/docker && COMPOSE_PROFILES=simulated docker compose up
    """
    if print_dir:
        click.echo(data_dir())
        return
    write_project(folder.expanduser(), force=force)
    click.echo(f"Wrote {folder}. On a GPU host:    cd {folder}/docker && docker compose up")
    click.echo(f"Without a GPU (SIMULATED):  cd {folder}/docker && COMPOSE_PROFILES=simulated docker compose up")
