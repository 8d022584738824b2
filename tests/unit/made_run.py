"""Journals made by hand, so that every figure of the analysis can be worked out on paper. Times here are in ms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from loadgen.analysis.celldata import CellData, read_cell
from loadgen.load.exchange import Exchange
from loadgen.record.cell import Cell, SweepConfig
from loadgen.record.journal import CellEnd, CellStart, Journal
from loadgen.record.manifest import Manifest
from loadgen.serving.exposition import ServerSample

MS = 1_000_000
WINDOW = (1000, 2000)


def cell(
    b: int = 1,
    *,
    target: str = "fp16",
    repeat: int = 1,
    index: int = 1,
    arrival: str = "closed",
    shape: str | None = None,
) -> Cell:
    return Cell(
        index=index, target=target, precision=target, concurrency=b, repeat=repeat, arrival=arrival, shape=shape
    )


def answer(send: float, tokens: Sequence[tuple[float, int]] = (), end: float | None = None, **fields: Any) -> Exchange:
    """An exchange sent at `send`, with (arrival, tokens) events; its last byte comes with the last event."""
    last = tokens[-1][0] if tokens else send
    made: dict[str, Any] = {
        "slot": 0,
        "phase": "measured",
        "item_id": "sample-0000",
        "prompt_sha": "0" * 64,
        "t_send_ns": round(send * MS),
        "t_first_ns": round(tokens[0][0] * MS) if tokens else None,
        "t_end_ns": round((last if end is None else end) * MS),
        "token_times": tuple((round(t * MS), n) for t, n in tokens),
        "token_source": "usage" if tokens else None,
        "prompt_tokens": 20 if tokens else None,
        "output_tokens": sum(n for _, n in tokens) if tokens else None,
        "finish_reason": "stop",
        "http_status": 200,
    }
    return Exchange(**made | fields)


def arrived(
    due: float, tokens: Sequence[tuple[float, int]] = (), end: float | None = None, *, late: float = 0, **fields: Any
) -> Exchange:
    """An exchange of an open loop, sent `late` after it was due."""
    return answer(due + late, tokens, end, t_scheduled_ns=round(due * MS), **fields)


def turned_away(due: float) -> Exchange:
    """An arrival that was dropped."""
    return arrived(due, status="dropped", slot=None, http_status=None, finish_reason=None, error="4 were in flight")


def scrape(t: float, **figures: float | None) -> ServerSample:
    return ServerSample(t_ns=round(t * MS), scrape_ns=MS, **figures)


def ended(window: tuple[float, float] | None = WINDOW, **fields: Any) -> CellEnd:
    opened, closed = (round(window[0] * MS), round(window[1] * MS)) if window else (None, None)
    return CellEnd(t_ns=10_000 * MS, window_open_ns=opened, window_close_ns=closed, **fields)


def write_cell(
    run_dir: Path,
    of: Cell,
    exchanges: Sequence[Exchange],
    samples: Sequence[ServerSample] = (),
    end: CellEnd | None = None,
    *,
    simulated: bool = False,
) -> Path:
    path = run_dir / "journal" / f"{of.label}.jsonl"
    journal = Journal(path)
    journal.append(CellStart(cell=of, t_ns=0, simulated=simulated))
    for record in (*exchanges, *samples):
        journal.append(record)
    if end is not None:
        journal.append(end)
    journal.close()
    return path


def cell_data(
    run_dir: Path,
    exchanges: Sequence[Exchange],
    samples: Sequence[ServerSample] = (),
    *,
    b: int = 1,
    arrival: str = "closed",
    end: CellEnd | None = None,
) -> CellData:
    of = cell(b, arrival=arrival)
    data = read_cell(write_cell(run_dir, of, exchanges, samples, ended() if end is None else end))
    assert data is not None
    return data


def valid_cell(
    run_dir: Path,
    of: Cell,
    *,
    tokens_per_s: int = 100,
    length: int | None = None,
    each_its_item: bool = False,
    simulated: bool = False,
    metrics: bool = True,
) -> None:
    """A cell with nothing against it: one answer ends in its window of 1 s, or one of every `length` tokens, all to one
    item or `each_its_item`; the batch is B throughout; without `metrics` the server does not tell it."""
    step = 1000 / tokens_per_s
    tokens = [(1000 + step * (k + 1), 1) for k in range(tokens_per_s)]
    parts = [tokens[k : k + (length or len(tokens))] for k in range(0, len(tokens), length or len(tokens))]
    sent = [900.0, *(part[-1][0] for part in parts)]
    items = [f"q{1 + k * each_its_item}" for k in range(len(parts))]
    asked = [answer(t, part, item_id=item, text="#### 5") for t, part, item in zip(sent, parts, items, strict=False)]
    asked += [answer(900, end=2100, slot=slot, item_id="q2", text="#### 7", output_tokens=0, prompt_tokens=20)
              for slot in range(1, of.concurrency)]  # fmt: skip
    b = float(of.concurrency)
    if not metrics:
        write_cell(run_dir, of, asked, [], ended(metrics_failure="http://h:1/metrics answers 404"), simulated=simulated)
        return
    write_cell(
        run_dir, of, asked, [scrape(1100, running=b, waiting=0.0), scrape(1900, running=b, waiting=0.0)], ended(),
        simulated=simulated,
    )  # fmt: skip


def open_cell(run_dir: Path, of: Cell, *, simulated: bool = False) -> None:
    """A valid cell of an open loop: 4 requests due in its window of 1 s, first tokens after 50, 90, 200 and 400 ms."""
    asked = [
        arrived(due, [(due + ttft, 1), (due + ttft + 10, 1)], item_id=item, text="#### 5", late=0.5)
        for due, ttft, item in ((1100, 50, "q1"), (1250, 90, "q2"), (1400, 200, "q1"), (1500, 400, "q2"))
    ]
    write_cell(run_dir, of, asked, [scrape(1100, running=1.0), scrape(1900, running=1.0)], ended(), simulated=simulated)


def made_open_run(run_dir: Path, *, slo: str | None = None, arrival: str = "poisson:4", **options: Any) -> Path:
    """As `make_run`, of an open loop with at most 64 in flight."""
    make_run(run_dir, concurrency=(64,), arrival=arrival, **options)
    path = run_dir / "manifest.json"
    content = json.loads(path.read_text())
    content["config"] |= {"arrival": arrival, "slo": slo}
    path.write_text(json.dumps(content))
    return run_dir


def manifest(config: dict[str, Any], **others: Any) -> dict[str, Any]:
    """The content of a manifest.json; `others` take the place of what it says else."""
    return {
        "schema": 1,
        "simulated": False,
        "config": config,
        "dataset": {"name": "sample", "sha256": "0" * 64, "published": True, "items": 2},
        "protocol": {"name": "gsm8k-5shot-own", "sha256": "0" * 64, "api": "completions", "max_tokens": 256},
        "graded": True,
        "client": {"loadgen": "0.0"},
        "host": {"cpu": "a processor", "cpus": 2},
        "servers": [],
        "failures": [],
    } | others


def manifest_record(config: SweepConfig, **others: Any) -> Manifest:
    """What `read_manifest` reads of a sweep with this config."""
    return msgspec.convert(manifest(msgspec.to_builtins(config), **others), Manifest)


def make_run(
    run_dir: Path,
    *,
    targets: Sequence[str] = ("fp16", "awq"),
    concurrency: Sequence[int] = (1, 2),
    repeats: int = 2,
    simulated: bool = False,
    model: str | None = "some/model",
    servers: Sequence[dict[str, Any]] = (),
    failures: Sequence[dict[str, Any]] = (),
    arrival: str = "closed",
    without_metrics: Sequence[str] = (),
    length: int | None = None,
    shapes: Sequence[str] = (),
) -> Path:
    """A whole run directory as the sweep leaves it, nothing derived: manifest, items and a valid cell everywhere. Each
    of the `shapes` has twice the throughput of the one before."""
    run_dir.mkdir(parents=True)
    config = {
        "reference": targets[0],
        "targets": [{"name": name} for name in targets],
        "concurrency": list(concurrency),
        "repeats": repeats,
        "model": model,
        "duration_s": 1.0,
        "requests": None,
        "dataset": f"synthetic:{','.join(shapes)}" if shapes else "",
    }
    content = manifest(config, simulated=simulated, servers=list(servers), failures=list(failures))
    (run_dir / "manifest.json").write_text(json.dumps(content))
    (run_dir / "items.json").write_text('{"q1": "5", "q2": "8"}')
    index = 0
    for repeat in range(1, repeats + 1):
        for target in targets:
            for b, shape in product(concurrency, shapes or (None,)):
                index += 1
                of = cell(b, target=target, repeat=repeat, index=index, arrival=arrival, shape=shape)
                tokens_per_s = (90 + 10 * repeat) * 2 ** (shapes.index(shape) if shape else 0)
                if of.arrivals is not None:
                    open_cell(run_dir, of, simulated=simulated)
                else:
                    valid_cell(
                        run_dir, of, tokens_per_s=tokens_per_s, length=length, simulated=simulated,
                        metrics=target not in without_metrics,
                    )  # fmt: skip
    return run_dir
