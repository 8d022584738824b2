"""The dashboards' JSON by itself: layout, ids, variables, units, and metrics that somebody exports."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from made_exporter import info
from prometheus_client.core import Metric

from loadgen.measure.metrics import SweepMetrics
from loadgen.power.wire import PowerCollector
from loadgen.serving.recipe import recipe_names
from loadgen.serving.simulated.engine import EngineStats, StatsCollector

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "dashboards"
BOARDS = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
RULES = yaml.safe_load((ROOT / "docker" / "prometheus" / "rules" / "loadgen.yaml").read_text(encoding="utf-8"))
NAME = re.compile(r"\b(?:loadgen_|vllm:|target:|batch:|cell:)[a-zA-Z0-9_]+(?::[a-zA-Z0-9_]+)*|\bup(?=[{:])")
REFERENCE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
BUILT_IN = {"__rate_interval", "__interval", "__range", "__range_s"}


def generator():
    sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location("dashboards_generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def panels_of(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def targets_of(board):
    return [(panel, target) for panel in panels_of(board) for target in panel["targets"]]


def families(text: str) -> set[str]:
    """The metrics that a text names, without what counters and histograms append."""
    return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in NAME.findall(text)}


def sample_names(family: Metric) -> set[str]:
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + ending for ending in endings.get(family.type, ("",))}


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Every name that our exporter, our sweep and a (simulated) vLLM server export, and what the rules record."""
    collectors = (
        PowerCollector([info()], "nvml"),
        SweepMetrics(simulated=True).registry,
        StatsCollector(EngineStats(), model_name="m", kv_capacity_tokens=16),
    )
    names = {name for collector in collectors for family in collector.collect() for name in sample_names(family)}
    return names | {rule["record"] for group in RULES["groups"] for rule in group["rules"]} | {"up"}


def test_the_committed_files_are_what_the_generator_writes() -> None:
    assert generator().stale() == []


def test_a_changed_file_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = generator()
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    for name, text in module.files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert module.stale() == []
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    (tmp_path / "old.json").write_text("{}", encoding="utf-8")
    (tmp_path / "servers.json").unlink()
    assert module.stale() == ["old.json", "run.json", "servers.json"]


def test_the_dashboards_are_told_apart_and_linked() -> None:
    assert {board["uid"] for board in BOARDS.values()} == {
        "loadgen-run", "loadgen-precisions", "loadgen-gpu-power", "loadgen-servers",
    }  # fmt: skip
    assert len({board["title"] for board in BOARDS.values()}) == len(BOARDS)
    for board in BOARDS.values():
        (link,) = board["links"]
        assert link["type"] == "dashboards" and set(link["tags"]) <= set(board["tags"])
        assert link["includeVars"] and link["keepTime"]
        assert board["id"] is None


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_ids_of_their_own_and_do_not_overlap(name: str) -> None:
    panels = BOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["w"] > 0 and place["x"] + place["w"] <= 24
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & covered, panel["title"]
        cells |= covered


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_has_a_unit_and_names_its_metrics(name: str) -> None:
    for panel in panels_of(BOARDS[name]):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        asked = {name for target in panel["targets"] for name in families(target["expr"])}
        assert asked - {"loadgen_run_info"} <= families(panel["description"]), panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_every_variable_is_defined(name: str) -> None:
    board = BOARDS[name]
    defined = {variable["name"] for variable in board["templating"]["list"]} | BUILT_IN
    text = json.dumps(board, ensure_ascii=False)
    used = {found[0] or found[1] for found in REFERENCE.findall(text)}
    assert used - {"__all"} <= defined
    assert defined - BUILT_IN <= used


@pytest.mark.parametrize("name", BOARDS)
def test_the_data_source_is_always_the_variable(name: str) -> None:
    board = BOARDS[name]
    assert "__inputs" not in board
    assert board["templating"]["list"][0]["type"] == "datasource"
    sources = [panel["datasource"] for panel in panels_of(board)]
    sources += [target["datasource"] for _, target in targets_of(board)]
    sources += [one["datasource"] for one in board["templating"]["list"][1:]]
    sources += [one["datasource"] for one in board["annotations"]["list"] if not one.get("builtIn")]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


@pytest.mark.parametrize("name", BOARDS)
def test_every_metric_is_exported_by_somebody(name: str, exported: set[str]) -> None:
    board = BOARDS[name]
    asked = [target["expr"] for _, target in targets_of(board)]
    asked += [one["query"]["query"] for one in board["templating"]["list"][1:]]
    asked += [one["expr"] for one in board["annotations"]["list"] if "expr" in one]
    for expr in asked:
        names = NAME.findall(expr)
        assert names, expr
        assert set(names) <= exported, expr


def test_the_rules_ask_for_metrics_that_somebody_exports(exported: set[str]) -> None:
    for group in RULES["groups"]:
        for rule in group["rules"]:
            assert set(NAME.findall(rule["expr"])) <= exported, rule["record"]


@pytest.mark.parametrize("name", BOARDS)
def test_refids_are_unique_and_tables_are_instant(name: str) -> None:
    for panel in panels_of(BOARDS[name]):
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        for target in panel["targets"]:
            assert target["instant"] != target["range"]
            assert (target.get("format") == "table") == (panel["type"] in ("table", "xychart"))
            assert target["instant"] or "format" not in target


@pytest.mark.parametrize("name", BOARDS)
def test_the_first_panel_and_every_title_tell_simulated_from_measured(name: str) -> None:
    first = panels_of(BOARDS[name])[0]
    assert first["gridPos"]["y"] == 0 and first["gridPos"]["w"] == 24
    assert first["targets"][0]["expr"] == "max(loadgen_simulated)"
    (mapping,) = first["fieldConfig"]["defaults"]["mappings"]
    assert mapping["options"]["1"]["text"].startswith("SIMULATED")
    assert all(panel["title"].endswith(" · $stamp") for panel in panels_of(BOARDS[name]))


def test_every_precision_has_its_curve() -> None:
    """A recipe more is a curve more."""
    for panel in panels_of(BOARDS["precisions.json"]):
        if panel["type"] == "xychart":
            assert sorted(target["refId"] for target in panel["targets"]) == recipe_names()
