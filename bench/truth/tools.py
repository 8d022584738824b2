"""The clients side by side: how each is run for a case, and what it says it saw."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from bench.truth.inputs import Inputs
from bench.truth.server import Case
from loadgen.load.exchange import Exchange
from loadgen.record.journal import CellEnd, CellStart, read_records
from loadgen.secret import text_of_cell

REPOSITORY = Path(__file__).parent.parent.parent
OURS, FLOOR, KEEPING_FLOOR = "loadgen", "epoll and recv", "epoll and recvmsg"
FLOORS = FLOOR, KEEPING_FLOOR
FLAT_OUT_S = 3.0
STAMPS = "stamps.npy"


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A client's own figures, its warm-up not among them; None: it does not tell."""

    ttft_ms_mean: float | None
    ttft_ms_p99: float | None
    itl_ms_p99: float | None
    tokens_per_s: float | None
    answers_per_s: float | None
    in_flight: float | None = None
    read_per_s: float | None = None
    """Answers a second from the first request until the last answer is read, where that comes later."""
    why_none: str = ""
    """The reason for a figure that it does not tell."""
    notes: str = ""


class Tool(Protocol):
    """One client. It warms up with at least B requests, then asks for whole answers in a closed loop of B."""

    name: str

    @property
    def version_argv(self) -> Sequence[str]: ...

    def argv(self, case: Case, url: str, answers: int, inputs: Inputs, out: Path) -> list[str]: ...

    def environment(self) -> Mapping[str, str]: ...

    def read(self, out: Path) -> Told: ...


def version_of(tool: Tool) -> str:
    said = subprocess.run(tool.version_argv, env=tool.environment(), stdout=subprocess.PIPE, text=True, check=True)
    return said.stdout.split()[-1]


class Loadgen:
    """This program as users run it; the window lasts as long as the answers should take."""

    name = OURS

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python

    @property
    def version_argv(self) -> Sequence[str]:
        return [self._python, "-m", "loadgen", "--version"]

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def argv(self, case: Case, url: str, answers: int, inputs: Inputs, out: Path) -> list[str]:
        window_s = FLAT_OUT_S if case.flat_out else answers / case.concurrency * case.answer_s
        return [
            *(
                self._python,
                "-m",
                "bench.truth.client",
                str(out / STAMPS),
                "sweep",
                "--target",
                f"fp16={url}",
                "--dataset",
                "sample",
            ),
            *("--concurrency", str(case.concurrency), "--max-tokens", str(case.tokens), "--repeats", "1"),
            *("--duration", f"{window_s:g}", "--power", "none", "--workers", "1", "--out", str(out / "run")),
        ]

    def read(self, out: Path) -> Told:
        with (out / "run" / "cells.csv").open(newline="") as file:
            [row] = csv.DictReader(file)
        seconds = float(row["window_s"])
        return Told(
            ttft_ms_mean=_number(row["ttft_ms_mean"]),
            ttft_ms_p99=_number(row["ttft_ms_p99"]),
            itl_ms_p99=_number(row["itl_ms_p99"]),
            tokens_per_s=_number(row["tokens_per_s"]),
            answers_per_s=int(row["requests"]) / seconds,
            in_flight=_number(row["inflight_mean"]),
            read_per_s=self._read_per_s(out / "run" / "journal"),
            notes=text_of_cell(row["reasons"]),
        )

    def _read_per_s(self, journal: Path) -> float:
        """The rate of the whole cell, by its journal, which ends when every stream is read."""
        [file] = journal.glob("*.jsonl")
        answers = began_ns = ended_ns = 0
        for record in read_records(file):
            match record:
                case Exchange():
                    answers += 1
                case CellStart():
                    began_ns = record.t_ns
                case CellEnd():
                    ended_ns = record.t_ns
        return answers / (ended_ns - began_ns) * 1e9


class Floor:
    """Nothing but epoll and recv in Python, for its CPU time alone; or what a client that stamps must do at least."""

    version_argv = (sys.executable, "--version")

    def __init__(self, *, keeps: bool = False) -> None:
        """`keeps`: it reads with the kernel's stamps, and keeps bytes and stamps until the answer has ended."""
        self.name = KEEPING_FLOOR if keeps else FLOOR
        self._options = ["--keep"] if keeps else []

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def argv(self, case: Case, url: str, answers: int, inputs: Inputs, out: Path) -> list[str]:
        asked = str(answers + case.concurrency)
        return [sys.executable, "-m", "bench.truth.floor", url, str(case.concurrency), asked, *self._options]

    def read(self, out: Path) -> Told:
        return Told(
            ttft_ms_mean=None,
            ttft_ms_p99=None,
            itl_ms_p99=None,
            tokens_per_s=None,
            answers_per_s=None,
            why_none="it keeps no figures",
        )


class _Peer:
    """A program in an environment of its own."""

    program = ""
    package = ""

    def __init__(self, environment: Path) -> None:
        self._bin = environment / "bin"

    @property
    def version_argv(self) -> Sequence[str]:
        code = f"from importlib.metadata import version; print(version('{self.package}'))"
        return [str(self._bin / "python"), "-c", code]

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}"}

    def _program(self) -> str:
        return str(self._bin / self.program)


class VllmBench(_Peer):
    """`vllm bench serve`: one process, aiohttp."""

    name = "vllm bench serve"
    program = package = "vllm"

    def argv(self, case: Case, url: str, answers: int, inputs: Inputs, out: Path) -> list[str]:
        return [
            *(self._program(), "bench", "serve", "--backend", "openai", "--base-url", url, "--model", "truth"),
            *("--endpoint", "/v1/completions", "--tokenizer", str(inputs.tokenizer), "--dataset-name", "random"),
            *("--random-input-len", "100", "--random-output-len", str(case.tokens), "--temperature", "0"),
            *("--num-prompts", str(answers), "--max-concurrency", str(case.concurrency)),
            *("--num-warmups", str(case.concurrency), "--metric-percentiles", "99", "--disable-tqdm"),
            *("--save-result", "--result-dir", str(out), "--result-filename", "result.json"),
        ]

    def read(self, out: Path) -> Told:
        told = json.loads((out / "result.json").read_text())
        return Told(
            ttft_ms_mean=told["mean_ttft_ms"],
            ttft_ms_p99=told["p99_ttft_ms"],
            itl_ms_p99=told["p99_itl_ms"],
            tokens_per_s=told["output_throughput"],
            answers_per_s=told["request_throughput"],
            notes=f"{told['failed']} failed" if told["failed"] else "",
        )


class AiPerf(_Peer):
    """`aiperf profile`: a service with worker processes."""

    name = "AIPerf"
    program = package = "aiperf"

    def argv(self, case: Case, url: str, answers: int, inputs: Inputs, out: Path) -> list[str]:
        return [
            *(self._program(), "profile", "--model-names", "truth", "--url", url, "--endpoint-type", "completions"),
            *("--streaming", "--tokenizer", str(inputs.tokenizer), "--use-server-token-count", "--ui", "none"),
            *("--input-file", str(inputs.prompts), "--custom-dataset-type", "single_turn"),
            *("--extra-inputs", f"max_tokens:{case.tokens}", "--extra-inputs", "ignore_eos:true"),
            *("--concurrency", str(case.concurrency), "--request-count", str(answers)),
            *("--warmup-request-count", str(case.concurrency), "--output-artifact-dir", str(out)),
        ]

    def read(self, out: Path) -> Told:
        told = json.loads((out / "profile_export_aiperf.json").read_text())
        failed = told.get("error_request_count", {}).get("avg", 0)
        return Told(
            ttft_ms_mean=told["time_to_first_token"]["avg"],
            ttft_ms_p99=told["time_to_first_token"]["p99"],
            itl_ms_p99=told["inter_chunk_latency"]["p99"],
            tokens_per_s=told["output_token_throughput"]["avg"],
            answers_per_s=told["request_throughput"]["avg"],
            notes=f"{failed:g} failed" if failed else "",
        )


class GuideLlm(_Peer):
    """`guidellm run`: worker processes, httpx."""

    name = "GuideLLM"
    program = package = "guidellm"

    def argv(self, case: Case, url: str, answers: int, inputs: Inputs, out: Path) -> list[str]:
        warm = {"mode": "requests", "value": case.concurrency}
        profile = {"kind": "concurrent", "streams": [case.concurrency], "warmup": warm}
        backend: dict[str, Any] = {"kind": "openai_http", "target": url, "model": "truth"}
        backend |= {"request_format": "/v1/completions", "max_tokens": case.tokens}
        backend |= {"extras": {"body": {"ignore_eos": True}}}
        data = {"kind": "json_file", "path": str(inputs.prompts)}
        tokenizer = {"kind": "huggingface_auto", "model": str(inputs.tokenizer)}
        stop = {"kind": "max_requests", "count": answers + case.concurrency}
        written = {"kind": "json", "path": str(out / "result.json")}
        return [
            *(self._program(), "run", "--disable-console", "--backend", json.dumps(backend)),
            *("--profile", json.dumps(profile), "--data", json.dumps(data), "--tokenizer", json.dumps(tokenizer)),
            *("--constraint", json.dumps(stop), "--output", json.dumps(written)),
        ]

    def read(self, out: Path) -> Told:
        [told] = json.loads((out / "result.json").read_text())["benchmarks"]
        metrics = told["metrics"]
        ttft = metrics["time_to_first_token_ms"]["successful"]
        return Told(
            ttft_ms_mean=ttft["mean"],
            ttft_ms_p99=ttft["percentiles"]["p99"],
            itl_ms_p99=None,
            tokens_per_s=metrics["output_tokens_per_second"]["successful"]["mean"],
            answers_per_s=metrics["requests_per_second"]["successful"]["mean"],
            in_flight=metrics["request_concurrency"]["successful"]["mean"],
            why_none="ITL: it keeps an answer's first and last token only",
        )


class MlPerfEndpoints(_Peer):
    """`inference-endpoint` of MLCommons: worker processes, HTTP of its own. It asks for chats: for completions it needs
    the tokenizer of one model, from a hub. Its services start slowly: a busy machine's first try may fail."""

    name = "MLPerf Endpoints"
    program, package = "inference-endpoint", "inference_endpoint"

    def argv(self, case: Case, url: str, answers: int, inputs: Inputs, out: Path) -> list[str]:
        return [
            *(self._program(), "benchmark", "online", "--endpoints", url, "--model", str(inputs.tokenizer)),
            *("--api-type", "openai", "--streaming", "on", "--max-output-tokens", str(case.tokens)),
            *("--dataset", f"{inputs.prompts},parser.prompt=text", "--load-pattern", "concurrency"),
            *("--concurrency", str(case.concurrency), "--num-samples", str(answers), "--duration", "0"),
            *("--warmup", "--warmup-requests", str(case.concurrency), "--report-dir", str(out)),
            *("--workers", str(os.cpu_count() or 1), "--client.worker-initialization-timeout", "240"),
        ]

    def read(self, out: Path) -> Told:
        told = json.loads((out / "performance" / "result_summary.json").read_text())
        ttft, failed = told["ttft"], told["n_samples_failed"]
        return Told(
            ttft_ms_mean=ttft["avg"] / 1e6 if ttft else None,
            ttft_ms_p99=_percentile(ttft, 99) / 1e6 if ttft else None,
            itl_ms_p99=None,
            tokens_per_s=told["tps"],
            answers_per_s=told["qps"],
            why_none="ITL: it keeps an answer's first and last token only",
            notes=f"{failed} failed" if failed else "",
        )


def _percentile(series: Mapping[str, Any], wanted: float) -> float:
    return next(value for name, value in series["percentiles"].items() if float(name) == wanted)


def _number(field: str) -> float | None:
    return float(field) if field else None
