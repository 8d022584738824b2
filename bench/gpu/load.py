"""Keeps a GPU busy, steadily or in pulses: matrix products of random numbers. Runs under a Python that has torch.

PYTHON -m bench.gpu.load --seconds 20 [--pulse 0.5]
"""

from __future__ import annotations

import argparse
import time

import torch

SIZE = 8192
BATCH = 8
"""Products between two looks at the clock: some ten milliseconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Keep a GPU busy with matrix products.")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--pulse", type=float, default=0.0, help="seconds on, then as long off; 0: always on")
    options = parser.parse_args()
    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    a @ b
    torch.cuda.synchronize()
    print("busy", flush=True)
    begun = time.monotonic()
    while (now := time.monotonic() - begun) < options.seconds:
        if options.pulse and int(now / options.pulse) % 2:
            time.sleep(options.pulse - now % options.pulse)
            continue
        for _ in range(BATCH):
            a @ b
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
