"""However TCP divides a stream into reads, the same events come out of it."""

import json
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from streams import chat, completion, events_of, finished, usage

from loadgen.load.exchange import read_exchange

SPECIAL_TEXTS = ["", "£", "漢字", "🙂", "\n\n", "\r\n", "data: x", "\\"]
TEXTS = st.one_of(st.sampled_from(SPECIAL_TEXTS), st.text(max_size=6))
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def model_events(draw):
    """The JSON events of one answer: chat or completion, with or without continuous usage."""
    is_chat = draw(st.booleans())
    continuous = draw(st.booleans())
    chunks = draw(st.lists(st.tuples(TEXTS, st.integers(0, 3)), min_size=1, max_size=8))
    events = [chat("", 0 if continuous else None, role="assistant")] if is_chat else []
    so_far = 0
    for position, (text, tokens) in enumerate(chunks):
        so_far += tokens
        finish = "stop" if position == len(chunks) - 1 else None
        make = chat if is_chat else completion
        events.append(make(text, so_far if continuous else None, finish=finish))
    return [*events, usage(so_far)]


@st.composite
def event_streams(draw):
    """(data of each event, the bytes on the wire)."""
    end = draw(LINE_ENDS)
    datas = [
        json.dumps(event, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1]))).encode()
        for event in draw(model_events())
    ]
    datas.append(b"[DONE]")
    wire = b""
    for data in datas:
        wire += draw(st.sampled_from([b"", b":" + end, b": ping" + end, b": ping" + end + end]))
        wire += draw(st.sampled_from([b"", b"event: message" + end, b"id: 7" + end]))
        bare = draw(st.booleans()) and b"\n" not in data
        wire += b"".join((b"data:" if bare else b"data: ") + line + end for line in data.split(b"\n")) + end
    return datas, wire


def cut(wire, places):
    """Reads of the wire cut at these places; read k arrives at 100 + k."""
    bounds = [0, *sorted(place % (len(wire) + 1) for place in places), len(wire)]
    return [(100 + k, wire[a:b]) for k, (a, b) in enumerate(pairwise(bounds))]


CUTS = st.lists(st.integers(min_value=0), max_size=40)


def arrivals_by_byte(wire):
    """When each event is complete if every byte comes alone: its last byte's position in the stream."""
    return [t for t, _ in events_of([(k, wire[k : k + 1]) for k in range(len(wire))])]


def without_times(exchange):
    return [
        [tokens for _, tokens in exchange.token_times],
        *(
            getattr(exchange, field)
            for field in exchange.__struct_fields__
            if field not in ("token_times", "t_send_ns", "t_first_ns", "t_end_ns")
        ),
    ]


@given(event_streams())
def test_the_events_are_those_that_were_written(stream):
    datas, wire = stream
    assert [data for _, data in events_of([(1, wire)])] == datas


@given(event_streams(), CUTS)
def test_any_split_gives_the_same_events_stamped_with_the_read_that_completed_them(stream, places):
    _, wire = stream
    reads = cut(wire, places)
    whole = [data for _, data in events_of([(1, wire)])]
    read_of_byte = [t_ns for t_ns, data in reads for _ in data]
    expected = [read_of_byte[byte] for byte in arrivals_by_byte(wire)]
    assert events_of(reads) == list(zip(expected, whole, strict=True))


@given(event_streams(), CUTS)
def test_any_split_gives_the_same_exchange(stream, places):
    _, wire = stream
    whole = read_exchange(finished([(1, wire)]))
    assert without_times(read_exchange(finished(cut(wire, places)))) == without_times(whole)


@given(event_streams(), CUTS)
def test_any_split_stamps_tokens_with_the_read_that_completed_their_event(stream, places):
    _, wire = stream
    bytewise = read_exchange(finished([(k, wire[k : k + 1]) for k in range(len(wire))]))
    reads = cut(wire, places)
    read_of_byte = [t_ns for t_ns, data in reads for _ in data]
    assert read_exchange(finished(reads)).token_times == tuple(
        (read_of_byte[byte], tokens) for byte, tokens in bytewise.token_times
    )


FRAGMENTS = [b"\n", b"\r", b"\r\n", b":", b"data", b"data: ", b"[DONE]", b'{"choices":[', b"}", b'"', b"\x00"]
RAGGED = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=5)), max_size=60).map(b"".join)
JSON_VALUES = st.recursive(st.none() | st.text(), st.lists).map(lambda value: json.dumps(value).encode())


@given(RAGGED, CUTS)
@example(b"data: [DONE]\r\n\r\n", [15])
@example(b"data: [DONE]\r\r\n", [14])
@example(b'data: {"x":' + b"[" * 5_000 + b"\n\n", [])
def test_arbitrary_bytes_never_raise_and_never_depend_on_the_split(wire, places):
    reads = cut(wire, places)
    assert [data for _, data in events_of(reads)] == [data for _, data in events_of([(1, wire)])]
    assert without_times(read_exchange(finished(reads))) == without_times(read_exchange(finished([(1, wire)])))


@given(st.one_of(st.binary(max_size=200), JSON_VALUES))
@example(b"[" * 5_000)
@example(b'{"error":' + b"[" * 5_000)
@example(b'{"error": "\xff"}')
def test_arbitrary_error_bodies_never_raise(body):
    exchange = read_exchange(finished([(1, body)], http_status=500))
    assert exchange.status == "http"
    assert exchange.error.startswith("500: ")


PLAIN_PIECES = [b"data: ", b"data:", b"d", b"\n", b"\n\n", b"\n\ndata: ", b" "]
PLAIN = st.lists(st.sampled_from(PLAIN_PIECES), max_size=12).map(b"".join)


@given(PLAIN, CUTS)
@example(b"a\n\ndata: b\n\n", [3, 10])
@example(b"a\n\ndata: b\n\ndata: c\n\n", [9, 18])
@example(b"a\n\ndata: b\n\ndata: c\n\n", [9])
@example(b"a\n\ndata: bb\n\ndata: c\n\n", [10, 18])
@example(b"a\n\n\ndata: b\n\n", [4, 5])
@example(b"a\n\nid: 1\ndata: b\n\n", [])
@example(b" a\ndata: b\n\n", [])
def test_streams_of_nothing_but_data_lines_are_read_as_all_others_are(rest, places):
    """A comment in front keeps a stream from being read in the short way of plain ones."""
    comment = b":\n\n"
    plain = cut(b"data: " + rest, places)
    assert events_of(plain) == events_of([(0, comment), *plain])


def test_an_event_without_its_blank_line_never_arrived():
    assert events_of([(1, b"data: a\n\ndata: b\n")]) == [(1, b"a")]


def test_comments_and_other_fields_are_no_events():
    assert events_of([(1, b": keep-alive\n\nevent: ping\nid: 1\n\ndata: a\n\n")]) == [(1, b"a")]


def test_lines_of_data_are_joined_by_a_line_feed():
    assert events_of([(1, b"data: a\r\ndata:b\r\ndata:  c\r\n\r\n")]) == [(1, b"a\nb\n c")]


def test_an_event_is_stamped_when_its_last_byte_came():
    assert events_of([(1, b"data: a"), (2, b"\n"), (3, b"\ndata: b\n\nda"), (4, b"ta: c\n\n")]) == [
        (3, b"a"),
        (3, b"b"),
        (4, b"c"),
    ]
