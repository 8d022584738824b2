"""The truth bench reads what clients tell, looks at them from outside, and writes its page from that alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from bench.truth.client import Kept, rows_of  # noqa: E402
from bench.truth.document import DOCUMENT, ENGINE_RESULTS, RESULTS, document, short  # noqa: E402
from bench.truth.inputs import write_inputs  # noqa: E402
from bench.truth.server import Case, Stats  # noqa: E402
from bench.truth.stamps import stamp_errors  # noqa: E402
from bench.truth.tools import FLOOR, KEEPING_FLOOR, AiPerf, GuideLlm, Loadgen, MlPerfEndpoints, Told, Tool, VllmBench  # noqa: E402
from bench.truth.watch import Poll, cpu_s, steady  # noqa: E402
from loadgen.load.pieces import Pieces  # noqa: E402

EIGHT = Case(name="eight", concurrency=8, ttft_ms=20.0, itl_ms=10.0, tokens=5)


def test_what_a_case_means() -> None:
    """Four gaps after the first token: 60 ms an answer, and eight streams of five tokens in that time."""
    assert EIGHT.answer_s == pytest.approx(0.06)
    assert EIGHT.tokens_per_s == pytest.approx(8 * 5 / 0.06)


# what clients tell


def written(folder: Path, name: str, content: Any) -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder


def test_vllm_bench_serve(tmp_path: Path) -> None:
    result = {"mean_ttft_ms": 21.5, "p99_ttft_ms": 40.0, "p99_itl_ms": 12.5, "output_throughput": 12700.0}
    result |= {"request_throughput": 63.5, "completed": 500, "failed": 2}
    told = VllmBench(tmp_path).read(written(tmp_path, "result.json", result))
    assert told == Told(
        ttft_ms_mean=21.5, ttft_ms_p99=40.0, itl_ms_p99=12.5, tokens_per_s=12700.0, answers_per_s=63.5, notes="2 failed"
    )


def test_aiperf_tells_gaps_between_chunks_apart_from_its_itl_of_whole_answers(tmp_path: Path) -> None:
    export = {
        "time_to_first_token": {"unit": "ms", "avg": 146.0, "p99": 518.0},
        "inter_token_latency": {"unit": "ms", "avg": 10.1, "p99": 11.0},
        "inter_chunk_latency": {"unit": "ms", "avg": 10.1, "p99": 55.0},
        "output_token_throughput": {"unit": "tokens/sec", "avg": 9000.0},
        "request_throughput": {"unit": "requests/sec", "avg": 45.0},
    }
    told = AiPerf(tmp_path).read(written(tmp_path, "profile_export_aiperf.json", export))
    assert told == Told(ttft_ms_mean=146.0, ttft_ms_p99=518.0, itl_ms_p99=55.0, tokens_per_s=9000.0, answers_per_s=45.0)


def test_guidellm_has_no_gaps_between_tokens(tmp_path: Path) -> None:
    def metric(**figures: Any) -> dict[str, Any]:
        return {"successful": figures}

    metrics = {
        "time_to_first_token_ms": metric(mean=206.0, percentiles={"p99": 654.0}),
        "inter_token_latency_ms": metric(mean=10.4, percentiles={"p99": 12.5}),
        "output_tokens_per_second": metric(mean=9105.0),
        "requests_per_second": metric(mean=46.0),
        "request_concurrency": metric(mean=91.6),
    }
    told = GuideLlm(tmp_path).read(written(tmp_path, "result.json", {"benchmarks": [{"metrics": metrics}]}))
    assert (told.ttft_ms_mean, told.ttft_ms_p99, told.tokens_per_s) == (206.0, 654.0, 9105.0)
    assert (told.answers_per_s, told.in_flight, told.itl_ms_p99) == (46.0, 91.6, None)
    assert "first and last token only" in told.why_none


def test_mlperf_endpoints(tmp_path: Path) -> None:
    ttft = {"avg": 30e6, "percentiles": {"50": 25e6, "99": 90e6}}
    summary = {"ttft": ttft, "tps": 12000.0, "qps": 60.0, "n_samples_failed": 1}
    (tmp_path / "performance").mkdir()
    told = MlPerfEndpoints(tmp_path).read(written(tmp_path / "performance", "result_summary.json", summary).parent)
    assert (told.ttft_ms_mean, told.ttft_ms_p99, told.tokens_per_s, told.notes) == (30.0, 90.0, 12000.0, "1 failed")


PEERS = (VllmBench, GuideLlm, AiPerf, MlPerfEndpoints)


@pytest.mark.parametrize("tool", [Loadgen(), *(peer(Path("env")) for peer in PEERS)])
def test_every_client_is_asked_for_the_same(tool: Tool, tmp_path: Path) -> None:
    argv = " ".join(tool.argv(EIGHT, "http://127.0.0.1:1", 40, write_inputs(tmp_path), tmp_path))
    assert "http://127.0.0.1:1" in argv
    assert " 8 " in argv or "[8]" in argv
    assert "chat" not in argv


# what is seen from outside


def poll(t_s: float, requests: int, *, cpu: float = 0.0) -> Poll:
    """Eight streams that bring 8 x 5 tokens in each 60 ms, seven of them in flight on average."""
    stats = Stats(
        t_ns=round(t_s * 1e9),
        requests=requests,
        tokens=requests * 5,
        in_flight=7,
        in_flight_s=7 * t_s,
        cpu_s=0.25 * t_s,
        late_ms_mean=None,
        late_ms_p99=None,
        late_ms_max=None,
    )
    return Poll(stats, cpu)


def test_the_steady_state_has_neither_warm_up_nor_drain() -> None:
    """Requests 0 to 100, ten a second; inside are those from 2 x 8 to 100 - 8, so from 1.6 s to 9.2 s."""
    polls = [poll(k / 10, k, cpu=5.0 if k < 16 else 5.0 + 0.002 * (k - 16)) for k in range(101)]
    seen = steady(polls, EIGHT)
    assert seen is not None
    assert seen.seconds == pytest.approx(7.6)
    assert seen.answers_per_s == pytest.approx(10)
    assert seen.tokens_per_s == pytest.approx(50)
    assert seen.in_flight == pytest.approx(7)
    assert seen.client_cores == pytest.approx(0.02)
    assert seen.client_cpu_us_per_token == pytest.approx(0.02 / 50 * 1e6)
    assert seen.server_cores == pytest.approx(0.25)


def test_waves_are_counted_whole() -> None:
    """Eight answers end together each 0.6 s: the interval begins and ends shortly after such an end."""
    polls = [poll(k / 10, 8 * (k // 6)) for k in range(1, 62)]
    seen = steady(polls, EIGHT)
    assert seen is not None
    assert seen.seconds / 0.6 == pytest.approx(round(seen.seconds / 0.6))
    assert seen.answers_per_s == pytest.approx(8 / 0.6)


def test_a_run_too_short_for_a_steady_state_has_none() -> None:
    assert steady([poll(0.1, 8), poll(0.2, 16)], EIGHT) is None
    assert steady([], EIGHT) is None


def test_cpu_of_children_counts() -> None:
    burn = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.3: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        spent_s = cpu_s(parent.pid)
        parent.communicate(b"\n")
    assert 0.3 <= spent_s < 60
    assert cpu_s(parent.pid) == 0.0


# the page


def outcome(tool: str, ttft_ms: float, **changed: Any) -> dict[str, Any]:
    told = Told(ttft_ms_mean=ttft_ms, ttft_ms_p99=2 * ttft_ms, itl_ms_p99=None, tokens_per_s=1.0, answers_per_s=1.0)
    seen = steady([poll(k / 10, k, cpu=0.0005 * k) for k in range(101)], EIGHT)
    return {
        "case": "b128",
        "tool": tool,
        "round": 1,
        "told": msgspec.to_builtins(told),
        "seen": msgspec.to_builtins(seen),
        "server": msgspec.to_builtins(poll(1, 1).server) | {"late_ms_p99": 0.25},
        "server_ahead": True,
        "failure": "",
    } | changed


def results(*outcomes: dict[str, Any]) -> dict[str, Any]:
    machine = {"cpu": "Some CPU", "cores": 2, "kernel": "6", "python": "3.11", "load_average_at_start": 0.0}
    case = msgspec.to_builtins(msgspec.structs.replace(EIGHT, name="b128"))
    return {"when": "2026-11-25", "machine": machine, "versions": {"loadgen": "0.1.0"}, "rounds": 3, "cases": [case],
            "outcomes": list(outcomes)}  # fmt: skip


def test_the_page_has_medians_spreads_and_ratios() -> None:
    page = document(results(*(outcome("loadgen", ttft) for ttft in (20.0, 23.0, 21.0)), outcome("GuideLLM", 210.0)))
    assert "| loadgen | 21.0 (20.0–23.0) | 42.0 (40.0–46.0) |  | 7.5 (7.5–7.5) | 87.5 (87.5–87.5) | 100.0" in page
    assert "| GuideLLM | 10× | 10× |  | 1× | 1× | 1× |" in page
    assert "| 0.2 (0.2–0.2) |" in page, "how late the server was"


def test_bars_are_met_or_missed_by_the_median() -> None:
    page = document(results(*(outcome("loadgen", ttft) for ttft in (20.0, 23.0, 20.2))))
    assert "| b128 | TTFT mean, ms | ≤ 20.4 | 20.2 | met |" in page
    assert "| b128 | tok/s, % of true | ≥ 99.5 | 7.5 | missed |" in page


def stamped(kernel_ms: float | None) -> dict[str, Any]:
    """One of loadgen's runs; errors have a median, and a p99 of four times that."""
    process = {"median_ms": 1.0, "p99_ms": 9.0}
    kernel = kernel_ms and {"median_ms": kernel_ms, "p99_ms": 4 * kernel_ms}
    return outcome("loadgen", 20.0, stamps={"kernel": kernel, "process": process, "joined_share": 0.015})


def test_errors_of_stamps_are_shown_by_source_beside_the_floor() -> None:
    floors = outcome(FLOOR, 20.0), outcome(KEEPING_FLOOR, 20.0)
    page = document(results(*map(stamped, (0.05, 0.3, 0.07)), *floors))
    row = next(
        line for line in page.splitlines() if line.startswith("| B = 8 | 0.070 (0.050–0.300) | 0.28 (0.20–1.20) |")
    )
    assert "| 1.000 (1.000–1.000) | 9.00 (9.00–9.00) | 1.5 (1.5–1.5) |" in row
    assert row.count("| 1.00× |") == 2, "all take as much CPU time"
    assert "| b128 | kernel, median | ≤ 0.1 | 0.070 | met |" in page
    assert "| b128 | CPU a token over the floor | ≤ 1.3 | 1.00 | met |" in page
    assert "against loadgen" not in page, "a floor is no client"


def test_a_run_without_stamps_of_the_kernel_has_none_in_the_table() -> None:
    page = document(results(stamped(None)))
    assert "| B = 8 |  |  | 1.000 (1.000–1.000) | 9.00 (9.00–9.00) | 1.5 (1.5–1.5) |" in page


def test_the_short_tables_have_medians_alone() -> None:
    printed = short(results(*map(stamped, (0.05, 0.3, 0.07)), outcome("GuideLLM", 210.0), outcome(FLOOR, 1.0)))
    assert "| loadgen | 20.0 | 40.0 | 7.5 | 100.0 |\n| GuideLLM | 210.0 |" in printed
    assert "| B = 8 | 0.070 | 0.28 | 1.000 | 9.00 | 1.5 | 7.5 | 100.0 | 100.0 | 1.00× |  |  |" in printed


def test_a_failed_run_is_in_no_figure() -> None:
    page = document(results(outcome("loadgen", 20.0), outcome("loadgen", 900.0, failure="stopped after 300 s")))
    assert "20.0 (20.0–20.0)" in page


def test_the_page_is_that_of_the_results() -> None:
    fresh = document(json.loads(RESULTS.read_text()), json.loads(ENGINE_RESULTS.read_text()))
    assert DOCUMENT.read_text() == fresh, "stale: run `python -m bench.truth.document`"


def test_ttft_stands_beside_the_engines_own_where_the_kernel_stamped_every_token() -> None:
    cell = {"concurrency": "4", "ttft_ms_mean": "350.0", "server_ttft_ms_mean": "346.0", "kernel_stamp_share": "1.0"}
    cells = [
        {**cell, "repeat": "1", "ttft_excess_ms": "4.0"},
        {**cell, "repeat": "2", "ttft_excess_ms": "6.0"},
        {**cell, "repeat": "3", "ttft_excess_ms": "5.0"},
        {**cell, "repeat": "4", "ttft_excess_ms": "90.0", "kernel_stamp_share": "0.5"},
        {**cell, "repeat": "5", "ttft_excess_ms": ""},
    ]
    engine = {"engine": "0.32.0", "model": "m", "when": "2026-11-30", "machine": {"cores": 2}, "cells": cells}
    page = document(results(outcome("loadgen", 20.0)), engine)
    assert "| 4 | 350.00 (350.00–350.00) | 346.00 (346.00–346.00) | 5.00 (4.00–6.00) |" in page
    assert "medians of 3 starts" in " ".join(page.split())


def test_the_page_says_that_the_server_ran_ahead_only_where_it_always_did() -> None:
    said = "the server has a real-time priority"
    ahead, behind = outcome("loadgen", 20.0), outcome("loadgen", 20.0, server_ahead=False)
    assert said in " ".join(document(results(ahead, ahead)).split())
    assert said not in " ".join(document(results(ahead, behind)).split())


# the stamps that the client kept

TOKENS = [b'data: {"text":" #00000042"}', *(b'data: {"text":" %d"}' % k for k in range(1, 9))]
ENDING = [b'data: {"usage":{}}', b"data: [DONE]"]


def kept(pieces: list[bytes], *, by_kernel: bool = True) -> Kept:
    """An answer sent at 5, whose pieces were read at 10, 11, ..., 2 after the kernel had stamped them."""
    read_ns = [10 + k for k in range(len(pieces))]
    return Kept(5, by_kernel, np.array(read_ns) - 2, Pieces.of(pieces, read_ns, [0] * len(pieces)))


@pytest.mark.parametrize("before", [[], [b""], [b"", b'data: {"role":"assistant","content":""}']])
def test_each_token_has_the_stamps_of_its_piece(before: list[bytes]) -> None:
    first = 10 + len(before)
    rows = rows_of(kept([*before, *TOKENS, *ENDING]))
    assert rows == [(42, k, 5, first + k - 2, first + k) for k in range(9)]
    assert {row[3] for row in rows_of(kept([*before, *TOKENS, *ENDING], by_kernel=False))} == {-1}


@pytest.mark.parametrize("pieces", [[*TOKENS[:3], TOKENS[3] + TOKENS[4], *TOKENS[5:]], TOKENS[1:], [TOKENS[0][:9]]])
def test_events_that_do_not_come_one_in_each_piece_are_not_guessed_at(pieces: list[bytes]) -> None:
    with pytest.raises(ValueError, match="did not come one in each chunk"):
        rows_of(kept([*pieces, *ENDING]))


def test_the_error_of_a_stamp_is_the_clients_less_the_servers(tmp_path: Path) -> None:
    """Answer 7 was read at 1 ms and written at 2 and 3 ms; the other was never read by this client."""
    ms = 1_000_000
    np.array([[7, ms, 2 * ms, 3 * ms], [8, ms, 2 * ms, 3 * ms]], dtype=np.int64).tofile(tmp_path / "server")
    np.save(tmp_path / "client.npy", [(7, 0, 0, 2 * ms + 100_000, 4 * ms), (7, 1, 0, 3 * ms + 300_000, 4 * ms)])
    errors = stamp_errors(tmp_path / "server", tmp_path / "client.npy", 2)
    assert errors is not None and errors.kernel is not None
    assert (errors.answers, errors.tokens, errors.ttft_ms_mean, errors.request_ms_mean) == (1, 2, 1.0, 1.0)
    assert (errors.kernel.median_ms, errors.kernel.max_ms) == pytest.approx((0.2, 0.3))
    assert (errors.process.median_ms, errors.process.max_ms, errors.joined_share) == (1.5, 2.0, 0.0)
    assert errors.kernel.ttft_ms_mean == pytest.approx(2.1)
