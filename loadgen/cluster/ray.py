"""Cluster: Ray, which runs the tasks: it decides when each begins, on which node and on which of its GPUs.

Ray is imported when a cluster is opened: nothing else of loadgen needs it.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from loadgen.cluster.node import Delivery, Order, carry_out
from loadgen.errors import UsageError
from loadgen.secret import error_text

INSTALL = "{} needs Ray: pip install 'vllm-loadgen[ray]'"
LOCAL = "local"
HEAD = "node:__internal_head__"
"""The resource that only the head node has."""
ADDRESSES = (
    "write auto (the cluster of this machine), HOST:6379 or ray://HOST:10001; "
    "for a cluster that wants a token set RAY_AUTH_MODE=token"
)


def connected(address: str, option: str, what: str, **options: Any) -> Any:
    """Ray, connected to the cluster at an address, or to one that it starts here (`local`).

    Raises UsageError where Ray is not installed, which `what` needs, or no cluster is at the address of the `option`.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UsageError(INSTALL.format(what)) from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", namespace="loadgen", **options)
    except Exception as error:
        raise UsageError(f"{option} {address}: no Ray cluster answers ({error_text(error)}); {ADDRESSES}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own prints the stack of whatever runs
    return ray


class Slot(msgspec.Struct, frozen=True):
    """A place for tasks: as many GPUs of one node as a task takes."""

    node_id: str
    accelerator: str = ""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How an order ended: with a delivery, or with an error."""

    order: Order
    delivery: Delivery | None = None
    error: str = ""
    lost: bool = False
    """Its node or its process died."""


class Board:
    """An actor to which the tasks say how far they are."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, str]] = {}

    def say(self, task: str, where: str, text: str) -> None:
        self._said[task] = where, text

    def read(self) -> dict[str, tuple[str, str]]:
        return self._said


class Cluster:
    """A connection to Ray; a context manager, and what it leaves undone ends with it."""

    def __init__(self, address: str | None, *, local_gpus: int | None = None) -> None:
        """`address` None: RAY_ADDRESS, else an instance on this machine, with `local_gpus` made ones where given.

        Raises UsageError where Ray is not installed, or no cluster is at the address.
        """
        address = address or os.environ.get("RAY_ADDRESS") or LOCAL
        options: dict[str, Any] = {"num_gpus": local_gpus} if address == LOCAL and local_gpus else {}
        self._ray = connected(address, "--ray-address", "loadgen grid", **options)
        self.address = address
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        self._affinity: Any = strategies.NodeAffinitySchedulingStrategy
        self._orders: dict[Any, Order] = {}
        head = next((node["NodeID"] for node in self._nodes() if HEAD in node["Resources"]), None)
        pinned = {"scheduling_strategy": self._affinity(head, soft=True)} if head else {}
        self._board = self._ray.remote(Board).options(num_cpus=0, **pinned).remote()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def _nodes(self) -> Iterator[Mapping[str, Any]]:
        yield from (node for node in self._ray.nodes() if node["Alive"])

    def slots(self, gpus: int, kinds: Mapping[str, int]) -> list[Slot]:
        """Places for tasks of `gpus` GPUs each: by accelerator type as many as asked for, else all there are.

        Ones of different nodes come first. A study may ask for more than there are: they are shared. Raises UsageError
        where the cluster has none.
        """
        found: list[Slot] = []
        for kind, count in (kinds or {"": 0}).items():
            there = self._places(gpus, kind)
            if not there:
                what = f"{gpus} GPU{'s' * (gpus > 1)}" + (f" of type {kind}" if kind else "")
                known = sorted({name.partition(":")[2] for node in self._nodes() for name in node["Resources"]
                                if name.startswith("accelerator_type:")})  # fmt: skip
                types = f"; the types there are {', '.join(known)}" if known and kind else ""
                raise UsageError(f"no node of the Ray cluster ({self.address}) has {what}{types}: start one with "
                                 f"`ray start --address=... --num-gpus={gpus}`")  # fmt: skip
            found += [there[place % len(there)] for place in range(count or len(there))]
        return found

    def _places(self, gpus: int, kind: str) -> list[Slot]:
        places = []
        for node in self._nodes():
            resources = node["Resources"]
            if not kind or f"accelerator_type:{kind}" in resources:
                room = int(resources.get("GPU", 0)) // gpus
                places += [(turn, node["NodeID"]) for turn in range(room)]
        return [Slot(node_id, kind) for _, node_id in sorted(places)]

    def has_room(self, gpus: int) -> bool:
        """Whether some node that is alive could ever run such a task."""
        return bool(self._places(gpus, ""))

    def submit(self, order: Order, slot: Slot | None) -> None:
        """Hands an order to Ray, for the slot's node as long as that is alive; else for any node."""
        task = order.task
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": task.gpus, "max_retries": 0, "name": task.id}
        if slot is not None:
            options["scheduling_strategy"] = self._affinity(slot.node_id, soft=True)
        if task.accelerator:
            options["accelerator_type"] = task.accelerator
        remote = self._ray.remote(_on_node).options(**options)
        self._orders[remote.remote(msgspec.json.encode(order), self._board)] = order

    def wait(self, timeout_s: float) -> list[Ended]:
        """The orders that ended within that time."""
        if not self._orders:
            return []
        ready, _ = self._ray.wait(list(self._orders), num_returns=len(self._orders), timeout=timeout_s)
        return [self._ended(reference) for reference in ready]

    def _ended(self, reference: Any) -> Ended:
        order, errors = self._orders.pop(reference), self._ray.exceptions
        try:
            return Ended(order=order, delivery=msgspec.msgpack.decode(self._ray.get(reference), type=Delivery))
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), BaseException) else error
            return Ended(order=order, error=error_text(cause))
        except errors.RayError as error:
            first = next(iter(str(error).strip().splitlines()), "")
            return Ended(order=order, error=f"{type(error).__name__}: {first}", lost=True)

    def said(self) -> dict[str, tuple[str, str]]:
        """By task, where it runs and how far it is, of those that have begun."""
        try:
            found: dict[str, tuple[str, str]] = self._ray.get(self._board.read.remote(), timeout=5)
        except self._ray.exceptions.RayError:
            return {}
        return found


def _on_node(order: bytes, board: Any) -> bytes:
    """The remote function."""
    ray: Any = importlib.import_module("ray")
    known, context = msgspec.json.decode(order, type=Order), ray.get_runtime_context()
    node_id, gpus = context.get_node_id(), ray.get_gpu_ids()
    where = ", ".join(f"{number}@{node_id[:8]}" for number in gpus)

    def tell(text: str) -> None:
        board.say.remote(known.task.id, where, text)

    tell("begins")
    return msgspec.msgpack.encode(carry_out(known, node_id, gpus, tell))
