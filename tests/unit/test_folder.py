"""Files of a run directory: whole or not at all, and never through a link."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_run import make_run

import loadgen
from loadgen.analysis.analyse import analyse
from loadgen.cli import group
from loadgen.cli.report import command as report
from loadgen.errors import StorageError, UsageError
from loadgen.folder import Folder, read_file, read_json

LINKED = (
    "report.html.partial", "report.partial", "analysis.json.partial", "cells.csv.partial", "summary.csv.partial",
    "requests.parquet.partial", "power.parquet.partial", "server.parquet.partial", "analysis.json", "cells.csv",
    "requests.parquet", "report.html",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "run").mkdir()
    return Folder(tmp_path / "run")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.write_text("mine")
    return path


def test_a_file_is_replaced_whole_or_not_at_all(folder: Folder) -> None:
    folder.write("a.json", b"first", durable=True)
    with pytest.raises(KeyboardInterrupt), folder.replacing("a.json") as file:
        file.write(b"half of the sec")
        raise KeyboardInterrupt
    assert folder.read("a.json") == b"first"
    folder.write("a.json", b"second")
    assert folder.read("a.json") == b"second"
    assert [path.name for path in folder.path.iterdir()] == ["a.json"]


def test_a_new_file_has_the_mode_that_was_asked_for_from_the_first_byte(folder: Folder) -> None:
    with folder.replacing("secret", mode=0o600) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    with folder.append("servers/a.log", mode=0o600) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    assert stat.S_IMODE((folder.path / "secret").stat().st_mode) == 0o600


def test_two_writers_of_one_file_do_not_mix(folder: Folder) -> None:
    said = r"another process is writing .*a\.json"
    with pytest.raises(StorageError, match=said), folder.replacing("a.json") as file:
        file.write(b"one")
        folder.write("a.json", b"two")
    assert folder.read("a.json") == b"two"


def test_links_are_replaced_not_followed(folder: Folder, outside: Path) -> None:
    for name in ("a.json", "a.json.partial"):
        (folder.path / name).symlink_to(outside)
    folder.write("a.json", b"new")
    assert (outside.read_text(), folder.read("a.json")) == ("mine", b"new")


@pytest.mark.parametrize("act", ["read", "append", "figures"])
def test_a_link_is_refused_with_one_sentence(folder: Folder, outside: Path, act: str) -> None:
    if act == "figures":
        (folder.path / "figures").symlink_to(outside.parent)
    else:
        (folder.path / "a").symlink_to(outside)
    with pytest.raises(UsageError, match="is a link; loadgen does not follow links inside a run directory"):
        match act:
            case "read":
                folder.read("a")
            case "append":
                folder.append("a")
            case _:
                folder.write("figures/outside", b"lost")
    assert outside.read_text() == "mine"


def test_a_hard_link_is_not_appended_to(folder: Folder, outside: Path) -> None:
    (folder.path / "a.log").hardlink_to(outside)
    with pytest.raises(UsageError, match="hard link"):
        folder.append("a.log")


def test_only_regular_files_are_read_and_nothing_waits(folder: Folder) -> None:
    os.mkfifo(folder.path / "items.json")
    (folder.path / "b.json").mkdir()
    with pytest.raises(UsageError, match=r"items\.json is a pipe"):
        folder.read("items.json")
    with pytest.raises(UsageError, match=r"items\.json is a pipe"):
        folder.append("items.json")
    with pytest.raises(UsageError, match=r"b\.json is a folder"):
        folder.read("b.json")
    with pytest.raises(FileNotFoundError):
        folder.read("c.json")


@pytest.mark.parametrize("name", ["../a", "figures/../../a", "/etc/hostname", "a\0b", "", ".."])
def test_a_name_that_leads_out_is_refused(folder: Folder, name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid file name inside"):
        folder.write(name, b"")


@pytest.mark.parametrize(
    "command",
    [
        "compare RUN --import vllm-bench=PIPE", "sweep --config PIPE", "sweep --dataset jsonl --data-file PIPE",
        "sweep --dataset gsm8k --data-file ROWS --shots-file PIPE", "simulate --cost-file PIPE --explain",
        "serve bf16 --model MODEL --vllm PYTHON",
    ],
)  # fmt: skip
def test_no_command_waits_for_a_pipe_in_place_of_a_file(tmp_path: Path, command: str) -> None:
    named = {name: tmp_path / name for name in ("RUN", "PIPE", "MODEL", "ROWS")} | {"PYTHON": Path(sys.executable)}
    (make_run(named["RUN"], repeats=1) / "analysis.json").write_text("{}")
    named["ROWS"].write_text('{"question": "2 + 3?", "answer": "#### 5"}\n')
    named["MODEL"].mkdir()
    for path in (named["PIPE"], named["MODEL"] / "config.json"):
        os.mkfifo(path)
    words = re.sub("|".join(named), lambda found: str(named[found[0]]), command)
    with pytest.raises(UsageError, match=r"is a pipe, and only regular files are read|is not a regular file"):
        CliRunner().invoke(group, words.split(), catch_exceptions=False)


def test_a_file_that_a_user_names_has_a_longest_length(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "link").symlink_to("a")
    assert read_file(tmp_path / "link", 3) == b"123"
    with pytest.raises(OSError, match="is longer than"):
        read_file(tmp_path / "a", 2)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "b")


def test_a_file_has_a_longest_length(folder: Folder) -> None:
    folder.write("a", b"123")
    assert folder.read("a", 3) == b"123"
    with pytest.raises(UsageError, match="is longer than"):
        folder.read("a", 2)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 200_000, "nested more than 100 levels deep"),
        (b"[" * 101 + b"]" * 101, "nested more than 100 levels deep"),
        (b'"\\ud800"', "truncated"),
        (b"\xff", "malformed|invalid"),
    ],
)
def test_json_that_cannot_be_read_says_why(folder: Folder, content: bytes, why: str) -> None:
    folder.write("a.json", content)
    with pytest.raises(ValueError, match=why):
        read_json(folder.path, "a.json")


def test_json_of_100_levels_is_read(folder: Folder) -> None:
    folder.write("a.json", b"[" * 100 + b"]" * 100)
    assert isinstance(read_json(folder.path, "a.json"), list)


def test_a_report_writes_nothing_through_the_links_of_a_run(tmp_path: Path, outside: Path) -> None:
    run = make_run(tmp_path / "run", repeats=1)
    for name in LINKED:
        (run / name).symlink_to(outside)
    done = CliRunner().invoke(report, [str(run)], catch_exceptions=False)
    assert done.exit_code == 0
    assert outside.read_text() == "mine"
    assert not [path for path in run.rglob("*") if path.is_symlink() and path.name != "report.partial"]


@pytest.mark.parametrize("command", ["regrade RUN", "compare RUN --out DIR --import FILE", "report RUN --out DIR"])
def test_commands_write_nothing_through_links(tmp_path: Path, outside: Path, command: str) -> None:
    run, out = small_run(tmp_path / "run"), tmp_path / "out"
    analyse(run)
    result = tmp_path / "result.json"
    result.write_text('{"output_throughput": 1.5, "max_concurrency": 1}')
    out.mkdir()
    compared = ("compare.csv", "compare.json", "compare.html", "imports.csv", "manifest.json", "report.html")
    for name in {*LINKED, *compared, *(f"{name}.partial" for name in compared)}:
        (out / name).symlink_to(outside)
    for name in LINKED:
        if name.endswith(".partial"):
            (run / name).symlink_to(outside)
    words = {"RUN": str(run), "DIR": str(out), "FILE": f"vllm-bench={result}"}
    CliRunner().invoke(group, [words.get(word, word) for word in command.split()], catch_exceptions=False)
    assert outside.read_text() == "mine"
    written = {"compare": compared[:4], "report": LINKED[-4:], "regrade": ()}[command.split()[0]]
    assert all((out / name).is_file() and not (out / name).is_symlink() for name in written)


def test_a_report_elsewhere_leaves_a_run_as_it_was(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    before = contents(run)
    for path in (run, *run.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    found = loadgen.report(run, out=tmp_path / "mine" / "a")
    assert contents(run) == before
    assert found.complete
    assert "<h2>Result" in (tmp_path / "mine" / "a" / "report.html").read_text()
    assert list((tmp_path / "mine" / "a" / "figures").iterdir())
    again = loadgen.load_run(tmp_path / "mine" / "a")
    assert (again.summary["target"].tolist(), again.manifest) == (found.summary["target"].tolist(), found.manifest)
    with pytest.raises(UsageError, match="is a run directory, whose own files would be overwritten"):
        loadgen.report(run, out=small_run(tmp_path / "other"))


def small_run(path: Path) -> Path:
    """One cell: few figures to draw."""
    return make_run(path, targets=("fp16",), concurrency=(1,), repeats=1)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """By path: when it was changed, which a folder is by each new file, and what it holds."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    }


@pytest.mark.parametrize("linked", ["figures", "journal", "journal/power", "servers"])
def test_a_run_whose_folders_are_links_is_refused(tmp_path: Path, linked: str) -> None:
    run = make_run(tmp_path / "run", repeats=1)
    elsewhere = tmp_path / "elsewhere"
    if (run / linked).exists():
        (run / linked).rename(elsewhere)
    else:
        elsewhere.mkdir()
    before = sorted(elsewhere.iterdir())
    (run / linked).symlink_to(elsewhere)
    with pytest.raises(UsageError, match=f"{linked} is a link"):
        CliRunner().invoke(report, [str(run)], catch_exceptions=False)
    assert sorted(elsewhere.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repeats": 10**9}, "more than 1,000,000 cells"),
        ({"repeats": 10**400}, "repeats"),
        ({"repeats": -1}, "repeats"),
        ({"targets": [{"name": "../../outside"}]}, "name"),
        ({"targets": [{"name": "fp16\n"}]}, "name"),
    ],
    ids=["10^9 repeats", "400 digits", "fewer than none", "a path", "a line end"],
)
def test_a_manifest_that_asks_for_the_absurd_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    run = make_run(tmp_path / "run", repeats=1)
    content = json.loads((run / "manifest.json").read_text())
    content["config"] |= change
    (run / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=said):
        CliRunner().invoke(report, [str(run)], catch_exceptions=False)
