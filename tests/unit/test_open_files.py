"""The limit of open files is raised to what B needs, or the sweep is refused before it begins."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.machine import BESIDE_CONNECTIONS, allow_open_files, files_needed


@pytest.fixture
def limits() -> Iterator[dict[str, tuple[int, int]]]:
    """The process's limits as these say, in place of the system's: a hard one that was lowered stays low for good."""
    known = {"now": (64, 4096)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: known["now"])
        patch.setattr(resource, "setrlimit", lambda _, limit: known.update(now=limit))
        yield known


def test_the_soft_limit_is_raised_to_what_the_largest_batch_needs(limits: dict[str, tuple[int, int]]) -> None:
    allow_open_files(configure(concurrency=[1, 128]))
    assert limits["now"] == (128 + BESIDE_CONNECTIONS, 4096)


@pytest.mark.parametrize("now", [(1024, 4096), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)])
def test_a_limit_that_is_high_enough_stays(limits: dict[str, tuple[int, int]], now: tuple[int, int]) -> None:
    limits["now"] = now
    allow_open_files(configure(concurrency=[128]))
    assert limits["now"] == now


def test_several_processes_share_the_connections() -> None:
    assert files_needed(configure(concurrency=[1000], workers=4)) == 250 + BESIDE_CONNECTIONS


def test_a_hard_limit_that_is_too_low_is_one_sentence(limits: dict[str, tuple[int, int]]) -> None:
    limits["now"] = (100, 150)
    with pytest.raises(UsageError, match=r"--concurrency 128 needs 192 open files, and this process may open 150"):
        allow_open_files(configure(concurrency=[128]))
    assert limits["now"] == (100, 150)
