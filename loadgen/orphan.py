"""How a process that loadgen started for itself ends with it, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """From now on this process is killed when its parent's main thread ends; at once, if that was before.

    `parent` is the parent's process id. Only Linux knows how: elsewhere it lives on until it notices.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
