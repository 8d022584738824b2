"""The lock files: in step with pyproject.toml on every supported Python, hashed, and without an address."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = {lock.path: lock for lock in runpy.run_path(str(ROOT / ".ci" / "lock.py"))["locks"]()}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LINE = re.compile(r"^(?P<pin>\w[^\\\n]*)(?P<hashes>( ?\\\n    --hash=sha256:[0-9a-f]{64})+)\n", re.MULTILINE)


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def pins(path: str, python: str) -> dict[str, str]:
    """Version by name, of what is installed by that Python on Linux; two pins for one package are an error."""
    machine: Any = {"python_version": python, "python_full_version": f"{python}.7", "sys_platform": "linux",
                    "platform_system": "Linux", "platform_machine": "x86_64"}  # fmt: skip
    found: dict[str, str] = {}
    for line in LINE.finditer(text_of(path)):
        pin = Requirement(line["pin"])
        (only,) = pin.specifier
        assert only.operator == "=="
        if pin.marker is None or pin.marker.evaluate(machine):
            assert canonicalize_name(pin.name) not in found, f"{pin.name} has two versions for Python {python}"
            found[canonicalize_name(pin.name)] = only.version
    return found


@pytest.mark.parametrize("path", LOCKS)
def test_every_line_is_a_pin_with_hashes_and_no_line_names_an_address(path: str) -> None:
    header, _, body = text_of(path).partition("\n")
    assert header.startswith("# Written by `python .ci/lock.py`")
    assert LINE.sub("", body) == ""
    assert not re.search(r"://|--(extra-)?index|--find-links| @ ", body)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("path", LOCKS)
def test_every_requirement_of_pyproject_is_locked_within_its_range(path: str, python: str) -> None:
    locked = pins(path, python)
    for text in LOCKS[path].requirements:
        wanted = Requirement(text)
        version = locked.get(canonicalize_name(wanted.name))
        assert version, f"{path} lacks {wanted.name}: run `python .ci/lock.py --keep`"
        fits = wanted.specifier.contains(version)
        assert fits, f"{path} has {wanted.name} {version}: run `python .ci/lock.py --keep`"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("path", [path for path, lock in LOCKS.items() if lock.within])
def test_images_have_the_versions_that_ci_tests(path: str, python: str) -> None:
    assert pins(path, python).items() <= pins(LOCKS[path].within, python).items()


def test_the_exporter_imports_nothing_that_its_image_lacks() -> None:
    show = "import json, sys, loadgen.cli.exporter, loadgen.power.exporter; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    belongs = packages_distributions()
    needed = {canonicalize_name(name) for module in json.loads(done.stdout) for name in belongs.get(module, ())}
    assert "aiohttp" in needed
    assert needed - {"vllm-loadgen", "setuptools"} <= pins("docker/requirements/exporter.txt", "3.11").keys()
