"""Recipes: every shipped file is valid, and a launch follows from a recipe without surprise."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from made_hub import packed, put_in_folder

from loadgen.cli.serve import command as serve
from loadgen.errors import UsageError
from loadgen.serving import requirements
from loadgen.serving.checkpoint import local_quantization
from loadgen.serving.launch import Launch, find_vllm, plan_launch, plan_simulated
from loadgen.serving.recipe import Recipe, fair_settings, load_recipe, load_recipes, place_of, read_recipe
from loadgen.serving.requirements import require_packages

VLLM = "/opt/vllm/bin/vllm"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A local model with an int8 checkpoint beside it."""
    for name in ("tiny", "tiny-int8"):
        (tmp_path / name).mkdir()
    return tmp_path / "tiny"


@pytest.fixture
def any_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A /proc/cpuinfo without AVX-512."""
    info = tmp_path / "cpuinfo"
    info.write_text("flags\t\t: fpu avx avx2\n")
    monkeypatch.setattr(requirements, "CPU_INFO", info)
    return info


def plan(name: str, model: Path | str, **options: object) -> Launch:
    given = {"port": 8001, "device": "cpu", "max_num_seqs": 64, "vllm": VLLM, **options}
    return plan_launch(load_recipe(name), model=str(model), **given)  # type: ignore[arg-type]


def value_of(launch: Launch, option: str) -> str:
    """The value that wins: argparse takes the last one."""
    positions = [index for index, argument in enumerate(launch.argv) if argument == option]
    return launch.argv[positions[-1] + 1]


def test_a_key_and_a_token_are_not_in_the_command_line(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "inherited")
    given = ["--seed", "1", "--api-key", "first", "--hf-token=second", "--enforce-eager"]
    launch = plan("bf16", tiny, extra_args=given)
    plain = plan("bf16", tiny, extra_args=["--seed", "1", "--enforce-eager"])
    assert launch.argv == plain.argv
    assert launch.env == {**plain.env, "VLLM_API_KEY": "first", "HF_TOKEN": "second"}
    assert (launch.api_key, plain.api_key) == ("first", "inherited")


def test_several_keys_stay_where_they_are(tiny: Path) -> None:
    """The variable holds one; vLLM accepts any of them, and the first is sent."""
    launch = plan("bf16", tiny, extra_args=["--api_key", "--port", "1", "--api-key", "first", "second"])
    assert launch.argv[-6:] == ("--api_key", "--port", "1", "--api-key", "first", "second")
    assert launch.api_key == "first"
    assert "first" not in launch.shell and "second" not in launch.shell


def test_all_precisions_of_the_design_are_shipped() -> None:
    assert set(load_recipes()) == {
        "fp16", "bf16", "int8", "fp8", "bnb-nf4", "bnb-int8", "awq", "gptq", "w4a16", "w8a16", "gptq-int8", "nvfp4",
        "mxfp4", "fp8-block", "modelopt-fp8", "fp16-kvfp8", "torchao", "gguf",
    }  # fmt: skip


def test_sixteen_bit_recipes_expect_no_quantization_and_others_expect_theirs() -> None:
    for recipe in load_recipes().values():
        expects_none = any(re.search(pattern, "quantization=None, x") for pattern in recipe.expect)
        assert expects_none == (recipe.bits == 16), recipe.name


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_a_four_bit_kernel_is_known_from_the_log_of_old_and_new_vllm(name: str) -> None:
    pattern = load_recipe(name).kernel
    assert pattern is not None
    for line in ("Using MacheteLinearKernel for mixed-precision linear",
                 "Using MacheteLinearKernel for AutoAWQMarlinLinearMethod",
                 "Using MacheteLinearKernel for AutoGPTQLinearMethod"):  # fmt: skip
        found = re.search(pattern, line)
        assert found is not None
        assert found[1] == "MacheteLinearKernel"
    assert re.search(pattern, "Using MacheteLinearKernel for CompressedTensorsWNA16") is None


def test_unknown_name_lists_the_known_ones_and_the_closest() -> None:
    with pytest.raises(UsageError, match=r"unknown recipe 'fp61'; did you mean fp16\? known: awq, .*int8"):
        load_recipe("fp61")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('lable = "x"', "unknown field `lable`"),
        ("bits = 0", r"bits"),
        ('checkpoint = "mine"', "mine"),
        ('expect = ["("]', "not a regular expression"),
        ('kernel = "Selected"', "no group"),
        ('name = "other"', "given by the file's name"),
        ("bits = ", "Invalid value"),
    ],
)
def test_a_broken_recipe_file_is_refused_with_its_path(tmp_path: Path, line: str, complaint: str) -> None:
    fields = {
        "label": '"X"',
        "bits": "4",
        "format": '"x"',
        "backend": '"x"',
        "checkpoint": '"own"',
        "gpu_capability": '"8.0"',
    }
    key = line.partition(" ")[0]
    lines = [f"{name} = {value}" for name, value in fields.items() if name != key]
    path = tmp_path / "x.toml"
    path.write_text("\n".join([*lines, line]))
    with pytest.raises(UsageError, match=complaint) as error:
        read_recipe(path)
    assert str(path) in str(error.value)


def test_own_checkpoint_of_a_folder_is_the_sibling_with_the_recipe_name(tiny: Path) -> None:
    assert load_recipe("int8").checkpoint_for(f"{tiny}/") == f"{tiny}-int8"
    assert plan("int8", tiny).argv[2] == f"{tiny}-int8"


def test_own_checkpoint_of_an_id_comes_from_the_recipe_and_an_override_wins() -> None:
    model = "mistralai/Mistral-7B-Instruct-v0.3"
    known = load_recipe("awq").checkpoints[model]
    assert plan("awq", model, device="cuda").argv[2] == known
    assert plan("awq", model, device="cuda", checkpoint="me/mine").argv[2] == "me/mine"


def test_a_checkpoint_made_under_the_name_of_a_format_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGEN_CACHE", str(tmp_path / "cache"))
    recipe = msgspec.structs.replace(load_recipe("int8"), name="w4a16", made_as=("w4a16-gptq", "w4a16-awq"))
    (tmp_path / "mine").mkdir()
    for model in (str(tmp_path / "mine"), "somebody/mine"):
        gptq, awq = place_of(model, "w4a16-gptq"), place_of(model, "w4a16-awq")
        awq.mkdir(parents=True)
        assert recipe.checkpoint_for(model) == str(awq)
        gptq.mkdir()
        with pytest.raises(UsageError, match=rf"finds {gptq} and {awq}; name one: --serve w4a16={gptq}"):
            recipe.checkpoint_for(model)
    assert gptq == tmp_path / "cache" / "quantized" / "somebody--mine-w4a16-gptq"


def test_missing_own_checkpoint_is_refused_naming_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UsageError, match=r"model-int8 does not exist; give one .*: --serve int8=ORG/NAME"):
        plan("int8", tmp_path / "model")
    with pytest.raises(UsageError, match=r"knows none for 'a/b'"):
        plan("gptq", "a/b", device="cuda")


def test_what_a_checkpoint_says_of_itself_goes_with_its_launch(tiny: Path) -> None:
    (tiny / "config.json").write_text('{"loadgen_note": "random weights: speed\\nand energy only"}')
    assert plan("bf16", tiny).note == "random weights: speed and energy only"
    assert plan("int8", tiny).note is None


def test_in_flight_arguments_go_only_with_the_sixteen_bit_checkpoint(tiny: Path) -> None:
    assert value_of(plan("bnb-nf4", tiny), "--quantization") == "bitsandbytes"
    assert "--quantization" not in plan("bnb-nf4", tiny, checkpoint="me/model-bnb-4bit").argv
    assert value_of(plan("fp8", tiny), "--quantization") == "fp8_per_channel"
    (tiny.parent / "tiny-fp8").mkdir()
    assert "--quantization" not in plan("fp8", tiny).argv


def test_every_recipe_of_a_sweep_computes_in_one_dtype_unless_the_recipe_is_one(tiny: Path) -> None:
    chosen = {
        name: value_of(plan(name, tiny, dtype="bfloat16"), "--dtype") for name in ("fp16", "bf16", "int8", "bnb-nf4")
    }
    assert chosen == {"fp16": "float16", "bf16": "bfloat16", "int8": "bfloat16", "bnb-nf4": "bfloat16"}
    assert value_of(plan("int8", tiny), "--dtype") == fair_settings().device["cpu"].dtype


def test_all_precisions_share_every_other_argument(tiny: Path) -> None:
    def common(name: str) -> list[str]:
        argv = list(plan(name, tiny, dtype="float16").argv)
        argv[2] = "CHECKPOINT"
        quantization = load_recipe(name).in_flight_args
        return [argument for argument in argv if argument not in quantization]

    assert common("fp16") == common("int8") == common("bnb-nf4")
    assert "--no-enable-prefix-caching" in common("fp16")


def test_the_log_must_show_the_dtype_that_was_asked_for(tiny: Path) -> None:
    launch = plan("int8", tiny, dtype="bfloat16")
    config = "dtype=torch.{}, kv_cache_dtype=auto, enable_prefix_caching=False, enable_chunked_prefill=True, "
    config += "quantization=compressed-tensors, "
    assert all(re.search(pattern, config.format("bfloat16")) for pattern in launch.expect)
    assert not all(re.search(pattern, config.format("float16")) for pattern in launch.expect)


def test_the_kv_cache_has_the_activation_dtype_whatever_the_checkpoint_asks_for(tiny: Path) -> None:
    scheme = packed("float", 8, activations=True)
    scheme["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8, "type": "float"}
    put_in_folder(tiny.with_name("tiny-fp8"), scheme)
    for name, dtype in (("fp8", "float16"), ("bf16", "bfloat16")):
        launch = plan(name, tiny, device="cuda")
        assert value_of(launch, "--kv-cache-dtype") == dtype
        assert any(re.search(pattern, f"kv_cache_dtype={dtype}, ") for pattern in launch.expect)
        assert not any(re.search(pattern, "kv_cache_dtype=fp8, ") for pattern in launch.expect)
    assert value_of(plan("fp8", tiny), "--kv-cache-dtype") == "bfloat16"
    assert value_of(plan("int8", tiny), "--kv-cache-dtype") == "auto", "vLLM 0.33 refuses to be told it on a CPU"
    asked = plan("bf16", tiny, device="cuda", extra_args=["--kv-cache-dtype", "fp8"])
    assert any(re.search(pattern, "kv_cache_dtype=fp8, ") for pattern in asked.expect)


def test_the_users_environment_does_not_silence_or_colour_the_log_that_is_read(tiny: Path) -> None:
    env = plan("bf16", tiny, device="cuda").env
    assert env["VLLM_CONFIGURE_LOGGING"] == "1"
    assert env["VLLM_LOGGING_LEVEL"] == "INFO"
    assert (env["VLLM_LOGGING_COLOR"], env["VLLM_LOGGING_CONFIG_PATH"]) == ("0", "")


def test_cpu_settings_go_to_cpu_servers_only(tiny: Path) -> None:
    cpu, cuda = plan("bf16", tiny), plan("bf16", tiny, device="cuda")
    assert "--enforce-eager" in cpu.argv
    assert "--enforce-eager" not in cuda.argv
    assert set(fair_settings().device["cpu"].env) <= set(cpu.env)
    assert not set(fair_settings().device["cpu"].env) & set(cuda.env)


def test_extra_arguments_come_last(tiny: Path) -> None:
    launch = plan("bf16", tiny, extra_args=["--max-model-len", "512"])
    assert launch.argv[-2:] == ("--max-model-len", "512")
    assert value_of(launch, "--max-num-seqs") == "64"


def test_a_model_is_shared_by_the_gpus_asked_for_else_by_the_recipes_number(tiny: Path) -> None:
    assert "--tensor-parallel-size" not in plan("bf16", tiny, device="cuda").argv
    assert value_of(plan("bf16", tiny, device="cuda", tensor_parallel=4), "--tensor-parallel-size") == "4"
    large = msgspec.structs.replace(load_recipe("bf16"), tensor_parallel=2)
    given = {"model": str(tiny), "port": 1, "device": "cuda", "max_num_seqs": 8, "vllm": VLLM}
    assert value_of(plan_launch(large, **given), "--tensor-parallel-size") == "2"  # type: ignore[arg-type]
    assert "--tensor-parallel-size" not in plan_launch(large, tensor_parallel=1, **given).argv  # type: ignore[arg-type]


def test_another_length_replaces_that_of_all_recipes(tiny: Path) -> None:
    argv = plan("bf16", tiny, max_model_len=16384).argv
    assert [argv[place + 1] for place, word in enumerate(argv) if word == "--max-model-len"] == ["16384"]


def test_recipes_that_need_avx512_are_refused_on_a_cpu_without_it(any_cpu: Path) -> None:
    model = "mistralai/Mistral-7B-Instruct-v0.3"
    with pytest.raises(UsageError, match="'awq' on a CPU needs avx512f"):
        plan("awq", model)
    any_cpu.write_text("flags\t\t: fpu avx2 avx512f\n")
    assert plan("awq", model).precision == "awq"


def test_a_package_that_vllms_environment_lacks_is_named_before_a_start(tmp_path: Path) -> None:
    vllm, site = tmp_path / "bin" / "vllm", tmp_path / "lib" / "python3.12" / "site-packages"

    def install(name: str, version: str) -> None:
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    require_packages(load_recipe("torchao"), str(vllm))  # no environment beside it: nothing is known
    install("vllm", "0.27.1")
    install("bitsandbytes", "0.50.2")
    require_packages(load_recipe("bnb-nf4"), str(vllm))  # bitsandbytes is in vLLM's tree up to 0.27
    with pytest.raises(
        UsageError, match=r"'torchao' needs torchao in vLLM's environment; run `pip install torchao` in"
    ):
        require_packages(load_recipe("torchao"), str(vllm))
    (site / "vllm-0.27.1.dist-info").rename(site / "vllm-0.33.0.dist-info")
    (site / "vllm-0.33.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n")
    with pytest.raises(UsageError, match="run `pip install vllm-bnb-plugin` in the environment of"):
        require_packages(load_recipe("bnb-nf4"), str(vllm))


def test_gguf_takes_its_config_and_tokenizer_from_the_16_bit_model(tiny: Path) -> None:
    folder = tiny.with_name("tiny-gguf")
    folder.mkdir()
    file = folder / "tiny-Q4_K_M.gguf"
    file.write_bytes(b"GGUF\3")
    by_folder, by_name = plan("gguf", tiny, device="cuda"), plan("gguf", tiny, device="cuda", checkpoint=str(file))
    assert by_folder.argv == by_name.argv
    assert by_folder.argv[2] == str(file)
    assert (value_of(by_folder, "--tokenizer"), value_of(by_folder, "--hf-config-path")) == (str(tiny), str(tiny))
    assert str(local_quantization(str(file))) == "gguf (Q4_K_M)"
    on_hub = plan("gguf", "Qwen/Qwen3-0.6B", device="cuda", checkpoint="unsloth/Qwen3-0.6B-GGUF:UD-Q4_K_XL")
    assert on_hub.argv[2] == "unsloth/Qwen3-0.6B-GGUF:UD-Q4_K_XL"
    assert value_of(on_hub, "--tokenizer") == "Qwen/Qwen3-0.6B"
    assert str(local_quantization("unsloth/Qwen3-0.6B-GGUF:UD-Q4_K_XL")) == "gguf (UD-Q4_K_XL)"
    with pytest.raises(UsageError, match=r"recipe 'awq' serves awq int4 and .* holds gguf \(Q4_K_M\)"):
        plan("awq", tiny, device="cuda", checkpoint=str(file))
    file.write_bytes(b"else")
    with pytest.raises(UsageError, match=r"tiny-Q4_K_M\.gguf is not a GGUF file: it does not begin with"):
        plan("gguf", tiny, device="cuda", checkpoint=str(file))
    with pytest.raises(UsageError, match=r"none.gguf cannot be read \(No such file or directory\); name a .gguf file"):
        plan("gguf", tiny, device="cuda", checkpoint="./none.gguf")


def test_a_recipe_that_no_cpu_runs_says_why() -> None:
    with pytest.raises(
        UsageError, match="'nvfp4' needs a GPU: vLLM has no NVFP4 kernel for a CPU; use a GPU, or one of"
    ):
        plan("nvfp4", "a/b", checkpoint="me/mine")


def test_a_folder_of_own_recipes_is_read_beside_the_shipped_ones(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "recipes"
    own.mkdir()
    lines = ['label = "eager"', "bits = 16", 'format = "bfloat16"', 'backend = "dense GEMM"', 'checkpoint = "same"']
    lines += ['gpu_capability = "8.0"', 'args = ["--enforce-eager"]']
    (own / "bf16-eager.toml").write_text("\n".join(lines))
    monkeypatch.setenv("LOADGEN_RECIPES", str(own))
    assert "--enforce-eager" in plan("bf16-eager", tiny, device="cuda").argv
    (own / "bf16.toml").write_text("\n".join(lines))
    with pytest.raises(UsageError, match=r"bf16.toml has the name of a recipe that loadgen brings; rename the file"):
        load_recipe("bf16-eager")
    monkeypatch.setenv("LOADGEN_RECIPES", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="which is not a folder"):
        load_recipes()


def test_a_model_folder_that_does_not_exist_is_not_taken_for_an_id() -> None:
    with pytest.raises(UsageError, match=r"the model folder \./nope does not exist"):
        plan("bf16", "./nope")


def test_vllm_is_the_named_one_then_the_variable_then_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    programs = {}
    for place in ("named", "variable", "path"):
        programs[place] = tmp_path / place / "vllm"
        programs[place].parent.mkdir()
        programs[place].write_text("#!/bin/sh\n")
        programs[place].chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("LOADGEN_CPU_ENV", str(tmp_path / "none"))
    monkeypatch.setenv("LOADGEN_VLLM", str(programs["variable"]))
    assert find_vllm("cuda", str(programs["named"])) == str(programs["named"])
    assert find_vllm("cuda") == str(programs["variable"])
    monkeypatch.delenv("LOADGEN_VLLM")
    assert find_vllm("cuda") == str(programs["path"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="run `loadgen cpu-env`"):
        find_vllm("cpu")
    with pytest.raises(UsageError, match="--vllm names"):
        find_vllm("cuda", str(tmp_path / "absent"))
    monkeypatch.chdir(tmp_path / "named")
    for relative in ("./vllm", "../named/vllm"):
        assert Path(find_vllm("cuda", relative)).samefile(programs["named"])
    with pytest.raises(UsageError, match="--vllm names 'vllm'"):
        find_vllm("cuda", "vllm")


def test_simulated_servers_run_under_this_python() -> None:
    launch = plan_simulated("awq", port=9000, seed=7, data_file=Path("x.jsonl"))
    assert launch.argv[:4] == (sys.executable, "-m", "loadgen", "simulate")
    assert launch.argv[4:] == (
        "--precision", "awq", "--port", "9000", "--seed", "7", "--data-file", "x.jsonl",
    )  # fmt: skip
    assert launch.simulated
    assert launch.url == "http://127.0.0.1:9000"


def test_print_shows_exactly_what_would_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.cli.serve.find_vllm", lambda *_: VLLM)
    arguments = ["int8", "--model", str(tiny), "--device", "cpu", "--port", "8001", "--max-num-seqs", "64", "--print"]
    shown = CliRunner().invoke(serve, [*arguments, "--", "--max-model-len", "512"])
    launch = plan("int8", tiny, extra_args=["--max-model-len", "512"])
    words = shlex.split(shown.output)
    assert tuple(words[len(launch.env) :]) == launch.argv
    assert dict(word.split("=", 1) for word in words[: len(launch.env)]) == launch.env


def test_list_names_every_recipe() -> None:
    shown = CliRunner().invoke(serve, ["--list"]).output
    assert [line.split()[0] for line in shown.splitlines()[1:]] == sorted(load_recipes())


def test_a_recipe_cannot_be_changed() -> None:
    recipe = load_recipe("bf16")
    assert isinstance(recipe, Recipe)
    with pytest.raises(AttributeError):
        recipe.bits = 4  # type: ignore[misc]
