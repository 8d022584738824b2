"""A cell's requests in columns: every field of every record, in their order, however the file is cut into blocks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_run import answer, arrived, cell, cell_data, ended, make_run, scrape, turned_away, write_cell

from loadgen.analysis.analyse import analyse
from loadgen.analysis.celldata import read_cell
from loadgen.analysis.exchanges import NUMBERS, Exchanges, equal_to, whole_numbers
from loadgen.analysis.tables import requests_table
from loadgen.load.exchange import Exchange
from loadgen.record import journal
from loadgen.workload.grading import Grade

ASKED = [
    answer(1, [(2, 1), (3, 4)], text="18", cached_tokens=16, reasoning="hm", reasoning_tokens=2, stamps="kernel"),
    answer(2, end=9, status="http", error="503: full", http_status=503, finish_reason=None, phase="warmup"),
    answer(3, [(4, 1)], item_id="q", stop_reason="Question:", retries=2, notes=("no [DONE]", "one more")),
    answer(5, [(6, 1)], stop_reason=128_009, prompt_sha="1" * 64, token_source="spread", slot=7),
    arrived(7, [(8, 1)], late=0.25, text="é"),
    turned_away(9),
]


def test_every_field_but_token_times_is_a_column() -> None:
    assert {*Exchanges.__struct_fields__, "token_times"} == {*Exchange.__struct_fields__}


@pytest.mark.parametrize("block_bytes", [100, 1 << 24])
def test_columns_hold_what_the_records_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    """A record at a time, and all at once, with another kind of record between them."""
    monkeypatch.setattr(journal, "_BLOCK_BYTES", block_bytes)
    path = write_cell(tmp_path, cell(), ASKED[:3], [scrape(1)])
    with path.open("ab") as file:
        file.writelines(journal.sealed(msgspec.json.encode(record)) for record in (*ASKED[3:], ended()))
    data = read_cell(path)
    assert data is not None
    assert len(data.exchanges) == len(ASKED)
    for name in Exchanges.__struct_fields__:
        values = [getattr(record, name) for record in ASKED]
        if name in NUMBERS:
            assert getattr(data.exchanges, name).tolist() == [-1 if v is None else v for v in values], name
        else:
            assert getattr(data.exchanges, name) == values, name
    assert (len(data.samples), data.end) == (1, ended())


def test_a_cell_of_no_requests_has_empty_columns(tmp_path: Path) -> None:
    exchanges = cell_data(tmp_path, []).exchanges
    assert [len(getattr(exchanges, name)) for name in Exchanges.__struct_fields__] == [0] * 23


@given(st.lists(st.none() | st.integers(0, 2**63 - 1)))
def test_numbers_that_there_are_none_of_are_minus_one(values: list[int | None]) -> None:
    assert whole_numbers(values).tolist() == [-1 if value is None else value for value in values]


def test_a_number_of_more_than_64_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        whole_numbers([1, 2**63])


@given(st.lists(st.sampled_from(["ok", "http", "o", ""])))
def test_texts_are_compared_whole(texts: list[str]) -> None:
    assert equal_to("ok", texts).tolist() == [text == "ok" for text in texts]


def test_requests_have_their_own_grade_and_what_their_item_asks(tmp_path: Path) -> None:
    """Two of one grade, two of equal ones, one without."""
    right, wrong = Grade(outcome="correct", answer="18", extractor="hashes", strict=True), Grade(outcome="wrong")
    grades = [right, None, wrong, Grade(outcome="wrong"), right]
    data = cell_data(tmp_path, [answer(k, [(k + 0.5, 1)]) for k in range(5)])
    table = requests_table(data, grades, {})
    for name in ("outcome", "answer", "extractor", "strict", "flexible", "correct"):
        assert table[name].to_pylist() == [grade and getattr(grade, name) for grade in grades]
    assert [version is None for version in table["grader"].to_pylist()] == [False, True, False, False, False]
    assert table["steps"].to_pylist() == [None] * 5


def test_what_the_caller_does_meanwhile_is_done_once(tmp_path: Path) -> None:
    done: list[str] = []
    analyse(make_run(tmp_path / "run"), meanwhile=lambda: done.append("done"))
    assert done == ["done"]
