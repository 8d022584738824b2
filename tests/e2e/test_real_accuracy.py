"""Accuracy measured, not simulated: a model trained here, served by vLLM in three precisions, graded and paired."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import loadgen
from loadgen.analysis.run import Run
from loadgen.serving.environment import default_environment

pytestmark = pytest.mark.vllm

PRECISIONS = ("bf16", "bnb-nf4", "int8")
ITEMS = 300
CONCURRENCY = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One sweep over problems that the model was not trained on, each asked once per precision."""
    out = tmp_path_factory.mktemp("accuracy") / "run"
    built = command("cpu-env", "--trained")
    assert built.returncode == 0, built.stdout + built.stderr
    environment = default_environment()
    swept = command(
        "sweep", "--serve", ",".join(PRECISIONS), "--model", environment.trained, "--device", "cpu",
        "--dataset", "jsonl", "--data-file", environment.problems, "--protocol", "gsm8k_cot_zeroshot",
        "--concurrency", str(CONCURRENCY), "--requests", str(ITEMS), "--repeats", "1", "--out", out,
    )  # fmt: skip
    print(swept.stdout, swept.stderr)
    # 1: a short answer of a small model is written faster than a slot is refilled, so a cell's speed may be invalid.
    assert swept.returncode in (0, 1), swept.stdout + swept.stderr
    return loadgen.load_run(out)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadgen", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_each_precision_was_asked_every_problem_once_and_each_answer_was_graded(run: Run) -> None:
    measured = run.requests[run.requests["phase"] == "measured"]
    assert not run.manifest.simulated
    assert (measured["status"] == "ok").all()
    for precision in PRECISIONS:
        asked = measured[measured["target"] == precision]
        assert sorted(asked["item_id"]) == [f"jsonl-{row:04d}" for row in range(ITEMS)]
    assert measured["outcome"].isin({"correct", "wrong", "unparsed", "truncated", "empty"}).all()


def test_the_servers_own_token_count_is_the_recorded_one(run: Run) -> None:
    assert len(run.cells) == len(PRECISIONS)
    assert (run.cells["errors"] == 0).all()
    assert (run.cells["server_tokens"] == run.cells["recorded_tokens"]).all()


def test_the_model_solves_some_problems_and_not_all(run: Run) -> None:
    accuracy = run.summary.set_index("target")["accuracy"]
    outcomes = run.requests[run.requests["phase"] == "measured"].groupby("target")["outcome"].value_counts()
    assert 0.3 < accuracy["bf16"] < 1
    for precision in PRECISIONS:
        assert accuracy[precision] == pytest.approx(outcomes[precision, "correct"] / ITEMS)


def test_answers_of_the_trained_format_end_by_themselves_and_all_verdicts_agree_on_them(run: Run) -> None:
    measured = run.requests[run.requests["phase"] == "measured"]
    stated = measured[measured["text"].str.contains(r"The answer is \d+\.$")]
    assert len(stated) > 0.9 * len(measured)
    assert (stated["finish_reason"] == "stop").all()
    assert (stated["correct"] == stated["strict"]).all()
    assert (stated["correct"] == stated["flexible"]).all()


def test_trust_is_the_ratio_of_the_accuracies_and_its_interval_holds_it(run: Run) -> None:
    accuracy = run.summary.set_index("target")["accuracy"]
    tests = {test.target: test for test in run.analysis.trust}
    assert set(tests) == {"bnb-nf4", "int8"}
    for target, test in tests.items():
        ratio = accuracy[target] / accuracy["bf16"]
        assert (test.reference, test.concurrency, test.items) == ("bf16", CONCURRENCY, ITEMS)
        assert test.t_si == pytest.approx(ratio)
        assert test.t_si_lo <= ratio <= test.t_si_hi
        assert test.won - test.lost == pytest.approx(ITEMS * (accuracy[target] - accuracy["bf16"]))
        assert test.verdict in {"worse", "equivalent", "inconclusive", "better"}


def test_quantization_to_4_bits_changes_answers(run: Run) -> None:
    """Else the three servers ran the same weights."""
    (nf4,) = (test for test in run.analysis.trust if test.target == "bnb-nf4")
    assert nf4.lost + nf4.won > 0
