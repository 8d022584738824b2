"""With CI=true, tests that measure run alone on the machine; the others, before them, in a process per core."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

MEASURED = ("tests/integration/", "tests/e2e/")
ON_VLLM = (
    "tests/e2e/test_environments.py",
    "tests/e2e/test_real_accuracy.py",
    "tests/e2e/test_real_precisions.py",
    "tests/e2e/test_gpu_checkpoints.py",
)
"""They use the environments and models that the first of them makes: one after another in one process."""
BESIDE = (
    *ON_VLLM,
    "tests/e2e/test_docker_stack.py",
    "tests/e2e/test_gpu_studies.py",
    "tests/e2e/test_gpu_dry_run.py",
    "tests/integration/test_find_kill.py",
    "tests/integration/test_kill.py",
    "tests/integration/test_secrets.py",
    "tests/e2e/test_report_in_chromium.py",
    "tests/integration/test_dashboards_grafana.py",
    "tests/integration/test_hostile_text.py",
    "tests/integration/test_caching_servers.py",
    "tests/integration/test_shapes_of_a_server.py",
)
"""Files there whose tests compare no measured figure and need no valid cell: they run beside other tests. They take
long, the first ones longest, so that they are begun first."""
ORDER = {file: place for place, file in enumerate(BESIDE)}


def measured(nodeid: str) -> bool:
    """Whether the test starts servers and measures them."""
    return nodeid.startswith(MEASURED) and _file(nodeid) not in ORDER


def place(nodeid: str) -> int:
    """Where the test's file comes in a complete run: those that take long first, those that measure last."""
    return len(ORDER) + 1 if measured(nodeid) else ORDER.get(_file(nodeid), len(ORDER))


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


class MeasuredInOneProcess(LoadFileScheduling):
    """A file's tests in one process. So are those on vLLM that run beside others, and all that measure: it keeps what
    they have started and built."""

    def _split_scope(self, nodeid: str) -> str:
        if _file(nodeid) in ON_VLLM:
            return "vllm"
        return "measured" if measured(nodeid) else str(super()._split_scope(nodeid))


@contextmanager
def measured_alone(nodeid: str) -> Iterator[None]:
    """Waits until no process of this checkout runs a test beside one that measures."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if measured(nodeid) else fcntl.LOCK_SH)
        yield
