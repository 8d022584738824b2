"""The GPU kit's results and study: packed without what must not travel, written from data alone, stamped by origin."""

from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_run import make_run

from bench.gpu.markdown import number, spread, table
from bench.gpu.pack import machine_folders, pack
from bench.gpu.pages import answer_words, write
from bench.gpu.pieces import unpack
from bench.gpu.plan import Plan, State, Step, StepState
from bench.gpu.simulator import DOCS, anchors, curves, pairs, preset_gpu, replaced, section
from loadgen.analysis.compare.row import CompareRow
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.errors import UsageError
from loadgen.serving.simulated.cost import closed_loop, load_presets

NOTE = "random weights: speed and energy only"
STEP = Step(name="b-mistral", why="to see", kind="sweep", model="Mistral-7B-v0.3", serve=("fp16", "awq"))
PLAN = Plan(name="test", device="cuda", budget_s=1, start_s=1, cell_s=1, step=(STEP,), sha256="1" * 64)


def make_work(
    work: Path, *, simulated: bool = False, step: str = STEP.name, gpu: str = "NVIDIA H200", device: str = "cuda"
) -> Path:
    """The folder that a measurement leaves, with what must not be packed lying about in it."""
    server = {
        "precision": "fp16",
        "version": "0.26.0",
        "url": "http://127.0.0.1:1",
        "kernels": ["Machete"],
        "note": NOTE,
    }
    servers = [{**server, "name": name, "repeat": 1, "argv": [str(work / "env" / "vllm")]} for name in ("fp16", "awq")]
    run = make_run(
        work / "runs" / step, simulated=simulated, servers=servers, model=str(work / "models" / "Mistral-7B-v0.3"),
        length=10,
    )  # fmt: skip
    manifest = json.loads((run / "manifest.json").read_text())
    for target in manifest["config"]["targets"]:
        target["precision"] = target["name"]
    manifest["config"] |= {"fixed_length": 10, "mode": "serve", "device": device}
    manifest["graded"] = False
    manifest["clock_anchors"] = [{"monotonic_ns": 0, "unix_ns": 1_793_000_000_000_000_000, "uncertainty_ns": 1}]
    manifest["gpu"] = [{"uuid": "GPU-1", "name": gpu, "driver": "580.1", "power_limit_enforced_w": 700.0,
                        "memory_total_bytes": 141_000_000_000, "simulated": simulated}]  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(manifest))
    for name in ("models/Mistral-7B-v0.3/model.safetensors", f"runs/{step}/servers/fp16-r1.log", "env/vllm"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("HF_TOKEN=secret")
    State(work / "state.json", PLAN).set(step, StepState(status="done", seconds=12.4))
    return work


def packed(work: Path, out: Path) -> Path:
    folders = machine_folders(work=work, models=work / "models", vllm=work / "env" / "bin" / "vllm")
    pack(work, PLAN, out, folders=folders)
    return out


def test_no_weights_logs_or_folders_of_the_machine_travel(tmp_path: Path) -> None:
    work = make_work(tmp_path / "work")
    content = {}
    for archive in packed(work, tmp_path / "out").iterdir():
        with tarfile.open(archive) as opened:
            for member in opened.getmembers():
                file = opened.extractfile(member)
                assert file is not None
                content[member.name] = file.read()
    assert not any(name.endswith((".log", ".safetensors")) for name in content)
    assert not any(b"secret" in text or str(tmp_path).encode() in text for text in content.values())
    manifest = json.loads(content["runs/b-mistral/manifest.json"])
    assert manifest["config"]["model"] == "MODELS/Mistral-7B-v0.3"
    assert manifest["servers"][0]["argv"] == ["ENV/vllm"]


def test_journals_come_back_byte_for_byte(tmp_path: Path) -> None:
    work = make_work(tmp_path / "work")
    back = unpack(packed(work, tmp_path / "out"), tmp_path / "back")
    for path in (work / "runs" / "b-mistral" / "journal").iterdir():
        assert (back / "runs" / "b-mistral" / "journal" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((back / "plan.json").read_text())["steps"][0]["why"] == "to see"


def test_an_archive_is_kept_only_while_it_is_newer_than_what_it_holds(tmp_path: Path) -> None:
    work, out = make_work(tmp_path / "work"), tmp_path / "out"

    def archived(*, keep: bool) -> dict[str, int]:
        pack(work, PLAN, out, folders={}, keep=keep)
        return {path.name: path.stat().st_mtime_ns for path in out.iterdir()}

    first = archived(keep=False)
    assert archived(keep=True)["b-mistral.tar.xz"] == first["b-mistral.tar.xz"]
    assert archived(keep=False)["b-mistral.tar.xz"] > first["b-mistral.tar.xz"]
    journal = next((work / "runs" / "b-mistral" / "journal").iterdir())
    journal.write_bytes(journal.read_bytes() + b"torn")
    before = out / "b-mistral.tar.xz"
    os.utime(journal, ns=(before.stat().st_mtime_ns + 1,) * 2)
    archived(keep=True)
    assert unpack(out, tmp_path / "back")
    assert (tmp_path / "back" / "runs" / "b-mistral" / "journal" / journal.name).read_bytes().endswith(b"torn")


def test_results_that_are_too_large_damaged_or_absent_are_refused(tmp_path: Path) -> None:
    work = make_work(tmp_path / "work")
    with pytest.raises(UsageError, match=r"more than 0\.001; carry it in pieces"):
        pack(work, PLAN, tmp_path / "out", folders={}, most_mib=0.001)
    archive = packed(work, tmp_path / "out") / "b-mistral.tar.xz"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"b-mistral\.tar\.xz is damaged"):
        unpack(tmp_path / "out", tmp_path / "back")
    with pytest.raises(UsageError, match=r"holds no state\.json"):
        pack(tmp_path / "nowhere", PLAN, tmp_path / "out", folders={})
    with pytest.raises(UsageError, match=r"holds no kit\.tar\.xz"):
        unpack(tmp_path / "nowhere", tmp_path / "back")


def test_a_measured_study_is_named_after_its_gpu_and_says_that_weights_are_random(tmp_path: Path) -> None:
    page = write(packed(make_work(tmp_path / "work"), tmp_path / "packed"), tmp_path / "studies")
    assert page.name == "h200-2026-10-26.md"
    text = page.read_text()
    assert "SIMULATED" not in text
    assert f"**{NOTE}**" in text
    assert "NVIDIA H200 (driver 580.1, power limit 700 W)" in text
    assert "8 of 8 cells valid" in " ".join(text.split())
    # Two repeats of 100 and 110 tok/s, by made_run.
    assert re.search(r"\| 1 \| 105 \([^)]+\) \| 105 \(", text)
    assert "| b-mistral | to see | done | 8 of 8 cells valid | 12 |" in text
    # By made_run awq is as fast as fp16 in the mean of two repeats that differ by 10%; nothing metered energy.
    assert "| Mistral-7B-v0.3 | awq | not decided |  |  |" in text
    assert "fp16: Machete; awq: Machete" in " ".join(text.split())
    assert "Energy was not measured, so there is nothing to compare." in text
    assert "![output tokens per second over the running batch](h200-2026-10-26/b-mistral-throughput.png)" in text
    assert (page.parent / "h200-2026-10-26" / "b-mistral-throughput.png").exists()
    page.unlink()
    assert write(tmp_path / "studies" / "h200-2026-10-26" / "results", tmp_path / "studies") == page
    assert page.read_text() == text, "every number again from the results beside it"


def test_a_simulated_study_says_so_in_its_name_title_and_every_heading_with_figures(tmp_path: Path) -> None:
    work = make_work(tmp_path / "work", simulated=True, gpu="SIMULATED H200 SXM 141GB")
    page = write(packed(work, tmp_path / "packed"), tmp_path / "studies")
    assert page.name == "simulated-h200-sxm-141gb-2026-10-26.md"
    text = page.read_text()
    assert "**SIMULATED: nothing on this page was measured.**" in text
    headings = [line for line in text.splitlines() if line.startswith("#") and line not in ("## Limits", "## Again")]
    assert len(headings) > 5
    assert all("(SIMULATED)" in heading for heading in headings), headings
    assert json.loads((tmp_path / "studies" / page.stem / "figures.json").read_text())["simulated"]


def test_a_study_of_a_cpu_says_that_it_is_no_evidence_on_gpus(tmp_path: Path) -> None:
    page = write(packed(make_work(tmp_path / "work", device="cpu"), tmp_path / "packed"), tmp_path / "studies")
    assert page.name == "cpu-a-processor-2-cores-2026-10-26.md"
    assert "**No GPU: a rehearsal of the kit on a CPU, which says nothing of how a GPU behaves.**" in page.read_text()


def test_measured_and_simulated_runs_make_no_study_together(tmp_path: Path) -> None:
    work = make_work(tmp_path / "work")
    make_work(work, step="c-other", simulated=True)
    with pytest.raises(UsageError, match="some of these runs were measured and others SIMULATED"):
        write(packed(work, tmp_path / "packed"), tmp_path / "studies")
    assert not (tmp_path / "studies").exists()


def test_runs_of_two_gpus_make_no_study_together(tmp_path: Path) -> None:
    work = make_work(tmp_path / "work")
    make_work(work, step="c-other", gpu="NVIDIA H100 80GB HBM3")
    with pytest.raises(UsageError, match="NVIDIA H100 80GB HBM3 and of NVIDIA H200"):
        write(packed(work, tmp_path / "packed"), tmp_path / "studies")


# the simulator's error


def figures(*, simulated: bool = False, gpu: str = "NVIDIA H200") -> dict[str, Any]:
    """A study in which hardware made 25% more tokens per second than the simulator says, at the same power."""
    cost = load_presets().cost("awq", gpu="h200", model="mistral-7b")
    said = closed_loop(cost, 8, 100, 160)
    row = {"step": "b", "model": "Mistral-7B-v0.3", "precision": "awq", "concurrency": 8, "running_mean": 8.0,
           "prompt_tokens_mean": 100, "output_tokens_mean": 160, "tokens_per_s": said.tokens_per_s * 1.25,
           "power_w_mean": said.power_w, "energy_per_token_j": said.energy_per_token_j / 1.25}  # fmt: skip
    return {"simulated": simulated, "gpu": gpu, "day": "2026-10-26", "rows": [row]}


def test_the_simulators_error_is_what_it_says_over_what_was_measured() -> None:
    (found,) = pairs(figures(), load_presets())
    assert found.tokens_per_s == pytest.approx(1 / 1.25 - 1)
    assert found.power_w == pytest.approx(0)
    assert found.energy_per_token_j == pytest.approx(0.25)
    assert pairs(figures(gpu="NVIDIA L40S"), load_presets()) == []


def test_the_section_holds_measured_studies_only_and_is_pending_without_any(tmp_path: Path) -> None:
    for name, content in (("simulated-h200", figures(simulated=True)), ("cpu", figures(gpu="CPU AMD EPYC, 2 cores"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "figures.json").write_text(json.dumps(content))
    assert "**Hardware figures pending.**" in section(tmp_path)
    (tmp_path / "h200").mkdir()
    (tmp_path / "h200" / "figures.json").write_text(json.dumps(figures()))
    text = section(tmp_path)
    assert "pending" not in text
    assert "| Mistral-7B-v0.3 | awq | 8 | -20% | +0% | +25% |" in text
    assert "[study](studies/h200.md)" in text


def test_the_simulators_page_is_fresh() -> None:
    page = (DOCS / "simulator.md").read_text(encoding="utf-8")
    assert replaced(page, section(DOCS / "studies")) == page, "stale: run `python -m bench.gpu simulator-error`"


def test_a_published_figure_is_that_of_the_nearest_size_on_one_gpu_at_the_same_batch() -> None:
    known: dict[str, Any] = dict.fromkeys(CompareRow.__struct_fields__)
    row = CompareRow(**known | {"run": "b", "target": "fp16", "precision": "fp16", "concurrency": 64,
                                "energy_per_token_j": 0.1186 / 2, "parameters": 7.25e9})  # fmt: skip
    (found,) = anchors([row])
    assert found == ["Llama-3.1-8B, H100 SXM", "64", "0.1186", "b fp16", "0.0593", "0.50", "0.91"]
    assert anchors([msgspec.structs.replace(row, precision="awq")]) == []
    assert anchors([msgspec.structs.replace(row, concurrency=63)]) == []
    assert anchors([msgspec.structs.replace(row, parameters=3.2e9)]) == [], "the nearest has more than twice as many"


def test_the_simulator_stands_beside_every_published_curve_of_its_gpus_models_and_formats() -> None:
    presets = load_presets()
    found = {(curve.source, curve.of): curve for curve in curves(presets)}
    llama = found[("ML.ENERGY leaderboard, LMArena chat", "Llama-3.1-8B, bf16, H100 SXM")]
    assert (llama.preset, llama.batches[0], llama.batches[-1]) == ("llama-3.1-8b on h100", 8, 768)
    # Answers of 389 tokens are the leaderboard's mean at B = 8, prompts of 100 are assumed.
    said = closed_loop(presets.cost("bf16", gpu="h100", model="llama-3.1-8b"), 8, 100, 389)
    assert (llama.joules[0], llama.energy[0]) == (0.4548, pytest.approx(said.energy_per_token_j / 0.4548 - 1))
    assert llama.speed[0] == pytest.approx(said.tokens_per_s / 1069.6 - 1)
    int8 = found[("Zenodo 10.5281/zenodo.18900289", "Mistral-7B-v0.1, int8, A800")]
    assert int8.preset == "mistral-7b on a100"
    slow = closed_loop(presets.cost("bnb-int8", gpu="a100", model="mistral-7b"), 1, 100, 400)
    assert int8.speed == [pytest.approx(slow.tokens_per_s / 10.24 - 1)]
    assert not any(gpu in of for _, of in found for gpu in ("B200", "2xH100", "4090", "5090", "T4", "gemma"))


def test_transformers_are_slower_than_the_simulated_vllm_in_every_format_as_the_page_says() -> None:
    others = [curve for curve in curves(load_presets()) if not curve.source.startswith("ML.ENERGY")]
    assert len(others) >= 10
    assert all(value > 0 for curve in others for value in curve.speed)


def test_the_page_says_which_published_curves_have_no_preset() -> None:
    text = " ".join(section(DOCS / "studies").split())
    assert "**No measurement of ours.**" in text
    assert "GPUs without a preset (B200, RTX 4090, RTX 4090 D, RTX 5090, T4)" in text
    assert "2xH100 SXM" in text
    assert text.count("| -9% (-13% to -4%) |") == 1


def test_an_a800_is_an_a100() -> None:
    assert preset_gpu(load_presets(), "NVIDIA A800-SXM4-80GB") == "a100"


def test_numbers_are_empty_where_nothing_was_measured() -> None:
    assert (number(None), number(float("nan")), number(12345.6), number(0.01234)) == ("", "", "12,346", "0.01234")
    assert spread(2.0, 1.0, 3.0) == "2 (1 to 3)"
    assert spread(2.0, None, None) == "2"
    assert table(["a|b"], [["c"]]) == "| a\\|b |\n| --- |\n| c |"


CROSSING = {
    "lo": None, "hi": None, "bracket": (16, 64), "direction": "wins_below", "probability": None, "established": True,
}  # fmt: skip
POINT = {
    "concurrency": 1, "batch": 1.0, "repeats": 3, "log_advantage": 0.0, "lo": None, "hi": None, "p": None,
    "sign": "open",
}  # fmt: skip


@pytest.mark.parametrize(
    ("finding", "said"),
    [
        ({"status": "better"}, "at every B measured"),
        ({"status": "worse"}, "at no B measured"),
        ({"status": "unresolved"}, "not decided"),
        ({"status": "unresolved", "suspected": [CROSSING | {"b": 37.9}]}, "not decided, the means cross at 37.9"),
        (
            {"status": "crosses", "crossings": [CROSSING | {"b": 44.7, "lo": 25.1, "hi": 55.0},
                                                CROSSING | {"b": 200, "direction": "wins_above"}]},
            "below B* = 44.7 (25.1–55), above B* = 200",
        ),
        ({"status": "unresolved", "points": []}, "too few valid B"),
    ],
)  # fmt: skip
def test_the_head_of_a_study_says_where_a_format_pays_off(finding: dict[str, Any], said: str) -> None:
    given = {"target": "awq", "reference": "fp16", "metric": "tokens_per_s", "points": [POINT]} | finding
    assert answer_words(msgspec.convert(given, Crossover)) == said
