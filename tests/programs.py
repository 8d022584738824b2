"""Programs that some tests use, and who has them: Debian's packages, by the name of the program."""

from __future__ import annotations

import os
import shutil

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


def compiler() -> str:
    """The path of the C compiler: $CC, else cc, else gcc."""
    return os.environ.get("CC") or shutil.which("cc") or program("gcc")
