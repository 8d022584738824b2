"""ServerProcess: what happens to a launched server from start to end, shown on small servers of our own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from made_hub import packed, put_in_folder

from loadgen.errors import ServerError, UsageError
from loadgen.guardian import family
from loadgen.processgroup import ProcessGroup
from loadgen.serving.facts import given_kv_cache_dtype, metric_names
from loadgen.serving.launch import Launch
from loadgen.serving.process import ServerProcess, port_is_free

FAKE_SERVER = """
import http.server, json, os, signal, subprocess, sys, time
port, behaviour = int(sys.argv[1]), sys.argv[2:]
print("engine config: \x1b[90mdtype=\x1b[0mtorch.bfloat16, quantization=None,", flush=True)
print("enforce_eager=" + str("eager" in behaviour) + ", kv_cache_dtype=auto,", flush=True)
print(*(word for word in behaviour if "=" in word), sep="\\n", flush=True)
print("Selected MarlinKernel for layer\\nSelected MarlinKernel for layer", flush=True)
if "crash" in behaviour:
    print("(Worker) ERROR 11-22 [executor.py:9] ValueError: no weights", *["  at line 1"] * 20, sep="\\n")
    print("(Engine) ERROR 11-22 [core.py:1] RuntimeError: See root cause above", *["  at line 2"] * 20, sep="\\n")
    print("(API) WARNING 11-22 [x.py:1] too many, `OSError: none`", *["  at line 3"] * 20, "bye", sep="\\n", flush=True)
    sys.exit(3)
if "killed" in behaviour:
    os.kill(os.getpid(), signal.SIGKILL)
if "stubborn" in behaviour:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "setsid" in behaviour:
    print("child", subprocess.Popen(["sleep", "600"], start_new_session=True).pid, flush=True)
    if "crash_after" in behaviour:
        sys.exit(1)
if "grows" in behaviour:
    for number in range(8):
        print("loading shard", number, flush=True)
        time.sleep(0.1)
if "waits" in behaviour:
    while True:
        print("No available shared memory broadcast block found in 60 seconds", flush=True)
        time.sleep(0.05)
if "child" in behaviour:
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    print("child", subprocess.Popen([sys.executable, "-c", child]).pid, flush=True)
time.sleep(0.5 if "slow" in behaviour else 0)
ANSWERS = {
    "/health": b"",
    "/version": b'{"version": "9.9"}',
    "/v1/models": json.dumps({"data": [{"id": "m", "max_model_len": 77}]}).encode(),
    "/metrics": b'# HELP x\\nvllm:b{engine="0"} 1.0\\nvllm:a 2\\nvllm:b{engine="1"} 1.0\\n',
}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ANSWERS else 404)
        self.end_headers()
        self.wfile.write(ANSWERS.get(self.path, b""))
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
PATIENCE_S = 30.0


@pytest.fixture
def launch_of(tmp_path: Path) -> Callable[..., Launch]:
    script = tmp_path / "fake_server.py"
    script.write_text(FAKE_SERVER)

    def plan(*behaviour: str, **fields: object) -> Launch:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        argv = (sys.executable, str(script), str(port), *behaviour)
        return Launch(name="fake", precision="bf16", argv=argv, port=port, **fields)  # type: ignore[arg-type]

    return plan


def gone(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if not family(pid) and not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def child_of(server: ServerProcess) -> int:
    return next(int(line.split()[1]) for line in server.log().splitlines() if line.startswith("child"))


def test_a_server_becomes_ready_and_its_port_is_free_after_the_stop(
    launch_of: Callable[..., Launch], tmp_path: Path
) -> None:
    launch = launch_of("slow")
    with ServerProcess(launch, tmp_path / "new" / "server.log") as server:
        server.wait_ready(PATIENCE_S)
        assert server.poll() is None
        assert not port_is_free(launch.host, launch.port)
        assert server.stop() == []
        assert server.stop() == []
    assert server.poll() is not None
    assert port_is_free(launch.host, launch.port)
    assert family(server.pid) == []


def test_facts_are_the_servers_own_words(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    launch = launch_of(env={"HF_TOKEN": "hf_secret", "PLAIN": "1"}, kernel=r"Selected (\w+)", note="made up")
    with ServerProcess(launch, tmp_path / "log") as server:
        before = server.facts()
        server.wait_ready(PATIENCE_S)
        facts = server.facts()
    assert (facts.version, facts.model, facts.max_model_len) == ("9.9", "m", 77)
    assert facts.kernels == ("MarlinKernel",)
    assert facts.note == "made up"
    assert facts.metric_names == ("vllm:a", "vllm:b")
    assert facts.argv == launch.argv
    assert facts.env == {"HF_TOKEN": "***", "PLAIN": "1"}
    assert facts.pid == server.pid
    assert before.ready_ns is None
    assert facts.ready_ns is not None and facts.started_ns is not None
    assert facts.ready_ns > facts.started_ns


def test_a_crash_is_reported_at_once_with_status_cause_last_words_and_log(
    launch_of: Callable[..., Launch], tmp_path: Path
) -> None:
    with (
        ServerProcess(launch_of("crash"), tmp_path / "server.log") as server,
        pytest.raises(ServerError) as error,
    ):
        server.wait_ready(deadline_s=PATIENCE_S)
    message = str(error.value)
    assert "ended with exit status 3 before it was ready" in message
    assert str(tmp_path / "server.log") in message
    assert "ValueError: no weights" in message
    assert "RuntimeError" not in message
    assert "OSError" not in message
    assert message.endswith("bye")


def test_an_end_by_a_signal_names_the_signal(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    with ServerProcess(launch_of("killed"), tmp_path / "log") as server, pytest.raises(ServerError, match="SIGKILL"):
        server.wait_ready(PATIENCE_S)


def test_a_death_while_serving_is_noticed(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    with ServerProcess(launch_of(), tmp_path / "log") as server:
        server.wait_ready(PATIENCE_S)
        server.check_alive()
        os.kill(server.pid, signal.SIGKILL)
        assert gone(server.pid)
        with pytest.raises(ServerError, match="ended with signal SIGKILL while it served"):
            server.check_alive()


def test_a_server_that_never_answers_is_given_up_and_ended(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    launch = launch_of()
    sleeper = Launch(
        name="mute", precision="bf16", argv=(sys.executable, "-c", "import time; time.sleep(600)"), port=launch.port
    )
    with (
        ServerProcess(sleeper, tmp_path / "log") as server,
        pytest.raises(ServerError, match=r"not ready after 0\.3 s"),
    ):
        server.wait_ready(deadline_s=0.3)
    assert server.poll() is not None


def test_a_used_port_is_refused_before_anything_happens(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    launch = launch_of()
    with socket.socket() as other:
        other.bind((launch.host, launch.port))
        other.listen()
        with pytest.raises(UsageError, match=f"port {launch.port} on 127.0.0.1 is already in use"):
            ServerProcess(launch, tmp_path / "runs" / "log")
    assert not (tmp_path / "runs").exists()


def test_a_command_that_does_not_exist_is_a_usage_error(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    launch = Launch(name="x", precision="x", argv=(str(tmp_path / "absent"),), port=launch_of().port)
    with pytest.raises(UsageError, match=r"cannot run .*absent: No such file"):
        ServerProcess(launch, tmp_path / "log")


def test_a_server_deaf_to_polite_signals_is_ended_all_the_same(
    launch_of: Callable[..., Launch], tmp_path: Path
) -> None:
    with ServerProcess(launch_of("stubborn"), tmp_path / "log") as server:
        server.wait_ready(PATIENCE_S)
        server.stop(interrupt_s=0.2, terminate_s=0.2)
    assert server.poll() == -signal.SIGKILL


def test_what_the_server_started_does_not_outlive_it(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    with ServerProcess(launch_of("child"), tmp_path / "log") as server:
        server.wait_ready(PATIENCE_S)
        child = child_of(server)
        assert is_alive(child)
    assert not is_alive(child)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("behaviour", [("setsid",), ("setsid", "stubborn"), ("setsid", "crash_after")])
def test_what_left_the_servers_session_does_not_outlive_it(
    launch_of: Callable[..., Launch], tmp_path: Path, behaviour: tuple[str, ...]
) -> None:
    with ServerProcess(launch_of(*behaviour), tmp_path / "log") as server:
        if "crash_after" in behaviour:
            with pytest.raises(ServerError, match="ended with exit status 1"):
                server.wait_ready(PATIENCE_S)
        else:
            server.wait_ready(PATIENCE_S)
        child = child_of(server)
        assert is_alive(child)
        assert server.stop(interrupt_s=0.2, terminate_s=0.5) == []
    assert not is_alive(child)


def test_the_clock_of_a_start_stands_still_while_the_log_grows(
    launch_of: Callable[..., Launch], tmp_path: Path
) -> None:
    with ServerProcess(launch_of("grows"), tmp_path / "log") as server:
        server.wait_ready(deadline_s=0.6)


def test_lines_that_say_that_it_waits_are_no_progress(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    with (
        ServerProcess(launch_of("waits"), tmp_path / "log") as server,
        pytest.raises(ServerError, match=r"neither its log nor its downloads grew; raise --start-timeout"),
    ):
        server.wait_ready(deadline_s=0.5)


def test_downloads_that_grow_keep_a_start_alive(
    launch_of: Callable[..., Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    launch = launch_of(checkpoint="a/b")
    program = (
        "import sys, time, pathlib\nfor n in range(8):\n    pathlib.Path(sys.argv[1], str(n)).write_bytes(b'x' * 9999)"
    )
    argv = (sys.executable, "-c", f"{program}\n    time.sleep(0.1)\ntime.sleep(600)", str(blobs))
    slow = Launch(name="slow", precision="bf16", argv=argv, port=launch.port, checkpoint="a/b")
    begun = time.monotonic()
    with ServerProcess(slow, tmp_path / "log") as server, pytest.raises(ServerError, match="not ready after"):
        server.wait_ready(deadline_s=0.5)
    assert len(list(blobs.iterdir())) == 8
    assert time.monotonic() - begun > 0.8


def test_facts_tell_the_kv_cache_eager_mode_and_the_weights_of_all_workers(
    launch_of: Callable[..., Launch], tmp_path: Path
) -> None:
    scheme = packed("float", 8, activations=True)
    scheme["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8, "type": "float"}
    folder = put_in_folder(tmp_path / "M-fp8", scheme)
    said = ("tensor_parallel_size=2,", "Model loading took 3.5 GiB memory=")
    launch = launch_of("eager", *said, checkpoint=str(folder), dtype="bfloat16")
    with ServerProcess(launch, tmp_path / "log") as server:
        server.wait_ready(PATIENCE_S)
        facts = server.facts()
        server.launch = msgspec.structs.replace(launch, argv=(*launch.argv, "--kv-cache-dtype", "bfloat16"))
        told = server.facts()
    assert facts.quantization == "compressed-tensors float8/float8 (asks for a float8 KV cache)"
    assert (facts.eager, facts.workers, facts.model_bytes) == (True, 2, 7 * 2**30)
    assert facts.kv_cache_dtype == "fp8"
    assert facts.remarks == ("the checkpoint asks for a float8 KV cache: its keys and values are kept as fp8",)
    assert told.kv_cache_dtype == "bfloat16"
    assert told.remarks[0].endswith("it is served with a bfloat16 one, as the other targets are")


def test_eager_mode_on_a_gpu_is_a_remark(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    for behaviour, remarks in ((("eager",), 1), ((), 0)):
        with ServerProcess(launch_of(*behaviour, device="cuda"), tmp_path / f"log{remarks}") as server:
            server.wait_ready(PATIENCE_S)
            facts = server.facts()
        assert (facts.eager, len(facts.remarks)) == (bool(behaviour), remarks)
        assert all("enforce_eager=True" in remark for remark in facts.remarks)


def test_what_a_running_server_was_told_of_its_kv_cache_is_in_its_metrics() -> None:
    line = 'vllm:cache_config_info{block_size="16",cache_dtype="%s",engine="0",enable_prefix_caching="False"} 1.0\n'
    assert given_kv_cache_dtype("# HELP x\n" + line % "fp8") == "fp8"
    assert given_kv_cache_dtype(line % "auto") is None, "a checkpoint may have changed it afterwards"
    assert given_kv_cache_dtype("") is None


def test_a_uri_that_kubernetes_leaves_in_vllm_port_does_not_reach_the_server(
    launch_of: Callable[..., Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PORT", "tcp://10.0.0.1:8000")
    argv = (sys.executable, "-c", "import os; print(os.environ.get('VLLM_PORT'))")
    with ServerProcess(Launch(name="x", precision="x", argv=argv, port=launch_of().port), tmp_path / "log") as server:
        with pytest.raises(ServerError, match="exit status 0"):
            server.wait_ready(PATIENCE_S)
        assert server.log() == "None\n"


def test_a_server_that_does_not_run_its_recipe_is_refused(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    right = (r"dtype=torch\.bfloat16,", r"quantization=None,")
    with ServerProcess(launch_of(expect=right), tmp_path / "right") as server:
        server.wait_ready(PATIENCE_S)
        server.verify()
    with ServerProcess(launch_of(expect=(*right, "quantization=awq,")), tmp_path / "wrong") as server:
        server.wait_ready(PATIENCE_S)
        with pytest.raises(ServerError, match=r"does not run what its recipe says.*quantization=awq"):
            server.verify()


def test_an_older_servers_words_in_the_same_log_prove_nothing(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    (tmp_path / "log").write_text("quantization=awq,\n")
    with ServerProcess(launch_of(expect=("quantization=awq,",)), tmp_path / "log") as server:
        server.wait_ready(PATIENCE_S)
        with pytest.raises(ServerError, match="does not run"):
            server.verify()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_server_does_not_outlive_a_killed_loadgen(launch_of: Callable[..., Launch], tmp_path: Path) -> None:
    launch = launch_of("child")
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom loadgen.serving.launch import Launch\n"
        "from loadgen.serving.process import ServerProcess\n"
        f"server = ServerProcess(Launch(name='x', precision='x', argv={launch.argv!r}, port={launch.port}), "
        f"Path({str(tmp_path / 'log')!r}))\nserver.wait_ready({PATIENCE_S})\n"
        "print(server.pid, flush=True)\ntime.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        pid = int(owner.stdout.readline())
        owner.kill()
        owner.wait()
    assert gone(pid)
    give_up = time.monotonic() + PATIENCE_S
    while not port_is_free(launch.host, launch.port):
        assert time.monotonic() < give_up, "a child that outlived the leader still holds the port"
        time.sleep(0.05)


def test_metric_names_are_taken_from_samples_not_from_comments() -> None:
    assert metric_names('# TYPE c counter\nb_total 1\na{x="# y"} 2\n\nb_total 3\n') == ("a", "b_total")


def test_a_server_hears_the_interrupt_although_loadgen_is_a_background_job(tmp_path: Path) -> None:
    """`nohup loadgen sweep &` starts with SIGINT ignored, which children inherit."""
    log = tmp_path / "log"
    says = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, flush=True)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        group = ProcessGroup([sys.executable, "-c", says], os.environ, log)
        group.leader.wait()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    group.end(interrupt_s=1.0, terminate_s=1.0)
    assert log.read_text() == "False\n"


def test_a_server_hears_the_interrupt_although_loadgen_was_started_with_it_blocked(tmp_path: Path) -> None:
    """Ray starts its processes so, and children inherit it: a server would run on until it is killed."""
    log = tmp_path / "log"
    says = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), flush=True)"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        group = ProcessGroup([sys.executable, "-c", says], os.environ, log)
        group.leader.wait()
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    group.end(interrupt_s=1.0, terminate_s=1.0)
    assert log.read_text() == "set()\n"
