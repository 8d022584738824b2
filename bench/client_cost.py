"""What a streamed token costs three clients, side by side on one server, in one run.

    python bench/client_cost.py                 # about 7 minutes; prints a table, writes bench/results/client_cost.json
    python bench/client_cost.py --rounds 1 --window-s 2 --concurrency 16

The server (bench/tick_server.py) sends the first token 50 ms after a request, then one to every stream each 20 ms. All
clients run in loadgen's closed loop, on uvloop, in a process of their own, and read their streams with loadgen's reader
once they have ended; only the transport differs:

    raw      loadgen's own: asyncio.Protocol, stamped where bytes enter the process
    aiohttp  a ClientSession per process, `iter_any()`, stamped where the coroutine gets the bytes
    openai   loadgen's `--transport openai`: AsyncOpenAI, stamped where the application gets the chunk object

CPU is that of the client's process over the window, the reading of ended streams included (for openai: its chunks are
turned back into JSON first). In every round the clients run in another order; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import monotonic_ns, process_time
from typing import Any

import aiohttp
import msgspec
import numpy as np
import uvloop
from tick_server import FIRST_MS, TICK_MS, TOKENS

from loadgen.load.closedloop import ClosedLoop, Slot
from loadgen.load.exchange import Exchange, Raw, Request, read_exchange
from loadgen.load.http import Endpoint, HttpSlot
from loadgen.load.httpraw import HttpRaw
from loadgen.load.openai_sdk import SdkSlot, sdk_client

HERE = Path(__file__).parent
CLIENTS = ("raw", "aiohttp", "openai")
PROMPT = "How many apples are left? " * 40
TIMEOUT_S = 120.0
FIGURES = ("cpu_us_per_token", "tokens_per_s", "ttft_ms_p50", "ttft_ms_p99", "itl_ms_p99")


class AiohttpSlot:
    """The usual way: a coroutine that reads the body as it comes and stamps what it reads."""

    def __init__(self, session: aiohttp.ClientSession, url: str, slot: int) -> None:
        self._session = session
        self._url = f"{url}/v1/completions"
        self._slot = slot
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def answering(self) -> bool:
        return True

    def send(self, request: Request, done: Callable[[Raw], None]) -> None:
        task = asyncio.get_running_loop().create_task(self._exchange(HttpRaw(request, self._slot), done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _exchange(self, raw: HttpRaw, done: Callable[[Raw], None]) -> None:
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._url, data=raw.request.body, headers=headers) as answer:
                raw.http_status = answer.status
                async for data in answer.content.iter_any():
                    raw.keep(monotonic_ns(), data)
        except asyncio.CancelledError:
            raw.failure = ("broken", "the window is over")
        raw.t_end_ns = monotonic_ns()
        done(raw)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


def request(tokens: int) -> Request:
    body = {
        "model": "tick",
        "prompt": PROMPT,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    return Request(item_id="bench", prompt_sha="", phase="measured", body=msgspec.json.encode(body))


async def measure(client: str, concurrency: int, url: str, window_s: float) -> dict[str, float]:
    """One case: warm up for one answer, then a window; figures of what arrived inside it."""
    unread: deque[Raw] = deque()
    exchanges: list[Exchange] = []
    whole = request(TOKENS)
    begun = [False] * concurrency

    def next_request(slot: int) -> Request:
        if begun[slot]:
            return whole
        begun[slot] = True
        return request(max(1, TOKENS * (slot + 1) // concurrency))

    async def read_ended() -> None:
        while True:
            if unread:
                exchanges.append(read_exchange(unread.popleft()))
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(0.005)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        pool = ClosedLoop(dict(enumerate(slots(client, concurrency, url, session))), next_request, unread.append)
        reader = asyncio.create_task(read_ended())
        gc.collect()
        gc.disable()
        pool.start()
        await asyncio.sleep((FIRST_MS + TOKENS * TICK_MS) / 1e3 + 0.5)
        open_ns, cpu_before_s = monotonic_ns(), process_time()
        await asyncio.sleep(window_s)
        close_ns, cpu_s = monotonic_ns(), process_time() - cpu_before_s
        pool.stop()
        await asyncio.sleep(0.1)
        reader.cancel()
    exchanges += [read_exchange(raw) for raw in unread]
    return figures(exchanges, open_ns, close_ns, cpu_s)


def slots(client: str, count: int, url: str, session: aiohttp.ClientSession) -> list[Slot]:
    if client == "raw":
        endpoint = Endpoint(url, "completions")
        return [HttpSlot(endpoint, slot, TIMEOUT_S) for slot in range(count)]
    if client == "aiohttp":
        return [AiohttpSlot(session, url, slot) for slot in range(count)]
    sdk = sdk_client(url, api_key=None, timeout_s=TIMEOUT_S)
    return [SdkSlot(sdk, "completions", slot) for slot in range(count)]


def figures(exchanges: list[Exchange], open_ns: int, close_ns: int, cpu_s: float) -> dict[str, float]:
    failed = [e for e in exchanges if e.status != "ok" and e.t_end_ns <= close_ns]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed, the first: {failed[0].status} {failed[0].error}")
    tokens = 0
    gaps_ns: list[int] = []
    ttfts_ns: list[int] = []
    for e in exchanges:
        times = [t_ns for t_ns, _ in e.token_times]
        tokens += sum(n for t_ns, n in e.token_times if open_ns < t_ns <= close_ns)
        gaps_ns += [b - a for a, b in pairwise(times) if open_ns < b <= close_ns]
        if times and open_ns < times[0] <= close_ns:
            ttfts_ns.append(times[0] - e.t_send_ns)
    return {
        "cpu_us_per_token": cpu_s / tokens * 1e6,
        "cpu_share": cpu_s / (close_ns - open_ns) * 1e9,
        "tokens_per_s": tokens / (close_ns - open_ns) * 1e9,
        "ttft_ms_p50": float(np.percentile(ttfts_ns, 50)) / 1e6,
        "ttft_ms_p99": float(np.percentile(ttfts_ns, 99)) / 1e6,
        "itl_ms_p99": float(np.percentile(gaps_ns, 99)) / 1e6,
    }


def run_case(client: str, concurrency: int, port: int, window_s: float) -> dict[str, float]:
    argv = [sys.executable, __file__, "--case", client, "--concurrency", str(concurrency)]
    argv += ["--port", str(port), "--window-s", str(window_s)]
    answer = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
    case: dict[str, float] = json.loads(answer.stdout)
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", default="16,64,128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window-s", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "client_cost.json")
    parser.add_argument("--case", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    levels = [int(level) for level in asked.concurrency.split(",")]
    if asked.case:
        url = f"http://127.0.0.1:{asked.port}"
        print(json.dumps(uvloop.run(measure(asked.case, levels[0], url, asked.window_s))))
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, str(HERE / "tick_server.py"), str(port)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    server.stdout.readline()
    cases: list[dict[str, Any]] = []
    try:
        for turn in range(asked.rounds):
            order = CLIENTS[turn % 3 :] + CLIENTS[: turn % 3]
            for level in levels:
                for client in order:
                    case = run_case(client, level, port, asked.window_s)
                    cases.append({"client": client, "concurrency": level, "round": turn + 1, **case})
                    cost = f"{case['cpu_us_per_token']:7.1f} us/token"
                    print(f"round {turn + 1}  c={level:<4} {client:8} {cost}", file=sys.stderr)
    finally:
        server.terminate()
        server.wait(10)
    report(cases, levels, asked)


def report(cases: list[dict[str, Any]], levels: list[int], asked: argparse.Namespace) -> None:
    """Medians over the rounds, as a table and as JSON with ratios against raw."""
    medians = []
    for level in levels:
        for client in CLIENTS:
            own = [case for case in cases if (case["client"], case["concurrency"]) == (client, level)]
            row: dict[str, Any] = {"client": client, "concurrency": level}
            row |= {name: median(case[name] for case in own) for name in (*FIGURES, "cpu_share")}
            medians.append(row)
    base = {row["concurrency"]: row for row in medians if row["client"] == "raw"}
    for row in medians:
        row["ratio_to_raw"] = {name: row[name] / base[row["concurrency"]][name] for name in FIGURES}
    print("   c client    us/token   core    tok/s  TTFT p50   p99 ms  ITL p99  CPU/raw")
    for row in medians:
        print(
            f"{row['concurrency']:>4} {row['client']:8} {row['cpu_us_per_token']:>9.1f} {row['cpu_share']:>6.0%} "
            f"{row['tokens_per_s']:>8.0f} {row['ttft_ms_p50']:>9.1f} {row['ttft_ms_p99']:>8.1f} "
            f"{row['itl_ms_p99']:>8.1f} {row['ratio_to_raw']['cpu_us_per_token']:>8.2f}"
        )
    truth = {"ttft_ms": FIRST_MS, "itl_ms": TICK_MS, "tokens": TOKENS}
    content = {"when": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine(), "server": truth,
               "rounds": asked.rounds, "window_s": asked.window_s, "medians": medians, "cases": cases}  # fmt: skip
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(content, indent=1) + "\n")


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_average_at_end": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("aiohttp", "httptools", "openai", "uvloop")},
    }


if __name__ == "__main__":
    main()
