"""A manifest.json that lacks a key is one sentence that names the file and the key, whichever key it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_run import make_run, manifest_record

from loadgen.analysis.analyse import analyse
from loadgen.analysis.run import load_run
from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.machine import begin_session
from loadgen.power.sample import GpuInfo
from loadgen.record.manifest import Manifest, ManifestFile, PowerBlock, ServerRecord, read_manifest
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


def test_what_a_sweep_writes_is_what_is_read_and_no_key_is_lost(tmp_path: Path) -> None:
    server = ServerRecord(name="fp16", repeat=1, session=1, version="0.33.0", argv=("vllm", "--port", "1"), pid=7)
    gpu = GpuInfo(uuid="GPU-1", index=0, name="NVIDIA L4", memory_total_bytes=24 * 10**9)
    file = ManifestFile(tmp_path, manifest_record(configure(), given={"repeats": 1}))
    begin_session(file, "the driver was 1, now 2")
    file.add_server(server)
    file.add_power(PowerBlock(target="fp16", repeat=1, gpus=(gpu,), rest_w={"GPU-1": 30.5}))
    file.end_power(2, 1)
    file.add_failure(2, "awq", "it ended")
    read = read_manifest(tmp_path)
    assert read == file.manifest
    assert set(written(tmp_path)) == set(Manifest.__struct_fields__)
    assert (read.servers, read.gpu, read.power_blocks[0].samples_lost) == ((server,), (gpu,), 2)
    assert (read.sessions[0].warnings, read.clock_anchors[0].session) == (("the driver was 1, now 2",), 1)


def test_an_earlier_version_lacks_keys_and_a_later_one_has_more(run_dir: Path) -> None:
    content = written(run_dir)
    content["config"]["a_later_setting"] = content["a_later_key"] = {"deep": [1, 2]}
    (run_dir / "manifest.json").write_text(json.dumps(content))
    manifest = read_manifest(run_dir)
    assert (manifest.sessions, manifest.power_blocks, manifest.gpu, manifest.given) == ((), (), None, None)
    assert (manifest.power.kind, manifest.weights, manifest.servers[0].argv) == (None, None, None)
    assert (manifest.config.arrival, manifest.config.max_error_rate, manifest.config.prefix_cache) == (
        "closed", 0.005, False,
    )  # fmt: skip
