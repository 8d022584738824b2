"""The server's own words: what a body or an event says of an error, whatever its shape."""

from __future__ import annotations

from typing import Any

import msgspec

MOST_MESSAGE = 280
"""Characters of a server's message that are kept."""
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON raises."""
_WORDS = ("message", "error", "detail", "details", "errors", "msg", "error_message", "error_description", "title")
"""Members of a JSON object that hold the message, the more telling first."""
_DEEPEST = 6
_MOST_ITEMS = 8
"""Of a list of complaints."""


def server_message(body: bytes) -> str:
    """The message in a JSON body, as deep as it lies, else the body's beginning; "no message" of an empty one."""
    said = found_message(body) or body[:MOST_MESSAGE].decode(errors="replace")
    return " ".join(said[: 2 * MOST_MESSAGE].split())[:MOST_MESSAGE] or "no message"


def found_message(body: bytes) -> str | None:
    """The message in a JSON body; None if it is no JSON or holds none.

    OpenAI's and vLLM's shape is `{"error": {"message": ...}}`; `{"object": "error", "message": ...}`,
    `{"error": "...", "error_type": ...}` (TGI) and `{"detail": ...}`, a text or FastAPI's list, are others. Gateways
    put any of them as JSON text inside another.
    """
    try:
        return _words(msgspec.json.decode(body), _DEEPEST)
    except UNREADABLE:
        return None


def _words(value: Any, deepest: int) -> str | None:
    if not deepest:
        return None
    if isinstance(value, str):
        return _unwrapped(value, deepest).strip() or None
    if isinstance(value, list):
        said = [words for item in value[:_MOST_ITEMS] if (words := _words(item, deepest - 1))]
        return "; ".join(said) or None
    if not isinstance(value, dict):
        return None
    found = next((words for name in _WORDS if (words := _words(value.get(name), deepest - 1))), None)
    place = value.get("loc")
    if found is not None and isinstance(place, list):  # FastAPI: where in the request
        return f"{'.'.join(str(part) for part in place)}: {found}"
    return found


def _unwrapped(text: str, deepest: int) -> str:
    """The message of JSON inside a text; the text itself where there is none."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _words(msgspec.json.decode(text), deepest - 1) or text
        except UNREADABLE:
            pass
    return text
