"""`loadgen sweep`."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import click
import yaml

from loadgen.cli import CONTEXT, Command, completed, discard_stdout, given_options, parameters
from loadgen.errors import Interrupted, UsageError
from loadgen.folder import read_file
from loadgen.notation import did_you_mean, spelled
from loadgen.options import RUN, OutputOptions, RunOptions, SweepOptions, declared
from loadgen.secret import show_only_visible, visible_line
from loadgen.synonyms import elsewhere


class _Loader(yaml.SafeLoader):
    """YAML in which no key of a mapping is dropped for a later one of the same name, and 1:30 is a text, not 90."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{key} is given more than once; give it once")
        return super().construct_mapping(node, deep)


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return node.value if ":" in node.value else loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def _read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        content = yaml.load(read_file(path).decode(), _Loader) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UsageError(f"--config {path}: cannot be read as YAML ({reason})") from None
    if not isinstance(content, dict):
        raise UsageError(f"--config {path}: write a mapping of option names to values")
    known = {option.opts[0].removeprefix("--"): option for option in ctx.command.params}
    del known["config"]
    options: dict[str, Any] = {}
    for key, value in content.items():
        flag = spelled(str(key), known)
        if flag not in known:
            ours, text = elsewhere(flag, declared(RunOptions), None if value is None else str(value))
            meant = f"write {declared(RunOptions)[ours].flag.replace('_', '-')}: {text}; " if ours else ""
            hint = f"{meant or did_you_mean(flag, known)}see loadgen sweep --help"
            raise UsageError(f"--config {path}: {key!r} is not an option of loadgen sweep; {hint}")
        name = str(known[flag].name)
        if name in options:
            raise UsageError(f"--config {path}: {flag} is given more than once; give it once")
        if name in ("targets", "metrics_url"):
            pairs = [f"{n}={url or ''}" for n, url in value.items()] if isinstance(value, dict) else value
            value = [str(pair) for pair in pairs] if isinstance(pairs, list) else [str(pairs)]
        elif isinstance(value, dict) and name == "extra_body":
            value = json.dumps(value)
        elif isinstance(value, dict) and name in ("serve", "tensor_parallel"):
            value = ",".join(str(n) if part is None else f"{n}={part}" for n, part in value.items())
        elif isinstance(value, list) and name == "vllm_args":
            value = shlex.join(map(str, value))
        elif name == "compose" and value is True:
            value = "."
        elif isinstance(value, list):
            value = ",".join(map(str, value))
        elif value is not None:
            value = str(value)
        joined = (
            name not in ("targets", "metrics_url") and getattr(known[flag], "multiple", False) and value is not None
        )
        options[name] = [value] if joined else value
    ctx.default_map = options


def _confirm(sentences: tuple[str, ...]) -> bool:
    click.echo("This run was not begun by you on this machine. Its manifest asks loadgen to", err=True)
    for sentence in sentences:
        click.echo(f"  - {sentence}", err=True)
    return click.confirm("Continue?", default=False, err=True)


class Sweep(Command):
    """Its options are shown in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        known = declared(RunOptions)
        groups: dict[str, list[tuple[str, str]]] = {option.group: [] for option in known.values()}
        for parameter in self.get_params(ctx):
            name = str(parameter.name)
            if (record := parameter.get_help_record(ctx)) is not None:
                groups[known[name].group if name in known else RUN].append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


@click.command("sweep", cls=Sweep, context_settings=CONTEXT, params=parameters(RunOptions) + parameters(OutputOptions))
@click.option("--config", type=click.Path(path_type=Path), is_eager=True, expose_value=False, callback=_read_config,
              metavar="FILE", help="The same options as YAML; the command line wins.")  # fmt: skip
@click.option(
    "--dry-run", is_flag=True, help="Check all that the sweep would refuse, show plan and cost, start nothing."
)
@click.argument("extra_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM_ARGS]")
def command(
    dry_run: bool, quiet: bool, resume: str | None, trust_manifest: bool, extra_args: tuple[str, ...], **_: Any
) -> None:
    """Measure every target at every concurrency, write a run directory, print the table.

    Without --target and --serve the servers are simulated and everything is stamped SIMULATED. Exit status: 0 done,
    1 load, latency, energy or answers of a cell are invalid, 2 wrong use, 130 interrupted (what was measured is kept).
    Ctrl-C once lets the requests in flight finish, twice stops at once. With --resume the settings are the run's own;
    one given again must be the same. What follows `--` goes to every vLLM that is launched.

    \b
    Examples:
      loadgen sweep
      loadgen sweep --target fp16=http://127.0.0.1:8001 --target awq=http://127.0.0.1:8002 --concurrency 1,16,64
      loadgen sweep --serve fp16,awq,bnb-nf4 --model mistralai/Mistral-7B-Instruct-v0.3
      loadgen sweep --serve fp16,awq=ORG/MODEL-AWQ --model ORG/MODEL --tensor-parallel 2 -- --enforce-eager
      loadgen sweep --target fp16=http://127.0.0.1:8001 --wait-ready 300 --extra-body '{"seed": null, "top_k": 1}'
      loadgen sweep --resume runs/2026-11-22-091500-Mistral-7B-Instruct-v0.3
    """
    from loadgen.load.openloop import CLOSED
    from loadgen.measure.config import configure
    from loadgen.measure.run import rehearse_rest, rehearse_sweep, resume_sweep, run_sweep
    from loadgen.measure.search import price_sentence
    from loadgen.measure.settings import require_consent, resumed_config
    from loadgen.record.journal import resume_command, unfinished_cells
    from loadgen.record.manifest import read_manifest
    from loadgen.reports.live import PlainView
    from loadgen.reports.terminal import console_of

    options, form = given_options(SweepOptions), completed(OutputOptions)["format"]
    if extra_args:
        if "vllm_args" in options:
            raise UsageError("--vllm-args and arguments behind `--` exclude each other; give all of them in one place")
        options["vllm_args"] = list(extra_args)
    result, messages = console_of(sys.stdout, width=200), console_of(sys.stderr, width=200)
    if trust_manifest and resume is None:
        raise UsageError("--trust-manifest needs --resume DIR: only a resumed run has a manifest")
    confirm = lru_cache(_confirm) if sys.stdin.isatty() and sys.stderr.isatty() else None
    if resume is None:
        config = configure(**options)
        measure = partial(run_sweep, config, given=options)
    else:
        config = resumed_config(Path(resume), read_manifest(Path(resume)), options)
        measure = partial(resume_sweep, Path(resume), options, trusted=trust_manifest, confirm=confirm)
    if resume is not None and unfinished_cells(Path(resume)):  # asked before the live view takes the terminal
        require_consent(Path(resume), read_manifest(Path(resume)), options, trusted=trust_manifest, confirm=confirm)
    if dry_run:
        view = PlainView(messages)
        rehearsal = rehearse_sweep(config, view) if resume is None else rehearse_rest(Path(resume), options, view)
        plan = rehearsal.plan
        for heading, text in rehearsal.places.items():
            result.print(visible_line(f"{heading:9}  {text}"), soft_wrap=True)
        for block in plan.blocks:
            levels = ", ".join(dict.fromkeys(str(cell.concurrency) for cell in block.cells))
            shapes = ", ".join(dict.fromkeys(cell.shape for cell in block.cells if cell.shape))
            held = f"B = {levels}" if plan.config.arrival == CLOSED else plan.config.load
            held += f", each with {shapes}" if shapes else ""
            result.print(f"repeat {block.repeat}  {block.target.name:12} {held}")
        if plan.config.find:
            result.print(f"{len(plan.cells)} cells to begin with; the search decides on the others by what they show")
            result.print(f"{price_sentence(plan)}; nothing was started")
            return
        result.print(f"{len(plan.cells)} cells, about {plan.expected_s / 60:.1f} min; nothing was started")
        return

    from loadgen.analysis.analyse import analyse
    from loadgen.analysis.cellresult import judge_cell
    from loadgen.analysis.run import load_run
    from loadgen.analysis.warnings import planned_cells
    from loadgen.measure.observer import Observer
    from loadgen.record.journal import cell_files
    from loadgen.reports.html import write_report
    from loadgen.reports.live import LiveView, QuietView
    from loadgen.reports.output import write_run

    stop: Interrupted | None = None
    with contextlib.ExitStack() as stack:
        shown: Observer = QuietView() if quiet else PlainView(messages)
        if messages.is_terminal and not messages.is_dumb_terminal and not quiet:
            shown = stack.enter_context(LiveView(messages))
            show_only_visible()  # rich has taken stdout and stderr
        try:
            run_dir = measure(shown, judge_cell)
        except Interrupted as interrupted:
            stop, run_dir = interrupted, interrupted.run_dir
    how = f"to go on: {resume_command(run_dir)}"
    if not cell_files(run_dir):
        why = "Interrupted before anything was measured" if stop else "No server came up, nothing was measured"
        click.echo(f"{why}; {run_dir} holds the plan and the servers' logs; {how}", err=True)
        sys.exit(130 if stop else 1)
    try:
        if stop is None or not stop.hurried:
            if not quiet:
                messages.print("Measured; now the analysis and report.html")
            analyse(run_dir)
            run = load_run(run_dir)
            write_report(run)
            with contextlib.suppress(BrokenPipeError):  # whoever read the table has gone; the run is complete
                write_run(run, form)
        discard_stdout()
    except KeyboardInterrupt:
        stop = stop or Interrupted(run_dir, hurried=True)
    if stop is not None:
        click.echo(f"Interrupted: what was measured is kept in {run_dir}; {how}", err=True)
        sys.exit(130)
    if missing := len(unfinished_cells(run_dir)):
        click.echo(f"{missing} of {planned_cells(run.manifest)} cells are unfinished; {how}", err=True)
    sys.exit(0 if run.complete else 1)
