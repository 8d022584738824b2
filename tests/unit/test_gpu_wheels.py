"""The GPU kit's wheels: what of a lock is fetched for a machine, made smaller, installed there without a network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from made_wheel import make_wheel

import loadgen
from bench.gpu import wheels
from bench.gpu.machine import Machine, look, read_machine, to_json
from bench.gpu.wheels import Pin, choose, fetch, install, platforms, probe, read_lock, trim
from loadgen.errors import UsageError

KIT = Path(__file__).parents[2] / "bench" / "gpu"
THERE = Machine(python="3.12.3", processor="x86_64", glibc="2.31", packages={"numpy": "2.5.2", "torch": "2.11.0"})


def test_the_shipped_lock_names_one_version_of_each_and_leaves_out_only_what_it_has() -> None:
    import tomllib

    pins = read_lock(KIT / "wheels.txt")
    names = [pin.name for pin in pins]
    assert len(set(names)) == len(names)
    assert {"vllm", "torch", "bitsandbytes", "msgspec"} <= set(names)
    settings = tomllib.loads((KIT / "kit.toml").read_text())
    assert set(settings["leave_out"]) <= set(names)
    assert set(settings["trim"]) <= set(names)
    assert next(pin.version for pin in pins if pin.name == "torch") == "2.11.0", (
        "the machine's own, which is not fetched"
    )


def test_only_what_the_machine_lacks_and_the_study_needs_is_fetched() -> None:
    pins = [Pin("vllm", "0.26.0"), Pin("torch", "2.11.0"), Pin("numpy", "2.3.5"), Pin("tilelang", "0.1.9")]
    chosen = choose(pins, THERE, {"tilelang": "not used"})
    assert [str(pin) for pin in chosen.fetch] == ["vllm==0.26.0"]
    assert [pin.name for pin in chosen.there] == ["torch", "numpy"]
    assert [pin.name for pin in chosen.left_out] == ["tilelang"]
    asked = choose(pins, THERE, {"tilelang": "not used"}, also=["tilelang", "NumPy"])
    assert [pin.name for pin in asked.fetch] == ["vllm", "numpy", "tilelang"]
    with pytest.raises(UsageError, match="--also nothing: the lock has no such package"):
        choose(pins, THERE, {}, also=["nothing"])


@pytest.mark.parametrize("line", ["vllm>=0.26", "vllm", "vllm==0.26.0 --hash=md5:00", "-e ."])
def test_a_lock_holds_exact_versions_only(tmp_path: Path, line: str) -> None:
    (tmp_path / "lock.txt").write_text(f"# a comment\nmsgspec==0.22.0\n{line}\n")
    with pytest.raises(UsageError, match=r"line 3: .* is not of the form NAME==VERSION"):
        read_lock(tmp_path / "lock.txt")


def test_wheels_run_on_the_glibc_they_were_built_for_and_newer_ones() -> None:
    tags = platforms(THERE)
    assert tags[0] == "manylinux_2_31_x86_64"
    assert "manylinux_2_17_x86_64" in tags
    assert "manylinux2014_x86_64" in tags
    assert "manylinux_2_34_x86_64" not in tags


def test_a_fetch_goes_on_where_it_was_and_forgets_what_is_no_longer_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(pin: Pin, machine: Machine, out: Path) -> None:
        asked.append(pin.name)
        if asked == ["one", "two"]:
            raise UsageError("the network is gone")
        make_wheel(out, pin.name, pin.version)

    monkeypatch.setattr(wheels, "_download", download)
    choice = choose([Pin("one", "1.0"), Pin("two", "1.0")], THERE, {})
    with pytest.raises(UsageError, match="the network is gone"):
        fetch(choice, THERE, tmp_path, say=lambda _: None)
    assert [path.name for path in fetch(choice, THERE, tmp_path, say=lambda _: None)] == [
        "one-1.0-py3-none-any.whl", "two-1.0-py3-none-any.whl",
    ]  # fmt: skip
    assert asked == ["one", "two", "two"]
    newer = choose([Pin("one", "1.0", ("0" * 64,))], THERE, {})
    with pytest.raises(UsageError, match="no such wheel"):
        fetch(newer, THERE, tmp_path, say=lambda _: None)


def test_trimming_drops_members_keeps_the_record_true_and_compresses(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels")
    (one,) = trim(tmp_path / "wheels", tmp_path / "out", {})
    assert one.bytes < one.bytes_before / 10, "repeated text, stored before and packed now"
    (tmp_path / "out" / one.name).unlink()
    (two,) = trim(tmp_path / "wheels", tmp_path / "out", {"kit-example": ["kit_example/*.so"]})
    assert two.dropped == ("kit_example/large.so",)
    with zipfile.ZipFile(tmp_path / "out" / two.name) as wheel:
        assert wheel.testzip() is None
        assert "kit_example/large.so" not in wheel.namelist()
        record = wheel.read("kit_example-1.0.dist-info/RECORD").decode()
    assert "large.so" not in record
    assert "kit_example/__init__.py,sha256=" in record


def test_a_pattern_for_another_version_or_of_what_must_stay_is_refused(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels")
    with pytest.raises(UsageError, match=r"nothing in it matches '\*\.dll'"):
        trim(tmp_path / "wheels", tmp_path / "out", {"kit-example": ["*.dll"]})
    with pytest.raises(UsageError, match="METADATA must stay"):
        trim(tmp_path / "wheels", tmp_path / "out", {"kit-example": ["*METADATA"]})


def test_trimmed_wheels_install_without_a_network_beside_what_is_there(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels")
    trim(tmp_path / "wheels", tmp_path / "trimmed", {"kit-example": ["kit_example/large.so"]})
    said: list[str] = []
    python = install(tmp_path / "trimmed", tmp_path / "venv", say=said.append)
    assert probe(python, ["kit_example", "msgspec", "loadgen", "nowhere"]) == {
        "kit_example": "1.0",
        "msgspec": subprocess.run(
            [sys.executable, "-c", "import msgspec; print(msgspec.__version__)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip(),
        "loadgen": loadgen.__version__,
        "nowhere": "cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
    }
    assert install(tmp_path / "trimmed", tmp_path / "venv", say=said.append) == python
    assert said[-1].startswith("1 wheels are already in ")


def test_what_a_machine_has_survives_the_journey(tmp_path: Path) -> None:
    seen = look()
    assert seen.packages["msgspec"]
    (tmp_path / "machine.json").write_text(to_json(replace(seen, gpus=("a GPU",))))
    assert read_machine(tmp_path / "machine.json").gpus == ("a GPU",)
    with pytest.raises(UsageError, match="make it there with"):
        read_machine(tmp_path / "none.json")
    (tmp_path / "machine.json").write_text('{"python": "3.12"}')
    with pytest.raises(UsageError, match="is not what `look` prints"):
        read_machine(tmp_path / "machine.json")
