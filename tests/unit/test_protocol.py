"""The 5-shot GSM8K protocol: its prompt, its name and its hash."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from loadgen.errors import UsageError
from loadgen.workload import protocol as protocols
from loadgen.workload import sample
from loadgen.workload.item import Item
from loadgen.workload.protocol import Protocol, load_protocol
from loadgen.workload.published import PublishedFile, sha256_of

ITEM = Item(id="x", question="How many?", solution="#### 2", gold="2")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGEN_CACHE", str(tmp_path / "cache"))


def shots_file(tmp_path: Path, count: int) -> Path:
    path = tmp_path / "train.jsonl"
    rows = [{"question": f"Q{n}?", "answer": f"because <<{n}={n}>>\n#### {n}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_prompt_is_five_worked_examples_and_the_question_with_blank_lines_between(tmp_path: Path) -> None:
    protocol = load_protocol("gsm8k", shots_file=shots_file(tmp_path, 9))
    assert protocol.prompt(ITEM) == (
        "Question: Q0?\nAnswer: because <<0=0>>\n#### 0\n\n"
        "Question: Q1?\nAnswer: because <<1=1>>\n#### 1\n\n"
        "Question: Q2?\nAnswer: because <<2=2>>\n#### 2\n\n"
        "Question: Q3?\nAnswer: because <<3=3>>\n#### 3\n\n"
        "Question: Q4?\nAnswer: because <<4=4>>\n#### 4\n\n"
        "Question: How many?\nAnswer:"
    )


def test_stops_limit_and_endpoint_are_the_published_tasks(tmp_path: Path) -> None:
    protocol = load_protocol("gsm8k", shots_file=shots_file(tmp_path, 5))
    assert protocol.stops == ("Question:", "</s>", "<|im_end|>")
    assert (protocol.max_tokens, protocol.api) == (256, "completions")


def published_as(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the file for the pinned train split, at a file:// address."""
    monkeypatch.setattr(protocols.gsm8k, "TRAIN", PublishedFile("train.jsonl", path.as_uri(), sha256_of(path)))


def test_the_name_says_where_the_examples_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shots_file(tmp_path, 5)
    assert load_protocol("gsm8k", shots_file=path).name == "gsm8k-5shot-custom"
    published_as(path, monkeypatch)
    assert load_protocol("gsm8k", shots_file=path).name == "gsm8k-5shot-train"


def test_the_train_split_is_downloaded_and_used_from_the_cache_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shots_file(tmp_path, 5)
    published_as(path, monkeypatch)
    assert load_protocol("gsm8k").name == "gsm8k-5shot-train"
    path.unlink()
    assert load_protocol("gsm8k").name == "gsm8k-5shot-train"


def test_without_a_network_the_projects_own_examples_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = PublishedFile("train.jsonl", "http://127.0.0.1:1/train.jsonl", "0" * 64)
    monkeypatch.setattr(protocols.gsm8k, "TRAIN", unreachable)
    protocol = load_protocol("gsm8k")
    assert (protocol.name, protocol.shots) == ("gsm8k-5shot-own", tuple(sample.own_shots()))


def test_the_sample_protocol_is_the_same_with_one_example_and_needs_no_file(tmp_path: Path) -> None:
    protocol = load_protocol("sample")
    (shot,) = protocol.shots
    assert protocol.name == "sample-1shot-own"
    assert protocol.prompt(ITEM) == (
        f"Question: {shot.question}\nAnswer: {shot.solution}\n\nQuestion: How many?\nAnswer:"
    )
    with pytest.raises(UsageError, match="'sample' has its own shot"):
        load_protocol("sample", shots_file=shots_file(tmp_path, 5))


def test_the_hash_follows_everything_that_shapes_a_request(tmp_path: Path) -> None:
    base = load_protocol("gsm8k", shots_file=shots_file(tmp_path, 5))

    def changed(**fields: object) -> Protocol:
        return msgspec.structs.replace(base, **fields)

    variants = [
        base,
        changed(shots=base.shots[:4]),
        changed(shots=base.shots[::-1]),
        changed(stops=base.stops[:1]),
        changed(max_tokens=255),
        changed(api="chat"),
    ]
    assert len({protocol.sha256 for protocol in variants}) == len(variants)


def test_the_hash_follows_neither_the_item_nor_the_name() -> None:
    base = load_protocol("sample")
    before = base.sha256
    base.prompt(ITEM)
    assert base.sha256 == before == msgspec.structs.replace(base, name="another").sha256


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds 4 examples; gsm8k needs 5"):
        load_protocol("gsm8k", shots_file=shots_file(tmp_path, 4))


def test_an_unknown_protocol_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown protocol 'cot'; known: gsm8k, sample"):
        load_protocol("cot")
    with pytest.raises(UsageError, match=r"--shots-file .*none\.jsonl: there is no such file"):
        load_protocol("gsm8k", shots_file=tmp_path / "none.jsonl")
