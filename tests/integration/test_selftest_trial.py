"""The selftest against its own server: what must hold whatever the machine does meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

import loadgen
from loadgen.clienttest.selftest import run_trial
from loadgen.clienttest.trial import Trial


@pytest.fixture(scope="module", params=[("raw", 1), ("raw", 2), pytest.param(("openai", 1), marks=pytest.mark.slow)])
def trial(request: pytest.FixtureRequest) -> Trial:
    transport, workers = request.param
    if transport == "openai":
        pytest.importorskip("openai")
    return run_trial(4, 400.0, workers=workers, transport=transport, window_s=1.0)


class TestTrial:
    def test_it_says_what_it_was(self, trial: Trial) -> None:
        assert trial.itl_ms == pytest.approx(10.0)
        assert trial.answer_tokens == 40
        assert trial.window_s == pytest.approx(1.0)
        assert trial.transport in ("raw", "openai")

    def test_all_slots_are_in_flight_and_none_beyond_b_at_the_server(self, trial: Trial) -> None:
        assert 0.97 < trial.inflight_share <= 1.001
        assert 0 < trial.served_share < trial.inflight_share

    def test_tokens_are_never_stamped_before_they_were_sent(self, trial: Trial) -> None:
        assert 0 < trial.ttft_error_ms_mean <= trial.ttft_error_ms_p99 * 1.001
        assert trial.itl_error_ms_p99 > 0

    def test_cpu_is_told(self, trial: Trial) -> None:
        assert trial.cpu_us_per_token > 0
        assert 0 < trial.cpu_share < 1.5


def test_the_python_function_gives_figures_and_a_verdict() -> None:
    result = loadgen.selftest(concurrency=2, itl_ms=20.0)
    assert result.trial.tokens_per_s_asked == pytest.approx(100.0)
    assert result.enough == (not result.trial.faults and result.trial.valid)
    assert "B = 2 at 100 tokens/s" in result.sentence
    assert result.trials[0].concurrency == 2


@pytest.mark.slow
def test_the_command_prints_json_and_leaves_no_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadgen", "selftest", "--concurrency", "2", "--itl-ms", "20", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    content = json.loads(done.stdout)
    assert done.returncode == (0 if content["enough"] else 1), done.stderr
    assert content["trial"]["concurrency"] == 2
    assert len(content["trials"]) >= 1


def test_the_server_ends_with_whoever_started_it() -> None:
    argv = [sys.executable, "-m", "loadgen.clienttest.server", "--first-ms", "1", "--tick-ms", "1"]
    server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    assert int(server.stdout.readline())
    server.stdin.close()
    deadline_s = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert server.wait(1) == 0
    server.stdout.close()
