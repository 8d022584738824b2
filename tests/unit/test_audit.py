"""CI's audit of locked packages: what is found, what is accepted, and that silence is never called clean."""

from __future__ import annotations

import datetime
import runpy
from pathlib import Path
from typing import Any

CI = Path(__file__).parents[2] / ".ci"
AUDIT = runpy.run_path(str(CI / "audit.py"))
Answer = AUDIT["Answer"]
CLEAN = {"name": "numpy", "version": "2.4.0", "vulns": []}
SKIPPED = {"name": "pandas", "skip_reason": "Dependency not found and could not be audited: pandas (3.0.0)"}
UNTIL = datetime.date(2027, 1, 31)


def hit(*fixes: str) -> dict[str, Any]:
    found = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": list(fixes)}
    return {"name": "aiohttp", "version": "3.0", "vulns": [found]}


def accepted(package: str = "aiohttp", **changes: Any) -> Any:
    return AUDIT["Accepted"](**{"id": "CVE-1", "package": package, "reason": "not reached", "until": UNTIL} | changes)


def judged(*answers: Any, accept: tuple[Any, ...] = (), today: datetime.date = UNTIL) -> tuple[list[str], int]:
    left = iter(answers)
    verdict = AUDIT["judge"](["pypi", "osv"][: len(answers)], lambda _database: next(left), accept, today)
    return verdict.lines, verdict.status


def test_a_known_vulnerability_fails_whether_or_not_a_version_fixes_it() -> None:
    lines, status = judged(Answer([CLEAN, hit("3.1", "4.0")]))
    assert lines == [
        "aiohttp 3.0: PYSEC-1, fixed in 3.1, 4.0; accept it in .ci/audit.toml, or lock another version",
        "audited by pypi: 2 packages, 1 known vulnerabilities",
    ]
    assert status == 1
    lines, status = judged(Answer([hit()]))
    assert (lines[0].partition(";")[0], status) == ("aiohttp 3.0: PYSEC-1, no version fixes it yet", 1)


def test_an_accepted_one_passes_until_its_date_under_any_of_its_names() -> None:
    for name in ("CVE-1", "PYSEC-1"):
        lines, status = judged(Answer([hit()]), accept=(accepted(id=name),))
        assert lines[0].endswith("; accepted until 2027-01-31: not reached")
        assert status == 0
    lines, status = judged(Answer([hit()]), accept=(accepted(),), today=UNTIL + datetime.timedelta(days=1))
    assert lines[0].endswith("; accepted until 2027-01-31, which is over: not reached")
    assert status == 1


def test_what_is_accepted_of_another_package_does_not_count_and_is_named() -> None:
    lines, status = judged(Answer([hit()]), accept=(accepted("numpy"), accepted(id="CVE-2")))
    assert lines[1:3] == [
        "numpy: CVE-1 is accepted but was not found; remove it",
        "aiohttp: CVE-2 is accepted but was not found; remove it",
    ]
    assert lines[3].endswith("1 known vulnerabilities")
    assert status == 1


def test_a_package_that_the_database_does_not_know_is_named() -> None:
    lines, status = judged(Answer([CLEAN, SKIPPED]))
    assert lines == [
        "audited by pypi: 1 packages, 0 known vulnerabilities",
        "not known there, so not audited: pandas",
    ]
    assert status == 0


def test_a_database_that_knows_nothing_is_not_an_audit() -> None:
    lines, status = judged(Answer([SKIPPED]), Answer([], "name resolution failed"))
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


def test_every_locked_version_is_asked_about_whatever_python_it_is_for(tmp_path: Path) -> None:
    locks = [
        "numpy==2.4.6 ; python_full_version < '3.12' \\\n    --hash=sha256:00\n"
        "numpy==2.5.5 ; python_full_version >= '3.12' \\\n",
        "uvloop==0.23.0 ; sys_platform != 'win32' \\\n    --hash=sha256:00\nnumpy==2.5.5 \\\nA.b[c]==1 \\\n",
    ]
    pins = AUDIT["locked"](locks)
    assert pins == [("a.b", "1"), ("numpy", "2.4.6"), ("numpy", "2.5.5"), ("uvloop", "0.23.0")]
    texts = [path.read_text(encoding="utf-8").splitlines() for path in AUDIT["layers"](pins, tmp_path)]
    assert texts == [["a.b==1", "numpy==2.4.6", "uvloop==0.23.0"], ["numpy==2.5.5"]]


def test_what_ci_accepts_can_be_read() -> None:
    for one in AUDIT["accepted"](CI / "audit.toml"):
        assert one.reason
        assert isinstance(one.until, datetime.date)
