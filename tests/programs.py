"""Programs and Python packages that some tests use, and who has them: Debian's packages, by the name of the program."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest

PACKAGES = {
    "chromium": "chromium",
    "docker-compose": "docker-compose",
    "gcc": "gcc libc6-dev",
    "mount": "mount",
    "node": "nodejs",
    "npm": "npm",
    "prometheus": "prometheus",
    "promtool": "prometheus",
}


def program(name: str) -> str:
    """The path of program `name`. Where it is not installed the test is skipped, and with CI=true it fails."""
    path = shutil.which(name)
    if path is None and os.environ.get("CI") != "true":
        pytest.skip(f"without {name}")
    assert path is not None, f"{name} is not installed: CI needs Debian's package {PACKAGES[name]}"
    return path


def package(name: str) -> None:
    """For a whole file of tests: they are skipped where the Python package is not installed, and with CI=true fail."""
    found = find_spec(name) is not None
    if not found and os.environ.get("CI") != "true":
        pytest.skip(f"without {name}", allow_module_level=True)
    assert found, f"{name} is not installed: pip install -e '.[dev,harness,ray]'"


def compiler() -> str:
    """The path of the C compiler: $CC, else cc, else gcc."""
    return os.environ.get("CC") or shutil.which("cc") or program("gcc")
