"""Options: each declared once, for the command line, `--config`, Python, the manifest and docs/cli.md."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypedDict, TypeVar, cast, get_args, get_origin, get_type_hints

from loadgen.errors import UsageError
from loadgen.notation import EXPECTED, SWITCH, did_you_mean, number, shown, spelled, whole_number
from loadgen.synonyms import elsewhere

Form = Literal["linear", "log_j", "log_kgco2e"]
"""The form of S_SI: E_ref / E, or Eq. 5's logarithms of joules or of kgCO2e per query."""
ALPHA = 0.5
WEIGHTS = (0.34, 0.33, 0.33)
MAX_ERROR_RATE = 0.005
METRICS_PORT = 9402

SERVERS, LOAD, QUESTIONS, ANALYSIS = "Servers", "Load", "Questions and answers", "Analysis"
POWER, RUN = "Power", "Run"

_Options = TypeVar("_Options")
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What is true of an option wherever it is given; the name and the type are those of the key that declares it."""

    metavar: str
    """Empty for a flag."""
    help: str
    group: str = ""
    """The heading of `--help` under which it is listed."""
    default: Any = None
    otherwise: str = ""
    """What holds without it, where the default does not say so."""
    unit: str = ""
    """A number's, which may stand behind it; "s" and "ms" take each other and minutes and hours, "share" takes %."""
    joint: str = ""
    """What joins the values of an option that is given several times; empty: that is refused."""
    zero: bool = False
    """A number may be 0 (or whatever its own check says); else it must be above."""
    between: tuple[float, float] | None = None
    """A number may be neither below the first nor above the second."""
    flag: str = ""
    """On the command line and in `--config`, where it is not the name."""
    repeatable: bool = False
    field: str = ""
    """The field of SweepConfig, where it is not the name."""
    alone: str = ""
    """Its value where the command line gives none."""
    rival: str = ""
    """The option that cannot be combined with it."""
    free: bool = False
    """May differ from session to session of a run: no figure depends on it."""
    since: str = "0.1.0"
    name: str = ""
    annotation: Any = None

    @property
    def kind(self) -> type:
        """What the command line makes of its text: bool, int, float or str."""
        kinds = get_args(self.annotation) if isinstance(self.annotation, UnionType) else (self.annotation,)
        return next((kind for kind in (bool, int, float) if kind in kinds and (self.unit or str not in kinds)), str)

    @property
    def named(self) -> str:
        """As the command line has it."""
        return f"--{self.flag.replace('_', '-')}"

    def read(self, value: Any) -> Any:
        """The value that a text means, in the option's unit; anything else, and what was read before, unchanged.

        Raises UsageError for a text that is not such a value.
        """
        if value is None:
            return None
        switch = SWITCH.get(str(value).strip().lower())
        if self.words == ("on", "off") and switch is not None:  # YAML makes them true and false
            return self.words[not switch]
        if self.words and isinstance(value, str):
            return spelled(value, self.words)
        if self.kind is bool and switch is None:
            raise UsageError(f"{self.named} {shown(value)}: write true or false")
        if self.kind is bool:
            return switch
        if self.kind in (int, float) and type(value) not in (self.kind, int):
            return self._number(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))
        return value

    def _number(self, text: str) -> float:
        try:
            return whole_number(text) if self.kind is int else number(text, self.unit)
        except ValueError:
            raise UsageError(f"{self.named} {shown(text)}: {EXPECTED.get(self.unit, EXPECTED[self.kind])}") from None

    @property
    def is_path(self) -> bool:
        return Path in get_args(self.annotation)

    @property
    def stored(self) -> Any:
        """The type of its value in JSON."""
        return str | None if self.is_path else self.annotation

    @property
    def typed(self) -> str:
        """The types of its value in Python, and its unit, for a docstring."""
        types = re.sub(r"\b(?:collections\.abc|typing|pathlib)\.", "", inspect.formatannotation(self.annotation))
        return f"{types}; {self.unit}" if self.unit else types

    @property
    def words(self) -> tuple[str, ...]:
        """The only values that it may have; empty: any."""
        parts = (self.annotation, *get_args(self.annotation))
        return next((get_args(part) for part in parts if get_origin(part) is Literal), ())

    @property
    def shown_default(self) -> str:
        """Empty where there is none, and for a flag."""
        if self.otherwise or self.default is None or self.default is False:
            return self.otherwise
        parts = self.default if isinstance(self.default, tuple) else (self.default,)
        return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)

    @property
    def described(self) -> str:
        """The help and the default."""
        return f"{self.help}  [default: {self.shown_default}]" if self.shown_default else self.help


class Measures(Option):
    """An option of a sweep that says only what is measured, how and for how long."""


class Acts(Option):
    """An option of a sweep that makes loadgen send, open, read or start something.

    `loadgen.measure.settings.acts_of` says what, and `--resume` does it for a received run with the user's consent.
    """


# fmt: off
Host = Annotated[str, Option("ADDRESS", "Address to listen on.", default="127.0.0.1")]
Served = Annotated[str | None, Option("ID", "The 16-bit model: a Hugging Face id or a folder.")]
Vllm = Annotated[str | Path | None, Acts(
    "PATH", "The vllm command.", SERVERS, otherwise="LOADGEN_VLLM, cpu-env's, or PATH's")]
WaitReady = Annotated[float | str, Measures(
    "S", "For --target: wait up to S for servers that are still loading.", SERVERS, 0.0, unit="s", zero=True,
    field="wait_ready_s", free=True)]
StartTimeout = Annotated[float | str, Measures(
    "S", "How long a server may take to start while neither its log nor its downloads grow.", SERVERS, 900.0, unit="s",
    field="start_timeout_s", free=True)]
MaxModelLen = Annotated[int | None, Measures(
    "N", "For launched servers: most tokens of prompt and answer together.", SERVERS, unit="tokens",
    otherwise="4096; with --thinking on, enough for it")]
Transport = Annotated[Literal["raw", "openai"], Measures("KIND", "raw or openai (the SDK).", LOAD, "raw")]
ExtraBody = Annotated[str | Mapping[str, Any] | None, Acts(
        "JSON", "Further fields of every request, e.g. '{\"top_k\": 1}'; null removes one that loadgen sends.",
        QUESTIONS)]
Carbon = Annotated[float | None, Measures(
        "G", "Grid intensity, kgCO2e/kWh.", POWER, unit="kgCO2e/kWh", field="carbon_kg_per_kwh")]
SloLimits = Annotated[str | None, Measures(
        "LIMITS", "Objectives of a good request, for goodput: ttft:200ms,tpot:50ms,e2e:2s.", ANALYSIS,
        joint=",")]
StartSd = Annotated[str | float | None, Measures(
        "SD", "With one repeat: the noise between starts of a server, if you know it, e.g. 1.5%.", ANALYSIS,
        unit="share", zero=True)]


class SweepOptions(TypedDict, total=False):
    """What `loadgen.measure.config.configure` takes."""

    targets: Annotated[Mapping[str, str] | Sequence[str], Acts(
        "NAME=URL", "A running server; NAME is a precision or LABEL:PRECISION. Repeatable.", SERVERS, (),
        flag="target", repeatable=True, rival="serve")]
    metrics_url: Annotated[str | Sequence[str], Acts(
        "URL", "A target's /metrics elsewhere; NAME=URL if there are several targets. Repeatable: pages add up.",
        SERVERS, (), repeatable=True, field="targets")]
    serve: Annotated[str | Sequence[str] | Mapping[str, str | None], Acts(
        "NAMES", "Recipes to launch in turn, e.g. fp16,awq=ORG/MODEL-AWQ: =ID or =DIR gives the checkpoint.",
        SERVERS, (), field="targets", rival="targets", joint=",")]
    compose: Annotated[str | Path | None, Acts(
        "[DIR]", "Start the services of the Docker Compose project in DIR one after another; --serve chooses some.",
        SERVERS, otherwise="without DIR: this folder", alone=".")]
    model: Annotated[str | None, Acts(
        "ID", "The 16-bit model for --serve (id or folder, or simulated/NAME); for --target, the model to request.",
        SERVERS)]
    device: Annotated[Literal["cuda", "cpu"], Measures("DEVICE", "For --serve: cuda or cpu.", SERVERS, "cuda")]
    vllm: Vllm
    max_num_seqs: Annotated[int | None, Measures(
        "N", "For --serve: largest batch.", SERVERS, otherwise="largest B + 8")]
    tensor_parallel: Annotated[int | str | Mapping[str, int] | None, Measures(
        "N", "For --serve: GPUs that share the model; NAME=N,... for some targets only.", SERVERS,
        otherwise="the recipe's, 1", field="targets", joint=",")]
    max_model_len: MaxModelLen
    same_kv: Annotated[int | str | None, Measures(
        "[TOKENS]", "For --serve: KV caches of one size, so that kernels are compared: TOKENS, else what the smallest "
        "cache of the targets holds.", SERVERS, otherwise="each server's own", alone="smallest", rival="same_card")]
    same_card: Annotated[bool, Measures(
        "", "For --serve: each KV cache as large as the card allows, so that purchases are compared; nothing may set "
        "it otherwise.", SERVERS, False, rival="same_kv")]
    vllm_args: Annotated[str | Sequence[str], Acts(
        "ARGS", "For --serve: further arguments of every vLLM, as one text; or behind `--` at the end.", SERVERS, (),
        joint=" ")]
    quantize_missing: Annotated[bool, Measures(
        "", "For --serve: make checkpoints that do not exist, as `loadgen quantize` does.", SERVERS, False, free=True)]
    reasoning_parser: Annotated[str | None, Acts(
        "NAME", "For --serve: vLLM's, e.g. qwen3; keeps reasoning apart.", SERVERS)]
    start_timeout: StartTimeout
    wait_ready: WaitReady
    api_key_env: Annotated[str | None, Acts(
        "VAR", "Environment variable that holds the servers' API key.", SERVERS, free=True)]

    concurrency: Annotated[int | str | Sequence[int] | None, Measures(
        "LIST", "Batch sizes B to hold, also 1..128x2; open loop: most in flight.", LOAD,
        otherwise="1,16,64,128; open loop 1024", joint=",")]
    arrival: Annotated[str | None, Measures(
        "KIND", "closed (hold B), or an open loop: poisson:RATES or constant:RATES, requests per second, as in "
        "poisson:5,10,20 or fp16=poisson:5,awq=poisson:8; trace replays a trace's times.", LOAD,
        otherwise="closed; trace for trace:FILE")]
    rate_scale: Annotated[float | str | Sequence[float] | None, Measures(
        "LIST", "For a trace: multiples of its own rate, e.g. 0.5,1,2.", LOAD, otherwise="1", field="arrival",
        joint=",")]
    duration: Annotated[float | str | None, Measures(
        "S", "Length of a window.", LOAD, otherwise="60; simulated 1, or 10", unit="s", field="duration_s",
        rival="requests")]
    requests: Annotated[int | None, Measures(
        "N", "Instead of a duration: ask N items once each.", LOAD, rival="duration")]
    repeats: Annotated[int, Measures("R", "Independent repeats per cell.", LOAD, 3)]
    find: Annotated[str | Sequence[str], Measures(
        "METRICS", "Instead of --concurrency: search for B* of each target against --reference by energy_per_query_j, "
        "tokens_per_s or another metric of crossovers; several with commas.", LOAD, ())]
    within: Annotated[float | str | None, Measures(
        "SHARE", "For --find: how far the interval's ends may be from B*.", LOAD, otherwise="10%", unit="share")]
    range: Annotated[str | Sequence[int] | None, Measures(
        "LOW:HIGH", "For --find: batch sizes between which B* is searched for.", LOAD,
        otherwise="1:256; with --compose up to its largest batch", field="concurrency")]
    most_minutes: Annotated[float | str | None, Measures(
        "M", "For --find: stop after M minutes with the interval that was reached.", LOAD, unit="min",
        field="most_s")]
    warmup: Annotated[float | str | None, Measures(
        "S", "Warm-up at the same B, other prompts.", LOAD, otherwise="automatic", unit="s", zero=True,
        field="warmup_s")]
    drain: Annotated[float | str | None, Measures(
        "S", "After a window, wait up to S for its last answers.", LOAD, otherwise="30, or 3 median answers", unit="s",
        field="drain_s")]
    timeout: Annotated[float | str, Measures("S", "Time limit of a request.", LOAD, 600.0, unit="s", field="timeout_s")]
    prefix_cache: Annotated[bool, Measures(
        "", "Measure with the server's prefix cache.", LOAD, False,
        otherwise="no request profits from an earlier one")]
    transport: Transport
    workers: Annotated[int | str | None, Acts(
        "N|ray:N", "Client processes that share the B slots; ray:N on the nodes of a Ray cluster.", LOAD,
        otherwise="automatic")]
    seed: Annotated[int, Measures("N", "Seed of arrival times; also sent with each request.", LOAD, 0, zero=True)]

    dataset: Annotated[str | None, Measures(
        "NAME", "gsm8k, mathqa (or gsm8k:platinum, mathqa:clean), jsonl, choices, sample. Without grades: "
        "synthetic:IN/OUT[,IN/OUT...] in tokens, prompts:FILE, sharegpt:FILE, trace:FILE.", QUESTIONS,
        otherwise="gsm8k; sample if simulated")]
    data_file: Annotated[str | Path | None, Acts(
        "PATH", "The dataset's file as published.", QUESTIONS, otherwise="cached, else downloaded")]
    platinum_file: Annotated[str | Path | None, Acts(
        "PATH", "For gsm8k: GSM8K-Platinum's file; marks the items that it corrects.", QUESTIONS)]
    limit: Annotated[int | None, Measures("N", "First N items only.", QUESTIONS, otherwise="all")]
    protocol: Annotated[str | None, Measures(
        "NAME", "Prompt, shots, stops, limit.", QUESTIONS, otherwise="the dataset's")]
    shots_file: Annotated[str | Path | None, Acts(
        "PATH", "Worked examples: GSM8K train, MathQA dev or an lm-eval task file.", QUESTIONS,
        otherwise="cached")]
    api: Annotated[Literal["completions", "chat"] | None, Measures(
        "KIND", "completions or chat.", QUESTIONS, otherwise="the protocol's")]
    max_tokens: Annotated[int | None, Measures(
        "N", "Cap of an answer.", QUESTIONS, otherwise="the protocol's", unit="tokens", rival="fixed_length")]
    fixed_length: Annotated[int | None, Measures(
        "N", "Exactly N tokens an answer (ignore_eos); not graded.", QUESTIONS, unit="tokens",
        rival="max_tokens")]
    thinking: Annotated[Literal["on", "off"] | None, Measures(
        "on|off", "Hybrid models: reason before the answer or not (chat only).", QUESTIONS)]
    thinking_budget: Annotated[int | None, Measures(
        "N", "Tokens after which the server ends the reasoning.", QUESTIONS, unit="tokens",
        field="thinking")]
    extra_body: ExtraBody
    answer_regex: Annotated[str | None, Measures(
        "REGEX", "Grade the last match of your pattern: its group, else all of it.", QUESTIONS,
        otherwise="loadgen's rules")]

    reference: Annotated[str | None, Measures(
        "NAME", "What the others are compared with.", ANALYSIS, otherwise="fp16, else the first")]
    slo: SloLimits
    start_sd: StartSd
    max_error_rate: Annotated[float | str, Measures(
        "X", "Share of failed requests beyond which a cell is invalid.", ANALYSIS, MAX_ERROR_RATE, unit="share",
        zero=True)]

    power: Annotated[str, Acts("SOURCE", "nvml, exporter=URL, rapl, simulated or none.", POWER, "auto")]
    gpu: Annotated[str | Sequence[str] | None, Measures(
        "UUIDS", "The target's GPUs.", POWER, otherwise="CUDA_VISIBLE_DEVICES, or the only one", field="gpus",
        joint=",")]
    exclusive: Annotated[bool, Measures(
        "", "Refuse to start while another process uses the target's GPUs.", POWER, False, free=True)]
    tdp_w: Annotated[float | None, Measures(
        "W", "Datasheet board power for the HLI bound.", POWER, otherwise="NVML's", unit="W")]
    carbon: Carbon

    out: Annotated[str | Path | None, Measures(
        "DIR", "Run directory.", RUN, otherwise="runs/<time>-<model>")]
    metrics_port: Annotated[int | None, Acts(
        "N", "Where Prometheus can scrape the running sweep.", RUN, METRICS_PORT, free=True)]
    metrics_host: Annotated[str, Acts(
        "ADDRESS", "Address of --metrics-port; a Prometheus in a container cannot reach loopback.", RUN, "127.0.0.1",
        free=True)]


class RunOptions(SweepOptions, total=False):
    """What `loadgen.sweep` takes."""

    resume: Annotated[str | Path | None, Option(
        "DIR", "Continue an interrupted run: finished cells are kept.", RUN)]
    quiet: Annotated[bool, Option("", "No progress, only the result.", RUN, False)]
    trust_manifest: Annotated[bool, Option(
        "", "With --resume: do what the run's manifest asks for, without a question; for your own runs.", RUN,
        False)]


class OutputOptions(TypedDict, total=False):
    """What `loadgen sweep`, `report` and `compare` take besides: a Python program has the data itself."""

    format: Annotated[Literal["table", "json", "csv", "markdown"], Option(
        "FORMAT", "The result on stdout: table, json, csv or markdown.", RUN, "table")]


class ReportOptions(TypedDict, total=False):
    """What `loadgen.report` takes."""

    alpha: Annotated[float | str, Option(
        "A", "Speed's share of E_SI; memory has the rest.", default=ALPHA, unit="share", zero=True)]
    weights: Annotated[tuple[float, float, float], Option("T,E,S", "Weights of the pillars in SI.", default=WEIGHTS)]
    s_form: Annotated[Form, Option(
        "FORM", "Form of S_SI: linear (ratio of joules), log_j or log_kgco2e (Eq. 5's logarithms).", default="linear")]
    out: Annotated[str | Path | None, Option(
        "DIR", "Write everything there and nothing into RUN: for runs that you may only read.")]
    carbon: Annotated[Carbon, "the sweep's"]
    slo: Annotated[SloLimits, "the sweep's"]
    shape: Annotated[str | None, Option(
        "IN/OUT", "Of several shapes of requests, the one to show.", otherwise="the first")]
    start_sd: Annotated[StartSd, "the sweep's"]


class AdviseOptions(TypedDict, total=False):
    """What `loadgen.advise` takes."""

    rate: Annotated[float | None, Option("R", "Requests a second of the whole service, Poisson.", unit="/s")]
    traffic: Annotated[str | Path | None, Option(
        "FILE", "Instead, a day: a CSV file of hour,rate, or diurnal:PEAK/TROUGH.")]
    slo: Annotated[SloLimits, "the run's"]
    attainment: Annotated[float, Option(
        "SHARE", "Share of requests that must keep --slo.", default=0.99, between=(0.0, 1.0), unit="share")]
    price: Annotated[float | None, Option(
        "PRICE", "Of a GPU hour; the fewest GPUs are then the best, and among equals the fewest joules.",
        unit="/h")]
    carbon: Annotated[Carbon, "the sweep's"]
    per: Annotated[Literal["query", "correct"], Option(
        "WHAT", "What joules and cost are divided by: query or correct (answers).", default="query")]
    verify: Annotated[bool, Option(
        "", "Then send one replica's requests to each of the run's servers, and compare.", default=False)]
    duration: Annotated[float | str | None, Option(
        "S", "For --verify: length of each window.", otherwise="60; simulated 10", unit="s")]
    out: Annotated[str | Path | None, Option(
        "DIR", "For --verify: its run directory.", otherwise="RUN-verify-R")]
    wait_ready: WaitReady
    extra_body: Annotated[ExtraBody, "the run's; needed if it holds a secret"]
    trust_manifest: Annotated[bool, Option(
        "", "With --verify: do what a received run's manifest asks for, without a question.", default=False)]


class GridOptions(TypedDict, total=False):
    """What `loadgen.grid` takes."""

    ray_address: Annotated[str | None, Option(
        "ADDRESS", "The Ray cluster: auto, HOST:PORT or ray://HOST:10001.",
        otherwise="RAY_ADDRESS; else an instance on this machine")]
    out: Annotated[str | Path | None, Option(
        "DIR|URL", "The grid's folder; or a URL of fsspec (s3://...), to which grids/NAME is copied.",
        otherwise="grids/<time>-<study>")]
    resume: Annotated[str | Path | None, Option("DIR|URL", "Continue a grid: finished tasks are kept.")]
    quiet: Annotated[bool, Option("", "No progress, only what goes wrong and the result.", default=False)]


class QuantizeOptions(TypedDict, total=False):
    """What `loadgen.quantize` takes."""

    model: Served
    to: Annotated[str | Sequence[str], Option(
        "FORMATS", "w4a16-awq, w4a16-gptq, int8, fp8; several with commas.", default=(), joint=",")]
    calibration: Annotated[str | Path | None, Option(
        "FILE", "Texts for the formats that need some: JSON lines, CSV, Parquet or plain text.",
        otherwise="GSM8K's train split")]
    samples: Annotated[int | None, Option(
        "N", "Number of its texts, drawn by --seed.", otherwise="256; on a CPU 32")]
    seed: Annotated[int, Option("N", "Of the draw.", default=0, zero=True)]
    out: Annotated[str | Path | None, Option(
        "DIR", "Write MODEL-FORMAT into this folder.", otherwise="beside the model; for an id in loadgen's cache")]


class SelftestOptions(TypedDict, total=False):
    """What `loadgen.selftest` takes."""

    concurrency: Annotated[int, Option("B", "Requests in flight.", default=128)]
    tokens_per_s: Annotated[float | None, Option(
        "R", "Tokens per second of all streams together.", otherwise="B / ITL", unit="tokens/s")]
    itl_ms: Annotated[float | None, Option("MS", "Time between the tokens of one stream.", otherwise="10", unit="ms")]
    workers: Annotated[int, Option("N", "Client processes.", default=1)]
    transport: Transport
# fmt: on


@lru_cache
def declared(options: type) -> dict[str, Option]:
    """The options of a TypedDict by name, in the order of its keys. A text behind an Option replaces `otherwise`."""
    found = {}
    for name, hint in get_type_hints(options, include_extras=True).items():
        option, *otherwise = hint.__metadata__
        change = {"otherwise": otherwise[-1]} if otherwise else {}
        change |= {"flag": option.flag or name, "field": option.field or name}
        found[name] = replace(option, name=name, annotation=hint.__origin__, **change)
    return found


def dashed(name: str) -> str:
    """The option of a sweep as the command line has it, without its dashes."""
    return declared(RunOptions)[name].flag.replace("_", "-")


def complete(options: type[_Options], given: Mapping[str, Any]) -> _Options:
    """The options as `read` reads them, with the defaults of those that are not given.

    Raises UsageError for a name that is not declared, and for a value that its declaration excludes.
    """
    known = declared(cast(type, options))
    read: dict[str, Any] = {name: option.default for name, option in known.items()}
    for name, value in given.items():
        if name not in known:
            ours, written = elsewhere(name, known, str(value))
            hint = f"write {ours}={written!r}" if ours else did_you_mean(name, known).strip()
            hint = hint or f"known: {', '.join(known)}"
            raise UsageError(f"{name!r} is not an option; {hint}")
        read[name] = known[name].read(value)
        if value is not None:
            _check(known[name], read[name])
    return cast(_Options, read)


def _check(option: Option, value: Any) -> None:
    from loadgen.bounds import MOST_AMOUNT, shown_number

    where = option.named
    if option.words and value not in option.words:
        raise UsageError(
            f"{where} {shown(value)}: unknown; {did_you_mean(str(value), option.words)}"
            f"write {' or '.join(option.words)}"
        )
    if option.kind not in (int, float):
        return
    if option.between is not None:
        least, most = option.between
        if not least <= value <= most:
            raise UsageError(f"{where} {shown_number(value)} is not between {least:g} and {most:g}")
    elif not option.zero and not 0 < value <= MOST_AMOUNT:
        raise UsageError(f"{where} {shown_number(value)}: give a finite number above zero")
    elif option.unit == "s" and not 0 <= value <= MOST_AMOUNT:
        raise UsageError(f"{where} {shown_number(value)}: give zero or more seconds")


def takes(options: type) -> Callable[[_Function], _Function]:
    """Shows the options, instead of `**options`, in a function's signature, and describes them in its docstring."""

    def show(function: _Function) -> _Function:
        plain = inspect.signature(function)
        fixed = [one for one in plain.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        known = declared(options).values()
        only = inspect.Parameter.KEYWORD_ONLY
        named = [inspect.Parameter(o.name, only, default=o.default, annotation=o.annotation) for o in known]
        function.__signature__ = plain.replace(parameters=[*fixed, *named])  # type: ignore[attr-defined]
        lines = [f"    {option.name} ({option.typed}): {option.described}" for option in known]
        function.__doc__ = "\n".join([f"{inspect.getdoc(function)}", "", "Options:", *lines])
        return function

    return show
