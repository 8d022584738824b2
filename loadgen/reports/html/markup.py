"""Html: markup that is safe unchanged. Every other text is escaped on its way into an element."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Sequence
from xml.etree import ElementTree

from loadgen.folder import Folder
from loadgen.reports.figures import Figure
from loadgen.reports.rows import NAME, TEXT, Table
from loadgen.secret import visible
from loadgen.words import STAMP

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


_NO_WORDS = re.compile(r"<(svg|pre|script|template)\b.*?</\1>", re.DOTALL)


def words_of(content: Html) -> str:
    """Its text; without figures, code and scripts."""
    return html.unescape(re.sub("<[^>]*>", "\n", _NO_WORDS.sub("", content)))


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


def table(
    shown: Table,
    *,
    label: str,
    simulated: bool = False,
    grouped_by: Collection[str] = (),
    b: str = "B",
) -> Html:
    """A scrolling box with the table, named `label`, which tables.js sorts, copies and saves; nothing without any row.

    A rule divides rows whose entries in the columns `grouped_by` differ. `simulated`: a copy of the table says so, by a
    caption that the page does not show.
    `b`: what to call the column B.
    """
    if not shown.rows:
        return Html("")
    classes = ["" if kind in (NAME, TEXT) else kind for kind in shown.kinds]
    heads = [
        element("th", b if heading == "B" else heading, scope="col", class_=name)
        for heading, name in zip(shown.headings, classes, strict=True)
    ]
    group_places = [place for place, heading in enumerate(shown.headings) if heading in grouped_by]
    body: list[Html] = []
    last: list[str] = []
    for row in shown.rows:
        group = [row[place] for place in group_places]
        cells = [
            element("th", text, scope="row") if kind == NAME else element("td", text, class_=name)
            for text, kind, name in zip(row, shown.kinds, classes, strict=True)
        ]
        body.append(element("tr", *cells, class_="first" if body and group != last else ""))
        last = group
    inside = element("thead", element("tr", *heads)) + element("tbody", *body)
    named = element("caption", f"{STAMP}: {label}", class_="unseen") if simulated else Html("")
    made = element("table", named, Html(inside))
    return element("div", made, class_="scroll", role="region", aria_label=label, tabindex="0")


def facts(rows: Sequence[tuple[str, str]], *, label: str) -> Html:
    """Name and value side by side; those without a value are omitted."""
    shown = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows if value]
    return element("table", element("tbody", *shown), class_="facts", aria_label=label)


_XLINK = "http://www.w3.org/1999/xlink"
_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)
_COLOURS = {"#1c1c1c": "currentColor", "#9a9a9a": "var(--grid)"}
"""Text and axes, and the grid: in the files, and on the page, where they follow the theme."""


def inline_svg(figure: Figure) -> Html:
    """The figure's SVG with every id headed by its name, so that no two figures share one.

    What belongs to a target carries its name as `data-series`, or `data-legend`; what has a tip has it as its title. A
    panel has its edges, as `data-frame`, and its axes (kind, both ends, whether it can be turned) as `data-x` and `-y`;
    a line that can be read off has its words as `data-read`.
    """
    root = ElementTree.fromstring(Folder(figure.svg.parent).read(figure.svg.name))
    for definitions in root.iter(f"{{{_SVG}}}defs"):
        for sheet in definitions.findall(f"{{{_SVG}}}style"):  # would hold for the whole page
            definitions.remove(sheet)
    for entry in list(root.iter()):
        gid = entry.get("id", "")
        for key, value in entry.items():
            entry.set(key, _attribute(key, value, figure.name))
        if gid in figure.targets:
            entry.set("data-legend" if gid.startswith("legend-") else "data-series", figure.targets[gid])
        if gid in figure.tips:
            title = ElementTree.Element("title")
            title.text = visible(figure.tips[gid])
            entry.insert(0, title)
            entry.set("class", "point")
        if gid in figure.reads:
            entry.set("data-read", visible(figure.reads[gid]))
        if gid in figure.frames:
            frame = figure.frames[gid]
            entry.set("data-frame", " ".join(map(str, frame.edges)))
            for name, axis in (("x", frame.x), ("y", frame.y)):
                entry.set(f"data-{name}", f"{axis.kind} {axis.low:.6g} {axis.high:.6g} {int(axis.turns)}")
    del root.attrib["width"], root.attrib["height"]
    root.attrib.update({"role": "img", "aria-label": visible(figure.alt)})
    return Html(ElementTree.tostring(root, encoding="unicode"))


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == f"{{{_XLINK}}}href":
        return f"#{name}-{value.removeprefix('#')}"
    for colour, on_the_page in _COLOURS.items():
        value = value.replace(colour, on_the_page)
    return value.replace("url(#", f"url(#{name}-")


def gallery(figures: Iterable[Figure], *, folded: bool = False) -> Html:
    """One after the other with title and caption, which may be `folded`; nothing where there is none."""
    drawn = [
        element(
            "figure",
            element("div", inline_svg(figure), class_="frame"),
            element("figcaption", _caption(figure, folded=folded)),
            class_="wide" if figure.wide else "",
        )
        for figure in figures
    ]
    return element("div", *drawn, class_="figures") if drawn else Html("")


def _caption(figure: Figure, *, folded: bool) -> Html:
    title, caption = element("strong", figure.title, "."), figure.caption.removeprefix(f"{STAMP}. ")
    if folded:
        return element("details", element("summary", title), element("p", caption))
    return join((title, " ", caption))
