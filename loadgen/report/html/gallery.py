"""The figures of a section, inlined."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from loadgen.folder import Folder
from loadgen.report.figures import Figure
from loadgen.report.html.markup import Html, element
from loadgen.report.html.svg import inline_svg

HALF = 500
"""Widest figure, in its own units, that stands beside another one."""
_WIDTH = re.compile(r'viewBox="[\d.]+ [\d.]+ ([\d.]+)')


def gallery(figures: Sequence[Figure], targets: Mapping[str, str]) -> Html:
    """One after the other with title and caption; nothing where there is none. `targets`: slug in ids -> name."""
    if not figures:
        return Html("")
    return element("div", *(_figure(figure, targets) for figure in figures), class_="figures")


def _figure(figure: Figure, targets: Mapping[str, str]) -> Html:
    text = Folder(figure.svg.parent).read(figure.svg.name).decode()
    drawn = inline_svg(text, name=figure.name, alt=figure.alt, tips=figure.tips, targets=targets)
    caption = element("figcaption", element("strong", figure.title, ". "), figure.caption)
    return element("figure", element("div", drawn, class_="frame"), caption, class_="wide" if _is_wide(drawn) else "")


def _is_wide(svg: str) -> bool:
    """Several panels beside each other: too much for half of the page."""
    found = _WIDTH.search(svg)
    return found is not None and float(found[1]) > HALF
