"""What loadgen opens to others, and whose code it lets run: nothing, unless it is asked."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import yaml
from made_exporter import response

from loadgen.cli import COMMANDS, group
from loadgen.measure.config import configure
from loadgen.measure.metrics import SweepMetrics
from loadgen.serving.compose import compose_file
from loadgen.serving.launch import plan_launch
from loadgen.serving.recipe import load_recipes
from loadgen.webserver import HostCheck

ROOT = Path(__file__).parents[2]
HOSTS = {"host", "metrics_host"}


def test_every_command_listens_on_loopback_unless_told_otherwise() -> None:
    found = {}
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        found |= {(name, param.name): param.default for param in command.params if param.name in HOSTS}
    assert set(found.values()) == {"127.0.0.1"}
    assert {name for name, _ in found} == {"sweep", "exporter", "serve", "simulate"}
    assert configure().metrics_host == "127.0.0.1"


def test_the_sweeps_own_metrics_listen_on_loopback() -> None:
    metrics = SweepMetrics(simulated=True)
    metrics.serve(0)
    assert metrics.server is not None
    assert metrics.server.address[0] == "127.0.0.1"
    metrics.close()


def test_the_sweeps_own_metrics_answer_only_to_names_of_loopback() -> None:
    metrics = SweepMetrics(simulated=True)
    metrics.serve(0)
    try:
        assert metrics.server is not None
        url = f"http://127.0.0.1:{metrics.server.address[1]}/metrics"
        asked, refused = response(url), response(url, Host="evil.example")
        assert (asked.status, refused.status) == (200, 403)
        assert b"loadgen_simulated 1.0" in asked.read()
        assert refused.read().startswith(b"Host 'evil.example' is refused")
        assert {a.headers["X-Content-Type-Options"] for a in (asked, refused)} == {"nosniff"}
    finally:
        metrics.close(wait=False)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_a_server_on_loopback_answers_to_loopback_and_its_own_name(address: str) -> None:
    check = HostCheck("Bench.lan", address)
    good = ("localhost", "localhost:9401", "LOCALHOST.", "a.localhost:1", "127.0.0.1:9401", "127.9.9.9", "[::1]:9401",
            "[::1]", "[::ffff:127.0.0.1]:1", "bench.lan:9401")  # fmt: skip
    assert [name for name in good if check.refusal(name)] == []
    assert check.refusal(None) is None, "HTTP/1.0; browsers always send one"
    bad = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[fe80::1]", "", "::1",
           "127.0.0.1:80@evil.example", "localhost,evil.example", "localhost evil.example", "0x7f.1", "2130706433",
           "[localhost", "localhost:port", "evil\x1b[2J")  # fmt: skip
    assert [name for name in bad if not check.refusal(name)] == []
    assert check.refusal("loadgen:9402") is None, "a service of a Compose project; no web site has such a name"
    assert "\x1b" not in str(check.refusal("evil\x1b[2J"))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.7", "fe80::1"])
def test_a_server_for_the_network_answers_to_every_name(address: str) -> None:
    assert HostCheck(address, address).refusal("gpu7.cluster:9401") is None


def test_compose_publishes_on_loopback() -> None:
    services = yaml.safe_load(compose_file())["services"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published
    assert all(str(port).startswith("${BIND_ADDRESS:-127.0.0.1}:") for port in published)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_no_recipe_runs_a_repositorys_own_code(device: str) -> None:
    for recipe in load_recipes().values():
        if device == "cpu" and not recipe.runs_on_cpu(()):
            continue
        launch = plan_launch(
            recipe, model="some/model", checkpoint="some/checkpoint", port=1, device=device, max_num_seqs=1,
            vllm="vllm",
        )  # fmt: skip
        assert not any("trust" in argument for argument in launch.argv)
        assert not any("TRUST" in name for name in launch.env)


def test_nothing_that_ships_trusts_remote_code() -> None:
    for folder in ("loadgen", "servers", "docker"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".toml", ".yaml", ".yml", ".env") or path.name.endswith("Dockerfile"):
                assert "trust_remote_code=True" not in path.read_text(encoding="utf-8").replace(" ", "")
                assert "--trust-remote-code" not in path.read_text(encoding="utf-8")


def test_it_is_passed_on_when_somebody_asks() -> None:
    launch = plan_launch(
        load_recipes()["bf16"], model="some/model", port=1, device="cuda", max_num_seqs=1, vllm="vllm",
        extra_args=["--trust-remote-code"],
    )  # fmt: skip
    assert launch.argv[-1] == "--trust-remote-code"
