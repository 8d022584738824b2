"""The journal: what was appended is read; a kill costs the record that was being written; damage is counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_run import answer, cell, ended, make_run, scrape, write_cell

from loadgen.analysis.analyse import analyse
from loadgen.analysis.celldata import read_cell
from loadgen.analysis.run import load_run
from loadgen.errors import UsageError
from loadgen.record import journal as journal_module
from loadgen.record.journal import (
    CellEnd,
    CellStart,
    Journal,
    Record,
    cell_end,
    cell_files,
    read_lines,
    read_records,
    sealed,
)

RECORDS: list[Record] = [
    CellStart(cell=cell(16, target="bnb-nf4", repeat=2, index=7), t_ns=1, simulated=True),
    answer(1, [(2, 1), (3, 4)], text='a "quoted"\nline \u2028 é', reasoning="hm", stop_reason="Question:"),
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


def test_token_times_are_those_of_the_record_however_its_json_is_written(tmp_path: Path) -> None:
    """As this version writes them, with spaces, as the last key, in a text that looks like them, and none."""
    records = [
        json.loads(msgspec.json.encode(record))
        for record in (
            answer(1, [(2, 1), (3, 4)], text=',"token_times":[[9,9]],'),
            answer(4, [(5, 2)]),
            answer(6, [(7, 3)]),
            answer(8, []),
        )
    ]
    records[2]["token_times"] = records[2].pop("token_times")
    tight = (",", ":")
    start = msgspec.json.encode(CellStart(cell=cell(), t_ns=1, simulated=True))
    texts = [json.dumps(record, separators=(", ", ": ") if k == 1 else tight) for k, record in enumerate(records)]
    path = tmp_path / "journal" / "001-fp16-b1-r1.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"".join(map(sealed, [start, *(text.encode() for text in texts)])))
    data = read_cell(path)
    assert data is not None
    assert data.token_offsets.tolist() == [0, 2, 3, 4, 4]
    times = [t_ns for record in records for t_ns, _ in record["token_times"]]
    assert data.token_t_ns.tolist() == times
    assert data.token_counts.tolist() == [1, 4, 2, 3]
    assert data.exchanges.text[0] == ',"token_times":[[9,9]],'


def damaged(path: Path) -> int:
    lines = read_lines(path)
    list(lines)
    return lines.damaged


def test_a_line_is_json_a_tab_its_crc_32_and_nothing_else_holds_a_tab(tmp_path: Path) -> None:
    """0xcbf43926 is the CRC-32 of "123456789", the published check value."""
    assert sealed(b"123456789") == b"123456789\tcbf43926\n"
    assert [line.count(b"\t") for line in written(tmp_path / "cell.jsonl").splitlines()] == [1] * len(RECORDS)


@given(data=st.data())
def test_a_changed_byte_costs_its_line_and_is_counted(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flip") / "cell.jsonl"
    whole = written(path)
    at = data.draw(st.sampled_from([k for k, byte in enumerate(whole[:-1]) if byte != ord("\n")]))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (whole[at], ord("\n"))))
    path.write_bytes(whole[:at] + bytes([other]) + whole[at + 1 :])
    line = whole[:at].count(b"\n")
    assert list(read_records(path)) == RECORDS[:line] + RECORDS[line + 1 :]
    assert damaged(path) == 1


def test_half_a_line_glued_to_the_next_costs_both(tmp_path: Path) -> None:
    lines = written(tmp_path / "cell.jsonl").splitlines(keepends=True)
    (tmp_path / "cell.jsonl").write_bytes(b"".join([*lines[:2], lines[2][:40], *lines[3:]]))
    assert list(read_records(tmp_path / "cell.jsonl")) == RECORDS[:2] + RECORDS[4:]
    assert damaged(tmp_path / "cell.jsonl") == 1


def test_after_a_full_disk_the_next_record_begins_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 300
    write = os.write

    def full(fd: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        done = write(fd, data[:room])
        room -= done
        return done

    journal = Journal(tmp_path / "cell.jsonl")
    monkeypatch.setattr(os, "write", full)
    journal.append(RECORDS[0])
    with pytest.raises(OSError, match="No space"):
        journal.append(RECORDS[1])
    room = 10_000
    journal.append(RECORDS[2])
    journal.close()
    assert list(read_records(tmp_path / "cell.jsonl")) == [RECORDS[0], RECORDS[2]]
    assert damaged(tmp_path / "cell.jsonl") == 1


def test_a_file_of_an_earlier_version_has_no_checksums_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cell.jsonl"
    lines = [line.rpartition(b"\t")[0] + b"\n" for line in written(path).splitlines(keepends=True)]
    path.write_bytes(b"".join([*lines[:2], lines[2][:40], *lines[3:]]))
    assert list(read_records(path)) == RECORDS[:2] + RECORDS[4:]
    assert damaged(path) == 1


def test_a_line_that_lost_its_checksum_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "cell.jsonl"
    lines = written(path).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2].rpartition(b"\t")[0] + b"\n", *lines[3:]]))
    assert list(read_records(path)) == RECORDS[:2] + RECORDS[3:]
    assert damaged(path) == 1


def test_a_line_that_lost_its_checksum_is_damaged_in_a_later_block_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_BLOCK_BYTES", 2)
    path = tmp_path / "cell.jsonl"
    ends = [msgspec.json.encode(CellEnd(t_ns=t_ns)) for t_ns in (1, 2, 3)]
    path.write_bytes(sealed(ends[0]) + ends[1] + b"\n" + sealed(ends[2]))
    lines = read_lines(path)
    assert b"".join(lines) == ends[0] + b"\n" + ends[2] + b"\n"
    assert lines.damaged == 1


def test_damage_is_told_with_the_cell_it_is_in(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=["fp16"])
    path = cell_files(run_dir)[1]
    path.write_bytes(path.read_bytes().replace(b"sample-0000", b"sample-0001").replace(b"q2", b"q3"))
    analyse(run_dir)
    warnings = load_run(run_dir).analysis.warnings
    assert "fp16, B = 2, repeat 1: 1 damaged line of its journal left out" in warnings


def test_a_line_without_end_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MOST_LINE_BYTES", 1000)
    monkeypatch.setattr(journal_module, "_BLOCK_BYTES", 100)
    path = tmp_path / "cell.jsonl"
    path.write_bytes(b"x" * 999 + b"\n" + sealed(msgspec.json.encode(CellEnd(t_ns=1))))
    assert [*read_records(path)] == [CellEnd(t_ns=1)]
    path.write_bytes(b"x" * 10_000)
    for read in (lambda: [*read_records(path)], lambda: cell_end(path)):
        with pytest.raises(UsageError, match="has a line longer than"):
            read()
