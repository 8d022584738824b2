"""The default job as installed: simulated servers, stamped, complete, and every token accounted for."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

import loadgen
from loadgen.analysis.run import Run
from loadgen.analysis.tables import COLUMNS

LOADGEN = Path(sysconfig.get_path("scripts")) / "loadgen"
TARGETS = {"fp16", "awq", "gptq", "bnb-nf4"}


class Swept:
    """A sweep that ended, and the run it left."""

    def __init__(self, ended: subprocess.CompletedProcess[str], run: Run) -> None:
        self.ended = ended
        self.run = run


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweep")
    ended = subprocess.run(
        [LOADGEN, "sweep", "--concurrency", "8", "--repeats", "2", "--duration", "1", "--out", "run"],
        capture_output=True, text=True, check=False, cwd=folder, timeout=300,
    )  # fmt: skip
    assert (folder / "run" / "report.html").exists(), ended.stdout + ended.stderr
    return Swept(ended, loadgen.load_run(folder / "run"))


def test_the_status_is_0_when_all_is_valid_and_1_with_the_reasons_when_not(swept: Swept) -> None:
    cells = swept.run.cells
    assert len(cells) == 4 * 2
    reasons = [invalid.reasons for invalid in swept.run.invalid]
    assert swept.ended.returncode == (1 if reasons else 0), swept.ended.stdout + swept.ended.stderr
    assert "Traceback" not in swept.ended.stderr
    assert (cells["reasons"].fillna("") == "").sum() == cells["valid"].sum()
    for reason in reasons:
        assert reason in " ".join(swept.run.analysis.warnings)
    assert cells["valid"].any(), cells["reasons"].to_list()


def test_every_cell_is_there_and_without_errors(swept: Swept) -> None:
    cells = swept.run.cells
    keys = set(zip(cells["target"], cells["concurrency"], cells["repeat"], strict=True))
    assert keys == {(target, 8, repeat) for target in TARGETS for repeat in (1, 2)}
    assert (cells["errors"] == 0).all()
    assert (swept.run.requests["status"] == "ok").all()


def test_the_servers_own_token_count_is_the_recorded_one_in_every_cell(swept: Swept) -> None:
    run = swept.run
    assert (run.cells["server_tokens"] == run.cells["recorded_tokens"]).all()
    by_cell = run.requests.groupby(["target", "concurrency", "repeat"])["output_tokens"].sum()
    cells = run.cells.set_index(["target", "concurrency", "repeat"])["server_tokens"]
    assert by_cell.astype(float).to_dict() == cells.to_dict()
    located = run.requests["token_times"].map(lambda events: sum(event["tokens"] for event in events))
    assert (located == run.requests["output_tokens"]).all()


def test_everything_is_stamped_simulated(swept: Swept) -> None:
    run = swept.run
    assert run.manifest.simulated is True
    assert run.analysis.simulated is True
    for frame in (run.summary, run.cells, run.requests, run.server):
        assert len(frame)
        assert frame["simulated"].all()
    assert "SIMULATED" in swept.ended.stdout
    assert "SIMULATED" in (run.path / "report.html").read_text()


def test_the_run_directory_holds_what_the_design_says(swept: Swept) -> None:
    path = swept.run.path
    files = {entry.name for entry in path.iterdir()}
    assert files >= {
        "manifest.json", "requests.parquet", "server.parquet", "power.parquet", "cells.csv", "summary.csv",
        "analysis.json", "report.html", "figures", "journal",
    }  # fmt: skip
    assert len(list((path / "journal").glob("*.jsonl"))) == 8
    assert len(list((path / "journal" / "power").glob("*.jsonl"))) == 4 * 2
    assert list((path / "figures").glob("*.svg"))
    assert [entry.name for entry in path.parent.iterdir()] == ["run"], "something was created beside the run"
    assert list(swept.run.summary.columns) == list(COLUMNS)


def test_the_manifest_says_what_ran(swept: Swept) -> None:
    manifest = swept.run.manifest
    assert manifest.schema == 1
    assert manifest.dataset.name == "sample"
    assert len(manifest.dataset.sha256) == len(manifest.protocol.sha256) == 64
    assert {(server.name, server.repeat) for server in manifest.servers} == {
        (target, repeat) for target in TARGETS for repeat in (1, 2)
    }
    assert all(server.argv and server.simulated for server in manifest.servers)
    assert len(manifest.clock_anchors) == 2
    assert manifest.failures == ()


def test_the_same_questions_in_the_same_order_for_every_cell(swept: Swept) -> None:
    requests = swept.run.requests
    measured = requests[requests["phase"] == "measured"].sort_values("t_send_ns", kind="stable")
    orders = [list(rows["item_id"]) for _, rows in measured.groupby(["target", "concurrency", "repeat"])]
    longest = max(orders, key=len)
    assert all(order == longest[: len(order)] for order in orders)
    warmups = set(requests[requests["phase"] == "warmup"]["item_id"])
    assert not warmups & set(longest)


@pytest.mark.slow
def test_report_makes_the_derived_files_again(swept: Swept) -> None:
    path = swept.run.path
    derived = "requests.parquet server.parquet power.parquet cells.csv summary.csv analysis.json report.html"
    names = derived.split()
    before = {name: (path / name).read_bytes() for name in names}
    for name in names:
        (path / name).unlink()
    subprocess.run([LOADGEN, "report", path], check=True, capture_output=True, timeout=120)
    assert {name: (path / name).read_bytes() for name in names} == before
