"""Refusal: which field of a request's body a server refused, by the words of its error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

ESSENTIAL = ("model", "prompt", "messages", "stream")
"""Without these it is no request; an error that names one is about something else."""
_ECHOES = frozenset({"input", "ctx", "url", "body"})
"""Keys of a validation error that repeat what was sent, whatever was wrong with it."""
_ECHOED_VALUE = re.compile(r"input_value=.*?(?=, input_type=|\]|$)|'input':.*?(?=[,}] ?'|$)", re.DOTALL)
_PLACE = re.compile(r"""["']?loc["']?\s*[:=]\s*[(\[]([^)\]]*)[)\]]""")
_PLAIN_WORDS = frozenset({"stop", "n", "user", "tools", "logprobs", "echo", "suffix"})
"""Names that are words of plain English, too: they count only where they are marked as a name."""


def named_fields(error: bytes, body: Mapping[str, Any]) -> list[str]:
    """The fields of `body` that the server's error names, dotted (`stream_options.include_usage`), first one first.

    Reads OpenAI's error objects, FastAPI's lists of details, pydantic's text, names in backticks and plain sentences.
    Where the error gives a place (`loc`, `param`), only that counts. A field is given before the object that holds it.
    """
    fields = list(_dotted(body))
    places, texts = _parts(error)
    named = [field for place in places if (field := _deepest(place, fields))]
    if not named:
        text = "\n".join(texts)
        found = sorted((at, -field.count("."), field) for field in fields if (at := _place_in(text, field)) is not None)
        named = [field for _, _, field in found]
        named = [f for f in named if not any(other.startswith(f"{f}.") for other in named)] + [
            f for f in named if any(other.startswith(f"{f}.") for other in named)
        ]
    return list(dict.fromkeys(named))


def _dotted(body: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in body.items():
        if not above and name in ESSENTIAL:
            continue
        yield f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{above}{name}.")


def _parts(error: bytes) -> tuple[list[list[str]], list[str]]:
    """Places that the error gives, each as its names, and its texts."""
    places: list[list[str]] = []
    texts: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                if key == "loc" and isinstance(part, list):
                    places.append([str(name) for name in part])
                elif key == "param" and isinstance(part, str):
                    places.append(part.split("."))
                elif key not in _ECHOES:
                    walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)
        elif isinstance(value, str):
            text = _ECHOED_VALUE.sub("", value)
            places.extend(re.findall(r"\w+", place) for place in _PLACE.findall(text))
            texts.append(text)

    try:
        walk(msgspec.json.decode(error))
    except (ValueError, RecursionError):
        walk(error.decode(errors="replace"))
    return places, texts


def _deepest(place: list[str], fields: list[str]) -> str | None:
    """The field at that place, or what holds it."""
    found = [field for field in fields if set(field.split(".")) <= set(place)]
    return max(found, key=lambda field: field.count("."), default=None)


def _place_in(text: str, field: str) -> int | None:
    """Where the text names the field, in whatever spelling; None: nowhere."""
    name = field.rpartition(".")[2]
    spelled = re.escape(name).replace("_", "[_ -]?")
    pattern = rf"(?<![\w]){spelled}(?!\w)"
    if name in _PLAIN_WORDS:
        pattern = rf"""(?:[`'"“]{spelled}[`'"”]|(?:parameter|field|argument|option|key)s?:? {spelled}\b|\b{spelled}:)"""
    found = re.search(pattern, text, re.IGNORECASE)
    return found.start() if found else None
