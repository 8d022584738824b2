"""Secrets: what is one, and text in which none is left."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MASK = "***"
SHORTEST = 6
"""Shorter values (`EMPTY`, `none`) are nobody's secret, and would be masked wherever a text has them by chance."""
_WORDS = frozenset({"key", "apikey", "token", "secret", "password", "passwd", "credentials"})
_HARMLESS = frozenset({"path", "file", "dir", "id", "env", "url"})
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")
_NAMED = re.compile(
    r"""(?ix) ( (?:api[-_]?key|password|passwd|secret|(?:access|auth|hf)[-_]token) ["']? \s* [:=] \s* [\[("']* )
        [^\s"'\])},&;]+ """
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")


class Mask:
    """Replaces secrets in text: those given, and the values of the environment's variables whose names say so."""

    def __init__(self, *secrets: str | None, environ: Mapping[str, str] | None = None) -> None:
        named = (os.environ if environ is None else environ).items()
        values = {*secrets, *(value for name, value in named if is_secret(name))}
        found = sorted((v for v in values if v is not None and len(v) >= SHORTEST), key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, found))) if found else None

    def __call__(self, text: str) -> str:
        """The text without the values, passwords in addresses, and what stands behind `api_key=` or `Bearer`."""
        text = _USER_INFO.sub(f"{MASK}@", self.values(text))
        text = _NAMED.sub(rf"\1{MASK}", text)
        return _BEARER.sub(rf"\1 {MASK}", text)

    def values(self, text: str) -> str:
        """The text without the values alone: what a model says of passwords is left as it is."""
        return text if self._values is None else self._values.sub(MASK, text)

    def argv(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The arguments, and the values of options whose names say that they are secret."""
        masked = [self(argument) for argument in argv]
        for index, start in _secret_places(argv):
            masked[index] = argv[index][:start] + MASK
        return tuple(masked)

    def env(self, env: Mapping[str, str]) -> dict[str, str]:
        """The variables, and the values of those whose names say that they are secret."""
        return {name: MASK if is_secret(name) else self(value) for name, value in env.items()}

    def content(self, value: Any) -> Any:
        """JSON content with its texts masked, and whole what stands under a name that says it is secret."""
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


def secrets_of(argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The values of options and variables whose names say that they are secret."""
    of_options = [argv[index][start:] for index, start in _secret_places(argv)]
    return of_options + [value for name, value in env.items() if is_secret(name)]


def _secret_places(argv: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where in the arguments a secret begins: `--api-key=S`, or every value of `--api-key S T`."""
    secret = False
    for index, argument in enumerate(argv):
        option, equals, _ = argument.partition("=")
        if argument.startswith("-"):
            secret = option.startswith("--") and is_secret(option)
            if secret and equals:
                yield index, len(option) + 1
        elif secret:
            yield index, 0
