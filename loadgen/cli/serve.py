"""`loadgen serve`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, BinaryIO, TypedDict

import click
from platformdirs import user_log_path

from loadgen.cli import CONTEXT, Command, completed, parameters, say
from loadgen.errors import ServerError, UsageError
from loadgen.options import Host, MaxModelLen, Option, Served, StartTimeout, Vllm
from loadgen.secret import secrets_of, visible, visible_message
from loadgen.serving.checkpoint import token_warning
from loadgen.serving.hub import Derivatives, is_hub_id
from loadgen.serving.launch import Launch, confirm_checkpoint, find_vllm, plan_launch
from loadgen.serving.process import Patience, ServerProcess
from loadgen.serving.recipe import Device, Dtype, NoCheckpoint, Recipe, in_serve, load_recipe, load_recipes
from loadgen.serving.requirements import require_device, require_packages


# fmt: off
class ServeOptions(TypedDict, total=False):
    model: Served
    checkpoint: Annotated[str | None, Option("ID", "Serve this quantized checkpoint instead of the recipe's choice.")]
    device: Annotated[Device, Option("DEVICE", "cuda or cpu.", default="cuda")]
    port: Annotated[int, Option("N", "TCP port to listen on.", default=8000, between=(1, 65535))]
    host: Host
    max_num_seqs: Annotated[int, Option(
        "N", "Largest batch; at least the largest concurrency that you will ask for.", default=256)]
    tensor_parallel: Annotated[int | None, Option(
        "N", "GPUs that share the model.", otherwise="the recipe's, 1", between=(1, 32767))]
    max_model_len: MaxModelLen
    dtype: Annotated[Dtype | None, Option(
        "TYPE", "Activations: float16 or bfloat16.", otherwise="float16 on cuda, bfloat16 on cpu")]
    start_timeout: StartTimeout
    vllm: Vllm
    listing: Annotated[bool, Option(
        "", "Show every recipe, or with --model what each would serve, and exit.", default=False, flag="list")]
    printing: Annotated[bool, Option(
        "", "Show the command and its environment; start nothing.", default=False, flag="print")]
# fmt: on


@click.command("serve", cls=Command, context_settings=CONTEXT, params=parameters(ServeOptions))
@click.argument("name", required=False)
@click.argument("extra_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM_ARGS]")
def command(name: str | None, extra_args: tuple[str, ...], **_: Any) -> None:
    """Run one vLLM server from its recipe, in the foreground; Ctrl-C stops it.

    What follows `--` goes to vLLM unchanged. Ends with status 1 when the server crashes or does not run its recipe.

    \b
    Examples:
      loadgen serve --list
      loadgen serve --list --model Qwen/Qwen3-8B
      loadgen serve awq --model mistralai/Mistral-7B-Instruct-v0.3 --print
      loadgen serve bnb-nf4 --model ~/models/my-model --port 8001 -- --gpu-memory-utilization 0.8
    """
    o = completed(ServeOptions)
    model, device, dtype = o["model"], o["device"], o["dtype"]
    if o["listing"]:
        recipes = load_recipes()
        click.echo(recipe_table(recipes) if model is None else checkpoint_table(recipes, model))
        return
    if name is None:
        raise UsageError("serve needs the NAME of a recipe; `loadgen serve --list` shows them")
    recipe = load_recipe(name)
    name = recipe.name
    if model is None and o["checkpoint"] is None:
        raise UsageError(f"serve {name} needs --model, a Hugging Face id or a folder, or --checkpoint")
    if dtype and recipe.dtype and dtype != recipe.dtype:
        raise UsageError(f"recipe {name!r} fixes its activations to {recipe.dtype}; omit --dtype {dtype}")
    named = None if o["vllm"] is None else str(o["vllm"])
    if not o["printing"]:
        require_device(recipe, device)
    checkpoint = o["checkpoint"] or _chosen(recipe, str(model))
    launch = plan_launch(
        recipe, model=model or "", device=device, dtype=dtype, checkpoint=checkpoint, naming=in_serve,
        port=o["port"], host=o["host"],
        vllm=find_vllm(device, named) if named or not o["printing"] else _vllm_to_show(device),
        max_num_seqs=o["max_num_seqs"], tensor_parallel=o["tensor_parallel"], max_model_len=o["max_model_len"],
        extra_args=extra_args,
    )  # fmt: skip
    if o["printing"]:
        click.echo(launch.shell)
        return
    require_packages(recipe, launch.argv[0])
    confirm_checkpoint(launch, in_serve)
    if launch.device == "cuda":
        from loadgen.measure.power import gpus_needed, serving_gpus

        serving_gpus(None, gpus_needed({name: launch}))
    if warning := token_warning():
        say(warning)
    if secrets_of(extra_args, {}):
        say("every user of this machine can read the secret in this command line: use VLLM_API_KEY or HF_TOKEN_FILE")
    try:
        _serve(launch, user_log_path("loadgen") / f"serve-{name}-{launch.port}.log", float(o["start_timeout"]))
    except ServerError as error:
        say(str(error))
        sys.exit(1)


def _chosen(recipe: Recipe, model: str) -> str | None:
    """The checkpoint that the hub is asked for, where the recipe knows none; None: the recipe decides."""
    try:
        recipe.checkpoint_for(model, in_serve)
    except NoCheckpoint:
        if not is_hub_id(model):
            raise
        found = Derivatives(model).choose(recipe, in_serve)
        say(f"{recipe.name} serves {found}")
        return found.id
    return None


def checkpoint_table(recipes: dict[str, Recipe], model: str) -> str:
    """One aligned line per recipe: what it would serve for this model, or why it cannot."""
    listed, rows = Derivatives(model), []
    for recipe in recipes.values():
        try:
            served = recipe.checkpoint_for(model, in_serve)
            in_flight = bool(recipe.in_flight_args) and served == model
            rows.append((recipe.name, served + ", quantized while loading" * in_flight))
        except NoCheckpoint as error:
            rows.append((recipe.name, _listed(listed, recipe) if is_hub_id(model) else error.row))
        except UsageError as error:
            rows.append((recipe.name, f"not clear: {error}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {served}" for name, served in [("NAME", f"SERVES FOR {model}"), *rows])


def _listed(listed: Derivatives, recipe: Recipe) -> str:
    try:
        return str(listed.choose(recipe, in_serve))
    except NoCheckpoint as error:
        return error.row
    except UsageError as error:
        return f"not clear: {error}"


def recipe_table(recipes: dict[str, Recipe]) -> str:
    """One aligned line per recipe, under a heading."""
    heading = ("NAME", "PRECISION", "BITS", "GPU FROM", "CPU", "CHECKPOINTS", "WEIGHTS")
    rows = [heading, *(_row(recipe) for recipe in recipes.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(recipe: Recipe) -> tuple[str, ...]:
    weights = "the 16-bit checkpoint" if recipe.checkpoint == "same" else "its own checkpoint"
    if recipe.in_flight_args:
        weights += ", quantized while loading" if recipe.checkpoint == "same" else ", else quantized while loading"
    cpu = "none" if recipe.cpu_refusal else " ".join(recipe.cpu_flags) or "any"
    gpu = recipe.gpu_capability + (f" (native {recipe.native_capability})" if recipe.native_capability else "")
    return recipe.name, recipe.label, str(recipe.bits or "-"), gpu, cpu, _known(recipe), weights


def _known(recipe: Recipe) -> str:
    counts = {"verified": len(recipe.checkpoints), "unverified": len(recipe.unverified_checkpoints)}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "-"


def _vllm_to_show(device: Device) -> str:
    """The command's path, or its bare name where none is installed: a plan may be for another machine."""
    try:
        return find_vllm(device)
    except UsageError:
        return "vllm"


def _serve(launch: Launch, log_path: Path, start_timeout_s: float) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    click.echo(f"$ {visible_message(launch.shell)}", err=True)
    with ServerProcess(launch, log_path) as server:
        try:
            _follow(server, start_timeout_s)
        except KeyboardInterrupt:
            say("stopping the server")
            for warning in server.stop():
                say(warning)


def _follow(server: ServerProcess, start_timeout_s: float) -> None:
    """Copy the log to the terminal until the server ends, and say when it is ready."""
    ready, patience = False, Patience(server, start_timeout_s)
    with server.log_path.open("rb") as log:
        log.seek(server.log_offset)
        while True:
            _copy(log)
            server.check_alive()
            if not ready and server.is_ready():
                server.verify()
                ready = True
                _say(server)
            elif not ready:
                patience.check()
            time.sleep(0.2)


def _say(server: ServerProcess) -> None:
    facts = server.facts()
    kept = "" if facts.kv_cache_dtype is None else f", KV cache {facts.kv_cache_dtype}"
    held = "" if facts.quantization is None else f" with {facts.quantization}{kept}"
    for remark in facts.remarks:
        say(remark)
    say(f"{server.launch.name} is ready at {server.launch.url}{held}")


def _copy(log: BinaryIO) -> None:
    """Shows the new whole lines of the log, which is masked already; control characters are escaped."""
    written = log.read()
    end = written.rfind(b"\n") + 1
    log.seek(end - len(written), os.SEEK_CUR)
    lines = written[:end].decode("utf-8", "backslashreplace").replace("\r\n", "\n").replace("\r", "\n")
    sys.stdout.write(visible(lines))
    sys.stdout.flush()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
