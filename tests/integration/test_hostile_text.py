"""A server whose every word is hostile: its model's name, version, answers and errors. Nothing obeys it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_server import BATCH, FaultServer
from faults import HOSTILE
from rich.console import Console

import loadgen
from loadgen import cli
from loadgen.analysis.run import Run
from loadgen.measure.observer import Timetable
from loadgen.reports.compare import print_comparison
from loadgen.reports.live import LiveView
from loadgen.reports.terminal import print_end

COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
WORDS = b"progress 1%\r\x1b[Aprogress 2%\n\x1b]0;mine\x07\x9b31m\xe2\x80\xaeevil ValueError: [bold]\x1b[2J\n"
VLLM = f"#!/usr/bin/env python3\nimport sys\nsys.stdout.buffer.write({WORDS!r})\nsys.exit(3)\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class Terminal(io.StringIO):
    """Whoever writes here believes that it is a terminal, which has no colours."""

    def isatty(self) -> bool:
        return True


class Said(NamedTuple):
    """What a command wrote, and its exit status."""

    out: str
    status: int


def loadgen_command(*arguments: object) -> Said:
    """Runs `loadgen ARGUMENTS` in this process, with stdout and stderr on one terminal."""
    terminal = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["loadgen", *map(str, arguments)])
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setenv("TERM", "dumb")
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        except Exception:
            sys.excepthook(*sys.exc_info())
            status = -1
    return Said(terminal.getvalue(), status)


@pytest.fixture(scope="module")
def hostile() -> Iterator[FaultServer]:
    with FaultServer(model=HOSTILE, version=HOSTILE) as server:
        yield server


@pytest.fixture(scope="module")
def sweep(hostile: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Said:
    return loadgen_command(
        "sweep", "--target", f"fp16={hostile.url}/hostile-text", "--target", f"awq={hostile.url}/hostile-error",
        "--concurrency", BATCH, "--dataset", "sample", "--duration", 0.4, "--repeats", 1, "--max-tokens", 24,
        "--metrics-port", free_port(), "--power", "none", "--out", tmp_path_factory.mktemp("hostile") / "run",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(sweep: Said) -> Run:
    return loadgen.load_run(sweep.out.rpartition("Report: ")[2].partition("/report.html")[0])


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
    assert run.manifest.servers[0].model == HOSTILE


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
        view.run_begins(HOSTILE, Timetable(), False)
        view.server_ready(HOSTILE, HOSTILE)
        view.warn(HOSTILE)
    print_comparison(loadgen.compare(run.path), console)
    assert r"onerror=alert(2)>\x1b[2J\x1b]0;mine\x07\u202eevil\x00$" in out.getvalue()
    assert COMMANDS.findall(out.getvalue()) == []


def test_a_comparison_obeys_nothing(run: Run, tmp_path: Path) -> None:
    loadgen.compare(run.path, size={"run": "7B"}, out=tmp_path)
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    tags = Tags(page).found
    assert [tag for tag, _ in tags].count("script") == 1, "its own"
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert COMMANDS.findall(page) == []


def test_figures_are_whole(run: Run) -> None:
    """XML has no place for control characters."""
    for path in (run.path / "figures").glob("*.svg"):
        assert COMMANDS.findall(path.read_text(encoding="utf-8")) == []


SHAPED = {"reference", "url", "api", "target", "targets", "power", "arrival", "mode", "device", "dataset", "slo"}
"""Parts of a manifest: what has a form, or names something else in it."""


def hostile_content(value: Any, name: str = "") -> Any:
    """The same with hostile texts, also where loadgen wrote them itself."""
    if isinstance(value, dict):
        return {
            key: part if name == "config" and key in SHAPED else hostile_content(part, key)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [hostile_content(part, name) for part in value]
    return HOSTILE if isinstance(value, str) and name not in SHAPED | {"name"} else value


@pytest.fixture(scope="module")
def received(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose manifest and tables were made by somebody else."""
    path = tmp_path_factory.mktemp("received") / "=\x1b]0;run\x07"
    shutil.copytree(run.path, path)
    manifest = hostile_content(json.loads((path / "manifest.json").read_text()))
    manifest["failures"] = [{"target": "awq", "repeat": 1, "error": HOSTILE}]
    (path / "manifest.json").write_text(json.dumps(manifest))
    table = pq.read_table(path / "requests.parquet")
    for name in ("outcome", "answer", "item_id"):
        column = pa.array([HOSTILE] * table.num_rows)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, path / "requests.parquet")
    return path


def check_terminal(said: Said) -> None:
    assert COMMANDS.findall(said.out) == []
    assert "[bold]" in said.out, "shown, and no markup"
    assert [line for line in said.out.splitlines() if line.startswith("loadgen: all is well")] == []


def check_table(path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [cell for cell in cells if COMMANDS.search(cell) or "\n" in cell] == []
    formulas = [cell for cell in cells if cell.startswith(tuple("=+-@\t\r")) and not is_number(cell)]
    assert formulas == []


def is_number(cell: str) -> bool:
    with contextlib.suppress(ValueError):
        float(cell)
        return True
    return False


def test_a_sweep_shows_what_the_servers_said_and_obeys_nothing(sweep: Said, run: Run) -> None:
    assert sweep.status == 1, "one server answers with errors only"
    check_terminal(sweep)
    check_table(run.path / "cells.csv")
    assert run.cells.first_failure.str.contains("=1+1<script>alert(1)", regex=False).any()


@pytest.mark.parametrize("command", ["regrade --grader RUN", "report RUN", "compare RUN --import FILE --out DIR",
    "sweep --resume RUN", "sweep --resume RUN --dry-run"])  # fmt: skip
def test_commands_on_a_received_run_obey_nothing(command: str, received: Path, tmp_path: Path) -> None:
    result = {"model_id": HOSTILE, "output_throughput": 1.5, "max_concurrency": 1}
    (tmp_path / "=1+1.json").write_text(json.dumps(result))
    words = {"RUN": received, "DIR": tmp_path, "FILE": f"vllm-bench:{HOSTILE.partition('=')[2]}={tmp_path}/=1+1.json"}
    said = loadgen_command(*(words.get(word, word) for word in command.split()))
    check_terminal(said)
    for path in (*received.glob("*.csv"), *tmp_path.glob("*.csv")):
        check_table(path)


def test_a_server_that_fails_to_start_commands_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    vllm = tmp_path / "vllm"
    vllm.write_text(VLLM)
    vllm.chmod(0o755)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["A"]}')
    said = loadgen_command(
        "serve", "bf16", "--model", tmp_path / "model", "--vllm", vllm, "--port", free_port(), "--device", "cpu"
    )
    assert said.status == 1
    check_terminal(said)
    assert r"\x1b]0;mine\x07\x9b31m\u202eevil ValueError: [bold]\x1b[2J" in said.out
    assert "progress 1%\n" in said.out


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["words", "json"])
def test_an_examination_of_hostile_programs_commands_no_terminal(
    form: list[str], hostile: FaultServer, tmp_path: Path
) -> None:
    vllm = tmp_path / "vllm"
    vllm.write_text(VLLM)
    vllm.chmod(0o755)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [HOSTILE], "model_type": HOSTILE}))
    said = loadgen_command(
        "doctor", "--mode", "cpu", "--vllm", vllm, "--model", tmp_path, "--prometheus", hostile.url, "--grafana",
        hostile.url, *form,
    )  # fmt: skip
    assert COMMANDS.findall(said.out) == []
    if form:
        assert json.loads(said.out)["mode"] == "cpu"


def test_a_traceback_and_a_warning_command_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        print(HOSTILE, file=sys.stderr)  # as warnings and logs come there
        raise RuntimeError(HOSTILE)

    monkeypatch.setattr(cli, "group", click.Command("made", callback=fail))
    said = loadgen_command()
    assert COMMANDS.findall(said.out) == []
    assert said.out.count("alert(2)>") == 2
