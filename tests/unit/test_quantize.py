"""`loadgen quantize`: what is refused, what is kept, what the record says, and what llm-compressor is told to do."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from made_hub import AWQ, made_hub, packed, put_in_folder

import loadgen
from loadgen.cli.quantize import command
from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.observer import Observer
from loadgen.measure.preflight import Patience
from loadgen.measure.servers import Source, source_of
from loadgen.record.manifest import DatasetRecord
from loadgen.serving import quantize as quantizing
from loadgen.serving import quantize_plan as planning
from loadgen.serving import requirements
from loadgen.serving.checkpoint import quantize_record
from loadgen.serving.quantize import QuantizeEnvironment, build_environment
from loadgen.serving.quantize_plan import arms_of, calibration_texts, plan_quantize

INT8 = json.dumps(packed("int", 8, activations=True))
WIDTHS = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "head_dim": 64}
PROGRAM = """#!{python}
# Stands in for the environment's Python: does what quantize_model.py does, without a model.
import json, pathlib, sys
order = json.loads(sys.argv[2])
pathlib.Path({folder!r}, "order.json").write_text(json.dumps(order))
pathlib.Path({folder!r}, "texts.jsonl").write_text(pathlib.Path(order["texts"]).read_text())
def tell(**event):
    print("loadgen-event " + json.dumps(event), flush=True)
tell(packages={{"llmcompressor": "1.2"}}, device="cpu")
for job in order["jobs"]:
    tell(begun=job["format"])
    out = pathlib.Path(job["out"])
    out.mkdir()
    if job["format"] == "w4a16-awq":
        sys.exit("ValueError: no mapping for this architecture")
    out.joinpath("config.json").write_text({config!r})
    out.joinpath("recipe.yaml").write_text("steps")
    tell(done=job["format"], duration_s=1.5)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return put_in_folder(tmp_path / "mine", WIDTHS)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"question": "Why {n}?", "answer": "Because."}}\n' for n in range(100)))
    return path


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an environment that is complete, but for llm-compressor."""
    root = tmp_path / "environment"
    monkeypatch.setenv("LOADGEN_QUANTIZE_ENV", str(root))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    python = QuantizeEnvironment(root).python
    python.parent.mkdir(parents=True)
    python.write_text(PROGRAM.format(python=sys.executable, folder=str(root), config=INT8))
    python.chmod(0o755)
    monkeypatch.setattr(planning, "used_bytes", lambda: None)
    QuantizeEnvironment(root).stamp.write_bytes(msgspec.json.encode(quantizing._packages()))
    return root


def made(model: Path, texts: Path, to: str, **options: Any) -> dict[str, Path]:
    return loadgen.quantize(model=str(model), to=to, calibration=texts, **options)


def test_a_checkpoint_stands_beside_its_model_with_a_record_of_how_it_was_made(
    model: Path, texts: Path, environment: Path
) -> None:
    places = made(model, texts, "w4a16-gptq,fp8", samples=5, seed=3)
    assert places == {name: model.with_name(f"mine-{name}") for name in ("w4a16-gptq", "fp8")}
    record = quantize_record(str(places["w4a16-gptq"]))
    assert record is not None
    assert (record.format, record.model, record.group_size) == ("w4a16-gptq", str(model), 64)
    assert (record.recipe, record.device, record.packages, record.duration_s) == (
        "steps", "cpu", {"llmcompressor": "1.2"}, 1.5,
    )  # fmt: skip
    assert record.files == {name: _sha256(places["fp8"] / name) for name in ("config.json", "recipe.yaml")}
    assert record.calibration is not None
    assert (record.calibration.samples, record.calibration.seed) == (5, 3)
    assert record.calibration.sha256 == _sha256(texts)
    assert record.calibration.texts_sha256 == _sha256(environment / "texts.jsonl")
    fp8 = quantize_record(str(places["fp8"]))
    assert fp8 is not None
    assert fp8.calibration is fp8.group_size is None
    asked = DatasetRecord(name="jsonl", sha256=_sha256(texts), published=False, items=100)
    assert record.used(asked)
    assert not record.used(msgspec.structs.replace(asked, sha256="another"))
    assert not fp8.used(asked)
    order = json.loads((environment / "order.json").read_text())
    assert [(job["format"], job["group_size"], job["calibrated"]) for job in order["jobs"]] == [
        ("w4a16-gptq", 64, True),
        ("fp8", None, False),
    ]
    assert order["model"] == str(model)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_checkpoint_of_the_same_inputs_is_kept_and_one_of_others_is_not_replaced(
    model: Path, texts: Path, environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(model, texts, "int8", samples=5)
    (environment / "order.json").unlink()
    texts = texts.rename(texts.with_name("renamed.jsonl"))
    assert made(model, texts, "int8", samples=5) == {"int8": model.with_name("mine-int8")}
    assert f"int8 is already in {model}-int8, made from the same inputs" in capsys.readouterr().err
    assert not (environment / "order.json").exists()
    with pytest.raises(UsageError, match=r"mine-int8 was made with other calibration texts; move it away"):
        made(model, texts, "int8", samples=6)
    (model / "config.json").write_text(json.dumps({**WIDTHS, "vocab_size": 9}))
    with pytest.raises(UsageError, match="was made with other 16-bit weights"):
        made(model, texts, "int8", samples=5)
    model.with_name("mine-fp8").mkdir()
    with pytest.raises(UsageError, match="mine-fp8 exists and `loadgen quantize` did not make it"):
        made(model, texts, "fp8")


def test_what_was_finished_before_a_failure_stays_and_nothing_half_made_does(
    model: Path, texts: Path, environment: Path
) -> None:
    with pytest.raises(UsageError) as failed:
        made(model, texts, "int8,w4a16-awq")
    assert "into w4a16-awq failed with exit status 1: ValueError: no mapping for this architecture" in str(failed.value)
    assert "its log is " in str(failed.value)
    assert sorted(path.name for path in model.parent.glob("*mine*")) == ["mine", "mine-int8"]


def test_another_folder_for_what_is_made(model: Path, texts: Path, environment: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        command, ["--model", str(model), "--to", "int8", "--out", str(tmp_path / "new" / "folder")]
    )
    place = tmp_path / "new" / "folder" / "mine-int8"
    assert ran.stdout == f"{place}\n"
    assert f"loadgen sweep --serve bf16,int8={place} --model {model} --device cpu" in ran.stderr


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """GSM8K's train split cannot be downloaded."""

    def refuse(_: object) -> Path:
        raise UsageError("no network")

    monkeypatch.setattr(planning, "fetch", refuse)


def missing(model: Path, serve: str, **options: Any) -> Source:
    options = {"device": "cpu", "vllm": sys.executable, "quantize_missing": True, **options}
    return source_of(configure(serve=serve, model=str(model), **options))


def test_a_sweep_makes_what_is_missing_after_its_checks_and_serves_it(
    model: Path, environment: Path, unreachable: None
) -> None:
    source, notes = missing(model, "bf16,int8,fp8"), Notes()
    source.check(Patience(0, notes))
    place = model.with_name("mine-int8")
    assert f"int8 serves {place}, which is made before the first server (" in notes.notes[0]
    assert not place.exists()
    source.make_missing(Patience(0, notes))
    served = {name: launch.argv[2] for name, launch in source.launches.items()}
    assert served == {"bf16": str(model), "int8": str(place), "fp8": str(model)}, "fp8 is quantized while loading"
    assert any(note.startswith(f"int8 is in {place}") for note in notes.notes)


def test_what_quantize_cannot_make_is_refused_before_anything_starts(
    model: Path, environment: Path, unreachable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "CPU_INFO", model / "config.json")
    with pytest.raises(UsageError, match=r"recipe 'w4a16' on a CPU needs avx512f"):
        missing(model, "bf16,w4a16").check(Patience(0, Observer()))
    with pytest.raises(UsageError, match=r"'bnb-int8' .*; --quantize-missing makes one only for fp8, int8, w4a16"):
        missing(model, "bf16,bnb-int8").check(Patience(0, Observer()))
    command = f"loadgen quantize --model {model} --to int8"
    with pytest.raises(UsageError, match=f"--serve int8=ORG/NAME; or make one: {command}"):
        missing(model, "bf16,int8", quantize_missing=False).check(Patience(0, Observer()))
    (environment / "venv.json").unlink()
    with pytest.raises(UsageError, match="run `loadgen quantize --env` first"):
        missing(model, "bf16,int8").check(Patience(0, Observer()))
    with pytest.raises(UsageError, match="--quantize-missing needs --serve"):
        configure(quantize_missing=True)


def test_without_the_environment_the_command_that_builds_it_is_named(
    model: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOADGEN_QUANTIZE_ENV", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="llm-compressor is not installed: run `loadgen quantize --env` first"):
        made(model, texts, "fp8")


@pytest.mark.parametrize("version", ["0.14.0.1", "0.13.0"])
def test_the_extra_serves_where_there_is_no_environment_if_its_versions_are_the_tried_ones(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOADGEN_QUANTIZE_ENV", str(tmp_path / "nothing"))
    for requirement in quantizing.REQUIREMENTS:
        name, _, tried = requirement.partition("==")
        folder = tmp_path / f"{name.replace('-', '_')}-{tried}.dist-info"
        folder.mkdir()
        shown = version if name == "llmcompressor" else tried
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {shown}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if f"llmcompressor=={version}" in quantizing.REQUIREMENTS:
        assert quantizing.require_environment() == Path(sys.executable)
    else:
        with pytest.raises(UsageError, match="llm-compressor is not installed"):
            quantizing.require_environment()


@pytest.mark.parametrize(
    ("widths", "size"),
    [
        ({"hidden_size": 4096, "intermediate_size": 14336}, 128),
        (WIDTHS, 64),
        ({"hidden_size": 896, "intermediate_size": 4832}, 32),
        ({"text_config": {"hidden_size": 320}}, 64),
        ({"hidden_size": 4096, "num_attention_heads": 3, "head_dim": 96}, 32),
    ],
)
def test_the_group_is_the_largest_that_divides_every_input(widths: dict[str, Any], size: int, tmp_path: Path) -> None:
    model = put_in_folder(tmp_path / "mine", widths)
    plan = plan_quantize({"model": str(model), "to": "w4a16-gptq", "calibration": planning.SAMPLE_FILE})
    assert plan.records["w4a16-gptq"].group_size == size


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"to": "awq"}, "--to awq: llm-compressor's formats are of the kind compressed-tensors; write w4a16-awq"),
        ({"to": "w4a16"}, "write w4a16-gptq or w4a16-awq"),
        ({"to": "fp9"}, r"--to fp9: not a format; did you mean fp8\? known: w4a16-awq, w4a16-gptq, int8, fp8"),
        ({"to": ""}, "quantize needs --to, one or more of w4a16-awq"),
        ({"model": None}, "quantize needs --model"),
        ({"model": "./nowhere"}, "--model ./nowhere: there is no such folder"),
        ({"samples": 0}, "--samples 0: give a finite number above zero"),
        ({"calibration": "nowhere.txt"}, "--calibration nowhere.txt: there is no such file"),
    ],
)
def test_wrong_use_is_one_sentence(model: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        plan_quantize({"model": str(model), "to": "int8", "calibration": planning.SAMPLE_FILE, **options})  # type: ignore[typeddict-item]


def test_a_model_that_cannot_be_quantized_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    awq = put_in_folder(tmp_path / "awq", AWQ)
    with pytest.raises(UsageError, match=r"is quantized already \(awq int4\); give the 16-bit model"):
        plan_quantize({"model": str(awq), "to": "fp8"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: the folder has no config\.json"):
        plan_quantize({"model": str(tmp_path / "empty"), "to": "fp8"})
    odd = put_in_folder(tmp_path / "odd", {"hidden_size": 100, "intermediate_size": 256})
    with pytest.raises(UsageError, match=r"hidden_size of 100, which is not a multiple of 32.*use --to int8 or fp8"):
        plan_quantize({"model": str(odd), "to": "w4a16-gptq", "calibration": planning.SAMPLE_FILE})
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with made_hub({"me/mine": AWQ}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.gated.add("me/gated")
        with pytest.raises(UsageError, match=r"me/mine is quantized already"):
            plan_quantize({"model": "me/mine", "to": "fp8"})
        with pytest.raises(UsageError, match=r"does not give me/gated to this user.*set HF_TOKEN"):
            plan_quantize({"model": "me/gated", "to": "fp8"})
        with pytest.raises(UsageError, match=r"the hub gives no config\.json of me/none \(404 .*check the id"):
            plan_quantize({"model": "me/none", "to": "fp8"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"me/none is not in this machine's cache, and HF_HUB_OFFLINE"):
        plan_quantize({"model": "me/none", "to": "fp8"})


def test_a_model_that_is_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    """10^6 x 10^6 in each of 7 matrices of 100 layers: 1.4 PB in 16 bits."""
    sizes = {"hidden_size": 2**20, "intermediate_size": 2**20, "num_attention_heads": 2**13, "num_hidden_layers": 100}
    large = put_in_folder(tmp_path / "large", {**sizes, "vocab_size": 1000})
    with pytest.raises(UsageError, match=r"needs about [\d.]+ GB of memory and [\d.]+ GB are available"):
        plan_quantize({"model": str(large), "to": "fp8"})


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ('{"text": "One."}', {"text": "One."}),
        ("One.", {"text": "One."}),
        ('{"question": "Why?", "answer": "So."}', [("user", "Why?"), ("assistant", "So.")]),
        ('{"Problem": "Why?", "Rationale": "So."}', [("user", "Why?"), ("assistant", "So.")]),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', [("user", "Hi")]),
        ('{"conversations": [{"from": "human", "value": "Hi"}]}', [("user", "Hi")]),
    ],
)
def test_texts_of_many_shapes_are_read(line: str, row: Any, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(f"{line}\n\n{line}\n")
    wanted = row if isinstance(row, dict) else {"messages": [{"role": role, "content": text} for role, text in row]}
    assert calibration_texts(file).rows == (wanted, wanted)


def test_a_line_without_a_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "One."}\n{"number": 1}\n')
    with pytest.raises(UsageError, match=r"line 2 has no text under a known name \(number\)"):
        calibration_texts(file)
    file.write_text("")
    with pytest.raises(UsageError, match="holds no text"):
        calibration_texts(file)


def test_a_draw_is_the_same_for_the_same_seed_and_never_longer_than_the_file(texts: Path) -> None:
    found = calibration_texts(texts)
    assert found.drawn(10, 1) == found.drawn(10, 1) != found.drawn(10, 2)
    assert len(set(found.drawn(1000, 0).splitlines())) == 100


def test_the_own_questions_stand_in_for_gsm8k_and_this_is_said(
    model: Path, environment: Path, unreachable: None, capsys: pytest.CaptureFixture[str]
) -> None:
    loadgen.quantize(model=model.as_posix(), to="int8")
    assert "32 texts of loadgen's own sample questions" in (said := capsys.readouterr().err)
    assert "do not measure these checkpoints with --dataset sample" in said


def test_two_checkpoints_of_one_recipe_get_labels(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {name: model.with_name(f"mine-{name}") for name in ("int8", "fp8")}
    assert arms_of(places, str(model)) == ["int8", "fp8"]
    assert arms_of({"int8": Path("/elsewhere/mine-int8")}, str(model)) == ["int8=/elsewhere/mine-int8"]
    (cpuinfo := model / "cpuinfo").write_text("flags : avx2")
    monkeypatch.setattr(planning, "CPU_INFO", cpuinfo)
    monkeypatch.setattr(planning, "used_bytes", lambda: None)
    w4a16 = {name: model.with_name(f"mine-{name}") for name in ("w4a16-gptq", "w4a16-awq")}
    assert arms_of(w4a16, str(model)) == [], "a CPU without AVX-512 serves no 4-bit integers"
    monkeypatch.setattr(planning, "used_bytes", lambda: 1)
    assert arms_of(w4a16, str(model)) == [f"{name}:w4a16={place}" for name, place in w4a16.items()]


@pytest.mark.parametrize(("used", "torch"), [(None, "torch==2.13.0+cpu"), (4 * 2**20, "torch==2.13.0")])
def test_the_environment_gets_the_build_of_torch_for_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int | None, torch: str
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        (tmp_path / "venv" / "bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / "venv" / "bin" / "python").touch()
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setenv("LOADGEN_QUANTIZE_ENV", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(planning, "used_bytes", lambda: used)
    said: list[str] = []
    for _ in range(2):
        environment = build_environment(say=said.append)
    assert environment.is_complete
    (installed,) = [line for line in ran if "install" in line]
    assert installed[-1] == torch
    assert len(ran) == 3
    assert said[-1] == f"llmcompressor 0.14.0.1 is already in {tmp_path}"
