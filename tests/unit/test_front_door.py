"""What a newcomer meets first: README as the package index shows it, the package's metadata, completion, the site."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadgen import __version__
from loadgen.cli import COMMANDS
from loadgen.serving.quantize import REQUIREMENTS

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "studies").rglob("README.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_readme_has_at_most_600_words() -> None:
    assert len(README.split()) <= 600


def test_each_link_of_readme_is_absolute_and_those_into_the_repository_lead_to_a_file() -> None:
    raw = REPOSITORY.replace("://github.com/", "://raw.githubusercontent.com/") + "/main/"
    own = re.compile(rf"(?:{re.escape(raw)}|{re.escape(REPOSITORY)}/(?:blob|tree)/main/)([^#]+)")
    links = LINK.findall(README)
    assert [link for link in links if not link.startswith("https://")] == [], "the package index has no files"
    assert [link for link in links if "github" in link and not own.match(link)] == []
    assert [link for link in links if (found := own.match(link)) and not (ROOT / found[1]).exists()] == []


def test_the_public_address_is_the_same_everywhere() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"repo_url: {REPOSITORY}\n" in site
    assert f"site_url: {PROJECT['urls']['Documentation']}\n" in site
    for name in ("CITATION.cff", ".github/ISSUE_TEMPLATE/config.yml"):
        assert REPOSITORY in (ROOT / name).read_text(encoding="utf-8"), name


def test_the_citation_and_the_extra_for_quantizing_are_in_step_with_the_code() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert PROJECT["optional-dependencies"]["quantize"] == list(REQUIREMENTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_page_is_drawn_alike_on_the_hub_and_on_the_site(page: Path) -> None:
    """Links lead to files, and a list begins after an empty line, else the site draws a paragraph."""
    text = re.sub(r"^(```.*?^```|    .*?)$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(text):
        if not link.startswith(("https://", "http://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), f"{link} leads to no file"
    before = ""
    for line in text.splitlines():
        begins = re.match(r"(?:[-*]|\d+\.) ", line)
        assert not (begins and before.strip() and not re.match(r"(?:[-*]|\d+\.) |  ", before)), f"no empty line: {line}"
        before = line


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version_has_a_short_flag(flag: str) -> None:
    assert _loadgen(flag).stdout == f"loadgen, version {__version__}\n"


def test_bash_completes_commands_and_options() -> None:
    commands = _completed("loadgen ", 1)
    assert {f"plain,{name}" for name in COMMANDS} <= set(commands)
    assert _completed("loadgen sweep --conc", 2) == ["plain,--concurrency"]


def _completed(line: str, word: int) -> list[str]:
    asked = {"_LOADGEN_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(word)}
    return _loadgen(**asked).stdout.split()


def _loadgen(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from loadgen.cli import main; main()", *arguments],
        capture_output=True, text=True, check=True, env={**os.environ, **variables},
    )  # fmt: skip
