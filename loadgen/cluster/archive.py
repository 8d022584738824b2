"""Archive: a copy of a grid's folder at a URL that fsspec knows, as s3://BUCKET/GRID; each run when it is finished."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loadgen.errors import StorageError, UsageError
from loadgen.record.grid import FILE, RUNS, STUDY, grid_runs
from loadgen.secret import error_text

INSTALL = "a URL as --out needs fsspec: pip install 'vllm-loadgen[ray]'"


def is_url(out: object) -> bool:
    """Whether `--out` names an archive and not a folder."""
    return "://" in str(out)


class Archive:
    """The copy. Raises UsageError for a URL that fsspec does not know."""

    def __init__(self, url: str) -> None:
        try:
            fsspec: Any = importlib.import_module("fsspec")
        except ImportError:
            raise UsageError(INSTALL) from None
        self.url = url.rstrip("/")
        try:
            self._files, self._path = fsspec.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"--out {url}: fsspec cannot open it ({error_text(error)}); name a folder, or a URL such "
                             "as s3://BUCKET/GRID") from None  # fmt: skip

    def has_grid(self) -> bool:
        """Whether a grid is there. Raises UsageError where the place does not answer."""
        try:
            return bool(self._files.exists(f"{self._path}/{FILE}"))
        except Exception as error:
            raise UsageError(
                f"--out {self.url}: cannot be read ({error_text(error)}); check the URL and its key"
            ) from None

    def put(self, folder: Path, names: Iterable[str]) -> None:
        """Copies these files and folders of a grid's folder, grid.json last. Raises StorageError."""
        try:
            for name in (*names, FILE):
                source, target = folder / name, f"{self._path}/{name}"
                if source.is_dir():
                    for path in sorted(path for path in source.rglob("*") if path.is_file() and not path.is_symlink()):
                        self._put(path, f"{target}/{path.relative_to(source).as_posix()}")
                elif source.exists():
                    self._put(source, target)
        except Exception as error:
            why = error_text(error)
            go_on = f"all runs are in {folder}; to go on: loadgen grid --resume {self.url}"
            raise StorageError(f"{self.url} cannot be written ({why}); {go_on}") from None

    def _put(self, source: Path, target: str) -> None:
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(source), target)

    def fetch(self, folder: Path) -> None:
        """Brings what `folder` lacks: the study, grid.json and the runs. Raises UsageError if no grid is there."""
        if not self.has_grid():
            raise UsageError(f"--resume {self.url}: no {FILE} is there; begin a grid with loadgen grid STUDY.toml")
        for name in (STUDY, FILE):
            self._get(name, folder)
        for found in self._files.find(f"{self._path}/{RUNS}"):
            self._get(str(found).removeprefix(f"{self._path}/"), folder)
        grid_runs(folder)

    def _get(self, name: str, folder: Path) -> None:
        target = folder / name
        if ".." not in Path(name).parts and not Path(name).is_absolute() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(f"{self._path}/{name}", str(target))
