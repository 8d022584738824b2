"""Every fault that is injected, with what must come of it; docs/reliability.md is written from these tables."""

from __future__ import annotations

from dataclasses import dataclass

FAILED = "requests failed, the first: "
UNSTEADY = 4
"""A fault that strikes one request in four leaves a cell with a window, and figures that could be wrong."""
RARE = 30
"""A stall holds the warm-up until it is given up."""


@dataclass(frozen=True)
class RequestFault:
    """A fault of single requests, injected by fault_server.py: tests/integration/test_faults.py runs every one."""

    name: str
    injected: str
    status: str
    """Of the struck request's row in requests.parquet."""
    error: str | None
    """What stands in the row's `error`; None: it has none."""
    cell: str | None
    """What stands in the cell's `reasons`; None: the cell is valid, and its figures are right."""
    every: int | None = UNSTEADY
    """It strikes the first request and then each `every`-th; None: when the server decides."""
    http_status: int | None = 200
    next: str = "ok"
    """Status of the next request on the same connection."""

    @property
    def in_sweep(self) -> bool:
        """An HTTP error without a body becomes of a cell what one with a body does."""
        return not self.name.endswith("-empty")

    @property
    def needs_metrics(self) -> bool:
        """What becomes of the cell is seen in the server's counters."""
        return self.cell is None or self.name in ("no-metrics", "restart")


@dataclass(frozen=True)
class MachineFault:
    """A fault of the machine, of a server's life or of what stands beside it, each with a test of its own."""

    name: str
    injected: str
    outcome: str
    exit_status: str
    test: str


def _failing(
    name: str, injected: str, status: str, error: str, http_status: int | None = 200, every: int = UNSTEADY
) -> RequestFault:
    """A fault whose error the cell quotes as its first."""
    return RequestFault(name, injected, status, error, f"{FAILED}{status}: {error}", every, http_status)


def _http(status: int, *, body: bool) -> RequestFault:
    said = f"{status}: {'the server says no' if body else 'no message'}"
    what = f"HTTP {status} {'with a JSON body' if body else 'without a body'}"
    return _failing(f"http-{status}-{'json' if body else 'empty'}", what, "http", said, http_status=status)


_LOST = "connection lost inside the answer"
_REQUESTS = (
    _failing("reset-before", "RST before the answer", "broken", "connection lost before the answer", None),
    _failing("closed-before", "close before the answer", "broken", "connection lost before the answer", None),
    _failing("reset-inside", "RST in the middle of the stream", "broken", _LOST),
    _failing("closed-inside", "close in the middle of the stream", "broken", _LOST),
    RequestFault(
        "reset-after", "RST behind the stream, as the next request comes on the kept connection", "ok", None,
        f"{FAILED}broken: connection lost before the answer", next="broken",
    ),
    RequestFault("closed-after", "`Connection: close`, and a close behind every stream", "ok", None, None, every=1),
    _failing("stalled", "the stream stops, the connection stays", "timeout", "no complete answer within", every=RARE),
    _failing("no-headers", "nothing is answered at all", "timeout", "no complete answer within", None, RARE),
    RequestFault("slow-headers", "headers come 30 ms late", "ok", None, None, every=1),
    *(_http(status, body=body) for status in (400, 401, 404, 408, 429, 500, 503) for body in (True, False)),
    _failing("echoed-key", "HTTP 401 that repeats the request's headers", "http", "401: POST ", 401),
    _failing("malformed-sse", "an event whose JSON is cut", "malformed", "Input data was truncated"),
    _failing("invalid-utf-8", "bytes that are no UTF-8", "malformed", "'utf-8' codec can't decode"),
    RequestFault("giant-line", "an event of 256 KiB", "ok", None, None, RARE),
    RequestFault(
        "no-usage", "no answer has usage", "ok", None, "the server reports no token usage in its streams", every=1
    ),
    RequestFault("some-without-usage", "one answer in four has none", "ok", None, "answers came without token usage"),
    RequestFault(
        "double-usage", "usage of twice the tokens that /metrics counts", "ok", None, "is somebody else using it?",
        every=1,
    ),
    _failing("usage-goes-back", "cumulative usage that falls", "malformed", "usage goes back from 6 to 1 tokens"),
    _failing("impossible-usage", "usage of -1 tokens", "malformed", "Expected `int` >= 0"),
    _failing("no-done", "no [DONE]", "broken", "the stream ended before [DONE]"),
    _failing("early-done", "[DONE] before the last tokens", "malformed", "the stream goes on after [DONE]"),
    _failing("two-ends", "two finish reasons", "malformed", "text after finish_reason 'length'"),
    RequestFault("no-tokens", "answers without a token", "ok", None, "not one token arrived", every=1),
    _failing("error-in-stream", "an error event inside the stream", "http", "in the stream: EngineCore died"),
    _failing("no-stream", "HTTP 200 with a JSON object instead of a stream", "malformed", "no event stream: "),
    _failing("not-http", "another protocol", "broken", "not HTTP: ", None),
    RequestFault(
        "no-metrics", "/metrics answers 404", "ok", None,
        "running batch not measured: the server gives no vllm:num_requests_running at /metrics", every=None,
    ),
    RequestFault(
        "restart", "the server restarts: every connection breaks, its counters begin at 0", "ok", None,
        "the server's counters went back: it was restarted within the cell", every=None,
    ),
)  # fmt: skip
REQUEST_FAULTS = {fault.name: fault for fault in _REQUESTS}
