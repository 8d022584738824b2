"""A small whole run directory, what somebody could do to it before it is sent, and what commands may do with it.

What loadgen's commands do with a received run is watched by an audit hook (PEP 578): no program is started but a server
of loadgen's own, and no address is asked but one of loopback. Both end the command, so that none of it takes time.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import click
import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from loadgen.analysis.analyse import analyse
from loadgen.cli import group
from loadgen.errors import ServerError, StorageError, UsageError
from loadgen.load.exchange import Exchange
from loadgen.measure.config import configure
from loadgen.power.sample import GpuInfo, GpuProcess, PowerSample
from loadgen.record.cell import Block, plan_blocks
from loadgen.record.journal import CellEnd, CellStart, Journal, cell_file, power_file, sealed
from loadgen.reports.html import page
from loadgen.serving.exposition import ServerSample
from loadgen.workload.dataset import load_dataset
from loadgen.workload.gsm8k import TEST as GSM8K
from loadgen.workload.protocol import load_protocol

Ask = Literal["report", "compare", "regrade", "resume"]
MS, S = 10**6, 10**9
LONGEST_S, PATIENCE_S = 10, 60
"""Seconds of work, and by the clock: other tests may keep the machine busy."""
CANARY = "canary-5f1c0e7b"
"""What is in every file outside the run, and must come out nowhere."""
LINKS = ("file", "folder", "nothing", "pipe", "itself", "device", "above")
GPU = GpuInfo(
    uuid="GPU-1", index=0, name="A GPU", driver="1", power_limit_enforced_w=700.0, power_limit_default_w=700.0,
    memory_total_bytes=80 * 10**9,
)  # fmt: skip


class Change(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One thing that was done to the run."""

    how: Literal["set", "drop", "write", "cut", "link", "pipe", "socket", "folder", "column", "field", "remove"]
    file: str
    """Its name in the run."""
    at: tuple[str | int, ...] = ()
    """`set`, `drop`: keys and places in its JSON, in a journal the line first; `column`: a Parquet file's; `field`: row
    and column of a CSV file; `cut`: bytes that are left; `write`: how often."""
    text: str = ""
    """`set`: the JSON there now, whatever it is; `write`: the content (Latin-1); `link`: one of LINKS."""


class HostileRun(msgspec.Struct, frozen=True):
    """An input of the fuzz target."""

    ask: Ask
    changes: tuple[Change, ...]


class Went(BaseException):
    """The command came to where it measures."""


class Hung(BaseException):
    pass


def attempt(hostile: HostileRun, *, figures: bool = False) -> None:
    """Fails where the command reads or writes outside the run, runs something, ends otherwise than with a status or a
    sentence, or takes longer than LONGEST_S. Figures take some seconds, and show what the tables hold."""
    with tempfile.TemporaryDirectory() as folder:
        run, outside = Path(folder, "run"), Path(folder, "outside")
        shutil.copytree(_whole(), run, symlinks=True)
        _lay_out(outside)
        before = _state(outside)
        for change in hostile.changes:
            with contextlib.suppress(OSError, LookupError, TypeError, ValueError, RecursionError):
                _apply(change, run, outside)
        with pytest.MonkeyPatch.context() as patch:
            if not figures:
                patch.setattr(page, "draw_figures", lambda _: [])
            said = _ended(hostile.ask, run)
        assert _state(outside) == before, "something outside the run was changed"
        assert CANARY not in said, said
        for path in run.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert CANARY.encode() not in path.read_bytes(), path


def _ended(ask: Ask, run: Path) -> str:
    """What the command said."""
    arguments = {
        "report": ["report", str(run)],
        "regrade": ["regrade", "--grader", str(run)],
        "compare": ["compare", str(run), str(_whole()), "--out", str(run.parent / "compared")],
        "resume": ["sweep", "--quiet", "--resume", str(run)],
    }[ask]
    with _watched():
        try:
            done = CliRunner().invoke(group, arguments, standalone_mode=False, catch_exceptions=False)
        except Went:
            return ""
        except (UsageError, ServerError, StorageError) as error:
            assert "\n" not in str(error), str(error)
            return str(error)
        except click.ClickException as error:
            return error.format_message()
    assert done.exit_code in (0, 1, 2), done.output
    return done.output


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    global _watching
    _hook()

    def hung(*_: object) -> None:
        raise Hung(f"more than {LONGEST_S} s of work, or {PATIENCE_S} s")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, LONGEST_S), (signal.ITIMER_REAL, signal.SIGALRM, PATIENCE_S))
    before = {number: signal.signal(number, hung) for _, number, _ in timers}
    for timer, _, limit_s in timers:
        signal.setitimer(timer, limit_s)
    _watching = True
    try:
        yield
    finally:
        _watching = False
        for timer, number, _ in timers:
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


_watching = False


@lru_cache
def _hook() -> None:
    sys.addaudithook(_heard)


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.system", "os.spawn"):
        argv = [str(word) for word in arguments[1]] if len(arguments) > 1 else []
        assert argv[:3] == [sys.executable, "-m", "loadgen"], f"{event} {arguments}"
        raise Went
    if event in ("socket.connect", "socket.sendto", "socket.bind"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else ""
        assert host in ("", "127.0.0.1", "::1"), f"{event} {arguments}"
        if event == "socket.connect":
            raise Went
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
        if host == urlsplit(GSM8K.url).hostname:  # its file is pinned
            raise Went
        assert host in ("127.0.0.1", "::1", "localhost"), f"{event} {arguments}"


def _lay_out(outside: Path) -> None:
    outside.mkdir()
    (outside / "file").write_text(json.dumps({"q1": CANARY, "schema": CANARY}))
    (outside / "folder").mkdir()
    (outside / "folder" / f"{CANARY}.jsonl").write_bytes(sealed(json.dumps({"type": CANARY}).encode()))
    os.mkfifo(outside / "pipe")


def _state(outside: Path) -> dict[str, tuple[int, int, str]]:
    return {
        str(path): (
            (state := path.lstat()).st_mode, state.st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in (outside, *sorted(outside.rglob("*")))
    }  # fmt: skip


def _apply(change: Change, run: Path, outside: Path) -> None:
    path = run / change.file
    if not path.parent.resolve().is_relative_to(run):
        return
    if change.how in ("set", "drop", "cut", "column", "field") and (path.is_symlink() or not path.is_file()):
        return
    match change.how:
        case "set" | "drop" if path.suffix == ".jsonl":
            lines = path.read_bytes().splitlines()
            place = int(change.at[0]) % len(lines)
            json_text = _edited(lines[place][:-9], change, change.at[1:])
            lines[place : place + 1] = [sealed(json_text)[:-1]]
            path.write_bytes(b"\n".join([*lines, b""]))
        case "set" | "drop":
            path.write_bytes(_edited(path.read_bytes(), change, change.at))
        case "cut":
            path.write_bytes(path.read_bytes()[: int(change.at[0])])
        case "column":
            table = pq.read_table(path)
            names = [change.text if name in change.at else name for name in table.column_names]
            pq.write_table(table.rename_columns(names) if change.text else table.drop_columns(list(change.at)), path)
        case "field":
            rows = list(csv.reader(io.StringIO(path.read_text())))
            row, column = map(int, change.at)
            rows[row % len(rows)][column % len(rows[0])] = change.text
            out = io.StringIO()
            csv.writer(out).writerows(rows)
            path.write_text(out.getvalue())
        case _:
            _put(change, path, outside)


def _put(change: Change, path: Path, outside: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match change.how:
        case "write":
            times = int(change.at[0]) if change.at else 1
            path.write_bytes((change.text * min(times, 8 * 10**6)).encode("latin-1")[: 8 * 10**6])
        case "link":
            named = {"itself": path, "device": Path("/dev/zero"), "above": Path(os.pardir), "nothing": outside / "new"}
            path.symlink_to(named.get(change.text, outside / change.text))
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
                made.bind(path.name)
        case "folder":
            path.mkdir()


def _edited(text: bytes, change: Change, at: Sequence[str | int]) -> bytes:
    """JSON with something else at one place, or without it."""
    if not at:
        return change.text.encode()
    content = json.loads(text)
    *outer, last = at
    holder = content
    for key in outer:
        holder = holder[key]
    mark = "here-is-the-change"
    if change.how == "drop":
        del holder[last]
    elif isinstance(holder, list) and last == len(holder):
        holder.append(mark)
    else:
        holder[last] = mark
    return json.dumps(content).replace(f'"{mark}"', change.text).encode()


@lru_cache
def _whole() -> Path:
    """The run as nobody changed it, its tables written."""
    run = Path(tempfile.mkdtemp(prefix="loadgen-fuzz-")) / "run"
    urls = {"fp16": "http://127.0.0.1:9", "awq": "http://127.0.0.1:10"}
    config = configure(targets=urls, concurrency=[2], repeats=1, duration=1, slo="ttft:200ms", dataset="sample")
    dataset, protocol = load_dataset("sample"), load_protocol(config.protocol)
    blocks = plan_blocks(config.targets, config.concurrency, config.repeats)
    (run / "journal" / "power").mkdir(parents=True)
    for block in blocks:
        _write_journals(run, block)
    (run / "items.json").write_text('{"q1": {"gold": "5", "steps": 2}, "q2": {"gold": "8"}}')
    gpu = msgspec.to_builtins(GPU)
    server = {"repeat": 1, "session": 1, "version": "0.32.0", "url": urls["fp16"], "model": "some/model", "note": "n",
              "remarks": ["r"], "kernels": ["Marlin"], "argv": ["vllm", "--port", "9"], "pid": 1, "eager": False,
              "graph_sizes": [1, 2], "quantization": "awq", "kv_cache_dtype": "auto", "model_bytes": 10**9,
              "kv_cache_bytes": 10**9}  # fmt: skip
    power_block = {"repeat": 1, "session": 1, "source": "nvml", "simulated": False, "gpus": [gpu],
                   "rest_w": {GPU.uuid: 70.0}, "samples_lost": 1,
                   "owners": {"server": [1], "peers": [], "before": [], "at_rest": []}}  # fmt: skip
    content = {
        "schema": 1,
        "simulated": False,
        "config": msgspec.to_builtins(config),
        "given": {"targets": urls, "concurrency": [2], "repeats": 1, "duration": 1, "slo": "ttft:200ms",
                  "dataset": "sample"},
        "dataset": {"name": "sample", "sha256": dataset.sha256, "published": True, "items": len(dataset.items)},
        "protocol": {"name": protocol.name, "sha256": protocol.sha256, "api": "completions", "stops": [],
                     "max_tokens": 256, "version": "1", "answer": "number", "thinking": None, "temperature": 0,
                     "seed": 0},
        "body_changes": {"refused": {}, "limit_field": "max_tokens"},
        "graded": True,
        "recipes": {},
        "client": {"loadgen": "0.1.0", "python": "3.11", "packages": {"numpy": "2"}, "workers": {"2": 1}},
        "host": {"cpu": "a processor", "cpus": 2},
        "gpu": [gpu],
        "power": {"kind": "nvml", "url": None, "gpus": None, "reason": None, "required": False, "warnings": []},
        "clock_anchors": [{"session": 1, "monotonic_ns": 1, "unix_ns": 2, "uncertainty_ns": 1}],
        "sessions": [{"session": 1, "boot_id": "b", "client": {"loadgen": "0.1.0"}, "host": {"cpu": "x", "cpus": 2},
                      "warnings": ["w"]}],
        "servers": [{"name": name, "precision": name} | server for name in urls],
        "failures": [{"repeat": 2, "target": "awq", "session": 1, "error": "e"}],
        "attempts": [{"cell": "c", "file": "journal/attempts/c", "why": "w", "resumed_in_session": 1}],
        "power_blocks": [{"target": name} | power_block for name in urls],
    }  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(content))
    analyse(run)
    (run / "report.html").touch()
    (run / "figures").mkdir()
    (run / "figures" / "energy.svg").touch()
    return run


def _write_journals(run: Path, block: Block) -> None:
    (cell,) = block.cells
    journal = Journal(cell_file(run, cell))
    journal.append(CellStart(cell=cell, t_ns=0, simulated=False))
    for k in range(8):
        begin = S + k * 125 * MS
        journal.append(
            Exchange(
                slot=0, phase="measured", item_id=f"q{k % 2 + 1}", prompt_sha="0" * 64, t_send_ns=begin,
                t_first_ns=begin + 25 * MS, t_end_ns=begin + 125 * MS,
                token_times=tuple((begin + j * 25 * MS, 1) for j in range(1, 6)), token_source="usage",
                prompt_tokens=20, output_tokens=5, finish_reason="stop", http_status=200, text="#### 5",
            )
        )  # fmt: skip
    for t_ns in (1100 * MS, 1900 * MS):
        journal.append(ServerSample(t_ns=t_ns, scrape_ns=MS, running=2.0, waiting=0.0, generation_tokens=t_ns / MS))
    journal.append(
        CellEnd(t_ns=3 * S, window_open_ns=S, window_close_ns=2 * S, generation_tokens=40.0, client_cpu_share=0.1)
    )
    journal.close()
    power = Journal(power_file(run, block.target.name, 1))
    for k in range(150):
        power.append(
            PowerSample(
                t_ns=k * 20 * MS, latency_ns=1000, gpu=GPU.uuid, counter_j=1000 + 6.0 * k, power_instant_w=300.0,
                power_average_w=300.0, memory_used_bytes=10**9, utilization=1.0, processes=(GpuProcess(pid=1),),
            )
        )  # fmt: skip
    power.close()


VALUES = (
    "null", "true", "0", "1", "-1", "2.5", "1000000000", "1" + "0" * 18, "9" * 400, "1e999", "1e300", "-1e300", "NaN",
    "Infinity", '""', '"x"', '"../../x"', '"/etc/hostname"', '"--option"', '"a\\u001b[31m\\nb"', '"\\ud800"',
    "[]", "{}", '[""]', '[[]]', '{"a": 1}', '[{"name": "x"}]', "[" * 150 + "]" * 150, "[" * 10**5,
    '"' + "x" * 10**6 + '"',
)  # fmt: skip
"""JSON, or nearly, for any place."""
CONTENTS = ("", "\0", "null", "[]", "{}", "x", "[", "\xff\xfe", "PAR1", "a,b\n1,2\n", "x" * 1000, '{"type": "cell"}\n')
NAMES = (
    "manifest.json", "analysis.json", "items.json", "cells.csv", "summary.csv", "requests.parquet", "power.parquet",
    "server.parquet", "report.html", "journal/001-fp16-b2-r1.jsonl", "journal/002-awq-b2-r1.jsonl",
    "journal/power/fp16-r1.jsonl", "figures/energy.svg", "figures", "journal", "journal/power", "journal/attempts",
    "servers", "report.html.partial", "analysis.json.partial", "requests.parquet.partial", "manifest.json.partial",
    "cells.csv.partial", "figures/energy.svg.partial", "journal/999-\udcff\n-b1-r1.jsonl", "journal/-x.jsonl",
    "journal/003-\x1b[31m.jsonl", "journal/power/x-r1.jsonl",
)  # fmt: skip


@lru_cache
def places() -> tuple[tuple[str, tuple[str | int, ...]], ...]:
    """Every place in the JSON of the run: file and keys."""
    found: list[tuple[str, tuple[str | int, ...]]] = []
    for name in NAMES[:3]:
        found += [(name, at) for at in _inside(json.loads((_whole() / name).read_bytes()))]
    for name in (NAMES[9], NAMES[11]):
        lines = (_whole() / name).read_bytes().splitlines()
        for number in (0, 1, len(lines) - 2, len(lines) - 1):
            found += [(name, (number, *at)) for at in _inside(json.loads(lines[number][:-9]))]
    return tuple(found)


def _inside(content: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield at
    keys: Iterable[Any] = content if isinstance(content, dict) else ()
    if isinstance(content, list):
        keys = range(min(len(content), 2))
    for key in keys:
        yield from _inside(content[key], (*at, key))
