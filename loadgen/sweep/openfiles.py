"""Open files: every request in flight is one, and the soft limit of a shell (1024, or less) may be lower than B."""

from __future__ import annotations

import math
import resource

from loadgen.errors import UsageError
from loadgen.sweep.config import SweepConfig

BESIDE_CONNECTIONS = 64
"""Open files of a client process beside its connections: journal, scrapes of /metrics, logs, libraries."""


def files_needed(config: SweepConfig) -> int:
    """The most open files of one client process: its share of the largest B, and what it needs beside them."""
    return math.ceil(max(config.concurrency) / (config.workers or 1)) + BESIDE_CONNECTIONS


def allow_open_files(config: SweepConfig) -> None:
    """Raises this process's soft limit of open files as far as the sweep needs; its children inherit it.

    Raises UsageError where the hard limit is lower than that.
    """
    needed = files_needed(config)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        b = max(config.concurrency)
        raise UsageError(
            f"--concurrency {b} needs {needed} open files, and this process may open {hard} (ulimit -Hn); raise that "
            f"limit, or lower --concurrency to {max(1, hard - BESIDE_CONNECTIONS)} or less"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
