"""Protocol: how a question becomes a request, and where its answer must stop.

Thinking: whether a hybrid model reasons before it answers, and how long it may.
"""

from __future__ import annotations

import hashlib
import re
import string
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import UsageError
from loadgen.workload import shots
from loadgen.workload.dataset import Answer, Dataset
from loadgen.workload.item import Item
from loadgen.workload.questions import own_shots

PROTOCOLS = (
    "gsm8k",
    "gsm8k_fixed",
    "gsm8k_cot",
    "gsm8k_cot_zeroshot",
    "gsm8k_cot_llama",
    "mathqa_gen_v1",
    "mathqa_gen_v1_5shot",
    "text_gen_v1",
    "sample",
)
_DEFAULTS = {
    "mathqa": "mathqa_gen_v1",
    "mathqa:all": "mathqa_gen_v1",
    "mathqa:clean": "mathqa_gen_v1",
    "gsm8k:platinum": "gsm8k",
    "jsonl": "gsm8k_cot_zeroshot",
    "choices": "mathqa_gen_v1",
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
    """The question turn: `{question}`, and `{options}` for a line `Options:` with one line per option below."""
    delimiter: str = " "
    """Between a question turn and its worked answer, where the prompt is one text."""
    shots: tuple[Item, ...] = ()
    """`solution` is the answer turn, word for word."""
    drawn: int | None = None
    """So many of the shots, drawn anew for each question; None: all of them for every question."""
    stops: tuple[str, ...]
    max_tokens: int
    api: str = "completions"
    """`completions` or `chat`: what the protocol uses unless `--api` says otherwise."""
    answer: Answer = "number"
    """What is graded: a number, the letter of an option, or a text."""

    def shots_of(self, item: Item) -> tuple[Item, ...]:
        """The worked examples that stand before this question."""
        if self.drawn is None:
            return self.shots
        return tuple(self.shots[index] for index in shots.drawn(len(self.shots), self.drawn, item.id))

    def prompt(self, item: Item) -> str:
        """The whole prompt as one text: worked examples, a blank line after each, then the question."""
        worked = [f"{self._turn(shot)}{self.delimiter}{shot.solution}\n\n" for shot in self.shots_of(item)]
        return "".join([*worked, self._turn(item)])

    def messages(self, item: Item) -> list[dict[str, str]]:
        """The same as a conversation: each example is a user's turn and an assistant's, the question comes last."""
        turns = []
        for shot in self.shots_of(item):
            turns.append({"role": "user", "content": self._turn(shot)})
            turns.append({"role": "assistant", "content": shot.solution})
        return [*turns, {"role": "user", "content": self._turn(item)}]

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


def default_protocol(dataset: str, *, texts: bool = False) -> str:
    """The name of the protocol for a dataset when none is asked for; `texts`: its answers are texts."""
    return "text_gen_v1" if texts else _DEFAULTS.get(dataset, dataset)


def load_protocol(name: str, *, shots_file: Path | None = None) -> Protocol:
    """The protocol of `PROTOCOLS` with its worked examples; docs/workload.md describes each.

    `shots_file` is GSM8K's train split, an lm-evaluation-harness task file (`gsm8k_cot`, `gsm8k_cot_llama`) or MathQA's
    dev split; without it the published file is taken from the cache or downloaded, a task file from the installed
    lm_eval, and where neither is at hand the examples are the project's own and the name ends in `-own`.
    Raises UsageError for an unknown name or a bad shots file.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    if name in ("gsm8k", "gsm8k_fixed"):
        return _gsm8k(name, shots_file)
    if name in ("gsm8k_cot", "gsm8k_cot_llama"):
        return _harness(name, shots_file)
    if name == "mathqa_gen_v1_5shot":
        return _mathqa(name, shots.letter_shots(shots_file, "The answer is ({gold})."))
    if shots_file is not None:
        own = "has its own shot" if name == "sample" else "has no shots"
        raise UsageError(f"--shots-file {shots_file} needs --protocol gsm8k or another with shots: {name!r} {own}")
    if name == "mathqa_gen_v1":
        return _mathqa(name, None)
    if name == "text_gen_v1":
        return Protocol(
            name=name, version="1", ask=TEXT_ASK, stops=TURN_END_STOPS, max_tokens=512, api="chat", answer="text"
        )
    if name == "gsm8k_cot_zeroshot":
        return Protocol(name=name, version="3", ask=ZEROSHOT_ASK, stops=COT_STOPS, max_tokens=HARNESS_MAX_TOKENS)
    return Protocol(
        name=name,
        version="1",
        ask=GSM8K_ASK,
        shots=tuple(own_shots()[:1]),
        stops=GSM8K_STOPS,
        max_tokens=HARNESS_MAX_TOKENS,
    )


def _gsm8k(name: str, shots_file: Path | None) -> Protocol:
    """Five shots of the train split: drawn for each question, or the first five for every one."""
    found = shots.train_shots(shots_file, needed=5)
    fixed = name == "gsm8k_fixed"
    return Protocol(
        name=_named(name, found.origin),
        version="1" if fixed else "3",
        ask=GSM8K_ASK,
        shots=found.items[:5] if fixed else found.items,
        drawn=None if fixed else 5,
        stops=GSM8K_STOPS,
        max_tokens=HARNESS_MAX_TOKENS,
    )


def _harness(name: str, shots_file: Path | None) -> Protocol:
    """Eight fixed examples, with the wording of the harness's task file where there is one."""
    llama = name == "gsm8k_cot_llama"
    found = shots.task_shots(name, shots_file)
    if found is not None:
        task, origin = found
        ask, delimiter, examples = task.ask, task.delimiter, task.shots
    else:
        own = shots.own_sentences("The final answer is {gold}" if llama else "The answer is {gold}.")
        ask, delimiter, examples, origin = (
            OWN_LLAMA_ASK if llama else COT_ASK,
            "" if llama else " ",
            own.items,
            own.origin,
        )
    return Protocol(
        name=_named(name, origin),
        version="4" if llama else "3",
        ask=ask,
        delimiter=delimiter,
        shots=examples,
        stops=LLAMA_STOPS if llama else COT_STOPS,
        max_tokens=HARNESS_MAX_TOKENS,
        api="chat" if llama else "completions",
    )


def _mathqa(name: str, found: shots.Shots | None) -> Protocol:
    """0-shot for chat models, or five examples that keep a base model's answer short."""
    return Protocol(
        name=_named(name, found.origin) if found else name,
        version="1",
        ask=MATHQA_ASK,
        shots=found.items if found else (),
        stops=GSM8K_STOPS if found else TURN_END_STOPS,
        max_tokens=512 if found else 1024,
        api="completions" if found else "chat",
        answer="letter",
    )


def _named(name: str, origin: shots.Origin) -> str:
    return name if origin == "published" else f"{name}-{origin}"


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
