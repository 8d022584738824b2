"""`loadgen sweep`."""

from __future__ import annotations

import contextlib
import json
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import click
import yaml
from click.core import ParameterSource

from loadgen.cli import CONTEXT
from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.load.openloop import CLOSED
from loadgen.reports.words import stdout_console
from loadgen.secret import show_only_visible

_ARGUMENTS = {"target": "targets"}
"""Option -> argument of `configure`, where they are not of one name."""


def _read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        content = yaml.safe_load(read_file(path).decode()) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UsageError(f"--config {path}: cannot be read as YAML ({reason})") from None
    if not isinstance(content, dict):
        raise UsageError(f"--config {path}: write a mapping of option names to values")
    known = {option.name for option in ctx.command.params}
    options: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known or name == "config":
            raise UsageError(f"--config {path}: {key!r} is no option of loadgen sweep; see loadgen sweep --help")
        if name in ("target", "metrics_url"):
            pairs = [f"{n}={url}" for n, url in value.items()] if isinstance(value, dict) else value
            value = [str(pair) for pair in pairs] if isinstance(pairs, list) else [str(pairs)]
        elif isinstance(value, dict) and name == "extra_body":
            value = json.dumps(value)
        elif isinstance(value, list):
            value = ",".join(map(str, value))
        elif value is not None:
            value = str(value)
        options[name] = value
    ctx.default_map = options


def _confirm(sentences: tuple[str, ...]) -> bool:
    click.echo("This run was not begun by you on this machine. Its manifest asks loadgen to", err=True)
    for sentence in sentences:
        click.echo(f"  - {sentence}", err=True)
    return click.confirm("Go on?", default=False, err=True)


@click.command("sweep", context_settings=CONTEXT)
@click.option(
    "--target",
    "target",
    multiple=True,
    metavar="NAME=URL",
    help="A running server; NAME is a precision or LABEL:PRECISION. Repeatable.",
)
@click.option(
    "--metrics-url",
    multiple=True,
    metavar="URL",
    help="A target's /metrics elsewhere; NAME=URL if there are several targets. Repeatable: pages add up.",
)
@click.option("--serve", metavar="NAMES", help="Recipes to launch in turn, e.g. fp16,awq; NAME=CHECKPOINT overrides.")
@click.option("--model", metavar="ID", help="The 16-bit model for --serve (id or folder); for --target, which to ask.")
@click.option("--device", default="cuda", show_default=True, metavar="DEVICE", help="For --serve: cuda or cpu.")
@click.option("--vllm", metavar="PATH", help="For --serve: the vllm command.")
@click.option("--max-num-seqs", type=int, metavar="N", help="For --serve: largest batch [default: largest B + 8].")
@click.option(
    "--concurrency",
    metavar="LIST",
    help="Batch sizes B to hold; open loop: most in flight [default: 1,16,64,128; open loop 1024].",
)
@click.option(
    "--dataset",
    metavar="NAME",
    help="gsm8k, mathqa (or gsm8k:platinum, mathqa:clean), jsonl, choices, sample "
    "[default: gsm8k; sample if simulated].",
)
@click.option("--data-file", metavar="PATH", help="The dataset's file as published [default: cached, else downloaded].")
@click.option("--platinum-file", metavar="PATH", help="For gsm8k: GSM8K-Platinum's file; marks the items it mends.")
@click.option("--protocol", metavar="NAME", help="Prompt, shots, stops, limit [default: the dataset's].")
@click.option(
    "--shots-file",
    metavar="PATH",
    help="Worked examples: GSM8K train, MathQA dev or an lm-eval task file [default: cached].",
)
@click.option(
    "--answer-regex",
    metavar="REGEX",
    help="Grade what your pattern's last match says: its group, else all of it [default: loadgen's rules].",
)
@click.option("--limit", type=int, metavar="N", help="First N items only [default: all].")
@click.option("--duration", type=float, metavar="S", help="Length of a window [default: 60; simulated 1, or 10].")
@click.option("--requests", type=int, metavar="N", help="Instead of a duration: ask N items once each.")
@click.option("--repeats", type=int, default=3, show_default=True, metavar="R", help="Independent repeats per cell.")
@click.option(
    "--start-sd", metavar="SD", help="With one repeat: the noise between starts of a server, if you know it, e.g. 1.5%."
)
@click.option("--warmup", type=float, metavar="S", help="Warm-up at the same B, other prompts [default: automatic].")
@click.option("--max-tokens", type=int, metavar="N", help="Cap of an answer [default: the protocol's].")
@click.option("--fixed-length", type=int, metavar="N", help="Exactly N tokens an answer (ignore_eos); not graded.")
@click.option("--slo", metavar="LIMITS", help="What a good request keeps, for goodput: ttft:200ms,tpot:50ms,e2e:2s.")
@click.option(
    "--arrival",
    default="closed",
    show_default=True,
    metavar="KIND",
    help="closed (hold B), or an open loop: poisson:RATE or constant:RATE, requests per second.",
)
@click.option("--api", metavar="KIND", help="completions or chat [default: the protocol's].")
@click.option(
    "--extra-body",
    metavar="JSON",
    help="Further fields of every request, e.g. '{\"top_k\": 1}'; null removes one that loadgen sends.",
)
@click.option("--thinking", metavar="on|off", help="Hybrid models: reason before the answer or not (chat only).")
@click.option("--thinking-budget", type=int, metavar="N", help="Tokens after which the server ends the reasoning.")
@click.option(
    "--prefix-cache",
    is_flag=True,
    help="Measure with the server's prefix cache [default: no request profits from an earlier one].",
)
@click.option("--reasoning-parser", metavar="NAME", help="For --serve: vLLM's, e.g. qwen3; keeps reasoning apart.")
@click.option(
    "--power", default="auto", show_default=True, metavar="SOURCE", help="nvml, exporter=URL, rapl, simulated or none."
)
@click.option("--gpu", metavar="UUIDS", help="The target's GPUs [default: CUDA_VISIBLE_DEVICES, or the only one].")
@click.option("--exclusive", is_flag=True, help="Refuse to start while another process uses the target's GPUs.")
@click.option("--tdp-w", type=float, metavar="W", help="Datasheet board power for the HLI bound [default: NVML's].")
@click.option("--carbon", type=float, metavar="G", help="Grid intensity, kgCO2e/kWh.")
@click.option(
    "--metrics-port",
    type=int,
    default=9402,
    show_default=True,
    metavar="N",
    help="Where Prometheus can scrape the running sweep.",
)
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="On which address; a Prometheus in a container cannot reach loopback.",
)
@click.option("--transport", default="raw", show_default=True, metavar="KIND", help="raw or openai (the SDK).")
@click.option("--workers", type=int, metavar="N", help="Client processes that share the B slots [default: automatic].")
@click.option("--reference", metavar="NAME", help="What the others are compared with [default: fp16, else the first].")
@click.option("--out", metavar="DIR", help="Run directory [default: runs/<time>-<model>].")
@click.option("--resume", metavar="DIR", help="Go on with an interrupted run: finished cells are kept.")
@click.option(
    "--trust-manifest",
    is_flag=True,
    help="With --resume: do what the run's manifest asks for without a question; for your own runs.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--timeout", type=float, default=600.0, show_default=True, metavar="S", help="Per request.")
@click.option(
    "--start-timeout",
    type=float,
    default=900.0,
    show_default=True,
    metavar="S",
    help="For --serve: how long a start may take while neither its log nor its downloads grow.",
)
@click.option("--wait-ready", type=float, metavar="S", help="For --target: wait up to S for servers that still load.")
@click.option(
    "--drain",
    type=float,
    metavar="S",
    help="After a window, wait up to S for its last answers [default: 30, or 3 median answers].",
)
@click.option(
    "--max-error-rate",
    type=float,
    default=0.005,
    show_default=True,
    metavar="X",
    help="Share of failed requests beyond which a cell is invalid.",
)
@click.option("--api-key-env", metavar="VAR", help="Environment variable that holds the servers' API key.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    metavar="FILE",
    help="The same options as YAML; the command line wins.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, show the plan, start nothing.")
@click.option("--quiet", is_flag=True, help="No progress; the final table only.")
def command(dry_run: bool, quiet: bool, resume: str | None, trust_manifest: bool, **options: Any) -> None:  # fmt: skip
    """Measure every target at every concurrency, write a run directory, print the table.

    Without --target and --serve the servers are simulated and everything is stamped SIMULATED. Exit status: 0 done,
    1 load, latency, energy or answers of a cell are invalid, 2 wrong use, 130 interrupted (what was measured is kept).
    Ctrl-C once lets the requests in flight finish, twice stops at once. With --resume the settings are the run's own;
    one named again must be the same.

    \b
    Examples:
      loadgen sweep
      loadgen sweep --target fp16=http://127.0.0.1:8001 --target awq=http://127.0.0.1:8002 --concurrency 1,16,64
      loadgen sweep --serve fp16,awq,bnb-nf4 --model mistralai/Mistral-7B-Instruct-v0.3
      loadgen sweep --target fp16=http://127.0.0.1:8001 --wait-ready 300 --extra-body '{"seed": null, "top_k": 1}'
      loadgen sweep --resume runs/2026-11-22-091500-Mistral-7B-Instruct-v0.3
    """
    from loadgen.measure.config import configure
    from loadgen.measure.run import Interrupted, left_of, plan_sweep, resume_sweep, run_sweep
    from loadgen.measure.servers import Patience, source_of
    from loadgen.measure.settings import require_consent, resumed_config
    from loadgen.record.manifest import read_manifest
    from loadgen.record.rundir import resume_command, unfinished_cells
    from loadgen.reports.live import PlainView

    ctx = click.get_current_context()
    given = {name for name in options if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    options = {
        _ARGUMENTS.get(name, name): value
        for name, value in options.items()
        if value is not None and (resume is None or name in given)
    }
    console = stdout_console(width=200)
    if trust_manifest and resume is None:
        raise UsageError("--trust-manifest needs --resume DIR: only a resumed run has a manifest")
    confirm = lru_cache(_confirm) if sys.stdin.isatty() and sys.stderr.isatty() else None
    if resume is None:
        config = configure(**options)
        measure = partial(run_sweep, config)
    else:
        config = resumed_config(Path(resume), read_manifest(Path(resume)), options)
        measure = partial(resume_sweep, Path(resume), options, trusted=trust_manifest, confirm=confirm)
    if resume is not None and unfinished_cells(Path(resume)):  # asked before the live view takes the terminal
        require_consent(Path(resume), read_manifest(Path(resume)), options, trusted=trust_manifest, confirm=confirm)
    if dry_run:
        source_of(config).check(Patience(config.wait_ready_s, PlainView(console)))
        plan = plan_sweep(config) if resume is None else left_of(Path(resume), config)
        for block in plan.blocks:
            levels = ", ".join(str(cell.concurrency) for cell in block.cells)
            held = f"B = {levels}" if plan.config.arrival == CLOSED else plan.config.load
            console.print(f"repeat {block.repeat}  {block.target.name:12} {held}")
        console.print(f"{len(plan.cells)} cells, about {plan.expected_s / 60:.1f} min; nothing was started")
        return

    from loadgen.analysis.analyse import analyse, planned_cells
    from loadgen.analysis.cellresult import judge_cell
    from loadgen.analysis.run import load_run
    from loadgen.measure.observer import Observer
    from loadgen.record.journal import cell_files
    from loadgen.reports.html import write_report
    from loadgen.reports.live import LiveView, QuietView
    from loadgen.reports.terminal import print_end

    stop: Interrupted | None = None
    with contextlib.ExitStack() as stack:
        view: Observer = QuietView() if quiet else PlainView(console)
        if console.is_terminal and not quiet:
            view = stack.enter_context(LiveView(console))
            show_only_visible()  # rich has taken stdout and stderr
        try:
            run_dir = measure(view, judge_cell)
        except Interrupted as interrupted:
            stop, run_dir = interrupted, interrupted.run_dir
    how = f"to go on: {resume_command(run_dir)}"
    if not cell_files(run_dir):
        why = "Interrupted before anything was measured" if stop else "No server came up, nothing was measured"
        click.echo(f"{why}; {run_dir} holds the plan and the servers' logs; {how}", err=True)
        sys.exit(130 if stop else 1)
    try:
        if stop is None or not stop.hurried:
            analyse(run_dir)
            run = load_run(run_dir)
            write_report(run)
            print_end(run, console)
    except KeyboardInterrupt:
        stop = stop or Interrupted(run_dir, hurried=True)
    if stop is not None:
        click.echo(f"Interrupted: what was measured is kept in {run_dir}; {how}", err=True)
        sys.exit(130)
    if missing := len(unfinished_cells(run_dir)):
        click.echo(f"{missing} of {planned_cells(run.manifest)} cells are unfinished; {how}", err=True)
    sys.exit(0 if run.complete else 1)
