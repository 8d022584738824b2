"""The truth server: compiled, started, asked for its own account."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType

import msgspec

SOURCE = Path(__file__).parent / "truth_server.c"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the server: B streams in phase, or as fast as they are taken."""

    name: str
    concurrency: int
    ttft_ms: float = 20.0
    itl_ms: float = 10.0
    tokens: int = 200
    flat_out: bool = False
    busy: bool = False
    """Beside a process that computes all the time: half of the CPU on two cores."""

    @property
    def answer_s(self) -> float:
        """From a request's arrival to its last token."""
        return (self.ttft_ms + (self.tokens - 1) * self.itl_ms) / 1e3

    @property
    def tokens_per_s(self) -> float:
        """What B streams bring that are refilled in no time."""
        return self.concurrency * self.tokens / self.answer_s

    @property
    def options(self) -> list[str]:
        paced = ["--ttft-ms", f"{self.ttft_ms:g}", "--itl-ms", f"{self.itl_ms:g}", "--tokens", str(self.tokens)]
        return [*paced, "--flat-out"] if self.flat_out else paced


class Stats(msgspec.Struct, frozen=True):
    """The server's account of itself since its start; lateness is that of tokens behind their deadlines."""

    t_ns: int
    requests: int
    """Answered."""
    tokens: int
    in_flight: int
    in_flight_s: float
    """Integral of the requests under way over time."""
    cpu_s: float
    late_ms_mean: float | None
    late_ms_p99: float | None
    late_ms_max: float | None


_decode = msgspec.json.Decoder(Stats).decode


def compile_server(into: Path) -> Path:
    """The server's binary in the folder `into`; needs a C compiler named cc or gcc."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("no C compiler: install gcc and libc6-dev")
    binary = into / "truth_server"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", str(binary), str(SOURCE)], check=True)
    return binary


def _goes_ahead(pid: int) -> bool:
    """Gives a process a real-time priority: else, on few cores, it waits some milliseconds for a busy client's turn to
    end, and its tokens are late. Whether this user may."""
    try:
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        return False
    return True


class TruthServer:
    """A running server, as a context; it is new for every measurement, so that its counters are that one's."""

    def __init__(self, binary: Path, case: Case, stamps: Path | None = None) -> None:
        """`stamps`: where it writes, when it ends, when it read each request and wrote each token."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [str(binary), "--port", str(port), *case.options, *(["--stamps", str(stamps)] if stamps else [])],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ahead = not case.flat_out and _goes_ahead(self._process.pid)
        """It runs before any other process that wants the CPU."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the truth server did not start on port {port}")
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def stats(self) -> Stats:
        self._connection.request("GET", "/stats")
        return _decode(self._connection.getresponse().read())

    def __enter__(self) -> TruthServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()
        self._process.terminate()
        said, _ = self._process.communicate(timeout=10)
        json.loads(said)
