"""Fairness: what two targets' servers must have in common, so that a difference in figures is one in precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SIXTEEN_BITS = frozenset({"float16", "bfloat16"})
"""Keys and values of either take the same memory and time to read."""


def unequal_servers(manifest: Mapping[str, Any]) -> list[str]:
    """One sentence per target whose KV cache, or CUDA graphs, are not those of the reference; both must be known."""
    reference = manifest["config"]["reference"]
    servers = {server["name"]: server for server in manifest["servers"]}
    ours = servers.get(reference, {})
    sentences: list[str] = []
    for name, server in servers.items():
        if name == reference:
            continue
        sentences += _kv_caches(name, server.get("kv_cache_dtype"), reference, ours.get("kv_cache_dtype"))
        sentences += _graphs(name, server.get("eager"), reference, ours.get("eager"))
    return sentences


def _kv_caches(name: str, dtype: str | None, reference: str, ours: str | None) -> Iterable[str]:
    if dtype is None or ours is None or dtype == ours or {dtype, ours} <= SIXTEEN_BITS:
        return
    yield (
        f"{name} keeps keys and values in {dtype} and {reference} in {ours}: they differ in more than their weights; "
        "measure both with one --kv-cache-dtype"
    )


def _graphs(name: str, eager: bool | None, reference: str, ours: bool | None) -> Iterable[str]:
    if eager is None or ours is None or eager == ours:
        return
    slow, fast = (name, reference) if eager else (reference, name)
    yield (
        f"{slow} ran eagerly (enforce_eager=True: no torch.compile, no CUDA graphs) and {fast} did not: part of their "
        "difference is not of precision, most at small B"
    )
