"""CellSummary: one row of cells.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, compress, pairwise
from operator import gt
from statistics import fmean
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loadgen.analysis.batch import Note, RunningBatch, Source, held_back, hit_share, increase, mean_of, running_batch
from loadgen.analysis.celldata import (
    CellData,
    Floats,
    Goodput,
    Ints,
    Mask,
    Traffic,
    answered_in,
    e2e_s,
    goodput_of,
    icl_s,
    itl_s,
    percentiles,
    tpot_s,
    traffic_of,
    ttft_s,
)
from loadgen.analysis.client import (
    Check,
    ClientFigures,
    client_checks,
    client_doubt,
    client_figures,
    streaming_of,
    streaming_reasons,
)
from loadgen.analysis.energy import CellEnergy, PowerData, ServerMemory, Work, energy_of_cell
from loadgen.analysis.kvcache import largest_batch
from loadgen.analysis.validity import Evidence, Validity, validity_of
from loadgen.load.latency import mean_in_flight
from loadgen.options import MAX_ERROR_RATE
from loadgen.record.cell import Phase, Slo, held_of, level
from loadgen.record.manifest import KvCache
from loadgen.serving.exposition import ServerSample, gauge_lags
from loadgen.serving.metrics import UNVERIFIED
from loadgen.workload.grading import FAILED, Grade, Grader
from loadgen.workload.item import ItemFacts

_COUNTERS = ("generation_tokens", "prompt_tokens", "iterations", "preemptions")
_LATENCIES: dict[str, tuple[Callable[[CellData, tuple[int, int]], Floats], tuple[int, ...]]] = {
    "ttft": (ttft_s, (50, 90, 99)),
    "itl": (itl_s, (50, 99)),
    "icl": (icl_s, (99,)),
    "tpot": (tpot_s, (50, 99)),
    "e2e": (e2e_s, (50, 99)),
}
"""By kind: its values in s, and which percentiles are shown."""


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """Columns of cells.csv: means over the window's answered requests; those that were asked where the items say so."""

    prompt_tokens_mean: float | None = None
    prompt_tokens_asked: float | None = None
    output_tokens_asked: float | None = None
    prompts_off: int | None = None
    """Prompts with another number of tokens than asked."""


class AskedLengths(NamedTuple):
    """What `lengths_of` finds."""

    means: Lengths
    other_outputs: tuple[int, ...]
    """Tokens of the answers that have another number than asked; a token more is taken."""


class CellSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one cell over its window; None is 'not measured'. Accuracy is over all measured answers."""

    target: str
    precision: str
    concurrency: int
    repeat: int
    phase: Phase | None = None
    """Of a search for B* (`--find`), `locate` or `repeat`; None: of a grid."""
    shape: str | None = None
    """Tokens of prompts and answers, as `128/1024`, in a run with several shapes."""
    session: int
    """Which of the run's sessions, 1 unless it was resumed."""
    validity: Validity
    requests: int
    errors: int
    failures: int
    """Requests of the whole cell that failed: `errors` and those of the warm-up and the drain."""
    first_failure: str
    """What the first of them said."""
    retries: int
    """Requests of the whole cell that were sent again, because the server had closed their kept connection."""
    answer_notes: dict[str, int]
    """What is odd about answers of the whole cell and does not make them fail, with how many there are of each."""
    window_open_ns: int | None
    window_close_ns: int | None
    window_s: float | None
    output_tokens: int | None
    tokens_per_s: float | None
    inflight_mean: float | None
    running_mean: float | None
    """The measured running batch; see `analysis.batch.running_batch`."""
    running_source: Source
    """What it is: tokens per step (`counters`), the server's `gauge`, or `none`: the batch is not verified."""
    running_note: Note
    """Why that one, where the server's figures disagree; or why there is none."""
    running_gauge_mean: float | None
    """Mean of the gauge vllm:num_requests_running."""
    running_peak: float | None
    """Largest value of that gauge in the window: below B the server caps the batch."""
    waiting_mean: float | None
    preemptions: float | None
    cache_hit_share: float | None
    """The share of prompt tokens that came from the server's prefix cache, 0 to 1."""
    server_samples: int
    server_tokens: float | None
    recorded_tokens: int | None
    ttft_ms_mean: float | None
    ttft_ms_p50: float | None
    ttft_ms_p90: float | None
    ttft_ms_p99: float | None
    itl_ms_mean: float | None
    itl_ms_p50: float | None
    itl_ms_p99: float | None
    icl_ms_mean: float | None
    icl_ms_p99: float | None
    tpot_ms_mean: float | None
    tpot_ms_p50: float | None
    tpot_ms_p99: float | None
    e2e_ms_mean: float | None
    e2e_ms_p50: float | None
    e2e_ms_p99: float | None
    output_tokens_mean: float | None
    lengths: Lengths = Lengths()
    answers: int
    """Measured requests that were answered, in the window or in its drain."""
    accuracy: float | None
    truncated_rate: float | None
    unparsed_rate: float | None
    client: ClientFigures
    memory_needed_bytes: int | None
    """Weights and the KV cache in use at its peak in the window, by the server's own report, over all its GPUs."""
    gpus: int | None = None
    """That share the model."""
    tokens_per_s_per_gpu: float | None = None
    memory_needed_per_gpu_bytes: float | None = None
    kv_cache_tokens: int | None = None
    """Tokens that the server's KV cache holds, by its own count."""
    kv_cache_card_tokens: int | None = None
    """The same with all the memory that vLLM takes of the card by default."""
    kv_batch: int | None = None
    """The most requests of the window's lengths that the card's KV cache, else the server's, holds without preemption;
    see `analysis.kvcache.largest_batch`."""
    traffic: Traffic
    goodput: Goodput
    energy: CellEnergy
    simulated: bool

    @property
    def batch(self) -> float | None:
        """The cell's place on the axis of the batch: the running batch, else the requests in flight."""
        return self.running_mean if self.running_mean is not None else self.inflight_mean

    @property
    def held(self) -> float:
        """B, or the rate of an open loop."""
        return held_of(self.concurrency, self.traffic.arrival)

    @property
    def load(self) -> str:
        """What was held: "B = 16", of an open loop "poisson:20"; with its shape where a run has several."""
        return level(self.concurrency, self.traffic.arrival, self.shape)

    @property
    def client_checks(self) -> list[Check]:
        """The client's figures and their limits."""
        open_loop = self.traffic.arrival is not None
        return client_checks(self.client, icl_ms=self.icl_ms_mean, e2e_ms=self.e2e_ms_mean, open_loop=open_loop)

    @property
    def client_doubt(self) -> str | None:
        """Why the p99 figures of a valid cell may be the client's."""
        return client_doubt(self.client, icl_ms=self.icl_ms_mean) if self.validity.latency_valid else None

    def figure(self, name: str) -> float | None:
        """One of its figures, `name` as in cells.csv; None where it was not measured, or where it is not valid."""
        part = next(part for part in (self, self.energy, self.goodput, self.traffic) if hasattr(part, name))
        value: float | None = getattr(part, name)
        return value if self.validity.supports(name) else None

    def columns(self) -> dict[str, Any]:
        """The row as a flat mapping, in the order of its parts."""
        row: dict[str, Any] = {}
        for name in self.__struct_fields__:
            match getattr(self, name):
                case Validity() as validity:
                    row |= validity.columns()
                case Note() as note:
                    row[name] = str(note)
                case msgspec.Struct() as part:
                    row |= msgspec.structs.asdict(part)
                case dict() as notes:
                    row[name] = "; ".join(f"{count} answers: {note}" for note, count in notes.items())
                case value:
                    row[name] = value
        return row


def grade_cell(data: CellData, grader: Grader) -> list[Grade | None]:
    """A grade per exchange; None for warm-up and dropped ones, and for items that are not to be graded."""
    e, asked, grade = data.exchanges, (data.measured & ~data.dropped).tolist(), grader.grade
    return [
        None if not asked else grade(item, text, reason) if ok else FAILED if item in grader.items else None
        for asked, ok, item, text, reason in zip(
            asked, data.ok.tolist(), e.item_id, e.text, e.finish_reason, strict=True
        )
    ]


def summarize_cell(
    data: CellData,
    grades: Sequence[Grade | None],
    power: PowerData | None = None,
    *,
    graded: bool = True,
    memory: ServerMemory | None = None,
    max_error_rate: float = MAX_ERROR_RATE,
    fixed_length: int | None = None,
    tdp_w: float | None = None,
    carbon_kg_per_kwh: float | None = None,
    slo: Slo | None = None,
    facts: Mapping[str, ItemFacts] | None = None,
) -> CellSummary:
    """The cell's row. `grades` as from `grade_cell`, or all None; `graded`: the run has answers that can be."""
    window = data.window
    window_s = (window[1] - window[0]) / 1e9 if window else None
    ended = answered_in(data, window) if window else np.zeros(len(data.exchanges), dtype=np.bool_)
    errors, failures = _errors(data, window), _errors(data, None)
    tokens = data.tokens_in(window) if window else None
    samples = [s for s in data.samples if window and window[0] <= s.t_ns <= window[1]]
    counted = data.dropped | (data.ok & (data.output_tokens >= 0))
    latencies, traffic, client = _latencies(data, window), traffic_of(data), client_figures(data)
    checks = client_checks(
        client, icl_ms=latencies["icl_ms_mean"], e2e_ms=latencies["e2e_ms_mean"], open_loop=data.open_loop
    )
    asked = data.measured & ~data.dropped
    lengths = data.output_tokens[ended & (data.output_tokens >= 0)]
    asked_lengths = lengths_of(data, ended, facts or {})
    tokens_per_query = float(lengths.mean()) if lengths.size else None
    inflight = mean_in_flight(data.t_send_ns, data.t_end_ns, window) if window else None
    running = running_batch(
        samples,
        inflight=inflight,
        tokens_per_answer=tokens_per_query,
        open_loop=data.open_loop,
        lags=gauge_lags(data.end.batch_gauge if data.end else None),
    )
    figures: dict[str, Any] = {
        "concurrency": data.cell.concurrency,
        "requests": int(ended.sum()),
        "errors": len(errors),
        "tokens_per_s": tokens / window_s if tokens and window_s else None,
        "inflight_mean": inflight,
        "running_mean": running.mean,
        "running_peak": max((s.running for s in samples if s.running is not None), default=None),
        "waiting_mean": mean_of(samples, "waiting"),
        "preemptions": increase([s.preemptions for s in samples]),
        "server_tokens": data.end.generation_tokens if data.end else None,
        "recorded_tokens": int(data.output_tokens[data.ok].sum()) if counted.all() else None,
        "window_s": window_s,
    }
    work = Work(window_s=window_s or 0.0, tokens=tokens, requests=int(ended.sum()), tokens_per_query=tokens_per_query)
    energy, found = energy_of_cell(data, power, work, tdp_w=tdp_w, carbon_kg_per_kwh=carbon_kg_per_kwh)
    dead = (data.end.aborted,) if data.end and data.end.aborted and data.end.server_lost else ()
    validity = validity_of(
        Evidence(
            **figures,
            aborted=data.end.aborted if data.end else None,
            has_window=bool(window_s),
            given_up=data.exchanges.status.count("timeout"),
            uncounted=int((ended & (data.output_tokens < 0)).sum()),
            first_error=errors[0] if errors else None,
            running_slack=running.slack,
            running_noise=running.noise,
            held_back=held_back(
                samples, running, concurrency=data.cell.concurrency, inflight=inflight,
                tokens_per_answer=tokens_per_query,
            ),
            silent_s=_longest_gap_s(samples, window) if window and data.samples else None,
            restarted=any(_went_back(data.samples, field) for field in _COUNTERS),
            traffic=traffic if data.open_loop else None,
            client_bound=tuple(check.sentence for check in checks if check.failed),
            streaming=tuple(streaming_reasons(streaming_of(data, window), client)),
            max_error_rate=max_error_rate,
            fixed_length=fixed_length,
            other_lengths=_other_lengths(lengths, fixed_length) or asked_lengths.other_outputs,
            asked=int(asked.sum()) if graded else None,
            unanswered=int((asked & ~data.ok).sum()),
            lost=(*dead, *found.lost),
            slowed=found.slowed,
            energy=found.energy,
        )
    )  # fmt: skip
    outcomes = [grade.outcome for grade in grades if grade is not None and grade.correct is not None]
    gpus, needed_bytes = (memory.gpus, memory.needed_bytes(samples)) if memory else (None, None)
    kv_cache = memory.kv_cache if memory else None
    return CellSummary(
        **figures,
        target=data.cell.target,
        precision=data.cell.precision,
        repeat=data.cell.repeat,
        phase=data.cell.phase,
        shape=data.cell.shape,
        session=data.session,
        validity=validity,
        failures=len(failures),
        first_failure=failures[0] if failures else "",
        retries=int(data.exchanges.retries.sum()),
        answer_notes=dict(Counter(chain.from_iterable(data.exchanges.notes))),
        window_open_ns=window[0] if window else None,
        window_close_ns=window[1] if window else None,
        output_tokens=tokens,
        running_source=running.source,
        running_note=_note(running, data, samples),
        running_gauge_mean=mean_of(samples, "running"),
        cache_hit_share=hit_share(samples, data, ended),
        server_samples=len(samples),
        output_tokens_mean=tokens_per_query,
        lengths=asked_lengths.means,
        answers=int((data.measured & data.ok).sum()),
        accuracy=_share(outcomes, "correct"),
        truncated_rate=_share(outcomes, "truncated"),
        unparsed_rate=_share(outcomes, "unparsed"),
        client=client,
        memory_needed_bytes=needed_bytes,
        gpus=gpus,
        tokens_per_s_per_gpu=figures["tokens_per_s"] / gpus if gpus and figures["tokens_per_s"] is not None else None,
        memory_needed_per_gpu_bytes=needed_bytes / gpus if gpus and needed_bytes is not None else None,
        kv_cache_tokens=kv_cache.tokens if kv_cache else None,
        kv_cache_card_tokens=kv_cache.card_tokens if kv_cache else None,
        kv_batch=_kv_batch(kv_cache, data, ended) if kv_cache else None,
        traffic=traffic,
        goodput=goodput_of(data, slo, energy.energy_j),
        energy=energy,
        simulated=data.simulated,
        **latencies,
    )


def _note(running: RunningBatch, data: CellData, samples: Sequence[ServerSample]) -> Note:
    """Why the batch is not verified, of one that is which figure was taken and why; empty where there is no doubt."""
    if running.source != "none" or not data.window:
        return running.note
    why = str(running.note) or (data.end.metrics_failure if data.end and not data.samples else None)
    if not why and not samples:
        why = "no reading of /metrics fell into the window"
    return Note(f"{UNVERIFIED}: {why or 'the server counts no running requests under a name that loadgen knows'}")


def _errors(data: CellData, window: tuple[int, int] | None) -> list[str]:
    """Failed requests that were in flight within the window (all of the cell where there is none), warm-up included.

    One that the window's end found stalled is among them, though it was given up only later. Dropped ones are not: they
    never reached the server.
    """
    failed = ~data.ok & ~data.dropped
    if window is not None:
        failed &= (data.t_end_ns > window[0]) & (data.t_due_ns <= window[1])
    e = data.exchanges
    return [f"{e.status[place]}: {e.error[place]}" for place in np.flatnonzero(failed).tolist()]


def lengths_of(data: CellData, ended: Mask, facts: Mapping[str, ItemFacts]) -> AskedLengths:
    """Of the answered requests of a window, tokens beside those that their items ask for."""
    had, made = data.exchanges.prompt_tokens[ended], data.output_tokens[ended]
    prompts = _beside(data, ended, had, {item: f.input_tokens for item, f in facts.items() if f.input_tokens})
    outputs = _beside(data, ended, made, {item: f.output_tokens for item, f in facts.items() if f.output_tokens})
    known = had[had >= 0]
    means = Lengths(
        prompt_tokens_mean=int(known.sum()) / len(known) if known.size else None,
        prompt_tokens_asked=fmean(asked for _, asked in prompts) if prompts else None,
        output_tokens_asked=fmean(asked for _, asked in outputs) if outputs else None,
        prompts_off=sum(tokens != asked for tokens, asked in prompts) if prompts else None,
    )
    return AskedLengths(means, tuple(tokens for tokens, asked in outputs if tokens not in (asked, asked + 1)))


def _beside(data: CellData, ended: Mask, tokens: Ints, asked: Mapping[str, int]) -> list[tuple[int, int]]:
    """The tokens of the `ended` requests, where there are any, with those that their items ask for."""
    if not asked:
        return []
    items = compress(data.exchanges.item_id, ended.tolist())
    return [(n, asked[item]) for item, n in zip(items, tokens.tolist(), strict=True) if n > 0 and item in asked]


def _kv_batch(cache: KvCache, data: CellData, ended: Mask) -> int | None:
    prompts, outputs = data.exchanges.prompt_tokens, data.output_tokens
    known = ended & (prompts >= 0) & (outputs >= 0)
    return largest_batch(cache, prompts[known], outputs[known])


def _other_lengths(lengths: Ints, fixed_length: int | None) -> tuple[int, ...]:
    """The answers' lengths that are neither the one asked for nor a token more."""
    if fixed_length is None:
        return ()
    return tuple(lengths[(lengths != fixed_length) & (lengths != fixed_length + 1)].tolist())


def _went_back(samples: Sequence[ServerSample], field: str) -> bool:
    values = [value for s in samples if (value := getattr(s, field)) is not None]
    return any(map(gt, values, values[1:]))


def _longest_gap_s(samples: Sequence[ServerSample], window: tuple[int, int]) -> float:
    """Longest stretch of the window without a sample, its ends included."""
    times = [window[0], *(s.t_ns for s in samples), window[1]]
    return max(after - before for before, after in pairwise(times)) / 1e9


def _share(outcomes: Sequence[str], outcome: str) -> float | None:
    return outcomes.count(outcome) / len(outcomes) if outcomes else None


def _latencies(data: CellData, window: tuple[int, int] | None) -> dict[str, Any]:
    """Mean and percentiles of each kind, in ms."""
    found: dict[str, float | None] = {}
    for name, (values_of, quantiles) in _LATENCIES.items():
        keys = [f"{name}_ms_mean", *(f"{name}_ms_p{q}" for q in quantiles)]
        if name == "icl" and (data.token_counts == 1).all():  # an event brings one token: as between tokens
            found |= {key: found[key.replace("icl", "itl")] for key in keys}
        elif window and (values_s := values_of(data, window)).size:
            figures_s = [values_s.mean(), *percentiles(values_s, quantiles)]
            found |= {key: float(figure) * 1e3 for key, figure in zip(keys, figures_s, strict=True)}
        else:
            found |= dict.fromkeys(keys)
    return found
