"""Synonyms: what other tools call loadgen's commands and the options of a sweep, to hint at ours."""

from __future__ import annotations

from collections.abc import Container

_SERVER = ("targets", "fp16={}", "http://127.0.0.1:8000")
_BATCH = ("concurrency", "{}", "16")
_COUNT = ("requests", "{}", "1000")
_RATE = ("arrival", "poisson:{}", "5")
_TIME = ("duration", "{}", "60s")
_NAME = ("dataset", "{}", "gsm8k")
_RECIPES = ("serve", "{}", "fp16,awq")
_TOKENS = ("max_tokens", "{}", "256")
_FOLDER = ("out", "{}", "runs/mine")
OPTIONS: dict[str, tuple[str, str, str]] = {
    **dict.fromkeys(("url", "base_url", "api_base", "server", "server_url", "address", "u"), _SERVER),
    "host": ("targets", "fp16=http://{}:8000", "127.0.0.1"),
    "port": ("targets", "fp16=http://127.0.0.1:{}", "8000"),
    **dict.fromkeys(("model_name", "model_id", "served_model_name", "pretrained", "m"), ("model", "{}", "ORG/MODEL")),
    **dict.fromkeys(("batch_size", "batch_sizes", "batch", "max_concurrency", "max_batch_size", "b", "c"), _BATCH),
    **dict.fromkeys(("concurrencies", "connections", "clients", "num_clients", "users", "vus", "parallel"), _BATCH),
    **dict.fromkeys(("num_prompts", "num_requests", "max_requests", "request_count", "iterations", "n"), _COUNT),
    **dict.fromkeys(("request_rate", "rate", "qps", "rps"), _RATE),
    **dict.fromkeys(("time", "seconds", "max_seconds", "benchmark_duration", "t", "d"), _TIME),
    **dict.fromkeys(("datasets", "dataset_name", "task", "tasks", "benchmark"), _NAME),
    **dict.fromkeys(("dataset_path", "data", "input_file"), ("data_file", "{}", "gsm8k.jsonl")),
    **dict.fromkeys(("samples", "num_samples", "max_samples"), ("limit", "{}", "100")),
    **dict.fromkeys(("input_len", "random_input_len", "isl"), ("dataset", "synthetic:{}/128", "1024")),
    **dict.fromkeys(("output_len", "random_output_len", "osl"), ("dataset", "synthetic:1024/{}", "128")),
    **dict.fromkeys(("precision", "precisions", "quantization", "recipe", "recipes", "q"), _RECIPES),
    **dict.fromkeys(("max_new_tokens", "max_output_tokens", "max_gen_toks"), _TOKENS),
    **dict.fromkeys(("output", "output_dir", "output_path", "result_dir", "o"), _FOLDER),
    **dict.fromkeys(("tensor_parallel_size", "tp", "tp_size"), ("tensor_parallel", "{}", "2")),
    **dict.fromkeys(("api_key", "key", "token"), ("api_key_env", "{}", "VLLM_API_KEY")),
    **dict.fromkeys(("endpoint_type", "endpoint"), ("api", "{}", "chat")),
    **dict.fromkeys(("runs", "trials", "num_runs", "repeat", "r"), ("repeats", "{}", "3")),
    **dict.fromkeys(("goodput", "slos"), ("slo", "{}", "ttft:200ms,tpot:50ms")),
    **dict.fromkeys(("baseline", "ref"), ("reference", "{}", "fp16")),
    **dict.fromkeys(("gpus", "gpu_id", "gpu_ids", "cuda_visible_devices"), ("gpu", "{}", "GPU-UUID")),
    "ignore_eos": ("fixed_length", "{}", "128"),
    "temperature": ("extra_body", '{{"temperature": {}}}', "0.7"),
    "top_p": ("extra_body", '{{"top_p": {}}}', "0.9"),
    "top_k": ("extra_body", '{{"top_k": {}}}', "1"),
}
"""Name elsewhere -> name here, how its value is written here, and an example of a value."""
NEVER_REPEATED = ("api_key", "key", "token")
"""Their values are secrets."""

COMMANDS: dict[str, str] = {
    **dict.fromkeys(("run", "bench", "benchmark", "start", "test", "measure", "load", "attack", "go"), "sweep"),
    **dict.fromkeys(("show", "view", "open", "analyze", "analyse", "results", "html"), "report RUN"),
    **dict.fromkeys(("diff", "merge"), "compare RUN RUN"),
    **dict.fromkeys(("resume", "continue"), "sweep --resume RUN"),
    **dict.fromkeys(("list", "ls", "recipes", "models", "precisions"), "serve --list"),
    **dict.fromkeys(("datasets", "dataset"), "data"),
    **dict.fromkeys(("download", "fetch"), "data fetch gsm8k"),
    **dict.fromkeys(("sim", "mock", "fake"), "simulate --precision fp16 --port 8001"),
    **dict.fromkeys(("check", "diagnose", "info"), "doctor"),
    **dict.fromkeys(("docker", "up"), "compose"),
    **dict.fromkeys(("grade", "evaluate", "eval"), "regrade RUN"),
    **dict.fromkeys(("metrics", "power"), "exporter"),
    "help": "--help",
    "version": "--version",
}
"""Word that is no command -> what to write behind `loadgen`."""

DATA_COMMANDS = {
    **dict.fromkeys(("download", "get", "pull", "gsm8k"), "fetch gsm8k"),
    "mathqa": "fetch mathqa",
    **dict.fromkeys(("list", "ls", "show"), ""),
    "check": "verify",
}
"""The same behind `loadgen data`."""
ARGUMENTS = {
    "simulate": "--precision {}",
    "exporter": "--port {}",
    "quantize": "--model {}",
    "doctor": "--mode {}",
    "plan": "--accuracy-delta {}",
    **dict.fromkeys(("compose", "cpu-env"), "--dir {}"),
    "serve": "one recipe; another server needs its own command: loadgen serve {}",
}
"""Command -> how an argument that belongs to no option is written as one."""


def elsewhere(name: str, known: Container[str], value: str | None = None) -> tuple[str, str]:
    """The one of the `known` options that does what `name` does in another tool, and the value to give it, made of the
    one that was given; two empty texts where there is none."""
    plain = name.replace("-", "_").lower()
    ours, form, example = OPTIONS.get(plain, ("", "", ""))
    if ours not in known:
        return "", ""
    return ours, form.format(example if value is None or plain in NEVER_REPEATED else value)
