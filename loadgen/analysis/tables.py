"""The tables of a run directory: three Parquet files, cells.csv and summary.csv, written and read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from loadgen.analysis.celldata import CellData, Floats, Ints, answered_in
from loadgen.analysis.cells import CellSummary
from loadgen.analysis.energy import PowerData
from loadgen.analysis.estimate import Estimate, rate_interval, wilson_interval
from loadgen.analysis.exchanges import NUMBERS
from loadgen.analysis.indices.study import IndexStudy, TargetIndices
from loadgen.analysis.kvcache import mean_batch
from loadgen.analysis.trust.accuracy import correct_energy
from loadgen.analysis.trust.answers import Answers, guessed_rate, item_means, outcome_rate, stopped_rate
from loadgen.analysis.trust.study import TrustStudy, TrustTest
from loadgen.analysis.validity import COLUMNS as VALID
from loadgen.errors import UsageError
from loadgen.folder import Folder
from loadgen.power.trace import PowerTrace
from loadgen.processgroup import forked
from loadgen.secret import error_text, text_of_cell, visible_cell
from loadgen.workload.grading import VERSION, Grade
from loadgen.workload.item import ItemFacts


def _token_times(kind: pa.DataType) -> pa.Field:
    """The column of events, with their tokens as numbers of this kind; never null, which Parquet writes faster."""
    event = pa.struct([pa.field("t_ns", pa.int64(), nullable=False), pa.field("tokens", kind, nullable=False)])
    return pa.field("token_times", pa.list_(pa.field("element", event, nullable=False)), nullable=False)


_CELL = [
    ("target", pa.string()), ("precision", pa.string()), ("concurrency", pa.int32()), ("repeat", pa.int32()),
    ("arrival", pa.string()), ("shape", pa.string()),
]  # fmt: skip
REQUESTS = pa.schema([
    *_CELL,
    ("phase", pa.string()), ("slot", pa.int32()), ("item_id", pa.string()), ("prompt_sha", pa.string()),
    ("t_scheduled_ns", pa.int64()),
    ("t_send_ns", pa.int64()), ("t_first_ns", pa.int64()), ("t_last_ns", pa.int64()), ("t_end_ns", pa.int64()),
    ("in_window", pa.bool_()),
    _token_times(pa.int32()), ("stamps", pa.string()),
    ("token_source", pa.string()),
    ("prompt_tokens", pa.int32()), ("prompt_tokens_asked", pa.int32()), ("output_tokens_asked", pa.int32()),
    ("cached_tokens", pa.int32()), ("output_tokens", pa.int32()),
    ("reasoning_tokens", pa.int32()), ("finish_reason", pa.string()),
    ("stop_reason", pa.string()), ("http_status", pa.int32()), ("status", pa.string()), ("error", pa.string()),
    ("retries", pa.int32()), ("notes", pa.string()),
    ("text", pa.string()), ("reasoning", pa.string()), ("outcome", pa.string()), ("answer", pa.string()),
    ("correct", pa.bool_()), ("extractor", pa.string()), ("correct_but_truncated", pa.bool_()),
    ("strict", pa.bool_()), ("flexible", pa.bool_()), ("grader", pa.int16()),
    ("steps", pa.int32()), ("simulated", pa.bool_()),
])  # fmt: skip
_ASKED = {"steps": "steps", "prompt_tokens_asked": "input_tokens", "output_tokens_asked": "output_tokens"}
"""Columns, and what they are called among an item's facts."""
_VERDICT = ("outcome", "answer", "correct", "extractor", "correct_but_truncated", "strict", "flexible")
SERVER = pa.schema([
    *_CELL,
    ("t_ns", pa.int64()), ("scrape_ns", pa.int64()), ("running", pa.float64()), ("waiting", pa.float64()),
    ("preemptions", pa.float64()), ("kv_usage", pa.float64()), ("generation_tokens", pa.float64()),
    ("prompt_tokens", pa.float64()), ("iterations", pa.float64()),
    ("prefix_cache_queries", pa.float64()), ("prefix_cache_hits", pa.float64()),
    ("engines", pa.list_(pa.struct([
        ("engine", pa.string()), ("running", pa.float64()), ("generation_tokens", pa.float64()),
        ("iterations", pa.float64()),
    ]))),
    ("ttft_count", pa.float64()), ("ttft_sum_s", pa.float64()), ("simulated", pa.bool_()),
])  # fmt: skip


POWER = pa.schema([
    ("target", pa.string()), ("precision", pa.string()), ("repeat", pa.int32()),
    ("session", pa.int32()), ("t_ns", pa.int64()), ("latency_ns", pa.int64()), ("gpu_uuid", pa.string()),
    ("counter_j", pa.float64()),
    ("power_instant_w", pa.float64()), ("power_average_w", pa.float64()), ("temperature_c", pa.float64()),
    ("sm_clock_hz", pa.float64()), ("memory_clock_hz", pa.float64()), ("throttle_reasons", pa.int64()),
    ("power_limit_w", pa.float64()), ("memory_used_bytes", pa.int64()),
    ("utilization", pa.float64()), ("processes", pa.string()), ("errors", pa.string()),
    ("simulated", pa.bool_()),
])  # fmt: skip


_T_NS, _TOKENS = (f"token_times.list.element.{name}" for name in ("t_ns", "tokens"))
"""Rising numbers, nearly all of requests.parquet: their differences are a third of the size, in a third of the time;
that they leave nothing to compress shows in the time only. The tokens are compressed as they are: a dictionary of so
few values takes more time than it saves. Requests' own times rise too, nearly, and none of them comes twice."""
_TIMES = ("t_send_ns", "t_first_ns", "t_last_ns", "t_end_ns")
_OTHERS = [
    *REQUESTS.names, _TOKENS, *SERVER.names, *POWER.names,
    *(f"engines.list.element.{name}" for name in ("engine", "running", "generation_tokens", "iterations")),
]  # fmt: skip
_ENCODING: dict[str, Any] = {
    "compression": dict.fromkeys(_OTHERS, "zstd") | {_T_NS: "none"},
    "use_dictionary": [name for name in _OTHERS if name not in (_TOKENS, *_TIMES)],
    "column_encoding": dict.fromkeys((_T_NS, *_TIMES), "DELTA_BINARY_PACKED"),
    "write_statistics": [name for name in _OTHERS if not name.startswith("token_times")],
}


class RunTables:
    """Writes requests, server and power.parquet, a row group per cell or server; use as a context manager.

    The files appear whole under their names when the last cell was added.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = Folder(run_dir)
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._open = ExitStack()

    def __enter__(self) -> RunTables:
        for name, schema in (("requests", REQUESTS), ("server", SERVER), ("power", POWER)):
            file = self._open.enter_context(self._folder.replacing(f"{name}.parquet"))
            self._writers[name] = self._open.enter_context(pq.ParquetWriter(file, schema, **_ENCODING))
        return self

    def add(self, name: str, table: pa.Table) -> None:
        """One more row group for a file: `requests`, `server` or `power`."""
        if table.num_rows:
            self._writers[name].write_table(table.cast(self._writers[name].schema))

    def __exit__(self, *failed: Any) -> None:
        self._open.__exit__(*failed)


def requests_table(data: CellData, grades: Sequence[Grade | None], items: Mapping[str, ItemFacts]) -> pa.Table:
    """One row per request, warm-up, failed and dropped ones included; tokens are of the kind that `data` has."""
    exchanges = data.exchanges
    in_window = answered_in(data, data.window) if data.window else np.zeros(len(exchanges), dtype=np.bool_)
    counts = pa.array(data.token_counts)
    events = _token_times(counts.type)
    times = pa.StructArray.from_arrays([pa.array(data.token_t_ns), counts], fields=list(events.type.value_type))
    columns: dict[str, Any] = {
        **_cell_columns(data, len(exchanges)),
        "t_scheduled_ns": _known(data.t_scheduled_ns),
        "t_send_ns": data.t_send_ns,
        "t_first_ns": _known(data.t_first_ns),
        "t_last_ns": _known(data.t_last_ns),
        "t_end_ns": data.t_end_ns,
        "in_window": in_window,
        "token_times": pa.ListArray.from_arrays(pa.array(data.token_offsets.astype(np.int32)), times, events.type),
        "output_tokens": _known(data.output_tokens),
        "stop_reason": [None if reason is None else str(reason) for reason in exchanges.stop_reason],
        "notes": ["; ".join(notes) if notes else None for notes in exchanges.notes],
    }
    for name, asked in _ASKED.items():
        of_item = {item: getattr(facts, asked) for item, facts in items.items()}
        columns[name] = list(map(of_item.get, exchanges.item_id))
    columns |= _verdicts(grades)
    for name in REQUESTS.names:
        if name not in columns:
            values = getattr(exchanges, name)
            columns[name] = _known(values) if name in NUMBERS else values
    schema = REQUESTS.set(REQUESTS.get_field_index("token_times"), events)
    return pa.table({field.name: _alike(columns[field.name], field.type) for field in schema}, schema=schema)


def _verdicts(grades: Sequence[Grade | None]) -> dict[str, pa.Array]:
    """The columns of the grades; many answers have the very same one, and of each it is looked at once."""
    different = {id(grade): grade for grade in grades}
    place = dict(zip(different, range(len(different)), strict=True))
    places = pa.array(np.fromiter(map(place.__getitem__, map(id, grades)), np.int64, len(grades)))
    told = {name: [grade and getattr(grade, name) for grade in different.values()] for name in _VERDICT}
    told["grader"] = [grade and VERSION for grade in different.values()]
    return {name: pa.array(values, REQUESTS.field(name).type).take(places) for name, values in told.items()}


def _alike(values: Any, kind: pa.DataType) -> Any:
    """A list in which all are one, as in most columns, as an array: else each is converted by itself."""
    if isinstance(values, list) and values and values.count(values[0]) == len(values):
        return pa.repeat(pa.scalar(values[0], kind), len(values))
    return values


def server_table(data: CellData) -> pa.Table:
    """One row per scrape of the server's `/metrics`, the whole cell long."""
    columns: dict[str, Any] = _cell_columns(data, len(data.samples))
    for field in SERVER.names:
        if field not in columns:
            columns[field] = [getattr(s, field) for s in data.samples]
    columns["engines"] = [[msgspec.structs.asdict(engine) for engine in s.engines] or None for s in data.samples]
    return pa.table({name: columns[name] for name in SERVER.names}, schema=SERVER)


def power_table(cell: CellSummary, power: PowerData) -> pa.Table:
    """One row per raw sample of the cell's server, GPU by GPU."""
    given = {name: getattr(cell, name) for name in ("target", "precision", "repeat", "session", "simulated")}
    return pa.concat_tables([_trace_table(given, trace) for trace in power.samples.values()] or [POWER.empty_table()])


def _trace_table(given: dict[str, Any], trace: PowerTrace) -> pa.Table:
    columns = {name: pa.repeat(value, len(trace)) for name, value in (given | {"gpu_uuid": trace.gpu}).items()}
    columns["processes"] = pa.array(
        [None if listed is None else "; ".join(map(str, listed)) for listed in trace.processes], pa.string()
    )
    columns["errors"] = pa.array(["; ".join(errors) or None for errors in trace.errors], pa.string())
    for field in POWER:
        if field.name not in columns:
            columns[field.name] = pa.array(getattr(trace, field.name), field.type, from_pandas=True)
    return pa.table({name: columns[name] for name in POWER.names}).cast(POWER)


def _cell_columns(data: CellData, rows: int) -> dict[str, Any]:
    cell = data.cell
    values: dict[str, Any] = {name: getattr(cell, name) for name in ("target", "precision", "concurrency", "repeat")}
    values |= {"arrival": cell.arrival if data.open_loop else None, "shape": cell.shape, "simulated": data.simulated}
    return {name: pa.repeat(pa.scalar(value, pa.string()) if value is None else value, rows)
            for name, value in values.items()}  # fmt: skip


def _known(values: Ints) -> pa.Array:
    """Where there is none (-1), null."""
    return pa.array(values, mask=values < 0)


DIAGNOSTICS = ("window_s", "inflight_mean", "running_mean")
TRAFFIC = ("rate_asked_per_s", "rate_per_s", "completed_per_s", "late_ms_p99")
COUNTED = ("arrivals", "late", "dropped")
AVERAGED = (
    "ttft_ms_mean", "ttft_ms_p50", "ttft_ms_p90", "ttft_ms_p99", "itl_ms_mean", "itl_ms_p50", "itl_ms_p99",
    "tpot_ms_mean", "tpot_ms_p50", "tpot_ms_p99", "e2e_ms_mean", "e2e_ms_p50", "e2e_ms_p99",
    "output_tokens_mean", "memory_needed_bytes", "cache_hit_share",
    "tokens_per_s_per_gpu", "memory_needed_per_gpu_bytes",
)  # fmt: skip
ENERGY = (
    "energy_j", "power_w_mean", "energy_per_token_j", "energy_per_query_j", "energy_hli_per_query_j",
    "tokens_per_j", "energy_net_j", "energy_per_query_completions_j", "carbon_g_per_query", "memory_peak_bytes",
)  # fmt: skip
GOODPUT = ("goodput_per_s", "goodput_share", "energy_per_good_query_j")
COLUMNS = (
    "target", "precision", "concurrency", "repeats", "valid", "latency_valid", "energy_valid", "answers_valid",
    "requests", "errors", "window_s", "output_tokens",
    "tokens_per_s", "tokens_per_s_lo", "tokens_per_s_hi", "inflight_mean", "running_mean", "running_source",
    *AVERAGED[:13],
    "energy_j", "power_w_mean", "energy_per_token_j", "energy_per_token_j_lo", "energy_per_token_j_hi",
    "energy_per_query_j", "energy_per_query_j_lo", "energy_per_query_j_hi", "energy_hli_per_query_j",
    "energy_per_correct_j", "energy_per_correct_j_lo", "energy_per_correct_j_hi",
    "output_tokens_mean", "accuracy", "accuracy_lo", "accuracy_hi", "questions", "truncated_rate", "unparsed_rate",
    "guessed_rate", "stopped_rate", "cor", "t_si", "t_si_lo", "t_si_hi", "e_si", "s_si", "si",
    *ENERGY[5:],
    "memory_needed_bytes", "kv_cache_tokens", "kv_cache_card_tokens", "kv_batch", "preemptions",
    "cache_hit_share", "gpus", "tokens_per_s_per_gpu", "memory_needed_per_gpu_bytes",
    "arrival", "rate_asked_per_s", "arrivals", "rate_per_s", "completed_per_s", "late", "late_ms_p99", "dropped",
    "good", "goodput_per_s", "goodput_per_s_lo", "goodput_per_s_hi", "goodput_share", "energy_per_good_query_j",
    "shape", "simulated",
)  # fmt: skip

Row = dict[str, str | int | float | bool | None]


def summarize(
    cells: Sequence[CellSummary],
    answers: Mapping[tuple[str, float], Answers],
    trust: TrustStudy,
    indices: IndexStudy,
    processes: int = 1,
) -> list[Row]:
    """The rows of summary.csv, a target at one B, or rate, over its repeats, in the order of first appearance.

    `repeats` counts the cells, `valid` those whose load is valid, `latency_valid` and so on those of the other
    quantities. A figure is the mean over the cells in which its quantity is valid (`quantities_of`; so a p99 is the
    mean of the repeats' p99s), and empty if there is none; counts are sums over cells with a valid load. Window,
    in-flight, running batch and an open loop's traffic are shown of invalid cells too, as a diagnosis.
    `answers` maps (target, B or rate) to the graded answers that stand (valid ones), whether or not the cells'
    rates and joules do.
    """
    groups: dict[tuple[str, float], list[CellSummary]] = {}
    for cell in cells:
        groups.setdefault((cell.target, cell.held), []).append(cell)
    order = {target: place for place, target in enumerate(dict.fromkeys(cell.target for cell in cells))}
    keys = sorted(groups, key=lambda key: (order[key[0]], key[1]))
    tasks = [
        partial(
            _row, groups[key], answers.get(key, {}), trust.test(*key), indices.entry(key[0], groups[key][0].concurrency)
        )
        for key in keys
    ]
    return list(forked(tasks, processes))


def _row(cells: Sequence[CellSummary], answers: Answers, test: TrustTest | None, indices: TargetIndices | None) -> Row:
    valid = [cell for cell in cells if cell.validity.valid]
    counted = valid or cells
    first, traffics = cells[0], [cell.traffic for cell in counted]
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"target": first.target, "precision": first.precision, "concurrency": first.concurrency}
    row |= {"shape": first.shape, "repeats": len(cells), "simulated": any(cell.simulated for cell in cells)}
    row |= {column: _sum([getattr(cell.validity, column) for cell in cells]) for column in VALID.values()}
    row |= {"requests": sum(c.requests for c in counted), "errors": sum(c.errors for c in counted)}
    row["gpus"] = max((cell.gpus for cell in counted if cell.gpus is not None), default=None)
    for column in ("kv_cache_tokens", "kv_cache_card_tokens"):
        row[column] = min((size for cell in counted if (size := getattr(cell, column)) is not None), default=None)
    row["kv_batch"] = mean_batch((cell.kv_batch, cell.requests) for cell in counted)
    row["preemptions"] = _sum([None if cell.preemptions is None else int(cell.preemptions) for cell in cells])
    row["running_source"] = ", ".join(sorted({cell.running_source for cell in counted}))
    row |= {column: _mean([getattr(cell, column) for cell in counted]) for column in DIAGNOSTICS}
    row |= {column: _mean(_known_of(cells, column)) for column in (*AVERAGED, *ENERGY, *GOODPUT, "tokens_per_s")}
    row |= {column: _mean([getattr(traffic, column) for traffic in traffics]) for column in TRAFFIC}
    row |= {column: _sum([getattr(traffic, column) for traffic in traffics]) for column in COUNTED}
    row |= {"arrival": traffics[0].arrival, "good": _sum(_known_of(cells, "good"))}
    row["output_tokens"] = _sum([cell.output_tokens for cell in valid])
    for column in ("tokens_per_s", "energy_per_token_j", "energy_per_query_j", "goodput_per_s"):
        rates = _known_of(cells, column)
        if column != "goodput_per_s" or all(rates):  # an interval on logarithms knows no zero: no good request
            row[f"{column}_lo"], row[f"{column}_hi"] = rate_interval(rates)
    scores = np.array(list(item_means(answers).values()))
    if scores.size:
        row |= {"accuracy": float(scores.mean()), "questions": int(scores.size)}
        row["accuracy_lo"], row["accuracy_hi"] = wilson_interval(float(scores.sum()), scores.size)
        row |= {"guessed_rate": guessed_rate(answers), "stopped_rate": stopped_rate(answers)}
        row |= {f"{outcome}_rate": outcome_rate(answers, outcome) for outcome in ("truncated", "unparsed")}
        correct = _energy_per_correct([joules for joules in _known_of(cells, "energy_per_query_j") if joules], scores)
        if correct is not None:
            row |= {"energy_per_correct_j": correct.value}
            row |= {"energy_per_correct_j_lo": correct.lo, "energy_per_correct_j_hi": correct.hi}
    if test is not None:
        row |= {"t_si": test.t_si, "t_si_lo": test.t_si_lo, "t_si_hi": test.t_si_hi}
    if indices is not None:
        shown = {"cor": indices.cor_tps, "e_si": indices.e_si.value, "s_si": indices.s_si, "si": indices.si}
        row |= {column: estimate.value for column, estimate in shown.items() if estimate is not None}
    return row


def _energy_per_correct(joules: Sequence[float], scores: Floats) -> Estimate | None:
    """Energy per query over accuracy; its error over repeats: a single one has no interval."""
    if not joules:
        return None
    if len(joules) == 1:
        return correct_energy(joules[0], scores)
    error = float(np.std(np.log(joules), ddof=1)) / math.sqrt(len(joules))
    return correct_energy(float(np.mean(joules)), scores, relative_error=error, degrees=len(joules) - 1)


def _known_of(cells: Sequence[CellSummary], column: str) -> list[float]:
    """The figure of each cell in which it was measured and is valid."""
    return [value for cell in cells if (value := cell.figure(column)) is not None]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _sum(values: Sequence[Any]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def write_cells(run_dir: Path, cells: Sequence[CellSummary]) -> None:
    """Writes cells.csv."""
    write_csv(pd.DataFrame([cell.columns() for cell in cells]), run_dir, "cells.csv")


def write_summary(run_dir: Path, rows: Sequence[Row]) -> None:
    """Writes summary.csv."""
    write_csv(pd.DataFrame(list(rows), columns=list(COLUMNS)), run_dir, "summary.csv")


def read_table(folder: Path, name: str, **options: Any) -> pd.DataFrame:
    """The rows of a Parquet file with the columns that loadgen writes; `options` of pyarrow.parquet.read_table.

    Raises UsageError if it is missing, damaged, or has columns of other kinds.
    """
    known = {"requests.parquet": REQUESTS, "server.parquet": SERVER, "power.parquet": POWER}[name]
    with _intact(folder, name), Folder(folder).open(name) as file:
        table = pq.read_table(file, **options)
        named = {field.name: field.type for field in known}
        table = table.cast(pa.schema([(field.name, named.get(field.name, field.type)) for field in table.schema]))
        frame: pd.DataFrame = table.to_pandas()
        return frame


def write_csv(frame: pd.DataFrame, folder: Path, name: str) -> None:
    """Writes `csv_text` of a table into a file of the folder."""
    with Folder(folder).replacing(name) as file:
        file.write(csv_text(frame).encode())


def csv_text(frame: pd.DataFrame) -> str:
    """A table without its index; texts, which may be a server's, are `visible_cell`."""
    return str(_with_texts(frame, visible_cell).to_csv(index=False))


def read_csv(folder: Path, name: str, texts: Sequence[str] = ()) -> pd.DataFrame:
    """A table that `write_csv` wrote. `texts`: columns that may look like numbers, as a target of the name `8` does.

    Only an empty field is "not measured"; `NA` is a text. Raises UsageError if the file is missing or damaged.
    """
    with _intact(folder, name), Folder(folder).open(name) as file:
        frame = pd.read_csv(file, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=[""])
        return _with_texts(frame, text_of_cell).copy()  # in whole: pandas reads a hundred columns apart


@contextlib.contextmanager
def _intact(folder: Path, name: str) -> Iterator[None]:
    """Within, a table that is missing or cannot be decoded raises UsageError."""
    try:
        yield
    except FileNotFoundError:
        why = None
    except (pa.ArrowException, ValueError, KeyError, OverflowError) as error:
        why = error_text(error)
    else:
        return
    raise damaged(folder, name, why)


def damaged(folder: Path, name: str, why: str | None) -> UsageError:
    """For a derived file that cannot be read, and why; None: it is missing."""
    what = "is missing" if why is None else f"is damaged ({why})"
    return UsageError(f"{folder / name} {what}; write it again with `loadgen report {folder}`")


def older(run_dir: Path) -> UsageError:
    """For derived files of an earlier version, which lack what this one reads."""
    return UsageError(f"{run_dir} was analysed by an older version; run `loadgen report {run_dir}` first")


def _with_texts(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with each of its texts changed so."""
    columns = {
        str(name): column.map(lambda value: change(value) if isinstance(value, str) else value).astype(column.dtype)
        for name, column in frame.select_dtypes(exclude=["number", "bool"]).items()
    }
    return frame.assign(**columns)
