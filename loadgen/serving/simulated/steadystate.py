"""The steady state in closed form: what a simulated server must show at each batch, and where two precisions meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from loadgen.serving.simulated.cost import Cost

BLOCK_TOKENS = 16
_NEGLIGIBLE = 1e-12


class SteadyState(msgspec.Struct, frozen=True, kw_only=True):
    """Rates of an engine whose batch does not change in the mean."""

    running: float
    """Mean sequences in a step."""
    tokens_per_s: float
    power_w: float
    prefill_share: float
    """Part of the energy that is there because of prompts."""

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

    A request takes part in `answer_tokens` steps: one that processes its prompt and yields its first token, and one
    for each further token. A step begins at once when the one before ends, so that a slot's next request misses it;
    only a slot that is alone finds the engine idle. At an instant chosen at random each slot is therefore with
    probability q = 1 / (answer_tokens + missed) in the step that takes its prompt, and the number k of prompts in a
    step is binomial(slots, q). Rates are means over k; the decoding batch of a given k is taken at its mean.
    Holds as long as the prompts of a step fit into its token budget (8192), which they do unless they are long.
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
    """Every sign change of ours - reference, two costs (less is better) by ascending batch; between two batches the
    place is interpolated on the logarithm of their ratio."""
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
    """Outcome and probability of binomial(n, p), the negligible tails left out."""
    for k in range(n + 1):
        if p == 1.0:
            probability = float(k == n)
        else:
            log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
            probability = math.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p))
        if probability > _NEGLIGIBLE:
            yield k, probability
