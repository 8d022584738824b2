"""The end of a sweep in a terminal: few lines, none wider than the terminal, no number broken or invented, none best by
chance."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from made_run import make_run
from msgspec.structs import replace
from rich.console import Console

from loadgen.analysis.analyse import analyse
from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.estimate import Estimate
from loadgen.analysis.run import Run, load_run
from loadgen.reports.terminal import MOST_ROWS, MOST_TOLD, best_target, end_lines, print_end, table_lines

BATCHES = (1, 16, 64, 128)
PRECISIONS = ("fp16", "awq", "gptq", "bnb-nf4", "bnb-int8", "fp8", "gptq-int8", "bf16")


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """4 targets x 4 B x 2 repeats, simulated, with crossovers, energy per query, SI and trap as in a default sweep."""
    return rich_run(made(tmp_path_factory.mktemp("four") / "run", PRECISIONS[:4], simulated=True))


def made(run_dir: Path, targets: Sequence[str], *, simulated: bool = False, graded: bool = True) -> Run:
    make_run(run_dir, targets=targets, concurrency=BATCHES, repeats=2, simulated=simulated)
    manifest = json.loads((run_dir / "manifest.json").read_text())
    (run_dir / "manifest.json").write_text(json.dumps(manifest | {"graded": graded}))
    analyse(run_dir)
    return load_run(run_dir)


def rich_run(run: Run) -> Run:
    """The same run with joules in its summary and an answer to everything, as a metered run has."""
    run.summary["tokens_per_s"] = [157.0, 2431.2, 8211.4, 11978.0] * (len(run.summary) // 4)
    run.summary["energy_per_query_j"] = [178.0, 13.7, 5.034, 3.6] * (len(run.summary) // 4)
    one = Crossing(b=33.0, lo=27.0, hi=39.0, bracket=(16, 64), direction="wins_below", probability=1.0,
                   established=True)  # fmt: skip

    def crossing(found: Crossover) -> Crossover:
        less, more = ("faster", "slower") if found.metric == "tokens_per_s" else ("less", "more")
        return replace(
            found, status="crosses", crossings=(one,), suspected=(), refusal=None,
            brief=f"{less} B ≤ 16, {more} B ≥ 64 (B* 33, CI 27–39, if no step)",
            sentence="the result in so many words " * 10,
        )  # fmt: skip

    trap = "no at B ≤ 16 (SI 1.21 to 1.46), yes at B = 64–128 (SI 0.84 to 0.92)"
    brief = "no at B ≤ 16, yes at B = 64–128"
    run.analysis = replace(
        run.analysis,
        crossovers=tuple(map(crossing, run.analysis.crossovers)),
        indices=tuple(replace(entry, si=Estimate(value=0.9, lo=0.8, hi=0.95)) for entry in run.analysis.indices),
        traps=tuple(replace(found, sentence=trap, brief=brief) for found in run.analysis.traps),
    )
    return run


def told(lines: Sequence[str]) -> int:
    """Lines of answers and warnings."""
    first = next(k for k, line in enumerate(lines) if " against fp16" in line)
    return len(lines) - first - 1 - sum(line.startswith("+") for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_default_sweep_is_told_in_few_lines_of_the_terminals_width(four: Run, width: int) -> None:
    lines = end_lines(four, width)
    assert told(lines) <= MOST_TOLD
    assert [line for line in lines[:-1] if len(line) > width] == []
    assert lines[-1] == f"Report: {four.path / 'report.html'}"


def test_at_80_columns_every_target_has_energy_throughput_trap_and_accuracy(four: Run) -> None:
    text = "\n".join(end_lines(four, 80))
    assert text.count("  energy per query   less B ≤ 16, more B ≥ 64 (B* 33, CI 27–39, if no step)\n") == 3
    assert text.count("  throughput         faster B ≤ 16, slower B ≥ 64 (B* 33, CI 27–39, if no step)\n") == 3
    assert text.count("  trap               no at B ≤ 16, yes at B = 64–128\n") == 3
    assert text.count("  accuracy           at B = 128 ") == 3


def test_terms_are_explained_before_they_are_used_and_only_then(four: Run) -> None:
    lines = end_lines(four, 80)
    place = lines.index("B*: break-even B. SI: accuracy, speed, energy in one, fp16 = 1. Trap: SI < 1.")
    assert not any("trap" in line or "B*" in line for line in lines[:place])


NOT_MEASURED = dict.fromkeys(
    ("running_mean", "tokens_per_s", "tokens_per_s_lo", "tokens_per_s_hi", "ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50",
     "e2e_ms_p50", "e2e_ms_p99", "power_w_mean", "energy_per_token_j", "energy_per_token_j_lo", "energy_per_token_j_hi",
     "energy_per_query_j", "energy_per_query_j_lo", "energy_per_query_j_hi", "goodput_per_s", "goodput_per_s_lo",
     "goodput_per_s_hi", "goodput_share", "accuracy", "accuracy_lo", "accuracy_hi", "questions", "latency_valid",
     "energy_valid", "answers_valid"),
    float("nan"),
)  # fmt: skip


def summary_of(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """Rows of summary.csv with 3 valid repeats, in which nothing else was measured."""
    usual = NOT_MEASURED | {
        "arrival": None,
        "repeats": 3,
        "valid": 3,
        "requests": 600,
        "concurrency": 1,
        "running_mean": 1.0,
    }
    return pd.DataFrame([usual | row for row in rows])


def table_of(rows: Sequence[dict[str, object]], width: int = 120) -> list[str]:
    return table_lines(summary_of(rows), width, simulated=False)


def test_the_table_says_which_statistic_a_figure_is_and_of_how_many(four: Run) -> None:
    head, statistics = end_lines(four, 200)[1:3]
    for figure, statistic in (("tok/s", "mean"), ("TTFT ms", "p50"), ("J/query", "mean"), ("requests", "n")):
        end = head.index(figure) + len(figure)
        assert statistics[:end].endswith(statistic), figure
    assert "p99" in statistics
    text = " ".join(end_lines(four, 200))
    assert "mean, p50, p99: of each repeat's window, averaged over 2 repeats; n: requests in all windows." in text
    assert "A p99 of fewer than 100 requests is about the slowest." in text


def test_the_arms_of_a_b_stand_below_each_other(four: Run) -> None:
    lines = end_lines(four, 80)
    place = next(k for k, line in enumerate(lines) if line.split()[:2] == ["16", "fp16"])
    assert [line.split()[0] for line in lines[place + 1 : place + 4]] == ["awq", "gptq", "bnb-nf4"]
    assert lines[place + 4].split()[:2] == ["64", "fp16"]


def arms(*intervals: tuple[float, float]) -> list[dict[str, object]]:
    """Targets a, b, ... at B = 1 with these intervals of tokens/s."""
    return [
        {"target": name, "tokens_per_s": (lo + hi) / 2, "tokens_per_s_lo": lo, "tokens_per_s_hi": hi}
        for name, (lo, hi) in zip("abcd", intervals, strict=False)
    ]


def test_the_best_arm_is_marked_where_its_interval_lies_beyond_all_others() -> None:
    decided, overlapping = arms((90, 110), (120, 130), (60, 95)), arms((90, 110), (105, 130), (60, 95))
    assert best_target(decided, "tokens_per_s", highest=True) == "b"
    assert best_target(decided, "tokens_per_s", highest=False) is None, "c may be as low as a"
    assert best_target(overlapping, "tokens_per_s", highest=True) is None
    lines = table_of(decided)
    assert [line for line in lines if "125* " in line] == [lines[3]]
    assert "* best at its B: 95% interval apart from all others." in " ".join(lines)
    assert "No best is marked: 95% intervals overlap or are not known." in " ".join(table_of(overlapping))


def test_none_is_best_where_one_arm_is_not_known_at_that_b() -> None:
    rows = arms((90, 110), (120, 130))
    assert "*" not in "".join(table_of([*rows, {"target": "c"}]))
    assert "*" not in "".join(table_of([*rows, {"target": "c", "concurrency": 2}])), "c has no cell at B = 1"
    single = [row | {"repeats": 1, "valid": 1} for row in arms((float("nan"),) * 2, (float("nan"),) * 2)]
    assert "No best is marked: one repeat has no interval." in " ".join(table_of(single))
    assert "best" not in "".join(table_of(rows[:1])), "one arm alone"


def test_what_a_narrow_terminal_leaves_out_is_named(four: Run) -> None:
    assert "Left out" not in "".join(end_lines(four, 200))
    for width in (60, 80):
        text = " ".join(table_lines(four.summary, width, simulated=True))
        assert f"Left out at {width} columns: E2E ms p50, E2E ms p99" in text
        assert "--format csv and report.html have all." in text


def test_of_many_rows_the_b_that_are_left_out_are_named() -> None:
    """8 arms at 7 B: 4 B fit, the first and the last among them."""
    rows = [{"target": f"t{k}", "concurrency": 2**b, "tokens_per_s": 100.0} for b in range(7) for k in range(8)]
    lines = table_of(rows, 80)
    shown = [line.split()[0] for line in lines if line.split()[1:2] == ["t0"]]
    assert shown == ["1", "4", "16", "64"]
    assert sum("100" in line for line in lines) == MOST_ROWS
    assert "Left out at 80 columns: B = 2, 8, 32; --format csv and report.html have all." in lines


def test_quantities_with_fewer_valid_repeats_are_named_in_the_row() -> None:
    rows = [
        {"target": "a", "answers_valid": 3.0, "energy_valid": 3.0},
        {"target": "b", "answers_valid": 3.0, "energy_valid": 1.0},
        {"target": "c", "answers_valid": 3.0, "energy_valid": 0.0, "valid": 2},
    ]
    lines = table_of(rows)
    assert [line.split("600")[1].strip() for line in lines[2:5]] == ["", "3/3, energy 1/3", "2/3, energy 0/3"]


def test_an_accuracy_of_few_questions_is_a_count() -> None:
    """29 questions, 30 questions, and repeats that disagree on one of three."""
    asked = [("a", 20 / 29, 29), ("b", 2 / 3, 30), ("c", 1.5 / 3, 3)]
    lines = table_of([{"target": name, "accuracy": share, "questions": n} for name, share, n in asked])
    assert [line.split()[-2] for line in lines[2:5]] == ["20/29", "66.7", "1.5/3"]


def test_a_wider_terminal_shows_more(four: Run) -> None:
    assert "E2E" not in "".join(end_lines(four, 80)[3:20])
    assert "E2E ms" in "".join(end_lines(four, 200))
    trap = "  trap               no at B ≤ 16 (SI 1.21 to 1.46), yes at B = 64–128 (SI 0.84 to 0.92)"
    assert end_lines(four, 120).count(trap) == 3, "its label is the only word for it"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_figure_is_cut(four: Run, width: int) -> None:
    lines = table_lines(four.summary, width, simulated=True)
    assert [line for line in lines if len(line) > width] == []
    words = {word for line in lines for word in line.split()}
    assert {"157", "2,431", "8,211", "11,978", "178", "13.7", "5.03", "3.60"} <= words


def test_every_block_of_a_simulated_run_says_so(four: Run) -> None:
    lines = end_lines(four, 80)
    assert lines[0].startswith("SIMULATED")
    (table,) = (k for k, line in enumerate(lines) if line.split()[:2] == ["B", "target"])
    assert lines[table - 1].split()[0] == "SIMULATED"
    headings = [line for line in lines if " against fp16" in line and not line.startswith((" ", "!"))]
    assert len(headings) == 3
    assert all(line.endswith("(SIMULATED)") for line in headings)


def test_what_does_not_fit_is_counted(four: Run) -> None:
    """At 80 columns 4 of 8 answers to each of 3 targets are told, and 1 of 40 long warnings of two lines at least."""
    before = four.analysis
    four.analysis = replace(before, warnings=("a reason that goes on " * 10,) * 40)
    lines = end_lines(four, 80)
    four.analysis = before
    assert told(lines) <= MOST_TOLD
    shown = sum(line.startswith("! ") for line in lines)
    assert shown >= 1
    assert lines[-2] == f"+9 more answers, +{40 - shown} more warnings in report.html"


def test_one_target_alone_has_nothing_to_be_held_against(tmp_path: Path) -> None:
    text = "\n".join(end_lines(made(tmp_path / "run", ["fp16"]), 80))
    assert "against" not in text
    assert "1 target × B 1, 16, 64, 128 × 2 repeats · 8 of 8 cells valid" in text.replace("\n", " ")
    assert "SIMULATED" not in text


def test_eight_targets_fit_with_one_answer_each_at_least(tmp_path: Path) -> None:
    lines = end_lines(rich_run(made(tmp_path / "run", PRECISIONS)), 80)
    assert told(lines) <= MOST_TOLD
    assert max(map(len, lines[:-1])) <= 80
    for target in PRECISIONS[1:]:
        assert any(line.startswith(f"{target} against fp16") for line in lines), target


def test_without_energy_and_grades_there_is_neither_a_column_nor_a_sentence_of_them(tmp_path: Path) -> None:
    run = made(tmp_path / "run", ["fp16", "awq"], graded=False)
    content = json.loads((run.path / "manifest.json").read_bytes())
    content["power"] = {"kind": "none", "reason": "no GPU here"}
    (run.path / "manifest.json").write_text(json.dumps(content))
    run = load_run(run.path)
    text = "\n".join(end_lines(run, 80))
    assert "tok/s" in text
    assert not re.search(r"J/query|right|energy per|accuracy|trap", text)
    assert "! energy not measured: no GPU here" in text


def test_a_figure_that_one_target_lacks_leaves_a_gap() -> None:
    rows = [
        {"target": "fp16", "tokens_per_s": 150.0, "running_mean": 1.0},
        {"target": "fp16", "tokens_per_s": 290.0, "running_mean": 2.0, "concurrency": 2},
        {"target": "awq", "running_mean": 2.0, "concurrency": 2},
    ]
    assert table_of(rows, 40)[:5] == [
        "           running  tok/s  requests",
        "B  target     mean   mean         n",
        "1  fp16       1.00    150       600",
        "2  fp16       2.00    290       600",
        "   awq        2.00              600",
    ]


def test_piped_output_is_plain_text_line_by_line(four: Run) -> None:
    piped = io.StringIO()
    print_end(four, Console(file=piped, width=80))
    assert "\x1b" not in piped.getvalue()
    assert piped.getvalue().splitlines() == end_lines(four, 80)
