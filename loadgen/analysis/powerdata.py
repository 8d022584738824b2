"""PowerData: the power samples beside one server, GPU by GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from loadgen.analysis.forked import forked
from loadgen.folder import Folder
from loadgen.power.owners import Owners
from loadgen.power.sample import GpuInfo, PowerSample, Scope
from loadgen.power.trace import Calibration, PowerTrace, calibration_of, traces_of
from loadgen.record.journal import known_records, power_file, read_lines

Server = tuple[str, int, int]
"""Target, repeat and session."""
EDGE_NS = 3_000_000_000
"""How far beyond a window's edges samples are of use."""
TAIL_BYTES = 1 << 20
"""What is read first of the end of a file: 60 s of a GPU at 50 samples a second."""

_decode_lines = msgspec.json.Decoder(PowerSample).decode_lines


class PowerData(msgspec.Struct, frozen=True, kw_only=True):
    """Samples of one server's life and what the manifest knows of its GPUs."""

    samples: dict[str, PowerTrace]
    """By GPU."""
    rest_w: dict[str, float | None]
    """Power with the model loaded and nothing asked."""
    damaged: int
    """Lines of the file that were no longer what had been written, and are left out."""
    limit_default_w: float | None
    """Sum of the GPUs' default limits, the board power that NVML knows."""
    memory_total_bytes: int | None = None
    mig: tuple[str, ...] = ()
    """GPUs in MIG mode: their joules are not this server's alone."""
    limits_w: dict[str, float | None] = {}
    """By GPU: the limit that its power may not exceed."""
    scopes: dict[str, Scope] = {}
    """By GPU: what its energy counter counts."""
    owners: Owners | None = None
    """Whose the processes on the GPUs are; None where nobody asked."""

    def calibration(self) -> dict[str, Calibration]:
        """By GPU: update periods and resolution of its sensors, as these samples show them."""
        return {gpu: calibration_of(trace) for gpu, trace in self.samples.items() if len(trace)}

    def around(self, t0_ns: int, t1_ns: int) -> list[PowerTrace]:
        """Of each GPU what a window from t0 to t1 needs; of one without a sample there its last one, which says why."""
        near = [(trace, trace.between(t0_ns - EDGE_NS, t1_ns + EDGE_NS)) for trace in self.samples.values()]
        return [found if len(found) else trace.last() for trace, found in near]


def read_powers(run_dir: Path, manifest: dict[str, Any], processes: int) -> dict[Server, PowerData]:
    """The power data of every server whose power was measured."""
    config, sessions = manifest["config"], max(1, len(manifest.get("sessions", ())))
    servers = [
        (target["name"], repeat, session)
        for session in range(1, sessions + 1)
        for repeat in range(1, config["repeats"] + 1)
        for target in config["targets"]
    ]
    found = forked([partial(read_power, run_dir, manifest, *server) for server in servers], processes)
    return {server: power for server, power in zip(servers, found, strict=True) if power is not None}


def read_power(
    run_dir: Path,
    manifest: dict[str, Any],
    target: str,
    repeat: int,
    session: int = 1,
    *,
    since_ns: int | None = None,
) -> PowerData | None:
    """The power data of one server, or None if its power was not measured.

    With `since_ns` no more of the file is read than a window from there on needs.
    """
    path = power_file(run_dir, target, repeat, session)
    if not Folder(path.parent).has(path.name):
        return None
    block: dict[str, Any] = next(
        (
            block
            for block in manifest.get("power_blocks", [])
            if (block["target"], block["repeat"], block.get("session", 1)) == (target, repeat, session)
        ),
        {},
    )
    gpus = block.get("gpus", [])
    uuids = [gpu["uuid"] for gpu in gpus]
    samples, damaged = _samples(path) if since_ns is None else _latest(path, since_ns - EDGE_NS, uuids)
    memories = [gpu["memory_total_bytes"] for gpu in gpus]
    limits = [gpu["power_limit_default_w"] for gpu in gpus]
    infos = [msgspec.convert(gpu, GpuInfo) for gpu in gpus if {"uuid", "index", "name"} <= gpu.keys()]
    owners = block.get("owners")
    return PowerData(
        limits_w={info.uuid: info.plausible_limit_w for info in infos},
        scopes={info.uuid: info.scope for info in infos},
        owners=msgspec.convert(owners, Owners) if owners is not None else None,
        samples=traces_of(samples, uuids),
        rest_w=block.get("rest_w", {}),
        damaged=damaged,
        limit_default_w=sum(limits) if limits and None not in limits else None,
        memory_total_bytes=sum(memories) if memories and None not in memories else None,
        mig=tuple(gpu["uuid"] for gpu in gpus if gpu["mig"]),
    )


def _samples(path: Path, start: int = 0) -> tuple[list[PowerSample], int]:
    """Samples, and how many lines were damaged."""
    lines = read_lines(path, start)
    with known_records(path):
        return [sample for block in lines for sample in _decode_lines(block)], lines.damaged


def _latest(path: Path, since_ns: int, uuids: Sequence[str]) -> tuple[list[PowerSample], int]:
    """From before `since_ns` on; the file is in the order of time, give or take a pull's GPUs. All of it where one of
    `uuids` has no sample there: its last one tells whether it was lost."""
    size, reach = path.stat().st_size, TAIL_BYTES
    while True:
        start = max(0, size - reach)
        samples, damaged = _samples(path, start)
        enough = samples and samples[0].t_ns < since_ns
        if start == 0 or (enough and {*uuids} <= {sample.gpu for sample in samples}):
            return samples, damaged
        reach = size if enough else reach * 4
