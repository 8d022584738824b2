"""The glossary: what each term of a report means, and how its figures are made."""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec


class Term(msgspec.Struct, frozen=True):
    """`short` explains the term in a line; `source` says how its figures are made, if there is more to say."""

    name: str
    short: str
    source: str = ""
    also: tuple[str, ...] = ()
    """Other words for it."""

    def used_in(self, text: str) -> bool:
        """Whether one of the term's names is in the text as a word: SI is not in T_SI, and B is not in B*."""
        names = (*self.name.split(", "), *self.also)
        return any(re.search(rf"(?<![\w*]){re.escape(name)}(?![\w*])", text) for name in names)


GLOSSARY = (
    Term("B", "the batch size: requests that are in flight at the same time."),
    Term(
        "B*", "the break-even batch: the running batch at which the better side changes.",
        "Target and reference are compared repeat by repeat on the logarithm of their ratio. Only crossings proven on "
        "both sides are reported.",
    ),
    Term(
        "running", "the running batch: requests that the server computed together, by its own metrics.",
        "It is the x axis of the figures: tokens per engine step within the window, from the server's own counters, or "
        "its gauge of running requests (cells.csv: running_source). Not verified: the server reports neither, and "
        "requests in flight are shown instead.",
    ),
    Term(
        "trap", "the quantization trap: SI is below the reference's 1.",
        "Yes where the whole interval lies below 1, no where it lies above, else cannot tell.", also=("Trap",),
    ),
    Term(
        "SI", "one index of accuracy, efficiency (speed and memory) and energy; the reference has 1.",
        "SI weighs accuracy (T), efficiency (E) and energy (S) against the reference.",
    ),
    Term("T_SI, E_SI, S_SI", "the parts of SI for accuracy, for speed and memory, and for energy."),
    Term("COR", "the slowdown: tokens/s of the reference over the target's, less 1; below 0 the target is faster."),
    Term(
        "tok/s", "output tokens per second.",
        "Those that arrived within the window / its length, averaged over the repeats with a valid load; interval: "
        "Student's t over repeats, on logarithms.", also=("tokens/s",),
    ),
    Term(
        "TTFT", "time from the send of a request to its first token.",
        "Quantiles of each cell, averaged over the repeats with valid latencies; so are those of TPOT and E2E.",
    ),
    Term("TPOT", "time per output token after the first.", "(last - first token) / (tokens - 1)."),
    Term(
        "per user", "the speed at which one request gets its tokens, 1 / its TPOT.",
        "1 / the median TPOT of each cell, averaged over the repeats with valid latencies (InferenceX: interactivity, "
        "AIPerf: output token throughput per user).",
    ),
    Term("E2E", "end to end: time from the send of a request to its last byte."),
    Term("p99", "99% of the requests are at or below it."),
    Term(
        "W", "the mean power of the GPUs.",
        "Energy of the window by the GPU's own counter (checked against the integral of its instantaneous power) over "
        "the window's length. cells.csv has both ways and the power at rest.",
    ),
    Term("J/token", "energy per output token.", "The energy of a window over the tokens of that window."),
    Term("J/query", "energy per answer.", "Energy per token times the mean tokens of an answer."),
    Term("HLI", "TDP × time, an upper bound of the energy."),
    Term("95% CI", "95% confidence interval; so are all other intervals and error bars."),
    Term("pp", "percentage points."),
    Term(
        "accuracy", "share of the answers that are right.",
        "Answers whose final number equals the published one, per item, then averaged over items; Wilson's interval "
        "over items. Truncated and unparsed answers count as not correct.", also=("right %",),
    ),
    Term("n", "the number of questions that an accuracy rests on."),
    Term("cut off %", "share of the answers that the token limit ended."),
    Term("unparsed %", "share of the answers without a result that could be read."),
    Term("guessed %", "share of the answers whose result is their last number or letter, without a mark."),
    Term("stopped %", "share of the answers that a stop string ended."),
    Term(
        "lost, won", "items that only the reference, or only the target, got right.",
        "T_SI, accuracy over the reference's, is on the items that both answered, with a paired bootstrap over items; "
        "tokens: mean output tokens of an answer, target : reference; verdict: exact McNemar and equivalence tests "
        "(within 2 percentage points) with Holm's correction over all comparisons of the run.",
    ),
)  # fmt: skip


def first_used(text: str, known: Collection[Term]) -> list[Term]:
    """The terms of a text that are not `known` yet, and those that explain them; in the glossary's order."""
    found: list[Term] = []
    while more := [
        term
        for term in GLOSSARY
        if term not in known and term not in found and term.used_in("\n".join((text, *(one.short for one in found))))
    ]:
        found += more
    return [term for term in GLOSSARY if term in found]
