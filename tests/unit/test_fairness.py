"""Fairness: targets that differ in more than their precision are named."""

from __future__ import annotations

from typing import Any

import pytest
from made_run import manifest_record

from loadgen.analysis.warnings import unequal_servers
from loadgen.measure.config import configure
from loadgen.record.manifest import Manifest


def manifest(**others: dict[str, Any]) -> Manifest:
    servers = [{"name": name, "repeat": 1, "version": None, **facts} for name, facts in others.items()]
    return manifest_record(configure(), servers=servers)


FP16 = {"kv_cache_dtype": "float16", "eager": False}


def test_targets_that_keep_keys_and_values_differently_are_named() -> None:
    (sentence,) = unequal_servers(manifest(fp16=FP16, fp8={"kv_cache_dtype": "fp8", "eager": False}))
    assert sentence.startswith("fp8 keeps keys and values in fp8 and fp16 in float16")


@pytest.mark.parametrize(("eager", "slow", "fast"), [((True, False), "int8", "fp16"), ((False, True), "fp16", "int8")])
def test_a_target_without_cuda_graphs_is_named_whichever_it_is(eager: tuple[bool, bool], slow: str, fast: str) -> None:
    ours, theirs = ({**FP16, "eager": value} for value in eager[::-1])
    (sentence,) = unequal_servers(manifest(fp16=ours, int8=theirs))
    assert sentence.startswith(f"{slow} ran eagerly")
    assert f"{fast} did not" in sentence


def test_equal_servers_and_those_that_do_not_say_are_not_named() -> None:
    bf16 = {"kv_cache_dtype": "bfloat16", "eager": False}
    assert unequal_servers(manifest(fp16=FP16, awq=FP16, bf16=bf16)) == []
    assert unequal_servers(manifest(fp16=FP16, old={})) == []
    assert unequal_servers(manifest(fp16={}, awq=FP16)) == []
    assert unequal_servers(manifest(awq=FP16)) == []
