"""Config: the options of `loadgen sweep`, checked once, the same from the command line, YAML and Python."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from loadgen.bounds import MOST_AMOUNT, positive, shown_number
from loadgen.errors import UsageError
from loadgen.load.openloop import CLOSED, Arrivals
from loadgen.record.cell import MAX_ERROR_RATE, Slo, TargetSpec, check_size
from loadgen.record.config import Mode, SweepConfig
from loadgen.serving.launch import API_KEY
from loadgen.serving.process import START_TIMEOUT_S
from loadgen.serving.recipe import load_recipe, load_recipes
from loadgen.workload.dataset import holds_texts
from loadgen.workload.grading.words import compiled
from loadgen.workload.protocol import Thinking, default_protocol

SIMULATED_PRECISIONS = ("fp16", "awq", "gptq", "bnb-nf4")
CONCURRENCY = (1, 16, 64, 128)
OPEN_CAP = 1024
"""Requests in flight from which on an open loop drops arrivals."""
OPEN_NUM_SEQS = 256
"""Largest batch of a server that is launched for an open loop: what waits beyond it is part of the latency."""
SIMULATED_DURATION_S = 1.0
SIMULATED_OPEN_DURATION_S = 10.0
DURATION_S = 60.0
HEADROOM_SEQS = 8
KEPT_FIELDS = ("model", "prompt", "messages", "stream")
"""Fields of a request that `--extra-body` may not touch: without them it is another measurement, or none."""
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def configure(
    *,
    targets: Mapping[str, str] | Sequence[str] = (),
    metrics_url: Sequence[str] = (),
    serve: str | Sequence[str] = (),
    model: str | None = None,
    device: str = "cuda",
    vllm: str | Path | None = None,
    max_num_seqs: int | None = None,
    concurrency: str | Sequence[int] | None = None,
    dataset: str | None = None,
    data_file: str | Path | None = None,
    platinum_file: str | Path | None = None,
    protocol: str | None = None,
    shots_file: str | Path | None = None,
    answer_regex: str | None = None,
    limit: int | None = None,
    duration: float | None = None,
    requests: int | None = None,
    repeats: int = 3,
    start_sd: str | float | None = None,
    warmup: float | None = None,
    max_tokens: int | None = None,
    fixed_length: int | None = None,
    arrival: str = CLOSED,
    slo: str | None = None,
    api: str | None = None,
    thinking: str | None = None,
    thinking_budget: int | None = None,
    prefix_cache: bool = False,
    reasoning_parser: str | None = None,
    power: str = "auto",
    gpu: str | Sequence[str] | None = None,
    exclusive: bool = False,
    tdp_w: float | None = None,
    carbon: float | None = None,
    metrics_port: int | None = 9402,
    metrics_host: str = "127.0.0.1",
    transport: str = "raw",
    workers: int | None = None,
    reference: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    extra_body: str | Mapping[str, Any] | None = None,
    timeout: float = 600.0,
    start_timeout: float = START_TIMEOUT_S,
    wait_ready: float = 0.0,
    drain: float | None = None,
    max_error_rate: float = MAX_ERROR_RATE,
    api_key_env: str | None = None,
) -> SweepConfig:
    """The checked options. `targets` are `{name: url}` or `NAME=URL`, `serve` recipe names or `NAME=CHECKPOINT`,
    `metrics_url` addresses of /metrics pages, as `NAME=URL` where there are several targets.

    Raises UsageError, one sentence, for the first option that cannot be meant.
    """
    arrivals = Arrivals.parse(arrival)
    pairs = [f"{name}={url}" for name, url in targets.items()] if isinstance(targets, Mapping) else list(targets)
    served = serve.split(",") if isinstance(serve, str) and serve else list(serve)
    if pairs and served:
        raise UsageError("--target and --serve exclude each other: measure running servers or launch them, not both")
    mode: Mode = "target" if pairs else "serve" if served else "simulated"
    if mode == "target":
        specs = [_running(pair) for pair in pairs]
    elif mode == "serve":
        specs = [_launched(name) for name in served]
    else:
        specs = [TargetSpec(name=name, precision=name) for name in SIMULATED_PRECISIONS]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"target {name!r} is named twice; give one of them a label, as in {name}-b:{name}=...")
    if mode == "simulated" and prefix_cache:
        raise UsageError("--prefix-cache needs --serve or --target: simulated servers have no prefix cache")
    specs = _with_metrics(specs, [metrics_url] if isinstance(metrics_url, str) else list(metrics_url), mode)
    if mode == "serve" and not model:
        raise UsageError("--serve needs --model: the 16-bit model's id or folder")
    if mode == "simulated" and model:
        raise UsageError(f"--model {model} needs --serve or --target: without them the servers are simulated")
    if mode == "serve" and model and model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise UsageError(f"--model {model}: there is no such folder")
    for option, value in (
        ("vllm", vllm), ("max-num-seqs", max_num_seqs), ("reasoning-parser", reasoning_parser),
    ):  # fmt: skip
        if mode != "serve" and value is not None:
            raise UsageError(f"--{option} {value} needs --serve: it concerns servers that loadgen launches")
    for option, value in (("model", model), ("reasoning-parser", reasoning_parser)):
        if value is not None and value.startswith("-"):
            raise UsageError(f"--{option} {value}: starts with '-', so vLLM would take it for an option; check it")
    levels = _concurrency(concurrency, arrivals)
    positive(
        limit=limit, requests=requests, repeats=repeats, max_tokens=max_tokens, fixed_length=fixed_length,
        max_num_seqs=max_num_seqs, duration=duration, timeout=timeout, tdp_w=tdp_w, carbon=carbon,
        metrics_port=metrics_port, thinking_budget=thinking_budget, workers=workers, drain=drain,
        start_timeout=start_timeout,
    )  # fmt: skip
    check_size(f"--repeats {repeats}", len(specs), len(levels), repeats)
    if warmup is not None and not 0 <= warmup <= MOST_AMOUNT:
        raise UsageError(f"--warmup {shown_number(warmup)}: give zero or more seconds")
    if not 0 <= wait_ready <= MOST_AMOUNT:
        raise UsageError(f"--wait-ready {shown_number(wait_ready)}: give zero or more seconds")
    if wait_ready and mode != "target":
        raise UsageError(f"--wait-ready {wait_ready:g} needs --target: loadgen waits for the servers it starts itself")
    if not 0 <= max_error_rate < 1:
        raise UsageError(
            f"--max-error-rate {shown_number(max_error_rate)}: give a share from 0 up to, but not including, 1"
        )
    if duration is not None and requests is not None:
        raise UsageError("--duration and --requests exclude each other: a window ends by time or by count")
    if requests is not None and arrivals is None and requests < 2 * max(levels):
        raise UsageError(
            f"--requests {requests}: B = {max(levels)} needs {2 * max(levels)} at least, so that every slot is refilled"
        )
    if arrivals is not None and workers is not None and workers > 1:
        raise UsageError(
            f"--workers {workers} shares slots that are held busy; with --arrival {arrivals} one process sends: leave "
            "--workers away"
        )
    if max_tokens is not None and fixed_length is not None:
        raise UsageError("--max-tokens and --fixed-length exclude each other: an answer has a cap or a length")
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: give a whole number from 0 to 2^63 - 1")
    _one_of("api", api, ("completions", "chat"))
    _one_of("transport", transport, ("raw", "openai"))
    _one_of("device", device, ("cuda", "cpu"))
    if reference is not None and reference not in names:
        raise UsageError(f"--reference {reference}: no such target; the targets are {', '.join(names)}")
    if api_key_env is not None:
        _check_key(f"--api-key-env {api_key_env}", api_key_env)
    elif mode == "serve" and os.environ.get(API_KEY):
        _check_key(API_KEY, API_KEY)
    questions = dataset or ("sample" if mode == "simulated" and data_file is None else "gsm8k")
    own = Path(data_file) if data_file else None
    default_duration = DURATION_S
    if mode == "simulated":
        default_duration = SIMULATED_DURATION_S if arrivals is None else SIMULATED_OPEN_DURATION_S
    return SweepConfig(
        mode=mode,
        targets=tuple(specs),
        model=str(Path(model).expanduser()) if model and model.startswith("~") else model,
        device=device,
        vllm=str(vllm) if vllm else None,
        max_num_seqs=max_num_seqs or (max(levels) + HEADROOM_SEQS if arrivals is None else OPEN_NUM_SEQS),
        concurrency=levels,
        dataset=questions,
        data_file=str(data_file) if data_file else None,
        platinum_file=str(platinum_file) if platinum_file else None,
        protocol=protocol or default_protocol(questions, texts=holds_texts(questions, own)),
        shots_file=str(shots_file) if shots_file else None,
        answer_regex=None if answer_regex is None else compiled(answer_regex).pattern,
        limit=limit,
        duration_s=None if requests is not None else duration or default_duration,
        requests=requests,
        repeats=repeats,
        start_sd=None if start_sd is None else start_share(start_sd),
        warmup_s=warmup,
        max_tokens=max_tokens,
        fixed_length=fixed_length,
        arrival=CLOSED if arrivals is None else str(arrivals),
        slo=None if slo is None else str(Slo.parse(slo)),
        api=api,
        thinking=_thinking(thinking, thinking_budget, api),
        prefix_cache=prefix_cache,
        reasoning_parser=reasoning_parser,
        transport=transport,
        workers=workers,
        reference=reference or ("fp16" if "fp16" in names else names[0]),
        out=str(out) if out else None,
        seed=seed,
        extra_body=_extra_body(extra_body),
        timeout_s=timeout,
        start_timeout_s=start_timeout,
        wait_ready_s=wait_ready,
        drain_s=drain,
        max_error_rate=max_error_rate,
        api_key_env=api_key_env,
        power=_power(power, mode, device),
        gpus=_gpus(gpu),
        exclusive=exclusive,
        tdp_w=tdp_w,
        carbon_kg_per_kwh=carbon,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
    )


def api_key(config: SweepConfig) -> str | None:
    """The servers' API key, read from the environment when needed and never stored.

    Without `--api-key-env`, the servers that loadgen launches take VLLM_API_KEY from its environment.
    """
    variable = config.api_key_env or (API_KEY if config.mode == "serve" else None)
    return (os.environ.get(variable) or None) if variable else None


def start_share(stated: str | float) -> float:
    """The share that `--start-sd` states: of 1.5% or of 0.015. Raises UsageError."""
    text = str(stated).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share < 0.5:
        raise UsageError(f"--start-sd {text}: give a standard deviation above 0 and below 50%, as in 1.5%")
    return share


def _extra_body(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if given is None:
        return {}
    text = given if isinstance(given, str) else str(given)
    try:
        body = msgspec.json.decode(given if isinstance(given, str) else msgspec.json.encode(given))
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f'--extra-body {text}: not JSON ({error}); write an object, as in {{"top_k": 1}}') from None
    if not isinstance(body, dict):
        raise UsageError(f'--extra-body {text}: not a JSON object; write one, as in {{"top_k": 1}}')
    for name in KEPT_FIELDS:
        if name in body:
            raise UsageError(f"--extra-body: {name!r} cannot be changed, loadgen sets it; remove it from the object")
    if body.get("max_tokens") is not None:
        raise UsageError(f"--extra-body: 'max_tokens' is set by --max-tokens {body['max_tokens']}; use that option")
    if body.get("n") not in (None, 1):
        raise UsageError(f"--extra-body: 'n' is {body['n']}, but one answer per request is measured; remove it")
    return body


def _check_key(where: str, variable: str) -> None:
    """Whoever gives the key itself instead of a variable's name does not find it in a terminal's log."""
    key = os.environ.get(variable)
    where = where if _VARIABLE.fullmatch(variable) else "--api-key-env"
    if not key:
        raise UsageError(f"{where}: the environment has no variable of that name, or it is empty")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(f"{where}: the key holds a space, a line end or the like; set it again without")


def _thinking(thinking: str | None, budget: int | None, api: str | None) -> Thinking | None:
    if budget is not None and thinking != "on":
        raise UsageError(f"--thinking-budget {budget} needs --thinking on")
    if thinking is None:
        return None
    _one_of("thinking", thinking, ("on", "off"))
    if api == "completions":
        raise UsageError(f"--thinking {thinking} needs --api chat: the model's chat template switches it")
    return Thinking(on=thinking == "on", budget=budget)


def _power(power: str, mode: Mode, device: str) -> str:
    """The source that is meant; `auto` is left for servers that may run on a GPU of this machine."""
    if power.startswith("exporter="):
        url = power.removeprefix("exporter=")
        if not _is_address(url) or urlsplit(url).username is not None:
            raise UsageError(f"--power {power}: write exporter=http://HOST:PORT, without user and password")
        return power.rstrip("/")
    _one_of("power", power, ("auto", "nvml", "rapl", "simulated", "none"))
    if power in ("nvml", "rapl") and mode == "simulated":
        raise UsageError(f"--power {power} measures a real machine, but these servers are simulated; use simulated")
    if power != "auto":
        return power
    if mode == "simulated":
        return "simulated"
    return "none" if mode == "serve" and device == "cpu" else "auto"


def _gpus(gpu: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if gpu is None:
        return None
    names = tuple(name.strip() for name in (gpu.split(",") if isinstance(gpu, str) else gpu))
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"--gpu {','.join(names)}: name each GPU's UUID once, as nvidia-smi -L prints them")
    return names


def _known_precision(name: str, asked: str) -> str:
    known = list(load_recipes())
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"{asked}: {name!r} is no precision; {hint}known: {', '.join(known)} (a label of your own goes before "
            "a colon, as in mine:awq=URL)"
        )
    return name


def _running(pair: str) -> TargetSpec:
    left, separator, url = pair.partition("=")
    if not separator or not left:
        raise UsageError(f"--target {pair}: write NAME=URL, as in fp16=http://127.0.0.1:8001")
    label, _, precision = left.partition(":")
    _check_label(label, f"--target {pair}")
    if not _is_address(url):
        raise UsageError(f"--target {label}: {url!r} is no server's address; write http://HOST:PORT")
    if urlsplit(url).username is not None:
        raise UsageError(f"--target {label}: leave user and password out of the address; give a key with --api-key-env")
    base = url.rstrip("/").removesuffix("/v1")
    return TargetSpec(name=label, precision=_known_precision(precision or label, f"--target {pair}"), url=base)


def _with_metrics(specs: Sequence[TargetSpec], entries: Sequence[str], mode: Mode) -> list[TargetSpec]:
    """The targets, each with the pages that --metrics-url names for it."""
    pages: dict[str, list[str]] = {spec.name: [] for spec in specs}
    for entry in entries:
        if mode != "target":
            raise UsageError(f"--metrics-url {entry} needs --target: loadgen knows where its own servers' /metrics are")
        named = "=" in entry and not entry.startswith(("http://", "https://"))
        name, _, url = entry.partition("=") if named else (specs[0].name, "", entry)
        if not named and len(specs) > 1:
            raise UsageError(f"--metrics-url {entry}: say whose it is, as in {name}={url}")
        if name not in pages:
            raise UsageError(f"--metrics-url {entry}: no target is called {name}; the targets are {', '.join(pages)}")
        if not _is_address(url.partition("?")[0]) or urlsplit(url).username is not None:
            raise UsageError(f"--metrics-url {entry}: write http://HOST:PORT/metrics, without user and password")
        page = url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/metrics"
        if page in pages[name]:
            raise UsageError(f"--metrics-url {entry}: {page} is listed twice for {name}; list each page once")
        pages[name].append(page)
    return [msgspec.structs.replace(spec, metrics_urls=tuple(pages[spec.name])) for spec in specs]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = not (parts.query or parts.fragment or any(character.isspace() for character in url))
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port_ok and plain


def _launched(entry: str) -> TargetSpec:
    left, _, checkpoint = entry.strip().partition("=")
    label, _, precision = left.partition(":")
    _check_label(label, f"--serve {entry}")
    recipe = load_recipe(precision or label)
    if checkpoint.startswith("-"):
        raise UsageError(f"--serve {entry}: the checkpoint starts with '-', so vLLM would take it for an option")
    return TargetSpec(name=label, precision=recipe.name, checkpoint=checkpoint or None)


def _check_label(label: str, asked: str) -> None:
    if not _LABEL.fullmatch(label):
        raise UsageError(f"{asked}: {label!r} is no name; use letters, digits, '.', '_' and '-'")


def _concurrency(value: str | Sequence[int] | None, arrivals: Arrivals | None) -> tuple[int, ...]:
    """The batch sizes; of an open loop the one number of requests that may be in flight."""
    if value is None:
        return CONCURRENCY if arrivals is None else (OPEN_CAP,)
    parts = value.split(",") if isinstance(value, str) else list(value)
    levels = []
    for part in parts:
        text = str(part).strip()
        if not text.isdecimal() or len(text) > 9 or int(text) < 1:
            raise UsageError(
                f"--concurrency: {text[:40]!r} is not a valid batch size; write whole numbers from 1, as in 1,16,64"
            )
        if int(text) in levels:
            raise UsageError(f"--concurrency: {text} stands there twice; name every batch size once")
        levels.append(int(text))
    if not levels:
        raise UsageError("--concurrency is empty; write batch sizes, as in 1,16,64")
    if arrivals is not None and len(levels) > 1:
        raise UsageError(
            f"--concurrency {','.join(map(str, levels))}: with --arrival {arrivals} it is the most requests in flight; "
            "name one number, or leave it away"
        )
    return tuple(levels)


def _one_of(option: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise UsageError(f"--{option} {value}: unknown; write {' or '.join(known)}")
