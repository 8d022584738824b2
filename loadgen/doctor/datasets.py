"""Datasets: whether the published files are in the cache and are the pinned ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadgen.doctor.finding import Finding, Mode
from loadgen.workload.dataset import FILES
from loadgen.workload.published import CacheState, PublishedFile, state_of


def examine_datasets(mode: Mode, state: Callable[[PublishedFile], CacheState] = state_of) -> list[Finding]:
    """One finding per published dataset."""
    return [dataset(mode, name, files, state) for name, files in FILES.items()]


def dataset(
    mode: Mode, name: str, files: Sequence[PublishedFile], state: Callable[[PublishedFile], CacheState] = state_of
) -> Finding:
    """A dataset's files by their sha256; a simulated sweep asks the shipped sample unless told otherwise."""
    check = f"dataset {name}"
    states = {file.name: state(file) for file in files}
    seen = ", ".join(f"{file} {found}" for file, found in states.items())
    if all(found == "cached" for found in states.values()):
        return Finding(check=check, state="ok", seen=f"{seen}, sha256 as pinned")
    advice = f"`loadgen data fetch {name}` downloads it, or name your copy with --data-file"
    if mode == "simulated" and "damaged" not in states.values():
        return Finding(check=check, state="not applicable", seen=f"{seen}; the sample is shipped", advice=advice)
    return Finding(check=check, state="warning", seen=seen, advice=advice)
