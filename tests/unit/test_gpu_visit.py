"""One visit of the GPU kit: what it says is lacking, when it does not measure, and that it ends in time.

tests/e2e/test_gpu_dry_run.py makes whole visits."""

from __future__ import annotations

import collections
import json
import sys
import tarfile
from pathlib import Path

import pytest

from bench.gpu import visit as visiting
from bench.gpu.machine import Machine
from bench.gpu.visit import LOGS, Visit, lacking_words
from loadgen.errors import UsageError


def make_visit(folder: Path, *, seconds: float = 100.0, said: list[str] | None = None) -> Visit:
    heard = [] if said is None else said
    return Visit(folder / "kit", folder / "out", seconds=seconds, say=heard.append)


def test_packages_that_are_neither_there_nor_carried_are_named_before_anything_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lock.txt").write_text("vllm==0.26.0\nnumba==0.65.0\ntorch==2.11.0\ntilelang==0.1.9\n")
    monkeypatch.setattr(visiting, "LOCK", tmp_path / "lock.txt")
    there = Machine(python="3.12.3", processor="x86_64", glibc="2.39", packages={"torch": "2.11.0"})
    monkeypatch.setattr(visiting.machine, "look", lambda: there)
    carried = ["vllm-0.26.0-cp38-abi3-manylinux_2_28_x86_64.whl", "a note.txt"]
    # torch is there, vllm is carried, and tilelang is left out by kit.toml.
    assert lacking_words(carried) == "! neither here nor carried: numba==0.65.0"
    carried.append("numba-0.65.0-cp312-cp312-linux_x86_64.whl")
    assert lacking_words(carried) == "all that is needed is here or carried"


def test_nothing_is_measured_when_a_module_that_servers_need_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(visiting.pieces, "join", lambda *_: 1)
    monkeypatch.setattr(visiting, "install", lambda *_, **__: Path(sys.executable))
    monkeypatch.setattr(visiting, "probe", lambda *_: {"torch": "2.11.0", "numba": "cannot be imported: numpy"})
    monkeypatch.setattr(Visit, "_begin_writing", lambda _: None)
    monkeypatch.setattr(Visit, "_measure", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "venv-install.log").write_text("pip's words")
    with pytest.raises(UsageError, match="numba cannot be imported; carry what is lacking"):
        make_visit(tmp_path).make(None, None)
    with tarfile.open(tmp_path / "out" / LOGS) as logs:
        assert logs.getnames() == ["venv-install.log"]
    assert json.loads((tmp_path / "out" / "machine.json").read_text())["processor"]


@pytest.mark.slow
def test_a_measurement_that_runs_over_is_stopped_in_time_to_pack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    visit = make_visit(tmp_path, seconds=1.0, said=said)
    monkeypatch.setattr(visiting, "PACK_S", 0.5)
    monkeypatch.setattr(visiting, "GRACE_S", 2.0)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    for script in ("import time; time.sleep(60)", stubborn):
        monkeypatch.setattr(visit, "_command", lambda *_, script=script: [sys.executable, "-c", script])
        assert visit._measure(Path(sys.executable)) == 1
        assert "it is stopped, and the next visit goes on" in said.pop()


Usage = collections.namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("bytes_there", "there"), [(64e9, True), (12e9, False)])
def test_models_are_written_to_a_ram_disk_that_has_room_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bytes_there: float, there: bool
) -> None:
    monkeypatch.setattr(visiting, "RAM_DISK", tmp_path)
    monkeypatch.setattr(visiting.shutil, "disk_usage", lambda _: Usage(bytes_there, 0, bytes_there))
    assert make_visit(tmp_path).models == (tmp_path / "loadgen-models" if there else tmp_path / "kit" / "models")
