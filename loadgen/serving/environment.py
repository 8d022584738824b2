"""PythonEnvironment: a folder with its own Python, apart from loadgen's, that loadgen builds and reuses."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from platformdirs import user_cache_path

from loadgen.errors import UsageError
from loadgen.folder import Folder
from loadgen.secret import without_secrets

Say = Callable[[str], None]


class PythonEnvironment(msgspec.Struct, frozen=True):
    """The paths of one environment, and what is done in it."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "venv" / "bin" / "python"

    @property
    def log(self) -> Path:
        """Everything that the build printed."""
        return self.root / "build.log"

    @property
    def stamp(self) -> Path:
        """What is installed; written last."""
        return self.root / "venv.json"

    def begin(self, say: Say) -> None:
        """An empty virtual environment and an empty log; a former one is removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.stamp.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        venv = self.root / "venv"
        say(f"making a Python environment in {venv}")
        self.run([sys.executable, "-m", "venv", "--clear", str(venv)])

    def pip(self, *arguments: str, torch: str) -> None:
        """Runs pip with the machine's own configuration, which may name an index or a folder with `torch`."""
        try:
            self.run([str(self.python), "-m", "pip", *arguments])
        except UsageError as error:
            raise UsageError(
                f"{error}; pip must be able to find {torch}: set PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL to a "
                f"place with {'CPU' if torch.endswith('+cpu') else 'CUDA'} builds of torch"
            ) from None

    def run(self, command: list[str]) -> str:
        """The command's standard output; all its output is appended to the log. Raises UsageError if it fails."""
        with Folder(self.root).append(self.log.name, mode=0o600) as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, check=False,
                env=None if "pip" in command else without_secrets(os.environ),
            )  # fmt: skip
            log.write(done.stdout.encode())
        if done.returncode != 0:
            shown = " ".join(command[:6])
            raise UsageError(f"`{shown} ...` failed with status {done.returncode}, see {self.log}")
        return done.stdout


def environment_root(variable: str, name: str) -> Path:
    """The folder that the variable names, else the one of that name in the user's cache folder."""
    named = os.environ.get(variable)
    return Path(named).expanduser() if named else user_cache_path("loadgen") / name


def file_hashes(*files: Path) -> dict[str, str]:
    """Hex sha256 of each file by its name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def is_stamped(stamp: Path, expected: Mapping[str, str]) -> bool:
    """Whether a step ended with this content: its stamp is written last."""
    try:
        return bool(msgspec.json.decode(stamp.read_bytes()) == expected)
    except (OSError, msgspec.DecodeError):
        return False
