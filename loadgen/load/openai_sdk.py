"""The `openai` SDK as a transport: what an application built on it would see, at the SDK's cost."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from time import monotonic_ns
from typing import Any

import msgspec

from loadgen.bounds import MOST_ANSWER_BYTES, shown_bytes
from loadgen.errors import UsageError
from loadgen.httpget import ResponseTooLong
from loadgen.load.exchange import STOPPED, Raw, Request, Status
from loadgen.load.sse import server_message, window_bits


class SdkRaw(Raw):
    """A stream as the SDK delivered it: (time the application saw it in ns, chunk object)."""

    __slots__ = ("_body", "chunks")

    def __init__(self, request: Request, slot: int) -> None:
        self.chunks: list[tuple[int, Any]] = []
        self._body = b""
        super().__init__(request, slot)

    def events(self) -> tuple[list[int], list[bytes]]:
        """The chunks as JSON again, and [DONE], which the SDK swallows; none where the answer was no stream."""
        if self._body:
            return [], []
        times = [t_ns for t_ns, _ in self.chunks]
        datas = [chunk.model_dump_json(warnings=False).encode() for _, chunk in self.chunks]
        return (times, datas) if self.failure is not None else ([*times, self.t_end_ns], [*datas, b"[DONE]"])

    def error_body(self) -> bytes:
        return self._body

    def refuse(self, status: int, body: bytes, location: str | None = None) -> None:
        """The answer is this body instead of a stream."""
        self.http_status, self._body, self.location = status, body, location


class SdkSlot:
    """One slot that asks through a shared `openai.AsyncOpenAI`; retries are off, so that errors are seen."""

    def __init__(self, client: Any, api: str, slot: int) -> None:
        self._create = client.chat.completions.create if api == "chat" else client.completions.create
        self._known = inspect.signature(self._create).parameters.keys()
        self._timeout_s: float = client.timeout
        self._slot = slot
        self._raw: SdkRaw | None = None
        self._done: Callable[[Raw], None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def answering(self) -> bool:
        return self._raw is not None and bool(self._raw.chunks)

    def send(self, request: Request, done: Callable[[Raw], None]) -> None:
        self._raw, self._done = SdkRaw(request, self._slot), done
        self._task = asyncio.get_running_loop().create_task(self._exchange(self._raw))

    def close(self) -> None:
        task = self._task
        self._finish(self._raw, ("broken", STOPPED))
        if task is not None:
            task.cancel()

    async def _exchange(self, raw: SdkRaw) -> None:
        import openai

        arguments: dict[str, Any] = msgspec.json.decode(raw.request.body)
        beyond_sdk = {key: arguments.pop(key) for key in arguments.keys() - self._known}
        failure: tuple[Status, str] | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                stream = await self._create(**arguments, extra_body=beyond_sdk or None)
                raw.http_status = 200
                if body := await _json_body(stream.response):
                    raw.refuse(200, body)
                else:
                    async for chunk in stream:
                        raw.chunks.append((monotonic_ns(), chunk))
        except ResponseTooLong as error:
            failure = ("broken", str(error))
        except (TimeoutError, openai.APITimeoutError):
            failure = ("timeout", f"no complete answer within {self._timeout_s:g} s")
        except openai.APIStatusError as error:
            raw.refuse(error.status_code, error.response.content, error.response.headers.get("location"))
        except openai.APIConnectionError as error:
            failure = ("broken" if raw.http_status else "connect", str(error.__cause__ or error))
        except openai.APIResponseValidationError as error:
            failure = ("malformed", str(error))
        except openai.APIError as error:
            message = error.message if error.body is None else server_message(msgspec.json.encode(error.body))
            failure = ("http", f"in the stream: {message}")
        except (openai.OpenAIError, ValueError) as error:
            failure = ("malformed", str(error))
        except Exception as error:  # the SDK lets httpx errors through once a stream runs
            failure = ("broken", f"{type(error).__name__}: {error}")
        self._finish(raw, failure)

    def _finish(self, raw: SdkRaw | None, failure: tuple[Status, str] | None) -> None:
        done = self._done
        if raw is None or raw is not self._raw or done is None:
            return
        self._raw = self._done = None
        raw.failure = failure
        raw.t_end_ns = monotonic_ns()
        done(raw)


async def _json_body(response: Any) -> bytes:
    """The body of a response that is one JSON object, as gateways send an error with status 200; else empty."""
    if not response.headers.get("content-type", "").startswith("application/json"):
        return b""
    body: bytes = await response.aread()
    return body if body.lstrip().startswith(b"{") else b""


def sdk_client(url: str, *, api_key: str | None, timeout_s: float) -> Any:
    """An `openai.AsyncOpenAI` as an application would make it, but straight to the server, whatever http_proxy says,
    and with answers of MOST_ANSWER_BYTES at most.

    Raises UsageError when the package is not installed.
    """
    try:
        import openai
    except ImportError:
        raise UsageError("--transport openai needs the openai package: pip install 'vllm-loadgen[openai]'") from None
    base = openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0]
    stream_type = importlib.import_module(base).AsyncByteStream  # httpx's, or its successor's

    async def bound(response: Any) -> None:
        response.stream = _bounded(stream_type, response)

    return openai.AsyncOpenAI(
        base_url=f"{url}/v1",
        api_key=api_key or "none",
        max_retries=0,
        timeout=timeout_s,
        http_client=openai.DefaultAsyncHttpxClient(
            trust_env=False, follow_redirects=False, verify=ssl.create_default_context(),
            headers={"Accept-Encoding": "gzip, deflate"}, event_hooks={"response": [bound]},
        ),
    )  # fmt: skip


def _bounded(stream_type: Any, response: Any) -> Any:
    """The response's stream, which raises ResponseTooLong beyond MOST_ANSWER_BYTES, also after gzip or deflate is
    undone."""
    inner = response.stream
    coding = response.headers.get("content-encoding", "")

    class Bounded(stream_type):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            left, decoder = MOST_ANSWER_BYTES, None
            async for piece in inner:
                decoder = decoder or zlib.decompressobj(window_bits(coding, piece))
                left -= _decoded_bytes(decoder, piece, left + 1) if coding in ("gzip", "deflate") else len(piece)
                if left < 0:
                    raise ResponseTooLong(f"the answer is longer than {shown_bytes(MOST_ANSWER_BYTES)}")
                yield piece

        async def aclose(self) -> None:
            await inner.aclose()

    return Bounded()


def _decoded_bytes(decoder: Any, piece: bytes, most_bytes: int) -> int:
    """How many bytes a piece becomes, up to `most_bytes`; as many as it has if the SDK will refuse its coding."""
    try:
        return len(decoder.decompress(piece, most_bytes))
    except zlib.error:
        return len(piece)
