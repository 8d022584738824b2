"""Pieces: the body of an answer as it arrived."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Pieces(NamedTuple):
    """A body in pieces, as reader.c keeps it."""

    body: bytes
    places: Ints
    """Of shape (pieces, 3): where each ends in the body; when the read came that brought it, by the process; and by the
    kernel, on the realtime clock (0: not stamped)."""

    @classmethod
    def of(cls, pieces: Sequence[bytes], t_ns: Sequence[int], realtime_ns: Sequence[int]) -> Pieces:
        """Each with its stamps."""
        ends = accumulate(map(len, pieces))
        numbers = [*chain.from_iterable(zip(ends, t_ns, realtime_ns, strict=True))]
        return cls(b"".join(pieces), np.array(numbers, dtype=np.int64).reshape(-1, 3))

    @classmethod
    def joined(cls, parts: Sequence[Pieces]) -> Pieces:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        places, done, size = np.concatenate([part.places for part in parts]), 0, 0
        for part in parts:
            end = done + len(part.places)
            if size:
                places[done:end, 0] += size
            done, size = end, size + len(part.body)
        bodies = [part.body for part in parts if part.body]
        return cls(bodies[0] if len(bodies) == 1 else b"".join(bodies), places)

    def some(self, begin: int, end: int) -> list[bytes]:
        """Those from `begin` to before `end`, or to the last."""
        body, bounds = self.body, self.places[max(begin - 1, 0) : end, 0].tolist()
        return [body[a:b] for a, b in pairwise(bounds if begin else [0, *bounds])]

    def all(self) -> list[bytes]:
        return self.some(0, len(self.places))
