"""Cells of a reference and a target whose costs per token are known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from loadgen.analysis.cells import CellSummary

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
Cost = Callable[[str, float], float]
"""Joules or seconds per token of a target at a batch."""


def cells(
    base: CellSummary,
    *,
    joules: Cost | None = None,
    seconds: Cost | None = None,
    batches: tuple[int, ...] = BATCHES,
    targets: tuple[str, ...] = ("fp16", "awq"),
    repeats: int = 3,
    noise: float = 0.005,
    seed: int = 1,
) -> list[CellSummary]:
    """Valid cells of these costs, each with its own lognormal noise."""
    rng = np.random.default_rng(seed)
    made = []
    for target in targets:
        for b in batches:
            for repeat in range(1, repeats + 1):
                wobble = np.exp(noise * rng.standard_normal(2)).tolist()
                energy = joules(target, b) * wobble[0] if joules else None
                made.append(
                    msgspec.structs.replace(
                        base, target=target, precision=target, concurrency=b, repeat=repeat, running_mean=float(b),
                        tokens_per_s=1 / (seconds(target, b) * wobble[1]) if seconds else None,
                        energy=msgspec.structs.replace(base.energy, energy_per_token_j=energy),
                    )
                )  # fmt: skip
    return made


def eq19(target: str, b: float) -> float:
    """gamma = 1, alpha = 2 per bit, phi = 0.5: B* = 2 * 12 / 0.5 = 48, cheaper below it."""
    return 1 + 2 * (16 if target == "fp16" else 4) / b + (0.5 if target == "awq" else 0.0)


def eq23(target: str, b: float) -> float:
    """No weight reads: 2 per token for the reference, 1.5 + 8 / B for the target, dearer below B* = 16."""
    return 2.0 if target == "fp16" else 1.5 + 8 / b


def one_floor(target: str, b: float) -> float:
    """B cancels: the target's step costs 70% of the reference's, their cost per token is the same."""
    return 1 + (20 if target == "fp16" else 14) / b


def roofline(target: str, b: float) -> float:
    """Reference: reads 8 ms or computes 0.25 ms a token, so its roof is at 32 and that of 4 bits at 8; 1 ms launch,
    0.1 ms a sequence; dequantization 2 ms a step. Equal where 2 + 0.25 B = 8: B* = 24."""
    weights = 8e-3 if target == "fp16" else 2e-3
    return (1e-3 + max(weights, 0.25e-3 * b) + (2e-3 if target == "awq" else 0.0)) / b + 0.1e-3
