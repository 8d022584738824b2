"""HttpSlot against peers that answer as they should, in every framing HTTP/1.1 allows."""

import asyncio
import socket

import pytest
import uvloop
from peer import BODY, GENEROUS_S, HEAD, LENGTH, ask, chunked, closing, exchanges, listening, says
from streams import REQUEST, completion, one_read_per_event

from loadgen.load.exchange import read_exchange
from loadgen.load.http import Endpoint, HttpSlot


def assert_whole(exchange):
    assert (exchange.status, exchange.error) == ("ok", None)
    assert (exchange.text, exchange.output_tokens, exchange.finish_reason) == ("42", 2, "stop")


class TestFraming:
    @pytest.mark.parametrize("wire", [LENGTH + BODY, chunked(), chunked(size=1), chunked(size=len(BODY))])
    def test_an_answer_of_known_length_or_in_chunks(self, wire):
        [exchange], _ = exchanges(says(wire))
        assert_whole(exchange)

    def test_a_body_without_length_ends_with_its_connection(self):
        rows, peer = exchanges(says(HEAD + b"\r\n", BODY, then=closing), count=2)
        for exchange in rows:
            assert_whole(exchange)
        assert peer.connections == 2

    def test_connection_close_is_obeyed(self):
        rows, peer = exchanges(says(LENGTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + BODY), count=3)
        for exchange in rows:
            assert_whole(exchange)
        assert peer.connections == 3

    def test_http_1_0_ends_with_its_connection(self):
        rows, peer = exchanges(says(HEAD.replace(b"1.1", b"1.0") + b"\r\n", BODY, then=closing), count=2)
        for exchange in rows:
            assert_whole(exchange)
        assert peer.connections == 2

    def test_wherever_tcp_splits_a_chunked_answer_it_is_the_same(self):
        wire = chunked(size=23)

        async def run():
            cut = 0

            async def answer(_reader, writer):
                for piece in (wire[:cut], wire[cut:]):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                return False

            async with listening(answer) as (peer, url):
                slot = HttpSlot(Endpoint(url, "completions"), 0, GENEROUS_S)
                for cut in range(1, len(wire)):  # noqa: B007
                    assert_whole(read_exchange(await ask(slot)))
                assert peer.connections == 1
                slot.close()

        asyncio.run(run())

    def test_many_requests_share_one_connection(self):
        rows, peer = exchanges(says(chunked()), count=50)
        assert peer.connections == 1
        assert len(peer.requests) == 50
        assert {exchange.status for exchange in rows} == {"ok"}


class TestStamps:
    def test_reads_are_stamped_in_order_between_send_and_end(self):
        [exchange], _ = exchanges(says(LENGTH, BODY[:200], BODY[200:]))
        times = [t_ns for t_ns, _ in exchange.token_times]
        assert exchange.t_send_ns < times[0] == exchange.t_first_ns <= times[-1] <= exchange.t_end_ns

    def test_the_end_is_the_arrival_of_the_last_byte(self):
        [exchange], _ = exchanges(says(LENGTH + BODY))
        assert exchange.t_end_ns == exchange.token_times[-1][0]

    def test_a_token_that_came_before_a_pause_is_stamped_before_it(self):
        first = one_read_per_event(completion("4", 1))[0][1]
        pause_s = 0.2

        async def answer(_reader, writer):
            writer.write(LENGTH + first)
            await asyncio.sleep(pause_s)
            writer.write(BODY[len(first) :])
            return False

        [exchange], _ = exchanges(answer)
        assert exchange.token_times[1][0] - exchange.token_times[0][0] > 0.9 * pause_s * 1e9


def test_a_request_is_on_the_wire_when_send_returns():
    """So that the time of sending is not that of a burst's first, with the writes behind its last."""

    async def run():
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            slot = HttpSlot(Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}", "completions"), 0, GENEROUS_S)
            answered = loop.create_future()
            slot.send(REQUEST, answered.set_result)
            connection, _ = await loop.sock_accept(listener)
            with connection:
                await loop.sock_recv(connection, 65536)
                await loop.sock_sendall(connection, LENGTH + BODY)
                await answered
                slot.send(REQUEST, lambda raw: None)
                received = connection.recv(65536)
                slot.close()
                return received

    assert uvloop.run(run()).endswith(REQUEST.body)


class TestRequests:
    @pytest.mark.parametrize(
        ("api", "path"), [("completions", b"/base/v1/completions"), ("chat", b"/base/v1/chat/completions")]
    )
    def test_what_is_sent(self, api, path):
        async def run():
            async with listening(says(LENGTH + BODY)) as (peer, url):
                slot = HttpSlot(Endpoint(url + "/base", api, "secret"), 0, GENEROUS_S)
                await ask(slot)
                slot.close()
                return peer.requests, url

        [(head, body)], url = asyncio.run(run())
        lines = head.split(b"\r\n")
        assert lines[0] == b"POST " + path + b" HTTP/1.1"
        assert b"Host: " + url.removeprefix("http://").encode() in lines
        assert b"Authorization: Bearer secret" in lines
        assert b"Content-Type: application/json" in lines
        assert body == REQUEST.body


def test_a_slot_is_answering_from_the_first_byte_of_the_body():
    async def run():
        go_on = asyncio.Event()

        async def answer(_reader, writer):
            writer.write(LENGTH)
            await go_on.wait()
            writer.write(BODY[:10])
            return False

        async with listening(answer) as (_, url):
            slot = HttpSlot(Endpoint(url, "completions"), 0, GENEROUS_S)
            before_send = slot.answering
            slot.send(REQUEST, lambda raw: None)
            await asyncio.sleep(0.05)
            before_body = slot.answering
            go_on.set()
            await asyncio.sleep(0.05)
            in_body = slot.answering
            slot.close()
            return before_send, before_body, in_body, slot.answering

    assert asyncio.run(run()) == (False, False, True, False)
