"""Locks: every package that CI and the images install, each by its version and the sha256 of its files.

    python .ci/lock.py            # all of them again, at the newest versions that pyproject.toml allows
    python .ci/lock.py --keep     # only what pyproject.toml requires differently; other versions stay

A lock holds for Python 3.11 and newer on every platform: a package that no longer supports 3.11 is there in two
versions, each with a marker. It is complete, so it is installed with `--no-deps --require-hashes`. `uv` must be on the
PATH.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

from loadgen.serving.environment import PLUGIN, REQUIREMENTS

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = "3.11"
HEADER = "# Written by `python .ci/lock.py`; do not edit. For Python 3.11 and newer; install with --no-deps.\n"


class Lock(NamedTuple):
    """A lock file and what it locks: requirements as in pyproject.toml. `within`: the lock whose versions it shares.

    `alone`: without what they need in turn, which the image has already.
    """

    path: str
    requirements: tuple[str, ...]
    within: str = ""
    alone: bool = False


def locks() -> tuple[Lock, ...]:
    """The lock files, each after the one that it shares versions with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {_name(text): text for text in project["project"]["dependencies"]}
    extras = project["project"]["optional-dependencies"]
    build = project["build-system"]["requires"]
    exporter = ("aiohttp", "click", "msgspec", "numpy", "nvidia-ml-py", "prometheus-client")
    tools = [text for extra in ("dev", "harness", "docs", "ray") for text in extras[extra]]
    every = [*needed.values(), *tools, *build, *project["dependency-groups"]["audit"]]
    bnb = [text for text in REQUIREMENTS if text.startswith("bitsandbytes")]
    ci = ".ci/requirements.txt"
    return (
        Lock(ci, tuple(every)),
        Lock("docker/requirements/loadgen.txt", tuple(needed.values()), ci),
        Lock("docker/requirements/exporter.txt", tuple(needed[name] for name in exporter), ci),
        Lock("docker/requirements/build.txt", tuple(build), ci),
        Lock("docker/requirements/bnb.txt", (*bnb, PLUGIN), alone=True),
    )


def write(lock: Lock, *, keep: bool) -> None:
    """Resolve the lock's requirements and write its file."""
    path = ROOT / lock.path
    argv = ["uv", "pip", "compile", "-", "--quiet", "--universal", "--python-version", OLDEST_PYTHON]
    argv += ["--generate-hashes", "--no-emit-index-url", "--no-annotate", "--no-header", "--output-file", str(path)]
    argv += ["--constraints", str(ROOT / lock.within)] if lock.within else []
    argv += ["--no-deps"] if lock.alone else []
    argv += [] if keep else ["--upgrade"]
    subprocess.run(argv, input="\n".join(lock.requirements), text=True, check=True)
    path.write_text(HEADER + path.read_text(encoding="utf-8"), encoding="utf-8")


def _name(requirement: str) -> str:
    return requirement.partition(";")[0].partition(">")[0].partition("=")[0].partition("[")[0].strip()


if __name__ == "__main__":
    for one in locks():
        write(one, keep=sys.argv[1:] == ["--keep"])
