"""Study: docs/studies/NAME.md with its figures and raw data, written whole from packed results and nothing else."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import msgspec

import loadgen
from bench.gpu.sensors import Finding, Sensors, read_sensors
from bench.gpu.shapes import load_shapes
from loadgen.analysis.analyse import analyse
from loadgen.analysis.compare.comparison import RunComparison
from loadgen.analysis.run import Run
from loadgen.errors import UsageError
from loadgen.reports.figures.curves import draw_cor, draw_curves
from loadgen.reports.figures.sheet import STYLE, Figure, looks_of
from loadgen.words import STAMP

FIGURES = ("throughput", "energy-token", "cor")
MOST_MIB = 20.0
"""Raw data that a repository should have to carry."""


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """What the packed results hold, computed anew."""

    plan: dict[str, Any]
    """plan.json: name, sha256, steps."""
    states: dict[str, Any]
    """Step -> its entry of state.json."""
    runs: dict[str, Run]
    """Step -> its analysed run."""
    sensors: tuple[Sensors, dict[str, Finding]] | None
    selftest: str | None
    comparison: RunComparison
    simulated: bool

    @property
    def stamp(self) -> str:
        """What goes behind a heading: the stamp, or nothing."""
        return f" ({STAMP})" if self.simulated else ""

    @property
    def gpu(self) -> str:
        """As the driver names it; of a CPU, its processor."""
        return next((row.gpu for row in self.comparison.rows if row.gpu), None) or "a GPU that was not recorded"

    @property
    def day(self) -> str:
        """When the first of its runs began, in UTC."""
        first = min(run.manifest.clock_anchors[0].unix_ns for run in self.runs.values())
        return f"{datetime.fromtimestamp(first / 1e9, UTC):%Y-%m-%d}"

    @property
    def name(self) -> str:
        """File name of the study; of a simulated one it begins with `simulated-`."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.replace(STAMP, "").replace("NVIDIA", "").lower()).strip("-")
        return f"{'simulated-' if self.simulated else ''}{gpu}-{self.day}"

    def why(self, step: str) -> str:
        return next(str(entry["why"]) for entry in self.plan["steps"] if entry["name"] == step)

    def model(self, step: str) -> str:
        return next(str(entry["model"]) for entry in self.plan["steps"] if entry["name"] == step)


def collect(work: Path) -> Study:
    """The study of a folder that `unpack` made. Raises UsageError when nothing was measured, or kinds are mixed."""
    runs = {}
    for folder in sorted((work / "runs").glob("*")) if (work / "runs").is_dir() else []:
        analyse(folder)
        runs[folder.name] = loadgen.load_run(folder)
    if not runs:
        raise UsageError("the results hold no run: nothing was measured, so there is no study")
    kinds = {_is_simulated(run) for run in runs.values()}
    if len(kinds) > 1:
        raise UsageError("some of these runs were measured and others SIMULATED: a study holds one kind only")
    plan = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    comparison = loadgen.compare(*(run.path for run in runs.values()), size=_sizes(runs, plan))
    gpus = sorted({row.gpu for row in comparison.rows if row.gpu})
    if len(gpus) > 1:
        raise UsageError(f"the runs are of {' and of '.join(gpus)}: a study is of one machine; pack them apart")
    selftest = work / "selftest" / "selftest.txt"
    return Study(
        plan=plan,
        states=json.loads((work / "state.json").read_text(encoding="utf-8"))["steps"],
        runs=runs,
        sensors=read_sensors(work / "sensors") if (work / "sensors" / "sensors.json").exists() else None,
        selftest=selftest.read_text(encoding="utf-8") if selftest.exists() else None,
        comparison=comparison,
        simulated=kinds.pop(),
    )


def _sizes(runs: dict[str, Run], plan: dict[str, Any]) -> dict[str, str]:
    """Run -> parameters of its model's shape."""
    models = {step["name"]: step["model"] for step in plan["steps"]}
    shapes = load_shapes()
    return {name: str(shapes[models[name]].parameters) for name in runs if models.get(name) in shapes}


def figures_of(study: Study) -> dict[str, Any]:
    """The means that others compare with, such as the simulator's error: figures.json."""
    rows = []
    gpus = [gpu for run in study.runs.values() for gpu in run.manifest.gpu or ()]
    idle = [run.manifest.power.idle_w for run in study.runs.values()]
    for step, run in study.runs.items():
        kernels = {server.name: ", ".join(server.kernels or ()) for server in run.manifest.servers}
        prompts = run.requests.groupby(["target", "concurrency"])["prompt_tokens"].mean()
        for row in run.summary.to_dict("records"):
            if not row["valid"]:
                continue
            names = ("precision", "concurrency", "running_mean", "output_tokens_mean", "tokens_per_s", "power_w_mean",
                     "energy_per_token_j")  # fmt: skip
            found = {name: None if row[name] != row[name] else row[name] for name in names}
            prompt = float(prompts.loc[(row["target"], row["concurrency"])])
            found |= {"prompt_tokens_mean": round(prompt, 3), "kernel": kernels.get(row["target"]) or None}
            rows.append({"step": step, "model": study.model(step), **found})
    return {
        "simulated": study.simulated,
        "gpu": study.gpu,
        "day": study.day,
        "limit_w": next((gpu.power_limit_enforced_w for gpu in gpus if gpu.power_limit_enforced_w), None),
        "idle_w": min((watts for watts in idle if watts), default=None),
        "rows": rows,
    }


def draw(run: Run) -> list[Figure]:
    """The report's curves and COR, without the rest of it."""
    folder, looks = run.path / "figures", looks_of(run.summary["target"])
    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        cor = draw_cor(run, looks, folder)
        return [*draw_curves(run, looks, folder), *([cor] if cor is not None else [])]


def _is_simulated(run: Run) -> bool:
    """By any of the places that say so."""
    gpus = run.manifest.gpu or ()
    return bool(run.manifest.simulated or run.cells["simulated"].any() or any(gpu.simulated for gpu in gpus))
