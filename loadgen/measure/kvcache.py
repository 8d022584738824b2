"""KV caches of one size for every server that a sweep starts (`--same-kv`), or of all that the card allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.errors import ServerError, UsageError
from loadgen.options import SweepOptions
from loadgen.record.cell import Mode, SweepConfig, TargetSpec
from loadgen.record.manifest import KvCache

if TYPE_CHECKING:
    from loadgen.measure.observer import Observer
    from loadgen.measure.servers import Source

SMALLEST = "smallest"
SIZES = ("--num-gpu-blocks-override", "--kv-cache-memory-bytes", "--kv-cache-memory")
"""vLLM's options that set the size of its KV cache."""
SHARE = "--gpu-memory-utilization"
OVERRIDE = SIZES[0]


def kv_asked(o: SweepOptions, mode: Mode, vllm_args: Sequence[str]) -> str | None:
    """What `--same-kv` asks for, tokens or the `smallest`; None without it. Raises UsageError."""
    asked = None if o["same_kv"] is None else str(o["same_kv"]).strip().lower()
    if asked is None and not o["same_card"]:
        return None
    named = "--same-card" if asked is None else "--same-kv" if asked == SMALLEST else f"--same-kv {asked}"
    if asked is not None and o["same_card"]:
        raise UsageError(
            "--same-kv and --same-card exclude each other: KV caches are of one size, or as the card allows"
        )
    if asked not in (None, SMALLEST) and not (asked.isascii() and asked.isdigit() and 0 < int(asked[:16]) < 10**15):
        raise UsageError(f"{named}: give a number of tokens, as in 200000, or omit it for the smallest of the targets'")
    if mode == "compose":
        how = "gives every server KV_CACHE_BYTES: set it in the project's .env, and omit the option"
        raise UsageError(f"{named}: with --compose the project starts the servers and {how}")
    if mode == "target":
        raise UsageError(f"{named} needs --serve: servers that run already have their KV caches")
    given = [word.partition("=")[0].replace("_", "-") for word in vllm_args]
    if sized := [word for word in given if word in ((*SIZES, SHARE) if asked is None else SIZES)]:
        raise UsageError(f"{named}: `-- {sized[0]}` sets the size of KV caches too; give one of the two")
    if asked is None and mode == "serve" and o["device"] == "cpu":
        raise UsageError(
            "--same-card: on a CPU each server gets VLLM_CPU_KVCACHE_SPACE, 1 GiB, not a card's memory; omit it, or "
            "give --same-kv"
        )
    return asked


def kv_args(blocks: Mapping[str, int], spec: TargetSpec) -> tuple[str, ...]:
    """vLLM's option for the size of a target's KV cache; none where vLLM chooses. Raises ServerError for a target that
    is not among those with a size."""
    if not blocks:
        return ()
    if spec.name not in blocks:
        raise ServerError(f"{spec.name} did not start when the KV caches were sized; see servers/{spec.name}-r0.log")
    return (OVERRIDE, str(blocks[spec.name]))


def kv_blocks(source: Source, config: SweepConfig, run_dir: Path, observer: Observer) -> dict[str, int]:
    """By target, the blocks with which every server holds as many tokens as `--same-kv` asks for.

    Each server is started once, since only vLLM knows what fits beside the weights; one that does not start is left
    out. Raises UsageError for more tokens than fit, or fewer than a request may have.
    """
    observer.note("--same-kv: each server is started once, to see how many tokens its KV cache holds")
    caches: dict[str, KvCache] = {}
    longest = 0
    for spec in config.targets:
        try:
            with source.serve(spec, 0, run_dir, observer) as server:
                cache, longest = server.record.kv_cache, max(longest, server.record.max_model_len or 0)
        except ServerError as error:
            observer.warn(f"{spec.name}: {error}")
            continue
        if cache is None or not cache.blocks:
            raise UsageError(
                f"--same-kv: {spec.name} does not tell the size of its KV cache at /metrics; omit --same-kv"
            )
        caches[spec.name] = cache
        observer.note(f"{spec.name}: its KV cache holds {cache.tokens:,} tokens")
    if not caches:
        raise UsageError("--same-kv: none of the servers started; see the logs in servers/")
    tokens = shared_tokens(caches, config.same_kv or SMALLEST, longest)
    observer.note(f"every KV cache is set to {tokens:,} tokens")
    return {name: cache.blocks * tokens // cache.tokens for name, cache in caches.items() if cache.blocks}


def shared_tokens(caches: Mapping[str, KvCache], asked: str, longest: int) -> int:
    """The tokens that every cache is to hold. Raises UsageError for fewer than the `longest` request may have, and for
    more than each server has room for."""
    least = min(caches, key=lambda name: caches[name].tokens)
    most = caches[least].tokens
    tokens = most if asked == SMALLEST else int(asked)
    if not longest <= tokens <= most:
        raise UsageError(
            f"--same-kv {tokens}: give at least {longest:,} tokens, which one request may have (--max-model-len), and "
            f"at most the {most:,} that {least} has room for"
        )
    return tokens
