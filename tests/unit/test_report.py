"""report.html and the derived files: self-contained, stamped, escaped, and the same bytes every time."""

from __future__ import annotations

import csv
import hashlib
import re
from pathlib import Path

import pytest
from made_run import answer, cell, ended, make_run, write_cell

import loadgen
from loadgen.analysis.analyse import analyse
from loadgen.analysis.run import Run
from loadgen.errors import UsageError
from loadgen.report.html import write_report

DERIVED = ("requests.parquet", "server.parquet", "cells.csv", "summary.csv", "analysis.json", "report.html")
HOSTILE = "<script>alert('x')</script>&\"[bold]"


def report(run_dir: Path) -> tuple[Run, str]:
    analyse(run_dir)
    run = loadgen.load_run(run_dir)
    return run, write_report(run).read_text(encoding="utf-8")


def hashes(run_dir: Path) -> dict[str, str]:
    paths = [run_dir / name for name in DERIVED] + sorted((run_dir / "figures").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    _, page = report(make_run(tmp_path / "run"))
    loaded = re.findall(r"""(?:\b(?:src|href|action|data|poster)\s*=\s*|url\(|@import\s*)["']?([^"')\s>]*)""", page)
    assert [address for address in loaded if not address.startswith("#")] == []
    assert not re.search(r"<(?:script|link|iframe|img|object|embed)\b", page)


def test_every_reference_inside_a_figure_has_its_target_once(tmp_path: Path) -> None:
    _, page = report(make_run(tmp_path / "run"))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "two figures share an id"
    referenced = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)
    assert {a or b for a, b in referenced} <= set(ids)


def test_a_simulated_run_says_so_in_title_banner_every_row_and_every_figure(tmp_path: Path) -> None:
    run, page = report(make_run(tmp_path / "run", simulated=True))
    assert re.search(r"<title>SIMULATED\b", page)
    assert '<p class="simulated">SIMULATED' in page
    rows = re.findall(r"<tr.*?</tr>", page)[1:]
    assert len(run.summary) == 4
    assert len([row for row in rows if "<td" in row]) > 4, "the trust tables are there too"
    assert all("SIMULATED" in row for row in rows if "<td" in row)
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert len(figures) == 5
    assert all("SIMULATED" in figure for figure in figures)
    assert all("SIMULATED" in path.read_text() for path in (run.path / "figures").glob("*.svg"))
    assert run.analysis["simulated"] is True
    for frame in (run.summary, run.cells, run.requests, run.server):
        assert frame["simulated"].all()


def test_a_measured_run_says_so_nowhere(tmp_path: Path) -> None:
    run, page = report(make_run(tmp_path / "run"))
    assert "SIMULATED" not in page
    assert run.analysis["simulated"] is False
    for frame in (run.summary, run.cells, run.requests, run.server):
        assert not frame["simulated"].any()


def test_words_of_others_are_shown_and_never_run(tmp_path: Path) -> None:
    server = {"name": HOSTILE, "repeat": 1, "version": HOSTILE, "url": HOSTILE, "kernels": [HOSTILE]}
    failure = {"repeat": 1, "target": "fp16", "error": HOSTILE}
    run_dir = make_run(tmp_path / "run", model=HOSTILE, servers=[server], failures=[failure])
    write_cell(run_dir, cell(index=90), [answer(900, end=1100, status="http", error=HOSTILE)], [], ended())
    _, page = report(run_dir)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7


def test_a_run_is_rebuilt_from_its_journal_byte_for_byte(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", simulated=True)
    report(run_dir)
    before = hashes(run_dir)
    for name in DERIVED:
        (run_dir / name).unlink()
    for figure in (run_dir / "figures").iterdir():
        figure.unlink()
    report(run_dir)
    assert hashes(run_dir) == before


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    report(run_dir)
    assert not list(run_dir.rglob("*.partial"))


def test_the_table_has_the_figures_of_the_summary(tmp_path: Path) -> None:
    """100 and 110 tokens in 1 s: mean 105; both targets alike: a ratio of 1."""
    run, page = report(make_run(tmp_path / "run"))
    assert list(run.summary["tokens_per_s"]) == [105.0] * 4
    assert list(run.summary["running_mean"]) == [1.0, 2.0, 1.0, 2.0]
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr.*?</tr>", page)[1:5]]
    assert [row[:4] for row in cells] == [
        ["1", "fp16", "1.00", "105"], ["1", "awq", "1.00", "105"],
        ["2", "fp16", "2.00", "105"], ["2", "awq", "2.00", "105"],
    ]  # fmt: skip
    assert [row[5] for row in cells] == ["", "1.00", "", "1.00"]


def test_accuracy_of_the_summary_is_over_items(tmp_path: Path) -> None:
    """At B = 2 question q1 is right and q2 wrong in every repeat; at B = 1 only q1 was asked."""
    run, _ = report(make_run(tmp_path / "run"))
    assert list(run.summary["accuracy"]) == [1.0, 0.5, 1.0, 0.5]


def test_answers_of_a_cell_that_is_invalid_for_its_batch_count_those_of_a_failing_one_do_not(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    wrong = answer(900, [(1500, 1)], end=2000, item_id="q2", text="#### 7")
    failed = answer(900, end=1100, status="timeout", error="late", item_id="q1")
    write_cell(run_dir, cell(index=90, repeat=2), [wrong], [], ended())
    write_cell(run_dir, cell(index=91, repeat=3), [wrong, failed], [], ended())
    run, _ = report(run_dir)
    assert list(run.cells["valid"]) == [True, False, False], "two have no running batch, one fails too"
    assert list(run.cells["accuracy"]) == [1.0, 0.0, 0.0]
    assert list(run.summary["accuracy"]) == [0.5], "one answer to each of two questions"


def test_target_names_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    run, page = report(make_run(tmp_path / "run", targets=("NA", "8")))
    assert list(run.summary["target"]) == ["NA", "NA", "8", "8"]
    assert '<td class="text">NA</td>' in page
    assert run.complete


def test_requests_are_never_dropped_and_none_of_their_fields_is_invented(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    failed = answer(900, end=1100, status="timeout", error="late", http_status=None, finish_reason=None)
    warm = answer(1, [(2, 1), (3, 2)], phase="warmup")
    write_cell(run_dir, cell(index=90, repeat=2), [warm, failed], [], ended())
    run, _ = report(run_dir)
    rows = run.requests[run.requests["repeat"] == 2]
    assert list(rows["phase"]) == ["warmup", "measured"]
    assert list(rows["in_window"]) == [False, False]
    assert [dict(event) for event in rows["token_times"].iloc[0]] == [
        {"t_ns": 2_000_000, "tokens": 1},
        {"t_ns": 3_000_000, "tokens": 2},
    ]
    for name in ("t_first_ns", "token_source", "prompt_tokens", "output_tokens", "finish_reason", "outcome", "correct"):
        assert rows[name].isna().iloc[1], name


def test_an_invalid_cell_is_listed_with_its_reason_and_the_run_is_not_complete(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=2)
    last = sorted((run_dir / "journal").iterdir())[-1]
    last.write_bytes(b"".join(last.read_bytes().splitlines(keepends=True)[:-1]))
    run, page = report(run_dir)
    assert list(run.cells["valid"]) == [True, False]
    assert run.analysis["warnings"] == ["fp16, B = 1, repeat 2: interrupted before the window opened"]
    assert "fp16, B = 1, repeat 2: interrupted before the window opened" in page
    assert not run.complete


def test_a_missing_cell_makes_the_run_incomplete(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    sorted((run_dir / "journal").iterdir())[-1].unlink()
    run, _ = report(run_dir)
    assert run.cells["valid"].all()
    assert not run.complete


def test_a_run_without_a_cell_says_why(tmp_path: Path) -> None:
    failure = {"repeat": 1, "target": "fp16", "error": "fp16: the server ended with status 1"}
    run_dir = make_run(tmp_path / "run", repeats=0, failures=[failure])
    with pytest.raises(UsageError, match=r"holds no measured cell.*: fp16: the server ended with status 1"):
        analyse(run_dir)


def test_unmeasured_fields_of_cells_csv_are_empty(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    report(run_dir)
    with (run_dir / "cells.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["preemptions"] == row["server_tokens"] == row["client_cpu_share"] == ""
    assert row["errors"] == "0"


def test_a_crossover_is_an_object_of_its_own(tmp_path: Path) -> None:
    run, _ = report(make_run(tmp_path / "run"))
    found = run.crossover("awq", "tokens_per_s")
    assert (found.target, found.reference, found.status) == ("awq", "fp16", "unresolved")
    with pytest.raises(UsageError, match="no crossover of 'gptq' by 'tokens_per_s'; targets: awq; metrics: tokens"):
        run.crossover("gptq", "tokens_per_s")
