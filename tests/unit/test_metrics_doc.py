"""docs/metrics.md: every number of a run directory is there, once, with a function that exists."""

from __future__ import annotations

import importlib
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from made_run import make_run

from loadgen.analysis.analyse import Analysis, analyse
from loadgen.analysis.celldata import Goodput, Traffic
from loadgen.analysis.cells import CellSummary, Lengths
from loadgen.analysis.client import ClientFigures
from loadgen.analysis.energy import CellEnergy
from loadgen.analysis.estimate import Estimate
from loadgen.analysis.estimate import Estimate as ModelEstimate
from loadgen.analysis.run import load_run
from loadgen.analysis.tables import COLUMNS, POWER, REQUESTS, SERVER
from loadgen.analysis.validity import Validity

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
OF_THE_RUN = ("schema", "reference", "simulated", "slo", "shape", "start_sd", "warnings")


PARTS = {
    "validity": Validity().columns(),
    **{
        part: of.__struct_fields__
        for part, of in {
            "client": ClientFigures,
            "traffic": Traffic,
            "goodput": Goodput,
            "energy": CellEnergy,
            "lengths": Lengths,
        }.items()
    },
}
CELLS = [column for name in CellSummary.__struct_fields__ for column in PARTS.get(name, (name,))]


def sections() -> dict[str, list[list[str]]]:
    """Heading -> rows of cells."""
    found: dict[str, list[list[str]]] = {}
    for part in re.split(r"^##+ ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        rows = [line.split("|")[1:-1] for line in body.splitlines() if line.startswith("| `")]
        found[heading.strip("`")] = [[cell.strip() for cell in row] for row in rows]
    return found


SECTIONS = sections()


def families() -> dict[str, type[msgspec.Struct]]:
    """Lists of analysis.json -> what their entries are; one is no list."""
    found = {name: list(structs(hint)) for name, hint in typing.get_type_hints(Analysis).items()}
    return {name: kinds[0] for name, kinds in found.items() if kinds}


def structs(hint: object) -> Iterator[type[msgspec.Struct]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield hint
    for part in typing.get_args(hint):
        yield from structs(part)


def leaves(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    """Paths to everything that is no object; an estimate counts as one figure."""
    for name, hint in typing.get_type_hints(struct).items():
        below = [found for found in structs(hint) if found not in (Estimate, ModelEstimate)]
        if below:
            yield from leaves(below[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def named(section: str) -> list[str]:
    return [name for row in SECTIONS[section] for name in re.findall(r"`([^`]+)`", row[0])]


@pytest.mark.parametrize(
    ("file", "columns"),
    [
        ("requests.parquet", REQUESTS.names),
        ("server.parquet", SERVER.names),
        ("power.parquet", POWER.names),
        ("cells.csv", CELLS),
        ("summary.csv", list(COLUMNS)),
    ],
)  # fmt: skip
def test_every_column_has_its_place_and_no_other_name_does(file: str, columns: list[str]) -> None:
    assert sorted(named(file)) == sorted(columns)


@pytest.mark.parametrize("family", list(families()))
def test_every_figure_of_analysis_json_has_its_place_and_no_other_name_does(family: str) -> None:
    assert sorted(named(family)) == sorted(leaves(families()[family]))


def test_analysis_json_holds_what_is_documented_and_nothing_else(tmp_path: Path) -> None:
    analyse(make_run(tmp_path / "run"))
    run = load_run(tmp_path / "run")
    assert set(Analysis.__struct_fields__) == {*OF_THE_RUN, *families()}
    assert named("Of the run") == list(OF_THE_RUN)
    assert list(run.cells.columns) == CELLS
    assert list(run.summary.columns) == list(COLUMNS)


def test_every_row_names_a_function_that_exists() -> None:
    rows = [row for rows in SECTIONS.values() for row in rows]
    assert [row for row in rows if len(row) != 4] == [], "name, unit, formula, function"
    assert [row[3] for row in rows if not exists(row[3].strip("`"))] == []


def exists(function: str) -> bool:
    module, _, name = function.rpartition(".")
    return callable(getattr(importlib.import_module(f"loadgen.{module}"), name, None))


def test_the_run_directorys_page_leads_here() -> None:
    text = (Path(__file__).parents[2] / "docs" / "run-directory.md").read_text(encoding="utf-8")
    assert "(metrics.md)" in text
