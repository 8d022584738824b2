"""Ports that servers, exporter, sweep, Prometheus and Grafana listen on."""

from __future__ import annotations

from collections.abc import Callable

from loadgen.doctor.finding import Finding, Mode
from loadgen.serving.process import port_is_free

SERVERS = (range(8000, 8011),)
CONTAINERS = (*SERVERS, range(8101, 8105), range(8201, 8204))
"""What docker/compose.yaml publishes servers on: GPU, simulated, CPU."""
OTHERS = {
    9401: "exporter",
    9402: "sweep's /metrics",
    9090: "Prometheus",
    3000: "Grafana",
}


def ports(mode: Mode, is_free: Callable[[str, int], bool] = port_is_free, host: str = "127.0.0.1") -> Finding:
    """Which of the ports are taken on the loopback address."""
    spans = CONTAINERS if mode == "docker" else SERVERS
    roles = {port: "server" for span in spans for port in span} | OTHERS
    taken = [f"{port} ({role})" for port, role in roles.items() if not is_free(host, port)]
    if not taken:
        servers = ", ".join(f"{span[0]}-{span[-1]}" for span in spans)
        others = ", ".join(map(str, OTHERS))
        return Finding(check="ports", state="ok", seen=f"{servers}, {others} are free")
    advice = "fine if that is this project's stack; else stop what listens there (`ss -ltnp`) or choose other ports"
    return Finding(check="ports", state="warning", seen=f"taken: {', '.join(taken)}", advice=advice)
