"""Notation: how times, shares, lists, names and URLs are written, the same in every option, YAML file and function."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from decimal import Decimal
from urllib.parse import urlsplit

from loadgen.errors import UsageError

UNITS_S = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), Decimal("0.001")),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), Decimal(1)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), Decimal(60)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), Decimal(3600)),
}
SHARES = ("%", "pp")
"""Hundredths, behind a number; pp where it is a difference of shares."""
MOST_OF_RANGE = 100_000
"""Numbers that a range may have: far more than any sweep measures."""
SHOWN = 40
"""Characters of a wrong value that a sentence repeats."""
SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
EXPECTED: dict[object, str] = {
    int: "not a whole number; write digits only, as in 100",
    float: "not a number; write it as in 0.5",
    "s": "not a time; write seconds, or a number with its unit, as in 60, 90s, 2m or 1h30m",
    "ms": "not a time; write milliseconds, or a number with its unit, as in 20, 20ms or 0.02s",
    "min": "not a time; write minutes, or a number with its unit, as in 60, 90m or 2h",
    "share": "not a share; write it as in 0.1 or 10%",
}
"""What a text that is not the option's kind of number should have been, by unit or kind."""
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?"
_PART = re.compile(rf"\s*({_NUMBER})\s*([a-z]+)", re.IGNORECASE)
_PLAIN = re.compile(rf"[+-]?{_NUMBER}", re.IGNORECASE)
_RANGE = re.compile(r"(?P<first>\d{1,9})\s*(?:-|\.\.)\s*(?P<last>\d{1,9})(?:(?P<how>[x*+])(?P<by>\d{1,9}))?")
_ENDPOINT = re.compile(r"(?:/v1(?:/(?P<api>completions|chat/completions|models))?|/metrics|/health)/*\Z")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean NAME? `, or nothing where no known name is close, in any letter case."""
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"did you mean {by_lower[close[0]]}? " if close else ""


def spelled(name: str, known: Iterable[str]) -> str:
    """The one known name that this is, in any letter case and with `_`, `-` or nothing between its parts; else the name
    itself, without spaces around it."""
    name, known = name.strip(), tuple(known)
    alike = [one for one in known if _letters(one) == _letters(name)]
    return name if name in known or len(alike) != 1 else alike[0]


def _letters(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.lower())


def shown(text: object) -> str:
    """A wrong value as a sentence repeats it."""
    return str(text)[:SHOWN]


def number(text: str, unit: str = "") -> float:
    """The number in `unit` that a text gives, a plain one unchanged.

    Of a time ("s" or "ms") its own unit may follow, also several: `90s`, `2m`, `1h30m`, `500ms`. Of a "share" a % may.
    Behind any other number its unit may stand. Raises ValueError for anything else, also for nan and inf.
    """
    text = text.strip()
    parts = [(Decimal(value), name.lower()) for value, name in _PART.findall(text)] if unit in UNITS_S else []
    if parts and not _PART.sub("", text).strip() and {name for _, name in parts} <= UNITS_S.keys():
        return float(sum(value * UNITS_S[name] for value, name in parts) / UNITS_S[unit])
    divisor = 1
    for ending in SHARES if unit == "share" else (unit,) if unit else ():
        if text.lower().endswith(ending.lower()):
            text, divisor = text[: -len(ending)].rstrip(), 100 if unit == "share" else 1
    if not _PLAIN.fullmatch(text):
        raise ValueError(text)
    return float(Decimal(text) / divisor)


def whole_number(text: str) -> int:
    """Raises ValueError where the text is not one, in digits only."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,4000}\s*", text):
        raise ValueError(text)
    return int(text)


def entries(text: str) -> list[str]:
    """The entries of a list with commas, without the spaces around them; a comma may follow the last."""
    parts = [part.strip() for part in text.split(",")]
    return parts[:-1] if len(parts) > 1 and not parts[-1] else parts


def numerals(text: str, where: str) -> list[str]:
    """The numbers of a list with commas or spaces, as texts, each range replaced by the whole numbers that it means.

    `1-4` and `1..4` are 1, 2, 3, 4; `1..100x2` (also `1-100x2`) is 1, 2, 4, ... 64: each the double of the one before,
    none above the last; `16..64+16` is 16, 32, 48, 64. Raises UsageError, which begins with `where`, for a range
    without numbers.
    """
    parts = [part for entry in entries(text) for part in entry.split() or [""]]
    return [number for part in parts for number in _range(part, where)]


def _range(text: str, where: str) -> list[str]:
    found = _RANGE.fullmatch(text)
    if found is None:
        return [text]
    first, last, by = int(found["first"]), int(found["last"]), int(found["by"] or 1)
    grows = found["how"] in ("x", "*")
    if last < first:
        raise UsageError(f"{where}: {text} has the larger number first; write {last}-{first}")
    if grows and (by < 2 or first < 1):
        raise UsageError(
            f"{where}: {text} never grows; write a factor from 2 and a first number from 1, as in 1..128x2"
        )
    if by < 1 or (not grows and (last - first) // by >= MOST_OF_RANGE):
        raise UsageError(f"{where}: {text} has too many numbers; write 1..128x2 to double, or 16..128+16 for steps")
    numbers = [first]
    while (following := numbers[-1] * by if grows else numbers[-1] + by) <= last:
        numbers.append(following)
    return list(map(str, numbers))


def server_url(text: str, where: str, example: str = "http://HOST:PORT", *, key: str = "", port: int = 8000) -> str:
    """The URL of a server, http:// where no scheme is given, without the slashes at its end.

    Raises UsageError, which begins with `where` and never repeats a key, for anything else; `key` says how one is
    given, and `port` is the usual one.
    """
    url = text.strip()
    if re.fullmatch(r":?\d{1,5}", url):
        raise UsageError(f"{where}: {url} is only a port; write http://127.0.0.1:{url.lstrip(':')}")
    broken = not _SCHEME.match(url) and re.match(r"https?[:/]", url)
    if not _SCHEME.match(url):
        if re.fullmatch(r"[A-Za-z0-9.-]+", url):
            raise UsageError(f"{where}: {shown(url)!r} has no port; write it, as in http://{url}:{port}")
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if broken or not valid or any(character.isspace() for character in url):
        public = re.sub(r"//[^/]*@", "//", text.partition("?")[0])
        raise UsageError(f"{where}: {shown(public)!r} is not a server URL; write {example}")
    if parts.username is not None:
        raise UsageError(f"{where}: omit user and password from the URL{key}")
    if parts.query or parts.fragment:
        raise UsageError(f"{where}: omit what follows ? or # in the URL{key}")
    return url.rstrip("/")


def without_endpoint(url: str) -> tuple[str, str | None]:
    """The address of a server whose URL may end in /v1 or in an endpoint below it; and the API of that endpoint,
    `completions` or `chat`, if it names one."""
    found = _ENDPOINT.search(url)
    if found is None:
        return url, None
    return url[: found.start()], {"completions": "completions", "chat/completions": "chat"}.get(found["api"] or "")
