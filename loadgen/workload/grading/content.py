"""Content: what of an answer's text is read: no reasoning before it, no next question behind it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice

READ = 20_000
"""Characters of an answer, from its end, that are read: what was thought and what follows the answer is cut before."""
QUESTIONS = 32
"""How many signs of a next question are looked at."""
BEFORE = 8_000
"""Characters before such a sign in which an answer is looked for."""
INTRODUCTION = 200
"""Characters that may introduce a question that is restated."""

_PAIRS = (
    (r"<think(?:ing)?>", r"</think(?:ing)?>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    ("◁think▷", "◁/think▷"),
    (r"<seed:think>", r"</seed:think>"),
    (
        r"<(?:reasoning|thought|thoughts|reflection|scratchpad)>",
        r"</(?:reasoning|thought|thoughts|reflection|scratchpad)>",
    ),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|channel\|>analysis(?:<\|message\|>)?", r"<\|channel\|>final(?:<\|message\|>)?"),
    (r"<\|think\|>", r"<\|/think\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
)
_OPENED = re.compile("|".join(f"(?:{opened})" for opened, _ in _PAIRS), re.IGNORECASE)
_CLOSED = re.compile("|".join(f"(?:{closed})" for _, closed in _PAIRS), re.IGNORECASE)
_MENTIONING = re.compile(
    r"(?:[`\"'“‘]|\b(?:the|a|an|no|any|my|of|called|named|tags?|token|with|use|used|using|write|wrote))[ \t]?\Z"
)
_MENTIONED = re.compile(r"[`\"'”’]|[ \t]+(?:tags?|tokens?|blocks?|markers?|elements?|and|is|are|in|to)\b")
_INTRODUCES = re.compile(r"\b(?:restat\w*|rephras\w*|solv\w*|problem|question|let|sure)\b", re.IGNORECASE)
_NEXT_QUESTION = re.compile(
    r"(?:\n|\A)[#>*_ \t-]{0,12}(?:(?:(?:Next|New|Another)[ \t]+(?i:question|problem|exercise|example|task)"
    r"|Question|Problem|Exercise|Example|Task|Human|User|Input|"
    r"Instructions?|Q)[ \t]*#?[ \t*_]{0,6}(?:[0-9]{1,3}[ \t*_]{0,6}[:.)]|:)(?:[*_]+)?|(?:Question|Problem"
    r"|Exercise|Example)[ \t]+#?[0-9]{1,3}[ \t*]*(?=\n|\Z)|(?P<reply>Assistant[ \t]*:)"
    r"|Given[ \t]+the[ \t]+following[ \t]+problem[ \t]*[:,])"
    r"|<\|(?:im_start|im_end|eot_id|start_header_id|end|user|endoftext|end_of_text)\|>|</s>|\[/?INST\]"
    r"|<(?:start|end)_of_turn>"
    r"|(?<=[ \t])(?:Question|Q|Problem|Human|User)[ \t]?[0-9]{0,3}:(?=[ \t])",
)


def open_thought(text: str) -> bool:
    """Whether the text begins to think, at its start or that of a line, and never stops."""
    said = after_thought(text)
    for found in islice(_OPENED.finditer(said), QUESTIONS):
        line = said[said.rfind("\n", 0, found.start()) + 1 : found.start()]
        if (
            (not line.strip() or line.rstrip()[-1] in ".!:")
            and not _MENTIONED.match(said, found.end())
            and "reasoning" not in found[0]
        ):
            return True
    return False


def after_thought(text: str) -> str:
    """What follows the last end of a thought; one that is only mentioned ("the `</think>` tag") ends none."""
    end = 0
    for found in _CLOSED.finditer(text):
        before = text[max(0, found.start() - 12) : found.start()]
        if not (_MENTIONING.search(before) or (_MENTIONED.match(text, found.end()) and before[-1:] != "\n")):
            end = found.end()
    return text[end:]


def answer_part(text: str, answers: Callable[[str], bool], concludes: Callable[[str], bool]) -> tuple[str, bool]:
    """The text up to the next question that stands behind an answer, and whether there is one.

    `answers` tells whether a text holds a marked answer, `concludes` whether it holds any. A question that is
    restated before the answer is taken out line by line.
    """
    restated: list[tuple[int, int]] = []
    for found in islice(_NEXT_QUESTION.finditer(text), QUESTIONS):
        before = _without(text[: found.start()], restated)
        if before.strip():
            begins_line = found[0][:1] == "\n" or found[0][:1] in "<["
            introduces = len(before) < INTRODUCTION and _INTRODUCES.search(before)
            ends = begins_line and not restated and not introduces and concludes(before[-BEFORE:])
            if ends or answers(before[-BEFORE:]):
                return before, True
        end = text.find("\n", found.end())
        if found[0][0] not in "<[" and not found["reply"]:
            restated.append((found.start(), len(text) if end < 0 else end))
        else:
            restated.append((found.start(), found.end()))
    return _without(text, restated), False


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    kept, place = [], 0
    for begin, end in spans:
        if begin >= place:
            kept.append(text[place:begin])
        place = max(place, end)
    return "".join([*kept, text[place:]])
