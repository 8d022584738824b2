"""WindowEnergy: the joules of one GPU between two instants, by two independent ways, with a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Literal

import msgspec
import numpy as np

from loadgen.errors import UsageError
from loadgen.power import throttle
from loadgen.power.sample import GPU_LOST, GpuInfo, PowerSample
from loadgen.power.staircase import Floats, staircase
from loadgen.power.trace import PowerTrace, traces_of

RATIO_GOOD = 0.03
"""Largest |integral / counter - 1| of a good window."""
RATIO_WARNING = 0.10
"""Largest one that is not invalid."""
GAP_MIN_S = 0.5
GAP_PERIODS = 5
"""A silence longer than both GAP_MIN_S and GAP_PERIODS sampling periods makes a window invalid."""
WINDOW_MIN_S = 30.0
STEPS_MIN = 100
"""A window with fewer updates of the counter, or shorter than WINDOW_MIN_S, has its edge error spelled out."""
MARGIN_S = 5.0
"""How far beyond its edges a window looks for the counter's updates."""


class WindowEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of one GPU over [t0_ns, t1_ns]. None: could not be measured; never clamped, never 0 for unknown."""

    gpu: str
    t0_ns: int
    t1_ns: int
    energy_j: float | None
    """The figure to use: the counter's where it can be trusted, else the integral's."""
    source: Literal["counter", "integral"] | None
    counter_j: float | None
    """Difference of the energy counter, its staircase interpolated at both edges."""
    integral_j: float | None
    """Trapezoid of instantaneous power, interpolated at both edges."""
    ratio: float | None
    """integral_j / counter_j."""
    power_w_mean: float | None
    """energy_j over the window's length."""
    verdict: Literal["good", "warning", "invalid"]
    reasons: tuple[str, ...]
    """Why not good, a sentence each with its figures: those that make it invalid first."""
    lost: tuple[str, ...] = ()
    """Of `reasons`, that the GPU is gone: nothing that was measured on it in the window stands."""
    slowed: tuple[str, ...] = ()
    """Of `reasons`, that heat or the supply lowered its clocks: neither speed nor energy are those of its work."""
    reservations: tuple[str, ...] = ()
    """Of `reasons`, those that leave the window valid."""
    samples: int
    max_gap_s: float | None
    temperature_c_max: float | None = None
    memory_used_bytes_max: int | None = None
    throttle_reasons: int = 0
    """Every throttle bit seen in the window."""


def energy_of_window(samples: Sequence[PowerSample] | PowerTrace, t0_ns: int, t1_ns: int) -> WindowEnergy:
    """Energy of the one GPU whose samples these are (any order, reaching beyond both edges).

    `samples` of the result counts those inside the window; max_gap_s is the longest time between two that cover it.
    Raises UsageError when the window does not end after it begins, ValueError when the samples are of several GPUs.
    """
    if t1_ns <= t0_ns:
        raise UsageError(f"the window from t0={t0_ns} to t1={t1_ns} ns has no length: give a t1 after t0")
    trace = samples if isinstance(samples, PowerTrace) else _only_trace(samples)
    margin_ns = int(MARGIN_S * 1e9)
    window = _Window(trace.between(t0_ns - margin_ns, t1_ns + margin_ns), t0_ns, t1_ns)
    window.check_lost(trace)
    if window.check_cover():
        window.count_joules()
        window.integrate_power()
        window.compare()
        window.check_throttle()
    return window.result()


def _only_trace(samples: Sequence[PowerSample]) -> PowerTrace:
    traces = traces_of(samples) or traces_of((), [""])
    if len(traces) > 1:
        raise ValueError(f"samples of several GPUs: {sorted(traces)}")
    return next(iter(traces.values()))


def mig_reason(info: GpuInfo) -> str | None:
    """Why no window of this GPU can be attributed to one user of it, or None: in MIG mode energy is the whole GPU's."""
    if not info.mig:
        return None
    return (
        f"{info.name} {info.uuid} is in MIG mode: "
        "its power and energy are the whole GPU's, whoever uses the other slices"
    )


@dataclass
class _Window:
    """The checks of one window, in the order in which they are made. Times are seconds after t0."""

    near: PowerTrace
    t0_ns: int
    t1_ns: int
    lost: list[str] = field(default_factory=list)
    slowed: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counter_j: float | None = None
    integral_j: float | None = None
    edge_error: float | None = None
    """Share of the window's energy that the doubt about the counter's update instants leaves open at steady power."""
    max_gap_s: float | None = None

    def __post_init__(self) -> None:
        self.length_s = (self.t1_ns - self.t0_ns) / 1e9
        self.inside = self.near.between(self.t0_ns, self.t1_ns)

    def _readings(self, name: Literal["counter_j", "power_instant_w"]) -> tuple[Floats, Floats]:
        """Times (ascending) and values of a field where it was read."""
        values: Floats = getattr(self.near, name)
        read = np.flatnonzero(~np.isnan(values))
        # Two samples of one instant cannot be told apart in time: the later one in the list stands.
        t_ns = self.near.t_ns[read]
        last = np.append(t_ns[1:] > t_ns[:-1], True)[: t_ns.size]
        return (t_ns[last] - self.t0_ns) / 1e9, values[read[last]]

    def check_lost(self, trace: PowerTrace) -> None:
        seen = self.near if len(self.near) else trace
        for t_ns, errors in zip(seen.t_ns.tolist(), seen.errors, strict=True):
            for error in errors:
                if error.startswith(GPU_LOST) and t_ns <= self.t1_ns:
                    after_s = (t_ns - self.t0_ns) / 1e9
                    when = f"{after_s:.2f} s into" if after_s > 0 else f"{-after_s:.2f} s before"
                    self.lost.append(f"the GPU was lost {when} the window ({error.removeprefix(GPU_LOST)})")
                    return

    def check_cover(self) -> bool:
        """Whether readings of some energy field lie on both sides of the window."""
        read = ~(np.isnan(self.near.counter_j) & np.isnan(self.near.power_instant_w))
        t = (self.near.t_ns[read] - self.t0_ns) / 1e9
        if not t.size:
            named = _errors_of(self.near, "counter_j", "power_instant_w")
            self.invalid.append(f"neither the energy counter nor instantaneous power was read{named}")
            return False
        if t[0] > 0 or t[-1] < self.length_s:
            begin, end = max(float(t[0]), 0.0), min(float(t[-1]), self.length_s)
            seen = f"only {begin:.3f} to {end:.3f} s" if end > begin else "none"
            self.invalid.append(f"samples cover {seen} of the window's {self.length_s:.3f} s")
            return False
        self.max_gap_s = self._check_gaps(t, "sample")
        return True

    def _check_gaps(self, t: Floats, what: str) -> float:
        """The longest step of `t` (which brackets the window) that touches the window."""
        first, last = np.searchsorted(t, 0.0, side="right") - 1, np.searchsorted(t, self.length_s)
        steps = np.diff(t[first : last + 1])
        limit_s = max(GAP_MIN_S, GAP_PERIODS * float(np.median(np.diff(t))))
        longest = int(steps.argmax())
        gap_s = float(steps[longest])
        if gap_s > max(limit_s, self.max_gap_s or 0.0):
            self.invalid.append(
                f"no {what} for {gap_s:.2f} s, {max(float(t[first + longest]), 0.0):.2f} s into the window "
                f"(the limit is {limit_s:.2f} s)"
            )
        return gap_s

    def count_joules(self) -> None:
        """Sets counter_j, or says why the counter cannot be used."""
        t, joules = self._readings("counter_j")
        if not t.size:
            named = _errors_of(self.near, "counter_j")
            self.warnings.append(f"no energy counter{named}: the energy is the integral of instantaneous power alone")
            return
        falls = np.flatnonzero(joules[1:] < joules[:-1]) + 1
        for fall in falls:
            if t[fall] > 0 and t[fall - 1] < self.length_s:
                self.invalid.append(
                    f"the energy counter fell from {joules[fall - 1]:.3f} to {joules[fall]:.3f} J "
                    f"{max(float(t[fall]), 0.0):.2f} s into the window: it was reset"
                )
                return
        # A reset before or after the window ends the part of the staircase that belongs to it.
        begin = max((int(f) for f in falls if t[f] <= 0), default=0)
        end = min((int(f) for f in falls if t[f - 1] >= self.length_s), default=t.size)
        steps = staircase(t[begin:end], joules[begin:end])
        if not (steps.covers(0.0) and steps.covers(self.length_s)):
            self.warnings.append(self._uncovered(steps.instants_s))
            return
        self._check_gaps(t, "reading of the energy counter")
        self.counter_j = steps.at(self.length_s) - steps.at(0.0)
        self.edge_error = (steps.doubt_at(0.0) + steps.doubt_at(self.length_s)) / self.length_s
        count = steps.updates_between(0.0, self.length_s)
        if self.length_s < WINDOW_MIN_S or count < STEPS_MIN:
            self.warnings.append(
                f"the window's {self.length_s:.2f} s hold {count} updates of the energy counter: its edges leave up to "
                f"{self.edge_error:.1%} open at steady power ({WINDOW_MIN_S:.0f} s and {STEPS_MIN} updates are wanted)"
            )

    def _uncovered(self, updates_s: Floats) -> str:
        if not updates_s.size:
            return "the energy counter stood still: it is not used"
        return (
            f"the energy counter's updates were seen from {updates_s[0]:.3f} to {updates_s[-1]:.3f} s of the window's "
            f"{self.length_s:.3f} s only: sample longer before and after it; the counter is not used"
        )

    def integrate_power(self) -> None:
        """Sets integral_j, or says why it cannot be had."""
        t, watts = self._readings("power_instant_w")
        if not t.size:
            named = _errors_of(self.near, "power_instant_w")
            self.warnings.append(f"no instantaneous power{named}: the energy counter stands unchecked")
            return
        if t[0] > 0 or t[-1] < self.length_s:
            self.warnings.append(
                f"instantaneous power was read from {t[0]:.3f} to {t[-1]:.3f} s of the window's {self.length_s:.3f} s "
                "only: it is not used"
            )
            return
        self._check_gaps(t, "reading of instantaneous power")
        within = (t > 0) & (t < self.length_s)
        begin_w, end_w = np.interp([0.0, self.length_s], t, watts)
        t = np.concatenate([[0.0], t[within], [self.length_s]])
        watts = np.concatenate([[begin_w], watts[within], [end_w]])
        self.integral_j = float(np.sum(np.diff(t) * (watts[1:] + watts[:-1]) / 2))

    def compare(self) -> None:
        """Counter and integral must agree, in a short window up to what its edges leave open."""
        if self.counter_j is None and self.integral_j is None:
            self.invalid.append("neither the energy counter nor the integral of instantaneous power can be used")
        ratio = self.ratio()
        if ratio is None:
            return
        open_at_edges = self.edge_error if self.edge_error is not None and self.length_s < WINDOW_MIN_S else 0.0
        off = abs(ratio - 1) - open_at_edges
        if off > RATIO_GOOD:
            allowed = RATIO_GOOD if off <= RATIO_WARNING else RATIO_WARNING
            (self.warnings if off <= RATIO_WARNING else self.invalid).append(
                f"the integral of instantaneous power ({self.integral_j:.3f} J) is {ratio:.3f} times the energy "
                f"counter's {self.counter_j:.3f} J: more than {allowed:.0%} apart"
            )

    def ratio(self) -> float | None:
        if self.integral_j is None or not self.counter_j:
            return None
        return self.integral_j / self.counter_j

    def throttle_masks(self) -> list[int]:
        """Readings of the throttle reasons inside the window; if there is none, the last one before it."""
        inside = _read(self.inside.throttle_reasons)
        before = self.near.throttle_reasons[self.near.t_ns < self.t0_ns]
        return [int(mask) for mask in inside or _read(before)[-1:]]

    def check_throttle(self) -> None:
        masks = self.throttle_masks()
        for bits, into in ((throttle.FOREIGN, self.slowed), (throttle.SW_POWER_CAP, self.warnings)):
            for name in throttle.names(_any_bit(masks) & bits):
                count = sum(name in throttle.names(mask) for mask in masks)
                into.append(f"the GPU's clocks were lowered ({name}) in {count} of {len(masks)} readings")

    def result(self) -> WindowEnergy:
        energy_j = self.counter_j if self.counter_j is not None else self.integral_j
        source: Literal["counter", "integral"] = "counter" if self.counter_j is not None else "integral"
        invalid = (*self.lost, *self.invalid, *self.slowed)
        return WindowEnergy(
            gpu=self.near.gpu,
            t0_ns=self.t0_ns,
            t1_ns=self.t1_ns,
            energy_j=energy_j,
            source=None if energy_j is None else source,
            counter_j=self.counter_j,
            integral_j=self.integral_j,
            ratio=self.ratio(),
            power_w_mean=None if energy_j is None else energy_j / self.length_s,
            verdict="invalid" if invalid else "warning" if self.warnings else "good",
            reasons=(*invalid, *self.warnings),
            lost=tuple(self.lost),
            slowed=tuple(self.slowed),
            reservations=tuple(self.warnings),
            samples=len(self.inside),
            max_gap_s=self.max_gap_s,
            temperature_c_max=max(_read(self.inside.temperature_c), default=None),
            memory_used_bytes_max=max(map(int, _read(self.inside.memory_used_bytes)), default=None),
            throttle_reasons=_any_bit(self.throttle_masks()),
        )


def _read(column: Floats) -> list[float]:
    """The readings that are there."""
    values: list[float] = column[~np.isnan(column)].tolist()
    return values


def _any_bit(masks: Iterable[int]) -> int:
    return reduce(or_, masks, 0)


def _errors_of(trace: PowerTrace, *fields: str) -> str:
    """` (field: NVML_ERROR_..., ...)` of the fields' failures, empty where they are just not supported."""
    named = sorted({error for errors in trace.errors for error in errors if error.split(":")[0] in fields})
    return f" ({', '.join(named)})" if named else ""
