"""CellData: one cell's journal as arrays; its latencies, traffic and goodput.

In a closed loop a latency is counted in the window in which it *happened*: where its last byte arrived. In its steady
state that sampling is unbiased, whatever the window's length; requiring a whole request to fit into the window would
favour the short ones. In an open loop those are counted that were *due* in the window, with all that they waited from
then on: the window's traffic is one sample of arrivals, and none is left out because the server, or the client, was
slow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.analysis.exchanges import Exchanges, Gatherer, Line, equal_to
from loadgen.analysis.tokentimes import Counts, TokenTimes, cut_lines, events_of
from loadgen.load import latency
from loadgen.load.openloop import LATE_NS
from loadgen.record.cell import Cell, Slo
from loadgen.record.journal import CellEnd, CellStart, file_bytes, known_records, read_lines
from loadgen.serving.exposition import ServerSample

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_NO_INTS: Ints = np.empty(0, dtype=np.int64)
_AT_ONCE = 1 << 15
_SAMPLE, _MARGIN = 1 << 14, 400
"""Values of a long array that are sampled, and places in the sample on either side of what is looked for: six standard
deviations of the median's rank."""

_decode_lines = msgspec.json.Decoder(CellStart | Line | ServerSample | CellEnd).decode_lines


class CellData(msgspec.Struct, frozen=True, kw_only=True):
    """What one cell left behind. Arrays have one entry per exchange; times in ns, -1 where there is none."""

    cell: Cell
    simulated: bool
    session: int
    """The run's session; a resumed run has several, and times are compared within one only."""
    end: CellEnd | None
    """None: the cell was interrupted before its last record."""
    damaged: int
    """Lines of its file that were no longer what had been written, and are left out."""
    exchanges: Exchanges
    samples: list[ServerSample]
    measured: Mask
    ok: Mask
    dropped: Mask
    """Never sent: an open loop's arrivals that found no free slot."""
    token_offsets: Ints
    """Events of exchange k are `token_t_ns[token_offsets[k]:token_offsets[k + 1]]`."""
    token_t_ns: Ints
    token_counts: Counts

    @property
    def t_scheduled_ns(self) -> Ints:
        """-1 in a closed loop."""
        return self.exchanges.t_scheduled_ns

    @property
    def t_send_ns(self) -> Ints:
        return self.exchanges.t_send_ns

    @property
    def t_first_ns(self) -> Ints:
        return self.exchanges.t_first_ns

    @property
    def t_end_ns(self) -> Ints:
        return self.exchanges.t_end_ns

    @property
    def output_tokens(self) -> Ints:
        """-1 where the server gave no usage."""
        return self.exchanges.output_tokens

    @property
    def open_loop(self) -> bool:
        """Requests followed a schedule, not each other."""
        return self.cell.arrivals is not None

    @property
    def t_due_ns(self) -> Ints:
        """Where latencies begin: when a request was scheduled, in a closed loop when it was sent."""
        return self.t_scheduled_ns if self.open_loop else self.t_send_ns

    @property
    def t_last_ns(self) -> Ints:
        """Arrival of each answer's last event with tokens."""
        there = np.diff(self.token_offsets) > 0
        last_ns = np.full(len(self.exchanges), -1, dtype=np.int64)
        last_ns[there] = self.token_t_ns[self.token_offsets[1:][there] - 1]
        return last_ns

    def tokens_in(self, window: tuple[int, int], events: Ints | None = None) -> int:
        """Tokens that arrived in a window; of some events only, if they are given by their places."""
        some = [slice(*ends) for ends in slices(len(self.token_t_ns))] if events is None else [events]
        return sum(int(self.token_counts[s][latency.inside(self.token_t_ns[s], window)].sum()) for s in some)

    def joined(self) -> Ints:
        """The places of the events that came in one read with the answer's event before."""
        t_ns, first = self.token_t_ns, self.token_offsets
        found = [np.flatnonzero(t_ns[a + 1 : b + 1] == t_ns[a:b][: len(t_ns) - a - 1]) for a, b in slices(len(t_ns))]
        places = np.concatenate([_NO_INTS, *(1 + a + f for (a, _), f in zip(slices(len(t_ns)), found, strict=True))])
        return places[first[np.searchsorted(first, places)] != places] if len(places) else places

    @property
    def window(self) -> tuple[int, int] | None:
        """Open and close in ns, None if the cell never got warm."""
        end = self.end
        if end is None or end.window_open_ns is None or end.window_close_ns is None:
            return None
        return end.window_open_ns, end.window_close_ns


def read_cell(path: Path) -> CellData | None:
    """The cell of one journal file; None if the file holds not even its first line.

    Raises UsageError for a record that this version does not know.
    """
    with known_records(path):
        return _read_cell(path)


def _read_cell(path: Path) -> CellData | None:
    start: CellStart | None = None
    end: CellEnd | None = None
    gatherer = Gatherer()
    samples: list[ServerSample] = []
    journal, times, of_exchange = read_lines(path), TokenTimes(file_bytes(path)), [_NO_INTS]
    for part in cut_lines(journal, times):
        numbers, records = part.of_exchange, _decode_lines(part.rests)
        lines = [record for record in records if type(record) is Line]
        if len(lines) != len(numbers):  # not all are written as this version writes them
            times.take_back(int(numbers.sum()))
            records = _decode_lines(part.whole())
            lines = [record for record in records if type(record) is Line]
            events = events_of(list(map(_uncut, lines)))
            times.add(events)
            numbers = events.of_exchange
        gatherer.add(lines)
        of_exchange.append(numbers)
        for record in records if len(lines) < len(records) else ():
            match record:
                case ServerSample():
                    samples.append(record)
                case CellStart():
                    start = record
                case CellEnd():
                    end = record
    if start is None:
        return None
    exchanges = gatherer.exchanges()
    return CellData(
        cell=start.cell,
        simulated=start.simulated,
        session=start.session,
        end=end,
        damaged=journal.damaged,
        exchanges=exchanges,
        samples=samples,
        measured=equal_to("measured", exchanges.phase),
        ok=equal_to("ok", exchanges.status),
        dropped=equal_to("dropped", exchanges.status),
        token_offsets=np.concatenate([[0], np.cumsum(np.concatenate(of_exchange))]),
        token_t_ns=times.t_ns,
        token_counts=times.tokens,
    )


def _uncut(line: Line) -> bytes:
    """The token times, cut out of a record that is not written as this version writes them."""
    if not line.token_times:
        return b""
    text = msgspec.json.encode(line.token_times)[1:-1]
    msgspec.structs.force_setattr(line, "token_times", ())
    return text


def ttft_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Time to first token: send (open loop: due) to the arrival of the first event with a token; measured requests."""
    happened = latency.inside(data.t_due_ns if data.open_loop else data.t_first_ns, window)
    chosen = data.measured & data.ok & (data.t_first_ns >= 0) & happened
    return latency.ttft_s(data.t_due_ns, data.t_first_ns)[chosen]


def e2e_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Send (open loop: due) to the answer's last byte, measured requests that succeeded."""
    return latency.e2e_s(data.t_due_ns, data.t_end_ns)[answered_in(data, window)]


def tpot_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Time per output token after the first: (last - first token's arrival) / (tokens - 1), one value a request."""
    values = latency.tpot_s(data.t_first_ns, data.t_last_ns, data.output_tokens)
    return values[answered_in(data, window) & ~np.isnan(values)]


def icl_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Inter-chunk latency: gaps between consecutive events with tokens, of measured requests, that ended in it."""
    return _gaps(data, window)[0]


def itl_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Inter-token latency: an event with n tokens after a gap g counts as n values g/n."""
    gaps, counts = _gaps(data, window)
    return gaps if (counts == 1).all() else np.repeat(gaps / np.maximum(counts, 1), counts)


def answered_in(data: CellData, window: tuple[int, int]) -> Mask:
    """Which of the window's requests were answered."""
    return in_window(data, window) & data.ok


def in_window(data: CellData, window: tuple[int, int]) -> Mask:
    """Which measured requests belong to the window: those that ended in it, in an open loop those due in it."""
    return data.measured & latency.inside(data.t_due_ns if data.open_loop else data.t_end_ns, window)


def _gaps(data: CellData, window: tuple[int, int]) -> tuple[Floats, Counts]:
    """Seconds from the event before, and tokens, of the events of measured requests; a request's first has no gap."""
    gaps, counts, number = np.empty(len(data.token_t_ns)), np.empty_like(data.token_counts), 0
    ours, cuts = data.measured & data.ok, np.searchsorted(data.token_offsets, [a for a, _ in slices(len(gaps))])
    for begin, end in pairwise([*cuts.tolist(), len(data.exchanges)]):
        offsets = data.token_offsets[begin : end + 1]
        some, offsets = slice(offsets[0], offsets[-1]), offsets - offsets[0]
        events = np.diff(offsets)
        chosen = np.repeat(ours[begin:end], events) & latency.inside(data.token_t_ns[some], window)
        chosen[offsets[:-1][events > 0]] = False
        found = latency.gaps_s(offsets, data.token_t_ns[some])[chosen]
        gaps[number : number + len(found)] = found
        counts[number : number + len(found)] = data.token_counts[some][chosen]
        number += len(found)
    return gaps[:number], counts[:number]


def slices(length: int) -> Iterator[tuple[int, int]]:
    """Begin and end of parts of a long array, each of which the processor's own memory holds: its intermediate results
    need no memory of the system, which clears it first."""
    return ((begin, min(begin + _AT_ONCE, length)) for begin in range(0, length, _AT_ONCE))


def percentiles(values: Floats, quantiles: Sequence[int]) -> list[float]:
    """What `np.percentile` gives for quantiles (0 to 100) of values without nan, digit for digit."""
    found = []
    for quantile in quantiles:
        place = (len(values) - 1) * (quantile / 100)
        low = int(place)
        near, below = _near(values, low)
        near.partition(low - below)
        here, share = near[low - below], place - low
        following = near[low - below + 1 :].min() if share else here
        step = following - here
        found.append(float(here + step * share if share < 0.5 else following - step * (1 - share)))
    return found


def _near(values: Floats, place: int) -> tuple[Floats, int]:
    """Some of the values, and how many of the others are less: that at a place of the ascending ones and the next are
    among them. To choose them by a sample is several times as fast as to look for the place among all."""
    step = len(values) // _SAMPLE
    if step < 8:
        return values.copy(), 0
    sample, at = np.sort(values[::step]), place // step
    least = sample[at - _MARGIN] if at >= _MARGIN else -np.inf
    most = sample[at + _MARGIN] if at + _MARGIN < len(sample) else np.inf
    parts, below = [], 0
    for begin, end in slices(len(values)):
        part = values[begin:end]
        less = part < least
        below += int(np.count_nonzero(less))
        parts.append(part[~less & (part <= most)])
    near = np.concatenate(parts)
    inside = below <= place and min(place + 2, len(values)) <= below + len(near)
    return (near, below) if inside else (values.copy(), 0)


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Columns of cells.csv; all None in a closed loop, all but the first two where there is no window.

    An arrival belongs to the window if it was due in it, whenever it was sent or answered.
    """

    arrival: str | None = None
    """As `--arrival` takes it."""
    rate_asked_per_s: float | None = None
    arrivals: int | None = None
    """Due in the window."""
    rate_per_s: float | None = None
    """Those that were sent before it closed, or no more than 5 ms after they were due, a second."""
    completed_per_s: float | None = None
    """Answers that ended in the window, whenever they were due, a second."""
    late: int | None = None
    """Sent more than 5 ms after they were due."""
    late_ms_p99: float | None = None
    """From due to sent."""
    dropped: int | None = None
    """Found as many requests in flight as `--concurrency` allows, and were never sent."""


def traffic_of(data: CellData) -> Traffic:
    """What an open loop offered in the cell's window, and what became of it."""
    arrivals, window = data.cell.arrivals, data.window
    if arrivals is None:
        return Traffic()
    if window is None or window[1] <= window[0]:
        return Traffic(arrival=str(arrivals), rate_asked_per_s=arrivals.rate_per_s)
    window_s = (window[1] - window[0]) / 1e9
    ours = in_window(data, window)
    sent, late_ns = ours & ~data.dropped, data.t_send_ns - data.t_due_ns
    in_time = sent & ((data.t_send_ns <= window[1]) | (late_ns <= LATE_NS))
    return Traffic(
        arrival=str(arrivals),
        rate_asked_per_s=arrivals.rate_per_s,
        arrivals=int(ours.sum()),
        rate_per_s=int(in_time.sum()) / window_s,
        completed_per_s=int((data.ok & latency.inside(data.t_end_ns, window)).sum()) / window_s,
        late=int((sent & (late_ns > LATE_NS)).sum()),
        late_ms_p99=float(np.percentile(late_ns[sent], 99)) / 1e6 if sent.any() else None,
        dropped=int((ours & data.dropped).sum()),
    )


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Columns of cells.csv; None without service level objectives or without a window."""

    good: int | None = None
    """The window's requests that keep every objective."""
    goodput_per_s: float | None = None
    goodput_share: float | None = None
    """Share of all that belong to the window, failed and dropped ones too, 0 to 1."""
    energy_per_good_query_j: float | None = None
    """Energy of the window over `good`: what was spent on the others is paid for by the good ones."""


def goodput_of(data: CellData, slo: Slo | None, energy_j: float | None) -> Goodput:
    """The goodput of one cell; `energy_j` is its window's."""
    window = data.window
    if slo is None or window is None or window[1] <= window[0]:
        return Goodput()
    ours = in_window(data, window)
    good, asked = int((ours & _keeps(data, slo)).sum()), int(ours.sum())
    return Goodput(
        good=good,
        goodput_per_s=good / ((window[1] - window[0]) / 1e9),
        goodput_share=good / asked if asked else None,
        energy_per_good_query_j=energy_j / good if energy_j is not None and good else None,
    )


def _keeps(data: CellData, slo: Slo) -> Mask:
    """Which requests were answered and keep every objective, one entry per exchange.

    Latencies begin when a request was due, in a closed loop when it was sent. An answer of one token has no time per
    output token and keeps any limit on it; one whose number of tokens is unknown keeps none. Whether an answer was
    cut off by its token limit, or is right, is not asked: it came in time.
    """
    tpot_s = np.nan_to_num(latency.tpot_s(data.t_first_ns, data.t_last_ns, data.output_tokens), nan=np.inf)
    latencies_s = {
        "ttft": latency.ttft_s(data.t_due_ns, data.t_first_ns),
        "e2e": latency.e2e_s(data.t_due_ns, data.t_end_ns),
        "tpot": np.where((data.output_tokens == 0) | (data.output_tokens == 1), 0.0, tpot_s),
    }
    good = data.ok.copy()
    for name, limit_s in slo.limits_s:
        good &= latencies_s[name] <= limit_s
    return good
