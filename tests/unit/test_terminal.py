"""The end of a sweep in a terminal: at most 30 lines, none wider than the terminal, no number broken or invented."""

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
from loadgen.reports.terminal import MOST_LINES, end_lines, grid_lines, print_end

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


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_default_sweep_is_told_in_thirty_lines_of_the_terminals_width(four: Run, width: int) -> None:
    lines = end_lines(four, width)
    assert len(lines) <= MOST_LINES
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


def test_an_accuracy_of_few_questions_is_a_count() -> None:
    """29 questions, 30 questions, and repeats that disagree on one of three."""
    summary = pd.DataFrame(
        {"target": ["a", "b", "c"], "concurrency": [1] * 3, "accuracy": [20 / 29, 2 / 3, 1.5 / 3],
         "questions": [29, 30, 3], "running_mean": [1.0] * 3}
        | dict.fromkeys(("tokens_per_s", "energy_per_query_j", "goodput_per_s", "goodput_share", "tpot_ms_p50",
                         "ttft_ms_p50", "power_w_mean"), [float("nan")] * 3)
    )  # fmt: skip
    lines = grid_lines(summary, "a", 80, simulated=False)
    assert [line.split("│")[1].strip() for line in lines[2:5]] == ["20/29", "66.7", "1.5/3"]


def test_a_wider_terminal_shows_more(four: Run) -> None:
    assert "TPOT" not in "".join(end_lines(four, 80))
    assert "TPOT ms" in "".join(end_lines(four, 200))
    told = "  trap               no at B ≤ 16 (SI 1.21 to 1.46), yes at B = 64–128 (SI 0.84 to 0.92)"
    assert end_lines(four, 120).count(told) == 3, "its label is the only word for it"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_figure_is_cut_wherever_the_table_breaks(four: Run, width: int) -> None:
    lines = grid_lines(four.summary, "fp16", width, simulated=True)
    assert [line for line in lines if len(line) > width] == []
    of_awq = [word for line in lines if line.startswith("awq ") for word in line.split()[1:] if word != "│"]
    assert of_awq[:8] == ["157", "2,431", "8,211", "11,978", "178", "13.7", "5.03", "3.60"]


def test_every_block_of_a_simulated_run_says_so(four: Run) -> None:
    lines = end_lines(four, 80)
    assert lines[0].startswith("SIMULATED")
    tables = [k for k, line in enumerate(lines) if line.startswith("B ")]
    assert tables
    assert all(lines[k - 1].startswith("SIMULATED") for k in tables)
    headings = [line for line in lines if " against fp16" in line and not line.startswith((" ", "!"))]
    assert len(headings) == 3
    assert all(line.endswith("(SIMULATED)") for line in headings)


def test_what_does_not_fit_is_counted(four: Run) -> None:
    """At 80 columns 4 of 8 answers to each of 3 targets are told, and 1 of 40 long warnings of two lines at least."""
    before = four.analysis
    four.analysis = replace(before, warnings=("a reason that goes on " * 10,) * 40)
    lines = end_lines(four, 80)
    four.analysis = before
    assert len(lines) <= MOST_LINES
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
    assert len(lines) <= MOST_LINES
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
    assert not re.search(r"J/query|right %|energy per|accuracy|trap", text)
    assert "! energy not measured: no GPU here" in text


def test_a_figure_that_one_target_lacks_leaves_a_gap() -> None:
    summary = pd.DataFrame({
        "target": ["fp16", "fp16", "awq"], "concurrency": [1, 2, 2], "running_mean": [1.0, 2.0, 2.0],
        "tokens_per_s": [150.0, 290.0, float("nan")], "energy_per_query_j": float("nan"), "accuracy": float("nan"),
        "tpot_ms_p50": float("nan"), "ttft_ms_p50": float("nan"), "power_w_mean": float("nan"),
        "goodput_per_s": float("nan"), "goodput_share": float("nan"),
    })  # fmt: skip
    assert grid_lines(summary, "fp16", 40, simulated=False) == [
        "     │   tok/s │   running",
        "B    │   1   2 │    1    2",
        "fp16 │ 150 290 │ 1.00 2.00",
        "awq  │         │      2.00",
    ]


def test_piped_output_is_plain_text_line_by_line(four: Run) -> None:
    piped = io.StringIO()
    print_end(four, Console(file=piped, width=80))
    assert "\x1b" not in piped.getvalue()
    assert piped.getvalue().splitlines() == end_lines(four, 80)
