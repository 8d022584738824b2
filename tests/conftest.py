"""Which tests run where."""

from __future__ import annotations

import os

import hypothesis
import pytest

hypothesis.settings.register_profile("loadgen", deadline=None)
"""No test asserts wall-clock speed, on machines that are as noisy as CI's."""
hypothesis.settings.register_profile(
    "long", deadline=None, max_examples=20_000, suppress_health_check=list(hypothesis.HealthCheck)
)
"""By hand: `python -m pytest tests/fuzz --hypothesis-profile=long`."""
hypothesis.settings.load_profile("loadgen")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real vLLM servers take minutes and gigabytes: they run in CI, and elsewhere when asked for."""
    if os.environ.get("CI") == "true" or os.environ.get("LOADGEN_TEST_VLLM") == "1":
        return
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.skip(reason="needs real vLLM: set LOADGEN_TEST_VLLM=1 (20 minutes, 4 GB)"))
