"""A Docker engine of the tests' own, a base image made without any image registry, and a Compose of version 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from loadgen.serving.environment import PLUGIN, REQUIREMENTS

ROOT = Path(__file__).parents[2]
PROGRAMS = ("dockerd", "docker", "docker-compose", "debootstrap", "prometheus", "promtool")
PACKAGES = "docker.io docker-compose debootstrap prometheus"
BASE_PACKAGES = "python3,python3-venv,ca-certificates,libnuma1"
GLIBC_2 = range(36, 16, -1)
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in GLIBC_2), "manylinux2014_x86_64", "manylinux1_x86_64")
"""Tags of wheels that run on the base image."""
COMPOSE_RELEASE = "trixie"
"""The Debian whose package docker-compose is a Compose v2; it runs on older ones as it is."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
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
    """Everything that loadgen's images install, as wheels for the base's Python (`3.11`), by this machine's own pip."""
    for lock in ("loadgen", "build"):
        locked = str(ROOT / "docker" / "requirements" / f"{lock}.txt")
        _download(folder, python, "--no-deps", "--require-hashes", "--requirement", locked)


def download_cpu_wheels(folder: Path, python: str) -> None:
    """Everything that `loadgen cpu-env` installs; pip must find a CPU build of torch, as for `cpu-env` itself."""
    _download(folder, python, *REQUIREMENTS, "setuptools")
    _download(folder, python, "--no-deps", PLUGIN)


def _download(folder: Path, python: str, *wanted: str) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), "--only-binary=:all:",
         "--python-version", python, *platforms, *wanted)  # fmt: skip


def compose_v2() -> str:
    """The path of a Compose v2, unpacked from Debian's package below the user's cache; nothing is installed."""
    kept = user_cache_path("loadgen") / "compose-v2"
    program = kept / "usr" / "libexec" / "docker" / "cli-plugins" / "docker-compose"
    if not program.exists():
        with tempfile.TemporaryDirectory() as folder:
            _unpack("docker-compose", COMPOSE_RELEASE, Path(folder), kept.with_suffix(".part"))
            kept.with_suffix(".part").rename(kept)
    return str(program)


def _unpack(package: str, release: str, folder: Path, target: Path) -> None:
    """A package of another release of this machine's own mirror, by lists of apt's that are kept apart."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_mirror()} {release} main\n", encoding="utf-8")
    apart = ["-o", f"Dir::Etc::sourcelist={folder}/sources.list", "-o", "Dir::Etc::sourceparts=-",
             "-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}", "-o", "APT::Sandbox::User=root",
             "-o", "Acquire::Retries=3"]  # fmt: skip
    _run("apt-get", *apart, "update", "--quiet")
    _run("apt-get", *apart, "download", "--quiet", package, folder=folder)
    (found,) = folder.glob(f"{package}_*.deb")
    _run("dpkg-deb", "--extract", str(found), str(target))


def _mirror() -> str:
    """Where this machine has its own release from."""
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return next(line.split()[1] for line in told.splitlines() if line.startswith(f"{_release()} "))


def _answers(host: str) -> bool:
    return subprocess.run(["docker", "--host", host, "version"], capture_output=True, check=False).returncode == 0


def _release() -> str:
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"]


def _run(*command: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command[:4])} ... failed:\n{done.stdout[-4000:]}"
