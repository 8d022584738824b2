"""Two runs side by side: the second over the first, by target, metric and B."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from made_models import GPU, SLOPE, model_run
from made_run import answer, cell, ended, scrape, write_cell
from rich.console import Console
from scipy import stats

import loadgen
from loadgen.analysis.compare.difference import Difference, RunDifference
from loadgen.analysis.estimate import rate_ratio
from loadgen.reports.compare import print_comparison

SLOWER = 0.5**SLOPE
"""awq of a run whose N* is twice as large, over awq of one whose N* is its own size."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The second: a new driver, an awq that makes 0.81 times as many tokens, and one B more."""
    folder = tmp_path_factory.mktemp("two")
    before = model_run(folder / "before", parameters=7e9, n_star=7e9, gpus=[GPU | {"driver": "570.1"}])
    after = model_run(
        folder / "after", parameters=7e9, n_star=14e9, concurrency=(1, 2), gpus=[GPU | {"driver": "580.2"}]
    )
    return before, after


@pytest.fixture(scope="module")
def pair(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDifference, Path]:
    out = tmp_path_factory.mktemp("out")
    found = loadgen.compare(*runs, out=out).pair
    assert found is not None
    return found, out


def of(pair: RunDifference, target: str, metric: str) -> Difference:
    (found,) = [one for one in pair.differences if (one.target, one.metric) == (target, metric)]
    return found


def test_a_ratio_has_the_interval_of_independent_repeats(pair: tuple[RunDifference, Path]) -> None:
    """Logarithms 1% apart in three repeats each: an error of 0.01 x sqrt(2 / 3), four degrees, t = 2.776."""
    awq, fp16 = (of(pair[0], target, "tokens_per_s") for target in ("awq", "fp16"))
    half = stats.t.ppf(0.975, 4) * 0.01 * math.sqrt(2 / 3)
    assert awq.change.value == pytest.approx(SLOWER, rel=1e-3)
    for one in (awq, fp16):
        assert one.change.lo is not None and one.change.hi is not None
        assert math.log(one.change.hi / one.change.lo) == pytest.approx(2 * half, rel=0.02)
    assert (awq.verdict, fp16.verdict) == ("lower", "not decided")
    assert (awq.first, awq.second, awq.n_first, awq.n_second) == (pytest.approx(1000), pytest.approx(812, abs=1), 3, 3)


def test_welch_over_unequal_numbers_of_repeats() -> None:
    first, second = [100.0, 103.0, 99.0, 108.0], [131.0, 125.0]
    found = rate_ratio(second, first)
    ends = stats.ttest_ind(np.log(second), np.log(first), equal_var=False).confidence_interval()
    assert (found.lo, found.hi) == (pytest.approx(math.exp(ends.low)), pytest.approx(math.exp(ends.high)))
    assert rate_ratio([2.0], first).lo is None
    assert rate_ratio([2.0, 2.0], [1.0, 1.0]).lo == pytest.approx(2.0)


def test_what_differs_and_what_is_in_one_run_only_is_said(pair: tuple[RunDifference, Path]) -> None:
    assert [(c.what, c.first, c.second) for c in pair[0].differs] == [("driver", "570.1", "580.2")]
    assert pair[0].missing == ("only in after: awq, fp16 at B = 2",)


def test_the_page_has_the_figure_the_table_and_the_reservations(pair: tuple[RunDifference, Path]) -> None:
    page = (pair[1] / "compare.html").read_text()
    assert "<h1>loadgen compare: after against before</h1>" in page
    assert "awq: tok/s is lower in after at B = 1 (× 0.812)" in page
    (table,) = re.findall(r'aria-label="Differences".*?</table>', page)
    assert "0.794 to 0.830" in table
    assert "awq · B = 1: tok/s, ratio 0.812 (0.794 to 0.830), n = 3 and 3 repeats" in page
    for said in ("What differs between the runs", "580.2", "only in after: awq, fp16 at B = 2"):
        assert said in page
    assert (pair[1] / "figures" / "difference.svg").exists()
    stored = json.loads((pair[1] / "compare.json").read_text())["pair"]
    assert (stored["first"], stored["second"], stored["refusal"]) == ("before", "after", None)


def test_the_terminal_says_what_is_decided(runs: tuple[Path, Path]) -> None:
    text = io.StringIO()
    print_comparison(loadgen.compare(*runs), Console(width=100, file=text))
    said = text.getvalue()
    assert "after against before" in said
    assert "awq: tok/s is lower in after at B = 1 (× 0.812)" in said
    assert "what differs: driver: 570.1 and 580.2" in said


def test_three_runs_have_no_difference(runs: tuple[Path, Path], tmp_path: Path) -> None:
    third = model_run(tmp_path / "third", parameters=7e9, n_star=7e9)
    assert loadgen.compare(*runs, third).pair is None


def test_answers_are_compared_question_by_question(tmp_path: Path) -> None:
    """Twelve questions; the second run gets four more right: a third, and the other run's 4 of 12 are the same."""
    rights = {"few": 4, "more": 8}
    for name, right in rights.items():
        run = model_run(tmp_path / name, parameters=7e9, n_star=7e9)
        (run / "items.json").write_text(json.dumps({f"q{k}": "5" for k in range(12)}))
        for path in (run / "journal").glob("*.jsonl"):
            path.unlink()
        for target in ("fp16", "awq"):
            asked = [
                answer(900, [(1000 + k, 1), (1050 + k, 1)], item_id=f"q{k}", text=f"#### {5 if k < right else 6}")
                for k in range(12)
            ]
            samples = [scrape(1100, running=1.0, waiting=0.0), scrape(1900, running=1.0, waiting=0.0)]
            write_cell(run, cell(1, target=target), asked, samples, ended())
    pair = loadgen.compare(*(tmp_path / name for name in rights)).pair
    assert pair is not None
    found = of(pair, "awq", "accuracy")
    assert (found.first, found.second, found.n_first) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 12)
    assert found.change.value == pytest.approx(1 / 3)
    assert found.verdict == "higher"


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"dataset": "gsm8k"}, "dataset: sample"), ({"simulated": True}, "origin: measured and SIMULATED")],
)
def test_runs_that_measured_different_things_are_not_compared_and_it_says_why(
    runs: tuple[Path, Path], tmp_path: Path, changed: dict[str, bool], why: str
) -> None:
    other = model_run(tmp_path / "other", parameters=7e9, n_star=7e9, **changed)  # type: ignore[arg-type]
    found = loadgen.compare(runs[0], other, out=tmp_path / "out").pair
    assert found is not None
    assert found.refusal is not None
    assert why in found.refusal
    assert found.differences == ()
    assert f"Not compared: {found.refusal}." in (tmp_path / "out" / "compare.html").read_text()
    assert not (tmp_path / "out" / "figures" / "difference.svg").exists()
