"""A server whose every word is hostile: its model's name, version, answers and errors. Nothing obeys it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fault_server import BATCH, FaultServer
from faults import HOSTILE
from rich.console import Console

import loadgen
from loadgen.analysis.run import Run
from loadgen.report.compare.terminal import print_comparison
from loadgen.report.live import LiveView
from loadgen.report.terminal import print_end

COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with FaultServer(model=HOSTILE, version=HOSTILE) as server:
        yield loadgen.sweep(
            targets=[f"fp16={server.url}/hostile-text", f"awq={server.url}/hostile-error"], concurrency=[BATCH],
            dataset="sample", duration=0.4, repeats=1, max_tokens=24, metrics_port=None, power="none",
            out=tmp_path_factory.mktemp("hostile") / "run",
        )  # fmt: skip


class Tags(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_what_the_server_said_is_kept_as_it_was(run: Run) -> None:
    answers = run.requests[(run.requests.target == "fp16") & (run.requests.phase == "measured")]
    assert answers.text.str.contains(HOSTILE, regex=False).all()
    assert run.manifest["servers"][0]["model"] == HOSTILE


def test_the_page_obeys_nothing(run: Run) -> None:
    page = (run.path / "report.html").read_text(encoding="utf-8")
    tags = Tags(page).found
    assert [tag for tag, _ in tags].count("script") == 1, "its own"
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert not any(attributes.get("src") for _, attributes in tags)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page, "it is shown"
    assert COMMANDS.findall(page) == []


def test_the_terminal_obeys_nothing(run: Run) -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, color_system=None)
    print_end(run, console)
    with LiveView(console) as view:
        view.run_begins(HOSTILE, 1, False, 1.0)
        view.server_ready(HOSTILE, HOSTILE)
        view.warn(HOSTILE)
    print_comparison(loadgen.compare(run.path), console)
    assert r"onerror=alert(2)>\x1b[2J\x1b]0;mine\x07\u202eevil\x00$" in out.getvalue()
    assert COMMANDS.findall(out.getvalue()) == []


def test_a_comparison_obeys_nothing(run: Run, tmp_path: Path) -> None:
    loadgen.compare(run.path, size={"run": "7B"}, out=tmp_path)
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    tags = Tags(page).found
    assert "script" not in [tag for tag, _ in tags]
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert COMMANDS.findall(page) == []


def test_figures_are_whole(run: Run) -> None:
    """XML has no place for control characters."""
    for path in (run.path / "figures").glob("*.svg"):
        assert COMMANDS.findall(path.read_text(encoding="utf-8")) == []
