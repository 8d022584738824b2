"""Tokens: when an answer's tokens arrived, by the best evidence that its events hold.

Some servers send the running total of tokens with every event (vLLM: `continuous_usage_stats`): then the tokens of an
event are the rise of that count. Such counts are believed only while they rise with every event that brings output, up
to the total. Otherwise (one count at the end, one per event, counts that run ahead or stand still) the total is placed
by the events that brought output: one token each if there are as many of both, else spread evenly from the first to the
last. A token may have no text (half a character, a special token), so an event without output counts when the running
count rises with it; before the first output only if that output's count is higher still.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise, repeat
from typing import Literal, NamedTuple

TokenSource = Literal["usage", "chunks", "spread"]
TokenTimes = tuple[tuple[int, int], ...]

MOST_OVER = 1
"""Tokens above the cap that are a note: some servers count the end token, which the cap does not."""
NOTE_OVER = "usage counts one token more than max_tokens"
NOTE_NOT_RUNNING = "the counts in usage do not rise along with the text: tokens are placed by events"
NOTE_NO_TOTAL = "the usage of single events gives no total"


class Counted(NamedTuple):
    """An answer's tokens: `times` are (arrival in ns, tokens)."""

    times: TokenTimes = ()
    source: TokenSource | None = None
    total: int | None = None
    contradiction: str | None = None
    """What cannot be in the usage."""
    note: str | None = None


def count_tokens(
    times_ns: Sequence[int],
    counts: Sequence[int],
    brought: Sequence[bool],
    total: int | None,
    *,
    separate: bool,
    most: int | None,
) -> Counted:
    """The tokens of one answer, from each event's arrival, its running count (-1: none) and whether it brought output.

    `total`: the last usage, `separate` if it came on a separate event; `most`: the request's max_tokens.
    """
    if total is None:
        return Counted()
    counted = len(counts)
    while counted and counts[counted - 1] < 0:
        counted -= 1
    first = counted - total
    by_one = total > 0 <= first and counts[first:counted] == list(range(1, total + 1))
    if by_one and not (any(brought[:first]) or any(brought[counted:])):  # as a rule
        return _capped(Counted(tuple(zip(times_ns[first:counted], repeat(1), strict=False)), "usage", total), most)
    wrong = _contradiction(counts, total)
    believed, note = _believed_total(counts, brought, total, separate=separate)
    if believed is None:
        return Counted(contradiction=wrong, note=note)
    if _running(counts, brought, believed):
        return _capped(Counted(_by_counts(times_ns, counts, believed), "usage", believed, wrong, note), most)
    if believed and sum(count >= 0 for count in counts) > 1:
        note = note or NOTE_NOT_RUNNING
    times = [t_ns for t_ns, any_output in zip(times_ns, brought, strict=False) if any_output]
    if not times and believed and counts:
        times = [times_ns[max(counted - 1, 0)]]
    located, source = _by_events(times, believed)
    return _capped(Counted(located, source, believed, wrong, note), most)


def _capped(counted: Counted, most: int | None) -> Counted:
    """With a note or a contradiction where there are more tokens than were asked for."""
    total = counted.total
    if most is None or total is None or total <= most or counted.contradiction is not None:
        return counted
    if total - most <= MOST_OVER:
        return counted._replace(note=counted.note or NOTE_OVER)
    return counted._replace(contradiction=f"usage reports {total} tokens, at most {most} were requested")


def _contradiction(counts: Sequence[int], total: int) -> str | None:
    """Running counts that fall, or end above the total; counts per event add up to it instead."""
    reported = [count for count in counts if count >= 0]
    if reported != sorted(reported) and sum(reported) not in (total, total - MOST_OVER):
        before, after = next((a, b) for a, b in pairwise(reported) if b < a)
        return f"usage goes back from {before} to {after} tokens"
    if reported and total < reported[-1]:
        return f"usage ends at {total} tokens after {reported[-1]} were reported"
    return None


def _believed_total(
    counts: Sequence[int], brought: Sequence[bool], total: int, *, separate: bool
) -> tuple[int | None, str | None]:
    """The answer's tokens, None if usage does not give them; and a note where they are not simply the last count.

    The same count on all events with output is each event's own, or the whole answer's.
    """
    of_output = [count for count, any_output in zip(counts, brought, strict=True) if any_output]
    if total == 0 and of_output:
        return None, NOTE_NO_TOTAL
    if len(of_output) < 2 or set(of_output) != {total} or total == len(of_output):
        return total, None
    if total == 1:
        return (None, NOTE_NO_TOTAL) if separate else (len(of_output), NOTE_NOT_RUNNING)
    return (total, None) if separate else (None, NOTE_NO_TOTAL)


def _running(counts: Sequence[int], brought: Sequence[bool], total: int) -> bool:
    """The counts rise with every event that brought output, and end at the total or one below it (its end token)."""
    top, rises, any_output = 0, 0, False
    for count, brought_output in zip(counts, brought, strict=True):
        if brought_output:
            any_output = True
            if count <= top:
                return False
        if count > top:
            top = count
            rises += 1
    return (rises > 1 or any_output or total <= 1) and top <= total <= top + MOST_OVER


def _by_counts(times_ns: Sequence[int], counts: Sequence[int], total: int) -> TokenTimes:
    tops = list(accumulate(counts, max, initial=0))
    located = [(t, top - before) for t, before, top in zip(times_ns, tops, tops[1:], strict=False) if top > before]
    if total > tops[-1]:
        located.append((times_ns[len(counts) - 1], total - tops[-1]))
    return tuple(located)


def _by_events(times: Sequence[int], total: int) -> tuple[TokenTimes, TokenSource | None]:
    """The total over the events with output; of more events than tokens some get none, the first and last never."""
    if not times or not total:
        return (), None
    if total == len(times):
        return tuple((t_ns, 1) for t_ns in times), "chunks"
    if total < len(times):
        steps = max(total - 1, 1)
        return tuple((times[k * (len(times) - 1) // steps], 1) for k in range(total)), "spread"
    bounds = [total * k // len(times) for k in range(len(times) + 1)]
    return tuple((t, b - a) for t, a, b in zip(times, bounds, bounds[1:], strict=False)), "spread"
