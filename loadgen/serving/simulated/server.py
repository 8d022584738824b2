"""The simulated server over HTTP: vLLM's endpoints on aiohttp.

Answers on the wire: server-sent events token by token, or one JSON object.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from aiohttp import web

from loadgen import webserver
from loadgen.address import listen
from loadgen.errors import UsageError
from loadgen.serving.simulated.answers import AnswerBook, Behaviour, Output, cut_output
from loadgen.serving.simulated.cost import MEMORY_SHARE, Cost
from loadgen.serving.simulated.engine import Engine, EngineLimits, Sequence, StepLoop
from loadgen.serving.simulated.metrics import EngineStats, GpuOptions, SimulatedGpu, StatsCollector, build_registry
from loadgen.serving.simulated.request import Generation, RequestError, parse_chat, parse_completion
from loadgen.serving.simulated.steadystate import BLOCK_TOKENS
from loadgen.workload.item import Item

FINGERPRINT = "SIMULATED"
_ROLE = b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
_numbers = itertools.count(1)


class EventStream:
    """Writes an answer's events straight to the connection, each in its own HTTP chunk.

    The engine calls `deliver` for each token; no coroutine wakes up for it. `done` is set after the last one.
    """

    def __init__(
        self,
        generation: Generation,
        output: Output,
        *,
        model: str,
        transport: asyncio.WriteTransport,
        reasoning_tokens: int = 0,
    ) -> None:
        """The first `reasoning_tokens` are sent as reasoning, apart from the content (chat only)."""
        chat = generation.api == "chat"
        self._transport = transport
        self._texts = [msgspec.json.encode(text) for text in output.texts]
        self._prompt_tokens = generation.prompt_tokens
        self._continuous = generation.continuous_usage
        self._include_usage = generation.include_usage
        self._chat = chat
        head = msgspec.json.encode(_identity(generation.api, model, chunk=True))[:-1]
        self._open = b"data: " + head
        self._text_open = b',"choices":[{"index":0,' + (b'"delta":{"content":' if chat else b'"text":')
        close = b"}" if chat else b""
        self._text_close = close + b',"logprobs":null,"finish_reason":null,"stop_reason":null}]'
        end = msgspec.json.encode({"finish_reason": output.finish_reason, "stop_reason": output.stop_reason})
        self._last_close = close + b',"logprobs":null,' + end[1:] + b"]"
        self._token_open = self._open + self._text_open
        self._reasoning_tokens = reasoning_tokens
        self._reasoning_open = self._token_open.replace(b'"content":', b'"reasoning":')
        self.done = asyncio.get_running_loop().create_future()

    def deliver(self, emitted: int) -> None:
        last = emitted == len(self._texts)
        text_open = self._reasoning_open if emitted <= self._reasoning_tokens else self._token_open
        close = self._last_close if last else self._text_close
        usage = self._usage(emitted) if self._continuous else b""
        data = http_chunk(b"%b%b%b%b}\n\n" % (text_open, self._texts[emitted - 1], close, usage))
        if emitted == 1 and self._chat:
            data = self._role_chunk() + data
        if last:
            data += self._tail(emitted)
            if not self.done.done():
                self.done.set_result(None)
        if not self._transport.is_closing():
            self._transport.write(data)

    def _usage(self, emitted: int) -> bytes:
        prompt, thought = self._prompt_tokens, min(emitted, self._reasoning_tokens)
        details = b',"completion_tokens_details":{"reasoning_tokens":%d}' % thought if self._reasoning_tokens else b""
        return b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (
            prompt,
            prompt + emitted,
            emitted,
            details,
        )

    def _role_chunk(self) -> bytes:
        usage = self._usage(0) if self._continuous else b""
        return http_chunk(b"%b%b%b}\n\n" % (self._open, _ROLE, usage))

    def _tail(self, emitted: int) -> bytes:
        tail = http_chunk(b"data: [DONE]\n\n")
        if self._include_usage:
            tail = http_chunk(b'%b,"choices":[]%b}\n\n' % (self._open, self._usage(emitted))) + tail
        return tail


class WholeAnswer:
    """Collects an answer for one JSON body; `done` is set after the last token."""

    def __init__(self, generation: Generation, output: Output, *, model: str, reasoning_tokens: int = 0) -> None:
        self._reasoning_tokens = reasoning_tokens
        self._generation = generation
        self._output = output
        self._model = model
        self.done = asyncio.get_running_loop().create_future()

    def deliver(self, emitted: int) -> None:
        if emitted == len(self._output.texts) and not self.done.done():
            self.done.set_result(None)

    def body(self) -> dict[str, Any]:
        """The response object of the request's endpoint."""
        output, prompt_tokens = self._output, self._generation.prompt_tokens
        thought, said = (
            "".join(output.texts[: self._reasoning_tokens]),
            "".join(output.texts[self._reasoning_tokens :]),
        )
        message = {"role": "assistant", "content": said} | ({"reasoning": thought} if thought else {})
        content: dict[str, Any] = {"message": message} if self._generation.api == "chat" else {"text": said}
        choice = {
            "index": 0,
            **content,
            "logprobs": None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        usage = {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + len(output.texts),
            "completion_tokens": len(output.texts),
        }
        return {**_identity(self._generation.api, self._model, chunk=False), "choices": [choice], "usage": usage}


def http_chunk(data: bytes) -> bytes:
    """The data in HTTP/1.1's chunked framing (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _identity(api: str, model: str, *, chunk: bool) -> dict[str, Any]:
    if api == "chat":
        prefix, kind = "chatcmpl", "chat.completion.chunk" if chunk else "chat.completion"
    else:
        prefix, kind = "cmpl", "text_completion"
    return {
        "id": f"{prefix}-simulated-{next(_numbers)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


VERSION = "0.32.0+simulated"
HEADER = "X-Loadgen-Simulated"
_encode = msgspec.json.encode


class SimulatedServer:
    """One model at one precision."""

    def __init__(
        self,
        cost: Cost,
        *,
        precision: str,
        gpu: GpuOptions,
        items: Iterable[Item],
        seed: int = 0,
        limits: EngineLimits | None = None,
        behaviour: Behaviour | None = None,
    ) -> None:
        """`behaviour` replaces the precision's own.

        Raises UsageError when the model leaves no room on the GPU for one sequence of the longest length.
        """
        self._limits = limits or EngineLimits()
        _check_room(cost, precision, self._limits.max_model_len)
        self._cost = cost
        self._stats = EngineStats()
        self._engine = Engine(cost, self._limits, self._stats)
        self._gpu = SimulatedGpu(cost.gpu, gpu, memory_used_bytes=lambda: self._engine.memory_used_bytes, seed=seed)
        self._book = AnswerBook(items, precision=precision, seed=seed, behaviour=behaviour)
        self._model = cost.model.name
        self._created = int(time.time())
        self._registry = build_registry(
            StatsCollector(
                self._stats,
                model_name=self._model,
                kv_capacity_tokens=self._engine.kv_capacity_tokens,
                block_size=BLOCK_TOKENS,
            )
        )

    @property
    def memory_report(self) -> str:
        """What vLLM's log says of memory: weights, and what is left for keys and values."""
        cost = self._cost
        kv_bytes = cost.kv_capacity_tokens * cost.model.kv_bytes_per_token
        return (
            f"SIMULATED Model loading took {cost.weight_bytes / 2**30:.2f} GiB memory\n"
            f"SIMULATED Available KV cache memory: {kv_bytes / 2**30:.2f} GiB"
        )

    def application(self) -> web.Application:
        """The aiohttp application; it belongs to the event loop that runs when it starts."""
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._gpu.add_to(app)
        app.on_startup.append(self._start)
        app.on_response_prepare.append(_stamp)
        return app

    async def _start(self, _app: web.Application) -> None:
        self._steps = StepLoop(self._engine, self._stats, self._gpu.curve, asyncio.get_running_loop())

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _request: web.Request) -> web.Response:
        return _json({"version": VERSION})

    async def _models(self, _request: web.Request) -> web.Response:
        model = {
            "id": self._model,
            "object": "model",
            "created": self._created,
            "owned_by": "loadgen-simulated",
            "root": self._model,
            "parent": None,
            "max_model_len": self._limits.max_model_len,
            "simulated": True,
            "gpu": self._gpu.info.name,
        }
        return _json({"object": "list", "data": [model]})

    async def _metrics(self, _request: web.Request) -> web.Response:
        return webserver.metrics_page(self._registry)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, parse_completion)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, parse_chat)

    async def _generate(self, request: web.Request, parse: Callable[..., Generation]) -> web.StreamResponse:
        arrival_s = time.monotonic()
        try:
            generation = parse(await request.read(), model=self._model, max_model_len=self._limits.max_model_len)
        except RequestError as error:
            return _json(error.body, status=error.status)
        answer = self._book.answer(generation.prompt, sample=generation.sample, batch=self._stats.running + 1)
        thoughts = self._book.reasoning(generation.prompt)[: generation.thinking_budget] if generation.thinks else []
        output = cut_output(
            [*thoughts, *answer.tokens],
            self._book.continuation(generation.prompt),
            max_tokens=generation.max_tokens,
            min_tokens=generation.min_tokens,
            ignore_eos=generation.ignore_eos or answer.endless,
            stops=generation.stops,
        )
        thought = min(len(thoughts), len(output.texts))
        response: web.StreamResponse | None = None
        sink: EventStream | WholeAnswer
        if generation.stream:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            response.enable_chunked_encoding()
            await response.prepare(request)
            if request.transport is None:
                raise asyncio.CancelledError
            sink = EventStream(
                generation, output, model=self._model, transport=request.transport, reasoning_tokens=thought
            )
        else:
            sink = WholeAnswer(generation, output, model=self._model, reasoning_tokens=thought)
        sequence = Sequence(
            prompt_tokens=generation.prompt_tokens,
            output_tokens=len(output.texts),
            finish_reason=output.finish_reason,
            arrival_s=arrival_s,
            deliver=sink.deliver,
        )
        self._steps.submit(sequence)
        try:
            await sink.done
        except asyncio.CancelledError:
            self._steps.abort(sequence)
            raise
        if isinstance(sink, WholeAnswer):
            return _json(sink.body())
        assert response is not None
        await response.write_eof()
        return response


def _check_room(cost: Cost, precision: str, max_model_len: int) -> None:
    room = max(0, cost.kv_capacity_tokens)
    usable_bytes = MEMORY_SHARE * cost.gpu.memory_bytes
    if room < max_model_len:
        raise UsageError(
            f"the {precision} weights of {cost.model.name} take {cost.weight_bytes / 1e9:.1f} of the "
            f"{usable_bytes / 1e9:.1f} GB that {cost.gpu.name} offers, which leaves {room} tokens of KV cache for "
            f"--max-model-len {max_model_len}; choose a larger --gpu, a smaller --model or a smaller --max-model-len"
        )


async def _stamp(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers[HEADER] = "1"


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=_encode(value), status=status, content_type="application/json")


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket; raises UsageError when the address cannot be taken."""
    return listen(host, port, backlog=1024)


async def serve(server: SimulatedServer, listening: socket.socket, *, host: str, on_ready: Callable[[], None]) -> None:
    """Serves on `listening`, opened for `host`, until SIGINT or SIGTERM; answers under way then end broken."""
    options = {"handler_cancellation": True, "shutdown_timeout": 0.05, "keepalive_timeout": 75}
    await webserver.serve(server.application(), listening, host=host, on_ready=on_ready, **options)
