"""Events that are alike are read as they are when each is decoded."""

import json
from itertools import pairwise
from unittest.mock import patch

from hypothesis import example, given
from hypothesis import strategies as st
from streams import DONE, chat, completion, finished, one_read_per_event, usage

from loadgen.load import alike
from loadgen.load.exchange import Raw, read_exchange
from loadgen.load.httpraw import HttpRaw

ENDING = [usage(12), DONE]


class Decoded(HttpRaw):
    """A stream whose events are decoded one by one."""

    parts = Raw.parts


def decoded(raw):
    other = Decoded(raw.request, raw.slot)
    for name in (
        "http_status",
        "failure",
        "t_send_ns",
        "t_end_ns",
        "reads",
        "read_t_ns",
        "read_realtime_ns",
        "_earlier",
    ):
        setattr(other, name, getattr(raw, name))
    return other


def read_both_ways(reads):
    """The exchange, which is the same whether its events are decoded one by one, told alike in Python or, where there
    is a compiler, in C; and how many entries its events are."""
    exchange, entries = read_exchange(finished(reads)), len(finished(reads).parts()[1])
    assert exchange == read_exchange(decoded(finished(reads)))
    with patch.object(alike, "compiled", lambda: None):
        assert exchange == read_exchange(finished(reads))
        assert entries == len(finished(reads).parts()[1])
    return exchange, entries


def counted(texts, event=completion, first=1):
    return [event(text, first + k) for k, text in enumerate(texts)]


TEXTS = [f" {k}" for k in range(10)]


class TestOneEntry:
    """The events of each stream are: the first, those alike, the last two or three."""

    def test_a_completion(self):
        exchange, entries = read_both_ways(
            one_read_per_event(*counted(TEXTS), completion(" x", 11, finish="stop"), usage(11), DONE)
        )
        assert (exchange.text, exchange.token_times) == (
            "".join(TEXTS) + " x",
            tuple((10 * k, 1) for k in range(1, 12)),
        )
        assert entries == 5

    def test_a_chat_and_its_reasoning(self):
        thoughts = [chat(None, 1 + k, reasoning_content=text) for k, text in enumerate(TEXTS)]
        events = [chat("", 0, role="assistant"), *thoughts, *counted(TEXTS, chat, 11), chat("", 20, finish="stop")]
        exchange, entries = read_both_ways(one_read_per_event(*events, usage(20), DONE))
        assert (exchange.text, exchange.reasoning) == ("".join(TEXTS), "".join(TEXTS))
        assert entries == 8

    def test_without_running_counts(self):
        events = [completion(text) for text in TEXTS]
        exchange, entries = read_both_ways(one_read_per_event(*events, completion("", finish="stop"), usage(10), DONE))
        assert (exchange.token_source, entries) == ("chunks", 5)

    def test_a_text_that_is_empty_brings_no_token(self):
        texts = [*TEXTS[:5], "", *TEXTS[5:]]
        events = [completion(text) for text in texts]
        exchange, _ = read_both_ways(one_read_per_event(*events, completion("", finish="stop"), usage(10), DONE))
        assert [t_ns for t_ns, _ in exchange.token_times] == [10 * k for k in range(1, 12) if k != 6]

    def test_escapes_and_letters_of_several_bytes(self):
        texts = ["a", "\n", "é", "\\", '"', "\t", "語", "b"]
        exchange, entries = read_both_ways(
            one_read_per_event(*counted(texts), completion("", 9, finish="stop"), usage(9), DONE)
        )
        assert (exchange.text, entries) == ("".join(texts), 5)

    def test_events_that_a_read_divides(self):
        stream = b"".join(data for _, data in one_read_per_event(*counted(TEXTS), usage(10), DONE))
        size = len(stream) // 20
        pieces = [(k, stream[size * k : size * (k + 1)]) for k in range(21)]
        exchange, _ = read_both_ways(pieces)
        assert exchange.text == "".join(TEXTS)

    def test_many_events_of_which_every_third_comes_in_two_reads(self):
        texts = [f" {k}" for k in range(600)]
        whole = one_read_per_event(*counted(texts), completion("", 601, finish="stop"), usage(601), DONE)
        halves = [((t_ns, data[:70]), (t_ns, data[70:])) for t_ns, data in whole]
        reads = [half for k, two in enumerate(halves) for half in (two if k % 3 == 2 else [whole[k]])]
        exchange, entries = read_both_ways(reads)
        assert (exchange.text, exchange.output_tokens, entries) == ("".join(texts), 601, 5)

    def test_a_read_of_several_events_gives_them_its_own_time(self):
        raw = finished([])
        pieces = tuple(data for _, data in one_read_per_event(*counted(TEXTS), usage(10), DONE))
        raw.came(pieces[:4], 5)
        raw.came(pieces[4:], 7)
        exchange = read_exchange(raw)
        assert exchange.token_times == ((5, 1),) * 4 + ((7, 1),) * 6
        assert exchange == read_exchange(decoded(raw))


class TestNotAlike:
    def test_a_count_that_rises_by_two(self):
        exchange, _ = read_both_ways(
            one_read_per_event(*counted(TEXTS), *counted(TEXTS, first=12), completion("", 21, finish="stop"), DONE)
        )
        assert exchange.token_times[10] == (110, 2)

    def test_half_a_letter_in_each_of_two_events(self):
        halves = [
            json.dumps(completion("~", 5 + k)).encode().replace(b"~", b) for k, b in enumerate((b"\xc3", b"\xa9"))
        ]
        exchange, _ = read_both_ways(
            one_read_per_event(*counted("abcd"), *halves, *counted("abcd", first=7), usage(10), DONE)
        )
        assert exchange.status == "malformed"

    def test_an_escape_that_two_events_would_make_together(self):
        torn = json.dumps(completion("~", 5)).encode().replace(b"~", b"\\")
        exchange, _ = read_both_ways(
            one_read_per_event(*counted("abcd"), torn, *counted("nbcd", first=6), usage(9), DONE)
        )
        assert exchange.status == "malformed"

    def test_two_halves_of_a_surrogate_pair(self):
        halves = [
            json.dumps(completion("~", 5 + k)).encode().replace(b"~", b) for k, b in enumerate((rb"\ud83d", rb"\ude00"))
        ]
        read_both_ways(one_read_per_event(*counted("abcd"), *halves, *counted("abcd", first=7), usage(10), DONE))

    def test_a_text_that_ends_where_it_begins(self):
        """Head and tail overlap in one quotation mark, and the text is a comma."""
        events = [json.dumps(completion("~", 1 + k)).encode() for k in range(9)]
        events[5] = events[5].replace(b"~", b"").replace(b'""', b'"')
        read_both_ways(one_read_per_event(*events, usage(9), DONE))

    def test_a_text_that_would_be_another_field(self):
        events = [json.dumps(completion("~", 1 + k)).encode() for k in range(9)]
        events[5] = events[5].replace(b"~", b'a", "finish_reason": "stop", "x": "')
        exchange, _ = read_both_ways(one_read_per_event(*events, usage(9), DONE))
        assert exchange.text == "~" * 5 + "a" + "~" * 3

    def test_done_inside_a_text_ends_nothing(self):
        exchange, _ = read_both_ways(
            one_read_per_event(*counted([*"abcd", "[DONE]", "e"]), completion("", 7, finish="stop"), usage(7), DONE)
        )
        assert exchange.text == "abcd[DONE]e"
        assert exchange.status == "ok"


PIECES = ["a", " b", "", "é", "\n", '"', "\\", "[DONE]", "data: ", "語", "%d", "7"]
STEPS = st.sampled_from([1] * 12 + [0, 2, -1])
RUN = st.tuples(
    st.sampled_from([completion, chat]),
    st.lists(st.tuples(st.sampled_from(PIECES), STEPS), max_size=14),
    st.booleans(),
    st.sampled_from([None] * 5 + ["stop", "abort"]),
)
"""Some events: their kind, text and rise in tokens of each, whether they have counts, the last one's finish_reason."""


@st.composite
def streams(draw):
    events, tokens = [], 0
    for kind, texts, has_counts, finish in draw(st.lists(RUN, max_size=4)):
        for text, rise in texts:
            tokens = max(tokens + rise, 0)
            events.append(kind(text, tokens if has_counts else None))
        if finish and events:
            events[-1]["choices"][0]["finish_reason"] = finish
    if draw(st.booleans()):
        events.append(usage(tokens))
    if draw(st.booleans()):
        events.append(DONE)
    datas = [data for _, data in one_read_per_event(*events)]
    stream = bytearray(b"".join(datas))
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=2)):
        if place < len(stream):
            stream[place] = byte
    ends = [sum(map(len, datas[: k + 1])) for k in range(len(datas))]
    some = draw(st.sets(st.integers(0, 4000), max_size=4))
    cuts = sorted({0, len(stream), *(some | set(ends) if draw(st.booleans()) else some)})
    return [(k + 1, bytes(stream[a:b])) for k, (a, b) in enumerate(pairwise(cuts))]


@given(streams())
@example([(1, b"data: ")])
@example([])
def test_every_stream_is_read_as_if_each_event_were_decoded(reads):
    read_both_ways(reads)
