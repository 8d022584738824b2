"""`loadgen simulate`: one simulated server in the foreground, or its closed form as text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypedDict

import click

from loadgen.cli import CONTEXT, Command, completed, given_options, parameters
from loadgen.errors import UsageError
from loadgen.options import Host, Option

SHARES = ("accuracy", "discordance", "truncated", "unparsed", "batch_flips", "reference_accuracy")


# fmt: off
class SimulateOptions(TypedDict, total=False):
    precision: Annotated[str | None, Option(
        "NAME", "Simulated precision: fp16, bf16, awq, gptq, bnb-nf4, bnb-int8, fp8, int8.")]
    port: Annotated[int | None, Option("N", "TCP port to listen on.", between=(1, 65535))]
    host: Host
    gpu: Annotated[str, Option("NAME", "l4, a100, h100, h200, rtx-pro-6000.", default="h100-like")]
    model: Annotated[str, Option(
        "NAME", "qwen3-0.6b, qwen2.5-3b, falcon3-3b, mistral-7b, llama-3.1-8b, qwen3-8b, qwen2.5-14b, qwen3-14b, "
        "qwen2.5-32b, qwen3-32b, qwen2.5-72b.", default="mistral-7b")]
    cost_file: Annotated[str | None, Option("PATH", "TOML file with other constants of the cost model.")]
    seed: Annotated[int, Option("N", "Seed of the answers.", default=0, zero=True)]
    max_num_seqs: Annotated[int, Option("N", "Largest running batch.", default=256)]
    max_model_len: Annotated[int, Option("N", "Most tokens of prompt and answer together.", default=8192)]
    num_gpu_blocks_override: Annotated[int | None, Option(
        "N", "Blocks of 16 tokens of its KV cache.", otherwise="all that the GPU has room for")]
    data_file: Annotated[str | None, Option("PATH", "GSM8K's file: its questions get answers too.")]
    accuracy: Annotated[float | str | None, Option(
        "X", "Share of right answers instead of the precision's, as in 0.4 or 40%.", unit="share", zero=True)]
    discordance: Annotated[float | str | None, Option(
        "X", "Share of items that only it or only FP16 gets right.", unit="share", zero=True)]
    reference_accuracy: Annotated[float | str | None, Option(
        "X", "FP16's share of right answers.", otherwise="0.52", unit="share", zero=True)]
    truncated: Annotated[float | str | None, Option(
        "X", "Share of answers that never end.", unit="share", zero=True)]
    unparsed: Annotated[float | str | None, Option(
        "X", "Share of answers without a result.", unit="share", zero=True)]
    batch_flips: Annotated[float | str | None, Option(
        "X", "Share of items that the batch's size decides.", unit="share", zero=True)]
    time_scale: Annotated[float, Option(
        "K", "K times faster; watts K times higher, J/token unchanged.", default=1.0, between=(0.01, 1000))]
    sensor_ms: Annotated[float, Option(
        "MS", "Update period of the power sensors.", default=20.0, unit="ms", between=(1, 1000))]
    fault: Annotated[tuple[str, ...], Option(
        "KIND@T[:...]", "reset@T, lost@T, gap@T:S, throttle@T:S, foreign@T:S:WATTS; seconds after the start. "
        "Repeatable.", default=(), repeatable=True)]
    explain: Annotated[bool, Option("", "Print the closed form by batch and every B*, and exit.", default=False)]
    prompt_tokens: Annotated[int, Option("N", "For --explain: tokens of a prompt.", default=480)]
    answer_tokens: Annotated[int, Option("N", "For --explain: tokens of an answer.", default=80)]
    context_tokens: Annotated[int | None, Option(
        "N", "For --explain, decoding alone: tokens in the KV cache per sequence.", otherwise="prompt + answer / 2")]
# fmt: on


@click.command("simulate", cls=Command, context_settings=CONTEXT, params=parameters(SimulateOptions))
def command(**_: Any) -> None:
    """Run one simulated server: vLLM's API and metrics, and a GPU's power below /power, without a GPU.

    Nothing that it returns was measured; every answer and metric is stamped SIMULATED.

    \b
    Example:
      loadgen simulate --precision awq --port 8002
      loadgen simulate --explain --gpu h100 --model mistral-7b
    """
    from loadgen.serving.simulated.cost import load_presets

    o = completed(SimulateOptions)
    presets = load_presets(Path(o["cost_file"]) if o["cost_file"] else None)
    port, host, gpu, model = o["port"], o["host"], presets.named("gpu", o["gpu"]), presets.named("model", o["model"])
    if o["explain"]:
        from loadgen.serving.simulated.cost import Workload
        from loadgen.serving.simulated.cost import explain as explained

        context = o["context_tokens"]
        workload = Workload(prompt_tokens=o["prompt_tokens"], answer_tokens=o["answer_tokens"], context_tokens=context)
        click.echo(explained(presets, gpu=gpu, model=model, workload=workload))
        return
    if o["precision"] is None:
        raise UsageError("--precision is missing; name one, such as --precision awq, or ask with --explain")
    precision = presets.named("precision", o["precision"])
    if port is None:
        raise UsageError("--port is missing; name one, such as --port 8002, or ask with --explain")

    import uvloop

    from loadgen.power.simulated import Sensors, parse_faults
    from loadgen.serving.simulated.answers import BEHAVIOURS, known_items
    from loadgen.serving.simulated.cost import speed_up
    from loadgen.serving.simulated.engine import EngineLimits, GpuOptions
    from loadgen.serving.simulated.server import SimulatedServer, serve
    from loadgen.webserver import http_url, listen

    shares = {name: value for name, value in given_options(SimulateOptions).items() if name in SHARES}
    server = SimulatedServer(
        speed_up(presets.cost(precision, gpu=gpu, model=model), o["time_scale"]),
        precision=precision,
        gpu=GpuOptions(
            preset=gpu, sensors=Sensors.of_period(o["sensor_ms"] / 1e3), faults=parse_faults(o["fault"]),
            time_scale=o["time_scale"],
        ),
        items=known_items(Path(o["data_file"]) if o["data_file"] else None),
        seed=o["seed"],
        limits=EngineLimits(
            max_num_seqs=o["max_num_seqs"], max_model_len=o["max_model_len"],
            num_gpu_blocks_override=o["num_gpu_blocks_override"],
        ),
        behaviour=BEHAVIOURS[precision].but(**shares),
    )  # fmt: skip
    listening = listen(host, port, backlog=1024)
    ready = f"SIMULATED {precision} server ready on {http_url(host, port)} (no GPU, nothing measured)"
    announce = f"{ready}\n{server.memory_report}"
    uvloop.run(serve(server, listening, host=host, on_ready=lambda: click.echo(announce)))
