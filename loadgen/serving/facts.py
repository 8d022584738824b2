"""Target, a server to be measured, and how what it reports about itself is read.

Also the environment's proxies: downloads use them, measured servers are always reached directly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import msgspec

from loadgen import httpget
from loadgen.record.manifest import KvCache

MODEL_GIB = re.compile(r"Model loading took ([0-9.]+) GiB")
KV_CACHE_GIB = re.compile(r"Available KV cache memory: ([0-9.]+) GiB|reserved ([0-9.]+) GiB memory for KV Cache")
KV_CACHE_TOKENS = re.compile(r"\w+ KV cache size: ([0-9,]+) tokens")
BLOCKS_OVERRIDDEN = re.compile(r"Overriding num_gpu_blocks=(\d+) with num_gpu_blocks_override=(\d+)")
CACHE_CONFIG = re.compile(r"^\w*?vllm[:_]cache_config_info\{([^}\n]*)\}", re.MULTILINE)
CARD_SHARE = 0.9
"""The least --gpu-memory-utilization that counts as the whole card: vLLM's default was 0.9 before it was 0.92."""
UNEVEN = 0.05
"""Layers of one kind hold as many tokens as their blocks, but for what a --max-model-len leaves of its last block."""
TIMEOUT_S = 5.0
_LABEL = re.compile(r'(\w+)="((?:\\.|[^"\\])*)"')


def model_bytes(log: str, workers: int | None = None) -> int | None:
    """GPU memory of the weights by vLLM's log, over its `workers` together."""
    return _all_workers(MODEL_GIB, log, workers)


def kv_cache_bytes(log: str, workers: int | None = None) -> int | None:
    """GPU memory for keys and values by vLLM's log, over its `workers` together."""
    found = _all_workers(KV_CACHE_GIB, log, workers)
    if found is None or not (changed := BLOCKS_OVERRIDDEN.findall(log)):
        return found
    profiled, overriding = map(int, changed[-1])
    return round(found * overriding / profiled) if profiled else None


def kv_cache(exposition: str, log: str = "") -> KvCache | None:
    """The room for keys and values by vLLM's /metrics, and by the log of this start; None where neither has it."""
    engines = [dict(_LABEL.findall(labels)) for labels in CACHE_CONFIG.findall(exposition)]
    first = engines[0] if engines else {}
    logged = [int(tokens.replace(",", "")) for tokens in KV_CACHE_TOKENS.findall(log)]
    each = [int(tokens) for one in engines if (tokens := one.get("kv_cache_size_tokens", "")).isdigit()]
    blocks, size = (
        int(first[name]) if first.get(name, "").isdigit() else 0 for name in ("num_gpu_blocks", "block_size")
    )
    tokens = sum(each) or (logged[-1] * max(len(engines), 1) if logged else blocks * size)
    if not tokens:
        return None
    even = abs(blocks * size / tokens - 1) < UNEVEN
    return KvCache(
        tokens=tokens,
        blocks=blocks // len(engines) if blocks else None,
        block_tokens=size if even else None,
        card_tokens=_card_tokens(tokens, first, log),
    )


def _card_tokens(tokens: int, labels: Mapping[str, str], log: str) -> int | None:
    """The tokens with all the memory that vLLM takes by default: each block holds as many."""
    share = labels.get("gpu_memory_utilization", "")
    low = share.replace(".", "", 1).isdigit() and float(share) < CARD_SHARE
    given = labels.get("kv_cache_memory_bytes", "").isdigit() or "GiB memory for KV Cache" in log
    if low or given or any(device != "GPU" for device in re.findall(r"(\w+) KV cache size: ", log)):
        return None
    if changed := BLOCKS_OVERRIDDEN.findall(log):
        profiled, overriding = min(int(blocks) for blocks, _ in changed), int(changed[-1][1])
        return tokens * profiled // overriding if overriding else None
    return None if labels.get("num_gpu_blocks_override", "").isdigit() else tokens


def _all_workers(pattern: re.Pattern[str], log: str, workers: int | None) -> int | None:
    """Some versions log a line per worker, others one per node: the mean line times the workers, else the sum."""
    parts = [float(next(filter(None, found.groups()))) for found in pattern.finditer(log)]
    return round(sum(parts) / len(parts) * max(workers or 0, len(parts)) * 2**30) if parts else None


class ServedModel(msgspec.Struct, frozen=True):
    """An entry of /v1/models; vLLM alone gives what has a default."""

    id: str
    """As text, also where a server numbers its models."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together."""
    parent: str | None = None
    """The model that it adapts (LoRA)."""


class _Entry(msgspec.Struct):
    id: str | int
    max_model_len: int | None = None
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[_Entry]


class _Version(msgspec.Struct):
    version: str


def read_models(body: bytes) -> list[ServedModel] | None:
    """The models of a GET /v1/models; None where the body is not a model list."""
    try:
        entries = msgspec.json.decode(body, type=_Models).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return [ServedModel(str(entry.id), entry.max_model_len, entry.parent) for entry in entries]


def read_version(body: bytes) -> str | None:
    """The version of a GET /version; None where the body has none."""
    try:
        return msgspec.json.decode(body, type=_Version).version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def get(url: str, api_key: str | None = None) -> bytes | None:
    """The body of a 200 answer; None for anything else."""
    try:
        answer = httpget.get(url, timeout_s=TIMEOUT_S, bearer=api_key, redirects=httpget.MOST_REDIRECTS)
    except httpget.FAILURES:
        return None
    return answer.body if answer.status == 200 else None


def get_object(url: str) -> dict[str, Any]:
    """The JSON object of a 200 answer; empty for anything else."""
    try:
        value = json.loads(get(url) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def given_kv_cache_dtype(exposition: str) -> str | None:
    """The dtype of keys and values that a running vLLM was started with, by /metrics; None for `auto` or elsewhere."""
    found = re.search(r'^vllm:cache_config_info\{[^}\n]*\bcache_dtype="([^"]+)"', exposition, re.MULTILINE)
    return found[1] if found and found[1] != "auto" else None


def metric_names(exposition: str) -> tuple[str, ...]:
    """The distinct sample names of a /metrics page, sorted."""
    lines = (line for line in exposition.splitlines() if line and not line.startswith("#"))
    return tuple(sorted({re.split(r"[{\s]", line, maxsplit=1)[0] for line in lines}))


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
    """URLs of its /metrics pages, if they are not on its own address."""
    simulated: bool = False


def proxies_passed_by(urls: Iterable[str]) -> list[str]:
    """Addresses of proxies that the environment names for these remote servers, which loadgen does not use."""
    proxies = getproxies_environment()
    found = []
    for url in urls:
        parts = urlsplit(url)
        host = parts.hostname or ""
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy and host not in ("localhost", "127.0.0.1", "::1") and not proxy_bypass(host):
            found.append(proxy)
    return list(dict.fromkeys(found))


def proxies_named() -> list[str]:
    """Every proxy that the environment names, as `http: ADDRESS`."""
    return [f"{scheme}: {address}" for scheme, address in sorted(getproxies_environment().items()) if scheme != "no"]
