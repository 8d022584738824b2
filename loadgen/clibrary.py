"""CLibrary: a C source of ours, built by this machine's C compiler when it is first wanted, and kept.

Where there is no compiler, what it does is done in Python.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from platformdirs import user_cache_path

VARIABLE = "LOADGEN_READER"
"""`python`: nothing compiled is used."""
_OPTIONS = ("-O2", "-shared", "-fPIC")
_COMPILERS = ("cc", "gcc", "clang")
_NEEDED = (
    *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH"),
    *("GCC_EXEC_PREFIX", "COMPILER_PATH", "LIBRARY_PATH", "CPATH", "C_INCLUDE_PATH"),
)
"""The variables that a compiler gets: no other, for a secret may have any name (`--api-key-env`)."""
_LONGEST_S = 60.0


def library(source: Path) -> ctypes.CDLL | str:
    """The functions of a C file, which keep the GIL while they run; or why there are none: they are not wanted, or
    cannot be built or loaded."""
    if sys.platform != "linux" or sys.byteorder != "little":
        return "it is for Linux on little-endian machines"
    if os.environ.get(VARIABLE) == "python":
        return f"{VARIABLE} is python"
    try:
        return ctypes.PyDLL(str(_built(source)))
    except OSError as error:
        return str(error)


def _built(path: Path) -> Path:
    """The library of this very source, for this kind of machine. Raises OSError."""
    source = path.read_bytes()
    named = hashlib.sha256(source + platform.machine().encode() + platform.libc_ver()[0].encode()).hexdigest()[:16]
    folder = Path(os.environ.get("LOADGEN_CACHE") or user_cache_path("loadgen")) / "compiled"
    built = folder / f"{path.stem}-{named}.so"
    if built.exists():
        return built
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise OSError("there is no C compiler (Debian: gcc and libc6-dev)")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as building:
        made = Path(building) / built.name
        command = [*shlex.split(compiler), *_OPTIONS, "-o", str(made), str(path)]
        environment = {name: os.environ[name] for name in _NEEDED if name in os.environ}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, errors="replace", timeout=_LONGEST_S
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"{compiler} took longer than {_LONGEST_S:.0f} s") from None
        if done.returncode or not made.exists():
            said = next(iter(done.stderr.strip().splitlines()), f"status {done.returncode}")
            raise OSError(f"{compiler}: {said}")
        made.replace(built)
    return built
