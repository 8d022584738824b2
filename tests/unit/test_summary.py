"""Rows of summary.csv: means over valid repeats, intervals, and nothing where nothing was measured."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_run import MS, answer, cell_data
from scipy import stats

from loadgen.analysis.cells import CellSummary, summarize_cell
from loadgen.analysis.estimate import rate_interval, wilson_interval
from loadgen.analysis.indices.study import IndexStudy
from loadgen.analysis.tables import COLUMNS, Row, write_summary
from loadgen.analysis.tables import summarize as summarize_with
from loadgen.analysis.trust.answers import Answers, GradedAnswer
from loadgen.analysis.trust.study import TrustStudy
from loadgen.analysis.validity import Validity

DESIGN = """
target, precision, concurrency, repeats, valid, requests, errors, window_s, output_tokens, tokens_per_s,
tokens_per_s_lo, tokens_per_s_hi, inflight_mean, running_mean, ttft_ms_mean, ttft_ms_p50, ttft_ms_p90, ttft_ms_p99,
itl_ms_mean, itl_ms_p50, itl_ms_p99, tpot_ms_mean, tpot_ms_p50, tpot_ms_p99, e2e_ms_mean, e2e_ms_p50, e2e_ms_p99,
energy_j, power_w_mean, energy_per_token_j, energy_per_token_j_lo, energy_per_token_j_hi, energy_per_query_j,
energy_per_query_j_lo, energy_per_query_j_hi, energy_hli_per_query_j, energy_per_correct_j, output_tokens_mean,
accuracy, accuracy_lo, accuracy_hi, truncated_rate, unparsed_rate, cor, t_si, e_si, s_si, si, simulated
""".replace(",", " ").split()
UNMEASURED = [name for name in DESIGN if name.startswith(("energy", "power"))]
UNMEASURED += ["cor", "t_si", "e_si", "s_si", "si"]

INVALID = Validity(load=("the server died",), energy=())


def summarize(cells: list[CellSummary], answers: dict[tuple[str, int], Answers], **trust: Any) -> list[Row]:
    return summarize_with(cells, answers, TrustStudy(**trust), IndexStudy())


def answered(**shares: float) -> Answers:
    """Four answers to each item, of which that share is right."""
    right, wrong = (
        GradedAnswer(repeat=1, outcome="correct", correct=True),
        GradedAnswer(repeat=1, outcome="wrong", correct=False),
    )
    return {item: [right] * round(4 * share) + [wrong] * (4 - round(4 * share)) for item, share in shares.items()}


@pytest.fixture
def base(tmp_path: Path) -> CellSummary:
    """A cell of one measured answer, taken for valid."""
    data = cell_data(tmp_path, [answer(1100, [(1200, 1), (1300, 1)])])
    return msgspec.structs.replace(summarize_cell(data, [None]), validity=Validity(energy=()))


def test_the_columns_are_the_designs_in_the_designs_order() -> None:
    assert [name for name in COLUMNS if name in DESIGN] == DESIGN
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_interval_of_a_rate_against_the_table() -> None:
    """On logarithms; t(0.975) is 12.7062 for 1 and 4.30265 for 2 degrees of freedom."""
    e = math.e
    assert rate_interval([e**1, e**3]) == pytest.approx((e ** (2 - 12.7062), e ** (2 + 12.7062)), rel=1e-4)
    half = 4.30265 / 3**0.5
    assert rate_interval([e**1, e**2, e**3]) == pytest.approx((e ** (2 - half), e ** (2 + half)), rel=1e-4)
    assert rate_interval([5.0, 5.0]) == pytest.approx((5.0, 5.0))


def test_interval_of_a_rate_is_students_on_logarithms() -> None:
    rates = [3.0, 4.5, 4.0, 7.0, 5.5]
    logs = [math.log(rate) for rate in rates]
    low, high = stats.t.interval(0.95, 4, loc=sum(logs) / 5, scale=stats.sem(logs))
    assert rate_interval(rates) == pytest.approx((math.exp(low), math.exp(high)))


@pytest.mark.parametrize("values", [[], [3.0]])
def test_one_repeat_has_no_interval(values: list[float]) -> None:
    assert rate_interval(values) == (None, None)


def test_wilsons_interval_of_569_out_of_1319() -> None:
    assert [round(100 * bound, 2) for bound in wilson_interval(569, 1319)] == [40.49, 45.83]


def test_wilsons_interval_at_the_ends() -> None:
    """At no success the upper bound is z^2 / (n + z^2); with z = 1.959964 and n = 10: 3.841459 / 13.841459."""
    assert wilson_interval(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((10 / 13.841459, 1.0), abs=1e-6)


@pytest.mark.parametrize(("k", "n"), [(1, 7), (64, 128), (569, 1319)])
def test_wilsons_interval_is_the_one_of_scipy(k: int, n: int) -> None:
    other = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(k, n) == pytest.approx((other.low, other.high))


def with_(base: CellSummary, **fields: object) -> CellSummary:
    return msgspec.structs.replace(base, **fields)


def test_figures_are_means_over_valid_repeats_and_counts_are_sums(base: CellSummary) -> None:
    cells = [
        with_(base, repeat=1, tokens_per_s=10.0, output_tokens=100, requests=5, ttft_ms_p99=4.0),
        with_(base, repeat=2, tokens_per_s=12.0, output_tokens=120, requests=6, ttft_ms_p99=8.0),
        with_(base, repeat=3, tokens_per_s=99.0, output_tokens=990, requests=50, ttft_ms_p99=99.0, validity=INVALID),
    ]
    (row,) = summarize(cells, {})
    assert (row["repeats"], row["valid"]) == (3, 2)
    assert (row["tokens_per_s"], row["output_tokens"], row["requests"]) == (11.0, 220, 11)
    assert row["ttft_ms_p99"] == 6.0
    half = 12.7062 * math.log(12 / 10) / 2
    assert row["tokens_per_s_lo"] == pytest.approx(math.sqrt(10 * 12) * math.exp(-half), rel=1e-4)


def test_without_a_valid_cell_only_the_diagnosis_stands(base: CellSummary) -> None:
    cells = [with_(base, validity=INVALID, running_mean=8.0, inflight_mean=16.0, tokens_per_s=50.0)]
    (row,) = summarize(cells, {})
    assert (row["valid"], row["running_mean"], row["inflight_mean"], row["window_s"]) == (0, 8.0, 16.0, 1.0)
    for name in ("tokens_per_s", "tokens_per_s_lo", "output_tokens", "ttft_ms_p50", "accuracy", "accuracy_lo"):
        assert row[name] is None, name


def test_accuracy_is_over_items_however_often_each_was_answered(base: CellSummary) -> None:
    (row,) = summarize([base], {("fp16", 1): answered(a=1.0, b=0.5, c=0.0, d=0.0)})
    assert row["accuracy"] == 0.375
    assert (row["accuracy_lo"], row["accuracy_hi"]) == wilson_interval(1.5, 4)


def test_answers_stand_whatever_is_wrong_with_the_cells_rates(base: CellSummary) -> None:
    (row,) = summarize([with_(base, validity=INVALID)], {("fp16", 1): answered(a=1.0, b=0.0)})
    assert (row["accuracy"], row["tokens_per_s"]) == (0.5, None)


def test_joules_per_correct_answer_are_those_per_query_over_the_accuracy(base: CellSummary) -> None:
    cells = [
        with_(base, repeat=k, energy=msgspec.structs.replace(base.energy, energy_per_query_j=joules))
        for k, joules in enumerate((9.0, 11.0), start=1)
    ]
    (row,) = summarize(cells, {("fp16", 1): answered(**{f"q{k}": float(k % 4 == 0) for k in range(40)})})
    assert row["energy_per_correct_j"] == pytest.approx(10 / 0.25)
    low, high = row["energy_per_correct_j_lo"], row["energy_per_correct_j_hi"]
    assert isinstance(low, float) and isinstance(high, float)
    assert low < 40 < high
    (none,) = summarize(cells, {("fp16", 1): answered(a=0.0)})
    assert none["energy_per_correct_j"] is None


def test_rows_keep_the_order_of_targets_and_sort_by_concurrency(base: CellSummary) -> None:
    cells = [with_(base, target=t, concurrency=b) for t, b in (("fp16", 16), ("awq", 16), ("awq", 1), ("fp16", 1))]
    rows = summarize(cells, {})
    assert [(row["target"], row["concurrency"]) for row in rows] == [
        ("fp16", 1), ("fp16", 16), ("awq", 1), ("awq", 16),
    ]  # fmt: skip
    assert all(tuple(row) == COLUMNS for row in rows)


def test_unmeasured_columns_are_empty_in_the_file(tmp_path: Path, base: CellSummary) -> None:
    write_summary(tmp_path, summarize([base], {}))
    with (tmp_path / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == list(COLUMNS)
    for name in [*UNMEASURED, "accuracy", "accuracy_lo", "tokens_per_s_lo", "running_mean"]:
        assert row[name] == "", name
    assert float(row["ttft_ms_mean"]) == 100 * MS / 1e6
