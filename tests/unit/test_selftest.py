"""The selftest: errors against the server's own stamps, the search for the capacity, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_run import MS, answer, cell_data, ended

import loadgen
from loadgen.clienttest import selftest as selftest_module
from loadgen.clienttest.selftest import (
    SEARCH_TRIALS,
    Selftest,
    cores,
    fewest_workers,
    selftest,
    selftest_json,
    selftest_lines,
)
from loadgen.clienttest.server import Frames
from loadgen.clienttest.trial import Trial, trial_of
from loadgen.errors import ServerError, UsageError
from loadgen.load.exchange import Exchange, Request
from loadgen.load.httpraw import HttpRaw


def stamped(send: float, read: float, tokens: list[tuple[float, float]], **fields: Any) -> Exchange:
    """An answer with (sent by the server, stamped by the client) of each token, in ms."""
    text = "".join(f" {round(sent * MS):019d}" for sent, _ in tokens)
    seen = [(seen, 1) for _, seen in tokens]
    return answer(send, seen, text=text, stop_reason=str(round(read * MS)), **fields)


class TestTrial:
    """The window is (1 s, 2 s]; the server ticks each 10 ms."""

    TOKENS = ((1120.2, 1120.5), (1130.0, 1130.1), (1140.0, 1142.0), (1150.0, 1150.3))

    def trial(self, tmp_path: Path, *exchanges: Exchange, b: int = 1, **end: Any) -> Trial:
        data = cell_data(tmp_path, exchanges, b=b, end=ended(**end))
        return trial_of(data, "raw", 1e5, 10.0, 4)

    def test_the_error_of_ttft_is_the_clients_less_the_servers(self, tmp_path: Path) -> None:
        """20.5 ms from sent to stamped, 20 ms from read to sent."""
        trial = self.trial(tmp_path, stamped(1100, 1100.2, list(self.TOKENS)))
        assert trial.ttft_error_ms_mean == pytest.approx(0.5)

    def test_the_error_of_itl_is_the_difference_of_gaps_whatever_its_sign(self, tmp_path: Path) -> None:
        """Gaps of 9.6, 11.9 and 8.3 ms instead of 9.8, 10 and 10: off by 0.2, 1.9 and 1.7."""
        trial = self.trial(tmp_path, stamped(1100, 1100.2, list(self.TOKENS)))
        assert trial.itl_error_ms_p99 == pytest.approx(1.9 - 0.02 * 0.2)

    def test_a_late_server_is_not_the_clients_error(self, tmp_path: Path) -> None:
        late = [(sent + 300.0 * (k > 1), seen + 300.0 * (k > 1)) for k, (sent, seen) in enumerate(self.TOKENS)]
        punctual = self.trial(tmp_path / "a", stamped(1100, 1100.2, list(self.TOKENS)))
        trial = self.trial(tmp_path / "b", stamped(1100, 1100.2, late))
        assert trial.itl_error_ms_p99 == pytest.approx(punctual.itl_error_ms_p99)
        assert punctual.offered_share == pytest.approx(1.0)
        assert trial.offered_share == pytest.approx(10 / ((310 + 10) / 2))
        assert not trial.valid

    def test_what_a_slot_spends_on_its_way_is_missing_at_the_server(self, tmp_path: Path) -> None:
        """One slot of two: the client has it in flight all the second, the server from 1.1 to 1.9 s."""
        tokens = [(1200.0, 1300.0), (1300.0, 1310.0), (1310.0, 1320.0), (1900.0, 2000.0)]
        trial = self.trial(tmp_path, stamped(1000, 1100, tokens), b=2)
        assert (trial.inflight_share, trial.served_share) == pytest.approx((0.5, 0.4))

    def test_cpu_time_is_shared_by_the_tokens_that_arrived(self, tmp_path: Path) -> None:
        trial = self.trial(
            tmp_path, stamped(1100, 1100.2, list(self.TOKENS)), client_processes=2, client_cpu_s=0.001,
            client_cpu_share=0.0005,
        )  # fmt: skip
        assert trial.tokens_per_s == 4.0
        assert trial.cpu_us_per_token == pytest.approx(250.0)
        assert (trial.workers, trial.cpu_share) == (2, 0.0005)

    def test_answers_that_are_not_whole_are_not_compared(self, tmp_path: Path) -> None:
        cut = stamped(1300, 1300.2, [(1320.2, 1420.5), (1330.0, 1430.0)], status="broken", error="cut", slot=1)
        trial = self.trial(tmp_path, stamped(1100, 1100.2, list(self.TOKENS)), cut, b=2)
        assert trial.ttft_error_ms_mean == pytest.approx(0.5)

    def test_a_window_without_an_answer_gives_no_figure(self, tmp_path: Path) -> None:
        with pytest.raises(ServerError, match="no complete answer within"):
            self.trial(tmp_path, answer(1100, [(1500, 1)], text=" 1", status="broken", error="cut"))


GOOD: dict[str, Any] = {
    "concurrency": 128, "workers": 1, "transport": "raw", "tokens_per_s_asked": 12_800.0, "itl_ms": 10.0,
    "answer_tokens": 40, "window_s": 1.0, "tokens_per_s": 12_800.0, "ttft_error_ms_mean": 0.1,
    "ttft_error_ms_p99": 1.0, "itl_error_ms_p99": 0.5, "inflight_share": 1.0, "served_share": 0.999,
    "cpu_us_per_token": 10.0, "cpu_share": 0.13, "loop_lag_ms_p90": 0.0, "loop_lag_ms_p99": 1.0,
    "offered_share": 1.0, "server_error_ms_p99": 1.0, "kernel_stamp_share": 1.0, "joined_token_share": 0.004,
}  # fmt: skip


def made(**changed: Any) -> Trial:
    return Trial(**GOOD | changed)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"ttft_error_ms_mean": 1.1}, "mean TTFT +1.1 ms (limit 1)"),
        ({"ttft_error_ms_p99": 5.1}, "p99 of the TTFT error 5.1 ms (limit 5)"),
        ({"itl_error_ms_p99": 2.1}, "p99 of the ITL error 2.1 ms (limit 2)"),
        ({"itl_error_ms_p99": 8.1, "itl_ms": 40.0}, "p99 of the ITL error 8.1 ms (limit 8)"),
        ({"inflight_share": 0.994}, "99.4% of B in flight (limit 99.5%)"),
        ({"served_share": 0.994}, "99.4% of B at the server (limit 99.5%)"),
        ({"cpu_share": 0.81}, "81% of a core (limit 80%)"),
    ],
)
def test_each_limit_alone(changed: dict[str, Any], fault: str) -> None:
    assert made().faults == []
    assert made(**changed).faults == [fault]


Client = Callable[[float, int], dict[str, Any]]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Client], list[tuple[float, int]]]]:
    """Puts a client in place of the real one: (rate, workers) -> what its trial has; keeps what it was asked."""

    def place(client: Client) -> list[tuple[float, int]]:
        asked: list[tuple[float, int]] = []

        def run(concurrency: int, rate: float, *, workers: int, transport: str, window_s: float) -> Trial:
            asked.append((rate, workers))
            shape = {"concurrency": concurrency, "workers": workers, "transport": transport, "window_s": window_s}
            return made(tokens_per_s_asked=rate, itl_ms=1e3 * concurrency / rate, **shape | client(rate, workers))

        monkeypatch.setattr(selftest_module, "run_trial", run)
        monkeypatch.setattr(selftest_module, "cores", lambda: 4)
        return asked

    yield place


def costs(us_per_token: float) -> Client:
    """Processes that share the tokens evenly; nothing else goes wrong."""
    return lambda rate, workers: {"cpu_share": us_per_token * 1e-6 * rate / workers}


def test_the_capacity_is_found_between_two_rates_that_were_tried(stub: Callable[[Client], Any]) -> None:
    """20 us a token: 0.8 of a core is full at 40,000 a second."""
    asked = stub(costs(20.0))
    result = selftest()
    assert result.enough
    assert result.capacity_tokens_per_s is not None
    assert result.capacity_below_tokens_per_s is None or result.capacity_below_tokens_per_s > 40_000
    assert 30_000 < result.capacity_tokens_per_s <= 40_000
    assert len(asked) <= 1 + SEARCH_TRIALS
    assert asked[0] == (12_800.0, 1)
    assert {workers for _, workers in asked} == {1}


def test_where_one_process_is_not_enough_the_fewest_that_are_is_said(stub: Callable[[Client], Any]) -> None:
    """160 us a token: 12,800 of them are 2.05 cores; three processes have 0.68 each, two would have 1.02."""
    asked = stub(costs(160.0))
    result = selftest()
    assert not result.enough
    assert result.workers_needed == 3
    assert [workers for _, workers in asked[:3]] == [1, 2, 3]
    assert result.sentence == (
        "one process is not enough for B = 128 at 12,800 tokens/s: 205% of a core (limit 80%). Use --workers 3"
    )
    assert result.capacity_tokens_per_s is not None
    assert result.capacity_tokens_per_s <= 5_000 < (result.capacity_below_tokens_per_s or 0)


def test_no_more_processes_than_cores_are_tried(stub: Callable[[Client], Any]) -> None:
    asked = stub(costs(1000.0))
    result = selftest()
    assert max(workers for _, workers in asked) == 4
    assert result.workers_needed is None
    assert "No number of processes was, on 4 cores" in result.sentence


def test_a_stall_of_the_machine_is_not_taken_for_the_client(stub: Callable[[Client], Any]) -> None:
    stalls = iter([30.0])
    asked = stub(lambda rate, workers: {"itl_error_ms_p99": next(stalls, 0.5), "cpu_share": 0.1})
    assert selftest(budget_s=60).enough
    assert asked[:2] == [(12_800.0, 1), (12_800.0, 1)]


def test_a_full_core_is_not_tried_twice(stub: Callable[[Client], Any]) -> None:
    asked = stub(costs(160.0))
    selftest()
    assert asked.count((12_800.0, 1)) == 1


def test_without_time_only_the_traffic_itself_is_tried(stub: Callable[[Client], Any]) -> None:
    asked = stub(costs(10.0))
    result = selftest(budget_s=-1)
    assert asked == [(12_800.0, 1)]
    assert (result.capacity_tokens_per_s, result.capacity_below_tokens_per_s) == (12_800.0, None)


def test_a_server_that_does_not_keep_up_gives_no_verdict(stub: Callable[[Client], Any]) -> None:
    stub(lambda rate, workers: {"offered_share": 0.9, "itl_error_ms_p99": 50.0})
    result = selftest()
    assert not result.enough
    assert (result.workers_needed, result.capacity_tokens_per_s) == (None, None)
    assert result.sentence.startswith("no verdict on B = 128 at 12,800 tokens/s")


def test_a_server_at_its_end_leaves_the_capacity_open_above(stub: Callable[[Client], Any]) -> None:
    stub(lambda rate, workers: {"offered_share": 1.0 if rate < 20_000 else 0.5, "cpu_share": 0.1})
    result = selftest()
    assert (result.capacity_tokens_per_s, result.capacity_below_tokens_per_s) == (12_800.0, None)


def test_a_sweep_takes_the_first_number_that_stays_within_the_limits(stub: Callable[[Client], Any]) -> None:
    stub(costs(20.0))
    assert fewest_workers(512, 51_200.0, "raw")[0] == 2
    stub(costs(10.0))
    assert fewest_workers(512, 51_200.0, "raw")[0] == 1


def test_a_sweep_takes_the_fewest_faults_where_no_number_does(stub: Callable[[Client], Any]) -> None:
    stub(lambda rate, workers: {"ttft_error_ms_p99": 9.0, "cpu_share": 0.9 if workers < 3 else 0.5})
    workers, trials = fewest_workers(512, 51_200.0, "raw")
    assert workers == 3
    assert trials[0].workers == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"concurrency": 0}, "--concurrency 0: give a finite number above zero"),
        ({"workers": -1}, "--workers -1: give a finite number above zero"),
        ({"tokens_per_s": float("inf")}, "--tokens-per-s inf: give a finite number above zero"),
        ({"tokens_per_s": 1e4, "itl_ms": 5.0}, "give --tokens-per-s or --itl-ms, not both"),
        ({"transport": "curl"}, "--transport curl: unknown; write raw or openai"),
        ({"itl_ms": 5000.0}, "is a token every 5,000 ms"),
    ],
)
def test_wrong_use_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence.replace("(", r"\(")):
        loadgen.selftest(**options)


def result_of(**changed: Any) -> Selftest:
    return Selftest(
        **{
            "trial": made(), "capacity_tokens_per_s": 38_000.0, "capacity_below_tokens_per_s": 43_000.0,
            "trials": (made(),), "workers_needed": 1, "cores": 2, "load_average": 0.5,
        } | changed
    )  # fmt: skip


def test_the_lines_say_what_was_measured_beside_its_limits() -> None:
    lines = selftest_lines(result_of())
    text = "\n".join(lines)
    assert "no model, no GPU, no measurement of a server" in lines[0]
    for figure in (
        "mean +0.10 ms, p99 1.00 ms",
        "99.90% by the server",
        "10.0 µs per token, 13% of a core",
        "by the kernel; 0.4% of tokens joined",
    ):
        assert figure in text
    assert lines[-1] == (
        "One process is enough for B = 128 at 12,800 tokens/s: it uses 13% of a core, and 38,000 tokens/s also "
        "stayed within the limits."
    )
    assert max(map(len, lines[:-1])) <= 110


def test_json_has_every_figure_and_the_verdict() -> None:
    content = json.loads(selftest_json(result_of()))
    assert content["enough"] is True
    assert content["sentence"].startswith("one process is enough")
    assert content["trial"] == GOOD
    assert content["capacity_tokens_per_s"] == 38_000.0


def test_frames_are_whole_events_whose_stamps_are_where_they_are_looked_for() -> None:
    frames = Frames()
    first, last = frames.middle(0).at(123), frames.last(1, 456, 7)
    assert frames.middle(0).at(9) == first.replace(b"0000123", b"0000009")
    raw = HttpRaw(Request(item_id="a", prompt_sha="", phase="measured", body=b""), 0)
    for body in [unchunked(first), *unchunked_all(last)]:
        raw.keep(1, body)
    _, [*datas, done] = raw.events()
    events = [json.loads(data) for data in datas]
    assert done == b"[DONE]"
    assert [event["choices"][0]["text"] for event in events[:2]] == [f" {123:019d}", f" {456:019d}"]
    assert events[1]["choices"][0]["stop_reason"] == "7"
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 2]


def unchunked(data: bytes) -> bytes:
    (body,) = unchunked_all(data)
    return body


def unchunked_all(data: bytes) -> list[bytes]:
    bodies = []
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        bodies.append(rest[:length])
        assert rest[length : length + 2] == b"\r\n"
        data = rest[length + 2 :]
    return [body for body in bodies if body]


def test_cores_are_those_that_this_process_may_use() -> None:
    assert cores() >= 1
