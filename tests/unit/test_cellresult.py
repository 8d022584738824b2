"""Cells are read by several processes as by one; equal answers count, and are graded once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from made_run import answer, cell, ended, make_run, scrape, write_cell

from loadgen.analysis.celldata import read_cell
from loadgen.analysis.cellresult import LARGE_BYTES, CellReader, cell_answers, processes_for
from loadgen.analysis.tables import REQUESTS, RunTables, requests_table
from loadgen.errors import UsageError
from loadgen.record import journal
from loadgen.record.journal import cell_files
from loadgen.record.manifest import read_manifest
from loadgen.workload.grading import Grade, Grader, grader
from loadgen.workload.item import ItemFacts, read_facts


def reader(run_dir: Path) -> CellReader:
    return CellReader(read_manifest(run_dir), Grader(read_facts(run_dir), "gsm8k"), {})


def test_two_processes_give_the_same_results_in_the_same_order(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", concurrency=(1, 2, 4), repeats=3)
    torn = run_dir / "journal" / f"{cell(index=99).label}.jsonl"
    torn.write_bytes(b'{"type":"cell"')
    paths = cell_files(run_dir)
    alone, together = (list(reader(run_dir).results(paths, n)) for n in (1, 2))
    assert len(alone) == 18, "the torn one is no cell"
    assert [result.summary for result in alone] == [result.summary for result in together]
    assert [result.answers for result in alone] == [result.answers for result in together]
    for one, other in zip(alone, together, strict=True):
        assert one.requests.equals(other.requests)
        assert one.server.equals(other.server)


def test_requests_have_the_arrival_of_their_last_token(tmp_path: Path) -> None:
    asked = [answer(1, end=2), answer(2, [(3, 7)], end=4), answer(4, [(5, 1), (6, 2), (7.5, 3)], end=9)]
    data = read_cell(write_cell(tmp_path, cell(), asked, [], ended()))
    assert data is not None
    assert requests_table(data, [None] * 3, {})["t_last_ns"].to_pylist() == [None, 3_000_000, 7_500_000]


def test_requests_have_what_is_odd_about_them(tmp_path: Path) -> None:
    asked = [answer(1, [(2, 1)]), answer(3, [(4, 1)], notes=("no [DONE]", "one more"), retries=1, cached_tokens=48)]
    data = read_cell(write_cell(tmp_path, cell(), asked, [], ended()))
    assert data is not None
    table = requests_table(data, [None] * 2, {})
    assert table["notes"].to_pylist() == [None, "no [DONE]; one more"]
    assert table["retries"].to_pylist() == [0, 1]
    assert table["cached_tokens"].to_pylist() == [None, 48]


def test_what_a_process_raises_reaches_the_caller(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    first = cell_files(run_dir)[0]
    first.write_bytes(first.read_bytes() + journal.sealed(b'{"type":"nothing"}'))
    with pytest.raises(UsageError, match="nothing"):
        list(reader(run_dir).results(cell_files(run_dir), 2))


@pytest.mark.parametrize("block_bytes", [100, 1 << 24])
def test_token_times_of_all_requests_lie_in_one_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Requests without a token, with one event and with several; read line by line, and all at once."""
    monkeypatch.setattr(journal, "_BLOCK_BYTES", block_bytes)
    asked = [answer(1), answer(2, [(3, 7)]), answer(4, [(5, 1), (6, 2), (7.5, 3)]), answer(8)]
    data = read_cell(write_cell(tmp_path, cell(), asked, [], ended()))
    assert data is not None
    assert data.token_offsets.tolist() == [0, 0, 1, 4, 4]
    assert data.token_t_ns.tolist() == [3_000_000, 5_000_000, 6_000_000, 7_500_000]
    assert data.token_counts.tolist() == [7, 1, 2, 3]


@pytest.mark.parametrize("events", [
    [(999_999, 1), (1_000_000, 1)],
    [(5_000_000, 9), (6_000_000, 10)],
    [(5_000_000, 10), (60_000_000, 9)],
    [(10**18, 1), (10**18 + 1, 2)],
    [(2**62, 1)],
])  # fmt: skip
def test_token_times_are_read_whatever_their_digits(tmp_path: Path, events: list[tuple[int, int]]) -> None:
    """More digits in one place than in another, longer by one where it is shorter by one, and more than 18."""
    asked = [answer(1), answer(2, token_times=tuple(events)), answer(3, token_times=tuple(events[::-1]))]
    data = read_cell(write_cell(tmp_path, cell(), asked, [], ended()))
    assert data is not None
    assert data.token_offsets.tolist() == [0, 0, len(events), 2 * len(events)]
    both = [*events, *events[::-1]]
    assert list(zip(data.token_t_ns.tolist(), data.token_counts.tolist(), strict=True)) == both


@pytest.mark.parametrize("item_id", ["q1", ',"token_times":[[1,1]],"', '\\",\\"token_times\\":[[', "]],"])
@pytest.mark.parametrize("foreign", [
    lambda line: line,
    lambda line: line.replace(b'"token_times":[', b'"token_times": ['),
    lambda line: line.replace(b'],"token_source"', b'] ,"token_source"'),
    lambda line: msgspec.json.encode(dict(sorted(msgspec.json.decode(line).items(), reverse=True))),
    lambda line: msgspec.json.format(line, indent=0),
], ids=["ours", "space before", "space after", "other order", "spaces"])  # fmt: skip
def test_token_times_are_found_whatever_stands_around_them(
    tmp_path: Path, item_id: str, foreign: Callable[[bytes], bytes]
) -> None:
    """Also in lines that another program wrote, and beside texts that look like them."""
    events = ((3_000_000, 7), (5_000_000, 1))
    asked = [answer(2, token_times=events, item_id=item_id), answer(4, item_id=item_id)]
    path = write_cell(tmp_path, cell(), asked, [scrape(1)], ended())
    lines = [line.rpartition(b"\t")[0] for line in path.read_bytes().splitlines()]
    path.write_bytes(b"".join(journal.sealed(foreign(line)) for line in lines))
    data = read_cell(path)
    assert data is not None
    assert data.exchanges.item_id == [item_id, item_id]
    assert data.token_offsets.tolist() == [0, 2, 2]
    assert list(zip(data.token_t_ns.tolist(), data.token_counts.tolist(), strict=True)) == list(events)


@pytest.mark.parametrize("foreign", [0, 1, 2])
def test_token_times_stay_with_their_request_beside_one_that_is_written_otherwise(tmp_path: Path, foreign: int) -> None:
    asked = [answer(k, token_times=((k, 1), (k + 10, 2))) for k in (1, 2, 3)]
    path = write_cell(tmp_path, cell(), asked, [], ended())
    lines = [line.rpartition(b"\t")[0] for line in path.read_bytes().splitlines()]
    lines[1 + foreign] = lines[1 + foreign].replace(b'"token_times":[', b'"token_times": [')
    path.write_bytes(b"".join(map(journal.sealed, lines)))
    data = read_cell(path)
    assert data is not None
    assert data.token_offsets.tolist() == [0, 2, 4, 6]
    assert data.token_t_ns.tolist() == [1, 11, 2, 12, 3, 13]


def test_tokens_are_written_as_32_bits_however_few_digits_they_have(tmp_path: Path) -> None:
    """A cell with events of one token, and one with an event of 300."""
    for index, tokens in ((1, 1), (2, 300)):
        data = read_cell(write_cell(tmp_path, cell(index=index), [answer(1, [(2, tokens), (3, 1)])], [], ended()))
        assert data is not None
        with RunTables(tmp_path) as tables:
            tables.add("requests", requests_table(data, [None], {}))
        written = pq.read_table(tmp_path / "requests.parquet")
        assert written.schema.equals(REQUESTS)
        assert written["token_times"].to_pylist() == [
            [{"t_ns": 2_000_000, "tokens": tokens}, {"t_ns": 3_000_000, "tokens": 1}]
        ]


@pytest.mark.parametrize("count", [2**31, 10**12])
def test_an_event_of_more_tokens_than_there_are_is_refused(tmp_path: Path, count: int) -> None:
    """Also where all counts have as many digits."""
    path = write_cell(tmp_path, cell(), [answer(2, token_times=((5_000_000, count), (6_000_000, count)))], [], ended())
    with pytest.raises(UsageError, match=path.name):
        read_cell(path)


def test_equal_answers_of_a_cell_are_one_that_counts(tmp_path: Path) -> None:
    texts = ["#### 5", "#### 5", "#### 6", "#### 5"]
    asked = [answer(k, [(k + 0.5, 4)], item_id="q", text=text) for k, text in enumerate(texts)]
    data = read_cell(write_cell(tmp_path, cell(repeat=2), asked, [], ended()))
    assert data is not None
    graded = Grader({"q": ItemFacts(gold="5")}, "gsm8k")
    verdicts = [graded.grade("q", text, "stop") for text in data.exchanges.text]
    found = cell_answers(data, verdicts).answers["q"]
    assert [(a.repeat, a.times, a.correct, a.output_tokens) for a in found] == [(2, 3, True, 4), (2, 1, False, 4)]


def test_answers_of_a_cell_in_which_too_many_requests_failed_do_not_count(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    failed = answer(1000, end=1500, item_id="q1", status="http", error="500: oops", http_status=500)
    asked = [answer(1000, [(1000 + 10 * k, 1)], item_id="q2", text="#### 7") for k in range(1, 4)]
    [path] = cell_files(run_dir)
    path.unlink()
    write_cell(run_dir, cell(), [*asked, failed], [], ended())
    found = reader(run_dir).result(path)
    assert found is not None
    assert not found.summary.validity.answers_valid
    assert found.answers.answers == {}, "a quarter of the requests failed"


def test_an_answer_given_again_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = grader.grade

    def spied(text: str, item: ItemFacts, **how: Any) -> Grade:
        read.append(text)
        return original(text, item, **how)

    monkeypatch.setattr(grader, "grade", spied)
    ours = Grader({"a": ItemFacts(gold="18"), "b": ItemFacts(gold="17")}, "gsm8k")
    asked = [("a", "#### 18"), ("a", "#### 18"), ("b", "#### 18")]
    outcomes = [verdict.outcome for item, text in asked if (verdict := ours.grade(item, text, "stop"))]
    assert outcomes == ["correct", "correct", "wrong"]
    assert read == ["#### 18", "#### 18"], "once for each item"
    cut = ours.grade("a", "the answer is 1", "length")
    assert cut is not None
    assert cut.outcome != getattr(ours.grade("a", "the answer is 1", "stop"), "outcome", None)


def test_small_runs_are_read_in_this_process(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_text(json.dumps({}))
    with large.open("wb") as file:
        file.truncate(LARGE_BYTES)
    assert processes_for([small]) == 1
    assert 1 <= processes_for([large]) <= 4
