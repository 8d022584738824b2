"""A grid's folder is copied to a URL run by run, and a grid is continued from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import package

from loadgen.cluster.archive import Archive, is_url
from loadgen.errors import StorageError, UsageError
from loadgen.record.grid import GridRecord, Place, Task, read_receipt, receipt_of, write_grid, write_receipt

package("fsspec")


def test_runs_go_to_the_url_and_come_back_byte_by_byte(tmp_path: Path) -> None:
    task = Task(id="a-g1", model="a", gpu=1, repeats=1, options={})
    folder, run_dir = tmp_path / "grid", tmp_path / "grid" / "runs" / "a-g1"
    (run_dir / "journal").mkdir(parents=True)
    (run_dir / "journal" / "001.jsonl").write_bytes(b"\x00one\n")
    write_receipt(run_dir, receipt_of(run_dir, task, 1, Place(node="n")))
    write_grid(folder, GridRecord(name="g", loadgen="0", simulated=True, tasks=(task,)))
    (folder / "study.toml").write_text("models = []\n")
    url = f"file://{tmp_path / 'there'}"
    archive = Archive(url)
    assert is_url(url) and not is_url(folder) and not archive.has_grid()
    archive.put(folder, ("study.toml", "runs/a-g1"))
    assert archive.has_grid()
    Archive(url).fetch(tmp_path / "back")
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert names == {path.relative_to(tmp_path / "back") for path in (tmp_path / "back").rglob("*") if path.is_file()}
    assert all((folder / name).read_bytes() == (tmp_path / "back" / name).read_bytes() for name in names)
    assert read_receipt(tmp_path / "back" / "runs" / "a-g1") is not None


def test_what_is_wrong_with_a_url_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--out nosuch://x: fsspec cannot open it"):
        Archive("nosuch://x")
    with pytest.raises(UsageError, match=r"no grid.json is there; begin a grid with"):
        Archive(f"file://{tmp_path}").fetch(tmp_path / "back")
    (tmp_path / "file").write_text("")
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "grid.json").write_text("{}")
    with pytest.raises(StorageError, match=r"cannot be written .*; to go on: loadgen grid --resume"):
        Archive(f"file://{tmp_path / 'file' / 'x'}").put(tmp_path / "grid", ())
