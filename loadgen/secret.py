"""Secrets, and text in which they are masked; text from outside, made safe to show in a terminal, page or spreadsheet.

Standard library only: the guardian of a server runs this file outside the package.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"
SHORTEST = 6
"""Shorter values (`EMPTY`, `none`) are not secrets, and would be masked wherever a text has them by chance."""
_WORDS = frozenset({"key", "apikey", "token", "secret", "password", "passwd", "passphrase", "credentials"})
_HARMLESS = frozenset({"path", "file", "dir", "id", "env", "url"})
_LOGIN = re.compile(r"://[^/\s@]*:[^/\s@]+@")
_NAME = (
    r"(?:api[-_]?key|passw(?:or)?d|passphrase|secret(?:[-_]access)?(?:[-_]key)?|credentials"
    r"|(?:access|auth|hf|hub|session|refresh|security|private)[-_](?:key|token)"
    r"|(?-i:\b[A-Z][A-Z0-9_]{0,60}_(?:KEY|TOKEN)))"
)
_Q = r"""\\*["']"""
"""A quote, also an escaped one: `{\\"api_key\\": ...`."""
_KNOWN = r"(?!(?:None|null|True|False|true|false)\b)"
_ONE = rf"""(?:{_KNOWN}[^\s"'\\\[(\])}},&;][^\s"'\\\])}},&;]*)"""
_QUOTED = rf"(?:(?:(?!{_Q}).)+)"
_ITEMS = rf"(?:.{{1,500}}?(?={_Q}\s*(?:[\])]|,\s*b?{_Q}-)))"
_OPTION = rf"(?<![\w-])--[\w-]{{0,40}}{_NAME}"
_NAMES = ("key", "passw", "passphrase", "secret", "credential", "_token", "-token")
_FORMS = (
    (("://",), r"(?<=://)[^/\s@]+@", rf"{MASK}@"),
    # [..., '--api-key', 'A', 'B', '--port', ...]
    (_NAMES, rf"({_OPTION}{_Q}\s*,\s*b?{_Q}){_ITEMS}", rf"\1{MASK}"),
    (_NAMES, rf"({_OPTION}{_Q}\s*,\s*b?{_Q}){_QUOTED}", rf"\1{MASK}"),
    # 'api_key': ['A', 'B'] or "api_key": ["A"]
    (_NAMES, rf"({_NAME}(?:{_Q})?\s*[:=]\s*[\[(]\s*b?{_Q}){_ITEMS}", rf"\1{MASK}"),
    # 'api_key': 'A' or api_key="A" or a header's (b'x-api-key', b'A')
    (_NAMES, rf"({_NAME}(?:{_Q})?\s*[:=]\s*[\[(]?\s*b?{_Q}){_QUOTED}", rf"\1{MASK}"),
    (_NAMES, rf"(\(\s*b?{_Q}[\w-]{{0,40}}{_NAME}{_Q}\s*,\s*b?{_Q}){_QUOTED}", rf"\1{MASK}"),
    # API_KEY=A, api_key: A, --api-key A
    (_NAMES, rf"({_NAME}(?:{_Q})?\s*[:=]\s*[\[(]*){_ONE}", rf"\1{MASK}"),
    (_NAMES, rf"({_OPTION}\s+(?:{_Q})?){_ONE}", rf"\1{MASK}"),
    # Authorization: Bearer A, (b'authorization', b'A')
    (("bearer", "basic"), r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", rf"\1 {MASK}"),
    (
        ("authorization",),
        rf"(authorization(?:{_Q}\s*[:,]|\s*[:=])\s*(?:b?{_Q})?(?:(?:bearer|basic|token)\s)?){_ONE}",
        rf"\1{MASK}",
    ),
    # https://host/file?signature=A&token=B
    (("?", "&"), r"([?&](?:x-amz-(?:signature|credential)|signature|sig|token|key)=)[^\s&\"']+", rf"\1{MASK}"),
    # Tokens with a known beginning.
    (("hf_", "sk-", "gh"), r"\b(?-i:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|gh[opsu]_[A-Za-z0-9]{30,})", MASK),
)
"""How secrets are written: words, one of which the text has in lower case; a regular expression; its replacement."""


class Mask:
    """Replaces secrets in text: those given, and the values of the environment's variables with secret names."""

    def __init__(self, *secrets: str | None, environ: Mapping[str, str] | None = None) -> None:
        named = (os.environ if environ is None else environ).items()
        values = {*secrets, *(value for name, value in named if is_secret(name))}
        self.secrets = [value for value in values if value is not None and len(value) >= SHORTEST]
        found = sorted({way for value in self.secrets for way in _spellings(value)}, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, found))) if found else None

    def __call__(self, text: str) -> str:
        """The text without the values, passwords in URLs, and what follows `api_key=`, `Bearer` and the like."""
        text = self.values(text)
        lower = text.lower()
        for words, form, instead in _FORMS:
            if any(word in lower for word in words):
                text = re.sub(form, instead, text, flags=re.IGNORECASE)
        return text

    def values(self, text: str) -> str:
        """The text without the values only: what a model writes about passwords is unchanged."""
        return text if self._values is None else self._values.sub(MASK, text)

    def argv(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The arguments, with the values of secret options masked whole."""
        masked = [self(argument) for argument in argv]
        for index, start in _secret_places(argv):
            masked[index] = argv[index][:start] + MASK
        return tuple(masked)

    def env(self, env: Mapping[str, str]) -> dict[str, str]:
        """The variables, with the values of secret names masked whole."""
        return {name: MASK if is_secret(name) else self(value) for name, value in env.items()}

    def content(self, value: Any) -> Any:
        """JSON content with its texts masked, and the values of secret names masked whole."""
        if isinstance(value, Mapping):
            return {
                name: MASK if part is not None and is_secret(name.replace(".", "-")) else self.content(part)
                for name, part in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.content(part) for part in value]
        return self(value) if isinstance(value, str) else value


def is_secret(name: str) -> bool:
    """Whether a variable or option of this name holds a secret: HF_TOKEN and --api-key do, --max-tokens does not."""
    words = re.split(r"[-_]+", name.strip("-").lower())
    return not _WORDS.isdisjoint(words) and words[-1] not in _HARMLESS


def without_secrets(environ: Mapping[str, str], *secrets: str | None) -> dict[str, str]:
    """The environment for a program that needs no secret: without variables whose name or value is one."""
    values = {value for name, value in environ.items() if is_secret(name) and len(value) >= SHORTEST}
    given = [secret for secret in secrets if secret and len(secret) >= SHORTEST]
    return {
        name: value
        for name, value in environ.items()
        if not (is_secret(name) or value in values or _LOGIN.search(value) or any(one in value for one in given))
    }


def secrets_of(argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The values of secret options and variables."""
    of_options = [argv[index][start:] for index, start in _secret_places(argv)]
    return of_options + [value for name, value in env.items() if is_secret(name)]


def _secret_places(argv: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(index, offset) of each secret in the arguments: `--api-key=S`, or every value of `--api-key S T`."""
    secret = False
    for index, argument in enumerate(argv):
        option, equals, _ = argument.partition("=")
        if argument.startswith("-"):
            secret = option.startswith("--") and is_secret(option)
            if secret and equals:
                yield index, len(option) + 1
        elif secret:
            yield index, 0


def _spellings(secret: str) -> set[str]:
    """The secret as it is, in JSON, in a Python literal and in a URL."""
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe=""), quote_plus(secret)}


_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed, and their 8-bit forms
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that change the direction of writing
    "\u2028\u2029\ufeff"  # line and paragraph separators; byte order mark
    "\ud800-\udfff]"  # surrogates
)
_FORMULA = re.compile(r"[\t\r\n]|\s*['=+@＝＋－＠-]")
"""How a cell begins that a spreadsheet runs (OWASP, CSV injection), also in full-width form."""
MOST_ERROR_CHARACTERS = 300


def visible(text: str) -> str:
    """The text with control characters, direction marks and the like as `\\x1b`, `\\u202e`; else unchanged."""
    return _INVISIBLE.sub(lambda found: repr(found[0])[1:-1], text)


def error_text(error: BaseException) -> str:
    """An error's text on one line, cut to MOST_ERROR_CHARACTERS because it may quote a file or a server."""
    words = str(error)[: 2 * MOST_ERROR_CHARACTERS].split()
    return visible(" ".join(words))[:MOST_ERROR_CHARACTERS] or type(error).__name__


def visible_line(text: str) -> str:
    """The visible text on one line, with line feeds and tabs escaped too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def visible_message(text: str) -> str:
    """The visible text with the lines after the first indented, so that none looks like another message."""
    return visible(text).rstrip("\n").replace("\n", "\n  ")


def visible_json(text: str) -> str:
    """Equivalent JSON with such characters as `\\u001b`, `\\u202e`."""
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def visible_cell(text: str) -> str:
    """A text as a cell of a CSV file: on one line, after an apostrophe if a spreadsheet could run it."""
    return f"'{visible_line(text)}" if _FORMULA.match(text) else visible_line(text)


def text_of_cell(cell: str) -> str:
    """The text of a cell that `visible_cell` made, without the apostrophe."""
    return cell.removeprefix("'")


class VisibleStream:
    """A text stream that writes texts as `visible` makes them, and is otherwise the given stream."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class UnreadStream:
    """A text stream that nobody has to read: what cannot be written is discarded, and so is all that follows."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lost = False

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        if not self._lost:
            try:
                act()
            except (OSError, ValueError):  # nobody reads the pipe any more, the terminal is gone, the disk is full
                self._lost = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def show_only_visible() -> None:
    """From now on all that Python writes to stdout and stderr is visible: also warnings, logs and tracebacks. Messages
    on stderr that nobody can read end nothing."""
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None and not isinstance(stream, VisibleStream):
            if name == "stderr" and not isinstance(stream, UnreadStream):
                stream = UnreadStream(stream)
            setattr(sys, name, VisibleStream(stream))
    sys.excepthook = _show_traceback


def _show_traceback(*error: Any) -> None:
    """Without the colours of Python 3.13, which would be escaped."""
    sys.stderr.write("".join(traceback.format_exception(*error)))
