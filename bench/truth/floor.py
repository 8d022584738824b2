"""The floor: B streams read by epoll and recv alone, `python -m bench.truth.floor URL B ANSWERS [--keep]`.

It sends a request, reads until the answer's last chunk, stamps each read, and sends again: no framing, no JSON, no
journal. A client in Python does at least this. With `--keep` it does what one must that stamps by the kernel and parses
later: it reads with recvmsg, and keeps bytes and stamps until the answer's end.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
from time import monotonic_ns
from urllib.parse import urlsplit

from loadgen.load.kernelstamps import RX_SOFTWARE_AND_REPORT, SO_TIMESTAMPING, seconds_and_ns

LAST_CHUNK = b"0\r\n\r\n"
KEPT_BYTES = 4096
"""Of a read: an answer's last has some 800."""


def run(url: str, concurrency: int, answers: int, *, keep: bool) -> None:
    parts = urlsplit(url)
    usage = {"include_usage": True, "continuous_usage_stats": True}
    body = json.dumps({"model": "truth", "prompt": "a", "stream": True, "stream_options": usage}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    poller = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for _ in range(concurrency):
        sock = socket.create_connection((parts.hostname or "", parts.port or 80))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[sock.fileno()] = sock
        if keep:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_SOFTWARE_AND_REPORT)
        poller.register(sock.fileno(), select.EPOLLIN)
        sock.send(request)
    gc.disable()  # as loadgen does while a cell runs
    left = answers
    stamps: list[int] = []
    kept: dict[int, list[tuple[int, int, bytes]]] = {fd: [] for fd in sockets}
    while left > 0:
        for fd, _ in poller.poll():
            sock = sockets[fd]
            if keep:
                data, ancillary, _, _ = sock.recvmsg(KEPT_BYTES, 128)
                seconds, ns = seconds_and_ns(ancillary[0][2]) if ancillary else (0, 0)  # the first may have none
                kept[fd].append((monotonic_ns(), seconds * 1_000_000_000 + ns, data))
            else:
                data = sock.recv(65536)
                stamps.append(monotonic_ns())
            if data.endswith(LAST_CHUNK):
                left -= 1
                sock.send(request)
                stamps = []
                kept[fd] = []


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), keep="--keep" in sys.argv)
