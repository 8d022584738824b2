"""Quantize: checkpoints of other formats made of a 16-bit model, by llm-compressor in a separate environment."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from platformdirs import user_log_path

from loadgen import __version__
from loadgen.errors import UsageError
from loadgen.folder import Folder
from loadgen.processgroup import ProcessGroup, exit_words
from loadgen.secret import without_secrets
from loadgen.serving.checkpoint import QUANTIZE_FILE, checkpoint_identity, hub_token, token_variables
from loadgen.serving.environment import PythonEnvironment, Say, environment_root, is_stamped
from loadgen.serving.launch import named_errors, plain
from loadgen.serving.quantize_plan import MAX_TOKENS, QuantizePlan, device_here
from loadgen.serving.recipe import place_of, recipes_dir

REQUIREMENTS = ("llmcompressor==0.14.0.1", "compressed-tensors==0.19.0", "transformers==5.17.0")
"""llm-compressor is the library of the vLLM project. The extra `quantize` in pyproject.toml says the same."""
TORCH = "torch==2.13.0"
DISK = "about 1.5 GB with a CPU build of torch, 7 GB with CUDA"
_EVENT = "loadgen-event "
_LAYER = re.compile(r"\((\d+)/(\d+)\): Calibrating")
POLL_S = 0.2
SAY_EVERY_S = 15.0


class QuantizeEnvironment(PythonEnvironment, frozen=True):
    """llm-compressor's Python."""

    @property
    def is_complete(self) -> bool:
        """Whether a build with these packages, and the build of torch that this machine needs, has finished."""
        return is_stamped(self.stamp, _packages()) and self.python.exists()


def quantize_environment() -> QuantizeEnvironment:
    """The environment in `$LOADGEN_QUANTIZE_ENV`, else in the user's cache folder."""
    return QuantizeEnvironment(environment_root("LOADGEN_QUANTIZE_ENV", "quantize"))


def build_environment(*, rebuild: bool = False, say: Say = print) -> QuantizeEnvironment:
    """Installs what is missing. Raises UsageError, with the log's path, when pip cannot."""
    environment, packages = quantize_environment(), _packages()
    if environment.is_complete and not rebuild:
        say(f"{REQUIREMENTS[0].replace('==', ' ')} is already in {environment.root}")
        return environment
    environment.begin(say)
    say(f"installing {' '.join(packages.values())} (minutes; {DISK}; pip's log: {environment.log})")
    environment.pip("install", *packages["requirements"].split(), torch=_torch())
    environment.run([str(environment.python), "-c", "import llmcompressor"])
    environment.stamp.write_bytes(msgspec.json.encode(packages))
    say(f"{REQUIREMENTS[0].replace('==', ' ')} is in {environment.root}")
    return environment


def require_environment() -> Path:
    """The Python that has llm-compressor: the environment's, else this one, with the extra `quantize` installed.

    Raises UsageError, with the command that builds the environment, if neither has it.
    """
    environment = quantize_environment()
    if environment.is_complete:
        return environment.python
    if all(map(_is_here, REQUIREMENTS)):
        return Path(sys.executable)
    raise UsageError(f"llm-compressor is not installed: run `loadgen quantize --env` first ({DISK})")


def _is_here(requirement: str) -> bool:
    name, _, wanted = requirement.partition("==")
    try:
        return version(name) == wanted
    except PackageNotFoundError:
        return False


def _packages() -> dict[str, str]:
    return {"requirements": " ".join((*REQUIREMENTS, _torch()))}


def _torch() -> str:
    """PyPI's torch is built for CUDA; a machine without an NVIDIA GPU gets the much smaller CPU build."""
    return TORCH if device_here() == "cuda" else f"{TORCH}+cpu"


def quantize(plan: QuantizePlan, say: Say) -> dict[str, Path]:
    """Makes what is missing; returns the folder of every format.

    A checkpoint appears under its name only when it is complete. Raises UsageError, with the log's path, when
    llm-compressor fails; formats that were finished before stay.
    """
    for name in plan.kept:
        say(f"{name} is already in {plan.places[name]}, made from the same inputs")
    if not plan.records:
        return plan.places
    python = require_environment()
    for sentence in _before(plan):
        say(sentence)
    folder = Folder(user_log_path("loadgen", ensure_exists=True))
    log = folder.path / f"quantize-{place_of(plan.model, '').name.strip('-')}.log"
    log.unlink(missing_ok=True)
    jobs = []
    for name, record in plan.records.items():
        place = plan.places[name]
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(place)
        shutil.rmtree(partial, ignore_errors=True)
        calibrated = record.calibration is not None
        jobs.append({"format": name, "group_size": record.group_size, "calibrated": calibrated, "out": str(partial)})
    with tempfile.TemporaryDirectory() as scratch:
        texts = Path(scratch) / "calibration.jsonl"
        texts.write_bytes(plan.texts)
        order = {"model": plan.model, "texts": str(texts), "max_tokens": MAX_TOKENS, "jobs": jobs}
        try:
            _Run(plan, say, log).run(python, order)
        finally:
            for place in plan.places.values():
                shutil.rmtree(_partial(place), ignore_errors=True)
    return plan.places


def _partial(place: Path) -> Path:
    return place.with_name(f".{place.name}.partial")


def _before(plan: QuantizePlan) -> list[str]:
    sentences = [f"quantizing {plan.model} into {', '.join(plan.records)}: {plan.needs}"]
    used = next((record.calibration for record in plan.records.values() if record.calibration is not None), None)
    if used is not None:
        of = {"gsm8k train": "GSM8K's train split, which no sweep asks"}.get(used.source, used.source)
        if used.source == "sample":
            of = (
                "loadgen's own sample questions, because GSM8K's train split cannot be downloaded: do not measure "
                "these checkpoints with --dataset sample, or name other texts with --calibration"
            )
        sentences.append(f"calibration: {used.samples} texts of {of}")
    return sentences


class _Run:
    """llm-compressor at work on one plan."""

    def __init__(self, plan: QuantizePlan, say: Say, log: Path) -> None:
        self._plan = plan
        self._say = say
        self._log = log
        self._read_bytes = 0
        self._current: str | None = None
        self._layer = self._passes = 0
        """The layer that is worked on, and how often the layers began again."""
        self._facts: dict[str, Any] = {}
        self._began_s = self._said_s = time.monotonic()

    def run(self, python: Path, order: Mapping[str, Any]) -> None:
        script = recipes_dir() / "quantize" / "quantize_model.py"
        argv = [str(python), str(script), msgspec.json.encode(order).decode()]
        self._say(f"loading llm-compressor (log: {self._log})")
        token = hub_token()
        group = ProcessGroup(argv, _environment(self._plan.model), self._log, [token] if token else [])
        try:
            while (status := group.poll()) is None:
                time.sleep(POLL_S)
                group.flush()
                self._follow()
        finally:
            group.end(interrupt_s=5.0, terminate_s=5.0)
        self._follow()
        if status != 0:
            raise UsageError(self._failure(status))

    def _follow(self) -> None:
        """Reads what the log has gained: events, and how far the layers are."""
        with self._log.open("rb") as file:
            file.seek(self._read_bytes)
            gained = file.read()
        gained = gained[: gained.rfind(b"\n") + 1]
        self._read_bytes += len(gained)
        layers: list[tuple[int, int]] = []
        for line in gained.decode("utf-8", "replace").splitlines():
            if line.startswith(_EVENT):
                self._hear(msgspec.json.decode(line.removeprefix(_EVENT)))
                layers = []
            elif found := _LAYER.findall(line):
                layers += [(int(layer), int(of)) for layer, of in found]
        for layer, _ in layers:
            self._passes += layer < self._layer
            self._layer = layer
        if layers and time.monotonic() - self._said_s >= SAY_EVERY_S:
            self._said_s = time.monotonic()
            shown = f"pass {self._passes + 1}, " if self._passes else ""
            elapsed_s = time.monotonic() - self._began_s
            self._say(f"{self._current}: {shown}layer {self._layer} of {layers[-1][1]}, {elapsed_s:.0f} s")

    def _hear(self, event: Mapping[str, Any]) -> None:
        if (begun := event.get("begun")) is not None:
            self._current, self._layer, self._passes = begun, 0, 0
            self._began_s = self._said_s = time.monotonic()
            self._say(f"{begun}: loading the model and quantizing")
        elif (done := event.get("done")) is not None:
            self._finish(done, event["duration_s"])
        else:
            self._facts = dict(event)

    def _finish(self, name: str, duration_s: float) -> None:
        """The record beside config.json, then the folder's own name."""
        place = self._plan.places[name]
        partial = _partial(place)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        recipe = partial / "recipe.yaml"
        record = msgspec.structs.replace(
            self._plan.records[name],
            model_identity=checkpoint_identity(self._plan.model),
            recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
            device=self._facts.get("device", ""),
            packages=self._facts.get("packages", {}),
            loadgen=__version__,
            duration_s=duration_s,
            files={str(path.relative_to(partial)): _sha256(path) for path in files},
        )
        content = msgspec.json.format(msgspec.json.encode(record), indent=2)
        Folder(partial).write(QUANTIZE_FILE, content + b"\n", durable=True)
        for path in (partial, *files, partial / QUANTIZE_FILE):
            path.chmod(0o755 if path.is_dir() else 0o644)  # a server in a container runs as another user
        try:
            partial.rename(place)
        except OSError as error:
            raise UsageError(f"{place} cannot be made ({error.strerror}); was it made by another process?") from None
        self._say(f"{name} is in {place} ({duration_s:.0f} s)")

    def _failure(self, status: int) -> str:
        what = f"quantizing {self._plan.model}" + (f" into {self._current}" if self._current else "")
        if status == -9:
            return f"{what} was killed: this machine's memory may have been full (see `dmesg`); its log is {self._log}"
        lines = plain(self._log.read_text(encoding="utf-8", errors="replace")).splitlines()
        cause = "".join(f": {line.strip()}" for line in named_errors(lines)[-1:])
        return f"{what} failed with {exit_words(status)}{cause}; its log is {self._log}"


def _environment(model: str) -> dict[str, str]:
    token = hub_token()
    offline = {"HF_HUB_OFFLINE": "1"} if Path(model).is_dir() else {}
    given = {**token_variables(), **({"HF_TOKEN": token} if token and not offline else {})}
    # A thread that spins long while it waits takes the core from the one it waits for, if anything else runs here.
    quiet = {"TOKENIZERS_PARALLELISM": "false", "GOMP_SPINCOUNT": "20000"}
    return {**without_secrets(os.environ), **given, **offline, **quiet}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
