"""Thinking models: the switch in the request, reasoning apart from the answer, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import loadgen
from loadgen.errors import UsageError
from loadgen.load.body import RequestMaker, RequestSettings
from loadgen.measure.config import configure
from loadgen.workload.item import Item
from loadgen.workload.protocol import Thinking, load_protocol

ITEM = Item(id="i", question="One and one?", solution="", gold="2")


def body(thinking: Thinking | None) -> dict[str, Any]:
    protocol = msgspec.structs.replace(load_protocol("gsm8k_cot_zeroshot"), api="chat")
    maker = RequestMaker(RequestSettings(protocol=protocol, model="m", seed=0, thinking=thinking))
    made: dict[str, Any] = json.loads(maker.measured(ITEM).body)
    return made


def test_the_template_is_told_either_way_and_only_when_asked() -> None:
    assert "chat_template_kwargs" not in body(None)
    assert body(Thinking(on=False))["chat_template_kwargs"] == {"enable_thinking": False}
    on = body(Thinking(on=True, budget=500))
    assert (on["chat_template_kwargs"], on["thinking_token_budget"]) == ({"enable_thinking": True}, 500)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"thinking": "maybe"}, "--thinking maybe"),
        ({"thinking": "on", "api": "completions"}, "--thinking on needs --api chat"),
        ({"thinking": "off", "thinking_budget": 5}, "--thinking-budget 5 needs --thinking on"),
        ({"thinking": "on", "thinking_budget": 0}, "--thinking-budget 0"),
        ({"reasoning_parser": "qwen3"}, "--reasoning-parser qwen3 needs --serve"),
    ],
)
def test_wrong_use(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        configure(**options)
    assert str(refused.value).startswith(sentence)


@pytest.mark.slow
def test_reasoning_is_counted_and_kept_apart_and_only_the_answer_is_graded(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["sweep", "--concurrency", "4", "--repeats", "1", "--requests", "16", "--thinking", "on"]
    arguments += ["--thinking-budget", "50", "--max-tokens", "300", "--out", str(out), "--quiet"]
    done = subprocess.run([sys.executable, "-m", "loadgen", *arguments], capture_output=True, text=True, check=False)
    run = loadgen.load_run(out)
    assert run.manifest.protocol.api == "chat", done.stderr
    assert run.manifest.protocol.thinking == Thinking(on=True, budget=50)
    assert run.manifest.protocol.stops == (), "a stop string in the reasoning would end it"
    asked = run.requests[run.requests["phase"] == "measured"]
    assert (asked["reasoning_tokens"] == 50).all()
    assert (asked["output_tokens"] > 50).all()
    assert asked["reasoning"].str.len().min() > 100
    assert not asked["text"].str.contains("<think>").any()
    assert set(asked["outcome"]) <= {"correct", "wrong", "unparsed", "truncated"}
    assert (asked["outcome"] == "correct").sum() >= 2
