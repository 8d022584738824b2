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


@pytest.mark.parametrize(("parameters", "matches"), [(8e9, True), (9.1e9, True), (9.3e9, False), (6.9e9, False)])
def test_another_model_must_be_as_large(parameters: float, matches: bool) -> None:
    """Figures of Qwen3-8B and Llama-3.1-8B."""
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
