"""Panels: what Grafana draws from a few queries, as the dictionaries of its dashboard JSON (schema 39)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
STAMP = " · $stamp"
"""Closes every title: SIMULATED or measured."""
COLOURS = {
    "fp16": "blue", "bf16": "light-blue", "awq": "orange", "gptq": "green", "bnb-nf4": "purple",
    "bnb-int8": "light-purple", "fp8": "red", "int8": "yellow", "fp16-kvfp8": "dark-blue", "w4a16": "dark-orange",
    "w8a16": "super-light-orange", "gptq-int8": "light-green", "nvfp4": "dark-green", "mxfp4": "dark-yellow",
    "fp8-block": "light-red", "modelopt-fp8": "super-light-red", "torchao": "dark-purple", "gguf": "dark-red",
}  # fmt: skip
"""By precision, the same in every panel."""
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Query:
    """PromQL and what its series are called; `instant`: as of the range's end, `table`: so, and a row per series."""

    expr: str
    legend: str = "__auto"
    instant: bool = False
    table: bool = False
    ref: str = ""

    def target(self, position: int) -> Json:
        target: Json = {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": self.expr,
            "legendFormat": self.legend,
            "range": not (self.instant or self.table),
            "instant": self.instant or self.table,
            "refId": self.ref or chr(ord("A") + position),
        }
        return target | {"format": "table"} if self.table else target


def colours() -> list[Json]:
    """Overrides that give every precision's series its colour; series are named by it or begin with it."""
    return [
        {
            "matcher": {"id": "byRegexp", "options": f"/^{name}( .*)?$/"},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in COLOURS.items()
    ]


def steps(*bounds: tuple[float | None, str]) -> Json:
    """Thresholds: from each bound on, its colour; the first bound is None."""
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in bounds]}


def words(**said: tuple[str, str]) -> list[Json]:
    """A value mapping: `_1=("SIMULATED", "red")` shows 1 as that word in that colour."""
    options = {key.lstrip("_"): {"text": text, "color": colour} for key, (text, colour) in said.items()}
    return [{"type": "value", "options": options}]


def panel(
    kind: str,
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    w: int,
    h: int = 8,
    options: Json | None = None,
    custom: Json | None = None,
    overrides: Sequence[Json] = (),
    transformations: Sequence[Json] = (),
    **defaults: Any,
) -> Json:
    """One panel without place and id; `defaults` are field options (min, max, decimals, mappings, thresholds)."""
    return {
        "type": kind,
        "title": title + STAMP,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"x": 0, "y": 0, "w": w, "h": h},
        "fieldConfig": {
            "defaults": {"unit": unit, "custom": custom or {}, "color": {"mode": "palette-classic"}} | defaults,
            "overrides": list(overrides),
        },
        "options": options or {},
        "targets": [query.target(position) for position, query in enumerate(queries)],
        "transformations": list(transformations),
    }


def lines(title: str, description: str, unit: str, *queries: Query, w: int = 12, h: int = 8, **more: Any) -> Json:
    """Series over time."""
    return panel(
        "timeseries",
        title,
        description,
        unit,
        queries,
        w=w,
        h=h,
        options={
            "legend": {"displayMode": "table", "placement": "right", "showLegend": True, "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        custom={"drawStyle": "line", "lineWidth": 1, "fillOpacity": 5, "showPoints": "auto", "spanNulls": False},
        overrides=more.pop("overrides", colours()),
        **more,
    )


def stat(title: str, description: str, unit: str, *queries: Query, w: int = 3, h: int = 4, **more: Any) -> Json:
    """The last figure of each series, large; `text="name"` shows the series' name instead."""
    text = more.pop("text", "auto")
    return panel(
        "stat",
        title,
        description,
        unit,
        queries,
        w=w,
        h=h,
        options={
            "colorMode": more.pop("paint", "value"),
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": text,
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
        color={"mode": "thresholds"},
        thresholds=more.pop("thresholds", steps((None, "text"))),
        **more,
    )


def table(title: str, description: str, unit: str, query: Query, *, w: int = 12, h: int = 8, **more: Any) -> Json:
    """A row per series: its labels and its figure."""
    hidden = ("Time", "__name__", "instance", "job")
    overrides = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "custom.hidden", "value": True}]}
        for name in hidden
    ]
    return panel(
        "table",
        title,
        description,
        unit,
        [query],
        w=w,
        h=h,
        options={"cellHeight": "sm", "showHeader": True, "footer": {"show": False}},
        custom={"align": "auto", "cellOptions": {"type": "color-text"}},
        overrides=overrides,
        color={"mode": "thresholds"},
        thresholds=more.pop("thresholds", steps((None, "text"))),
        **more,
    )


def by_batch(title: str, description: str, unit: str, expr: str, *, w: int = 12, h: int = 9, **more: Any) -> Json:
    """Curves over B, one per precision; `expr` holds PRECISION and leaves the label `concurrency` alone.

    A label is text in Grafana: two transformations make B a number and put the rows in its order.
    """
    queries = [Query(expr.replace("PRECISION", name), table=True, ref=name) for name in COLOURS]
    overrides = [
        {
            "matcher": {"id": "byFrameRefID", "options": name},
            "properties": [
                {"id": "displayName", "value": name},
                {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}},
            ],
        }
        for name, colour in COLOURS.items()
    ]
    batch = {
        "matcher": {"id": "byName", "options": "concurrency"},
        "properties": [
            {"id": "unit", "value": "none"},
            {"id": "displayName", "value": "B"},
            {"id": "custom.axisLabel", "value": "B"},
            {"id": "custom.scaleDistribution", "value": {"type": "log", "log": 2}},
        ],
    }
    return panel(
        "xychart",
        title,
        description,
        unit,
        queries,
        w=w,
        h=h,
        options={
            "mapping": "auto",
            "series": [{}],
            "legend": {"displayMode": "list", "placement": "right", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "single"},
        },
        custom={"show": "points+lines", "pointSize": {"fixed": 6}, "lineWidth": 2},
        overrides=[*overrides, batch],
        transformations=[
            {
                "id": "convertFieldType",
                "options": {
                    "fields": {},
                    "conversions": [{"targetField": "concurrency", "destinationType": "number"}],
                },
            },
            {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": "concurrency", "desc": False}]}},
        ],
        **more,
    )
