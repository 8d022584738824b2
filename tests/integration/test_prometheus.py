"""A real Prometheus scrapes a real `loadgen exporter`; what it adds up is the energy that the exporter measured.

The GPU is a stub of NVIDIA's library: 300 W, and 150 W more in the first half of each 4 s, so that the two ends of a
window of 38 s see different power. Prometheus knows the counter as of the last scrape before an instant. Both ends lie
half a second behind a scrape, so `counter @ t1 - counter @ t0` is off by half a second of the difference between the
powers at both ends, 75 J, and by the counter's updates, up to 0.1 s of 450 W, 45 J; together below 0.9% of the
38 s * 375 W = 14250 J.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import msgspec
import pytest
from nvml_stub.build import Curve, build_stub, uuid_of
from programs import program

from loadgen.power.energy import WindowEnergy
from loadgen.power.wire import Windows

CURVE = Curve(base_w=300, swing_w=150, swing_period_ms=4000)
WINDOW_S = 38
COUNTER = "loadgen_gpu_energy_joules_total"
WITHIN = 0.02


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def get(url, **query):
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return answer.read()


@contextmanager
def running(argv, ready_url, **options):
    process = subprocess.Popen(argv, **options)
    try:
        deadline_s = time.monotonic() + 60
        while True:
            assert process.poll() is None, f"{argv[0]} died while starting"
            with suppress(OSError):
                get(ready_url)
                break
            assert time.monotonic() < deadline_s, f"{argv[0]} does not answer at {ready_url}"
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def exporter(tmp_path_factory):
    """Its URL."""
    library = build_stub(tmp_path_factory.mktemp("nvml"))
    port = free_port()
    argv = [sys.executable, "-m", "loadgen", "exporter", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running(argv, f"{url}/health", env=CURVE.environment(library)):
        yield url


@pytest.fixture(scope="module")
def prometheus(exporter, tmp_path_factory):
    """Its URL; it scrapes the exporter each second."""
    folder = tmp_path_factory.mktemp("prometheus")
    target = urllib.parse.urlsplit(exporter).netloc
    scrape = {"job_name": "power", "static_configs": [{"targets": [target]}]}
    config = folder / "prometheus.yml"
    config.write_text(
        json.dumps({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [scrape]})
    )
    address = f"127.0.0.1:{free_port()}"
    argv = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    argv += [f"--web.listen-address={address}", "--log.level=error"]
    with running(argv, f"http://{address}/-/ready"):
        yield f"http://{address}"


@dataclass(frozen=True)
class Measured:
    """One window: by the exporter, and its bounds on the wall clock, seconds."""

    energy: WindowEnergy
    t0_s: float
    t1_s: float


@pytest.fixture(scope="module")
def measured(exporter, prometheus):
    deadline_s = time.monotonic() + 60
    while not query(prometheus, f"count_over_time({COUNTER}[10s]) > 3"):
        assert time.monotonic() < deadline_s, "Prometheus does not scrape the exporter"
        time.sleep(0.5)
    (scraped_s,) = query(prometheus, f"timestamp({COUNTER})")
    time.sleep((scraped_s + 0.5 - time.time()) % 1)
    t0_ns, t0_s = time.monotonic_ns(), time.time()
    time.sleep(WINDOW_S)
    t1_ns, t1_s = time.monotonic_ns(), time.time()
    time.sleep(2)
    (energy,) = msgspec.json.decode(get(f"{exporter}/window", t0=t0_ns, t1=t1_ns), type=Windows).windows
    return Measured(energy, t0_s, t1_s)


def query(prometheus, expression, **more):
    answer = json.loads(get(f"{prometheus}/api/v1/query", query=expression, **more))
    return [float(series["value"][1]) for series in answer["data"]["result"]]


def difference(name, measured):
    return f"{name} @ {measured.t1_s:.3f} - {name} @ {measured.t0_s:.3f}"


def test_promtool_finds_nothing_to_say(exporter):
    page = get(f"{exporter}/metrics")
    checked = subprocess.run([program("promtool"), "check", "metrics"], input=page, capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_exporters_window_is_the_curves_energy(measured):
    energy = measured.energy
    assert energy.verdict == "good", energy.reasons
    assert energy.counter_j == pytest.approx(CURVE.energy_j(energy.t0_ns, energy.t1_ns), rel=0.005)


@pytest.mark.parametrize("name", [COUNTER, "loadgen_gpu_energy_integrated_joules_total"])
def test_prometheus_adds_up_the_same_energy(prometheus, measured, name):
    (joules,) = query(prometheus, difference(name, measured))
    assert joules == pytest.approx(measured.energy.energy_j, rel=WITHIN)


def test_the_counter_survives_rate(prometheus, measured):
    (watts,) = query(prometheus, f"rate({COUNTER}[{WINDOW_S}s] @ {measured.t1_s:.3f})")
    assert watts == pytest.approx(measured.energy.power_w_mean, rel=WITHIN)


def test_series_are_labelled_by_gpu_and_nothing_of_the_run(prometheus, measured):
    answer = json.loads(get(f"{prometheus}/api/v1/query", query=COUNTER))
    (series,) = answer["data"]["result"]
    own = {name: value for name, value in series["metric"].items() if name not in ("__name__", "instance", "job")}
    assert own == {"gpu": "0", "uuid": uuid_of(0), "scope": "gpu"}
