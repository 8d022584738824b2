"""What a reader must know before believing a run's figures: a sentence each, in the order of analysis.json."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from loadgen.analysis.cells import CellSummary
from loadgen.analysis.trust.study import TrustStudy, TrustTest
from loadgen.analysis.validity import Invalid, invalid_sentences, late_tail
from loadgen.record.cell import level
from loadgen.record.manifest import Manifest
from loadgen.words import spanned

SIXTEEN_BITS = frozenset({"float16", "bfloat16"})
"""Keys and values of either take the same memory and time to read."""
FAIR_POINTS = 2.0
"""Percentage points by which hit shares may differ between two arms, or two repeats, that are compared."""
KEPT_SERVERS = (
    "The servers are not restarted between repeats (--target), so what another start changes (memory layout, choice of "
    "kernels, clocks) is in no interval; with --serve or --compose it is."
)
CLOCK_STEP_S = 1.0
"""From which on the wall clock was set, not only slewed."""


def run_warnings(
    manifest: Manifest,
    cells: Sequence[CellSummary],
    trust: TrustStudy,
    *,
    invalid: Sequence[Invalid],
    damaged: Sequence[str],
    marks: Mapping[str, Sequence[str]],
    answers: Sequence[str],
    hli: Sequence[str],
    shape: str | None = None,
) -> tuple[str, ...]:
    """Every warning of a run; no list of them is empty for want of looking.

    `damaged`: which files have damaged lines; `marks`: as from `share_marks`; `answers`: what is odd about the
    comparison of answers; `hli`: where board power times time contradicts the meter; `shape`: which of several the
    analysis is about.
    """
    config, arrival = manifest.config, manifest.config.arrival
    measured = Counter((cell.target, cell.repeat) for cell in cells)
    asked = {(block.target.name, block.repeat): len(block.cells) for block in manifest.blocks}
    planned, dataset = planned_cells(manifest), manifest.dataset
    latency = [cell for cell in cells if cell.validity.latency_valid]
    return (
        *checkpoint_notes(manifest),
        *_shape_note(config.shapes, shape),
        *unequal_gpus(cells, config.reference),
        *invalid_sentences(invalid, arrival),
        *damaged,
        *(
            f"{failure.target}, repeat {failure.repeat}: {failure.error}"
            for failure in manifest.failures
            if measured[failure.target, failure.repeat] < asked.get((failure.target, failure.repeat), 0)
        ),
        *(f"session {session.session}: {sentence}" for session in manifest.sessions for sentence in session.warnings),
        *_together("p99 latencies of {} may be the client's", cells, lambda cell: cell.client_doubt),
        *_each(cells, _failures),
        *_together(
            "energy of {} has a reservation (see energy_reservations in cells.csv)",
            cells,
            lambda cell: cell.energy.energy_reservations if cell.validity.energy_valid else None,
        ),
        *_each(latency, _dropped),
        *_together("prompts of {} do not have the requested lengths", cells, _prompts_off),
        *_each(latency, lambda cell: late_tail(cell.traffic)),
        *(hit_warnings(cells) if not config.prefix_cache else ()),
        *dict.fromkeys(f"the comparison is not fair: {mark}" for ours in marks.values() for mark in ours),
        *_accuracy_warnings(trust, arrival),
        *answers,
        *_clock_steps(manifest),
        *(
            f"{block.target}, repeat {block.repeat}: {block.samples_lost} power samples were gone before they were "
            "pulled; windows that miss them have no energy"
            for block in manifest.power_blocks
            if block.samples_lost
        ),
        *_batch_notes(cells),
        *_answer_notes(cells),
        *hli,
        *([KEPT_SERVERS] if manifest.kept_servers and not config.find else ()),  # a search tells it with its story
        *([f"{planned - len(cells)} of {planned} planned cells were not measured"] if len(cells) < planned else ()),
        *(
            [f"the data file is not the published {dataset.name} (another sha256)"]
            if not dataset.published and dataset.name not in ("jsonl", "choices") and manifest.protocol.answer != "none"
            else ()
        ),
    )


def _shape_note(shapes: Sequence[str], shape: str | None) -> list[str]:
    if shape is None:
        return []
    others = [other for other in shapes if other != shape]
    return [
        f"figures, comparisons and B* are those of the shape {shape}; cells.csv and summary.csv also have "
        f"{', '.join(others)}, and `loadgen report RUN --shape {others[0]}` shows that one"
    ]


def cell_name(cell: CellSummary) -> str:
    """As "awq, B = 16, repeat 2"."""
    return f"{cell.target}, {cell.load}, repeat {cell.repeat}"


def _prompts_off(cell: CellSummary) -> str | None:
    had = cell.lengths
    if not had.prompts_off:
        return None
    return (
        f"{had.prompts_off} of {cell.requests} prompts; {had.prompt_tokens_mean:.1f} tokens on average, "
        f"{had.prompt_tokens_asked:.1f} were requested"
    )


def planned_cells(manifest: Manifest) -> int:
    """How many cells the run was to measure."""
    return sum(len(block.cells) for block in manifest.blocks)


def _each(cells: Iterable[CellSummary], why: Callable[[CellSummary], str | None]) -> Iterator[str]:
    """A sentence per cell of which there is something to say."""
    return (f"{cell_name(cell)}: {sentence}" for cell in cells if (sentence := why(cell)))


def _together(what: str, cells: Iterable[CellSummary], why: Callable[[CellSummary], str | None]) -> list[str]:
    """One sentence for all such cells, with their number in `what` and the first as the example."""
    found = [*_each(cells, why)]
    return [f"{what.format(_cells(len(found)))}, as {found[0]}"] if found else []


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"


def _failures(cell: CellSummary) -> str | None:
    if not cell.failures or cell.validity.failing:
        return None
    return f"{cell.failures} of its requests failed, the first with {cell.first_failure}"


def _dropped(cell: CellSummary) -> str | None:
    traffic = cell.traffic
    if not traffic.dropped:
        return None
    return (
        f"{traffic.dropped} of {traffic.arrivals} arrivals were dropped and have no latency: the highest percentiles "
        "may be too low"
    )


def checkpoint_notes(manifest: Manifest) -> list[str]:
    """What must be known of the servers before any figure: of their checkpoints, and what makes two of them unequal."""
    targets: dict[str, dict[str, None]] = {}
    for server in manifest.servers:
        for note in filter(None, (server.note, *server.remarks)):
            targets.setdefault(note, {})[server.name] = None
    chosen = [f"{name}: {found}" for name, found in manifest.checkpoints.items()]
    if manifest.config.vllm_args:
        chosen.append(f"every vLLM was given {shlex.join(manifest.config.vllm_args)}")
    return [*(f"{', '.join(names)}: {note}" for note, names in targets.items()), *chosen, *unequal_servers(manifest)]


def unequal_servers(manifest: Manifest) -> list[str]:
    """One sentence per target whose KV cache, or CUDA graphs, are not those of the reference; both must be known."""
    reference = manifest.config.reference
    servers = {server.name: server for server in manifest.servers}
    if (ours := servers.pop(reference, None)) is None:
        return []
    sentences: list[str] = []
    for name, server in servers.items():
        dtypes = {server.kv_cache_dtype, ours.kv_cache_dtype}
        if None not in dtypes and len(dtypes) > 1 and not dtypes <= SIXTEEN_BITS:
            sentences.append(
                f"{name} keeps keys and values in {server.kv_cache_dtype} and {reference} in {ours.kv_cache_dtype}: "
                "they differ in more than their weights; measure both with one --kv-cache-dtype"
            )
        if None not in (server.eager, ours.eager) and server.eager != ours.eager:
            slow, fast = (name, reference) if server.eager else (reference, name)
            sentences.append(
                f"{slow} ran eagerly (enforce_eager=True: no torch.compile, no CUDA graphs) and {fast} did not: part "
                "of their difference is not of precision, most at small B"
            )
    return sentences


def unequal_gpus(cells: Sequence[CellSummary], reference: str) -> list[str]:
    """One sentence per target whose model is shared by another number of GPUs than the reference's, with how their
    throughputs per GPU compare where both loads are valid."""
    counts = {cell.target: cell.gpus for cell in cells if cell.gpus is not None}
    rates: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        if cell.validity.valid and cell.tokens_per_s_per_gpu is not None:
            rates.setdefault((cell.target, cell.load), []).append(cell.tokens_per_s_per_gpu)
    sentences = []
    for name, count in counts.items():
        ours = counts.get(reference, count)
        if count != ours:
            shares = [
                f"{fmean(of) / fmean(rates[reference, load]):.2f} at {load}"
                for (target, load), of in rates.items()
                if target == name and (reference, load) in rates
            ]
            times = f" ({name} makes {', '.join(shares)} times the tokens/s per GPU of {reference})" * bool(shares)
            sentences.append(
                f"{name} runs on {_gpus(count)} and {reference} on {_gpus(ours)}: compare tokens_per_s_per_gpu{times}; "
                "joules are over all GPUs of each"
            )
    return sentences


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' * (count > 1)}"


def hit_warnings(cells: Sequence[CellSummary]) -> list[str]:
    """One sentence about hits that the requests' own salts should have prevented."""
    hits = {cell_name(cell): cell.cache_hit_share for cell in cells if cell.cache_hit_share}
    if not hits:
        return []
    most = max(hits, key=hits.__getitem__)
    return [
        f"prefix cache: {_cells(len(hits))} had hits although every request has its own cache_salt, at most "
        f"{hits[most]:.1%} of the prompt tokens ({most}); the server does not honour cache_salt: switch its prefix "
        "cache off (vLLM: --no-enable-prefix-caching)"
    ]


def share_marks(cells: Sequence[CellSummary], reference: str) -> dict[str, list[str]]:
    """Target -> what marks its comparison with the reference: hit shares that differ by more than `FAIR_POINTS`.

    Compared are, at each load, the repeats of one arm, and the means of the target and the reference. Uneven repeats of
    the reference mark every target.
    """
    shares: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        if cell.cache_hit_share is not None:
            shares.setdefault((cell.target, cell.load), []).append(100 * cell.cache_hit_share)
    marks: dict[str, list[str]] = {target: [] for target, _ in shares}
    for (target, load), ours in shares.items():
        if max(ours) - min(ours) > FAIR_POINTS:
            marks[target].append(
                f"{target}, {load}: its repeats took {min(ours):.1f} to {max(ours):.1f}% of their prompt tokens from "
                "the prefix cache"
            )
        theirs = shares.get((reference, load), ours)
        if abs(fmean(ours) - fmean(theirs)) > FAIR_POINTS:
            marks[target].append(
                f"{load}: {target} took {fmean(ours):.1f}% of its prompt tokens from the prefix cache, {reference} "
                f"{fmean(theirs):.1f}%"
            )
    of_reference = marks.get(reference, [])
    return {target: ours if target == reference else [*ours, *of_reference] for target, ours in marks.items()}


def _batch_notes(cells: Iterable[CellSummary]) -> list[str]:
    """What is not plain about the running batch of valid cells: a sentence per target and kind, with its first cell."""
    alike: dict[tuple[str, str], list[CellSummary]] = {}
    for cell in cells:
        if cell.validity.valid and cell.running_note.why:
            alike.setdefault((cell.target, cell.running_note.why), []).append(cell)
    return [
        cell_name(first) + (f" and {len(others)} more" if others else "") + f": {first.running_note}"
        for first, *others in alike.values()
    ]


def _answer_notes(cells: Iterable[CellSummary]) -> list[str]:
    """Each kind of note once, with the targets that it is true of and how many answers; and the retries."""
    notes: dict[str, Counter[str]] = {}
    retries: Counter[str] = Counter()
    for cell in cells:
        for note, count in cell.answer_notes.items():
            notes.setdefault(note, Counter())[cell.target] += count
        retries[cell.target] += cell.retries
    found = [f"{_counted(counts)} answers: {note}" for note, counts in notes.items()]
    if retries.total():
        counts = _counted(+retries)
        found.append(f"{counts} requests were sent again, because the server had closed their kept connection")
    return found


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{target}: {count}" for target, count in counts.items())


def _accuracy_warnings(trust: TrustStudy, arrival: str | None) -> list[str]:
    """Warnings of comparisons that are refused or confounded: batches with the same reason together."""
    alike: dict[tuple[str, str], list[TrustTest]] = {}
    for test in trust.trust:
        if test.verdict == "refused" or (test.judgement is not None and test.judgement.confounded):
            kind = test.sentence if test.verdict == "refused" else "confounded"
            alike.setdefault((test.target, kind), []).append(test)
    found = []
    for (target, _), tests in alike.items():
        first, *others = sorted(tests, key=lambda test: test.held)
        measured = [test.concurrency for test in trust.trust if test.target == target]
        alike_at = spanned([test.concurrency for test in others], measured) if first.arrival is None and others else ""
        alike_at = alike_at or ", ".join(str(test.arrival) for test in others)
        more = f" (likewise at {alike_at})" if others else ""
        where = level(first.concurrency, first.arrival or arrival)
        found.append(f"accuracy of {target} against {first.reference} at {where}: {first.sentence}{more}")
    return found


def _clock_steps(manifest: Manifest) -> list[str]:
    """A sentence per session in which the wall clock left the monotonic one by more than drift."""
    offsets_ns: dict[int, list[int]] = {}
    for anchor in manifest.clock_anchors:
        offsets_ns.setdefault(anchor.session, []).append(anchor.unix_ns - anchor.monotonic_ns)
    steps_s = {session: (offsets[-1] - offsets[0]) / 1e9 for session, offsets in offsets_ns.items()}
    return [
        f"the wall clock was set by {step_s:+.1f} s during session {session}; no figure depends on it, but times in "
        "Grafana do"
        for session, step_s in steps_s.items()
        if abs(step_s) > CLOCK_STEP_S
    ]
