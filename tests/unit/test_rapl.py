"""RAPL from a made powercap tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from power_trace import at

from loadgen.errors import UsageError
from loadgen.power.energy import energy_of_window
from loadgen.power.rapl import RaplReader

RANGE_UJ = 262_143_328_850


def zone(root: Path, number: str, name: str, energy_uj: int = 0, limit_uw: int | None = None) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    if limit_uw is not None:
        (folder / "constraint_0_name").write_text("long_term\n")
        (folder / "constraint_0_power_limit_uw").write_text(f"{limit_uw}\n")
    return folder


def test_packages_only(tmp_path: Path) -> None:
    zone(tmp_path, "0", "package-0", limit_uw=165_000_000)
    zone(tmp_path, "0:0", "core")
    zone(tmp_path, "1", "package-1")
    zone(tmp_path, "2", "psys")
    infos = RaplReader(tmp_path).gpus()
    assert [(info.uuid, info.index, info.name) for info in infos] == [
        ("rapl:package-0", 0, "CPU package-0"),
        ("rapl:package-1", 1, "CPU package-1"),
    ]
    assert [info.power_limit_enforced_w for info in infos] == [165.0, None]
    assert infos[0].supported["counter_j"]
    assert not infos[0].supported["power_instant_w"]


def test_joules_and_no_power(tmp_path: Path) -> None:
    zone(tmp_path, "0", "package-0", 1_500_000, limit_uw=165_000_000)
    reader = RaplReader(tmp_path)
    sample = reader.read("rapl:package-0", slow=False)
    assert (sample.counter_j, sample.power_instant_w, sample.power_limit_w) == (1.5, None, None)
    assert reader.read("rapl:package-0", slow=True).power_limit_w == 165.0


class Clock:
    """A clock that the test moves, 1 ms further at each look."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns


def test_the_counter_goes_on_when_it_wraps_around(tmp_path: Path) -> None:
    folder = zone(tmp_path, "0", "package-0", RANGE_UJ - 2_000_000)
    clock = Clock()
    reader = RaplReader(tmp_path, clock_ns=clock)
    first_j = reader.read("rapl:package-0", slow=False).counter_j or 0
    for turn in range(3):
        clock.now_ns += 25_000_000
        (folder / "energy_uj").write_text("3000000\n")
        sample = reader.read("rapl:package-0", slow=False)
        assert sample.counter_j == pytest.approx(first_j + 5.0 + turn * RANGE_UJ / 1e6)
        clock.now_ns += 600_000_000_000
        (folder / "energy_uj").write_text(f"{RANGE_UJ - 2_000_000}\n")
        reader.read("rapl:package-0", slow=False)


def test_a_wrap_of_more_than_5_kw_is_a_reset(tmp_path: Path) -> None:
    # 150 J in some 28 ms would be 5.4 kW; 100 J would be 3.6 kW.
    folder = zone(tmp_path, "0", "package-0", RANGE_UJ - 60_000_000)
    clock = Clock()
    reader = RaplReader(tmp_path, clock_ns=clock)
    before = reader.read("rapl:package-0", slow=False)
    clock.now_ns += 25_000_000
    (folder / "energy_uj").write_text("90000000\n")
    after = reader.read("rapl:package-0", slow=False)
    assert (before.counter_j, after.counter_j) == ((RANGE_UJ - 60_000_000) / 1e6, 90.0)
    (folder / "energy_uj").write_text(f"{RANGE_UJ - 60_000_000}\n")
    reader.read("rapl:package-0", slow=False)
    clock.now_ns += 25_000_000
    (folder / "energy_uj").write_text("40000000\n")
    assert reader.read("rapl:package-0", slow=False).counter_j == pytest.approx((RANGE_UJ + 40_000_000) / 1e6)


def test_one_wrong_reading_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zone(tmp_path, "0", "package-0", 200_000_000_000) / "energy_uj"
    reader = RaplReader(tmp_path)
    answers = iter(["0\n", "200000500000\n"])
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a: next(answers) if self == path else read_text(self, *a))
    assert reader.read("rapl:package-0", slow=False).counter_j == 200_000.5
    assert next(answers, None) is None


def test_packages_of_one_name_stay_apart(tmp_path: Path) -> None:
    zone(tmp_path, "0", "package-0", 1_000_000)
    zone(tmp_path, "0:0", "dram", 9_000_000)
    zone(tmp_path, "1", "package-0", 2_000_000)
    zone(tmp_path, "1:0", "dram", 9_000_000)
    zone(tmp_path, "10", "package-1", 3_000_000)
    zone(tmp_path, "2", "psys", 9_000_000)
    reader = RaplReader(tmp_path)
    uuids = [info.uuid for info in reader.gpus()]
    assert uuids == ["rapl:package-0@intel-rapl:0", "rapl:package-0@intel-rapl:1", "rapl:package-1"]
    assert [reader.read(uuid, slow=False).counter_j for uuid in uuids] == [1.0, 2.0, 3.0]


def test_the_highest_limit_bounds_a_package(tmp_path: Path) -> None:
    folder = zone(tmp_path, "0", "package-0", limit_uw=165_000_000)
    (folder / "constraint_1_name").write_text("short_term\n")
    (folder / "constraint_1_power_limit_uw").write_text("250000000\n")
    (info,) = RaplReader(tmp_path).gpus()
    assert (info.power_limit_enforced_w, info.power_limit_max_w, info.scope) == (165.0, 250.0, "package")


def test_a_module_loaded_anew_is_a_reset_not_a_turn(tmp_path: Path) -> None:
    folder = zone(tmp_path, "0", "package-0", 90_000_000_000)
    reader = RaplReader(tmp_path)
    before = reader.read("rapl:package-0", slow=False)
    (folder / "energy_uj").write_text("1000000\n")
    after = reader.read("rapl:package-0", slow=False)
    assert (before.counter_j, after.counter_j) == (90_000.0, 1.0)


def test_the_window_code_takes_it(tmp_path: Path) -> None:
    folder = zone(tmp_path, "0", "package-0")
    reader = RaplReader(tmp_path)
    samples = []
    for tick in range(2000):  # 50 s at 25 ms and 80 W: 2 J a tick
        (folder / "energy_uj").write_text(str(tick * 2_000_000))
        samples.append(at(tick * 0.025, counter_j=reader.read("rapl:package-0", slow=False).counter_j))
    energy = energy_of_window(samples, samples[100].t_ns, samples[1900].t_ns)
    assert energy.counter_j == pytest.approx(1800 * 2)
    assert (energy.verdict, len(energy.reasons)) == ("warning", 1)
    assert "no instantaneous power" in energy.reasons[0]


def test_a_zone_that_fails_later_is_an_error_of_that_tick(tmp_path: Path) -> None:
    folder = zone(tmp_path, "0", "package-0")
    reader = RaplReader(tmp_path)
    (folder / "energy_uj").unlink()
    sample = reader.read("rapl:package-0", slow=True)
    assert sample.counter_j is None
    assert sample.errors[0].startswith("counter_j: ")


def test_no_tree_and_no_packages_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no RAPL package zone under .*nowhere: load the kernel module"):
        RaplReader(tmp_path / "nowhere")
    zone(tmp_path, "0", "psys")
    with pytest.raises(UsageError, match="no RAPL package zone"):
        RaplReader(tmp_path)


def test_an_unreadable_counter_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zone(tmp_path, "0", "package-0") / "energy_uj"
    path.chmod(0)
    if os.geteuid() == 0:  # root may read it all the same: the kernel's answer to others, made

        def refuse(self: Path) -> str:
            if self == path:
                raise PermissionError(13, "Permission denied", str(self))
            return self.read_bytes().decode()

        monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UsageError, match=r"only root may read .*energy_uj: run `loadgen exporter --source rapl`"):
        RaplReader(tmp_path)


def test_a_broken_zone_says_what_is_wrong(tmp_path: Path) -> None:
    (zone(tmp_path, "0", "package-0") / "energy_uj").write_text("nonsense")
    with pytest.raises(UsageError, match=r"cannot be read .*choose --power none"):
        RaplReader(tmp_path)
