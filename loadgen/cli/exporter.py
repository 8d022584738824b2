"""`loadgen exporter`: GPU power and energy over HTTP, in the foreground."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

import click

from loadgen.cli import CONTEXT, Command, completed, parameters
from loadgen.errors import UsageError
from loadgen.notation import entries
from loadgen.options import Host, Option


# fmt: off
class ExporterOptions(TypedDict, total=False):
    port: Annotated[int, Option("N", "TCP port to listen on.", default=9401, between=(1, 65535))]
    host: Annotated[Host, "127.0.0.1; 0.0.0.0 lets other machines read"]
    gpu: Annotated[str | None, Option(
        "UUID,...", "GPUs to sample.", otherwise="those of CUDA_VISIBLE_DEVICES, or the only one", joint=",")]
    source: Annotated[Literal["nvml", "rapl"], Option(
        "SOURCE", "nvml (GPUs), or rapl: CPU packages through the kernel's powercap tree.", default="nvml")]
    period_ms: Annotated[float, Option(
        "MS", "Time between two samples.", default=25.0, unit="ms", between=(10, 1000))]
# fmt: on


@click.command("exporter", cls=Command, context_settings=CONTEXT, params=parameters(ExporterOptions))
def command(**_: Any) -> None:
    """Export GPU power and energy to Prometheus and to `loadgen sweep --power exporter=URL`.

    \b
    Example:
      loadgen exporter --port 9401
    """
    o = completed(ExporterOptions)
    gpus = None if o["gpu"] is None else tuple(entries(o["gpu"]))
    if gpus is not None and not all(gpus):
        raise UsageError(f"--gpu {o['gpu']} has an empty entry; write UUIDs with commas between them")

    from loadgen.power.exporter import run_exporter

    period_s = o["period_ms"] / 1e3
    run_exporter(o["host"], o["port"], source=o["source"], gpus=gpus, period_s=period_s, say=click.echo)
