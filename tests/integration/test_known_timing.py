"""What loadgen says of a server whose times are known.

The server answers a request that arrives at t with token k at t + TTFT + k ITL (k = 0 .. n-1) and [DONE] with the last
token, so that

    E2E = TTFT + (n - 1) ITL         TPOT = ITL = (E2E - TTFT) / (n - 1)

In a closed loop of B slots each slot gets n tokens every E2E + refill; refill (last byte to next send and its way to
the server) is well below 1 ms here. A window of a whole number of such cycles sees, whatever its phase, B n tokens per
cycle:

    tokens/s = B n / (E2E + refill) ~ B n / E2E          requests in flight = B E2E / (E2E + refill) ~ B
"""

import pandas as pd
import pytest

import loadgen

WITHIN = 0.02
COMPLETIONS_CYCLES = 5
CHAT_CYCLES = 3
B = (1, 16)


def sweep(known, out, cycles, concurrency=B, **options):
    return loadgen.sweep(
        targets={"fp16": known.url},
        concurrency=concurrency,
        dataset="sample",
        duration=cycles * known.e2e_s,
        max_tokens=known.tokens,
        repeats=1,
        power="none",
        out=out,
        **options,
    )


@pytest.fixture(scope="module", params=["completions", pytest.param("chat", marks=pytest.mark.slow)])
def run(request, known, tmp_path_factory):
    cycles = COMPLETIONS_CYCLES if request.param == "completions" else CHAT_CYCLES
    return sweep(known, tmp_path_factory.mktemp("known") / "run", cycles, api=request.param)


def cell(run, b):
    return run.cells.set_index("concurrency").loc[b]


@pytest.mark.parametrize("b", B)
class TestWithinTwoPercent:
    def test_throughput(self, run, known, b):
        assert cell(run, b).tokens_per_s == pytest.approx(b * known.tokens / known.e2e_s, rel=WITHIN)

    def test_time_to_first_token(self, run, known, b):
        assert cell(run, b).ttft_ms_mean == pytest.approx(known.ttft_s * 1e3, rel=WITHIN)

    def test_inter_token_latency(self, run, known, b):
        assert cell(run, b).itl_ms_mean == pytest.approx(known.itl_s * 1e3, rel=WITHIN)

    def test_time_per_output_token(self, run, known, b):
        assert cell(run, b).tpot_ms_mean == pytest.approx(known.itl_s * 1e3, rel=WITHIN)

    def test_end_to_end(self, run, known, b):
        assert cell(run, b).e2e_ms_mean == pytest.approx(known.e2e_s * 1e3, rel=WITHIN)


@pytest.mark.parametrize("b", B)
class TestHonesty:
    def test_the_cell_is_valid(self, run, b):
        assert cell(run, b).valid, cell(run, b).reasons

    def test_b_requests_are_in_flight(self, run, b):
        assert cell(run, b).inflight_mean == pytest.approx(b, rel=0.01)

    def test_b_requests_run_on_the_server(self, run, b):
        assert cell(run, b).running_mean == pytest.approx(b, rel=0.03)

    def test_tokens_equal_the_servers_own_count(self, run, b):
        assert cell(run, b).recorded_tokens == cell(run, b).server_tokens

    def test_the_servers_own_ttft_stands_beside_the_clients(self, run, known, b):
        row = cell(run, b)
        assert row.server_ttft_ms_mean == pytest.approx(known.ttft_s * 1e3, rel=WITHIN)
        assert row.server_ttft_count > 0
        assert abs(row.ttft_excess_ms) < WITHIN * known.ttft_s * 1e3

    def test_the_client_says_what_it_took(self, run, b):
        row = cell(run, b)
        assert row.client_processes == 1
        assert 0 < row.client_cpu_share < 1
        assert row.client_cpu_cores == pytest.approx(row.client_cpu_share, rel=0.05)
        assert 0 <= row.loop_lag_ms_p50 <= row.loop_lag_ms_p90 <= row.loop_lag_ms_p99 <= row.loop_lag_ms_max
        assert 0 < row.refill_gap_ms_p50 <= row.refill_gap_ms_p99 <= row.refill_gap_ms_max

    def test_every_request_is_a_row_with_all_its_tokens(self, run, known, b):
        rows = run.requests[(run.requests.concurrency == b) & (run.requests.phase == "measured")]
        assert set(rows.status) == {"ok"}
        assert set(rows.output_tokens) == {known.tokens}
        assert rows.output_tokens.sum() == known.tokens * len(rows)

    def test_warmup_requests_spread_the_slots_ends(self, run, known, b):
        rows = run.requests[(run.requests.concurrency == b) & (run.requests.phase == "warmup")]
        first = rows.sort_values("t_send_ns").groupby("slot").output_tokens.first()
        assert list(first) == [max(1, round(known.tokens * (slot + 1) / b)) for slot in range(b)]


def test_a_window_may_be_given_in_requests(known, tmp_path):
    run = sweep_requests(known, tmp_path / "run", requests=8)
    assert cell(run, 4).answers == 8, "each asked once; the window holds those that ended while all slots were busy"
    assert 4 <= cell(run, 4).requests < 8
    assert cell(run, 4).valid


def sweep_requests(known, out, requests):
    return loadgen.sweep(
        targets={"fp16": known.url}, concurrency=[4], dataset="sample", requests=requests, max_tokens=known.tokens,
        repeats=1, out=out,
    )  # fmt: skip


@pytest.mark.slow
def test_the_sdk_transport_sees_the_same_answers(known, tmp_path):
    pytest.importorskip("openai")
    run = sweep(known, tmp_path / "run", CHAT_CYCLES, concurrency=[4], transport="openai", api="chat")
    row = cell(run, 4)
    assert row.valid, row.reasons
    assert row.recorded_tokens == row.server_tokens
    assert row.e2e_ms_mean == pytest.approx(known.e2e_s * 1e3, rel=0.2)
    rows = run.requests[run.requests.phase == "measured"]
    assert set(rows.output_tokens) == {known.tokens}
    assert set(rows.finish_reason) == {"length"}
    assert set(rows.text) == {"".join("" if k % 5 == 4 else f" {k}" for k in range(known.tokens))}
    assert pd.notna(rows.t_first_ns).all()
