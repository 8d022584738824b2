"""docs/benchmarks.md out of bench/results/truth.json: every figure in it is computed here.

python -m bench.truth.document            writes the page
python -m bench.truth.document --short    prints a table of B = 128 and one of stamps, for README.md
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from bench.truth.engine import RESULTS as ENGINE_RESULTS
from bench.truth.server import Case
from bench.truth.tools import FLOOR, FLOORS, KEEPING_FLOOR, OURS

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


def stamp(source: str, name: str) -> Callable[[dict[str, Any], Case], float | None]:
    def figure(outcome: dict[str, Any], case: Case) -> float | None:
        error = (outcome.get("stamps") or {}).get(source)
        return error and error[name]

    return figure


def percent(share: float | None) -> float | None:
    return None if share is None else share * 100


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
KERNEL_MEDIAN = Column("kernel, median", stamp("kernel", "median_ms"), 3)
KERNEL_P99 = Column("kernel, p99", stamp("kernel", "p99_ms"), 2)
PROCESS_MEDIAN = Column("process, median", stamp("process", "median_ms"), 3)
PROCESS_P99 = Column("process, p99", stamp("process", "p99_ms"), 2)
JOINED = Column(
    "read with a later token, %", lambda outcome, case: percent((outcome.get("stamps") or {}).get("joined_share"))
)
STAMPED = (KERNEL_MEDIAN, KERNEL_P99, PROCESS_MEDIAN, PROCESS_P99, JOINED, RATE, CPU)
PACED = (TTFT_MEAN, TTFT_P99, ITL_P99, RATE, IN_FLIGHT, CPU)
FLAT_OUT = (ANSWERS, CPU_ANSWER)

BARS = (
    ("b128", TTFT_MEAN, "≤", 20.4),
    ("b128", TTFT_P99, "≤", 25.0),
    ("b128", ITL_P99, "≤", 12.0),
    *(("b128 b512 b1024", column, "≤", bound) for column, bound in ((KERNEL_MEDIAN, 0.1), (KERNEL_P99, 1.0))),
    *(("b128-busy", column, "≤", bound) for column, bound in ((KERNEL_MEDIAN, 0.2), (KERNEL_P99, 2.0))),
    ("b128 b512 b1024 b128-busy", RATE, "≥", 99.5),
    ("b128", IN_FLIGHT, "≥", 99.5),
    ("flat-out", READ, "≥", 3000.0),
)
"""What loadgen asks of itself on two cores: cases, figure, bound."""
RATIO = 1.3
"""Most CPU time of a token over that of the floor."""


SERVER = """What load generators report of a server of known timing, compared with the truth. The server is
`bench/truth/truth_server.c`: compiled, one thread, absolute deadlines. All streams are in phase: the tokens of a step
leave together, and the answers (200 tokens each) end together, so B requests are due at once. This is the hardest case
for a client's stamps."""
FIGURES = """TTFT and ITL are each client's own figures without its warm-up. Tokens per second, requests in flight and
CPU are measured from outside, between the second and the last B answers, by the server's counters and the CPU time of
all the client's processes. loadgen is `loadgen sweep --target` as users run it: it grades and journals meanwhile."""
DEFERRED = """loadgen reads a stream after its end, a few in a turn of its event loop. Here they end faster than that:
they wait in memory (a quarter of what is free, at most 4 GiB; from there on reading comes first) and are read after
the window. Over the whole cell, until the last one was read, graded and journalled, it was {read} answers/s."""
COMMAND = "python -m bench.truth --vllm ENV --guidellm ENV --aiperf ENV --mlperf ENV && python -m bench.truth.document"
STAMPS = """The server keeps when it wrote each token, on the same clock. The error of a stamp is the client's less the
server's own, without sign, in ms over all tokens of a run; both stamps belong to the same reads of the same run. A
token that was read together with a later one has that one's stamp. The floor is {floor} in Python: a loop that reads
the same streams, and neither parses nor stores. The keeping floor is {keeping}: it reads with the kernel's stamps, and
keeps bytes and stamps until the answer has ended, as a client has to that parses afterwards. Both floors read at
once."""
READERS = {
    "compiled": """ loadgen's reader here was the compiled one. With the kernel's stamps it reads up to 0.2 ms late on
purpose, and the stamps of the process are late by that too.""",
    "Python": " loadgen's reader here was the one in Python.",
}
"""By the first word of `machine`'s reader."""
BUSY = "Meanwhile a process that computes all the time takes up to half of the CPU."
AGAIN = """ENV is a virtual environment with the peer in it: `pip install vllm`, `pip install 'guidellm[recommended]'`,
`pip install aiperf`; MLPerf Endpoints is not a package: clone github.com/mlcommons/endpoints and `pip install` its
folder with Python 3.12. Without peers only loadgen is measured; `--cases` and `--rounds` make it shorter. It needs a C
compiler and a quiet machine. How late the server itself was is recorded for every run in `bench/results/truth.json`."""


ENGINE = """The same on a real engine: {engine} with the model {model} on a CPU of {cores} cores that engine and client
share, B streams of 64 tokens, {when}. `vllm:time_to_first_token_seconds` runs in vLLM's front end, from the request
that was read and understood until the engine hands over the first token. Loadgen's runs from the sending to the
kernel's stamp of the token. What lies between is the front end's (HTTP, JSON, text), its wait for a core, and loopback.
Figures are medians of {starts} starts with the least and the largest in brackets."""


AHEAD = """Where it paces, the server has a real-time priority: else it waits some milliseconds for its turn when a
client takes the CPU that it was put on, and is late by as much. """


def ahead(cases: dict[str, Case], outcomes: Outcomes) -> bool:
    """In every paced run."""
    return all(outcome["server_ahead"] for outcome in outcomes if not cases[outcome["case"]].flat_out)


def document(results: dict[str, Any], engine: dict[str, Any] | None = None) -> str:
    """The page as Markdown; `engine`: what `bench.truth.engine` wrote."""
    cases = {case["name"]: msgspec.convert(case, Case) for case in results["cases"]}
    outcomes = [outcome for outcome in results["outcomes"] if not outcome["failure"]]
    machine = results["machine"]
    reader = machine.get("reader", "").partition(":")[0]
    versions = ", ".join(f"{tool} {version}" for tool, version in results["versions"].items() if tool not in FLOORS)
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
    if any(outcome.get("stamps") for outcome in outcomes):
        parts += [
            "## Errors of stamps",
            fill(STAMPS.format(floor=FLOOR, keeping=KEEPING_FLOOR) + READERS.get(reader, "")),
            stamps(cases, outcomes),
        ]
    if engine is not None:
        parts += ["## TTFT beside vLLM's own histogram", *beside_engine(engine)]
    parts += ["## The bars", bars(cases, outcomes), "## Again", f"    {COMMAND}", fill(AGAIN)]
    return "\n\n".join(parts) + "\n"


def short(results: dict[str, Any]) -> str:
    """Medians alone: the clients at B = 128, and loadgen's stamps in every paced case."""
    cases = {case["name"]: msgspec.convert(case, Case) for case in results["cases"]}
    outcomes = [outcome for outcome in results["outcomes"] if not outcome["failure"]]
    parts = []
    if "b128" in cases:
        own = [outcome for outcome in outcomes if outcome["case"] == "b128" and outcome["tool"] not in FLOORS]
        columns = (TTFT_MEAN, TTFT_P99, RATE, CPU)
        table = [["128 streams, true TTFT 20 ms", *(column.head for column in columns)]]
        table += [[tool, *(middle(c, cases["b128"], own, tool) for c in columns)] for tool in tools_of(own)]
        parts.append(markdown(table))
    if any(outcome.get("stamps") for outcome in outcomes):
        parts.append(stamps(cases, outcomes, show=middle))
    return "\n\n".join(parts) + "\n"


def stamps(cases: dict[str, Case], outcomes: Outcomes, show: Callable[..., str] | None = None) -> str:
    """A row for each case in which loadgen's stamps were compared with the server's."""
    show = show or (lambda column, case, own, tool: spread(values(column, case, own, tool), column.digits))
    head = ["errors of stamps, ms", *(column.head for column in STAMPED), "floor, µs", "CPU over floor"]
    head += ["keeping floor, µs", "CPU over it"]
    table = [head]
    for case in cases.values():
        own = [outcome for outcome in outcomes if outcome["case"] == case.name]
        if not any(outcome.get("stamps") for outcome in own):
            continue
        name = f"B = {case.concurrency}" + (", half of the CPU taken" if case.busy else "")
        row = [name, *(show(column, case, own, OURS) for column in STAMPED)]
        for floor in FLOORS:
            over = ratio(case, own, floor)
            row += [show(CPU, case, own, floor), "" if over is None else f"{over:.2f}×"]
        table.append(row)
    return markdown(table)


def beside_engine(results: dict[str, Any]) -> list[str]:
    """A row for each B: the client's TTFT, the server's, and the first less the second."""
    cells = [cell for cell in results["cells"] if cell["ttft_excess_ms"] and float(cell["kernel_stamp_share"]) == 1]
    starts = len({cell["repeat"] for cell in cells})
    machine = results["machine"]
    said = ENGINE.format(
        engine=f"vLLM {results['engine']}", model=results["model"], cores=machine["cores"], when=results["when"],
        starts=starts,
    )  # fmt: skip
    table = [["B", "TTFT by the client, ms", "by vLLM's histogram, ms", "difference, ms"]]
    for b in sorted({int(cell["concurrency"]) for cell in cells}):
        own = [cell for cell in cells if int(cell["concurrency"]) == b]
        columns = ("ttft_ms_mean", "server_ttft_ms_mean", "ttft_excess_ms")
        table.append([str(b), *(spread([float(cell[name]) for cell in own], 2) for name in columns)])
    return [fill(said), markdown(table)]


def ratio(case: Case, own: Outcomes, floor: str = FLOOR) -> float | None:
    """The median CPU time of a token over that of a floor; None where one is missing."""
    ours, least = values(CPU, case, own, OURS), values(CPU, case, own, floor)
    return median(ours) / median(least) if ours and least and median(least) else None


def tools_of(outcomes: Outcomes) -> list[str]:
    """loadgen first, the floors last."""
    order = {OURS: 0, FLOOR: 2, KEEPING_FLOOR: 3}
    return list(dict.fromkeys(o["tool"] for o in sorted(outcomes, key=lambda o: order.get(o["tool"], 1))))


def section(case: Case, outcomes: Outcomes) -> list[str]:
    columns = FLAT_OUT if case.flat_out else PACED
    if case.flat_out:
        title = f"## B = {case.concurrency}, flat out"
        intro = "The server does not pace: an answer leaves at once, as fast as the client takes it."
    else:
        title = f"## B = {case.concurrency}, {case.tokens_per_s:,.0f} tok/s" + (
            ", with a busy process" if case.busy else ""
        )
        intro = f"True TTFT {case.ttft_ms:g} ms, true ITL {case.itl_ms:g} ms. A client that takes both cores makes the "
        intro += "server's tokens late: the last column." + (f" {BUSY}" if case.busy else "")
    tools = tools_of(outcomes)
    rows = {tool: [values(column, case, outcomes, tool) for column in columns] for tool in tools}
    shown = columns if case.flat_out else (*columns, LATE)
    table = [["client", *(column.head for column in shown)]]
    table += [[tool, *(spread(values(c, case, outcomes, tool), c.digits) for c in shown)] for tool in tools]
    parts = [title, intro, markdown(table)]
    if len({*tools} - {*FLOORS}) > 1 and OURS in rows:
        ratios = [["against loadgen", *(column.head.partition(",")[0] for column in columns)]]
        for tool in tools:
            if tool in (OURS, *FLOORS):
                continue
            pairs = zip(rows[tool], rows[OURS], strict=True)
            ratios.append([tool, *(f"{median(a) / median(b):.2g}×" if a and b else "" for a, b in pairs)])
        parts.append(markdown(ratios))
    peers = [o for o in outcomes if o["told"] and o["tool"] not in FLOORS]
    reasons = sorted({f"{o['tool']}: {o['told']['why_none']}" for o in peers if o["told"]["why_none"]})
    if case.flat_out:
        read = spread(values(READ, case, outcomes, OURS), READ.digits)
        return [*parts, fill(DEFERRED.format(read=read))]
    return [*parts, *(f"Empty, {reason}." for reason in reasons)]


def values(column: Column, case: Case, outcomes: Outcomes, tool: str) -> list[float]:
    figures = [column.of(outcome, case) for outcome in outcomes if outcome["tool"] == tool]
    return [figure for figure in figures if figure is not None]


def middle(column: Column, case: Case, outcomes: Outcomes, tool: str) -> str:
    figures = values(column, case, outcomes, tool)
    return f"{median(figures):,.{column.digits}f}" if figures else ""


def spread(figures: Sequence[float], digits: int) -> str:
    if not figures:
        return ""
    return f"{median(figures):,.{digits}f} ({min(figures):,.{digits}f}–{max(figures):,.{digits}f})"


def bars(cases: dict[str, Case], outcomes: Outcomes) -> str:
    table = [["case", "loadgen's figure", "bar", "measured", ""]]
    for names, column, relation, bound in BARS:
        for name in names.split():
            own = [outcome for outcome in outcomes if outcome["case"] == name]
            figures = values(column, cases[name], own, OURS) if name in cases else []
            if figures:
                table.append(_bar(name, column.head, relation, bound, median(figures), column.digits))
    for case in cases.values():
        over = ratio(case, [outcome for outcome in outcomes if outcome["case"] == case.name])
        if over is not None:
            table.append(_bar(case.name, "CPU a token over the floor", "≤", RATIO, over, 2))
    return markdown(table)


def _bar(case: str, what: str, relation: str, bound: float, measured: float, digits: int) -> list[str]:
    met = measured <= bound if relation == "≤" else measured >= bound
    return [case, what, f"{relation} {bound:g}", f"{measured:,.{digits}f}", "met" if met else "missed"]


def fill(text: str) -> str:
    """Wrapped; code is not broken."""
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    if "--short" in sys.argv[1:]:
        print(short(json.loads(RESULTS.read_text())), end="")
    else:
        DOCUMENT.write_text(document(json.loads(RESULTS.read_text()), json.loads(ENGINE_RESULTS.read_text())))
