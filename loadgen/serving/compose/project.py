"""The compose project on disk: where it lies, and how it is written out for those who installed loadgen."""

from __future__ import annotations

import shutil
from pathlib import Path

from loadgen.errors import UsageError

PACKAGE = Path(__file__).parents[2]
DATA = ("docker", "dashboards", "servers", "pyproject.toml", "README.md", "LICENSE", ".dockerignore")
"""What is taken from the project's root; with the package itself, images are built from it."""
LEFT_OUT = shutil.ignore_patterns("__pycache__", "_data")


def data_dir() -> Path:
    """The folder that holds docker/, dashboards/ and servers/: inside an installed package, or the checkout."""
    installed = PACKAGE / "_data"
    return installed if installed.is_dir() else PACKAGE.parent


def write_project(folder: Path, *, force: bool = False) -> list[Path]:
    """Write docker/, dashboards/, servers/ and loadgen's own source below `folder`, which is made if need be.

    Returns the top-level paths written. Files of the project are replaced only with `force`, others are never touched.
    Raises UsageError when something of the same name is there already, or the folder cannot be written.
    """
    source = data_dir()
    if folder.resolve() == source.resolve() or folder.resolve() == PACKAGE.parent.resolve():
        raise UsageError(f"--dir {folder} is where the project lies already; name another folder")
    taken = [name for name in (*DATA, "loadgen") if (folder / name).exists()]
    if taken and not force:
        raise UsageError(f"{folder} already holds {', '.join(taken)}; name another folder with --dir, or add --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [_copy(source / name, folder / name) for name in DATA]
        return [*written, _copy(PACKAGE, folder / "loadgen")]
    except OSError as error:
        raise UsageError(f"--dir {folder} cannot be written: {error}; name a folder of your own") from error


def _copy(source: Path, target: Path) -> Path:
    if source.is_dir():
        shutil.copytree(source, target, ignore=LEFT_OUT, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
    return target
