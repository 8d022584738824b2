"""What `loadgen simulate --explain` prints."""

import re

import pytest
from click.testing import CliRunner

from loadgen.cli import group
from loadgen.errors import UsageError
from loadgen.serving.simulated.cost import Workload, closed_loop, decode_only, explain, load_presets

PRESETS = load_presets()


def explained(gpu="h100-like", model="mistral-7b", **workload):
    """The text of each part: head, decoding alone, closed loop."""
    text = explain(PRESETS, gpu=gpu, model=model, workload=Workload(**workload))
    return re.split(r"\n(?=DECODING|CLOSED)", text)


def row(part, table, batch):
    """Value by precision in a row of one of the part's tables."""
    lines = iter(part.splitlines())
    names = next(line for line in lines if line.startswith(table)).removeprefix(table).split()
    values = next(line for line in lines if line.startswith(f"B {batch} ")).split()[2:]
    return dict(zip(names, values, strict=True))


def test_it_says_first_that_nothing_was_measured():
    assert explained()[0].startswith(
        "SIMULATED mistral-7b on H100-like: closed form of the cost model, nothing measured"
    )


def test_the_tables_hold_the_closed_form():
    _, decoding, loop = explained(prompt_tokens=100, answer_tokens=40, context_tokens=300)
    alone = decode_only(PRESETS.cost("awq"), 64, 300)
    assert row(decoding, "tokens/s", 64)["awq"] == f"{alone.tokens_per_s:.1f}"
    assert row(decoding, "W", 64)["awq"] == f"{alone.power_w:.1f}"
    assert row(decoding, "J/token", 64)["awq"] == f"{alone.energy_per_token_j:.5f}"
    looping = closed_loop(PRESETS.cost("awq"), 64, 100, 40)
    assert row(loop, "J/token", 64)["awq"] == f"{looping.energy_per_token_j:.5f}"
    assert row(loop, "prefill, share of energy", 64)["awq"] == f"{looping.prefill_share:.1%}"


def test_every_precision_gets_its_b_star_for_throughput_and_energy():
    _, decoding, _ = explained(context_tokens=400)
    lines = {line.split()[0]: line for line in decoding[decoding.index("B* against") :].splitlines()[1:] if line}
    assert re.search(r"tokens/s: faster below 96\.4 .*J/token: cheaper below \d", lines["awq"])
    assert re.search(r"tokens/s: faster below 87\.\d .*J/token: cheaper below \d", lines["gptq"])
    assert re.search(r"tokens/s: slower at every B .*J/token: dearer at every B up to 256", lines["bnb-nf4"])
    assert re.search(r"tokens/s: faster at every B .*J/token: cheaper at every B up to 256", lines["fp8"])
    assert "fp16" not in lines


def test_what_does_not_fit_has_no_numbers():
    _, decoding, _ = explained(gpu="h100", model="qwen2.5-72b")
    cells = row(decoding, "tokens/s", 1)
    assert cells["fp16"] == "-"
    assert float(cells["awq"]) > 0
    assert "no B that fits both" in decoding


def test_a_model_that_fits_nowhere_is_refused():
    with pytest.raises(UsageError, match=r"qwen2.5-72b fits l4 in no precision; choose a larger --gpu"):
        explained(gpu="l4", model="qwen2.5-72b")


def test_the_command_needs_neither_port_nor_precision_to_explain():
    result = CliRunner().invoke(group, ["simulate", "--explain", "--gpu", "a100", "--model", "falcon3-3b"])
    assert result.exit_code == 0
    assert result.output.startswith("SIMULATED falcon3-3b on A100")
