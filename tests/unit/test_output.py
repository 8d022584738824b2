"""The result of a command on stdout in each of its formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_run import make_run

from loadgen import cli, compare, report
from loadgen.analysis.run import Run
from loadgen.reports.output import write_comparison, write_run

TARGETS = ("fp16", "awq")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return report(make_run(tmp_path_factory.mktemp("output") / "run", targets=TARGETS, concurrency=(1, 4), repeats=2))


Capture = pytest.CaptureFixture[str]


def test_csv_is_the_file(run: Run) -> None:
    done = CliRunner().invoke(cli.group, ["report", str(run.path), "--format", "csv"], catch_exceptions=False)
    assert (done.exit_code, done.stdout) == (0, (run.path / "summary.csv").read_text())


def test_json_has_the_rows_with_null_for_what_was_not_measured_and_the_analysis(run: Run, capsys: Capture) -> None:
    write_run(run, "json")
    shown = capsys.readouterr()
    content = json.loads(shown.out)
    assert [(row["target"], row["concurrency"]) for row in content["summary"]] == [
        (target, b) for target in TARGETS for b in (1, 4)
    ]
    first = next(csv.DictReader((run.path / "summary.csv").read_text().splitlines()))
    for name, value in content["summary"][0].items():
        assert (value is None) == (first[name] == ""), name
    assert content["summary"][0]["energy_per_query_j"] is None, "no power was measured"
    assert content["analysis"] == json.loads((run.path / "analysis.json").read_text())
    assert (content["run"], content["simulated"]) == (str(run.path), False)
    assert shown.err == f"Report: {run.path / 'report.html'}\n", "which is not the result"


def test_markdown_has_every_column_and_the_answers(run: Run, capsys: Capture) -> None:
    write_run(run, "markdown")
    lines = capsys.readouterr().out.splitlines()
    head, rule, *rows = (line.strip("|").split("|") for line in lines if line.startswith("|"))
    assert [cell.strip() for cell in head][:4] == ["B", "target", "running mean", "tok/s mean"]
    assert set("".join(rule)) <= set(" -:")
    assert len(rows) == 4
    assert {len(row) for row in rows} == {len(head)}
    assert "- awq against fp16" in lines
    assert any(line.startswith("  - throughput ") for line in lines)


def test_a_comparison_has_the_same_formats(run: Run, tmp_path: Path, capsys: Capture) -> None:
    comparison = compare(run.path, out=tmp_path)
    write_comparison(comparison, "csv")
    assert capsys.readouterr().out == (tmp_path / "compare.csv").read_text()
    write_comparison(comparison, "json")
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "compare.json").read_text())
    write_comparison(comparison, "markdown")
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(comparison.rows)


def test_a_format_that_is_not_known_is_refused_before_anything_is_done(run: Run) -> None:
    done = CliRunner().invoke(cli.group, ["report", str(run.path), "--format", "xml"])
    assert str(done.exception) == "--format xml: unknown; write table or json or csv or markdown"
