"""Assignment: everything that a process needs to be a cell's load, or its share of one."""

from __future__ import annotations

from collections.abc import Callable

from loadgen.load.body import RequestMaker, RequestSettings
from loadgen.load.closedloop import Slot
from loadgen.load.exchange import Exchange, concealed
from loadgen.load.http import Endpoint, HttpSlot
from loadgen.load.load import WHOLE, ClosedLoad, Feed, LocalLoad, OnExchange, Share
from loadgen.load.openai_sdk import SdkSlot, sdk_client
from loadgen.load.openload import OpenLoad
from loadgen.load.openloop import Arrivals, Schedule
from loadgen.secret import Mask
from loadgen.workload.item import Item


class Assignment(RequestSettings, frozen=True, kw_only=True, tag="assignment"):
    """Which server to ask what, how, and how many requests at a time."""

    url: str
    api_key: str | None
    masked: tuple[str, ...] = ()
    """Values that no row may hold, besides the key and those in this process's environment."""
    transport: str
    timeout_s: float
    items: tuple[Item, ...]
    warmup_items: tuple[Item, ...]
    concurrency: int
    """Of all processes together; in an open loop the most requests in flight."""
    requests: int | None
    duration_s: float | None = None
    """The window's length, where it is known."""
    arrivals: Arrivals | None = None
    """None: a closed loop."""
    arrival_seed: str = ""
    drain_s: float | None = None
    """As `--drain` gives it."""
    share: Share = WHOLE

    def load(self, on_exchange: OnExchange) -> LocalLoad:
        """The share's load, on the running event loop. Raises UsageError when the transport is not installed."""
        mask = Mask(self.api_key, *self.masked)
        maker, make_slot = self.maker(), self.slot_maker()

        def on_masked(exchange: Exchange) -> None:
            on_exchange(concealed(exchange, mask))

        if self.arrivals is None:
            feed = Feed(maker, self.items, self.warmup_items, self.concurrency, self.requests, self.share)
            slots = {slot: make_slot(slot) for slot in self.share.slots(self.concurrency)}
            return ClosedLoad(slots, feed, on_masked, self.drain_s)
        schedule = Schedule(maker, self.items, self.warmup_items, self.arrivals, self.arrival_seed, self.requests)
        window_s = self.duration_s if self.duration_s is not None else (self.requests or 0) / self.arrivals.rate_per_s
        return OpenLoad(make_slot, self.concurrency, schedule, on_masked, window_s=window_s, drain_s=self.drain_s)

    def maker(self) -> RequestMaker:
        """What makes the share's requests."""
        return RequestMaker(self, self.share.first)

    def slot_maker(self) -> Callable[[int], Slot]:
        """What makes its slots, by number; to be called on the running event loop."""
        if self.transport == "openai":
            client = sdk_client(self.url, api_key=self.api_key, timeout_s=self.timeout_s)
            return lambda slot: SdkSlot(client, self.protocol.api, slot)
        endpoint = Endpoint(self.url, self.protocol.api, self.api_key)
        return lambda slot: HttpSlot(endpoint, slot, self.timeout_s)
