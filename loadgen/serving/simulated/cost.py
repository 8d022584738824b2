"""The cost of a step of the simulated engine: seconds and watts, pure functions of batch, context and prefill.

docs/simulator.md derives the formulas; presets.toml has the GPUs, models and precisions, with sources. The steady state
in closed form: rates at each batch, and the B* where two precisions meet, as `loadgen simulate --explain` shows them.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.notation import did_you_mean, spelled
from loadgen.serving.simulated.answers import BEHAVIOURS

MEMORY_SHARE = 0.92
"""vLLM's default --gpu-memory-utilization."""
BLOCK_TOKENS = 16
"""KV cache is reserved in blocks of so many tokens."""


class Activity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Share of a GPU's dynamic power (limit - idle) that each kind of work draws while it lasts.

    Fitted to ML.ENERGY's Llama-3.1-8B on H100, except `dequant`, which is assumed.
    """

    memory: float = 0.72
    compute: float = 0.90
    sequence: float = 0.80
    dequant: float = 0.55
    """Dequantization, and kernels that FP16 does not run."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU: what bounds a step, and its power."""

    name: str
    memory_bytes: float
    bandwidth_bytes_s: float
    bandwidth_share: float = 1.0
    """Share of the bandwidth that kernels reach."""
    compute_flops: float
    """16-bit dense tensor throughput, FLOP/s."""
    compute_share: float = 1.0
    launch_s: float
    """Scheduling and graph launch of one step; the GPU idles."""
    sequence_s: float = 0.0
    """Sampling and attention beyond the model's arithmetic, per sequence and step."""
    limit_w: float
    """Board power limit."""
    idle_w: float
    activity: Activity = Activity()
    source: str = ""


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dense decoder-only model, by the sizes in its config.json."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    source: str = ""

    @property
    def linear_params(self) -> float:
        """Weights of the layers' linear maps, which quantization shrinks."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def head_params(self) -> float:
        """Weights of the output head, 16 bits in every precision."""
        return self.vocab * self.hidden

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token in all layers, 16 bits each."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2


class Precision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the linear weights are stored, and the cost of multiplying with them."""

    bits: float
    """Bits per linear weight, scales and zero points included."""
    compute_factor: float = 1.0
    """Tensor throughput over the GPU's 16-bit throughput."""
    extra_s_per_layer: float = 0.0
    """Kernels that a step runs in addition to those of FP16."""
    buffer_bytes_per_weight: float = 0.0
    """Traffic per weight and step for a dequantized copy in memory."""
    dequant_flops_per_weight: float = 0.0
    """Dequantization inside the matrix kernels per weight and token of the step, as FLOPs of the 16-bit throughput."""
    dequant_token_cap: float = math.inf
    """Tokens per step from which on the kernels dequantize only once per step."""
    source: str = ""


class Step(msgspec.Struct, frozen=True):
    """The cost of one engine step."""

    duration_s: float
    power_w: float
    """Mean over the step."""

    @property
    def energy_j(self) -> float:
        return self.duration_s * self.power_w


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a precision on a GPU."""

    gpu: Gpu
    model: Model
    precision: Precision

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights that a step reads."""
        return self.model.linear_params * self.precision.bits / 8 + self.model.head_params * 2

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens whose keys and values fit next to the weights; 0 or less when the weights alone do not fit."""
        return int((MEMORY_SHARE * self.gpu.memory_bytes - self.weight_bytes) // self.model.kv_bytes_per_token)

    @property
    def kv_blocks(self) -> int:
        """Whole blocks of the KV cache; 0 or less when the weights alone do not fit."""
        return self.kv_capacity_tokens // BLOCK_TOKENS

    def step(self, *, batch: float, context_tokens: float, prefill_tokens: float) -> Step:
        """Seconds and watts of a step.

        `batch` sequences decode one token each over `context_tokens` cached tokens in all, and `prefill_tokens`
        prompt tokens are processed beside them.
        """
        gpu, model, precision = self.gpu, self.model, self.precision
        bandwidth = gpu.bandwidth_bytes_s * gpu.bandwidth_share
        compute = gpu.compute_flops * gpu.compute_share
        linear_params = model.linear_params
        tokens = batch + prefill_tokens
        memory_s = (self.weight_bytes + context_tokens * model.kv_bytes_per_token) / bandwidth
        compute_s = 2 * (linear_params + model.head_params) * tokens / (compute * precision.compute_factor)
        buffer_s = linear_params * precision.buffer_bytes_per_weight / bandwidth
        dequant_flops = linear_params * precision.dequant_flops_per_weight * min(tokens, precision.dequant_token_cap)
        dequant_s = dequant_flops / compute
        sequence_s = gpu.sequence_s * batch
        extra_s = precision.extra_s_per_layer * model.layers
        duration_s = gpu.launch_s + extra_s + max(memory_s, compute_s) + buffer_s + dequant_s + sequence_s
        activity = gpu.activity
        busy_s = (
            activity.memory * (memory_s + buffer_s)
            + activity.compute * compute_s
            + activity.dequant * (dequant_s + extra_s)
            + activity.sequence * sequence_s
        )
        return Step(duration_s, gpu.idle_w + (gpu.limit_w - gpu.idle_w) * min(1.0, busy_s / duration_s))


def speed_up(cost: Cost, factor: float) -> Cost:
    """The same work `factor` times faster at `factor` times the power: joules per token do not change."""
    gpu, precision = cost.gpu, cost.precision
    rates = {name: getattr(gpu, name) * factor for name in ("bandwidth_bytes_s", "compute_flops", "limit_w", "idle_w")}
    times = {name: getattr(gpu, name) / factor for name in ("launch_s", "sequence_s")}
    return Cost(
        gpu=msgspec.structs.replace(gpu, **rates, **times),
        model=cost.model,
        precision=msgspec.structs.replace(precision, extra_s_per_layer=precision.extra_s_per_layer / factor),
    )


DEFAULT_GPU = "h100-like"
DEFAULT_MODEL = "mistral-7b"
MAY_BE_ZERO = ("launch_s", "sequence_s", "idle_w", "extra_s_per_layer", "buffer_bytes_per_weight",
               "dequant_flops_per_weight")  # fmt: skip


class Presets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be simulated, by name."""

    gpu: dict[str, Gpu]
    model: dict[str, Model]
    precision: dict[str, Precision]

    def named(self, kind: str, text: str) -> str:
        """The name of a gpu, model or precision in its own letters; raises UsageError for an unknown one."""
        table = getattr(self, kind)
        if (name := spelled(text, table)) not in table:
            raise UsageError(f"no simulated {kind} {text!r}; {did_you_mean(text, table)}choose from {', '.join(table)}")
        return name

    def cost(self, precision: str, *, gpu: str = DEFAULT_GPU, model: str = DEFAULT_MODEL) -> Cost:
        """The cost model of that choice; raises UsageError for an unknown name."""
        return Cost(
            gpu=self.gpu[self.named("gpu", gpu)],
            model=self.model[self.named("model", model)],
            precision=self.precision[self.named("precision", precision)],
        )


def load_presets(cost_file: Path | None = None) -> Presets:
    """The built-in presets; tables and single values of `cost_file` replace theirs.

    Raises UsageError for a file that is missing, is not TOML, or has an unknown key or a value of the wrong type.
    """
    tables = tomllib.loads(resources.files(__package__).joinpath("presets.toml").read_text(encoding="utf-8"))
    if cost_file is None:
        return msgspec.convert(tables, Presets)
    try:
        _lay_over(tables, tomllib.loads(read_file(cost_file).decode()))
        presets = msgspec.convert(tables, Presets)
        _check(presets)
    except OSError as error:
        raise UsageError(f"--cost-file {cost_file}: {error.strerror}; give a TOML file") from None
    except ValueError as error:
        raise UsageError(f"--cost-file {cost_file}: {error}; see docs/simulator.md for its form") from None
    return presets


def _lay_over(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = value


def _check(presets: Presets) -> None:
    """Raises ValueError for presets from which no cost or no answer can be computed."""
    if unknown := presets.precision.keys() - BEHAVIOURS.keys():
        raise ValueError(f"no answers for precision {', '.join(sorted(unknown))}, only for {', '.join(BEHAVIOURS)}")
    for kind, table in (("gpu", presets.gpu), ("model", presets.model), ("precision", presets.precision)):
        for name, entry in table.items():
            for field, value in msgspec.structs.asdict(entry).items():
                if isinstance(value, int | float) and not (value > 0 or (value == 0 and field in MAY_BE_ZERO)):
                    raise ValueError(f"{field} = {value} of {kind}.{name} is not positive")
    for name, gpu in presets.gpu.items():
        if gpu.idle_w >= gpu.limit_w:
            raise ValueError(f"idle_w = {gpu.idle_w} of gpu.{name} is not below limit_w = {gpu.limit_w}")


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
