"""Bounds on what others wrote: every read of a file or an answer has one. Each is far above what is met in practice."""

from __future__ import annotations

from typing import Annotated

import msgspec

from loadgen.errors import UsageError

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
"""Tokens, requests, repeats: columns of 32 bits hold them."""
Nanoseconds = Annotated[int, msgspec.Meta(ge=-(2**61), lt=2**62)]
"""A time by either clock: differences of two fit into 64 bits."""
Bytes = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
MOST_AMOUNT = 1e18
Amount = Annotated[float, msgspec.Meta(ge=-MOST_AMOUNT, le=MOST_AMOUNT)]
"""Watts, joules, bytes, hertz, counters: products and squares of two are finite."""

MOST_FILE_BYTES = 256 * 2**20
"""Of a JSON file that is read whole. A manifest of 1,000 servers has 5 MB, the facts of MathQA's 37,000 items 6 MB."""
MOST_DATA_BYTES = 2**30
"""Of a data file, and of what gzip packed into it. MathQA's 37,000 items have 35 MB; it is read whole."""
MOST_JSON_DEPTH = 100
"""Levels of lists and objects. A manifest has 8; functions that call themselves level by level end at some 300."""

MOST_LINE_BYTES = 256 * 2**20
"""Of a journal's line. An answer of MOST_ANSWER_BYTES, each of its bytes a control character, has fewer."""
MOST_CELLS = 1_000_000
"""Targets x batch sizes x repeats of a run, and its power files. A million cells of 1 s take 12 days."""
MOST_METRICS_BYTES = 16 * 2**20
"""Of a /metrics page. vLLM's has 64 KB; a page of 16 MiB would take a core for a second at every scrape."""
MOST_EXPORTER_BYTES = 16 * 2**20
"""Of an exporter's answer: a page holds at most 5,000 samples of some 400 bytes."""
MOST_ANSWER_BYTES = 64 * 2**20
"""Of a model's answer. No answer of a language model comes near, and what arrives is kept until it ends."""
MOST_GRADED = 2**20
"""Characters of an answer that are graded. 100,000 tokens have half as many, and grading so many takes up to a fifth of
a second."""
MOST_FACTS_BYTES = 16 * 2**20
"""Of a model list, a version, a config.json: kilobytes, and a hub's list of quantized layers a few 100 KB."""
ANSWER_S = 30.0
"""For the whole body of such an answer. A server that sends a byte now and then would hold the sweep for ever."""
DOWNLOAD_S = 600.0
"""For a whole data file, 35 MB at most: a line of 0.5 Mbit/s is fast enough."""


def shown_bytes(count: int) -> str:
    """`256 MiB`."""
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count / 2**10:g} KiB"


def positive(**options: float | None) -> None:
    """Raises UsageError for the first option that is not above zero, or not finite; None is not checked."""
    for name, number in options.items():
        if number is not None and not 0 < number <= MOST_AMOUNT:
            raise UsageError(f"--{name.replace('_', '-')} {shown_number(number)}: give a finite number above zero")


def shown_number(number: float) -> str:
    """As `1e+18`; an integer beyond that may be too large for a float, and too long to print."""
    if isinstance(number, int) and abs(number) > MOST_AMOUNT:
        return f"beyond {'-' * (number < 0)}{MOST_AMOUNT:g}"
    return f"{number:g}"
