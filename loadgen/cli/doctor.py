"""`loadgen doctor`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Annotated, Any, TypedDict

import click
import msgspec

from loadgen.cli import CONTEXT, Command, completed, parameters
from loadgen.doctor.examination import GRAFANA, PROMETHEUS, Examination, examine
from loadgen.doctor.finding import Mode
from loadgen.notation import server_url
from loadgen.options import Option, Served, Vllm
from loadgen.secret import Mask, visible, visible_json


# fmt: off
class DoctorOptions(TypedDict, total=False):
    mode: Annotated[Mode, Option(
        "MODE", "How the sweep's servers run: simulated, cpu, gpu or docker.", default="gpu")]
    model: Served
    vllm: Vllm
    prometheus: Annotated[str, Option("URL", "Where Prometheus should answer.", default=PROMETHEUS)]
    grafana: Annotated[str, Option("URL", "Where Grafana should answer.", default=GRAFANA)]
    json: Annotated[bool, Option("", "Print the findings as JSON.", default=False)]
# fmt: on


@click.command("doctor", cls=Command, context_settings=CONTEXT, params=parameters(DoctorOptions))
def command(**_: Any) -> None:
    """Show what works on this machine, and what to do about the rest.

    Changes nothing. Exit status 0 when a sweep could run in this mode, 1 when something it needs is missing.

    \b
    Examples:
      loadgen doctor --mode simulated
      loadgen doctor --model mistralai/Mistral-7B-Instruct-v0.3
    """
    o = completed(DoctorOptions)
    prometheus, grafana = (server_url(o[name], f"--{name}") for name in ("prometheus", "grafana"))
    vllm = None if o["vllm"] is None else str(o["vllm"])
    found = examine(o["mode"], model=o["model"], vllm=vllm, prometheus_url=prometheus, grafana_url=grafana)
    if o["json"]:
        content = {"mode": found.mode, "can_run": found.can_run, "findings": found.findings}
        click.echo(Mask()(visible_json(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())))
    else:
        click.echo(Mask()(visible(as_lines(found, shutil.get_terminal_size().columns))))
    if not found.can_run:
        sys.exit(1)


def as_lines(found: Examination, columns: int) -> str:
    """A line per finding, wrapped to the terminal, what to do under what was seen; then whether a sweep could run."""
    width = max(len(finding.check) for finding in found.findings)
    left = len("not applicable") + 2 + width + 2
    lines = []
    for finding in found.findings:
        head = f"{finding.state:14}  {finding.check:{width}}  "
        texts = [finding.seen, *([f"-> {finding.advice}"] if finding.advice else [])]
        room = max(40, columns - left)
        wrapped = [line for text in texts for line in textwrap.wrap(text, room, break_on_hyphens=False)]
        lines += [f"{head if index == 0 else ' ' * left}{line}" for index, line in enumerate(wrapped)]
    lacking = [finding.check for finding in found.findings if finding.state == "missing"]
    verdict = f"cannot run: {', '.join(lacking)}" if lacking else "can run"
    return "\n".join([*lines, "", f"A sweep in mode {found.mode} {verdict}."])
