"""Prometheus and Grafana: whether they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loadgen.doctor.finding import Finding
from loadgen.serving.facts import get, get_object

PROMETHEUS = "http://127.0.0.1:9090"
GRAFANA = "http://127.0.0.1:3000"


def prometheus(url: str = PROMETHEUS, body: Callable[[str], bytes | None] = get) -> Finding:
    """GET /-/ready, at most 5 s."""
    base = url.rstrip("/")
    if body(f"{base}/-/ready") is not None:
        return Finding(check="Prometheus", state="ok", seen=f"{base} is ready")
    advice = "a sweep runs without; for live figures start the stack's prometheus, or name yours with --prometheus URL"
    return Finding(check="Prometheus", state="warning", seen=f"{base} does not answer", advice=advice)


def grafana(url: str = GRAFANA, answer: Callable[[str], dict[str, Any]] = get_object) -> Finding:
    """GET /api/health, at most 5 s."""
    base = url.rstrip("/")
    health = answer(f"{base}/api/health")
    version = f", version {health['version']}" if "version" in health else ""
    if health.get("database") == "ok":
        return Finding(check="Grafana", state="ok", seen=f"{base} is healthy{version}")
    if health:
        advice = "see Grafana's log"
        return Finding(check="Grafana", state="warning", seen=f"{base} says {health}", advice=advice)
    advice = "a sweep runs without; for dashboards start the stack's grafana, or name yours with --grafana URL"
    return Finding(check="Grafana", state="warning", seen=f"{base} does not answer", advice=advice)
