"""The panels' transformations, run by Grafana's own code: curves over B need B as a number and in its order.

The frames are those that Grafana's data source makes of an instant query in table format: a time, a text field per
label, and the value under the query's refId, rows in any order.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from platformdirs import user_cache_path
from programs import program

ROOT = Path(__file__).parents[2]
VERSION = "12.4.10"
CACHE = user_cache_path("loadgen") / f"grafana-data-{VERSION}"
BOARDS = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "dashboards").glob("*.json"))]
PANELS = [panel for board in BOARDS for panel in board["panels"] if panel.get("transformations")]


@pytest.fixture(scope="module")
def grafana() -> Path:
    """Where @grafana/data lies; fetched once, some 150 MB."""
    program("node")
    program("npm")
    if not (CACHE / "node_modules" / "@grafana" / "data").is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        argv = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", f"@grafana/data@{VERSION}"]
        done = subprocess.run([*argv, "--prefix", str(CACHE)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return CACHE


def transformed(grafana: Path, transformations: list[dict], frames: list[dict]) -> list[dict]:
    script = Path(__file__).with_name("grafana_transform.js")
    done = subprocess.run(
        ["node", str(script), str(grafana)],
        input=json.dumps({"transformations": transformations, "frames": frames}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def frame(ref: str, figures: dict[str, float]) -> dict:
    return {
        "refId": ref,
        "fields": [
            {"name": "Time", "type": "time", "values": [1] * len(figures)},
            {"name": "concurrency", "type": "string", "values": list(figures)},
            {"name": f"Value #{ref}", "type": "number", "values": list(figures.values())},
        ],
    }


def test_only_curves_over_b_are_transformed_and_all_alike() -> None:
    assert {panel["type"] for panel in PANELS} == {"xychart"}
    assert all(panel["transformations"] == PANELS[0]["transformations"] for panel in PANELS)


@pytest.mark.slow
def test_grafana_draws_a_precisions_figures_over_b_as_a_number(grafana: Path) -> None:
    """The XY chart takes a frame's first number field for x and every other for y."""
    frames = [frame("fp16", {"16": 3.0, "128": 1.0, "1": 8.0, "64": 2.0}), frame("awq", {"16": 2.5, "1": 5.0})]
    made = transformed(grafana, PANELS[0]["transformations"], frames)
    curves = {}
    for one in made:
        x, y = [field for field in one["fields"] if field["type"] == "number"]
        assert x["name"] == "concurrency"
        curves[y["name"]] = list(zip(x["values"], y["values"], strict=True))
    assert curves == {
        "Value #fp16": [(1, 8.0), (16, 3.0), (64, 2.0), (128, 1.0)],
        "Value #awq": [(1, 5.0), (16, 2.5)],
    }


@pytest.mark.slow
def test_without_the_transformations_b_would_be_text(grafana: Path) -> None:
    (made,) = transformed(grafana, [], [frame("fp16", {"16": 3.0, "1": 8.0})])
    assert [field["type"] for field in made["fields"]] == ["time", "string", "number"]


def test_every_curve_is_named_after_its_precision() -> None:
    for panel in PANELS:
        named = {
            override["matcher"]["options"]: properties["value"]
            for override in panel["fieldConfig"]["overrides"]
            for properties in override["properties"]
            if properties["id"] == "displayName"
        }
        assert named == {"concurrency": "B"} | {t["refId"]: t["refId"] for t in panel["targets"]}
