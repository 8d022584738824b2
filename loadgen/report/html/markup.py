"""Html: markup that is safe as it stands. Every other text is escaped on its way into an element."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

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
            written.append(f' {shown}="{escape(value)}"')
    opened = f"<{tag}{''.join(written)}>"
    return Html(opened if tag in _VOID else f"{opened}{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Html:
    """One after the other; what is not Html is escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part, quote=False) for part in parts))


def items(texts: Iterable[str], **attributes: str | bool) -> Html:
    """A list, an entry per text; nothing where there is none."""
    entries = [element("li", text) for text in texts]
    return element("ul", *entries, **attributes) if entries else Html("")
