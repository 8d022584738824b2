"""Tables of the page: numbers aligned to the right, wide ones scroll in a box of their own."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from loadgen.report.html.markup import Html, element, join
from loadgen.report.stamp import STAMP

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
    shown = [
        element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows if value
    ]
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
