"""Fetch: the wheels that an offline machine lacks, at the versions of a lock, through pip and its own configuration."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.machine import Machine, normalized
from bench.gpu.pieces import sha256
from loadgen.errors import UsageError

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?P<hashes>(\s+--hash=sha256:[0-9a-f]{64})*)\s*")
_OLDEST_GLIBC = 5
_OLD_NAMES = ("manylinux2014", "manylinux2010", "manylinux1")


@dataclass(frozen=True)
class Pin:
    """One line of a lock."""

    name: str
    """Normalized."""
    version: str
    hashes: tuple[str, ...] = ()
    """sha256 of its file, where it is known; several when several files are good."""

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Choice:
    """What of a lock is fetched, and why the rest is not."""

    fetch: tuple[Pin, ...]
    there: tuple[Pin, ...]
    """The machine has a distribution of that name."""
    left_out: tuple[Pin, ...]
    """Not needed for what is measured, by the kit's settings."""


def read_lock(path: Path) -> tuple[Pin, ...]:
    """The pins of a lock, `name==version` a line with or without `--hash`. Raises UsageError for another line."""
    pins = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--lock {path}: {error.strerror}; name a file of lines like NAME==VERSION") from None
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            raise UsageError(f"{path}, line {number}: {text!r} is no NAME==VERSION; a lock names exact versions")
        hashes = tuple(re.findall(r"sha256:([0-9a-f]{64})", found["hashes"]))
        pins.append(Pin(normalized(found["name"]), found["version"], hashes))
    return tuple(pins)


def choose(pins: Sequence[Pin], machine: Machine, leave_out: Mapping[str, str], also: Sequence[str] = ()) -> Choice:
    """`also` are fetched although the machine has them, or the settings leave them out."""
    known = {pin.name for pin in pins}
    wanted = {normalized(name) for name in also}
    if unknown := sorted(wanted - known):
        raise UsageError(f"--also {', '.join(unknown)}: the lock has no such package")
    left = {normalized(name) for name in leave_out} - wanted
    there = machine.packages.keys() - wanted
    return Choice(
        fetch=tuple(pin for pin in pins if pin.name not in left and pin.name not in there),
        there=tuple(pin for pin in pins if pin.name in there),
        left_out=tuple(pin for pin in pins if pin.name in left and pin.name not in there),
    )


def fetch(choice: Choice, machine: Machine, out: Path, say: Callable[[str], None] = print) -> list[Path]:
    """The wheel of each pin in `out`; what lies there already, whole, is not fetched again.

    Raises UsageError naming the package that pip could not get.
    """
    out.mkdir(parents=True, exist_ok=True)
    wheels = []
    for number, pin in enumerate(choice.fetch, start=1):
        wheel = _there(out, pin)
        if wheel is None:
            say(f"{number}/{len(choice.fetch)} {pin}")
            _download(pin, machine, out)
            wheel = _there(out, pin)
            if wheel is None:
                raise UsageError(f"pip said that it fetched {pin}, but {out} has no such wheel")
        wheels.append(wheel)
    stale = set(out.glob("*.whl")) - set(wheels)
    for path in stale:
        say(f"removing {path.name}: not of this lock")
        path.unlink()
    return wheels


def platforms(machine: Machine) -> list[str]:
    """Every platform tag whose wheels run there, newest first; pip matches tags exactly."""
    newest = int(machine.glibc.split(".")[1])
    tags = [f"manylinux_2_{minor}" for minor in range(newest, _OLDEST_GLIBC - 1, -1)]
    return [f"{tag}_{machine.processor}" for tag in (*tags, *_OLD_NAMES, "linux")]


def wheel_name(path: Path) -> tuple[str, str]:
    """(normalized name, version) of a wheel's file name."""
    name, version, *_ = path.name.split("-")
    return normalized(name), version


def _there(out: Path, pin: Pin) -> Path | None:
    """The pin's wheel in `out`; one with another hash is none. A local version (1.0+cu130) is the same release."""
    for path in sorted(out.glob("*.whl")):
        name, version = wheel_name(path)
        same = version == pin.version or version.split("+")[0] == pin.version
        if name == pin.name and same and (not pin.hashes or sha256(path) in pin.hashes):
            return path
    return None


def _download(pin: Pin, machine: Machine, out: Path) -> None:
    python = ".".join(machine.python.split(".")[:2])
    tags = [argument for tag in platforms(machine) for argument in ("--platform", tag)]
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirement.txt"
        requirement.write_text(" ".join([str(pin), *(f"--hash=sha256:{value}" for value in pin.hashes)]) + "\n")
        asked = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *tags,
             "-r", str(requirement), "-d", folder],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if asked.returncode != 0:
            said = " ".join(asked.stderr.strip().splitlines()[-1:]) or f"status {asked.returncode}"
            raise UsageError(f"pip cannot fetch {pin} for Python {python} on {machine.processor}: {said}")
        for wheel in Path(folder).glob("*.whl"):
            # Moved within one file system at the end, so that a kill leaves no half wheel under its name.
            partial = out / f"{wheel.name}.partial"
            partial.write_bytes(wheel.read_bytes())
            partial.replace(out / wheel.name)
