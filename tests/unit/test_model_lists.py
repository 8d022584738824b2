"""Which model a running server is asked for, whatever its model list looks like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from wild_server import Wild, serving, whole

from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.observer import Observer
from loadgen.measure.preflight import NotReady, Patience
from loadgen.measure.servers import Server, source_of


class Listing(Wild):
    def __init__(self, status: int, content: Any, headers: str = "") -> None:
        super().__init__()
        self._answer = whole(status, content, headers)

    def models(self, head: str) -> bytes:
        return self._answer


def entries(*ids: str) -> dict[str, Any]:
    return {"data": [{"id": name} for name in ids]}


SERVERS = {
    "one": Listing(200, entries("m")),
    "none": Listing(200, entries()),
    "several": Listing(200, {"data": [{"id": "bge"}, {"id": "m"}, {"id": "mine", "parent": "m"}]}),
    "many": Listing(200, entries(*(f"m{k}" for k in range(12)))),
    "wildcard": Listing(200, entries("openai/*")),
    "tagged": Listing(200, entries("m:latest")),
    "provided": Listing(200, entries("provider/M")),
    "absent": Listing(404, {"detail": "Not Found"}),
    "denied": Listing(403, {"error": "no"}),
    "page": Listing(200, b"<html>"),
    "loading": Listing(503, {"error": {"message": "Loading model", "type": "unavailable_error"}}),
    "loading-500": Listing(500, {"error": "model is loading"}),
    "moved": Listing(308, b"", "Location: https://elsewhere/v1/models\r\n"),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(SERVERS) as url:
        yield url


def greeted(url: str, model: str | None) -> Server:
    source = source_of(configure(targets={"fp16": url}, model=model))
    source.check(Patience(0.0, Observer()))
    return source.running[0]


@pytest.mark.parametrize(
    ("path", "note"),
    [
        ("one", None),
        ("several", None),
        ("none", "lists no model at /v1/models; requests name m"),
        ("wildcard", "lists openai/* at /v1/models; requests name m"),
        ("tagged", "lists m:latest at /v1/models; requests name m"),
        ("provided", "lists provider/M at /v1/models; requests name m"),
        ("absent", "has no model list at /v1/models (404); requests name m"),
        ("denied", "has no model list at /v1/models (403); requests name m"),
        ("moved", "has no model list at /v1/models (308); requests name m"),
        ("page", "/v1/models is not a model list; requests name m"),
    ],
)
def test_the_model_that_is_named_is_asked_for_and_an_odd_list_noted(url: str, path: str, note: str | None) -> None:
    server = greeted(f"{url}/{path}", "m")
    assert server.target.model == "m"
    said = server.record.model_note
    assert said is None if note is None else said.endswith(note)


def test_the_only_model_needs_no_name(url: str) -> None:
    assert greeted(f"{url}/one", None).target.model == "m"


@pytest.mark.parametrize(
    ("path", "model", "said"),
    [
        ("one", "another", "serves m, not another"),
        ("several", None, "serves several models: bge, m, mine (an adapter of m); choose one with --model"),
        ("many", None, "m8, m9 and 2 more; choose one with --model"),
        ("none", None, "serves no model; name a model with --model"),
        ("wildcard", None, "serves openai/*; name a model with --model"),
        ("absent", None, "If it has no model list, name the model with --model"),
        ("page", None, "is not a model list"),
        ("denied", None, "give the key with --api-key-env VAR"),
        ("moved", None, "which points to https://elsewhere/v1/models; give the address that answers itself"),
    ],
)
def test_what_is_not_clear_is_a_question(url: str, path: str, model: str | None, said: str) -> None:
    with pytest.raises(UsageError) as error:
        greeted(f"{url}/{path}", model)
    assert said in str(error.value)
    assert str(error.value).startswith(f"target fp16: {url}/{path}")


@pytest.mark.parametrize(("path", "words"), [("loading", "Loading model"), ("loading-500", "model is loading")])
def test_a_server_that_loads_is_not_ready_whether_a_model_is_named_or_not(url: str, path: str, words: str) -> None:
    for model in (None, "m"):
        with pytest.raises(NotReady, match=rf'is still loading \("{words}"\); wait for it with --wait-ready'):
            greeted(f"{url}/{path}", model)
