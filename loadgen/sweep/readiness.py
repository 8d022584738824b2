"""Readiness: servers that still load, and how long they are waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from loadgen.errors import UsageError
from loadgen.sweep.observer import Observer

T = TypeVar("T")
POLL_S = 0.5
REMEDY = "wait for it with --wait-ready 300"


class NotReady(UsageError):
    """A server that does not answer yet."""

    def __init__(self, where: str, words: str, *, loading: bool) -> None:
        what = f'is still loading ("{words}")' if loading else f"does not answer ({words})"
        remedy = REMEDY if loading else f"start the server or check the URL, or {REMEDY}"
        super().__init__(f"{where} {what}; {remedy}")
        self.what = f"{where} {what}"


class Patience:
    """Waits for servers, for so many seconds altogether."""

    def __init__(self, wait_ready_s: float, observer: Observer) -> None:
        self._wait_ready_s = wait_ready_s
        self._observer = observer
        self._deadline_s = time.monotonic() + wait_ready_s

    def warn(self, sentence: str) -> None:
        """Something that does not keep the sweep from beginning."""
        self._observer.warn(sentence)

    def wait(self, ask: Callable[[], T]) -> T:
        """What `ask` returns once it raises NotReady no more. Raises UsageError when the time is over."""
        told = ""
        while True:
            try:
                return ask()
            except NotReady as error:
                if not self._wait_ready_s:
                    raise
                if time.monotonic() + POLL_S > self._deadline_s:
                    waited = f"after --wait-ready {self._wait_ready_s:g}"
                    raise UsageError(f"{error.what} {waited}; give it longer") from None
                if error.what != told:
                    told = error.what
                    self._observer.note(f"{told}; waiting up to {self._wait_ready_s:g} s")
            time.sleep(POLL_S)
