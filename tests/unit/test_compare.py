"""`loadgen compare`: several run directories in, one comparison out."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_models import GPU, model_run
from rich.console import Console
from test_compare_imports import VLLM

import loadgen
from loadgen.analysis.compare.comparison import RunComparison
from loadgen.analysis.compare.row import CompareRow
from loadgen.cli import main
from loadgen.errors import UsageError
from loadgen.reports.compare import print_comparison

SIZES = {"small": 1e9, "middle": 4e9, "large": 16e9}
N_STAR = 6e9
DOCS = Path(__file__).parents[2] / "docs" / "compare.md"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    folder = tmp_path_factory.mktemp("runs")
    yield [model_run(folder / name, parameters=size, n_star=N_STAR) for name, size in SIZES.items()]


@pytest.fixture(scope="module")
def compared(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunComparison, Path]:
    out = tmp_path_factory.mktemp("out") / "compared"
    return loadgen.compare(*runs, out=out), out


def test_n_star_of_real_run_directories(compared: tuple[RunComparison, Path]) -> None:
    """Tokens/s by (N / 6B) ^ 0.3 of the reference's, whole tokens: within 1% of a straight line, so N* within 4%."""
    (found,) = compared[0].n_stars
    (crossing,) = found.crossings
    assert crossing.n == pytest.approx(N_STAR, rel=0.04)
    assert crossing.lo is not None and crossing.hi is not None
    assert 4e9 < crossing.lo < N_STAR < crossing.hi < 16e9
    assert crossing.direction == "wins_above"
    assert compared[0].claims[0].verdict == "supported"
    assert str(found.stratum) == "awq against fp16 at B = 1, A100 × 1, sample"


def test_every_target_is_a_row_with_its_cor(compared: tuple[RunComparison, Path]) -> None:
    """1 + COR = 6 ^ 0.3 = 1.712 at 1B."""
    rows = {(row.run, row.target): row for row in compared[0].rows}
    assert len(rows) == 6
    awq = rows["small", "awq"]
    assert awq.cor == pytest.approx(0.712, abs=0.005)
    assert awq.cor_class == "trap"
    assert (awq.parameters, awq.parameters_source, awq.model) == (1e9, "name", "model-1B")
    assert (awq.gpu, awq.gpu_count, awq.vllm, awq.pairs) == ("A100", 1, "0.32.0", 3)
    assert rows["small", "fp16"].cor is None
    assert rows["small", "fp16"].energy_per_query_j is None


def test_the_files_hold_the_same(compared: tuple[RunComparison, Path]) -> None:
    comparison, out = compared
    with (out / "compare.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(CompareRow.__struct_fields__)
    assert lines[0]["energy_per_query_j"] == "", "not measured is empty"
    content = json.loads((out / "compare.json").read_text())
    assert content["schema"] == 1
    assert content["n_stars"][0]["crossings"][0]["n"] == comparison.n_stars[0].crossings[0].n
    assert content["sentences"] == list(comparison.sentences)
    assert not (out / "imports.csv").exists()


def test_the_page_needs_nothing_from_outside(compared: tuple[RunComparison, Path]) -> None:
    page = (compared[1] / "compare.html").read_text()
    assert "<svg" in page
    assert "N* = " in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "SIMULATED" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_run_on_another_gpu_is_not_mixed_in_but_named(runs: list[Path], tmp_path: Path) -> None:
    other = model_run(tmp_path / "h100", parameters=70e9, n_star=N_STAR, gpus=[GPU | {"name": "H100"}] * 2)
    found = loadgen.compare(*runs[:2], other)
    assert [len(one.points) for one in found.n_stars] == [2, 0]
    assert found.n_stars[1].refusal is not None
    reasons = {pair.runs: (pair.precisions, pair.reason) for pair in found.unmixed}
    assert reasons == {
        ("small", "h100"): (("awq",), "GPU: A100 and H100; number of GPUs: 1 and 2"),
        ("middle", "h100"): (("awq",), "GPU: A100 and H100; number of GPUs: 1 and 2"),
    }


def test_different_batches_are_not_mixed(tmp_path: Path) -> None:
    one = model_run(tmp_path / "one", parameters=14e9, n_star=N_STAR, concurrency=(1,))
    two = model_run(tmp_path / "two", parameters=32e9, n_star=N_STAR, concurrency=(2,))
    found = loadgen.compare(one, two)
    assert all(curve.refusal for curve in found.n_stars)
    assert [pair.reason for pair in found.unmixed] == ["B: 1 and 2"]


def test_unrecorded_hardware_equals_nothing(tmp_path: Path) -> None:
    both = [model_run(tmp_path / f"{n}", parameters=n * 1e9, n_star=N_STAR, gpus=()) for n in (1, 16)]
    found = loadgen.compare(*both)
    assert found.n_stars == ()
    assert "the hardware is not recorded" in found.unmixed[0].reason


def test_the_same_model_twice_has_no_n_star(tmp_path: Path) -> None:
    both = [model_run(tmp_path / name, parameters=7e9, n_star=7e9) for name in ("first", "second")]
    found = loadgen.compare(*both)
    assert [one.refusal for one in found.n_stars] == ["one model size, and a curve over N needs two"]
    assert found.unmixed == ()


def test_a_size_that_is_not_known_is_asked_for_and_can_be_given(runs: list[Path], tmp_path: Path) -> None:
    odd = model_run(tmp_path / "odd", parameters=47e9, n_star=N_STAR, model="org/Mixtral-8x7B")
    asked = loadgen.compare(runs[0], odd)
    assert asked.n_stars[0].refusal is not None
    assert any("give --size Mixtral-8x7B=" in warning for warning in asked.warnings)
    for name in ("odd", "Mixtral-8x7B", "org/Mixtral-8x7B"):
        given = loadgen.compare(runs[0], odd, size={name: "46.7B"})
        assert [point.parameters for point in given.n_stars[0].points] == [1e9, 46.7e9]
        assert given.warnings == ()


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    both = [model_run(tmp_path / f"{n}B" / "run", parameters=n * 1e9, n_star=N_STAR) for n in (1, 16)]
    assert {row.run for row in loadgen.compare(*both).rows} == {"1B/run", "16B/run"}


def test_simulated_runs_stay_apart_and_say_so(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = model_run(tmp_path / "made-7b", parameters=7e9, n_star=N_STAR, simulated=True, model="simulated-mistral-7b")
    out = tmp_path / "out"
    said = _command(monkeypatch, capsys, *map(str, runs), str(made), "--out", str(out))
    assert "SIMULATED: rows marked SIMULATED come from a cost model" in said
    assert "awq SIMULATED" in said
    assert "origin: measured and SIMULATED" in said
    page = (out / "compare.html").read_text()
    assert page.index("SIMULATED") < page.index("<h1>")
    assert page.count("SIMULATED</td>") >= 2


def test_tables_and_sentences_fit_into_80_columns(compared: tuple[RunComparison, Path]) -> None:
    text = io.StringIO()
    print_comparison(compared[0], Console(width=80, file=text))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    heading = next(line for line in lines if "tok/s" in line)
    assert all(word in heading for word in ("run", "N", "target", "B", "COR", "valid"))
    assert len(lines) <= 30


def test_the_command_shows_what_was_imported(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "awq.json").write_text(json.dumps(VLLM))
    out = tmp_path / "out"
    said = _command(
        monkeypatch, capsys, *map(str, runs), "--import", f"vllm-bench:awq={tmp_path / 'awq.json'}", "--out", str(out)
    )
    assert "N* = " in said
    assert "28.0 / 60.0" in said
    assert "ITL is per message" in said
    with (out / "imports.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (line["label"], line["tokens_per_s"], line["e2e_ms_mean"]) == ("awq", "1600.5", "")
    assert "vllm-bench · awq" in (out / "compare.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is not a run directory"),
        (["RUN", "RUN"], "is listed twice"),
        (["RUN", "--size", "other=7B"], "--size other: no run, model or target has that name; the runs are small"),
        (["RUN", "--size", "7B"], "write --size RUN=7.25B"),
        (["RUN", "--size", "small=many"], "write it as 7.25B or 600M"),
        (["RUN", "--import", "wrk=x.json"], "'wrk' is not a known tool"),
    ],
)
def test_wrong_use_is_one_sentence(
    runs: list[Path], arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["loadgen", "compare", *(str(runs[0]) if a == "RUN" else a for a in arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_nothing_to_compare() -> None:
    with pytest.raises(UsageError, match="name run directories"):
        loadgen.compare()


def test_every_column_is_documented() -> None:
    text = DOCS.read_text()
    assert [name for name in CompareRow.__struct_fields__ if f"`{name}`" not in text] == []
    assert [name for name in RunComparison.__struct_fields__ if f"`{name}`" not in text] == []


def _command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["loadgen", "compare", *arguments])
    main()
    return capsys.readouterr().out
