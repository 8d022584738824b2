"""Bounds on input from outside: every read of a file or a response has one, far above what occurs in practice."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
"""Tokens, requests, repeats: they fit into 32 bits."""
Nanoseconds = Annotated[int, msgspec.Meta(ge=-(2**61), lt=2**62)]
"""A time on any clock: differences of two fit into 64 bits."""
Bytes = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
MOST_AMOUNT = 1e18
Amount = Annotated[float, msgspec.Meta(ge=-MOST_AMOUNT, le=MOST_AMOUNT)]
"""Watts, joules, bytes, hertz, counters: products and squares of two are finite."""

Text = Annotated[str, msgspec.Meta(max_length=20_000)]
"""Longer ones take seconds to lay out in a table."""

MOST_FILE_BYTES = 256 * 2**20
"""A JSON file that is read whole. A manifest of 1,000 servers has 5 MB, the facts of MathQA's 37,000 items 6 MB."""
MOST_DATA_BYTES = 2**30
"""A data file, also after gunzip. MathQA's 37,000 items have 35 MB; it is read whole."""
MOST_JSON_DEPTH = 100
"""Levels of lists and objects. A manifest has 8; recursive functions reach Python's limit at some 300."""

MOST_LINE_BYTES = 256 * 2**20
"""A journal's line. An answer of MOST_ANSWER_BYTES, each of its bytes a control character, is shorter."""
MOST_CELLS = 1_000_000
"""Targets x concurrencies x repeats of a run, and its power files. A million cells of 1 s take 12 days."""
MOST_METRICS_BYTES = 16 * 2**20
"""A /metrics page. vLLM's has 64 KB; a page of 16 MiB would take a core for a second at every scrape."""
MOST_EXPORTER_BYTES = 16 * 2**20
"""An exporter's response: a page holds at most 5,000 samples of some 400 bytes."""
MOST_ANSWER_BYTES = 64 * 2**20
"""A model's answer, which is kept in memory until it ends. No language model's comes near."""
MOST_GRADED = 2**20
"""Characters of an answer that are graded, in at most 0.2 s. 100,000 tokens have half as many."""
MOST_FACTS_BYTES = 16 * 2**20
"""A model list, a version, a config.json: kilobytes; a hub's list of quantized layers has a few 100 KB."""
ANSWER_S = 30.0
"""Time for the whole body of such a response: a server that sends a byte now and then must not stop the sweep."""
DOWNLOAD_S = 600.0
"""Time for a whole data file of at most 35 MB, enough at 0.5 Mbit/s."""


def shown_bytes(count: int) -> str:
    """`256 MiB`."""
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count / 2**10:g} KiB"


def shown_number(number: float) -> str:
    """`1e+18` style; an integer beyond that may be too large for a float, and too long to print."""
    if isinstance(number, int) and abs(number) > MOST_AMOUNT:
        return f"beyond {'-' * (number < 0)}{MOST_AMOUNT:g}"
    return f"{number:g}"


def free_memory_bytes() -> int:
    """Memory that can be had now, caches that would give way among it; where Linux does not tell, what nothing uses."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
