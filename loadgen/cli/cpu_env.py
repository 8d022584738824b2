"""`loadgen cpu-env`."""

from __future__ import annotations

from pathlib import Path

import click

from loadgen.cli import CONTEXT
from loadgen.serving.cpu_env import CpuEnvironment, build, default_environment
from loadgen.workload.sample import SAMPLE_FILE


@click.command("cpu-env", context_settings=CONTEXT)
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Where; default: the user's cache folder.")
@click.option("--text", "texts", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="More text for the tokenizer, e.g. GSM8K's JSONL; repeatable.")  # fmt: skip
@click.option("--rebuild", is_flag=True, help="Start again even if the environment is complete.")
def command(folder: Path | None, texts: tuple[Path, ...], rebuild: bool) -> None:
    """Build an environment with vLLM's CPU build and tiny models, to try `sweep --serve` without a GPU.

    About 4 GB of disk and some minutes; a complete environment is reused. LOADGEN_CPU_ENV names another folder.

    \b
    Example:
      loadgen cpu-env
    """
    environment = CpuEnvironment(folder.expanduser().absolute()) if folder else default_environment()
    build(environment, texts=[SAMPLE_FILE, *texts], rebuild=rebuild, say=click.echo)
    prefix = f"LOADGEN_CPU_ENV={environment.root} " if folder else ""
    click.echo(f"\nModel: {environment.model}\nTry:\n  {prefix}loadgen sweep --serve bf16,bnb-nf4,int8 "
               f"--model {environment.model} --device cpu --concurrency 1,4,16 --dataset sample")  # fmt: skip
