"""Protocols: prompts, names that say where examples come from, and hashes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import msgspec
import pytest

from loadgen.errors import UsageError
from loadgen.workload import dataset as shots
from loadgen.workload.dataset import DATASETS, Dataset
from loadgen.workload.item import Item
from loadgen.workload.protocol import PROTOCOLS, Protocol, default_protocol, load_protocol
from loadgen.workload.published import PublishedFile, sha256_of
from loadgen.workload.questions import own_shots

ITEM = Item(id="test-0000", question="How many?", solution="#### 2", gold="2")
CHOICE = Item(
    id="mathqa-test-0000", question="how many ?", solution="", gold="B", options=("1", "2", "3 m", "4", "none of these")
)
UNREACHABLE = "http://127.0.0.1:1/rows.jsonl"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def nothing_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and no lm_eval."""
    monkeypatch.setattr(shots.gsm8k, "TRAIN", PublishedFile("train.jsonl", UNREACHABLE, "0" * 64, 1))
    monkeypatch.setattr(shots.mathqa, "DEV", PublishedFile("dev.json", UNREACHABLE, "0" * 64, 1))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def shots_file(tmp_path: Path, count: int) -> Path:
    path = tmp_path / "train.jsonl"
    rows = [{"question": f"Q{n}?", "answer": f"because <<{n}={n}>>\n#### {n}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def published_as(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the file for the pinned train split, at a file:// address."""
    file = PublishedFile("train.jsonl", path.as_uri(), sha256_of(path), path.stat().st_size)
    monkeypatch.setattr(shots.gsm8k, "TRAIN", file)


def test_the_fixed_prompt_is_five_worked_examples_and_the_question_with_blank_lines_between(tmp_path: Path) -> None:
    protocol = load_protocol("gsm8k_fixed", shots_file=shots_file(tmp_path, 9))
    assert protocol.prompt(ITEM) == (
        "Question: Q0?\nAnswer: because <<0=0>>\n#### 0\n\n"
        "Question: Q1?\nAnswer: because <<1=1>>\n#### 1\n\n"
        "Question: Q2?\nAnswer: because <<2=2>>\n#### 2\n\n"
        "Question: Q3?\nAnswer: because <<3=3>>\n#### 3\n\n"
        "Question: Q4?\nAnswer: because <<4=4>>\n#### 4\n\n"
        "Question: How many?\nAnswer:"
    )
    assert protocol.name == "gsm8k_fixed-custom"


def test_every_question_shares_the_prefix_only_under_the_fixed_protocol(tmp_path: Path) -> None:
    path = shots_file(tmp_path, 200)
    items = [msgspec.structs.replace(ITEM, id=f"gsm8k-test-{row:04d}") for row in range(50)]

    def prefixes(name: str) -> int:
        return len({load_protocol(name, shots_file=path).prompt(item) for item in items})

    assert (prefixes("gsm8k_fixed"), prefixes("gsm8k")) == (1, 50)


def test_a_conversation_has_a_turn_for_every_question_and_every_answer(tmp_path: Path) -> None:
    protocol = load_protocol("gsm8k_fixed", shots_file=shots_file(tmp_path, 5))
    messages = protocol.messages(ITEM)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 5 + ["user"]
    assert messages[0] == {"role": "user", "content": "Question: Q0?\nAnswer:"}
    assert messages[1] == {"role": "assistant", "content": "because <<0=0>>\n#### 0"}
    assert messages[-1] == {"role": "user", "content": "Question: How many?\nAnswer:"}


def test_the_name_says_where_the_examples_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shots_file(tmp_path, 5)
    assert load_protocol("gsm8k", shots_file=path).name == "gsm8k-custom"
    published_as(path, monkeypatch)
    assert load_protocol("gsm8k", shots_file=path).name == "gsm8k"


def test_the_train_split_is_downloaded_and_used_from_the_cache_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shots_file(tmp_path, 5)
    published_as(path, monkeypatch)
    assert load_protocol("gsm8k").name == "gsm8k"
    path.unlink()
    assert load_protocol("gsm8k").name == "gsm8k"


def test_without_network_and_lm_eval_the_projects_own_examples_serve(nothing_at_hand: None) -> None:
    named = {name: load_protocol(name) for name in PROTOCOLS}
    assert {name: protocol.name for name, protocol in named.items()} == {
        "gsm8k": "gsm8k-own",
        "gsm8k_fixed": "gsm8k_fixed-own",
        "gsm8k_cot": "gsm8k_cot-own",
        "gsm8k_cot_zeroshot": "gsm8k_cot_zeroshot",
        "gsm8k_cot_llama": "gsm8k_cot_llama-own",
        "mathqa_gen_v1": "mathqa_gen_v1",
        "mathqa_gen_v1_5shot": "mathqa_gen_v1_5shot-own",
        "text_gen_v1": "text_gen_v1",
        "plain": "plain",
        "sample": "sample",
    }
    assert named["gsm8k"].shots == tuple(own_shots())
    assert [len(protocol.shots_of(ITEM)) for protocol in named.values()] == [5, 5, 8, 0, 8, 0, 5, 0, 0, 1]


def test_a_question_with_options_lists_them_under_their_letters() -> None:
    protocol = load_protocol("mathqa_gen_v1")
    turn = (
        "Question: how many ?\nOptions:\n(A) 1\n(B) 2\n(C) 3 m\n(D) 4\n(E) none of these\n"
        'Think step by step, then finish with "The answer is (X)", where X is the letter of the right option.\nAnswer:'
    )
    assert protocol.prompt(CHOICE) == turn
    assert protocol.messages(CHOICE) == [{"role": "user", "content": turn}]
    assert (protocol.answer, protocol.api, protocol.max_tokens) == ("letter", "chat", 1024)
    assert "Options" not in protocol.prompt(ITEM), "warm-up questions have none"


def test_what_mathqa_gen_v1_asks_never_changes_under_this_name() -> None:
    frozen = "f90ef7fcba2e48fd92c0a7445497de7f13fc21fba165752a9b0c3da4b43dd3aa"
    assert load_protocol("mathqa_gen_v1").sha256 == frozen, "another request: give it a new version"


def test_braces_in_a_question_are_left_alone() -> None:
    asked = msgspec.structs.replace(CHOICE, question="{options} {question} {0} \\1 ?")
    assert load_protocol("mathqa_gen_v1").prompt(asked).startswith("Question: {options} {question} {0} \\1 ?\nOptions:")


def test_the_sample_protocol_has_one_example_and_needs_no_file(tmp_path: Path) -> None:
    protocol = load_protocol("sample")
    (shot,) = protocol.shots
    assert protocol.name == "sample"
    assert protocol.prompt(ITEM) == (
        f"Question: {shot.question}\nAnswer: {shot.solution}\n\nQuestion: How many?\nAnswer:"
    )
    with pytest.raises(UsageError, match="'sample' has its own shot"):
        load_protocol("sample", shots_file=shots_file(tmp_path, 5))
    with pytest.raises(UsageError, match="'gsm8k_cot_zeroshot' has no shots"):
        load_protocol("gsm8k_cot_zeroshot", shots_file=shots_file(tmp_path, 5))


def test_the_hash_follows_everything_that_shapes_a_request(tmp_path: Path) -> None:
    base = load_protocol("gsm8k", shots_file=shots_file(tmp_path, 6))

    def changed(**fields: object) -> Protocol:
        return msgspec.structs.replace(base, **fields)

    variants = [
        base,
        changed(ask=base.ask + " "),
        changed(delimiter=""),
        changed(shots=base.shots[:5]),
        changed(shots=base.shots[::-1]),
        changed(drawn=4),
        changed(drawn=None),
        changed(stops=base.stops[:1]),
        changed(max_tokens=255),
        changed(api="chat"),
    ]
    assert len({protocol.sha256 for protocol in variants}) == len(variants)


def test_the_hash_follows_neither_the_item_nor_the_name() -> None:
    base = load_protocol("sample")
    before = base.sha256
    base.prompt(ITEM)
    assert base.sha256 == before == msgspec.structs.replace(base, name="another", version="9").sha256


def test_a_prompts_hash_is_of_what_is_sent() -> None:
    text = load_protocol("sample")
    chat = msgspec.structs.replace(text, api="chat")
    assert text.prompt_sha(ITEM) == hashlib.sha256(text.prompt(ITEM).encode()).hexdigest()
    assert chat.prompt_sha(ITEM) == hashlib.sha256(msgspec.json.encode(chat.messages(ITEM))).hexdigest()


def test_each_dataset_has_a_protocol_that_asks_for_its_kind_of_answer(nothing_at_hand: None) -> None:
    for name in DATASETS:
        kind = "letter" if name.startswith(("mathqa", "choices")) else "number"
        dataset = Dataset(name=name, items=(), sha256="", published=True, answer=kind)
        load_protocol(default_protocol(name)).check_fits(dataset)


def test_letters_and_numbers_are_not_mixed() -> None:
    options = Dataset(name="mathqa:all", items=(), sha256="", published=True, answer="letter")
    with pytest.raises(UsageError, match=r"sample asks for a number, .* letters; use --protocol mathqa_gen_v1"):
        load_protocol("sample").check_fits(options)


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_fixed"])
def test_too_few_examples_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="holds 4 examples; the protocol needs 5"):
        load_protocol(name, shots_file=shots_file(tmp_path, 4))


def test_an_unknown_protocol_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown protocol 'cot'; known: gsm8k, gsm8k_fixed, "):
        load_protocol("cot")
    for name in ("gsm8k", "gsm8k_cot", "mathqa_gen_v1_5shot"):
        with pytest.raises(UsageError, match=r"--shots-file .*none\.jsonl: there is no such file"):
            load_protocol(name, shots_file=tmp_path / "none.jsonl")


def test_no_protocol_is_named_without_being_known() -> None:
    assert set(map(default_protocol, DATASETS)) <= set(PROTOCOLS)
