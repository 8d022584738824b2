"""Published figures beside ours: which match, by how much they differ, and why they may."""

from __future__ import annotations

import pytest
from made_models import row, steady

from loadgen.analysis.compare.external import PublishedMatch, model_key, published, published_matches
from loadgen.analysis.compare.row import CompareRow


def mistral(**changed: object) -> CompareRow:
    fields: dict[str, object] = {
        "model": "mistralai/Mistral-7B-Instruct-v0.3", "run": "mistral", "target": "fp16", "precision": "fp16",
    }  # fmt: skip
    fields |= {"cor": None} | changed
    parameters = fields.pop("parameters", 7e9)
    return row(parameters, steady(0.0), **fields)  # type: ignore[arg-type]


def of(found: tuple[PublishedMatch, ...], value: float, column: str) -> PublishedMatch:
    (one,) = (one for one in found if one.published.value == value and one.column == column)
    return one


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"), ("Mistral-7B-v0.3 (implied)", "mistral-7b"),
        ("TheBloke/Mistral-7B-Instruct-v0.2-AWQ", "mistral-7b"), ("Qwen/Qwen3-0.6B", "qwen3-0.6b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
    ],
)  # fmt: skip
def test_models_match_without_organisation_version_and_tuning(name: str, key: str) -> None:
    assert model_key(name) == key


def test_ours_stands_beside_theirs_with_the_ratio_at_every_b() -> None:
    gpu = "NVIDIA A100-SXM4-80GB"
    rows = [mistral(concurrency=b, energy_per_query_j=joules, gpu=gpu) for b, joules in ((1, 470.94), (16, 23.547))]
    found = of(published_matches(rows), 235.47, "energy_per_query_j")
    assert [(ours.concurrency, ours.ratio) for ours in found.ours] == [(1, pytest.approx(2)), (16, pytest.approx(0.1))]
    assert found.published.source.endswith("s4.3")
    assert "their B is not stated" in found.differs
    assert "theirs is power limit × time (HLI), ours the GPU's own counter" in found.differs
    assert "two absolute energies" in found.published.contradiction


def test_the_hli_bound_stands_beside_it_too() -> None:
    found = of(published_matches([mistral(energy_hli_per_query_j=235.47, gpu="NVIDIA A100")]), 235.47,
               "energy_hli_per_query_j")  # fmt: skip
    assert found.ours[0].ratio == 1
    assert not any("HLI" in reason for reason in found.differs)


def test_cor_is_compared_as_a_slowdown() -> None:
    """1.50 published for NF4 on an H100: 2.5 times slower; ours, 4 times slower, is 1.6 times that."""
    found = of(
        published_matches([mistral(target="nf4", precision="bnb-nf4", cor=3.0, gpu="NVIDIA H100 PCIe")]), 1.5, "cor"
    )
    assert found.ours[0].ratio == pytest.approx(1.6)


def test_accuracy_of_another_dataset_is_not_compared() -> None:
    assert published_matches([mistral(accuracy=0.4, dataset="mathqa")]) == ()
    found = published_matches([mistral(accuracy=0.4, dataset="gsm8k")])
    assert {one.published.value for one in found} == {0.4314}
    assert "prompt, shots and extraction are not published" in found[0].differs


def test_a_measurement_without_a_server_says_so() -> None:
    gpu = {"gpu": "NVIDIA A800-SXM4-80GB", "model": "mistralai/Mistral-7B-v0.1", "concurrency": 1}
    found = of(published_matches([mistral(energy_per_token_j=4.40243, **gpu)]), 4.40243, "energy_per_token_j")
    assert found.ours[0].ratio == 1
    assert any("transformers, without a server" in reason for reason in found.differs)


def test_a_stated_batch_must_be_ours() -> None:
    llama = {"model": "Llama-3.1-8B-Instruct", "precision": "bf16", "energy_per_token_j": 0.2372, "gpu": "NVIDIA H100"}
    at_64 = published_matches([mistral(concurrency=64, **llama)])
    assert of(at_64, 0.1186, "energy_per_token_j").ours[0].ratio == pytest.approx(2.0)
    assert {one.published.batch for one in at_64} == {"64"}
    assert published_matches([mistral(concurrency=3, **llama)]) == ()


def test_a_precision_is_its_kernel_not_its_bits() -> None:
    found = published_matches([mistral(target="gptq", precision="gptq", cor=1.0, energy_per_query_j=1.0, accuracy=0.3)])
    assert found == ()


def test_a_figure_of_sglang_says_that_the_engine_may_be_another() -> None:
    qwen = {"model": "Qwen/Qwen3.5-397B-A17B-FP8", "precision": "fp8", "gpu": "NVIDIA B200", "gpu_count": 4}
    (found,) = published_matches([mistral(concurrency=64, energy_per_token_j=2.0, **qwen)])
    assert found.ours[0].ratio == pytest.approx(2.0 / found.published.value)
    assert "another engine or version, other prompts" in found.differs


def test_simulated_figures_are_compared_with_none() -> None:
    shown = mistral(accuracy=0.4, energy_per_query_j=100.0, gpu="NVIDIA A100")
    assert published_matches([shown])
    assert published_matches([mistral(accuracy=0.4, energy_per_query_j=100.0, gpu="NVIDIA A100", simulated=True)]) == ()


@pytest.mark.parametrize(
    ("gpu", "count", "matches"),
    [("NVIDIA A100-SXM4-80GB", 1, True), ("NVIDIA A100-SXM4-80GB", 2, False), ("NVIDIA H100 PCIe", 1, False),
     (None, 1, False)],
)  # fmt: skip
def test_energy_needs_the_same_class_of_gpu_and_as_many(gpu: str | None, count: int, matches: bool) -> None:
    found = published_matches([mistral(energy_per_query_j=100.0, gpu=gpu, gpu_count=count)])
    assert [one.published.value for one in found] == ([235.47] if matches else [])


@pytest.mark.parametrize(
    ("gpu", "matches"),
    [
        ("NVIDIA GeForce RTX 4090", True),
        ("NVIDIA GeForce RTX 4090 D", False),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", False),
    ],
)
def test_a_class_is_no_beginning_of_another(gpu: str, matches: bool) -> None:
    qwen = {"model": "Qwen/Qwen2-7B", "concurrency": 1, "energy_per_token_j": 5.0}
    assert bool(published_matches([mistral(gpu=gpu, **qwen)])) == matches


def test_a_batch_that_did_not_run_whole_says_so() -> None:
    """Of 96 sequences of 8000 tokens 82 fit."""
    qwen = {"model": "Qwen/Qwen3-8B", "precision": "bf16", "gpu": "NVIDIA H100 80GB HBM3", "dataset": "gpqa"}
    rows = [mistral(run=f"b{b}", concurrency=b, energy_per_token_j=0.2, **qwen) for b in (64, 96)]
    found = published_matches(rows)
    said = "on average 82 of their 96 sequences ran"
    assert said not in of(found, 0.2668, "energy_per_token_j").differs
    long = of(found, 0.2211, "energy_per_token_j")
    assert said in long.differs
    assert long.published.answer_tokens == "8052"


@pytest.mark.parametrize(("parameters", "matches"), [(8e9, True), (9.1e9, True), (10.4e9, False), (6.9e9, False)])
def test_another_model_must_be_as_large(parameters: float, matches: bool) -> None:
    """Figures of models of 8, 9 and 12 billion parameters."""
    other = {"model": "org/Other", "parameters": parameters, "precision": "bf16", "gpu": "NVIDIA H100 80GB HBM3"}
    found = published_matches([mistral(concurrency=64, energy_per_token_j=0.2, **other)])
    assert bool(found) == matches
    assert all(one.other_model and one.published.batch == "64" for one in found)


def test_a_run_has_three_at_most_its_own_model_first() -> None:
    llama = {"model": "Llama-3.1-8B-Instruct", "parameters": 8e9, "precision": "bf16", "gpu": "NVIDIA H100"}
    rows = [mistral(concurrency=b, energy_per_token_j=0.2, **llama) for b in (8, 16, 32, 64, 128)]
    found = published_matches([*rows, *(mistral(run="second", concurrency=b, energy_per_token_j=0.2, **llama)
                                        for b in (8, 16, 32, 64))])  # fmt: skip
    assert [one.run for one in found] == ["mistral"] * 3 + ["second"] * 3
    assert not found[0].other_model


def test_the_anchors_of_the_paper_are_there() -> None:
    """domain/paper.md section 2; COR 3.214 and 1.010 follow from the tokens/s."""
    figures = {(f.model, f.dataset, f.gpu, f.precision, f.metric): f.value for f in published()}
    tps = [figures["Qwen3-0.6B", "MathQA", "A100", precision, "tps"] for precision in ("fp16", "int8", "4bit")]
    assert tps[0] / tps[1] - 1 == pytest.approx(3.214, abs=5e-4)
    assert tps[0] / tps[2] - 1 == pytest.approx(1.010, abs=5e-4)
    assert figures["Mistral-7B-v0.3", "GSM8K", "H100", "int8", "COR"] == 2.45
    assert all(figure.source and figure.metric for figure in published())


def test_every_source_has_its_figures_and_a_figure_is_there_once() -> None:
    sources = [figure.source.split(" ")[0] for figure in published()]
    assert {"ML.ENERGY", "InferenceX", "Zenodo", "hongping-zh.github.io"} < set(sources)
    leaderboard = [figure for figure in published() if figure.source.startswith("ML.ENERGY leaderboard")]
    assert {"Llama-3.1-8B", "Qwen3-8B", "Qwen3-14B", "Qwen3-32B", "Llama-3.1-70B"} < {f.model for f in leaderboard}
    assert {f.precision for f in leaderboard} == {"bf16", "fp8"}
    conditions = [(f.model, f.dataset, f.gpu, f.precision, f.batch, f.metric) for f in leaderboard]
    assert len(conditions) == len(set(conditions))
    assert {f.metric for f in leaderboard} == {"energy_per_token", "tps"}


def test_joules_of_inferencex_are_measured_ones_over_the_concurrency() -> None:
    """Watts of all GPUs times seconds over output tokens; its tokens per megawatt, of rated power, are not there."""
    curve = {
        int(f.batch): f.value
        for f in published()
        if f.source.startswith("InferenceX")
        and f.dataset == "random 8192/1024, tensor parallel"
        and f.precision == "fp4"
    }
    assert (curve[1], curve[64], curve[256]) == (31.658597, 3.606447, 3.0446)
    four = [f.value for f in published() if f.model == "Qwen3.5-397B-A17B" and f.gpu == "4xB200"]
    assert (len(four), four[0], four[-1]) == (13, 4.694, 0.69855)
    (alone,) = (f for f in published() if f.model == "Qwen3.5-397B-A17B" and f.batch == "1")
    assert alone.value == pytest.approx(12.937902, rel=1e-4), "what InferenceX itself gives for this run"


def test_a_figure_that_was_not_measured_is_not_there() -> None:
    """The RTX 4090 D's energy is published less idle power, or not at one value: its tokens/s alone are there."""
    assert {figure.metric for figure in published() if figure.gpu == "RTX 4090 D"} == {"tps"}
    assert all(figure.value > 0 for figure in published() if figure.metric in ("tps", "energy_per_token"))
