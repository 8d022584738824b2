"""Rewrites docs/cli.md from the commands themselves: `python docs/generate.py`."""

from __future__ import annotations

from pathlib import Path

import click

from loadgen.cli import COMMANDS, group

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 78
"""What click uses on a terminal of 80 columns."""


def help_of(*names: str) -> str:
    """What `loadgen NAMES --help` prints on a terminal of 80 columns."""
    command: click.Command = group
    context = click.Context(group, info_name="loadgen", terminal_width=WIDTH, **group.context_settings)
    for name in names:
        child = group.get_command(context, name)
        assert child is not None
        command = child
        context = click.Context(child, info_name=name, parent=context, terminal_width=WIDTH)
    return command.get_help(context)


def page() -> str:
    """The whole of docs/cli.md."""
    head = "# Commands\n\nWhat `--help` prints. Rewritten by `python docs/generate.py`; do not edit by hand.\n"
    parts = [head, f"\n```text\n{help_of()}\n```\n"]
    parts += [f"\n## loadgen {name}\n\n```text\n{help_of(name)}\n```\n" for name in COMMANDS]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
