"""WindowEnergy: the joules of one GPU between two instants from two independent sources, with a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Literal

import msgspec
import numpy as np

from loadgen.errors import UsageError
from loadgen.power.sample import FOREIGN, GPU_LOST, SW_POWER_CAP, PowerSample, Scope, throttle_names
from loadgen.power.trace import Floats, PowerTrace, staircase, traces_of

RATIO_GOOD = 0.03
RATIO_WARNING = 0.10
"""Largest |integral / counter - 1| of a good window, and of one that is not invalid."""
GAP_MIN_S = 0.5
GAP_PERIODS = 5
"""A gap longer than both GAP_MIN_S and GAP_PERIODS sampling periods makes a window invalid."""
WINDOW_MIN_S = 30.0
STEPS_MIN = 100
"""A window that is shorter, or has fewer updates of the counter, gets a warning with its edge error."""
AVERAGE_S = 1.0
"""NVML's average power (field 185, nvmlDeviceGetPowerUsage from Ampere on) is a mean of about this long."""
IMPLAUSIBLE_POWER = 1.5
IMPLAUSIBLE_ENERGY = 1.05
"""Power above this many times the limit, or energy above this many times limit x time, is a fault of the sensor; a GPU
that is held at its limit wavers around it."""
MARGIN_S = 5.0
"""How far beyond its edges a window looks for the counter's updates."""


_Power = Literal["power_instant_w", "power_average_w"]


class WindowEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of one GPU over [t0_ns, t1_ns]. None: could not be measured; never clamped, never 0 for unknown."""

    gpu: str
    t0_ns: int
    t1_ns: int
    energy_j: float | None
    """The figure to use: the counter's where it can be trusted and is the GPU's own, else the integral's."""
    source: Literal["counter", "integral", "average"] | None
    """`average`: the integral of NVML's one-second average power, where there is no instantaneous power."""
    counter_j: float | None
    """Difference of the energy counter, interpolated between its updates at both edges."""
    integral_j: float | None
    """Trapezoid of instantaneous (or else average) power, interpolated at both edges."""
    ratio: float | None
    """integral_j / counter_j."""
    power_w_mean: float | None
    """energy_j over the window's length."""
    verdict: Literal["good", "warning", "invalid"]
    reasons: tuple[str, ...]
    """Why not good, a sentence each with its figures: those that make it invalid first."""
    lost: tuple[str, ...] = ()
    """Those of `reasons` that say that the GPU is gone: no measurement on it in the window is valid."""
    slowed: tuple[str, ...] = ()
    """Those of `reasons` that say that heat or the supply lowered its clocks: speed and energy are both affected."""
    reservations: tuple[str, ...] = ()
    """Those of `reasons` that leave the window valid."""
    samples: int
    max_gap_s: float | None
    temperature_c_max: float | None = None
    memory_used_bytes_max: int | None = None
    throttle_reasons: int = 0
    """Every throttle bit seen in the window."""


def energy_of_window(
    samples: Sequence[PowerSample] | PowerTrace,
    t0_ns: int,
    t1_ns: int,
    *,
    limit_w: float | None = None,
    scope: Scope = "gpu",
) -> WindowEnergy:
    """The energy of the one GPU whose samples these are (any order, reaching beyond both edges).

    `limit_w`: the GPU's power limit, against which a single source is checked; a higher one in the samples counts.
    `scope`: what the energy counter counts; a `module` counter is not the GPU's, and `energy_j` is the integral. The
    result's `samples` counts those inside the window; max_gap_s is the longest time between two that cover it. Raises
    UsageError when the window does not end after it begins, ValueError when the samples are of several GPUs.
    """
    if t1_ns <= t0_ns:
        raise UsageError(f"the window from t0={t0_ns} to t1={t1_ns} ns has no length: give a t1 after t0")
    trace = samples if isinstance(samples, PowerTrace) else _only_trace(samples)
    margin_ns = int(MARGIN_S * 1e9)
    window = _Window(trace.between(t0_ns - margin_ns, t1_ns + margin_ns), t0_ns, t1_ns, limit_w, scope)
    window.check_lost(trace)
    if window.check_cover():
        window.count_joules()
        window.integrate_power()
        window.compare()
        window.check_plausible()
        window.check_throttle()
    return window.result()


def _only_trace(samples: Sequence[PowerSample]) -> PowerTrace:
    traces = traces_of(samples) or traces_of((), [""])
    if len(traces) > 1:
        raise ValueError(f"samples of several GPUs: {sorted(traces)}")
    return next(iter(traces.values()))


@dataclass
class _Window:
    """The checks of one window, in the order in which they are made. Times are seconds after t0."""

    near: PowerTrace
    t0_ns: int
    t1_ns: int
    limit_w: float | None
    scope: Scope
    lost: list[str] = field(default_factory=list)
    slowed: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counter_j: float | None = None
    integral_j: float | None = None
    edge_error: float | None = None
    """Uncertainty, as a share of the energy at steady power, from the counter's update instants at the edges."""
    integral_error: float = 0.0
    """The same from average power: a change of power near an edge may have moved across it."""
    power: _Power = "power_instant_w"
    """The power that is integrated."""
    max_gap_s: float | None = None

    def __post_init__(self) -> None:
        self.length_s = (self.t1_ns - self.t0_ns) / 1e9
        self.inside = self.near.between(self.t0_ns, self.t1_ns)

    def _readings(self, name: Literal["counter_j", _Power]) -> tuple[Floats, Floats]:
        """Times (ascending) and values of a field where it was read. Of two samples at one instant the later counts."""
        values: Floats = getattr(self.near, name)
        read = np.flatnonzero(~np.isnan(values))
        t_ns = self.near.t_ns[read]
        last = np.append(t_ns[1:] > t_ns[:-1], True)[: t_ns.size]
        return (t_ns[last] - self.t0_ns) / 1e9, values[read[last]]

    def check_lost(self, trace: PowerTrace) -> None:
        """A GPU that was read again before the window is no longer lost."""
        seen = self.near if len(self.near) else trace
        read = ~(np.isnan(seen.counter_j) & np.isnan(seen.power_instant_w) & np.isnan(seen.power_average_w))
        back_ns = max(seen.t_ns[read & (seen.t_ns <= self.t0_ns)].tolist(), default=-math.inf)
        for t_ns, errors in zip(seen.t_ns.tolist(), seen.errors, strict=True):
            for error in errors:
                if error.startswith(GPU_LOST) and back_ns <= t_ns <= self.t1_ns:
                    after_s = (t_ns - self.t0_ns) / 1e9
                    when = f"{after_s:.2f} s into" if after_s > 0 else f"{-after_s:.2f} s before"
                    self.lost.append(f"the GPU was lost {when} the window ({error.removeprefix(GPU_LOST)})")
                    return

    def check_cover(self) -> bool:
        """Whether readings of some energy field lie on both sides of the window."""
        if np.isnan(self.near.power_instant_w).all() and not np.isnan(self.near.power_average_w).all():
            self.power = "power_average_w"
        read = ~(np.isnan(self.near.counter_j) & np.isnan(getattr(self.near, self.power)))
        t = (self.near.t_ns[read] - self.t0_ns) / 1e9
        if not t.size:
            named = _errors_of(self.near, "counter_j", "power_instant_w")
            self.invalid.append(f"neither the energy counter nor instantaneous power was read{named}")
            return False
        if t[0] > 0 or t[-1] < self.length_s:
            begin, end = max(float(t[0]), 0.0), min(float(t[-1]), self.length_s)
            covered = f"only {begin:.3f} to {end:.3f} s" if end > begin else "none"
            self.invalid.append(f"samples cover {covered} of the window's {self.length_s:.3f} s")
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
            if self.scope != "module":
                named = _errors_of(self.near, "counter_j")
                self.warnings.append(f"no energy counter{named}: the energy is the integral of {self.power_name} alone")
            return
        falls = np.flatnonzero(joules[1:] < joules[:-1]) + 1
        for fall in falls:
            if t[fall] > 0 and t[fall - 1] < self.length_s:
                self.invalid.append(
                    f"the energy counter fell from {joules[fall - 1]:.3f} to {joules[fall]:.3f} J "
                    f"{t[fall]:.2f} s into the window: it was reset"
                )
                return
        # A reset before or after the window ends the stretch that belongs to it.
        begin = max((int(f) for f in falls if t[f] <= 0), default=0)
        end = min((int(f) for f in falls if t[f - 1] >= self.length_s), default=t.size)
        steps = staircase(t[begin:end], joules[begin:end])
        if not (steps.covers(0.0) and steps.covers(self.length_s)):
            seen = steps.instants_s
            self.warnings.append(
                f"the energy counter's updates were seen only from {seen[0]:.3f} to {seen[-1]:.3f} s of the window's "
                f"{self.length_s:.3f} s: sample longer before and after it; the counter is not used"
                if seen.size
                else "the energy counter did not change: it is not used"
            )
            return
        self._check_gaps(t, "reading of the energy counter")
        self.counter_j = steps.at(self.length_s) - steps.at(0.0)
        self.edge_error = (steps.doubt_at(0.0) + steps.doubt_at(self.length_s)) / self.length_s
        if self.scope == "module":
            return
        count = steps.updates_between(0.0, self.length_s)
        if self.length_s < WINDOW_MIN_S or count < STEPS_MIN:
            self.warnings.append(
                f"energy uncertain by up to {self.edge_error:.1%}: window too short, {self.length_s:.2f} s with "
                f"{count} updates of the energy counter (use at least {WINDOW_MIN_S:.0f} s and {STEPS_MIN} counter "
                "updates)"
            )

    @property
    def power_name(self) -> str:
        return "instantaneous power" if self.power == "power_instant_w" else "average power"

    def integrate_power(self) -> None:
        """Sets integral_j, or says why it cannot be had."""
        t, watts = self._readings(self.power)
        if not t.size:
            named = _errors_of(self.near, "power_instant_w")
            self.warnings.append(f"no instantaneous power{named}: the energy counter is not checked")
            return
        if t[0] > 0 or t[-1] < self.length_s:
            self.warnings.append(
                f"{self.power_name} was read only from {t[0]:.3f} to {t[-1]:.3f} s of the window's {self.length_s:.3f} "
                "s: it is not used"
            )
            return
        self._check_gaps(t, f"reading of {self.power_name}")
        if self.power == "power_average_w":
            t = t - AVERAGE_S / 2  # a mean of the last second is about the power of its middle
        within = (t > 0) & (t < self.length_s)
        begin_w, end_w = np.interp([0.0, self.length_s], t, watts)
        inside_t = np.concatenate([[0.0], t[within], [self.length_s]])
        inside_w = np.concatenate([[begin_w], watts[within], [end_w]])
        self.integral_j = float(np.sum(np.diff(inside_t) * (inside_w[1:] + inside_w[:-1]) / 2))
        if self.power == "power_average_w":
            self._doubt_average(t, watts)

    def _doubt_average(self, t: Floats, watts: Floats) -> None:
        """Average power moves half a second of a change of power across a nearby edge."""
        moved_j = 0.0
        for edge_s in (0.0, self.length_s):
            beside = watts[np.abs(t - edge_s) <= AVERAGE_S]
            moved_j += float(np.ptp(beside)) * AVERAGE_S / 2 if beside.size else 0.0
        if self.integral_j:
            self.integral_error = moved_j / self.integral_j
        reason = f"no instantaneous power: NVML's average over about {AVERAGE_S:g} s is used"
        if self.counter_j is not None and self.scope != "module":
            self.warnings.append(f"{reason} to check the energy counter")
            return
        reason += (
            f", and the energy is uncertain by up to {self.integral_error:.1%}, from changes of power at the edges"
        )
        if self.integral_error > RATIO_WARNING:
            self.invalid.append(f"{reason}: use a longer window, with steady power around it")
        else:
            self.warnings.append(reason)

    def compare(self) -> None:
        """Counter and integral must agree, in a short window up to the uncertainty of its edges."""
        if self.scope == "module":
            whole = "the energy counter is the whole module's (GPU, CPU and memory)"
            if self.integral_j is None:
                self.invalid.append(f"{whole}, and no power was read")
            else:
                self.warnings.append(f"{whole}: the energy is the integral of the GPU's {self.power_name} alone")
            return
        if self.counter_j is None and self.integral_j is None:
            self.invalid.append(f"neither the energy counter nor the integral of {self.power_name} can be used")
        ratio = self.ratio()
        if ratio is None:
            return
        open_at_edges = self.edge_error if self.edge_error is not None and self.length_s < WINDOW_MIN_S else 0.0
        off = abs(ratio - 1) - open_at_edges - self.integral_error
        if off > RATIO_GOOD:
            allowed = RATIO_GOOD if off <= RATIO_WARNING else RATIO_WARNING
            (self.warnings if off <= RATIO_WARNING else self.invalid).append(
                f"the integral of {self.power_name} ({self.integral_j:.3f} J) is {ratio:.3f} times the energy "
                f"counter's {self.counter_j:.3f} J: more than {allowed:.0%} apart"
            )

    def check_plausible(self) -> None:
        """A single source must at least be possible."""
        limit_w = max([*_read(self.near.power_limit_w), *([self.limit_w] if self.limit_w else [])], default=None)
        if self.integral_j is not None and (self.counter_j is None or self.scope == "module"):
            values = _read(getattr(self.inside, self.power))
            if zeros := sum(watts <= 0 for watts in values):
                self.invalid.append(
                    f"{self.power_name} was 0 W in {zeros} of {len(values)} readings, which no GPU draws under load, "
                    "and no energy counter checks it"
                )
            if limit_w and (high := [watts for watts in values if watts > IMPLAUSIBLE_POWER * limit_w]):
                self.invalid.append(
                    f"{self.power_name} was up to {max(high):.0f} W in {len(high)} of {len(values)} readings, more "
                    f"than {IMPLAUSIBLE_POWER:g} times the limit of {limit_w:.0f} W, and no energy counter checks it"
                )
        elif self.integral_j is None and self.counter_j is not None:
            mean_w = self.counter_j / self.length_s
            if limit_w and mean_w > limit_w * (IMPLAUSIBLE_ENERGY + (self.edge_error or 0.0)):
                self.invalid.append(
                    f"the energy counter's {self.counter_j:.3f} J are {mean_w:.0f} W on average, more than the limit "
                    f"of {limit_w:.0f} W, and no power reading checks it"
                )
            if self.counter_j <= 0:
                self.invalid.append("the energy counter counted nothing, and no power reading checks it")

    def ratio(self) -> float | None:
        if self.integral_j is None or not self.counter_j:
            return None
        return self.integral_j / self.counter_j

    def throttle_masks(self) -> list[int]:
        """Readings of the throttle reasons inside the window; if there is none, the last one before it."""
        before = self.near.throttle_reasons[self.near.t_ns < self.t0_ns]
        return [int(mask) for mask in _read(self.inside.throttle_reasons) or _read(before)[-1:]]

    def check_throttle(self) -> None:
        masks = self.throttle_masks()
        for bits, reasons in ((FOREIGN, self.slowed), (SW_POWER_CAP, self.warnings)):
            for name in throttle_names(reduce(or_, masks, 0) & bits):
                count = sum(name in throttle_names(mask) for mask in masks)
                reasons.append(f"the GPU's clocks were lowered ({name}) in {count} of {len(masks)} readings")

    def result(self) -> WindowEnergy:
        counted = self.counter_j is not None and self.scope != "module"
        energy_j = self.counter_j if counted else self.integral_j
        average = self.power == "power_average_w"
        invalid = (*self.lost, *self.invalid, *self.slowed)
        return WindowEnergy(
            gpu=self.near.gpu,
            t0_ns=self.t0_ns,
            t1_ns=self.t1_ns,
            energy_j=energy_j,
            source=None if energy_j is None else "counter" if counted else "average" if average else "integral",
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
            throttle_reasons=reduce(or_, self.throttle_masks(), 0),
        )


def _read(column: Floats) -> list[float]:
    """The readings that are not missing."""
    values: list[float] = column[~np.isnan(column)].tolist()
    return values


def _errors_of(trace: PowerTrace, *fields: str) -> str:
    """` (field: NVML_ERROR_..., ...)` for the fields' failures; empty where they are only not supported."""
    named = sorted({error for errors in trace.errors for error in errors if error.split(":")[0] in fields})
    return f" ({', '.join(named)})" if named else ""
