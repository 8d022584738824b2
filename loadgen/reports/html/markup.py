"""Html: markup that is safe as it stands. Every other text is escaped on its way into an element.

Tables of the page: numbers aligned to the right, wide ones scroll in a box of their own.

A drawn figure, made part of the page: its own ids, the page's colours, its points with their text.

The figures of a section, inlined.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from loadgen.folder import Folder
from loadgen.reports.figures import Figure
from loadgen.reports.words import STAMP
from loadgen.secret import visible

_VOID = frozenset({"br", "meta"})


class Html(str):
    """Markup, made by `element` and `join`."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | bool) -> Html:
    """`<tag ...>children</tag>`. Children that are not Html are escaped, attributes always; of a name, a closing `_` is
    dropped and `_` becomes `-` (`class_`, `aria_label`). True writes the bare name, False and "" nothing."""
    written = []
    for name, value in attributes.items():
        shown = name.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {shown}")
        elif value:
            written.append(f' {shown}="{html.escape(visible(value))}"')
    opened = f"<{tag}{''.join(written)}>"
    return Html(opened if tag in _VOID else f"{opened}{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Html:
    """One after the other; what is not Html is escaped."""
    return Html("".join(part if isinstance(part, Html) else escaped(part) for part in parts))


def escaped(text: str) -> str:
    """Markup that shows the text as it is, characters that would turn or hide it written out."""
    return html.escape(visible(text), quote=False)


def items(texts: Iterable[str], **attributes: str | bool) -> Html:
    """A list, an entry per text; nothing where there is none."""
    entries = [element("li", text) for text in texts]
    return element("ul", *entries, **attributes) if entries else Html("")


INTERVAL = "95% CI"
"""Heading of the column behind the one that it belongs to."""
_SPAN = r"[−+-]?[\d.,]+(?: ?(?:%|pp))?"
_FIGURE = re.compile(rf"{_SPAN}(?: ?(?:–|to|:|/) ?{_SPAN})?")


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    label: str,
    name_column: int = 0,
    grouped_by: Sequence[int] = (),
    sortable: bool = False,
    short_columns: Collection[int] = (),
) -> Html:
    """A scrolling box with the table, named `label`; nothing where there is no row.

    Entries of `name_column` head their rows. A rule divides rows whose entries in `grouped_by` differ. Text of
    `short_columns` stays on one line, like figures do.
    """
    if not rows:
        return Html("")
    kinds = [
        "interval" if heading == INTERVAL else _kind(place, [row[place] for row in rows], short_columns)
        for place, heading in enumerate(headings)
    ]
    heads = [element("th", text, scope="col", class_=kind) for text, kind in zip(headings, kinds, strict=True)]
    body: list[Html] = []
    last: list[str] = []
    for row in rows:
        group = [row[place] for place in grouped_by]
        cells = [
            element("th", stamped(text), scope="row", class_=kind)
            if place == name_column
            else element("td", text, class_=kind)
            for place, (text, kind) in enumerate(zip(row, kinds, strict=True))
        ]
        body.append(element("tr", *cells, class_="first" if body and group != last else ""))
        last = group
    inside = element("thead", element("tr", *heads)) + element("tbody", *body)
    made = element("table", Html(inside), class_="sortable" if sortable else "")
    return element("div", made, class_="scroll", role="region", aria_label=label, tabindex="0")


def facts(rows: Sequence[tuple[str, str]], *, label: str) -> Html:
    """Name and value side by side; those without a value are left out."""
    shown = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows if value]
    return element("table", element("tbody", *shown), class_="facts", aria_label=label)


def stamped(text: str) -> Html:
    """The word SIMULATED at a text's end as a mark."""
    if text.endswith(f" {STAMP}"):
        return join((text.removesuffix(STAMP), stamp(simulated=True)))
    return join((text,))


def stamp(*, simulated: bool) -> Html:
    """The mark itself; nothing where a GPU was measured."""
    return element("span", STAMP, class_="stamp") if simulated else Html("")


def _kind(place: int, entries: Sequence[str], short: Collection[int]) -> str:
    if all(_FIGURE.fullmatch(entry) for entry in entries if entry):
        return "figure"
    return "short" if place in short else ""


_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_LINK = re.compile(r"url\(#([^)]+)\)")
_COLOURS = {"#1c1c1c": "currentColor", "#9a9a9a": "var(--grid)"}
"""Of text and axes, and of the grid, in the files; on the page they follow the theme."""
_COLOUR = re.compile("|".join(_COLOURS))
_DRAWN = re.compile(r"(series|pt|legend)-(.+?)(?:-{1,2}\d+)?")
"""Ids of what belongs to a target (`loadgen.reports.figures.sheet.Figure`): its kind and the target's slug."""
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
