"""A page of `/metrics` (Prometheus text format 0.0.4), and the names by which servers tell of their batch in it.

docs/servers.md says where each name comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from loadgen.bounds import Amount, Nanoseconds

Key = tuple[tuple[str, str], ...]
"""Labels that tell one engine from another, in the order of their names."""


class EngineReading(msgspec.Struct, frozen=True, array_like=True):
    """The figures of one of several engines behind a server, whose steps cannot be added up."""

    engine: str
    """The labels that distinguish it, such as "0" and "1" with data parallelism."""
    running: Amount | None
    generation_tokens: Amount | None
    iterations: Amount | None


class ServerSample(msgspec.Struct, frozen=True, kw_only=True, tag="server"):
    """One reading of `/metrics`, summed over engines (KV usage: the fullest); None: the server has no such figure."""

    t_ns: Nanoseconds
    """Middle of the scrape."""
    scrape_ns: Nanoseconds
    running: Amount | None = None
    waiting: Amount | None = None
    preemptions: Amount | None = None
    kv_usage: Amount | None = None
    generation_tokens: Amount | None = None
    prompt_tokens: Amount | None = None
    iterations: Amount | None = None
    """Engine steps (count of the histogram `vllm:iteration_tokens_total`) of all engines."""
    prefix_cache_queries: Amount | None = None
    """Prompt tokens looked up in the prefix cache; hits are those found there or in an external cache."""
    prefix_cache_hits: Amount | None = None
    ttft_count: Amount | None = None
    """First tokens, and the sum of their times on the server's clock (`vllm:time_to_first_token_seconds`)."""
    ttft_sum_s: Amount | None = None
    engines: tuple[EngineReading, ...] = ()
    """Empty for a single engine."""


class ServerNames(NamedTuple):
    """What one kind of server calls the figures of a `ServerSample`."""

    server: str
    prefix: str
    """Which names begin with, `:` written as `_`; more may stand before it (`ray_vllm_`)."""
    names: Mapping[str, tuple[str, ...]]
    """Field -> its name behind the prefix; of several the first that a page has. `_total` may be missing. What stands
    as `field/part` is added to the field."""
    lags: bool = False
    """Its gauge of running requests is set seldom, or before newcomers are in it."""


_VLLM = {
    "running": ("num_requests_running",),
    "waiting": ("num_requests_waiting",),
    "preemptions": ("num_preemptions_total",),
    "kv_usage": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    "generation_tokens": ("generation_tokens_total",),
    "prompt_tokens": ("prompt_tokens_total",),
    "iterations": ("iteration_tokens_total_count",),
    "prefix_cache_queries": ("prefix_cache_queries_total",),
    "prefix_cache_hits": ("prefix_cache_hits_total",),
    "prefix_cache_hits/external": ("external_prefix_cache_hits_total",),
    "ttft_count": ("time_to_first_token_seconds_count",),
    "ttft_sum_s": ("time_to_first_token_seconds_sum",),
}
SERVERS = (
    ServerNames("vLLM", "vllm_", _VLLM),
    ServerNames(
        "SGLang",
        "sglang_",
        {
            "running": ("num_running_reqs",),
            "waiting": ("num_queue_reqs",),
            "preemptions": ("num_retracted_requests_total",),
            "kv_usage": ("token_usage",),
            "generation_tokens": ("generation_tokens_total",),
            "prompt_tokens": ("prompt_tokens_total",),
            "ttft_count": ("time_to_first_token_seconds_count",),
            "ttft_sum_s": ("time_to_first_token_seconds_sum",),
        },
        lags=True,
    ),
    ServerNames(
        "TGI",
        "tgi_",
        {
            "running": ("batch_current_size",),
            "waiting": ("queue_size",),
            "generation_tokens": ("request_generated_tokens_sum",),
            "prompt_tokens": ("request_input_length_sum",),
        },
    ),
    ServerNames(
        "llama.cpp",
        "llamacpp_",
        {
            "running": ("requests_processing",),
            "waiting": ("requests_deferred",),
            "kv_usage": ("kv_cache_usage_ratio",),
            "generation_tokens": ("tokens_predicted_total",),
            "prompt_tokens": ("prompt_tokens_total",),
        },
    ),
    ServerNames(
        "LMDeploy",
        "lmdeploy_",
        {name: _VLLM[name] for name in ("running", "waiting", "kv_usage", "generation_tokens", "prompt_tokens")},
    ),
    ServerNames(
        "TensorRT-LLM",
        "trtllm_",
        {
            "running": ("num_requests_running",),
            "waiting": ("num_requests_waiting",),
            "kv_usage": ("kv_cache_utilization",),
            "generation_tokens": ("generation_tokens_total",),
            "prompt_tokens": ("prompt_tokens_total",),
        },
    ),
    ServerNames("vLLM's names under another prefix", "", _VLLM),
)
"""In order of preference, where a page has the names of several."""

_NAME = re.compile(rb"^([A-Za-z_:][A-Za-z0-9_:]*)(?=[{ \t])", re.MULTILINE)
_REST = rb"""(?:\{((?:[^"}\n]|"(?:\\.|[^"\\\n])*")*)\})?[ \t]+([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)(?=\s|\Z)"""
"""Labels, and a number that is no less than 0: none of these can be."""
_LABEL = re.compile(rb'([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*"((?:\\.|[^"\\])*)"')
_MODEL_LABELS = ("model_name", "model")
_RANK_LABELS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "priority"})
"""SGLang's: ranks of one engine show the same figures, and a priority's requests are among those of all."""


class Vocabulary:
    """Which of a page's series are which figures; made from the first page, reads the later ones faster."""

    def __init__(self, server: ServerNames, fields: Mapping[str, tuple[str, int]]) -> None:
        self.server = server.server
        self._fields = fields
        self.names = sorted(fields)
        """As the page writes them."""
        wanted = b"|".join(re.escape(name.encode()) for name in sorted(fields, key=len, reverse=True))
        self._line = re.compile(rb"^(" + wanted + rb")" + _REST, re.MULTILINE)

    @property
    def gauge(self) -> str | None:
        """The series that counts running requests; None where the page has none."""
        return next((name for name, (field, _) in self._fields.items() if field == "running"), None)

    def read(self, page: bytes, model: str | None = None) -> dict[str, dict[Key, float]]:
        """Field -> engine -> value. Of series of several models only those of `model` count, if any are its."""
        series = [
            (name.decode(), dict(_labels(labels)), float(value)) for name, labels, value in self._line.findall(page)
        ]
        if model is not None and any(_model(labels) == model for _, labels, _ in series):
            series = [found for found in series if _model(found[1]) in (model, None)]
        found: dict[tuple[str, Key], tuple[int, float]] = {}
        for name, labels, value in series:
            field, rank = self._fields[name]
            key = tuple(sorted((label, told) for label, told in labels.items() if label not in _RANK_LABELS))
            so_far = found.get((field, key))
            if so_far is None or rank < so_far[0]:
                found[field, key] = rank, value
            elif rank == so_far[0]:
                found[field, key] = rank, max(value, so_far[1])
        values: dict[str, dict[Key, float]] = {}
        for (field, key), (_, value) in found.items():
            values.setdefault(field, {})[key] = value
        return values


def vocabulary_of(page: bytes) -> Vocabulary | None:
    """What a page has of the names above; None where it has none.

    Preferred is a server whose running requests it counts; then the order of `SERVERS`.
    """
    groups: dict[tuple[int, str], dict[str, tuple[str, int]]] = {}
    for name in dict.fromkeys(_NAME.findall(page)):
        for place, before, field, rank in _meanings(name.decode()):
            groups.setdefault((place, before), {})[name.decode()] = field, rank
    usable = [
        (not _has_gauge(fields), place, fields)
        for (place, _), fields in groups.items()
        if SERVERS[place].prefix or _has_gauge(fields)
    ]
    if not usable:
        return None
    _, place, fields = min(usable, key=lambda group: (group[0], group[1], -len(group[2])))
    return Vocabulary(SERVERS[place], fields)


def gauge_lags(name: str | None) -> bool:
    """Whether a series of running requests may be out of date."""
    return name is not None and any(SERVERS[place].lags for place, _, field, _ in _meanings(name) if field == "running")


def _has_gauge(fields: Mapping[str, tuple[str, int]]) -> bool:
    return any(field == "running" for field, _ in fields.values())


def _tails() -> dict[str, list[tuple[int, str, int]]]:
    """Name with its server's prefix -> (place in SERVERS, field, rank)."""
    tails: dict[str, list[tuple[int, str, int]]] = {}
    for place, server in enumerate(SERVERS):
        for field, names in server.names.items():
            known = dict.fromkeys(spelling for name in names for spelling in (name, name.replace("_total", "")))
            for rank, name in enumerate(known):
                tails.setdefault(server.prefix + name, []).append((place, field, rank))
    return tails


_TAILS = _tails()


def _meanings(name: str) -> Iterator[tuple[int, str, str, int]]:
    """(place in SERVERS, what stands before the name, field, rank) of a series."""
    plain = name.replace(":", "_")
    begins = [0, *(place + 1 for place, character in enumerate(plain) if character == "_")]
    for begin in begins:
        for place, field, rank in _TAILS.get(plain[begin:], ()):
            yield place, name[:begin], field, rank


def _labels(text: bytes) -> Iterator[tuple[str, str]]:
    for label, value in _LABEL.findall(text):
        yield label.decode(), value.decode("utf-8", "replace")


def _model(labels: Mapping[str, str]) -> str | None:
    return next((labels[label] for label in _MODEL_LABELS if label in labels), None)
