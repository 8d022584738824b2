"""HttpSlot against peers that fail: what kind of failure it is, and that the next request works."""

import asyncio
import socket

import pytest
from peer import BODY, GENEROUS_S, HEAD, LENGTH, ask, chunked, closing, exchanges, listening, resetting, says
from streams import REQUEST, completion, one_read_per_event

from loadgen.client import http
from loadgen.client.exchange import read_exchange
from loadgen.client.http import Endpoint, HttpSlot


def test_a_refused_connection():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    async def run():
        return await ask(HttpSlot(Endpoint(f"http://127.0.0.1:{port}", "completions"), 0, GENEROUS_S))

    exchange = read_exchange(asyncio.run(run()))
    assert (exchange.status, exchange.http_status) == ("connect", None)
    assert f"127.0.0.1:{port}" in exchange.error


@pytest.mark.parametrize("said", [b"", LENGTH, LENGTH + BODY[:300]])
def test_a_peer_that_stalls(said):
    async def answer(reader, writer):
        writer.write(said)
        await reader.read()
        return True

    rows, peer = exchanges(answer, count=2, timeout_s=0.2)
    assert [exchange.status for exchange in rows] == ["timeout", "timeout"]
    assert rows[0].error == "no complete answer within 0.2 s"
    assert peer.connections == 2


def test_what_came_before_a_timeout_is_kept():
    first = one_read_per_event(completion("4", 1))[0][1]

    async def answer(reader, writer):
        writer.write(LENGTH + first)
        await reader.read()
        return True

    [exchange], _ = exchanges(answer, timeout_s=0.2)
    assert (exchange.status, exchange.text, len(exchange.token_times)) == ("timeout", "4", 1)


@pytest.mark.parametrize("end", [closing, resetting])
def test_a_connection_that_ends_before_the_answer(end):
    [exchange], _ = exchanges(says(then=end))
    assert (exchange.status, exchange.http_status) == ("broken", None)
    assert "before the answer" in exchange.error


@pytest.mark.parametrize("end", [closing, resetting])
@pytest.mark.parametrize("said", [LENGTH + BODY[:100], chunked()[: len(HEAD) + 60]])
def test_a_connection_that_ends_inside_the_answer(said, end):
    async def answer(_reader, writer):
        writer.write(said)
        await asyncio.sleep(0.05)
        return end(writer)

    [exchange], _ = exchanges(answer)
    assert (exchange.status, exchange.http_status) == ("broken", 200)
    assert "inside the answer" in exchange.error


def test_a_stream_without_length_that_is_cut_has_no_done():
    [exchange], _ = exchanges(says(HEAD + b"\r\n", BODY[:100], then=closing))
    assert exchange.status == "broken"


def test_an_http_error_keeps_its_message_and_its_connection():
    body = b'{"error": {"message": "no such model", "code": 404}}'
    wire = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    rows, peer = exchanges(says(wire), count=2)
    assert [(e.status, e.http_status, e.error) for e in rows] == [("http", 404, "404: no such model")] * 2
    assert peer.connections == 1


def test_an_http_error_without_body():
    [exchange], _ = exchanges(says(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"))
    assert (exchange.status, exchange.error) == ("http", "500: no message")


def test_what_is_not_http():
    [exchange], _ = exchanges(says(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"))
    assert exchange.status == "broken"
    assert "not HTTP" in exchange.error


def test_after_a_failure_a_new_connection_works():
    async def run():
        broken = [True]

        async def answer(_reader, writer):
            if broken.pop() if broken else False:
                return resetting(writer)
            writer.write(chunked())
            return False

        async with listening(answer) as (peer, url):
            slot = HttpSlot(Endpoint(url, "completions"), 0, GENEROUS_S)
            rows = [read_exchange(await ask(slot)) for _ in range(3)]
            slot.close()
            return rows, peer.connections

    rows, connections = asyncio.run(run())
    assert [exchange.status for exchange in rows] == ["broken", "ok", "ok"]
    assert connections == 2


def test_a_connection_that_the_server_closed_while_idle_is_replaced():
    async def run():
        async with listening(says(chunked(), then=closing)) as (peer, url):
            slot = HttpSlot(Endpoint(url, "completions"), 0, GENEROUS_S)
            rows = []
            for _ in range(3):
                rows.append(read_exchange(await ask(slot)))
                await asyncio.sleep(0.05)
            return rows, peer.connections

    rows, connections = asyncio.run(run())
    assert [exchange.status for exchange in rows] == ["ok"] * 3
    assert connections == 3


@pytest.mark.parametrize("said", [b"", LENGTH + BODY[:300]])
def test_closing_a_busy_slot_ends_its_request_as_broken_at_once(said):
    async def run():
        async def answer(reader, writer):
            writer.write(said)
            await reader.read()
            return True

        async with listening(answer) as (_, url):
            slot = HttpSlot(Endpoint(url, "completions"), 0, GENEROUS_S)
            ended = []
            slot.send(REQUEST, ended.append)
            await asyncio.sleep(0.05)
            slot.close()
            return ended

    [raw] = asyncio.run(run())
    assert read_exchange(raw).status == "broken"


def test_an_answer_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(http, "MOST_ANSWER_BYTES", 2**20)

    async def answer(_reader, writer):
        writer.write(HEAD + b"\r\ndata: ")
        while not writer.is_closing():
            writer.write(b"x" * 2**16)
            await writer.drain()
        return True

    [exchange], _ = exchanges(answer)
    assert (exchange.status, exchange.error) == ("broken", "the answer is longer than 1 MiB")


@pytest.mark.parametrize("size", [1, 10_000])
def test_what_an_interim_answer_says_is_not_the_answer(size):
    wire = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + LENGTH + BODY
    rows, peer = exchanges(says(*(wire[at : at + size] for at in range(0, len(wire), size))), count=2)
    assert [(exchange.status, exchange.http_status, exchange.text) for exchange in rows] == [("ok", 200, "42")] * 2
    assert peer.connections == 1


@pytest.mark.parametrize("surplus", [LENGTH + BODY, b"garbage\r\n\r\n"])
def test_what_follows_the_answer_belongs_to_no_request(surplus):
    rows, peer = exchanges(says(LENGTH + BODY + surplus), count=2)
    assert [(exchange.status, exchange.text, exchange.output_tokens) for exchange in rows] == [("ok", "42", 2)] * 2
    assert peer.connections == 2


def test_a_protocol_that_nobody_asked_for():
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello"
    [exchange], _ = exchanges(says(upgrade))
    assert (exchange.status, exchange.error) == ("broken", "not HTTP: another protocol was switched to")


def test_a_host_without_a_name():
    exchange = read_exchange(asyncio.run(ask_at("http://no-such-host.invalid:80")))
    assert (exchange.status, exchange.http_status) == ("connect", None)
    assert exchange.error.startswith("no-such-host.invalid:80: ")


async def ask_at(url):
    return await ask(HttpSlot(Endpoint(url, "completions"), 0, GENEROUS_S))
