"""Pack: the results as a few small archives, without weights, logs or names of the machine's folders."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
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
    work: Path, plan: Plan, out: Path, *, folders: Mapping[Path, str], most_mib: float | None = None, keep: bool = False
) -> list[Path]:
    """An archive per step that measured anything, and one of the rest with the plan; their paths.

    `folders`: folder -> the name that replaces it in manifests and the state. `keep`: archives of runs that are newer
    than their content stay. Raises UsageError when there is nothing to pack, or an archive exceeds `most_mib`.
    """
    if not (work / "state.json").exists():
        raise UsageError(f"{work} holds no state.json; name the folder that measure worked in")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.partial" if keep else f"*{SUFFIX}"):
        old.unlink()
    longest_first = sorted(folders.items(), key=lambda entry: -len(str(entry[0])))
    names = {str(folder): name for folder, name in longest_first if len(folder.parts) > 1}
    steps = [
        {field: getattr(step, field) for field in ("name", "why", "kind", "model", "serve")}
        | {"options": plan.options_of(step)}
        for step in plan.step
    ]
    plan_text = json.dumps(
        {"name": plan.name, "sha256": plan.sha256, "shortened": plan.shortened, "steps": steps}, indent=1
    )
    kept = []
    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(_write, out / REST, dict(_files(work, _REST)), names, plan_text)]
        for run in sorted((work / "runs").glob("*")) if (work / "runs").is_dir() else []:
            files = {f"runs/{run.name}/{name}": path for name, path in _files(run, _RUN)}
            if any(name.endswith(".jsonl") for name in files):
                archive = out / f"{run.name}{SUFFIX}"
                newest_ns = max(path.stat().st_mtime_ns for path in files.values())
                if keep and archive.exists() and archive.stat().st_mtime_ns > newest_ns:
                    kept.append(archive)
                else:
                    writing.append(pool.submit(_write, archive, files, names))
        archives = sorted([*kept, *(one.result() for one in writing)])
    for archive in archives:
        size = archive.stat().st_size / MIB
        if most_mib is not None and size > most_mib:
            raise UsageError(f"{archive} has {size:.1f} MiB, more than {most_mib:g}; carry it in pieces (split)")
    return archives


def machine_folders(*, work: Path, models: Path, vllm: Path | None) -> dict[Path, str]:
    """The folders of this machine that a manifest may name -> the word that replaces each."""
    found = {work.resolve(): "WORK", models.resolve(): "MODELS", Path.cwd(): "CHECKOUT", Path.home(): "HOME"}
    if vllm is not None:
        found[vllm.absolute().parents[1]] = "ENV"
    return found | {Path(tempfile.gettempdir()): "TMP"}


def _files(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for name in names:
        path = folder / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and not file.name.endswith(".partial"):
                yield str(file.relative_to(folder)), file


def _write(archive: Path, files: Mapping[str, Path], names: Mapping[str, str], plan: str | None = None) -> Path:
    partial = archive.with_name(f"{archive.name}.partial")
    with tarfile.open(partial, "w:xz", preset=2) as out:
        for name, path in files.items():
            content = path.read_bytes()
            if path.suffix == ".json":  # a journal's lines have checksums, and name no folder
                text = content.decode()
                for folder, word in names.items():
                    text = text.replace(folder, word)
                content = text.encode()
            _add(out, name, content)
        if plan is not None:
            _add(out, "plan.json", plan.encode())
    partial.replace(archive)
    return archive


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
