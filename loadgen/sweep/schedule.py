"""Schedule: what an open loop asks, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import msgspec

from loadgen.client.arrivals import Arrivals
from loadgen.client.body import RequestMaker
from loadgen.client.exchange import Request
from loadgen.workload.item import Item


class Schedule:
    """Requests with their `t_scheduled_ns`: warm-up, the window's items in their order, then the cool-down.

    Every part has arrivals of its own from the seed, so that windows with the same seed have the same items due at the
    same times after they open, however long the warm-up took. A dropped arrival's item is not asked again.
    """

    def __init__(
        self,
        maker: RequestMaker,
        items: Sequence[Item],
        warmup_items: Sequence[Item],
        arrivals: Arrivals,
        seed: str,
        limit: int | None = None,
    ) -> None:
        self._maker = maker
        self._items = items
        self._warmup_items = warmup_items
        self._arrivals = arrivals
        self._seed = seed
        self._limit = limit
        self.measured = 0
        """Requests of the window given out so far."""
        self.dry_ns: int | None = None
        """When the last of `limit` requests was due; None: not yet."""

    def warmup(self, start_ns: int) -> Iterator[Request]:
        """Without end; the first is due at once."""
        offsets = self._arrivals.offsets_ns(f"{self._seed}/warmup")
        first_ns = next(offsets)
        yield self._unmeasured(0, start_ns)
        for k, offset_ns in zip(count(1), offsets, strict=False):
            yield self._unmeasured(k, start_ns + offset_ns - first_ns)

    def window(self, open_ns: int, close_ns: int | None) -> Iterator[Request]:
        """Items up to `close_ns` (or `limit` of them, where it is None), then the cool-down without end."""
        end_ns = open_ns
        for offset_ns in self._arrivals.offsets_ns(f"{self._seed}/window"):
            due_ns = open_ns + offset_ns
            if close_ns is not None and due_ns > close_ns:
                end_ns = close_ns
                break
            if self.measured == self._limit:
                self.dry_ns = end_ns
                break
            request = self._maker.measured(self._items[self.measured % len(self._items)])
            self.measured += 1
            end_ns = due_ns
            yield msgspec.structs.replace(request, t_scheduled_ns=due_ns)
        for k, offset_ns in zip(count(), self._arrivals.offsets_ns(f"{self._seed}/cooldown"), strict=False):
            yield msgspec.structs.replace(self._unmeasured(k, end_ns + offset_ns), phase="cooldown")

    def _unmeasured(self, k: int, due_ns: int) -> Request:
        request = self._maker.warmup(self._warmup_items[k % len(self._warmup_items)])
        return msgspec.structs.replace(request, t_scheduled_ns=due_ns)
