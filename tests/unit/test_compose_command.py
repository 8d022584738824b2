"""`loadgen compose`: what it writes, what it leaves alone, and that a wheel holds all of it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from loadgen.cli.compose import command
from loadgen.errors import UsageError
from loadgen.serving.compose import DATA, write_project
from loadgen.serving.recipe import data_dir

ROOT = Path(__file__).parents[2]


def test_the_written_project_holds_what_images_are_built_from(tmp_path: Path) -> None:
    written = write_project(tmp_path / "stack")
    assert {path.name for path in written} == {*DATA, "loadgen"}
    for name in ("docker/compose.yaml", "docker/.env", "docker/loadgen.Dockerfile", "docker/prometheus/prometheus.yaml",
                 "dashboards/run.json", "servers/fp16.toml", "pyproject.toml", ".dockerignore",
                 "loadgen/cli/compose.py"):  # fmt: skip
        assert (tmp_path / "stack" / name).read_bytes() == (ROOT / name).read_bytes(), name
    assert not list((tmp_path / "stack").rglob("__pycache__"))


def test_a_project_that_is_there_is_replaced_only_when_forced(tmp_path: Path) -> None:
    write_project(tmp_path)
    mine = tmp_path / "docker" / "override.env"
    mine.write_text("FP16_GPU=1\n", encoding="utf-8")
    changed = tmp_path / "docker" / "compose.yaml"
    changed.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"already holds docker, .*--force"):
        write_project(tmp_path)
    assert changed.read_text(encoding="utf-8") == "mine"
    write_project(tmp_path, force=True)
    assert changed.read_bytes() == (ROOT / "docker" / "compose.yaml").read_bytes()
    assert mine.read_text(encoding="utf-8") == "FP16_GPU=1\n"


def test_the_checkout_itself_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the project's own folder"):
        write_project(ROOT, force=True)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        write_project(tmp_path / "file" / "stack")


def test_the_command_says_what_to_do_next_and_where_the_data_lies(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    done = CliRunner().invoke(command, ["--dir", str(folder)])
    assert done.exit_code == 0
    assert f"cd {folder}/docker && docker compose up" in done.output
    assert f"loadgen sweep --compose {folder}" in done.output
    assert "SIMULATED" in done.output
    shown = CliRunner().invoke(command, ["--print-dir"])
    assert Path(shown.output.strip()) == data_dir()
    assert (data_dir() / "docker" / "compose.yaml").is_file()


@pytest.mark.slow
def test_a_wheel_holds_the_whole_project(tmp_path: Path) -> None:
    """Built from a written-out project, as the images are; installed, it writes the same project again."""
    write_project(tmp_path / "one")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), "./one"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
    two = tmp_path / "two"
    subprocess.run(
        [sys.executable, "-m", "loadgen", "compose", "--dir", str(two)],
        cwd=tmp_path / "site", env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}, check=True, capture_output=True,
    )  # fmt: skip
    first = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in _files(tmp_path / "one")}
    again = {path.relative_to(two): path.read_bytes() for path in _files(two)}
    assert again == first


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
