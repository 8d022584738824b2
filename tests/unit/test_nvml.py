"""The NVML reader on the real nvidia-ml-py, which loads a stub library of known power in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from nvml_stub.build import Curve, build_stub, uuid_of

from loadgen.power.energy import energy_of_window
from loadgen.power.nvml import scope_of
from loadgen.power.sample import GpuInfo, PowerSample, UnreadableGpu
from loadgen.power.sampler import SamplerStatistics

READ = """
import sys
import msgspec
from loadgen.errors import UsageError
from loadgen.power.nvml import NvmlReader
from loadgen.power.sample import GpuLostError
try:
    reader = NvmlReader()
    uuid = reader.gpus()[0].uuid
    samples = [reader.read(uuid, slow=slow) for slow in (True, False)]
    seen = {"gpus": reader.gpus(), "samples": samples, "unreadable": reader.unreadable}
    print(msgspec.json.encode(seen).decode())
    reader.close()
except UsageError as error:
    sys.exit(str(error))
"""

SAMPLE = """
import time
import msgspec
from loadgen.power.nvml import NvmlReader
from loadgen.power.nvml import scope_of
from loadgen.power.sampler import Sampler
reader = NvmlReader()
with Sampler(reader, [info.uuid for info in reader.gpus()]) as sampler:
    time.sleep(0.35)
    t0_ns = time.monotonic_ns()
    time.sleep(1.5)
    t1_ns = time.monotonic_ns()
    time.sleep(0.35)
_, lost, samples = sampler.since(0)
assert lost == 0
print(msgspec.json.encode(
    {"gpus": reader.gpus(), "samples": samples, "window": [t0_ns, t1_ns], "statistics": sampler.statistics()}
).decode())
"""


class Seen(msgspec.Struct):
    gpus: list[GpuInfo]
    samples: list[PowerSample]
    unreadable: list[UnreadableGpu] = []
    window: tuple[int, int] = (0, 0)
    statistics: SamplerStatistics | None = None


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("nvml"))


def run(script: str, library: Path, curve: Curve | None = None, **settings: object) -> subprocess.CompletedProcess[str]:
    environment = (curve or Curve()).environment(library, **settings)
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)


def see(script: str, library: Path, curve: Curve | None = None, **settings: object) -> Seen:
    ended = run(script, library, curve, **settings)
    assert ended.returncode == 0, ended.stderr
    return msgspec.json.decode(ended.stdout, type=Seen)


def refusal(library: Path, **settings: object) -> str:
    ended = run(READ, library, **settings)
    assert ended.returncode == 1
    return ended.stderr.strip()


def test_every_field_in_its_unit(library: Path) -> None:
    seen = see(READ, library, Curve(base_w=300, swing_w=0))
    (info,) = seen.gpus
    assert (info.uuid, info.name, info.driver, info.vbios) == (uuid_of(0), "Stub GPU", "570.00-stub", "00.00.stub")
    assert (info.power_limit_enforced_w, info.power_limit_default_w, info.power_limit_max_w) == (650, 700, 700)
    assert (info.memory_total_bytes, info.mig, info.simulated) == (80 << 30, False, False)
    assert all(info.supported.values())
    assert len(info.supported) == 10
    slow, fast = seen.samples
    assert (slow.power_instant_w, slow.power_average_w) == (300, 300)
    assert (slow.temperature_c, slow.sm_clock_hz, slow.memory_clock_hz) == (55, 1.98e9, 2.619e9)
    assert (slow.throttle_reasons, slow.power_limit_w, slow.memory_used_bytes) == (0, 650, 10 << 30)
    assert slow.utilization == pytest.approx(0.83)
    assert fast.utilization is None
    assert fast.power_instant_w == 300
    assert (fast.temperature_c, fast.throttle_reasons, fast.memory_used_bytes) == (None, None, None)


def test_sampled_energy_is_the_curves(library: Path) -> None:
    # Per edge the counter's update is known to half a gap g, and the line between two updates 0.1 s apart is off by at
    # most swing * 0.1 / 4. Each of the curve's steps costs the integral at most swing * g / 2.
    curve = Curve(base_w=300, swing_w=200, swing_period_ms=700)
    seen = see(SAMPLE, library, curve, GPUS=2)
    assert {sample.gpu for sample in seen.samples} == {uuid_of(0), uuid_of(1)}
    for index in (0, 1):
        samples = [s for s in seen.samples if s.gpu == uuid_of(index)]
        energy = energy_of_window(samples, *seen.window)
        gap_s = max(b.t_ns - a.t_ns for a, b in pairwise(samples)) / 1e9
        steps = (seen.window[1] - seen.window[0]) / 350e6 + 1
        true_j = curve.energy_j(*seen.window, index=index)
        highest_w = 500 + 100 * index
        assert energy.counter_j == pytest.approx(true_j, abs=2 * (highest_w * gap_s / 2 + 200 * 0.1 / 4))
        assert energy.integral_j == pytest.approx(true_j, abs=steps * 200 * gap_s / 2)
        assert (energy.temperature_c_max, energy.throttle_reasons) == (55, 0)
    assert seen.statistics is not None
    assert seen.statistics.ticks * 2 == len(seen.samples) + sum(seen.statistics.slow_reads.values())


def test_stamps_enclose_the_reading(library: Path) -> None:
    # The counter of a GPU at 300 W updated each millisecond dates its own reading: t = J / 300 W.
    seen = see(READ, library, Curve(counter_period_ms=1))
    for sample in seen.samples:
        assert sample.counter_j is not None
        dated_ns = sample.counter_j / 300 * 1e9
        assert sample.t_ns - dated_ns == pytest.approx(0, abs=sample.latency_ns / 2 + 1.01e6)


@pytest.mark.parametrize("code", [3, 13])
def test_an_unsupported_field_is_given_up_and_the_others_stay(library: Path, code: int) -> None:
    seen = see(READ, library, FAIL=f"186:{code},Temperature:{code}")
    supported = seen.gpus[0].supported
    assert [name for name in supported if not supported[name]] == ["power_instant_w", "temperature_c"]
    for sample in seen.samples:
        assert (sample.power_instant_w, sample.power_average_w, sample.errors) == (None, 300, ())
        assert sample.counter_j is not None


def test_a_field_that_fails_otherwise_is_asked_again_and_named(library: Path) -> None:
    seen = see(READ, library, FAIL="83:999,Temperature:4")
    assert seen.gpus[0].supported["counter_j"]
    slow, fast = seen.samples
    assert slow.errors == ("counter_j: NVML_ERROR_UNKNOWN", "temperature_c: NVML_ERROR_NO_PERMISSION")
    assert fast.errors == ("counter_j: NVML_ERROR_UNKNOWN",)
    assert (fast.counter_j, fast.power_instant_w) == (None, 300)


def test_a_call_that_fails_names_each_of_its_fields(library: Path) -> None:
    sample = see(READ, library, FAIL="FieldValues:999").samples[1]
    assert sample.errors == tuple(
        f"{name}: NVML_ERROR_UNKNOWN" for name in ("counter_j", "power_instant_w", "power_average_w")
    )


@pytest.mark.parametrize(("architecture", "name"), [(8, "power_average_w"), (6, "power_instant_w")])
def test_without_the_field_call_power_usage_bears_its_true_name(library: Path, architecture: int, name: str) -> None:
    # nvmlDeviceGetPowerUsage is a mean of one second from Ampere (7) on and momentary before.
    seen = see(READ, library, FAIL="FieldValues:13", ARCH=architecture)
    supported = seen.gpus[0].supported
    assert supported["counter_j"]
    assert [power for power in ("power_instant_w", "power_average_w") if supported[power]] == [name]
    for sample in seen.samples:
        assert sample.counter_j is not None
        assert getattr(sample, name) == 300


@pytest.mark.parametrize(("architecture", "name"), [(8, "power_average_w"), (6, "power_instant_w")])
def test_power_usage_stands_in_for_missing_power_fields(library: Path, architecture: int, name: str) -> None:
    seen = see(READ, library, FAIL="186:3,185:3", ARCH=architecture)
    for sample in seen.samples:
        assert sample.counter_j is not None
        readings = {"power_instant_w": sample.power_instant_w, "power_average_w": sample.power_average_w}
        assert {field: watts for field, watts in readings.items() if watts is not None} == {name: 300}
    assert seen.gpus[0].supported["counter_j"]
    assert seen.gpus[0].supported[name]


def test_processes_are_listed_with_what_proc_says_of_them(library: Path, tmp_path: Path) -> None:
    listed = tmp_path / "processes"
    listed.write_text(f"0 {os.getpid()} 1536\n0 -1 64\n1 77 5\n0 4194999 512\n")
    slow, fast = see(READ, library, GPUS=2, PROCESSES=listed).samples
    assert fast.processes is None
    assert slow.processes is not None
    one, own, unseen = slow.processes
    assert (one.pid, one.kind, one.memory_bytes) == (1, "graphics", 64 << 20)
    assert (own.pid, own.kind, own.memory_bytes) == (os.getpid(), "compute", 1536 << 20)
    assert {os.getpid(), os.getpgid(0), os.getsid(0), os.getppid()} <= set(own.lineage)
    assert own.name
    assert (unseen.pid, unseen.name, unseen.lineage) == (4194999, None, ())
    assert str(unseen) == "process 4194999 (name not readable, 0.5 GiB)"


def test_no_process_is_not_the_same_as_no_list(library: Path) -> None:
    assert see(READ, library).samples[0].processes == ()
    missing = see(READ, library, FAIL="ComputeRunningProcesses:3,GraphicsRunningProcesses:13").samples[0]
    assert (missing.processes, missing.errors) == (None, ())
    refused = see(READ, library, FAIL="ComputeRunningProcesses:4").samples[0]
    assert (refused.processes, refused.errors) == (None, ("processes: NVML_ERROR_NO_PERMISSION",))


@pytest.mark.parametrize(("code", "name"), [(15, "GPU_IS_LOST"), (4, "NO_PERMISSION"), (999, "UNKNOWN")])
def test_one_unreadable_gpu_does_not_take_the_others_away(library: Path, code: int, name: str) -> None:
    seen = see(READ, library, GPUS=3, HANDLE=f"1:{code}")
    assert [info.uuid for info in seen.gpus] == [uuid_of(0), uuid_of(2)]
    (other,) = seen.unreadable
    assert str(other) == f"GPU 1 cannot be read (NVML_ERROR_{name})"
    assert seen.samples[0].power_instant_w == 300


def test_a_gpu_that_is_lost_when_it_is_read_is_listed_by_its_uuid(library: Path) -> None:
    seen = see(READ, library, GPUS=2, LOST_AFTER_MS=0, FAIL_GPU=1)
    assert [info.uuid for info in seen.gpus] == [uuid_of(0)]
    assert str(seen.unreadable[0]) == f"GPU 1 {uuid_of(1)} cannot be read (NVML_ERROR_GPU_IS_LOST)"


def test_a_name_that_is_not_utf_8_does_not_hide_its_gpu(library: Path) -> None:
    (info,) = see(READ, library, NAME="RTX \udcff\udcfe").gpus
    assert (info.uuid, info.name) == (uuid_of(0), "RTX \ufffd\ufffd")


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("NVIDIA GH200 480GB", "module"),
        ("NVIDIA GB200", "module"),
        ("NVIDIA GB300", "module"),
        ("Grace Hopper Superchip", "module"),
        ("NVIDIA H200", "gpu"),
        ("NVIDIA B200", "gpu"),
        ("NVIDIA GeForce GTX 1080", "gpu"),
    ],
)
def test_a_superchips_counter_is_the_modules(name: str, scope: str) -> None:
    assert scope_of(name) == scope


def test_older_names_of_functions_are_used_where_the_newer_are_missing(library: Path) -> None:
    seen = see(READ, library, FAIL="CurrentClocksEventReasons:13,MemoryInfo_v2:13", THROTTLE=0x40)
    assert (seen.samples[0].throttle_reasons, seen.samples[0].memory_used_bytes) == (0x40, 11 << 30)
    assert seen.gpus[0].supported["throttle_reasons"]


def test_a_gpu_lost_while_sampled_makes_its_window_invalid(library: Path) -> None:
    seen = see(SAMPLE, library, GPUS=2, LOST_AFTER_MS=1200, FAIL_GPU=0)
    lost, other = ([s for s in seen.samples if s.gpu == uuid_of(i)] for i in (0, 1))
    assert lost[-1].errors == ("gpu: NVML_ERROR_GPU_IS_LOST",)
    energy = energy_of_window(lost, *seen.window)
    assert (energy.verdict, energy.energy_j) == ("invalid", None)
    assert "the GPU was lost" in energy.reasons[0]
    assert energy_of_window(other, *seen.window).verdict == "warning"  # for its 1.5 s only
    assert seen.statistics is not None
    assert seen.statistics.lost == {uuid_of(0): "NVML_ERROR_GPU_IS_LOST"}


def test_a_counter_reset_while_sampled_makes_its_window_invalid(library: Path) -> None:
    seen = see(SAMPLE, library, RESET_AFTER_MS=1200)
    energy = energy_of_window(seen.samples, *seen.window)
    assert energy.verdict == "invalid"
    assert any("it was reset" in reason for reason in energy.reasons)


def test_mig_mode_is_seen(library: Path) -> None:
    assert see(READ, library, MIG=1).gpus[0].mig


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"INIT": 9}, "NVIDIA's driver does not answer (NVML_ERROR_DRIVER_NOT_LOADED): check whether nvidia-smi works"),
        ({"INIT": 18}, "NVML's library and the loaded driver differ in version: reboot"),
        ({"GPUS": 0}, "NVML shows no GPU"),
        ({"LOST_AFTER_MS": 0}, f"the GPU {uuid_of(0)} does not answer (NVML_ERROR_GPU_IS_LOST): reset it"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_remedy(library: Path, settings: dict[str, object], said: str) -> None:
    assert refusal(library, **settings).startswith(said)


def test_without_the_library_the_driver_is_asked_for(tmp_path: Path) -> None:
    broken = tmp_path / "libnvidia-ml.so.1"  # in front of a real one, should there be one
    broken.write_text("no library")
    assert refusal(broken).startswith("libnvidia-ml.so.1 is not installed: install NVIDIA's driver")
