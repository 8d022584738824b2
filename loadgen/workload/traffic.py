"""Traffic without answers to grade: a user's prompts, conversations, a trace's lengths and times, synthetic lengths.

Shape: how many tokens prompts and answers have. Vocabulary: words of which a tokenizer makes one token each, and
prompts of exactly so many tokens written with them, once the server can count tokens. Every common tokenizer has short
English words with the space before them as one token. Which ones a server's has, and how many tokens it adds to a
prompt (its template, a first token), is found by counting a few texts.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from loadgen.errors import UsageError
from loadgen.notation import entries
from loadgen.workload.item import Item
from loadgen.workload.questions import records

SYNTHETIC = "synthetic"
FILE_KINDS = ("prompts", "sharegpt", "sharegpt-history", "trace")
"""Written `KIND:FILE`."""
KNOWN = (f"{SYNTHETIC}:IN/OUT[,IN/OUT...]", *(f"{kind}:FILE" for kind in FILE_KINDS))
PROMPTS = 1000
"""So many synthetic prompts are made where neither `--limit` nor `--requests` asks for more."""
WARMUP_PROMPTS = 64
MOST_TOKENS = 10_000_000
BLOCK_TOKENS = 512
"""Tokens that one of Mooncake's `hash_ids` stands for (github.com/kvcache-ai/Mooncake, FAST25-release/traces)."""
_LENGTHS = re.compile(r"(?P<first>\d{1,9})(?:(?P<how>-|\+-)(?P<second>\d{1,9}))?")
_ROLES = {"human": "user", "user": "user", "system": "system"}


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
        prompt, slash, answer = text.partition("/")
        if not slash:
            raise UsageError(f"{where}: write synthetic:IN/OUT in tokens, as in synthetic:1024/128")
        return cls(_lengths(prompt, where), _lengths(answer, where))


def shapes_of(dataset: str) -> tuple[str, ...]:
    """The shapes, as `128/1024`, between which the cells of `synthetic:IN/OUT,IN/OUT` differ; none where there is one,
    and for other datasets."""
    kind, _, text = dataset.partition(":")
    shapes = tuple(entries(text)) if kind == SYNTHETIC else ()
    return shapes if len(shapes) > 1 else ()


def check_shapes(dataset: str) -> None:
    """Raises UsageError unless a synthetic dataset has shapes, each once."""
    shapes = shapes_of(dataset)
    for shape in shapes:
        Shape.parse(f"{SYNTHETIC}:{shape}")
        if shapes.count(shape) > 1:
            raise UsageError(f"--dataset {dataset}: {shape} is listed twice; list each shape once")
    if not shapes:
        Shape.parse(dataset)


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
        said = [(role_of(str(turn["from"])), turn["value"]) for turn in turns]
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


def role_of(speaker: str) -> str:
    """The role of whoever speaks in a ShareGPT conversation: the assistant has many names there."""
    return _ROLES.get(speaker, "assistant")


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


_WORDS = (
    "the and for are but not you all any can had her was one our out day get has him his how man new now old "
    "see two way who boy did its let put say she too use act add age ago air arm art ask bad bag bed big bit "
    "box bus buy car cat cup cut dog dry due ear eat egg end eye far few fit fly fun gas god got gun guy hit "
    "hot ice job key kid law lay leg lie lot low map may met mom net nor odd off oil own pay per ran raw red "
    "rid row run sea set sir sit six sky son sun tax tea ten tie tip top try van via war wet why win yes yet"
)
CANDIDATES = tuple(_WORDS.split())
"""Words of three letters: a server that counts a token per four characters counts one for each, too."""
OPENER = "Say"
"""Begins every prompt: the first word of a text may be cut otherwise than the same word after a space."""
ENOUGH = 64
FEWEST = 8
"""With fewer words of one token a tokenizer cuts texts in another way, and lengths are estimated."""
TRIES = 6
Count = Callable[[str], int]
"""Tokens of a prompt with this text, whatever the server adds to it included."""


class Vocabulary(msgspec.Struct, frozen=True):
    """What decides the texts of prompts, for one tokenizer."""

    words: tuple[str, ...]
    base: int
    """Tokens of a prompt that is OPENER alone."""
    tokens_per_word: float = 1.0
    """1: every word is one token, so that lengths are exact."""

    @property
    def exact(self) -> bool:
        return self.tokens_per_word == 1.0

    def text(self, item: Item, seed: int) -> str:
        """A prompt of the item's `input_tokens` (at least `base`); equal `blocks` begin with equal words."""
        assert item.input_tokens is not None
        left = max(0, round((item.input_tokens - self.base) / self.tokens_per_word))
        words = [OPENER]
        block_words = round(BLOCK_TOKENS / self.tokens_per_word)
        for block in item.blocks:
            words += self._drawn(f"{seed}/block/{block}", min(block_words, left))
            left -= min(block_words, left)
        return " ".join([*words, *self._drawn(f"{seed}/{item.id}", left)])

    def written(self, items: Iterable[Item], seed: int) -> tuple[Item, ...]:
        """The items with their texts."""
        return tuple(
            item if item.input_tokens is None else replace(item, question=self.text(item, seed)) for item in items
        )

    def _drawn(self, seed: str, count: int) -> list[str]:
        return random.Random(seed).choices(self.words, k=count) if count else []


def learn_vocabulary(count: Count) -> Vocabulary:
    """The words that are one token each, by counting texts: at most `ENOUGH`, in some 10 to 60 counts."""
    base = count(OPENER)
    words = _single(CANDIDATES, base, count)
    if len(words) >= FEWEST:
        return Vocabulary(tuple(words), base)
    whole = count(" ".join([OPENER, *CANDIDATES]))
    return Vocabulary(CANDIDATES, base, max(whole - base, 1) / len(CANDIDATES))


def _single(words: Sequence[str], base: int, count: Count) -> list[str]:
    """Those of one token: a text whose count is off is looked through by halves."""
    tokens = count(" ".join([OPENER, *words])) - base if words else 0
    if tokens == len(words):
        return list(words)
    if len(words) == 1 or tokens >= 2 * len(words):
        return []
    found = _single(words[: len(words) // 2], base, count)
    return found if len(found) >= ENOUGH else found + _single(words[len(words) // 2 :], base, count)


def fitted(text: str, tokens: int, count: Count) -> str:
    """The text with words added or taken away until it has that many tokens, or as near as a few tries come."""
    words = text.split(" ")
    for _ in range(TRIES):
        off = tokens - count(" ".join(words))
        if not off:
            break
        share = max(1, abs(off) * len(words) // max(tokens, 1))
        words = [*words, *words[1 : share + 1]] if off > 0 else words[: max(1, len(words) - share)]
    return " ".join(words)
