"""Mark: a place where a text says that its answer follows: `####`, `\\boxed{}`, "the answer is", `<answer>`; and the
part of a text in which marks are read: no reasoning before it, no next question behind it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest

import msgspec

from loadgen.workload.grading.notation import STATEMENT, boxes
from loadgen.workload.grading.outcome import Extractor

READ = 20_000
"""Characters of an answer, from its end, that are read: what was thought and what follows the answer is cut before."""
QUESTIONS = 32
"""Signs of a next question that are read."""
BEFORE = 8_000
"""Characters before such a sign in which an answer is searched."""
INTRODUCTION = 200
"""Characters that may introduce a question that is restated."""

_THOUGHT = "(?:reasoning|thought|thoughts|reflection|scratchpad)"
_PAIRS = (
    (r"<think(?:ing)?>", r"</think(?:ing)?>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    ("◁think▷", "◁/think▷"),
    (r"<seed:think>", r"</seed:think>"),
    (rf"<{_THOUGHT}>", rf"</{_THOUGHT}>"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|channel\|>analysis(?:<\|message\|>)?", r"<\|channel\|>final(?:<\|message\|>)?"),
    (r"<\|think\|>", r"<\|/think\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
)
_OPENED = re.compile("|".join(f"(?:{opened})" for opened, _ in _PAIRS), re.IGNORECASE)
_CLOSED = re.compile("|".join(f"(?:{closed})" for _, closed in _PAIRS), re.IGNORECASE)
_CLOSING_SIGNS, _OPENING_SIGNS = ("</", "[/", "◁/", "<|"), ("<", "[", "◁")
"""One of them is in each match of `_CLOSED`, of `_OPENED`: to look for all is much faster."""
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

_NEXT_SIGNS = (
    "Q", "Problem", "Exercise", "Example", "Task", "Human", "User", "Input", "Instruction", "Next", "New", "Another",
    "Assistant", "Given", "<|", "</s>", "INST]", "_of_turn>",
)  # fmt: skip
"""One of them is in each match of `_NEXT_QUESTION`; to look for all is thirty times as fast as for that."""


def open_thought(text: str) -> bool:
    """Whether the text begins to think, at its start or that of a line, and never stops."""
    text = after_thought(text)
    if not any(map(text.__contains__, _OPENING_SIGNS)):
        return False
    for found in islice(_OPENED.finditer(text), QUESTIONS):
        line = text[text.rfind("\n", 0, found.start()) + 1 : found.start()].rstrip()
        begins = not line or line[-1] in ".!:"
        if begins and not _MENTIONED.match(text, found.end()) and "reasoning" not in found[0]:
            return True
    return False


def after_thought(text: str) -> str:
    """What follows the last end of a thought; one that is only mentioned ("the `</think>` tag") ends none."""
    end = 0
    if not any(map(text.__contains__, _CLOSING_SIGNS)):
        return text
    for found in _CLOSED.finditer(text):
        before = text[max(0, found.start() - 12) : found.start()]
        if not (_MENTIONING.search(before) or (_MENTIONED.match(text, found.end()) and before[-1:] != "\n")):
            end = found.end()
    return text[end:]


def answer_part(text: str, answers: Callable[[str], bool], concludes: Callable[[str], bool]) -> tuple[str, bool]:
    """The text up to the next question that follows an answer, and whether there is one.

    `answers` says whether a text holds a marked answer, `concludes` whether it holds any. A question that is
    restated before the answer is taken out line by line.
    """
    restated: list[tuple[int, int]] = []
    if not any(map(text.__contains__, _NEXT_SIGNS)):
        return text, False
    for found in islice(_NEXT_QUESTION.finditer(text), QUESTIONS):
        before = _without(text[: found.start()], restated)
        if before.strip():
            begins_line = found[0][:1] == "\n" or found[0][:1] in "<["
            introduces = len(before) < INTRODUCTION and _INTRODUCES.search(before)
            ends = begins_line and not restated and not introduces and concludes(before[-BEFORE:])
            if ends or answers(before[-BEFORE:]):
                return before, True
        end = text.find("\n", found.end())
        if found[0][0] in "<[" or found["reply"]:
            end = found.end()
        restated.append((found.start(), len(text) if end < 0 else end))
    return _without(text, restated), False


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    kept, place = [], 0
    for begin, end in spans:
        if begin >= place:
            kept.append(text[place:begin])
        place = max(place, end)
    return "".join([*kept, text[place:]])


MARKS = 64
"""Marks, from the last, that are read."""

_ANSWER = r"(?<![A-Za-z])(?:answers?|ans|antwort|respuesta|réponse|resposta|risposta|ответ)\b"
_IS = (
    r"(?:is|equals?|was|will[ \t]+be|(?:would|should|must|has[ \t]+to|can[ \t]+only)[ \t]+be|to[ \t]+be"
    r"|comes[ \t]+(?:out[ \t]+)?to|becomes"
    r"|=|→|⇒|lautet|ist|es|est)(?![A-Za-z])"
)
_TELLING = re.compile(
    r"(?P<hashes>####+[ \t]*\n?\s*)"
    r"|[<\[](?P<tag>[A-Za-z_]{0,12}answer[A-Za-z_]{0,12}|solution|final|result)[>\]]\s*"
    rf"|(?P<denied>{_ANSWER}[ \t]+(?=(?:isn't|is[ \t]+not|cannot|can't|can[ \t]+not|wasn't|won't|may[ \t]+not)\b))"
    rf"|(?P<is>{_ANSWER}(?:[ \t]+(?:to|for|of|in)[ \t][^.:\n=0-9]{{0,60}}?)?[ \t,]*(?:[ \t](?:seems|appears"
    rf"|turns[ \t]+out|works[ \t]+out)[ \t]+)?"
    rf"[ \t]*{_IS}[\s:*_]*)"
    rf"|(?P<colon>{_ANSWER}[\"'`]?(?:[ \t]*[:=]|[ \t]*\.(?=[ \t]*[:=])[ \t.]*[:=]|[ \t]+[-–—](?=[ \t]))[\s\"'`]*)"
    rf"|(?P<heading>{_ANSWER}[ \t]*\n\s*)"
    rf"|(?P<beside>{_ANSWER}[ \t]*(?:,[ \t]*|(?=\(|\[))|\b(?:final|correct|right)[ \t]+answer[ \t]+)"
    r"|(?P<before>(?=(?<![0-9.,A-Za-z/])-?[0-9][0-9,.]{0,20}[^0-9\n]{0,20}?\bis[ \t]+(?:the|our"
    r"|my)[ \t]+(?:final[ \t]+|correct[ \t]+|right[ \t]+)?answer\b))"
    r"|(?P<foreign>答案(?:是|为|:)?|答えは)\s*"
    r"|(?m:^)[ \t]*(?P<initial>(?:A|Ans|Solution|Result)[ \t]?:)[ \t]*",
    re.IGNORECASE,
)
CHOICE_MARKS = re.compile(
    rf"{_TELLING.pattern}"
    r"|(?P<choice>\b(?:(?:correct|right|best|final)[ \t]+)?(?:option|choice|letter)(?:[ \t]+(?:is"
    r"|would[ \t]+be|must[ \t]+be|should[ \t]+be)\b|[ \t]*[:=])[\s:]*"
    r"|\b(?:correct|right)[ \t]*:[ \t]*|\b(?:pick|choose|chose|select(?:ed)?|go[ \t]+with|mark|matches"
    r"|corresponds[ \t]+to)\b[ \t]+(?=(?:the[ \t]+)?(?:option|choice|answer"
    r"|letter)?[ \t]*[(\['\"*]*[A-Za-z]\b))"
    r"|(?P<beside_letter>\b(?:answer|ans|option|choice|so|hence|thus"
    r"|therefore)\b[ \t]*[.,:]?[ \t]+(?=[(\['\"]?[A-Za-z][)\]'\"]?[ \t]*[.!]?[ \t]*(?:\n|\Z)))"
    r"|(?P<is_answer>(?=(?<![0-9A-Za-z])[(\[]?[A-Z][)\]]?[ \t]+is[ \t]+(?:the[ \t]+|our[ \t]+"
    r"|my[ \t]+)?(?:correct|right|answer|best)\b))",
    re.IGNORECASE,
)
"""The marks of a multiple-choice answer: those of any, and "option is", "Correct:", "I pick", "C is the answer"."""
_HINT_SIGNS = ("ans", "antwort", "respuesta", "posta", "<", "[")
_HINT = re.compile(
    r"answer|antwort|respuesta|resposta|risposta|ans(?<![a-z]ans)(?![a-z0-9_])|[<\[](?:solution|final|result)[>\]]"
)
_INITIAL = re.compile(r"[ \t]*(?:a|ans|solution|result)[ \t]?:")
COLON_KINDS = ("colon", "heading", "initial")
"""Marks such as "Answer:"."""
_EXTRACTORS: dict[str, Extractor] = {"hashes": "hashes", "tag": "tag"}
_CONDITION = re.compile(r"\b(?:if|suppose|supposing|assuming|unless|might|could|first)\b[^.!?\n]*\Z", re.IGNORECASE)
_OTHERS_ANSWER = re.compile(
    r"\b(?:wrong|incorrect|other|alternative|tempting|naive|not\s+(?:the|an|my)|mistaken)\s+\Z", re.IGNORECASE
)
_OR_ALONE = re.compile(r"[^0-9A-Za-z]*(?:or|and)[^0-9A-Za-z\\]*\\(?:boxed|fbox)\s?\{", re.IGNORECASE)


class Mark(msgspec.Struct, frozen=True):
    """What follows a mark."""

    kind: str
    extractor: Extractor
    begin: int
    """Where the line begins in the text."""
    line: str
    """What follows on its line, or inside the box or tag; at most `STATEMENT` characters."""
    weak: bool = False
    """It follows a condition ("if ..., the answer is 20")."""
    hedged: bool = False
    """The box before it is offered as well: `\\boxed{18} or \\boxed{20}`."""


def marks(text: str, telling: re.Pattern[str] = _TELLING) -> Iterator[Mark]:
    """The marks of a text in plain notation, the last first; at most `MARKS`."""
    told = _told(text) if telling is _TELLING else telling.finditer(text)
    found = [_mark(match) for match in deque(told, maxlen=MARKS)]
    ends = list(boxes(text))
    for (end, content), (before, _) in zip_longest(ends, ends[1:], fillvalue=(len(text), "")):
        begin = end - len(content)
        either = bool(_OR_ALONE.fullmatch(text[before + 1 : begin][:40]))
        found.append(Mark("boxed", "boxed", begin, content, hedged=either))
    yield from sorted(found, key=lambda mark: mark.begin, reverse=True)[:MARKS]


def _told(text: str) -> Iterable[re.Match[str]]:
    """What `_TELLING.finditer` finds. It tries a dozen beginnings at each character: here on lines that have a hint."""
    if not text.isascii():
        yield from _TELLING.finditer(text)
        return
    begin = place = 0
    for line in text.lower().split("\n"):
        end = begin + len(line)
        while place <= end and _has_hint(line):
            found = _TELLING.search(text, max(place, begin))
            if found is None:
                return
            yield found
            place = max(found.end(), found.start() + 1)
        begin = end + 1


def _has_hint(line: str) -> bool:
    """True for each line of an ASCII text, in lower case, on which a match of `_TELLING` begins, and for few others."""
    return (
        "####" in line
        or (":" in line and _INITIAL.match(line) is not None)
        or (any(map(line.__contains__, _HINT_SIGNS)) and _HINT.search(line) is not None)
    )


def _mark(match: re.Match[str]) -> Mark:
    text, begin = match.string, match.end()
    kind = match.lastgroup or ""
    rest = text[begin : begin + STATEMENT]
    line = re.split(r"</|\[/", rest, maxsplit=1)[0].rstrip() if kind == "tag" else rest.partition("\n")[0]
    if kind in _EXTRACTORS:
        return Mark(kind, _EXTRACTORS[kind], begin, line)
    before = text[max(0, match.start() - 100) : match.start()]
    line = "" if _OTHERS_ANSWER.search(before) else line
    return Mark(kind, "answer_is", begin, line, weak=bool(_CONDITION.search(before)))
