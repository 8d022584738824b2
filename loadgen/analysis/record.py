"""Analysis: the content of analysis.json, as `analyse` builds it and `Run.analysis` reads it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from loadgen.analysis.claims import Claim
from loadgen.analysis.client import NearestCheck
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.indices.dominance import Dominance, WeightSpace
from loadgen.analysis.indices.formulas import IndexSettings
from loadgen.analysis.indices.point import Speed
from loadgen.analysis.indices.study import CorCurve, SiDifference, TargetIndices, TrapOverBatches
from loadgen.analysis.models.study import ModelStudy
from loadgen.analysis.trust.study import BatchTest, DepthTest, TrustTest
from loadgen.analysis.validity import Invalid
from loadgen.errors import UsageError
from loadgen.folder import Folder, read_json
from loadgen.power.trace import Calibration
from loadgen.secret import error_text

SCHEMA = 1
FILE = "analysis.json"


class ServerCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """The power sensors beside one server."""

    target: str
    repeat: int
    session: int
    gpus: dict[str, Calibration]
    """By UUID."""


class Analysis(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures of a run say. docs/metrics.md describes each list."""

    schema: int = SCHEMA
    reference: str
    simulated: bool
    invalid: tuple[Invalid, ...]
    crossovers: tuple[Crossover, ...] = ()
    trust: tuple[TrustTest, ...]
    trust_invariance: tuple[BatchTest, ...] = ()
    depth: tuple[DepthTest, ...] = ()
    models: tuple[ModelStudy, ...] = ()
    indices: tuple[TargetIndices, ...]
    speeds: tuple[Speed, ...] = ()
    cor_curves: tuple[CorCurve, ...] = ()
    traps: tuple[TrapOverBatches, ...] = ()
    weight_space: tuple[WeightSpace, ...] = ()
    dominance: tuple[Dominance, ...] = ()
    si_differences: tuple[SiDifference, ...] = ()
    client: tuple[NearestCheck, ...] = ()
    """The client's figures that came closest to their limits."""
    warnings: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    slo: str | None = None
    """What goodput asks for, as `--slo` takes it."""
    start_sd: float | None = None
    """Relative standard deviation between starts of a server, where the user stated it."""
    index_settings: IndexSettings = IndexSettings()
    calibration: tuple[ServerCalibration, ...] = ()

    def crossover(self, target: str, metric: str) -> Crossover | None:
        """Of a target against the reference; `metric` as in `METRICS`."""
        found = (one for one in self.crossovers if (one.target, one.metric) == (target, metric))
        return next(found, None)


def write_analysis(folder: Path, analysis: Analysis) -> None:
    """Writes analysis.json."""
    text = msgspec.json.format(msgspec.json.encode(analysis), indent=2)
    Folder(folder).write(FILE, text + b"\n")


def read_analysis(folder: Path) -> Analysis:
    """What `write_analysis` wrote. Raises UsageError if it is damaged, or of an older version."""
    try:
        found: Analysis = read_json(folder, FILE, Analysis)
    except ValueError as error:
        why = error_text(error)
    else:
        return found
    if "missing required field" in why:
        raise UsageError(f"{folder} was analysed by an older version; run `loadgen report {folder}` first")
    raise UsageError(f"{folder / FILE} is damaged ({why}); write it again with `loadgen report {folder}`")
