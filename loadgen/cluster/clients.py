"""Clients on other nodes: the client processes of `--workers ray:N`, on the nodes of a Ray cluster.

Each connects back to the sweep over TCP. Its times are brought to the sweep's clock by an offset that is measured
before the load begins, every 10 s, and after its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib
import os
import secrets
import socket
import subprocess
from collections.abc import Mapping
from time import monotonic_ns
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace

from loadgen import __version__
from loadgen.cluster.node import environment
from loadgen.cluster.ray import connected
from loadgen.errors import UsageError
from loadgen.load.exchange import Exchange, shifted
from loadgen.load.load import ClientNode, OnExchange
from loadgen.load.worker import Assignment, Report, WorkerClock, WorkerState
from loadgen.load.workers import PREPARE_DEADLINE_S, WorkerProcess, ended_words, worker_argv
from loadgen.power.feed import EXCHANGES, clock_offset
from loadgen.power.sample import ClockOffset, boot_id
from loadgen.power.wire import ClockReading
from loadgen.secret import error_text, without_secrets
from loadgen.webserver import is_on_loopback

OPTION = "--workers ray:N"
ANSWER_DEADLINE_S = 15.0
"""A worker that does not tell its clock for so long is lost with its node."""
_TOKEN_BYTES = 32


class RayClients:
    """The nodes of a cluster on which client processes are started, until `close`."""

    def __init__(self) -> None:
        """The cluster of RAY_ADDRESS, else this machine's. Raises UsageError where there is none, or no Ray."""
        self._ray = connected(os.environ.get("RAY_ADDRESS") or "auto", "RAY_ADDRESS", OPTION)
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        self._affinity: Any = strategies.NodeAffinitySchedulingStrategy
        self._address = str(importlib.import_module("ray.util").get_node_ip_address())
        here = str(self._ray.get_runtime_context().get_node_id())
        alive = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        self._nodes = [node for node in alive if node["NodeID"] != here] or alive
        if not self._nodes:
            raise UsageError(f"{OPTION}: no node of the Ray cluster has a CPU for it; start one with `ray start`")

    def close(self) -> None:
        self._ray.shutdown()

    def placed(self, count: int) -> str:
        """Where so many processes run: never on this node, if there are others."""
        names = [str(node["NodeManagerHostname"]) for node in self._nodes]
        return f"{count} process{'es' * (count > 1)} on {', '.join(dict.fromkeys(names[:count]))}"

    def worker(self, assignment: Assignment, on_ended: OnExchange, changed: asyncio.Event) -> RayWorker:
        """The client process of a share, on the node whose turn it is."""
        node = self._nodes[assignment.share.first % len(self._nodes)]
        pinned = self._affinity(node["NodeID"], soft=False)
        options = {"num_cpus": 1, "max_retries": 0, "name": "loadgen-client", "scheduling_strategy": pinned}
        remote = self._ray.remote(work).options(**options)
        return RayWorker(self._ray, remote, node, self._address, assignment, on_ended, changed)


def work(host: str, port: int, token: bytes, version: str) -> str:
    """On the node: runs a client process on a connection to the sweep, and returns how it ended; empty: well."""
    if version != __version__:
        return f"has loadgen {__version__} there and {version} here: install one version on every node"
    with socket.create_connection((host, port), timeout=30) as end:
        end.sendall(token)
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        process = subprocess.Popen(
            worker_argv(end), env=without_secrets(environment(), None), pass_fds=[end.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    output, _ = process.communicate()
    return ended_words(process.returncode, output) if process.returncode else ""


class RayWorker(WorkerProcess):
    """One worker on a node of the cluster, which may be another machine with another clock."""

    def __init__(
        self,
        ray: Any,
        remote: Any,
        node: Mapping[str, Any],
        address: str,
        assignment: Assignment,
        on_ended: OnExchange,
        changed: asyncio.Event,
    ) -> None:
        """`address`: where the node reaches this process."""
        super().__init__(assignment, on_ended, changed)
        self._ray, self._remote, self._address = ray, remote, address
        self._name = str(node["NodeManagerHostname"])
        self._task: Any = None
        self._clock: ClockOffset | None = None
        """As last measured."""
        self._bound_ns = 0
        self._told: asyncio.Future[tuple[WorkerClock, int]] | None = None

    async def _spawn(self) -> socket.socket | None:
        token = secrets.token_bytes(_TOKEN_BYTES)
        with socket.create_server((self._address, 0)) as listener:
            listener.setblocking(False)
            self._task = self._remote.remote(self._address, listener.getsockname()[1], token, __version__)
            ended = asyncio.wrap_future(self._task.future())
            accepted = asyncio.create_task(_accept(listener, token))
            await asyncio.wait([ended, accepted], timeout=PREPARE_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
            if accepted.done():
                ours: socket.socket = accepted.result()
                for option, seconds in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 2)):
                    ours.setsockopt(socket.IPPROTO_TCP, option, seconds)
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return ours
            accepted.cancel()
        self.fail(self._how_it_ended() if ended.done() else f"did not connect to {self._address} from {self._name} "
                  f"within {PREPARE_DEADLINE_S:g} s: is a CPU of that node free?")  # fmt: skip
        return None

    async def set_clock(self) -> None:
        """Fails the worker where its node answers no more, or does not reach the server."""
        exchanges = []
        for _ in range(EXCHANGES):
            self._told = asyncio.get_running_loop().create_future()
            before_ns = monotonic_ns()
            self.send("tell_clock")
            try:
                clock, after_ns = await asyncio.wait_for(self._told, ANSWER_DEADLINE_S)
            except TimeoutError:
                self._lose(f"on {self._name} has not answered for {ANSWER_DEADLINE_S:g} s")
                return
            exchanges.append((before_ns, ClockReading(monotonic_ns=clock.monotonic_ns, unix_ns=0,
                                                      boot_id=clock.boot_id), after_ns))  # fmt: skip
        found = clock_offset(exchanges, own_boot_id=boot_id())
        before = self._clock or found
        self._bound_ns = max(self._bound_ns, abs(found.offset_ns - before.offset_ns) + found.bound_ns, before.bound_ns)
        self._clock = found
        self.node = ClientNode(name=self._name, clock=replace(found, bound_ns=self._bound_ns))
        if clock.boot_id != boot_id() and is_on_loopback(self._assignment.url):
            host = urlsplit(self._assignment.url).netloc
            self._lose(f"is on {self._name}, from where {host} is another machine: measure it with --target, under an "
                       f"address that {self._name} reaches")  # fmt: skip

    def end(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._task is not None:
            with contextlib.suppress(Exception):  # it has ended, or its node has
                self._ray.cancel(self._task, force=True)

    def _lose(self, what: str) -> None:
        self.fail(what)
        self.running = False
        self._changed.set()

    def _on_report(self, report: Report) -> None:
        if isinstance(report, WorkerClock):
            if self._told is not None and not self._told.done():
                self._told.set_result((report, monotonic_ns()))
            return
        offset_ns = self._clock.offset_ns if self._clock is not None else 0
        if isinstance(report, Exchange):
            report = shifted(report, -offset_ns)
        elif isinstance(report, WorkerState) and report.dry_ns is not None:
            report = replace(report, dry_ns=report.dry_ns - offset_ns)
        super()._on_report(report)

    def _how_it_ended(self) -> str:
        """By what its task returned."""
        where = f"on {self._name}"
        try:
            said = self._ray.get(self._task, timeout=5)
        except self._ray.exceptions.GetTimeoutError:
            return f"{where} closed its channel"
        except Exception as error:
            return f"{where} was lost: {error_text(error).partition(chr(10))[0]}"
        return f"{where} {said or 'ended'}"


async def _accept(listener: socket.socket, token: bytes) -> socket.socket:
    """The connection of the node that knows the token."""
    loop = asyncio.get_running_loop()
    while True:
        end, _ = await loop.sock_accept(listener)
        end.setblocking(False)
        said = b""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                while len(said) < _TOKEN_BYTES and (more := await loop.sock_recv(end, _TOKEN_BYTES - len(said))):
                    said += more
        if hmac.compare_digest(said, token):
            return end
        end.close()
