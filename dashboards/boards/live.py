"""The dashboards' queries against a real Prometheus, interpolated as Grafana does it."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from boards.panel import Json

SCRAPE_S = 1
"""jsonData.timeInterval of docker/grafana/provisioning/datasources/prometheus.yaml."""
_REFERENCE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")


@dataclass(frozen=True)
class Series:
    """One series of an answer: labels, and (Unix time in s, value) in order."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def finite(self) -> bool:
        return any(math.isfinite(value) for _, value in self.points)


@dataclass(frozen=True)
class Span:
    """The dashboard's time range, Unix time in s, and the step of its range queries."""

    start_s: float
    end_s: float
    step_s: int = 1

    @property
    def builtins(self) -> dict[str, str]:
        """Grafana's own variables. $__rate_interval: max($__interval + scrape interval, 4 scrape intervals)."""
        range_s = round(self.end_s - self.start_s)
        return {
            "__interval": f"{self.step_s}s",
            "__rate_interval": f"{max(self.step_s + SCRAPE_S, 4 * SCRAPE_S)}s",
            "__range": f"{range_s}s",
            "__range_s": str(range_s),
        }


class Prometheus:
    """Its HTTP API. A refused query raises ValueError with Prometheus' own words."""

    def __init__(self, url: str) -> None:
        self._url = url

    def instant(self, expr: str, at_s: float) -> list[Series]:
        """A point per series."""
        found = self._ask("query", query=expr, time=at_s)["result"]
        return [Series(one["metric"], ((one["value"][0], float(one["value"][1])),)) for one in found]

    def over(self, expr: str, span: Span) -> list[Series]:
        """The series over the span."""
        found = self._ask("query_range", query=expr, start=span.start_s, end=span.end_s, step=span.step_s)["result"]
        return [Series(one["metric"], tuple((t, float(v)) for t, v in one["values"])) for one in found]

    def label_values(self, label: str, selector: str, span: Span) -> list[str]:
        query = {"match[]": selector, "start": span.start_s, "end": span.end_s}
        return [str(value) for value in self._ask(f"label/{label}/values", **query)]

    def _ask(self, path: str, **query: object) -> Any:
        try:
            url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
            with urllib.request.urlopen(url, timeout=30) as got:
                return json.load(got)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error).get("error", str(error))) from None


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """The text with every $name and ${name} replaced. Raises KeyError for a variable that nobody defines."""
    return _REFERENCE.sub(lambda found: values[found[1] or found[2]], text)


def variables(board: Json, prometheus: Prometheus, span: Span) -> dict[str, str]:
    """The value of every variable as a fresh dashboard has it: all, or the first. ValueError where there is none."""
    values = dict(span.builtins)
    for one in board["templating"]["list"]:
        name = one["name"]
        if one["type"] == "datasource":
            values[name] = "prometheus"
            continue
        found = sorted(_options(one, prometheus, span), reverse=one["sort"] in (2, 4))
        if not found:
            raise ValueError(f"variable {name} has no value: {one['definition']}")
        values[name] = one.get("allValue") or found[0] if one["includeAll"] else found[0]
    return values


def _options(one: Json, prometheus: Prometheus, span: Span) -> list[str]:
    query = one["query"]["query"]
    inner = query[query.index("(") + 1 : -1]
    if query.startswith("label_values("):
        selector, _, label = inner.rpartition(",")
        return prometheus.label_values(label.strip(), selector.strip(), span)
    pattern = re.compile(one["regex"].strip("/"))
    shown = (json.dumps(dict(series.labels)) for series in prometheus.instant(inner, span.end_s))
    quoted = (text.replace('": "', '="') for text in shown)
    return [found[1] for text in quoted if (found := pattern.search(text))]


def targets(board: Json) -> Iterator[tuple[Json, Json]]:
    """Every (panel, query) of a dashboard, those of collapsed rows included."""
    for panel in board["panels"]:
        for one in (panel, *panel.get("panels", ())):
            for target in one.get("targets", ()):
                yield one, target


def answer(target: Json, prometheus: Prometheus, values: Mapping[str, str], span: Span) -> list[Series]:
    """Prometheus's answer to one query of a panel."""
    expr = interpolate(target["expr"], values)
    return prometheus.instant(expr, span.end_s) if target["instant"] else prometheus.over(expr, span)
