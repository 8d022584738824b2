"""The GPU kit's plans and model shapes: in the order of worth, within the time, and of the published sizes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest

from bench.gpu.plan import load_plan
from bench.gpu.sensors import SETTLE_S, STATES
from bench.gpu.shapes import GROUP, NOTE, config, load_shapes
from bench.gpu.simulator import preset_gpu, preset_model
from bench.gpu.visit import GRACE_S, PACK_S
from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.serving.checkpoint import mismatch
from loadgen.serving.recipe import load_recipe, recipes_dir
from loadgen.serving.simulated.cost import load_presets

PROJECT = Path(__file__).parents[2]


def test_the_plan_puts_first_what_is_worth_most_and_every_step_can_be_configured() -> None:
    plan = load_plan("gpu")
    assert [step.name.split("-")[0] for step in plan.step][:3] == ["a", "b", "b2"]
    first = plan.options_of(plan.step[1])
    assert plan.step[1].serve == ("fp16", "awq", "gptq", "bnb-nf4", "fp8")
    assert first["concurrency"] == [1, 8, 32, 64, 128, 256]
    shapes = load_shapes()
    for step in plan.step:
        if step.kind == "sweep":
            assert step.model in shapes
            made = configure(serve=step.serve, model="some/model", **plan.options_of(step))
            captured = [int(word) for word in made.vllm_args[1:]]
            assert captured == list(made.concurrency), "CUDA graphs for the measured batches"
            assert made.fixed_length == plan.options["fixed_length"], "one length for all, so that models compare"
            assert made.reference == "fp16"


COMMAND_S = 600.0
INSTALL_S = 60.0
"""For joining, installing and probing, beside which the first model is written."""


def test_one_command_reaches_the_three_formats_with_fused_kernels_by_the_plans_own_guesses() -> None:
    plan = load_plan("gpu")
    sensors, sweep = plan.step[:2]
    watched_s = (sensors.seconds + SETTLE_S) * len(STATES)
    assert watched_s <= 20
    arm_s = plan.start_s + len(plan.options_of(sweep)["concurrency"]) * plan.cell_s
    assert INSTALL_S + watched_s + 3 * arm_s + PACK_S + GRACE_S <= COMMAND_S - arm_s, "and one more arm"
    assert [plan.repeats_of(step) for step in plan.step[1:3]] == [1, 2], "second repeats come when the first have ended"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("steps = 1", "is not a valid plan"),
        ('name = "x"\ndevice = "tpu"\nbudget_s = 1\nstart_s = 1\ncell_s = 1\nstep = []', "is not a valid plan"),
        (
            'name = "x"\ndevice = "cpu"\nbudget_s = 1\nstart_s = 1\ncell_s = 1\n'
            '[[step]]\nname = "a"\nwhy = "b"\nkind = "sweep"',
            "step a needs a model",
        ),
        (
            'name = "x"\ndevice = "cpu"\nbudget_s = 1\nstart_s = 1\ncell_s = 1\n'
            '[[step]]\nname = "a"\nwhy = "b"\nkind = "rest"\nof = "b"',
            "step a is the rest of b, which is not a sweep before it",
        ),
    ],
)
def test_a_broken_plan_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        load_plan(tmp_path / "plan.toml")
    with pytest.raises(UsageError, match="there is no such plan; name a file, or one of gpu, rehearsal"):
        load_plan("nothing")


@pytest.mark.parametrize(
    ("name", "published_e9", "digits"),
    [("Mistral-7B-v0.3", 7.25, 2), ("Qwen3-0.6B", 0.6, 1), ("Falcon3-3B-Base", 3.23, 2)],
)
def test_a_shape_has_the_published_number_of_parameters(name: str, published_e9: float, digits: int) -> None:
    assert round(load_shapes()[name].parameters / 1e9, digits) == published_e9


def test_the_shapes_are_those_of_the_simulators_presets() -> None:
    presets = load_presets()
    for name in ("Mistral-7B-v0.3", "Qwen3-0.6B", "Falcon3-3B-Base"):
        shape, model = load_shapes()[name], presets.model[preset_model(presets, name)]
        assert (shape.layers, shape.hidden, shape.intermediate) == (model.layers, model.hidden, model.mlp)
        assert (shape.heads, shape.kv_heads, shape.head_dim) == (model.heads, model.kv_heads, model.head_dim)
        assert shape.vocabulary == model.vocab


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("CPU AMD EPYC, 2 cores", None),
    ],
)
def test_a_gpu_has_the_preset_of_its_name_and_no_other(name: str, preset: str | None) -> None:
    assert preset_gpu(load_presets(), name) == preset


def test_the_checkpoints_config_is_what_each_recipe_wants() -> None:
    stored = run_path(str(recipes_dir() / "cpu" / "four_bits.py"))["config"]
    for shape in load_shapes().values():
        plain = config(shape, None)
        assert plain["loadgen_note"] == NOTE
        assert mismatch(load_recipe("fp16"), "DIR", plain, in_flight=False) is None
        assert mismatch(load_recipe("bnb-nf4"), "DIR", plain, in_flight=True) is None
        assert mismatch(load_recipe("awq"), "DIR-awq", config(shape, stored("awq", GROUP)), in_flight=False) is None
        assert mismatch(load_recipe("gptq"), "DIR-gptq", config(shape, stored("gptq", GROUP)), in_flight=False) is None
        assert mismatch(load_recipe("gptq"), "DIR", config(shape, stored("awq", GROUP)), in_flight=False) is not None


def test_the_story_in_the_readme_is_of_commands_that_exist() -> None:
    told = set(re.findall(r"-m bench\.gpu ([a-z-]+)", (PROJECT / "bench" / "gpu" / "README.md").read_text()))
    helped = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    assert told == set(re.findall(r"^    ([a-z-]+)(?:  |$)", helped, re.MULTILINE))
