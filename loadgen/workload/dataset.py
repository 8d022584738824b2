"""Dataset: the questions of a run, in the order in which every cell asks them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from loadgen.errors import UsageError
from loadgen.workload import gsm8k, sample
from loadgen.workload.item import Item
from loadgen.workload.published import fetch, sha256_of

DATASETS = ("gsm8k", "sample")


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Questions with the identity of the file they came from."""

    name: str
    items: tuple[Item, ...]
    sha256: str
    published: bool
    """The file is byte for byte the one its authors published (or the one shipped here)."""


def load_dataset(name: str, *, data_file: Path | None = None, limit: int | None = None) -> Dataset:
    """The named dataset's first `limit` items.

    Raises UsageError for an unknown name, a missing or malformed file, or a failed download.
    """
    if name == "mathqa":
        raise UsageError("dataset 'mathqa' is not built yet in this version; use gsm8k or sample")
    if name not in DATASETS:
        raise UsageError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    if name == "sample":
        if data_file is not None:
            raise UsageError(f"--data-file {data_file} needs --dataset gsm8k: 'sample' is shipped with loadgen")
        items, digest, published = sample.sample_items(), sha256_of(sample.SAMPLE_FILE), True
    else:
        path = existing_file(data_file, "--data-file") if data_file is not None else fetch(gsm8k.TEST)
        items, digest = gsm8k.read_gsm8k(path, split="test"), sha256_of(path)
        published = digest == gsm8k.TEST.sha256
    return Dataset(name=name, items=tuple(items[:limit]), sha256=digest, published=published)


def existing_file(path: Path, option: str) -> Path:
    """The path itself; raises UsageError when it is no readable file."""
    if not path.is_file():
        raise UsageError(f"{option} {path}: there is no such file")
    return path
