"""Pool: the runs of one model on several GPUs as one run, in which every run's repeats are further repeats.

A repeat lies within one GPU, and precisions are compared repeat by repeat: what differs between two GPUs cancels in
every comparison, and the scatter of the comparisons over the GPUs is in its interval.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from loadgen.errors import UsageError
from loadgen.folder import Folder
from loadgen.record.cell import Cell
from loadgen.record.grid import POOLED, RECEIPT, grid_runs, is_grid, read_receipt
from loadgen.record.journal import CellStart, cell_file, cell_files, power_file, read_records, sealed
from loadgen.record.manifest import FILE, Manifest, PooledRun, read_manifest
from loadgen.workload.item import FILE as FACTS

_BASE = re.compile(r"-g[0-9]+(-b[0-9]+)?\Z")
PARTIAL = ".partial"


def runs_in(path: Path) -> list[Path]:
    """The run directories that a path stands for: itself, or of a grid one for each model, dataset and kind of GPU.

    The pooled ones are made if need be. Raises UsageError for a grid without a finished task.
    """
    if not is_grid(path):
        return [path]
    groups = _groups(path)
    if not groups:
        raise UsageError(f"{path}: none of the grid's tasks is finished; continue it: loadgen grid --resume {path}")
    return [runs[0] if len(runs) == 1 else _pooled(path, name, runs) for name, runs in groups.items()]


def run_in(path: Path) -> Path:
    """The one run that a path stands for. Raises UsageError as `runs_in`, and for a grid with several, naming them."""
    runs = runs_in(path)
    if len(runs) > 1:
        raise UsageError(f"{path} is a grid of {len(runs)} runs; name one of them: {', '.join(map(str, runs))}")
    return runs[0]


def _groups(folder: Path) -> dict[str, list[Path]]:
    """The runs that are repeats of each other, by a name."""
    found: dict[str, dict[tuple[str, ...], list[Path]]] = {}
    for name, path in grid_runs(folder).items():
        manifest = read_manifest(path)
        if cell_files(path):
            hardware = tuple(sorted({gpu.name for gpu in manifest.gpu or ()}))
            key = hardware if not manifest.config.find else (*hardware, name)
            found.setdefault(_BASE.sub("", name), {}).setdefault(key, []).append(path)
    groups = {}
    for base, kinds in found.items():
        for kind, runs in kinds.items():
            suffix = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(kind)).strip("-")
            groups[base if len(kinds) == 1 else f"{base}-{suffix}"] = runs
    return groups


def _pooled(folder: Path, name: str, runs: Sequence[Path]) -> Path:
    """The pooled run; the one that is there, if it is of these very runs."""
    out = folder / POOLED / name
    sources = tuple(_source(path) for path in runs)
    if Folder(out).has(FILE) and tuple(run.sha256 for run in read_manifest(out).pooled) == sources:
        return out
    partial = out.with_name(name + PARTIAL)
    for old in (out, partial):
        if old.exists():
            shutil.rmtree(old)
    partial.mkdir(parents=True)
    pool_runs(runs, partial)
    partial.rename(out)
    return out


def _source(run_dir: Path) -> str:
    name = RECEIPT if Folder(run_dir).has(RECEIPT) else FILE
    return hashlib.sha256(Folder(run_dir).read(name)).hexdigest()


def pool_runs(runs: Sequence[Path], out: Path) -> None:
    """Writes a run directory with the cells of all these runs into an empty folder.

    Raises UsageError where they did not measure the same thing.
    """
    manifests = [read_manifest(path) for path in runs]
    first = manifests[0]
    for path, other in zip(runs[1:], manifests[1:], strict=True):
        _require_alike(runs[0], first, path, other)
    config = replace(first.config, repeats=sum(one.config.repeats for one in manifests), out=None)
    merged = replace(
        first, config=config, given=None, sessions=(), clock_anchors=(), servers=(), failures=(), attempts=(),
        power_blocks=(), pooled=(),
    )  # fmt: skip
    planned = {_key(cell): cell for block in merged.blocks for cell in block.cells}
    for path, manifest in zip(runs, manifests, strict=True):
        repeats, sessions = merged.pooled[-1].last if merged.pooled else 0, len(merged.sessions)
        _copy_cells(path, out, planned, repeats, sessions)
        for block in manifest.power_blocks:
            source = power_file(path, block.target, block.repeat, block.session)
            target = power_file(out, block.target, block.repeat + repeats, block.session + sessions)
            _copy(path, source, out, target)
        merged = _with(merged, path, manifest, repeats, sessions)
    Folder(out).write(FACTS, Folder(runs[0]).read(FACTS))
    Folder(out).write(FILE, msgspec.json.format(msgspec.json.encode(merged), indent=2) + b"\n")


def _with(merged: Manifest, path: Path, manifest: Manifest, repeats: int, sessions: int) -> Manifest:
    """The manifest with the records of one more run, whose repeats and sessions follow those that are there."""
    receipt = read_receipt(path)
    gpus = receipt.place.gpus if receipt is not None else tuple(gpu.uuid for gpu in manifest.gpu or ())
    part = PooledRun(
        name=path.name, gpus=gpus, node=receipt.place.node if receipt is not None else "",
        first=repeats + 1, last=repeats + manifest.config.repeats, sha256=_source(path),
    )  # fmt: skip

    def moved(records: Sequence[msgspec.Struct]) -> tuple[msgspec.Struct, ...]:
        moves = {"repeat": repeats, "session": sessions}
        return tuple(
            replace(one, **{name: getattr(one, name) + by for name, by in moves.items() if hasattr(one, name)})
            for one in records
        )

    lists = ("sessions", "clock_anchors", "servers", "failures", "power_blocks")
    changes = {name: (*getattr(merged, name), *moved(getattr(manifest, name))) for name in lists}
    return replace(merged, **changes, pooled=(*merged.pooled, part))


def _copy_cells(path: Path, out: Path, planned: Mapping[Cell, Cell], repeats: int, sessions: int) -> None:
    """The journals of a run's cells, with their places in the pooled run in the first line."""
    for file in cell_files(path):
        start = next(read_records(file), None)
        if not isinstance(start, CellStart):
            continue
        cell = planned[_key(replace(start.cell, repeat=start.cell.repeat + repeats))]
        cell = replace(cell, precision=start.cell.precision)
        line = msgspec.json.encode(replace(start, cell=cell, session=start.session + sessions))
        _copy(path, file, out, cell_file(out, cell), sealed(line))


def _copy(path: Path, source: Path, out: Path, target: Path, first: bytes | None = None) -> None:
    """Copies a file of a run, with another first line where one is given; nothing where there is none."""
    name = source.relative_to(path).as_posix()
    if not Folder(path).has(name):
        return
    with Folder(path).open(name) as old, Folder(out).replacing(target.relative_to(out).as_posix()) as new:
        if first is not None:
            old.readline()
            new.write(first)
        shutil.copyfileobj(old, new)


def _key(cell: Cell) -> Cell:
    """What a cell is, wherever it stands in the plan."""
    return replace(cell, index=0, precision="")


def _require_alike(path: Path, first: Manifest, other_path: Path, other: Manifest) -> None:
    free = {"repeats": 0, "out": None, "targets": first.config.targets, "gpus": None}
    same = sorted(spec.name for spec in first.config.targets) == sorted(spec.name for spec in other.config.targets)
    configs = [replace(one.config, **free) for one in (first, other)]
    facts = [(one.dataset, one.protocol, one.simulated, one.graded, one.power.kind) for one in (first, other)]
    if not same or configs[0] != configs[1] or facts[0] != facts[1]:
        raise UsageError(f"{path} and {other_path} did not measure the same thing; compare them as two runs")
