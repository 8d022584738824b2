"""Launch: the exact command of one server, planned before anything is started."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from loadgen.address import http_url
from loadgen.errors import UsageError
from loadgen.secret import Mask
from loadgen.serving.checkpoint import held_by, note_of, require_quantization
from loadgen.serving.cpu_env import default_environment
from loadgen.serving.log import option
from loadgen.serving.recipe import Device, Dtype, Recipe, fair_settings, load_recipe

CPU_INFO = Path("/proc/cpuinfo")
API_KEY = "VLLM_API_KEY"
"""The variable from which vLLM takes the key that its clients must send."""
_AS_VARIABLES = {"--api-key": API_KEY, "--hf-token": "HF_TOKEN"}
"""vLLM's options whose value is a secret, and the variables that say the same."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One server process: what to run, where it will listen and how to tell that it runs what was asked."""

    name: str
    """Unique in a run; the target's name."""
    precision: str
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    """Variables added to loadgen's own environment."""
    host: str = "127.0.0.1"
    port: int
    device: Device = "cpu"
    expect: tuple[str, ...] = ()
    """Regular expressions that the log must show."""
    kernel: str | None = None
    """A regular expression whose first group names the kernel that was selected."""
    simulated: bool = False
    checkpoint: str | None = None
    """The folder or id that vLLM serves; None for a simulated server."""
    dtype: Dtype | None = None
    """The activation dtype; None for a simulated server."""
    in_flight: bool = False
    """The recipe quantizes the checkpoint while loading."""
    note: str | None = None
    """What the checkpoint says of itself."""

    @property
    def needs_secrets(self) -> bool:
        """Whether it may need a token or a key of loadgen's environment: vLLM does, loadgen's own programs do not."""
        return self.checkpoint is not None

    @property
    def api_key(self) -> str | None:
        """The key that its clients must send, of several the first; None where it asks for none."""
        named = option(self.argv, "--api-key") or self.env.get(API_KEY)
        return named or (os.environ.get(API_KEY) or None if self.needs_secrets else None)

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return http_url(self.host, self.port)

    @property
    def shell(self) -> str:
        """The command with its environment, quoted for a POSIX shell, to be shown: secrets are masked."""
        mask = Mask()
        assignments = [f"{name}={shlex.quote(value)}" for name, value in mask.env(self.env).items()]
        return " ".join([*assignments, shlex.join(mask.argv(self.argv))])


def plan_launch(
    recipe: Recipe,
    *,
    model: str,
    port: int,
    device: Device,
    max_num_seqs: int,
    dtype: Dtype | None = None,
    checkpoint: str | None = None,
    vllm: str | None = None,
    prefix_cache: bool = False,
    extra_args: Sequence[str] = (),
    host: str = "127.0.0.1",
) -> Launch:
    """The vLLM server of a recipe for the 16-bit `model`, an id or a folder.

    `dtype` is the activation dtype of every recipe that does not fix its own (default: the device's); `checkpoint`
    overrides the recipe's choice; `vllm` is the command itself (default: `find_vllm`); `extra_args` come last and so
    win; a key or a token among them becomes a variable, since every user can read a command line. Raises UsageError
    when the recipe has no checkpoint for the model, the checkpoint's config.json on this machine is of another kind,
    this machine's CPU cannot run it, or no vLLM is found.
    """
    if device == "cpu":
        _require_cpu_flags(recipe)
    _require_folder(model)
    served = checkpoint or recipe.checkpoint_for(model)
    _require_folder(served)
    in_flight = recipe.in_flight_args if served == model else ()
    extra_args, secret_env = _secrets_apart(extra_args)
    require_quantization(recipe, served, in_flight=bool(in_flight), online=False)
    fair = fair_settings().caching_prefixes() if prefix_cache else fair_settings()
    on_device = fair.device[device]
    activation = recipe.dtype or dtype or on_device.dtype
    local = Path(served).expanduser()
    if local.is_dir():
        served = str(local.resolve())
    held = held_by(served)
    kv_cache_dtype = on_device.kv_cache_dtype or activation
    if held is not None and held.kv_cache is not None:
        kv_cache_dtype = activation
    argv = (
        vllm or find_vllm(device), "serve", served, "--host", host, "--port", str(port),
        "--dtype", activation, "--kv-cache-dtype", kv_cache_dtype, "--max-num-seqs", str(max_num_seqs),
        *fair.args, *on_device.args, *recipe.args, *in_flight, *extra_args,
    )  # fmt: skip
    expected = {"{dtype}": activation, "{kv_cache_dtype}": option(argv, "--kv-cache-dtype") or kv_cache_dtype}
    offline = {"HF_HUB_OFFLINE": "1"} if local.is_dir() else {}
    return Launch(
        name=recipe.name,
        precision=recipe.name,
        argv=argv,
        env={**fair.env, **on_device.env, **offline, **recipe.env, **secret_env},
        host=host,
        port=port,
        device=device,
        expect=tuple(_filled(pattern, expected) for pattern in (*fair.expect, *recipe.expect)),
        kernel=recipe.kernel,
        checkpoint=served,
        dtype=activation,
        in_flight=bool(in_flight),
        note=note_of(served),
    )


def confirm_checkpoint(launch: Launch) -> None:
    """Raises UsageError when the hub can be asked and says that the checkpoint is not what the recipe serves."""
    if launch.checkpoint is not None:
        recipe = load_recipe(launch.precision)
        require_quantization(recipe, launch.checkpoint, in_flight=launch.in_flight, online=True)


def plan_simulated(
    precision: str, *, port: int, seed: int = 0, data_file: Path | None = None, extra_args: Sequence[str] = ()
) -> Launch:
    """A simulated server of that precision, run by this Python; it grades its answers from the dataset's items."""
    argv = [sys.executable, "-m", "loadgen", "simulate"]
    argv += ["--precision", precision, "--port", str(port), "--seed", str(seed)]
    if data_file is not None:
        argv += ["--data-file", str(data_file)]
    argv += extra_args
    return Launch(name=precision, precision=precision, argv=tuple(argv), port=port, simulated=True)


def find_vllm(device: Device, named: str | None = None) -> str:
    """The path of the `vllm` command: `named`, else $LOADGEN_VLLM, else `loadgen cpu-env`'s for a CPU, else PATH's.

    Raises UsageError when the named command does not exist or none is found.
    """
    for source, command in (("--vllm", named), ("LOADGEN_VLLM", os.environ.get("LOADGEN_VLLM"))):
        if command:
            # Not through Path, which would make a name to look up in PATH of ./vllm.
            found = shutil.which(os.path.expanduser(command))  # noqa: PTH111
            if found is None:
                raise UsageError(f"{source} names {command!r}, which is not a command; give the path of vLLM's `vllm`")
            return str(Path(found).absolute())
    environment = default_environment()
    if device == "cpu" and environment.is_complete:
        return str(environment.vllm)
    if found := shutil.which("vllm"):
        return found
    remedy = "run `loadgen cpu-env` to build one" if device == "cpu" else "install vLLM"
    raise UsageError(f"no vllm command for device {device!r} was found; {remedy}, or name one with --vllm PATH")


def _secrets_apart(args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without secrets, and these as variables. Several values of an option stay: a variable holds one."""
    kept: list[list[str]] = [[]]
    for argument in args:
        if argument.startswith("-"):
            kept.append([])
        kept[-1].append(argument)
    env = {}
    for part in [part for part in kept if part]:
        name, equals, value = part[0].partition("=")
        values = [value] * bool(equals) + part[1:]
        if (variable := _AS_VARIABLES.get(name.replace("_", "-"))) and len(values) == 1:
            env[variable] = values[0]
            kept.remove(part)
    return [argument for part in kept for argument in part], env


def _filled(pattern: str, values: Mapping[str, str]) -> str:
    for placeholder, value in values.items():
        pattern = pattern.replace(placeholder, re.escape(value))
    return pattern


def _require_folder(model: str) -> None:
    if model.startswith("-"):
        raise UsageError(f"{model!r} is not a model: it starts with '-', and vLLM would take it for an option")
    if model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise UsageError(f"the model folder {model} does not exist; name a folder or a Hugging Face id")


def _require_cpu_flags(recipe: Recipe) -> None:
    if not recipe.cpu_flags or not CPU_INFO.exists():
        return
    flags = CPU_INFO.read_text(encoding="utf-8").split()
    if missing := [flag for flag in recipe.cpu_flags if flag not in flags]:
        raise UsageError(
            f"recipe {recipe.name!r} on a CPU needs {', '.join(missing)}, which this CPU lacks; use a GPU, or one of "
            "fp16, bf16, int8, fp8, bnb-nf4"
        )
