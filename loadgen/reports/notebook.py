"""Run: a run directory, opened, with what a notebook shows of it. NotebookView: a sweep as it runs in a notebook."""

from __future__ import annotations

import asyncio
import io
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from rich.console import Console

from loadgen.analysis import run as opened
from loadgen.errors import UsageError
from loadgen.measure.observer import Observer, Progress
from loadgen.notation import did_you_mean, spelled
from loadgen.reports.html.answer import sentences
from loadgen.reports.html.markup import Html, element, items
from loadgen.reports.live import PlainView, QuietView
from loadgen.reports.terminal import subject
from loadgen.secret import visible_line, visible_message
from loadgen.words import STAMP, number

Show = Callable[[Mapping[str, str]], None]
"""Shows contents by MIME type in the place of what it showed before."""


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """A figure, as a notebook shows it."""

    title: str
    caption: str
    """What is drawn, which intervals, where its numbers are."""
    alt: str
    svg: str

    def __repr__(self) -> str:
        return f"Plot({self.title!r})"

    def _repr_html_(self) -> str:
        return element("figure", self.image, element("figcaption", self.caption))

    @property
    def image(self) -> Html:
        """A picture that shares no ids or styles with others of the page."""
        source = f"data:image/svg+xml;base64,{b64encode(self.svg.encode()).decode()}"
        return element("img", src=source, alt=self.alt, style="background: white; max-width: 100%")


class Run(opened.Run):
    """What a sweep left behind: data frames with units in the names of their columns, the answer, and its figures."""

    @property
    def answer(self) -> tuple[str, ...]:
        """What the run says of each target against the reference, a text each; in an open loop by its rates."""
        return tuple(f"{STAMP}: {text}" if self.manifest.simulated else text for text in sentences(self))

    def plot(self, metric: str = "energy_per_query_j") -> Plot:
        """A metric over the running batch, in an open loop over several rates: a curve for each target.

        `metric`: a column such as tokens_per_s, energy_per_query_j, accuracy or ttft_ms_p50, or `si`, `cor`,
        `advantage`, `pareto` or `pareto-energy`, as report.html has them. Raises UsageError for another one, and where
        it was not measured.
        """
        from loadgen.reports.figures.curves import CURVES, draw_advantage, draw_cor, draw_curves, draw_si
        from loadgen.reports.figures.pareto import draw_pareto
        from loadgen.reports.figures.sheet import looks_of

        names = {curve.column: curve.name for curve in CURVES}
        over_b = {"si": draw_si, "cor": draw_cor, "advantage": draw_advantage}
        pareto = ("pareto", "pareto-energy")
        known = (*names, *over_b, *pareto)
        if (name := spelled(metric, known)) not in known:
            raise UsageError(f"no figure of {metric!r}; {did_you_mean(metric, known)}choose from {', '.join(known)}")
        looks = looks_of(self.summary["target"])
        with TemporaryDirectory() as folder:
            given = (self, looks, Path(folder))
            if name in pareto:
                drawn = next(draw_pareto(*given, only=name), None)
            elif name in over_b:
                drawn = over_b[name](*given) if self.arrival is None else None
            else:
                drawn = next(draw_curves(*given, only=names[name]), None)
            if drawn is None:
                raise UsageError(f"{self.path} has no figure of {name}: it was not measured, or at one rate only")
            return Plot(title=drawn.title, caption=drawn.caption, alt=drawn.alt, svg=drawn.svg.read_text("utf-8"))

    def _repr_html_(self) -> str:
        """The subject, the answer, and the figure of energy, or else of throughput."""
        parts: list[str] = [element("h3", subject(self)), items(self.answer)]
        for metric in ("energy_per_query_j", "tokens_per_s"):
            try:
                parts.append(element("div", self.plot(metric).image))
            except UsageError:
                continue
            break
        return element("div", *parts, element("p", f"Everything is in {self.path / 'report.html'}"))


class NotebookView(PlainView):
    """One output that is updated: a line for each event, and the running cell in the last line. Plain text."""

    def __init__(self, show: Show) -> None:
        super().__init__(Console(file=io.StringIO()))
        self._show = show
        self._lines: list[str] = []

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        cell = progress.cell
        figures = {"tok/s": number(progress.tokens_per_s, 0), "ms TTFT": number(progress.ttft_ms, 1),
                   "W": number(progress.power_w, 0)}  # fmt: skip
        shown = "".join(f", {value} {unit}" for unit, value in figures.items() if value)
        place = f"[{self._pace.ended + 1}/{self._pace.cells}]"
        self._update(f"{place} {visible_line(cell.target)} {cell.level}: {progress.stage}{shown}")

    def _say(self, line: str) -> None:
        self._lines.append(visible_message(line))
        self._update()

    def _update(self, *running: str) -> None:
        text = "\n".join((*self._lines, *running))
        self._show({"text/plain": text, "text/html": element("pre", text)})


def view(*, quiet: bool) -> Observer:
    """How a sweep of Python code is shown: in a notebook as NotebookView, elsewhere as lines on stderr."""
    if quiet:
        return QuietView()
    show = notebook_output()
    return PlainView(Console(file=sys.stderr, width=200, no_color=True)) if show is None else NotebookView(show)


def notebook_output() -> Show | None:
    """An output of the notebook's cell that runs; None outside a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if not hasattr(shell, "kernel"):
        return None
    from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

    handle: Any = display({"text/plain": ""}, raw=True, display_id=True)
    return lambda content: handle.update(dict(content), raw=True)


@contextmanager
def outside_event_loop() -> Iterator[None]:
    """Within, an event loop can be run though the caller runs inside one, as a notebook's cell does. That one waits."""
    loop = asyncio._get_running_loop()
    swap = getattr(asyncio.tasks, "_swap_current_task", None) if loop is not None else None  # from Python 3.12 on
    task = swap(loop, None) if swap is not None else None
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)
        if swap is not None:
            swap(loop, task)
