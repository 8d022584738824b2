"""The `openai` SDK as a transport: what an application built on it would see, at the SDK's cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

import msgspec

from loadgen.client.exchange import Raw, Request, Status
from loadgen.errors import UsageError


class SdkRaw:
    """A stream as the SDK delivered it: (time the application saw it in ns, chunk object)."""

    __slots__ = ("_body", "chunks", "failure", "http_status", "request", "slot", "t_end_ns", "t_send_ns")

    def __init__(self, request: Request, slot: int) -> None:
        self.request = request
        self.slot = slot
        self.chunks: list[tuple[int, Any]] = []
        self.http_status: int | None = None
        self.failure: tuple[Status, str] | None = None
        self._body = b""
        self.t_end_ns = 0
        self.t_send_ns = monotonic_ns()

    def events(self) -> list[tuple[int, bytes]]:
        """The chunks as JSON again, and [DONE], which the SDK swallows."""
        events = [(t_ns, chunk.model_dump_json().encode()) for t_ns, chunk in self.chunks]
        if self.failure is None:
            events.append((self.t_end_ns, b"[DONE]"))
        return events

    def error_body(self) -> bytes:
        return self._body

    def refuse(self, status: int, body: bytes) -> None:
        self.http_status, self._body = status, body


class SdkSlot:
    """One slot that asks through a shared `openai.AsyncOpenAI`; retries are off, so that errors are seen."""

    def __init__(self, client: Any, api: str, slot: int) -> None:
        self._create = client.chat.completions.create if api == "chat" else client.completions.create
        self._slot = slot
        self._raw: SdkRaw | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def answering(self) -> bool:
        return self._raw is not None and bool(self._raw.chunks)

    def send(self, request: Request, done: Callable[[Raw], None]) -> None:
        self._raw = SdkRaw(request, self._slot)
        self._task = asyncio.get_running_loop().create_task(self._exchange(self._raw, done))

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _exchange(self, raw: SdkRaw, done: Callable[[Raw], None]) -> None:
        import openai

        arguments: dict[str, Any] = msgspec.json.decode(raw.request.body)
        beyond_sdk = {key: arguments.pop(key) for key in ("ignore_eos", "min_tokens") if key in arguments}
        try:
            stream = await self._create(**arguments, extra_body=beyond_sdk or None)
            raw.http_status = 200
            async for chunk in stream:
                raw.chunks.append((monotonic_ns(), chunk))
        except openai.APITimeoutError as error:
            raw.failure = ("timeout", str(error))
        except openai.APIStatusError as error:
            raw.refuse(error.status_code, error.response.content)
        except openai.APIConnectionError as error:
            raw.failure = ("broken" if raw.http_status else "connect", str(error.__cause__ or error))
        except openai.OpenAIError as error:
            raw.failure = ("malformed", str(error))
        except asyncio.CancelledError:
            raw.failure = ("broken", "given up: the run was stopped")
        except Exception as error:  # the SDK lets httpx and json errors through once a stream runs
            raw.failure = ("broken", f"{type(error).__name__}: {error}")
        raw.t_end_ns = monotonic_ns()
        self._raw = None
        done(raw)


def sdk_client(url: str, *, api_key: str | None, timeout_s: float) -> Any:
    """An `openai.AsyncOpenAI` as an application would make it; UsageError when the package is not installed."""
    try:
        import openai
    except ImportError:
        raise UsageError("--transport openai needs the openai package: pip install 'vllm-loadgen[openai]'") from None
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key or "none", max_retries=0, timeout=timeout_s)
