"""The first short request to each server: which fields it refuses, and what makes a sweep useless before it begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from wild_server import DONE, Wild, serving, whole

from loadgen.errors import UsageError
from loadgen.load.body import BodyChanges
from loadgen.load.worker import Assignment
from loadgen.measure import preflight
from loadgen.measure.observer import Observer
from loadgen.measure.preflight import NotReady, Patience, learn_from
from loadgen.workload.protocol import load_protocol
from loadgen.workload.questions import sample_items, warmup_items

Refuse = Callable[[dict[str, Any], str], "bytes | None"]
USAGE = "stream_options.continuous_usage_stats"


class Refusing(Wild):
    """Refuses what `why` gives an answer for."""

    tokens, ttft_s, itl_s = 2, 0.0, 0.0

    def __init__(self, why: Refuse) -> None:
        super().__init__()
        self._why = why

    def refuse(self, asked: dict[str, Any], head: str) -> bytes | None:
        return self._why(asked, head)


def refusing(field: str, status: int = 400, words: str = "{} is not permitted") -> Refuse:
    """Refuses every request that has the (dotted) field."""

    def why(asked: dict[str, Any], _: str) -> bytes | None:
        value: Any = asked
        for name in field.split("."):
            value = value.get(name, ...) if isinstance(value, dict) else ...
        return None if value is ... else whole(status, {"error": {"message": words.format(field)}})

    return why


def always(status: int, content: object, headers: str = "") -> Refuse:
    return lambda asked, head: whole(status, content, headers)


def one_of(*whys: Refuse) -> Refuse:
    return lambda asked, head: next((no for why in whys if (no := why(asked, head))), None)


def assignment(url: str, **changes: Any) -> Assignment:
    asked = Assignment(
        url=url, model="wild", api_key=None, transport="raw", timeout_s=10.0,
        protocol=load_protocol("sample", shots_file=None), seed=0, max_tokens=64, fixed_length=None, thinking=None,
        items=tuple(sample_items()), warmup_items=tuple(warmup_items()), concurrency=1, requests=None,
    )  # fmt: skip
    return msgspec.structs.replace(asked, **changes)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "RATE_LIMIT_WAITS_S", (0.01, 0.01))


def learned(why: Refuse, **changes: Any) -> tuple[preflight.Learned, Wild]:
    server = Refusing(why)
    with serving(server) as url:
        asked = assignment(url, **changes)
        return learn_from({"fp16": asked}, asked.changes, Patience(0.0, Observer())), server


def refusal(why: Refuse, **changes: Any) -> str:
    with pytest.raises(UsageError) as error:
        learned(why, **changes)
    return str(error.value)


def test_a_server_that_takes_everything_is_asked_a_few_times_and_briefly() -> None:
    found, server = learned(lambda asked, head: None)
    assert (found.changes, found.notes) == (BodyChanges(), ())
    assert [asked["max_tokens"] for _, asked in server.seen] == [preflight.TOKENS] * preflight.REQUESTS
    assert server.peak == 1, "one after the other"


@pytest.mark.parametrize("transport", ["raw", "openai"])
@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_field_that_is_refused_is_left_out_and_told(status: int, transport: str) -> None:
    found, server = learned(refusing(USAGE, status), transport=transport)
    assert found.changes.refused == {"stream_options": {"continuous_usage_stats": None}}
    assert len(found.notes) == 1
    assert f'refuses {USAGE} ("{USAGE} is not permitted")' in found.notes[0]
    assert server.seen[-1][1]["stream_options"] == {"include_usage": True}


def test_usage_is_asked_for_as_long_as_the_server_takes_it() -> None:
    """An error that names the object may be about one of its fields."""
    inner, _ = learned(refusing(USAGE, words="stream_options is malformed"))
    assert inner.changes.refused == {"stream_options": {"continuous_usage_stats": None}}
    outer, _ = learned(refusing("stream_options"))
    assert outer.changes.refused == {"stream_options": None}
    assert len(outer.notes) == 1


def test_several_fields_go_one_by_one() -> None:
    found, _ = learned(one_of(refusing("cache_salt"), refusing("seed"), refusing(USAGE)))
    assert set(found.changes.refused) == {"cache_salt", "seed", "stream_options"}
    assert len(found.notes) == 3


def test_a_field_that_is_named_in_passing_stays() -> None:
    found, _ = learned(refusing("cache_salt", words="with temperature 0, {} is unknown"))
    assert found.changes.refused == {"cache_salt": None}


def test_temperature_0_becomes_nearly_0_where_only_0_is_refused() -> None:
    def positive(asked: dict[str, Any], _: str) -> bytes | None:
        return whole(422, {"error": "`temperature` must be > 0"}) if asked.get("temperature") == 0 else None

    found, _ = learned(positive)
    assert found.changes.refused == {"temperature": preflight.NEARLY_GREEDY}
    dropped, _ = learned(refusing("temperature"))
    assert dropped.changes.refused == {"temperature": None}
    assert "default temperature, which may sample" in dropped.notes[0]


def test_an_error_in_the_stream_counts_too() -> None:
    def in_stream(asked: dict[str, Any], _: str) -> bytes | None:
        if "seed" not in asked:
            return None
        event = b'data: {"error": {"message": "seed is unknown"}}\n\n' + DONE
        return whole(200, event, "Content-Type: text/event-stream\r\n")

    assert learned(in_stream)[0].changes.refused == {"seed": None}


def test_the_cap_goes_by_its_other_name() -> None:
    chat = msgspec.structs.replace(load_protocol("sample", shots_file=None), api="chat")
    words = "Unsupported parameter: '{}'. Use 'max_completion_tokens' instead."
    found, server = learned(refusing("max_tokens", words=words), protocol=chat)
    assert found.changes.limit_field == "max_completion_tokens"
    assert server.seen[-1][1]["max_completion_tokens"] == preflight.TOKENS


@pytest.mark.parametrize(
    ("why", "changes", "said"),
    [
        (refusing("ignore_eos"), {"fixed_length": 50}, "--fixed-length needs it"),
        (refusing("min_tokens"), {"fixed_length": 50}, "--fixed-length needs it"),
        (refusing("stop", words="'{}' is unknown"), {}, "the answers of a completion end at it"),
        (refusing("top_k"), {"changes": BodyChanges(extra={"top_k": 1})}, "--extra-body asks for it"),
        (always(401, {"error": {"message": "who?"}}), {}, "401: who?); give the key with --api-key-env VAR"),
        (always(429, {"error": {"message": "slow down"}}), {}, "limits the rate of requests (429: slow down)"),
        (always(404, {"error": {"message": "The model `wild` does not exist."}}), {}, "name it with --model"),
        (always(404, {"detail": "Not Found"}), {}, "neither /v1/completions nor /v1/chat/completions"),
        (always(307, b"", "Location: http://h:1/v2\r\n"), {}, "redirected to http://h:1/v2"),
        (
            always(400, {"error": {"message": "This model's maximum context length is 16 tokens"}}), {},
            "refuses requests (400: This model's maximum context length is 16 tokens)",
        ),
    ],
)  # fmt: skip
def test_what_no_cell_would_survive_is_one_sentence(why: Refuse, changes: dict[str, Any], said: str) -> None:
    sentence = refusal(why, **changes)
    assert said in sentence
    assert sentence.startswith("target fp16: http://127.0.0.1:")
    assert "\n" not in sentence


@pytest.mark.parametrize(("api", "other"), [("completions", "chat"), ("chat", "completions")])
def test_the_other_api_is_named_where_it_answers(api: str, other: str) -> None:
    def only_other(asked: dict[str, Any], head: str) -> bytes | None:
        return None if ("/chat/" in head.split("\r\n")[0]) == (other == "chat") else whole(404, {"detail": "Not Found"})

    protocol = msgspec.structs.replace(load_protocol("sample", shots_file=None), api=api)
    assert refusal(only_other, protocol=protocol).endswith(f"404: Not Found; try --api {other}")


def test_what_befalls_one_request_is_left_to_the_cells() -> None:
    refusals = iter([whole(401, {"error": "who?"})])
    found, _ = learned(lambda asked, head: next(refusals, None))
    assert found.changes == BodyChanges()
    assert "did not answer a first short request" in found.notes[0]


def test_all_targets_are_asked_alike() -> None:
    strict, plain = Refusing(refusing("seed")), Wild()
    with serving({"plain": plain, "strict": strict}) as url:
        asked = {name: assignment(f"{url}/{name}") for name in ("plain", "strict")}
        found = learn_from(asked, BodyChanges(), Patience(0.0, Observer()))
    assert found.changes.refused == {"seed": None}
    assert [note.split(": ")[0] for note in found.notes] == ["target strict"]


class TestLoading:
    class Loading(Wild):
        """Begins to answer at its third request."""

        tokens, ttft_s, itl_s = 2, 0.0, 0.0

        def refuse(self, asked: dict[str, Any], head: str) -> bytes | None:
            return whole(503, {"error": {"message": "Loading model"}}) if len(self.seen) < 5 else None

    @pytest.fixture
    def url(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        monkeypatch.setattr(preflight, "POLL_S", 0.01)
        with serving(self.Loading()) as url:
            yield url

    def test_it_is_said_and_the_option_named(self, url: str) -> None:
        with pytest.raises(NotReady, match=r'is still loading \("Loading model"\); wait for it with --wait-ready 300'):
            learn_from({"fp16": assignment(url)}, BodyChanges(), Patience(0.0, Observer()))

    def test_it_is_waited_for(self, url: str) -> None:
        heard: list[str] = []
        observer = Observer()
        observer.note = heard.append  # type: ignore[method-assign]
        assert learn_from({"fp16": assignment(url)}, BodyChanges(), Patience(30.0, observer)).notes == ()
        assert heard == [f'target fp16: {url} is still loading ("Loading model"); waiting up to 30 s']

    def test_the_time_for_it_ends(self, url: str) -> None:
        with pytest.raises(UsageError, match=r"after --wait-ready 0.015; give it longer"):
            learn_from({"fp16": assignment(url)}, BodyChanges(), Patience(0.015, Observer()))


def test_changes_merge_into_the_body() -> None:
    extra = {"stream_options": {"continuous_usage_stats": None}, "top_k": 1, "cache_salt": None}
    changes = BodyChanges(extra=extra, refused={"seed": None})
    request = assignment("http://h:1", changes=changes).maker().measured(sample_items()[0])
    body = json.loads(request.body)
    assert body["stream_options"] == {"include_usage": True}
    assert (body["top_k"], body["temperature"], body["model"]) == (1, 0, "wild")
    assert not {"seed", "cache_salt"} & set(body)
