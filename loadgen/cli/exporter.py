"""`loadgen exporter`: GPU power and energy over HTTP, in the foreground."""

from __future__ import annotations

import click

from loadgen.cli import CONTEXT
from loadgen.errors import UsageError


@click.command("exporter", context_settings=CONTEXT)
@click.option("--port", type=int, default=9401, show_default=True, metavar="N", help="TCP port to listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Address to listen on; 0.0.0.0 lets other machines read.")  # fmt: skip
@click.option("--gpu", "gpus", metavar="UUID,...",
              help="GPUs to sample; default: those of CUDA_VISIBLE_DEVICES, or the only one there is.")  # fmt: skip
@click.option("--source", type=click.Choice(["nvml", "rapl"]), default="nvml", show_default=True,
              help="GPUs through NVML, or CPU packages through the kernel's powercap tree.")  # fmt: skip
@click.option(
    "--period-ms", type=float, default=25.0, show_default=True, metavar="MS", help="Time between two samples."
)
def command(port: int, host: str, gpus: str | None, source: str, period_ms: float) -> None:
    """Export GPU power and energy to Prometheus and to `loadgen sweep --power exporter=URL`.

    \b
    Example:
      loadgen exporter --port 9401
    """
    if not 1 <= port <= 65535:
        raise UsageError(f"--port {port} is not between 1 and 65535")
    if not 10 <= period_ms <= 1000:
        raise UsageError(f"--period-ms {period_ms:g} is not between 10 and 1000")
    asked = tuple(gpu.strip() for gpu in gpus.split(",")) if gpus is not None else None
    if asked is not None and not all(asked):
        raise UsageError(f"--gpu {gpus} has an empty entry; write UUIDs with commas between them")

    from loadgen.power.exporter import run_exporter

    run_exporter(host, port, source="nvml" if source == "nvml" else "rapl", gpus=asked, period_s=period_ms / 1e3,
                 say=click.echo)  # fmt: skip
