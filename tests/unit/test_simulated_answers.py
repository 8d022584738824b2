"""What the simulated model says, and where its answers end."""

from itertools import repeat

import pytest

from loadgen.serving.simulated.answers import (
    BEHAVIOURS,
    AnswerBook,
    count_prompt_tokens,
    cut_output,
    known_items,
    split_tokens,
)
from loadgen.workload.item import Item
from loadgen.workload.questions import own_shots

ITEMS = [
    Item(id=f"t-{n}", question=f"Ada owns {n} ropes and buys one more. How many now?", solution="", gold=str(n + 1))
    for n in range(2000)
]


def book(precision="fp16", seed=0, **changes):
    return AnswerBook(ITEMS, precision=precision, seed=seed, behaviour=BEHAVIOURS[precision].but(**changes))


def text(book, prompt, sample=""):
    return "".join(book.answer(prompt, sample=sample).tokens)


def test_pieces_join_to_the_text_and_are_at_most_four_characters_of_a_word():
    words = " Extraordinary  things,\nhappen #### 1234567 "
    assert "".join(split_tokens(words)) == words
    assert max(len(piece.strip()) for piece in split_tokens(words)) == 4
    assert [count_prompt_tokens(p) for p in ("", "abcd", "abcde")] == [1, 1, 2]


def test_the_last_question_of_a_few_shot_prompt_is_answered():
    prompt = f"Question: {ITEMS[3].question}\nAnswer: four\n#### 4\n\nQuestion: {ITEMS[70].question}\nAnswer:"
    assert book().find_item(prompt) is ITEMS[70]
    assert text(book(accuracy=1.0), prompt).endswith("\n#### 71")


def test_a_bare_question_and_one_with_instructions_behind_it_are_recognised():
    assert book().find_item(ITEMS[5].question) is ITEMS[5]
    assert book().find_item(f"Q: {ITEMS[5].question}\nThink step by step.") is ITEMS[5]
    assert book().find_item("Question: something else\nAnswer:") is None


def test_shipped_problems_and_a_data_file_are_known(tmp_path):
    path = tmp_path / "invented.jsonl"
    path.write_text(
        '{"question": "Two kites and one kite?", "answer": "2 + 1 = 3\\n#### 3"}\n'
        '{"question": "Nine frogs less four?", "answer": "9 - 4 = 5\\n#### 5"}\n'
    )
    assert len(known_items(path)) == len(known_items()) + 2 == 72 + len(own_shots()) + 2
    known = AnswerBook(known_items(path), precision="awq", seed=0, behaviour=BEHAVIOURS["awq"].but(accuracy=1.0))
    assert text(known, "Question: Nine frogs less four?\nAnswer:").endswith("#### 5")


@pytest.mark.parametrize("precision", BEHAVIOURS)
def test_accuracy_is_about_the_one_set(precision):
    answers = book(precision)
    right = sum(text(answers, item.question).endswith(f"\n#### {item.gold}") for item in ITEMS)
    # 4 standard errors of 2000 answers at p = 0.5
    assert right / 2000 == pytest.approx(BEHAVIOURS[precision].accuracy, abs=4 * (0.25 / 2000) ** 0.5)


def test_the_last_line_is_worded_as_the_prompt_asks():
    right = book(accuracy=1.0)
    question = ITEMS[7].question
    assert text(right, f"Question: {question}\nAnswer:").endswith("\n#### 8")
    shot = "Q: One?\nA: It is one. The answer is 1.\n\n"
    assert text(right, f"{shot}Q: {question}\nA:").endswith("\nThe answer is 8.")
    assert text(right, f"Q: {question}\nA: Let's think step by step.").endswith("\nThe answer is 8.")
    told = 'Your response should end with "The final answer is [answer]".'
    assert text(right, f"Problem: {question}\n{told}").endswith("\nThe final answer is 8")


def test_a_question_with_options_is_answered_by_a_letter():
    item = Item(
        id="o", question="which one ?", solution="", gold="C", options=("1", "2", "3", "3", "5"), accepted=("C", "D")
    )
    prompt = "Question: which one ?\nOptions:\n(A) 1"
    said = {}
    for accuracy in (0.0, 1.0):
        behaviour = BEHAVIOURS["awq"].but(accuracy=accuracy)
        answers = AnswerBook([item], precision="awq", seed=3, behaviour=behaviour).answer(prompt).tokens
        said[accuracy] = "".join(answers).rpartition("\n")[2]
    assert said[1.0] == "The answer is (C)."
    assert said[0.0] in {f"The answer is ({letter})." for letter in "ABE"}


@pytest.mark.slow
def test_an_answer_without_a_number_and_one_without_an_end():
    never = book(accuracy=0.0, unparsed=1.0)
    assert not any(any(map(str.isdigit, text(never, item.question))) for item in ITEMS[:50])
    endless = book(accuracy=0.0, truncated=1.0, unparsed=0.0)
    assert all(endless.answer(item.question).endless for item in ITEMS[:50])
    assert not any(book(accuracy=1.0).answer(item.question).endless for item in ITEMS)


@pytest.mark.slow
def test_answers_are_about_64_tokens_and_longer_at_fewer_bits():
    lengths = {p: sum(len(book(p).answer(i.question).tokens) for i in ITEMS) / len(ITEMS) for p in ("fp16", "bnb-nf4")}
    assert lengths["fp16"] == pytest.approx(64, rel=0.05)
    assert lengths["bnb-nf4"] / lengths["fp16"] == pytest.approx(1.06, abs=0.02)


def test_answers_depend_on_seed_and_sample_and_on_nothing_else():
    question = ITEMS[0].question
    assert text(book(seed=1), question) == text(book(seed=1), question)
    assert text(book(seed=1), question) != text(book(seed=2), question)
    assert text(book(), question, sample="7") != text(book(), question, sample="8")


def test_the_natural_end_is_a_token_without_text():
    output = cut_output(["a", "b"], repeat("x"), max_tokens=10)
    assert (output.texts, output.finish_reason, output.stop_reason) == (["a", "b", ""], "stop", None)


def test_the_limit_cuts_with_reason_length():
    output = cut_output(["a", "b", "c"], repeat("x"), max_tokens=3)
    assert (output.texts, output.finish_reason) == (["a", "b", "c"], "length")


def test_ignore_eos_and_min_tokens_go_on_after_the_natural_end():
    ignoring = cut_output(["a"], repeat("x"), max_tokens=4, ignore_eos=True)
    assert (ignoring.texts, ignoring.finish_reason) == (["a", "x", "x", "x"], "length")
    least = cut_output(["a"], repeat("x"), max_tokens=9, min_tokens=4)
    assert (least.texts, least.finish_reason) == (["a", "x", "x", ""], "stop")


def test_a_stop_string_ends_the_answer_and_is_left_out():
    output = cut_output(["one ", "tw", "o th", "ree"], repeat("x"), max_tokens=9, stops=("zz", "two"))
    assert "".join(output.texts) == "one "
    assert (len(output.texts), output.finish_reason, output.stop_reason) == (3, "stop", "two")


def test_text_is_held_back_while_a_stop_string_may_begin_in_it():
    output = cut_output(["ab", "cd", "ef"], repeat("x"), max_tokens=9, stops=("cdx",))
    assert output.texts == ["", "ab", "cd", "ef"]
    assert output.stop_reason is None


def test_a_stop_string_before_min_tokens_does_not_end_it():
    output = cut_output(["a", ".", "b", ".", "c"], repeat("x"), max_tokens=9, min_tokens=2, stops=(".",))
    assert "".join(output.texts) == "a.b"
