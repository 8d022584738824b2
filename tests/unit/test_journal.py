"""The journal: what was appended is read, and a kill costs the record that was being written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_run import answer, cell, ended, scrape, write_cell

from loadgen.analysis.celldata import read_cell
from loadgen.sweep.journal import CellEnd, CellStart, Journal, Record, cell_files, read_records

RECORDS: list[Record] = [
    CellStart(cell=cell(16, target="bnb-nf4", repeat=2, index=7), t_ns=1, simulated=True),
    answer(1, [(2, 1), (3, 4)], text="a \"quoted\"\nline \u2028 é", reasoning="hm", stop_reason="Question:"),
    answer(1, end=9, status="http", error="503: full", http_status=503, finish_reason=None, phase="warmup"),
    scrape(5, running=15.0, waiting=0.0, preemptions=0.0, kv_usage=0.25, generation_tokens=1e9, iterations=3.0),
    scrape(6),
    ended(generation_tokens=5.0, client_cpu_s=0.1, loop_lag_ms_p99=1.5),
    CellEnd(t_ns=3, aborted="the server died"),
]


def written(path: Path) -> bytes:
    journal = Journal(path)
    for record in RECORDS:
        journal.append(record)
    journal.close()
    return path.read_bytes()


def test_every_kind_of_record_comes_back_as_it_was(tmp_path: Path) -> None:
    written(tmp_path / "journal" / "cell.jsonl")
    assert list(read_records(tmp_path / "journal" / "cell.jsonl")) == RECORDS


def test_a_record_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "cell.jsonl")
    for count, record in enumerate(RECORDS, start=1):
        journal.append(record)
        assert len(list(read_records(tmp_path / "cell.jsonl"))) == count
    journal.close()


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "cell.jsonl"
    path.write_bytes(written(path)[:-1])
    assert list(read_records(path)) == RECORDS[:-1]


@given(data=st.data())
def test_cutting_the_file_anywhere_costs_at_most_the_record_that_was_cut(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "cell.jsonl"
    whole = written(path)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    path.write_bytes(cut)
    assert list(read_records(path)) == RECORDS[: cut.count(b"\n")]


def test_an_existing_journal_is_never_written_over(tmp_path: Path) -> None:
    written(tmp_path / "cell.jsonl")
    with pytest.raises(FileExistsError):
        Journal(tmp_path / "cell.jsonl")


def test_cells_are_listed_in_the_order_they_ran(tmp_path: Path) -> None:
    indices = [1, 2, 10, 99, 100, 999, 1000, 1001]
    paths = [write_cell(tmp_path, cell(index=index), []) for index in reversed(indices)]
    assert cell_files(tmp_path) == paths[::-1]


def test_a_cell_without_its_first_line_is_no_cell_and_one_without_its_last_was_interrupted(tmp_path: Path) -> None:
    path = write_cell(tmp_path, cell(), [answer(1, [(2, 1)])])
    data = read_cell(path)
    assert data is not None
    assert (data.end, data.window, len(data.exchanges)) == (None, None, 1)
    path.write_bytes(path.read_bytes()[:20])
    assert read_cell(path) is None
