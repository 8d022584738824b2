"""Visit: one remote command on an offline machine, which does as much as the carried pieces and the time allow.

It keeps the pieces; once all are there it joins, installs and measures, and packs the results. It needs only Python.
"""

from __future__ import annotations

import importlib.util
import io
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.gpu import machine, pieces
from bench.gpu.pieces import SUFFIX, unpack
from bench.gpu.shapes import FORMATS
from bench.gpu.wheels import CANNOT, PROBES, STAMP, choose, install, probe, read_lock, wheel_name
from loadgen.errors import UsageError

PROJECT = Path(__file__).resolve().parents[2]
PLANS = Path(__file__).with_name("plans")
LOCK, KIT = Path(__file__).with_name("wheels.txt"), Path(__file__).with_name("kit.toml")
RAM_DISK = Path("/dev/shm")
MODELS_BYTES = 50e9
"""What the plan's checkpoints take, and a little more."""
PACK_S = 25.0
"""Kept back at the end for packing."""
GRACE_S = 20.0
"""How long a measurement that runs over has to stop its server."""
LOG_BYTES = 200_000
"""So much of the end of each log comes back."""
LOGS = "logs.tar.xz"
Say = Callable[[str], None]


def lacking_words(carried: Iterable[str]) -> str:
    """A sentence about packages of the kit's lock that are neither here nor among the carried wheels (file names)."""
    settings = tomllib.loads(KIT.read_text(encoding="utf-8"))
    needed = choose(read_lock(LOCK), machine.look(), settings["leave_out"]).fetch
    names = {wheel_name(Path(wheel))[0] for wheel in carried if wheel.endswith(".whl")}
    missing = [str(pin) for pin in needed if pin.name not in names]
    return f"! neither here nor carried: {', '.join(missing)}" if missing else "all that is needed is here or carried"


class Visit:
    """One visit: where things are, and how much of its time is over."""

    def __init__(
        self,
        kit: Path,
        out: Path,
        *,
        seconds: float,
        plan: str = "gpu",
        until: str | None = None,
        again: bool = False,
        vllm: Path | None = None,
        preset: str | None = None,
        say: Say = print,
    ) -> None:
        """`kit` lasts from visit to visit, `out` is brought back. `vllm`: another than the carried one. The rest is
        as in `measure`."""
        self.kit, self.out, self.work = kit, out, kit / "work"
        self._plan, self._until, self._again, self._vllm, self._preset = plan, until, again, vllm, preset
        self._say, self._seconds, self._begun = say, seconds, time.monotonic()

    @property
    def left_s(self) -> float:
        return self._begun + self._seconds - time.monotonic()

    @property
    def models(self) -> Path:
        """On the RAM disk where that is large enough."""
        has_room = RAM_DISK.is_dir() and shutil.disk_usage(RAM_DISK).total >= MODELS_BYTES
        return RAM_DISK / "loadgen-models" if has_room else self.kit / "models"

    def make(self, carried: Path | None, earlier: Path | None) -> int:
        """The exit status: 0 when the plan is finished, 1 when there is more to carry or to measure.

        `carried`: pieces with pieces.json. `earlier`: packed results of another machine, which are continued.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        _copy(self.kit / "results", self.out)
        try:
            return self._make(carried, earlier)
        finally:
            self._pack_logs()

    def _make(self, carried: Path | None, earlier: Path | None) -> int:
        (self.out / "machine.json").write_text(machine.to_json(machine.look()), encoding="utf-8")
        if earlier is not None and not (self.work / "state.json").exists():
            self._tell(f"continuing the results in {earlier}")
            unpack(earlier, self.work)
        store = self.kit / "pieces"
        if carried is not None:
            self._tell(lacking_words(pieces.read_list(carried).files))
            found = pieces.receive(carried, store)
            self._tell(f"{len(found.good)} pieces are whole; {found}")
            if not found.complete:
                return 1
        python = self._install(store)
        try:
            return self._measure(python)
        finally:
            self._pack(python)

    def _install(self, store: Path) -> Path:
        """The environment's Python; the first model is written meanwhile, since it uses the GPU and this the CPU."""
        wheels, venv = self.kit / "wheels", self.kit / "venv"
        writer = None if (venv / STAMP).exists() else self._begin_writing()
        try:
            self._tell(f"{pieces.join(store, wheels)} files are whole in {wheels}")
            python = install(wheels, venv, say=self._tell)
            probed = probe(python, PROBES if self._preset is None and self._vllm is None else ("loadgen",))
            for name, said in probed.items():
                self._tell(f"  {name}: {said}")
            if failed := [name for name, said in probed.items() if said.startswith(CANNOT)]:
                raise UsageError(f"{', '.join(failed)} cannot be imported; carry what is lacking, then visit again")
        finally:
            if writer is not None:
                said, _ = writer.communicate()
                self._tell(said.strip()[-500:])
        return python

    def _begin_writing(self) -> subprocess.Popen[str] | None:
        """Under the machine's own torch; `measure` writes what this could not, and says why."""
        path = Path(self._plan) if self._plan.endswith(".toml") else PLANS / f"{self._plan}.toml"
        steps = tomllib.loads(path.read_text(encoding="utf-8"))["step"]
        first = next((step for step in steps if "model" in step), None)
        if first is None or self._preset is not None or importlib.util.find_spec("torch") is None:
            return None
        formats = ",".join(kind for kind in FORMATS if kind in first["serve"])
        command = [sys.executable, "-m", "bench.gpu.checkpoints", "--out", str(self.models), "--model", first["model"]]
        command += ["--formats", formats]
        return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def _measure(self, python: Path) -> int:
        budget_s = self.left_s - PACK_S
        command = [*self._command(python, "measure"), "--budget", f"{budget_s:.0f}", "--results", str(self.out)]
        command += ["--simulated", self._preset] if self._preset else []
        command += ["--until", self._until] if self._until else []
        command += ["--again"] if self._again else []
        self._tell(f"measuring for {budget_s:.0f} s")
        with subprocess.Popen(command, cwd=PROJECT) as process:
            try:
                return process.wait(timeout=max(budget_s, 0) + GRACE_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as stopped:
                late = isinstance(stopped, subprocess.TimeoutExpired)
                why = "a start or a cell took longer than any before" if late else "this visit was told to end"
                self._tell(f"{why}; it is stopped, and the next visit goes on")
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=GRACE_S / 2)
                except subprocess.TimeoutExpired:
                    process.kill()
                if not late:
                    raise
                return 1

    def _pack(self, python: Path) -> None:
        if (self.work / "state.json").exists():
            command = [*self._command(python, "pack"), "--out", str(self.out), "--keep"]
            packed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
            self._tell((packed.stdout + packed.stderr).strip())
            _copy(self.out, self.kit / "results", but=LOGS)

    def _pack_logs(self) -> None:
        """To see what failed; they may name anything of the machine, so no study holds them."""
        with tarfile.open(self.out / LOGS, "w:xz") as archive:
            for path in sorted(self.kit.glob("*.log")) + sorted(self.work.rglob("*.log")):
                content = path.read_bytes()[-LOG_BYTES:]
                entry = tarfile.TarInfo(str(path.relative_to(self.kit)))
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

    def _command(self, python: Path, step: str) -> list[str]:
        command = [str(python), "-m", "bench.gpu", step, "--plan", self._plan]
        command += ["--work", str(self.work), "--models", str(self.models)]
        vllm = self._vllm or python.with_name("vllm")
        return command + (["--vllm", str(vllm)] if vllm.exists() else [])

    def _tell(self, sentence: str) -> None:
        self._say(f"[{time.monotonic() - self._begun:4.0f} s] {sentence}")


def _copy(source: Path, target: Path, but: str = "") -> None:
    """Copies the archives with their times, by which `pack --keep` knows whether they are newer than what they hold."""
    target.mkdir(parents=True, exist_ok=True)
    for archive in source.glob(f"*{SUFFIX}"):
        if archive.name != but:
            shutil.copy2(archive, target)
