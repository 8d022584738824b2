"""Rewrites cli.md from the commands themselves and reliability.md from the tests: `python docs/generate.py`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from loadgen.cli import COMMANDS, group
from loadgen.options import RunOptions, declared

PAGE = Path(__file__).with_name("cli.md")
RELIABILITY = Path(__file__).with_name("reliability.md")
HTTP_STATUS = re.compile(r"(?<=http-)\d{3}")
"""In the name of a fault: those that differ in it alone share a row."""
WIDTH = 78
"""What click uses on a terminal of 80 columns."""


VALUES = """
## How values are written

The same on the command line, in `--config` and in Python (as texts).

| | write | means |
|---|---|---|
| a time | `60`, `90s`, `2m`, `1h30m`, `500ms` | a plain number is in seconds, in ms for `--...-ms` |
| a share | `0.1`, `10%` | |
| a list | `1, 16, 64` | spaces and a comma at the end are allowed; `--serve fp16 --serve awq` is `--serve fp16,awq` |
| a range in a list of numbers | `1-4` or `1..4` | every whole number: 1, 2, 3, 4 |
| | `1..100x2` | 1, 2, 4, 8, 16, 32, 64: each twice the one before, none above 100 |
| | `16..64+16` | 16, 32, 48, 64: steps of 16, none above 64 |
| a name | `GSM8K`, `FP16`, `bnb_nf4` | any letter case, `-` and `_` alike; your own labels keep theirs |
| a server | `localhost:8000`, `http://localhost:8000/v1` | http:// is added and `/v1` removed |
| | `localhost:8000/v1/chat/completions` | the same server, with `--api chat` |

An option that is not a list and is given twice is refused, and so is a key that appears twice in the YAML file.
"""


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
    return "".join([*parts, VALUES, f"\n## The options of a sweep in Python and YAML\n\n{options()}\n"])


def options() -> str:
    """A table of the options of `loadgen sweep`."""
    rows = ["| Python | YAML | unit | since |", "|---|---|---|---|"]
    rows += [
        f"| `{o.name}` | `{o.flag.replace('_', '-')}` | {o.unit} | {o.since} |" for o in declared(RunOptions).values()
    ]
    return "\n".join(rows)


def reliability() -> str:
    """The whole of docs/reliability.md."""
    sys.path.insert(0, str(PAGE.parents[1] / "tests"))
    from faults import FAILED, MACHINE_FAULTS, REQUEST_FAULTS

    rows: dict[str, list[str]] = {}
    for fault in REQUEST_FAULTS.values():
        row = f"`{fault.status}`" + (f": {_cell(fault.error)}" if fault.error else "")
        row += "" if fault.next == "ok" else f"; the next one is `{fault.next}`"
        cell = "valid" if fault.cell is None else "invalid: " + _cell(fault.cell.replace(FAILED, "N of M " + FAILED))
        if not fault.in_sweep:
            cell = "invalid, as with a body"
        line = f"| {fault.name} | {_cell(fault.injected)} | {row} | {cell} | {int(fault.cell is not None)} |"
        status = HTTP_STATUS.findall(fault.name)
        rows.setdefault(line.replace(status[0], "STATUS") if status else line, []).extend(status)
    machine = [
        f"| {fault.name} | {fault.injected} | {fault.outcome} | {fault.exit_status} | "
        + "<br>".join(f"`{test.strip()}`" for test in fault.test.split(", "))
        + " |"
        for fault in MACHINE_FAULTS
    ]
    text = RELIABILITY.with_suffix(".in.md").read_text(encoding="utf-8")
    requests = [line.replace("HTTP STATUS", f"HTTP {', '.join(found)}", 1) for line, found in rows.items()]
    return text.replace("{requests}", "\n".join(requests)).replace("{machine}", "\n".join(machine))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").strip()


PAGES = {PAGE: page, RELIABILITY: reliability}

if __name__ == "__main__":
    for path, write in PAGES.items():
        path.write_text(write(), encoding="utf-8")
