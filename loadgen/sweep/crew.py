"""Crew: how many client processes share the slots of a cell."""

from __future__ import annotations

import msgspec

from loadgen.client.arrivals import CLOSED
from loadgen.errors import ServerError
from loadgen.sweep.config import SweepConfig
from loadgen.sweep.manifest import Manifest
from loadgen.sweep.observer import Observer

SURE_TOKENS_PER_S = {"raw": 25_600, "openai": 2_560}
"""Rates that one process takes on any core of the last ten years; up to them nothing is tried."""


def crew_of(config: SweepConfig, manifest: Manifest, observer: Observer) -> dict[int, int]:
    """Processes for each B: `--workers`, or one, or what a short selftest at that B says where one may not do.

    The rate is not known before the first cell: a token to every stream each 10 ms is assumed, faster than servers of
    7B models decode at such a B. One answer holds for the whole run, all targets and later sessions, so that no target
    has another client than its reference; it is in the manifest. An open loop is one process's.
    """
    if config.arrival != CLOSED:
        return dict.fromkeys(config.concurrency, 1)
    client = manifest.content["client"]
    known: dict[str, int] = client.get("workers", {})
    crew = {}
    for b in config.concurrency:
        crew[b] = known.get(str(b)) or config.workers or _tried(b, config.transport, manifest, observer)
        client["workers"] = {str(level): count for level, count in crew.items()}
    manifest.write()
    return crew


def _tried(b: int, transport: str, manifest: Manifest, observer: Observer) -> int:
    from loadgen.selftest.selftest import ITL_MS, fewest_workers  # it drives cells of its own, and analyses them

    rate = 1e3 * b / ITL_MS
    if rate <= SURE_TOKENS_PER_S[transport]:
        return 1
    observer.note(f"selftest at B = {b}, {rate:,.0f} tokens/s: is one client process enough? (--workers N says it)")
    try:
        workers, trials = fewest_workers(b, rate, transport)
    except ServerError as error:
        observer.warn(f"the selftest at B = {b} came to nothing ({error}); one client process is used")
        return 1
    manifest.content["client"].setdefault("selftest", []).extend(msgspec.to_builtins(trials))
    tried = "; ".join(f"{t.workers}: {', '.join(t.faults) or f'{t.cpu_share:.0%} of a core'}" for t in trials)
    observer.note(f"B = {b} is driven by {workers} client process{'es' * (workers > 1)} ({tried})")
    return workers
