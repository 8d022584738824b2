"""Rest: a GPU's power and sensors while nothing is asked of it."""

from __future__ import annotations

import msgspec

from loadgen.power.calibration import Calibration


class Rest(msgspec.Struct, frozen=True):
    """What the sensors showed while nothing was asked of a server, by GPU."""

    power_w: dict[str, float | None]
    """Mean power; None where it cannot be told."""
    calibration: dict[str, Calibration]
    """Update periods and resolution, from the same seconds."""

    def __str__(self) -> str:
        return "; ".join(self._line(gpu, found) for gpu, found in self.calibration.items())

    def _line(self, gpu: str, found: Calibration) -> str:
        watts = self.power_w.get(gpu)
        updates = {"energy counter": found.counter_period_s, "power": found.instant_period_s}
        each = [f"{what} each {period_s * 1e3:.0f} ms" for what, period_s in updates.items() if period_s is not None]
        return f"{gpu} {'? W' if watts is None else f'{watts:.1f} W'} ({', '.join(each) or 'no update seen'})"
