"""`loadgen simulate`: one simulated server in the foreground, or its closed form as text."""

from __future__ import annotations

from pathlib import Path

import click

from loadgen.cli import CONTEXT
from loadgen.errors import UsageError


@click.command("simulate", context_settings=CONTEXT)
@click.option("--precision", metavar="NAME", help="fp16, bf16, awq, gptq, bnb-nf4, bnb-int8, fp8, int8.")
@click.option("--port", type=int, metavar="N", help="TCP port to listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS")
@click.option(
    "--gpu", default="h100-like", show_default=True, metavar="NAME", help="l4, a100, h100, h200, rtx-pro-6000."
)
@click.option(
    "--model",
    default="mistral-7b",
    show_default=True,
    metavar="NAME",
    help="qwen3-0.6b, falcon3-3b, mistral-7b, qwen2.5-14b, qwen2.5-32b, qwen2.5-72b.",
)
@click.option("--cost-file", type=click.Path(path_type=Path), metavar="PATH", help="TOML with other constants.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Same seed, same answers.")
@click.option("--max-num-seqs", type=int, default=256, show_default=True, metavar="N", help="Largest running batch.")
@click.option(
    "--max-model-len", type=int, default=8192, show_default=True, metavar="N", help="Prompt + answer, tokens."
)
@click.option("--data-file", type=click.Path(path_type=Path), metavar="PATH", help="GSM8K in its published schema.")
@click.option("--accuracy", type=float, metavar="X", help="Share of right answers, 0 to 1, instead of the precision's.")
@click.option("--discordance", type=float, metavar="X", help="Share of items that only it or only FP16 gets right.")
@click.option("--reference-accuracy", type=float, metavar="X", help="FP16's share of right answers.  [default: 0.52]")
@click.option("--truncated", type=float, metavar="X", help="Share of answers that never end.")
@click.option("--unparsed", type=float, metavar="X", help="Share of answers that name no result.")
@click.option("--batch-flips", type=float, metavar="X", help="Share of items that the batch's size decides.")
@click.option(
    "--time-scale",
    type=float,
    default=1.0,
    show_default=True,
    metavar="K",
    help="K times faster; watts K times higher, J/token unchanged.",
)
@click.option(
    "--sensor-ms", type=float, default=20.0, show_default=True, metavar="MS", help="Update period of the power sensors."
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="KIND@T[:...]",
    help="reset@T, lost@T, gap@T:S, throttle@T:S, foreign@T:S:WATTS; seconds after the start. Repeatable.",
)
@click.option("--explain", is_flag=True, help="Print the closed form by batch and every B*, and end.")
@click.option("--prompt-tokens", type=int, default=480, show_default=True, metavar="N", help="For --explain.")
@click.option("--answer-tokens", type=int, default=80, show_default=True, metavar="N", help="For --explain.")
@click.option(
    "--context-tokens", type=int, metavar="N", help="For --explain, decoding alone [default: prompt + answer / 2]."
)
def command(
    precision: str | None,
    port: int | None,
    host: str,
    gpu: str,
    model: str,
    cost_file: Path | None,
    seed: int,
    max_num_seqs: int,
    max_model_len: int,
    data_file: Path | None,
    accuracy: float | None,
    discordance: float | None,
    reference_accuracy: float | None,
    truncated: float | None,
    unparsed: float | None,
    batch_flips: float | None,
    time_scale: float,
    sensor_ms: float,
    faults: tuple[str, ...],
    explain: bool,
    prompt_tokens: int,
    answer_tokens: int,
    context_tokens: int | None,
) -> None:
    """Run one simulated server: vLLM's API and metrics, and a GPU's power below /power, without a GPU.

    Nothing it says was measured; every answer and metric is stamped SIMULATED.

    \b
    Example:
      loadgen simulate --precision awq --port 8002
      loadgen simulate --explain --gpu h100 --model mistral-7b
    """
    from loadgen.serving.simulated.cost import load_presets

    presets = load_presets(cost_file)
    if explain:
        from loadgen.serving.simulated.steadystate import Workload
        from loadgen.serving.simulated.steadystate import explain as explained

        counts = (("--prompt-tokens", prompt_tokens), ("--answer-tokens", answer_tokens))
        _check_positive(*counts, ("--context-tokens", context_tokens))
        workload = Workload(prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, context_tokens=context_tokens)
        click.echo(explained(presets, gpu=gpu, model=model, workload=workload))
        return
    if precision is None:
        raise UsageError("--precision is missing; name one, such as --precision awq, or ask with --explain")
    if port is None:
        raise UsageError("--port is missing; name one, such as --port 8002, or ask with --explain")
    if not 1 <= port <= 65535:
        raise UsageError(f"--port {port} is not between 1 and 65535")
    _check_positive(("--max-num-seqs", max_num_seqs), ("--max-model-len", max_model_len))
    if not 0.01 <= time_scale <= 1000:
        raise UsageError(f"--time-scale {time_scale} is not between 0.01 and 1000")
    if not 1 <= sensor_ms <= 1000:
        raise UsageError(f"--sensor-ms {sensor_ms} is not between 1 and 1000")

    import uvloop

    from loadgen.address import http_url, listen
    from loadgen.power.simulated import Sensors, parse_faults
    from loadgen.serving.simulated.answers import BEHAVIOURS, known_items
    from loadgen.serving.simulated.cost import speed_up
    from loadgen.serving.simulated.engine import EngineLimits
    from loadgen.serving.simulated.metrics import GpuOptions
    from loadgen.serving.simulated.server import SimulatedServer, serve

    cost = speed_up(presets.cost(precision, gpu=gpu, model=model), time_scale)
    behaviour = BEHAVIOURS[precision].but(
        accuracy=accuracy,
        discordance=discordance,
        truncated=truncated,
        unparsed=unparsed,
        batch_flips=batch_flips,
        reference_accuracy=reference_accuracy,
    )
    server = SimulatedServer(
        cost,
        precision=precision,
        gpu=GpuOptions(
            preset=gpu, sensors=Sensors.of_period(sensor_ms / 1e3), faults=parse_faults(faults), time_scale=time_scale
        ),
        items=known_items(data_file),
        seed=seed,
        limits=EngineLimits(max_num_seqs=max_num_seqs, max_model_len=max_model_len),
        behaviour=behaviour,
    )
    listening = listen(host, port, backlog=1024)
    ready = f"SIMULATED {precision} server ready on {http_url(host, port)} (no GPU, nothing measured)"
    announce = f"{ready}\n{server.memory_report}"
    uvloop.run(serve(server, listening, host=host, on_ready=lambda: click.echo(announce)))


def _check_positive(*options: tuple[str, int | None]) -> None:
    for option, number in options:
        if number is not None and number < 1:
            raise UsageError(f"{option} {number} is not a positive number")
