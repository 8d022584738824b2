"""Validity: which of a cell's figures may be believed, quantity by quantity.

Every limit is here; the client's own limits are in `analysis.client`, those of energy in `power.energy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import msgspec

from loadgen.analysis.celldata import Traffic
from loadgen.options import MAX_ERROR_RATE
from loadgen.record.cell import level

Quantity = Literal["load", "latency", "energy", "answers"]

QUANTITIES: tuple[Quantity, ...] = ("load", "latency", "energy", "answers")
"""In the order of reports."""
COLUMNS: dict[Quantity, str] = {q: "valid" if q == "load" else f"{q}_valid" for q in QUANTITIES}
"""Where cells.csv has the verdict on each; summary.csv counts the valid cells under the same names."""
REASONS: dict[Quantity, str] = {q: "reasons" if q == "load" else f"{q}_reasons" for q in QUANTITIES}
"""Where it has the reasons."""
_MADE_OF: dict[str, tuple[Quantity, ...]] = {
    "energy_per_good_query_j": ("latency", "energy"),
    "energy_per_correct_j": ("energy", "answers"),
    "si": ("energy", "answers"),
}
_BY_BEGINNING: tuple[tuple[tuple[str, ...], Quantity], ...] = (
    (("energy_hli_",), "load"),  # board power times time: no sensor takes part
    (("energy_", "power_w", "tokens_per_j", "carbon_"), "energy"),
    (("ttft_", "itl_", "icl_", "tpot_", "e2e_", "good"), "latency"),
    (("accuracy", "truncated_", "unparsed_", "t_si"), "answers"),
)


def quantities_of(figure: str) -> tuple[Quantity, ...]:
    """What has to be valid for a figure to be believed; `figure` as cells.csv, summary.csv or a crossover names it.

    Whatever is none of the others needs a valid load: throughput, the batch, lengths, memory. Latency and energy are
    not valid without it.
    """
    if figure in _MADE_OF:
        return _MADE_OF[figure]
    return (next((quantity for begins, quantity in _BY_BEGINNING if figure.startswith(begins)), "load"),)


RUNNING_SHARE = 0.97
"""Least measured running batch (and in-flight requests), as a share of B."""
MOST_SHARE = 1.05
"""Most measured running batch, as a share of B: more than what a window's ends cut off is somebody else's."""
WAITING_SHARE = 0.03
"""Most requests waiting in the server's queue on average, as a share of B."""
UNCOUNTED_RATE = 0.005
"""Most answers without usage, as a share of the window's: their tokens are missing in its rate."""
LENGTH_RATE = 0.005
"""Most answers whose length is not the one that `--fixed-length` asked for; a token more is taken (a stop token)."""
SILENT_S = 3.0
SILENT_SHARE = 0.25
"""Longest stretch of the window without an answer of /metrics; the share counts where it is more than the seconds."""
TOKEN_MISMATCH = 0.01
"""Most difference between the server's token count and the recorded requests': beyond it, somebody else asks too."""
LATE_SHARE = 0.05
"""Most arrivals of an open loop that were sent late (one may be)."""
LATE_TAIL = 0.01
"""From here on p99 holds the client's lateness, and the report warns."""
SENT_SHARE = 0.97
"""Least arrivals sent in time for the window, of those that were not dropped (one may be missing)."""
DROPPED_SHARE = 0.01
"""Most arrivals that found no free slot: with more, p99 is unknown."""
BACKLOG_SHARE = 0.05
"""Most that arrivals may exceed answers by, over a window, before the server is behind for good ..."""
BACKLOG_NOISE = 3.0
"""... and that in standard deviations of what they differ by while it keeps up: that of two counts in flight."""

CLIENT_BOUND = "client-bound: "
"""How the reasons begin that hold the client to be what was measured."""


class Validity(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on each quantity of a cell: the reasons against it, none where its figures may be believed.

    To add a reason, append it to the quantity that it concerns: in `load_reasons`, `latency_reasons` or
    `answers_reasons` below, of energy in `power.energy`. What follows for the other quantities is computed here.
    """

    load: tuple[str, ...] = ()
    """Against the batch and the load, and so against throughput. Latency and energy of such a cell belong to another
    load: they are not valid either."""
    latency: tuple[str, ...] = ()
    energy: tuple[str, ...] | None = None
    """None: energy was not measured."""
    answers: tuple[str, ...] | None = ()
    """None: they are not graded."""
    failing: bool = False
    """A reason says how many requests failed."""

    @property
    def valid(self) -> bool:
        """Throughput, the running batch, and all that needs no more than these."""
        return not self.load

    @property
    def latency_valid(self) -> bool:
        return self.valid and not self.latency

    @property
    def energy_valid(self) -> bool | None:
        return None if self.energy is None else self.valid and not self.energy

    @property
    def answers_valid(self) -> bool | None:
        return None if self.answers is None else not self.answers

    def supports(self, figure: str) -> bool:
        """Whether a figure of the cell may be believed; `figure` as in `quantities_of`."""
        return all(getattr(self, COLUMNS[quantity]) for quantity in quantities_of(figure))

    @property
    def told(self) -> tuple[tuple[Quantity, str], ...]:
        """(quantity, reasons) of each that has some, every reason once: under `load` if it is one against the load."""
        named: set[str] = set()
        found: list[tuple[Quantity, str]] = []
        for quantity in QUANTITIES:
            new = [reason for reason in dict.fromkeys(getattr(self, quantity) or ()) if reason not in named]
            named.update(new)
            if new:
                found.append((quantity, "; ".join(new)))
        return tuple(found)

    @property
    def sentence(self) -> str:
        """All reasons, each once; those that leave the load valid with the quantity that they make invalid."""
        return sentence_of(self.told)

    def columns(self) -> dict[str, bool | str | None]:
        """Columns of cells.csv: each quantity with all reasons why it is invalid, those against the load among them."""
        row: dict[str, bool | str | None] = {}
        for quantity in QUANTITIES:
            against = getattr(self, quantity)
            shared = self.load if quantity in ("latency", "energy") else ()
            row[COLUMNS[quantity]] = getattr(self, COLUMNS[quantity])
            row[REASONS[quantity]] = None if against is None else "; ".join(dict.fromkeys((*shared, *against)))
        return row


def sentence_of(told: Iterable[tuple[str, str]]) -> str:
    """One sentence of (quantity, reasons) as `Validity.told` gives them."""
    return "; ".join(why if quantity == "load" else f"{quantity} invalid: {why}" for quantity, why in told)


class Invalid(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of analysis.json's `invalid`: a quantity of a cell whose figures may not be believed."""

    target: str
    concurrency: int
    arrival: str | None = None
    """That of an open loop."""
    shape: str | None = None
    """Of a run with several."""
    repeat: int
    quantity: Quantity
    """`load`: latency and energy are invalid for the same reason, and are not listed again."""
    reasons: str
    """Those that no entry before it has of the same cell."""


def invalid_sentences(found: Iterable[Invalid], arrival: str | None) -> list[str]:
    """One per cell, or per all cells that are invalid for the very same reasons. `arrival`: that of an open loop, for
    entries that have none of their own."""
    cells: dict[str, list[tuple[str, str]]] = {}
    for one in found:
        load = level(one.concurrency, one.arrival or arrival, one.shape)
        cells.setdefault(f"{one.target}, {load}, repeat {one.repeat}", []).append((one.quantity, one.reasons))
    alike: dict[str, list[str]] = {}
    for name, told in cells.items():
        alike.setdefault(sentence_of(told), []).append(name)
    more = {why: f" and {len(same) - 1} more cell{'s' * (len(same) > 2)}" for why, same in alike.items()}
    return [f"{same[0]}{more[why] if len(same) > 1 else ''}: {why}" for why, same in alike.items()]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a verdict on a cell rests on; None is 'not measured'."""

    concurrency: int
    aborted: str | None
    has_window: bool
    requests: int
    errors: int
    """Requests that were in flight within the window and failed."""
    given_up: int = 0
    """Requests of the whole cell whose answers took too long."""
    uncounted: int
    """Those of `requests` without token usage."""
    first_error: str | None
    tokens_per_s: float | None
    inflight_mean: float | None
    running_mean: float | None
    running_peak: float | None
    """Most sequences that the server's gauge showed at once."""
    running_slack: float = 0.0
    """Share by which the running batch may be too low (`RunningBatch.slack`)."""
    running_noise: float = 0.0
    """Requests by which it may be off by chance."""
    held_back: bool = False
    """Requests in flight neither ran nor waited in the server's queue (`batch.held_back`)."""
    silent_s: float | None
    """Longest time within the window in which /metrics was not read."""
    restarted: bool
    """The server's counters went back within the cell."""
    waiting_mean: float | None
    preemptions: float | None
    server_tokens: float | None
    recorded_tokens: int | None
    """None where some request failed and its tokens are unknown."""
    window_s: float | None
    traffic: Traffic | None = None
    """None in a closed loop."""
    client_bound: tuple[str, ...] = ()
    """What says that the client, not the server, was measured."""
    streaming: tuple[str, ...] = ()
    """Against the times of single tokens (`client.streaming_reasons`)."""
    max_error_rate: float = MAX_ERROR_RATE
    fixed_length: int | None = None
    """Tokens that every answer was asked to have."""
    other_lengths: tuple[int, ...] = ()
    """Tokens of the answers that have not so many."""
    lost: tuple[str, ...] = ()
    """What ended everything within the cell: a lost GPU, a dead server. No figure of the cell is valid."""
    slowed: tuple[str, ...] = ()
    """Heat or the supply lowered the GPU's clocks: its speed, latency and energy are those of the cooling."""
    asked: int | None = None
    """Measured requests that were sent, in the window or in its drain; None: their answers are not graded."""
    unanswered: int = 0
    """Those of `asked` that failed."""
    energy: tuple[str, ...] | None = None
    """Against the energy (`power.energy`); None: it was not measured."""

    @property
    def queues(self) -> bool:
        return self.waiting_mean is not None and self.waiting_mean > WAITING_SHARE * self.concurrency

    @property
    def failures(self) -> list[str]:
        """A sentence if too many requests of the window failed."""
        asked = self.requests + self.errors
        if self.errors <= self.max_error_rate * asked:
            return []
        return [f"{self.errors} of {asked} requests failed, the first: {self.first_error}"]


def validity_of(e: Evidence) -> Validity:
    """The verdict on every quantity."""
    load, unanswered = load_reasons(e), _unanswered(e)
    answers = None if e.asked is None else answers_reasons(e)
    return Validity(
        load=tuple(load),
        latency=() if e.client_bound or not e.has_window else e.streaming,
        energy=None if e.energy is None else (*e.lost, *e.energy),
        answers=None if answers is None else tuple(answers),
        failing=not {*e.failures, *unanswered}.isdisjoint((*load, *(answers or ()))),
    )


def load_reasons(e: Evidence) -> list[str]:
    """Why batch and load are invalid, a sentence each with its figures; empty: valid."""
    return [*e.lost] or [*e.slowed, *_load_reasons(e)]


def _load_reasons(e: Evidence) -> list[str]:
    if not e.has_window:
        return [e.aborted or "interrupted before the window opened"]
    reasons = ["the server's counters went back: it was restarted within the cell"] if e.restarted else []
    if e.aborted:
        return [e.aborted, *reasons]
    reasons += e.failures
    if e.failures and not e.requests:
        return reasons
    reasons += _other_lengths(e)
    if e.requests == 0 and e.traffic is None:
        reasons.append("no request ended within the window; make --duration longer")
    elif e.requests == 0:
        reasons.append("no request in the window was answered")
    elif e.uncounted == e.requests:
        reasons.append("the server reports no token usage in its streams")
    elif e.tokens_per_s is None:
        reasons.append("not one token arrived within the window")
    elif e.uncounted > UNCOUNTED_RATE * e.requests:
        reasons.append(f"{e.uncounted} of {e.requests} answers came without token usage")
    reasons += _batch_was_not_held(e) if e.traffic is None else _traffic_was_not_met(e, e.traffic)
    if not e.failures:
        reasons += [f"{CLIENT_BOUND}{sentence}" for sentence in e.client_bound]
    if e.silent_s is not None and e.silent_s > max(SILENT_S, SILENT_SHARE * (e.window_s or 0.0)):
        reasons.append(f"the server's /metrics did not answer for {e.silent_s:.1f} s of the window")
    made, got = e.server_tokens, e.recorded_tokens
    if made is not None and got is not None and abs(made - got) > TOKEN_MISMATCH * max(made, 1.0):
        reasons.append(f"the server made {made:.0f} tokens, these requests got {got}: is somebody else using it?")
    return reasons


def _batch_was_not_held(e: Evidence) -> list[str]:
    """Where too many requests failed, their slots waited: a low batch needs no further reason then."""
    reasons, b, failing = [], e.concurrency, bool(e.failures)
    if e.inflight_mean is not None and e.inflight_mean < RUNNING_SHARE * b and not failing:
        whose = "" if e.errors else CLIENT_BOUND
        reasons.append(f"{whose}only {e.inflight_mean:.2f} of {b} requests were in flight")
    low = e.running_mean is not None and e.running_mean < RUNNING_SHARE * b * (1 - e.running_slack)
    if low and (not failing or e.queues):
        reasons.append(f"running batch {e.running_mean:.2f} did not reach B = {b}: {_cause(e)}")
    if e.running_mean is not None and e.running_mean - e.running_noise > MOST_SHARE * b:
        whose = "something else is using this server too"
        if e.given_up:
            whose = f"the server still works on requests that were given up ({e.given_up}), or {whose}"
        reasons.append(f"running batch {e.running_mean:.2f} is above B = {b}: {whose}")
    if e.queues:
        reasons.append(f"{e.waiting_mean:.2f} requests waited in the server's queue on average")
    if e.preemptions:
        reasons.append(f"{e.preemptions:.0f} preemptions: the KV cache is too small for B = {b}")
    return reasons


def _traffic_was_not_met(e: Evidence, t: Traffic) -> list[str]:
    """Queues, preemptions and any batch belong to an open loop; a client or a server that falls behind does not."""
    arrivals, late, dropped, window_s = t.arrivals or 0, t.late or 0, t.dropped or 0, e.window_s or 0.0
    in_time, answered = (t.rate_per_s or 0.0) * window_s, (t.completed_per_s or 0.0) * window_s
    reasons, sent = [], arrivals - dropped
    if late > max(1, LATE_SHARE * sent):
        reasons.append(f"{CLIENT_BOUND}{_lateness(t)}, and {LATE_SHARE:.0%} may be")
    if sent - in_time > max(1.0, (1 - SENT_SHARE) * sent) * (1 + 1e-9):
        reasons.append(
            f"{CLIENT_BOUND}{t.rate_per_s:.4g} of {sent / window_s:.4g} requests a second were sent in the window"
        )
    if dropped > DROPPED_SHARE * arrivals:
        slow = "the server cannot keep up" if e.queues else "raise --concurrency, or the server cannot keep up"
        reasons.append(
            f"{dropped} of {arrivals} arrivals were dropped, with {e.concurrency} requests in flight: {slow} with "
            f"{t.rate_asked_per_s:.4g} a second"
        )
    behind = sent - answered
    if behind > max(BACKLOG_SHARE * arrivals, BACKLOG_NOISE * math.sqrt(2 * (1 + (e.inflight_mean or 0.0)))):
        reasons.append(
            f"the server cannot keep up with {t.rate_asked_per_s:.4g} requests a second: it answered "
            f"{t.completed_per_s:.4g}, and {behind:.0f} more were in flight at the window's end than at its beginning"
        )
    return reasons


def late_tail(t: Traffic) -> str | None:
    """A warning of a client that was late often enough to be in p99."""
    if t.arrivals is None or not t.late or t.late <= max(1, LATE_TAIL * (t.arrivals - (t.dropped or 0))):
        return None
    return f"{_lateness(t)}: p99 latencies include the client's lateness"


def _lateness(t: Traffic) -> str:
    sent = (t.arrivals or 0) - (t.dropped or 0)
    return f"{t.late} of {sent} requests were sent more than 5 ms after they were due (p99 {t.late_ms_p99:.1f} ms)"


def answers_reasons(e: Evidence) -> list[str]:
    """Why the answers may not be graded. Batch, latency and energy do not enter into it."""
    if e.lost:
        return [*e.lost]
    if not e.asked:
        return ["no measured request was sent"] if e.has_window else _load_reasons(e)
    return _unanswered(e)


def _unanswered(e: Evidence) -> list[str]:
    if e.asked is None or e.unanswered <= e.max_error_rate * e.asked:
        return []
    return e.failures or [f"{e.unanswered} of {e.asked} measured requests failed"]


def _other_lengths(e: Evidence) -> list[str]:
    """That answers are not as long as asked: their tokens and times belong to another load."""
    lengths = e.other_lengths
    if len(lengths) <= LENGTH_RATE * e.requests:
        return []
    have = f"{min(lengths)} to {max(lengths)}" if len({*lengths}) > 1 else f"{lengths[0]}"
    follows = "the server does not follow ignore_eos and min_tokens"
    if e.fixed_length is None:
        return [f"{len(lengths)} of {e.requests} answers have {have} tokens, other lengths were requested: {follows}"]
    return [
        f"{len(lengths)} of {e.requests} answers have {have} tokens, {e.fixed_length} were requested (--fixed-length): "
        f"{follows}; use --max-tokens"
    ]


def _cause(e: Evidence) -> str:
    if e.queues and (e.running_peak is None or e.running_peak < RUNNING_SHARE * e.concurrency):
        return "the server caps it (--max-num-seqs, or KV cache)"
    if e.held_back:
        waiting = "" if e.waiting_mean is None else f" and waiting {e.waiting_mean:.1f}"
        return (
            "a layer between client and engine holds requests back "
            f"(running {e.running_mean:.1f}{waiting} of {e.inflight_mean:.1f} in flight); "
            "check the concurrency limit of the proxy or gateway"
        )
    return "the server was slow to take up new requests (a stall, or answers so short that every refill shows)"
