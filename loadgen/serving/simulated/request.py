"""Requests of vLLM's API: bodies, limits, and vLLM's errors for invalid ones."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from loadgen.serving.simulated.answers import count_prompt_tokens

COMPLETION_MAX_TOKENS = 16
_B = TypeVar("_B", bound="Body")


class RequestError(Exception):
    """A refused request, with vLLM's status and JSON body."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        kind = "NotFoundError" if status == 404 else "BadRequestError"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Body(msgspec.Struct, kw_only=True):
    """What both endpoints share; unknown fields are ignored."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    seed: int | None = None
    temperature: float | None = None
    n: int | None = 1


class CompletionBody(Body, kw_only=True):
    prompt: str | list[str | int]


class Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class TemplateOptions(msgspec.Struct):
    enable_thinking: bool = False


class ChatBody(Body, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    chat_template_kwargs: TemplateOptions | None = None
    thinking_token_budget: int | None = None


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A valid request of either endpoint."""

    api: Literal["completions", "chat"]
    prompt: str
    prompt_tokens: int
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    thinks: bool = False
    thinking_budget: int | None = None
    sample: str
    """The draw of a request that samples; empty for greedy decoding."""


def parse_completion(body: bytes, *, model: str, max_model_len: int) -> Generation:
    """The request of a `/v1/completions` body; raises RequestError."""
    parsed = _decode(body, CompletionBody)
    prompt = parsed.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        text, tokens = prompt, count_prompt_tokens(prompt)
    elif prompt and all(isinstance(token, int) for token in prompt):
        text, tokens = " ".join(map(str, prompt)), len(prompt)
    else:
        raise RequestError("The simulated server takes one prompt: a text or a list of token ids.", param="prompt")
    wanted = COMPLETION_MAX_TOKENS if parsed.max_tokens is None else parsed.max_tokens
    return _generation("completions", parsed, text, tokens, wanted, model, max_model_len)


def parse_chat(body: bytes, *, model: str, max_model_len: int) -> Generation:
    """The request of a `/v1/chat/completions` body; raises RequestError."""
    parsed = _decode(body, ChatBody)
    if not parsed.messages:
        raise RequestError("messages: at least one message is needed.", param="messages")
    text = "\n".join(message.text for message in parsed.messages)
    tokens = count_prompt_tokens(text)
    wanted = parsed.max_tokens if parsed.max_completion_tokens is None else parsed.max_completion_tokens
    if wanted is None:
        wanted = max(1, max_model_len - tokens)
    generation = _generation("chat", parsed, text, tokens, wanted, model, max_model_len)
    template = parsed.chat_template_kwargs or TemplateOptions()
    return msgspec.structs.replace(
        generation, thinks=template.enable_thinking, thinking_budget=parsed.thinking_token_budget
    )


def _decode(body: bytes, kind: type[_B]) -> _B:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise RequestError(str(error)) from None


def _generation(
    api: Literal["completions", "chat"],
    body: Body,
    text: str,
    tokens: int,
    max_tokens: int,
    model: str,
    max_model_len: int,
) -> Generation:
    if body.model is not None and body.model != model:
        raise RequestError(f"The model `{body.model}` does not exist.", param="model", status=404)
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    too_long = (
        f"'max_tokens' or 'max_completion_tokens' is too large: {max_tokens}. This model's maximum context length is "
        f"{max_model_len} tokens and your request has {tokens} input tokens."
    )
    negative = body.temperature is not None and body.temperature < 0
    for param, wrong, message in (
        ("n", body.n not in (None, 1), f"n must be 1 on the simulated server, got {body.n}."),
        ("max_tokens", max_tokens < 1, f"max_tokens must be at least 1, got {max_tokens}."),
        ("min_tokens", not 0 <= body.min_tokens <= max_tokens,
         f"min_tokens must be between 0 and max_tokens={max_tokens}, got {body.min_tokens}."),
        ("temperature", negative, f"temperature must be non-negative, got {body.temperature}."),
        ("max_tokens", tokens + max_tokens > max_model_len, too_long),
        ("stream_options", body.stream_options is not None and not body.stream,
         "Stream options can only be defined when `stream=True`."),
        ("stop", "" in stops, "stop cannot contain an empty string."),
    ):  # fmt: skip
        if wrong:
            raise RequestError(message, param=param)
    options = body.stream_options or StreamOptions()
    return Generation(
        api=api,
        prompt=text,
        prompt_tokens=tokens,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        stops=stops,
        stream=bool(body.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
        sample=f"{body.seed}" if body.temperature else "",
    )
