"""The GPU kit from an empty folder to a study, by its commands alone: the wheels are made up, the GPU is SIMULATED.

What needs a registry is asked of a folder, through pip's own configuration. Pieces are carried in separate calls, one
of them damaged, and the measurement is killed once.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_wheel import make_wheel

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
LARGE = random.Random(1).randbytes(2_500_000)
PLAN = """
name = "dry"
device = "cuda"
budget_s = 1000
start_s = 1
cell_s = 1
[options]
dataset = "sample"
fixed_length = 80
duration = 1
repeats = 2
power = "nvml"
[[step]]
name = "a-sensors"
why = "to see"
kind = "sensors"
[[step]]
name = "d-qwen3-0.6b"
why = "the smallest model, for short answers"
kind = "sweep"
model = "Qwen3-0.6B"
serve = ["fp16", "awq"]
options = { concurrency = [1, 4] }
[[step]]
name = "d2"
why = "once more"
kind = "rest"
of = "d-qwen3-0.6b"
"""


class Site:
    """Both sides of the journey, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kit, self.out = folder / "kit", folder / "out"
        (folder / "plan.toml").write_text(PLAN)

    def run(self, *arguments: str | Path, status: int = 0) -> str:
        command = [sys.executable, "-m", "bench.gpu", *map(str, arguments)]
        folder = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.folder / "registry")}
        done = subprocess.run(
            command, cwd=PROJECT, env=os.environ | folder, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def visit(self, *carried: str | Path, kit: Path | None = None, status: int = 0, until: str = "d2") -> str:
        shutil.rmtree(self.out, ignore_errors=True)
        return self.run(*self.visiting(*carried, kit=kit, until=until), status=status)

    def visiting(self, *carried: str | Path, kit: Path | None = None, until: str = "d2") -> list[str]:
        how = ["--plan", self.folder / "plan.toml", "--simulated", "h200", "--until", until]
        return list(map(str, ["visit", *carried, "--kit", kit or self.kit, "--out", self.out, *how]))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_from_an_empty_folder_to_a_study(site: Site, tmp_path: Path) -> None:
    pieces = carry_over(site, tmp_path)

    damaged = pieces[1] / "piece-001"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"x" + whole[1:])
    said = site.visit(pieces[0], status=1)
    assert "missing: piece-001, piece-002" in said
    assert "! neither here nor carried: " in said
    assert "vllm==0.26.0" in said, "the kit's lock names more than the wheels that were made up for this"
    assert "damaged: piece-001" in site.visit(pieces[1], status=2)
    damaged.write_bytes(whole)
    assert "missing: piece-002" in site.visit(pieces[1], status=1)
    assert "missing: piece-002; carry these pieces" in site.visit(status=2)

    journal = site.kit / "work" / "runs" / "d-qwen3-0.6b" / "journal"
    kill_when(journal / "002-fp16-b4-r1.jsonl", site.visiting(pieces[2]))
    first = (journal / "001-fp16-b1-r1.jsonl").read_bytes()
    stop_when(journal / "003-awq-b1-r1.jsonl", site.visiting())
    assert (site.out / "d-qwen3-0.6b.tar.xz").exists(), "a visit that is stopped by its limit brings back what there is"
    said = site.visit(until="d-qwen3-0.6b")
    assert "2 wheels are already in" in said
    assert "001-fp16" not in said, "a cell that was finished is not measured again"
    assert (journal / "001-fp16-b1-r1.jsonl").read_bytes() == first
    assert len(list(journal.glob("*.jsonl"))) == 4, "of the first repeat"
    brought = {path.name for path in site.out.iterdir()}
    assert brought == {"d-qwen3-0.6b.tar.xz", "kit.tar.xz", "logs.tar.xz", "machine.json"}

    results = tmp_path / "results"
    shutil.copytree(site.out, results, ignore=shutil.ignore_patterns("logs*"))
    another = tmp_path / "another-machine"
    for piece in pieces:
        complete = piece == pieces[-1]
        site.visit(piece, "--earlier", results, kit=another, until="d-qwen3-0.6b", status=0 if complete else 1)
    states = json.loads((another / "work" / "state.json").read_text())["steps"]
    assert states["d-qwen3-0.6b"]["status"] == "done"
    assert not (another / "work" / "servers").exists(), "what had ended was not begun anew"

    site.visit()
    assert len(list(journal.glob("*.jsonl"))) == 8
    page = Path(site.run("study", site.out, "--out", tmp_path / "studies").strip())
    text = page.read_text()
    assert page.name.startswith("simulated-h200-sxm-141gb-")
    assert "| d2 | once more | done |" in text
    assert "8 of 8 cells valid" in text or "## Cells that are not valid (SIMULATED)\n\n- d-qwen3" in text
    figures = page.parent / page.stem / "figures.json"
    before = figures.read_bytes()
    site.run("study", page.parent / page.stem / "results", "--out", page.parent)
    assert page.read_text() == text, "every number again from the results beside it"
    assert figures.read_bytes() == before


def carry_over(site: Site, folder: Path) -> list[Path]:
    """look, fetch, trim, split; a folder per piece, as one call carries it."""
    make_wheel(folder / "registry", "kit_example", library=LARGE)
    make_wheel(folder / "registry", "kit_other")
    (folder / "lock.txt").write_text("kit-example==1.0\nkit-other==1.0\nmsgspec==0.0.1\n")
    (folder / "machine.json").write_text(site.run("look"))
    fetch = ["fetch", "--machine", folder / "machine.json", "--lock", folder / "lock.txt", "--out", folder / "wheels"]
    said = site.run(*fetch)
    assert "2 wheels" in said
    assert "the machine has other versions than the lock, which are used: msgspec==0.0.1" in said
    assert "kit-example" not in site.run(*fetch), "what lies there whole is not fetched again"
    site.run("trim", folder / "wheels", "--out", folder / "trimmed")
    site.run("split", folder / "trimmed", "--out", folder / "pieces", "--mib", "1")
    made = sorted((folder / "pieces").glob("piece-*"))
    assert [path.name for path in made] == ["piece-000", "piece-001", "piece-002"]
    assert all(path.stat().st_size <= 2**20 for path in made)
    for path in made:
        (folder / "carried" / path.name).mkdir(parents=True)
        shutil.copy(path, folder / "carried" / path.name)
        shutil.copy(folder / "pieces" / "pieces.json", folder / "carried" / path.name)
    return [folder / "carried" / path.name for path in made]


def kill_when(file: Path, arguments: list[str]) -> None:
    """Kills the command and everything it started as soon as it has begun that file."""
    with begun(file, arguments) as process:
        os.killpg(process.pid, signal.SIGKILL)


def stop_when(file: Path, arguments: list[str]) -> None:
    """Ends the command alone, as a limit of its time does."""
    with begun(file, arguments) as process:
        process.terminate()
    assert process.returncode == 130


@contextmanager
def begun(file: Path, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command, in a session of its own, as soon as it has begun that file; its end is waited for."""
    command = [sys.executable, "-m", "bench.gpu", *arguments]
    process = subprocess.Popen(
        command, cwd=PROJECT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    found = file.exists()
    yield process
    said, _ = process.communicate()
    assert found, said
