"""ServerProcess: one launched server, from its start until its port and GPU memory are free again."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from loadgen.errors import ServerError, UsageError
from loadgen.folder import Folder
from loadgen.processgroup import ProcessGroup, exit_words
from loadgen.record.manifest import ServerFacts
from loadgen.secret import Mask, secrets_of, without_secrets
from loadgen.serving.checkpoint import (
    checkpoint_identity,
    downloaded_bytes,
    hub_token,
    local_config,
    local_quantization,
    quantize_record,
    remarks,
    token_variables,
)
from loadgen.serving.facts import get, kv_cache, kv_cache_bytes, metric_names, model_bytes, read_models, read_version
from loadgen.serving.launch import (
    CONTAINER,
    WAITING,
    Launch,
    engine_settings,
    named_errors,
    option,
    plain,
    remedy,
    workers_of,
)
from loadgen.serving.quantization import Quantization


def used_bytes() -> int | None:
    """Bytes in use on all GPUs that NVML sees, by any process; None without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
        with contextlib.ExitStack() as stack:
            stack.callback(pynvml.nvmlShutdown)
            devices = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
            return sum(int(pynvml.nvmlDeviceGetMemoryInfo(device).used) for device in devices)
    except Exception:
        return None


GROWTH_POLL_S = 1.0
LAST_LINES = 15
GPU_SLACK_BYTES = 256 * 2**20
GPU_PATIENCE_S = 60.0
PORT_PATIENCE_S = 30.0
CONTAINER_LOG_S = 5.0
EAGER = (
    "it runs eagerly (enforce_eager=True), without torch.compile and CUDA graphs: slower than a server in production, "
    "most at small B"
)
KV_CACHE_DTYPES = {"float8": "fp8", "float4": "nvfp4"}
"""vLLM's names of the dtypes that a checkpoint's scheme asks for."""


def emulation(kernels: Sequence[str], emulating: str | None) -> tuple[str, ...]:
    """A sentence where kernels that do not compute in the recipe's format were selected, by their names."""
    found = [kernel for kernel in kernels if emulating is not None and re.search(emulating, kernel)]
    if not found:
        return ()
    return (
        f"{', '.join(found)} unpacks the weights and computes in 16 bits: the memory is the format's, the speed is not "
        "that of a GPU with units for it",
    )


class ServerProcess(contextlib.AbstractContextManager["ServerProcess"]):
    """A server in its own session: the terminal's Ctrl-C reaches only loadgen, which then stops the server.

    Blocking; a context manager that stops it on exit. It does not outlive loadgen, even when loadgen is killed.
    """

    def __init__(self, launch: Launch, log_path: Path) -> None:
        """Start the server; its output is appended to `log_path`, masked, in a folder that only this user can read.

        Raises UsageError, and starts nothing, when the port is taken or the command cannot be executed.
        """
        if not port_is_free(launch.host, launch.port):
            taken = f"port {launch.port} on {launch.host} is already in use"
            raise UsageError(f"{taken}; stop what is listening on it, or choose another port")
        self.launch = launch
        self.log_path = log_path
        self._mask = Mask(*secrets_of(launch.argv, launch.env), hub_token() if launch.needs_secrets else None)
        self._gpu_bytes_before = used_bytes() if launch.device == "cuda" and not launch.simulated else None
        self._ready_ns: int | None = None
        self._started_ns = time.monotonic_ns()
        self._stopped = False
        log_path.parent.parent.mkdir(parents=True, exist_ok=True)
        Folder(log_path.parent.parent).make(log_path.parent.name, mode=0o700)
        mask_log(log_path, self._mask)
        self.log_offset = log_path.stat().st_size if log_path.exists() else 0
        try:
            self._group = ProcessGroup(launch.started, self._environment(), log_path, self._mask.secrets)
        except OSError as error:
            raise UsageError(f"cannot run {launch.started[0]}: {error.strerror}; give the path of a command") from error
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        return self._group.leader.pid

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while the server runs."""
        return self._group.poll()

    def wait_ready(self, deadline_s: float) -> None:
        """Return when GET /health answers 200.

        Raises ServerError as soon as the server ends, or when neither its log nor its downloads have grown for
        `deadline_s` seconds.
        """
        patience = Patience(self, deadline_s)
        while True:
            self.check_alive()
            if self.is_ready():
                return
            patience.check()
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """Whether GET /health answers 200 now."""
        healthy = self._get("/health") is not None
        if healthy:
            self._ready_ns = self._ready_ns or time.monotonic_ns()
        return healthy

    def _get(self, path: str) -> bytes | None:
        return get(f"{self.launch.url}{path}", self.launch.api_key)

    def check_alive(self) -> None:
        """Raises ServerError, with the end of the log, when the server has ended."""
        if (status := self.poll()) is not None:
            when = "before it was ready" if self._ready_ns is None else "while it served"
            raise ServerError(self.report(f"ended with {exit_words(status)} {when}"))

    def verify(self) -> None:
        """Raises ServerError when the log lacks a line that the recipe expects. A container's log may come later than
        its first answer."""
        give_up = time.monotonic() + (CONTAINER_LOG_S if self.launch.runner else 0.0)
        while missing := [pattern for pattern in self.launch.expect if not re.search(pattern, self.log())]:
            if time.monotonic() >= give_up:
                raise ServerError(
                    f"server {self.launch.name!r} does not run what its recipe says: nothing in its log matches "
                    f"{missing[0]!r}; see {self.log_path}"
                )
            time.sleep(0.1)

    def facts(self) -> ServerFacts:
        """What the server reports about itself now; what it does not answer is None or empty."""
        served = next(iter(read_models(self._get("/v1/models") or b"") or []), None)
        exposition = (self._get("/metrics") or b"").decode("utf-8", "replace")
        log, checkpoint = self.log(), self.launch.checkpoint
        settings = engine_settings(log)
        workers = settings.workers or workers_of(self.launch.argv)
        held = local_quantization(checkpoint) if checkpoint else None
        on_gpu = self.launch.device == "cuda" and not self.launch.simulated
        kv_cache_dtype = self._kv_cache_dtype(settings.kv_cache_dtype, held)
        return ServerFacts(
            name=self.launch.name,
            precision=self.launch.precision,
            argv=self._mask.argv(self.launch.argv),
            env=self._mask.env(self.launch.env),
            pid=int(found[-1]) if (found := CONTAINER.findall(log)) else self.pid,
            version=read_version(self._get("/version") or b""),
            model=served.id if served else None,
            checkpoint_identity=checkpoint_identity(checkpoint) if checkpoint else None,
            quantized=quantize_record(checkpoint) if checkpoint else None,
            quantization=self._quantization(held),
            kv_cache_dtype=kv_cache_dtype,
            eager=settings.eager,
            graph_sizes=settings.graph_sizes,
            workers=workers,
            remarks=(
                *remarks(held, kv_cache_dtype),
                *([EAGER] if settings.eager and on_gpu else []),
                *emulation(self.kernels(), self.launch.emulating),
            ),
            note=self.launch.note,
            max_model_len=served.max_model_len if served else None,
            kernels=self.kernels(),
            model_bytes=model_bytes(log, workers),
            kv_cache_bytes=kv_cache_bytes(log, workers),
            kv_cache=kv_cache(exposition, log),
            metric_names=metric_names(exposition),
            started_ns=self._started_ns,
            ready_ns=self._ready_ns,
        )

    def _kv_cache_dtype(self, logged: str | None, held: Quantization | None) -> str | None:
        """vLLM logs `auto` before it replaces it: by what the checkpoint asks for, else by the activation dtype."""
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
        """The distinct captures of the recipe's `kernel` pattern in the log, in order."""
        found = re.finditer(self.launch.kernel, self.log()) if self.launch.kernel else ()
        return tuple(dict.fromkeys(match[1] for match in found))

    def log(self) -> str:
        """The server's output so far, in whole lines, without colours and secrets."""
        self._group.flush()
        with self.log_path.open("rb") as file:
            file.seek(self.log_offset)
            return plain(file.read().decode("utf-8", "replace"))

    def stop(self, *, interrupt_s: float = 20.0, terminate_s: float = 10.0) -> list[str]:
        """End the server and everything it started; return warnings about what is still in use.

        Waits until no process of its session is left, its port is free and, on CUDA, its GPU memory too.
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

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _environment(self) -> dict[str, str]:
        """The command's own folder comes first in PATH: vLLM calls tools (ninja) that are installed beside it."""
        if self.launch.runner:
            return dict(os.environ)
        outside = os.environ if self.launch.needs_secrets else without_secrets(os.environ)
        environment = {**outside, **(token_variables() if self.launch.needs_secrets else {}), **self.launch.env}
        if not environment.get("VLLM_PORT", "0").isdigit():
            del environment["VLLM_PORT"]  # Kubernetes sets it to a URI, for any service that is named vllm
        if folder := os.path.dirname(self.launch.argv[0]):  # noqa: PTH120
            environment["PATH"] = os.pathsep.join([folder, environment.get("PATH", os.defpath)])
        return environment

    def _gpu_is_free(self) -> bool:
        if self._gpu_bytes_before is None:
            return True
        now = used_bytes()
        return now is None or now <= self._gpu_bytes_before + GPU_SLACK_BYTES

    def report(self, what: str) -> str:
        """What happened to the server, what to do about it if that is known, and the end of its log.

        The end follows the last error named before it: vLLM repeats an error far below its cause.
        """
        log = self.log()
        if self._ready_ns is None and (cure := remedy(log)):
            what = f"{what}: {cure}"
        elif self.poll() == -signal.SIGKILL:
            what = f"{what} (if nobody killed it, the machine's memory was full: see `dmesg`, use a smaller model)"
        written = [line for line in log.splitlines() if line.strip()]
        causes = named_errors(written[:-LAST_LINES])[-1:]
        end = "\n".join([*causes, *["..."] * len(causes), *written[-LAST_LINES:]]) or "(it wrote nothing)"
        return f"server {self.launch.name!r} {what}; its log is {self.log_path} and ends:\n{end}"


class Patience:
    """The time limit of a start: it begins again whenever the server's log or its downloads grow."""

    def __init__(self, server: ServerProcess, deadline_s: float) -> None:
        self._server = server
        self._timeout_s = deadline_s
        self._seen: tuple[int, int] | None = None
        self._looked = self._grew = time.monotonic()

    def check(self) -> None:
        """Raises ServerError when nothing has grown for the time limit."""
        now = time.monotonic()
        if self._seen is None or now - self._looked >= min(GROWTH_POLL_S, self._timeout_s / 2):
            self._looked = now
            if (size := self._size()) != self._seen:
                self._seen, self._grew = size, now
        if now - self._grew >= self._timeout_s:
            grew = f"was not ready after {self._timeout_s:g} s in which neither its log nor its downloads grew"
            raise ServerError(self._server.report(f"{grew}; raise --start-timeout if it needs longer"))

    def _size(self) -> tuple[int, int]:
        """Lines of the log, without those that only say that it waits, and downloaded bytes of the checkpoint."""
        lines = sum(1 for line in self._server.log().splitlines() if line.strip() and not WAITING.search(line))
        checkpoint = self._server.launch.checkpoint
        return lines, downloaded_bytes(checkpoint) if checkpoint else 0


def mask_log(path: Path, mask: Mask) -> None:
    """Masks a log that is there already, and makes it readable by this user only."""
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
        return int(probe.getsockname()[1])


def port_is_free(host: str, port: int) -> bool:
    """Whether a server can listen on this port now."""
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
