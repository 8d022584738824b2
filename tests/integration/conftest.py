"""Servers that integration tests start and stop, each by its own process id."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

KNOWN_SERVER = Path(__file__).parents[1] / "known_server.py"
START_DEADLINE_S = 30.0


@dataclass(frozen=True)
class KnownServer:
    """A running tests/known_server.py; times in seconds."""

    url: str
    ttft_s: float
    itl_s: float
    tokens: int

    @property
    def e2e_s(self) -> float:
        """Token 0 leaves at TTFT, token k at TTFT + k ITL, and [DONE] right behind the last."""
        return self.ttft_s + (self.tokens - 1) * self.itl_s


@contextmanager
def known_server(*, ttft_s: float, itl_s: float, tokens: int) -> Iterator[KnownServer]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable, str(KNOWN_SERVER), "--port", str(port),
            "--ttft-ms", str(ttft_s * 1e3), "--itl-ms", str(itl_s * 1e3), "--tokens", str(tokens),
        ]
    )  # fmt: skip
    try:
        _wait_until_healthy(process, port)
        yield KnownServer(url=f"http://127.0.0.1:{port}", ttft_s=ttft_s, itl_s=itl_s, tokens=tokens)
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "the known server died while starting"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with suppress(OSError):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        connection.close()
        time.sleep(0.05)
    raise TimeoutError(f"the known server does not answer on port {port}")


@pytest.fixture(scope="module")
def known() -> Iterator[KnownServer]:
    """2% of its times are 8 ms and 0.8 ms, far beyond a busy scheduler's noise.

    Its answers take 1392.5 ms: a multiple of the 100 ms between two samples of /metrics would show a refill to every
    fourteenth sample, or to none.
    """
    with known_server(ttft_s=0.41, itl_s=0.0393, tokens=26) as server:
        yield server
