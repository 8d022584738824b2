"""A planted key: in no file of a run, on no terminal, and in no process of loadgen's but the server that needs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.font_manager  # it makes its list of fonts here, and no sweep has to
import pytest
from conftest import KNOWN_SERVER, START_DEADLINE_S

from loadgen.errors import UsageError
from loadgen.measure.run import resume_sweep
from loadgen.serving.process import free_port, port_is_free

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
KEY = "planted/key+of=this-test"
HUB_TOKEN = "planted-token-of-the-hub"
LOG_LINES = (
    "dtype=torch.bfloat16, quantization=None, kv_cache_dtype=auto,",
    "enable_prefix_caching=False, enable_chunked_prefill=True,",
)
SWEEP = (
    "sweep", "--dataset", "sample", "--concurrency", "2", "--repeats", "1", "--duration", "0.5", "--warmup", "0.1",
    "--power", "none", "--out", "run",
)  # fmt: skip


@dataclass
class Place:
    """Folders of one test's own, and a vLLM that prints all it knows of keys and then asks every client for one."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        self.environment = {
            "PATH": path, "HOME": str(self.folder / "home"), "XDG_STATE_HOME": str(self.folder / "state"),
            "PYTHONPATH": str(KNOWN_SERVER.parents[1]), "MPLCONFIGDIR": matplotlib.get_configdir(),
        }  # fmt: skip
        (self.folder / "model").mkdir()
        (self.folder / "model" / "config.json").write_text('{"model_type": "llama"}')
        (self.folder / "vllm").write_text(
            f"#!{sys.executable}\nimport json, os, sys\n"
            f"for line in {LOG_LINES!r}:\n    print(line)\n"
            "keys = [sys.argv[at + 1] for at, word in enumerate(sys.argv) if word == '--api-key']\n"
            "keys += [os.environ.get('VLLM_API_KEY', '')]\n"
            "print('non-default args:', {'api_key': keys}, sys.argv, json.dumps(keys))\n"
            "print('\\n'.join(f'{name}={value}' for name, value in os.environ.items()), flush=True)\n"
            "port = sys.argv[sys.argv.index('--port') + 1]\n"
            f"known = [{sys.executable!r}, {str(KNOWN_SERVER)!r}, '--port', port, '--ttft-ms', '20', '--itl-ms', '5']\n"
            "os.environ['VLLM_API_KEY'] = keys[0]\n"
            "os.execv(known[0], [*known, '--tokens', '8'])\n"
        )
        (self.folder / "vllm").chmod(0o755)

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    def start(self, arguments: Sequence[str], secrets: Mapping[str, str]) -> subprocess.Popen[str]:
        """The command in this folder; what it says is in the file `said` there."""
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "loadgen", *arguments], env={**self.environment, **secrets}, cwd=self.folder,
                stdout=said, stderr=said, text=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    @property
    def answers(self) -> int:
        """Rows of the run that are answers: the key was sent."""
        return sum(path.read_text().count('"status":"ok"') for path in self.folder.glob("run/journal/*.jsonl"))

    def files_with(self, *secrets: str) -> list[Path]:
        """Files below this folder that hold one of them."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return [path for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def children_of(loadgen: subprocess.Popen[str]) -> Iterator[tuple[str, bytes]]:
    """Command line and environment of all that it started, now; not of itself, nor of its copies (`fork`)."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {loadgen.pid}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    own = _read(loadgen.pid, "cmdline")
    for pid in family - {loadgen.pid}:
        command, environment = _read(pid, "cmdline"), _read(pid, "environ")
        if command != own and command == _read(pid, "cmdline"):
            yield command.replace(b"\0", b" ").decode(), environment


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def watched(loadgen: subprocess.Popen[str], *secrets: str) -> tuple[set[str], set[str]]:
    """The commands of its children until it ends, and those of them whose command line or environment has a secret."""
    seen, having = set(), set()
    while loadgen.poll() is None:
        for command, environment in children_of(loadgen):
            seen.add(command)
            if any(secret in command or secret.encode() in environment for secret in secrets):
                having.add(command)
        time.sleep(0.1)
    return seen, having


@pytest.mark.slow
def test_a_launched_server_has_the_key_and_nobody_else(place: Place) -> None:
    command = [*SWEEP, "--serve", "bf16", "--device", "cpu", "--model", place.model, "--vllm", "vllm"]
    sweep = place.start(command, {"VLLM_API_KEY": KEY, "HF_TOKEN": HUB_TOKEN})
    seen, having = watched(sweep, KEY, HUB_TOKEN)
    assert sweep.returncode in (0, 1), place.said
    assert place.answers > 0
    assert having and all("vllm" in command or KNOWN_SERVER.name in command for command in having)
    assert any("guardian.py" in command for command in seen - having), "the guardian was seen"
    assert place.files_with(KEY, HUB_TOKEN) == []
    log = place.folder / "run" / "servers" / "bf16-r1.log"
    assert "VLLM_API_KEY=***" in log.read_text()
    assert (log.stat().st_mode & 0o777, log.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.slow
def test_running_servers_get_the_key_from_every_worker_and_no_process_inherits_it(place: Place) -> None:
    port = str(free_port())
    known = subprocess.Popen([str(place.folder / "vllm"), "--port", port], env={**os.environ, "VLLM_API_KEY": KEY},
                             stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        command = [*SWEEP, "--target", f"fp16=http://127.0.0.1:{port}", "--workers", "2",
                   "--api-key-env", "MINE", "--wait-ready", "30"]  # fmt: skip
        sweep = place.start(command, {"MINE": KEY, "COPY": f"Bearer {KEY}", "HF_TOKEN": HUB_TOKEN})
        seen, having = watched(sweep, KEY, HUB_TOKEN)
    finally:
        known.terminate()
        known.wait()
    assert sweep.returncode in (0, 1), place.said
    assert any("loadgen.load.worker" in command for command in seen)
    assert having == set()
    assert place.files_with(KEY, HUB_TOKEN) == []
    assert place.answers > 0


@pytest.mark.slow
def test_simulated_servers_inherit_nothing_and_a_resume_masks_what_an_older_run_left(place: Place) -> None:
    sweep = place.start([*SWEEP, "--max-tokens", "16"], {"VLLM_API_KEY": KEY, "HF_TOKEN": HUB_TOKEN})
    seen, having = watched(sweep, KEY, HUB_TOKEN)
    assert sweep.returncode in (0, 1), place.said
    assert any("loadgen simulate" in command for command in seen)
    assert having == set()
    log = place.folder / "run" / "servers" / "old.log"
    log.write_text(f"non-default args: {{'api_key': ['{KEY}']}}\n")
    log.chmod(0o644)
    resume_sweep(place.folder / "run")
    assert log.read_text() == "non-default args: {'api_key': ['***']}\n"
    assert log.stat().st_mode & 0o777 == 0o600
    assert place.files_with(KEY, HUB_TOKEN) == []
    log.unlink()
    log.symlink_to(place.folder / "vllm")
    with pytest.raises(UsageError, match=r"old\.log"):
        resume_sweep(place.folder / "run")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_served_key_is_in_no_log_whatever_ends_loadgen(place: Place, number: int) -> None:
    port = str(free_port())
    arguments = ["--device", "cpu", "--model", place.model, "--vllm", "vllm", "--port", port, "--", "--api-key", KEY]
    serve = place.start(["serve", "bf16", *arguments], {})
    try:
        while "is ready at" not in place.said:
            assert serve.poll() is None, place.said
            time.sleep(0.05)
        having = [command for command, environment in children_of(serve) if KEY.encode() in environment]
        assert [KNOWN_SERVER.name in command for command in having] == [True], "the server"
        assert not any(KEY in command for command, _ in children_of(serve))
    finally:
        serve.send_signal(number)
        serve.wait()
    (log,) = place.folder.rglob("serve-bf16-*.log")
    deadline_s = time.monotonic() + START_DEADLINE_S
    while not port_is_free("127.0.0.1", int(port)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert "'api_key': ['***']" in log.read_text()
    assert place.files_with(KEY) == []
    assert (log.stat().st_mode & 0o777, log.parent.stat().st_mode & 0o777) == (0o600, 0o700)
