"""The simulated server over a real socket, started as its users start it."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_NUM_SEQS = 4
USAGE = {"include_usage": True, "continuous_usage_stats": True}


def free_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return listening.getsockname()[1]


def simulate(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "loadgen", "simulate", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Client:
    def __init__(self, port):
        self.port = port

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def get(self, path):
        with closing(self.connect()) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response, response.read()

    def post(self, path, body):
        with closing(self.connect()) as connection:
            connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body))
            response = connection.getresponse()
            return response, response.read()

    def complete(self, path="/v1/completions", **body):
        response, data = self.post(path, body)
        assert response.status == 200, data
        return json.loads(data)

    def stream(self, path="/v1/completions", **body):
        """The events of a stream as dicts, without the final [DONE]."""
        response, data = self.post(path, {"stream": True, **body})
        assert response.status == 200, data
        assert response.getheader("Content-Type").startswith("text/event-stream")
        assert response.getheader("X-Loadgen-Simulated") == "1"
        events = data.decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        assert all(event.startswith("data: ") for event in events[:-1])
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

    def metrics(self):
        """Value by sample name without labels; several label sets are added up."""
        values = {}
        for line in self.get("/metrics")[1].decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0].removeprefix("vllm:")
                values[name] = values.get(name, 0) + float(value)
        return values

    def wait_for(self, condition, deadline_s=20):
        until = time.monotonic() + deadline_s
        while not condition(values := self.metrics()):
            assert time.monotonic() < until, values
            time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "invented.jsonl"
    rows = [
        {"question": "Five drums and six more?", "answer": "5 + 6 = 11\n#### 11"},
        {"question": "Ten nests less three?", "answer": "10 - 3 = 7\n#### 7"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    port = free_port()
    arguments = ("--precision", "awq", "--port", str(port), "--seed", "3", "--accuracy", "1")
    process = simulate(*arguments, "--max-num-seqs", str(MAX_NUM_SEQS), "--data-file", str(data))
    try:
        assert "SIMULATED awq" in process.stdout.readline()
        yield Client(port)
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (0, "", "")


def test_it_says_everywhere_that_it_is_simulated(server):
    response, body = server.get("/v1/models")
    (model,) = json.loads(body)["data"]
    assert (model["owned_by"], model["simulated"], model["max_model_len"]) == ("loadgen-simulated", True, 8192)
    assert response.getheader("X-Loadgen-Simulated") == "1"
    assert json.loads(server.get("/version")[1]) == {"version": "0.32.0+simulated"}
    assert server.get("/health")[0].status == 200
    assert server.metrics()["loadgen_simulated"] == 1
    assert server.complete(prompt="hi", max_tokens=1)["system_fingerprint"] == "SIMULATED"


def test_a_completion_stream_has_one_event_per_token_and_usage_on_each(server):
    events = server.stream(prompt="Hello you", max_tokens=5, stream_options=USAGE)
    assert [e["usage"]["completion_tokens"] for e in events] == [1, 2, 3, 4, 5, 5]
    assert {e["usage"]["prompt_tokens"] for e in events} == {3}
    assert all(e["usage"]["total_tokens"] == 3 + e["usage"]["completion_tokens"] for e in events)
    *tokens, last = events
    assert last["choices"] == []
    assert [e["choices"][0]["finish_reason"] for e in tokens] == [None] * 4 + ["length"]
    assert all(e["object"] == "text_completion" and e["system_fingerprint"] == "SIMULATED" for e in events)
    whole = server.complete(prompt="Hello you", max_tokens=5)
    assert "".join(e["choices"][0]["text"] for e in tokens) == whole["choices"][0]["text"]
    assert whole["usage"] == last["usage"]


def test_a_chat_stream_opens_with_a_role_event_that_is_no_token(server):
    body = {"messages": [{"role": "user", "content": "Hello you"}], "max_completion_tokens": 3}
    role, *tokens, last = server.stream("/v1/chat/completions", **body, stream_options=USAGE)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert role["usage"]["completion_tokens"] == 0
    assert [e["usage"]["completion_tokens"] for e in tokens] == [1, 2, 3]
    assert last["choices"] == []
    whole = server.complete("/v1/chat/completions", **body)
    assert "".join(e["choices"][0]["delta"]["content"] for e in tokens) == whole["choices"][0]["message"]["content"]


def test_usage_comes_only_when_asked_for(server):
    assert not any("usage" in e for e in server.stream(prompt="hi", max_tokens=3))
    events = server.stream(prompt="hi", max_tokens=3, stream_options={"include_usage": True})
    assert ["usage" in e for e in events] == [False, False, False, True]


def test_questions_of_the_data_file_and_of_the_shipped_set_are_answered(server):
    prompt = "Question: Five drums and six more?\nAnswer: 11\n\nQuestion: Ten nests less three?\nAnswer:"
    choice = server.complete(prompt=prompt, max_tokens=500)["choices"][0]
    assert choice["text"].endswith("\n#### 7")
    assert choice["finish_reason"] == "stop"
    sample = (ROOT / "loadgen/workload/sample.jsonl").read_text().splitlines()
    for row in map(json.loads, (sample[0], sample[-1])):
        messages = [{"role": "user", "content": f"Solve this.\nQuestion: {row['question']}"}]
        answer = server.complete("/v1/chat/completions", messages=messages)
        assert answer["choices"][0]["message"]["content"].endswith(f"#### {row['gold']}")


def test_the_same_request_gets_the_same_text(server):
    first, second = (server.complete(prompt="tell me", max_tokens=60) for _ in range(2))
    assert first["choices"] == second["choices"]
    drawn = [server.complete(prompt="tell me", max_tokens=60, temperature=1, seed=s) for s in (1, 1, 2)]
    assert drawn[0]["choices"] == drawn[1]["choices"] != drawn[2]["choices"]


def test_a_stop_string_ends_the_stream(server):
    text = server.complete(prompt="tell me", max_tokens=60)["choices"][0]["text"]
    stop = text[20:26]
    events = server.stream(prompt="tell me", max_tokens=60, stop=[stop, "Question:"])
    assert "".join(e["choices"][0]["text"] for e in events) == text[: text.index(stop)]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["choices"][0]["stop_reason"] == stop


def test_min_tokens_and_ignore_eos_fix_the_length(server):
    for options in ({"ignore_eos": True}, {"min_tokens": 300}):
        answer = server.complete(prompt="hi", max_tokens=300, **options)
        assert answer["usage"]["completion_tokens"] == 300


@pytest.mark.parametrize("prompt, tokens", [("a" * 9, 3), (["a" * 9], 3), ([5, 6, 7, 8], 4)])
def test_prompts_may_be_text_or_token_ids(server, prompt, tokens):
    assert server.complete(prompt=prompt, max_tokens=1)["usage"]["prompt_tokens"] == tokens


def test_counters_grow_by_exactly_the_tokens_streamed(server):
    before = server.metrics()
    usages = [server.stream(prompt="x" * 40, max_tokens=n, stream_options=USAGE)[-1]["usage"] for n in (1, 7, 40)]
    after = server.metrics()
    grown = {name: after[name] - before[name] for name in after}
    assert grown["prompt_tokens_total"] == sum(u["prompt_tokens"] for u in usages) == 30
    assert grown["generation_tokens_total"] == sum(u["completion_tokens"] for u in usages) == 48
    assert grown["iteration_tokens_total_count"] == 48
    assert grown["iteration_tokens_total_sum"] == 30 + 48
    assert grown["request_success_total"] == 3
    assert grown["time_to_first_token_seconds_count"] == grown["e2e_request_latency_seconds_count"] == 3
    assert grown["inter_token_latency_seconds_count"] == 48 - 3
    assert grown["num_preemptions_total"] == 0


@pytest.mark.parametrize("in_flight, running, waiting", [(3, 3, 0), (6, MAX_NUM_SEQS, 2)])
def test_gauges_show_the_running_batch_and_who_waits_for_it(server, in_flight, running, waiting):
    before = server.metrics()["request_success_total"]
    body = json.dumps({"prompt": "hi", "max_tokens": 8000, "ignore_eos": True, "stream": True})
    connections = [server.connect() for _ in range(in_flight)]
    for connection in connections:
        connection.request("POST", "/v1/completions", body)
    server.wait_for(lambda m: (m["num_requests_running"], m["num_requests_waiting"]) == (running, waiting))
    for connection in connections:
        connection.close()
    server.wait_for(lambda m: m["num_requests_running"] == m["num_requests_waiting"] == 0)
    assert server.metrics()["request_success_total"] - before == in_flight
    assert server.metrics()["kv_cache_usage_perc"] == 0


@pytest.mark.parametrize(
    "body, status, words",
    [
        ({"prompt": "hi", "max_tokens": 9000}, 400, "8192"),
        ({"prompt": "a" * 40000, "max_tokens": 5}, 400, "10000 input tokens"),
        ({"prompt": "hi", "max_tokens": 0}, 400, "at least 1"),
        ({"prompt": "hi", "max_tokens": 5, "min_tokens": 6}, 400, "min_tokens"),
        ({"prompt": "hi", "temperature": -1}, 400, "temperature"),
        ({"prompt": "hi", "stop": ""}, 400, "stop"),
        ({"prompt": ["a", "b"]}, 400, "one prompt"),
        ({"prompt": "hi", "stream_options": USAGE}, 400, "stream=True"),
        ({"max_tokens": 5}, 400, "prompt"),
        ({"prompt": "hi", "model": "other"}, 404, "`other` does not exist"),
        (b'{"prompt": ', 400, "truncated"),
    ],
)
def test_bad_requests_are_refused_in_vllms_shape(server, body, status, words):
    response, data = server.post("/v1/completions", body)
    error = json.loads(data)["error"]
    assert (response.status, error["code"]) == (status, status)
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--precision", "int3"), "int3"),
        (("--precision", "awq", "--max-num-seqs", "0"), "--max-num-seqs 0"),
        (("--precision", "awq", "--max-model-len", "-1"), "--max-model-len -1"),
        (("--precision", "awq", "--accuracy", "1.5"), "--accuracy 1.5"),
        (("--precision", "awq", "--data-file", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_wrong_use_ends_with_one_sentence(arguments, words):
    process = simulate(*arguments, "--port", str(free_port()))
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (2, "")
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_a_port_in_use_or_out_of_range_is_named():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        for port in (taken.getsockname()[1], 70000):
            process = simulate("--precision", "fp16", "--port", str(port))
            _, errors = process.communicate(timeout=30)
            assert process.returncode == 2
            assert str(port) in errors
            assert len(errors.splitlines()) == 1


def test_an_interrupt_ends_it_quietly_even_with_an_answer_under_way():
    port = free_port()
    process = simulate("--precision", "fp16", "--port", str(port))
    assert "SIMULATED" in process.stdout.readline()
    connection = Client(port).connect()
    connection.request(
        "POST", "/v1/completions", json.dumps({"prompt": "hi", "max_tokens": 8000, "ignore_eos": True, "stream": True})
    )
    assert connection.getresponse().status == 200
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=10)
    connection.close()
    assert (process.returncode, output, errors) == (0, "", "")
