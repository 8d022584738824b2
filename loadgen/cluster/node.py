"""What runs on a node: one task's sweep in a process of its own, with its servers beside it, and the run as bytes.

Run as a module, that process: it reads its options from stdin and writes a line of JSON per event to stdout.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen import __version__
from loadgen.errors import Interrupted, ServerError, StorageError, UsageError
from loadgen.folder import Folder
from loadgen.measure.observer import Observer, Timetable
from loadgen.record.cell import Cell, CellVerdict
from loadgen.record.grid import RECEIPT, Place, Task, receipt_of, write_receipt
from loadgen.record.journal import cell_files
from loadgen.record.manifest import read_manifest
from loadgen.secret import visible_message

LOG = "task.log"
LOGS = "servers/"
"""Logs of servers are for their owner only."""
MOST_ERROR = 2000
"""Characters of an error that are passed on."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A try at a task, on its way to a node."""

    task: Task
    attempt: int
    loadgen: str


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """What a node sends back: every file of the run directory."""

    place: Place
    complete: bool
    files: dict[str, bytes]
    """By name, compressed (zlib); the receipt is among them unless nothing was measured."""
    error: str = ""
    """Why the sweep is not complete."""


def carry_out(order: Order, node_id: str, gpu_ids: Sequence[object], tell: Callable[[str], None]) -> Delivery:
    """Runs the task's sweep in a folder of this machine and returns it; `tell` hears how far it is.

    Nothing is left on the machine. Raises RuntimeError where this node has another loadgen.
    """
    if order.loadgen != __version__:
        raise RuntimeError(f"this node has loadgen {__version__} and the grid was begun by {order.loadgen}: install "
                           f"that version on every node")  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix=f"loadgen-{order.task.id}-"))
    run_dir, node = folder / "run", socket.gethostname()
    try:
        error = _sweep(order, run_dir, folder / LOG, tell)
        place = Place(node=node, node_id=node_id, gpus=_gpus(run_dir, node_id, gpu_ids))
        complete = False
        if run_dir.is_dir():
            shutil.copyfile(folder / LOG, run_dir / LOG)
            if Folder(run_dir).has("manifest.json"):
                receipt = receipt_of(run_dir, order.task, order.attempt, place)
                write_receipt(run_dir, receipt)
                complete = receipt.complete
        if not complete and not error:
            error = _why(run_dir)
        tell("sending the run")
        return Delivery(place=place, complete=complete, files=_packed(run_dir), error=error[:MOST_ERROR])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(order: Order, run_dir: Path, log: Path, tell: Callable[[str], None]) -> str:
    """Why the sweep ended early; empty where it did not."""
    error = ""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "loadgen.cluster.node", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment(),
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode({**order.task.options, "out": str(run_dir)}))
            process.stdin.close()
            for line in process.stdout:
                file.write(line)
                kind, text = msgspec.json.decode(line, type=tuple[str, str])
                if kind == "error":
                    error = text
                else:
                    tell(text)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
    if status and not error:
        error = f"the sweep ended with status {status}: {_tail(log)}"
    return error


def environment() -> dict[str, str]:
    """This process's, with the loadgen that it uses: Ray may have found it in the head's folder."""
    ours = str(Path(__file__).resolve().parents[2])
    paths = [ours, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"


def _gpus(run_dir: Path, node_id: str, gpu_ids: Sequence[object]) -> tuple[str, ...]:
    by_number = tuple(f"{number}@{node_id[:8]}" for number in gpu_ids)
    if not Folder(run_dir).has("manifest.json"):
        return by_number
    manifest = read_manifest(run_dir)
    uuids = tuple(info.uuid for info in manifest.gpu or () if not manifest.simulated)
    return uuids or by_number


def _why(run_dir: Path) -> str:
    if not Folder(run_dir).has("manifest.json"):
        return "nothing was measured"
    failures = read_manifest(run_dir).failures
    return failures[-1].error if failures else "some cells were not measured"


def _packed(run_dir: Path) -> dict[str, bytes]:
    paths = (path for path in run_dir.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(run_dir).as_posix(): zlib.compress(path.read_bytes(), 1) for path in paths}


def unpack(delivery: Delivery, run_dir: Path) -> None:
    """Writes the files of a delivery into a new folder, the receipt last. Raises UsageError for names that lead out."""
    run_dir.mkdir(parents=True)
    for name, content in sorted(delivery.files.items(), key=lambda entry: entry[0] == RECEIPT):
        Folder(run_dir).write(name, zlib.decompress(content), mode=0o600 if name.startswith(LOGS) else 0o666)


class _Lines(Observer):
    """One JSON line per event."""

    def __init__(self) -> None:
        self._cells = self._ended = 0

    def say(self, kind: str, text: str) -> None:
        print(msgspec.json.encode((kind, visible_message(text))).decode(), flush=True)

    def run_begins(self, title: str, timetable: Timetable, simulated: bool) -> None:
        self._cells = len(timetable.cells)
        self.say("step", f"0/{self._cells} cells")

    def server_starts(self, name: str, argv: Sequence[str] | None) -> None:
        self.say("step", f"{self._ended}/{self._cells} cells, {name} starting")

    def server_ready(self, name: str, note: str) -> None:
        self.say("step", f"{self._ended}/{self._cells} cells, {name}")

    def cell_ends(self, cell: Cell, line: str, verdict: CellVerdict) -> None:
        self._ended += 1
        self.say("step", f"{self._ended}/{self._cells} cells, {cell.target}")

    def warn(self, sentence: str) -> None:
        print(visible_message(f"warning: {sentence}"), file=sys.stderr, flush=True)

    def note(self, sentence: str) -> None:
        print(visible_message(sentence), file=sys.stderr, flush=True)


def _main() -> int:
    from loadgen.analysis.analyse import analyse
    from loadgen.measure.config import configure
    from loadgen.measure.run import run_sweep
    from loadgen.processgroup import end_with

    end_with(int(sys.argv[1]))
    options: dict[str, Any] = msgspec.json.decode(sys.stdin.buffer.read())
    lines = _Lines()
    try:
        run_dir = run_sweep(configure(**options), lines, None, options)
        if cell_files(run_dir):
            lines.say("step", "analysis")
            analyse(run_dir)
    except (UsageError, ServerError, StorageError, Interrupted) as error:
        lines.say("error", str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
