"""What a client says of a server whose timing is known, beside what is true: loadgen and its peers.

    python -m bench.truth                                         loadgen alone: every case, five rounds (10 minutes)
    python -m bench.truth --vllm ENV --guidellm ENV --aiperf ENV --mlperf ENV
                                                                  peers beside it, each from its own virtual environment
    python -m bench.truth --rounds 1 --cases b128 --out new.json  a quick look

The server (truth_server.c) is compiled first and is new for every measurement. In every round the clients run in
another order. Results go to bench/results/truth.json, and `python -m bench.truth.document` writes docs/benchmarks.md
from there. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.truth.inputs import Inputs, write_inputs
from bench.truth.server import Case, Stats, TruthServer, compile_server
from bench.truth.stamps import StampErrors, stamp_errors
from bench.truth.tools import (
    STAMPS,
    AiPerf,
    Floor,
    GuideLlm,
    Loadgen,
    MlPerfEndpoints,
    Told,
    Tool,
    VllmBench,
    version_of,
)
from bench.truth.watch import Seen, Watch, steady
from loadgen.load.compiled import reader_name

RESULTS = Path(__file__).parent.parent / "results" / "truth.json"
CASES = {
    "b128": Case(name="b128", concurrency=128),
    "b512": Case(name="b512", concurrency=512, itl_ms=17.0),
    "b1024": Case(name="b1024", concurrency=1024, itl_ms=34.0),
    "b128-busy": Case(name="b128-busy", concurrency=128, busy=True),
    "flat-out": Case(name="flat-out", concurrency=128, flat_out=True),
}
"""128 streams at 10 ms are 12.7k tok/s; 512 at 17 ms and 1024 at 34 ms are 30k, near what two cores carry."""
WAVES = {"b128": 12, "b512": 4, "b1024": 3, "b128-busy": 4, "flat-out": 4}
"""Answers asked of each stream after the warm-up; loadgen flat out has a window of its own."""
PEER_CASES = "b128,flat-out"
LONGEST_S = 300.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One client in one case, once."""

    case: str
    tool: str
    round: int
    told: Told | None
    """The client's own figures."""
    seen: Seen | None
    """The steady state from outside."""
    server: Stats
    """The server's account of the whole run."""
    server_ahead: bool
    """It ran before any other process."""
    stamps: StampErrors | None = None
    """The errors of loadgen's stamps, where the server paces."""
    failure: str = ""


def measure(binary: Path, case: Case, tool: Tool, turn: int, inputs: Inputs) -> Outcome:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        out = Path(folder)
        of_server = out / "server-stamps"
        server = stack.enter_context(TruthServer(binary, case, None if case.flat_out else of_server))
        if case.busy:
            stack.enter_context(_computing())
        argv = tool.argv(case, server.url, WAVES[case.name] * case.concurrency, inputs, out)
        with (out / "log").open("wb") as log:
            client = subprocess.Popen(argv, stdout=log, stderr=log, cwd=out, env=tool.environment())
            with Watch(server, client.pid) as watch:
                failure = finish(client)
        try:
            told = tool.read(out)
        except (OSError, ValueError, KeyError) as error:
            said = (out / "log").read_text(errors="replace").strip().splitlines()[-3:]
            told, failure = None, failure or f"{type(error).__name__}: {error}; {' '.join(said)}"
        outcome = Outcome(
            case=case.name,
            tool=tool.name,
            round=turn,
            told=told,
            seen=steady(watch.polls, case),
            server=server.stats(),
            server_ahead=server.ahead,
            failure=failure,
        )
        stack.close()
        if case.flat_out or not isinstance(tool, Loadgen):
            return outcome
        if not (out / STAMPS).exists():
            said = (out / "log").read_text(errors="replace").strip().splitlines()[-1:]
            return msgspec.structs.replace(outcome, failure=failure or f"no stamps were written: {' '.join(said)}")
        return msgspec.structs.replace(outcome, stamps=stamp_errors(of_server, out / STAMPS, case.tokens))


@contextlib.contextmanager
def _computing() -> Iterator[None]:
    """Meanwhile another process computes, at the usual priority."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.terminate()
        busy.wait()


def finish(client: subprocess.Popen[bytes]) -> str:
    try:
        client.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        client.terminate()
        client.wait()
        return f"stopped after {LONGEST_S:.0f} s"
    return ""


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "reader": reader_name(),
        "load_average_at_start": os.getloadavg()[0],
    }


def run(tools: Sequence[Tool], cases: Sequence[Case], rounds: int, peer_cases: Sequence[str]) -> dict[str, Any]:
    """Loadgen in all cases, peers in some, `rounds` times."""
    here = machine()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        binary, inputs = compile_server(Path(folder)), write_inputs(Path(folder))
        for turn in range(rounds):
            order = [*tools[turn % len(tools) :], *tools[: turn % len(tools)]]
            for case in cases:
                for tool in order:
                    alone = isinstance(tool, Floor) if case.flat_out or case.busy else False
                    if alone or (not isinstance(tool, Loadgen | Floor) and case.name not in peer_cases):
                        continue
                    outcome = measure(binary, case, tool, turn + 1, inputs)
                    outcomes.append(outcome)
                    print(f"round {turn + 1}  {case.name:8} {tool.name:16} {in_short(outcome)}", flush=True)
    return {
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": here,
        "versions": {tool.name: version_of(tool) for tool in tools},
        "cases": [msgspec.structs.asdict(case) for case in cases],
        "rounds": rounds,
        "outcomes": msgspec.to_builtins(outcomes),
    }


def in_short(outcome: Outcome) -> str:
    told, seen = outcome.told, outcome.seen
    parts = []
    if told is not None and told.ttft_ms_mean is not None:
        parts.append(f"TTFT {told.ttft_ms_mean:.1f} mean")
    if seen is not None:
        parts.append(f"{seen.tokens_per_s:,.0f} tok/s, {seen.client_cpu_us_per_token:.1f} us CPU a token")
    if outcome.stamps is not None:
        for name, error in (("kernel", outcome.stamps.kernel), ("process", outcome.stamps.process)):
            if error is not None:
                parts.append(f"{name} stamps off by {error.median_ms:.3f}, p99 {error.p99_ms:.2f} ms")
    if outcome.server.late_ms_p99 is not None:
        parts.append(f"the server late by {outcome.server.late_ms_p99:.2f} ms p99")
    return "; ".join([*parts, *filter(None, [told.notes if told else "", outcome.failure])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-cases", default=PEER_CASES, help=f"where peers are measured (default: {PEER_CASES})")
    parser.add_argument("--vllm", type=Path, help="environment with vllm")
    parser.add_argument("--guidellm", type=Path, help="environment with guidellm[recommended]")
    parser.add_argument("--aiperf", type=Path, help="environment with aiperf")
    parser.add_argument("--mlperf", type=Path, help="environment with MLCommons' inference-endpoint")
    parser.add_argument("--note", default="", help="what else is to be known of the machine")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    tools: list[Tool] = [Loadgen(), Floor(), Floor(keeps=True)]
    if asked.vllm:
        tools.append(VllmBench(asked.vllm.absolute()))
    if asked.guidellm:
        tools.append(GuideLlm(asked.guidellm.absolute()))
    if asked.aiperf:
        tools.append(AiPerf(asked.aiperf.absolute()))
    if asked.mlperf:
        tools.append(MlPerfEndpoints(asked.mlperf.absolute()))
    unknown = set(asked.cases.split(",")) - set(CASES)
    if unknown:
        sys.exit(f"--cases {','.join(sorted(unknown))}: not among {', '.join(CASES)}")
    results = run(tools, [CASES[name] for name in asked.cases.split(",")], asked.rounds, asked.peer_cases.split(","))
    results["machine"]["note"] = asked.note
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


if __name__ == "__main__":
    main()
