"""Shots: where worked examples come from, how they end, and which of them a question gets."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from published import published

from loadgen.errors import UsageError
from loadgen.workload import dataset as shots
from loadgen.workload.dataset import HarnessTask, installed_task
from loadgen.workload.item import Item
from loadgen.workload.protocol import load_protocol
from loadgen.workload.published import PublishedFile

ITEM = Item(id="test-0000", question="How many?", solution="#### 2", gold="2")
UNREACHABLE = "http://127.0.0.1:1/rows.jsonl"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def nothing_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and no lm_eval."""
    monkeypatch.setattr(shots.mathqa, "DEV", PublishedFile("dev.json", UNREACHABLE, "0" * 64, 1))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_drawn_examples_depend_on_the_row_alone_and_not_on_what_was_asked_before() -> None:
    backwards = [shots.drawn(100, 5, f"gsm8k-test-{row:04d}") for row in reversed(range(30))]
    assert backwards[::-1] == [shots.drawn(100, 5, f"sample-{row:04d}") for row in range(30)]
    assert all(len(set(chosen)) == 5 and max(chosen) < 100 for chosen in backwards)


@pytest.mark.parametrize(("name", "closing"), [("gsm8k_cot", "The answer is 41."), ("gsm8k_cot_llama", "answer is 41")])
def test_own_chain_of_thought_examples_close_as_the_task_wants(nothing_at_hand: None, name: str, closing: str) -> None:
    first = load_protocol(name).shots[0]
    assert first.solution.startswith("In two weeks a hen lays 2 * 5 = 10 eggs. All hens lay")
    assert first.solution.endswith(f"41 dollars. {closing}" if name == "gsm8k_cot" else f"The final {closing}")
    assert "####" not in first.solution


def test_own_letter_examples_close_with_each_letter_once(nothing_at_hand: None) -> None:
    protocol = load_protocol("mathqa_gen_v1_5shot")
    assert sorted(shot.gold for shot in protocol.shots) == list("ABCDE")
    for shot in protocol.shots:
        assert shot.solution.endswith(f" The answer is ({shot.gold}).")
        assert "####" not in shot.solution
    assert protocol.shots[0].options["ABCDE".index(protocol.shots[0].gold)] == "41"


def mathqa_row(gold: str, *, rationale: str = "it is 2 . answer : b", formula: str = "add(1, 1)") -> dict[str, str]:
    values = ["7", "7.5", "8", "9", "10"]
    values["abcde".index(gold)] = "2"
    return {
        "Problem": f"which is {gold} ?", "Rationale": f'"{rationale}"', "correct": gold, "category": "general",
        "options": " , ".join(f"{letter} ) {value}" for letter, value in zip("abcde", values, strict=True)),
        "annotated_formula": formula, "linear_formula": "add(n0,n0)|",
    }  # fmt: skip


def test_dev_examples_are_the_first_usable_row_of_each_letter(tmp_path: Path) -> None:
    rows = [
        mathqa_row("a", formula="add(1, 5)"),
        mathqa_row("b", rationale="naïve . answer : b"),
        mathqa_row("c", rationale="x" * 400),
        *(mathqa_row(letter, rationale="1 + 1 = 2 . so the answer is c .") for letter in "cbbead"),
    ]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(rows))
    protocol = load_protocol("mathqa_gen_v1_5shot", shots_file=path)
    assert protocol.name == "mathqa_gen_v1_5shot-custom"
    assert [shot.id[-4:] for shot in protocol.shots] == ["0003", "0004", "0006", "0007", "0008"]
    assert protocol.shots[0].solution == "1 + 1 = 2. The answer is (C)."
    path.write_text(json.dumps(rows[:-1]))
    with pytest.raises(UsageError, match="holds no usable example for some letter"):
        load_protocol("mathqa_gen_v1_5shot", shots_file=path)


@pytest.mark.parametrize(
    ("published", "kept"),
    [
        ('"2 + 2 = 4 . answer : b"', "2 + 2 = 4"),
        ('"so x = 6.9 . hence answer is e ."', "so x = 6.9"),
        ("it is 5 . the final answer : ( d )", "it is 5"),
        ("x = 3 ans b .", "x = 3"),
        ("the answer lies in 4 steps : 12", "the answer lies in 4 steps : 12"),
    ],
)
def test_a_rationale_loses_its_quotes_and_the_letter_at_its_end_only(published: str, kept: str) -> None:
    assert shots.rationale(published) == kept


def test_a_task_file_gives_wording_delimiter_and_examples(tmp_path: Path) -> None:
    task = {
        "doc_to_text": "Do: {{question}}\n", "target_delimiter": "", "num_fewshot": 2,
        "fewshot_config": {
            "sampler": "first_n",
            "samples": [{"question": f"q{n}", "target": f"t{n}"} for n in range(3)],
        },
    }  # fmt: skip
    path = tmp_path / "task.yaml"
    path.write_text(json.dumps(task))
    protocol = load_protocol("gsm8k_cot_llama", shots_file=path)
    assert protocol.name == "gsm8k_cot_llama-custom"
    assert protocol.prompt(ITEM) == "Do: q0\nt0\n\nDo: q1\nt1\n\nDo: How many?\n"
    del task["target_delimiter"]
    path.write_text(json.dumps(task))
    assert load_protocol("gsm8k_cot", shots_file=path).prompt(ITEM) == "Do: q0\n t0\n\nDo: q1\n t1\n\nDo: How many?\n"


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "- 1",
        "doc_to_text: '{{question}}'",
        "{doc_to_text: '{{question}} {{hint}}', num_fewshot: 1, fewshot_config: {sampler: first_n, samples: []}}",
        "{doc_to_text: '{{question}}', num_fewshot: 1, fewshot_config: {sampler: first_n, samples: []}}",
        "{doc_to_text: '{{question}}', num_fewshot: 1, fewshot_config: "
        "{sampler: random, samples: [{question: a, target: b}]}}",
        "{doc_to_text: '{{question}}', num_fewshot: 1, fewshot_config: {sampler: first_n, samples: [{question: 1}]}}",
    ],
)
def test_a_file_that_is_no_task_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"task\.yaml is not a task file of lm-evaluation-harness") as caught:
        load_protocol("gsm8k_cot", shots_file=path)
    assert "\n" not in str(caught.value)


def test_other_examples_than_the_pinned_ones_are_called_custom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task = HarnessTask(ask="{question}", delimiter=" ", shots=(ITEM,))
    monkeypatch.setattr(shots, "installed_task", lambda name: task)
    assert load_protocol("gsm8k_cot").name == "gsm8k_cot-custom"


def test_without_lm_eval_its_task_files_are_not_there(nothing_at_hand: None) -> None:
    assert installed_task("gsm8k_cot") is None


def test_the_published_dev_split_gives_five_examples_that_end_in_their_letters() -> None:
    protocol = load_protocol("mathqa_gen_v1_5shot", shots_file=published("mathqa_dev.json"))
    assert protocol.name == "mathqa_gen_v1_5shot"
    assert sorted(shot.gold for shot in protocol.shots) == list("ABCDE")
    for shot in protocol.shots:
        assert shot.solution.isascii()
        assert shot.solution.endswith(f". The answer is ({shot.gold}).")
        assert len(re.findall(r"answer(?: is)?\W*[a-eA-E]\b", shot.solution)) == 1, "the letter stands there once"
    assert protocol.sha256 == "4ba2845ea3511b8fbcf4f2d057889e9ea297769d9ffbe23e50676115bd31e0b4", (
        "another request under the same name: give it a new version"
    )
