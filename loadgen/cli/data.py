"""`loadgen data`."""

from __future__ import annotations

import sys

import click

from loadgen.cli import CONTEXT, Command, Group
from loadgen.errors import UsageError
from loadgen.notation import did_you_mean, entries, spelled
from loadgen.synonyms import DATA_COMMANDS
from loadgen.workload.dataset import FILES, PLATINUM_SOURCE
from loadgen.workload.published import PublishedFile, cache_dir, fetch, state_of


class DataGroup(Group):
    synonyms = DATA_COMMANDS


@click.group("data", cls=DataGroup, context_settings=CONTEXT, invoke_without_command=True)
@click.pass_context
def data(ctx: click.Context) -> None:
    """List, fetch and verify the published question sets; each is pinned by its sha256.

    \b
    Example:
      loadgen data
      loadgen data fetch gsm8k mathqa
      loadgen data verify
    """
    if ctx.invoked_subcommand is None:
        _print_states([file for files in FILES.values() for file in files])
        click.echo("jsonl, choices     files of your own, named with --data-file")
        click.echo(f"gsm8k:platinum     named with --data-file; from {PLATINUM_SOURCE}")


@data.command("fetch", cls=Command, context_settings=CONTEXT)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def fetch_command(names: tuple[str, ...]) -> None:
    """Download the files of datasets into the cache, unless they are there already.

    \b
    Example:
      loadgen data fetch gsm8k
    """
    for file in _files(names):
        click.echo(f"{file.name}  {fetch(file)}")


@data.command("verify", cls=Command, context_settings=CONTEXT)
@click.argument("names", nargs=-1, metavar="[NAME]...")
def verify_command(names: tuple[str, ...]) -> None:
    """Compare cached files with their pinned sha256; exit status 1 when one is absent or damaged.

    \b
    Example:
      loadgen data verify gsm8k
    """
    files = _files(names or tuple(FILES))
    _print_states(files)
    if any(state_of(file) != "cached" for file in files):
        sys.exit(1)


def _files(names: tuple[str, ...]) -> list[PublishedFile]:
    chosen = [spelled(name, FILES) for text in names for name in entries(text)]
    for name in chosen:
        if name not in FILES:
            hint = f"{did_you_mean(name, FILES)}known: {', '.join(FILES)}"
            raise UsageError(f"{name!r} is not a published dataset; {hint}")
    return [file for name in dict.fromkeys(chosen) for file in FILES[name]]


def _print_states(files: list[PublishedFile]) -> None:
    click.echo(f"cache: {cache_dir()}")
    for file in files:
        click.echo(f"{file.name:18} {file.size_bytes:>9,} bytes  sha256 {file.sha256}  {state_of(file)}")


command = data
