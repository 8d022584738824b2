"""A manifest.json that lacks a key is one sentence that names the file and the key, whichever key it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_run import make_run

from loadgen.analysis.analyse import analyse
from loadgen.analysis.run import load_run
from loadgen.errors import UsageError
from loadgen.record.manifest import read_manifest
from loadgen.reports.html import write_report

SERVER = {"name": "fp16", "repeat": 1, "version": "0.32.0", "url": "http://127.0.0.1:1"}
FAILURE = {"target": "awq", "repeat": 2, "error": "awq: the server ended"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", servers=[SERVER], failures=[FAILURE])


def written(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "manifest.json").read_bytes())
    return content


def without_a_key(content: Any) -> Iterator[tuple[str, Any]]:
    """Each key, at whatever depth, and what is left without it."""
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        if isinstance(content, dict):
            yield key, {name: value for name, value in content.items() if name != key}
        for name, less in without_a_key(content[key]):
            changed = content.copy()
            changed[key] = less
            yield name, changed


def test_without_any_one_key_a_run_is_reported_or_refused_by_name(run_dir: Path) -> None:
    """The keys without which it is reported are those that `read_manifest` does not ask for."""
    refused = []
    for key, less in without_a_key(written(run_dir)):
        (run_dir / "manifest.json").write_text(json.dumps(less))
        try:
            read_manifest(run_dir)
        except UsageError as error:
            refused.append(key)
            assert str(run_dir / "manifest.json") in str(error)
            assert f"`{key}`" in str(error) or key == "schema"
        else:
            analyse(run_dir)
            write_report(load_run(run_dir))
    assert {"config", "reference", "targets", "protocol", "host", "servers", "failures", "error"} <= set(refused)


def test_a_key_of_another_kind_is_named_with_its_path(run_dir: Path) -> None:
    content = written(run_dir)
    content["config"]["targets"] = "fp16"
    (run_dir / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"Expected `array`, got `str` - at `\$.config.targets`"):
        analyse(run_dir)
