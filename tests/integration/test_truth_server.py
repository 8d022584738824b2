"""loadgen against a server of known timing, whatever the machine does meanwhile: what must hold always, holds."""

from __future__ import annotations

import csv
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from programs import compiler

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

import loadgen  # noqa: E402
from bench.truth.server import Case, TruthServer, compile_server  # noqa: E402
from loadgen.measure.preflight import REQUESTS  # noqa: E402

CASE = Case(name="small", concurrency=8, ttft_ms=30.0, itl_ms=5.0, tokens=40)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler()
    return compile_server(tmp_path_factory.mktemp("truth"))


@pytest.fixture
def server(binary: Path) -> Iterator[TruthServer]:
    with TruthServer(binary, CASE) as running:
        yield running


def ask(server: TruthServer, path: str, body: dict[str, object], pieces: int = 1) -> tuple[int, bytes]:
    """Status and body of an answer to a request that is sent in so many pieces."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: truth\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    wire = head + content
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.connect()
    size = -(-len(wire) // pieces)
    for at in range(0, len(wire), size):
        connection.sock.sendall(wire[at : at + size])
        time.sleep(0.001)
    response = http.client.HTTPResponse(connection.sock)
    response.begin()
    said = response.read()
    connection.close()
    return response.status, said


def events(said: bytes) -> list[dict[str, object]]:
    datas = [block.removeprefix(b"data: ") for block in said.split(b"\n\n") if block]
    assert datas.pop() == b"[DONE]"
    return [json.loads(data) for data in datas]


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("usage", [True, False])
def test_an_answer_is_vllms(server: TruthServer, usage: bool, pieces: int) -> None:
    options = {"include_usage": True, "continuous_usage_stats": usage}
    status, said = ask(server, "/v1/completions", {"stream": True, "stream_options": options}, pieces)
    assert status == 200
    *tokens, last = events(said)
    first, *texts = [event["choices"][0]["text"] for event in tokens]  # type: ignore[index]
    assert re.fullmatch(r" #\d{8}", first)
    assert texts == [f" {k}" for k in range(1, 40)]
    assert [event["choices"][0]["finish_reason"] for event in tokens] == [None] * 39 + ["length"]  # type: ignore[index]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 100, "total_tokens": 140, "completion_tokens": 40}
    counts = [event["usage"]["completion_tokens"] for event in tokens if "usage" in event]  # type: ignore[index]
    assert counts == (list(range(1, 41)) if usage else [])


def test_chat_begins_with_the_role(server: TruthServer) -> None:
    _, said = ask(server, "/v1/chat/completions", {"stream": True})
    first, *rest = events(said)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}  # type: ignore[index]
    texts = [event["choices"][0]["delta"]["content"] for event in rest[:-1]]  # type: ignore[index]
    assert texts[1:] == [f" {k}" for k in range(1, 40)]


def test_unknown_paths_are_404(server: TruthServer) -> None:
    assert ask(server, "/nowhere", {})[0] == 404


def test_a_client_that_leaves_is_no_longer_in_flight(server: TruthServer) -> None:
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.request("POST", "/v1/completions", body=b'{"stream": true}')
    connection.getresponse().read(100)
    assert server.stats().in_flight == 1
    connection.close()
    deadline_s = time.monotonic() + 30
    while server.stats().in_flight and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert server.stats().in_flight == 0
    assert ask(server, "/v1/completions", {"stream": True})[0] == 200


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_loadgen_sees_what_is_true(server: TruthServer, tmp_path: Path, api: str) -> None:
    argv = [sys.executable, "-m", "loadgen", "sweep", "--target", f"fp16={server.url}", "--dataset", "sample"]
    argv += ["--concurrency", "8", "--duration", "2", "--repeats", "1", "--max-tokens", "40", "--power", "none"]
    subprocess.run([*argv, "--api", api, "--out", str(tmp_path / "run")], check=False, timeout=120)
    with (tmp_path / "run" / "cells.csv").open(newline="") as file:
        [cell] = csv.DictReader(file)
    stats = server.stats()
    requests = loadgen.load_run(tmp_path / "run").requests
    assert (cell["errors"], cell["failures"]) == ("0", "0")
    assert len(requests) == stats.requests - REQUESTS, "all but those that were asked before the first cell"
    assert requests["output_tokens"].tolist() == [40] * len(requests)
    assert stats.tokens == 40 * stats.requests
    assert int(cell["recorded_tokens"]) == float(cell["server_tokens"]) == 40 * len(requests)
    # No token leaves before its time, and none is seen before it left.
    ttft_ms = (requests["t_first_ns"] - requests["t_send_ns"]) / 1e6
    assert ttft_ms.min() >= CASE.ttft_ms
    # Within half a step of each other requests share a schedule, so that an answer is shorter by less than that.
    assert ((requests["t_end_ns"] - requests["t_send_ns"]) / 1e6).min() >= CASE.answer_s * 1e3 - CASE.itl_ms / 2
    assert 0 < float(cell["inflight_mean"]) <= 8


def test_flat_out_all_answers_are_whole(binary: Path, tmp_path: Path) -> None:
    flat = Case(name="flat", concurrency=4, tokens=200, flat_out=True)
    with TruthServer(binary, flat) as server:
        argv = [sys.executable, "-m", "loadgen", "sweep", "--target", f"fp16={server.url}", "--dataset", "sample"]
        argv += ["--concurrency", "4", "--requests", "200", "--repeats", "1", "--max-tokens", "200", "--power", "none"]
        subprocess.run([*argv, "--out", str(tmp_path / "run")], check=False, timeout=120)
        requests = loadgen.load_run(tmp_path / "run").requests
        assert len(requests) == server.stats().requests - REQUESTS
    assert set(requests["status"]) == {"ok"}
    assert set(requests["output_tokens"]) == {200}
    assert (requests["phase"] == "measured").sum() == 200
