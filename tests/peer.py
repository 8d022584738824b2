"""Raw HTTP peers for tests of transports: they answer byte by byte as told."""

import asyncio
import contextlib
import socket

from streams import DONE, REQUEST, completion, one_read_per_event, usage

from loadgen.load.exchange import read_exchange
from loadgen.load.http import Endpoint, HttpSlot

BODY = b"".join(
    data for _, data in one_read_per_event(completion("4", 1), completion("2", 2, finish="stop"), usage(2), DONE)
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
LENGTH = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY)
GENEROUS_S = 30.0


def chunked(body=BODY, size=37):
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return (
        HEAD
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    )


class Peer:
    """Listens; `answer(reader, writer)` is called for every request, until it returns True or the connection ends."""

    def __init__(self, answer):
        self._answer = answer
        self.connections = 0
        self.requests = []

    async def serve(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append((head, await reader.readexactly(length)))
                if await self._answer(reader, writer):
                    break
        writer.close()


@contextlib.asynccontextmanager
async def listening(answer):
    peer = Peer(answer)
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    try:
        yield peer, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def ask(slot, request=REQUEST):
    answered = asyncio.get_running_loop().create_future()
    slot.send(request, answered.set_result)
    return await asyncio.wait_for(answered, GENEROUS_S)


def exchanges(answer, count=1, timeout_s=GENEROUS_S):
    """What `count` requests on one slot come to, and the peer that answered them."""

    async def run():
        async with listening(answer) as (peer, url):
            slot = HttpSlot(Endpoint(url, "completions"), 0, timeout_s)
            rows = [read_exchange(await ask(slot)) for _ in range(count)]
            slot.close()
            return rows, peer

    return asyncio.run(run())


def says(*pieces, then=lambda writer: False):
    """An answer in pieces that leave one by one; `then(writer)` says whether the connection ends."""

    async def answer(_reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return then(writer)

    return answer


def closing(_writer):
    return True


def resetting(writer):
    linger_0 = b"\x01\x00\x00\x00\x00\x00\x00\x00"
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_0)
    writer.transport.abort()
    return True
