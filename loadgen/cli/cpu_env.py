"""`loadgen cpu-env`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from loadgen.cli import CONTEXT, Command
from loadgen.serving.environment import CpuEnvironment, build, default_environment
from loadgen.workload.questions import SAMPLE_FILE


@click.command("cpu-env", cls=Command, context_settings=CONTEXT)
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Its folder.  [default: in the cache folder]")
@click.option("--text", "texts", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="More text for the tokenizer, e.g. GSM8K's JSONL; repeatable.")  # fmt: skip
@click.option("--trained", is_flag=True, help="Also train a tiny model that solves word problems (minutes).")
@click.option("--rebuild", is_flag=True, help="Start again even if the environment is complete.")
def command(folder: Path | None, texts: tuple[Path, ...], trained: bool, rebuild: bool) -> None:
    """Build an environment with vLLM's CPU build and tiny models, to try `sweep --serve` without a GPU.

    About 4 GB of disk and some minutes; a complete environment is reused. LOADGEN_CPU_ENV names another folder.

    The tiny models answer with noise. --trained adds one whose accuracy can be measured, as bf16, bnb-nf4 and int8.

    \b
    Examples:
      loadgen cpu-env
      loadgen cpu-env --trained
    """
    environment = CpuEnvironment(folder.expanduser().absolute()) if folder else default_environment()
    build(environment, texts=[SAMPLE_FILE, *texts], trained=trained, rebuild=rebuild, say=partial(click.echo, err=True))
    prefix = f"LOADGEN_CPU_ENV={environment.root} " if folder else ""
    tries = {environment.model: "--concurrency 1,4,16 --dataset sample"}
    if trained:
        problems = f"--dataset jsonl --data-file {environment.problems}"
        tries[environment.trained] = f"--concurrency 16 {problems} --requests 600 --repeats 1"
    for model, options in tries.items():
        click.echo(f"\nModel: {model}\nTry:\n  {prefix}loadgen sweep --serve bf16,bnb-nf4,int8 "
                   f"--model {model} --device cpu {options}")  # fmt: skip
