"""Launch: the exact command of one server, planned before anything is started.

vLLM's log: the settings that it runs with, and the remedy for what ended its start. Read in vLLM 0.26 to 0.33.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from loadgen.address import http_url
from loadgen.errors import UsageError
from loadgen.secret import Mask
from loadgen.serving.checkpoint import held_by, note_of, require_quantization
from loadgen.serving.cpu_env import default_environment
from loadgen.serving.recipe import Device, Dtype, Recipe, fair_settings, load_recipe

ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""Colours, cursor movements and titles of a terminal."""
ECHO = "root cause"
"""Errors in vLLM's log that only point to an earlier one say where the root cause is to be found."""
NAMED_ERROR = re.compile(r"^(\([^)]*\) )?(.*\bERROR\b.*\] )?[\w.]*(Error|Exception): ")
WAITING = re.compile(r"No available shared memory broadcast block|[Ww]aiting for .* to (?:start|be ready)|Retrying in ")
"""Lines that vLLM repeats while nothing goes on."""


class EngineSettings(msgspec.Struct, frozen=True):
    """What the log says of a running engine; None where it does not."""

    eager: bool | None = None
    """Without torch.compile and CUDA graphs."""
    kv_cache_dtype: str | None = None
    """`auto`: the activation dtype, unless the checkpoint asks for another."""
    graph_sizes: tuple[int, ...] | None = None
    """Batches that CUDA graphs are captured for, ascending; empty in eager mode. Others are padded to the next."""
    workers: int | None = None
    """Processes that hold a part of the model: tensor x pipeline x data parallel."""


def plain(text: str) -> str:
    """The text without a terminal's escape sequences; a line that a progress bar rewrites becomes several."""
    return ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def engine_settings(log: str) -> EngineSettings:
    """What a plain log says; the last start counts."""
    sizes = [_last(rf"{kind}_parallel_size=(\d+)", log) for kind in ("tensor", "pipeline", "data")]
    eager = _last(r"enforce_eager=(True|False)", log)
    return EngineSettings(
        eager=None if eager is None else eager == "True",
        graph_sizes=() if eager == "True" else _graph_sizes(log),
        kv_cache_dtype=_last(r"kv_cache_dtype=(\w+)", log),
        workers=int(sizes[0]) * int(sizes[1] or 1) * int(sizes[2] or 1) if sizes[0] else None,
    )


def _graph_sizes(log: str) -> tuple[int, ...] | None:
    found = _last(r"[\"']cudagraph_capture_sizes[\"']: ?\[([\d, ]*)\]", log)
    sizes = sorted({int(size) for size in re.findall(r"\d+", found or "")})
    largest = _last(r"Capping cudagraph capture sizes from max \d+ to (\d+)", log)
    return tuple(size for size in sizes if largest is None or size <= int(largest)) or None


def workers_of(argv: Sequence[str]) -> int | None:
    """Workers that a command asks for; None where it asks for no number of them."""
    found, asked = 1, False
    options = {"--tensor-parallel-size": "-tp", "--pipeline-parallel-size": "-pp", "--data-parallel-size": "-dp"}
    for long, short in options.items():
        value = option(argv, long) or option(argv, short)
        if value is not None and value.isdigit():
            found, asked = found * int(value), True
    return found if asked else None


def option(argv: Sequence[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE`, the last one, which wins; None without."""
    found = None
    for index, word in enumerate(argv):
        if word == name and index + 1 < len(argv):
            found = argv[index + 1]
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found


def named_errors(lines: Sequence[str]) -> list[str]:
    """The lines that name an error, without those that only point to another one."""
    return [line for line in lines if NAMED_ERROR.search(line) and ECHO not in line]


def remedy(log: str) -> str | None:
    """One sentence about a failed start: what was wrong, with its values, and what to do. None: not known.

    What the log says last counts: a file of the hub that is absent, for one, need not have been the end.
    """
    last: tuple[int, str] | None = None
    for pattern, sentence in _REMEDIES:
        for found in re.finditer(pattern, log):
            if last is None or found.start() > last[0]:
                last = found.start(), sentence(found)
    return last[1] if last else None


def _last(pattern: str, log: str) -> str | None:
    found = re.findall(pattern, log)
    return str(found[-1]) if found else None


def _free_memory(found: re.Match[str]) -> str:
    device, free, total, share, wanted = found.groups()
    return (
        f"GPU {device} has {free} of {total} GiB free and vLLM wants {wanted} ({float(share):.0%}): end what else uses "
        "that GPU (nvidia-smi lists it), or give vLLM a smaller share with --gpu-memory-utilization"
    )


def _context(found: re.Match[str]) -> str:
    length, needed, available = found.groups()
    return (
        f"the KV cache of one request of {length} tokens needs {needed} GiB and {available} GiB are left: give vLLM a "
        "smaller --max-model-len, a larger --gpu-memory-utilization, or more GPUs with --tensor-parallel-size"
    )


def _quantization(found: re.Match[str]) -> str:
    method = found[1]
    plugins = {"bitsandbytes": "vllm-bnb-plugin bitsandbytes", "gguf": "vllm-gguf-plugin"}
    if method in plugins:
        return (
            f"vLLM has no {method} of its own since it moved to a plugin: `pip install {plugins[method]}` in vLLM's "
            "environment"
        )
    return (
        f"this vLLM does not know the quantization method {method}: use another version of vLLM, or another checkpoint"
    )


def _flag(found: re.Match[str]) -> str:
    return (
        f"this vLLM does not know {found[1].strip()}: leave it out if you gave it, else use vLLM 0.26 to 0.33, for "
        "which the recipes are written"
    )


def _gated(found: re.Match[str]) -> str:
    around = found.string[max(0, found.start() - 500) : found.end() + 500]
    repository = re.search(r"huggingface\.co/(?:api/models/)?([\w.-]+/[\w.-]*\w)", around)
    named = repository[1] if repository else "this checkpoint"
    return (
        f"the hub does not give {named} to this user: accept its licence on its page and set HF_TOKEN to a token that "
        "may read it"
    )


def _always(sentence: str) -> Callable[[re.Match[str]], str]:
    return lambda found: sentence.format(*found.groups())


_REMEDIES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"GatedRepoError|Cannot access gated repo|You are trying to access a gated repo|401 Client Error|403 Client Error"
     r"|Access to model \S+ is restricted", _gated),
    (r"RepositoryNotFoundError|404 Client Error|is not a local folder and is not a valid model identifier",
     _always("the hub has no such checkpoint, or it is private: check --model and --checkpoint, and set HF_TOKEN for a "
             "private one")),
    (r"Free memory on device (\S+) \(([0-9.]+)/([0-9.]+) GiB\) on startup is less than [\w' ]+ "
     r"\(([0-9.]+), ([0-9.]+) GiB\)", _free_memory),
    (r"max seq len \((\d+)\), \(?([0-9.]+) GiB KV cache is needed, which is larger than the available KV cache "
     r"memory \(([0-9.]+) GiB\)", _context),
    (r"No available memory for the cache blocks",
     _always("the weights leave no GPU memory for the KV cache: use fewer bits, a larger GPU, more GPUs with "
             "--tensor-parallel-size, or a larger --gpu-memory-utilization")),
    (r"CUDA out of memory|OutOfMemoryError|HIP out of memory|not enough GPU memory",
     _always("the GPU's memory is too small for this server: end what else uses that GPU (nvidia-smi lists it), use "
             "fewer bits, more GPUs with --tensor-parallel-size, or a smaller --max-num-seqs")),
    (r"Unknown quantization method: ([\w-]+)", _quantization),
    (r"VLLM_PORT '([^']*)' (?:appears to be a URI|must be a valid integer)",
     _always("the variable VLLM_PORT is {0!r}, which Kubernetes sets for a service named vllm: unset it, or rename the "
             "service")),
    (r"(?i)address already in use|\[Errno 98\]",
     _always("another process took the port while the server started: choose another with --port, or end what is "
             "listening on it")),
    (r"unrecognized arguments: (.+)", _flag),
    (r"error: argument ([^:\n]+): (.+)", _always("vLLM does not accept the value of {0}: {1}")),
    (r"max_model_len \((\d+)\) is greater than the derived max_model_len \(\w+=(\d+)",
     _always("the model has a context of {1} tokens and the server was asked for {0}: give vLLM --max-model-len {1}")),
    (r"contains custom code|set the option `?trust_remote_code",
     _always("the checkpoint brings code of its own: read it, then pass vLLM's option to trust it after `--`")),
    (r"Found no NVIDIA driver|No CUDA GPUs are available|Failed to infer device type",
     _always("vLLM sees no GPU: see what `nvidia-smi` and CUDA_VISIBLE_DEVICES say, or use --device cpu")),
    (r"No space left on device",
     _always("a disk or /dev/shm is full: free space where the hub's cache is (HF_HOME), or give a container more "
             "--shm-size")),
    (r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to '?https?://|Failed to resolve '?huggingface",
     _always("the hub cannot be reached and the checkpoint is not in this machine's cache: give a folder, or check "
             "HF_ENDPOINT, the proxy and HF_HUB_OFFLINE")),
)  # fmt: skip


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
