"""Simulated: the servers of a step without its GPU, from the GPU's preset; everything they touch says SIMULATED."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.gpu.plan import Step
from loadgen.analysis.compare.published import model_key
from loadgen.errors import UsageError
from loadgen.serving.launch import Launch
from loadgen.serving.process import ServerProcess, free_port
from loadgen.serving.simulated.presets import Presets, load_presets
from loadgen.sweep.config import HEADROOM_SEQS
from loadgen.sweep.manifest import read_manifest

START_S = 60.0
_LEARNING = "h100-like"


@contextmanager
def servers(step: Step, options: dict[str, Any], preset: str, run_dir: Path, logs: Path) -> Iterator[dict[str, str]]:
    """Name -> address of a simulated server for each precision of the step, all at once: an idle one takes no time.

    A run that is gone on with finds its servers where they were.
    """
    presets = load_presets()
    model = preset_model(presets, str(step.model))
    ports = _ports(run_dir)
    seqs = max(options["concurrency"]) + HEADROOM_SEQS
    with ExitStack() as stack:
        processes = {}
        for name in step.serve:
            presets.cost(name, gpu=preset, model=model)
            port = ports.get(name) or free_port()
            argv = [sys.executable, "-m", "loadgen", "simulate", "--precision", name, "--port", str(port)]
            argv += ["--gpu", preset, "--model", model, "--max-num-seqs", str(seqs)]
            launch = Launch(name=name, precision=name, argv=tuple(argv), port=port, simulated=True)
            processes[name] = stack.enter_context(ServerProcess(launch, logs / f"{name}.log"))
        for process in processes.values():
            process.wait_ready(START_S)
        yield {name: process.launch.url for name, process in processes.items()}


def _ports(run_dir: Path) -> dict[str, int]:
    if not (run_dir / "manifest.json").exists():
        return {}
    targets = read_manifest(run_dir)["config"]["targets"]
    return {target["name"]: urlsplit(target["url"]).port for target in targets}


def preset_model(presets: Presets, name: str) -> str:
    """The preset of a model's shape. Raises UsageError when there is none."""
    key = model_key(name)
    if key not in presets.model:
        raise UsageError(f"the simulator has no model {key!r} for {name}; it has {', '.join(presets.model)}")
    return key


def preset_gpu(presets: Presets, name: str) -> str | None:
    """The preset of a GPU by the name that its driver gives it; None where there is none of it."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    fitting = [key for key in presets.gpu if key != _LEARNING and _stands_in(key.split("-"), words)]
    return max(fitting, key=len, default=None)


def _stands_in(part: list[str], words: list[str]) -> bool:
    return any(words[place : place + len(part)] == part for place in range(len(words)))
