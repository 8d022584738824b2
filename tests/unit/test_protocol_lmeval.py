"""Protocols named after lm-evaluation-harness's tasks ask what that program asks, byte for byte.

The installed lm_eval itself makes the requests, through `simple_evaluate`, for a model that only writes them down.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from programs import package

from loadgen.workload.dataset import TASK_FILES, load_dataset
from loadgen.workload.item import Item
from loadgen.workload.protocol import Protocol, load_protocol

package("lm_eval")

with pytest.MonkeyPatch.context() as patch:  # read at import; other tests ask their own hub
    patch.setenv("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "1"))
    import datasets
    import lm_eval
    import yaml
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
    from lm_eval.tasks import TaskManager
from published import published  # noqa: E402

TASKS = {
    "gsm8k": "gsm8k/gsm8k.yaml",
    "gsm8k_cot": TASK_FILES["gsm8k_cot"][0],
    "gsm8k_cot_zeroshot": "gsm8k/gsm8k-cot-zeroshot.yaml",
    "gsm8k_cot_llama": TASK_FILES["gsm8k_cot_llama"][0],
}
NAMES = list(TASKS)
ITEMS = 200
NO_OTHER_TASKS = TaskManager(include_defaults=False)


class Recorder(LM):
    """A model that writes requests down: contexts and generation settings, in the documents' order."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        self.asked += [deepcopy(request.args) for request in requests]
        return [""] * len(requests)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise AssertionError("these tasks generate")

    loglikelihood_rolling = loglikelihood

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        assert add_generation_prompt
        return json.dumps(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "json"

    @property
    def tokenizer_name(self) -> str:
        return "json"


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def harness_requests(name: str, train: Path, test: Path, *, chat: bool, limit: int) -> list[tuple[str, dict[str, Any]]]:
    """What lm_eval asks a model for the first `limit` documents."""
    config = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / TASKS[name]).read_text(encoding="utf-8"))
    splits = {split: datasets.Dataset.from_list(rows_of(path)) for split, path in (("train", train), ("test", test))}
    task = ConfigurableTask(config={**config, "custom_dataset": lambda **_: splits})
    model = Recorder()
    lm_eval.simple_evaluate(
        model=model, tasks=[task], task_manager=NO_OTHER_TASKS, limit=limit, apply_chat_template=chat,
        bootstrap_iters=0, log_samples=False,
    )  # fmt: skip
    assert len(model.asked) == limit
    return model.asked


@pytest.fixture(params=["written here", "published"])
def splits(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """GSM8K's two splits: 40 and 30 rows that this test makes, and the published files where they are at hand."""
    if request.param == "published":
        return published("gsm8k_train.jsonl"), published("gsm8k_test.jsonl")
    files = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    for path, count in zip(files, (40, 30), strict=True):
        made = [
            {"question": f"{path.stem} {n}: a\nb {{{{x}}}} {{question}} é?", "answer": f"<<{n}={n}>>{n}\n#### {n:,}"}
            for n in range(count)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return files


@pytest.fixture
def protocol_of(splits: tuple[Path, Path]) -> Callable[[str], Protocol]:
    return lambda name: load_protocol(name, shots_file=splits[0] if name == "gsm8k" else None)


def items_of(test: Path) -> tuple[Item, ...]:
    return load_dataset("gsm8k", data_file=test, limit=ITEMS).items


@pytest.mark.parametrize("name", NAMES)
def test_prompts_stops_and_limit_are_those_of_the_harness(
    name: str, splits: tuple[Path, Path], protocol_of: Callable[[str], Protocol]
) -> None:
    protocol, items = protocol_of(name), items_of(splits[1])
    asked = harness_requests(name, *splits, chat=False, limit=len(items))
    assert [protocol.prompt(item).encode() for item in items] == [text.encode() for text, _ in asked]
    client = LocalCompletionsAPI(model="m", base_url="http://127.0.0.1:9/v1/completions", tokenizer_backend=None)
    for text, settings in asked[:3]:
        body = client._create_payload([text], generate=True, gen_kwargs=deepcopy(settings))
        assert (body["stop"], body["max_tokens"]) == (list(protocol.stops), protocol.max_tokens)
        assert body["temperature"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_chat_messages_are_those_of_the_harness(
    name: str, splits: tuple[Path, Path], protocol_of: Callable[[str], Protocol]
) -> None:
    protocol, items = protocol_of(name), items_of(splits[1])
    asked = harness_requests(name, *splits, chat=True, limit=len(items))
    assert [protocol.messages(item) for item in items] == [json.loads(text) for text, _ in asked]
    client = LocalChatCompletion(model="m", base_url="http://127.0.0.1:9/v1/chat/completions")
    body = client._create_payload(json.loads(asked[0][0]), generate=True, gen_kwargs=deepcopy(asked[0][1]))
    assert body["max_tokens"] == protocol.max_tokens
    assert body["stop"] == list(protocol.stops)[:4], "its chat client sends four stops at most"


@pytest.mark.parametrize("name", ["gsm8k_cot", "gsm8k_cot_llama"])
def test_the_installed_examples_are_the_pinned_ones(name: str) -> None:
    assert load_protocol(name).name == name


def test_questions_get_examples_of_their_own(splits: tuple[Path, Path], protocol_of: Callable[[str], Protocol]) -> None:
    protocol, items = protocol_of("gsm8k"), items_of(splits[1])
    chosen = {tuple(shot.id for shot in protocol.shots_of(item)) for item in items}
    assert len(chosen) == len(items)


def test_a_later_question_alone_gets_what_it_gets_in_the_whole_set(
    splits: tuple[Path, Path], protocol_of: Callable[[str], Protocol]
) -> None:
    items = items_of(splits[1])
    assert protocol_of("gsm8k").prompt(items[20]) == harness_requests("gsm8k", *splits, chat=False, limit=21)[20][0]
