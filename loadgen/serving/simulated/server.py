"""The simulated server over HTTP: vLLM's endpoints on aiohttp, answers as server-sent events or as one JSON object."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from loadgen import webserver
from loadgen.errors import UsageError
from loadgen.serving.simulated.answers import AnswerBook, Behaviour, Output, cut_output
from loadgen.serving.simulated.cost import BLOCK_TOKENS, MEMORY_SHARE, Cost
from loadgen.serving.simulated.engine import (
    Engine,
    EngineLimits,
    EngineStats,
    GpuOptions,
    Sequence,
    SimulatedGpu,
    StatsCollector,
    StepLoop,
)
from loadgen.serving.simulated.request import Generation, RequestError, parse_chat, parse_completion
from loadgen.workload.item import Item

FINGERPRINT = "SIMULATED"
VERSION = "0.32.0+simulated"
HEADER = "X-Loadgen-Simulated"
_encode = msgspec.json.encode
_ROLE = b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
_numbers = itertools.count(1)


class EventStream:
    """Writes an answer's events straight to the connection, each in its own HTTP chunk.

    The engine calls `deliver` for each token, without a coroutine that wakes up. `done` is set after the last one.
    """

    def __init__(
        self, generation: Generation, output: Output, thoughts: int, model: str, transport: asyncio.WriteTransport
    ) -> None:
        """The first `thoughts` tokens are sent as reasoning instead of content (chat only)."""
        chat = generation.api == "chat"
        self._transport = transport
        self._texts = [_encode(text) for text in output.texts]
        self._generation, self._thoughts = generation, thoughts
        self._open = b"data: " + _encode(_identity(generation.api, model, chunk=True))[:-1]
        self._token_open = self._open + b',"choices":[{"index":0,' + (b'"delta":{"content":' if chat else b'"text":')
        self._reasoning_open = self._token_open.replace(b'"content":', b'"reasoning":')
        close = (b"}" if chat else b"") + b',"logprobs":null,'
        self._text_close = close + b'"finish_reason":null,"stop_reason":null}]'
        end = _encode({"finish_reason": output.finish_reason, "stop_reason": output.stop_reason})
        self._last_close = close + end[1:] + b"]"
        self.done = asyncio.get_running_loop().create_future()

    def deliver(self, emitted: int) -> None:
        last, generation = emitted == len(self._texts), self._generation
        text_open = self._reasoning_open if emitted <= self._thoughts else self._token_open
        close = self._last_close if last else self._text_close
        usage = self._usage(emitted) if generation.continuous_usage else b""
        data = http_chunk(b"%b%b%b%b}\n\n" % (text_open, self._texts[emitted - 1], close, usage))
        if emitted == 1 and generation.api == "chat":
            usage = self._usage(0) if generation.continuous_usage else b""
            data = http_chunk(b"%b%b%b}\n\n" % (self._open, _ROLE, usage)) + data
        if last:
            if generation.include_usage:
                data += http_chunk(b'%b,"choices":[]%b}\n\n' % (self._open, self._usage(emitted)))
            data += http_chunk(b"data: [DONE]\n\n")
            if not self.done.done():
                self.done.set_result(None)
        if not self._transport.is_closing():
            self._transport.write(data)

    def _usage(self, emitted: int) -> bytes:
        return b',"usage":%b' % _encode(_usage(self._generation.prompt_tokens, emitted, self._thoughts))


class WholeAnswer:
    """Collects an answer for one JSON body; `done` is set after the last token."""

    def __init__(self, generation: Generation, output: Output, thoughts: int, model: str) -> None:
        self._generation, self._output, self._thoughts, self._model = generation, output, thoughts, model
        self.done = asyncio.get_running_loop().create_future()

    def deliver(self, emitted: int) -> None:
        if emitted == len(self._output.texts) and not self.done.done():
            self.done.set_result(None)

    def body(self) -> dict[str, Any]:
        """The response object of the request's endpoint."""
        output, api = self._output, self._generation.api
        thought, content = ("".join(part) for part in (output.texts[: self._thoughts], output.texts[self._thoughts :]))
        message = {"role": "assistant", "content": content} | ({"reasoning": thought} if thought else {})
        choice = {
            "index": 0,
            **({"message": message} if api == "chat" else {"text": content}),
            "logprobs": None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        usage = _usage(self._generation.prompt_tokens, len(output.texts))
        return {**_identity(api, self._model, chunk=False), "choices": [choice], "usage": usage}


def _usage(prompt: int, emitted: int, thoughts: int = 0) -> dict[str, Any]:
    details = {"completion_tokens_details": {"reasoning_tokens": min(emitted, thoughts)}} if thoughts else {}
    return {"prompt_tokens": prompt, "total_tokens": prompt + emitted, "completion_tokens": emitted, **details}


def http_chunk(data: bytes) -> bytes:
    """The data in HTTP/1.1's chunked framing (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _identity(api: str, model: str, *, chunk: bool) -> dict[str, Any]:
    chat = api == "chat"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-simulated-{next(_numbers)}",
        "object": ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


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
        """`behaviour` replaces the precision's. Raises UsageError if the GPU lacks room for one sequence of the longest
        length beside the model."""
        self._limits = limits or EngineLimits()
        _check_room(cost, precision, self._limits)
        self._cost = cost
        self._stats = EngineStats()
        self._engine = Engine(cost, self._limits, self._stats)
        self._gpu = SimulatedGpu(cost.gpu, gpu, memory_used_bytes=lambda: self._engine.memory_used_bytes, seed=seed)
        self._book = AnswerBook(items, precision=precision, seed=seed, behaviour=behaviour)
        self._model = cost.model.name
        self._created = int(time.time())
        self._registry = CollectorRegistry()
        self._registry.register(
            StatsCollector(
                self._stats,
                model_name=self._model,
                kv_capacity_tokens=self._engine.kv_capacity_tokens,
                blocks_override=self._limits.num_gpu_blocks_override,
            )
        )

    @property
    def memory_report(self) -> str:
        """The lines of vLLM's log about the memory of the weights and of the KV cache."""
        cost, blocks = self._cost, self._limits.num_gpu_blocks_override
        kv_bytes = cost.kv_capacity_tokens * cost.model.kv_bytes_per_token
        overridden = f"Overriding num_gpu_blocks={cost.kv_blocks} with num_gpu_blocks_override={blocks}"
        lines = (
            f"Model loading took {cost.weight_bytes / 2**30:.2f} GiB memory",
            f"Available KV cache memory: {kv_bytes / 2**30:.2f} GiB",
            *([overridden] if blocks else []),
            f"GPU KV cache size: {self._engine.kv_capacity_tokens:,} tokens",
        )
        return "\n".join(f"SIMULATED {line}" for line in lines)

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
        reasoning = self._book.reasoning(generation.prompt)[: generation.thinking_budget] if generation.thinks else []
        output = cut_output(
            [*reasoning, *answer.tokens],
            self._book.continuation(generation.prompt),
            max_tokens=generation.max_tokens,
            min_tokens=generation.min_tokens,
            ignore_eos=generation.ignore_eos or answer.endless,
            stops=generation.stops,
        )
        thoughts = min(len(reasoning), len(output.texts))
        sink: EventStream | WholeAnswer
        if not generation.stream:
            sink = WholeAnswer(generation, output, thoughts, self._model)
        else:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            response.enable_chunked_encoding()
            await response.prepare(request)
            if request.transport is None:
                raise asyncio.CancelledError
            sink = EventStream(generation, output, thoughts, self._model, request.transport)
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
        await response.write_eof()
        return response


def _check_room(cost: Cost, precision: str, limits: EngineLimits) -> None:
    room, max_model_len, blocks = max(0, cost.kv_capacity_tokens), limits.max_model_len, limits.num_gpu_blocks_override
    if blocks is not None and not max_model_len <= blocks * BLOCK_TOKENS <= room:
        raise UsageError(
            f"--num-gpu-blocks-override {blocks}: {blocks * BLOCK_TOKENS} tokens of KV cache are asked for; give at "
            f"least --max-model-len, {max_model_len} tokens, and at most the {room} that {cost.gpu.name} has room for "
            f"beside the {precision} weights; a block has {BLOCK_TOKENS}"
        )
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


async def serve(server: SimulatedServer, listening: socket.socket, *, host: str, on_ready: Callable[[], None]) -> None:
    """Serves on `listening`, opened for `host`, until SIGINT or SIGTERM; these cut answers that are not complete."""
    options = {"handler_cancellation": True, "shutdown_timeout": 0.05, "keepalive_timeout": 75}
    await webserver.serve(server.application(), listening, host=host, on_ready=on_ready, **options)
