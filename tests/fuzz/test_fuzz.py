"""Inputs nobody meant: those that were kept, and new ones made of their pieces (docs: CONTRIBUTING.md, Fuzzing)."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import pytest
from hostile_run import CONTENTS, LINKS, NAMES, VALUES, Ask, places
from hypothesis import given
from hypothesis import strategies as st
from targets import CORPUS, CUT_MARK, TARGETS

from loadgen.analysis.tables import POWER, REQUESTS

PIECE = re.compile(rb"\w+|\s+|[^\w\s]+")
DEEP = 400
"""Beyond Python's recursion for YAML, which needs several calls a level and takes long; deeper inputs are kept ones."""
KEPT = [(name, path) for name in TARGETS for path in sorted((CORPUS / name).iterdir())]


def test_every_target_has_kept_inputs_and_every_kept_input_a_target() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    assert all(any((CORPUS / name).iterdir()) for name in TARGETS)


@pytest.mark.parametrize(("name", "path"), KEPT, ids=lambda value: value.name if isinstance(value, Path) else value)
def test_a_kept_input(name: str, path: Path) -> None:
    TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_new_inputs(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(inputs(name)))


@lru_cache
def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Arbitrary bytes, pieces of kept inputs in any order, and kept inputs with pieces changed; cut anywhere."""
    if name == "run":
        return hostile_runs()
    kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    pieces = st.one_of(
        st.sampled_from(sorted({piece for text in kept for piece in PIECE.findall(text) if len(piece) < 200})),
        st.sampled_from([b"", b"0", b"-1", b"1e999", b"null", b"[" * DEEP, b"\x00", b"\xff", b"\\ud800", b"9" * 400]),
        st.binary(max_size=4),
    )
    made = st.lists(pieces, max_size=60).map(b"".join)
    edits = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 40), pieces), min_size=1, max_size=6)
    edited = st.tuples(st.sampled_from(kept), edits).map(lambda given: _edited(*given))
    body = st.one_of(st.binary(max_size=300), made, edited)
    if name not in ("sse", "exchange", "http", "coded"):
        return body
    cuts = st.binary(max_size=20).filter(lambda head: CUT_MARK not in head + CUT_MARK[:1])
    return st.tuples(cuts, body).map(lambda given: given[0] + CUT_MARK + given[1])


def hostile_runs() -> st.SearchStrategy[bytes]:
    """A command, and up to three changes of a whole run directory."""
    names, contents = st.sampled_from(NAMES), st.sampled_from(CONTENTS)
    changes = st.one_of(
        st.builds(_change, st.sampled_from(["set", "drop"]), st.sampled_from(places()), st.sampled_from(VALUES)),
        st.tuples(st.just("link"), names, st.just(()), st.sampled_from(LINKS)),
        st.tuples(st.sampled_from(["pipe", "socket", "folder", "remove"]), names),
        st.tuples(st.just("cut"), names, st.tuples(st.integers(0, 4000))),
        st.tuples(st.just("write"), names, st.tuples(st.sampled_from([1, 10**6])), contents),
        st.tuples(
            st.just("column"), st.sampled_from(["requests.parquet", "power.parquet", "server.parquet"]),
            st.tuples(st.sampled_from([*REQUESTS.names, *POWER.names])), st.sampled_from(["", "x"]),
        ),
        st.tuples(
            st.just("field"), st.sampled_from(["cells.csv", "summary.csv"]),
            st.tuples(st.integers(0, 2), st.integers(0, 120)), st.sampled_from(["", "x", "-1", "1e999", "9" * 400]),
        ),
    )  # fmt: skip
    asks = st.sampled_from(get_args(Ask))
    return st.tuples(asks, st.lists(changes, min_size=1, max_size=3)).map(lambda made: _run(*made))


def _change(how: str, place: tuple[str, tuple[str | int, ...]], text: str) -> tuple[Any, ...]:
    return how, *place, text


def _run(ask: str, changes: list[tuple[Any, ...]]) -> bytes:
    return json.dumps({"ask": ask, "changes": changes}).encode()


def _edited(text: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, piece in edits:
        at = place % (len(text) + 1)
        text = text[:at] + piece + text[at + length :]
    return text
