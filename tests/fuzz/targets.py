"""What is fuzzed: functions of bytes that fail where loadgen does not do with them what it promises.

The first bytes of `sse` and `http` say where the rest is cut into reads: an ordinary input needs none. Whatever a
target is given, nothing is raised but the one documented error.
"""

from __future__ import annotations

import asyncio
import json
import math
import select
import socket
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
from hostile_run import HostileRun, attempt
from streams import events_of

from loadgen.analysis.celldata import read_cell
from loadgen.analysis.compare.external import ImportedPoint, read_import
from loadgen.cli import given_options
from loadgen.cli.sweep import command as sweep
from loadgen.errors import UsageError
from loadgen.load.compiled import compiled
from loadgen.load.exchange import Exchange, Request, Status, concealed, read_exchange
from loadgen.load.http import Endpoint, _Connection
from loadgen.load.httpraw import HttpRaw
from loadgen.load.kernelstamps import StampedTransport
from loadgen.load.reader import Reader
from loadgen.load.sse import GZIP_MAGIC, MOST_MESSAGE, server_message
from loadgen.load.tokens import MOST_OVER
from loadgen.measure.config import configure
from loadgen.options import SweepOptions
from loadgen.record.journal import CellEnd, Record, read_records, sealed
from loadgen.secret import Mask, visible
from loadgen.serving.exposition import ServerSample
from loadgen.serving.facts import metric_names, read_models, read_version
from loadgen.serving.metrics import read_metrics
from loadgen.serving.recipe import read_recipe
from loadgen.workload.dataset import items_of_file
from loadgen.workload.grading.grader import grade
from loadgen.workload.gsm8k import read_gsm8k
from loadgen.workload.item import Item, ItemFacts
from loadgen.workload.mathqa import read_clean, read_mathqa
from loadgen.workload.questions import read_jsonl

Reads = list[tuple[int, bytes]]
MOST_TOKENS = 512
REQUEST = Request(item_id="q", prompt_sha="0" * 64, phase="measured", body=b"{}", max_tokens=MOST_TOKENS)
STATUSES = get_args(Status)
CUT_MARK = b"\xff\xfe"
"""Ends the numbers, of two bytes each, that say where an input is cut; one without it is cut nowhere."""


def cut(data: bytes) -> tuple[bytes, Reads]:
    """The wire, and its reads: read k arrives at 100 + k."""
    head, mark, wire = data.partition(CUT_MARK)
    if not mark:
        head, wire = b"", data
    places = [int.from_bytes(head[k : k + 2], "big") % (len(wire) + 1) for k in range(0, len(head), 2)]
    bounds = [0, *sorted(places), len(wire)]
    return wire, [(100 + k, wire[a:b]) for k, (a, b) in enumerate(pairwise(bounds))]


def finished(reads: Reads, http_status: int = 200) -> HttpRaw:
    raw = HttpRaw(REQUEST, 3)
    raw.t_send_ns, raw.http_status = 0, http_status
    for t_ns, data in reads:
        raw.keep(t_ns, data)
    raw.t_end_ns = reads[-1][0] if reads else 0
    return raw


def sse(data: bytes) -> None:
    """Events do not depend on how the bytes are divided; each is stamped with a read's arrival, in order."""
    wire, reads = cut(data)
    events = events_of(reads)
    assert [event for _, event in events] == [event for _, event in events_of([(1, wire)])]
    stamps = [t_ns for t_ns, _ in events]
    assert stamps == sorted(stamps)
    assert set(stamps) <= {t_ns for t_ns, _ in reads}


def exchange(data: bytes) -> None:
    """Whatever came ends as a row that the journal can hold, whose tokens add up where it is `ok`."""
    wire, reads = cut(data)
    for status in (200, 500):
        row = read_exchange(finished(reads, status))
        assert row.status in STATUSES
        assert (row.error is None) == (row.status == "ok")
        assert msgspec.json.decode(msgspec.json.encode(row), type=Exchange) == row
        assert concealed(row, Mask("no such secret", environ={})) is row
        assert _plain(row) == _plain(read_exchange(finished([(1, wire)], status)))
        times = [t_ns for t_ns, _ in row.token_times]
        assert times == sorted(times)
        assert all(tokens > 0 for _, tokens in row.token_times)
        if row.status == "ok" and row.output_tokens is not None:
            assert 0 <= row.output_tokens <= MOST_TOKENS + MOST_OVER
            assert sum(tokens for _, tokens in row.token_times) == row.output_tokens
            assert row.t_first_ns == (times[0] if times else None)


def _plain(row: Exchange) -> list[Any]:
    """The row without its times."""
    timed = ("token_times", "t_send_ns", "t_first_ns", "t_end_ns")
    return [getattr(row, field) for field in row.__struct_fields__ if field not in timed]


class _Wire(asyncio.Transport):
    """A connection whose other end is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def _answered(reads: Reads, *, reset: bool) -> tuple[Any, ...]:
    """What one request comes to whose answer is these bytes, after which the connection ends."""

    async def run() -> tuple[Any, ...]:
        connection, done = _Connection(Endpoint("http://h:1", "completions")), []
        wire = _Wire()
        connection.connection_made(wire)
        connection.start(HttpRaw(REQUEST, 0), done.append, 60.0)
        for _, data in reads:
            if data and not wire.aborted:
                connection.data_received(data)
        if not wire.aborted:
            connection.connection_lost(ConnectionResetError() if reset else None)
        assert len(done) == 1, "a request ends once"
        (raw,) = done
        return raw.http_status, raw.failure and raw.failure[0], raw.error_body() if raw.failure is None else b""

    return _LOOP.run_until_complete(run())


def _answered_in_c(reads: Reads, *, reset: bool) -> tuple[Any, ...]:
    """As `_answered`, by the compiled reader."""

    async def run() -> tuple[Any, ...]:
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        connection, done = _Connection(Endpoint("http://h:1", "completions")), []
        reader = Reader.of(asyncio.get_running_loop())
        transport = StampedTransport(reader, ours, connection)
        assert transport.keeps
        connection.stamped_connection_made(transport)
        connection.start(HttpRaw(REQUEST, 0), done.append, 60.0)

        def read() -> None:
            while transport.is_open and select.select([ours], [], [], 0)[0]:
                reader._read()

        for _, data in reads:
            for begin in range(0, len(data), 1 << 15):  # more may not fit into the socket
                if transport.is_open:
                    peer.sendall(data[begin : begin + (1 << 15)])
                    read()
        if not reset:  # a socket that is closed with something unread resets the connection
            peer.recv(1 << 16)
        peer.close()
        read()
        connection.close()
        assert len(done) == 1, "a request ends once"
        (raw,) = done
        return raw.http_status, raw.failure and raw.failure[0], raw.error_body() if raw.failure is None else b""

    return _LOOP.run_until_complete(run())


_LOOP = asyncio.new_event_loop()


def http(data: bytes) -> None:
    """An answer's status, kind of failure and body do not depend on how its bytes are divided, nor on who reads it."""
    wire, reads = cut(data)
    for reset in (False, True):
        whole = _answered([(1, wire)], reset=reset)
        assert _answered(reads, reset=reset) == whole
        if compiled() is not None:
            assert _answered_in_c(reads, reset=reset) == whole


def coded(data: bytes) -> None:
    """A body that says that it is compressed ends as a row, whatever it is; one that really is reads as it is."""
    wire, reads = cut(data)
    plain = _plain(read_exchange(finished(reads)))
    packed = zlib.compressobj(wbits=31)
    pieces = [(t_ns, packed.compress(read) + packed.flush(zlib.Z_SYNC_FLUSH)) for t_ns, read in reads]
    for coding in ("gzip", "deflate", "br"):
        raw = finished(reads)
        raw.coding = coding
        assert read_exchange(raw).status in STATUSES
    whole = finished([*pieces[:-1], (pieces[-1][0], pieces[-1][1] + packed.flush())])
    whole.coding = "gzip"
    assert wire.startswith(GZIP_MAGIC) or _plain(read_exchange(whole)) == plain
    assert len(server_message(wire)) <= MOST_MESSAGE


def journal(data: bytes) -> None:
    """Any file is read or refused with a sentence; behind a torn line whole records are found again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.jsonl"
        path.write_bytes(data)
        before: list[Record] = []
        with suppress(UsageError):
            before = list(read_records(path))
        with suppress(UsageError):
            read_cell(path)
        end = CellEnd(t_ns=1, aborted="x")
        path.write_bytes(data + b"\n" + sealed(msgspec.json.encode(end)))
        with suppress(UsageError):
            after = list(read_records(path))
            assert after[-1] == end
            assert after[: len(before)] == before


def config(data: bytes) -> None:
    """A file of options makes a config or is refused with a sentence; a config says itself what it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.yaml"
        path.write_bytes(data)
        with suppress(UsageError, click.ClickException):
            with sweep.make_context("sweep", ["--config", str(path)]):
                made = configure(**given_options(SweepOptions))
            assert msgspec.convert(msgspec.to_builtins(made), type(made)) == made


def _of_file(read: Callable[[Path], list[Item]]) -> Callable[[bytes], None]:
    """Items of any file are whole and told apart, or it is refused with a sentence."""

    def target(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data"
            path.write_bytes(data)
            with suppress(UsageError):
                items = read(path)
                assert len({item.id for item in items}) == len(items)
                assert all(item.gold for item in items)
                assert msgspec.convert(msgspec.to_builtins(items), list[Item]) == items
                for item in items:
                    grade("The answer is 5.", item, protocol="gsm8k", finish_reason="stop")

    return target


def metrics(data: bytes) -> None:
    """Numbers of any page are finite and at least 0."""
    sample = read_metrics(data, t_ns=1, scrape_ns=1)
    told = [getattr(sample, field) for field in sample.__struct_fields__ if field != "engines"]
    for engine in sample.engines:
        told += [engine.running, engine.generation_tokens, engine.iterations]
    assert all(value is None or (math.isfinite(value) and value >= 0) for value in told)
    assert msgspec.json.decode(msgspec.json.encode(sample), type=ServerSample) == sample


def models(data: bytes) -> None:
    """What a server says of itself is known by kind, or not at all."""
    assert all(isinstance(model.id, str) for model in read_models(data) or [])
    assert isinstance(read_version(data), str | None)
    metric_names(data.decode("utf-8", "replace"))


def _imported(tool: str) -> Callable[[bytes], None]:
    """Points whose every field is of its kind, or a sentence."""

    def target(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            path.write_bytes(data)
            with suppress(UsageError):
                for point in read_import(f"{tool}={path}"):
                    assert msgspec.convert(msgspec.to_builtins(point), ImportedPoint) == point
                    assert all(math.isfinite(v) for v in msgspec.structs.astuple(point) if isinstance(v, float))

    return target


def recipe(data: bytes) -> None:
    """A recipe or a sentence."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_bytes(data)
        with suppress(UsageError):
            assert read_recipe(path).name == "mine"


def answer(data: bytes) -> None:
    """Any text of a model gets a verdict, by every protocol, cut or not."""
    text = data.decode("utf-8", "replace")
    number = ItemFacts(gold="5")
    letter = ItemFacts(gold="C", options=("4 . 5", "1 / 2", "5", "none", "5 km"))
    counted = ItemFacts(gold="5", unit="km")
    words = ItemFacts(gold="Paris", exact=True)
    for item in (number, letter, counted, words):
        for reason in ("stop", "length"):
            assert grade(text, item, protocol="gsm8k", finish_reason=reason).outcome


def shown(data: bytes) -> None:
    """Masked and made visible, a text has no secret and no command."""
    text = data.decode("utf-8", "surrogateescape")
    masked = visible(Mask("sk-secret-1", environ={})(text))
    assert "sk-secret-1" not in masked
    assert visible(masked) == masked
    masked.encode()


def run(data: bytes) -> None:
    """A command does with a hostile run directory what it does with any other, or refuses it with a sentence."""
    try:
        hostile = msgspec.convert(json.loads(data), HostileRun)
    except (ValueError, RecursionError):
        return
    attempt(hostile)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "sse": sse,
    "exchange": exchange,
    "http": http,
    "coded": coded,
    "journal": journal,
    "config": config,
    "gsm8k": _of_file(lambda path: read_gsm8k(path, split="test")),
    "jsonl": _of_file(read_jsonl),
    "mathqa": _of_file(lambda path: [*read_mathqa(path, split="test"), *read_clean(path, split="clean")]),
    "any-dataset": _of_file(items_of_file),
    "metrics": metrics,
    "models": models,
    "import-vllm-bench": _imported("vllm-bench"),
    "import-guidellm": _imported("guidellm"),
    "import-aiperf": _imported("aiperf"),
    "recipe": recipe,
    "answer": answer,
    "shown": shown,
    "run": run,
}
CORPUS = Path(__file__).with_name("corpus")
