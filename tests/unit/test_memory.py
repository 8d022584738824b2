"""Memory that a precision needs inside its server's reserve."""

from __future__ import annotations

from typing import Any

from made_run import manifest_record

from loadgen.analysis.energy import ServerMemory, server_memory
from loadgen.measure.config import configure
from loadgen.record.manifest import Manifest
from loadgen.serving.exposition import ServerSample

GIB = 2**30


def manifest_of(servers: list[dict[str, Any]]) -> Manifest:
    return manifest_record(configure(), servers=[{"version": None, **server} for server in servers])


def usage(*shares: float | None) -> list[ServerSample]:
    return [ServerSample(t_ns=t, scrape_ns=1, kv_usage=share) for t, share in enumerate(shares)]


def test_the_weights_and_the_peak_of_what_the_cache_held() -> None:
    memory = ServerMemory(model_bytes=4 * GIB, kv_cache_bytes=60 * GIB)
    assert memory.needed_bytes(usage(0.1, None, 0.25, 0.2)) == 19 * GIB


def test_what_the_server_did_not_say_is_not_guessed() -> None:
    assert ServerMemory(model_bytes=GIB).needed_bytes(usage(0.5)) is None
    assert ServerMemory(kv_cache_bytes=GIB).needed_bytes(usage(0.5)) is None
    assert ServerMemory(model_bytes=GIB, kv_cache_bytes=GIB).needed_bytes(usage(None)) is None


def test_each_repeat_has_its_own_server() -> None:
    servers = [
        {"name": "awq", "repeat": 1, "model_bytes": 1, "kv_cache_bytes": 2},
        {"name": "awq", "repeat": 2, "model_bytes": 3, "kv_cache_bytes": 4},
        {"name": "fp16", "repeat": 2},
    ]
    assert server_memory(manifest_of(servers), "awq", 2) == ServerMemory(model_bytes=3, kv_cache_bytes=4)
    assert server_memory(manifest_of(servers), "fp16", 2) == ServerMemory()
    assert server_memory(manifest_of(servers), "gptq", 1) == ServerMemory()


def test_a_resumed_block_has_a_server_of_its_own() -> None:
    servers = [{"name": "awq", "repeat": 1, "session": n, "model_bytes": n, "kv_cache_bytes": 9} for n in (1, 2)]
    assert [server_memory(manifest_of(servers), "awq", 1, n).model_bytes for n in (1, 2, 3)] == [1, 2, None]
