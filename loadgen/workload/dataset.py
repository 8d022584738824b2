"""Dataset: the questions of a run, in the order in which every cell asks them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from loadgen.bounds import MOST_DATA_BYTES
from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.workload import gsm8k, mathqa, traffic
from loadgen.workload.item import Item
from loadgen.workload.published import PublishedFile, fetch, sha256_of
from loadgen.workload.questions import SAMPLE_FILE, has_choices, read_choices, read_jsonl, records, sample_items

DATASETS = ("gsm8k", "mathqa", "mathqa:all", "mathqa:clean", "jsonl", "choices", "sample", "gsm8k:platinum")
PLATINUM_SOURCE = "huggingface.co/datasets/madrylab/gsm8k-platinum (main/test-*.parquet)"
_FILE_NEEDED = {
    "jsonl": "a file of question and answer, one JSON object a line",
    "choices": "a file of questions with choices and the right answer",
    "gsm8k:platinum": f"loadgen does not download it; get it from {PLATINUM_SOURCE}",
}
"""Datasets that only exist in a file, and what to give."""
FILES: dict[str, tuple[PublishedFile, ...]] = {
    "gsm8k": (gsm8k.TEST, gsm8k.TRAIN),
    "mathqa": (mathqa.TEST, mathqa.DEV),
}
"""The published files of a dataset: the split that is asked, then the one that worked examples come from."""

AnswerKind = Literal["number", "letter", "text", "none"]
"""What a final answer is: a number, the letter of an option, or a text that is compared as such; none: not known."""


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Questions with the identity of the file they came from."""

    name: str
    """As in `DATASETS`; `mathqa` is called `mathqa:all`, and traffic of a file has the file's name: `trace:day.csv`."""
    items: tuple[Item, ...]
    sha256: str
    """The whole file's, whatever part of it the items are."""
    published: bool
    """The file is byte for byte the one its authors published (or the one shipped here)."""
    answer: AnswerKind = "number"
    warmup: tuple[Item, ...] = ()
    """Items of its own to warm a server up with; empty: the shipped ones."""
    notes: tuple[str, ...] = ()

    @property
    def unwritten(self) -> bool:
        """Its items have lengths, and their texts are not written yet."""
        return any(item.input_tokens is not None and not item.question for item in self.items[:1])


def load_dataset(
    name: str,
    *,
    data_file: Path | None = None,
    limit: int | None = None,
    platinum_file: Path | None = None,
    seed: int = 0,
    requests: int | None = None,
) -> Dataset:
    """The named dataset's first `limit` items; with a `platinum_file` GSM8K's flawed ones are marked.

    Synthetic ones follow from the `seed`, and are no fewer than `requests`. Raises UsageError for an unknown name, a
    missing or malformed file, or a failed download.
    """
    _check_name(name)
    if traffic.without_answers(name):
        if platinum_file is not None:
            raise UsageError(f"--platinum-file {platinum_file} marks the items of --dataset gsm8k, and this is {name}")
        return _traffic(name, data_file, limit, seed, requests)
    name = "mathqa:all" if name == "mathqa" else name
    family = name.partition(":")[0]
    path, published = _file(name, data_file)
    if platinum_file is not None and name != "gsm8k":
        raise UsageError(f"--platinum-file {platinum_file} marks the items of --dataset gsm8k, and this is {name}")
    items = _READERS[name](path)
    if platinum_file is not None:
        items = gsm8k.marked(items, gsm8k.read_platinum(existing_file(platinum_file, "--platinum-file")))
    if name == "mathqa:clean":
        if not items:
            raise UsageError(f"{path} has no row whose formula comes to its answer; use --dataset mathqa")
        if published and mathqa.ids_sha256(items) != mathqa.CLEAN_TEST_IDS_SHA256:
            raise RuntimeError("mathqa:clean has become another list of items than the frozen one")
    return Dataset(
        name=name,
        items=tuple(items[:limit]),
        sha256=sha256_of(path),
        published=published,
        answer="letter" if family in ("mathqa", "choices") else "text" if items[0].exact else "number",
    )


def _traffic(name: str, file: Path | None, limit: int | None, seed: int, requests: int | None) -> Dataset:
    if name.startswith(traffic.SYNTHETIC):
        count = limit or max(traffic.PROMPTS, requests or 0)
        items = traffic.synthetic_items(traffic.Shape.parse(name), count, seed)
        warmup, sha256 = traffic.warmup_of(items, seed), traffic.identity(name, seed, count)
        return Dataset(name=name, items=tuple(items), sha256=sha256, published=True, answer="none", warmup=warmup)
    path, _ = _file(name, file)
    rows = traffic.read_traffic(name, path, limit)
    return Dataset(
        name=f"{name}:{path.name}",
        items=tuple(rows.items),
        sha256=sha256_of(path),
        published=False,
        answer="none",
        warmup=traffic.warmup_of(rows.items, seed) if name == "trace" else (),
        notes=rows.notes,
    )


_READERS: dict[str, Callable[[Path], list[Item]]] = {
    "gsm8k": gsm8k.read_gsm8k,
    "gsm8k:platinum": gsm8k.read_platinum,
    "mathqa:all": mathqa.read_mathqa,
    "mathqa:clean": mathqa.read_clean,
    "jsonl": read_jsonl,
    "choices": read_choices,
    "sample": lambda _: sample_items(),
}


def holds_texts(name: str, data_file: Path | None) -> bool:
    """Whether it is a user's own set whose answers are texts; False for a file that `load_dataset` will refuse."""
    if name != "jsonl" or data_file is None or not data_file.is_file():
        return False
    with suppress(UsageError):
        return read_jsonl(data_file)[0].exact
    return False


def data_path(name: str, data_file: Path | None) -> Path | None:
    """The file with the dataset's answers; None for the shipped one, and where there are none.

    Raises UsageError as `load_dataset` does.
    """
    _check_name(name)
    if traffic.without_answers(name):
        return None
    path, _ = _file(name, data_file)
    return None if path == SAMPLE_FILE else path


def items_of_file(path: Path) -> list[Item]:
    """The items of a data file of any schema: MathQA's, a question with choices, or question and answer.

    Raises UsageError for a file that is missing or malformed.
    """
    first = next((record for _, record in records(existing_file(path, "--data-file"))), None)
    row = first if isinstance(first, dict) else None
    if isinstance(first, bytes):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            row = msgspec.json.decode(first)
    array = read_file(path, MOST_DATA_BYTES).lstrip().startswith(b"[")
    if "Problem" in row if isinstance(row, dict) else array:
        return mathqa.read_mathqa(path)
    return read_choices(path) if has_choices(row) else read_jsonl(path)


def existing_file(path: Path, option: str) -> Path:
    """The path itself; raises UsageError when it is not a regular file."""
    if not path.is_file():
        missing = "it is not a regular file; save the data as one" if path.exists() else "there is no such file"
        raise UsageError(f"{option} {path}: {missing}")
    return path


def _check_name(name: str) -> None:
    if name not in DATASETS and not traffic.without_answers(name):
        raise UsageError(f"unknown dataset {name!r}; known: {', '.join([*DATASETS, *traffic.KNOWN])}")


def _file(name: str, data_file: Path | None) -> tuple[Path, bool]:
    """The file to read, and whether it is the published (or shipped) one."""
    family = name.partition(":")[0]
    if family == "sample":
        if data_file is not None:
            raise UsageError(
                f"--data-file {data_file} needs --dataset gsm8k, mathqa, jsonl or choices: "
                "'sample' is shipped with loadgen"
            )
        return SAMPLE_FILE, True
    if data_file is None and name in traffic.FILE_KINDS:
        raise UsageError(f"--dataset {name} needs a file: write {name}:FILE")
    if data_file is None and name in _FILE_NEEDED:
        raise UsageError(f"--dataset {name} needs --data-file: {_FILE_NEEDED[name]}")
    if data_file is None:
        return fetch(FILES[family][0]), True
    path = existing_file(data_file, "--data-file")
    return path, name != "gsm8k:platinum" and family in FILES and sha256_of(path) == FILES[family][0].sha256
