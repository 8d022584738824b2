"""Target: a server that answers, under the name the report will use for it."""

from __future__ import annotations

import msgspec


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One OpenAI-compatible server to be measured."""

    name: str
    """Unique in a run; the `target` column."""
    precision: str
    """Recipe or precision name: `fp16`, `awq`, `bnb-nf4`, ..."""
    url: str
    """Scheme, host and port, without `/v1` and without a trailing slash."""
    model: str
    """The model id that requests must name, as `/v1/models` gives it."""
    metrics_urls: tuple[str, ...] = ()
    """Pages of its /metrics, if they are not on its own address."""
    simulated: bool = False
