"""Answers on the wire: server-sent events token by token, or one JSON object."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import msgspec

from loadgen.serving.simulated.output import Output
from loadgen.serving.simulated.request import Generation

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
