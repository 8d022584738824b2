"""Feed: which request a slot gets next, and when a cell is warm."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic_ns

import msgspec

from loadgen.client.body import RequestMaker
from loadgen.client.exchange import Request
from loadgen.workload.item import Item


class Share(msgspec.Struct, frozen=True):
    """Which of a cell's slots and items one process has: every `of`-th, from `first` on."""

    first: int = 0
    of: int = 1

    def slots(self, concurrency: int) -> range:
        """The numbers of its slots; the processes of a cell have B together, and none has two more than another."""
        return range(self.first, concurrency, self.of)


WHOLE = Share()


class Feed:
    """Warm-up requests, then the items in their order, over and over, until `stop` or until `limit` were given out.

    Of several processes each gives out the items of its share; together they give out every item as often as one
    process would, and each asks its own in the items' order.

    The first warm-up request of slot k asks for (k+1)/B of the token limit: the slots' ends spread over one answer
    time, and refills do not arrive in bursts. Slots change over to measured items one by one, without a drain.
    """

    def __init__(
        self,
        maker: RequestMaker,
        items: Sequence[Item],
        warmup_items: Sequence[Item],
        concurrency: int,
        limit: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        self._maker = maker
        self._items = items
        self._warmup_items = warmup_items
        self._concurrency = concurrency
        self._warmups_sent = dict.fromkeys(share.slots(concurrency), 0)
        self.limit = limit
        self._step = share.of
        self._next_item = share.first
        self.warm = False
        """Set when the warm-up time is over: slots that had a warm-up request get measured items."""
        self.dry_ns: int | None = None
        """When a slot first asked for a request and none was left."""
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def next_request(self, slot: int) -> Request | None:
        if self._stopped:
            return None
        sent = self._warmups_sent[slot]
        if sent == 0 or not self.warm:
            self._warmups_sent[slot] += 1
            item = self._warmup_items[(slot + sent * self._concurrency) % len(self._warmup_items)]
            return self._maker.warmup(item, 1.0 if sent else (slot + 1) / self._concurrency)
        if self.limit is not None and self._next_item >= self.limit:
            self.dry_ns = self.dry_ns or monotonic_ns()
            return None
        item = self._items[self._next_item % len(self._items)]
        self._next_item += self._step
        return self._maker.measured(item)
