"""Power during the load: which source, and a recorder that keeps every raw sample of a server's life.

Who uses the GPUs of a sweep: before the first server starts, and which processes are a server's.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic_ns, sleep
from urllib.parse import urlsplit

import msgspec

from loadgen.errors import ServerError, UsageError
from loadgen.guardian import PROC
from loadgen.power.energy import energy_of_window
from loadgen.power.feed import PowerFacts, PowerFeed
from loadgen.power.nvml import NvmlReader
from loadgen.power.rapl import RaplReader
from loadgen.power.sample import GpuInfo, GpuLostError, GpuProcess, PowerSample
from loadgen.power.sampler import select_gpus
from loadgen.power.trace import MPS_SERVER, Owners, Rest, calibrate
from loadgen.record.cell import SweepConfig
from loadgen.record.journal import Journal, session_suffix
from loadgen.record.manifest import PowerPlan
from loadgen.serving.compose import variable
from loadgen.serving.launch import Launch, workers_of
from loadgen.serving.process import ServerProcess, free_port
from loadgen.webserver import is_on_loopback

_LISTENING = "0A"
"""State of a socket in /proc/net/tcp."""


def server_processes(url: str) -> tuple[int, ...]:
    """The processes of this machine that listen on the URL's port, with the process group of each that is not
    loadgen's own; empty where none can be seen (another user's, or in a container)."""
    port = urlsplit(url).port
    if port is None:
        return ()
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    found: list[int] = []
    for pid in _processes() if inodes else ():
        with contextlib.suppress(OSError):
            links = (link.readlink() for link in (PROC / str(pid) / "fd").iterdir())
            if any(str(link) in inodes for link in links):
                found.append(pid)
                with contextlib.suppress(ProcessLookupError):
                    if (group := os.getpgid(pid)) != os.getpgid(0):
                        found.append(group)
    return tuple(dict.fromkeys(found))


def warnings_before(
    samples: Mapping[str, PowerSample], families: Iterable[int], *, running: bool, exclusive: bool
) -> list[str]:
    """What uses the GPUs before a sweep's first server starts, or besides its servers where these are `running`.

    `samples` are one full reading of each GPU; `families` the servers' processes, empty where they are not known. With
    `exclusive` another process raises UsageError, one sentence.
    """
    known = set(families)
    if running and not any(_belongs(p, known) for s in samples.values() for p in s.processes or ()):
        known = set()  # what listens is a proxy, or its processes are on no GPU
    warnings = []
    when = "while the servers run" if running else "before the first server starts"
    for gpu, sample in samples.items():
        listed = [p for p in sample.processes or () if not (p.name or "").startswith(MPS_SERVER)]
        others = [p for p in listed if not _belongs(p, known)]
        unseen = [p for p in others if running and not p.lineage]
        others = [p for p in others if p not in unseen]
        if running and not known:
            if listed:
                warnings.append(f"{gpu} is used by {_all(listed)}: taken for the servers', which cannot be told apart")
            continue
        if unseen:
            warnings.append(
                f"cannot tell whether {_all(unseen)} on {gpu} belongs to a server: it cannot be seen from here, as in "
                "a container"
            )
        if others and exclusive:
            raise UsageError(
                f"--exclusive: {gpu} is used {when} by {_all(others)}: stop that process or choose another GPU (--gpu)"
            )
        if others:
            drawing = all(process.kind == "graphics" for process in others)
            so = "the energy includes its share" if drawing else "energy is not valid while it runs"
            warnings.append(f"{gpu} is used {when} by {_all(others)}: {so} (--exclusive refuses this)")
        elif not running and not listed and sample.utilization:
            warnings.append(
                f"{gpu} is busy {when} ({sample.utilization:.0%} utilization), and no process is listed: another "
                "container or user may be using it"
            )
    return warnings


def owners_of(
    server: Iterable[int],
    peers: Iterable[int],
    before: Iterable[int],
    at_rest: Mapping[str, tuple[GpuProcess, ...]],
    *,
    certain: bool,
) -> Owners:
    """Whose the processes on one server's GPUs are; `at_rest` were there with the server up and nothing asked.

    `certain`: loadgen started the server and reads the sensors itself. Else `server` may be a proxy in front of it, or
    another container's process ids: it is believed only where one of its processes is on a GPU.
    """
    own = tuple(dict.fromkeys(server))
    listed = {process.pid: process for processes in at_rest.values() for process in processes}
    if not certain and not any(_belongs(process, own) for process in listed.values()):
        own = ()
    return Owners(
        server=own,
        peers=tuple(pid for pid in dict.fromkeys(peers) if pid not in own),
        before=tuple(dict.fromkeys(before)),
        at_rest=tuple(listed),
    )


def _belongs(process: GpuProcess, family: Iterable[int]) -> bool:
    return not {process.pid, *process.lineage}.isdisjoint(family)


def _all(processes: Iterable[GpuProcess]) -> str:
    return " and ".join(map(str, processes))


def _listening_inodes(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError, ValueError):
            for line in (PROC / "net" / name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _processes() -> Iterator[int]:
    yield from (int(folder.name) for folder in Path(PROC).iterdir() if folder.name.isdigit())


REST_S = 3.0
SIMULATED_REST_S = 0.2
LEAD_S = 0.1
"""Samples must reach back before a window's first instant."""
COVER_TIMEOUT_S = 3.0
SIMULATED_PATH = "/power"


def gpus_needed(launches: Mapping[str, Launch]) -> dict[str, int]:
    """By target, the GPUs that its server takes; empty for servers that run on no GPU of this machine."""
    return {name: workers_of(one.argv) or 1 for name, one in launches.items() if one.device == "cuda"}


def gpus_placed(launches: Mapping[str, Launch]) -> dict[str, tuple[str, ...]]:
    """By target, the GPUs that its container gets, by index or UUID."""
    return {name: one.gpus for name, one in launches.items() if one.gpus}


def serving_gpus(asked: Sequence[str] | None, needs: Mapping[str, int]) -> tuple[GpuInfo, ...]:
    """The GPUs of this machine for the servers that loadgen launches; each takes the first, as many as it `needs`.

    Those `asked` for by `--gpu`, else of CUDA_VISIBLE_DEVICES, else all; empty where NVML cannot tell. Raises
    UsageError where a target needs several and there are fewer.
    """
    visible, found = os.environ.get("CUDA_VISIBLE_DEVICES"), tuple[GpuInfo, ...]()
    with contextlib.suppress(Exception):  # what is wrong with the sensors is said where power is planned
        reader = NvmlReader()
        try:
            infos, unreadable = reader.gpus(), reader.unreadable
        finally:
            reader.close()
        known = {info.uuid: info for info in sorted(infos, key=lambda info: info.index)}
        order = os.environ.get("CUDA_DEVICE_ORDER")
        chosen = list(known)
        if asked or visible is not None:
            chosen = select_gpus(infos, asked=asked, visible=visible, order=order, unreadable=unreadable)
        found = tuple(known[uuid] for uuid in chosen)
    named = asked or (visible.split(",") if visible is not None else None)
    count = len(found) if found or named is None else len(named)
    for name, needed in needs.items():
        if needed > max(count, 1) and (found or named):
            raise UsageError(
                f"{name} needs {needed} GPUs and {count} {'is' if count == 1 else 'are'} visible: give a smaller "
                "--tensor-parallel, or make more GPUs visible: CUDA_VISIBLE_DEVICES, in a sweep also --gpu"
            )
    return found


def gpu_variables(config: SweepConfig, gpus: Sequence[GpuInfo], launch: Launch) -> dict[str, str]:
    """Variables that keep a server to the first of these GPUs, where CUDA would choose others; else none."""
    needed = workers_of(launch.argv) or 1
    by_user = os.environ.get("CUDA_VISIBLE_DEVICES") is not None
    if not gpus or (config.gpus is None and (by_user or len(gpus) <= needed)):
        return {}
    indices = ",".join(str(info.index) for info in gpus[:needed])
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": indices}


def plan_power(
    config: SweepConfig,
    *,
    simulated: bool,
    needs: Mapping[str, int] | None = None,
    places: Mapping[str, tuple[str, ...]] | None = None,
) -> PowerPlan:
    """The source that `--power` means; `simulated` servers bring a simulated GPU with them, and launched ones use as
    many GPUs as each target `needs`, or those at its `places`.

    Raises UsageError when a source that was asked for cannot be had, or when `exclusive` GPUs are in use or nobody can
    say; what `auto` cannot have is `none` with a reason.
    """
    plan = _plan(config, simulated=simulated, needs=needs or {}, places=places or {})
    if config.exclusive and plan.kind in ("none", "rapl"):
        why = plan.reason or "--power rapl measures CPUs"
        raise UsageError(f"--exclusive cannot be checked without the GPUs' sensors ({why}): omit it")
    return plan


def _plan(
    config: SweepConfig, *, simulated: bool, needs: Mapping[str, int], places: Mapping[str, tuple[str, ...]]
) -> PowerPlan:
    kind = config.power
    if kind == "none":
        return PowerPlan(kind="none", reason="not requested: give --power")
    if kind == "simulated" and not simulated:
        raise UsageError("--power simulated needs simulated servers; these are real, give nvml, rapl or exporter=URL")
    if simulated:
        return PowerPlan(kind="simulated")
    if kind.startswith("exporter="):
        url = kind.removeprefix("exporter=")
        facts = PowerFeed(url, config.gpus).connect()
        return _looked_at(config, PowerPlan(kind="exporter", url=url, gpus=config.gpus), facts.latest)
    if kind == "auto":
        if not all(is_on_loopback(spec.url) for spec in config.targets if spec.url is not None):
            reason = "the servers run on another machine: start `loadgen exporter` there, give --power exporter=URL"
            return PowerPlan(kind="none", reason=reason)
        try:
            plan, seen = _local(config, "nvml", needs, places)
        except Exception as error:  # whatever is wrong with the sensors, it costs the energy and not the sweep
            why = str(error) if isinstance(error, UsageError) else f"NVML failed ({type(error).__name__}: {error})"
            return PowerPlan(kind="none", reason=why)
        return _looked_at(config, msgspec.structs.replace(plan, required=False), seen)
    return _looked_at(config, *_local(config, kind, needs, places))


def _looked_at(config: SweepConfig, plan: PowerPlan, seen: Mapping[str, PowerSample]) -> PowerPlan:
    """The plan with what `seen`, a full reading of each GPU, says of who else uses them."""
    families = [pid for spec in config.targets if spec.url is not None for pid in server_processes(spec.url)]
    running = config.mode == "target"
    warnings = warnings_before(seen, families, running=running, exclusive=config.exclusive)
    listed = [process.pid for sample in seen.values() for process in sample.processes or ()]
    return msgspec.structs.replace(
        plan, warnings=tuple(warnings), before=() if running else tuple(dict.fromkeys(listed))
    )


def _local(
    config: SweepConfig, kind: str, needs: Mapping[str, int], places: Mapping[str, tuple[str, ...]]
) -> tuple[PowerPlan, dict[str, PowerSample]]:
    """The sensors are opened once here, so that what is missing is said before anything starts; with a full reading of
    each GPU that was chosen."""
    reader = NvmlReader() if kind == "nvml" else RaplReader()
    try:
        infos = reader.gpus()
        if isinstance(reader, RaplReader):
            return PowerPlan(kind=kind, gpus=tuple(info.uuid for info in infos)), {}
        placed = dict[str, tuple[str, ...]]()
        if places and not config.gpus:
            placed = {name: tuple(_at(gpu, name, infos) for gpu in gpus) for name, gpus in places.items()}
            chosen = list(dict.fromkeys(uuid for own in placed.values() for uuid in own))
        else:
            serving = serving_gpus(config.gpus, needs) if needs else ()
            chosen = [info.uuid for info in serving[: max(needs.values(), default=0)]] or select_gpus(
                infos,
                asked=config.gpus,
                visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
                order=os.environ.get("CUDA_DEVICE_ORDER"),
                unreadable=reader.unreadable,
            )
        try:
            seen = {uuid: reader.read(uuid, slow=True) for uuid in chosen}
        except GpuLostError as error:
            raise UsageError(f"a GPU was lost ({error}): reset it or reboot the machine") from None
        return PowerPlan(kind=kind, gpus=tuple(chosen), placed=placed), seen
    finally:
        reader.close()


def _at(place: str, target: str, infos: Sequence[GpuInfo]) -> str:
    """The UUID of the GPU at that index, or with a UUID that begins so."""
    fitting = [info.uuid for info in infos if str(info.index) == place or info.uuid.startswith(place)]
    if len(fitting) != 1:
        known = ", ".join(f"{info.index} {info.uuid}" for info in infos)
        raise UsageError(
            f"the Compose project gives {target} the GPU {place!r}, and NVML shows {known or 'none'} here: set "
            f"{variable(target)}_GPU in its .env, or name the GPUs to measure with --gpu"
        )
    return fitting[0]


@contextlib.contextmanager
def exporter_of(plan: PowerPlan, run_dir: Path, warn: Callable[[str], object]) -> Iterator[str | None]:
    """The exporter's URL for the whole run: started here for this machine's own sensors, None where there is none.

    Raises ServerError when it does not start; where power was left to `auto`, `warn` gets the reason instead.
    """
    port = free_port()
    if plan.kind not in ("nvml", "rapl"):
        yield plan.url
        return
    argv = [sys.executable, "-m", "loadgen", "exporter", "--port", str(port), "--source", plan.kind]
    if plan.kind == "nvml":
        argv += ["--gpu", ",".join(plan.gpus or ())]
    launch = Launch(name="exporter", precision=plan.kind, argv=tuple(argv), port=port)
    with ServerProcess(launch, run_dir / "servers" / "exporter.log") as process:
        try:
            process.wait_ready(30.0)
        except ServerError as error:
            if plan.required:
                raise
            warn(f"energy is not measured: the power exporter did not start: {error}")
        yield launch.url if process.is_ready() else None


def idle_power(url: str, plan: PowerPlan, run_dir: Path, session: int) -> Rest:
    """The GPUs before any server has started; samples in `journal/power/idle.jsonl`."""
    path = run_dir / "journal" / "power" / f"idle{session_suffix(session)}.jsonl"
    recorder = PowerRecorder(PowerFeed(url, plan.gpus), path, simulated=False)
    try:
        return recorder.rest()
    finally:
        recorder.close()


class PowerRecorder:
    """Writes every sample of one server's life to a file."""

    def __init__(self, feed: PowerFeed, path: Path, *, simulated: bool) -> None:
        self._feed = feed
        self._rest_s = SIMULATED_REST_S if simulated else REST_S
        self.facts: PowerFacts = feed.connect()
        self._journal = Journal(path)
        self._latest_w: dict[str, float | None] = {}
        self.processes: dict[str, tuple[GpuProcess, ...]] = {}
        """By GPU, as last listed."""
        feed.start()

    def flush(self) -> list[PowerSample]:
        """Journal what has come since the last call, and return it; nothing is kept, however long a cell is."""
        samples = self._feed.take()
        for sample in samples:
            self._journal.append(sample)
            self._latest_w[sample.gpu] = sample.power_instant_w
            if sample.processes is not None:
                self.processes[sample.gpu] = sample.processes
        return samples

    def cover(self, t_ns: int) -> None:
        """Wait until samples reach beyond `t_ns`, so that a window that ends there is bracketed, and lie on disk."""
        self._feed.drain_until(t_ns, COVER_TIMEOUT_S)
        self.flush()
        self._journal.sync()

    def rest(self) -> Rest:
        """Power and sensors of each GPU over some seconds in which nothing is asked of the server."""
        sleep(LEAD_S)
        t0_ns = monotonic_ns()
        sleep(self._rest_s)
        t1_ns = monotonic_ns()
        self._feed.drain_until(t1_ns, COVER_TIMEOUT_S)
        seen = self.flush()
        watts: dict[str, float | None] = {}
        for info in self.facts.gpus:
            samples = [sample for sample in seen if sample.gpu == info.uuid]
            watts[info.uuid] = energy_of_window(samples, t0_ns, t1_ns, scope=info.scope).power_w_mean
        return Rest(watts, calibrate(seen))

    @property
    def latest_w(self) -> float | None:
        """Instantaneous power of all GPUs together, as last seen."""
        seen = [watts for watts in self._latest_w.values() if watts is not None]
        return sum(seen) if len(seen) == len(self.facts.gpus) else None

    @property
    def losses(self) -> tuple[int, int]:
        """Samples that the exporter forgot before they were pulled, and pulls that failed."""
        return self._feed.lost, self._feed.failures

    def close(self) -> None:
        self._feed.stop()
        self.flush()
        self._journal.close()
