"""loadgen: which precision pays off on your GPU, under your traffic?

import loadgen
run = loadgen.sweep(targets={"fp16": "http://127.0.0.1:8001", "awq": "http://127.0.0.1:8002"}, concurrency=[1, 16])
run.summary
"""

from __future__ import annotations

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any, Unpack, cast

from loadgen.errors import Interrupted, ServerError, StorageError, UsageError
from loadgen.options import (
    AdviseOptions,
    GridOptions,
    QuantizeOptions,
    ReportOptions,
    RunOptions,
    SelftestOptions,
    complete,
    takes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from loadgen.analysis.advise import Advice
    from loadgen.analysis.compare.comparison import RunComparison
    from loadgen.analysis.day import Day
    from loadgen.clienttest.selftest import Selftest
    from loadgen.options import SweepOptions
    from loadgen.reports.notebook import Run


__all__ = [
    "Interrupted",
    "Run",
    "ServerError",
    "StorageError",
    "UsageError",
    "__version__",
    "advise",
    "compare",
    "grid",
    "load_run",
    "quantize",
    "report",
    "selftest",
    "sweep",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name != "Run":
        raise AttributeError(f"module 'loadgen' has no attribute {name!r}")
    from loadgen.reports.notebook import Run

    return Run


@takes(RunOptions)
def sweep(**options: Unpack[RunOptions]) -> Run:
    """Measures every target at every concurrency and returns the analysed run, as `loadgen sweep` does.

    Without `targets` and `serve` the servers are simulated. Times and shares may be texts with units ("60s", "10%"),
    lists also texts ("1,16" or "1..128x2") or a single number. In a notebook the progress is one output that is
    updated, elsewhere lines on stderr; `quiet` shows none. `resume=DIR` continues an interrupted run: options given
    with it must be the run's own, and what a received run would send, open, read or start must be given again, unless
    `trust_manifest`.

    Raises UsageError for wrong use before anything starts, Interrupted on Ctrl-C (its `run_dir` holds what was
    measured), and StorageError when the run directory cannot be written any more.
    """
    from pathlib import Path

    from loadgen.analysis.analyse import analyse
    from loadgen.analysis.cellresult import judge_cell
    from loadgen.measure.config import configure
    from loadgen.measure.run import resume_sweep, run_sweep
    from loadgen.reports.html import write_report
    from loadgen.reports.notebook import outside_event_loop, view

    complete(RunOptions, options)
    resume, trusted = options.pop("resume", None), options.pop("trust_manifest", False)
    observer, given = view(quiet=options.pop("quiet", False)), cast("SweepOptions", options)
    with outside_event_loop():
        if resume is None:
            run_dir = run_sweep(configure(**given), observer, judge_cell, given)
        else:
            run_dir = resume_sweep(Path(resume), given, observer, judge_cell, trusted=trusted)
    analyse(run_dir)
    run = load_run(run_dir)
    write_report(run)
    return run


def load_run(path: str | Path) -> Run:
    """A run directory, opened: `.summary`, `.cells`, `.requests`, `.server` are pandas data frames, `.answer` is what
    the run says of each target, and `.plot(metric)` draws a figure. Of a grid with one model, its run on all GPUs."""
    from pathlib import Path

    from loadgen.analysis.run import load_run as load
    from loadgen.record.pool import run_in
    from loadgen.reports.notebook import Run

    return Run(load(run_in(Path(path))).path)


@takes(ReportOptions)
def report(run: str | Path, **options: Unpack[ReportOptions]) -> Run:
    """What `loadgen report` does: tables, figures and report.html of a run directory from its journal.

    With `out`, they and a copy of the manifest are written into that folder and nothing into the run, which may then be
    one that can only be read. Returns the run with these figures. Raises UsageError for wrong use.
    """
    from pathlib import Path

    from loadgen.analysis.analyse import analyse
    from loadgen.analysis.indices.formulas import IndexSettings
    from loadgen.measure.config import start_share
    from loadgen.record.cell import Slo
    from loadgen.record.manifest import read_manifest

    o, run_dir = complete(ReportOptions, options), Path(run)
    carbon, slo, start_sd, out = o["carbon"], o["slo"], o["start_sd"], o["out"]
    if carbon is None:
        carbon = read_manifest(run_dir).config.carbon_kg_per_kwh
    analyse(
        run_dir,
        IndexSettings(
            alpha=float(o["alpha"]), weights=o["weights"], sustainability=o["s_form"], carbon_kg_per_kwh=carbon
        ),
        slo=None if slo is None else Slo.parse(slo),
        start_sd=None if start_sd is None else start_share(float(start_sd)),
        shape=o["shape"],
        out=None if out is None else Path(out),
        meanwhile=_import_drawing,
    )
    from loadgen.reports.html import write_report

    opened = load_run(run_dir if out is None else out)
    write_report(opened)
    return opened


def _import_drawing() -> None:
    """Takes a third of a second."""
    from importlib import import_module

    import_module("loadgen.reports.html")


def compare(
    *runs: str | Path,
    size: Mapping[str, str | float] | None = None,
    imports: Sequence[str] = (),
    out: str | Path | None = None,
) -> RunComparison:
    """What `loadgen compare` does: run directories side by side, `.rows`, `.n_stars`, `.published` and `.table`; of two
    runs the difference as `.pair`.

    `size`: parameters, such as {"qwen-7b": "7.6B"}, by run, model or target; `imports`: "vllm-bench:fp16=FILE" and the
    like. With `out`, compare.csv, compare.json and compare.html are written there. Raises UsageError for wrong use.
    """
    from pathlib import Path

    from loadgen.analysis.compare.comparison import compare_runs, write_comparison
    from loadgen.reports.html.compare import write_page

    comparison = compare_runs(runs, size=size, imports=imports)
    if out is not None:
        write_comparison(comparison, Path(out))
        write_page(comparison, Path(out))
    return comparison


@takes(GridOptions)
def grid(study: str | Path | None = None, **options: Unpack[GridOptions]) -> RunComparison:
    """What `loadgen grid` does: the tasks of a study file on a Ray cluster, and the comparison of their runs.

    grid.json in the folder says what became of each task. Raises UsageError for wrong use, and if every task failed.
    """
    import sys
    from pathlib import Path

    from loadgen.cluster.run import grid as run
    from loadgen.reports.grid import PlainTasks, QuietTasks
    from loadgen.reports.terminal import console_of

    complete(GridOptions, options)
    console = console_of(sys.stderr, width=200)
    view = QuietTasks(console) if options.get("quiet") else PlainTasks(console)
    folder = run(None if study is None else Path(study), options, view)
    return compare(folder, out=folder)


@takes(AdviseOptions)
def advise(run: str | Path, **options: Unpack[AdviseOptions]) -> Advice | Day:
    """What `loadgen advise` does: how a closed-loop run's targets serve a traffic.

    Returns the `Advice` for a `rate`, the `Day` for a `traffic`. With `verify` its `verification` has what one
    replica's share of the rate does on the run's own servers, which are started again. Raises UsageError for wrong use,
    and with `verify` as `sweep`.
    """
    from msgspec.structs import replace

    from loadgen.analysis.advise import advise_run
    from loadgen.analysis.day import Day
    from loadgen.analysis.verification import verification_of

    o, opened = complete(AdviseOptions, options), load_run(run)
    advice = advise_run(opened, o)
    if isinstance(advice, Day) or not o["verify"]:
        return advice
    measured = _measured_at(opened, advice, o)
    return replace(advice, verification=verification_of(opened, measured, advice.rates, advice.slo))


def _measured_at(run: Run, advice: Advice, o: AdviseOptions) -> Run:
    """The open loop that verifies the advice: measured now, or what it lacks, in a run directory of its own."""
    from pathlib import Path

    from loadgen.analysis.verification import arrivals_asked
    from loadgen.measure.settings import options_again
    from loadgen.record.manifest import FILE, read_manifest

    out = Path(o["out"] or f"{run.path}-verify-{advice.demand.rate_per_s:g}")
    asked: dict[str, Any] = {"arrival": arrivals_asked(run.manifest, advice.rates), "repeats": 1}
    if o["duration"] is not None:
        asked["duration"] = o["duration"]
    if o["wait_ready"]:
        asked["wait_ready"] = o["wait_ready"]
    body = {} if o["extra_body"] is None else {"extra_body": o["extra_body"]}
    if (out / FILE).is_file():
        begun = read_manifest(out).config
        if begun.asked_arrival != asked["arrival"]:
            raise UsageError(
                f"--out {out}: was measured at {begun.asked_arrival}, and this advice needs {asked['arrival']}; name "
                "another folder"
            )
        return sweep(**cast("RunOptions", {**asked, **body, "resume": out}))
    again = options_again(run.path, run.manifest, body, trusted=o["trust_manifest"])
    if run.shape is not None:
        again["dataset"] = run.dataset
    return sweep(**cast("RunOptions", {**again, **asked, "out": out}))


@takes(QuantizeOptions)
def quantize(**options: Unpack[QuantizeOptions]) -> dict[str, Path]:
    """What `loadgen quantize` does: checkpoints of a 16-bit model in other formats, by llm-compressor.

    Returns the folder of each format; one that is there already, made from the same inputs, is kept. What it does is
    said on stderr. Raises UsageError for wrong use, and with the log's path when llm-compressor fails.
    """
    import sys
    from functools import partial

    from loadgen.serving.quantize import quantize as make
    from loadgen.serving.quantize_plan import plan_quantize

    return make(plan_quantize(options), partial(print, file=sys.stderr, flush=True))


@takes(SelftestOptions)
def selftest(**options: Unpack[SelftestOptions]) -> Selftest:
    """What `loadgen selftest` does: whether the client measures such traffic correctly on this machine.

    Returns `.enough`, `.sentence`, `.trial` with the errors in ms, and `.capacity_tokens_per_s`. Raises UsageError for
    wrong use.
    """
    from loadgen.clienttest.selftest import selftest as test
    from loadgen.reports.notebook import outside_event_loop

    with outside_event_loop():
        return test(**options)
