"""Presets: the shapes add up to the published sizes, and a user's file changes what it names."""

import pytest

from loadgen.errors import UsageError
from loadgen.serving.simulated.answers import BEHAVIOURS
from loadgen.serving.simulated.cost import load_presets

PRESETS = load_presets()


@pytest.mark.parametrize(
    ("model", "linear", "total"),
    [
        # billions: parameters of the layers, and with both embeddings, as the model cards give them
        ("mistral-7b", 6.98, 7.25),
        ("qwen3-0.6b", 0.44, 0.75),
        ("falcon3-3b", 2.42, 3.23),
        ("qwen2.5-3b", 2.77, 3.40),
        ("llama-3.1-8b", 6.98, 8.03),
        ("qwen3-8b", 6.95, 8.19),
        ("qwen2.5-14b", 13.1, 14.7),
        ("qwen3-14b", 13.2, 14.8),
        ("qwen3-32b", 31.2, 32.8),
        ("qwen2.5-32b", 31.0, 32.5),
        ("qwen2.5-72b", 70.0, 72.7),
    ],
)
def test_a_shape_adds_up_to_the_size_of_the_model(model, linear, total):
    shape = PRESETS.model[model]
    assert shape.linear_params / 1e9 == pytest.approx(linear, rel=0.01)
    assert (shape.linear_params + 2 * shape.head_params) / 1e9 == pytest.approx(total, rel=0.01)


def test_the_default_has_the_shape_of_mistral_7b():
    cost = PRESETS.cost("fp16")
    assert (cost.gpu.name, cost.model.name) == ("H100-like", "simulated-mistral-7b")
    assert cost.model.kv_bytes_per_token == 131072


def test_every_gpu_of_the_issue_is_there_and_says_where_its_constants_are_from():
    assert {"l4", "a100", "h100", "h200", "rtx-pro-6000"} < PRESETS.gpu.keys()
    for table in (PRESETS.gpu, PRESETS.model, PRESETS.precision):
        assert all(entry.source for entry in table.values())
    assert all("assumed" in gpu.source for name, gpu in PRESETS.gpu.items() if name != "h100-like")


def test_every_precision_has_answers_and_bf16_costs_what_fp16_costs():
    assert PRESETS.precision.keys() == BEHAVIOURS.keys()
    assert PRESETS.precision["bf16"] == PRESETS.precision["fp16"]


@pytest.mark.parametrize("kind", ["gpu", "model", "precision"])
def test_an_unknown_name_is_refused_with_the_known_ones(kind):
    with pytest.raises(UsageError, match=rf"no simulated {kind} 'none'; choose from .*"):
        PRESETS.cost(**{"precision": "fp16", kind: "none"})


def test_a_file_replaces_single_values_and_adds_entries(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "[gpu.h100]\nlimit_w = 500\n"
        "[gpu.mine]\nname = 'Mine'\nmemory_bytes = 1e9\nbandwidth_bytes_s = 1e11\ncompute_flops = 1e12\n"
        "launch_s = 0.001\nlimit_w = 50\nidle_w = 5\n"
        "[gpu.mine.activity]\nmemory = 0.5\n"
        "[precision.awq]\ndequant_flops_per_weight = 0\n"
    )
    presets = load_presets(path)
    assert presets.gpu["h100"].limit_w == 500
    assert presets.gpu["h100"].bandwidth_bytes_s == PRESETS.gpu["h100"].bandwidth_bytes_s
    assert presets.gpu["mine"].activity.memory == 0.5
    assert presets.precision["awq"].bits == PRESETS.precision["awq"].bits
    # without dequantization AWQ wins where it lost
    fast, plain = presets.cost("awq"), presets.cost("fp16")
    assert fast.step(batch=128, context_tokens=0, prefill_tokens=0).duration_s < (
        plain.step(batch=128, context_tokens=0, prefill_tokens=0).duration_s
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gpu.h100]\nwatts = 3", "watts"),
        ("[gpu.h100]\nlimit_w = 'much'", "limit_w|Expected `float`"),
        ("[gpu.mine]\nname = 'Mine'", "missing required field"),
        ("[gpu.h100]\nbandwidth_share = 0", "bandwidth_share = 0.* of gpu.h100 is not positive"),
        ("[gpu.h100]\nidle_w = 700", "idle_w = 700.* of gpu.h100 is not below limit_w"),
        ("[precision.int3]\nbits = 3", "int3"),
        ("[gpu", "--cost-file"),
        ("[gpus.h100]", "gpus"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_in_one_sentence(tmp_path, text, said):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        load_presets(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_presets(tmp_path / "none.toml")
