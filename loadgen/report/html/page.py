"""The page: head, first screen, sections."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from loadgen._version import __version__
from loadgen.analysis.run import Run
from loadgen.folder import Folder
from loadgen.report.figures import Figure, draw_figures
from loadgen.report.figures.look import looks_of
from loadgen.report.html.gallery import gallery
from loadgen.report.html.markup import Html, element, join
from loadgen.report.html.provenance import manifest_excerpt, servers
from loadgen.report.html.sections import accuracy, claims, client, crossovers, indices, models, result, traffic
from loadgen.report.html.sources import sources
from loadgen.report.html.tables import stamp
from loadgen.report.html.validity import doubts, validity
from loadgen.report.html.verdict import conditions, verdicts
from loadgen.report.stamp import STAMP
from loadgen.report.subject import subject

_ON_PAPER = Html(f'@page {{ @top-right {{ content: "{STAMP}"; font: 600 8pt sans-serif; color: #b00020 }} }}\n')
"""The stamp on every printed page."""
_BANNER = "every figure on this page comes from a cost model, none from a GPU."


def write_report(run: Run) -> Path:
    """Writes figures/ and report.html; returns the report's path."""
    text = page(run, draw_figures(run))
    path = run.path / "report.html"
    Folder(run.path).write(path.name, text.encode())
    return path


def page(run: Run, figures: Sequence[Figure]) -> str:
    """The page's markup, with those figures."""
    simulated = bool(run.manifest["simulated"])
    sections = _sections(run, figures, simulated)
    contents = element(
        "nav", element("ol", *(element("li", element("a", title, href=f"#{name}")) for name, title, _ in sections)),
        aria_label="Contents",
    )  # fmt: skip
    banner = element("p", element("strong", STAMP), f": {_BANNER}", class_="simulated", role="note")
    conditions_line = element("p", conditions(run.manifest), class_="small")
    heading = element("header", element("h1", subject(run)), conditions_line, validity(run))
    body = element(
        "body",
        banner if simulated else "",
        element("main", heading, contents, *(section for _, _, section in sections), _footer(run)),
    )
    return f'<!doctype html>\n<html lang="en">{_head(run, simulated)}{body}</html>\n'


def _head(run: Run, simulated: bool) -> Html:
    """Nothing may be loaded, and no script but this one may run, whatever the run's texts hold."""
    style, script = _part("report.css"), _part("report.js")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    title = f"loadgen: {subject(run)}"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{STAMP} · {title}" if simulated else title),
        element("style", join((style, _ON_PAPER)) if simulated else style),
        element("script", script),
    )


def _sections(run: Run, figures: Sequence[Figure], simulated: bool) -> list[tuple[str, str, Html]]:
    """Id, title and whole section, those that have something to show."""
    analysis = run.analysis
    targets = {look.slug: look.target for look in looks_of(run.summary["target"]).values()}

    def drawn(section: str) -> Html:
        return gallery([figure for figure in figures if figure.section == section], targets)

    contents = [
        ("answer", "The answer", join((verdicts(run), drawn("answer")))),
        ("result", "Result", result(run)),
        ("traffic", "Arrivals and goodput" if run.arrival else "Goodput", traffic(run)),
        ("crossovers", "Crossovers", crossovers(analysis)),
        ("paper", "Figures of the paper", drawn("paper")),
        ("accuracy", "Accuracy", accuracy(run)),
        ("indices", "Indices", indices(analysis)),
        ("claims", "Claims of the paper", claims(analysis)),
        ("models", "Cost models", models(analysis)),
        ("latency", "Latency", _folded("Distributions over all requests", drawn("latency"))),
        ("time", "Time lines", _folded("Power, in flight and running, cell by cell", drawn("time"))),
        ("client", "The client", client(analysis)),
        ("doubts", "Warnings", doubts(run)),
        ("sources", "Where the numbers come from", sources()),
        ("servers", "Servers", servers(run.manifest)),
        ("manifest", "Manifest", manifest_excerpt(run)),
    ]
    return [
        (name, title, element("section", element("h2", title, " ", stamp(simulated=simulated)), content, id=name))
        for name, title, content in contents
        if content
    ]


def _folded(summary: str, content: Html) -> Html:
    return element("details", element("summary", summary), content) if content else content


def _footer(run: Run) -> Html:
    measured = run.manifest["client"]["loadgen"]
    return element("footer", f"Made by loadgen {__version__} from a run of loadgen {measured}.")


def _part(name: str) -> Html:
    """A file of this package."""
    return Html(files("loadgen.report.html").joinpath(name).read_text(encoding="utf-8"))
