"""ServerFacts: what a running server says about itself, for the manifest.

Target: a server that answers, under the name the report will use for it.

Proxies of the environment: downloads use them, servers that are measured are always reached directly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import msgspec

from loadgen import httpget

MODEL_GIB = re.compile(r"Model loading took ([0-9.]+) GiB")
KV_CACHE_GIB = re.compile(r"Available KV cache memory: ([0-9.]+) GiB|reserved ([0-9.]+) GiB memory for KV Cache")
TIMEOUT_S = 5.0


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of one launched server."""

    name: str
    precision: str
    argv: tuple[str, ...]
    env: dict[str, str]
    """The variables that loadgen added; secrets are masked."""
    pid: int
    version: str | None
    """What GET /version says."""
    model: str | None
    """The id that requests must name."""
    checkpoint_identity: str | None
    """What tells its weights from others of that name; None where this machine has none."""
    note: str | None
    """What the checkpoint's config.json says of itself in `loadgen_note`."""
    max_model_len: int | None
    """Tokens of prompt and answer together."""
    quantization: str | None
    """How its weights are stored: `16-bit`, `awq int4 (group 128)`; None: its config.json was not to be had."""
    kv_cache_dtype: str | None
    """In what it keeps keys and values: `float16`, `bfloat16`, `fp8`, ...; None: not known."""
    eager: bool | None
    """Whether it runs without torch.compile and CUDA graphs, as vLLM's log says; None where it does not."""
    graph_sizes: tuple[int, ...] | None
    """Batches that CUDA graphs are captured for, as vLLM's log says; empty without graphs; None: not known."""
    workers: int | None
    """Processes that each hold a part of the model, as vLLM's log or the command says; None where neither does."""
    remarks: tuple[str, ...]
    """What a reader of its figures must know, one sentence each."""
    kernels: tuple[str, ...]
    """The kernels that the log says were selected, in the order of their first mention."""
    model_bytes: int | None
    """GPU memory that the weights of all workers took, as vLLM's log says; None where it does not (its CPU build)."""
    kv_cache_bytes: int | None
    """GPU memory of all workers for keys and values, as vLLM's log says; None where it does not (its CPU build)."""
    metric_names: tuple[str, ...]
    """Sample names under /metrics, sorted."""
    started_ns: int
    """Monotonic clock."""
    ready_ns: int | None
    """When GET /health first answered 200; monotonic clock."""


def model_bytes(log: str, workers: int | None = None) -> int | None:
    """What vLLM's log says of the weights' memory, over its `workers` together."""
    return _all_workers(MODEL_GIB, log, workers)


def kv_cache_bytes(log: str, workers: int | None = None) -> int | None:
    """What vLLM's log says of the memory for keys and values, over its `workers` together."""
    return _all_workers(KV_CACHE_GIB, log, workers)


def _all_workers(pattern: re.Pattern[str], log: str, workers: int | None) -> int | None:
    """Some versions log a line per worker, others one per node: the mean line times the workers, else the sum."""
    parts = [float(next(filter(None, found.groups()))) for found in pattern.finditer(log)]
    if not parts:
        return None
    return round(sum(parts) / len(parts) * max(workers or 0, len(parts)) * 2**30)


class ServedModel(msgspec.Struct, frozen=True):
    """An entry of /v1/models."""

    id: str
    """As text, where a server numbers its models."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together; vLLM says it."""
    parent: str | None = None
    """The model that it adapts (LoRA); vLLM says it."""


class _Entry(msgspec.Struct):
    id: str | int
    max_model_len: int | None = None
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[_Entry]


class _Version(msgspec.Struct):
    version: str


def read_models(body: bytes) -> list[ServedModel] | None:
    """Of what GET /v1/models answers; None where that is no model list."""
    try:
        entries = msgspec.json.decode(body, type=_Models).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return [ServedModel(id=str(entry.id), max_model_len=entry.max_model_len, parent=entry.parent) for entry in entries]


def read_version(body: bytes) -> str | None:
    """Of what GET /version answers; None where that is none."""
    try:
        return msgspec.json.decode(body, type=_Version).version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def get(url: str, api_key: str | None = None) -> bytes | None:
    """The body of a 200 answer, or None for anything else."""
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


def told_kv_cache_dtype(exposition: str) -> str | None:
    """The dtype that a running vLLM was told for keys and values, as /metrics says; None for `auto` or elsewhere."""
    found = re.search(r'^vllm:cache_config_info\{[^}\n]*\bcache_dtype="([^"]+)"', exposition, re.MULTILINE)
    return found[1] if found and found[1] != "auto" else None


def metric_names(exposition: str) -> tuple[str, ...]:
    """The distinct sample names of a Prometheus text exposition, sorted."""
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
    """Pages of its /metrics, if they are not on its own address."""
    simulated: bool = False


def proxies_passed_by(urls: Iterable[str]) -> list[str]:
    """Addresses of proxies that the environment names for these servers on other machines, and that are not asked."""
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
