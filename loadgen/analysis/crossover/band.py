"""Band: the curve between the measured batches, with the 95% band that noise and interpolation leave."""

from __future__ import annotations

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.crossover.noise import Noise

Indices = np.ndarray[tuple[int, ...], np.dtype[np.intp]]

STEPS = 64
"""Places per bracket where the band is computed."""
BLIND = np.log(6)
"""Width of a bracket, in ln(batch), inside which a curve may do anything between its two values."""
SHARPER = 2.0
"""How many times as sharply as the neighbouring chords show a curve may bend: chords hide half of the bend of two kinks
that are close to each other."""
SMOOTH_SHARE = 0.25
"""Of the way from the chord to the outermost curve: there a parabola runs."""


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """The log-advantage over ln(batch): estimate and pointwise limits; places `STEPS` * i are the measured points."""

    log_batch: Floats
    estimate: Floats
    lower: Floats
    upper: Floats


def band_of(batch: Floats, mean: Floats, noise: Noise) -> Band:
    """Band through the point means.

    What the curve does between two points is not measured. Two bounds say how far it may leave the chord: it bends no
    more sharply than the neighbouring chords allow (`_bend`), or it is some monotone curve, the freer the wider the
    bracket (`_freedom`). The wider of the two counts, in quadrature with noise. The estimate follows the bend as a
    parabola does, a quarter of the way out.
    """
    x = np.log(batch)
    left, share = _places(len(x))
    weights = np.zeros((len(left), len(x)))
    rows = np.arange(len(left))
    weights[rows, left] = 1 - share
    weights[rows, left + 1] = share
    places, chord = weights @ x, weights @ mean
    below, above = _bend(x, mean, left, share)
    estimate = chord + SMOOTH_SHARE * (above - below)
    below, above = _bend(x, mean, left, share, SHARPER)
    free_below, free_above = _freedom(x, mean, left, share)
    half = noise.half_width(weights)
    return Band(
        log_batch=places,
        estimate=estimate,
        lower=estimate - np.hypot(half, estimate - chord + np.maximum(below, free_below)),
        upper=estimate + np.hypot(half, chord - estimate + np.maximum(above, free_above)),
    )


def _places(points: int) -> tuple[Indices, Floats]:
    """The bracket that each place lies in, and its share of the way through it."""
    count = STEPS * (points - 1) + 1
    left = np.minimum(np.arange(count) // STEPS, points - 2)
    return left, (np.arange(count) - STEPS * left) / STEPS


def _freedom(x: Floats, y: Floats, left: Indices, share: Floats) -> tuple[Floats, Floats]:
    """Room below and above the chord for monotone curves from early (1 - (1 - s)^k) to late (s^k), s being the share
    of the bracket; k is 1 in a narrow bracket and infinite in one as wide as `BLIND`."""
    tightness = np.maximum(1 - (np.diff(x)[left] / BLIND) ** 2, 1e-6)
    rise = np.diff(y)[left]
    late, early = rise * (share ** (1 / tightness) - share), rise * (1 - (1 - share) ** (1 / tightness) - share)
    return -np.minimum(late, early), np.maximum(late, early)


def _bend(x: Floats, y: Floats, left: Indices, share: Floats, sharper: float = 1.0) -> tuple[Floats, Floats]:
    """Room below and above the chord for a curve that bends in one sense: up to the neighbouring chords prolonged.

    At the ends of the grid the next point's bend is continued. Never beyond the values at the bracket's ends.
    """
    if len(x) == 2:
        return np.zeros(len(left)), np.zeros(len(left))
    width = np.diff(x)
    slope = np.diff(y) / width
    bend = np.diff(slope) / ((width[1:] + width[:-1]) / 2)
    slopes = np.concatenate([[slope[0] - bend[0] * width[0]], slope, [slope[-1] + bend[-1] * width[-1]]])
    from_left = sharper * (slopes[left] - slope[left]) * share * width[left]
    from_right = sharper * (slope[left] - slopes[left + 2]) * (1 - share) * width[left]
    rise = np.diff(y)[left]
    lowest, highest = np.maximum(rise * share, rise * (share - 1)), np.maximum(-rise * share, rise * (1 - share))
    return (
        np.minimum(_reach(-from_left, -from_right, share), lowest),
        np.minimum(_reach(from_left, from_right, share), highest),
    )


def _reach(from_left: Floats, from_right: Floats, share: Floats) -> Floats:
    """Room to one side of the chord: both prolonged chords bound it if both run there; one alone counts the less the
    nearer the bracket's other end."""
    both = np.minimum(from_left, from_right)
    alone = np.maximum(from_left * (1 - share), from_right * share)
    return np.maximum(np.where(both > 0, both, alone), 0.0)
