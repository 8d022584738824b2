"""Output: the token texts of one answer, cut as the request's limits and stop strings demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

import msgspec


class Output(msgspec.Struct, frozen=True):
    """What a request will receive, one entry per generated token."""

    texts: list[str]
    """Text that each token adds to the stream; empty for the end-of-sequence token and while text is held back."""
    finish_reason: Literal["stop", "length"]
    stop_reason: str | None
    """The stop string that ended it, None for the end-of-sequence token or the limit."""


def cut_output(
    natural: list[str],
    continuation: Iterator[str],
    *,
    max_tokens: int,
    min_tokens: int = 0,
    ignore_eos: bool = False,
    stops: Sequence[str] = (),
) -> Output:
    """The tokens of an answer under vLLM's rules.

    The end-of-sequence token counts as a token; it is not generated before `min_tokens`, or never with
    `ignore_eos`. A stop string is looked for from token `min_tokens` on and is itself left out.
    """
    wanted = max_tokens if ignore_eos else max(len(natural), min_tokens - 1)
    tokens = natural + list(islice(continuation, max(0, wanted - len(natural))))
    ended = not ignore_eos and len(tokens) < max_tokens
    tokens = [*tokens, ""] if ended else tokens[:max_tokens]
    reason: Literal["stop", "length"] = "stop" if ended else "length"
    if not stops:
        return Output(tokens, reason, None)
    return _stopped(tokens, reason, stops, min_tokens)


def _stopped(tokens: list[str], reason: Literal["stop", "length"], stops: Sequence[str], min_tokens: int) -> Output:
    """The tokens up to the first stop string, each text held back as long as a stop string may still begin in it."""
    held = max(map(len, stops)) - 1
    text, sent = "", 0
    texts: list[str] = []
    for number, token in enumerate(tokens, start=1):
        searched_from = len(text)
        text += token
        if number > min_tokens:
            for stop in stops:
                found = text.find(stop, max(0, searched_from - len(stop) + 1))
                if found >= 0:
                    return Output([*texts, text[sent:found]], "stop", stop)
        until = max(sent, len(text) - held)
        texts.append(text[sent:until])
        sent = until
    texts[-1] += text[sent:]
    return Output(texts, reason, None)
