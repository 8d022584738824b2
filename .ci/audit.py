"""Known vulnerabilities among the packages of lock files, as pip-audit finds them.

    python .ci/audit.py .ci/requirements.txt docker/requirements/*.txt

The databases are asked one after the other until one answers. Ends with 1 where a locked version has a known
vulnerability that `.ci/audit.toml` does not accept, else with 0. NOT AUDITED is said where no database could be asked,
which is not an error.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DATABASES = ("pypi", "osv")
LONGEST_S = 120
ACCEPTED = Path(__file__).with_name("audit.toml")
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;\\]+)", re.MULTILINE)


class Answer(NamedTuple):
    """What one database said: `packages` as pip-audit lists them, empty where it did not answer, and then why."""

    packages: list[dict[str, Any]]
    why_none: str = ""


class Accepted(NamedTuple):
    """A vulnerability that is known and let pass: why, and until when that is to be looked at again."""

    id: str
    package: str
    reason: str
    until: datetime.date


class Verdict(NamedTuple):
    lines: list[str]
    status: int


def main() -> None:
    pins = locked(Path(name).read_text(encoding="utf-8") for name in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        files = layers(pins, Path(folder))
        verdict = judge(DATABASES, lambda database: ask(files, database), accepted(ACCEPTED), datetime.date.today())
    print("\n".join(verdict.lines), flush=True)
    sys.exit(verdict.status)


def locked(locks: Iterable[str]) -> list[tuple[str, str]]:
    """Name and version of every pin, each once, whatever Python or platform it is for."""
    return sorted({(name.lower(), version) for text in locks for name, version in PIN.findall(text)})


def layers(pins: Sequence[tuple[str, str]], folder: Path) -> list[Path]:
    """The pins as requirement files in none of which a package has two versions: pip-audit refuses that."""
    files: list[dict[str, str]] = []
    for name, version in pins:
        free = next((file for file in files if name not in file), None)
        if free is None:
            files.append(free := {})
        free[name] = version
    paths = [folder / f"{number}.txt" for number in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        path.write_text("".join(f"{name}=={version}\n" for name, version in file.items()), encoding="utf-8")
    return paths


def accepted(path: Path) -> list[Accepted]:
    listed = tomllib.loads(path.read_text(encoding="utf-8")).get("accepted", [])
    return [Accepted(**one) for one in listed]


def ask(files: Sequence[Path], database: str) -> Answer:
    """What the database says of all files; nothing where it did not answer for one of them."""
    answers = []
    for file in files:
        answers.append(ask_about(file, database))
        if not answers[-1].packages:
            return answers[-1]
    return Answer([package for answer in answers for package in answer.packages])


def ask_about(file: Path, database: str) -> Answer:
    argv = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--format", "json"]
    argv += ["--progress-spinner", "off", "--vulnerability-service", database, "--timeout", "10"]
    argv += ["--requirement", str(file)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired:
        return Answer([], f"no answer within {LONGEST_S} s")
    try:
        return Answer(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError, TypeError):
        return Answer([], last_line(done.stderr))


def judge(
    databases: Sequence[str], ask: Callable[[str], Answer], accepted: Sequence[Accepted], today: datetime.date
) -> Verdict:
    """What the first database says that knows any of the packages."""
    silent = []
    for database in databases:
        answer = ask(database)
        known = [package for package in answer.packages if "skip_reason" not in package]
        if known:
            return findings(database, answer.packages, known, accepted, today)
        silent.append(f"{database}: {answer.why_none or 'it knows none of the packages'}")
    return Verdict(["NOT AUDITED: no database of vulnerabilities could be asked", *silent], 0)


def findings(
    database: str,
    packages: list[dict[str, Any]],
    known: list[dict[str, Any]],
    accepted: Sequence[Accepted],
    today: datetime.date,
) -> Verdict:
    """A line per vulnerability; status 1 if one is neither accepted nor within the time that it is accepted for."""
    lines, status, used = [], 0, set()
    for package in known:
        for vulnerability in package["vulns"]:
            mended = ", ".join(vulnerability["fix_versions"])
            what = f"fixed in {mended}" if mended else "no version fixes it yet"
            ids = {vulnerability["id"], *vulnerability.get("aliases", ())}
            reason = "accept it in .ci/audit.toml, or lock another version"
            for one in accepted:
                if one.package == package["name"] and one.id in ids:
                    used.add(one)
                    late = today > one.until
                    reason = f"accepted until {one.until}{', which is over' if late else ''}: {one.reason}"
                    status = 1 if late else status
                    break
            else:
                status = 1
            lines.append(f"{package['name']} {package['version']}: {vulnerability['id']}, {what}; {reason}")
    found = len(lines)
    unused = [one for one in accepted if one not in used]
    lines += [f"{one.package}: {one.id} is accepted but was not found; remove it" for one in unused]
    unknown = sorted({package["name"] for package in packages if "skip_reason" in package})
    lines.append(f"audited by {database}: {len(known)} packages, {found} known vulnerabilities")
    if unknown:
        lines.append(f"not known there, so not audited: {', '.join(unknown)}")
    return Verdict(lines, status)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


if __name__ == "__main__":
    main()
