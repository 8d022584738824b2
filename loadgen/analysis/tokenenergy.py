"""TokenEnergy: joules of a prompt token and of an output token apart, from cells that differ in the shape of requests.

Energy per output token hides what prompts cost. Over shapes, the energy of a request is fitted as

    energy per query = a × computed prompt tokens + b × output tokens

by least squares of relative misfits (each shape has the weight 1 / energy²), once for each repeat, which starts its
server again unless that was already running. Figures are means over repeats, intervals Student's t over them. A prompt
token's joules include what its keys and values cost while the answer is decoded; both include their share of idle
power.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.cells import CellSummary
from loadgen.analysis.estimate import CONFIDENCE, Estimate
from loadgen.record.cell import level
from loadgen.words import number, percent

LEAST_CONTRAST = 1.5
"""By which factor prompt tokens per output token differ at least between two of the shapes: of alike ones, any split
fits."""
LARGE_RESIDUAL = 0.1
"""From which on the two figures do not describe the shapes."""


class TokenEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of analysis.json's `token_energy`: a target at one B, or rate."""

    target: str
    concurrency: int
    arrival: str | None = None
    """That of an open loop."""
    shapes: tuple[str, ...] = ()
    """Those that were fitted."""
    repeats: int = 0
    """Those in which each of these shapes has a valid energy."""
    prompt_token_energy_j: Estimate | None = None
    """J per computed prompt token; None: `why` says why not."""
    output_token_energy_j: Estimate | None = None
    """J per output token."""
    residual: float | None = None
    """Root of the summed squares of the shapes' mean relative misfits over shapes - 2; None with two shapes, which are
    always fitted exactly."""
    why: str = ""
    """Why there are no figures."""
    notes: tuple[str, ...] = ()
    simulated: bool = False

    @property
    def level(self) -> str:
        """As "B = 16"."""
        return level(self.concurrency, self.arrival)


class Spent(NamedTuple):
    """What a request of one cell cost and was: means over its window."""

    energy_j: float
    prompt_tokens: float
    """Those that were computed, not found in a prefix cache."""
    output_tokens: float


def token_energies(cells: Sequence[CellSummary], shapes: Sequence[str], *, prefix_cache: bool) -> list[TokenEnergy]:
    """An entry for each target and B, or rate, whose energy was measured, in the order of the cells; none in a run
    without several shapes. `prefix_cache`: requests shared the server's cache."""
    groups: dict[tuple[str, float], list[CellSummary]] = {}
    for cell in cells if shapes else ():
        groups.setdefault((cell.target, cell.held), []).append(cell)
    metered = (ours for ours in groups.values() if any(cell.energy.energy_j is not None for cell in ours))
    return [_entry(ours, shapes, prefix_cache=prefix_cache) for ours in metered]


def _entry(cells: Sequence[CellSummary], shapes: Sequence[str], *, prefix_cache: bool) -> TokenEnergy:
    first = cells[0]
    spent: dict[int, dict[str, Spent]] = {}
    why = ""
    for cell in cells:
        found = _spent(cell, prefix_cache=prefix_cache)
        if isinstance(found, Spent):
            spent.setdefault(cell.repeat, {})[str(cell.shape)] = found
        else:
            why = why or found
    fitted = token_energy(spent.values(), shapes, why=why)
    return msgspec.structs.replace(
        fitted,
        target=first.target,
        concurrency=first.concurrency,
        arrival=first.traffic.arrival,
        simulated=any(cell.simulated for cell in cells),
    )


def _spent(cell: CellSummary, *, prefix_cache: bool) -> Spent | str:
    """Or what is missing."""
    energy_j = cell.figure("energy_per_query_j")
    prompt, output = cell.lengths.prompt_tokens_mean, cell.output_tokens_mean
    if not energy_j:
        return f"energy of shape {cell.shape} is not valid in repeat {cell.repeat}"
    if not prompt or not output:
        return "the server does not report how many tokens prompts have (usage.prompt_tokens)"
    if cell.cache_hit_share is None and prefix_cache:
        return "the server does not count cached prompt tokens; measure without --prefix-cache"
    return Spent(energy_j, prompt * (1 - (cell.cache_hit_share or 0.0)), output)


def token_energy(repeats: Iterable[Mapping[str, Spent]], shapes: Sequence[str], why: str = "") -> TokenEnergy:
    """The fit over what each repeat measured by shape; `target` and `concurrency` are to be filled in.

    The shapes are all that any repeat has, at most; only repeats that have all of these count. `why`: why others are
    missing.
    """
    observed = [*repeats]
    sets = [tuple(shape for shape in shapes if shape in repeat) for repeat in observed]
    chosen = max(sets, key=lambda one: (len(one), sum({*one} <= repeat.keys() for repeat in observed)), default=())
    whole = [[repeat[shape] for shape in chosen] for repeat in observed if all(shape in repeat for shape in chosen)]
    empty = TokenEnergy(target="", concurrency=0, shapes=chosen, repeats=len(whole))
    reason = f" ({why})" if why else ""
    if len(chosen) < 2 or not whole:
        sentence = f"no repeat has two shapes with a valid energy{reason}"
        return msgspec.structs.replace(empty, why=sentence)
    ratios = [float(np.mean([repeat[k].prompt_tokens / repeat[k].output_tokens for repeat in whole]))
              for k in range(len(chosen))]  # fmt: skip
    if max(ratios) < LEAST_CONTRAST * min(ratios):
        sentence = (
            f"prompts and answers of {' and '.join(chosen)} are in about the same proportion, so that their joules "
            "cannot be told apart; add a shape such as 1024/128 or 128/1024"
        )
        return msgspec.structs.replace(empty, why=sentence)
    fits = [_fit(repeat) for repeat in whole]
    prompt, output = _mean([fit[0] for fit in fits]), _mean([fit[1] for fit in fits])
    misfits = np.mean([fit[2] for fit in fits], axis=0)
    degrees = len(chosen) - 2
    residual = math.sqrt(float(misfits @ misfits) / degrees) if degrees else None
    left = [shape for shape in shapes if shape not in chosen]
    notes = [f"without {', '.join(left)}{reason}"] if left else []
    if len(whole) < len(observed):
        notes.append(f"{len(observed) - len(whole)} of {len(observed)} repeats lack a shape and are left out{reason}")
    notes += [note for name, found in (("prompt", prompt), ("output", output)) if (note := _doubt(name, found))]
    if len(whole) == 1:
        notes.append("one repeat has no interval; measure with --repeats 3 or more")
    if residual is None:
        notes.append("two shapes are always fitted exactly; a third one would show how well the split holds")
    elif residual >= LARGE_RESIDUAL:
        notes.append(f"the shapes differ from the fit by {percent(residual, 0)}: joules of a token depend on the shape")
    return msgspec.structs.replace(
        empty, prompt_token_energy_j=prompt, output_token_energy_j=output, residual=residual, notes=tuple(notes)
    )


def _fit(repeat: Sequence[Spent]) -> tuple[float, float, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Joules of a prompt token and of an output token, and each shape's misfit as a share of its energy."""
    shares = np.array([(one.prompt_tokens / one.energy_j, one.output_tokens / one.energy_j) for one in repeat])
    (prompt, output), *_ = np.linalg.lstsq(shares, np.ones(len(repeat)))
    return float(prompt), float(output), 1 - shares @ np.array([prompt, output])


def _mean(values: Sequence[float]) -> Estimate:
    """With Student's interval: not on logarithms, a noisy figure near 0 may be below."""
    middle = float(np.mean(values))
    if len(values) < 2:
        return Estimate(value=middle)
    quantile = float(special.stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2))
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(value=middle, lo=middle - half, hi=middle + half)


def unknown(found: Estimate | None) -> bool:
    """Whether a figure cannot be told from 0, or is below: no token has negative joules."""
    return found is not None and (found.value <= 0 or (found.lo is not None and found.lo <= 0))


def _doubt(name: str, found: Estimate) -> str:
    if found.lo is not None and found.hi is not None and found.lo <= 0 <= found.hi:
        return f"the interval of joules per {name} token includes 0 ({number(found.lo)} to {number(found.hi)})"
    return f"joules per {name} token come out negative: these shapes do not fit the split" if unknown(found) else ""
