"""`loadgen data`: what is pinned, what is in the cache, and what happened to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from loadgen.cli.data import data
from loadgen.workload.dataset import FILES
from loadgen.workload.published import PublishedFile, cache_dir, sha256_of


@pytest.fixture(autouse=True)
def two_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files take the published ones' places, at file:// addresses."""
    monkeypatch.setenv("LOADGEN_CACHE", str(tmp_path / "cache"))
    for name, files in FILES.items():
        made = []
        for file in files:
            source = tmp_path / file.name
            source.write_text(f"content of {file.name}")
            made.append(PublishedFile(file.name, source.as_uri(), sha256_of(source), source.stat().st_size))
        monkeypatch.setitem(FILES, name, tuple(made))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(data, arguments, catch_exceptions=False)


def states(output: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[-1] for line in output.splitlines() if "sha256" in line}


def test_the_list_names_every_file_with_size_and_hash_and_fetches_nothing() -> None:
    result = run()
    assert result.exit_code == 0
    for file in (file for files in FILES.values() for file in files):
        assert f"{file.size_bytes} bytes  sha256 {file.sha256}  absent" in result.output
    assert set(states(result.output)) == {
        "gsm8k_test.jsonl", "gsm8k_train.jsonl", "mathqa_test.json", "mathqa_dev.json"
    }  # fmt: skip
    assert "jsonl, choices     files of your own, named with --data-file" in result.output
    assert str(cache_dir()) in result.output
    assert not cache_dir().exists()


def test_fetch_brings_the_named_sets_files_only() -> None:
    result = run("fetch", "mathqa")
    assert result.exit_code == 0
    assert sorted(path.name for path in cache_dir().iterdir()) == ["mathqa_dev.json", "mathqa_test.json"]
    assert str(cache_dir() / "mathqa_dev.json") in result.output
    assert states(run().output)["mathqa_dev.json"] == "cached"
    assert states(run().output)["gsm8k_test.jsonl"] == "absent"


def test_verify_fails_for_what_is_absent_or_damaged() -> None:
    assert run("verify", "gsm8k").exit_code == 1
    run("fetch", "gsm8k", "mathqa", "gsm8k")
    assert run("verify").exit_code == 0
    (cache_dir() / "gsm8k_test.jsonl").write_text("cut")
    result = run("verify")
    assert result.exit_code == 1
    assert states(result.output)["gsm8k_test.jsonl"] == "damaged"
    assert run("verify", "mathqa").exit_code == 0


def test_fetch_replaces_a_damaged_file() -> None:
    run("fetch", "gsm8k")
    (cache_dir() / "gsm8k_test.jsonl").write_text("cut")
    run("fetch", "gsm8k")
    assert run("verify", "gsm8k").exit_code == 0
