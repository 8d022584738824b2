"""Wheels for an offline machine: fetched by a lock through pip, trimmed of what is not needed, and installed there."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
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
    """The pins of a lock by what is done with them."""

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
            raise UsageError(
                f"{path}, line {number}: {text!r} is not of the form NAME==VERSION; a lock names exact versions"
            )
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
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *tags]
        command += ["-r", str(requirement), "-d", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = " ".join(done.stderr.strip().splitlines()[-1:]) or f"status {done.returncode}"
            raise UsageError(f"pip cannot fetch {pin} for Python {python} on {machine.processor}: {reason}")
        for wheel in Path(folder).glob("*.whl"):
            # Moved within one file system at the end, so that a kill leaves no half wheel under its name.
            partial = out / f"{wheel.name}.partial"
            partial.write_bytes(wheel.read_bytes())
            partial.replace(out / wheel.name)


_PRESERVED = ("dist-info/RECORD", "dist-info/METADATA", "dist-info/WHEEL")
_SMALL = 1 << 20


@dataclass(frozen=True)
class Trimmed:
    """What became of one wheel."""

    name: str
    bytes_before: int
    bytes: int
    dropped: tuple[str, ...]


def trim(folder: Path, out: Path, drop: Mapping[str, Sequence[str]]) -> list[Trimmed]:
    """Every wheel of `folder` in `out`, without the members that match its distribution's patterns in `drop`.

    Members of a wheel above 1 MiB are packed with LZMA, which pip unpacks as well, where that makes it smaller. A
    wheel that is in `out` already is left. Raises UsageError for a pattern that matches nothing: the wheel is another
    one than the pattern was written for.
    """
    out.mkdir(parents=True, exist_ok=True)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise UsageError(f"{folder} holds no wheel; name the folder that fetch filled")
    for stale in {path.name for path in out.glob("*.whl")} - {wheel.name for wheel in wheels}:
        (out / stale).unlink()
    return [_trim_one(wheel, out / wheel.name, drop.get(wheel_name(wheel)[0], ())) for wheel in wheels]


def _trim_one(wheel: Path, target: Path, patterns: Sequence[str]) -> Trimmed:
    with zipfile.ZipFile(wheel) as source:
        names = source.namelist()
        dropped = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(f"{wheel.name}: nothing in it matches {pattern!r}; the pattern is for another version")
        if kept := [name for name in dropped if name.endswith(_PRESERVED)]:
            raise UsageError(f"{wheel.name}: {kept[0]} must stay; fix the pattern that drops it")
        if not target.exists():
            partial = target.with_name(target.name + ".partial")
            if wheel.stat().st_size < _SMALL and not dropped:
                partial.write_bytes(wheel.read_bytes())
            else:
                _rewrite(source, partial, dropped)
            partial.replace(target)
    return Trimmed(wheel.name, wheel.stat().st_size, target.stat().st_size, tuple(sorted(dropped)))


def _rewrite(source: zipfile.ZipFile, target: Path, dropped: set[str]) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as out:
        for info in source.infolist():
            if info.filename in dropped:
                continue
            content = source.read(info)
            if info.filename.endswith("dist-info/RECORD"):
                content = _record(content, dropped)
            # The original's time and mode (scripts are executable) stay.
            out.writestr(info, content, zipfile.ZIP_LZMA if content else zipfile.ZIP_STORED)


def _record(content: bytes, dropped: set[str]) -> bytes:
    rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8"))) if row and row[0] not in dropped]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8")


PROJECT = Path(__file__).resolve().parents[2]
CANNOT = "cannot be imported"
STAMP = "installed.json"
_LOG = "install.log"
PROBES = (
    "torch",
    "numba",
    "vllm._C_stable_libtorch",
    "vllm._moe_C_stable_libtorch",
    "vllm.vllm_flash_attn._vllm_fa3_C",
    "vllm.v1.worker.gpu_model_runner",
    "bitsandbytes",
    "loadgen",
)
"""What a server of vLLM 0.26 on Hopper cannot do without; the model runner imports most of the rest."""


def install(wheels: Path, venv: Path, say: Callable[[str], None] = print) -> Path:
    """Makes the environment from the wheels alone (`--no-index --no-deps`) and returns its Python.

    The packages of the Python that runs this stay visible, behind the carried ones. Done once: a second call with the
    same wheels finds its stamp. Raises UsageError with pip's last words.
    """
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise UsageError(f"{wheels} holds no wheel; name the folder that join filled")
    mark = {wheel.name: sha256(wheel) for wheel in found}
    python = venv / "bin" / "python"
    stamp = venv / STAMP
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == mark:
        say(f"{len(found)} wheels are already in {venv}")
        return python
    stamp.unlink(missing_ok=True)
    # Without pip of its own: some systems ship none for new environments, and this Python's can install into it.
    _run(venv, [sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv)])
    site = Path(_run(venv, [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    # A path file, since --system-site-packages would show a parent environment's base instead of its packages.
    there = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "machine.pth").write_text("\n".join([*there, str(PROJECT)]) + "\n", encoding="utf-8")
    say(f"installing {len(found)} wheels into {venv}")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "--no-index"]
    pip += ["--no-deps", "--find-links", str(wheels), "--ignore-installed", "--no-compile"]
    _run(venv, [*pip, *map(str, found)])
    stamp.write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
    return python


def probe(python: Path, modules: Sequence[str] = PROBES) -> dict[str, str]:
    """Module -> version or `present`, or `cannot be imported: ` and why; nothing is raised."""
    script = (
        "import importlib, sys\n"
        "try:\n"
        "    module = importlib.import_module(sys.argv[1])\n"
        "    print(getattr(module, '__version__', 'present'))\n"
        "except BaseException as error:\n"
        f"    print(f'{CANNOT}: {{type(error).__name__}}: {{error}}')\n"
    )

    def ask(name: str) -> str:
        asked = subprocess.run(
            [str(python), "-c", script, name], capture_output=True, text=True, check=False, cwd=PROJECT
        )
        lines = asked.stdout.strip().splitlines()
        return lines[-1] if lines else f"{CANNOT}: Python ended with status {asked.returncode}"

    with ThreadPoolExecutor() as pool:
        return dict(zip(modules, pool.map(ask, modules), strict=True))


def _run(venv: Path, command: list[str]) -> str:
    """Standard output; everything said goes to the log beside the environment."""
    venv.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    log = venv.with_name(f"{venv.name}-{_LOG}")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.returncode != 0:
        last = " ".join(done.stderr.strip().splitlines()[-1:]) or f"status {done.returncode}"
        raise UsageError(f"`{' '.join(command[:6])} ...` failed: {last}; see {log}")
    return done.stdout
