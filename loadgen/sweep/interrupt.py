"""Interrupt: what Ctrl-C and SIGTERM mean while a sweep runs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupt:
    """Ctrl-C once: requests in flight may finish. Twice, or SIGTERM, whose sender may kill soon: stop at once.

    Where nothing is in flight both raise KeyboardInterrupt; a cell looks at `asked` and `hurried` instead.
    """

    def __init__(self) -> None:
        self.asked = False
        """The sweep is to stop."""
        self.hurried = False
        """At once."""
        self._patient = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Within, the signals come here, but for those that are ignored or that the program handles itself."""
        previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    previous[number] = signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Within, nothing is raised; KeyboardInterrupt at its end, if somebody asked."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False
        if self.asked:
            raise KeyboardInterrupt

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.hurried = self.asked or number == signal.SIGTERM
        self.asked = True
        if not self._patient:
            raise KeyboardInterrupt
