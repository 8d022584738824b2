"""docs/benchmarks.md out of bench/results/truth.json: every figure in it is computed here.

python -m bench.truth.document
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from bench.truth.server import Case
from bench.truth.tools import OURS

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "truth.json"
DOCUMENT = HERE.parent.parent / "docs" / "benchmarks.md"

Outcomes = Sequence[dict[str, Any]]


class Column(msgspec.Struct, frozen=True):
    """One figure of a table, of one run; None is 'not told'."""

    head: str
    of: Callable[[dict[str, Any], Case], float | None]
    digits: int = 1


def told(name: str) -> Callable[[dict[str, Any], Case], float | None]:
    return lambda outcome, case: outcome["told"] and outcome["told"][name]


def seen(figure: Callable[[dict[str, Any], Case], float]) -> Callable[[dict[str, Any], Case], float | None]:
    return lambda outcome, case: outcome["seen"] and figure(outcome["seen"], case)


TTFT_MEAN = Column("TTFT mean, ms", told("ttft_ms_mean"))
TTFT_P99 = Column("TTFT p99, ms", told("ttft_ms_p99"))
ITL_P99 = Column("ITL p99, ms", told("itl_ms_p99"))
RATE = Column("tok/s, % of true", seen(lambda s, case: s["tokens_per_s"] / case.tokens_per_s * 100))
IN_FLIGHT = Column("in flight, % of B", seen(lambda s, case: s["in_flight"] / case.concurrency * 100))
CPU = Column("CPU µs a token", seen(lambda s, case: s["client_cpu_us_per_token"]))
ANSWERS = Column("answers/s", seen(lambda s, case: s["answers_per_s"]), 0)
CPU_ANSWER = Column("CPU µs an answer", seen(lambda s, case: s["client_cores"] / s["answers_per_s"] * 1e6), 0)
READ = Column("answers/s until all are read", told("read_per_s"), 0)
LATE = Column("server late p99, ms", lambda outcome, case: outcome["server"]["late_ms_p99"])
PACED = (TTFT_MEAN, TTFT_P99, ITL_P99, RATE, IN_FLIGHT, CPU)
FLAT_OUT = (ANSWERS, CPU_ANSWER)

BARS = (
    ("b128", TTFT_MEAN, "≤", 21.0),
    ("b128", TTFT_P99, "≤", 25.0),
    ("b128", ITL_P99, "≤", 12.0),
    ("b128", RATE, "≥", 99.5),
    ("b128", IN_FLIGHT, "≥", 99.5),
    ("b128", CPU, "≤", 12.0),
    ("b512", RATE, "≥", 99.5),
    ("flat-out", ANSWERS, "≥", 5000.0),
)
"""What loadgen asks of itself on two cores: case, figure, bound."""


SERVER = """What a load generator says of a server whose timing is known, beside what is true. The server is
`bench/truth/truth_server.c`: compiled, one thread, absolute deadlines. All streams are in phase: the tokens of a step
leave together, and the answers (200 tokens each) end together, so that B requests are due at once: the hardest case
for a client's stamps."""
FIGURES = """TTFT and ITL are each client's own figures without its warm-up. Tokens per second, requests in flight and
CPU are seen from outside, between the second and the last B answers, by the server's counters and the CPU time of all
the client's processes. loadgen is `loadgen sweep --target` as users run it: it grades and journals meanwhile."""
DEFERRED = """loadgen reads a stream after its end, one in a turn of its event loop. Here they end faster than that:
they wait in memory (a quarter of what is free, at most 4 GiB; from there on reading comes first) and are read after
the window. Over the whole cell, until the last one was read, graded and journalled, it was {read} answers/s."""
COMMAND = "python -m bench.truth --vllm ENV --guidellm ENV --aiperf ENV && python -m bench.truth.document"
AGAIN = """ENV is a virtual environment with the peer in it: `pip install vllm`, `pip install 'guidellm[recommended]'`,
`pip install aiperf`. Without peers loadgen is measured alone; `--cases` and `--rounds` make it shorter. It needs a C
compiler and a quiet machine; how late the server itself was stands with every run in `bench/results/truth.json`."""


AHEAD = """Where it paces, the server has a real-time priority: else it waits some milliseconds for its turn when a
client takes the CPU that it was put on, and is late by as much. """


def ahead(cases: dict[str, Case], outcomes: Outcomes) -> bool:
    """In every paced run."""
    return all(outcome["server_ahead"] for outcome in outcomes if not cases[outcome["case"]].flat_out)


def document(results: dict[str, Any]) -> str:
    """The page as Markdown."""
    cases = {case["name"]: msgspec.convert(case, Case) for case in results["cases"]}
    outcomes = [outcome for outcome in results["outcomes"] if not outcome["failure"]]
    machine = results["machine"]
    versions = ", ".join(f"{tool} {version}" for tool, version in results["versions"].items())
    measured = (
        f"Figures are medians of {results['rounds']} runs with the least and the largest in brackets; in every run the "
        f"clients took turns in another order. Measured {results['when']} on {machine['cores']} cores "
        f"({machine['cpu']}, Linux {machine['kernel']}, Python {machine['python']}), client and server on the same "
        f"machine; {versions}. {AHEAD if ahead(cases, outcomes) else ''}{machine.get('note', '')}"
    )
    parts = ["# Benchmarks of the client", fill(SERVER), fill(FIGURES), fill(measured)]
    for case in cases.values():
        own = [outcome for outcome in outcomes if outcome["case"] == case.name]
        if own:
            parts += section(case, own)
    parts += ["## The bars", *bars(cases, outcomes), "## Again", f"    {COMMAND}", fill(AGAIN)]
    return "\n\n".join(parts) + "\n"


def section(case: Case, outcomes: Outcomes) -> list[str]:
    columns = FLAT_OUT if case.flat_out else PACED
    if case.flat_out:
        title = f"## B = {case.concurrency}, flat out"
        intro = "The server does not pace: an answer leaves at once, as fast as the client takes it."
    else:
        title = f"## B = {case.concurrency}, {case.tokens_per_s:,.0f} tok/s"
        intro = f"True TTFT {case.ttft_ms:g} ms, true ITL {case.itl_ms:g} ms. A client that takes both cores makes the "
        intro += "server's tokens late: the last column."
    tools = list(dict.fromkeys(outcome["tool"] for outcome in sorted(outcomes, key=lambda o: o["tool"] != OURS)))
    rows = {tool: [values(column, case, outcomes, tool) for column in columns] for tool in tools}
    shown = columns if case.flat_out else (*columns, LATE)
    table = [["client", *(column.head for column in shown)]]
    table += [[tool, *(spread(values(c, case, outcomes, tool), c.digits) for c in shown)] for tool in tools]
    parts = [title, intro, markdown(table)]
    if len(tools) > 1 and OURS in rows:
        ratios = [["against loadgen", *(column.head.partition(",")[0] for column in columns)]]
        for tool in tools[1:]:
            pairs = zip(rows[tool], rows[OURS], strict=True)
            ratios.append([tool, *(f"{median(a) / median(b):.2g}×" if a and b else "" for a, b in pairs)])
        parts.append(markdown(ratios))
    reasons = sorted({f"{o['tool']}: {o['told']['why_none']}" for o in outcomes if o["told"] and o["told"]["why_none"]})
    if case.flat_out:
        read = spread(values(READ, case, outcomes, OURS), READ.digits)
        return [*parts, fill(DEFERRED.format(read=read))]
    return [*parts, *(f"Empty, {reason}." for reason in reasons)]


def values(column: Column, case: Case, outcomes: Outcomes, tool: str) -> list[float]:
    figures = [column.of(outcome, case) for outcome in outcomes if outcome["tool"] == tool]
    return [figure for figure in figures if figure is not None]


def spread(figures: Sequence[float], digits: int) -> str:
    if not figures:
        return ""
    return f"{median(figures):,.{digits}f} ({min(figures):,.{digits}f}–{max(figures):,.{digits}f})"


def bars(cases: dict[str, Case], outcomes: Outcomes) -> list[str]:
    table = [["case", "loadgen's figure", "bar", "measured", ""]]
    for name, column, relation, bound in BARS:
        if name not in cases:
            continue
        own = [outcome for outcome in outcomes if outcome["case"] == name]
        figures = values(column, cases[name], own, OURS)
        if figures:
            middle = median(figures)
            met = middle <= bound if relation == "≤" else middle >= bound
            measured = f"{middle:,.{column.digits}f}"
            table.append([name, column.head, f"{relation} {bound:g}", measured, "met" if met else "missed"])
    return [markdown(table)]


def fill(text: str) -> str:
    """Wrapped; code is not broken."""
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    DOCUMENT.write_text(document(json.loads(RESULTS.read_text())))
