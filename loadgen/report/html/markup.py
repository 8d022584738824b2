"""Html: markup that is safe as it stands. Every other text is escaped on its way into an element."""

from __future__ import annotations

import html
from collections.abc import Iterable

from loadgen.visible import visible

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
