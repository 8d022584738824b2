"""What a finished stream is read as."""

import json

import msgspec
import pytest
from streams import DONE, chat, completion, finished, one_read_per_event, usage

from loadgen.load.exchange import read_exchange


def read(*events, **raw):
    return read_exchange(finished(one_read_per_event(*events), **raw))


class TestFirstToken:
    def test_a_role_only_chunk_brings_no_token(self):
        exchange = read(chat("", 0, role="assistant"), chat("4", 1), chat("2", 2, finish="stop"), usage(2), DONE)
        assert exchange.t_first_ns == 20
        assert exchange.token_times == ((20, 1), (30, 1))

    def test_nor_does_it_without_continuous_usage(self):
        exchange = read(chat("", role="assistant"), chat("4"), chat("2", finish="stop"), usage(2), DONE)
        assert exchange.t_first_ns == 20
        assert exchange.token_times == ((20, 1), (30, 1))

    def test_a_token_without_text_is_a_token(self):
        exchange = read(completion("", 1), completion("é", 2, finish="stop"), usage(2), DONE)
        assert exchange.t_first_ns == 10
        assert exchange.token_times == ((10, 1), (20, 1))

    def test_reasoning_is_tokens_too(self):
        exchange = read(
            chat("", role="assistant"), chat(None, reasoning_content="hm"), chat("5", finish="stop"), usage(2), DONE
        )
        assert exchange.t_first_ns == 20
        assert exchange.token_times == ((20, 1), (30, 1))


class TestCounting:
    def test_an_event_may_bring_several_tokens(self):
        exchange = read(completion("a", 1), completion("bcd", 4), completion("e", 5, finish="stop"), usage(5), DONE)
        assert exchange.token_times == ((10, 1), (20, 3), (30, 1))
        assert exchange.output_tokens == 5
        assert exchange.token_source == "usage"

    def test_a_last_event_that_only_ends_the_answer_brings_none(self):
        exchange = read(completion("a", 1), completion("", 1, finish="stop"), usage(1), DONE)
        assert exchange.token_times == ((10, 1),)

    def test_without_continuous_usage_as_many_events_as_tokens_are_one_each(self):
        exchange = read(completion("a"), completion("b"), completion("", finish="stop"), usage(2), DONE)
        assert exchange.token_source == "chunks"
        assert exchange.token_times == ((10, 1), (20, 1))

    def test_otherwise_the_total_is_spread_over_the_events_and_says_so(self):
        exchange = read(completion("ab"), completion("c"), completion("de", finish="stop"), usage(5), DONE)
        assert exchange.token_source == "spread"
        assert [t_ns for t_ns, _ in exchange.token_times] == [10, 20, 30]
        assert sum(tokens for _, tokens in exchange.token_times) == 5

    def test_spread_over_more_events_than_tokens_keeps_the_total(self):
        exchange = read(completion("a"), completion("b"), completion("c", finish="stop"), usage(2), DONE)
        assert exchange.token_source == "spread"
        assert sum(tokens for _, tokens in exchange.token_times) == 2

    def test_without_any_usage_nothing_was_counted(self):
        exchange = read(completion("a"), completion("b", finish="stop"), DONE)
        assert exchange.status == "ok"
        assert exchange.output_tokens is None
        assert exchange.prompt_tokens is None
        assert exchange.token_source is None
        assert exchange.token_times == ()
        assert exchange.t_first_ns is None

    def test_prompt_tokens_are_the_servers(self):
        assert read(completion("a", 1, finish="stop"), usage(1, prompt_tokens=911), DONE).prompt_tokens == 911

    def test_so_are_those_that_it_found_in_its_cache(self):
        told = usage(1)
        told["usage"]["prompt_tokens_details"] = {"cached_tokens": 48}
        assert read(completion("a", 1, finish="stop"), told, DONE).cached_tokens == 48
        assert read(completion("a", 1, finish="stop"), usage(1), DONE).cached_tokens is None

    def test_zero_tokens_are_zero_not_unknown(self):
        exchange = read(completion("", 0, finish="stop"), usage(0), DONE)
        assert exchange.output_tokens == 0
        assert exchange.t_first_ns is None


class TestContent:
    def test_text_is_that_of_all_events(self):
        exchange = read(completion(" 4", 1), completion("", 2), completion("2", 3, finish="stop"), usage(3), DONE)
        assert exchange.text == " 42"

    @pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
    def test_reasoning_is_kept_apart_from_the_answer(self, field):
        exchange = read(chat(None, 1, **{field: "2+2"}), chat("4", 2, finish="stop"), usage(2), DONE)
        assert (exchange.reasoning, exchange.text) == ("2+2", "4")

    def test_a_null_delta_content_is_no_text(self):
        exchange = read(chat("4", 1), chat(None, 1, finish="stop"), usage(1), DONE)
        assert exchange.text == "4"

    def test_finish_and_stop_reason(self):
        last = completion("", 1, finish="stop")
        last["choices"][0]["stop_reason"] = "Question:"
        exchange = read(completion("a", 1), last, usage(1), DONE)
        assert (exchange.finish_reason, exchange.stop_reason) == ("stop", "Question:")

    def test_identity_comes_from_the_request(self):
        exchange = read(completion("a", 1, finish="stop"), usage(1), DONE)
        assert (exchange.slot, exchange.item_id, exchange.phase) == (3, "sample-0000", "measured")
        assert (exchange.t_send_ns, exchange.t_end_ns) == (0, 30)


class TestBrokenStreams:
    @pytest.mark.parametrize("events", [
        [completion("a", 1), completion("b", 2)],
        [completion("a"), completion("b", finish="stop")],
    ], ids=["no finish_reason", "no usage"])  # fmt: skip
    def test_a_stream_without_done_is_broken(self, events):
        exchange = read(*events)
        assert exchange.status == "broken"
        assert "[DONE]" in exchange.error
        assert exchange.text == "ab"

    def test_an_event_that_is_no_json_is_malformed_and_quoted(self):
        exchange = read(completion("a", 1), b'{"choices": [', DONE)
        assert exchange.status == "malformed"
        assert '{"choices": [' in exchange.error
        assert exchange.token_times == ((10, 1),)

    def test_json_of_another_shape_is_malformed(self):
        assert read({"choices": 5}, DONE).status == "malformed"

    def test_a_stream_that_never_says_why_it_ended_is_malformed(self):
        exchange = read(completion("a", 1), usage(1), DONE)
        assert (exchange.status, exchange.error) == ("malformed", "the stream has no finish_reason")

    def test_an_error_inside_the_stream_is_the_servers_message(self):
        exchange = read(
            completion("a", 1),
            {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}},
            DONE,
        )
        assert exchange.status == "http"
        assert exchange.error == "in the stream: EngineCore died"
        assert exchange.http_status == 200

    def test_an_error_that_is_null_is_none(self):
        assert read({**completion("a", 1, finish="stop"), "error": None}, usage(1), DONE).status == "ok"

    def test_what_the_transport_saw_stands_before_what_follows_from_it(self):
        exchange = read(completion("a", 1), failure=("timeout", "no complete answer within 3 s"))
        assert (exchange.status, exchange.error) == ("timeout", "no complete answer within 3 s")
        assert exchange.text == "a"

    @pytest.mark.parametrize("later", [b"nonsense", completion("b", 2)])
    def test_nothing_but_another_done_may_follow_done(self, later):
        exchange = read(completion("a", 1, finish="stop"), usage(1), DONE, later)
        assert (exchange.status, exchange.error) == ("malformed", "the stream continues after [DONE]")
        assert read(completion("a", 1, finish="stop"), usage(1), DONE, DONE).status == "ok"

    def test_one_reason_to_end_may_be_given_twice_and_two_are_malformed(self):
        last = completion("", 1, finish="stop")
        assert read(completion("a", 1, finish="stop"), last, usage(1), DONE).status == "ok"
        exchange = read(completion("a", 1, finish="stop"), completion("", 1, finish="length"), usage(1), DONE)
        assert (exchange.status, exchange.error) == ("malformed", "finish_reason is 'stop' and then 'length'")

    def test_text_after_the_end_is_malformed(self):
        exchange = read(completion("a", 1, finish="stop"), completion("b", 2), usage(2), DONE)
        assert (exchange.status, exchange.error) == ("malformed", "text after finish_reason 'stop'")

    def test_a_second_answer_beside_the_one_asked_for_is_malformed(self):
        second = completion("b", 1)
        second["choices"][0]["index"] = 1
        assert read(completion("a", 1, finish="stop"), second, usage(2), DONE).status == "malformed"

    def test_an_answer_that_is_no_event_stream_is_quoted(self):
        exchange = read_exchange(finished([(10, b'{"choices": [], "error": {"message": "streams are off"}}')]))
        assert (exchange.status, exchange.error) == ("malformed", "no event stream: streams are off")
        assert read_exchange(finished([(10, b"data: {")])).status == "broken"


class TestWrongUsage:
    @pytest.mark.parametrize("tokens", [-1, 2**31, 10**30, 1.5, True, "3"])
    def test_what_is_no_count_is_malformed(self, tokens):
        last = usage(2)
        last["usage"]["completion_tokens"] = tokens
        assert read(completion("ab", finish="stop"), last, DONE).status == "malformed"

    def test_a_count_that_goes_back(self):
        exchange = read(completion("a", 3), completion("b", 2, finish="stop"), usage(3), DONE)
        assert (exchange.status, exchange.error) == ("malformed", "usage goes back from 3 to 2 tokens")

    def test_a_total_below_what_was_counted(self):
        exchange = read(completion("a", 1), completion("b", 2, finish="stop"), usage(1), DONE)
        assert (exchange.status, exchange.error) == ("malformed", "usage ends at 1 tokens after 2 were reported")

    def test_a_total_of_one_more_than_was_counted_holds_the_end_token(self):
        exchange = read(completion("a", 1), completion("b", 2, finish="stop"), usage(3), DONE)
        assert exchange.status == "ok"
        assert exchange.token_times == ((10, 1), (20, 1), (30, 1))

    def test_a_total_far_above_what_was_counted_is_spread(self):
        exchange = read(completion("a", 1), completion("b", 2, finish="stop"), usage(5), DONE)
        assert (exchange.status, exchange.token_source) == ("ok", "spread")
        assert exchange.token_times == ((10, 2), (20, 3))

    @pytest.mark.parametrize(("most", "status", "notes"), [
        (4, "ok", ()),
        (3, "ok", ("usage counts one token more than max_tokens",)),
        (2, "malformed", ()),
    ])  # fmt: skip
    def test_more_than_was_asked_for(self, most, status, notes):
        raw = finished(one_read_per_event(completion("a", 4, finish="length"), usage(4), DONE))
        raw.request = msgspec.structs.replace(raw.request, max_tokens=most)
        exchange = read_exchange(raw)
        assert (exchange.status, exchange.notes) == (status, notes)
        assert exchange.error == (None if status == "ok" else "usage reports 4 tokens, at most 2 were requested")


class TestHttpErrors:
    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}, "too long"),
            ({"object": "error", "message": "too long", "code": 400}, "too long"),
            ({"error": "too long"}, "too long"),
            ({"error": None, "message": "too long"}, "too long"),
            ({"detail": "Not Found"}, "Not Found"),
            ({"error": "CUDA out of memory", "error_type": "generation"}, "CUDA out of memory"),
            ({"error": '{"error": {"message": "inner"}}'}, "inner"),
            ({"message": "litellm: {oops"}, "litellm: {oops"),
            ({"detail": [{"loc": ["body", "temperature"], "msg": "too low"}]}, "body.temperature: too low"),
            ([{"error": {"message": "in a list"}}], "in a list"),
            ({"error": {"code": 503}}, '{"error": {"code": 503}}'),
            (b"Service Unavailable\n", "Service Unavailable"),
            (b"", "no message"),
        ],
    )
    def test_the_message_is_the_servers_own(self, body, message):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        exchange = read_exchange(finished([(10, body)], http_status=400))
        assert (exchange.status, exchange.error, exchange.http_status) == ("http", f"400: {message}", 400)
        assert exchange.output_tokens is None

    def test_a_body_in_pieces_is_one_body(self):
        reads = [(10, b'{"error": {"mess'), (20, b'age": "overloaded"}}')]
        assert read_exchange(finished(reads, http_status=503)).error == "503: overloaded"

    def test_a_long_page_is_quoted_from_its_beginning(self):
        exchange = read_exchange(finished([(10, b"<html>" + b"x" * 10_000)], http_status=502))
        assert exchange.error.startswith("502: <html>xxx")
        assert len(exchange.error) < 300

    def test_no_answer_at_all_has_no_status(self):
        exchange = read_exchange(finished([], http_status=None, failure=("connect", "refused")))
        assert (exchange.status, exchange.http_status, exchange.error) == ("connect", None, "refused")
