"""CI's audit of dependencies: what is found, what can be mended, and that silence is never called clean."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

AUDIT = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "audit.py"))
Answer = AUDIT["Answer"]
CLEAN = {"name": "numpy", "version": "2.4.0", "vulns": []}
SKIPPED = {"name": "pandas", "skip_reason": "Dependency not found and could not be audited: pandas (3.0.0)"}
OURS = {"name": "loadgen", "skip_reason": "Dependency not found and could not be audited: loadgen (0.1.0)"}


def hit(*fixes: str) -> dict[str, Any]:
    return {"name": "aiohttp", "version": "3.0", "vulns": [{"id": "CVE-1", "fix_versions": list(fixes)}]}


def judged(*answers: Any) -> tuple[list[str], int]:
    left = iter(answers)
    verdict = AUDIT["judge"](["pypi", "osv"][: len(answers)], lambda _database: next(left))
    return verdict.lines, verdict.status


def test_what_can_be_mended_fails() -> None:
    lines, status = judged(Answer([CLEAN, hit("3.1", "4.0")]))
    assert lines == [
        "aiohttp 3.0: CVE-1, mended in 3.1, 4.0",
        "audited by pypi: 2 packages, 1 known vulnerabilities",
    ]
    assert status == 1


def test_what_cannot_be_mended_is_told_and_passes() -> None:
    lines, status = judged(Answer([hit()]))
    assert lines[0] == "aiohttp 3.0: CVE-1, no version mends it yet"
    assert status == 0


def test_a_package_that_the_database_does_not_know_is_named() -> None:
    lines, status = judged(Answer([CLEAN, SKIPPED, OURS]))
    assert lines == [
        "audited by pypi: 1 packages, 0 known vulnerabilities",
        "not known there, so not audited: pandas",
    ]
    assert status == 0


def test_a_database_that_knows_nothing_is_not_an_audit() -> None:
    lines, status = judged(Answer([SKIPPED, OURS]), Answer([], "name resolution failed"))
    assert lines == [
        "NOT AUDITED: no database of vulnerabilities could be asked",
        "pypi: it knows none of the packages",
        "osv: name resolution failed",
    ]
    assert status == 0


def test_the_second_database_is_asked_where_the_first_is_silent() -> None:
    lines, status = judged(Answer([], "no answer within 120 s"), Answer([hit("3.1")]))
    assert lines[-1] == "audited by osv: 1 packages, 1 known vulnerabilities"
    assert status == 1
