"""`loadgen compose`: the Docker Compose project, for those without a checkout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from loadgen.cli import CONTEXT, Command
from loadgen.errors import UsageError
from loadgen.notation import did_you_mean, entries, number, spelled
from loadgen.serving.compose import DEFAULT, MODEL, SERVICES, checkpoint_of, sized_environment, write_project
from loadgen.serving.recipe import data_dir, load_recipe
from loadgen.serving.requirements import GIB, REQUEST_TOKENS, Sizing, fit, size_of


@click.command("compose", cls=Command, context_settings=CONTEXT)
@click.option("--dir", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path("loadgen-compose"),
              show_default=True, help="Where to write it.")  # fmt: skip
@click.option("--model", default=MODEL, show_default=True, metavar="ID", help="The 16-bit model that is served.")
@click.option("--serve", metavar="NAMES", multiple=True, help="Services to size for, e.g. fp16,awq=ORG/MODEL-AWQ.  "
              "[default: those of fp16, awq, gptq, bnb-nf4 that have a checkpoint]")  # fmt: skip
@click.option(
    "--gpu-memory", metavar="GIB", multiple=True, help="Memory of the GPU, of several as 80,80.  [default: NVML's]"
)
@click.option(
    "--concurrency",
    metavar="LIST",
    multiple=True,
    help="Batch sizes that must fit.  [default: 1,16,64,128, or what fits]",
)
@click.option("--tokens", type=click.IntRange(1, 2**20), default=REQUEST_TOKENS, show_default=True, metavar="N",
              help="Longest prompt and answer together.")  # fmt: skip
@click.option("--tensor-parallel", metavar="N", multiple=True,
              help="GPUs that share a model; NAME=N,... for some services only.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the project's files in a folder that already holds them.")
@click.option("--print-env", is_flag=True, help="Print the .env for the GPU and write nothing.")
@click.option("--print-dir", is_flag=True, help="Show where the packaged files are and write nothing.")
def command(
    folder: Path,
    model: str,
    serve: tuple[str, ...],
    gpu_memory: tuple[str, ...],
    concurrency: tuple[str, ...],
    tokens: int,
    tensor_parallel: tuple[str, ...],
    force: bool,
    print_env: bool,
    print_dir: bool,
) -> None:
    """Write out the Docker Compose project: servers, exporter, Prometheus, Grafana and its dashboards.

    Its .env is sized for the GPU: batch sizes, the KV cache that fits beside the heaviest weights, and which servers
    are up together. Without a GPU on this machine, give --gpu-memory.

    \b
    Examples:
      loadgen compose --dir stack --gpu-memory 24
      loadgen compose --dir stack --model Qwen/Qwen2.5-14B-Instruct --serve fp16,awq --concurrency 1,16,64
      loadgen compose --dir stack --model Qwen/Qwen2.5-72B-Instruct --gpu-memory 80,80 --tensor-parallel fp16=2
      loadgen sweep --compose stack
      cd stack/docker && COMPOSE_PROFILES=simulated docker compose up
    """
    if print_dir:
        click.echo(data_dir())
        return
    chosen = _chosen(",".join(serve), model)
    sizing = _sizing(
        model, list(chosen), ",".join(gpu_memory) or None, ",".join(concurrency) or None, tokens,
        ",".join(tensor_parallel) or None,
    )  # fmt: skip
    if print_env:
        if sizing is None:
            raise UsageError("--print-env: the memory of this machine's GPU is unknown; give --gpu-memory GIB")
        click.echo(sized_environment(model, sizing, chosen), nl=False)
        return
    folder = folder.expanduser()
    write_project(folder, force=force)
    if sizing is None:
        click.echo("The GPU's memory is unknown, so docker/.env is not sized: give --gpu-memory GIB")
    else:
        (folder / "docker" / ".env").write_text(sized_environment(model, sizing, chosen), encoding="utf-8")
        for sentence in _sentences(model, sizing):
            click.echo(sentence)
    click.echo(f"Wrote {folder}. One server after another:  loadgen sweep --compose {folder}")
    click.echo(f"Servers that stay up:       cd {folder}/docker && docker compose up")
    click.echo(f"Without a GPU (SIMULATED):  COMPOSE_PROFILES=simulated loadgen sweep --compose {folder}")


def _sizing(
    model: str,
    names: list[str],
    gpu_memory: str | None,
    concurrency: str | None,
    tokens: int,
    tensor_parallel: str | None,
) -> Sizing | None:
    """What fits; None if the GPU's memory is unknown."""
    from loadgen.measure.config import batch_sizes, gpu_counts

    levels = None if concurrency is None else batch_sizes(concurrency)
    shared = None if tensor_parallel is None else gpu_counts(tensor_parallel, names)
    gpus = _gpus(gpu_memory)
    if not gpus:
        if shared:
            raise UsageError(
                f"--tensor-parallel {tensor_parallel}: give the memory of each GPU, as in --gpu-memory 80,80"
            )
        return None
    if (size := size_of(model, online=True)) is None:
        raise UsageError(f"--model {model}: no config.json on this machine or the hub says its size; give a folder")
    recipes = {name: load_recipe(name) for name in names}
    return fit(size, recipes, [gib * GIB for gib in gpus], concurrency=levels, tokens=tokens, tensor_parallel=shared)


def _sentences(model: str, sizing: Sizing) -> Iterator[str]:
    """What was sized, and what does not fit."""
    levels = ",".join(map(str, sizing.concurrency))
    each = {name: f" on each of {count}" for name, count in sizing.shared.items() if count > 1}
    needs = ", ".join(f"{name} {need / GIB:.1f}{each.get(name, '')}" for name, need in sizing.needs.items())
    kept = f"a KV cache of {sizing.kv_cache_bytes / GIB:.1f} GiB"
    yield f"{model} on {min(sizing.gpus) / GIB:.3g} GiB: B = {levels}, {kept}; GiB that each server needs: {needs}"
    for name, need in sizing.left_out.items():
        more = f" (--tensor-parallel {name}=N lets N GPUs share it)" if len(sizing.gpus) > sizing.shared[name] else ""
        yield f"{name} needs {need / GIB:.1f} GiB{each.get(name, '')} and does not fit: it is left out{more}"
    if alone := [name for name in sizing.needs if name not in sizing.placed]:
        yield f"one at a time, not together with the others: {', '.join(alone)}"


def _chosen(serve: str, model: str) -> dict[str, str]:
    """The services, each with its checkpoint."""
    chosen = {}
    for entry in entries(serve) if serve else DEFAULT:
        name, _, given = (part.strip() for part in entry.partition("="))
        if (name := spelled(name, SERVICES)) not in SERVICES:
            hint = f"{did_you_mean(name, SERVICES)}it has {', '.join(SERVICES)}"
            raise UsageError(f"--serve {entry}: the project has no such service; {hint}")
        checkpoint, _ = checkpoint_of(load_recipe(name), model)
        if given or not checkpoint.startswith("set-"):
            chosen[name] = given or checkpoint
        elif serve:
            raise UsageError(f"--serve {name}: no checkpoint of {model} is known; give one, as in {name}=ORG/NAME")
    return chosen


def _gpus(gpu_memory: str | None) -> list[float]:
    """GiB of each GPU; empty if unknown."""
    if gpu_memory is None:
        from loadgen.doctor.hardware import seen_gpus

        try:
            totals = [gpu.info.memory_total_bytes for gpu in seen_gpus()[0]]
        except UsageError:
            return []
        return [total / GIB for total in totals if total]
    try:
        gpus = [number(part, "GiB") for part in entries(gpu_memory)]
    except ValueError:
        gpus = []
    if not gpus or not all(1 <= gib <= 10_000 for gib in gpus):
        raise UsageError(f"--gpu-memory {gpu_memory}: give the GiB of each GPU, as in 24 or 80,80GiB")
    return gpus
