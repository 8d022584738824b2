"""Faults of the machine, of a server's life and of what stands beside it: none crashes the run or bends a figure."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fault_server import BATCH, ITL_S, TOKENS, TTFT_S, FaultServer
from programs import compiler, program
from unhurried import analysed

from loadgen.analysis.run import Run
from loadgen.errors import UsageError
from loadgen.measure.block import RELAUNCHES
from loadgen.measure.config import configure
from loadgen.measure.observer import Observer, Progress
from loadgen.measure.run import run_sweep
from loadgen.record.cell import SweepConfig
from loadgen.serving.facts import proxies_passed_by
from loadgen.serving.process import free_port

TESTS = Path(__file__).parents[1]
TLS = TESTS / "tls"
DEADLINE_S = 120.0
BRIEF: dict[str, Any] = {
    "dataset": "sample", "duration": 0.8, "repeats": 1, "timeout": 10.0, "max_tokens": 2 * TOKENS, "metrics_port": None,
    "power": "none",
}  # fmt: skip
ARGUMENTS = ["--dataset", "sample", "--duration", "0.8", "--repeats", "1", "--max-tokens", "24", "--quiet"]


class Meddler(Observer):
    """Does something once in the window of each cell of these concurrencies; keeps what is said."""

    def __init__(self, meddle: Callable[[], object], *concurrency: int) -> None:
        self._meddle = meddle
        self._left = list(concurrency)
        self.said: list[str] = []

    def progress(self, progress: Progress) -> None:
        if progress.stage == "window" and progress.cell.concurrency in self._left:
            self._left.remove(progress.cell.concurrency)
            self._meddle()

    def note(self, sentence: str) -> None:
        self.said.append(sentence)

    warn = note


def measured(config: SweepConfig, observer: Observer | None = None) -> Run:
    return analysed(run_sweep(config, observer))


def command(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadgen", *arguments], capture_output=True, text=True, check=False, timeout=DEADLINE_S,
        env={**os.environ, **(env or {})},
    )  # fmt: skip


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What stderr says; fails where that is a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


class TestServersLoadgenLaunched:
    @pytest.fixture
    def launched(self, tmp_path: Path) -> dict[str, Any]:
        """A `vllm serve` that logs what the bf16 recipe expects and answers as fault_server.py does."""
        says = "dtype=torch.bfloat16, quantization=None, kv_cache_dtype=auto, "
        says += "enable_prefix_caching=False, enable_chunked_prefill=True,"
        script = tmp_path / "vllm"
        script.write_text(
            f"#!{sys.executable}\nimport os, sys\nprint({says!r}, flush=True)\n"
            "port = sys.argv[sys.argv.index('--port') + 1]\n"
            f"os.execv({sys.executable!r}, [{sys.executable!r}, {str(TESTS / 'fault_server.py')!r}, '--port', port])\n"
        )
        script.chmod(0o755)
        served = {"serve": "bf16", "model": "some/model", "device": "cpu", "vllm": script, "out": tmp_path / "run"}
        return BRIEF | served

    def kill(self, run_dir: Path) -> None:
        manifest = msgspec.json.decode((run_dir / "manifest.json").read_bytes())
        os.kill(manifest["servers"][-1]["pid"], signal.SIGKILL)

    def test_one_that_dies_costs_its_cell_and_the_rest_goes_to_a_fresh_one(self, launched: dict[str, Any]) -> None:
        meddler = Meddler(lambda: self.kill(launched["out"]), 2)
        run = measured(configure(**launched, concurrency=[1, 2, 3, 4]), meddler)
        cells = run.cells.set_index("concurrency")
        assert list(cells.valid) == [True, False, True, True], list(cells.reasons)
        assert "the server died with exit status -9" in cells.reasons[2]
        assert list(cells.session) == [1, 1, 2, 2]
        first, second = run.manifest.servers
        assert first.pid != second.pid
        assert run.manifest.failures == ()
        told = [warning for warning in run.analysis.warnings if "launched again" in warning]
        assert len(told) == 1
        assert told[0].startswith("session 2: bf16, repeat 1: the server died with exit status -9")
        assert told[0][len("session 2: ") :] in meddler.said

    def test_one_that_dies_every_time_is_given_up(self, launched: dict[str, Any]) -> None:
        meddler = Meddler(lambda: self.kill(launched["out"]), 1, 2, 3, 4, 5)
        run = measured(configure(**launched, concurrency=[1, 2, 3, 4, 5]), meddler)
        assert list(run.cells.concurrency) == [1, 2, 3], "one cell a launch"
        assert not run.cells.valid.any()
        assert len(run.manifest.servers) == 1 + RELAUNCHES
        (failure,) = run.manifest.failures
        assert "it was launched 3 times, 2 cells are not measured" in failure.error
        assert any("2 of 5 planned cells were not measured" in warning for warning in run.analysis.warnings)

    @pytest.mark.slow
    def test_power_of_a_fresh_one_is_kept_apart(self, tmp_path: Path) -> None:
        """Simulated servers bring their power: the counter begins again with the server."""
        out = tmp_path / "run"
        config = configure(**BRIEF | {"power": "simulated"}, concurrency=[1, 2], out=out)
        run = measured(msgspec.structs.replace(config, targets=config.targets[:1]), Meddler(lambda: self.kill(out), 1))
        cells = run.cells.set_index("concurrency")
        assert not cells.valid[1]
        assert "energy" not in cells.reasons[2]
        assert cells.energy_j[2] > 0
        assert [block.session for block in run.manifest.power_blocks] == [1, 2]


class TestServersElsewhere:
    def test_one_that_goes_away_costs_its_own_cells(self, server: FaultServer, tmp_path: Path) -> None:
        with FaultServer() as other:
            targets = [f"gone:fp16={other.url}/a", f"there:fp16={server.url}/there"]
            config = configure(**BRIEF, targets=targets, concurrency=[BATCH, BATCH - 1], out=tmp_path / "run")
            run = measured(config, Meddler(other.close, BATCH))
        cells = run.cells.set_index(["target", "concurrency"])
        assert cells.valid["there", BATCH], "the server says that it runs BATCH, whatever is asked"
        for b in (BATCH, BATCH - 1):
            assert "failures in a row, the last: connect: 127.0.0.1:" in cells.reasons["gone", b]
        rows = run.requests[run.requests.target == "gone"]
        assert set(rows.status) == {"ok", "broken", "connect"}

    def test_a_name_that_nobody_knows(self, tmp_path: Path) -> None:
        config = configure(**BRIEF, targets=["fp16=http://no-such-host.invalid:1"], out=tmp_path / "run")
        with pytest.raises(UsageError, match=r"does not answer \(.*\); start the server or check the URL"):
            run_sweep(config)
        assert not (tmp_path / "run").exists()

    def test_a_certificate_that_nobody_vouches_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
        with FaultServer(ssl=context) as server:
            config = configure(**BRIEF, targets=[f"fp16={server.url}/tls"], concurrency=[BATCH], out=tmp_path / "run")
            with pytest.raises(UsageError, match=r"CERTIFICATE_VERIFY_FAILED.*SSL_CERT_FILE"):
                run_sweep(config)
            monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "certificate.pem"))
            run = measured(config)
        check_figures(run)

    def test_a_proxy_of_the_environment_is_not_asked(
        self, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, "http://me:sk-canary@127.0.0.1:9")
            monkeypatch.setenv(name.upper(), "http://me:sk-canary@127.0.0.1:9")
        targets = [f"fp16={server.url}/proxy"]
        check_figures(measured(configure(**BRIEF, targets=targets, concurrency=[BATCH], out=tmp_path / "run")))
        assert proxies_passed_by(["http://127.0.0.1:1"]) == []
        assert proxies_passed_by(["http://gpu-host:1", "https://gpu-host"]) == ["http://me:sk-canary@127.0.0.1:9"]
        monkeypatch.setenv("no_proxy", "gpu-host")
        assert proxies_passed_by(["http://gpu-host:1"]) == []


def check_figures(run: Run) -> None:
    (cell,) = run.cells.to_dict("records")
    assert cell["valid"], cell["reasons"]
    assert cell["output_tokens_mean"] == TOKENS
    assert cell["server_tokens"] == cell["recorded_tokens"]
    assert not cell["ttft_ms_p50"] < TTFT_S * 1e3
    assert cell["tokens_per_s"] <= BATCH / ITL_S


@pytest.fixture(scope="module")
def stepping(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library that sets the wall clock of the process that loads it."""
    library = tmp_path_factory.mktemp("clock") / "step.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    source = TESTS / "clock_stub" / "step.c"
    subprocess.run([compiler(), *flags, "-o", library, source, "-ldl"], check=True)
    return str(library)


@pytest.mark.parametrize("step_s", [-3600, 7200])
def test_the_wall_clock_is_set_in_a_cell(server: FaultServer, stepping: str, tmp_path: Path, step_s: int) -> None:
    """Figures are those of the monotonic clock, and the run says what happened."""
    out, now = tmp_path / "run", tmp_path / "now"
    argv = ["--target", f"fp16={server.url}/clock{step_s}", "--concurrency", str(BATCH), *ARGUMENTS, "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "sweep", *argv, "--power", "none"],
        env={**os.environ, "LD_PRELOAD": stepping, "CLOCK_STEP_S": str(step_s), "CLOCK_STEP_FILE": str(now)},
    )
    journal = out / "journal" / f"001-fp16-b{BATCH}-r1.jsonl"
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 2 * BATCH, process)
    now.touch()
    assert process.wait(DEADLINE_S) in (0, 1)
    run = analysed(out)
    check_figures(run)
    assert run.cells.window_s[0] == pytest.approx(BRIEF["duration"])
    assert (run.requests.t_end_ns > run.requests.t_send_ns).all()
    (told,) = [warning for warning in run.analysis.warnings if "wall clock" in warning]
    assert f"the wall clock was set by {step_s:+d}.0 s" in told


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of its own in memory; yields a function that mounts it anew with other options."""
    mount = program("mount")
    folder.mkdir()
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        assert os.environ.get("CI") != "true", f"CI must be able to mount file systems: {mounted.stderr.decode()}"
        pytest.skip("without the right to mount")
    try:
        yield lambda options: subprocess.run([mount, "-o", f"remount,{options}", folder], check=True) and None
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


class TestDisk:
    def test_a_full_disk_stops_the_run_keeps_what_was_measured_and_it_can_be_resumed(
        self, server: FaultServer, tmp_path: Path
    ) -> None:
        """The second target's first answer is larger than what is left."""
        with small_disk(tmp_path / "disk", "320k") as remount:
            out = tmp_path / "disk" / "run"
            targets = [f"small:fp16={server.url}/small", f"large:fp16={server.url}/giant-line~disk"]
            sweep = ["sweep", *(f"--target={target}" for target in targets), f"--concurrency={BATCH}", *ARGUMENTS]
            done = command(*sweep, "--out", str(out), "--power", "none")
            said = one_sentence(done)
            assert done.returncode == 1
            assert said.startswith(f"loadgen: {out} can no longer be written (No space left on device)")
            assert f"loadgen sweep --resume {out}" in said
            kept = (out / "journal" / f"001-small-b{BATCH}-r1.jsonl").read_bytes()
            reported = command("report", str(out))
            assert reported.returncode == 1
            assert "No space left on device" in one_sentence(reported)
            remount("size=50m")
            resumed = command("sweep", "--resume", str(out), "--quiet")
            assert "Traceback" not in resumed.stderr
            assert (out / "journal" / f"001-small-b{BATCH}-r1.jsonl").read_bytes() == kept
            run = analysed(out)
            assert run.cells.valid[0], run.cells.reasons[0]
            assert run.cells.window_s.notna().all()
            assert (run.requests.status == "ok").all()
            assert "unfinished" not in resumed.stderr

    def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(
        self, server: FaultServer, tmp_path: Path
    ) -> None:
        with small_disk(tmp_path / "disk", "1m") as remount:
            (tmp_path / "disk" / "empty").mkdir()
            remount("ro")
            for out in (tmp_path / "disk" / "new", tmp_path / "disk" / "empty"):
                done = command("sweep", "--target", f"fp16={server.url}/ro", *ARGUMENTS, "--out", str(out))
                assert done.returncode == 2
                assert f"--out {out}: cannot be written (Read-only file system)" in one_sentence(done)
        asked = [name for name, heads in server.seen.items() if any(b"POST" in head for head in heads)]
        assert "ro" not in asked

    def test_a_report_into_a_folder_that_cannot_be_written(self, server: FaultServer, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "50m") as remount:
            out = tmp_path / "disk" / "run"
            run_sweep(configure(**BRIEF, targets=[f"fp16={server.url}/rep"], concurrency=[BATCH], out=out))
            remount("ro")
            done = command("report", str(out))
            assert done.returncode == 1
            assert "Read-only file system" in one_sentence(done)


class TestPower:
    @pytest.mark.slow
    def test_an_exporter_that_goes_away_costs_energy_alone(self, server: FaultServer, tmp_path: Path) -> None:
        """It dies in the first of two repeats; the other is measured without."""
        port = free_port()
        argv = [sys.executable, "-m", "loadgen", "simulate", "--precision", "fp16", "--port", str(port)]
        exporter = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        try:
            assert exporter.stdout is not None
            assert "ready" in exporter.stdout.readline()
            options = BRIEF | {"power": f"exporter=http://127.0.0.1:{port}/power", "repeats": 2}
            targets = [f"fp16={server.url}/power"]
            config = configure(**options, targets=targets, concurrency=[BATCH], out=tmp_path / "run")
            meddler = Meddler(exporter.kill, BATCH)
            run = measured(config, meddler)
        finally:
            exporter.kill()
            exporter.wait()
            exporter.stdout.close()
        first, second = run.cells.to_dict("records")
        assert first["valid"], first["reasons"]
        assert first["energy_valid"] is False
        assert first["energy_reasons"]
        assert second["valid"], second["reasons"]
        assert run.cells.energy_j.isna().all()
        assert run.cells.tokens_per_s.notna().all()
        assert any("power is not measured: no power exporter answers" in sentence for sentence in meddler.said)
        assert any("power is not measured" in warning for warning in run.analysis.warnings)
