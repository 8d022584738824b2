"""A drawn figure, made part of the page: its own ids, the page's colours, its points with their text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from loadgen.report.html.markup import Html
from loadgen.visible import visible

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_LINK = re.compile(r"url\(#([^)]+)\)")
_COLOURS = {"#1c1c1c": "currentColor", "#9a9a9a": "var(--grid)"}
"""Of text and axes, and of the grid, in the files; on the page they follow the theme."""
_COLOUR = re.compile("|".join(_COLOURS))
_DRAWN = re.compile(r"(series|pt|legend)-(.+?)(?:-{1,2}\d+)?")
"""Ids of what belongs to a target (`loadgen.report.figures.figure.Figure`): its kind and the target's slug."""
_LEFT_OUT = frozenset({"metadata", "style", "script"})


def inline_svg(text: str, *, name: str, alt: str, tips: Mapping[str, str], targets: Mapping[str, str]) -> Html:
    """The file's markup with every id headed by `name`, so that no two figures share one.

    What belongs to a target carries its name as `data-series`, or `data-legend` (`targets`: slug in ids -> name). What
    is named in `tips` has that text as its title. Raises ElementTree.ParseError for a file that is no XML.
    """
    root = ElementTree.fromstring(text)
    _prune(root)
    for entry in root.iter():
        entry.tag = str(entry.tag).removeprefix(_SVG)
        for key, value in list(entry.attrib.items()):
            del entry.attrib[key]
            entry.attrib.update(_attribute(key, value, name))
    for entry, key in list(_named(root, name)):
        kind, target = _owner(key, targets)
        if target is not None:
            entry.set("data-legend" if kind == "legend" else "data-series", target)
        if key in tips:
            title = Element("title")
            title.text = visible(tips[key])
            entry.insert(0, title)
            entry.set("class", "point")
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib.update({"role": "img", "aria-label": visible(alt)})
    return Html(ElementTree.tostring(root, encoding="unicode"))


def _prune(parent: Element) -> None:
    """Only what draws: matplotlib's style sheet would hold for the whole page."""
    for child in list(parent):
        if not isinstance(child.tag, str) or child.tag.removeprefix(_SVG) in _LEFT_OUT:
            parent.remove(child)
        else:
            _prune(child)


def _attribute(key: str, value: str, name: str) -> dict[str, str]:
    if key == "id":
        return {"id": f"{name}-{value}"}
    if key == _HREF or key == "href":
        return {"href": f"#{name}-{value.removeprefix('#')}"}
    if key.startswith("on"):
        return {}
    value = _COLOUR.sub(lambda found: _COLOURS[found[0]], value)
    return {key: _LINK.sub(rf"url(#{name}-\1)", value)}


def _owner(key: str, targets: Mapping[str, str]) -> tuple[str, str | None]:
    """What kind of thing an id names, and the target that it belongs to."""
    kind, _, slug = key.partition("-")
    if slug in targets:
        return kind, targets[slug]
    found = _DRAWN.fullmatch(key)
    return (found[1], targets.get(found[2])) if found else (kind, None)


def _named(root: Element, name: str) -> Iterator[tuple[Element, str]]:
    """Every entry with an id, and the id as it stood in the file."""
    for entry in root.iter():
        if key := entry.get("id"):
            yield entry, key.removeprefix(f"{name}-")
