"""Sets of one's own with text answers, and with numbers that have a unit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.workload.dataset import Dataset, load_dataset
from loadgen.workload.grading import grade
from loadgen.workload.item import Item, facts_of
from loadgen.workload.protocol import load_protocol


def dataset(folder: Path, *answers: object, accept: list[object] | None = None) -> Dataset:
    path = folder / "own.jsonl"
    rows = [{"question": f"q{k}", "answer": answer, "accept": accept or []} for k, answer in enumerate(answers)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_dataset("jsonl", data_file=path)


def outcome(item: Item, text: str, finish: str = "stop") -> tuple[str, str | None]:
    verdict = grade(text, facts_of(item), protocol="text_gen_v1", finish_reason=finish)
    return verdict.outcome, verdict.extractor


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris", ("correct", "text")),
        (" **PARIS**. ", ("correct", "text")),
        ("It lies on the Seine.\nThe answer is Paris.", ("correct", "answer_is")),
        ('The answer is "Paris". It has been since 987.', ("correct", "answer_is")),
        ("**Answer:** paris", ("correct", "answer_colon")),
        (r"So \boxed{\text{Paris}}", ("correct", "boxed")),
        ("Lyon is large.\n\nParis", ("correct", "last_line")),
        ("The answer is Lutetia.", ("correct", "answer_is")),
        ("Paris?\nThe answer is Lyon.", ("wrong", "answer_is")),
        ("Parisian", ("wrong", "text")),
        ("...", ("unparsed", None)),
    ],
)
def test_a_text_is_compared_without_case_space_and_end_punctuation(
    tmp_path: Path, text: str, expected: tuple[str, str | None]
) -> None:
    (item,) = dataset(tmp_path, "Paris", accept=["Lutetia"]).items
    assert outcome(item, text) == expected


def test_a_text_keeps_its_inner_dots_and_its_length(tmp_path: Path) -> None:
    long = "one of " * 40 + "them"
    items = dataset(tmp_path, "St. John's", long, "1984", "A").items
    assert [item.gold for item in items] == ["St. John's", long, "1984", "A"]
    for item in items:
        assert outcome(item, f"So.\nThe answer is {item.gold.upper()}.") == ("correct", "answer_is")
        assert outcome(item, "The answer is something else.") == ("wrong", "answer_is")
    assert outcome(items[0], "It may be\nSt. John's", "length") == ("truncated", None)


def test_a_pattern_finds_a_text(tmp_path: Path) -> None:
    (item,) = dataset(tmp_path, "New York").items
    read = grade("X: [new  york]\nBye", item, protocol="p", finish_reason="stop", pattern=re.compile(r"\[(.*)\]"))
    assert (read.outcome, read.answer, read.extractor) == ("correct", "new  york", "pattern")


def test_a_set_of_texts_has_a_protocol_of_its_own(tmp_path: Path) -> None:
    texts = dataset(tmp_path, "Paris", "Rome")
    assert texts.answer == "text"
    assert configure(dataset="jsonl", data_file=tmp_path / "own.jsonl").protocol == "text_gen_v1"
    protocol = load_protocol("text_gen_v1")
    protocol.check_fits(texts)
    assert "q0" in protocol.prompt(texts.items[0])
    with pytest.raises(UsageError, match="are texts; use --protocol text_gen_v1"):
        load_protocol("gsm8k_cot_zeroshot").check_fits(texts)
    numbers = dataset(tmp_path, "18 km")
    assert configure(dataset="jsonl", data_file=tmp_path / "own.jsonl").protocol == "gsm8k_cot_zeroshot"
    with pytest.raises(UsageError, match="are numbers; use --protocol gsm8k_cot_zeroshot"):
        protocol.check_fits(numbers)


@pytest.mark.parametrize(
    ("answer", "gold", "unit"),
    [
        ("18 km", "18", "km"),
        ("18km", "18", "km"),
        ("1,250 Kilometers", "1250", "km"),
        ("$1,250.50", "1250.50", "dollar"),
        ("-$5", "-5", "dollar"),
        ("60 miles per hour", "60", "mi/h"),
        ("12 m²", "12", "m^2"),
        ("12 square metres", "12", "m^2"),
        ("25%", "25", "%"),
        ("5 red apples", "5", "red apples"),
        ("2 * 9 = 18\n#### 18 km", "18", "km"),
    ],
)
def test_a_number_may_have_a_unit(tmp_path: Path, answer: str, gold: str, unit: str) -> None:
    (item,) = dataset(tmp_path, answer).items
    assert (item.gold, item.unit, item.exact) == (gold, unit, False)


@pytest.mark.parametrize("answer", ["3,5 km", "3,5", "18 million", "$18 per hour", "12th", "1/2"])
def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path, answer: str) -> None:
    with pytest.raises(UsageError, match=r"line 1: the answer .* is not a number"):
        dataset(tmp_path, answer)


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("18 km", "The answer is 18 km.", "correct"),
        ("18 km", "The answer is 18.", "correct"),
        ("18 km", r"\boxed{18\text{ kilometers}}", "correct"),
        ("18 km", "$18$ km", "correct"),
        ("18 km", "The answer is 18 miles.", "wrong"),
        ("18 km", "It takes 18 minutes.\nThe answer is 18", "correct"),
        ("18 km", "The answer is 18 in total.", "correct"),
        ("18 km", "The answer is 18 trips.", "correct"),
        ("18 km", "#### 17 km", "wrong"),
        ("18 km", "#### 18 kg", "wrong"),
        ("60 km/h", "The answer is 60 kilometers per hour.", "correct"),
        ("60 km/h", "The answer is 60 miles per hour.", "wrong"),
        ("12 m²", "The answer is 12 square meters.", "correct"),
        ("12 m²", "The answer is $12 m^2$.", "correct"),
        ("$18", "The answer is 18 dollars.", "correct"),
        ("$18", "The answer is $18.", "correct"),
        ("$18", "The answer is €18.", "wrong"),
        ("18 €", "The answer is €18.", "correct"),
        ("20 °C", "The answer is 20 degrees.", "correct"),
        ("20 °C", "The answer is 20°F.", "wrong"),
        ("135 minutes", "The answer is 2 hours 15 minutes.", "correct"),
        ("5 apples", "The answer is 5 kg.", "wrong"),
        ("5 apples", "The answer is 5 pears.", "correct"),
    ],
)
def test_another_known_unit_is_wrong(tmp_path: Path, answer: str, text: str, expected: str) -> None:
    (item,) = dataset(tmp_path, answer).items
    assert grade(text, facts_of(item), protocol="gsm8k_cot_zeroshot", finish_reason="stop").outcome == expected


def test_a_number_of_any_length_is_read(tmp_path: Path) -> None:
    (item,) = dataset(tmp_path, "18 km").items
    text = f"{'1' * 10_000}\nThe answer is 18."
    assert grade(text, facts_of(item), protocol="gsm8k_cot_zeroshot", finish_reason="stop").outcome == "correct"
    assert grade("1" * 10_000, facts_of(item), protocol="p", finish_reason="stop").outcome in ("wrong", "unparsed")


def test_accepted_numbers_may_have_the_unit_too(tmp_path: Path) -> None:
    (item,) = dataset(tmp_path, "18 km", accept=["19 km", 20]).items
    assert item.accepted == ("18", "19", "20")
    with pytest.raises(UsageError, match=r"'accept' lists .* in km"):
        dataset(tmp_path, "18 km", accept=["19 miles"])
