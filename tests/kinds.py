"""Kinds of tests that a quick run leaves out, and what it says about them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

import pytest

EVERYTHING = os.environ.get("CI") == "true"
KINDS = {"slow": "slow", "vllm": "real vLLM", "docker": "Docker"}
"""The markers, and what the sentence calls them."""


def skip_slow_kinds(items: Iterable[pytest.Item], asked: str) -> None:
    """Skips the tests of these kinds, except of those that `asked`, pytest's -m, names."""
    for item in items:
        for kind, name in KINDS.items():
            if item.get_closest_marker(kind) and kind not in asked:
                item.add_marker(pytest.mark.skip(reason=name))
                break


def left_out(reasons: Iterable[str]) -> str:
    """The sentence about skipped tests: how many for which reason, and the commands that run them."""
    counted = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    told = ", ".join(f"{count} {reason}" for reason, count in counted.most_common())
    return (
        f"Left out: {counted.total()} tests ({told}). To run everything: .ci/run (it installs missing programs). "
        f"To run one kind: .venv/bin/python -m pytest -m KIND, where KIND is {', '.join(KINDS)}."
    )
