"""The command reference is what the commands print, and the table of faults what the tests inject."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from loadgen.cli import COMMANDS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_is_fresh(generate: ModuleType) -> None:
    fresh = generate.page()
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == fresh, "stale: run `python docs/generate.py`"


def test_the_table_of_faults_is_fresh_and_every_row_names_tests_that_exist(generate: ModuleType) -> None:
    shown = (DOCS / "reliability.md").read_text(encoding="utf-8")
    assert shown == generate.reliability(), "stale: run `python docs/generate.py`"
    named = re.findall(r"`(tests/[\w/]+\.py)::(?:\w+::)*(\w+)", shown)
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (DOCS.parent / file).read_text(encoding="utf-8"), f"{file} has no {test}"


@pytest.mark.parametrize("names", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_the_reference_shows_what_help_prints(generate: ModuleType, names: tuple[str, ...]) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "loadgen", *names, "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    shown = re.sub(r"\AUsage: python -m loadgen", "Usage: loadgen", printed.stdout)
    assert _words(shown) == _words(generate.help_of(*names))


def _words(text: str) -> list[str]:
    """Line breaks aside: the usage line wraps by the length of the program's name."""
    return text.split()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_commands_help_shows_an_example_of_itself(generate: ModuleType, name: str) -> None:
    _, marker, examples = generate.help_of(name).partition("Example")
    assert marker
    assert f"loadgen {name}" in examples
