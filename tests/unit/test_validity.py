"""Every reason against a cell, alone, with its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_run import answer, cell_data, ended, scrape

from loadgen.analysis.cells import summarize_cell
from loadgen.analysis.validity import Evidence, Validity, load_reasons, validity_of

GOOD: dict[str, Any] = {
    "concurrency": 16,
    "aborted": None,
    "has_window": True,
    "requests": 1000,
    "errors": 0,
    "uncounted": 0,
    "first_error": None,
    "tokens_per_s": 500.0,
    "inflight_mean": 16.0,
    "running_mean": 16.0,
    "running_peak": 16.0,
    "silent_s": 0.4,
    "restarted": False,
    "waiting_mean": 0.0,
    "preemptions": 0.0,
    "server_tokens": 10_000.0,
    "recorded_tokens": 10_000,
    "window_s": 60.0,
}


def reasons(**changed: object) -> list[str]:
    return load_reasons(Evidence(**GOOD | changed))


def test_nothing_stands_against_a_good_cell() -> None:
    assert reasons() == []


def test_what_the_server_does_not_tell_is_not_held_against_it() -> None:
    assert reasons(waiting_mean=None, preemptions=None, server_tokens=None, recorded_tokens=None) == []
    assert reasons(running_mean=None, running_peak=None) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"aborted": "the server died"}, "the server died"),
        (
            {"errors": 6, "requests": 994, "first_error": "http 503: full"},
            "6 of 1000 requests failed, the first: http 503: full",
        ),
        (
            {"errors": 3, "requests": 997, "first_error": "http 503: full", "max_error_rate": 0.002},
            "3 of 1000 requests failed, the first: http 503: full",
        ),
        ({"restarted": True}, "the server's counters went back: it was restarted within the cell"),
        ({"silent_s": 15.1}, "the server's /metrics did not answer for 15.1 s of the window"),
        ({"silent_s": 3.1, "window_s": 4.0}, "the server's /metrics did not answer for 3.1 s of the window"),
        ({"requests": 0}, "no request ended within the window; make --duration longer"),
        ({"tokens_per_s": None, "uncounted": 1000}, "the server reports no token usage in its streams"),
        ({"tokens_per_s": None}, "not one token arrived within the window"),
        ({"uncounted": 6}, "6 of 1000 answers came without token usage"),
        ({"inflight_mean": 15.51}, "client-bound: only 15.51 of 16 requests were in flight"),
        ({"client_bound": ("its core is full",)}, "client-bound: its core is full"),
        (
            {"running_mean": 15.51},
            "running batch 15.51 did not reach B = 16: the server was slow to take up new requests "
            "(a stall, or answers so short that every refill shows)",
        ),
        ({"running_mean": 16.81}, "running batch 16.81 is above B = 16: something else is using this server too"),
        (
            {"running_mean": 8.0, "running_peak": 8.0, "held_back": True},
            "running batch 8.00 did not reach B = 16: a layer between client and engine holds requests back "
            "(running 8.0 and waiting 0.0 of 16.0 in flight); check the concurrency limit of the proxy or gateway",
        ),
        ({"waiting_mean": 0.49}, "0.49 requests waited in the server's queue on average"),
        ({"preemptions": 2.0}, "2 preemptions: the KV cache is too small for B = 16"),
        (
            {"server_tokens": 10_102.0},
            "the server made 10102 tokens, these requests got 10000: is somebody else using it?",
        ),
        (
            {"server_tokens": 9_900.0},
            "the server made 9900 tokens, these requests got 10000: is somebody else using it?",
        ),
    ],
)
def test_each_reason_alone(changed: dict[str, object], reason: str) -> None:
    assert reasons(**changed) == [reason]


@pytest.mark.parametrize(
    "changed",
    [
        {"errors": 5, "requests": 995, "first_error": "x"},
        {"errors": 50, "requests": 950, "first_error": "x", "max_error_rate": 0.05},
        {"uncounted": 5},
        {"silent_s": 15.0},
        {"silent_s": 3.0, "window_s": 4.0},
        {"inflight_mean": 15.53},
        {"running_mean": 15.53},
        {"running_mean": 16.79},
        {"running_mean": 15.53 * 11 / 12, "running_slack": 1 / 12},
        {"concurrency": 1, "inflight_mean": 1.0, "running_mean": 1.3, "running_noise": 0.3},
        {"waiting_mean": 0.48},
        {"server_tokens": 10_101.0},
    ],
)
def test_just_within_each_limit_is_valid(changed: dict[str, object]) -> None:
    assert reasons(**changed) == []


FAILED: dict[str, object] = {
    "errors": 24,
    "first_error": "http: 500: no",
    "tokens_per_s": None,
    "inflight_mean": 3.0,
    "running_mean": 1.0,
    "client_bound": ("a slot was empty",),
    "recorded_tokens": None,
}


def test_a_request_that_was_given_up_may_still_run() -> None:
    assert reasons(running_mean=17.0, given_up=1) == [
        "running batch 17.00 is above B = 16: the server still works on requests that were given up (1), or something "
        "else is using this server too"
    ]


def test_where_everything_failed_the_failure_is_the_one_reason() -> None:
    assert reasons(**FAILED, requests=0) == ["24 of 24 requests failed, the first: http: 500: no"]
    ended = "24 failures in a row, the last: http: 500: no"
    assert reasons(**FAILED, requests=0, aborted=ended) == [ended]


def test_failures_that_keep_slots_waiting_are_the_one_reason() -> None:
    assert reasons(**FAILED | {"tokens_per_s": 40.0}, requests=76) == [
        "24 of 100 requests failed, the first: http: 500: no"
    ]


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ((12,) * 1000, "1000 of 1000 answers have 12 tokens, 50 were requested (--fixed-length)"),
        ((12, 49, 30) * 2, "6 of 1000 answers have 12 to 49 tokens, 50 were requested (--fixed-length)"),
        ((12,) * 5, None),
        ((), None),
    ],
)
def test_answers_of_another_length_than_asked_belong_to_another_load(
    lengths: tuple[int, ...], said: str | None
) -> None:
    found = reasons(fixed_length=50, other_lengths=lengths)
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


@pytest.mark.parametrize(("tokens", "valid"), [(50, True), (51, True), (49, False), (12, False)])
def test_a_token_more_is_taken_and_one_less_is_not(tmp_path: Path, tokens: int, valid: bool) -> None:
    answers = [answer(k * 90, [(k * 90 + 80, tokens)]) for k in range(10)]
    cell = summarize_cell(cell_data(tmp_path, answers, end=ended((0, 1000))), [None] * 10, fixed_length=50)
    assert ("--fixed-length" in cell.validity.sentence) is not valid


def test_slots_that_wait_after_failures_are_not_the_clients_fault() -> None:
    assert reasons(inflight_mean=15.0, errors=1, first_error="http: 503") == [
        "only 15.00 of 16 requests were in flight"
    ]


def test_a_batch_that_queues_is_put_down_to_the_servers_cap() -> None:
    assert reasons(running_mean=8.0, running_peak=8.0, waiting_mean=8.0) == [
        "running batch 8.00 did not reach B = 16: the server caps it (--max-num-seqs, or KV cache)",
        "8.00 requests waited in the server's queue on average",
    ]


def test_a_queue_in_a_server_that_did_run_b_at_once_is_no_cap() -> None:
    slow, _ = reasons(running_mean=12.9, running_peak=16.0, waiting_mean=0.53)
    assert "slow to take up new requests" in slow


def test_without_a_window_only_the_cause_is_said() -> None:
    assert reasons(has_window=False, running_mean=None, tokens_per_s=None) == ["interrupted before the window opened"]
    assert reasons(has_window=False, aborted="20 failures in a row", requests=0) == ["20 failures in a row"]


def test_a_server_with_max_num_seqs_8_asked_for_16_is_found_out_from_its_metrics(tmp_path: Path) -> None:
    asked = [answer(900, [(1500, 10)], end=2100, slot=slot) for slot in range(16)]
    asked += [answer(500, [(900, 1)], end=1500)]
    counters = [(1000, 0.0, 0.0), (2000, 800.0, 100.0)]
    samples = [
        scrape(t, running=8.0, waiting=8.0, preemptions=0.0, generation_tokens=tokens, iterations=steps)
        for t, tokens, steps in counters
    ]
    data = cell_data(tmp_path, asked, samples, b=16, end=ended(generation_tokens=161.0))
    figures = summarize_cell(data, [None] * len(asked))
    assert not figures.validity.valid
    assert figures.validity.sentence.startswith(
        "running batch 8.00 did not reach B = 16: the server caps it (--max-num-seqs, or KV cache)"
    )


class TestQuantities:
    def of(self, **changed: object) -> Validity:
        return validity_of(Evidence(**GOOD | {"asked": 1000, "energy": ()} | changed))

    @pytest.mark.parametrize(
        ("changed", "valid"),
        [
            ({}, (True, True, True, True)),
            ({"preemptions": 2.0}, (False, False, False, True)),
            ({"slowed": ("it was hot",)}, (False, False, False, True)),
            ({"lost": ("the GPU was lost",)}, (False, False, False, False)),
            ({"energy": ("the counter was reset",)}, (True, True, False, True)),
            ({"unanswered": 6}, (True, True, True, False)),
            ({"asked": None, "energy": None}, (True, True, None, None)),
            ({"asked": None, "energy": None, "lost": ("the server died",)}, (False, False, None, None)),
        ],
    )
    def test_what_stands_against_one_counts_for_those_that_rest_on_it(
        self, changed: dict[str, object], valid: tuple[bool | None, ...]
    ) -> None:
        found = self.of(**changed)
        assert (found.valid, found.latency_valid, found.energy_valid, found.answers_valid) == valid
        assert (found.told == ()) == (False not in valid)

    def test_a_reason_is_told_once_under_the_quantity_that_it_concerns(self) -> None:
        found = self.of(preemptions=2.0, energy=("the counter was reset",))
        assert found.told == (
            ("load", "2 preemptions: the KV cache is too small for B = 16"),
            ("energy", "the counter was reset"),
        )
        assert found.sentence == (
            "2 preemptions: the KV cache is too small for B = 16; energy invalid: the counter was reset"
        )
        lost = self.of(lost=("the GPU was lost",))
        assert lost.sentence == "the GPU was lost"

    def test_each_column_has_every_reason_for_its_quantity(self) -> None:
        row = self.of(preemptions=2.0, energy=("the counter was reset",)).columns()
        short = "2 preemptions: the KV cache is too small for B = 16"
        assert (row["reasons"], row["latency_reasons"]) == (short, short)
        assert row["energy_reasons"] == f"{short}; the counter was reset"
        assert row["answers_reasons"] == ""

    def test_failures_of_the_window_are_the_reason_of_the_answers_too(self) -> None:
        found = self.of(errors=6, requests=994, first_error="http 503: full", unanswered=7, asked=1004)
        assert found.answers == ("6 of 1000 requests failed, the first: http 503: full",)
        assert self.of(unanswered=7, asked=1004).answers == ("7 of 1004 measured requests failed",)

    def test_a_figure_needs_every_quantity_that_it_is_made_of(self) -> None:
        reset = self.of(energy=("the counter was reset",))
        assert [name for name in FIGURES if reset.supports(name)] == [
            "tokens_per_s",
            "ttft_ms_p99",
            "goodput_per_s",
            "energy_hli_per_query_j",
            "memory_peak_bytes",
            "accuracy",
        ]
        failed = self.of(unanswered=6)
        assert [name for name in FIGURES if not failed.supports(name)] == ["accuracy", "energy_per_correct_j", "si"]


FIGURES = (
    "tokens_per_s", "ttft_ms_p99", "goodput_per_s", "energy_per_good_query_j", "energy_per_token_j", "power_w_mean",
    "tokens_per_j", "carbon_g_per_query", "energy_hli_per_query_j", "memory_peak_bytes", "accuracy",
    "energy_per_correct_j", "si",
)  # fmt: skip
