"""Protocol: how a question becomes a request, and where its answer must stop; Thinking: whether a hybrid model reasons
before it answers, and how long it may.
"""

from __future__ import annotations

import hashlib
import re
import string
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from loadgen.errors import UsageError
from loadgen.notation import did_you_mean, spelled
from loadgen.workload import dataset as shots
from loadgen.workload.dataset import AnswerKind, Dataset
from loadgen.workload.item import Item
from loadgen.workload.questions import own_shots

_DEFAULTS = {
    "mathqa": "mathqa_gen_v1",
    "mathqa:all": "mathqa_gen_v1",
    "mathqa:clean": "mathqa_gen_v1",
    "gsm8k:platinum": "gsm8k",
    "jsonl": "gsm8k_cot_zeroshot",
    "choices": "mathqa_gen_v1",
    "prompts": "plain",
    "sharegpt": "plain",
    "trace": "plain",
    "synthetic": "plain",
}

GSM8K_ASK = "Question: {question}\nAnswer:"
COT_ASK = "Q: {question}\nA:"
ZEROSHOT_ASK = "Q: {question}\nA: Let's think step by step."
OWN_LLAMA_ASK = (
    "Problem: {question}\nWork it out step by step and close with the sentence "
    '"The final answer is N", where N is the number asked for.\n'
)
MATHQA_ASK = (
    "Question: {question}\n{options}Think step by step, then finish with "
    '"The answer is (X)", where X is the letter of the right option.\nAnswer:'
)
TEXT_ASK = (
    'Question: {question}\nThink step by step, then finish with a line "The answer is X", where X is the answer '
    "alone, in as few words as possible.\nAnswer:"
)
GSM8K_STOPS = ("Question:", "</s>", "<|im_end|>")
COT_STOPS = ("Q:", "</s>", "<|im_end|>")
LLAMA_STOPS = ("<|eot_id|>", "<|start_header_id|>user<|end_header_id|>", *COT_STOPS)
TURN_END_STOPS = ("</s>", "<|im_end|>")
HARNESS_MAX_TOKENS = 256
"""lm-evaluation-harness's limit for a task that names none."""

_FIELD = re.compile(r"\{(question|options)\}")


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """Prompt, stops and limit under a name that says where the shots came from.

    A name that ends in `-custom` has its examples from another file than the published one, `-own` from loadgen.
    """

    name: str
    version: str
    """lm-evaluation-harness's task version where it is one of its tasks, else loadgen's own count."""
    ask: str
    """The question turn: `{question}`, and `{options}` for a line `Options:` followed by one line per option."""
    delimiter: str = " "
    """Between a question turn and its worked answer, where the prompt is one text."""
    shots: tuple[Item, ...] = ()
    """`solution` is the answer turn, word for word."""
    drawn: int | None = None
    """So many of the shots, drawn again for each question; None: all of them for every question."""
    stops: tuple[str, ...]
    max_tokens: int = HARNESS_MAX_TOKENS
    api: str = "completions"
    """`completions` or `chat`: what the protocol uses unless `--api` says otherwise."""
    answer: AnswerKind = "number"
    """What is graded: a number, the letter of an option, or a text; `none`: nothing."""

    def shots_of(self, item: Item) -> tuple[Item, ...]:
        """The worked examples before this question."""
        if self.drawn is None:
            return self.shots
        return tuple(self.shots[index] for index in shots.drawn(len(self.shots), self.drawn, item.id))

    def prompt(self, item: Item) -> str:
        """The whole prompt as one text: worked examples, a blank line after each, then the question."""
        worked = [f"{self._turn(shot)}{self.delimiter}{shot.solution}\n\n" for shot in self.shots_of(item)]
        return "".join([*worked, self._turn(item)])

    def messages(self, item: Item) -> list[dict[str, Any]]:
        """The item's conversation; else the same as one: each example is a user's turn and an assistant's, the question
        comes last."""
        if item.messages:
            return list(item.messages)
        turns = []
        for shot in self.shots_of(item):
            turns += [("user", self._turn(shot)), ("assistant", shot.solution)]
        return [{"role": role, "content": content} for role, content in [*turns, ("user", self._turn(item))]]

    def prompt_sha(self, item: Item) -> str:
        """Hex sha256 of what the item's request asks: the prompt's UTF-8 text, or the messages as JSON for `chat`."""
        asked = msgspec.json.encode(self.messages(item)) if self.api == "chat" else self.prompt(item).encode()
        return hashlib.sha256(asked).hexdigest()

    @property
    def sha256(self) -> str:
        """Changes when anything that shapes a request changes: template, shots, their choice, stops or limit."""
        worked = [[self._turn(shot), shot.solution] for shot in self.shots]
        choice = self.drawn and [self.drawn, shots.DRAW_SEED]
        content = [self.ask, self.delimiter, worked, choice, list(self.stops), self.max_tokens, self.api]
        return hashlib.sha256(msgspec.json.encode(content)).hexdigest()

    def check_fits(self, dataset: Dataset) -> None:
        """Raises UsageError when the dataset's answers are of another kind than the protocol asks for."""
        if self.answer != dataset.answer and "none" in (self.answer, dataset.answer):
            has = "has no answers to grade" if dataset.answer == "none" else "has answers to grade"
            raise UsageError(
                f"--protocol {self.name}: --dataset {dataset.name} {has}; omit --protocol, which is "
                f"{default_protocol(dataset.name, texts=dataset.answer == 'text')} then"
            )
        if self.answer != dataset.answer:
            raise UsageError(
                f"--protocol {self.name} asks for a {self.answer}, but answers of --dataset {dataset.name} are "
                f"{dataset.answer}s; use --protocol {default_protocol(dataset.name, texts=dataset.answer == 'text')}"
            )

    def _turn(self, item: Item) -> str:
        lettered = zip(string.ascii_uppercase, item.options, strict=False)
        options = "".join(f"({letter}) {text}\n" for letter, text in lettered)
        fields = {"question": item.question, "options": f"Options:\n{options}" if options else ""}
        return _FIELD.sub(lambda field: fields[field[1]], self.ask)


_CHAT_MATHQA = Protocol(
    name="mathqa_gen_v1",
    version="1",
    ask=MATHQA_ASK,
    stops=TURN_END_STOPS,
    max_tokens=1024,
    api="chat",
    answer="letter",
)
_SAMPLE = Protocol(name="sample", version="1", ask=GSM8K_ASK, stops=GSM8K_STOPS)
_COT = Protocol(name="gsm8k_cot", version="3", ask=COT_ASK, stops=COT_STOPS)
_KNOWN = (
    replace(_SAMPLE, name="gsm8k", version="3", drawn=5),
    replace(_SAMPLE, name="gsm8k_fixed"),
    _COT,
    replace(_COT, name="gsm8k_cot_zeroshot", ask=ZEROSHOT_ASK),
    Protocol(name="gsm8k_cot_llama", version="4", ask=OWN_LLAMA_ASK, delimiter="", stops=LLAMA_STOPS, api="chat"),
    _CHAT_MATHQA,
    # five examples keep a base model's answer short
    replace(_CHAT_MATHQA, name="mathqa_gen_v1_5shot", stops=GSM8K_STOPS, max_tokens=512, api="completions"),
    replace(_CHAT_MATHQA, name="text_gen_v1", ask=TEXT_ASK, max_tokens=512, answer="text"),
    Protocol(name="plain", version="1", ask="{question}", stops=(), answer="none"),
    _SAMPLE,
)
"""Every protocol, its examples still missing."""
PROTOCOLS = tuple(protocol.name for protocol in _KNOWN)


def default_protocol(dataset: str, *, texts: bool = False) -> str:
    """The name of the protocol for a dataset when none is asked for; `texts`: its answers are texts."""
    return "text_gen_v1" if texts else _DEFAULTS.get(dataset, _DEFAULTS.get(dataset.partition(":")[0], dataset))


def protocol_named(text: str) -> str:
    """The protocol's name in its own letters; an unknown one unchanged."""
    return spelled(text, PROTOCOLS)


def load_protocol(name: str, *, shots_file: Path | None = None) -> Protocol:
    """The protocol of `PROTOCOLS` with its worked examples; docs/workload.md describes each.

    `shots_file` is GSM8K's train split, an lm-evaluation-harness task file (`gsm8k_cot`, `gsm8k_cot_llama`) or MathQA's
    dev split; without it the published file is taken from the cache or downloaded, a task file from the installed
    lm_eval, and where neither is at hand the examples are the project's own and the name ends in `-own`.
    Raises UsageError for an unknown name or a bad shots file.
    """
    known = next((protocol for protocol in _KNOWN if protocol.name == name), None)
    if known is None:
        hint = f"{did_you_mean(name, PROTOCOLS)}known: {', '.join(PROTOCOLS)}"
        raise UsageError(f"unknown protocol {name!r}; {hint}")
    if name in ("gsm8k_cot", "gsm8k_cot_llama") and (found := shots.task_shots(name, shots_file)) is not None:
        task, origin = found
        return _with_shots(replace(known, ask=task.ask, delimiter=task.delimiter), task.shots, origin)
    if name == "gsm8k_cot_llama":
        own = shots.own_sentences("The final answer is {gold}")
    elif name == "gsm8k_cot":
        own = shots.own_sentences("The answer is {gold}.")
    elif name in ("gsm8k", "gsm8k_fixed"):
        own = shots.train_shots(shots_file, needed=5)
    elif name == "mathqa_gen_v1_5shot":
        own = shots.letter_shots(shots_file, "The answer is ({gold}).")
    elif shots_file is not None:
        why = "has its own shot" if name == "sample" else "has no shots"
        raise UsageError(f"--shots-file {shots_file} needs --protocol gsm8k or another with shots: {name!r} {why}")
    else:
        return replace(known, shots=tuple(own_shots()[:1])) if name == "sample" else known
    return _with_shots(known, own.items[:5] if name == "gsm8k_fixed" else own.items, own.origin)


def _with_shots(protocol: Protocol, items: tuple[Item, ...], origin: shots.Origin) -> Protocol:
    suffix = "" if origin == "published" else f"-{origin}"
    return replace(protocol, name=f"{protocol.name}{suffix}", shots=items)


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
        chat = replace(protocol, api="chat")
        return replace(chat, stops=(), max_tokens=MAX_TOKENS) if self.on else chat

    @property
    def body(self) -> dict[str, Any]:
        """What it adds to a chat request: the template's switch (as Qwen3's), and vLLM's `thinking_token_budget`."""
        switch: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": self.on}}
        return switch if self.budget is None else {**switch, "thinking_token_budget": self.budget}
