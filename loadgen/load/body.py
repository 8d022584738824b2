"""Body: the JSON body of a request, encoded once before it is sent; and which field of it a server refused."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import msgspec

from loadgen.load.exchange import Phase, Request
from loadgen.workload.item import Item
from loadgen.workload.protocol import Protocol, Thinking

SALT_BYTES = 8


class BodyChanges(msgspec.Struct, frozen=True, kw_only=True):
    """How the bodies differ from those that loadgen would send: patches as `patched` takes them."""

    extra: dict[str, Any] = {}
    """What `--extra-body` asks for."""
    refused: dict[str, Any] = {}
    """What a server refused: null, or what is sent instead."""
    limit_field: str = "max_tokens"
    """The name under which the cap of an answer is sent."""

    def applied(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body with these changes."""
        return patched(patched(body, self.extra), self.refused)


def patched(body: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The body after a JSON merge patch (RFC 7396): objects are merged, null removes, all else replaces."""
    result = dict(body)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            before = result.get(name)
            result[name] = patched(before if isinstance(before, Mapping) else {}, value)
        else:
            result[name] = value
    return result


class RequestSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What all requests of a cell have in common."""

    model: str
    protocol: Protocol
    """As it is asked: `--api` and `--thinking` are in it."""
    seed: int
    max_tokens: int | None = None
    """None: the item's, else the protocol's."""
    fixed_length: int | None = None
    """Every answer has exactly that many tokens (`ignore_eos`, no stops)."""
    thinking: Thinking | None = None
    changes: BodyChanges = BodyChanges()
    cache_salt: str = msgspec.field(default_factory=lambda: secrets.token_hex(SALT_BYTES))
    """What the salts of the cell's requests begin with."""
    prefix_cache: bool = False
    """All requests of the cell have one salt, so that the server's prefix cache serves them."""


class RequestMaker:
    """Turns items into requests; prompts are built once per item.

    Greedy decoding with a fixed seed; per-token usage asked for on every event (`continuous_usage_stats`).
    vLLM's prefix cache serves a prompt only to a request with an equal `cache_salt`. Each request has a salt of its
    own, so that a server with caching measures as one without. The settings' `changes` come last.
    """

    def __init__(self, settings: RequestSettings, share: int = 0) -> None:
        """`share`: a number that other makers for the same server do not have."""
        self._settings = settings
        self._salt = settings.cache_salt if settings.prefix_cache else f"{settings.cache_salt}-{share}"
        self._made = count()
        self._unsalted = "cache_salt" in {**settings.changes.extra, **settings.changes.refused}
        self._prompts: dict[str, tuple[dict[str, Any], str]] = {}
        self._requests: dict[str, Request] = {}

    def limit(self, item: Item) -> int:
        """Tokens at which the item's answer is cut off, or that it has."""
        settings = self._settings
        given = settings.fixed_length or settings.max_tokens or item.output_tokens or item.most_tokens
        return given or settings.protocol.max_tokens

    def measured(self, item: Item) -> Request:
        """The item's request, the same bytes every time but for the salt."""
        if item.id not in self._requests:
            self._requests[item.id] = self._make(item, "measured", self.limit(item))
        return self._salted(self._requests[item.id])

    def warmup(self, item: Item, share: float = 1.0) -> Request:
        """A request that is never measured; `share` of the token limit staggers the slots.

        Its answer is in no figure, so a server that makes it longer than asked is not refused.
        """
        return self._salted(self._make(item, "warmup", max(1, round(self.limit(item) * share))))

    def trial(self, item: Item, tokens: int) -> Request:
        """A request of at most so many tokens with the fields of all others: would the server take them?"""
        return self._salted(self._make(item, "warmup", min(self.limit(item), tokens)))

    def _salted(self, request: Request) -> Request:
        if self._unsalted:
            return request
        salt = self._salt if self._settings.prefix_cache else f"{self._salt}-{next(self._made)}"
        return msgspec.structs.replace(request, body=b'%b,"cache_salt":"%b"}' % (request.body[:-1], salt.encode()))

    def _make(self, item: Item, phase: Phase, limit: int) -> Request:
        settings, protocol = self._settings, self._settings.protocol
        if item.id not in self._prompts:
            if protocol.api == "chat":
                thinking = settings.thinking.body if settings.thinking else {}
                asked = {"messages": protocol.messages(item), **thinking}
            else:
                asked = {"prompt": protocol.prompt(item)}
            self._prompts[item.id] = asked, protocol.prompt_sha(item)
        asked, prompt_sha = self._prompts[item.id]
        body: dict[str, Any] = {
            "model": settings.model,
            **asked,
            settings.changes.limit_field: limit,
            "temperature": 0,
            "seed": settings.seed,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if settings.fixed_length is not None or (item.output_tokens is not None and settings.max_tokens is None):
            body |= {"ignore_eos": True, "min_tokens": limit}
        else:
            body["stop"] = list(protocol.stops)
        body = settings.changes.applied(body)
        capped = phase == "measured" and settings.changes.limit_field in body
        return Request(
            item_id=item.id,
            prompt_sha=prompt_sha,
            phase=phase,
            body=msgspec.json.encode(body),
            max_tokens=limit if capped else None,
        )


ESSENTIAL = ("model", "prompt", "messages", "stream")
"""No request goes without these; an error that names one is about something else."""
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
        named = sorted(named, key=lambda holder: any(field.startswith(f"{holder}.") for field in named))
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
    """Where the text names the field, however it spells it; None: nowhere."""
    name = field.rpartition(".")[2]
    spelled = re.escape(name).replace("_", "[_ -]?")
    pattern = rf"(?<![\w]){spelled}(?!\w)"
    if name in _PLAIN_WORDS:
        pattern = rf"""(?:[`'"“]{spelled}[`'"”]|(?:parameter|field|argument|option|key)s?:? {spelled}\b|\b{spelled}:)"""
    found = re.search(pattern, text, re.IGNORECASE)
    return found.start() if found else None
