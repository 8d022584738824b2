"""Datasets without answers to grade: synthetic lengths, a user's prompts, ShareGPT's layout, traces."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from loadgen.errors import ServerError, UsageError
from loadgen.load.body import BodyChanges, RequestMaker, RequestSettings
from loadgen.load.openloop import Arrivals, Schedule
from loadgen.measure.config import configure
from loadgen.measure.plan import plan_sweep
from loadgen.measure.prompts import Prompts
from loadgen.serving.facts import Target
from loadgen.workload.dataset import Dataset, load_dataset
from loadgen.workload.item import Item
from loadgen.workload.protocol import load_protocol
from loadgen.workload.traffic import CANDIDATES, Lengths, Shape, Vocabulary, fitted, learn_vocabulary

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:04.0000000,480,10
2023-11-16 18:17:03.5000000,31,8
2023-11-16 18:17:05.5000000,110,27
2023-11-16 18:17:05.6000000,110,0
"""
MOONCAKE = [
    {"timestamp": 0, "input_length": 1300, "output_length": 5, "hash_ids": [7, 8, 9]},
    {"timestamp": 500, "input_length": 1200, "output_length": 6, "hash_ids": [7, 8, 10]},
    {"timestamp": 2000, "input_length": 40, "output_length": 7, "hash_ids": [11]},
]


def saved(folder: Path, name: str, *rows: object) -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def of_file(kind: str, path: Path, limit: int | None = None) -> Dataset:
    return load_dataset(kind, data_file=path, limit=limit)


class Tokenizer:
    """Counts words, a few of them as two tokens, after a first token and a template of 3."""

    def __init__(self, *double: str, added: int = 4) -> None:
        self._double, self._added = double, added
        self.counts = 0

    def __call__(self, text: str) -> int:
        self.counts += 1
        words = text.split()
        return self._added + len(words) + sum(word in self._double for word in words)


# synthetic


def test_fixed_lengths_are_every_items() -> None:
    dataset = load_dataset("synthetic:1024/128", limit=50)
    assert {(item.input_tokens, item.output_tokens) for item in dataset.items} == {(1024, 128)}
    assert len({item.id for item in dataset.items}) == 50
    assert dataset.answer == "none"
    assert dataset.unwritten


def test_uniform_and_normal_lengths_have_their_distributions_moments() -> None:
    items = load_dataset("synthetic:100-300/500+-50", limit=4000).items
    prompts, answers = ([getattr(item, f"{side}put_tokens") for item in items] for side in ("in", "out"))
    assert (min(prompts), max(prompts)) == (100, 300)
    assert sum(prompts) / 4000 == pytest.approx(200, abs=3 * 58 / 4000**0.5), "three standard errors"
    mean = sum(answers) / 4000
    assert mean == pytest.approx(500, abs=3 * 50 / 4000**0.5)
    assert (sum((n - mean) ** 2 for n in answers) / 4000) ** 0.5 == pytest.approx(50, rel=0.05)


def test_a_normal_length_is_never_below_one() -> None:
    lengths = Lengths("normal", 2, 50)
    assert min(lengths.draw(random.Random(seed)) for seed in range(200)) == 1


def test_the_seed_decides_lengths_and_texts_and_every_prompt_differs() -> None:
    one, again, other = (load_dataset("synthetic:50-60/8", limit=200, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert [item.input_tokens for item in one.items] != [item.input_tokens for item in other.items]
    vocabulary = Vocabulary(CANDIDATES, base=5)
    texts = [item.question for item in vocabulary.written([*one.items, *one.warmup], seed=1)]
    assert len({text[:40] for text in texts}) == len(texts), "not even their beginnings are equal"
    assert vocabulary.written(one.items, 1) == vocabulary.written(again.items, 1)


def test_as_many_prompts_are_made_as_requests_are_asked_for() -> None:
    assert len(load_dataset("synthetic:8/8").items) == 1000
    assert len(load_dataset("synthetic:8/8", requests=1500).items) == 1500
    assert len(load_dataset("synthetic:8/8", requests=1500, limit=10).items) == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("synthetic:1024", "write synthetic:IN/OUT in tokens, as in synthetic:1024/128"),
        ("synthetic:abc/128", "'abc' is not a number of tokens; write 1024, 100-2000 (uniform) or 1024"),
        ("synthetic:0/128", "'0' is not between 1 and"),
        ("synthetic:200-100/8", "has the larger number first; write 100-200"),
    ],
)
def test_a_shape_that_cannot_be_read_says_what_to_write(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Shape.parse(text)
    assert words in str(caught.value)


# texts of so many tokens


@pytest.mark.parametrize("double", [(), ("the", "and", "yet", "sky"), CANDIDATES[: len(CANDIDATES) // 2]])
def test_prompts_have_as_many_tokens_as_asked_by_the_tokenizers_own_count(double: tuple[str, ...]) -> None:
    count = Tokenizer(*double)
    vocabulary = learn_vocabulary(count)
    assert vocabulary.exact
    assert not {*vocabulary.words} & {*double}
    for item in vocabulary.written(load_dataset("synthetic:6-400/8", limit=30).items, seed=0):
        assert count(item.question) == item.input_tokens
    assert count.counts < 130, "words are found by halves"


def test_a_tokenizer_that_makes_two_tokens_of_each_word_is_met_as_nearly_as_it_allows() -> None:
    count = Tokenizer(*CANDIDATES)
    vocabulary = learn_vocabulary(count)
    assert not vocabulary.exact
    item = load_dataset("synthetic:205/8", limit=1).items[0]
    text = vocabulary.text(item, 0)
    assert abs(count(text) - 205) <= 2
    assert abs(count(fitted(text + " the the the", 205, count)) - 205) <= 1


def test_a_prompt_shorter_than_what_the_server_adds_has_one_word() -> None:
    vocabulary = learn_vocabulary(Tokenizer(added=36))
    assert vocabulary.text(load_dataset("synthetic:8/8", limit=1).items[0], 0) == "Say"


# a trace


def test_azures_layout_is_put_in_order_and_rows_without_an_answer_are_left_out(tmp_path: Path) -> None:
    dataset = of_file("trace", saved(tmp_path, "az.csv", AZURE.rstrip()))
    assert [(i.due_s, i.input_tokens, i.output_tokens) for i in dataset.items] == [
        (0, 31, 8),
        (0.5, 480, 10),
        (2, 110, 27),
    ]
    assert dataset.notes == ("1 requests without a prompt or an answer are left out",)
    assert of_file("trace", saved(tmp_path, "no-suffix", AZURE.rstrip())).items == dataset.items


def test_mooncakes_equal_hash_ids_begin_with_equal_blocks_of_512_tokens(tmp_path: Path) -> None:
    dataset = of_file("trace", saved(tmp_path, "mc.jsonl", *MOONCAKE))
    assert [item.due_s for item in dataset.items] == [0, 0.5, 2]
    count = Tokenizer()
    vocabulary = learn_vocabulary(count)
    first, second, third = vocabulary.written(dataset.items, seed=0)
    assert [count(item.question) for item in (first, second, third)] == [1300, 1200, 40]
    shared = 1 + 2 * 512
    one, two = first.question.split(), second.question.split()
    assert one[:shared] == two[:shared], "the first word and two blocks"
    assert one[shared : shared + 8] != two[shared : shared + 8]


def test_a_traces_requests_are_due_as_recorded_at_any_mean_rate() -> None:
    times = (0.0, 0.5, 2.0)
    items = [Item(id=f"q{n}", question="?", due_s=due_s) for n, due_s in enumerate(times)]
    maker = RequestMaker(RequestSettings(protocol=load_protocol("plain"), model="m", seed=0))
    for arrival, factor in (("trace:1", 1.0), ("trace:2", 0.5)):
        arrivals = Arrivals.parse(arrival)
        assert arrivals is not None
        schedule = Schedule(maker, items, items, arrivals, "0/1", 3)
        window = schedule.window(0, None)
        due = [(next(window).t_scheduled_ns or 0) / 1e9 for _ in times]
        assert due == pytest.approx([factor * (1 + time) for time in times]), "the first is one mean gap late"
        assert next(window).phase == "cooldown"
        assert schedule.dry_ns == round(due[-1] * 1e9)


def test_the_arrival_of_a_trace_is_its_own_rate_times_the_scale(tmp_path: Path) -> None:
    path = saved(tmp_path, "mc.jsonl", *MOONCAKE)
    config = configure(dataset=f"trace:{path}")
    assert (config.dataset, config.data_file, config.arrival) == ("trace", str(path), "trace:1"), "2 gaps in 2 s"
    assert (config.requests, config.duration_s) == (3, None), "all of it"
    assert configure(dataset=f"trace:{path}", rate_scale=2.5).arrival == "trace:2.5"
    assert configure(dataset=f"trace:{path}", arrival="closed").requests is None
    assert configure(dataset=f"trace:{path}", duration=1.0).requests is None
    assert plan_sweep(config).expected_s > 4 * 3 * 3, "4 targets, 3 repeats, 3 s"


# prompts


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    dataset = of_file("prompts", saved(tmp_path, "p.txt", "Tell me about the sea.", "", "[2] What is a heron?"))
    assert [item.question for item in dataset.items] == ["Tell me about the sea.", "[2] What is a heron?"]
    assert (dataset.name, dataset.answer) == ("prompts:p.txt", "none")


def test_json_lines_have_prompts_or_messages(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who are you?"}]
    path = saved(tmp_path, "p.jsonl", {"prompt": "Sea?", "max_tokens": 20}, {"messages": turns})
    asked, talked = of_file("prompts", path).items
    maker = RequestMaker(RequestSettings(protocol=load_protocol("plain"), model="m", seed=0))
    assert json.loads(maker.measured(asked).body)["max_tokens"] == 20
    assert maker.limit(talked) == 256
    assert load_protocol("plain").messages(talked) == turns
    plan = plan_sweep(configure(dataset=f"prompts:{path}"))
    assert plan.protocol.api == "chat", "messages need it"
    assert not plan.graded
    with pytest.raises(
        UsageError, match=r"prompts-0001 of --dataset prompts:p.jsonl has messages, which need --api chat"
    ):
        plan_sweep(configure(dataset=f"prompts:{path}", api="completions"))


def test_an_exact_length_is_sent_as_such() -> None:
    item = Item(id="a", question="?", input_tokens=3, output_tokens=7)
    maker = RequestMaker(RequestSettings(protocol=load_protocol("plain"), model="m", seed=0))
    body = json.loads(maker.measured(item).body)
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"]) == (7, 7, True)
    assert "stop" not in body


# ShareGPT


def test_sharegpts_first_human_turn_is_asked_or_the_last_after_its_history(tmp_path: Path) -> None:
    turns = [("human", "Hi"), ("gpt", "Hello."), ("human", "And you?"), ("gpt", "Fine, thanks.")]
    talk = {"id": "a", "conversations": [{"from": one, "value": text} for one, text in turns]}
    other = {"id": "b", "conversations": [{"from": "gpt", "value": "…"}]}
    path = tmp_path / "talks.json"
    path.write_text(json.dumps([talk, other]))
    dataset = of_file("sharegpt", path)
    assert [(item.question, item.solution) for item in dataset.items] == [("Hi", "Hello.")]
    assert dataset.notes == ("1 conversations without an answered human turn are left out",)
    (item,) = of_file("sharegpt-history", path).items
    assert [turn["content"] for turn in item.messages] == ["Hi", "Hello.", "And you?"]
    assert item.messages[1]["role"] == "assistant"
    assert plan_sweep(configure(dataset=f"sharegpt:{path}")).caps_by_record
    assert not plan_sweep(configure(dataset=f"sharegpt:{path}", max_tokens=9)).caps_by_record


# bad files


@pytest.mark.parametrize(
    ("kind", "rows", "words"),
    [
        ("prompts", [{"prompt": "a"}, "{oops"], "line 2: not JSON ("),
        (
            "prompts",
            [{"prompt": "a"}, {"text": "b"}],
            'line 2: neither a prompt nor messages (it has text); write {"prompt"',
        ),
        ("prompts", [{"messages": [{"role": "user"}]}], "line 1: neither a prompt nor messages"),
        ("prompts", [{"prompt": "a", "max_tokens": 0}], "line 1: max_tokens is 0; give a whole number"),
        ("prompts", [], "does not hold a prompt"),
        (
            "trace",
            [{"timestamp": 0, "input_length": 3}],
            "line 1: not a request of a known trace (it has timestamp, input_",
        ),
        ("trace", [MOONCAKE[0], {**MOONCAKE[0], "input_length": "x"}], "line 2: a length is 'x'; give tokens"),
        ("trace", [MOONCAKE[0], {**MOONCAKE[0], "timestamp": -1}], "line 2: timestamp is -1; give milliseconds"),
        ("trace", ["TIMESTAMP,ContextTokens", "1,2"], "line 1: other columns; write Azure's columns TIMESTAMP"),
        ("trace", [*AZURE.splitlines(), "noon,1,2"], "line 6: TIMESTAMP is 'noon'; write a date and time"),
        ("sharegpt", [{"conversations": "x"}], "line 1: has no list of turns; write"),
        ("sharegpt", [{"conversations": []}], "does not hold a conversation with a question and its answer"),
    ],
)
def test_a_bad_file_is_refused_with_line_reason_and_remedy(
    kind: str, rows: list[object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        of_file(kind, saved(tmp_path, "file", *rows))
    assert words in str(caught.value)


# together with other options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset": "synthetic:8/8", "max_tokens": 9}, "--max-tokens 9: --dataset synthetic gives the length of each"),
        ({"dataset": "trace:{trace}", "fixed_length": 9}, "--fixed-length 9: --dataset trace gives the length of each"),
        ({"dataset": "synthetic:8/8", "data_file": "x"}, "has no file; omit --data-file"),
        ({"dataset": "prompts:x", "data_file": "y"}, "--data-file y: --dataset prompts:x names another file"),
        ({"dataset": "prompts:"}, "name a file, as in prompts:traffic.jsonl"),
        (
            {"dataset": "trace:{trace}", "duration": 9.0},
            "--duration 9: at trace:1 the trace lasts 3.0 s; omit --duration",
        ),
        ({"dataset": "trace:{trace}", "requests": 9}, "--requests 9: the trace has 3 requests"),
        ({"dataset": "trace:{trace}", "rate_scale": 0}, "--rate-scale 0: give a factor above 0"),
        ({"dataset": "trace:{trace}", "rate_scale": 2, "arrival": "poisson:2"}, "--rate-scale 2 needs --arrival trace"),
        ({"dataset": "trace:{trace}", "rate_scale": 2, "arrival": "trace:2"}, "gives the rate already"),
        ({"arrival": "trace"}, "--arrival trace needs --dataset trace:FILE"),
        (
            {"dataset": "synthetic:8/8", "answer_regex": "x"},
            "--answer-regex: --dataset synthetic has no answers to grade",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(options: dict[str, object], words: str, tmp_path: Path) -> None:
    path = saved(tmp_path, "mc.jsonl", *MOONCAKE)
    given = {name: value.format(trace=path) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(UsageError) as caught:
        configure(**given)  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "gsm8k_cot_zeroshot"}, "has no answers to grade; omit --protocol, which is plain then"),
        ({"shots_file": "x"}, "--shots-file x needs --protocol gsm8k or another with shots: 'plain' has no shots"),
    ],
)
def test_protocols_with_answers_and_shots_are_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_sweep(configure(dataset="synthetic:8/8", **options))  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_trace_whose_requests_have_one_time_has_no_rate(tmp_path: Path) -> None:
    path = saved(tmp_path, "mc.jsonl", MOONCAKE[0], MOONCAKE[0])
    with pytest.raises(UsageError, match=r"all requests have the same time.*give --arrival closed or poisson:RATE"):
        configure(dataset=f"trace:{path}")


# several rates


def test_each_rate_of_a_list_is_a_cell_of_every_target_and_repeat() -> None:
    config = configure(arrival="poisson:5,10,20", repeats=2)
    assert (config.arrival, config.levels) == ("poisson:5,10,20", 3)
    blocks = plan_sweep(config).blocks
    assert [cell.arrival for cell in blocks[0].cells] == ["poisson:5", "poisson:10", "poisson:20"]
    assert [cell.arrival for cell in blocks[-1].cells] == ["poisson:20", "poisson:10", "poisson:5"], "ABBA"
    assert {cell.concurrency for block in blocks for cell in block.cells} == {1024}
    labels = [cell.label for block in blocks for cell in block.cells]
    assert len({*labels}) == len(labels) == 4 * 2 * 3


def test_rate_scales_are_rates_of_the_trace(tmp_path: Path) -> None:
    path = saved(tmp_path, "mc.jsonl", *MOONCAKE)
    assert configure(dataset=f"trace:{path}", rate_scale="0.5,1,4").arrival == "trace:0.5,1,4"
    with pytest.raises(UsageError, match="listed twice"):
        configure(dataset=f"trace:{path}", rate_scale=[1, 1])
    with pytest.raises(UsageError, match="5 is listed twice; list each rate once"):
        configure(arrival="poisson:5,5")


# the server's count


class Tokenizes(BaseHTTPRequestHandler):
    """vLLM's /tokenize with a token a word, two for "the", and 4 more for a chat; nothing else."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][0]["content"] if "messages" in asked else asked["prompt"]
        words = text.split()
        count = len(words) + words.count("the") + (5 if "messages" in asked else 1)
        there = self.path == "/tokenize" and asked["model"] == "m"
        body = json.dumps({"count": count, "max_model_len": 600, "tokens": [], "token_strs": None}).encode()
        self.send_response(200 if there else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizing() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Tokenizes) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_prompts_are_written_with_the_servers_own_tokenizer(api: Any, tokenizing: str) -> None:
    plan = plan_sweep(configure(dataset="synthetic:40-90/8", limit=20, api=api))
    target = Target(name="fp16", precision="fp16", url=tokenizing, model="m")
    asked = plan.assignment(target, plan.cells[0], BodyChanges())
    assert not any(item.id.startswith("synthetic") for item in asked.warmup_items), "their texts are not written yet"
    written, notes = Prompts(plan).plan_for(asked, "fp16", None)
    assert notes == []
    added = 5 if api == "chat" else 1
    for item in (*written.dataset.items, *written.dataset.warmup):
        assert len(item.question.split()) + added == item.input_tokens
        assert "the" not in item.question.split()


def test_requests_longer_than_the_server_takes_are_refused(tokenizing: str) -> None:
    plan = plan_sweep(configure(dataset="synthetic:590/20", limit=3))
    target = Target(name="fp16", precision="fp16", url=tokenizing, model="m")
    asked = plan.assignment(target, plan.cells[0], BodyChanges())
    with pytest.raises(ServerError, match=r"3 of 3 requests need up to 610 tokens.* it takes 600"):
        Prompts(plan).plan_for(asked, "fp16", None)


def test_a_recorded_answers_tokens_are_its_cap(tokenizing: str, tmp_path: Path) -> None:
    talk = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello you the one."}]}
    plan = plan_sweep(configure(dataset=f"sharegpt:{saved(tmp_path, 'talks.jsonl', talk)}"))
    target = Target(name="fp16", precision="fp16", url=tokenizing, model="m")
    written, _ = Prompts(plan).plan_for(plan.assignment(target, plan.cells[0], BodyChanges()), "fp16", None)
    assert [item.most_tokens for item in written.dataset.items] == [5]
