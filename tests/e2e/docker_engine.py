"""A Docker engine of the tests' own, and a base image made without any registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("dockerd", "docker", "docker-compose", "debootstrap", "prometheus", "promtool")
PACKAGES = "docker.io docker-compose debootstrap prometheus"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64")
START_S = 60.0


@contextmanager
def engine(folder: Path) -> Iterator[str]:
    """The DOCKER_HOST of an engine: one that runs already, else one started below `folder` and ended again."""
    found = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if _answers(found):
        yield found
        return
    host = f"unix://{folder}/docker.sock"
    folders = ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
    with (folder / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(["dockerd", "--host", host, *folders], stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + START_S
        while not _answers(host):
            said = (folder / "dockerd.log").read_text(errors="replace")[-2000:]
            assert daemon.poll() is None, f"dockerd ended: {said}"
            assert time.monotonic() < deadline_s, f"dockerd does not answer: {said}"
            time.sleep(0.2)
        yield host
    finally:
        daemon.terminate()
        daemon.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def base_tarball(folder: Path) -> Path:
    """A minimal Debian with Python, this machine's release; kept in the user's cache: it takes minutes."""
    release = _release()
    kept = user_cache_path("loadgen") / "docker-base" / f"{release}-{BASE_PACKAGES.replace(',', '-')}.tar"
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    tree = folder / "tree"
    tree.mkdir()
    # In memory: dpkg waits for the disk after every file.
    subprocess.run(["mount", "-t", "tmpfs", "loadgen-base", str(tree)], check=True)
    try:
        _run("debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", release, str(tree))
        fresh = kept.with_suffix(".part")
        _run("tar", "--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*",
             "-C", str(tree), "-cf", str(fresh), ".")  # fmt: skip
        fresh.rename(kept)
    finally:
        subprocess.run(["umount", str(tree)], check=True)
    return kept


def download_wheels(folder: Path, python: str) -> None:
    """Everything that the images install, as wheels for the base's Python (`3.11`), by this machine's own pip."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), "--only-binary=:all:",
         "--python-version", python, *platforms, *wanted)  # fmt: skip


def _answers(host: str) -> bool:
    return subprocess.run(["docker", "--host", host, "version"], capture_output=True, check=False).returncode == 0


def _release() -> str:
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"]


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command[:4])} ... failed:\n{done.stdout[-4000:]}"
