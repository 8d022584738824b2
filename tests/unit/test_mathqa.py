"""MathQA in its published schema; every problem here was written for this test."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import published

from loadgen.errors import UsageError
from loadgen.workload.dataset import items_of_file, load_dataset
from loadgen.workload.mathqa import (
    CLEAN_TEST_IDS_SHA256,
    DEV,
    TEST,
    FormulaError,
    agrees,
    ids_sha256,
    option_value,
    read_clean,
    read_mathqa,
    split_options,
    value_of,
)
from loadgen.workload.published import PublishedFile, sha256_of


def row(**fields: str) -> dict[str, str]:
    return {
        "Problem": "what is 2 plus 3 ?", "Rationale": '"it is 5 . answer : b"', "correct": "b", "category": "general",
        "options": "a ) 4 , b ) 5 , c ) 6 , d ) 7 , e ) 8",
        "annotated_formula": "add(2, 3)", "linear_formula": "add(n0,n1)|", **fields,
    }  # fmt: skip


def array(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def test_a_row_becomes_an_item_with_its_options_and_an_upper_case_letter(tmp_path: Path) -> None:
    _, item = read_mathqa(array(tmp_path, row(), row(linear_formula="add(n0,n1)|divide(#0,n1)|")), split="test")
    assert (item.id, item.gold, item.options) == ("mathqa-test-0001", "B", ("4", "5", "6", "7", "8"))
    assert (item.steps, item.annotated_steps, item.accepted) == (2, None, ())


@pytest.mark.parametrize(
    ("published", "options"),
    [
        ("a ) 4 , b ) 5 kg , c ) 6 , d ) none , e ) 8", ("4", "5 kg", "6", "none", "8")),
        ("a ) 1 , 200 , b ) 2 , 300 , c ) 3 , d ) 4 , e ) 5,1", ("1 , 200", "2 , 300", "3", "4", "5,1")),
        ("a ) a ) 4 , b ) b ) 5 , c ) c ) 6 , d ) d ) 7 , e ) e ) 8", ("4", "5", "6", "7", "8")),
        ("a ) 4 , b ) 5 , c ) 6 , d ) d ) 7 , e ) e ) 8", ("4", "5", "6", "7", "8")),
        ("['a ) 4', 'b ) 5 , 0', \"c ) it's 6\", 'd ) 7', 'e ) 8']", ("4", "5 , 0", "it's 6", "7", "8")),
        ("['a ) a ) 4', 'b ) b ) 5', 'c ) c ) 6', 'd ) d ) 7', 'e ) e ) 8']", ("4", "5", "6", "7", "8")),
    ],
)
def test_all_published_forms_of_options_are_read(published: str, options: tuple[str, ...]) -> None:
    assert split_options(published) == options


@pytest.mark.parametrize(
    "published", ["", "a ) 1 , b ) 2", "a ) 1 , c ) 2 , b ) 3 , d ) 4 , e ) 5", "['a ) 1'", "['a ) 1', 3]", "[1]"]
)
def test_anything_else_than_five_options_is_refused(tmp_path: Path, published: str) -> None:
    assert split_options(published) is None
    with pytest.raises(UsageError, match=r"rows\.json, row 0: .* does not list five options"):
        read_mathqa(array(tmp_path, row(options=published)), split="test")


def test_every_letter_whose_option_reads_as_the_gold_one_is_accepted(tmp_path: Path) -> None:
    same_as_gold = row(options="a ) 4 , b ) 5  km , c ) 6 , d ) 5 km , e ) 8")
    same_as_each_other = row(options="a ) 4 , b ) 5 , c ) 4 , d ) 7 , e ) 8")
    first, second = read_mathqa(array(tmp_path, same_as_gold, same_as_each_other), split="test")
    assert (first.accepted, second.accepted) == (("B", "D"), ())


@pytest.mark.parametrize("correct", ["f", "", "ab", "5"])
def test_a_gold_answer_that_is_not_a_letter_is_refused(tmp_path: Path, correct: str) -> None:
    with pytest.raises(UsageError, match=r"row 1: .* is not a letter from a to e"):
        read_mathqa(array(tmp_path, row(), row(correct=correct)), split="test")


@pytest.mark.parametrize("text", ["{", "{}", '[{"Problem": "x"}]', "[3]", '["\xff"]'])
def test_another_schema_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"rows\.json, line 1, is not MathQA") as caught:
        read_mathqa(path, split="test")
    assert "\n" not in str(caught.value)
    path.write_text("")
    with pytest.raises(UsageError, match="holds no question"):
        read_mathqa(path, split="test")


def test_parquet_and_gzip_are_read_as_the_array_is(tmp_path: Path) -> None:
    rows = [row(), row(correct="b")]
    items = read_mathqa(array(tmp_path, *rows), split="test")
    table = tmp_path / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([{**one, "category": "general"} for one in rows]), table)
    zipped = tmp_path / "rows.json.gz"
    zipped.write_bytes(gzip.compress(b"\xef\xbb\xbf" + (tmp_path / "rows.json").read_bytes()))
    assert read_mathqa(table, split="test") == items
    assert read_mathqa(zipped, split="test") == items
    assert items_of_file(table) == items_of_file(zipped) == items_of_file(tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("add(2, 3)", 5),
        ("7", 7),
        ("subtract(divide(multiply(add(const_100, 31.1), const_100), subtract(const_100, 5)), const_100)", 38),
        ("multiply(const_0_2778, 36)", 10.0008),
        ("multiply(const_4.0, const_0_25)", 1),
        ("divide(1,200, -3)", -400),
        ("power(const_2, negate(2))", 0.25),
        ("choose(5, 2)", 10),
        ("permutation(5, 2)", 20),
        ("factorial(const_3)", 6),
        ("lcm(12, 18)", 36),
        ("gcd(12, 18)", 6),
        ("reminder(17, 5)", 2),
        ("floor(2.9)", 2),
        ("max(2, 3, 1)", 3),
        ("log(power(const_2, 3))", 3 * math.log(2)),
        ("triangle_area_three_edges(3, 4, 5)", 6),
        ("volume_cone(3, 7)", 21 * math.pi),
        ("surface_cylinder(1, 2)", 6 * math.pi),
        ("surface_rectangular_prism(1, 2, 3)", 22),
        ("quadrilateral_area(10, 3, 4)", 35),
        ("original_price_before_loss(20, 80)", 100),
        ("original_price_before_gain(25, 100)", 80),
        ("p_after_gain(25, 100)", 125),
        ("stream_speed(10, 4)", 3),
        ("const_pi", math.pi),
    ],
)
def test_a_formula_has_the_value_its_words_say(formula: str, value: float) -> None:
    assert value_of(formula) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "formula",
    [
        "", "add(2, 3", "add(2 3)", "add()", "add(1)", "add(1, 2))", "sum(1, 2)", "const_x", "n0", "divide(1, 0)",
        "sqrt(-1)", "power(-8, 0.5)", "factorial(2.5)", "factorial(500)", "power(9999, 9999)", "choose(1.5, 1)",
        "choose(99999999, 3)", "factorial(-1)",
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_an_error_of_its_own(formula: str) -> None:
    with pytest.raises(FormulaError):
        value_of(formula)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("38", 38), ("rs . 1,250", 1250), ("27.675 %", 27.675), ("- 4", -4), ("− 12 m", -12), ("3 / 4", 0.75),
        ("2 : 5", 0.4), ("5 1 / 2 days", 5.5), ("1 / 40,000", 1 / 40_000), (".5", 0.5), ("x = 9", 9), ("3 ⁄ 8", 0.375),
        ("none of these", None), ("", None), ("1 / 0", None), ("6 : 00", None),
    ],
)  # fmt: skip
def test_the_number_of_an_option(option: str, value: float | None) -> None:
    assert option_value(option) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("formula", "option", "same"),
    [
        ("add(2, 3)", "5", True),
        ("add(98, 1)", "100 km", True),
        ("add(98, 0.9)", "100 km", False),
        ("divide(1, 3)", "0.33", False),
        ("divide(1, 3)", "0.333", True),
        ("subtract(0.3, add(0.1, 0.2))", "0", True),
        ("divide(5, 100)", "5 %", False),
        ("negate(5)", "5", False),
        ("add(2, 3)", "none of these", False),
        ("divide(2, 0)", "5", False),
    ],
)
def test_a_formula_agrees_within_one_percent_of_the_option(formula: str, option: str, same: bool) -> None:
    assert agrees(formula, option) is same


def test_clean_keeps_the_rows_whose_formula_comes_to_gold_and_their_ids(tmp_path: Path) -> None:
    path = array(tmp_path, row(annotated_formula="add(2, 2)"), row(), row(correct="a"), row())
    assert [item.id for item in read_clean(path, split="test")] == ["mathqa-test-0001", "mathqa-test-0003"]
    dataset = load_dataset("mathqa:clean", data_file=path, limit=1)
    assert [item.id for item in dataset.items] == ["mathqa-test-0001"]
    assert (dataset.name, dataset.answer, dataset.published) == ("mathqa:clean", "letter", False)


def test_identical_options_are_marked_and_left_out_of_clean(tmp_path: Path) -> None:
    twice = "a ) 4 , b ) 5 , c ) 6 , d ) 6 , e ) 8"
    path = array(tmp_path, row(options=twice), row())
    assert [item.flaws for item in read_mathqa(path, split="test")] == [("identical options",), ()]
    assert [item.id for item in read_clean(path, split="test")] == ["mathqa-test-0001"]


def test_a_file_without_a_clean_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no row whose formula comes to its answer; use --dataset mathqa"):
        load_dataset("mathqa:clean", data_file=array(tmp_path, row(correct="a")))


@pytest.mark.parametrize(("file", "rows"), [(TEST, 2985), (DEV, 4475)], ids=lambda value: getattr(value, "name", ""))
def test_all_published_rows_give_five_options(file: PublishedFile, rows: int) -> None:
    path = published(file.name)
    assert (sha256_of(path), path.stat().st_size) == (file.sha256, file.size_bytes)
    items = read_mathqa(path, split="test")
    assert len(items) == rows
    assert {len(item.options) for item in items} == {5}
    assert all(option and "'" not in (option[0], option[-1]) for item in items for option in item.options)


def test_letters_depths_and_doubled_golds_of_the_published_test_split() -> None:
    dataset = load_dataset("mathqa", data_file=published(TEST.name))
    assert (dataset.name, dataset.published, dataset.answer) == ("mathqa:all", True, "letter")
    items = dataset.items
    assert Counter(item.gold for item in items) == {"C": 676, "D": 628, "A": 614, "B": 605, "E": 462}
    depths = Counter(item.steps for item in items)
    first = {1: 254, 2: 458, 3: 660, 4: 463, 5: 357, 6: 280, 7: 179, 8: 131, 9: 66, 10: 39, 11: 31, 12: 27, 13: 21}
    assert {steps: depths[steps] for steps in first} == first
    assert sum(depths.values()) - sum(first.values()) == 19
    assert sum(1 for item in items if item.accepted) == 11
    assert all(item.gold in item.accepted for item in items if item.accepted)


def test_the_clean_list_of_the_published_test_split_is_frozen() -> None:
    items = load_dataset("mathqa:clean", data_file=published(TEST.name)).items
    assert len(items) == 1892
    assert ids_sha256(items) == CLEAN_TEST_IDS_SHA256
