"""Ports that servers, exporter, sweep, Prometheus and Grafana listen on."""

from __future__ import annotations

from collections.abc import Callable

from loadgen.doctor.finding import Finding
from loadgen.serving.process import port_is_free

PORTS = {
    **dict.fromkeys(range(8000, 8011), "server"),
    9401: "exporter",
    9402: "sweep's /metrics",
    9090: "Prometheus",
    3000: "Grafana",
}


def ports(is_free: Callable[[str, int], bool] = port_is_free, host: str = "127.0.0.1") -> Finding:
    """Which of the ports are taken on the loopback address."""
    taken = [f"{port} ({role})" for port, role in PORTS.items() if not is_free(host, port)]
    if not taken:
        return Finding(check="ports", state="ok", seen="8000-8010, 9401, 9402, 9090 and 3000 are free")
    advice = "fine if that is this project's stack; else stop what listens there (`ss -ltnp`) or choose other ports"
    return Finding(check="ports", state="warning", seen=f"taken: {', '.join(taken)}", advice=advice)
