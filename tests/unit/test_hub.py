"""The hub is asked for quantized checkpoints of a model that no recipe knows, and a sentence says what to type else."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_hub import AWQ, GPTQ, MadeHub, derivative, made_hub, packed
from made_run import manifest_record

from loadgen.analysis.warnings import checkpoint_notes
from loadgen.cli.serve import command as serve
from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.observer import Observer
from loadgen.measure.preflight import Patience
from loadgen.measure.run import resume_sweep, run_sweep
from loadgen.measure.servers import source_of
from loadgen.measure.settings import acts_of, remember, require_consent
from loadgen.record.manifest import FoundCheckpoint, Manifest, read_manifest
from loadgen.serving.hub import Derivatives
from loadgen.serving.recipe import NoCheckpoint, in_serve, load_recipe

MODEL = "org/model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MadeHub]:
    """A hub with two AWQ checkpoints of the model, a compressed-tensors one called AWQ, GGUF and a gated one."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOADGEN_CACHE", str(tmp_path / "cache"))
    held = {MODEL: {}, "a/small-awq": AWQ, "b/large-awq": AWQ, "c/called-AWQ": packed("int", 4, activations=False)}
    with made_hub(held) as made:
        made.derivatives[MODEL] = [
            derivative("a/small-awq", 120), derivative("g/model-gguf", 99_999, "gguf"),
            derivative("c/called-AWQ", 5_000), derivative("b/large-awq", 1_234), derivative("d/kept", 7, gated="auto"),
        ]  # fmt: skip
        made.gated.add("d/kept")
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


class Notes(Observer):
    """Keeps what is said before a sweep."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_of_those_that_the_recipe_serves_the_one_with_the_most_downloads_is_chosen(hub: MadeHub) -> None:
    found = Derivatives(MODEL).choose(load_recipe("awq"))
    assert found == FoundCheckpoint(id="b/large-awq", downloads=1234, quantization="awq int4", alike=2)
    assert str(found) == (
        "b/large-awq (awq int4), chosen on the hub: 1,234 downloads, the most of 2 that the recipe serves"
    )
    assert "g/model-gguf" not in [name for name, _ in hub.asked], "other engines' files are not looked at"


def test_one_list_and_one_config_json_each_serve_all_recipes(hub: MadeHub) -> None:
    listed = Derivatives(MODEL)
    listed.choose(load_recipe("awq"))
    with pytest.raises(NoCheckpoint):
        listed.choose(load_recipe("gptq"))
    assert (hub.listings, len(hub.asked)) == (1, 4)


def test_a_list_with_gaps_is_read(hub: MadeHub) -> None:
    hub.derivatives[MODEL] = [
        {"id": "b/large-awq", "downloads": 3},
        {"id": "a/small-awq", "downloads": 0, "tags": None},
    ]
    assert Derivatives(MODEL).choose(load_recipe("awq")).id == "b/large-awq"


def test_downloads_that_the_hub_does_not_say_are_not_a_number(hub: MadeHub) -> None:
    hub.derivatives[MODEL] = [{"id": "b/large-awq"}]
    found = Derivatives(MODEL).choose(load_recipe("awq"))
    assert str(found) == "b/large-awq (awq int4), chosen on the hub, which does not say how often it was downloaded"
    hub.derivatives[MODEL] = [{"id": "b/large-awq"}, {"id": "a/small-awq"}]
    with pytest.raises(UsageError, match="for org/model with an unknown number of downloads each; choose one"):
        Derivatives(MODEL).choose(load_recipe("awq"))


def test_without_one_the_sentence_says_what_is_there_and_what_to_type(hub: MadeHub) -> None:
    with pytest.raises(NoCheckpoint) as error:
        Derivatives(MODEL).choose(load_recipe("gptq"))
    assert str(error.value) == (
        "recipe 'gptq' needs a quantized checkpoint and the hub lists none for org/model (it lists 2 awq int4, "
        "1 compressed-tensors int4, 1 of other engines), and does not show d/kept to this user: set HF_TOKEN to a "
        "token that may read it; give one (an id or a folder): --serve gptq=ORG/NAME"
    )


def test_equal_downloads_are_the_users_choice(hub: MadeHub) -> None:
    hub.derivatives[MODEL][0] = derivative("a/small-awq", 1_234)
    with pytest.raises(UsageError) as error:
        Derivatives(MODEL).choose(load_recipe("awq"), in_serve)
    assert str(error.value) == (
        "recipe 'awq': the hub lists a/small-awq, b/large-awq for org/model with 1,234 downloads each; choose one: "
        "loadgen serve awq --checkpoint a/small-awq"
    )


def test_an_offline_machine_does_not_ask(hub: MadeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NoCheckpoint, match=r"HF_HUB_OFFLINE forbids asking the hub; give one .*: --serve"):
        Derivatives(MODEL).choose(load_recipe("awq"))
    assert hub.listings == 0


def test_a_hub_that_does_not_answer_is_named(hub: MadeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NoCheckpoint, match=r"http://127.0.0.1:9 could not be reached to look for one \("):
        Derivatives(MODEL).choose(load_recipe("awq"))


def test_a_sweep_says_its_choice_before_it_starts_and_serves_it(hub: MadeHub) -> None:
    config = configure(serve="fp16,awq", model=MODEL, vllm="/bin/true")
    notes, source = Notes(), source_of(config)
    source.check(Patience(0, notes))
    assert notes.said == [f"awq serves {source.found['awq']}"]
    assert source.plan(config.targets[1], 1).checkpoint == "b/large-awq"  # type: ignore[attr-defined]
    hub.derivatives[MODEL] = [derivative("a/small-awq", 10**6)]
    resumed = source_of(config, source.found)
    resumed.check(Patience(0, notes))
    assert resumed.found == source.found, "a resumed run keeps what it was begun with, whatever the hub lists now"


def test_the_manifest_has_the_choice_and_a_resumed_run_serves_it_again(hub: MadeHub, tmp_path: Path) -> None:
    """The server ends at once: nothing is measured, and all is left for a resumed run."""
    started: list[str] = []

    class Starts(Observer):
        def server_starts(self, name: str, argv: Sequence[str] | None) -> None:
            started.append((argv or ())[2])

    options: dict[str, Any] = {
        "serve": "awq",
        "model": MODEL,
        "vllm": "/bin/true",
        "dataset": "sample",
        "out": str(tmp_path / "run"),
    }
    options |= {"concurrency": "1", "repeats": 1, "duration": 1.0, "power": "none", "metrics_port": None}
    run = run_sweep(configure(**options), Starts(), given=options)
    assert read_manifest(run).checkpoints["awq"].id == "b/large-awq"
    hub.derivatives[MODEL] = [derivative("a/small-awq", 10**6)]
    resume_sweep(run, observer=Starts())
    assert started == ["b/large-awq"] * 2
    assert any("b/large-awq (awq int4), chosen on the hub" in note for note in checkpoint_notes(read_manifest(run)))


def test_the_option_that_a_sweep_asks_for_works_as_it_is_typed(hub: MadeHub) -> None:
    hub.configs["me/mine"] = GPTQ
    with pytest.raises(UsageError) as error:
        source_of(configure(serve="fp16,gptq", model=MODEL, vllm="/bin/true")).check(Patience(0, Notes()))
    typed = shlex.split(str(error.value).rpartition("): ")[2].replace("ORG/NAME", "me/mine"))
    assert typed == ["--serve", "gptq=me/mine"]
    source_of(configure(serve=typed[1], model=MODEL, vllm="/bin/true")).check(Patience(0, Notes()))
    with pytest.raises(UsageError) as error:
        source_of(configure(serve="awq=me/mine", model=MODEL, vllm="/bin/true")).check(Patience(0, Notes()))
    assert str(error.value).endswith("(recipe 'gptq' serves it: --serve gptq=me/mine)")


def test_the_command_that_serve_asks_for_works_as_it_is_typed(hub: MadeHub) -> None:
    refused = CliRunner().invoke(serve, ["gptq", "--model", MODEL, "--print"]).exception
    command = str(refused).rpartition("): ")[2].replace("ORG/NAME", "me/mine")
    assert command == "loadgen serve gptq --checkpoint me/mine"
    hub.configs["me/mine"] = GPTQ
    shown = CliRunner().invoke(serve, [*shlex.split(command)[2:], "--print"])
    assert shown.exit_code == 0
    assert " serve me/mine " in shown.output


def test_serve_prints_the_choice_and_lists_what_every_recipe_would_serve(hub: MadeHub) -> None:
    shown = CliRunner().invoke(serve, ["awq", "--model", MODEL, "--print"])
    assert "awq serves b/large-awq (awq int4), chosen on the hub: 1,234 downloads" in shown.stderr
    assert " serve b/large-awq " in shown.stdout
    lines = CliRunner().invoke(serve, ["--list", "--model", MODEL]).output.splitlines()
    rows = dict([line.split(maxsplit=1) for line in lines])
    assert rows["fp16"] == MODEL
    assert rows["bnb-nf4"] == f"{MODEL}, quantized while loading"
    assert rows["awq"].startswith("b/large-awq (awq int4), chosen on the hub: 1,234 downloads")
    assert rows["gptq"].startswith("none, the hub lists none for org/model")
    assert rows["gptq"].endswith("; give one: loadgen serve gptq --checkpoint ORG/NAME")


def test_a_gated_model_names_the_token_before_anything_starts(hub: MadeHub) -> None:
    hub.gated.add(MODEL)
    with pytest.raises(UsageError, match=r"the hub does not give org/model to this user .* set HF_TOKEN"):
        source_of(configure(serve="fp16", model=MODEL, vllm="/bin/true")).check(Patience(0, Notes()))


def begun(found: str) -> Manifest:
    config = configure(serve="awq", model=MODEL)
    return manifest_record(config, checkpoints={"awq": {"id": found, "downloads": 1, "quantization": "q", "alike": 1}})


def test_a_received_run_does_not_load_another_checkpoint_unasked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    own, changed = begun("b/large-awq"), begun("evil/pickle")
    assert "load the checkpoint b/large-awq" in [act.sentence for act in acts_of(own.config, own)]
    remember(own)
    require_consent(Path("runs/x"), own, {})
    with pytest.raises(UsageError, match="load the checkpoint evil/pickle"):
        require_consent(Path("runs/x"), changed, {})
