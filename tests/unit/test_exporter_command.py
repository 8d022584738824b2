"""`loadgen exporter`, the real process, over a stub of NVIDIA's library that the real nvidia-ml-py loads."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error

import pytest
from made_exporter import get, wait_for
from nvml_stub.build import Curve, build_stub, uuid_of

from loadgen.power.feed import PowerFeed


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_stub(tmp_path_factory.mktemp("nvml"))


def loadgen_exporter(*arguments, env=None):
    return subprocess.Popen(
        [sys.executable, "-m", "loadgen", "exporter", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip


def refused(*arguments, env=None):
    """The one line that it says."""
    process = loadgen_exporter(*arguments, env=env)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (2, "")
    assert stderr.startswith("loadgen: ")
    assert stderr.count("\n") == 1, stderr
    return stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "0"), "--port 0 is not between 1 and 65535"),
        (("--period-ms", "2"), "--period-ms 2 is not between 10 and 1000"),
        (("--gpu", "GPU-1,,GPU-2"), "--gpu GPU-1,,GPU-2 has an empty entry"),
        (("--source", "tea"), "--source tea: unknown; write nvml or rapl"),
    ],
)
def test_wrong_options_are_one_sentence(arguments, said):
    assert said in refused(*arguments)


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("--port", str(port))
    assert (
        said
        == f"loadgen: cannot listen on 127.0.0.1:{port} (Address already in use); choose another --port or --host\n"
    )


def test_no_library_is_one_sentence(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"what the loader finds first, and is no library")
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    assert "libnvidia-ml.so.1 is not installed" in refused("--port", str(free_port()), env=env)


def test_no_driver_is_one_sentence(library):
    said = refused("--port", str(free_port()), env=Curve().environment(library, INIT=9))
    assert "NVML_ERROR_DRIVER_NOT_LOADED" in said


def test_an_unknown_gpu_is_one_sentence(library):
    said = refused("--port", str(free_port()), "--gpu", "GPU-77", env=Curve().environment(library))
    assert "'GPU-77' fits no GPU of this machine" in said


def test_several_gpus_and_no_choice_is_one_sentence(library):
    said = refused("--port", str(free_port()), env=Curve().environment(library, GPUS=2))
    assert uuid_of(0) in said
    assert uuid_of(1) in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_quietly(number, library):
    port = free_port()
    process = loadgen_exporter("--port", str(port), env=Curve().environment(library))
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith(f"nvml exporter ready on http://127.0.0.1:{port}: ")
    assert uuid_of(0) in ready
    assert get(f"http://127.0.0.1:{port}/health")[0] == 200
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0
    with pytest.raises(urllib.error.URLError):
        get(f"http://127.0.0.1:{port}/health")


@pytest.mark.slow
def test_sensors_that_went_dark_make_it_unhealthy_until_they_were_opened_again(library):
    """Nothing can be read from 1.5 s after the first nvmlInit on; after a second one everything can."""
    port = free_port()
    env = Curve().environment(library, FAIL="FieldValues:999", FAIL_AFTER_MS=1500, FAIL_ONCE=1)
    process = loadgen_exporter("--port", str(port), env=env)
    assert process.stdout is not None
    process.stdout.readline()
    url = f"http://127.0.0.1:{port}/health"
    assert get(url)[0] == 200
    dark = process.stdout.readline()
    assert dark.startswith("no GPU reported energy or power for 5 s (counter_j: NVML_ERROR_UNKNOWN;"), dark
    assert process.stdout.readline().startswith("the power sensors answer again after 5 s")
    wait_for(lambda: get(url)[0] == 200, "health")
    process.terminate()
    assert process.communicate(timeout=30) == ("", "")


@pytest.mark.parametrize(("host", "asked"), [("::1", "[::1]"), ("::", "[::1]"), ("::", "127.0.0.1")])
def test_ipv6_addresses(library, host, asked):
    port = free_port()
    process = loadgen_exporter("--host", host, "--port", str(port), env=Curve().environment(library))
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"nvml exporter ready on http://[{host}]:{port}: ")
    assert get(f"http://{asked}:{port}/health")[0] == 200
    facts = PowerFeed(f"http://{asked}:{port}").connect()
    assert [info.uuid for info in facts.gpus] == [uuid_of(0)]
    process.terminate()
    process.communicate(timeout=30)
