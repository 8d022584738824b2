"""Which tests run where (CONTRIBUTING.md, Tests), and what several folders of tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import nullcontext

import hypothesis
import pytest
from kinds import EVERYTHING, left_out, skip_slow_kinds
from undisturbed import MeasuredInOneProcess, measured_alone, place
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from loadgen.serving.environment import CpuEnvironment, default_environment

hypothesis.settings.register_profile("quick", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.register_profile("loadgen", deadline=None, derandomize=True)
"""The same inputs in every run of a commit; profile `long` looks for new ones. No test asserts wall-clock speed, on
machines that are as noisy as CI's."""
hypothesis.settings.register_profile(
    "long", deadline=None, max_examples=20_000, suppress_health_check=list(hypothesis.HealthCheck)
)
"""By hand: `python -m pytest tests/fuzz --hypothesis-profile=long`."""
hypothesis.settings.load_profile("loadgen" if EVERYTHING else "quick")


@pytest.fixture(autouse=True, scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What loadgen remembers of runs and its servers' logs, apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else a token of this user's, if there is one, is asked for
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if EVERYTHING:
        items.sort(key=lambda item: place(item.nodeid))
    else:
        skip_slow_kinds(items, asked=config.option.markexpr)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process per core for a whole run; one where files are named."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(len(os.sched_getaffinity(0)), 4) if whole else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    return (MeasuredInOneProcess if EVERYTHING else LoadFileScheduling)(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with measured_alone(item.nodeid) if EVERYTHING else nullcontext():
        return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)]
    if reasons:
        terminalreporter.write_line(left_out(reasons))


@pytest.fixture(scope="session")
def cpu_environment() -> CpuEnvironment:
    """vLLM's CPU build and the tiny models, by `loadgen cpu-env`, which builds what is missing."""
    built = subprocess.run([sys.executable, "-m", "loadgen", "cpu-env"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return default_environment()
