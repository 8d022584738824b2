"""Stored answers are graded again without a server, and what changed is told."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from made_run import answer, cell, ended, make_run, write_cell

from loadgen.analysis.analyse import analyse
from loadgen.analysis.run import Regraded, load_run, regrade
from loadgen.cli.regrade import command
from loadgen.errors import UsageError
from loadgen.workload.grading import VERSION
from loadgen.workload.item import Item, ItemFacts, read_facts, write_facts

ITEM = Item(id="m-0", question="how many ?", solution="so", gold="B", options=("1", "2"), accepted=("A", "B"), steps=3)


def one_cell(run_dir: Path, texts: list[str], *, items: dict[str, object], protocol: str = "gsm8k") -> Path:
    """A run of one cell whose answers, in order, are to item `q`; an empty text is a failed request."""
    make_run(run_dir, targets=["fp16"], concurrency=[1], repeats=1)
    (run_dir / "items.json").write_text(json.dumps(items))
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["protocol"]["name"] = protocol
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    (run_dir / "journal" / f"{cell().label}.jsonl").unlink()
    asked = [
        answer(1000 + 10 * k, [(1005 + 10 * k, 1)], item_id="q", text=text)
        if text
        else answer(1000 + 10 * k, end=1005 + 10 * k, item_id="q", status="http", error="503")
        for k, text in enumerate(texts)
    ]
    write_cell(run_dir, cell(), asked, end=ended())
    return run_dir


def set_outcomes(run_dir: Path, outcomes: list[str | None]) -> None:
    """As an older version with other rules would have left them."""
    path = run_dir / "requests.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("outcome")
    pq.write_table(table.set_column(at, "outcome", pa.array(outcomes, pa.string())), path)


def test_the_verdicts_stand_in_requests_parquet(tmp_path: Path) -> None:
    run_dir = one_cell(
        tmp_path / "run",
        ["#### 18", "#### 18.00", "about 17", "", "none"],
        items={"q": {"gold": "18", "steps": 4, "annotated_steps": 3}},
    )
    analyse(run_dir)
    requests = load_run(run_dir).requests
    columns = ["outcome", "answer", "correct", "extractor", "strict", "flexible", "correct_but_truncated", "steps"]
    assert requests[columns].astype(object).where(requests[columns].notna(), None).to_numpy().tolist() == [
        ["correct", "18", True, "hashes", True, True, False, 4],
        ["correct", "18", True, "hashes", False, False, False, 4],
        ["wrong", "17", False, "last_number", False, False, False, 4],
        ["error", None, None, None, None, None, False, 4],
        ["unparsed", None, False, None, False, False, False, 4],
    ]
    assert load_run(run_dir).cells["accuracy"].tolist() == [0.5], "a failed request is no answer"


def test_a_letter_protocol_has_no_verdicts_of_the_harness(tmp_path: Path) -> None:
    items = {"q": {"gold": "B", "options": ["1", "2"], "accepted": ["A", "B"]}}
    run_dir = one_cell(tmp_path / "run", ["The answer is (A)."], items=items, protocol="mathqa_gen_v1")
    analyse(run_dir)
    row = load_run(run_dir).requests.iloc[0]
    assert (row["outcome"], row["answer"], row["strict"], row["flexible"]) == ("correct", "A", None, None)


def test_regrade_counts_the_verdicts_that_changed_from_what_to_what(tmp_path: Path) -> None:
    run_dir = one_cell(tmp_path / "run", ["#### 18", "#### 18", "17", "", "none"], items={"q": "18"})
    analyse(run_dir)
    set_outcomes(run_dir, ["wrong", "wrong", "unparsed", None, "unparsed"])
    found = regrade(run_dir)
    assert (found.graded, found.changed) == (
        5,
        {("wrong", "correct"): 2, ("unparsed", "wrong"): 1, ("none", "error"): 1},
    )
    assert load_run(run_dir).requests["outcome"].tolist() == ["correct", "correct", "wrong", "error", "unparsed"]
    assert regrade(run_dir) == Regraded(5, {}, VERSION)


def test_what_another_version_read_is_told_answer_by_answer(tmp_path: Path) -> None:
    run_dir = one_cell(tmp_path / "run", ["#### 18", "The answer is 10-12.", "17"], items={"q": "18"})
    analyse(run_dir)
    assert load_run(run_dir).requests["grader"].tolist() == [VERSION] * 3
    set_outcomes(run_dir, ["correct", "wrong", "wrong"])
    path = run_dir / "requests.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["grader"]), path)
    found = regrade(run_dir)
    assert (found.before, found.now) == (1, VERSION)
    assert [(str(change.before), str(change.now), change.times) for change in found.changes] == [
        ("wrong", "unparsed", 1)
    ]
    set_outcomes(run_dir, ["correct", "wrong", "wrong"])
    printed = CliRunner().invoke(command, [str(run_dir), "--grader"], catch_exceptions=False).output
    assert f"grader {VERSION} → {VERSION}" in printed
    assert "     1  q: wrong → unparsed" in printed


def test_a_run_without_tables_is_graded_for_the_first_time(tmp_path: Path) -> None:
    assert regrade(make_run(tmp_path / "run", concurrency=[1])).changed is None
    assert (tmp_path / "run" / "summary.csv").exists()


def test_the_command_tells_it_and_rewrites_the_report(tmp_path: Path) -> None:
    run_dir = one_cell(tmp_path / "run", ["#### 18", "#### 18", "17"], items={"q": "18"})
    analyse(run_dir)
    set_outcomes(run_dir, ["wrong", "correct", "unparsed"])
    printed = CliRunner().invoke(command, [str(run_dir)], catch_exceptions=False).output
    assert printed.splitlines() == [
        "3 answers graded, 2 verdicts changed",
        "     1  wrong → correct",
        "     1  unparsed → wrong",
    ]
    assert (run_dir / "report.html").exists()


def test_answers_of_a_fixed_length_cannot_be_graded(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    manifest = json.loads((run_dir / "manifest.json").read_text())
    (run_dir / "manifest.json").write_text(json.dumps(manifest | {"graded": False}))
    with pytest.raises(UsageError, match="--fixed-length"):
        regrade(run_dir)
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        regrade(tmp_path)


def test_items_json_holds_what_grading_needs_and_no_question(tmp_path: Path) -> None:
    write_facts(tmp_path, [ITEM])
    assert json.loads((tmp_path / "items.json").read_text()) == {
        "m-0": {"gold": "B", "options": ["1", "2"], "accepted": ["A", "B"], "steps": 3}
    }
    facts = ItemFacts(gold="B", options=("1", "2"), accepted=("A", "B"), steps=3)
    assert read_facts(tmp_path) == {"m-0": facts}


def test_items_json_of_older_runs_holds_gold_alone(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text('{"q1": "5"}')
    assert read_facts(tmp_path) == {"q1": ItemFacts(gold="5")}
    (tmp_path / "items.json").write_text('{"q1": 5}')
    with pytest.raises(UsageError, match=r"items\.json does not hold the items of a run"):
        read_facts(tmp_path)
