"""Streams as servers and gateways in the wild write them: the same answer, however it is told."""

import gzip
import json
import zlib

import pytest
from streams import DONE, chat, completion, finished, one_read_per_event, usage

from loadgen.load.exchange import NOTE_NO_DONE, read_exchange
from loadgen.load.httpraw import HttpRaw
from loadgen.load.tokens import NOTE_NO_TOTAL, NOTE_NOT_RUNNING

WORDS = [" a", " b", " c", " d"]
TOTAL = len(WORDS)


def told(counts, *more, texts=WORDS, total=TOTAL):
    """An event per text with these counts (None: none), `more` behind, and the total unless it is None."""
    last = len(texts) - 1
    paired = enumerate(zip(texts, counts, strict=True))
    events = [completion(t, n, finish="stop" if k == last else None) for k, (t, n) in paired]
    return [*events, *more, *([usage(total)] if total is not None else []), DONE]


def read(events):
    return read_exchange(finished(one_read_per_event(*events)))


PER_EVENT = ((10, 1), (20, 1), (30, 1), (40, 1))
BEHIND_ONE = ((20, 1), (30, 1), (40, 1), (50, 1))


@pytest.mark.parametrize(("events", "times", "source", "notes"), [
    (told([1, 2, 3, 4]), PER_EVENT, "usage", ()),
    (told([None] * 4), PER_EVENT, "chunks", ()),
    (told([None, None, None, 4], total=None), PER_EVENT, "chunks", ()),
    (told([None] * 4, completion("", 4), total=None), PER_EVENT, "chunks", ()),
    (told([None] * 4, completion("", 4)), PER_EVENT, "chunks", ()),
    (told([1, 1, 1, 1]), PER_EVENT, "chunks", (NOTE_NOT_RUNNING,)),
    (told([1, 1, 1, 1], completion("", 0)), PER_EVENT, "chunks", (NOTE_NOT_RUNNING,)),
    (told([1, 1, 1, 1], total=None), PER_EVENT, "chunks", (NOTE_NOT_RUNNING,)),
    (told([3, 3, 3, 3], total=12), tuple((t, 3) for t, _ in PER_EVENT), "spread", (NOTE_NOT_RUNNING,)),
    (told([1, 3, 1, 3], total=8), tuple((t, 2) for t, _ in PER_EVENT), "spread", (NOTE_NOT_RUNNING,)),
    (told([3, 3, 3, 3], total=None), (), None, (NOTE_NO_TOTAL,)),
    (told([4, 4, 4, 4]), PER_EVENT, "chunks", (NOTE_NOT_RUNNING,)),
    (told([4, 4, 4, 4], total=None), PER_EVENT, "chunks", (NOTE_NOT_RUNNING,)),
    (told([2, 3, 4, 4]), PER_EVENT, "chunks", (NOTE_NOT_RUNNING,)),
    (told([0, 1, 2, 3]), PER_EVENT, "chunks", (NOTE_NOT_RUNNING,)),
    (told([0, 0, 0, 0], total=0), (), None, (NOTE_NO_TOTAL,)),
    (told([1, 1, 2, 2], total=2), ((10, 1), (40, 1)), "spread", (NOTE_NOT_RUNNING,)),
    (told([3, 6, 9, 12], total=12), tuple((t, 3) for t, _ in PER_EVENT), "usage", ()),
    ([completion("", 1), *told([1, 2, 3, 4])], BEHIND_ONE, "usage", ()),
    ([completion("", 1), *told([1, 1, 1, 1])], BEHIND_ONE, "chunks", (NOTE_NOT_RUNNING,)),
    ([completion("", 1), *told([2, 3, 4, 4])], BEHIND_ONE, "chunks", (NOTE_NOT_RUNNING,)),
    ([completion("", 1), *told([2, 3, 4, 5], total=5)], ((10, 1), *BEHIND_ONE), "usage", ()),
    ([completion("", 4), *told([4, 4, 4, 4])], BEHIND_ONE, "chunks", (NOTE_NOT_RUNNING,)),
    (told([1, 2, 3, 4], texts=[" a", "", "", " d"]), PER_EVENT, "usage", ()),
    (told([1, 2, 3, 4], texts=[""] * 4), PER_EVENT, "usage", ()),
    (told([None] * 3 + [4], texts=[""] * 4), ((40, 4),), "spread", ()),
], ids=[
    "running", "total apart", "total on the last", "total behind the last", "and again apart",
    "per event", "per event, none on the last", "per event, no total", "three per event", "per event, mixed",
    "three per event, no total", "ahead at once", "ahead, no total", "ahead by one", "behind by one", "stuck at none",
    "repeated", "speculative", "early empty one", "early empty one, per event", "early empty one, ahead",
    "first token without text", "early empty total", "tokens without text", "no text at all", "no text, total only",
])  # fmt: skip
def test_tokens_arrive_when_the_evidence_says(events, times, source, notes):
    exchange = read(events)
    assert (exchange.status, exchange.error) == ("ok", None)
    assert (exchange.token_times, exchange.token_source, exchange.notes) == (times, source, notes)
    assert exchange.output_tokens == (sum(n for _, n in times) if source else None)


def test_a_chats_opening_event_brings_no_token_whatever_it_counts():
    events = [chat("", 1, role="assistant"), *(chat(t, n) for n, t in enumerate(WORDS, 2))]
    exchange = read([*events, chat(None, 5, finish="stop"), usage(5), DONE])
    assert exchange.t_first_ns == 20
    assert exchange.output_tokens == 5


CALL = [{"index": 0, "function": {"arguments": " 1"}}]


@pytest.mark.parametrize(("delta", "text", "reasoning"), [
    ({"content": "x"}, "xx", ""),
    ({"content": [{"type": "text", "text": "x"}]}, "xx", ""),
    ({"content": ["x"]}, "xx", ""),
    ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "h"}]}]}, "", "hh"),
    ({"reasoning": "h"}, "", "hh"),
    ({"reasoning_content": "h", "content": None}, "", "hh"),
    ({"thinking": "h", "content": ""}, "", "hh"),
    ({"reasoning": "h", "content": "x"}, "xx", "hh"),
    ({"refusal": "x"}, "xx", ""),
    ({"tool_calls": CALL}, "", ""),
    ({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]}, "", ""),
    ({"tool_calls": {"function": {"arguments": {"a": 1}}}}, "", ""),
    ({"function_call": {"arguments": "{"}}, "", ""),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else None)  # fmt: skip
def test_whatever_a_delta_brings_is_output(delta, text, reasoning):
    def event(so_far=None, finish=None):
        return chat(**({"content": None} | delta), so_far=so_far, finish=finish)

    opening = chat("", role="assistant", tool_calls=[], function_call=None)
    for first, last in ((event(), event(finish="stop")), (event(1), event(2, finish="stop"))):
        exchange = read([opening, first, last, usage(2), DONE])
        assert (exchange.status, exchange.text, exchange.reasoning) == ("ok", text, reasoning), exchange.error
        assert exchange.token_times == ((20, 1), (30, 1))


@pytest.mark.parametrize("delta", [
    {"tool_calls": None}, {"tool_calls": []}, {"tool_calls": [{"index": 0, "function": {"arguments": ""}}]},
    {"tool_calls": 5}, {"tool_calls": [None]}, {"content": []}, {"content": [{"type": "image"}]}, {"content": [5]},
])  # fmt: skip
def test_a_delta_without_anything_in_it_is_none(delta):
    exchange = read([chat(**({"content": None} | delta)), chat("5", finish="stop"), usage(1), DONE])
    assert (exchange.status, exchange.t_first_ns) == ("ok", 20)


@pytest.mark.parametrize("reason", ["abort", "error", "cancelled", "ABORT", {"type": "abort", "message": "no memory"}])
def test_an_answer_that_the_server_gave_up_has_failed(reason):
    exchange = read([completion("a", 1), completion("", 1, finish=reason), usage(1), DONE])
    word = reason["type"] if isinstance(reason, dict) else reason
    assert exchange.status == "http"
    assert exchange.error.startswith(f"the server ended the answer with finish_reason '{word}'")
    assert ("no memory" in exchange.error) == isinstance(reason, dict)


@pytest.mark.parametrize("reason", [
    "stop", "length", "eos_token", "stop_sequence", "tool_calls", "repetition", "content_filter", {"type": "length"},
])  # fmt: skip
def test_other_reasons_to_finish_are_answers(reason):
    exchange = read([completion("a", 1, finish=reason), usage(1), DONE])
    assert exchange.status == "ok"
    assert exchange.finish_reason == (reason["type"] if isinstance(reason, dict) else reason)


def test_an_empty_reason_to_finish_is_none():
    events = [completion("a", 1, finish=""), completion("b", 2, finish="stop"), completion("", 2, finish="")]
    assert read([*events, usage(2), DONE]).finish_reason == "stop"
    assert read([completion("a", 1, finish=""), usage(1), DONE]).error == "the stream has no finish_reason"


SAID = "the pool is full"


@pytest.mark.parametrize("error", [
    {"error": {"message": SAID, "code": 503}},
    {"error": SAID, "error_type": "generation"},
    {"error": {"error": {"message": SAID}}},
    {"error": json.dumps({"message": SAID})},
    {"error": True, "message": SAID},
    {"object": "error", "message": SAID, "type": "Unavailable", "code": 503},
    {"message": SAID, "code": "503"},
    {"detail": SAID},
    {"detail": {"error": SAID}},
    {"errors": [{"message": SAID}]},
    {"choices": [], "error": {"message": SAID}},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"message": SAID}}]},
    {"choices": [{"index": 0, "text": "", "finish_reason": "error"}], "error": {"message": SAID}},
], ids=json.dumps)  # fmt: skip
@pytest.mark.parametrize("end", ["at once", "with [DONE]", "cut"])
def test_the_servers_words_are_kept_in_whatever_shape_they_come(error, end):
    events = [completion("a", 1), error, *([DONE] if end == "with [DONE]" else [])]
    lost = ("broken", "connection lost inside the answer")
    exchange = read_exchange(finished(one_read_per_event(*events), failure=lost if end == "cut" else None))
    if end == "cut" and not ("error" in error or error.get("choices") or error.get("object")):
        assert exchange.error == lost[1]
        return
    assert (exchange.status, exchange.error) == ("http", f"in the stream: {SAID}")
    assert (exchange.text, exchange.output_tokens) == ("a", 1)


@pytest.mark.parametrize("tail", [
    b'event: error\ndata: {"message": "the pool is full"}\n\n',
    b'{"error": {"message": "the pool is full"}}',
    b'{"error": {"message": "the pool is full"}}\n',
    b'data: {"error": {"message": "the pool is full"}}\n',
])  # fmt: skip
def test_words_behind_the_events_are_kept(tail):
    reads = [*one_read_per_event(completion("a", 1)), (90, tail)]
    assert read_exchange(finished(reads)).error == f"in the stream: {SAID}"


def test_a_message_on_the_way_is_no_error():
    events = [{"message": "queued at place 3"}, *told([1, 2, 3, 4])]
    assert (read(events).status, read(events).output_tokens) == ("ok", 4)


@pytest.mark.parametrize("body", [{"error": {"message": SAID}}, {"error": SAID}, {"detail": [{"msg": SAID}]}])
def test_an_answer_that_is_one_json_object_is_quoted(body):
    exchange = read_exchange(finished([(10, json.dumps(body).encode())]))
    assert (exchange.status, exchange.error) == ("malformed", f"no event stream: {SAID}")


def wire(events):
    return b"".join(data for _, data in one_read_per_event(*events))


PLAIN = wire(told([1, 2, 3, 4]))
MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(("stream", "notes"), [
    (MARK + PLAIN, ()),
    (MARK + b": ping\n\n" + PLAIN, ()),
    (b": ping\n\n" + MARK + PLAIN, ()),
    (b"data:\n\n" + PLAIN, ()),
    (b"event: ping\ndata: \n\n" + PLAIN, ()),
    (b"event: ping\ndata: still here\n\n" + PLAIN, ()),
    (b'event: ping\ndata: {"type": "ping"}\n\n' + PLAIN, ()),
    (b"data: null\n\n" + PLAIN, ()),
    (PLAIN.replace(b"data: [DONE]", b"data: [DONE] "), ()),
    (PLAIN + b"data: \n\n", ()),
    (PLAIN.removesuffix(b"\n"), ()),
    (PLAIN.removesuffix(b"\n\n"), ()),
    (PLAIN.replace(b"\n", b"\r\n").removesuffix(b"\r\n"), ()),
    (PLAIN.removesuffix(b"data: [DONE]\n\n"), (NOTE_NO_DONE,)),
    (PLAIN.removesuffix(b"\n\ndata: [DONE]\n\n"), (NOTE_NO_DONE,)),
    (PLAIN.replace(b'"choices": []', b'"choices": null'), ()),
    (PLAIN.replace(b'"choices": [], ', b""), ()),
    (PLAIN.replace(b'" a"', '"\u2028\u0085\x0c"'.encode()), ()),
], ids=[
    "mark", "mark and ping", "mark behind ping", "empty data", "ping without data", "ping with text", "ping with JSON",
    "null", "blank behind [DONE]", "empty data behind [DONE]", "one line end", "no line end", "one CRLF",
    "no [DONE]", "no [DONE], no line end", "choices null", "no choices", "raw line separators",
])  # fmt: skip
@pytest.mark.parametrize("pieces", [1, 7, 10_000])
def test_however_it_is_framed_it_is_the_same_answer(stream, notes, pieces):
    step = -(-len(stream) // pieces)
    reads = [(t, stream[at : at + step]) for t, at in enumerate(range(0, len(stream), step))]
    exchange = read_exchange(finished(reads))
    assert (exchange.status, exchange.error, exchange.notes) == ("ok", None, notes)
    assert (exchange.output_tokens, exchange.token_source, exchange.finish_reason) == (4, "usage", "stop")
    assert exchange.text[-6:] == " b c d"


@pytest.mark.parametrize("stream", [PLAIN.removesuffix(b"\n\n"), PLAIN.removesuffix(b"data: [DONE]\n\n")])
def test_a_connection_that_was_lost_ended_nothing(stream):
    lost = ("broken", "connection lost inside the answer")
    exchange = read_exchange(finished([(10, stream)], failure=lost))
    assert (exchange.status, exchange.error) == lost


def packed(pieces, bits, flush=zlib.Z_SYNC_FLUSH):
    coder = zlib.compressobj(wbits=bits)
    return [coder.compress(piece) + coder.flush(flush) for piece in pieces[:-1]] + [
        coder.compress(pieces[-1]) + coder.flush()
    ]


def coded(coding, bodies, http_status=200):
    raw = HttpRaw(finished([]).request, 3)
    raw.t_send_ns, raw.t_end_ns, raw.http_status, raw.coding = 0, 1000, http_status, coding
    for k, body in enumerate(bodies):
        raw.keep(10 * (k + 1), body)
    return raw


EVENTS = [data for _, data in one_read_per_event(*told([1, 2, 3, 4]))]


@pytest.mark.parametrize(("coding", "bodies"), [
    ("gzip", packed(EVENTS, 31)),
    ("x-gzip", packed(EVENTS, 31)),
    ("", packed(EVENTS, 31)),
    ("gzip", [gzip.compress(event) for event in EVENTS]),
    ("deflate", packed(EVENTS, 15)),
    ("deflate", packed(EVENTS, -15)),
], ids=["gzip", "x-gzip", "not declared", "a member per event", "deflate", "raw deflate"])  # fmt: skip
def test_a_coded_answer_keeps_the_arrival_of_each_event(coding, bodies):
    exchange = read_exchange(coded(coding, bodies))
    assert (exchange.status, exchange.error, exchange.text) == ("ok", None, " a b c d")
    assert exchange.token_times == PER_EVENT


@pytest.mark.parametrize(("coding", "bodies", "named"), [
    ("br", [b"\x0b\x02\x80"], "'br'"),
    ("gzip, br", [b"\x0b\x02\x80"], "'gzip, br'"),
    ("gzip", EVENTS, "gzip"),
])  # fmt: skip
def test_what_cannot_be_decoded_is_named(coding, bodies, named):
    exchange = read_exchange(coded(coding, bodies))
    assert exchange.status == "malformed"
    assert named in exchange.error


def test_a_coded_error_is_read():
    body = gzip.compress(b'{"error": {"message": "the pool is full"}}')
    assert read_exchange(coded("gzip", [body], 503)).error == f"503: {SAID}"


def test_a_small_body_that_becomes_a_huge_one_is_given_up(monkeypatch):
    monkeypatch.setattr("loadgen.load.httpraw.MOST_ANSWER_BYTES", 2**20)
    exchange = read_exchange(coded("gzip", [gzip.compress(bytes(2**24))]))
    assert (exchange.status, exchange.error) == ("malformed", "the answer is longer than 1 MiB")
