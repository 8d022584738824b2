"""With CI=true, tests that measure run alone on the machine; the others, before them, in a process per core."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

MEASURED = ("tests/integration/", "tests/e2e/")


def measured(nodeid: str) -> bool:
    """Whether the test starts servers and measures them."""
    return nodeid.startswith(MEASURED)


class MeasuredInOneProcess(LoadFileScheduling):
    """A file's tests in one process, and all that measure in one, which keeps what they have started and built."""

    def _split_scope(self, nodeid: str) -> str:
        return "measured" if measured(nodeid) else str(super()._split_scope(nodeid))


@contextmanager
def measured_alone(nodeid: str) -> Iterator[None]:
    """Waits until no process of this checkout runs a test beside one that measures."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if measured(nodeid) else fcntl.LOCK_SH)
        yield
