"""Traffic without answers to grade: a user's prompts, conversations, a trace's lengths and times, synthetic lengths.

Shape: how many tokens prompts and answers have. The texts of a trace and of synthetic prompts are written once the
server can count tokens (`loadgen.workload.vocabulary`).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from loadgen.errors import UsageError
from loadgen.workload.item import Item
from loadgen.workload.questions import records

SYNTHETIC = "synthetic"
FILE_KINDS = ("prompts", "sharegpt", "sharegpt-history", "trace")
"""Written `KIND:FILE`."""
KNOWN = (f"{SYNTHETIC}:IN/OUT", *(f"{kind}:FILE" for kind in FILE_KINDS))
PROMPTS = 1000
"""So many synthetic prompts are made where neither `--limit` nor `--requests` asks for more."""
WARMUP_PROMPTS = 64
MOST_TOKENS = 10_000_000
BLOCK_TOKENS = 512
"""Tokens that one of Mooncake's `hash_ids` stands for (github.com/kvcache-ai/Mooncake, FAST25-release/traces)."""
_LENGTHS = re.compile(r"(?P<first>\d{1,9})(?:(?P<how>-|\+-)(?P<second>\d{1,9}))?")
_ROLES = {"human": "user", "user": "user", "system": "system"}
"""Whoever else speaks in a ShareGPT conversation is the assistant."""


def without_answers(name: str) -> bool:
    """Whether the dataset has nothing to grade."""
    return name.partition(":")[0] in (SYNTHETIC, *FILE_KINDS)


class Lengths(msgspec.Struct, frozen=True):
    """A distribution of numbers of tokens: `1024`, `100-2000` (uniform), `1024+-128` (normal: mean, deviation)."""

    kind: Literal["fixed", "uniform", "normal"]
    first: int
    second: int = 0

    def draw(self, generator: random.Random) -> int:
        """A length of at least 1."""
        if self.kind == "uniform":
            return generator.randint(self.first, self.second)
        if self.kind == "normal":
            return min(max(1, round(generator.gauss(self.first, self.second))), MOST_TOKENS)
        return self.first


class Shape(msgspec.Struct, frozen=True):
    """Tokens of a prompt, with all that the server adds to it, and tokens of its answer."""

    prompt: Lengths
    answer: Lengths

    @classmethod
    def parse(cls, dataset: str) -> Shape:
        """From `synthetic:IN/OUT`. Raises UsageError."""
        where, text = f"--dataset {dataset}", dataset.partition(":")[2]
        if "," in text:
            raise UsageError(f"{where}: several shapes; give one shape a run, as in synthetic:1024/128")
        prompt, slash, answer = text.partition("/")
        if not slash:
            raise UsageError(f"{where}: write synthetic:IN/OUT in tokens, as in synthetic:1024/128")
        return cls(_lengths(prompt, where), _lengths(answer, where))


def _lengths(text: str, where: str) -> Lengths:
    found = _LENGTHS.fullmatch(text)
    if found is None:
        raise UsageError(
            f"{where}: {text!r} is not a number of tokens; write 1024, 100-2000 (uniform) or 1024+-128 (normal)"
        )
    kind: Literal["fixed", "uniform", "normal"] = "fixed"
    if found["how"]:
        kind = "uniform" if found["how"] == "-" else "normal"
    lengths = Lengths(kind, int(found["first"]), int(found["second"] or 0))
    if not 1 <= lengths.first <= MOST_TOKENS or lengths.second > MOST_TOKENS:
        raise UsageError(f"{where}: {text!r} is not between 1 and {MOST_TOKENS:,} tokens")
    if kind == "uniform" and lengths.second < lengths.first:
        raise UsageError(f"{where}: {text!r} has the larger number first; write {lengths.second}-{lengths.first}")
    return lengths


def synthetic_items(shape: Shape, count: int, seed: int, prefix: str = SYNTHETIC) -> list[Item]:
    """So many items with lengths and without texts, the same for the same seed."""
    generator = random.Random(f"{prefix}/{seed}")
    return [
        Item(
            id=f"{prefix}-{number:04d}",
            question="",
            input_tokens=shape.prompt.draw(generator),
            output_tokens=shape.answer.draw(generator),
        )
        for number in range(count)
    ]


def identity(name: str, seed: int, count: int) -> str:
    """Hex sha256 of what decides synthetic prompts, but for the server's tokenizer."""
    return hashlib.sha256(msgspec.json.encode([name, seed, count])).hexdigest()


def warmup_of(items: list[Item], seed: int) -> tuple[Item, ...]:
    """Items of lengths as the dataset's, with other texts."""
    generator = random.Random(f"warmup/{seed}")
    chosen = generator.choices(items, k=WARMUP_PROMPTS)
    return tuple(replace(item, id=f"warmup-{number:04d}", blocks=(), due_s=None) for number, item in enumerate(chosen))


class FileRows(NamedTuple):
    """The items of a user's file, and what is worth saying about them."""

    items: list[Item]
    notes: tuple[str, ...] = ()


def read_traffic(kind: str, path: Path, limit: int | None = None) -> FileRows:
    """The first `limit` items of a file of one of FILE_KINDS. Raises UsageError naming the line."""
    if kind == "prompts":
        found = FileRows(list(islice(_prompts(path), limit)))
    elif kind == "trace":
        found = _trace(path, limit)
    else:
        found = _sharegpt(path, history=kind == "sharegpt-history", limit=limit)
    if not found.items:
        needed = {"prompts": "a prompt", "trace": "a request"}.get(
            kind, "a conversation with a question and its answer"
        )
        raise UsageError(f"{path} does not hold {needed}; see docs/workload.md for the layout of {kind}:FILE")
    return found


_PROMPT_SHAPE = 'write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


def _prompts(path: Path) -> Iterator[Item]:
    """A prompt a line; or JSON lines (also an array, CSV, Parquet) of objects with `prompt` or `messages`."""
    objects: bool | None = None
    for number, record in records(path):
        where, name = f"{path}, line {number}", f"prompts-{number - 1:04d}"
        if objects is None:
            objects = isinstance(record, dict) or record.lstrip().startswith(b"{")
        if objects:
            yield _prompt_item(where, name, _object(where, record, _PROMPT_SHAPE))
        else:
            assert isinstance(record, bytes)
            try:
                yield Item(id=name, question=record.decode())
            except UnicodeDecodeError as error:
                raise UsageError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from None


def _prompt_item(where: str, name: str, row: dict[str, Any]) -> Item:
    prompt, messages, most = row.get("prompt"), row.get("messages"), row.get("max_tokens")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MOST_TOKENS):
        raise UsageError(f"{where}: max_tokens is {most!r}; give a whole number of tokens from 1, or omit it")
    if isinstance(prompt, str) and messages is None:
        if not prompt:
            raise UsageError(f"{where}: the prompt is empty; {_PROMPT_SHAPE}")
        return Item(id=name, question=prompt, most_tokens=most)
    if prompt is None and isinstance(messages, list) and messages and all(map(_is_message, messages)):
        return Item(id=name, question=_last_text(messages), messages=tuple(messages), most_tokens=most)
    keys = ", ".join(map(str, row))[:80] or "no key"
    raise UsageError(f"{where}: neither a prompt nor messages (it has {keys}); {_PROMPT_SHAPE}")


def _is_message(message: object) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    return isinstance(message.get("content"), str | list)


def _last_text(messages: list[dict[str, Any]]) -> str:
    content = messages[-1]["content"]
    return content if isinstance(content, str) else ""


def _object(where: str, record: bytes | dict[str, Any], shape: str) -> dict[str, Any]:
    if isinstance(record, dict):
        return record
    try:
        row = msgspec.json.decode(record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error}); {shape}") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where}: not a JSON object; {shape}")
    return row


_CONVERSATION = 'write {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}'


def _sharegpt(path: Path, *, history: bool, limit: int | None) -> FileRows:
    """ShareGPT's layout, as vLLM's benchmark reads it: the first human turn is the prompt, the next one the recorded
    answer. With `history` the last human turn that was answered is asked, after all turns before it."""
    items: list[Item] = []
    left_out = 0
    for number, record in records(path):
        where = f"{path}, conversation {number}" if isinstance(record, dict) else f"{path}, line {number}"
        row = _object(where, record, _CONVERSATION)
        turns = row.get("conversations", row.get("conversation"))
        if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
            raise UsageError(f"{where}: has no list of turns; {_CONVERSATION}")
        said = [(_ROLES.get(str(turn["from"]), "assistant"), turn["value"]) for turn in turns]
        asked = [at for at, ((one, _), (two, text)) in enumerate(pairwise(said))
                 if one == "user" and two == "assistant" and text.strip() and said[at][1].strip()]  # fmt: skip
        if not asked:
            left_out += 1
            continue
        at = asked[-1] if history else asked[0]
        messages = tuple({"role": role, "content": text} for role, text in said[: at + 1]) if history else ()
        answer = said[at + 1][1]
        items.append(Item(id=f"sharegpt-{number - 1:04d}", question=said[at][1], solution=answer, messages=messages))
        if len(items) == limit:
            break
    notes = (f"{left_out} conversations without an answered human turn are left out",) if left_out else ()
    return FileRows(items, notes)


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and "from" in turn and isinstance(turn.get("value"), str)


_TRACE_SHAPE = (
    "write Azure's columns TIMESTAMP,ContextTokens,GeneratedTokens, or Mooncake's JSON lines of timestamp (ms), "
    "input_length, output_length and hash_ids"
)
_AZURE = ("timestamp", "contexttokens", "generatedtokens")


def _trace(path: Path, limit: int | None) -> FileRows:
    """Azure's CSV (github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md) or Mooncake's JSON lines.

    Requests are put in the order of their times. Those without a prompt or an answer are left out.
    """
    found: list[tuple[float, Item]] = []
    left_out, header = 0, False
    for number, record in islice(records(path), None if limit is None else limit + 1):
        if isinstance(record, bytes) and number == 1 and record.lower().startswith(b"timestamp,"):
            header = tuple(name.strip() for name in record.decode(errors="replace").lower().split(",")) == _AZURE
            if not header:
                raise UsageError(f"{path}, line 1: other columns; {_TRACE_SHAPE}")
            continue
        if header and isinstance(record, bytes):
            fields = record.decode(errors="replace").strip().split(",")
            record = dict(zip(_AZURE, fields, strict=False))
        in_csv = path.name.lower().removesuffix(".gz").endswith(".csv") and not header
        where = f"{path}, line {number + in_csv}"
        time_s, item = _request(where, f"trace-{len(found) + left_out:04d}", _object(where, record, _TRACE_SHAPE))
        if item.input_tokens and item.output_tokens:
            found.append((time_s, item))
        else:
            left_out += 1
    found.sort(key=lambda entry: entry[0])
    found = found[:limit]
    items = [replace(item, due_s=time_s - found[0][0]) for time_s, item in found]
    notes = (f"{left_out} requests without a prompt or an answer are left out",) if left_out else ()
    return FileRows(items, notes)


def _request(where: str, name: str, row: dict[str, Any]) -> tuple[float, Item]:
    """Its time in s, and the item."""
    lower = {str(key).lower(): value for key, value in row.items() if key is not None}
    blocks: Any = ()
    if set(_AZURE) <= set(lower):
        time_s = _azure_time_s(where, lower["timestamp"])
        sizes = lower["contexttokens"], lower["generatedtokens"]
    elif {"timestamp", "input_length", "output_length"} <= set(lower):
        time_s = _number(where, "timestamp", lower["timestamp"], "milliseconds") / 1e3
        sizes, blocks = (lower["input_length"], lower["output_length"]), lower.get("hash_ids") or ()
        if not isinstance(blocks, list | tuple) or not all(isinstance(block, int) for block in blocks):
            raise UsageError(f"{where}: hash_ids is not a list of whole numbers; {_TRACE_SHAPE}")
    else:
        keys = ", ".join(map(str, row))[:80] or "no column"
        raise UsageError(f"{where}: not a request of a known trace (it has {keys}); {_TRACE_SHAPE}")
    prompt, answer = (_number(where, "a length", size, "tokens") for size in sizes)
    for size in (prompt, answer):
        if size != int(size) or size > MOST_TOKENS:
            raise UsageError(f"{where}: {size:g} is not a number of tokens; give whole numbers up to {MOST_TOKENS:,}")
    return time_s, Item(id=name, question="", input_tokens=int(prompt), output_tokens=int(answer), blocks=tuple(blocks))


def _number(where: str, what: str, value: object, unit: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e15:
        raise UsageError(f"{where}: {what} is {value!r}; give {unit}, 0 or more")
    return number


def _azure_time_s(where: str, text: object) -> float:
    try:
        return datetime.fromisoformat(str(text).strip()).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{where}: TIMESTAMP is {text!r}; write a date and time, as in 2023-11-16 18:17:03.98"
        ) from None


def mean_rate_per_s(times_s: Sequence[float]) -> float | None:
    """Gaps over the time from the first request to the last; None where that is 0."""
    span_s = times_s[-1] - times_s[0] if times_s else 0.0
    return (len(times_s) - 1) / span_s if span_s > 0 else None


def trace_rate_per_s(path: Path, times_s: Sequence[float]) -> float:
    """The mean rate of the trace in that file. Raises UsageError where all requests have one time."""
    rate = mean_rate_per_s(times_s)
    if rate is None:
        raise UsageError(
            f"{path}: all requests have the same time, so there is no rate to replay; give --arrival closed or "
            "poisson:RATE"
        )
    return rate
