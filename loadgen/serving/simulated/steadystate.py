"""The steady state in closed form: the rates of a simulated server at each batch, and where two precisions meet.

Also the text of `loadgen simulate --explain`: every precision beside FP16, with the B* where they meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from loadgen.errors import UsageError
from loadgen.serving.simulated.cost import BLOCK_TOKENS, Cost, Presets

_NEGLIGIBLE = 1e-12


class SteadyState(msgspec.Struct, frozen=True, kw_only=True):
    """Rates of an engine whose batch does not change in the mean."""

    running: float
    """Mean sequences in a step."""
    tokens_per_s: float
    power_w: float
    prefill_share: float
    """The share of the energy that prompts cause."""

    @property
    def energy_per_token_j(self) -> float:
        return self.power_w / self.tokens_per_s


class Crossing(msgspec.Struct, frozen=True):
    """Where one precision stops being better than another."""

    batch: float
    direction: Literal["wins_below", "wins_above"]


def decode_only(cost: Cost, batch: int, context_tokens: float) -> SteadyState:
    """`batch` sequences that all decode, each over `context_tokens` cached tokens."""
    step = cost.step(batch=batch, context_tokens=batch * context_tokens, prefill_tokens=0)
    return SteadyState(running=batch, tokens_per_s=batch / step.duration_s, power_w=step.power_w, prefill_share=0.0)


def closed_loop(cost: Cost, slots: int, prompt_tokens: float, answer_tokens: float) -> SteadyState:
    """`slots` clients that each send their next request when the last is answered, at independent phases.

    A request takes part in `answer_tokens` steps: one for its prompt and first token, and one for each further token. A
    step begins when the one before ends, so a slot's next request misses it, unless the slot is alone. At a random
    instant each slot is in its prompt's step with probability q = 1 / (answer_tokens + missed), so the number k of
    prompts in a step is binomial(slots, q). Rates are means over k; the decoding batch of a given k is taken at its
    mean. This holds while the prompts of a step fit into its token budget (8192).
    """
    missed = 1 if slots > 1 else 0
    cycle = answer_tokens + missed
    mean_context = prompt_tokens + answer_tokens / 2
    seconds = joules = decode_joules = 0.0
    for prompts, probability in _binomial(slots, 1 / cycle):
        others = slots - prompts
        batch = others * (answer_tokens - 1) / (cycle - 1) if cycle > 1 else 0.0
        context = batch * mean_context
        step = cost.step(batch=batch, context_tokens=context, prefill_tokens=prompts * prompt_tokens)
        seconds += probability * step.duration_s
        joules += probability * step.energy_j
        if batch:
            decode_joules += probability * cost.step(batch=batch, context_tokens=context, prefill_tokens=0).energy_j
    running = slots * answer_tokens / cycle
    return SteadyState(
        running=running,
        tokens_per_s=running / seconds,
        power_w=joules / seconds,
        prefill_share=1 - decode_joules / joules,
    )


def fits(cost: Cost, slots: int, tokens: float) -> bool:
    """Whether the KV cache holds `slots` sequences of that many tokens at once."""
    blocks = math.ceil(tokens / BLOCK_TOKENS)
    return slots * blocks * BLOCK_TOKENS <= cost.kv_capacity_tokens


def crossings(batches: Sequence[int], ours: Sequence[float], reference: Sequence[float]) -> list[Crossing]:
    """Sign changes of ours - reference, two costs by ascending batch, interpolated on the logarithm of their ratio."""
    found = []
    logs = [math.log(a / b) for a, b in zip(ours, reference, strict=True)]
    for i in range(1, len(logs)):
        before, after = logs[i - 1], logs[i]
        if (before < 0) != (after < 0):
            share = before / (before - after)
            batch = batches[i - 1] + share * (batches[i] - batches[i - 1])
            found.append(Crossing(batch, "wins_below" if before < 0 else "wins_above"))
    return found


def _binomial(n: int, p: float) -> Iterator[tuple[int, float]]:
    """Outcomes and probabilities of binomial(n, p), without the negligible tails."""
    for k in range(n + 1):
        if p == 1.0:
            probability = float(k == n)
        else:
            log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
            probability = math.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p))
        if probability > _NEGLIGIBLE:
            yield k, probability


REFERENCE = "fp16"
BATCHES = range(1, 257)
"""Up to vLLM's and the simulated server's default --max-num-seqs."""
SHOWN = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SAME_AS_REFERENCE = ("bf16",)
_COLUMN = 10
_Curve = Mapping[int, SteadyState]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of each client."""

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
    names = [name for name in presets.precision if name not in _SAME_AS_REFERENCE]
    costs = {name: presets.cost(name, gpu=gpu, model=model) for name in names}
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
    context, prompt, answer = workload.decode_context, workload.prompt_tokens, workload.answer_tokens
    decoding = {
        name: {batch: decode_only(cost, batch, context) for batch in BATCHES if fits(cost, batch, context)}
        for name, cost in costs.items()
    }
    loops = {
        name: {b: closed_loop(cost, b, prompt, answer) for b in BATCHES if fits(cost, b, prompt + answer)}
        for name, cost in costs.items()
    }
    for title, curves in (
        (f"DECODING ALONE, {context:g} tokens of context each", decoding),
        (f"CLOSED LOOP OF B SLOTS, prompts of {prompt} and answers of {answer} tokens, output tokens counted", loops),
    ):
        lines += ["", title]
        lines += _table("tokens/s", curves, lambda state: f"{state.tokens_per_s:.1f}")
        lines += _table("W", curves, lambda state: f"{state.power_w:.1f}")
        lines += _table("J/token", curves, lambda state: f"{state.energy_per_token_j:.5f}")
        if curves is loops:
            lines += _table("prefill, share of energy", curves, lambda state: f"{state.prefill_share:.1%}")
        lines += ["", f"B* against {REFERENCE}"]
        lines += [_meetings(name, curve, curves[REFERENCE]) for name, curve in curves.items() if name != REFERENCE]
    return "\n".join(lines)


def _table(title: str, curves: Mapping[str, _Curve], text: Callable[[SteadyState], str]) -> list[str]:
    rows = [
        _row(f"B {batch}", [text(curve[batch]) if batch in curve else "-" for curve in curves.values()])
        for batch in SHOWN
    ]
    return ["", _row(title, curves), *rows]


def _row(label: str, cells: Sequence[str] | Mapping[str, object]) -> str:
    return f"{label:<25}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)


def _meetings(name: str, curve: _Curve, reference: _Curve) -> str:
    speed = _meeting(curve, reference, lambda state: 1 / state.tokens_per_s, "faster", "slower")
    energy = _meeting(curve, reference, lambda state: state.energy_per_token_j, "cheaper", "dearer")
    return f"  {name:<10}tokens/s: {speed:<44}J/token: {energy}"


def _meeting(ours: _Curve, reference: _Curve, cost: Callable[[SteadyState], float], wins: str, loses: str) -> str:
    batches = sorted(ours.keys() & reference.keys())
    if not batches:
        return "no B that fits both"
    a, b = [cost(ours[batch]) for batch in batches], [cost(reference[batch]) for batch in batches]
    found = crossings(batches, a, b)
    if not found:
        return f"{wins if a[0] < b[0] else loses} at every B up to {batches[-1]}"
    return ", ".join(f"{wins} {crossing.direction.removeprefix('wins_')} {crossing.batch:.1f}" for crossing in found)
