"""The verdicts `strict` and `flexible` are those of lm-evaluation-harness itself, text by text."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kinds import EVERYTHING
from programs import package
from published import published

from loadgen.workload.grading import grade
from loadgen.workload.grading.grader import TASKS, task_of
from loadgen.workload.item import ItemFacts

package("lm_eval")

from lm_eval.api.metrics import exact_match_fn  # noqa: E402
from lm_eval.filters import build_filter_ensemble  # noqa: E402

TASK_FILES = {
    "gsm8k": "gsm8k.yaml",
    "gsm8k_cot": "gsm8k-cot.yaml",
    "gsm8k_cot_zeroshot": "gsm8k-cot-zeroshot.yaml",
    "gsm8k_cot_llama": "gsm8k-cot-llama.yaml",
}
GOLDS = ["18", "-3", "1450000", "0", "0.5", "7", "2125"]
STATEMENTS = [
    "#### {}", "####{}", "#### ${}", "#### {}.", "#### {}.00", "#### {}.0", "####  {}", "#### {} eggs", "#### -{}",
    "{}", "The final answer is {} of 5", "The answer is {}", "The answer is {}.", "The answer is {}!",
    "The answer is {}\n", "The answer is ${}.", "the answer is {}.", "The answer is: {}.", "The answer is {},",
    "The answer is {}. The answer is 7.", "The final answer is {}", "The final answer is {}.",
    "The final answer is ${}.", "The final answer is: {}", "The final answer is 7. The final answer is {}.",
    "The final answer is $", "x = {}...", "from 10-{}", "({})", r"\boxed{{{}}}", "{} dollars (3 x 6)",
    "#### 5-3={}", "#### {}\n\nQuestion: How many of 7?", "{}%", "{}/2", "#### {} ... #### 19",
    "#### 19 ... #### {}", "\N{MINUS SIGN}{}", "1.8e1 {}", "{},", "{},{}", "$,{}", "--{}", "{}-{}",
    "so {}.\n#### {}\n", "#### ,", "#### .", "#### -", "-", "$", ".", "..", "", "[invalid]", "no number",
]  # fmt: skip


@cache
def task_config(task: str) -> dict[str, Any]:
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    content: dict[str, Any] = yaml.safe_load(
        (Path(spec.origin).parent / "tasks" / "gsm8k" / TASK_FILES[task]).read_text(encoding="utf-8")
    )
    return content


def harness_verdicts(task: str, texts: Sequence[str], golds: Sequence[str]) -> Iterator[tuple[bool, bool]]:
    """(strict, flexible) by lm_eval's own filters and metric, configured by its own task file."""
    config = task_config(task)
    (metric,) = config["metric_list"]
    options = {
        name: metric[name] for name in ("regexes_to_ignore", "ignore_case", "ignore_punctuation") if name in metric
    }
    instances = [SimpleNamespace(resps=[text], doc={}, filtered_resps={}) for text in texts]
    for pipeline in config["filter_list"]:
        steps = [
            (step["function"], {key: value for key, value in step.items() if key != "function"})
            for step in pipeline["filter"]
        ]
        build_filter_ensemble(pipeline["name"], steps).apply(instances)
    for instance, gold in zip(instances, golds, strict=True):
        strict, flexible = (
            bool(exact_match_fn(predictions=[found], references=[gold], **options)["exact_match"])
            for found in (instance.filtered_resps["strict-match"], instance.filtered_resps["flexible-extract"])
        )
        yield strict, flexible


def our_verdicts(task: str, text: str, gold: str) -> tuple[bool | None, bool | None]:
    read = grade(text, ItemFacts(gold=gold), protocol=task, finish_reason="stop")
    return read.strict, read.flexible


def written(number: str) -> Iterator[str]:
    yield number
    if number.lstrip("-").isdigit():
        yield f"{int(number):,}"


def test_the_harness_is_the_release_that_the_rules_were_taken_from() -> None:
    assert version("lm_eval") == "0.4.13"


@pytest.mark.parametrize("task", TASK_FILES)
def test_verdicts_agree_on_every_way_of_stating_an_answer(task: str) -> None:
    cases = [
        (statement.replace("{}", number).replace("{{", "{").replace("}}", "}"), gold)
        for statement in STATEMENTS
        for gold in GOLDS
        for stated in (*GOLDS, "18.00")
        for number in written(stated)
    ]
    assert len(cases) > 4000
    expected = harness_verdicts(task, [text for text, _ in cases], [gold for _, gold in cases])
    outcomes = set()
    for (text, gold), theirs in zip(cases, expected, strict=True):
        outcomes.add(theirs)
        assert our_verdicts(task, text, gold) == theirs, (text, gold)
    assert len(outcomes) == 4  # each combination of strict and flexible occurs


texts = st.lists(
    st.one_of(
        st.sampled_from(["#### ", "The answer is ", "The final answer is ", "18", "-", "$", ".", ",", "\n", " ", "Q:"]),
        st.from_regex(r"-?[$0-9.,]{1,8}", fullmatch=True),
        st.text(max_size=6),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("task", TASK_FILES)
@settings(max_examples=400 if EVERYTHING else 40)
@given(text=texts, gold=st.sampled_from(GOLDS) | st.integers(-(10**7), 10**7).map(str))
@example(text="The answer is 18", gold="1")
@example(text="The answer is 18\n", gold="1")
@example(text="#### 18\x00", gold="18")
@example(text="1\N{ARABIC-INDIC DIGIT EIGHT}", gold="1")
def test_verdicts_agree_on_generated_texts(task: str, text: str, gold: str) -> None:
    assert our_verdicts(task, text, gold) == next(harness_verdicts(task, [text], [gold]))


@pytest.mark.parametrize("task", TASK_FILES)
def test_verdicts_agree_on_the_published_solutions_whole_and_cut(task: str) -> None:
    """Gold stands in the harness as its task file has it: the whole solution, or what follows `####`."""
    path = published("gsm8k_test.jsonl")
    rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    draw = random.Random(4)
    cases = []
    for row in rows:
        solution = row["answer"]
        stated = solution.replace("#### ", draw.choice(["#### ", "The answer is ", "The final answer is ", ""]))
        cases.append((draw.choice([stated, stated + ".", solution[: draw.randrange(len(solution))]]), row))
    whole = task_config(task)["doc_to_target"] == "{{answer}}"
    golds = [row["answer"] if whole else row["answer"].split("####")[-1].strip() for _, row in cases]
    expected = list(harness_verdicts(task, [text for text, _ in cases], golds))
    ours = [our_verdicts(task, text, row["answer"].split("####")[-1].strip().replace(",", "")) for text, row in cases]
    assert ours == expected
    assert 100 < sum(strict for strict, _ in expected) < 1219


def test_a_protocol_is_the_counterpart_of_the_task_its_name_begins_with() -> None:
    assert set(TASKS) == {*TASK_FILES, "gsm8k_fixed", "sample"}
    assert task_of("gsm8k-5shot-train") is task_of("gsm8k-own") is task_of("gsm8k_fixed") is TASKS["gsm8k"]
    assert task_of("gsm8k_cot-own") is TASKS["gsm8k_cot"]
    assert task_of("mathqa_gen_v1") is task_of("gsm8kx") is None


def test_the_harness_looks_at_no_finish_reason_and_at_the_reasoning_too() -> None:
    cut = grade("<think>#### 18", ItemFacts(gold="18"), protocol="gsm8k", finish_reason="length")
    assert (cut.outcome, cut.strict, cut.flexible) == ("truncated", True, True)
