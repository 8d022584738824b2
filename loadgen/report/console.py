"""The console on stdout. No text is taken for markup, since any may come from a server."""

from __future__ import annotations

import sys

from rich.console import Console

from loadgen.visible import VisibleStream


def stdout_console(*, width: int) -> Console:
    """Writes to stdout past `VisibleStream`, because rich's own control sequences are meant to be obeyed; whoever
    prints makes texts visible first. `width`: where stdout is no terminal."""
    file = sys.stdout.stream if isinstance(sys.stdout, VisibleStream) else sys.stdout
    return Console(file=file, width=None if file.isatty() else width, markup=False, highlight=False, emoji=False)
