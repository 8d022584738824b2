"""How much room servers have for keys and values: what they report, one size for all, and how many requests fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from made_run import make_run, manifest_record
from msgspec.structs import replace

import loadgen
from loadgen.analysis.advise import Advice, Demand, choose
from loadgen.analysis.compare.comparison import compare_runs
from loadgen.analysis.kvcache import kv_caches, largest_batch, mean_batch
from loadgen.analysis.replica import Replica
from loadgen.analysis.run import load_run
from loadgen.errors import ServerError, UsageError
from loadgen.measure.config import configure
from loadgen.measure.kvcache import kv_args, kv_blocks, shared_tokens
from loadgen.measure.observer import Observer
from loadgen.measure.servers import source_of
from loadgen.record.manifest import KvCache
from loadgen.reports.advise import sentences
from loadgen.reports.terminal import end_lines
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


def lives(lengths: np.ndarray, batch: int, *, together: bool) -> np.ndarray:
    """Blocks in use at each step of a closed loop of requests of these prompts and outputs, a token a step: from its
    stationary state, or from all requests beginning together."""
    rng = np.random.default_rng(7)
    weights = None if together else lengths[:, 1] / lengths[:, 1].sum()
    now = lengths[rng.choice(len(lengths), size=batch, p=weights)]
    age = np.zeros(batch, dtype=int) if together else (rng.random(batch) * now[:, 1]).astype(int)
    used = []
    for _ in range(3_000):
        used.append(int(np.ceil((now[:, 0] + age + 1) / 16).sum()))
        age += 1
        ended = age >= now[:, 1]
        now[ended], age[ended] = lengths[rng.integers(len(lengths), size=int(ended.sum()))], 0
    return np.array(used)


@pytest.mark.parametrize("kind", ["equal", "exponential", "long answers"])
def test_the_largest_batch_is_short_of_memory_for_at_most_1_percent_of_the_time(kind: str) -> None:
    """In a closed loop step by step; and a batch that is 30% larger is short of it more often."""
    rng = np.random.default_rng(3)
    prompts, outputs = np.full(400, 300), np.full(400, 200)
    if kind == "exponential":
        prompts, outputs = rng.integers(50, 550, 400), 1 + rng.exponential(200, 400).astype(int)
    if kind == "long answers":  # one in ten is twenty times as long as the others: at any time most are of these
        outputs = np.where(np.arange(400) % 10 == 0, 1000, 50)
    cache = KvCache(tokens=16 * 2_000, blocks=2_000, block_tokens=16)
    batch = largest_batch(cache, prompts, outputs)
    assert batch is not None
    lengths, together = np.column_stack([prompts, outputs]), kind == "equal"
    assert (lives(lengths, batch, together=together) > 2_000).mean() <= 0.01
    assert (lives(lengths, round(1.3 * batch), together=together) > 2_000).mean() > 0.01


def test_the_largest_batch_by_hand() -> None:
    """30 and 40 tokens are 5 blocks of 16, and one block is vLLM's: 1,000 blocks hold 999 / 5."""
    p, o = np.full(9, 30), np.full(9, 40)
    assert largest_batch(replace(WHOLE, tokens=8_000, card_tokens=16_000), p, o) == 199
    assert largest_batch(replace(WHOLE, card_tokens=None), p, o) == 199
    assert largest_batch(replace(WHOLE, block_tokens=None), p, o) is None
    assert largest_batch(KvCache(tokens=65_536, blocks=512, block_tokens=128), p, o) == 511, "a block each"
    assert largest_batch(WHOLE, p[:0], o[:0]) is None
    assert mean_batch([(100, 1), (200, 3), (None, 5)]) == 175
    assert mean_batch([(None, 5)]) is None


def told(*caches: KvCache | None) -> str | None:
    names = ("fp16", "awq", "gptq")[: len(caches)]
    servers = [
        {"name": name, "version": None, "repeat": 1, "kv_cache": msgspec.to_builtins(cache)}
        for name, cache in zip(names, caches, strict=True)
    ]
    config = configure(serve=list(names), model="org/m")
    found = kv_caches(manifest_record(config, servers=servers))
    return None if found is None else found.sentence


def test_a_run_says_whether_kernels_or_purchases_were_compared() -> None:
    larger, given = replace(WHOLE, tokens=33_600, card_tokens=33_600), replace(WHOLE, card_tokens=None)
    assert told(WHOLE, larger, larger) == "same card: KV caches of awq and gptq 2.1 times fp16's 16,000 tokens"
    assert told(WHOLE, replace(WHOLE, card_tokens=33_600)) == (
        "same KV cache: 16,000 tokens for every target; the whole card would give awq 2.1 times fp16's"
    )
    assert told(given, given) == "same KV cache: 16,000 tokens for every target"
    assert told(given, larger) == "KV caches in tokens: fp16 16,000, awq 33,600"
    assert told(WHOLE, None) is None
    assert told(WHOLE) is None


def test_the_tables_the_advice_and_a_comparison_have_it(tmp_path: Path) -> None:
    """The made answers have 20 tokens of prompt and 100 or 110 of output, 8 or 9 blocks: 27 hold three of them."""
    small = KvCache(tokens=16 * 28, blocks=28, block_tokens=16, card_tokens=16 * 28)
    servers = [
        {"name": name, "version": None, "repeat": repeat, "kv_cache": msgspec.to_builtins(cache)}
        for name, cache in (("fp16", small), ("awq", WHOLE)) for repeat in (1, 2)
    ]  # fmt: skip
    run = load_run(make_run(tmp_path / "run", concurrency=(1, 4), servers=servers))
    fp16 = run.summary[run.summary["target"] == "fp16"]
    assert fp16["kv_cache_tokens"].tolist() == fp16["kv_cache_card_tokens"].tolist() == [448, 448]
    assert fp16["kv_batch"].tolist() == [3, 3]
    advice = loadgen.advise(run.path, rate=20.0, price=1.0)
    assert isinstance(advice, Advice)
    arms = {arm.target: arm for arm in advice.arms}
    assert (arms["fp16"].limit, arms["fp16"].largest_batch, arms["fp16"].memory_batch) == ("memory", 3, 3)
    assert (arms["awq"].limit, arms["awq"].largest_batch) == ("range", 4)
    same_card = "same card: KV caches of awq 36 times fp16's 448 tokens"
    assert same_card in compare_runs([run.path]).kv_caches[0]
    assert any(same_card in line for line in end_lines(run, 120))


def test_advice_says_when_memory_is_the_limit_and_how_far_it_reaches() -> None:
    """Throughput rises with B up to 8, the largest that was measured; one cache holds 5 requests, the other 12."""
    rates = np.array([[10.0 * b for b in range(1, 9)]])
    one = Replica(
        target="fp16", precision="fp16", gpus=1, fewest=1, rate_per_s=rates, power_w=100 * rates,
        rest_w=np.array([50.0]), slo_share=None, accuracy=None, drawn=False,
    )  # fmt: skip
    arms = [one.within(5), replace(one, target="awq").within(12)]
    assert [(arm.most, arm.memory_batch) for arm in arms] == [(5, 5), (8, 12)]
    advice = choose(arms, Demand(rate_per_s=200.0, price_per_gpu_h=1.0))
    fp16, awq = (next(arm for arm in advice.arms if arm.target == name) for name in ("fp16", "awq"))
    assert (fp16.limit, awq.limit, advice.choice) == ("memory", "range", "awq")
    assert (fp16.gpus or 0) > (awq.gpus or 0)
    _, *others = sentences(advice)
    assert others == [
        "Memory, not speed, limits a replica of fp16: its KV cache holds 5 requests of these lengths without "
        "preemption.",
        "Throughput may rise further beyond the largest measured batch of awq (B ≤ 8): fewer GPUs may be enough; "
        "measure up to B = 12 first: the memory holds it.",
    ]
