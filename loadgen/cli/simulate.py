"""`loadgen simulate`: one simulated server in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from loadgen.errors import UsageError


@click.command()
@click.option("--precision", required=True, metavar="NAME", help="fp16, bf16, awq, gptq, bnb-nf4, bnb-int8, fp8, int8.")
@click.option("--port", type=int, required=True, metavar="N", help="TCP port to listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Same seed, same answers.")
@click.option("--max-num-seqs", type=int, default=256, show_default=True, metavar="N", help="Largest running batch.")
@click.option(
    "--max-model-len", type=int, default=8192, show_default=True, metavar="N", help="Prompt + answer, tokens."
)
@click.option("--data-file", type=click.Path(path_type=Path), metavar="PATH", help="GSM8K in its published schema.")
@click.option("--accuracy", type=float, metavar="X", help="Share of right answers, 0 to 1, instead of the precision's.")
def command(
    precision: str,
    port: int,
    host: str,
    seed: int,
    max_num_seqs: int,
    max_model_len: int,
    data_file: Path | None,
    accuracy: float | None,
) -> None:
    """Run one simulated server: vLLM's API and metrics without a GPU.

    Nothing it says was measured; every answer and metric is stamped SIMULATED.

    \b
    Example:
      loadgen simulate --precision awq --port 8002
    """
    if not 1 <= port <= 65535:
        raise UsageError(f"--port {port} is not between 1 and 65535")
    for option, number in (("--max-num-seqs", max_num_seqs), ("--max-model-len", max_model_len)):
        if number < 1:
            raise UsageError(f"{option} {number} is not a positive number")
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise UsageError(f"--accuracy {accuracy} is not between 0 and 1")

    import uvloop

    from loadgen.serving.simulated.engine import EngineLimits
    from loadgen.serving.simulated.questions import known_items
    from loadgen.serving.simulated.server import SimulatedServer, open_socket, serve

    server = SimulatedServer(
        precision=precision,
        items=known_items(data_file),
        seed=seed,
        limits=EngineLimits(max_num_seqs=max_num_seqs, max_model_len=max_model_len),
        accuracy=accuracy,
    )
    listening = open_socket(host, port)
    ready = f"SIMULATED {precision} server ready on http://{host}:{port} (no GPU, nothing measured)"
    uvloop.run(serve(server, listening, on_ready=lambda: click.echo(ready)))
