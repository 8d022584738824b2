"""The closed form against the engine itself in virtual time, and the crossings that follow from it."""

import random

import pytest

from loadgen.serving.simulated.cost import Crossing, closed_loop, crossings, decode_only, fits, load_presets
from loadgen.serving.simulated.engine import Engine, EngineLimits, EngineStats, Sequence

PRESETS = load_presets()


class ClosedLoop:
    """Slots at independent phases before an engine in virtual time.

    As over a socket, the request that follows an answer arrives when the next step has begun, unless the engine idles.
    """

    def __init__(self, cost, slots, prompt_tokens, answer_tokens, rng):
        self.stats = EngineStats()
        self.engine = Engine(cost, EngineLimits(), self.stats)
        self.shape = (prompt_tokens, answer_tokens)
        self.answered = 0
        self.steps = self.seconds = self.joules = 0
        self.cycle = answer_tokens + (slots > 1)
        self.starts = [rng.randrange(self.cycle) if slots > 1 else 0 for _ in range(slots)]

    def submit(self, requests):
        prompt_tokens, answer_tokens = self.shape
        for _ in range(requests):
            self.engine.submit(
                Sequence(
                    prompt_tokens=prompt_tokens,
                    output_tokens=answer_tokens,
                    finish_reason="length",
                    arrival_s=self.seconds,
                    deliver=lambda emitted: self.count(emitted == answer_tokens),
                )
            )

    def count(self, last):
        self.answered += last

    def step(self):
        self.submit(self.starts.count(self.steps))
        late, self.answered = self.answered, 0
        step = self.engine.begin_step(self.seconds)
        if step is None and late:
            self.submit(late)
            late, step = 0, self.engine.begin_step(self.seconds)
        self.steps += 1
        self.submit(late)
        if step is not None:
            self.seconds += step.duration_s
            self.joules += step.energy_j
            self.engine.end_step(self.seconds)

    def run_cycle(self):
        """Seconds, joules and tokens of one cycle, after which every slot is where it was."""
        before = self.seconds, self.joules, self.stats.generation_tokens
        for _ in range(self.cycle):
            self.step()
        after = self.seconds, self.joules, self.stats.generation_tokens
        return [b - a for a, b in zip(before, after, strict=True)]


def simulate(cost, slots, prompt_tokens, answer_tokens, draws):
    """Tokens/s, watts and J/token over many draws of the slots' phases."""
    total = [0.0, 0.0, 0.0]
    for draw in range(draws):
        loop = ClosedLoop(cost, slots, prompt_tokens, answer_tokens, random.Random(draw))
        loop.run_cycle()
        total = [a + b for a, b in zip(total, loop.run_cycle(), strict=True)]
    seconds, joules, tokens = total
    return tokens / seconds, joules / seconds, joules / tokens


@pytest.mark.parametrize(("slots", "draws"), [(1, 1), (16, 120), (64, 30), (128, 15)])
@pytest.mark.parametrize("precision", ["fp16", "awq", "gptq", "bnb-nf4"])
def test_the_engine_follows_the_closed_form_within_one_percent_in_every_cell(precision, slots, draws):
    cost = PRESETS.cost(precision)
    expected = closed_loop(cost, slots, 480, 80)
    tokens_per_s, power_w, energy_per_token_j = simulate(cost, slots, 480, 80, draws)
    assert energy_per_token_j == pytest.approx(expected.energy_per_token_j, rel=0.01)
    assert tokens_per_s == pytest.approx(expected.tokens_per_s, rel=0.01)
    assert power_w == pytest.approx(expected.power_w, rel=0.01)


@pytest.mark.parametrize(
    ("gpu", "model", "precision"),
    [("h100", "mistral-7b", "awq"), ("l4", "qwen3-0.6b", "fp16"), ("rtx-pro-6000", "qwen2.5-32b", "gptq")],
)
def test_so_it_does_for_other_gpus_and_models(gpu, model, precision):
    cost = PRESETS.cost(precision, gpu=gpu, model=model)
    expected = closed_loop(cost, 32, 100, 40)
    assert simulate(cost, 32, 100, 40, 60)[2] == pytest.approx(expected.energy_per_token_j, rel=0.01)


def test_decoding_alone_is_one_step_per_token_of_each_sequence():
    cost = PRESETS.cost("fp16")
    step = cost.step(batch=8, context_tokens=8 * 300, prefill_tokens=0)
    state = decode_only(cost, 8, 300)
    assert state.tokens_per_s == pytest.approx(8 / step.duration_s)
    assert state.energy_per_token_j == pytest.approx(step.energy_j / 8)


def test_a_slot_misses_the_step_that_begins_when_its_answer_ends():
    # 80 steps of 81 for each of many slots, all 80 for one that is alone
    assert closed_loop(PRESETS.cost("fp16"), 64, 480, 80).running == pytest.approx(64 * 80 / 81)
    assert closed_loop(PRESETS.cost("fp16"), 1, 480, 80).running == 1


def test_prompts_cost_nothing_where_answers_are_endless():
    state = closed_loop(PRESETS.cost("awq"), 16, 480, 1e9)
    assert state.prefill_share < 1e-6
    assert closed_loop(PRESETS.cost("awq"), 16, 480, 80).prefill_share > 0.5


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_the_crossover_of_pure_decoding_is_saved_bytes_over_dequantization(name):
    fp16, cost = PRESETS.cost("fp16"), PRESETS.cost(name)
    saved_s = (fp16.weight_bytes - cost.weight_bytes) / (0.80 * 3.35e12)
    dequant_s = cost.model.linear_params * cost.precision.dequant_flops_per_weight / (0.60 * 989e12)
    batches = range(1, 257)
    found = crossings(
        batches,
        [1 / decode_only(cost, batch, 400).tokens_per_s for batch in batches],
        [1 / decode_only(fp16, batch, 400).tokens_per_s for batch in batches],
    )
    assert [crossing.direction for crossing in found] == ["wins_below"]
    assert found[0].batch == pytest.approx(saved_s / dequant_s, rel=0.001)


def test_every_change_of_sign_is_a_crossing_with_its_direction():
    # equal ratios on either side of 1 meet in the middle
    assert crossings([1, 2, 4, 8], [1, 2, 2, 1], [2, 1, 1, 2]) == [
        Crossing(1.5, "wins_below"),
        Crossing(6.0, "wins_above"),
    ]
    assert crossings([1, 2], [1, 1], [2, 2]) == []


def test_sequences_fit_in_whole_blocks():
    cost = PRESETS.cost("fp16")
    blocks = cost.kv_capacity_tokens // 16
    assert fits(cost, blocks, 16)
    assert not fits(cost, blocks, 17)
