"""Options declared once: what the command line, YAML, Python, the manifest and a resumed run make of a declaration."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_run import manifest_record

import loadgen
from loadgen.cli.sweep import command as sweep
from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.settings import as_stored, resumed_config
from loadgen.options import ReportOptions, RunOptions, SelftestOptions, declared
from loadgen.record.manifest import Manifest
from loadgen.secret import Mask

URL = "http://127.0.0.1:8001"
RUN = Path("runs/x")


def manifest(given: dict[str, Any]) -> Manifest:
    """As a sweep that was given these options writes it."""
    config = configure(**given)
    config = msgspec.structs.replace(config, extra_body=Mask().content(config.extra_body))
    return manifest_record(config, given=as_stored(given, Mask()), client={"loadgen": "0.1.0"})


@pytest.mark.parametrize(
    ("function", "options"),
    [(loadgen.sweep, RunOptions), (loadgen.report, ReportOptions), (loadgen.selftest, SelftestOptions)],
)
def test_the_python_signature_and_docstring_show_every_option(function: Any, options: type) -> None:
    shown = inspect.signature(function).parameters
    for name, option in declared(options).items():
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert (shown[name].default, shown[name].annotation) == (option.default, option.annotation)
        assert re.search(rf"^    {name} \([^)]+\): {re.escape(option.help)}", inspect.getdoc(function), re.MULTILINE)
    assert "options" not in shown


def test_the_command_line_has_the_declared_options_and_defaults() -> None:
    parameters = {parameter.name: parameter for parameter in sweep.params}
    for name, option in declared(RunOptions).items():
        assert parameters[name].opts == [f"--{option.flag.replace('_', '-')}"]
    assert set(parameters) - set(declared(RunOptions)) == {"config", "dry_run", "format", "extra_args"}


@pytest.mark.parametrize("call", [loadgen.sweep, configure])
def test_a_misspelt_keyword_is_refused_with_the_right_one(call: Any) -> None:
    with pytest.raises(UsageError, match="'concurency' is not an option; did you mean concurrency"):
        call(concurency=[1])


def test_a_misspelt_keyword_of_the_other_functions_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'alfa' is not an option; did you mean alpha"):
        loadgen.report(tmp_path, alfa=1.0)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="'worker' is not an option; did you mean workers"):
        loadgen.selftest(worker=1)  # type: ignore[call-arg]


GIVEN: list[dict[str, Any]] = [
    {},
    {"concurrency": "1,16", "duration": 5.0},
    {"concurrency": [1, 16], "limit": 10, "data_file": Path("rows.jsonl"), "out": Path("runs/x")},
    {"targets": {"fp16": URL, "mine:awq": f"{URL}/b"}, "reference": "mine", "metrics_url": ["mine=http://h:1/metrics"]},
    {"serve": "fp16,awq=org/q", "model": "org/m", "start_sd": "1.5%", "metrics_port": None},
    {"targets": [f"fp16={URL}"], "thinking": "on", "thinking_budget": 9, "api": "chat", "extra_body": '{"top_k": 1}'},
]


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: " ".join(given) or "none")
def test_a_run_is_resumed_with_the_options_as_they_were_given(given: dict[str, Any]) -> None:
    begun = manifest(given)
    assert set(begun.given or ()) == set(given)
    assert resumed_config(RUN, begun, {}) == configure(**given)
    assert resumed_config(RUN, begun, given) == configure(**given)


def test_the_manifest_has_the_options_as_typed_and_no_secret() -> None:
    given = {
        "concurrency": "1, 16",
        "extra_body": {"api_key": "sk-canary", "top_k": 1},
        "data_file": Path("rows.jsonl"),
    }
    assert as_stored(given, Mask()) == {
        "concurrency": "1, 16",
        "extra_body": {"api_key": "***", "top_k": 1},
        "data_file": "rows.jsonl",
    }
    begun = manifest({"extra_body": given["extra_body"]})
    assert resumed_config(RUN, begun, {"extra_body": given["extra_body"]}).extra_body == given["extra_body"]
    with pytest.raises(UsageError, match="secrets are not stored; give the same --extra-body"):
        resumed_config(RUN, begun, {})


def test_a_key_in_a_page_of_metrics_is_masked_and_the_run_still_resumed() -> None:
    given = {"targets": {"fp16": URL}, "metrics_url": ["http://127.0.0.1:9/metrics?api_key=abcdefgh"]}
    begun = manifest(given)
    assert "abcdefgh" not in str(begun.given)
    assert resumed_config(RUN, begun, {}) == configure(**given)


@pytest.mark.parametrize(
    "given",
    [{"concurrency": "1"}, {"concurrency": 5}, {"concurrency": {"a": 1}}, {"no_such_option": 1}, {"seed": "0"},
     {"targets": {"fp16": "http://author.example"}}, {"serve": "fp16", "model": "org/m"}, {"vllm": ["x"]},
     {"targets": {"fp16": None}}, {"extra_body": {"a": 1}}, {"data_file": 1}, {"api": "other"}],
    ids=str,
)  # fmt: skip
def test_given_options_that_do_not_make_the_stored_settings_are_refused(given: Any) -> None:
    """Consent is asked for what `config` does: options that do something else are never used."""
    begun = msgspec.structs.replace(manifest({"concurrency": [2]}), given=given)
    with pytest.raises(UsageError):
        resumed_config(RUN, begun, {})


def test_a_target_named_again_with_its_pages_of_metrics_is_the_same() -> None:
    given = {"targets": {"fp16": URL, "awq": f"{URL}/b"}, "metrics_url": ["awq=http://h:1/metrics"]}
    begun = manifest(given)
    assert resumed_config(RUN, begun, {"targets": given["targets"]}) == configure(**given)
    with pytest.raises(UsageError, match=r"--target fp16=http://127\.0\.0\.1:8001: runs/x was begun with --target"):
        resumed_config(RUN, begun, {"targets": {"fp16": URL}})
