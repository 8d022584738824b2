"""Pack: what was measured as a few small archives, without weights, logs or folders of the machine that measured."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.gpu.pieces import MIB, REST, SUFFIX
from bench.gpu.plan import Plan
from loadgen.errors import UsageError

_RUN = ("manifest.json", "items.json", "journal")
"""What a run directory's other files are derived from. Servers' logs stay behind: they may hold what nobody should
read, and what is needed of them is in the manifest."""
_REST = ("state.json", "sensors", "selftest/selftest.txt")


def pack(
    work: Path,
    plan: Plan,
    out: Path,
    *,
    folders: Mapping[Path, str],
    most_mib: float | None = None,
    keep: bool = False,
) -> list[Path]:
    """An archive per step that measured anything, and one of the rest with the plan; their paths.

    `folders` are written as the names given instead, in manifests and the state. `keep`: archives of runs that are
    newer than everything in them stay. Raises UsageError when there is nothing to pack, or an archive is larger than
    `most_mib`.
    """
    if not (work / "state.json").exists():
        raise UsageError(f"{work} holds no state.json; name the folder that measure worked in")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.partial" if keep else f"*{SUFFIX}"):
        old.unlink()
    names = {str(folder): name for folder, name in _longest_first(folders)}
    plan_file = {"plan.json": json.dumps({"name": plan.name, "sha256": plan.sha256, "steps": _steps(plan)}, indent=1)}
    kept = []
    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(_write, out / REST, dict(_files(work, _REST)), names, plan_file)]
        for run in sorted((work / "runs").glob("*")) if (work / "runs").is_dir() else []:
            files = {f"runs/{run.name}/{name}": path for name, path in _files(run, _RUN)}
            if any(name.endswith(".jsonl") for name in files):
                archive = out / f"{run.name}{SUFFIX}"
                if keep and _is_newer(archive, files.values()):
                    kept.append(archive)
                else:
                    writing.append(pool.submit(_write, archive, files, names))
        archives = sorted([*kept, *(one.result() for one in writing)])
    if most_mib is not None:
        for archive in archives:
            if archive.stat().st_size > most_mib * MIB:
                size = archive.stat().st_size / MIB
                raise UsageError(f"{archive} has {size:.1f} MiB, more than {most_mib:g}; carry it in pieces (split)")
    return archives


def machine_folders(*, work: Path, models: Path, vllm: Path | None) -> dict[Path, str]:
    """The folders of this machine that a manifest may name, and what stands for each."""
    found = {work.resolve(): "WORK", models.resolve(): "MODELS", Path.cwd(): "CHECKOUT", Path.home(): "HOME"}
    if vllm is not None:
        found[vllm.absolute().parents[1]] = "ENV"
    return found | {Path(tempfile.gettempdir()): "TMP"}


def _longest_first(folders: Mapping[Path, str]) -> Iterator[tuple[Path, str]]:
    yield from sorted(((folder, name) for folder, name in folders.items() if len(folder.parts) > 1), key=_length)


def _length(entry: tuple[Path, str]) -> int:
    return -len(str(entry[0]))


def _steps(plan: Plan) -> list[dict[str, object]]:
    return [
        {
            "name": s.name,
            "why": s.why,
            "kind": s.kind,
            "model": s.model,
            "serve": s.serve,
            "options": plan.options_of(s),
        }
        for s in plan.step
    ]


def _files(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for name in names:
        path = folder / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and not file.name.endswith(".partial"):
                yield str(file.relative_to(folder)), file


def _write(
    archive: Path, files: Mapping[str, Path], names: Mapping[str, str], texts: Mapping[str, str] | None = None
) -> Path:
    partial = archive.with_name(f"{archive.name}.partial")
    with tarfile.open(partial, "w:xz", preset=6) as out:
        for name, path in files.items():
            if path.suffix == ".json":
                text = path.read_text(encoding="utf-8")
                for folder, word in names.items():
                    text = text.replace(folder, word)
                _add(out, name, text.encode())
            else:
                # A journal's lines have checksums: they stay as they are, and name no folder.
                entry = tarfile.TarInfo(name)
                entry.size = path.stat().st_size
                with path.open("rb") as content:
                    out.addfile(entry, content)
        for name, text in (texts or {}).items():
            _add(out, name, text.encode())
    partial.replace(archive)
    return archive


def _is_newer(archive: Path, files: Iterable[Path]) -> bool:
    return archive.exists() and archive.stat().st_mtime_ns > max(path.stat().st_mtime_ns for path in files)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
