"""Every fault that is injected, with what must come of it; docs/reliability.md is written from these tables."""

from __future__ import annotations

from dataclasses import dataclass

FAILED = "requests failed, the first: "
HOSTILE = (
    "=1+1<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\x1b]0;mine\x07\u202eevil\x00$\\frac{$[bold][/]"
    "\x9b31m\nloadgen: all is well\r+1"
)
"""A spreadsheet's formula, HTML, terminal commands, a direction mark, NUL, TeX, markup and a message of our own."""
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
    """Status of the struck request's row in requests.parquet."""
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
    RequestFault(
        "reset-before", "RST before every answer", "broken", "connection lost before the answer",
        "failures in a row, the last: broken: connection lost before the answer", 1, None,
    ),
    RequestFault(
        "closed-before", "close before every answer", "broken", "connection lost before the answer",
        "failures in a row, the last: broken: connection lost before the answer", 1, None,
    ),
    _failing("reset-inside", "RST in the middle of the stream", "broken", _LOST),
    _failing("closed-inside", "close in the middle of the stream", "broken", _LOST),
    RequestFault(
        "reset-after", "RST after the stream, as the next request comes on the kept connection", "ok", None, None,
    ),
    RequestFault("closed-after", "`Connection: close`, and a close after every stream", "ok", None, None, every=1),
    _failing("stalled", "the stream stops, the connection stays", "timeout", "no complete answer within", every=RARE),
    _failing("no-headers", "no answer at all", "timeout", "no complete answer within", None, RARE),
    RequestFault("slow-headers", "headers come 30 ms late", "ok", None, None, every=1),
    *(_http(status, body=body) for status in (400, 401, 404, 408, 429, 500, 503) for body in (True, False)),
    _failing("echoed-key", "HTTP 401 that repeats the request's headers", "http", "401: POST ", 401),
    _failing("malformed-sse", "an event whose JSON is cut", "malformed", "Input data was truncated"),
    _failing("invalid-utf-8", "bytes that are not UTF-8", "malformed", "'utf-8' codec can't decode"),
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
    RequestFault("no-done", "no [DONE] after finish_reason and usage", "ok", None, None, every=1),
    _failing("early-done", "[DONE] before the last tokens", "malformed", "the stream continues after [DONE]"),
    _failing("two-ends", "two finish reasons", "malformed", "text after finish_reason 'length'"),
    RequestFault("no-tokens", "answers without a token", "ok", None, "not one token arrived", every=1),
    _failing("error-in-stream", "an error event inside the stream", "http", "in the stream: EngineCore died"),
    RequestFault("hostile-text", "answers of HTML, terminal commands and NULs", "ok", None, None, every=1),
    _failing("hostile-error", "HTTP 500 with such a message", "http", "500: =1+1<script>alert(1)</script>", 500),
    _failing("no-stream", "HTTP 200 with a JSON object instead of a stream", "malformed", "no event stream: "),
    _failing("not-http", "another protocol", "broken", "not HTTP: ", None),
    RequestFault(
        "no-metrics", "/metrics answers 404: batch not verified", "ok", None, None, every=None,
    ),
    RequestFault(
        "restart", "the server restarts: every connection breaks, its counters begin at 0", "ok", None,
        "the server's counters went back: it was restarted within the cell", every=None,
    ),
)  # fmt: skip
REQUEST_FAULTS = {fault.name: fault for fault in _REQUESTS}


_MACHINE = "tests/integration/test_machine_faults.py::"
_HTTP = "tests/unit/test_http_failures.py::"
MACHINE_FAULTS = (
    MachineFault(
        "nothing listens at a target's address",
        "a port that is closed",
        "one sentence before anything is created",
        "2",
        "tests/unit/test_cli_wrong_use.py::test_as_a_user_sees_it",
    ),
    MachineFault(
        "DNS failure",
        "a host name that does not exist",
        "before the run one sentence; during it the request's row is `connect`",
        "2; 1",
        f"{_MACHINE}TestServersElsewhere::test_a_name_that_nobody_knows, {_HTTP}test_a_host_without_a_name",
    ),
    MachineFault(
        "TLS error",
        "a certificate that its owner signed",
        "one sentence that names SSL_CERT_FILE; with it the sweep runs",
        "2",
        f"{_MACHINE}TestServersElsewhere::test_a_certificate_that_nobody_vouches_for",
    ),
    MachineFault(
        "proxy",
        "HTTP_PROXY, HTTPS_PROXY and ALL_PROXY that lead nowhere",
        "servers, exporters and /metrics are reached directly, as a note says of servers elsewhere; downloads use it",
        "0",
        f"{_MACHINE}TestServersElsewhere::test_a_proxy_of_the_environment_is_not_asked, "
        "tests/unit/test_openai_transport.py::test_a_proxy_of_the_environment_is_not_asked",
    ),
    MachineFault(
        "a running server goes away",
        "it closes in a window: connections are refused",
        "its cells end early with the last error, after 20 (or 3 B) failures in a row; the other targets are measured",
        "1",
        f"{_MACHINE}TestServersElsewhere::test_one_that_goes_away_costs_its_own_cells",
    ),
    MachineFault(
        "a launched server is killed",
        "SIGKILL in a window",
        "that cell is invalid and quotes the exit status; the rest of its block goes to a fresh server, told in a "
        "session of its own in the manifest and in a warning",
        "1",
        f"{_MACHINE}TestServersLoadgenLaunched::test_one_that_dies_costs_its_cell_and_the_rest_goes_to_a_fresh_one, "
        f"{_MACHINE}TestServersLoadgenLaunched::test_power_of_a_fresh_one_is_kept_apart",
    ),
    MachineFault(
        "a launched server dies every time",
        "SIGKILL in every window",
        "two relaunches a block, then the remaining cells are reported as not measured",
        "1",
        f"{_MACHINE}TestServersLoadgenLaunched::test_one_that_dies_every_time_is_given_up",
    ),
    MachineFault(
        "a server crashes while it starts",
        "exit status 3 before it is ready",
        "its cells are not measured; the sentence has the error and the last words of its log",
        "1",
        "tests/unit/test_process.py::test_a_crash_is_reported_at_once_with_status_cause_last_words_and_log",
    ),
    MachineFault(
        "an answer without end",
        "a stream that is never finished",
        "given up at 64 MiB: `broken`",
        "1",
        f"{_HTTP}test_an_answer_without_end_is_given_up",
    ),
    MachineFault(
        "unrequested answers",
        "bytes after an answer; interim answers (1xx); a switch of protocols",
        "they belong to no request; the connection is not used again",
        "0",
        f"{_HTTP}test_what_follows_the_answer_belongs_to_no_request, "
        f"{_HTTP}test_what_an_interim_answer_says_is_not_the_answer, {_HTTP}test_a_protocol_that_nobody_asked_for",
    ),
    MachineFault(
        "/metrics falls silent",
        "no reading in the last 6 s of a window of 10 s",
        "the cell is invalid",
        "1",
        "tests/unit/test_cells.py::test_a_server_whose_metrics_fall_silent_is_told",
    ),
    MachineFault(
        "the wall clock is set",
        "CLOCK_REALTIME an hour back, two hours on, in a window",
        "no figure changes; a warning says by how much it was set",
        "0",
        f"{_MACHINE}test_the_wall_clock_is_set_in_a_cell",
    ),
    MachineFault(
        "disk full",
        "a file system with less room than the next answer",
        "one sentence; what was measured is kept, `--resume` and `report` continue when there is room",
        "1",
        f"{_MACHINE}TestDisk::test_a_full_disk_stops_the_run_keeps_what_was_measured_and_it_can_be_resumed",
    ),
    MachineFault(
        "read-only directory",
        "a file system mounted read-only",
        "one sentence, before anything is measured; the same for `report`",
        "2; 1",
        f"{_MACHINE}TestDisk::test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured, "
        f"{_MACHINE}TestDisk::test_a_report_into_a_folder_that_cannot_be_written",
    ),
    MachineFault(
        "the journal is damaged",
        "any byte changed; any end cut off",
        "the line is left out, counted and reported; a torn last line is not damage",
        "0",
        "tests/unit/test_journal.py::test_a_changed_byte_costs_its_line_and_is_counted, "
        "tests/unit/test_journal.py::test_cutting_the_file_anywhere_costs_at_most_the_record_that_was_cut",
    ),
    MachineFault(
        "loadgen is killed",
        "SIGKILL in a window",
        "what was in flight is lost; `report` and `--resume` work on the rest; its servers end too",
        "",
        "tests/integration/test_interrupt.py::test_report_rebuilds_every_derived_file, "
        "tests/unit/test_process.py::test_a_server_does_not_outlive_a_killed_loadgen",
    ),
    MachineFault(
        "a client worker dies",
        "SIGKILL to one of several client processes",
        "the cell ends with a sentence, the run goes on",
        "1",
        "tests/integration/test_workers.py::test_a_worker_that_dies_ends_the_cell_with_a_sentence",
    ),
    MachineFault(
        "the exporter goes away",
        "SIGKILL in a window",
        "the energy of that cell is invalid; later ones are measured without power, and a warning says so",
        "1",
        f"{_MACHINE}TestPower::test_an_exporter_that_goes_away_costs_energy_alone",
    ),
    MachineFault(
        "NVML loses a GPU",
        "a stub of the library that answers GPU_IS_LOST from some moment on",
        "nothing of the cell is valid, its answers included",
        "1",
        "tests/integration/test_sweep_power.py::test_a_gpu_lost_on_the_way_leaves_nothing_of_the_cell_valid",
    ),
    MachineFault(
        "no driver",
        "a machine without NVML",
        "energy is empty, and the run says why",
        "0",
        "tests/integration/test_sweep_power.py::test_without_a_driver_auto_says_why_there_is_no_energy",
    ),
    MachineFault(
        "Prometheus goes away, or was never there",
        "three scrapes and no more; none at all",
        "no effect; the end does not wait for it",
        "0",
        "tests/unit/test_sweep_metrics.py::test_the_end_waits_for_nobody_who_is_not_there",
    ),
    MachineFault(
        "a server repeats the API key",
        "HTTP 401 whose message has the request's headers",
        "the key is in no file and on no terminal",
        "1",
        "tests/integration/test_faults.py::test_the_key_that_a_server_repeats_is_kept_nowhere",
    ),
    MachineFault(
        "a node of a Ray cluster dies (`loadgen grid`)",
        "SIGKILL of a raylet while its task runs",
        "the task runs on another node; no repeat is counted twice",
        "0",
        "tests/integration/test_grid_on_ray.py::test_every_task_is_done_exactly_once_on_the_nodes_that_were_left",
    ),
    MachineFault(
        "the head of a grid dies",
        "SIGKILL of loadgen and of Ray's head",
        "`--resume` keeps every finished task and runs the others",
        "0",
        "tests/integration/test_grid_on_ray.py::test_what_was_done_before_the_head_was_killed_is_kept",
    ),
    MachineFault(
        "hostile text",
        "HTML, terminal commands, direction marks, NULs and formulas in model name, answers, errors and headers",
        "terminal and page show it, and it has no effect",
        "",
        "tests/integration/test_hostile_text.py::test_the_page_obeys_nothing, "
        "tests/integration/test_hostile_text.py::test_the_terminal_obeys_nothing",
    ),
)
