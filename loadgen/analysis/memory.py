"""Memory that a precision needs, apart from what its server reserves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from loadgen.serving.metrics import ServerSample


class ServerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What a launched server said of its memory when it started; None where it did not."""

    model_bytes: int | None = None
    kv_cache_bytes: int | None = None

    def needed_bytes(self, samples: Sequence[ServerSample]) -> int | None:
        """The weights, and the share of the KV cache in use at its peak over `samples`; None where one is unknown.

        NVML cannot tell: vLLM reserves --gpu-memory-utilization of the GPU whatever the precision. Activations and
        CUDA graphs are in neither figure.
        """
        usages = [s.kv_usage for s in samples if s.kv_usage is not None]
        if self.model_bytes is None or self.kv_cache_bytes is None or not usages:
            return None
        return self.model_bytes + round(max(usages) * self.kv_cache_bytes)


def server_memory(manifest: dict[str, Any], target: str, repeat: int, session: int = 1) -> ServerMemory:
    """Of the server that this target was measured on; all None for one that loadgen did not launch."""
    for server in manifest["servers"]:
        if (server["name"], server["repeat"], server.get("session", 1)) == (target, repeat, session):
            return ServerMemory(
                model_bytes=server.get("model_bytes"), kv_cache_bytes=server.get("kv_cache_bytes")
            )
    return ServerMemory()
