"""Tasks of a study: each is one ordinary sweep of all precisions of a model, on one GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from loadgen.cluster.study import Study
from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.plan import plan_sweep
from loadgen.record.cell import SweepConfig
from loadgen.record.grid import Task
from loadgen.serving.launch import workers_of
from loadgen.serving.recipe import load_recipe

BESIDE_OTHERS = {"metrics_port": None}
"""Options of a task's sweep: several run on one machine."""


def tasks_of(study: Study, gpus: Sequence[str]) -> tuple[Task, ...]:
    """The tasks in the order in which they are handed out: all models on every GPU before the next block of repeats.

    `gpus`: the accelerator type of each GPU block ("" for any). The order of precisions alternates (ABBA) within a
    task; where its repeats are an odd number, every second task of a model begins with the reverse, so that over the
    study no precision is measured earlier than another. Raises UsageError for options that a sweep refuses.
    """
    return tuple(_tasks(study, gpus))


def _tasks(study: Study, gpus: Sequence[str]) -> Iterator[Task]:
    names = _names(study.models)
    sizes = _blocks(study.repeats, study.block)
    for block, repeats in enumerate(sizes, start=1):
        for model in study.models:
            for dataset in study.datasets or (None,):
                options = study.options(model, dataset) | BESIDE_OTHERS | {"repeats": repeats}
                config = configured(options, f"{model}{f' on {dataset}' * (dataset is not None)}")
                for gpu, accelerator in enumerate(gpus, start=1):
                    parts = [names[model], _short(dataset or "") if len(study.datasets) > 1 else ""]
                    parts += [f"g{gpu}", f"b{block}" if len(sizes) > 1 else ""]
                    reverse = repeats % 2 == 1 and (gpu + block) % 2 == 1
                    yield Task(
                        id="-".join(filter(None, parts)), model=model, dataset=dataset, gpu=gpu,
                        accelerator=accelerator, gpus=gpus_of(config), block=block, repeats=repeats,
                        options=_reversed(options, config) if reverse else options,
                    )  # fmt: skip


def configured(options: dict[str, Any], what: str) -> SweepConfig:
    """The sweep of these options. Raises UsageError, which begins with `what`, where a sweep would refuse them."""
    try:
        return configure(**options)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


def expected_s(task: Task) -> float:
    """About how long a task takes, starts of servers included. Reads the questions; raises UsageError."""
    try:
        return plan_sweep(configure(**task.options)).expected_s
    except UsageError as error:
        raise UsageError(f"{task.id}: {error}") from None


def gpus_of(config: SweepConfig) -> int:
    """The GPUs that the largest server of a sweep takes; servers run one after another."""
    if config.mode == "simulated":
        return 1
    sizes = (spec.tensor_parallel or load_recipe(spec.precision).tensor_parallel or 1 for spec in config.targets)
    return max(workers_of(["--tensor-parallel-size", str(size), *config.vllm_args]) or 1 for size in sizes)


def _reversed(options: dict[str, Any], config: SweepConfig) -> dict[str, Any]:
    served = options["serve"]
    entries = served.split(",") if isinstance(served, str) else list(served)
    return {**options, "serve": list(reversed(entries)), "reference": config.reference}


def _blocks(repeats: int, most: int) -> list[int]:
    """The repeats of each block: all of `most` but for the last."""
    return [min(most, repeats - done) for done in range(0, repeats, most)]


def _names(models: Sequence[str]) -> dict[str, str]:
    """A short name of each model, all different."""
    names: dict[str, str] = {}
    for model in models:
        name = _short(PurePath(model).name)
        taken = sum(other == name or other.startswith(f"{name}-") for other in names.values())
        names[model] = f"{name}-{taken + 1}" if name in names.values() else name
    return names


def _short(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-._") or "x"
