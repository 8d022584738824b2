"""Feed: which request a slot gets next, and when a cell is warm."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic_ns

from loadgen.client.body import RequestMaker
from loadgen.client.exchange import Request
from loadgen.workload.item import Item


class Feed:
    """Warm-up requests, then the items in their order, over and over, until `stop` or until `limit` were given out.

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
    ) -> None:
        self._maker = maker
        self._items = items
        self._warmup_items = warmup_items
        self._concurrency = concurrency
        self._warmups_sent = [0] * concurrency
        self._limit = limit
        self._next_item = 0
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
        if self._limit is not None and self._next_item >= self._limit:
            self.dry_ns = self.dry_ns or monotonic_ns()
            return None
        item = self._items[self._next_item % len(self._items)]
        self._next_item += 1
        return self._maker.measured(item)
