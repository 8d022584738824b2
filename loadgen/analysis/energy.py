"""Energy of a cell: the joules of its window, per token and per query, and why they may be invalid.

PowerData: the power samples beside one server. ServerMemory: what a precision needs, apart from what is reserved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from loadgen.analysis.celldata import CellData, Floats, Ints, slices
from loadgen.analysis.estimate import CORRELATION_TIMES, PARTS, READINGS_PER_PART, finest, window_spread
from loadgen.analysis.tokentimes import Counts
from loadgen.folder import Folder
from loadgen.load.latency import inside
from loadgen.power.energy import WindowEnergy, energy_of_window
from loadgen.power.sample import PowerSample, Scope
from loadgen.power.trace import Calibration, Owners, PowerTrace, Uses, calibration_of, traces_of, uses_in
from loadgen.processgroup import forked
from loadgen.record.journal import file_bytes, known_records, power_file, read_lines
from loadgen.record.manifest import KvCache, Manifest, PowerBlock
from loadgen.serving.exposition import ServerSample

Number = TypeVar("Number", int, float)
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
    """Whose the processes on the GPUs are; None if it was not asked."""

    def calibration(self) -> dict[str, Calibration]:
        """By GPU: update periods and resolution of its sensors, as these samples show them."""
        return {gpu: calibration_of(trace) for gpu, trace in self.samples.items() if len(trace)}

    def around(self, t0_ns: int, t1_ns: int) -> list[PowerTrace]:
        """What a window from t0 to t1 needs of each GPU; of one without a sample there its last one, which says why."""
        near = [(trace, trace.between(t0_ns - EDGE_NS, t1_ns + EDGE_NS)) for trace in self.samples.values()]
        return [found if len(found) else trace.last() for trace, found in near]


def read_powers(run_dir: Path, manifest: Manifest, processes: int) -> dict[Server, PowerData]:
    """The power data of every server whose power was measured."""
    starts = dict.fromkeys((block.target.name, block.repeat) for block in manifest.blocks)
    servers = [(*start, session) for session in range(1, max(1, len(manifest.sessions)) + 1) for start in starts]
    found = forked([partial(read_power, run_dir, manifest, *server) for server in servers], processes)
    return {server: power for server, power in zip(servers, found, strict=True) if power is not None}


def read_power(
    run_dir: Path,
    manifest: Manifest,
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
    blocks = (b for b in manifest.power_blocks if (b.target, b.repeat, b.session) == (target, repeat, session))
    block = next(blocks, PowerBlock(target=target, repeat=repeat))
    gpus = block.gpus
    uuids = [gpu.uuid for gpu in gpus]
    samples, damaged = _samples(path) if since_ns is None else _latest(path, since_ns - EDGE_NS, uuids)
    return PowerData(
        limits_w={gpu.uuid: gpu.plausible_limit_w for gpu in gpus},
        scopes={gpu.uuid: gpu.scope for gpu in gpus},
        owners=block.owners,
        samples=traces_of(samples, uuids),
        rest_w=block.rest_w,
        damaged=damaged,
        limit_default_w=_sum([gpu.power_limit_default_w for gpu in gpus]),
        memory_total_bytes=_sum([gpu.memory_total_bytes for gpu in gpus]),
        mig=tuple(gpu.uuid for gpu in gpus if gpu.mig),
    )


def _samples(path: Path, start: int = 0) -> tuple[list[PowerSample], int]:
    """Samples, and how many lines were damaged."""
    lines = read_lines(path, start)
    with known_records(path):
        return [sample for block in lines for sample in _decode_lines(block)], lines.damaged


def _latest(path: Path, since_ns: int, uuids: Sequence[str]) -> tuple[list[PowerSample], int]:
    """From before `since_ns` on; the file is in the order of time, give or take a pull's GPUs. All of it where one of
    `uuids` has no sample there: its last one says whether it was lost."""
    size, reach = file_bytes(path), TAIL_BYTES
    while True:
        start = max(0, size - reach)
        samples, damaged = _samples(path, start)
        enough = samples and samples[0].t_ns < since_ns
        if start == 0 or (enough and {*uuids} <= {sample.gpu for sample in samples}):
            return samples, damaged
        reach = size if enough else reach * 4


SHORTEST_MEASURED = 4.0
"""Correlation times in a window; where it holds fewer, how many cannot be told."""


class CellEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy columns of cells.csv; None: not measured. Sums over the target's GPUs."""

    energy_j: float | None = None
    """Gross energy of the window."""
    energy_reservations: str | None = None
    """What leaves the energy valid and is worth knowing: its edges, a source without a second one to check it."""
    energy_source: str | None = None
    energy_counter_j: float | None = None
    energy_integral_j: float | None = None
    energy_ratio: float | None = None
    power_w_mean: float | None = None
    energy_net_j: float | None = None
    """Gross energy less the power at rest (model loaded, nothing asked) times the window."""
    energy_per_token_j: float | None = None
    energy_per_token_j_lo: float | None = None
    energy_per_token_j_hi: float | None = None
    """95%, of the noise inside this window alone; another start of the server differs by more."""
    energy_interval_note: str | None = None
    """Why there is none, and what to do."""
    energy_per_query_j: float | None = None
    """Energy per token times the mean tokens of the answers: no bias from answers cut by the window's edges."""
    energy_per_query_completions_j: float | None = None
    """Energy over the answers completed in the window: a check on the figure above."""
    tokens_per_j: float | None = None
    hli_power_w: float | None = None
    energy_hli_per_query_j: float | None = None
    """Board power times time: an upper bound, not a measurement."""
    carbon_g_per_query: float | None = None
    memory_peak_bytes: int | None = None
    memory_headroom_bytes: int | None = None
    """GPU memory less its peak use; what a server reserves for its KV cache counts as used."""


class EnergyFindings(msgspec.Struct, frozen=True, kw_only=True):
    """What the power samples of a cell's window say against its figures, a sentence each."""

    lost: tuple[str, ...] = ()
    """A GPU is gone."""
    slowed: tuple[str, ...] = ()
    """Heat or the supply lowered a GPU's clocks."""
    energy: tuple[str, ...] | None = None
    """Against the energy alone; None: it was not measured."""
    reservations: tuple[str, ...] = ()


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What the joules were spent on, from the same window."""

    window_s: float
    tokens: int | None
    requests: int
    tokens_per_query: float | None


def energy_of_cell(
    data: CellData, power: PowerData | None, work: Work, *, tdp_w: float | None, carbon_kg_per_kwh: float | None
) -> tuple[CellEnergy, EnergyFindings]:
    """The cell's energy columns, and why they may be invalid. `tdp_w` is the datasheet's board power; without it
    NVML's default limit bounds."""
    window = data.window
    if window is None:
        return CellEnergy(), EnergyFindings(energy=None if power is None else ())
    bound_w = tdp_w if tdp_w is not None else power.limit_default_w if power else None
    per_query = work.tokens_per_query
    seconds_per_query = work.window_s * per_query / work.tokens if per_query and work.tokens else None
    bound = CellEnergy(
        hli_power_w=bound_w,
        energy_hli_per_query_j=bound_w * seconds_per_query if bound_w and seconds_per_query else None,
    )
    if power is None:
        return bound, EnergyFindings()
    around = power.around(*window)
    parts = [
        energy_of_window(
            trace, *window, limit_w=power.limits_w.get(trace.gpu), scope=power.scopes.get(trace.gpu, "gpu")
        )
        for trace in around
    ]
    energy_j = _sum([part.energy_j for part in parts])
    per_token_j = _over(energy_j, work.tokens)
    per_query_j = per_token_j * per_query if per_token_j is not None and per_query else None
    half_width, note = None, ""
    if per_token_j:
        half_width, note = interval_of_window(data.token_t_ns, data.token_counts, around, window)
    low, high = (None, None) if half_width is None else (math.exp(-half_width), math.exp(half_width))
    findings = _findings(parts, power, uses_in(around, *window, power.owners, power.scopes))
    counter_j, integral_j = _sum([p.counter_j for p in parts]), _sum([p.integral_j for p in parts])
    rest_w = _sum([power.rest_w.get(gpu) for gpu in power.samples])
    peak_bytes, total_bytes = _sum([part.memory_used_bytes_max for part in parts]), power.memory_total_bytes
    energy = msgspec.structs.replace(
        bound,
        energy_j=energy_j,
        energy_reservations="; ".join(findings.reservations),
        energy_source="+".join(sorted({part.source for part in parts if part.source})) or None,
        energy_counter_j=counter_j,
        energy_integral_j=integral_j,
        energy_ratio=_over(integral_j, counter_j),
        power_w_mean=_over(energy_j, work.window_s),
        energy_net_j=energy_j - rest_w * work.window_s if energy_j is not None and rest_w is not None else None,
        energy_per_token_j=per_token_j,
        energy_per_token_j_lo=per_token_j * low if per_token_j and low is not None else None,
        energy_per_token_j_hi=per_token_j * high if per_token_j and high is not None else None,
        energy_interval_note=note,
        energy_per_query_j=per_query_j,
        energy_per_query_completions_j=_over(energy_j, work.requests),
        tokens_per_j=_over(work.tokens or None, energy_j),
        carbon_g_per_query=(
            per_query_j / 3.6e6 * carbon_kg_per_kwh * 1e3 if per_query_j is not None and carbon_kg_per_kwh else None
        ),
        memory_peak_bytes=peak_bytes,
        memory_headroom_bytes=total_bytes - peak_bytes if total_bytes is not None and peak_bytes is not None else None,
    )
    return energy, findings


def _findings(parts: list[WindowEnergy], power: PowerData, uses: Uses) -> EnergyFindings:
    """The findings of all GPUs together; a sentence that holds for several is listed once."""
    lost = tuple(dict.fromkeys(reason for part in parts for reason in part.lost))
    slowed = tuple(dict.fromkeys(reason for part in parts for reason in part.slowed))
    reservations = [reason for part in parts for reason in part.reservations]
    elsewhere = {*lost, *slowed, *reservations}
    against = [reason for part in parts for reason in part.reasons if reason not in elsewhere]
    against += [f"{gpu} is in MIG mode: its energy is the whole GPU's" for gpu in power.mig]
    against += uses.foreign if parts else (*uses.foreign, "no power sample at all")
    return EnergyFindings(
        lost=lost,
        slowed=slowed,
        energy=tuple(dict.fromkeys(against)),
        reservations=tuple(dict.fromkeys((*reservations, *uses.unsure))),
    )


def _sum(values: Sequence[Number | None]) -> Number | None:
    """None where one is not known, or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if values and len(known) == len(values) else None


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def interval_of_window(
    token_t_ns: Ints, token_counts: Counts, around: Sequence[PowerTrace], window: tuple[int, int]
) -> tuple[float | None, str]:
    """Relative half-width of the 95% interval of energy per token, from the noise inside the window; or None, and a
    sentence that says why.

    The window is cut into equal parts, each of which ends with its last token: a step of the server that brings many
    tokens at once lies whole in one part. The power's course gives their joules.
    """
    seconds = (window[1] - window[0]) / 1e9
    courses = []
    for trace in around:
        watts = trace.power_average_w if np.isnan(trace.power_instant_w).all() else trace.power_instant_w
        known = ~np.isnan(watts)
        courses.append((trace.t_ns[known], watts[known]))
    readings = min((int(inside(t_ns, window).sum()) for t_ns, _ in courses), default=0)
    events = int(inside(token_t_ns, window).sum())
    parts = finest(min(readings, events))
    if parts is None:
        fewest = READINGS_PER_PART * PARTS[-1]
        few, what = (readings, "power readings") if readings < fewest else (events, "events with tokens")
        longer = f"at least {_up(seconds * fewest / few)} s" if few else "a longer one"
        return None, f"the window of {seconds:.3g} s has {few} {what}, and an interval needs {fewest}: use {longer}"
    tokens, ends = tokens_by_part(token_t_ns, token_counts, window, parts)
    joules = np.sum([np.diff(_cumulative_j(t_ns, watts, ends)) for t_ns, watts in courses], axis=0)
    if joules.sum() <= 0:
        return None, "power reads 0 W"
    spread = window_spread(joules, tokens)
    if spread.half_width is not None:
        return spread.half_width, ""
    times = 1 / spread.correlation
    if times < SHORTEST_MEASURED:
        return None, (
            f"energy per token drifts over the whole window of {seconds:.3g} s: use at least "
            f"{_up(seconds * CORRELATION_TIMES / SHORTEST_MEASURED)} s"
        )
    return None, (
        f"energy per token stays high or low for about {seconds / times:.2g} s, and the window of {seconds:.3g} s "
        f"holds {math.floor(times)} such times ({CORRELATION_TIMES:.0f} are needed): use at least "
        f"{_up(seconds * CORRELATION_TIMES / times)} s"
    )


def _up(seconds: float) -> int:
    """To two digits, upwards."""
    digit: int = 10 ** max(math.floor(math.log10(seconds)) - 1, 0)
    return math.ceil(seconds / digit) * digit


def tokens_by_part(token_t_ns: Ints, token_counts: Counts, window: tuple[int, int], parts: int) -> tuple[Floats, Ints]:
    """Tokens that arrived in each of so many equal parts of the window; of two parts an instant between them belongs to
    the first. And parts + 1 instants: the window's opening, where each part's last token arrived (the end of the one
    before where there is none), and the window's close. Some at a time, which the processor's own memory holds."""
    parts_per_ns = parts / (window[1] - window[0])
    counts = np.zeros(parts + 2)  # with what came before and after
    ends = np.full(parts + 2, window[0])
    for begin, end in slices(len(token_t_ns)):
        t_ns = token_t_ns[begin:end]
        part = np.ceil((t_ns - window[0]) * parts_per_ns).clip(0, parts + 1).astype(np.intp)
        last = np.append((part[1:] != part[:-1]) | (t_ns[1:] < t_ns[:-1]), True).nonzero()[0]
        runs = np.add.reduceat(token_counts[begin:end], np.append(0, last[:-1] + 1), dtype=np.int64)
        counts += np.bincount(part[last], runs, minlength=parts + 2)
        np.maximum.at(ends, part[last], t_ns[last])
    ends[0], ends[parts] = window
    return counts[1:-1], np.maximum.accumulate(ends[:-1])


def _cumulative_j(t_ns: Ints, watts: Floats, at_ns: Ints) -> Floats:
    """Energy since the first sample at given instants: the trapezoid's exact antiderivative."""
    t_s = (t_ns - t_ns[0]) / 1e9
    at_s = (at_ns - t_ns[0]) / 1e9
    steps = np.diff(t_s) * (watts[1:] + watts[:-1]) / 2
    total = np.concatenate([[0.0], np.cumsum(steps)])
    place = np.clip(np.searchsorted(t_s, at_s, side="right") - 1, 0, len(t_s) - 2)
    into_s = at_s - t_s[place]
    slope = (watts[place + 1] - watts[place]) / np.maximum(t_s[place + 1] - t_s[place], 1e-9)
    energies: Floats = total[place] + watts[place] * into_s + slope * into_s**2 / 2
    return energies


class ServerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What a launched server said of its memory when it started; None where it did not."""

    model_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache: KvCache | None = None
    gpus: int | None = None
    """That share the model: the server's workers, else the GPUs whose energy is measured; None: neither is known."""

    def needed_bytes(self, samples: Sequence[ServerSample]) -> int | None:
        """The weights, and the share of the KV cache in use at its peak over `samples`; None where one is unknown.

        NVML cannot tell: vLLM reserves --gpu-memory-utilization of the GPU whatever the precision. Activations and
        CUDA graphs are in neither figure.
        """
        usages = [s.kv_usage for s in samples if s.kv_usage is not None]
        if self.model_bytes is None or self.kv_cache_bytes is None or not usages:
            return None
        return self.model_bytes + round(max(usages) * self.kv_cache_bytes)


def server_memory(manifest: Manifest, target: str, repeat: int, session: int = 1) -> ServerMemory:
    """The memory of the server that this target was measured on, and its GPUs; None for what is not known, as the
    memory of a server that loadgen did not launch."""
    place = (target, repeat, session)
    on_cpu = manifest.config.mode == "serve" and manifest.config.device == "cpu"
    blocks = [b for b in manifest.power_blocks if (b.target, b.repeat, b.session) == place]
    measured = next((sum(gpu.scope != "package" for gpu in block.gpus) or None for block in blocks), None)
    for server in manifest.servers:
        if (server.name, server.repeat, server.session) == place:
            gpus = None if on_cpu else server.workers or measured
            return ServerMemory(
                model_bytes=server.model_bytes, kv_cache_bytes=server.kv_cache_bytes, kv_cache=server.kv_cache,
                gpus=gpus,
            )  # fmt: skip
    return ServerMemory(gpus=measured)
