"""A dashboard around its rows of panels: places, ids, variables, links, annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from boards.panel import DATASOURCE, Json, Query, stat, steps, words

WIDTH = 24
STAMP_OF = (
    'label_replace(max(loadgen_simulated) == 1, "stamp", "SIMULATED", "", "") '
    'or label_replace(max(loadgen_simulated) == 0, "stamp", "measured", "", "")'
)


def simulated() -> Json:
    """The banner: red as soon as one page that is scraped comes from a model."""
    return stat(
        "Where these figures come from",
        "max of loadgen_simulated over the sweep, the exporter and the servers. 1: at least one of them is SIMULATED, "
        "and nothing here may be taken for a measurement.",
        "none",
        Query("max(loadgen_simulated)", "source"),
        w=WIDTH,
        h=3,
        paint="background",
        mappings=words(_1=("SIMULATED: a cost model, no GPU was measured", "red"), _0=("hardware", "green")),
        thresholds=steps((None, "green"), (1, "red")),
    )


def variable(name: str, label: str, query: str, *, kind: int = 1, several: bool = True, **more: Any) -> Json:
    """A query variable. `kind`: 1 label values, 3 the result of a query."""
    current: Json = {"text": "All", "value": "$__all"} if several else {}
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"qryType": kind, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "definition": query,
        "regex": "",
        "refresh": 2,
        "sort": 3,
        "hide": 0,
        "multi": several,
        "includeAll": several,
        "current": current,
        "options": [],
    } | more


RUN = variable("run", "Run", "label_values(loadgen_run_info, run)", several=False, sort=2)
"""One run, the latest name first: two runs' figures at the same B are never mixed."""
TARGET = variable(
    "target", "Target", 'label_values({__name__=~"loadgen_cell_info|vllm:num_requests_running"}, target)', allValue=".*"
)
GPU = variable("gpu", "GPU", "label_values(loadgen_gpu_info, uuid)", allValue=".*")
_SOURCE: Json = {
    "name": "datasource",
    "label": "Prometheus",
    "type": "datasource",
    "query": "prometheus",
    "regex": "",
    "refresh": 1,
    "hide": 0,
    "multi": False,
    "includeAll": False,
    "current": {},
    "options": [],
}
_STAMP = variable(
    "stamp",
    "SIMULATED or measured",
    f"query_result({STAMP_OF})",
    kind=3,
    several=False,
    hide=2,
    regex='/stamp="([^"]*)"/',
)
_CELLS: Json = {
    "name": "Cells",
    "datasource": DATASOURCE,
    "enable": True,
    "hide": False,
    "iconColor": "light-blue",
    "expr": "1000 * loadgen_cell_start_timestamp_seconds",
    "step": "1s",
    "useValueForTime": True,
    "titleFormat": "{{target}} B={{concurrency}}",
    "textFormat": "repeat {{repeat}} of run {{run}} begins",
    "tagKeys": "target,concurrency",
}
_GRAFANA: Json = {
    "name": "Annotations & Alerts",
    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    "builtIn": 1,
    "enable": True,
    "hide": True,
    "iconColor": "rgba(0, 211, 255, 1)",
    "type": "dashboard",
}


def dashboard(
    uid: str, title: str, description: str, rows: Sequence[tuple[str, Sequence[Json]]], variables: Sequence[Json]
) -> Json:
    """The whole dashboard; `rows` are (title, panels), set from left to right and wrapped where they are full."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["loadgen"],
        "schemaVersion": 39,
        "version": 1,
        "id": None,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timepicker": {"refresh_intervals": ["1s", "2s", "5s", "15s", "1m"]},
        "timezone": "",
        "annotations": {"list": [_GRAFANA, _CELLS]},
        "links": [
            {
                "title": "loadgen",
                "type": "dashboards",
                "tags": ["loadgen"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
            }
        ],
        "templating": {"list": [_SOURCE, *variables, _STAMP]},
        "panels": _placed([("", [simulated()]), *rows]),
    }


def _placed(rows: Sequence[tuple[str, Sequence[Json]]]) -> list[Json]:
    placed: list[Json] = []
    top = 0
    for title, panels in rows:
        if title:
            place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
            placed.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place})
            top += 1
        left = height = 0
        for panel in panels:
            w, h = panel["gridPos"]["w"], panel["gridPos"]["h"]
            if left + w > WIDTH:
                left, top, height = 0, top + height, 0
            placed.append(panel | {"gridPos": {"x": left, "y": top, "w": w, "h": h}})
            left, height = left + w, max(height, h)
        top += height
    return [panel | {"id": number} for number, panel in enumerate(placed, start=1)]
