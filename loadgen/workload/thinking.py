"""Thinking: whether a hybrid model reasons before it answers, and how long it may."""

from __future__ import annotations

from typing import Any

import msgspec

from loadgen.workload.protocol import Protocol

MAX_TOKENS = 8192
"""Tokens of reasoning and answer together where no `--max-tokens` is given; shorter, most answers are cut off."""
PROMPT_ROOM_TOKENS = 4096


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """A factor of the experiment, the same for every precision."""

    on: bool
    budget: int | None = None
    """Tokens after which the server ends the reasoning."""

    def shape(self, protocol: Protocol) -> Protocol:
        """The protocol as a chat; with room and without stop strings where the model thinks: they would end that."""
        chat = msgspec.structs.replace(protocol, api="chat")
        return msgspec.structs.replace(chat, stops=(), max_tokens=MAX_TOKENS) if self.on else chat

    @property
    def body(self) -> dict[str, Any]:
        """What it adds to a chat request: the template's switch (as Qwen3's), and vLLM's `thinking_token_budget`."""
        switch: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": self.on}}
        return switch if self.budget is None else {**switch, "thinking_token_budget": self.budget}
