"""What the terminal and the page say of an open loop, and of goodput."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_run import answer, arrived, cell, ended, made_open_run, make_run, scrape, turned_away, write_cell

from loadgen.analysis.analyse import analyse
from loadgen.analysis.run import Run, load_run, regrade
from loadgen.record.cell import Slo
from loadgen.reports.figures import draw_figures
from loadgen.reports.html.page import page
from loadgen.reports.rows import traffic_sentences
from loadgen.reports.terminal import end_lines


def analysed(run_dir: Path, slo: str | None = None) -> Run:
    analyse(run_dir, slo=None if slo is None else Slo.parse(slo))
    return load_run(run_dir)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two targets, two repeats, 4 requests each with a TTFT of 50, 90, 200 and 400 ms, E2E 10 ms more."""
    return analysed(made_open_run(tmp_path_factory.mktemp("open") / "run", slo="ttft:200ms"))


def test_of_each_target_it_is_said_what_became_of_its_requests(run: Run) -> None:
    """p99 of four values lies 97% of the way from the third to the fourth."""
    told = (
        "4.00 requests a second sent, 4.00 answered; TTFT 145 / 394 ms and E2E 155 / 404 ms (p50 / p99) from when they "
        "were due; 75.0% within ttft:200ms: 3.00 a second"
    )
    assert traffic_sentences(run) == {"fp16": {4: told}, "awq": {4: told}}


def test_the_terminal_names_the_arrivals_and_the_rate_and_no_b(run: Run) -> None:
    lines = end_lines(run, 100)
    text = "\n".join(lines)
    assert "2 targets × poisson:4 × 2 repeats" in text
    assert any(line.split()[:2] == ["requests/s", "target"] for line in lines)
    assert "good/s" in text
    assert any(line.split()[:2] == ["4", "fp16"] and " 3.00 " in line for line in lines), "3 good ones a second"
    assert "B =" not in text
    assert "B*" not in text
    assert "at poisson:4 (n = 2) +0.0 pp" in text, "accuracy question by question"


def test_nothing_is_said_of_a_b_that_was_not_held(run: Run) -> None:
    assert {found.refusal for found in run.analysis.crossovers} == {
        "poisson:4 set the traffic and no B was held; a B* needs a closed loop"
    }
    found = run.analysis
    assert found.indices == found.models == found.traps == found.speeds == ()
    assert run.summary["cor"].isna().all()
    assert (run.summary["t_si"].notna() == [False, True]).all(), "answers are compared all the same"


def test_the_page_has_a_row_per_cell_and_goodput(run: Run) -> None:
    text = page(run, draw_figures(run))
    assert 'id="traffic"' in text
    assert "Goodput: requests within ttft:200ms" in text
    assert "fp16 at poisson:4" in text
    assert "poisson:4, at most 64 in flight" in text
    assert "B = 64" not in text
    assert ">B</th>" not in text
    assert "× ref" not in text
    arrivals = text.split('aria-label="Arrivals"')[1].split("</table>")[0]
    assert arrivals.count("<tr") == 1 + 4
    assert "Crossovers" not in text.split('<section id="answer">')[0]


def test_a_cell_that_dropped_a_few_is_valid_and_warns_that_its_tail_is_cut(tmp_path: Path) -> None:
    run_dir = made_open_run(tmp_path / "run", targets=("fp16",), repeats=1)
    (path,) = (run_dir / "journal").iterdir()
    path.unlink()
    many = [arrived(1001 + k, [(1011 + k, 1), (1012 + k, 1)], item_id="q1") for k in range(900)]
    write_cell(run_dir, cell(64, arrival="poisson:4"), [*many, turned_away(1950)],
               [scrape(1100, running=9.0), scrape(1900, running=9.0)], ended())  # fmt: skip
    run = analysed(run_dir)
    assert run.cells["valid"].tolist() == [True], run.cells["reasons"].tolist()
    assert run.analysis.warnings == (
        "fp16, poisson:4, repeat 1: 1 of 901 arrivals were dropped and have no latency: the highest percentiles may be "
        "too low",
    )
    assert "1 dropped" in traffic_sentences(run)["fp16"][4]
    dropped = run.requests[run.requests["status"] == "dropped"].iloc[0]
    assert dropped[["slot", "outcome", "t_first_ns"]].isna().all()
    assert not dropped["in_window"]
    assert regrade(run_dir).changed == {}, "requests are found again, the dropped one too"


def test_invalid_cells_still_show_what_was_offered(tmp_path: Path) -> None:
    run_dir = made_open_run(tmp_path / "run", targets=("fp16",), repeats=1)
    (path,) = (run_dir / "journal").iterdir()
    path.unlink()
    waiting = [arrived(1010 * k / 1000 + 1001, [(9000 + k, 1)], item_id="q1") for k in range(100)]
    write_cell(run_dir, cell(64, arrival="poisson:100"), waiting,
               [scrape(1100, running=9.0), scrape(1900, running=9.0)], ended())  # fmt: skip
    run = analysed(run_dir)
    assert (
        "the server cannot keep up with 100 requests a second: it answered 0, and 100 more were in flight"
        in (run.cells["reasons"][0])
    )
    assert traffic_sentences(run)["fp16"][100] == "100 requests a second sent, 0 answered; no repeat is valid"


@pytest.mark.slow
def test_of_a_closed_loop_there_is_no_traffic_and_goodput_only_if_asked_for(tmp_path: Path) -> None:
    run = analysed(make_run(tmp_path / "run"))
    assert run.arrival is None
    assert traffic_sentences(run) == {}
    text = page(run, draw_figures(run))
    assert 'id="traffic"' not in text
    assert "good/s" not in "\n".join(end_lines(run, 200))
    run = analysed(run.path, slo="e2e:500ms")
    assert "good: e2e:500ms" in "\n".join(end_lines(run, 200))
    assert 'id="traffic"' in page(run, draw_figures(run))
    for column in ("arrival", "rate_asked_per_s", "arrivals", "rate_per_s", "late", "late_ms_p99", "dropped"):
        assert run.cells[column].isna().all(), column
        assert run.summary[column].isna().all(), column


def test_latency_figures_begin_when_a_request_was_due() -> None:
    import pandas as pd

    from loadgen.analysis.requests import COLUMNS, latencies_ms

    rows = [arrived(1100, [(1200, 1), (1250, 1)], late=30), answer(1100, [(1200, 1), (1250, 1)])]
    frame = pd.DataFrame(
        [{name: getattr(e, name, None) for name in COLUMNS} | {"t_last_ns": e.t_end_ns}
         for e in rows]
    )  # fmt: skip
    assert latencies_ms(frame, (0.0, 2e9))["ttft"].tolist() == [100.0, 100.0]
    assert latencies_ms(frame, (0.0, 2e9))["e2e"].tolist() == [150.0, 150.0]
