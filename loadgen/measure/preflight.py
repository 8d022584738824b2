"""Preflight: a few short requests to each running server before the first cell, and what the answers tell us.

Patience: how long servers that are still loading are waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec
import uvloop

from loadgen.errors import UsageError
from loadgen.load.body import BodyChanges, named_fields
from loadgen.load.exchange import Exchange, Raw, concealed, read_exchange
from loadgen.load.worker import Assignment
from loadgen.measure.observer import Observer
from loadgen.secret import Mask
from loadgen.workload.item import Item

TOKENS = 8
REQUESTS = 4
"""One after the other, until one fails: this finds a server that fails sometimes, and one of several at a URL."""
TIMEOUT_S = 30.0
"""A server that takes longer for such a short answer is measured anyway."""
RATE_LIMIT_WAITS_S = (1.0, 2.0)
MOST_STEPS = 16
NEARLY_GREEDY = 0.01
"""Sent where temperature 0 is refused; smaller ones are raised to this by vLLM."""
_BAD_REQUEST = frozenset({400, 413, 415, 422, 500, 501})
_NOT_THERE = frozenset({404, 405, 410, 501})
_API_NAMES = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


T = TypeVar("T")
POLL_S = 0.5
REMEDY = "wait for it with --wait-ready 300"


class NotReady(UsageError):
    """A server that does not answer yet."""

    def __init__(self, where: str, words: str, *, loading: bool) -> None:
        what = f'is still loading ("{words}")' if loading else f"does not answer ({words})"
        remedy = REMEDY if loading else f"start the server or check the URL, or {REMEDY}"
        super().__init__(f"{where} {what}; {remedy}")
        self.what = f"{where} {what}"


class Patience:
    """Waits for servers, for so many seconds altogether."""

    def __init__(self, wait_ready_s: float, observer: Observer) -> None:
        self._wait_ready_s = wait_ready_s
        self._observer = observer
        self._deadline_s = time.monotonic() + wait_ready_s

    def warn(self, sentence: str) -> None:
        """Something that does not keep the sweep from beginning."""
        self._observer.warn(sentence)

    def note(self, sentence: str) -> None:
        """Something that was decided before the sweep begins."""
        self._observer.note(sentence)

    def wait(self, ask: Callable[[], T]) -> T:
        """What `ask` returns once it raises NotReady no more. Raises UsageError when the time is over."""
        announced = ""
        while True:
            try:
                return ask()
            except NotReady as error:
                if not self._wait_ready_s:
                    raise
                if time.monotonic() + POLL_S > self._deadline_s:
                    waited = f"after --wait-ready {self._wait_ready_s:g}"
                    raise UsageError(f"{error.what} {waited}; give it longer") from None
                if error.what != announced:
                    announced = error.what
                    self._observer.note(f"{announced}; waiting up to {self._wait_ready_s:g} s")
            time.sleep(POLL_S)


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned about a run's requests: how the bodies of all of them change, and why, in sentences."""

    changes: BodyChanges
    notes: tuple[str, ...] = ()


class Preflight:
    """Sends requests to one target; `where` names it at the beginning of every sentence."""

    def __init__(self, assignment: Assignment, where: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._assignment = msgspec.structs.replace(assignment, timeout_s=min(assignment.timeout_s, timeout_s))
        self._where = where
        self._mask = Mask(assignment.api_key)
        self._held: str | None = None
        """Why the last refused request cannot be changed: the refused field was asked for."""

    def learn(self) -> Learned:
        """The changes of this target's requests, beginning with those of its assignment.

        A field that a server refuses is omitted if the measurement remains what was asked for. Raises UsageError, one
        sentence, for a refusal that affects every cell, and NotReady while the server loads. Failures of some requests
        only, or later ones, are left to the cells.
        """
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._learn())

    async def _learn(self) -> Learned:
        changes, steps = self._assignment.changes, list[_Step]()
        for _ in range(REQUESTS):
            answer = await self._asked(changes)
            if answer.row.status != "ok":
                break
        while answer.refuses and len(steps) < MOST_STEPS:
            step = next((s for s in self._steps(answer, changes)), None)
            if step is None:
                break
            steps.append(step)
            changes = step.applied(changes)
            answer = await self._asked(changes)
        if answer.row.status == "ok":
            steps = await self._needed(steps)
            return self._learned(steps)
        await self._give_reason(answer, changes)
        return Learned(changes=self._assignment.changes, notes=(self._doubt(answer),))

    async def _needed(self, steps: list[_Step]) -> list[_Step]:
        """The steps without those that the server does not need: it may have mentioned a field only."""
        for step in steps[:-1]:
            if step in steps and not step.superseded(steps):
                without = [other for other in steps if other.field != step.field]
                if (await self._asked(_after(self._assignment.changes, without))).row.status == "ok":
                    steps = without
        return steps

    def _learned(self, steps: list[_Step]) -> Learned:
        notes = tuple(
            f'{self._where} refuses {step.field} ("{step.words}"): {step.consequence}'
            for step in steps
            if not step.superseded(steps)
        )
        return Learned(changes=_after(self._assignment.changes, steps), notes=notes)

    def _steps(self, answer: _Reply, changes: BodyChanges) -> Iterator[_Step]:
        """Changes that may make the server accept the request, the most likely first."""
        self._held = None
        for field in named_fields(answer.error, answer.asked):
            kept = self._kept(field)
            if kept is not None:
                refused = f'{self._where} refuses {field} ("{_quoted(answer.row)}")'
                self._held = self._held or f"{refused}; {kept}"
                continue
            yield from _steps_of(field, answer, changes)

    def _kept(self, field: str) -> str | None:
        """Why a field cannot be omitted without asking, and what to do; None: it can."""
        without = f"--extra-body '{{\"{field}\": null}}' omits it"
        if field in ("ignore_eos", "min_tokens"):
            if self._assignment.fixed_length is None:
                return f"the dataset's lengths of answers need it: use prompts without such lengths, or {without}"
            return f"--fixed-length needs it: use --max-tokens instead, or {without}"
        if field in ("chat_template_kwargs", "thinking_token_budget") or field.startswith("chat_template_kwargs."):
            return f"--thinking needs it: omit that option, or {without.replace(field, field.partition('.')[0])}"
        if field == "stop" and self._assignment.protocol.api == "completions":
            return f"the answers of a completion end at it: try --api chat, or {without}"
        if _holds(self._assignment.changes.extra, field):
            return "--extra-body asks for it: remove it there"
        return None

    async def _give_reason(self, answer: _Reply, changes: BodyChanges) -> None:
        """Raises UsageError or NotReady if every request would fail; returns if only some may."""
        row, status = answer.row, answer.row.http_status
        if status == 200 and not answer.refuses:
            return
        for wait_s in (0.0, *(RATE_LIMIT_WAITS_S if status == 429 else ())):
            await asyncio.sleep(wait_s)
            again = await self._asked(changes)
            if again.row.status == "ok":
                return
        if self._held is not None:
            raise UsageError(self._held)
        said, path = f'"{_quoted(row)}"', _API_NAMES[self._assignment.protocol.api]
        if row.status == "connect" or status == 503:
            raise NotReady(self._where, _quoted(row), loading=status == 503)
        if status is None or row.status not in ("http", "malformed"):
            return
        if 300 <= status < 400:
            raise UsageError(f"{self._where} answers {path} with {_words(row)}")
        if status in (401, 403):
            raise UsageError(f"{self._where} refuses requests ({_words(row)}); give the key with --api-key-env VAR")
        if status == 429:
            raise UsageError(f"{self._where} limits the rate of requests ({_words(row)}); raise or remove that limit")
        if status in _NOT_THERE and _is_about_model(answer, self._assignment.model):
            raise UsageError(f"{self._where} does not serve {self._assignment.model} ({said}); name it with --model")
        if status in _NOT_THERE or status in _BAD_REQUEST - {500}:
            other = "chat" if self._assignment.protocol.api == "completions" else "completions"
            if await self._accepts(other, changes):
                raise UsageError(f"{self._where} answers {path} with {_words(row)}; try --api {other}")
        if status in _NOT_THERE:
            raise UsageError(
                f"{self._where} has neither /v1/completions nor /v1/chat/completions ({_words(row)}); check the URL"
            )
        if status in _BAD_REQUEST - {500}:
            raise UsageError(f"{self._where} refuses requests ({_words(row)}); see --extra-body for other fields")

    async def _accepts(self, api: str, changes: BodyChanges) -> bool:
        """Whether the server accepts requests of another API, apart from their fields."""
        protocol = msgspec.structs.replace(self._assignment.protocol, api=api)
        answer = await self._asked(changes, msgspec.structs.replace(self._assignment, protocol=protocol))
        status = answer.row.http_status
        return answer.row.status == "ok" or (status in (400, 422) and bool(named_fields(answer.error, answer.asked)))

    def _doubt(self, answer: _Reply) -> str:
        return f"{self._where} did not answer a first short request ({answer.row.error}); it is measured anyway"

    async def _asked(self, changes: BodyChanges, assignment: Assignment | None = None) -> _Reply:
        assignment = msgspec.structs.replace(assignment or self._assignment, changes=changes)
        raw = await _raw(assignment, assignment.warmup_items[0], TOKENS)
        row = concealed(read_exchange(raw), self._mask)
        error = raw.error_body() if raw.http_status not in (None, 200) else (row.error or "").encode()
        return _Reply(row, error, msgspec.json.decode(raw.request.body))


async def _raw(assignment: Assignment, item: Item, tokens: int) -> Raw:
    request = assignment.maker().trial(item, tokens)
    slot = assignment.slot_maker()(0)
    done: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()
    slot.send(request, done.set_result)
    try:
        return await done
    finally:
        slot.close()


def short_answer(assignment: Assignment, item: Item, tokens: int) -> Exchange:
    """What becomes of one request for the item with at most so many tokens of an answer."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        raw = runner.run(_raw(assignment, item, tokens))
    return concealed(read_exchange(raw), Mask(assignment.api_key))


class _Reply(msgspec.Struct, frozen=True):
    row: Exchange
    error: bytes
    asked: dict[str, Any]
    """The request's body."""

    @property
    def refuses(self) -> bool:
        """Whether the server refused the request itself."""
        if self.row.http_status == 200:
            no_stream = (self.row.error or "").startswith("no event stream: ")
            return self.row.status == "http" or (no_stream and not _quoted(self.row).startswith(("{", "[")))
        return self.row.status == "http" and self.row.http_status in _BAD_REQUEST


class _Step(msgspec.Struct, frozen=True, kw_only=True):
    """A field that is omitted, or gets another value."""

    field: str
    value: Any
    words: str
    consequence: str
    limit_field: str | None = None

    def applied(self, changes: BodyChanges) -> BodyChanges:
        if self.limit_field is not None:
            return msgspec.structs.replace(changes, limit_field=self.limit_field)
        patch: Any = self.value
        for name in reversed(self.field.split(".")):
            patch = {name: patch}
        return msgspec.structs.replace(changes, refused=_joined(changes.refused, patch))

    def superseded(self, steps: list[_Step]) -> bool:
        """Whether a later step changes the same field, or the object that holds it."""
        later = steps[steps.index(self) + 1 :]
        return any(other.field == self.field or self.field.startswith(f"{other.field}.") for other in later)


_WITHOUT = {
    "stream_options.continuous_usage_stats": "it is not sent; tokens are placed by the chunks that bring them",
    "stream_options": "it is not sent, so the server may not report its tokens",
    "temperature": "it is not sent, so answers are decoded at the server's default temperature, which may sample",
    "seed": "it is not sent; greedy decoding does not need it",
    "cache_salt": "it is not sent, so prompts may come from the server's prefix cache",
    "stop": "it is not sent; answers end at an end token or at the cap",
}


def _steps_of(field: str, answer: _Reply, changes: BodyChanges) -> Iterator[_Step]:
    words = _quoted(answer.row)
    usage = "stream_options.continuous_usage_stats"
    if field in ("stream_options", "stream_options.include_usage") and _holds(answer.asked, usage):
        field = usage
    if field == "stream_options.include_usage":
        field = "stream_options"
    if field == "max_tokens":
        if b"max_completion_tokens" in answer.error and changes.limit_field == "max_tokens":
            name = "max_completion_tokens"
            yield _Step(field=field, value=None, words=words, limit_field=name, consequence=f"{name} is sent instead")
        return
    if field == "temperature" and answer.asked.get("temperature") == 0:
        less = f"{NEARLY_GREEDY:g} is sent instead: nearly greedy, near ties may be decided otherwise"
        yield _Step(field=field, value=NEARLY_GREEDY, words=words, consequence=less)
        return
    yield _Step(field=field, value=None, words=words, consequence=_WITHOUT.get(field, "it is not sent"))


def _after(changes: BodyChanges, steps: list[_Step]) -> BodyChanges:
    for step in steps:
        changes = step.applied(changes)
    return changes


def _joined(before: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The two patches as one, applied in this order."""
    joined = dict(before)
    for name, value in patch.items():
        known = joined.get(name)
        joined[name] = _joined(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return joined


def _holds(body: Mapping[str, Any], field: str) -> bool:
    """Whether the body has a value under the dotted name."""
    value: Any = body
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value is not None


def _is_about_model(answer: _Reply, model: str) -> bool:
    said = answer.error.decode(errors="replace").lower()
    return bool(model) and (model.lower() in said or "model" in said)


def _words(row: Exchange) -> str:
    """The status and the server's words."""
    return row.error or f"{row.status}"


def _quoted(row: Exchange) -> str:
    """The server's words alone."""
    words = row.error or row.status
    prefix = f"{row.http_status}: "
    return words.removeprefix(prefix).removeprefix("in the stream: ").removeprefix("no event stream: ")


def learn_from(assignments: Mapping[str, Assignment], known: BodyChanges, patience: Patience) -> Learned:
    """What was learned from all targets, by name: each is asked with the changes so far, and all are measured alike."""
    changes, notes = known, list[str]()
    for name, assignment in assignments.items():
        asked = msgspec.structs.replace(assignment, changes=changes)
        learned = patience.wait(Preflight(asked, f"target {name}: {assignment.url}").learn)
        changes = learned.changes
        notes += learned.notes
    return Learned(changes=changes, notes=tuple(notes))
