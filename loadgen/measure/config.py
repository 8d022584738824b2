"""Config: the options of `loadgen sweep`, checked once, the same from the command line, YAML and Python."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, cast
from urllib.parse import urlsplit

import msgspec

from loadgen.bounds import shown_number
from loadgen.errors import UsageError
from loadgen.load.openloop import Arrivals, listed
from loadgen.measure.kvcache import kv_asked
from loadgen.measure.search import WITHIN, metrics_sought, range_sought
from loadgen.measure.traffic import arrivals_of, check_lengths, with_data_file, with_own_arrivals
from loadgen.notation import did_you_mean, entries, numerals, server_url, shown, spelled, without_endpoint
from loadgen.options import SweepOptions, complete, dashed, declared, takes
from loadgen.record.cell import ON_RAY, Mode, Slo, SweepConfig, TargetSpec, check_size
from loadgen.serving.launch import API_KEY, conflict
from loadgen.serving.project import Project
from loadgen.serving.recipe import Device, load_recipe, load_recipes
from loadgen.serving.requirements import GRID
from loadgen.serving.simulated.cost import load_presets
from loadgen.workload.dataset import holds_texts
from loadgen.workload.grading.words import compiled
from loadgen.workload.protocol import Thinking, default_protocol, protocol_named
from loadgen.workload.traffic import shapes_of

SIMULATED_PRECISIONS = ("fp16", "awq", "gptq", "bnb-nf4")
SIMULATED = "simulated/"
"""What begins a `--model` whose servers are simulated; the simulator's name of the model follows."""
OPEN_CAP = 1024
"""Requests in flight from which on an open loop drops arrivals."""
OPEN_NUM_SEQS = 256
"""Largest batch of a server that is launched for an open loop: what waits beyond it is part of the latency."""
SIMULATED_DURATION_S = 1.0
SIMULATED_OPEN_DURATION_S = 10.0
DURATION_S = 60.0
MOST_WORKERS = 10_000
HEADROOM_SEQS = 8
KEPT_FIELDS = ("model", "prompt", "messages", "stream")
"""Fields of a request that `--extra-body` may not touch: without them it is another measurement, or none."""
POWER_SOURCES = ("auto", "nvml", "rapl", "simulated", "none")
EXAMPLE_URL = "http://127.0.0.1:8001"
KEY_HINT = "; give a key with --api-key-env"
_BETWEEN_PAIRS = re.compile(r",\s*(?=[A-Za-z0-9._:-]+\s*=)")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@takes(SweepOptions)
def configure(**given: Unpack[SweepOptions]) -> SweepConfig:
    """The checked options of a sweep. Raises UsageError, one sentence, for the first that is not valid."""
    o = with_data_file(complete(SweepOptions, given))
    o = {**o, "api": _named_api(o)}
    mode, specs, project = _targets(o)
    o, specs = with_own_arrivals(o, specs)
    names = [spec.name for spec in specs]
    _check_servers(o, mode)
    vllm_args = _vllm_args(o["vllm_args"], mode)
    same_kv = kv_asked(o, mode, vllm_args)
    services = [project.services[spec.service or ""] for spec in specs] if project else []
    simulated = mode == "simulated" or (bool(services) and services[0].simulated)
    device: Device = services[0].device if services else o["device"]
    dataset = o["dataset"] or ("sample" if simulated and o["data_file"] is None else "gsm8k")
    arrivals, rows = arrivals_of(o, dataset)
    sized = project.concurrency if project and not arrivals else None
    find = metrics_sought(o, given, names, arrivals)
    if find:
        levels: tuple[int, ...] = range_sought(o["range"], max(batch_sizes(sized)) if sized else None)
    else:
        levels = batch_sizes(sized if o["concurrency"] is None else o["concurrency"], arrivals)
    each = max(1, len(arrivals)) * max(1, len(shapes_of(dataset)))
    check_size(f"--repeats {o['repeats']}", len(specs), len(levels) * each, o["repeats"])
    _check_load(o, levels, arrivals)
    check_lengths(o, dataset)
    reference = None if o["reference"] is None else spelled(o["reference"], names)
    if reference is not None and reference not in names:
        say = f"no such target; {did_you_mean(reference, names)}the targets are {', '.join(names)}"
        raise UsageError(f"--reference {reference}: {say}")
    if o["api_key_env"] is not None:
        _check_key(f"--api-key-env {o['api_key_env']}", o["api_key_env"])
    elif mode == "serve" and os.environ.get(API_KEY):
        _check_key(API_KEY, API_KEY)
    texts = holds_texts(dataset, Path(o["data_file"]) if o["data_file"] else None)
    duration_s = DURATION_S
    if simulated:
        duration_s = SIMULATED_OPEN_DURATION_S if arrivals else SIMULATED_DURATION_S
    requests = o["requests"] if o["requests"] is not None or o["duration"] is not None else rows
    values = cast(Mapping[str, Any], o)
    fields: dict[str, Any] = {
        option.field: (str(values[name]) if values[name] else None) if option.is_path else values[name]
        for name, option in declared(SweepOptions).items()
    }
    model, slo, start_sd, pattern = o["model"], o["slo"], o["start_sd"], o["answer_regex"]
    fields |= {
        "mode": mode,
        "targets": specs,
        "compose": str(project.folder) if project else None,
        "device": device,
        "model": str(Path(model).expanduser()) if model and model.startswith("~") else model,
        "max_num_seqs": o["max_num_seqs"] or (OPEN_NUM_SEQS if arrivals else max(levels) + HEADROOM_SEQS),
        "concurrency": levels,
        "dataset": dataset,
        "protocol": protocol_named(o["protocol"]) if o["protocol"] else default_protocol(dataset, texts=texts),
        "answer_regex": None if pattern is None else compiled(pattern).pattern,
        "duration_s": None if requests is not None else o["duration"] or duration_s,
        "requests": requests,
        "find": find,
        "within": WITHIN if o["within"] is None else float(o["within"]),
        "most_s": None if o["most_minutes"] is None else 60 * float(o["most_minutes"]),
        "start_sd": None if start_sd is None else start_share(float(start_sd)),
        "arrival": listed(arrivals),
        "slo": None if slo is None else str(Slo.parse(slo)),
        "thinking": _thinking(o["thinking"], o["thinking_budget"], o["api"]),
        "reference": reference or ("fp16" if "fp16" in names else names[0]),
        "same_kv": same_kv,
        "workers": _workers(o["workers"]),
        "vllm_args": vllm_args,
        "extra_body": _extra_body(o["extra_body"]),
        "power": _power(o["power"], mode, device, simulated=simulated),
        "gpus": _gpus(o["gpu"]),
    }
    return SweepConfig(**fields)


def _targets(o: SweepOptions) -> tuple[Mode, tuple[TargetSpec, ...], Project | None]:
    """Where the servers come from, and what is measured under which name."""
    targets, serve, pages = o["targets"], o["serve"], o["metrics_url"]
    pairs = _pairs(targets)
    if isinstance(serve, Mapping):
        serve = [f"{name}={checkpoint}" if checkpoint else name for name, checkpoint in serve.items()]
    served = entries(serve) if isinstance(serve, str) and serve else list(serve)
    if pairs and served:
        raise UsageError("--target and --serve exclude each other: measure running servers or launch them, not both")
    project = Project.found(o["compose"]) if o["compose"] else None
    if pairs and project:
        raise UsageError("--target and --compose exclude each other: measure running servers or start the project's")
    preset = model.removeprefix(SIMULATED) if (model := o["model"] or "").startswith(SIMULATED) and not pairs else ""
    mode: Mode = "target" if pairs else "compose" if project else "serve" if served and not preset else "simulated"
    if mode == "target":
        specs = [_running(pair) for pair in pairs]
    elif project:
        specs = project.targets(served)
    elif mode == "serve":
        specs = _sharing([_launched(name) for name in served], o["tensor_parallel"])
    else:
        specs = [_launched(name) for name in served or SIMULATED_PRECISIONS]
        _check_simulated(specs, preset)
    names = [spec.name for spec in specs]
    for spec in specs:
        if names.count(spec.name) > 1:
            labelled = f"{spec.name}-b:{spec.precision}{'=URL' * (mode == 'target')}"
            raise UsageError(f"target {spec.name!r} is listed twice; give one of them a label, as in {labelled}")
    specs = _with_metrics(specs, [pages] if isinstance(pages, str) else list(pages), mode)
    return mode, tuple(specs), project


def _check_simulated(specs: Sequence[TargetSpec], preset: str) -> None:
    """Raises UsageError for a model or a precision that the simulator does not have."""
    presets = load_presets()
    if preset:
        presets.named("model", preset)
    for spec in specs:
        presets.named("precision", spec.precision)
        if spec.checkpoint is not None:
            raise UsageError(f"--serve {spec.name}={spec.checkpoint}: simulated servers have no checkpoint; omit it")


def _pairs(targets: str | Mapping[str, str] | Sequence[str]) -> list[str]:
    if isinstance(targets, Mapping):
        return [f"{name}={url or ''}" for name, url in targets.items()]
    given = [targets] if isinstance(targets, str) else targets
    return [pair for text in given for pair in _BETWEEN_PAIRS.split(str(text).rstrip(" ,"))]


def _named_api(o: SweepOptions) -> Any:
    """`--api`, or that of the endpoint in which a target's URL ends."""
    ends = {api: pair for pair in _pairs(o["targets"]) if (api := without_endpoint(pair.strip())[1])}
    for api, pair in ends.items():
        if o["api"] not in (None, api):
            raise UsageError(
                f"--api {o['api']}: --target {pair} names the API {api}; omit --api, or end the URL at /v1"
            )
    if len(ends) > 1:
        raise UsageError(f"--target {' and '.join(ends.values())} name two APIs; end the URLs at /v1 and give --api")
    return next(iter(ends), o["api"])


def _check_servers(o: SweepOptions, mode: Mode) -> None:
    model, values = o["model"], cast(Mapping[str, Any], o)
    if mode in ("simulated", "compose") and o["prefix_cache"]:
        raise UsageError("--prefix-cache needs --serve or --target: simulated servers and those of --compose have none")
    if mode == "serve" and not model:
        raise UsageError("--serve needs --model: the 16-bit model's id or folder, as in --model Qwen/Qwen3-0.6B")
    if mode == "compose" and model:
        say = f"`loadgen compose --model {model}` writes them"
        raise UsageError(f"--model {model}: with --compose the project's .env names the checkpoints; {say}")
    if mode != "serve" and o["quantize_missing"]:
        raise UsageError("--quantize-missing needs --serve: it makes checkpoints for servers that loadgen launches")
    if mode == "simulated" and model and not model.startswith(SIMULATED):
        say = "without them the servers are simulated; add --serve fp16,awq to launch it"
        raise UsageError(f"--model {model} needs --serve or --target: {say}")
    if mode == "serve" and model and model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise UsageError(f"--model {model}: there is no such folder")
    for name in ("vllm", "max_num_seqs", "tensor_parallel", "max_model_len", "reasoning_parser"):
        if mode == "compose" and values[name] is not None:
            say = "write it into the project's .env (VLLM_ARGS, MAX_NUM_SEQS, VLLM_IMAGE)"
            if name == "tensor_parallel":
                say = f"`loadgen compose --tensor-parallel {values[name]}` writes it into the project's .env"
            raise UsageError(f"--{dashed(name)} {values[name]}: with --compose the project starts the servers; {say}")
        launched = ("serve", "simulated") if name == "max_model_len" else ("serve",)
        if mode not in launched and values[name] is not None:
            raise UsageError(f"--{dashed(name)} {values[name]} needs --serve: it is for servers that loadgen launches")
    for name in ("model", "reasoning_parser"):
        if values[name] is not None and values[name].startswith("-"):
            raise UsageError(f"--{dashed(name)} {values[name]}: starts with '-', so vLLM would take it for an option")
    if o["wait_ready"] and mode != "target":
        wait = shown_number(float(o["wait_ready"]))
        raise UsageError(f"--wait-ready {wait} needs --target: loadgen waits for the servers that it starts")


def _workers(given: int | str | None) -> int | str | None:
    """N, or `ray:N`. Raises UsageError."""
    if given is None:
        return None
    place, _, count = str(given).rpartition(":")
    if place not in ("", ON_RAY[:-1]) or not count.isdecimal() or not 0 < int(count) <= MOST_WORKERS:
        raise UsageError(
            f"--workers {shown(given)}: give the number of client processes, as in 4, or ray:4 for as many on the "
            f"nodes of a Ray cluster (at most {MOST_WORKERS:,})"
        )
    return f"{ON_RAY}{int(count)}" if place else int(count)


def _check_load(o: SweepOptions, levels: Sequence[int], arrivals: Sequence[Arrivals]) -> None:
    requests, workers = o["requests"], _workers(o["workers"])
    if not 0 <= (rate := float(o["max_error_rate"])) < 1:
        share = shown_number(rate)
        raise UsageError(f"--max-error-rate {share}: give a share from 0 up to, but not including, 1, as in 0.5%")
    if o["duration"] is not None and requests is not None:
        raise UsageError("--duration and --requests exclude each other: a window ends by time or by count")
    if requests is not None and not arrivals and requests < 2 * max(levels):
        raise UsageError(
            f"--requests {requests}: B = {max(levels)} needs at least {2 * max(levels)}, so that every slot is refilled"
        )
    if arrivals and workers is not None and workers != 1:
        raise UsageError(
            f"--workers {workers} is for a closed loop; with --arrival {listed(arrivals)} one process sends: "
            "omit --workers"
        )
    if o["max_tokens"] is not None and o["fixed_length"] is not None:
        raise UsageError("--max-tokens and --fixed-length exclude each other: an answer has a cap or a length")
    length, room = o["max_tokens"] or o["fixed_length"], o["max_model_len"]
    if length is not None and room is not None and length >= room:
        raise UsageError(f"--max-model-len {room}: no room for a prompt beside answers of {length} tokens; raise it")
    if not 0 <= o["seed"] < 2**63:
        raise UsageError(f"--seed {o['seed']}: give a whole number from 0 to 2^63 - 1")


def api_key(config: SweepConfig) -> str | None:
    """The servers' API key, read from the environment when needed and never stored.

    Without `--api-key-env`, the servers that loadgen launches take VLLM_API_KEY from its environment.
    """
    variable = config.api_key_env or (API_KEY if config.mode == "serve" else None)
    return (os.environ.get(variable) or None) if variable else None


def start_share(share: float) -> float:
    """The share that `--start-sd` states. Raises UsageError for one that no server has."""
    if not 0 < share < 0.5:
        raise UsageError(f"--start-sd {share:g}: give a standard deviation above 0 and below 50%, as in 1.5%")
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
    """Raises UsageError without the key itself, also where it was given instead of a variable's name."""
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
    if api == "completions":
        raise UsageError(f"--thinking {thinking} needs --api chat: the model's chat template switches it")
    return Thinking(on=thinking == "on", budget=budget)


def _power(power: str, mode: Mode, device: str, *, simulated: bool) -> str:
    """The power source; it stays `auto` for servers that may run on a GPU of this machine."""
    kind, equals, url = power.partition("=")
    if spelled(kind, ["exporter"]) == "exporter":
        if not equals or not url:
            raise UsageError(f"--power {power}: give its URL, as in --power exporter=http://127.0.0.1:9401")
        return f"exporter={server_url(url, '--power exporter', 'exporter=http://HOST:PORT', port=9401)}"
    power = spelled(power, POWER_SOURCES)
    if power not in POWER_SOURCES:
        if "://" in power or ":" in power:
            raise UsageError(f"--power {power}: write --power exporter={power.removeprefix('exporter:')}")
        known = (*POWER_SOURCES, "exporter=URL")
        raise UsageError(f"--power {power}: unknown; {did_you_mean(power, known)}write {' or '.join(known)}")
    if power in ("nvml", "rapl") and simulated:
        raise UsageError(f"--power {power} measures a real machine, but these servers are simulated; use simulated")
    if power != "auto":
        return power
    if simulated:
        return "simulated"
    return "none" if mode in ("serve", "compose") and device == "cpu" else "auto"


def _gpus(gpu: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if gpu is None:
        return None
    names = entries(gpu) if isinstance(gpu, str) else [str(name).strip() for name in gpu]
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"--gpu {','.join(names)}: name each GPU's UUID once, as nvidia-smi -L prints them")
    if any(name.isdecimal() for name in names):
        say = "nvidia-smi and CUDA may number GPUs differently; write UUIDs, as nvidia-smi -L prints them"
        raise UsageError(f"--gpu {','.join(names)}: {say}, or set CUDA_VISIBLE_DEVICES={','.join(names)}")
    return tuple(names)


def _known_precision(name: str, asked: str) -> str:
    known = list(load_recipes())
    if (precision := spelled(name, known)) not in known:
        raise UsageError(
            f"{asked}: {name!r} is not a valid precision; {did_you_mean(name, known)}known: {', '.join(known)} (write "
            "your own label before a colon, as in mine:awq=URL)"
        )
    return precision


def _running(pair: str) -> TargetSpec:
    left, separator, url = pair.partition("=")
    if not separator or not left or "://" in left:
        example = f"fp16={pair.strip() if ':' in pair and '=' not in pair else EXAMPLE_URL}"
        raise UsageError(f"--target {pair}: write NAME=URL, NAME being the precision that it serves, as in {example}")
    label, colon, precision = (part.strip() for part in left.partition(":"))
    known = _known_precision(precision or label, f"--target {pair}")
    name = label if colon else known
    _check_label(name, f"--target {pair}")
    base, _ = without_endpoint(server_url(url, f"--target {name}", key=KEY_HINT))
    return TargetSpec(name=name, precision=known, url=base)


def _with_metrics(specs: Sequence[TargetSpec], entries: Sequence[str], mode: Mode) -> list[TargetSpec]:
    """The targets, each with the pages that --metrics-url names for it."""
    pages: dict[str, list[str]] = {spec.name: [] for spec in specs}
    for entry in entries:
        if mode != "target":
            raise UsageError(f"--metrics-url {entry} needs --target: loadgen knows where its own servers' /metrics are")
        name, equals, url = entry.partition("=")
        named = bool(equals) and "/" not in name and "?" not in name
        name, url = (spelled(name, pages), url.strip()) if named else (specs[0].name, entry.strip())
        if not named and len(specs) > 1:
            raise UsageError(f"--metrics-url {entry}: name its target, as in {name}={url}")
        if name not in pages:
            raise UsageError(f"--metrics-url {entry}: no target is called {name}; the targets are {', '.join(pages)}")
        address, question, query = url.partition("?")
        page = server_url(address, f"--metrics-url for {name}", "http://HOST:PORT/metrics", key=KEY_HINT)
        page = (page if urlsplit(page).path else f"{page}/metrics") + question + query
        if page in pages[name]:
            raise UsageError(f"--metrics-url {entry}: {page} is listed twice for {name}; list each page once")
        pages[name].append(page)
    return [msgspec.structs.replace(spec, metrics_urls=tuple(pages[spec.name])) for spec in specs]


def _launched(entry: str) -> TargetSpec:
    left, _, checkpoint = (part.strip() for part in entry.partition("="))
    label, colon, precision = (part.strip() for part in left.partition(":"))
    _check_label(label, f"--serve {entry}")
    recipe = load_recipe(precision or label)
    label = label if colon else recipe.name
    if checkpoint.startswith("-"):
        raise UsageError(f"--serve {entry}: the checkpoint starts with '-', so vLLM would take it for an option")
    return TargetSpec(name=label, precision=recipe.name, checkpoint=checkpoint or None)


def _sharing(specs: list[TargetSpec], given: int | str | Mapping[str, int] | None) -> list[TargetSpec]:
    """The targets, with the number of GPUs that `--tensor-parallel` gives all of them, or each that it names."""
    if given is None:
        return specs
    counts = gpu_counts(given, [spec.name for spec in specs])
    return [msgspec.structs.replace(spec, tensor_parallel=counts.get(spec.name)) for spec in specs]


def gpu_counts(given: int | str | Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """The number of GPUs by target: `2` for all of these names, or `fp16=2,awq=1`."""
    pairs = given.items() if isinstance(given, Mapping) else [_pair(part) for part in entries(str(given))]
    counts: dict[str, int] = {}
    for name, number in pairs:
        name = spelled(name, names)
        shown = f"--tensor-parallel {name}={number}" if name else f"--tensor-parallel {number}"
        text = str(number).strip()
        if not text.isdecimal() or not 1 <= int(text[:9]) < 2**15:
            raise UsageError(f"{shown}: give a number of GPUs from 1, or one for some targets, as in fp16=2,awq=1")
        if name and name not in names:
            raise UsageError(f"{shown}: no such target; the targets are {', '.join(names)}")
        for one in [name] if name else names:
            if one in counts:
                raise UsageError(f"{shown}: {one} has a number already; give one number, or one for each target")
            counts[one] = int(text)
    return counts


def _pair(part: str) -> tuple[str, str]:
    name, equals, number = part.strip().rpartition("=")
    return (name.strip(), number) if equals else ("", number)


def _vllm_args(given: str | Sequence[str], mode: Mode) -> tuple[str, ...]:
    try:
        args = tuple(shlex.split(given) if isinstance(given, str) else map(str, given))
    except ValueError as error:
        raise UsageError(f"--vllm-args {given}: {error}; write it as for a shell") from None
    if args and mode != "serve":
        asked = f"--vllm-args {shlex.join(args)}"
        if mode == "compose":
            raise UsageError(f"{asked}: with --compose the project starts the servers; write it into .env as VLLM_ARGS")
        raise UsageError(f"{asked} needs --serve: it is for servers that loadgen launches")
    if (sentence := conflict(args)) is not None:
        raise UsageError(f"--vllm-args: {sentence}")
    return args


def _check_label(label: str, asked: str) -> None:
    if not _LABEL.fullmatch(label):
        raise UsageError(f"{asked}: {label!r} is not a valid name; use letters, digits, '.', '_' and '-'")


def batch_sizes(value: int | str | Iterable[int] | None, arrivals: Sequence[Arrivals] = ()) -> tuple[int, ...]:
    """The batch sizes; of an open loop the one number of requests that may be in flight."""
    if value is None:
        return (OPEN_CAP,) if arrivals else GRID
    levels: list[int] = []
    for given in value if isinstance(value, Iterable) and not isinstance(value, str) else [value]:
        for text in numerals(str(given), "--concurrency"):
            if not text.isdecimal() or len(text) > 9 or int(text) < 1:
                raise UsageError(
                    f"--concurrency: {text[:40]!r} is not a valid batch size; write whole numbers from 1, as in "
                    "1,16,64 or 1..128x2"
                )
            if int(text) in levels:
                raise UsageError(f"--concurrency: {text} is listed twice; list each batch size once")
            levels.append(int(text))
    if not levels:
        raise UsageError("--concurrency is empty; write batch sizes, as in 1,16,64")
    if arrivals and len(levels) > 1:
        raise UsageError(
            f"--concurrency {','.join(map(str, levels))}: with --arrival {listed(arrivals)} it is the most requests "
            "in flight; give one number, or omit it"
        )
    return tuple(levels)
