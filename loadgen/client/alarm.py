"""Alarm: calls back at an instant of CLOCK_MONOTONIC, within a fraction of a millisecond where the kernel can."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable

_TFD_TIMER_ABSTIME = 1
_LIBC = ctypes.CDLL(None)


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """One callback at a time, never early; setting it again replaces the instant.

    The event loop's own timers tick in milliseconds, and libuv's fire up to one too early. Linux has timers that are
    file descriptors (timerfd_create(2)); elsewhere the loop's timers must do.
    """

    def __init__(self, on_due: Callable[[], None]) -> None:
        self._on_due = on_due
        self._loop = asyncio.get_running_loop()
        self._t_ns: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fd = _timerfd() if sys.platform == "linux" else -1
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._ring)

    def set(self, t_ns: int) -> None:
        """Calls back at `t_ns`; if that is over, in the loop's next turn."""
        self._t_ns = t_ns
        if self._fd >= 0:
            _arm(self._fd, t_ns)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(t_ns - time.monotonic_ns(), 0) / 1e9, self._ring)

    def close(self) -> None:
        self._t_ns = None
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ring(self) -> None:
        t_ns = self._t_ns
        if self._fd >= 0:
            try:
                os.read(self._fd, 8)
            except BlockingIOError:
                return
        if t_ns is None:
            return
        if time.monotonic_ns() < t_ns:
            self.set(t_ns)
            return
        self._t_ns = None
        self._on_due()


def _timerfd() -> int:
    """A timer of CLOCK_MONOTONIC as a file descriptor; -1 where the C library has none."""
    create = getattr(_LIBC, "timerfd_create", None)
    return -1 if create is None else int(create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))


def _arm(fd: int, t_ns: int) -> None:
    value = _Timespec(*divmod(max(t_ns, 1), 1_000_000_000))
    _LIBC.timerfd_settime(fd, _TFD_TIMER_ABSTIME, ctypes.byref(_Itimerspec(_Timespec(0, 0), value)), None)
