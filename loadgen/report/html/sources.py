"""Where the numbers come from, in short; docs/metrics.md has every formula."""

from __future__ import annotations

from loadgen.report.html.markup import Html, element, join

_SOURCES = (
    ("running", "the running batch, the x axis: tokens per engine step within the window, from the server's own "
     "counters, or its gauge of running requests (cells.csv: running_source). Not verified: the server tells neither, "
     "and requests in flight stand for it."),
    ("B*", "the running batch at which the better side changes; target and reference are compared repeat by repeat on "
     "the logarithm of their ratio. Only crossings proven on both sides are reported."),
    ("SI, trap", "SI weighs accuracy (T), efficiency (E: speed and memory) and energy (S) against the reference, whose "
     "SI is 1. Trap: yes where the whole interval lies below 1, no where it lies above, else cannot tell."),
    ("tok/s", "output tokens that arrived within the window / its length, averaged over the repeats with a valid load; "
     "interval: Student's t over repeats, on logarithms."),
    ("TTFT, TPOT, E2E", "send to first token; (last - first token) / (tokens - 1); send to last byte. Quantiles of "
     "each cell, averaged over the repeats with valid latencies."),
    ("W, J/token, J/query", "energy of the window by the GPU's own counter (checked against the integral of its "
     "instantaneous power) over the window's length; over its tokens; energy per token times the mean tokens of an "
     "answer. cells.csv has both ways, the power at rest, and TDP times time as an upper bound (HLI)."),
    ("accuracy", "share of answers whose final number equals the published one, per item, then averaged over items; "
     "Wilson's interval over items. Truncated and unparsed answers count as not correct."),
    ("n, cut off, unparsed, guessed, stopped", "questions that the accuracy rests on; shares of their answers that the "
     "token limit cut off, that named no answer, that were read from the last number or letter without a mark, and "
     "that a stop string ended."),
    ("T_SI, lost, won, tokens, verdict", "accuracy over the reference's on the items that both answered, with a paired "
     "bootstrap over items; items that only the reference, or only the target, got right; mean output tokens of an "
     "answer, target : reference; exact McNemar and equivalence tests (within 2 percentage points) with Holm's "
     "correction over all comparisons of the run."),
)  # fmt: skip
_FILES = (
    "cells.csv has every cell's own figures, requests.parquet single requests with their time stamps, analysis.json "
    "everything that is said here. Formulas and units of all columns: docs/metrics.md of loadgen."
)


def sources() -> Html:
    """A definition per figure, then where the rest stands."""
    entries = [part for name, text in _SOURCES for part in (element("dt", name), element("dd", text))]
    return join((element("dl", *entries), element("p", _FILES)))
