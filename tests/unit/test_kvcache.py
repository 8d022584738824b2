"""How much room servers have for keys and values: what they report, one size for all, and how many requests fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from loadgen.errors import ServerError, UsageError
from loadgen.measure.config import configure
from loadgen.measure.kvcache import kv_args, kv_blocks, shared_tokens
from loadgen.measure.observer import Observer
from loadgen.measure.servers import source_of
from loadgen.record.manifest import KvCache
from loadgen.serving.facts import kv_cache, kv_cache_bytes

CONFIG = 'vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="%s",%s} 1.0\n'


def page(engines: int = 1, **labels: object) -> str:
    """vLLM's line for each engine; by default 1,000 blocks of 16 tokens on a GPU of which it takes 92%."""
    known: dict[str, object] = {
        "gpu_memory_utilization": 0.92, "kv_cache_memory_bytes": None, "kv_cache_size_tokens": 16_000,
        "num_gpu_blocks": 1_000, "num_gpu_blocks_override": None,
    }  # fmt: skip
    text = ",".join(f'{name}="{value}"' for name, value in (known | labels).items())
    return "".join(CONFIG % (engine, text) for engine in range(engines))


OVERRIDDEN = (
    "INFO [gpu_worker.py:1] Available KV cache memory: 10.00 GiB\n"
    "INFO [kv_cache_utils.py:1] Overriding num_gpu_blocks=4000 with num_gpu_blocks_override=1000\n"
    "INFO [kv_cache_utils.py:2] GPU KV cache size: 16,000 tokens\n"
)
WHOLE = KvCache(tokens=16_000, blocks=1_000, block_tokens=16, card_tokens=16_000)


@pytest.mark.parametrize(
    ("metrics", "log", "found"),
    [
        (page(), "", WHOLE),
        (page(kv_cache_size_tokens=None), "", WHOLE),
        ("", "INFO GPU KV cache size: 16,000 tokens, Maximum concurrency", KvCache(tokens=16_000, card_tokens=16_000)),
        # each of two engines holds 16,000 tokens, and vLLM counts the blocks of both
        (page(2, num_gpu_blocks=2_000), "", KvCache(tokens=32_000, blocks=1_000, block_tokens=16, card_tokens=32_000)),
        # layers with a sliding window: a request needs fewer blocks than its tokens say
        (page(kv_cache_size_tokens=90_000), "", KvCache(tokens=90_000, blocks=1_000, card_tokens=90_000)),
        (page(num_gpu_blocks_override=1_000), OVERRIDDEN, replace(WHOLE, card_tokens=64_000)),
        (page(num_gpu_blocks_override=1_000), "", replace(WHOLE, card_tokens=None)),
        (page(kv_cache_memory_bytes=2**30), "", replace(WHOLE, card_tokens=None)),
        (page(gpu_memory_utilization=0.5), "", replace(WHOLE, card_tokens=None)),
        (page(), "INFO CPU KV cache size: 16,000 tokens", replace(WHOLE, card_tokens=None)),
        ("vllm:num_requests_running 0\n", "", None),
    ],
)  # fmt: skip
def test_the_room_is_what_the_server_says_and_the_card_s_where_that_follows(
    metrics: str, log: str, found: KvCache | None
) -> None:
    assert kv_cache(metrics, log) == found


def test_memory_that_an_override_leaves_unused_is_not_counted() -> None:
    assert kv_cache_bytes(OVERRIDDEN) == 10 * 2**30 // 4


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"same_kv": "smallest", "same_card": True}, "exclude each other"),
        ({"same_kv": "many"}, "--same-kv many: give a number of tokens"),
        ({"same_kv": 0}, "--same-kv 0: give a number of tokens"),
        ({"same_kv": 5000, "targets": {"fp16": "http://127.0.0.1:1"}}, "--same-kv 5000 needs --serve"),
        ({"same_card": True, "serve": "bf16", "model": "org/m", "device": "cpu"}, "VLLM_CPU_KVCACHE_SPACE"),
        ({"same_kv": "smallest", "serve": "fp16", "model": "org/m", "vllm_args": "--kv-cache-memory-bytes 5"},
         "`-- --kv-cache-memory-bytes` sets the size of KV caches too"),
        ({"same_card": True, "serve": "fp16", "model": "org/m", "vllm_args": "--gpu-memory-utilization=0.5"},
         "`-- --gpu-memory-utilization` sets the size of KV caches too"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused(given: dict[str, Any], refused: str) -> None:
    with pytest.raises(UsageError, match=refused):
        configure(**given)


def test_every_cache_holds_what_is_asked_for_or_the_smallest() -> None:
    caches = {"fp16": WHOLE, "awq": replace(WHOLE, tokens=40_000)}
    assert shared_tokens(caches, "smallest", 4096) == 16_000
    assert shared_tokens(caches, "4096", 4096) == 4096
    for tokens in ("4095", "16001"):
        with pytest.raises(UsageError, match=r"at least 4,096 tokens.* at most the 16,000 that fp16 has room for"):
            shared_tokens(caches, tokens, 4096)


def test_a_server_is_started_with_the_size_and_tells_what_its_card_would_hold(tmp_path: Path) -> None:
    config = configure(same_kv=100_000)
    config = replace(config, targets=config.targets[:1])
    source, (fp16,) = source_of(config), config.targets
    source.kv_blocks = kv_blocks(source, config, tmp_path, Observer())
    assert kv_args(source.kv_blocks, fp16) == ("--num-gpu-blocks-override", "6250")
    with source.serve(fp16, 1, tmp_path, Observer()) as server:
        held = server.record.kv_cache
    assert held is not None
    assert (held.tokens, held.blocks, held.block_tokens) == (100_000, 6250, 16)
    # 92% of 80 GB less 7.11e9 weights of 16 bits: about 452,976 tokens of 128 KiB
    assert held.card_tokens == pytest.approx(452_976, rel=0.01)
    with pytest.raises(ServerError, match="awq did not start when the KV caches were sized"):
        kv_args(source.kv_blocks, replace(fp16, name="awq"))
