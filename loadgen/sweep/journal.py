"""The journal: one append-only file per cell (and per server, for power), a line per record, written as it comes.

A kill loses only requests in flight: every line is one `write`, and a torn last line is recognised by its missing
end of line. Everything else in a run directory that holds figures is derived from these files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from loadgen.client.exchange import Exchange
from loadgen.power.sample import PowerSample
from loadgen.serving.metrics import ServerSample
from loadgen.sweep.plan import Cell

SCHEMA = 1


class CellStart(msgspec.Struct, frozen=True, kw_only=True, tag="cell"):
    """First line of a cell's file."""

    cell: Cell
    t_ns: int
    simulated: bool
    schema: int = SCHEMA


class CellEnd(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """Last line of a cell's file; a file without one was interrupted."""

    t_ns: int
    window_open_ns: int | None = None
    window_close_ns: int | None = None
    generation_tokens: float | None = None
    """Difference of the server's `generation_tokens_total` from before the first to after the last request."""
    client_processes: int | None = None
    """That sent the requests; None in journals of before there could be several."""
    client_cpu_s: float | None = None
    """CPU time of all the client's processes inside the window."""
    client_cpu_share: float | None = None
    """Of one core, by the busiest process that sent requests."""
    loop_lag_ms_p90: float | None = None
    """How late the client's event loop came to a timer inside the window, in the worst process (timers tick in ms)."""
    loop_lag_ms_p99: float | None = None
    loop_lag_ms_max: float | None = None
    aborted: str | None = None


Record = CellStart | Exchange | ServerSample | CellEnd | PowerSample

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)
_BLOCK_BYTES = 1 << 22


class Journal:
    """Writes one file of records; it must not exist yet."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)

    def append(self, record: Record) -> None:
        line = _encoder.encode(record) + b"\n"
        written = os.write(self._fd, line)
        while written < len(line):
            written += os.write(self._fd, line[written:])

    def close(self) -> None:
        os.fsync(self._fd)
        os.close(self._fd)


def read_records(path: Path) -> Iterator[Record]:
    """The records of one cell's file in order; a torn last line is left out."""
    for block in read_lines(path):
        yield from _decoder.decode_lines(block)


def read_lines(path: Path) -> Iterator[bytes]:
    """The file in blocks of whole lines, without a torn last one; so a file of any size is read in little memory."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            block += file.readline()
            yield block[: block.rfind(b"\n") + 1]


def power_file(run_dir: Path, target: str, repeat: int) -> Path:
    """Where the power samples of one server's life are kept."""
    return run_dir / "journal" / "power" / f"{target}-r{repeat}.jsonl"


def cell_files(run_dir: Path) -> list[Path]:
    """The journal's files in the order in which the cells were measured."""
    return sorted((run_dir / "journal").glob("*.jsonl"), key=lambda path: (len(path.name.partition("-")[0]), path.name))
