"""`loadgen quantize`."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, cast

import click

from loadgen.cli import CONTEXT, Command, completed, given_options, parameters, say
from loadgen.errors import UsageError
from loadgen.options import Option, QuantizeOptions


# fmt: off
class Options(QuantizeOptions, total=False):
    env: Annotated[bool, Option("", "Install llm-compressor and exit.", default=False)]
    rebuild: Annotated[bool, Option("", "With --env: start again even if it is complete.", default=False)]
# fmt: on


@click.command("quantize", cls=Command, context_settings=CONTEXT, params=parameters(Options))
def command(**_: Any) -> None:
    """Make checkpoints of a 16-bit model in other formats, which `sweep --serve` then finds.

    llm-compressor, the vLLM project's library, does it in a Python environment that --env installs once
    (LOADGEN_QUANTIZE_ENV names its folder). A checkpoint that is there already, made from the same inputs, is kept. Its
    loadgen_quantize.json says how it was made.

    \b
    Examples:
      loadgen quantize --env
      loadgen quantize --model ~/models/mine --to w4a16-gptq,fp8
      loadgen quantize --model Qwen/Qwen3-0.6B --to int8 --calibration mine.jsonl
    """
    from loadgen.serving.quantize import build_environment, quantize
    from loadgen.serving.quantize_plan import arms_of, device_here, plan_quantize

    o = completed(Options)
    if o["env"] or o["rebuild"]:
        if not o["env"]:
            raise UsageError("--rebuild needs --env: it installs llm-compressor again")
        build_environment(rebuild=o["rebuild"], say=say)
        if o["model"] is None:
            return
    plan = plan_quantize(cast(QuantizeOptions, given_options(QuantizeOptions)))
    places = quantize(plan, say)
    for place in places.values():
        click.echo(place)
    arms = arms_of(places, plan.model)
    if arms:
        reference, device = ("bf16", " --device cpu") if device_here() == "cpu" else ("fp16", "")
        served = shlex.quote(",".join([reference, *arms]))
        say(f"to measure them: loadgen sweep --serve {served} --model {shlex.quote(plan.model)}{device}")
