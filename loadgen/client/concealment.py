"""Concealment: what a server sent back, kept without the secrets that it may have echoed."""

from __future__ import annotations

import msgspec

from loadgen.client.exchange import Exchange
from loadgen.secret import Mask


def concealed(exchange: Exchange, mask: Mask) -> Exchange:
    """The exchange with secrets masked: in its error by value and by form, in the answer by value alone."""
    changes: dict[str, str] = {}
    for field in ("text", "reasoning", "finish_reason", "stop_reason", "error"):
        said = getattr(exchange, field)
        if isinstance(said, str):
            masked = mask(said) if field == "error" else mask.values(said)
            if masked != said:
                changes[field] = masked
    return msgspec.structs.replace(exchange, **changes) if changes else exchange
