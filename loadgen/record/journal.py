"""The journal: one append-only file per cell (and per server, for power), a line per record, written as it comes.

A line is the record's JSON, a tab (JSON here never holds one), the CRC-32 of that JSON in eight hex digits, and the
end of line; one `write` each, so that a kill loses only requests in flight. A torn last line is left out; a damaged
line elsewhere is left out, too, and counted. Files of earlier versions have no checksums and are read as well.
Everything else in a run directory that holds figures is derived from these files.

The run directory is held by one sweep at a time. What an interrupted run has stays as it is; what it lacks is measured
again.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO
from zlib import crc32

import msgspec

from loadgen.bounds import MOST_LINE_BYTES, Amount, Count, Nanoseconds, shown_bytes
from loadgen.errors import StorageError, UsageError, is_of_storage
from loadgen.folder import Folder
from loadgen.load.exchange import Exchange
from loadgen.load.load import ClientNode
from loadgen.power.sample import PowerSample
from loadgen.record.cell import Block, Cell
from loadgen.record.manifest import ManifestFile, read_manifest
from loadgen.secret import error_text
from loadgen.serving.exposition import ServerSample

SCHEMA = 1


class CellStart(msgspec.Struct, frozen=True, kw_only=True, tag="cell"):
    """First line of a cell's file."""

    cell: Cell
    t_ns: Nanoseconds
    simulated: bool
    session: Count = 1
    """Which of the run's sessions measured it; each `--resume` begins one, and each relaunch of a server that died."""
    schema: int = SCHEMA


class CellEnd(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """Last line of a cell's file; a file without one was interrupted."""

    t_ns: Nanoseconds
    window_open_ns: Nanoseconds | None = None
    window_close_ns: Nanoseconds | None = None
    generation_tokens: Amount | None = None
    """Difference of the server's `generation_tokens_total` from before the first to after the last request."""
    client_processes: Count | None = None
    """That sent the requests; None in journals of before there could be several."""
    client_cpu_s: Amount | None = None
    """CPU time of all the client's processes inside the window."""
    client_cpu_share: Amount | None = None
    """The share of one core that the busiest process which sent requests used."""
    loop_lag_ms_mean: Amount | None = None
    """How late the client's event loop came to a timer inside the window, in the worst process (timers tick in ms)."""
    loop_lag_ms_p50: Amount | None = None
    loop_lag_ms_p90: Amount | None = None
    loop_lag_ms_p99: Amount | None = None
    loop_lag_ms_max: Amount | None = None
    client_nodes: tuple[ClientNode, ...] = ()
    """Of the processes that ran on other nodes of a cluster, one each. All times here are on the sweep's clock."""
    aborted: str | None = None
    """Why it ended early."""
    server_lost: bool = False
    """It was `aborted` because the server is gone, or answers nothing any more."""
    batch_gauge: str | None = None
    """The series that counted the server's running requests; None: it has none."""
    metrics_failure: str | None = None
    """Why the last reading of its /metrics gave no batch."""


Record = CellStart | Exchange | ServerSample | CellEnd | PowerSample

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)
_any_json = msgspec.json.Decoder()
_BLOCK_BYTES = 1 << 18
_SEAL = re.compile(rb"\t[0-9a-f]{8}\n\Z")
_CELL_FILE = re.compile(r"[0-9]{3,}-[A-Za-z0-9._-]+-b[0-9]+-r[0-9]+\.jsonl")
_SEAL_BYTES = 10
_TAIL_BYTES = 1 << 16


class Journal:
    """Writes one file of records; it must not exist yet."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = Folder(path.parent).create(path.name)
        self._torn = False

    def append(self, record: Record) -> None:
        """Raises OSError when the record could not be written whole; the next one then begins a new line."""
        line = sealed(_encoder.encode(record))
        if self._torn:
            line = b"\n" + line
        written = 0
        while written < len(line):
            written += os.write(self._fd, line[written:])
            self._torn = written < len(line)

    def sync(self) -> None:
        """Returns when what was appended would survive the machine's sudden end."""
        os.fsync(self._fd)

    def close(self) -> None:
        self.sync()
        os.close(self._fd)


def sealed(json: bytes) -> bytes:
    """The line of a record."""
    return b"%b\t%08x\n" % (json, crc32(json))


class Lines:
    """A file in blocks of whole good lines, their checksums taken off; so any size is read in little memory. Iterated
    over, a block is bytes with an end of line after each line; `blocks` gives them line by line.

    With `start`, from the first line on that begins at that byte or later.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self._path = path
        self._start = start
        self.sealed = False
        """A line so far had its checksum: then a line without one is damaged."""
        self.damaged = 0
        """Lines left out so far; a torn last one does not count."""

    def __iter__(self) -> Iterator[bytes]:
        return (b"\n".join([*lines, b""]) for lines in self.blocks())

    def blocks(self) -> Iterator[list[bytes]]:
        """Some lines at a time, without their ends."""
        return (self.good(io.BytesIO(raw).readlines()) for raw in self.raw_blocks())

    def raw_blocks(self) -> Iterator[bytes]:
        """Some lines at a time as they are in the file; only its last may lack its end. `good` tells which count."""
        with opened(self._path) as file:
            if self._start:
                file.seek(self._start - 1)
                self.next_line(file)
            while raw := file.read(_BLOCK_BYTES) + self.next_line(file):
                yield raw

    def next_line(self, file: IO[bytes]) -> bytes:
        """Raises UsageError if it is longer than MOST_LINE_BYTES."""
        line = file.readline(MOST_LINE_BYTES)
        if len(line) == MOST_LINE_BYTES and line[-1:] != b"\n":
            raise UsageError(
                f"{self._path} has a line longer than {shown_bytes(MOST_LINE_BYTES)}, and loadgen did not write it so; "
                "remove the file, or name another run"
            )
        return line

    def good(self, lines: Sequence[bytes]) -> list[bytes]:
        """The whole good ones of some lines."""
        jsons = [line[:-_SEAL_BYTES] for line in lines]
        seals = b"\t%08x\n" * len(lines) % tuple(map(crc32, jsons))
        if b"".join([line[-_SEAL_BYTES:] for line in lines]) == seals:  # all at once, as nearly always
            self.sealed = self.sealed or bool(lines)
            return jsons
        good = []
        for line, json in zip(lines, jsons, strict=True):
            if line[-_SEAL_BYTES:] == b"\t%08x\n" % crc32(json):
                self.sealed = True
                good.append(json)
            elif line[-1:] != b"\n":
                pass  # torn
            elif self._is_earlier(line):
                good.append(line[:-1])
            else:
                self.damaged += 1
        return good

    def _is_earlier(self, line: bytes) -> bool:
        """A line of a version that wrote no checksums: then none in the file has one."""
        if self.sealed or _SEAL.search(line):
            return False
        try:
            _any_json.decode(line)
        except (ValueError, RecursionError):
            return False
        return True


def opened(path: Path) -> IO[bytes]:
    """A journal's file, to be read; UsageError if it is a link or no regular file."""
    return Folder(path.parent).open(path.name, _BLOCK_BYTES)


def file_bytes(path: Path) -> int:
    """The size of a journal's file; UsageError if it is a link or no regular file."""
    with opened(path) as file:
        return os.fstat(file.fileno()).st_size


def read_lines(path: Path, start: int = 0) -> Lines:
    """Blocks of whole good lines, to be decoded with `decode_lines`."""
    return Lines(path, start)


def read_records(path: Path) -> Iterator[Record]:
    """The records of one cell's file in order; torn and damaged lines are left out."""
    with known_records(path):
        for block in read_lines(path):
            yield from _decoder.decode_lines(block)


@contextlib.contextmanager
def known_records(path: Path) -> Iterator[None]:
    """Within, a whole record that is none of these raises UsageError, which names the file."""
    try:
        yield
    except (ValueError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{path} holds a record that this version of loadgen does not know ({error_text(error)}); read it with the "
            "version that wrote it"
        ) from None


def cell_end(path: Path) -> CellEnd | None:
    """The last record of a cell's file; None if the file is missing or torn, or its first record cannot be read."""
    try:
        file = opened(path)
    except FileNotFoundError:
        return None
    with file:
        lines = Lines(path, max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        first = lines.good([lines.next_line(file)])
    last = [line for block in lines.blocks() for line in block[-1:]][-1:]
    with known_records(path):
        records = _decoder.decode_lines(b"\n".join([*first, *last])) if first and last else []
    match records:
        case [CellStart(), CellEnd() as end]:
            return end
    return None


def power_file(run_dir: Path, target: str, repeat: int, session: int = 1) -> Path:
    """Where the power samples of one server's life are kept."""
    return run_dir / "journal" / "power" / f"{target}-r{repeat}{session_suffix(session)}.jsonl"


def session_suffix(session: int) -> str:
    """What distinguishes files of a resumed run's later sessions from those of the first."""
    return f"-s{session}" if session > 1 else ""


def cell_file(run_dir: Path, cell: Cell) -> Path:
    """Where a cell is measured to, and stays."""
    return run_dir / "journal" / f"{cell.label}.jsonl"


def attempt_file(run_dir: Path, cell: Cell) -> Path:
    """A free name for an unfinished cell's file, out of the way of its repetition."""
    folder = run_dir / "journal" / "attempts"
    names = (folder / f"{cell.label}-a{number}.jsonl" for number in itertools.count(1))
    return next(path for path in names if not path.exists())


def cell_files(run_dir: Path) -> list[Path]:
    """The journal's files in the order in which the cells were measured; files of other names are not loadgen's."""
    found = [path for path in (run_dir / "journal").glob("*.jsonl") if _CELL_FILE.fullmatch(path.name)]
    return sorted(found, key=lambda path: (len(path.name.partition("-")[0]), path.name))


def unfinished(run_dir: Path, blocks: Iterable[Block]) -> tuple[Block, ...]:
    """The blocks with the cells that are not finished, without those that have none.

    A cell is finished if its journal is whole from the first record to the last, and that says it was not aborted.
    Finished and invalid is finished: its server, or this machine, did not do better, and that is a result.
    """
    left = []
    for block in blocks:
        cells = tuple(cell for cell in block.cells if why_unfinished(run_dir, cell) is not None)
        if cells:
            left.append(msgspec.structs.replace(block, cells=cells))
    return tuple(left)


def unfinished_cells(run_dir: Path) -> list[Cell]:
    """The cells that the run, as its manifest describes it, still lacks."""
    return [cell for block in unfinished(run_dir, read_manifest(run_dir).blocks) for cell in block.cells]


def why_unfinished(run_dir: Path, cell: Cell) -> str | None:
    """None if the cell is finished."""
    path = cell_file(run_dir, cell)
    if not path.exists():
        return "not begun"
    end = cell_end(path)
    return "killed before its last record" if end is None else end.aborted


def set_aside(run_dir: Path, cell: Cell, manifest: ManifestFile) -> None:
    """Moves the file of an unfinished cell, if there is one, to `journal/attempts`, where it is in no figure."""
    path, why = cell_file(run_dir, cell), why_unfinished(run_dir, cell)
    if why is None or not path.exists():
        return
    attempt = attempt_file(run_dir, cell)
    manifest.set_aside(cell, attempt, why)
    Folder(run_dir).make("journal/attempts")
    path.rename(attempt)


def resume_command(run_dir: Path) -> str:
    """What to type to go on."""
    return f"loadgen sweep --resume {shlex.quote(str(run_dir))}"


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Keeps other sweeps out of the folder, until the end or a kill. Raises UsageError while another one is in it."""
    handle = os.open(run_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{run_dir} is being measured by another loadgen; wait for its end, or stop it") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def stored(run_dir: Path) -> Iterator[None]:
    """Within, a disk that is full or has become read-only raises StorageError, which says how to go on."""
    try:
        yield
    except OSError as error:
        if not is_of_storage(error):
            raise
        raise StorageError(
            f"{run_dir} can no longer be written ({error.strerror}); what was measured before is kept: make room, then "
            f"go on: {resume_command(run_dir)}"
        ) from None
