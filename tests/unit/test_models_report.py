"""Studies of cost models as a report shows them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from made_costs import cells, eq19
from made_run import answer, cell_data

from loadgen.analysis.cells import CellSummary, summarize_cell
from loadgen.analysis.models.study import cost_models
from loadgen.analysis.validity import Validity
from loadgen.reports.rows import MODELS, model_notes, model_sentences, table_of


@pytest.fixture
def base(tmp_path: Path) -> CellSummary:
    data = cell_data(tmp_path, [answer(1100, [(1200, 1), (1300, 1)])])
    return msgspec.structs.replace(summarize_cell(data, [None]), validity=Validity(energy=()))


def test_the_report_draws_the_studies(base: CellSummary) -> None:
    made = cells(base, joules=eq19, seconds=lambda t, b: 1e-3 * eq19(t, b), batches=(1, 4, 16, 64))
    simulated = [msgspec.structs.replace(cell, simulated=True) for cell in made]
    studies = cost_models(simulated, reference="fp16")
    assert all(study.simulated for study in studies)
    table = table_of(MODELS, [(study, fit) for study in studies for fit in study.models])
    rows = table.rows
    assert len(rows) == 9
    assert all(len(row) == len(MODELS) and row[0] == "awq" for row in rows)
    first = dict(zip(table.headings, rows[0], strict=True))
    assert (first["cost"], first["model"]) == ("J/token", "M1")
    assert first["B* of the model"].startswith("wins below 4")
    assert first["B* measured"] == ""
    gamma, alpha, phi = first["parameters (95% CI)"].split("; ")
    assert gamma.startswith("gamma 1.00 J/token (0.99")
    assert alpha.startswith("alpha 2.00 J/(bit·step) (1.9")
    assert phi.startswith("phi 0.") and " J/token (" in phi
    timed = next(row for row in rows if row[1:3] == ("ms/token", "M1"))
    assert " ms/token (" in timed[-1]
    said = model_sentences(studies)["awq"]
    assert len(said) == 4
    assert all(note.startswith("awq, ") for note in model_notes(studies))


def test_a_refused_study_is_a_sentence_and_no_row(base: CellSummary) -> None:
    studies = cost_models(cells(base, joules=eq19, batches=(1, 2)), reference="fp16")
    assert all(study.models == () for study in studies)
    (line,) = model_sentences(studies)["awq"]
    assert line.endswith("2 are there")
