"""The simulated server's GPU over a real socket: its power below /power, in scaled time, and its faults."""

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from loadgen.serving.simulated.cost import load_presets, speed_up

ROOT = Path(__file__).parents[2]
SCALE = 5
PROMPT = "x" * 400
PROMPT_TOKENS = 100
ANSWER_TOKENS = 600


@contextlib.contextmanager
def simulated(*arguments):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "simulate", "--port", str(port), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "SIMULATED" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (0, "", "")


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


def samples(url):
    return json.loads(get(f"{url}/power/samples?since=0"))["samples"]


def wait_for_samples(url, condition):
    until = time.monotonic() + 30
    while not condition(found := samples(url)):
        assert time.monotonic() < until, found[-1:]
        time.sleep(0.05)
    return found


def test_the_counter_gains_the_joules_of_every_step_whatever_the_scale_of_time():
    cost = speed_up(load_presets().cost("awq", gpu="h100"), SCALE)
    steps = [cost.step(batch=0, context_tokens=0, prefill_tokens=PROMPT_TOKENS)]
    steps += [
        cost.step(batch=1, context_tokens=PROMPT_TOKENS + emitted, prefill_tokens=0)
        for emitted in range(1, ANSWER_TOKENS)
    ]
    idle_w = cost.gpu.idle_w
    assert idle_w == 70 * SCALE
    dynamic_j = sum(step.energy_j - idle_w * step.duration_s for step in steps)
    with simulated("--precision", "awq", "--gpu", "h100", "--time-scale", str(SCALE)) as url:
        body = {"prompt": PROMPT, "max_tokens": ANSWER_TOKENS, "ignore_eos": True}
        (before, *_) = wait_for_samples(url, len)
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
        urllib.request.urlopen(request, timeout=30).read()
        count = len(samples(url))
        *_, after = wait_for_samples(url, lambda found: len(found) > count + 5)
        gained_j = after["counter_j"] - before["counter_j"]
        idle_j = idle_w * (after["t_ns"] - before["t_ns"]) / 1e9
        # both instants lie 20 to 40 ms (delay and update period) after what the counter tells of
        assert gained_j - idle_j == pytest.approx(dynamic_j, abs=0.025 * idle_w)
        (gpu,) = json.loads(get(f"{url}/power/gpus"))["gpus"]
        assert (gpu["uuid"], gpu["simulated"]) == ("SIMULATED-h100", True)
        assert gpu["name"] == f"SIMULATED H100 SXM 80GB, time and power x {SCALE}"
        assert gpu["power_limit_enforced_w"] == 700 * SCALE
        (model,) = json.loads(get(f"{url}/v1/models"))["data"]
        assert model["gpu"] == gpu["name"]


def test_it_serves_what_an_exporter_serves():
    with simulated("--precision", "fp16") as url:
        assert json.loads(get(f"{url}/power/gpus"))["source"] == "simulated"
        assert json.loads(get(f"{url}/power/clock"))["monotonic_ns"] <= time.monotonic_ns()
        wait_for_samples(url, lambda found: found[-1]["t_ns"] - found[0]["t_ns"] > 2e9 if found else False)
        first = samples(url)[0]["t_ns"]
        (window,) = json.loads(get(f"{url}/power/window?t0={first + 200_000_000}&t1={first + 1_200_000_000}"))[
            "windows"
        ]
        assert window["energy_j"] == pytest.approx(70, rel=0.02)
        assert b"loadgen_gpu_energy_joules_total" in get(f"{url}/power/metrics")


def test_faults_are_seen_in_its_samples():
    faults = ("--fault", "reset@0.3", "--fault", "gap@0.5:0.2", "--fault", "lost@1")
    with simulated("--precision", "fp16", *faults) as url:
        found = wait_for_samples(url, lambda found: found and "GPU_IS_LOST" in str(found[-1]["errors"]))
    counters = [sample["counter_j"] for sample in found if sample["counter_j"] is not None]
    assert sum(after < before for before, after in itertools.pairwise(counters)) == 1
    assert any("counter_j: NVML_ERROR_TIMEOUT" in sample["errors"] for sample in found)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--precision", "awq"), "--port is missing"),
        (("--port", "8002"), "--precision is missing"),
        (("--precision", "awq", "--port", "8002", "--fault", "melt@3"), "--fault melt@3 is not one of reset@T"),
        (("--precision", "awq", "--port", "8002", "--gpu", "z80"), "no simulated gpu 'z80'"),
        (("--precision", "awq", "--port", "8002", "--model", "elm"), "no simulated model 'elm'"),
        (("--precision", "awq", "--port", "8002", "--time-scale", "0"), "--time-scale 0 is not between 0.01 and 1000"),
        (("--precision", "awq", "--port", "8002", "--sensor-ms", "0.1"), "--sensor-ms 0.1"),
        (("--precision", "awq", "--port", "8002", "--cost-file", "none.toml"), "--cost-file none.toml"),
        (("--precision", "fp16", "--port", "8002", "--gpu", "l4", "--model", "qwen2.5-14b"), "choose a larger --gpu"),
        (("--explain", "--answer-tokens", "0"), "--answer-tokens 0"),
    ],
)
def test_wrong_use_ends_with_one_sentence(arguments, words):
    result = subprocess.run(
        [sys.executable, "-m", "loadgen", "simulate", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
