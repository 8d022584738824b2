"""Known vulnerabilities among the packages of an environment, as pip-audit finds them.

    python .ci/audit.py .venv

The databases are asked one after the other until one answers; each has two minutes. Ends with 1 where a version is out
that mends what was found, else with 0; NOT AUDITED is said where no database could be asked, which is not an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DATABASES = ("pypi", "osv")
LONGEST_S = 120
NEVER_PUBLISHED = ("loadgen",)


class Answer(NamedTuple):
    """What one database said: `packages` as pip-audit lists them, empty where it did not answer, and then why."""

    packages: list[dict[str, Any]]
    why_none: str = ""


class Verdict(NamedTuple):
    lines: list[str]
    status: int


def main() -> None:
    environment = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as folder:
        auditor, why_none = installed(Path(folder))
        if auditor is None:
            verdict = Verdict([f"NOT AUDITED: pip-audit could not be installed: {why_none}"], 0)
        else:
            found = auditor
            verdict = judge(DATABASES, lambda database: ask(found, site_packages(environment), database))
    print("\n".join(verdict.lines), flush=True)
    sys.exit(verdict.status)


def installed(folder: Path) -> tuple[Path | None, str]:
    """pip-audit in an environment of its own, so that its packages are not among those looked at."""
    python = folder / "bin" / "python"
    for argv in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "pip-audit>=2.7"],
    ):
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=LONGEST_S, check=False)
        except subprocess.TimeoutExpired:
            return None, f"not done within {LONGEST_S} s"
        if done.returncode:
            return None, last_line(done.stderr)
    return folder / "bin" / "pip-audit", ""


def site_packages(environment: Path) -> Path:
    paths = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", scheme="venv", vars=paths))


def ask(auditor: Path, packages: Path, database: str) -> Answer:
    argv = [str(auditor), "--path", str(packages), "--format", "json", "--progress-spinner", "off"]
    argv += ["--vulnerability-service", database, "--timeout", "10"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired:
        return Answer([], f"no answer within {LONGEST_S} s")
    try:
        return Answer(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError, TypeError):
        return Answer([], last_line(done.stderr))


def judge(databases: Sequence[str], ask: Callable[[str], Answer]) -> Verdict:
    """What the first database says that knows any of the packages."""
    silent = []
    for database in databases:
        answer = ask(database)
        known = [package for package in answer.packages if "skip_reason" not in package]
        if known:
            return findings(database, answer.packages, known)
        silent.append(f"{database}: {answer.why_none or 'it knows none of the packages'}")
    return Verdict(["NOT AUDITED: no database of vulnerabilities could be asked", *silent], 0)


def findings(database: str, packages: list[dict[str, Any]], known: list[dict[str, Any]]) -> Verdict:
    lines, status = [], 0
    for package in known:
        for vulnerability in package["vulns"]:
            mended = ", ".join(vulnerability["fix_versions"])
            what = f"mended in {mended}" if mended else "no version mends it yet"
            lines.append(f"{package['name']} {package['version']}: {vulnerability['id']}, {what}")
            status = 1 if mended else status
    unknown = sorted({package["name"] for package in packages if "skip_reason" in package} - set(NEVER_PUBLISHED))
    lines.append(f"audited by {database}: {len(known)} packages, {len(lines)} known vulnerabilities")
    if unknown:
        lines.append(f"not known there, so not audited: {', '.join(unknown)}")
    return Verdict(lines, status)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


if __name__ == "__main__":
    main()
