"""Prompts: the texts of a dataset that only says how long they are, written once a server is up that can count tokens.

TokenCount: tokens of a prompt by a server's own count.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import msgspec
from msgspec.structs import replace

from loadgen import httpget
from loadgen.errors import ServerError
from loadgen.load.worker import Assignment
from loadgen.measure.plan import SweepPlan
from loadgen.measure.preflight import short_answer
from loadgen.workload.item import Item
from loadgen.workload.traffic import OPENER, Vocabulary, fitted, learn_vocabulary

CHECKED = 4
"""Prompts whose length is counted before the others are believed."""
COUNTED_ANSWERS = 500
"""Recorded answers whose tokens are counted; those of the others are estimated from their characters."""
CHARACTERS_PER_TOKEN = 4.0
"""The mean in recorded answers, where a server counts no tokens of a text."""


class _Counted(msgspec.Struct):
    count: int
    max_model_len: int | None = None


class TokenCount:
    """Counts by vLLM's /tokenize, else by the `usage.prompt_tokens` of requests for one token."""

    def __init__(self, assignment: Assignment, where: str) -> None:
        self._assignment = assignment
        self._where = where
        self.max_model_len: int | None = None
        self.tokenizes = self._tokenized(OPENER) is not None
        """The server has /tokenize: a count costs it next to nothing."""

    def __call__(self, text: str) -> int:
        """Tokens of a prompt with this text. Raises ServerError where the server does not say."""
        if self.tokenizes and (count := self._tokenized(text)) is not None:
            return count
        row = short_answer(self._assignment, Item(id="count", question=text), 1)
        if row.prompt_tokens is None:
            why = row.error or "it reports no usage.prompt_tokens"
            raise ServerError(
                f"{self._where}: its tokens cannot be counted, by /tokenize or usage ({why}); give texts instead, with "
                "--dataset prompts:FILE"
            )
        return row.prompt_tokens

    def _tokenized(self, text: str) -> int | None:
        assignment = self._assignment
        body: dict[str, object] = {"model": assignment.model, "prompt": text}
        if assignment.protocol.api == "chat":
            body = {"model": assignment.model, "messages": [{"role": "user", "content": text}]}
            if assignment.thinking is not None:
                body["chat_template_kwargs"] = assignment.thinking.body["chat_template_kwargs"]
        try:
            with closing(httpget.Connection(assignment.url, bearer=assignment.api_key)) as connection:
                response = connection.post("/tokenize", msgspec.json.encode(body))
            counted = msgspec.json.decode(response.body, type=_Counted) if response.status == 200 else None
        except (*httpget.FAILURES, msgspec.DecodeError):
            return None
        if counted is None:
            return None
        self.max_model_len = counted.max_model_len
        return counted.count


class Prompts:
    """Writes the prompts of a run for one server after the other; equal tokenizers get equal texts."""

    def __init__(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._written: dict[tuple[Vocabulary, bool], SweepPlan] = {}

    def plan_for(self, assignment: Assignment, where: str, max_model_len: int | None) -> tuple[SweepPlan, list[str]]:
        """The plan with every text written, and what to say about them.

        Raises ServerError where the server cannot count tokens, or takes no prompts of that length.
        """
        dataset = self._plan.dataset
        if dataset.unwritten:
            return self._lengthened(assignment, where, max_model_len)
        if self._plan.caps_by_record:
            return self._capped(assignment, where)
        return self._plan, []

    def _lengthened(self, assignment: Assignment, where: str, max_model_len: int | None) -> tuple[SweepPlan, list[str]]:
        plan, dataset = self._plan, self._plan.dataset
        count = TokenCount(assignment, where)
        lack = lack_of_room(dataset.items, count.max_model_len or max_model_len)
        if lack is not None:
            raise ServerError(f"{where}: {lack}")
        vocabulary = learn_vocabulary(count)
        seed = plan.config.seed
        right = vocabulary.exact and all(
            count(vocabulary.text(item, seed)) == item.input_tokens
            for item in _different(dataset.items)
            if (item.input_tokens or 0) >= vocabulary.base
        )
        key = vocabulary, right
        if key not in self._written:
            parts = vocabulary.written(dataset.items, seed), vocabulary.written(dataset.warmup, seed)
            if not right and count.tokenizes:
                items, warmup = (tuple(_fit(item, count) for item in part) for part in parts)
            else:
                items, warmup = parts
            self._written[key] = replace(plan, dataset=replace(dataset, items=items, warmup=warmup))
        notes = []
        if not right and not count.tokenizes:
            notes.append(
                f"{where}: prompt lengths are estimates ({vocabulary.tokens_per_word:.2f} tokens a word by its usage), "
                "since it has no /tokenize"
            )
        short = sum((item.input_tokens or 0) < vocabulary.base for item in dataset.items)
        if short:
            notes.append(
                f"{where}: {short} of {len(dataset.items)} prompts are asked to be shorter than the {vocabulary.base} "
                f"tokens that the shortest one has (its template included); they have {vocabulary.base}"
            )
        return self._written[key], notes

    def _capped(self, assignment: Assignment, where: str) -> tuple[SweepPlan, list[str]]:
        """Each answer may be as long as the recorded one."""
        plan = self._plan
        count = TokenCount(assignment, where)
        known: list[int] = []
        if count.tokenizes:
            besides = count(OPENER) - 1
            known = [max(1, count(item.solution) - besides) for item in plan.dataset.items[:COUNTED_ANSWERS]]
        characters = sum(len(item.solution) for item in plan.dataset.items[: len(known)])
        per_token = characters / sum(known) if known else CHARACTERS_PER_TOKEN
        items = tuple(
            replace(item, most_tokens=known[at] if at < len(known) else max(1, round(len(item.solution) / per_token)))
            for at, item in enumerate(plan.dataset.items)
        )
        notes = []
        if len(known) < len(items):
            notes.append(
                f"{where}: the recorded lengths of {len(items) - len(known)} answers are estimates, at "
                f"{per_token:.1f} characters a token; --max-tokens N gives all answers one cap"
            )
        return replace(plan, dataset=replace(plan.dataset, items=items)), notes


def _fit(item: Item, count: TokenCount) -> Item:
    return replace(item, question=fitted(item.question, item.input_tokens or 1, count))


def _different(items: Sequence[Item]) -> list[Item]:
    """A few items, the shortest and the longest prompt among them."""
    by_length = sorted(items, key=lambda item: item.input_tokens or 0)
    return list({item.id: item for item in (by_length[0], by_length[-1], *items[: CHECKED - 2])}.values())


def lack_of_room(items: Sequence[Item], max_model_len: int | None) -> str | None:
    """What a server that takes that many tokens of prompt and answer does not take of them, as a clause."""
    if max_model_len is None:
        return None
    needs = [(item.input_tokens or 0) + (item.output_tokens or 0) for item in items]
    over = sum(need > max_model_len for need in needs)
    if not over:
        return None
    return (
        f"{over} of {len(items)} requests need up to {max(needs)} tokens of prompt and answer, and it takes "
        f"{max_model_len} (max_model_len); serve it with --max-model-len {max(needs)} or more, or ask for shorter ones"
    )
