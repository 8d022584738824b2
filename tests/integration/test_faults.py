"""Every fault of a request: what its row says, what becomes of the cell, and that all other figures stay right."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from fault_server import BATCH, ITL_S, SPARED, TOKENS, TTFT_S, FaultServer
from faults import REQUEST_FAULTS, RequestFault
from streams import REQUEST
from unhurried import analysed

from loadgen.analysis.run import Run
from loadgen.load.exchange import Exchange, Raw, read_exchange
from loadgen.load.http import Endpoint, HttpSlot
from loadgen.measure.config import configure
from loadgen.measure.run import run_sweep

TIMEOUT_S = 2.0
KEY = "sk-canary-0123456789"
BODY = b'{"max_tokens": %d}' % (2 * TOKENS)
HEALTHY = ("healthy", "healthy-again")
FAULTS = list(REQUEST_FAULTS.values())
IN_SWEEP = [fault for fault in FAULTS if fault.in_sweep]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def asked(url: str, requests: int, timeout_s: float) -> list[Exchange]:
    """One request after the other on one slot."""

    async def run() -> list[Exchange]:
        slot = HttpSlot(Endpoint(url, "completions", KEY), 0, timeout_s)
        rows = []
        for _ in range(requests):
            done: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()
            slot.send(msgspec.structs.replace(REQUEST, body=BODY), done.set_result)
            rows.append(read_exchange(await done))
        slot.close()
        return rows

    return asyncio.run(run())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_request(server: FaultServer, fault: RequestFault) -> None:
    """The struck request's row says what happened; the next one on the same slot is answered."""
    struck, after = asked(f"{server.url}/{fault.name}~alone", 2, 0.3 if fault.status == "timeout" else 30.0)
    assert (struck.status, struck.http_status) == (fault.status, fault.http_status), struck.error
    assert fault.error is None if struck.error is None else fault.error in struck.error, repr(struck.error)
    assert struck.t_send_ns <= struck.t_end_ns
    assert after.status == (fault.status if fault.every == 1 else fault.next), after.error
    if fault.every != 1 and fault.next == "ok":
        assert after.output_tokens == TOKENS


@pytest.fixture(scope="module")
def run(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One sweep over a target per fault; what lets cells be invalid shows in a short window."""
    return sweep(server, [fault.name for fault in IN_SWEEP if not fault.needs_metrics], 0.3, tmp_path_factory)


@pytest.fixture(scope="module")
def longer_run(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same for what needs readings of /metrics, a healthy target before and after them."""
    faulty = [fault.name for fault in IN_SWEEP if fault.needs_metrics]
    return sweep(server, [HEALTHY[0], *faulty, HEALTHY[1]], 0.8, tmp_path_factory)


def sweep(
    server: FaultServer, names: Sequence[str], duration_s: float, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("A_SERVERS_KEY", KEY)
        config = configure(
            targets=[f"{name}:fp16={server.url}/{name}~{SPARED}" for name in names],
            concurrency=[BATCH],
            dataset="sample",
            duration=duration_s,
            repeats=1,
            timeout=TIMEOUT_S,
            max_tokens=2 * TOKENS,
            api_key_env="A_SERVERS_KEY",
            metrics_port=None,
            power="none",
            out=tmp_path_factory.mktemp("faults") / "run",
        )
        return analysed(run_sweep(config))


@pytest.mark.slow
@pytest.mark.parametrize("fault", IN_SWEEP, ids=lambda fault: fault.name)
def test_its_cell(request: pytest.FixtureRequest, fault: RequestFault) -> None:
    run = request.getfixturevalue("longer_run" if fault.needs_metrics else "run")
    cell = run.cells.set_index("target").loc[fault.name]
    if fault.cell is None:
        assert cell.valid, cell.reasons
        check_figures(run, fault.name)
    else:
        assert not cell.valid
        # A busy machine's scrapes may come after the new counters have caught up: then the broken requests tell.
        caught_up = fault.name == "restart" and "connection lost" in cell.reasons
        assert caught_up or fault.cell in cell.reasons
    rows = run.requests[run.requests.target == fault.name]
    assert set(rows.status) <= {"ok", fault.status, fault.next, "broken" if fault.name == "restart" else "ok"}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_cells_beside_them_are_right(longer_run: Run, name: str) -> None:
    cell = longer_run.cells.set_index("target").loc[name]
    assert cell.valid, cell.reasons
    check_figures(longer_run, name)


def check_figures(run: Run, name: str) -> None:
    cell = run.cells.set_index("target").loc[name]
    assert cell.output_tokens_mean == TOKENS
    if name == "no-metrics":
        assert cell.running_source == "none"
        assert cell.running_note.startswith("batch not verified: ")
        assert cell.running_note.endswith("/metrics answers 404")
    else:
        assert cell.server_tokens == cell.recorded_tokens
        assert cell.running_mean == pytest.approx(BATCH)
    assert not cell.ttft_ms_p50 < TTFT_S * 1e3
    assert cell.tokens_per_s <= BATCH / ITL_S


@pytest.mark.slow
def test_no_cell_is_missing_and_none_broke_the_run(run: Run, longer_run: Run) -> None:
    assert len(run.cells) + len(longer_run.cells) == len(IN_SWEEP) + len(HEALTHY)
    assert run.manifest.failures == longer_run.manifest.failures == ()


@pytest.mark.slow
def test_invalid_cells_are_in_no_mean(run: Run) -> None:
    invalid = [fault.name for fault in IN_SWEEP if not fault.needs_metrics]
    summary = run.summary.set_index("target").loc[invalid]
    assert summary.tokens_per_s.isna().all()
    assert summary.ttft_ms_mean.isna().all()


@pytest.mark.slow
def test_the_key_that_a_server_repeats_is_kept_nowhere(server: FaultServer, run: Run) -> None:
    assert any(KEY.encode() in head for head in server.seen[f"echoed-key~{SPARED}"]), "it was sent"
    found = [path for path in run.path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert found == []
    errors = run.requests[(run.requests.target == "echoed-key") & (run.requests.status == "http")].error
    assert errors.str.contains("Authorization: Bearer ***", regex=False).all()
