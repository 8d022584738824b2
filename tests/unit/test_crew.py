"""How many client processes a sweep uses, and that one answer holds for the whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_run import manifest_record

from loadgen.clienttest import selftest
from loadgen.clienttest.trial import Trial
from loadgen.errors import ServerError
from loadgen.measure.config import configure
from loadgen.measure.machine import client_workers
from loadgen.measure.observer import Observer
from loadgen.record.manifest import ManifestFile

Tried = list[tuple[int, float, str]]


class Heard(Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, sentence: str) -> None:
        self.said.append(sentence)

    def warn(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.fixture
def manifest(tmp_path: Path) -> ManifestFile:
    return ManifestFile(tmp_path, manifest_record(configure()))


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Tried:
    """A selftest that says: two processes."""
    asked: Tried = []

    def fewest(concurrency: int, rate: float, transport: str) -> tuple[int, list[Trial]]:
        asked.append((concurrency, rate, transport))
        return 2, []

    monkeypatch.setattr(selftest, "fewest_workers", fewest)
    return asked


def crew(manifest: ManifestFile, observer: Observer | None = None, **options: Any) -> dict[int, int]:
    config = configure(targets={"fp16": "http://127.0.0.1:1"}, **options)
    return client_workers(config, manifest, observer or Observer())


def test_where_one_process_does_by_far_nothing_is_tried(manifest: ManifestFile, tried: Tried) -> None:
    assert crew(manifest, concurrency=[1, 128, 256]) == {1: 1, 128: 1, 256: 1}
    assert crew(manifest, concurrency=[16], transport="openai") == {16: 1}
    assert tried == []


def test_beyond_that_the_selftest_says_it_at_a_token_each_10_ms(manifest: ManifestFile, tried: Tried) -> None:
    heard = Heard()
    assert crew(manifest, heard, concurrency=[16, 512]) == {16: 1, 512: 2}
    assert tried == [(512, 51_200.0, "raw")]
    assert any("B = 512 is driven by 2 client processes" in sentence for sentence in heard.said)
    assert crew(manifest, concurrency=[64], transport="openai") == {64: 2}
    assert tried[1:] == [(64, 6_400.0, "openai")]


def test_what_the_user_says_is_not_tried(manifest: ManifestFile, tried: Tried) -> None:
    assert crew(manifest, concurrency=[512], workers=3) == {512: 3}
    assert tried == []


def test_an_open_loop_is_one_processs_whatever_may_be_in_flight(manifest: ManifestFile, tried: Tried) -> None:
    assert crew(manifest, arrival="poisson:20") == {1024: 1}
    assert tried == []


def test_a_later_session_goes_on_as_the_first_began(manifest: ManifestFile, tried: Tried) -> None:
    crew(manifest, concurrency=[512])
    assert manifest.manifest.client.workers == {"512": 2}
    four = manifest_record(configure(), client={"loadgen": "0", "workers": {"512": 4}})
    again = ManifestFile(manifest.run_dir, four)
    assert crew(again, concurrency=[512]) == {512: 4}
    assert len(tried) == 1


def test_a_selftest_that_comes_to_nothing_leaves_one_process_and_a_warning(
    manifest: ManifestFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Callable[..., None]:
        raise ServerError("the selftest's server ended with exit status 1")

    monkeypatch.setattr(selftest, "fewest_workers", fails)
    heard = Heard()
    assert crew(manifest, heard, concurrency=[512]) == {512: 1}
    assert "the selftest at B = 512 failed" in heard.said[-1]
