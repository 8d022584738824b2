"""Which field an error names, in the shapes that servers and gateways write errors in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadgen.load.body import named_fields

BODY: dict[str, Any] = {
    "model": "m",
    "prompt": "2 + 2 =",
    "max_tokens": 64,
    "temperature": 0,
    "seed": 0,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "stop": ["Q:"],
    "cache_salt": "a-0",
    "top_k": 1,
}
USAGE = "stream_options.continuous_usage_stats"


def named(error: object) -> list[str]:
    text = error if isinstance(error, str) else json.dumps(error)
    return named_fields(text.encode(), BODY)


@pytest.mark.parametrize(
    ("error", "first"),
    [
        ({"error": {"message": f"{USAGE}: extra inputs are not permitted", "type": "invalid_request_error"}}, USAGE),
        ({"error": {"message": "Unsupported value", "param": "temperature"}}, "temperature"),
        ({"error": {"message": "Unknown parameter: 'stream_options'.", "param": None}}, "stream_options"),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "no", "input": 0}]}, "seed"),
        ({"detail": [{"loc": ["body", *USAGE.split(".")], "msg": "Extra inputs are not permitted"}]}, USAGE),
        ({"error": "Input validation error: `temperature` must be strictly positive"}, "temperature"),
        (
            "1 validation error for Request\ncache_salt\n  Extra inputs are not permitted [type=extra_forbidden, "
            "input_value='temperature', input_type=str]",
            "cache_salt",
        ),
        (
            {"message": "[{'type': 'extra_forbidden', 'loc': ('body', 'cache_salt'), 'input': {'temperature': 0}}]"},
            "cache_salt",
        ),
        ({"error": "unknown field `cache_salt`, expected one of `model`, `temperature`, `seed`"}, "cache_salt"),
        ("create() got an unexpected keyword argument 'top_k'", "top_k"),
        ({"error": {"message": "openai does not support parameters: ['seed', 'top_k']"}}, "seed"),
        ("streamOptions is not supported", "stream_options"),
        ({"error": {"message": "Invalid 'stop': at most 0 sequences"}}, "stop"),
        ({"error": {"message": "'max_tokens' is not supported, use 'max_completion_tokens'"}}, "max_tokens"),
    ],
)
def test_the_field_that_is_refused_comes_first(error: object, first: str) -> None:
    assert named(error)[0] == first


@pytest.mark.parametrize(
    "error",
    [
        "",
        "\xff\xfe",
        {"error": {"message": "Please stop sending requests"}},
        {"error": {"message": "The model `m` does not exist"}},
        {"detail": [{"type": "missing", "loc": ["body", "prompt"], "msg": "Field required", "input": BODY}]},
        {"error": {"message": "prompt is too long"}, "body": BODY},
        [[[[]]]],
        17,
    ],
)
def test_an_error_about_something_else_names_none(error: object) -> None:
    assert named(error) == []


def test_what_holds_a_field_comes_after_it() -> None:
    assert named(f"stream_options is wrong: {USAGE} is unknown") == [USAGE, "stream_options"]
