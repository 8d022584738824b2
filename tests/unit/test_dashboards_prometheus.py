"""docker/prometheus and docker/grafana: what Prometheus' own tool and the stack's compose file say."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml
from programs import program

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
CONFIG = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))
JOBS = {job["job_name"]: job for job in CONFIG["scrape_configs"]}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)


def test_promtool_accepts_configuration_and_rules() -> None:
    done = promtool("check", "config", DOCKER / "prometheus" / "prometheus.yaml")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_the_rules_compute_what_they_are_called() -> None:
    done = promtool("test", "rules", Path(__file__).with_name("prometheus_rules.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_server_of_the_stack_is_scraped_by_its_service_name() -> None:
    """A service that is added to compose.yaml and not here would be left out of every dashboard."""
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    servers = services.keys() - {"exporter", "prometheus", "grafana", "loadgen"}
    (found,) = JOBS["servers"]["dns_sd_configs"]
    assert set(found["names"]) == servers
    (simulated,) = JOBS["simulated-power"]["dns_sd_configs"]
    assert set(simulated["names"]) == {name for name in servers if name.startswith("sim-")}
    assert JOBS["simulated-power"]["metrics_path"] == "/power/metrics"


def test_grafana_is_provisioned_with_this_prometheus_and_these_dashboards() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["uid"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    assert source["jsonData"]["timeInterval"] == CONFIG["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "loadgen.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    mounts = dict(mount.split(":")[:2][::-1] for mount in services["grafana"]["volumes"])
    assert (DOCKER / mounts[provider["options"]["path"]]).resolve() == ROOT / "dashboards"
    assert (DOCKER / mounts["/etc/grafana/provisioning"]).resolve() == provisioning
