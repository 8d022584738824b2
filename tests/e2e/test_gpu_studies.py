"""Every study in docs/studies that the GPU kit wrote is what its raw results give, number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.pages import write
from bench.gpu.pieces import MIB
from bench.gpu.study import MOST_MIB

STUDIES = Path(__file__).parents[2] / "docs" / "studies"
RESULTS = sorted(STUDIES.glob("*/results"))


@pytest.mark.slow
@pytest.mark.parametrize("results", RESULTS, ids=[results.parent.name for results in RESULTS])
def test_a_study_is_written_anew_from_its_results(results: Path, tmp_path: Path) -> None:
    page = write(results, tmp_path)
    assert page.name == f"{results.parent.name}.md"
    assert page.read_text(encoding="utf-8") == (STUDIES / page.name).read_text(encoding="utf-8")
    figures, committed = (
        json.loads((folder / "figures.json").read_text()) for folder in (tmp_path / page.stem, results.parent)
    )
    assert leaves(figures) == leaves(committed)
    drawn, kept = ({path.name for path in folder.glob("*.png")} for folder in (tmp_path / page.stem, results.parent))
    assert drawn == kept


def test_the_raw_data_of_all_studies_stays_below_what_a_repository_should_carry() -> None:
    assert RESULTS, "a study of the kit, if only in simulation"
    size = sum(path.stat().st_size for path in STUDIES.rglob("*.tar.xz"))
    assert size <= MOST_MIB * MIB


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Names like rows.3.tokens_per_s -> values; numbers to nine digits, since versions of numpy differ in the last."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for k, v in pairs for key, leaf in leaves(v, f"{name}.{k}").items()}
    return {name: float(f"{value:.9g}") if isinstance(value, float) else value}
