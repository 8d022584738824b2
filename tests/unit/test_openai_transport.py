"""SdkSlot names failures as HttpSlot does, whatever the SDK raises."""

import asyncio
import gzip
import json
import zlib
from functools import partial

import pytest
from peer import BODY, GENEROUS_S, LENGTH, ask, listening, resetting, says
from streams import DONE, completion, one_read_per_event, usage

from loadgen.load import openai_sdk
from loadgen.load.exchange import Request, read_exchange
from loadgen.load.openai_sdk import SdkSlot, sdk_client

pytest.importorskip("openai")

REQUEST = Request(
    item_id="sample-0000",
    prompt_sha="0" * 64,
    phase="measured",
    body=json.dumps({"model": "m", "prompt": "6*7=", "stream": True, "ignore_eos": True, "min_tokens": 2}).encode(),
)


def exchanges(answer, count=1, timeout_s=GENEROUS_S):
    async def run():
        async with listening(answer) as (peer, url):
            client = sdk_client(url, api_key=None, timeout_s=timeout_s)
            slot = SdkSlot(client, "completions", 0)
            rows = [read_exchange(await ask(slot, REQUEST)) for _ in range(count)]
            await client.close()
            return rows, peer

    return asyncio.run(run())


def stream(*events):
    body = b"".join(data for _, data in one_read_per_event(*events))
    return LENGTH.replace(b"%d" % len(BODY), b"%d" % len(body)) + body


def test_an_answer_is_read_as_the_raw_transport_reads_it():
    [exchange], peer = exchanges(says(LENGTH + BODY))
    assert (exchange.status, exchange.error) == ("ok", None)
    assert (exchange.text, exchange.output_tokens, exchange.finish_reason) == ("42", 2, "stop")
    assert exchange.token_source == "usage"
    sent = json.loads(peer.requests[0][1])
    assert (sent["ignore_eos"], sent["min_tokens"], sent["prompt"]) == (True, 2, "6*7=")


def test_reasoning_and_stop_reason_survive_the_sdk():
    last = completion("4", 1, finish="stop")
    last["choices"][0]["stop_reason"] = 7
    [exchange], _ = exchanges(says(stream(last, usage(1), DONE)))
    assert exchange.stop_reason == 7


def test_an_http_error_is_not_tried_again_and_keeps_the_servers_message():
    body = b'{"error": {"message": "overloaded", "code": 503}}'
    rows, peer = exchanges(says(b"HTTP/1.1 503 Unavailable\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)))
    assert [(e.status, e.http_status, e.error) for e in rows] == [("http", 503, "503: overloaded")]
    assert len(peer.requests) == 1


def test_an_error_inside_the_stream():
    [exchange], _ = exchanges(says(stream(completion("4", 1), {"error": {"message": "EngineCore died"}}, DONE)))
    assert (exchange.status, exchange.text) == ("http", "4")
    assert "EngineCore died" in exchange.error


@pytest.mark.parametrize("events", [
    [completion(" 4", 1), completion(" 2", 1, finish="stop"), usage(2)],
    [completion(" 4"), completion(" 2", 2, finish="stop")],
    [completion(" 4"), completion(" 2", finish="stop"), completion("", 2)],
    [completion("", 1), completion(" 4", 1), completion(" 2", 2, finish="stop"), usage(2)],
    [completion(" 4", 2), completion(" 2", 2, finish="stop"), {**usage(2), "choices": None}],
], ids=["per event", "on the last", "behind the last", "early", "ahead, choices null"])  # fmt: skip
def test_usage_is_believed_only_for_what_it_is(events):
    [exchange], _ = exchanges(says(stream(*events, DONE)))
    assert (exchange.status, exchange.error, exchange.text) == ("ok", None, " 4 2")
    assert (exchange.output_tokens, [n for _, n in exchange.token_times]) == (2, [1, 1])


@pytest.mark.parametrize("error", [
    {"error": "the pool is full", "error_type": "generation"},
    {"error": {"message": "the pool is full"}},
    {"message": "the pool is full", "code": "503"},
])  # fmt: skip
def test_the_servers_words_are_kept(error):
    [exchange], _ = exchanges(says(stream(completion("4", 1), error)))
    assert (exchange.status, exchange.error) == ("http", "in the stream: the pool is full")


def test_an_answer_that_the_server_gave_up_has_failed():
    [exchange], _ = exchanges(says(stream(completion("4", 1), completion("", 1, finish="abort"), usage(1), DONE)))
    assert (exchange.status, "finish_reason 'abort'" in exchange.error) == ("http", True)


def test_a_json_object_instead_of_a_stream_is_quoted():
    body = b'{"error": {"message": "upstream timed out"}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    [exchange], _ = exchanges(says(head + body))
    assert (exchange.status, exchange.error) == ("malformed", "no event stream: upstream timed out")


def test_a_redirect_says_where_it_points():
    [exchange], _ = exchanges(says(b"HTTP/1.1 307 X\r\nLocation: http://elsewhere/v1\r\nContent-Length: 0\r\n\r\n"))
    assert exchange.error.startswith("307: redirected to http://elsewhere/v1, and")


def test_an_event_that_is_no_json():
    [exchange], _ = exchanges(says(stream(completion("4", 1), b'{"choices": [', DONE)))
    assert exchange.status == "malformed"


@pytest.mark.parametrize("said", [b"", LENGTH + BODY[:300]])
def test_a_peer_that_stalls(said):
    async def answer(reader, writer):
        writer.write(said)
        await reader.read()
        return True

    [exchange], _ = exchanges(answer, timeout_s=0.3)
    assert (exchange.status, exchange.error) == ("timeout", "no complete answer within 0.3 s")


def test_a_connection_that_is_reset_inside_the_answer():
    async def answer(_reader, writer):
        writer.write(LENGTH + BODY[:300])
        await asyncio.sleep(0.05)
        return resetting(writer)

    [exchange], _ = exchanges(answer)
    assert (exchange.status, exchange.http_status) == ("broken", 200)


def test_a_refused_connection():
    async def run():
        async with listening(says()) as (_, url):
            pass
        client = sdk_client(url, api_key=None, timeout_s=GENEROUS_S)
        return await ask(SdkSlot(client, "completions", 0), REQUEST)

    exchange = read_exchange(asyncio.run(run()))
    assert (exchange.status, exchange.http_status) == ("connect", None)


@pytest.mark.parametrize("turns", [0, 1, 100])
def test_closing_a_busy_slot_ends_its_request_as_broken_at_once(turns):
    async def run():
        async def answer(reader, _writer):
            await reader.read()
            return True

        async with listening(answer) as (_, url):
            client = sdk_client(url, api_key=None, timeout_s=GENEROUS_S)
            slot = SdkSlot(client, "completions", 0)
            ended = []
            slot.send(REQUEST, ended.append)
            for _ in range(turns):
                await asyncio.sleep(0.001)
            slot.close()
            at_once = list(ended)
            await asyncio.sleep(0.05)
            assert ended == at_once
            return ended

    [raw] = asyncio.run(run())
    assert read_exchange(raw).status == "broken"


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    [exchange], peer = exchanges(says(LENGTH + BODY))
    assert (exchange.status, peer.connections) == ("ok", 1)


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
@pytest.mark.parametrize("status", [b"200 OK", b"500 Oh"])
def test_an_answer_without_end_is_given_up(monkeypatch, kind, coding, status):
    """4 MiB in one event, as the raw transport's test; compressed they are 4 KB."""
    monkeypatch.setattr(openai_sdk, "MOST_ANSWER_BYTES", 2**20)
    body = b"data: " + b"x" * 2**22
    body = {"gzip": gzip.compress, "deflate": partial(zlib.compress, wbits=-15)}.get(coding, bytes)(body)
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n" % (status, kind.encode(), len(body))
    head += b"Content-Encoding: %b\r\n" % coding.encode() if coding else b""
    [exchange], _ = exchanges(says(head + b"\r\n" + body))
    assert (exchange.status, exchange.error) == ("broken", "the answer is longer than 1 MiB")


def test_an_answer_of_the_bound_is_read(monkeypatch):
    monkeypatch.setattr(openai_sdk, "MOST_ANSWER_BYTES", len(BODY))
    [exchange], _ = exchanges(says(LENGTH + BODY))
    assert (exchange.status, exchange.text) == ("ok", "42")
