"""Dataset: the questions of a run, in the order in which every cell asks them.

Shots: the worked examples of a prompt, where they come from, and which of them a question gets. Examples and wording of
lm-evaluation-harness's tasks are parsed from its installed package or a file of it, which is never imported; nothing of
it is shipped with loadgen.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import random
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
import msgspec.yaml
from msgspec.structs import replace

from loadgen.bounds import MOST_DATA_BYTES
from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.notation import did_you_mean, entries, spelled
from loadgen.workload import gsm8k, mathqa, traffic
from loadgen.workload.item import Item
from loadgen.workload.published import PublishedFile, fetch, sha256_of
from loadgen.workload.questions import (
    SAMPLE_FILE,
    has_choices,
    own_shots,
    read_choices,
    read_jsonl,
    records,
    sample_items,
)

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
    """Its own items for warming a server up; empty: the shipped ones."""
    notes: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    """As from `shapes_of`. Each has an equal part of `items` and of `warmup`, in this order."""

    def of_shape(self, shape: str | None) -> Dataset:
        """The part of one of its shapes; all of it without shapes."""
        if shape is None:
            return self
        place, count = self.shapes.index(shape), len(self.shapes)
        items, warmup = (
            part[place * len(part) // count : (place + 1) * len(part) // count] for part in (self.items, self.warmup)
        )
        return replace(self, items=items, warmup=warmup)

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
        traffic.check_shapes(name)
        count, shapes = limit or max(traffic.PROMPTS, requests or 0), traffic.shapes_of(name)
        parts = [traffic.synthetic_items(traffic.Shape.parse(f":{shape}"), count, seed, f"{traffic.SYNTHETIC}-{shape}")
                 for shape in shapes] or [traffic.synthetic_items(traffic.Shape.parse(name), count, seed)]  # fmt: skip
        return Dataset(
            name=name,
            items=tuple(item for part in parts for item in part),
            sha256=traffic.identity(name, seed, count),
            published=True,
            answer="none",
            warmup=tuple(item for part in parts for item in traffic.warmup_of(part, seed)),
            shapes=shapes,
        )
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


def dataset_named(text: str) -> str:
    """The dataset's name in its own letters, a file's behind it unchanged. Raises UsageError for an unknown one."""
    kind, colon, rest = text.strip().partition(":")
    name = spelled(text, DATASETS)
    if name not in DATASETS:
        name = spelled(kind, (traffic.SYNTHETIC, *traffic.FILE_KINDS)) + colon + rest.strip()
    if name.startswith(f"{traffic.SYNTHETIC}:"):
        name = f"{traffic.SYNTHETIC}:{','.join(entries(name.partition(':')[2]))}"
    _check_name(name)
    return name


def _check_name(name: str) -> None:
    if name in DATASETS or traffic.without_answers(name):
        return
    known = [*DATASETS, *traffic.KNOWN]
    if Path(name).suffix in (".jsonl", ".json", ".csv", ".parquet", ".gz"):
        hint = f"a file is named with --data-file: write --dataset jsonl --data-file {name}"
    else:
        hint = f"{did_you_mean(name, known)}known: {', '.join(known)}"
    raise UsageError(f"unknown dataset {name!r}; {hint}")


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


TASK_FILES = {
    "gsm8k_cot": ("gsm8k/gsm8k-cot.yaml", "780310899fecda3a08e9c38b6aee53973ed35251eab3affbf45c445daa6ec44a"),
    "gsm8k_cot_llama": (
        "gsm8k/gsm8k-cot-llama.yaml",
        "7b66f7635b1252d38487e387c1e3ed4e7e2c8ca421904b27ebf108cccee74a9c",
    ),
}
"""Task files below `lm_eval/tasks`, each with its `HarnessTask.sha256` in release 0.4.13."""
_QUESTION = "{{question}}"


class HarnessTask(msgspec.Struct, frozen=True, kw_only=True):
    """What a task asks: its question turn and its worked examples."""

    ask: str
    """The question turn, `{question}` standing for the question."""
    delimiter: str
    """Between the question turn and its answer in plain text."""
    shots: tuple[Item, ...]
    """`solution` is the answer turn; `gold` is empty."""

    @property
    def sha256(self) -> str:
        """Hex sha256 of all of it."""
        content = [self.ask, self.delimiter, [[shot.question, shot.solution] for shot in self.shots]]
        return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def installed_task(name: str) -> HarnessTask | None:
    """The task of the installed lm_eval; None where there is no lm_eval, or one without this task file."""
    spec = importlib.util.find_spec("lm_eval")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "tasks" / TASK_FILES[name][0]
        if path.is_file():
            return read_task(path)
    return None


def read_task(path: Path) -> HarnessTask:
    """The task of a YAML file with fixed worked examples (`sampler: first_n`, `samples` of question and target).

    Raises UsageError for a file that is not such a task.
    """
    try:
        task = msgspec.yaml.decode(read_file(path), type=_TaskFile)
        examples = task.fewshot_config.samples[: task.num_fewshot]
        shots = tuple(Item(id="", question=row.question, solution=row.target, gold="") for row in examples)
        if not shots:
            raise ValueError("it has no examples")
        return HarnessTask(ask=_plain(task.doc_to_text), delimiter=task.target_delimiter, shots=shots)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UsageError(
            f"{path} is not a task file of lm-evaluation-harness with fixed examples ({reason}); "
            "give its gsm8k-cot.yaml or gsm8k-cot-llama.yaml"
        ) from None


class _Example(msgspec.Struct):
    question: str
    target: str


class _Fewshot(msgspec.Struct):
    sampler: Literal["first_n"]
    samples: list[_Example]


class _TaskFile(msgspec.Struct):
    doc_to_text: str
    num_fewshot: int
    fewshot_config: _Fewshot
    target_delimiter: str = " "


def _plain(template: str) -> str:
    """The Jinja template with its one field as `{question}`; anything more is not understood here."""
    before, field, after = template.partition(_QUESTION)
    if not field or any(mark in before + after for mark in ("{{", "{%", "{#", "{question}")):
        raise ValueError("doc_to_text asks for more than {{question}}")
    return f"{before}{{question}}{after}"


DRAW_SEED = 1234
"""lm-evaluation-harness's default seed for its draws."""
MAX_RATIONALE_CHARACTERS = 300

Origin = Literal["published", "custom", "own"]
"""The pinned text; another file that the user named; examples written for this project."""

_ROW = re.compile(r"(\d+)$")
_CLOSING = re.compile(r"\W*\b(?:(?:hence|so|the|final|correct)\s+)*(?:answer|ans)\b(?:\s+is)?[\s:=(]*[a-e]?\W*$")


class Shots(msgspec.Struct, frozen=True):
    """Worked examples: `question` and `options` make the question turn, `solution` is the answer turn."""

    items: tuple[Item, ...]
    origin: Origin


def drawn(pool: int, count: int, item_id: str) -> tuple[int, ...]:
    """Which `count` of `pool` examples a question gets: for row r of a dataset, draw r+1 of one seeded sequence.

    That is what lm-evaluation-harness 0.4.13 does with documents in their order (`ContextSampler`, seed 1234). The
    row is the number at the end of the id, 0 where there is none.
    """
    row = _ROW.search(item_id)
    number = int(row[1]) if row else 0
    generator, made = _draws(pool, count)
    while len(made) <= number:
        made.append(tuple(generator.sample(range(pool), count)))
    return made[number]


@functools.cache
def _draws(pool: int, count: int) -> tuple[random.Random, list[tuple[int, ...]]]:
    """A generator, and what it drew so far."""
    return random.Random(DRAW_SEED), []


def train_shots(shots_file: Path | None, *, needed: int) -> Shots:
    """All of GSM8K's train split (`shots_file`, else cache or download), else the project's own eight.

    Raises UsageError for a missing or malformed file, or one with fewer than `needed` examples.
    """
    path = _published(gsm8k.TRAIN, shots_file)
    if path is None:
        return Shots(tuple(own_shots()), "own")
    items = gsm8k.read_gsm8k(path, split="train")
    if len(items) < needed:
        raise UsageError(f"--shots-file {path} holds {len(items)} examples; the protocol needs {needed}")
    return Shots(tuple(items), _origin(path, gsm8k.TRAIN))


def task_shots(name: str, shots_file: Path | None) -> tuple[HarnessTask, Origin] | None:
    """The wording and examples of an lm-evaluation-harness task: of `shots_file`, else of the installed package.

    None where there is neither. Raises UsageError for a file that is not such a task.
    """
    if shots_file is not None:
        task: HarnessTask | None = read_task(existing_file(shots_file, "--shots-file"))
    else:
        task = installed_task(name)
    if task is None:
        return None
    return task, "published" if task.sha256 == TASK_FILES[name][1] else "custom"


def own_sentences(closing: str) -> Shots:
    """The project's own examples as running text that ends in `closing`, `{gold}` standing for the number."""
    return Shots(tuple(_replied(shot, f"{_running_text(shot)} {closing}") for shot in own_shots()), "own")


def letter_shots(shots_file: Path | None, closing: str) -> Shots:
    """Five examples with options, each letter right once: from MathQA's dev split, else the project's own.

    Of dev: per letter the first row whose formula comes to its answer, with no second right letter and a rationale in
    plain ASCII of at most `MAX_RATIONALE_CHARACTERS`. Raises UsageError for a file without such rows.
    """
    path = _published(mathqa.DEV, shots_file)
    if path is None:
        lettered = (replace(s, gold=mathqa.LETTERS[s.options.index(s.gold)]) for s in own_shots())
        return Shots(tuple(_replied(s, f"{_running_text(s)} {closing}") for s in _one_per_letter(lettered)), "own")
    usable = (
        item
        for item in mathqa.read_clean(path, split="dev")
        if item.solution.isascii() and len(item.solution) <= MAX_RATIONALE_CHARACTERS and not item.accepted
    )
    chosen = _one_per_letter(usable)
    if len(chosen) < len(mathqa.LETTERS):
        raise UsageError(f"--shots-file {path} holds no usable example for some letter; give MathQA's dev split")
    return Shots(
        tuple(_replied(shot, f"{rationale(shot.solution)}. {closing}") for shot in chosen), _origin(path, mathqa.DEV)
    )


def rationale(published: str) -> str:
    """A published rationale without its quotation marks, its closing mention of the letter and its full stop."""
    return _CLOSING.sub("", published.strip().strip('"').strip()).rstrip(" .")


def _one_per_letter(items: Iterable[Item]) -> list[Item]:
    """The first item of each gold letter, in the items' order."""
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.gold, item)
    return list(first.values())


def _replied(shot: Item, text: str) -> Item:
    return replace(shot, solution=text.replace("{gold}", shot.gold))


def _running_text(shot: Item) -> str:
    """The lines of a worked answer one after another, without the `####` line."""
    return " ".join(shot.solution.splitlines()[:-1])


def _published(file: PublishedFile, shots_file: Path | None) -> Path | None:
    if shots_file is not None:
        return existing_file(shots_file, "--shots-file")
    try:
        return fetch(file)
    except UsageError:
        return None


def _origin(path: Path, file: PublishedFile) -> Origin:
    return "published" if sha256_of(path) == file.sha256 else "custom"
