"""HttpSlot against peers that fail: what kind of failure it is, and that the next request works."""

import asyncio
import gzip
import socket
from itertools import pairwise

import pytest
from peer import BODY, GENEROUS_S, HEAD, LENGTH, ask, chunked, closing, exchanges, listening, resetting, says
from streams import REQUEST, completion, one_read_per_event

from loadgen.load import http
from loadgen.load.exchange import read_exchange
from loadgen.load.http import Endpoint, HttpSlot


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


def test_each_request_of_a_connection_has_the_whole_timeout():
    served = 0

    async def answer(reader, writer):
        nonlocal served
        served += 1
        if served == 1:
            await asyncio.sleep(0.15)
            writer.write(chunked())
            return False
        await reader.read()
        return True

    rows, peer = exchanges(answer, count=2, timeout_s=0.25)
    assert [exchange.status for exchange in rows] == ["ok", "timeout"]
    assert rows[1].t_end_ns - rows[1].t_send_ns >= 0.249e9, "not what the first one left of it"
    assert peer.connections == 1


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


@pytest.mark.parametrize("end", [closing, resetting])
@pytest.mark.parametrize("answered", [1, 3])
def test_a_kept_connection_that_is_closed_under_a_request_is_replaced_and_the_request_sent_again(end, answered):
    """The server reads the request and closes, as if it had been idle for too long."""

    async def run():
        served = 0

        async def answer(_reader, writer):
            nonlocal served
            served += 1
            if served == answered + 1:
                return end(writer)
            writer.write(chunked())
            return False

        async with listening(answer) as (peer, url):
            slot = HttpSlot(Endpoint(url, "completions"), 0, GENEROUS_S)
            raws = [await ask(slot) for _ in range(answered + 2)]
            slot.close()
            return raws, peer

    raws, peer = asyncio.run(run())
    rows = [read_exchange(raw) for raw in raws]
    assert [exchange.status for exchange in rows] == ["ok"] * (answered + 2)
    assert [exchange.retries for exchange in rows] == [0] * answered + [1, 0]
    assert peer.connections == 2
    assert len(peer.requests) == answered + 3
    assert all(before.t_end_ns <= after.t_send_ns for before, after in pairwise(rows)), "sent first, not sent last"


def test_it_is_sent_again_once():
    served = 0

    async def answer(_reader, writer):
        nonlocal served
        served += 1
        if served > 1:
            return resetting(writer)
        writer.write(chunked())
        return False

    rows, peer = exchanges(answer, count=2)
    assert [(exchange.status, exchange.retries) for exchange in rows] == [("ok", 0), ("broken", 1)]
    assert "before the answer" in rows[1].error
    assert len(peer.requests) == 3


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", LENGTH])
def test_an_answer_that_had_begun_is_not_asked_for_again(begun):
    served = 0

    async def answer(_reader, writer):
        nonlocal served
        served += 1
        writer.write(chunked() if served == 1 else begun)
        await writer.drain()
        return served > 1

    rows, peer = exchanges(answer, count=2)
    assert [(exchange.status, exchange.retries) for exchange in rows] == [("ok", 0), ("broken", 0)]
    assert len(peer.requests) == 2


def test_a_request_that_is_sent_again_has_the_time_of_one():
    served = 0

    async def answer(reader, writer):
        nonlocal served
        served += 1
        if served == 1:
            writer.write(chunked())
            return False
        if served == 2:
            await asyncio.sleep(0.2)
            return resetting(writer)
        await reader.read()
        return True

    rows, _ = exchanges(answer, count=2, timeout_s=0.4)
    assert [(exchange.status, exchange.retries) for exchange in rows] == [("ok", 0), ("timeout", 1)]
    assert rows[1].t_end_ns - rows[1].t_send_ns < 0.55e9, "0.4 s from the first time it was sent"


def redirecting(status, location):
    return b"HTTP/1.1 %d X\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % (status, location)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(("location", "end"), [
    (b"https://elsewhere:8443/v1/completions", "https://elsewhere:8443/v1/completions"),
    (b"/v2/completions", "/v2/completions"),
    (b"http://[bad/", "http://[bad/"),
])  # fmt: skip
def test_a_redirect_is_not_followed_and_says_where_it_points(status, location, end):
    [exchange], peer = exchanges(says(redirecting(status, location)))
    assert (exchange.status, exchange.http_status) == ("http", status)
    assert exchange.error.startswith(f"{status}: redirected to http")
    assert f"{end}, and" in exchange.error
    assert len(peer.requests) == 1


@pytest.mark.parametrize("coding", [b"gzip", b"GZIP"])
def test_a_coded_answer_that_nobody_asked_for_is_read(coding):
    body = gzip.compress(BODY)
    head = HEAD + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding, len(body))
    rows, peer = exchanges(says(head + body), count=2)
    assert [(exchange.status, exchange.text) for exchange in rows] == [("ok", "42")] * 2
    assert b"accept-encoding" not in peer.requests[0][0].lower()


def test_an_http_1_0_answer_ends_with_its_connection():
    rows, peer = exchanges(says(b"HTTP/1.0 200 OK\r\n\r\n" + BODY, then=closing), count=2)
    assert [(exchange.status, exchange.text, exchange.retries) for exchange in rows] == [("ok", "42", 0)] * 2
    assert peer.connections == 2


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
