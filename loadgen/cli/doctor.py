"""`loadgen doctor`."""

from __future__ import annotations

import shutil
import sys
import textwrap

import click
import msgspec

from loadgen.cli import CONTEXT
from loadgen.doctor.examination import GRAFANA, PROMETHEUS, Examination, examine
from loadgen.doctor.finding import Mode
from loadgen.errors import UsageError
from loadgen.secret import Mask, visible, visible_json


@click.command("doctor", context_settings=CONTEXT)
@click.option("--mode", type=click.Choice(["simulated", "cpu", "gpu", "docker"]), default="gpu", show_default=True,
              help="How the sweep's servers are to be run.")  # fmt: skip
@click.option("--model", metavar="MODEL", help="The 16-bit model to be served: a Hugging Face id or a folder.")
@click.option("--vllm", metavar="PATH", help="The vllm command; default LOADGEN_VLLM, cpu-env's, or PATH's.")
@click.option("--prometheus", metavar="URL", default=PROMETHEUS, show_default=True,
              help="Where Prometheus should answer.")  # fmt: skip
@click.option("--grafana", metavar="URL", default=GRAFANA, show_default=True,
              help="Where Grafana should answer.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(mode: Mode, model: str | None, vllm: str | None, prometheus: str, grafana: str, as_json: bool) -> None:
    """What works on this machine, and what to do about the rest.

    Changes nothing. Exit status 0 when a sweep could run in this mode, 1 when something it needs is missing.

    \b
    Examples:
      loadgen doctor --mode simulated
      loadgen doctor --model mistralai/Mistral-7B-Instruct-v0.3
    """
    for option, url in (("--prometheus", prometheus), ("--grafana", grafana)):
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{option} {url} is no URL; write it with http:// or https://")
    found = examine(mode, model=model, vllm=vllm, prometheus_url=prometheus, grafana_url=grafana)
    lines = as_text_json(found) if as_json else as_lines(found, shutil.get_terminal_size().columns)
    click.echo(Mask()(visible_json(lines) if as_json else visible(lines)))
    if not found.can_run:
        sys.exit(1)


def as_text_json(found: Examination) -> str:
    """The examination as an indented JSON object: mode, can_run, findings."""
    content = {"mode": found.mode, "can_run": found.can_run, "findings": found.findings}
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()


def as_lines(found: Examination, columns: int) -> str:
    """A line per finding, wrapped to the terminal, what to do under what was seen; then whether a sweep could run."""
    width = max(len(finding.check) for finding in found.findings)
    left = len("not applicable") + 2 + width + 2
    lines = []
    for finding in found.findings:
        head = f"{finding.state:14}  {finding.check:{width}}  "
        told = [finding.seen, *([f"-> {finding.advice}"] if finding.advice else [])]
        wrapped = [
            line for part in told for line in textwrap.wrap(part, max(40, columns - left), break_on_hyphens=False)
        ]
        lines += [f"{head if index == 0 else ' ' * left}{line}" for index, line in enumerate(wrapped)]
    lacking = [finding.check for finding in found.findings if finding.state == "missing"]
    verdict = f"cannot run: {', '.join(lacking)}" if lacking else "can run"
    return "\n".join([*lines, "", f"A sweep in mode {found.mode} {verdict}."])
