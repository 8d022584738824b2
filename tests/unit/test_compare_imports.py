"""Results of other tools, read from files in their formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.analysis.compare.external import ImportedPoint, read_import
from loadgen.errors import UsageError


def spread(mean: float) -> dict[str, Any]:
    """GuideLLM's figures: median 1 below the mean, p99 10 above."""
    return {"successful": {"mean": mean, "median": mean - 1, "percentiles": {"p50": mean - 1, "p99": mean + 10}}}


VLLM = {
    "date": "20261122-101500", "backend": "vllm", "model_id": "org/model-7B", "max_concurrency": 16, "completed": 100,
    "failed": 2, "duration": 12.5, "output_throughput": 1600.5, "mean_ttft_ms": 30.0, "median_ttft_ms": 28.0,
    "p99_ttft_ms": 60.0, "mean_tpot_ms": 9.0, "median_tpot_ms": 8.9, "p99_tpot_ms": 11.0, "mean_itl_ms": 8.8,
    "median_itl_ms": 8.7, "p99_itl_ms": 12.0,
}  # fmt: skip
GUIDELLM = {
    "metadata": {"version": 1},
    "args": {"model": "org/model-7B"},
    "benchmarks": [
        {
            "config": {"strategy": strategy},
            "metrics": {
                "request_totals": {"successful": 50, "errored": 1, "incomplete": 2, "total": 53},
                "output_tokens_per_second": spread(rate),
                "time_to_first_token_ms": spread(40.0),
                "time_per_output_token_ms": spread(12.0),
                "inter_token_latency_ms": spread(11.0),
                "request_latency": {"successful": {"mean": 2.5, "median": 2.4, "percentiles": {"p99": 3.0}}},
            },
        }
        for strategy, rate in (
            ({"type_": "concurrent", "streams": 64}, 900.0), ({"type_": "synchronous"}, 80.0),
            ({"type_": "constant", "rate": 4.0}, 300.0),
        )
    ],
}  # fmt: skip
AIPERF = {
    "schema_version": "1.5",
    "input_config": {"models": {"items": [{"name": "org/model-7B"}]}, "phases": {"profiling": {"concurrency": 8}}},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 640.0},
    "time_to_first_token": {"unit": "ms", "avg": 25.0, "p50": 24.0, "p99": 40.0},
    "inter_token_latency": {"unit": "ms", "avg": 10.0, "p50": 9.9, "p99": 12.0},
    "request_latency": {"unit": "sec", "avg": 1.5, "p50": 1.4, "p99": 2.0},
    "request_count": {"unit": "requests", "avg": 80.0},
}


def read(tmp_path: Path, argument: str, content: object) -> list[ImportedPoint]:
    path = tmp_path / "result.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_import(f"{argument}={path}")


def test_vllm_bench_serve(tmp_path: Path) -> None:
    (point,) = read(tmp_path, "vllm-bench:awq", VLLM)
    assert (point.tool, point.label, point.model, point.concurrency) == ("vllm-bench", "awq", "org/model-7B", 16)
    assert (point.requests, point.errors, point.tokens_per_s) == (100, 2, 1600.5)
    assert (point.ttft_ms_mean, point.ttft_ms_p50, point.ttft_ms_p99) == (30.0, 28.0, 60.0)
    assert (point.tpot_ms_p50, point.itl_ms_p99) == (8.9, 12.0)
    assert point.e2e_ms_mean is None, "e2el is written only when asked for"


def test_appended_results_are_a_curve_in_the_order_of_concurrency(tmp_path: Path) -> None:
    lines = [json.dumps(VLLM | {"max_concurrency": b, "mean_e2el_ms": 100.0 * b}) for b in (64, 1, 16)]
    points = read(tmp_path, "vllm-bench", "\n".join(lines) + "\n")
    assert [(point.concurrency, point.e2e_ms_mean) for point in points] == [(1, 100.0), (16, 1600.0), (64, 6400.0)]
    assert points[0].label == "result"


def test_guidellm_keeps_seconds_apart_from_milliseconds(tmp_path: Path) -> None:
    alone, many, open_loop = read(tmp_path, "guidellm", GUIDELLM)
    assert (alone.concurrency, alone.tokens_per_s) == (1, 80.0)
    assert (many.concurrency, many.tokens_per_s, many.requests, many.errors) == (64, 900.0, 50, 1)
    assert (many.ttft_ms_mean, many.ttft_ms_p50, many.ttft_ms_p99) == (40.0, 39.0, 50.0)
    assert (many.e2e_ms_mean, many.e2e_ms_p50, many.e2e_ms_p99) == (2500.0, 2400.0, 3000.0)
    assert many.model == "org/model-7B"
    assert open_loop.concurrency is None


@pytest.mark.parametrize(
    "config",
    [
        {"phases": {"warmup": {"concurrency": 2}, "profiling": {"concurrency": 8}}},
        {"phases": [{"name": "warmup", "concurrency": 2}, {"name": "profiling", "concurrency": 8}]},
        {"loadgen": {"concurrency": 8}},
        {"perf_analyzer": {"stimulus": {"concurrency": 8}}},
    ],
)
def test_aiperf_and_genai_perf_by_unit_and_version(tmp_path: Path, config: dict[str, Any]) -> None:
    (point,) = read(tmp_path, "aiperf", AIPERF | {"input_config": config})
    assert (point.concurrency, point.tokens_per_s, point.requests) == (8, 640.0, 80)
    assert (point.itl_ms_p50, point.e2e_ms_p99) == (9.9, 2000.0)
    assert (point.tpot_ms_mean, point.errors) == (None, None)


def test_a_swept_concurrency_of_aiperf_counts_first(tmp_path: Path) -> None:
    swept = {"run_info": {"variation_values": {"phases.profiling.concurrency": 32}}}
    (point,) = read(tmp_path, "aiperf", AIPERF | swept)
    assert (point.concurrency, point.model) == (32, "org/model-7B")


@pytest.mark.parametrize(
    ("argument", "content", "said"),
    [
        ("vllm-bench", "not json", "is not JSON"),
        ("vllm-bench", GUIDELLM, "has no result of vllm-bench"),
        ("guidellm", VLLM, "name its benchmarks.json"),
        ("guidellm", {"benchmarks": []}, "has no result of guidellm"),
        ("aiperf", [1, 2], "name its profile_export_aiperf.json"),
        ("aiperf", "{}", "has no result of aiperf"),
        ("vllm-bench", json.dumps(VLLM | {"output_throughput": float("nan")}), "has no result"),
        ("wrk", VLLM, "'wrk' is not a known tool; choose from vllm-bench, guidellm, aiperf"),
    ],
)
def test_a_file_of_another_kind_is_one_sentence(tmp_path: Path, argument: str, content: object, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        read(tmp_path, argument, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("argument", ["vllm-bench", "vllm-bench=", "vllm-bench=nowhere.json"])
def test_a_missing_file_is_one_sentence(argument: str) -> None:
    with pytest.raises(UsageError, match=r"has no file|cannot be read"):
        read_import(argument)
