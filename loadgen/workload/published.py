"""Published data files: fetched once, kept in the user's cache, pinned by sha256."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Literal

import msgspec
import platformdirs

from loadgen import httpget
from loadgen.bounds import DOWNLOAD_S, MOST_DATA_BYTES
from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.secret import error_text

DOWNLOAD_TIMEOUT_S = 20.0
"""For each read; the whole has its own bound."""
LEAST_BOUND_BYTES = 2**20
"""A short file that was replaced by another is reported as such, unless that one is longer than this."""

CacheState = Literal["cached", "absent", "damaged"]
"""`damaged`: a file of that name with other bytes than the pinned ones."""


class PublishedFile(msgspec.Struct, frozen=True):
    """One file of a dataset, as its authors published it."""

    name: str
    url: str
    sha256: str
    size_bytes: int


def sha256_of(path: Path) -> str:
    """Hex sha256 of the file's bytes."""
    return hashlib.sha256(read_file(path, MOST_DATA_BYTES)).hexdigest()


def cache_dir() -> Path:
    """Where published files are kept: `$LOADGEN_CACHE`, else the user's cache folder."""
    override = os.environ.get("LOADGEN_CACHE")
    return (Path(override) if override else platformdirs.user_cache_path("loadgen")) / "data"


def state_of(file: PublishedFile) -> CacheState:
    """The state of the file in the cache; nothing is downloaded."""
    path = cache_dir() / file.name
    if not path.is_file():
        return "absent"
    return "cached" if sha256_of(path) == file.sha256 else "damaged"


def fetch(file: PublishedFile) -> Path:
    """Path of the verified file, downloaded on first use.

    Raises UsageError when it cannot be downloaded or is not the pinned file.
    """
    path = cache_dir() / file.name
    if state_of(file) == "cached":
        return path
    try:
        most_bytes = max(file.size_bytes, LEAST_BOUND_BYTES)
        answer = httpget.fetch(file.url, most_bytes, DOWNLOAD_S, timeout_s=DOWNLOAD_TIMEOUT_S)
        reason = None if answer.status == 200 else f"{answer.status} {answer.reason}"
    except httpget.FAILURES as error:
        reason = error_text(error)
    if reason is not None:
        raise UsageError(
            f"{file.name} could not be downloaded from {file.url} ({reason}); "
            "download it elsewhere and name it with --data-file (or --shots-file for the train split)"
        )
    if hashlib.sha256(answer.body).hexdigest() != file.sha256:
        raise UsageError(f"{file.url} is no longer the pinned file (sha256 {file.sha256[:16]}...); use --data-file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
            partial.write(answer.body)
        Path(partial.name).replace(path)
    except OSError as error:
        raise UsageError(
            f"{file.name} cannot be kept in {path.parent} ({error.strerror}); name a writable folder with LOADGEN_CACHE"
        ) from None
    return path
