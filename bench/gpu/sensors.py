"""Sensors: what a GPU's power sensors are like, from raw samples of it at rest, under steady and under pulsed load."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from loadgen.errors import UsageError
from loadgen.power.energy import energy_of_window
from loadgen.power.nvml import NvmlReader
from loadgen.power.sample import GpuInfo, PowerSample
from loadgen.power.sampler import Sampler, SamplerStatistics
from loadgen.power.trace import Calibration, calibrate
from loadgen.record.journal import Journal, read_records

STATES = ("idle", "loaded", "pulsed")
PERIOD_S = 0.005
"""Four times as often as a sweep samples, so that updates of 20 ms are seen as such."""
PULSE_S = 0.5
SETTLE_S = 2.0
"""Before a state is watched; clocks and mean power follow a load by about a second."""
EDGE_S = 0.5
"""The energy leaves so much out at both ends, so that updates of the counter lie beyond its edges."""
PROJECT = Path(__file__).resolve().parents[2]


class Sensors(msgspec.Struct, frozen=True, kw_only=True):
    """What was found beside the samples, in sensors.json."""

    gpu: GpuInfo
    """With `supported`: which fields it has."""
    statistics: dict[str, SamplerStatistics]
    """State -> how well the sampler kept its time."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One state of the GPU, computed from its samples."""

    calibration: Calibration
    counter_j: float | None
    integral_j: float | None
    ratio: float | None
    """Integral of instantaneous power / counter."""
    power_w_mean: float | None
    read_ms_p50: float
    """How long a reading of the fast fields takes."""
    read_ms_p99: float


def measure(folder: Path, *, seconds: float, torch_python: Path | None) -> None:
    """Writes STATE.jsonl for each state and sensors.json last. Without `torch_python` only the idle state.

    Raises UsageError without NVML, or when several GPUs are here and CUDA_VISIBLE_DEVICES chooses none.
    """
    reader = NvmlReader()
    gpus = reader.gpus()
    if len(gpus) != 1:
        reader.close()
        raise UsageError(f"{len(gpus)} GPUs are here and the kit characterizes one; give the machine one GPU")
    gpu = gpus[0]
    folder.mkdir(parents=True, exist_ok=True)
    statistics = {}
    try:
        for state in STATES if torch_python else STATES[:1]:
            with _load(state, seconds, torch_python):
                statistics[state] = _watch(reader, gpu.uuid, folder / f"{state}.jsonl", seconds)
        found = Sensors(gpu=reader.gpus()[0], statistics=statistics)
    finally:
        reader.close()
    (folder / "sensors.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")


def read_sensors(folder: Path) -> tuple[Sensors, dict[str, Finding]]:
    """What `measure` left: the GPU, and state -> finding, computed anew from the raw samples."""
    found = msgspec.json.decode((folder / "sensors.json").read_bytes(), type=Sensors)
    return found, {state: finding(list(_samples(folder / f"{state}.jsonl"))) for state in found.statistics}


def finding(samples: Sequence[PowerSample]) -> Finding:
    """One GPU's finding; the energy is that between EDGE_S after the first and EDGE_S before the last."""
    edge_ns = round(EDGE_S * 1e9)
    energy = energy_of_window(samples, samples[0].t_ns + edge_ns, samples[-1].t_ns - edge_ns)
    latencies_ms = np.array([sample.latency_ns for sample in samples if sample.temperature_c is None]) / 1e6
    return Finding(
        calibration=next(iter(calibrate(samples).values())),
        counter_j=energy.counter_j,
        integral_j=energy.integral_j,
        ratio=energy.ratio,
        power_w_mean=energy.power_w_mean,
        read_ms_p50=float(np.percentile(latencies_ms, 50)),
        read_ms_p99=float(np.percentile(latencies_ms, 99)),
    )


def _samples(path: Path) -> Iterator[PowerSample]:
    return (record for record in read_records(path) if isinstance(record, PowerSample))


def _watch(reader: NvmlReader, uuid: str, path: Path, seconds: float) -> SamplerStatistics:
    path.unlink(missing_ok=True)
    time.sleep(SETTLE_S)
    with Sampler(reader, [uuid], period_s=PERIOD_S, history_s=seconds + 10) as sampler:
        time.sleep(seconds)
    _, _, samples = sampler.since(0)
    journal = Journal(path)
    for sample in samples:
        journal.append(sample)
    journal.close()
    return sampler.statistics()


@contextmanager
def _load(state: str, seconds: float, python: Path | None) -> Iterator[None]:
    """The load of a state, running until the state has been watched."""
    if state == "idle":
        yield
        return
    command = [str(python), "-m", "bench.gpu.load", "--seconds", str(seconds + SETTLE_S + 5)]
    command += ["--pulse", str(PULSE_S)] if state == "pulsed" else []
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "busy":
                raise UsageError(f"the load of state {state} did not start: {process.stdout.read()[-500:].strip()}")
            yield
        finally:
            process.terminate()
