"""What the tests of real servers need, made where it is missing: once, and reused from then on.

Downloads and training take minutes. Here they take them beside other tests; those that measure find everything made.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from loadgen.serving.environment import PythonEnvironment, default_environment
from loadgen.serving.quantize import quantize_environment

pytestmark = pytest.mark.vllm


def loadgen(*arguments: str) -> str:
    """What it says on both streams; it must end well."""
    done = subprocess.run([sys.executable, "-m", "loadgen", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def written_ns(environment: PythonEnvironment) -> int:
    return environment.log.stat().st_mtime_ns


def test_vllm_is_installed_and_a_model_trained_on_other_problems_than_it_is_asked() -> None:
    environment = default_environment()
    said = loadgen("cpu-env", "--trained")
    assert environment.is_complete
    for model in (environment.model, environment.trained):
        assert f"--model {model} --device cpu" in said
        for folder in (model, model.with_name(f"{model.name}-int8"), model.with_name(f"{model.name}-fp8")):
            assert (folder / "config.json").exists() and (folder / "model.safetensors").exists(), folder
    assert len(set(environment.problems.read_text().splitlines())) == 600
    before = written_ns(environment)
    said = loadgen("cpu-env", "--trained")
    for made in ("vLLM 0.32.0 for CPUs is", "the tiny models are", "the trained models are"):
        assert f"{made} already in {environment.root}" in said
    assert written_ns(environment) == before, "nothing ran in it"


def test_llm_compressor_is_installed() -> None:
    loadgen("quantize", "--env")
    environment = quantize_environment()
    assert environment.is_complete
    before = written_ns(environment)
    assert f"llmcompressor 0.14.0.1 is already in {environment.root}" in loadgen("quantize", "--env")
    assert written_ns(environment) == before
