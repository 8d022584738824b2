"""ServerProcess: one launched server from start to the last of its memory given back.

GPU memory in use, to see that a stopped server gave its share back.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from loadgen.errors import ServerError, UsageError
from loadgen.folder import Folder
from loadgen.processgroup import ProcessGroup, exit_words
from loadgen.secret import Mask, secrets_of, without_secrets
from loadgen.serving.checkpoint import (
    checkpoint_identity,
    downloaded_bytes,
    held_by,
    hub_token,
    local_config,
    remarks,
    token_variables,
)
from loadgen.serving.facts import ServerFacts, get, kv_cache_bytes, metric_names, model_bytes, read_models, read_version
from loadgen.serving.launch import WAITING, Launch, engine_settings, named_errors, option, plain, remedy, workers_of
from loadgen.serving.quantization import Quantization


def used_bytes() -> int | None:
    """Bytes in use on all GPUs that NVML sees, by anyone; None without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    try:
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return sum(int(pynvml.nvmlDeviceGetMemoryInfo(device).used) for device in devices)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


START_TIMEOUT_S = 900.0
GROWTH_POLL_S = 1.0
LAST_WORDS = 15
GPU_SLACK_BYTES = 256 * 2**20
GPU_PATIENCE_S = 60.0
PORT_PATIENCE_S = 30.0
EAGER = (
    "it runs eagerly (enforce_eager=True), without torch.compile and CUDA graphs: slower than a server in production, "
    "most at small B",
)
KV_CACHE_DTYPES = {"float8": "fp8", "float4": "nvfp4"}
"""How vLLM calls what a checkpoint's scheme asks for."""


class ServerProcess:
    """A server that runs in its own session, so that the terminal's Ctrl-C reaches loadgen alone, which then stops it.

    Blocking; a context manager that stops on the way out. It does not outlive loadgen, even when loadgen is killed.
    """

    def __init__(self, launch: Launch, log_path: Path) -> None:
        """Start the server; its output is appended to `log_path`, masked, in a folder for this user alone.

        Raises UsageError when the port is taken or the command cannot be executed; then nothing was started.
        """
        if not port_is_free(launch.host, launch.port):
            raise UsageError(
                f"port {launch.port} on {launch.host} is already in use; stop what is listening, or choose another port"
            )
        self.launch = launch
        self.log_path = log_path
        self._mask = Mask(*secrets_of(launch.argv, launch.env), hub_token() if launch.needs_secrets else None)
        self._gpu_bytes_before = used_bytes() if launch.device == "cuda" and not launch.simulated else None
        self._ready_ns: int | None = None
        self._started_ns = time.monotonic_ns()
        log_path.parent.parent.mkdir(parents=True, exist_ok=True)
        Folder(log_path.parent.parent).make(log_path.parent.name, mode=0o700)
        mask_log(log_path, self._mask)
        self.log_offset = log_path.stat().st_size if log_path.exists() else 0
        try:
            self._group = ProcessGroup(launch.argv, self._environment(), log_path, self._mask.secrets)
        except OSError as error:
            raise UsageError(f"cannot run {launch.argv[0]}: {error.strerror}; give the path of a command") from error
        self._stopped = False
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        return self._group.leader.pid

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while the server runs."""
        return self._group.poll()

    def wait_ready(self, deadline_s: float = START_TIMEOUT_S) -> None:
        """Return when GET /health answers 200.

        Raises ServerError as soon as the server ends, or when its log and the cache of downloads have not grown for
        `deadline_s` seconds.
        """
        patience = self.patience(deadline_s)
        while True:
            self.check_alive()
            if self.is_ready():
                return
            patience.check()
            time.sleep(0.1)

    def patience(self, deadline_s: float = START_TIMEOUT_S) -> Patience:
        """How long this server's start is waited for."""
        return Patience(self, deadline_s)

    def is_ready(self) -> bool:
        """Whether GET /health answers 200 now."""
        healthy = self._get("/health") is not None
        if healthy and self._ready_ns is None:
            self._ready_ns = time.monotonic_ns()
        return healthy

    def _get(self, path: str) -> bytes | None:
        return get(f"{self.launch.url}{path}", self.launch.api_key)

    def check_alive(self) -> None:
        """Raises ServerError, with the last words, when the server has ended."""
        status = self.poll()
        if status is not None:
            when = "before it was ready" if self._ready_ns is None else "while it served"
            raise ServerError(self.report(f"ended with {exit_words(status)} {when}"))

    def verify(self) -> None:
        """Raises ServerError when the log lacks a line that the recipe says it must show."""
        log = self.log()
        for pattern in self.launch.expect:
            if not re.search(pattern, log):
                raise ServerError(
                    f"server {self.launch.name!r} does not run what its recipe says: nothing in its log matches "
                    f"{pattern!r}; see {self.log_path}"
                )

    def facts(self) -> ServerFacts:
        """What the server says about itself now; what it does not answer is None or empty."""
        served = next(iter(read_models(self._get("/v1/models") or b"") or []), None)
        exposition = self._get("/metrics") or b""
        log, checkpoint = self.log(), self.launch.checkpoint
        settings = engine_settings(log)
        workers = settings.workers or workers_of(self.launch.argv)
        held = held_by(checkpoint) if checkpoint else None
        on_gpu = self.launch.device == "cuda" and not self.launch.simulated
        kv_cache_dtype = self._kv_cache_dtype(settings.kv_cache_dtype, held)
        return ServerFacts(
            name=self.launch.name,
            precision=self.launch.precision,
            argv=self._mask.argv(self.launch.argv),
            env=self._mask.env(self.launch.env),
            pid=self.pid,
            version=read_version(self._get("/version") or b""),
            model=served.id if served else None,
            checkpoint_identity=checkpoint_identity(checkpoint) if checkpoint else None,
            quantization=self._quantization(held),
            kv_cache_dtype=kv_cache_dtype,
            eager=settings.eager,
            graph_sizes=settings.graph_sizes,
            workers=workers,
            remarks=(*remarks(held, kv_cache_dtype), *(EAGER if settings.eager and on_gpu else ())),
            note=self.launch.note,
            max_model_len=served.max_model_len if served else None,
            kernels=self.kernels(),
            model_bytes=model_bytes(log, workers),
            kv_cache_bytes=kv_cache_bytes(log, workers),
            metric_names=metric_names(exposition.decode("utf-8", "replace")),
            started_ns=self._started_ns,
            ready_ns=self._ready_ns,
        )

    def _kv_cache_dtype(self, logged: str | None, held: Quantization | None) -> str | None:
        """vLLM turns `auto` into what the checkpoint asks for, else the activation dtype, after it has logged it."""
        for named in (logged, option(self.launch.argv, "--kv-cache-dtype")):
            if named not in (None, "auto"):
                return named
        if held is not None and held.kv_cache is not None:
            return KV_CACHE_DTYPES.get(held.kv_cache, held.kv_cache)
        return self.launch.dtype

    def _quantization(self, held: Quantization | None) -> str | None:
        if self.launch.in_flight:
            return f"{option(self.launch.argv, '--quantization') or self.launch.precision}, quantized while loading"
        if held is None and (self.launch.checkpoint is None or local_config(self.launch.checkpoint) is None):
            return None
        return str(held or "16-bit")

    def kernels(self) -> tuple[str, ...]:
        """What the recipe's `kernel` pattern captures in the log, each once."""
        if self.launch.kernel is None:
            return ()
        return tuple(dict.fromkeys(found[1] for found in re.finditer(self.launch.kernel, self.log())))

    def log(self) -> str:
        """What this server has written so far, in whole lines, without colours and secrets."""
        self._group.flush()
        with self.log_path.open("rb") as file:
            file.seek(self.log_offset)
            return plain(file.read().decode("utf-8", "replace"))

    def last_words(self, lines: int = LAST_WORDS) -> str:
        """The end of the log, led by the last error named before it: vLLM's echoes of an error come after its cause."""
        written = [line for line in self.log().splitlines() if line.strip()]
        earlier, end = written[:-lines], written[-lines:]
        causes = named_errors(earlier)
        return "\n".join([*causes[-1:], *(["..."] if causes else []), *end])

    def stop(self, *, interrupt_s: float = 20.0, terminate_s: float = 10.0) -> list[str]:
        """End the server and everything it started; return warnings about what it did not give back.

        Waits until no process of its session is left, the port can be bound and, on CUDA, GPU memory is back.
        """
        if self._stopped:
            return []
        ended = self._group.end(interrupt_s=interrupt_s, terminate_s=terminate_s)
        self._stopped = True
        atexit.unregister(self.stop)
        warnings = [] if ended else [f"server {self.launch.name!r} left processes that even SIGKILL did not end"]
        if not _within(PORT_PATIENCE_S, lambda: port_is_free(self.launch.host, self.launch.port)):
            warnings.append(f"port {self.launch.port} is still in use after server {self.launch.name!r} was stopped")
        if not _within(GPU_PATIENCE_S, self._gpu_is_free):
            warnings.append(f"GPU memory is not back to its former level after server {self.launch.name!r} was stopped")
        return warnings

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _environment(self) -> dict[str, str]:
        """The command's own folder leads PATH: vLLM calls tools (ninja) that are installed beside it."""
        outside = os.environ if self.launch.needs_secrets else without_secrets(os.environ)
        environment = {**outside, **(token_variables() if self.launch.needs_secrets else {}), **self.launch.env}
        if not environment.get("VLLM_PORT", "0").isdigit():
            del environment["VLLM_PORT"]  # Kubernetes sets it to a URI, for any service that is named vllm
        folder = os.path.dirname(self.launch.argv[0])  # noqa: PTH120
        if folder:
            environment["PATH"] = os.pathsep.join([folder, environment.get("PATH", os.defpath)])
        return environment

    def _gpu_is_free(self) -> bool:
        if self._gpu_bytes_before is None:
            return True
        now = used_bytes()
        return now is None or now <= self._gpu_bytes_before + GPU_SLACK_BYTES

    def report(self, what: str) -> str:
        """What happened to the server, what to do about it where that is known, and the end of its log."""
        words = self.last_words() or "(it wrote nothing)"
        if (cure := remedy(self.log())) and self._ready_ns is None:
            what = f"{what}: {cure}"
        elif self.poll() == -signal.SIGKILL:
            what = f"{what} (where nobody killed it, the machine's memory was full: see `dmesg`, use a smaller model)"
        return f"server {self.launch.name!r} {what}; its log is {self.log_path} and ends:\n{words}"


class Patience:
    """The clock of a start: it stands still while the server's log or its downloads grow."""

    def __init__(self, server: ServerProcess, deadline_s: float) -> None:
        self._server = server
        self._timeout_s = deadline_s
        self._seen: tuple[int, int] | None = None
        self._looked = self._grew = time.monotonic()

    def check(self) -> None:
        """Raises ServerError when nothing has grown for as long as a start may take."""
        now = time.monotonic()
        if self._seen is None or now - self._looked >= min(GROWTH_POLL_S, self._timeout_s / 2):
            self._looked = now
            size = self._size()
            if size != self._seen:
                self._seen, self._grew = size, now
        if now - self._grew >= self._timeout_s:
            raise ServerError(
                self._server.report(
                    f"was not ready after {self._timeout_s:g} s in which neither its log nor its downloads grew; raise "
                    "--start-timeout if it needs longer"
                )
            )

    def _size(self) -> tuple[int, int]:
        """Lines of the log that do not just say that it waits, and bytes of the checkpoint in the hub's cache."""
        lines = sum(1 for line in self._server.log().splitlines() if line.strip() and not WAITING.search(line))
        checkpoint = self._server.launch.checkpoint
        return lines, downloaded_bytes(checkpoint) if checkpoint else 0


def mask_log(path: Path, mask: Mask) -> None:
    """A log that an earlier version left, or that was put there, has no secrets and is for this user alone."""
    folder, name = Folder(path.parent.parent), f"{path.parent.name}/{path.name}"
    if not folder.has(name):
        return
    with folder.open(name) as log, folder.replacing(name, mode=0o600) as masked:
        for line in log:
            masked.write(mask(line.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape"))


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on now; the system chooses it."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _within(patience_s: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True
