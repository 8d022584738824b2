"""ClockOffset: how far an exporter's CLOCK_MONOTONIC is ahead of ours, and how well that is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns

import msgspec

from loadgen.power.wire import ClockReading

EXCHANGES = 20
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ClockOffset(msgspec.Struct, frozen=True, kw_only=True):
    """Exporter's clock minus ours."""

    offset_ns: int
    bound_ns: int
    """The true offset is within this of `offset_ns`: half the quickest exchange."""
    same_machine: bool
    """Both read one clock: the offset is exactly 0."""

    def local_ns(self, remote_ns: int) -> int:
        """The instant of the exporter's clock on ours."""
        return remote_ns - self.offset_ns


def boot_id() -> str | None:
    """This kernel's boot, None where the kernel does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return None


def measure_offset(
    read: Callable[[], ClockReading], *, own_boot_id: str | None, now_ns: Callable[[], int] = monotonic_ns
) -> ClockOffset:
    """The offset by the quickest of 20 exchanges: the exporter read its clock between our two readings.

    An equal boot id means one shared clock, unless the readings contradict it (time namespaces). Passes on what `read`
    raises.
    """
    quickest: tuple[int, int] | None = None
    shared = True
    for _ in range(EXCHANGES):
        before_ns = now_ns()
        theirs = read()
        after_ns = now_ns()
        shared &= theirs.boot_id is not None and theirs.boot_id == own_boot_id
        shared &= before_ns <= theirs.monotonic_ns <= after_ns
        took_ns = after_ns - before_ns
        if quickest is None or took_ns < quickest[0]:
            quickest = took_ns, theirs.monotonic_ns - (before_ns + after_ns) // 2
    assert quickest is not None
    if shared:
        return ClockOffset(offset_ns=0, bound_ns=0, same_machine=True)
    took_ns, offset_ns = quickest
    return ClockOffset(offset_ns=offset_ns, bound_ns=(took_ns + 1) // 2, same_machine=False)
