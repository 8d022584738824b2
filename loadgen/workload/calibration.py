"""CalibrationTexts: what a quantizer runs through a model to see its activations; no sweep asks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from loadgen.errors import UsageError
from loadgen.workload import gsm8k
from loadgen.workload.dataset import existing_file
from loadgen.workload.published import fetch, sha256_of
from loadgen.workload.questions import SAMPLE_FILE, records

_TEXTS = ("text", "content", "prompt")
_QUESTIONS, _ANSWERS = ("question", "Problem", "instruction"), ("answer", "solution", "Rationale", "output", "response")
_SCHEMA = 'give {"text": ...}, {"question": ..., "answer": ...} or {"messages": [...]} a line, or plain text'


class CalibrationTexts(msgspec.Struct, frozen=True, kw_only=True):
    """The texts of one file."""

    source: str
    """`gsm8k train`, `sample`, or the file's path."""
    sha256: str
    """The whole file's."""
    rows: tuple[dict[str, Any], ...]
    """Each `{"text": TEXT}` or `{"messages": [{"role": ROLE, "content": TEXT}, ...]}`."""

    def drawn(self, count: int, seed: int) -> bytes:
        """JSON lines of `count` rows, or of all if there are fewer: the same for the same seed."""
        chosen = Random(seed).sample(range(len(self.rows)), min(count, len(self.rows)))
        return b"".join(msgspec.json.encode(self.rows[index]) + b"\n" for index in chosen)


def calibration_texts(named: Path | None) -> CalibrationTexts:
    """The texts of a file, else GSM8K's train split from cache or download, else loadgen's own sample questions.

    Raises UsageError for a file that is missing or holds no text, naming the line.
    """
    if named is not None:
        return _read(existing_file(named, "--calibration"), str(named))
    try:
        return _read(fetch(gsm8k.TRAIN), "gsm8k train")
    except UsageError:
        return _read(SAMPLE_FILE, "sample")


def _read(path: Path, source: str) -> CalibrationTexts:
    rows = tuple(_row(f"{path}, line {number}", record) for number, record in records(path))
    if not rows:
        raise UsageError(f"{path} holds no text; {_SCHEMA}")
    return CalibrationTexts(source=source, sha256=sha256_of(path), rows=rows)


def _row(where: str, record: bytes | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(record, bytes):
        try:
            text = record.decode()
        except UnicodeDecodeError:
            raise UsageError(f"{where} is not UTF-8 text; {_SCHEMA}") from None
        if not text.lstrip().startswith("{"):
            return {"text": text}
        try:
            record = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(f"{where} is not JSON ({error}); {_SCHEMA}") from None
    if messages := _messages(record.get("messages") or record.get("conversations")):
        return {"messages": messages}
    question, answer = _first(record, _QUESTIONS), _first(record, _ANSWERS)
    if question and answer:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    if single := _first(record, _TEXTS) or question:
        return {"text": single}
    raise UsageError(f"{where} has no text under a known name ({', '.join(map(str, record)) or 'none'}); {_SCHEMA}")


def _messages(given: Any) -> list[dict[str, str]]:
    """The messages of a conversation, OpenAI's names or ShareGPT's; empty where it is none."""
    roles = {"human": "user", "gpt": "assistant"}
    found = []
    for message in given if isinstance(given, Sequence) and not isinstance(given, str) else ():
        if not isinstance(message, Mapping):
            return []
        role, content = message.get("role") or message.get("from"), message.get("content") or message.get("value")
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        found.append({"role": roles.get(role, role), "content": content})
    return found


def _first(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((record[name] for name in names if isinstance(record.get(name), str) and record[name].strip()), None)
