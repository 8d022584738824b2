"""`loadgen simulate --explain`: the closed form as text, every precision beside FP16 and the B* where they meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from loadgen.errors import UsageError
from loadgen.serving.simulated.presets import Presets
from loadgen.serving.simulated.steadystate import SteadyState, closed_loop, crossings, decode_only, fits

REFERENCE = "fp16"
BATCHES = range(1, 257)
"""Up to vLLM's and the simulated server's default --max-num-seqs."""
SHOWN = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SAME_AS_REFERENCE = ("bf16",)
_COLUMN = 10
_Curve = Mapping[int, SteadyState]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What each client asks for, again and again."""

    prompt_tokens: int = 480
    answer_tokens: int = 80
    context_tokens: int | None = None
    """Mean context of the decode-only table; None: that of the closed loop."""

    @property
    def decode_context(self) -> float:
        return self.prompt_tokens + self.answer_tokens / 2 if self.context_tokens is None else self.context_tokens


def explain(presets: Presets, *, gpu: str, model: str, workload: Workload) -> str:
    """Tables of tokens/s, watts and joules per token by batch and precision, and every B* against FP16.

    Raises UsageError for an unknown GPU or model, or when no precision fits it.
    """
    costs = {name: presets.cost(name, gpu=gpu, model=model) for name in presets.precision}
    costs = {name: cost for name, cost in costs.items() if name not in _SAME_AS_REFERENCE}
    if not any(fits(cost, 1, workload.decode_context) for cost in costs.values()):
        raise UsageError(f"{model} fits {gpu} in no precision; choose a larger --gpu or a smaller --model")
    cost = costs[REFERENCE]
    lines = [
        f"SIMULATED {model} on {cost.gpu.name}: closed form of the cost model, nothing measured",
        f"limit {cost.gpu.limit_w:g} W, idle {cost.gpu.idle_w:g} W, memory {cost.gpu.memory_bytes / 1e9:g} GB"
        "    - does not fit",
        "",
        _row("", costs),
        _row("weights GB", [f"{cost.weight_bytes / 1e9:.2f}" for cost in costs.values()]),
    ]
    context = workload.decode_context
    decoding = {
        name: {batch: decode_only(cost, batch, context) for batch in BATCHES if fits(cost, batch, context)}
        for name, cost in costs.items()
    }
    lines += ["", f"DECODING ALONE, {context:g} tokens of context each", *_tables(decoding), *_meetings(decoding)]
    prompt, answer = workload.prompt_tokens, workload.answer_tokens
    loops = {
        name: {b: closed_loop(cost, b, prompt, answer) for b in BATCHES if fits(cost, b, prompt + answer)}
        for name, cost in costs.items()
    }
    lines += [
        "",
        f"CLOSED LOOP OF B SLOTS, prompts of {prompt} and answers of {answer} tokens, output tokens counted",
        *_tables(loops),
        *_table("prefill, share of energy", loops, lambda state: f"{state.prefill_share:.1%}"),
        *_meetings(loops),
    ]
    return "\n".join(lines)


def _tables(curves: Mapping[str, _Curve]) -> list[str]:
    return [
        *_table("tokens/s", curves, lambda state: f"{state.tokens_per_s:.1f}"),
        *_table("W", curves, lambda state: f"{state.power_w:.1f}"),
        *_table("J/token", curves, lambda state: f"{state.energy_per_token_j:.5f}"),
    ]


def _table(title: str, curves: Mapping[str, _Curve], text: Callable[[SteadyState], str]) -> list[str]:
    rows = [
        _row(f"B {batch}", [text(curve[batch]) if batch in curve else "-" for curve in curves.values()])
        for batch in SHOWN
    ]
    return ["", _row(title, curves), *rows]


def _row(label: str, cells: Sequence[str] | Mapping[str, object]) -> str:
    return f"{label:<25}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)


def _meetings(curves: Mapping[str, _Curve]) -> list[str]:
    lines = ["", f"B* against {REFERENCE}"]
    for name, curve in curves.items():
        if name == REFERENCE:
            continue
        speed = _meeting(curve, curves[REFERENCE], lambda state: 1 / state.tokens_per_s, "faster", "slower")
        energy = _meeting(curve, curves[REFERENCE], lambda state: state.energy_per_token_j, "cheaper", "dearer")
        lines.append(f"  {name:<10}tokens/s: {speed:<44}J/token: {energy}")
    return lines


def _meeting(ours: _Curve, reference: _Curve, cost: Callable[[SteadyState], float], wins: str, loses: str) -> str:
    batches = sorted(ours.keys() & reference.keys())
    if not batches:
        return "no B that fits both"
    a, b = [cost(ours[batch]) for batch in batches], [cost(reference[batch]) for batch in batches]
    found = crossings(batches, a, b)
    if not found:
        return f"{wins if a[0] < b[0] else loses} at every B up to {batches[-1]}"
    return ", ".join(f"{wins} {crossing.direction.removeprefix('wins_')} {crossing.batch:.1f}" for crossing in found)
