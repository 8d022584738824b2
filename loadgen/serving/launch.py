"""Launch: the exact command of one server, planned before anything is started.

Also what vLLM's log (0.26 to 0.33) says of a server's settings and of a failed start.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from loadgen.errors import UsageError
from loadgen.secret import Mask
from loadgen.serving.checkpoint import local_quantization, note_of, require_quantization
from loadgen.serving.environment import default_environment
from loadgen.serving.gguf import gguf_file
from loadgen.serving.recipe import Device, Dtype, Naming, Recipe, expectations, fair_settings, in_sweep, load_recipe
from loadgen.serving.requirements import require_cpu, require_place
from loadgen.webserver import http_url

ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""Colours, cursor movements and titles of a terminal."""
ECHO = "root cause"
"""Part of those errors in vLLM's log that only refer to an earlier one."""
NAMED_ERROR = re.compile(r"^(\([^)]*\) )?(.*\bERROR\b.*\] )?[\w.]*(Error|Exception): ")
CONTAINER = re.compile(r"^loadgen: container \w+ of service \S+, process (\d+)$", re.MULTILINE)
"""The line in a container's log that names its main process: `loadgen.serving.project` prints it."""
WAITING = re.compile(r"No available shared memory broadcast block|[Ww]aiting for .* to (?:start|be ready)|Retrying in ")
"""Lines that vLLM repeats while it waits."""


class EngineSettings(msgspec.Struct, frozen=True):
    """Settings of a running engine by its log; None: not in the log."""

    eager: bool | None = None
    """Without torch.compile and CUDA graphs."""
    kv_cache_dtype: str | None = None
    """`auto`: the activation dtype, unless the checkpoint asks for another."""
    graph_sizes: tuple[int, ...] | None = None
    """Batches that CUDA graphs are captured for, ascending; empty in eager mode. Others are padded to the next."""
    workers: int | None = None
    """Processes that each hold a part of the model: tensor x pipeline x data parallel."""


_ADDRESS = "loadgen chooses where its servers listen: omit it"
_OWN = {
    "--host": _ADDRESS, "--port": _ADDRESS, "--uds": _ADDRESS, "--grpc": _ADDRESS, "--headless": _ADDRESS,
    "--ssl-keyfile": _ADDRESS, "--ssl-certfile": _ADDRESS,
    "--model": "give the model with --model before the `--`, a target's checkpoint as in --serve awq=ORG/NAME",
    "--quantization": "the recipe decides it: choose another recipe with --serve", "-q": "--quantization",
    "--dtype": "the recipe of the reference decides it: choose fp16 or bf16 with --serve",
    "--max-num-seqs": "give --max-num-seqs before the `--`",
    "--max-model-len": "give --max-model-len before the `--`",
    "--tensor-parallel-size": "give --tensor-parallel before the `--`", "-tp": "--tensor-parallel-size",
    "--reasoning-parser": "give --reasoning-parser before the `--`",
    "--enable-prefix-caching": "give --prefix-cache before the `--`",
    "--no-enable-prefix-caching": "the prefix cache is off unless --prefix-cache is given: omit it",
    "--no-enable-chunked-prefill": "every recipe runs with chunked prefill: omit it",
    "--stream-interval": "one event per token is what token times are read from: omit it",
    "--disable-log-stats": "the batch is read from /metrics, which it empties: omit it",
    "--config": "a file's settings would not be in the manifest: write them here as arguments",
    "--api-key": "every user of this machine can read a command line: set VLLM_API_KEY instead",
    "--hf-token": "every user of this machine can read a command line: set HF_TOKEN instead",
}  # fmt: skip
"""vLLM's options that loadgen sets itself for every server of a sweep, and what to do instead."""


def conflict(args: Sequence[str]) -> str | None:
    """One sentence if these vLLM arguments would change what a sweep sets itself, or hold a secret; else None."""
    if args and not args[0].startswith("-"):
        return f"{args[0]!r} is not an option of vLLM: give options, as in --enforce-eager"
    for word in args:
        name = word.partition("=")[0]
        if not name.startswith("-") or name.lstrip("-").replace(".", "").isdigit():
            continue
        if name.startswith("--"):
            name = name.replace("_", "-")
            whole = [known for known in _OWN if len(name) > len("--x") and known.startswith(name)]
            name = next((known for known in whole if known == name), whole[0] if len(whole) == 1 else name)
        elif name.startswith(("-tp", "-q")):
            name = "-tp" if name.startswith("-tp") else "-q"
        what = _OWN.get(_OWN.get(name, ""), _OWN.get(name))
        if what is not None:
            return f"{word.partition('=')[0]}: {what}"
    if Mask().argv(args) != tuple(args):
        return "they hold a secret, which every user of this machine could read: give it by a variable"
    return None


def plain(text: str) -> str:
    """The text without a terminal's escape sequences; each state of a progress bar becomes a line."""
    return ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def engine_settings(log: str) -> EngineSettings:
    """The settings in a plain log; the last start counts."""
    sizes = [_last(rf"{kind}_parallel_size=(\d+)", log) for kind in ("tensor", "pipeline", "data")]
    eager = _last(r"enforce_eager=(True|False)", log)
    return EngineSettings(
        eager=None if eager is None else eager == "True",
        graph_sizes=() if eager == "True" else _graph_sizes(log),
        kv_cache_dtype=_last(r"kv_cache_dtype=(\w+)", log),
        workers=int(sizes[0]) * int(sizes[1] or 1) * int(sizes[2] or 1) if sizes[0] else None,
    )


def _graph_sizes(log: str) -> tuple[int, ...] | None:
    found = _last(r"[\"']cudagraph_capture_sizes[\"']: ?\[([\d, ]*)\]", log) or ""
    sizes = sorted(set(map(int, re.findall(r"\d+", found))))
    largest = _last(r"Capping cudagraph capture sizes from max \d+ to (\d+)", log)
    return tuple(size for size in sizes if largest is None or size <= int(largest)) or None


def workers_of(argv: Sequence[str]) -> int | None:
    """The number of workers that a command's options ask for; None without such an option."""
    options = {"--tensor-parallel-size": "-tp", "--pipeline-parallel-size": "-pp", "--data-parallel-size": "-dp"}
    values = [option(argv, long) or option(argv, short) or "" for long, short in options.items()]
    sizes = [int(value) for value in values if value.isdigit()]
    return math.prod(sizes) if sizes else None


def option(argv: Sequence[str], name: str) -> str | None:
    """The value of the last `--name VALUE` or `--name=VALUE`, which wins; None without."""
    found = None
    for index, word in enumerate(argv):
        if word == name and index + 1 < len(argv):
            found = argv[index + 1]
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found


def named_errors(lines: Sequence[str]) -> list[str]:
    """The lines that name an error, without those that only refer to another one."""
    return [line for line in lines if NAMED_ERROR.search(line) and ECHO not in line]


def remedy(log: str) -> str | None:
    """One sentence about a failed start: what was wrong, with its values, and what to do. None: not known.

    The last known cause in the log counts: earlier ones, such as a file that the hub lacks, need not end a start.
    """
    found = [(match, sentence) for pattern, sentence in _REMEDIES for match in re.finditer(pattern, log)]
    if not found:
        return None
    match, sentence = max(found, key=lambda one: one[0].start())
    return sentence.format(*match.groups()) if isinstance(sentence, str) else sentence(match)


def _last(pattern: str, log: str) -> str | None:
    found = re.findall(pattern, log)
    return str(found[-1]) if found else None


def _free_memory(found: re.Match[str]) -> str:
    device, free, total, share, wanted = found.groups()
    return (
        f"GPU {device} has {free} of {total} GiB free and vLLM wants {wanted} ({float(share):.0%}): stop what else "
        "uses that GPU (nvidia-smi lists it), or give a smaller share: `-- --gpu-memory-utilization 0.8` at the end"
    )


def _quantization(found: re.Match[str]) -> str:
    method = found[1]
    plugins = {"bitsandbytes": "vllm-bnb-plugin bitsandbytes", "gguf": "vllm-gguf-plugin"}
    if method in plugins:
        return f"vLLM needs a plugin for {method}: `pip install {plugins[method]}` in vLLM's environment"
    return f"this vLLM does not know the quantization method {method}: use another vLLM version or another checkpoint"


def _gated(found: re.Match[str]) -> str:
    around = found.string[max(0, found.start() - 500) : found.end() + 500]
    repository = re.search(r"huggingface\.co/(?:api/models/)?([\w.-]+/[\w.-]*\w)", around)
    named = repository[1] if repository else "this checkpoint"
    return (
        f"the hub does not give {named} to this user: accept its licence on its page and set HF_TOKEN to a token that "
        "may read it"
    )


_REMEDIES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"GatedRepoError|Cannot access gated repo|You are trying to access a gated repo|401 Client Error|403 Client Error"
     r"|Access to model \S+ is restricted", _gated),
    (r"RepositoryNotFoundError|404 Client Error|is not a local folder and is not a valid model identifier",
     "the hub has no such checkpoint, or it is private: check its name, and set HF_TOKEN for a private one"),
    (r"Free memory on device (\S+) \(([0-9.]+)/([0-9.]+) GiB\) on startup is less than [\w' ]+ "
     r"\(([0-9.]+), ([0-9.]+) GiB\)", _free_memory),
    (r"max seq len \((\d+)\), \(?([0-9.]+) GiB KV cache is needed, which is larger than the available KV cache "
     r"memory \(([0-9.]+) GiB\)",
     "the KV cache of one request of {0} tokens needs {1} GiB and {2} GiB are left: give a smaller "
     "--max-model-len, more GPUs with --tensor-parallel, or a larger share: `-- --gpu-memory-utilization 0.95` at the "
     "end"),
    (r"No available memory for the cache blocks",
     "the weights leave no GPU memory for the KV cache: use fewer bits, a larger GPU, more GPUs with "
     "--tensor-parallel, or a larger share: `-- --gpu-memory-utilization 0.95` at the end"),
    (r"CUDA out of memory|OutOfMemoryError|HIP out of memory|not enough GPU memory",
     "the GPU's memory is too small for this server: stop what else uses that GPU (nvidia-smi lists it), use "
     "fewer bits, more GPUs with --tensor-parallel, or a smaller --max-num-seqs"),
    (r"Unknown quantization method: ([\w-]+)", _quantization),
    (r"(?:desc_act=True\)|activation ordering \(actorder=\S+\)) is no longer supported",
     "this vLLM no longer serves checkpoints with activation order (act-order): use another, or vLLM 0.26"),
    (r"The quantization method (\S+) is not supported for the current GPU. Minimum capability: (\d+). Current "
     r"capability: (\d+)",
     lambda found: f"this GPU has compute capability {int(found[3]) / 10:.1f} and {found[1]} needs "
     f"{int(found[2]) / 10:.1f}: use a newer GPU, or another recipe of `loadgen serve --list`"),
    (r"(\S+) is not supported for quantization method (\S+). Supported dtypes: (\[[^\]]*\])",
     "{1} cannot be served with activations of {0}, only of {2}: give --dtype, or make a recipe of that dtype the "
     "reference"),
    (r"Failed to find a kernel that can implement the (.+?) linear layer",
     "this vLLM has no kernel for {0} weights of these sizes on this device: use another GPU, or another recipe of "
     "`loadgen serve --list`"),
    (r"has no attribute 'cpu_gemm_wna16'",
     "this CPU has no AVX-512, which vLLM needs for 4-bit weights: use a GPU, or a recipe of 8 or 16 bits"),
    (r"_C::static_scaled_fp8_quant\(\) expected",
     "vLLM's CPU build cannot scale FP8 activations by the checkpoint: use one with dynamic activations"),
    (r"FP8 KV cache on CPU requires|FP8 KV cache is not supported by",
     "an FP8 KV cache needs a CPU with AVX-512 or a newer GPU (compute capability 8.9); or omit --kv-cache-dtype fp8"),
    (r"install torchao", "vLLM needs torchao: `pip install torchao` in vLLM's environment"),
    (r"VLLM_PORT '([^']*)' (?:appears to be a URI|must be a valid integer)",
     "the variable VLLM_PORT is {0!r}, which Kubernetes sets for a service named vllm: unset it, or rename the "
     "service"),
    (r"(?i)address already in use|\[Errno 98\]",
     "another process took the port while the server started: start it again, or stop what is listening on it"),
    (r"unrecognized arguments: (.*\S)",
     "this vLLM does not know {0}: omit it if you gave it, else use vLLM 0.26 to 0.33, which the recipes are "
     "written for"),
    (r"error: argument ([^:\n]+): (.+)", "vLLM does not accept the value of {0}: {1}"),
    (r"max_model_len \((\d+)\) is greater than the derived max_model_len \(\w+=(\d+)",
     "the model has a context of {1} tokens and the server was asked for {0}: give --max-model-len {1}"),
    (r"contains custom code|set the option `?trust_remote_code",
     "the checkpoint contains its own code: read it, then pass vLLM's option to trust it after `--`"),
    (r"could not select device driver",
     "containers cannot have the GPU: `loadgen doctor --mode docker` says how to install NVIDIA's container toolkit"),
    (r"pull access denied|manifest (?:for \S+ )?(?:unknown|not found)|repository does not exist",
     "an image of the service can be neither pulled nor built: run `docker compose build`, or see VLLM_IMAGE in .env"),
    (r"Found no NVIDIA driver|No CUDA GPUs are available|Failed to infer device type",
     "vLLM sees no GPU: see what `nvidia-smi` and CUDA_VISIBLE_DEVICES say, or use --device cpu"),
    (r"No space left on device",
     "a disk or /dev/shm is full: free space where the hub's cache is (HF_HOME), or give a container more "
     "--shm-size"),
    (r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to '?https?://|Failed to resolve '?huggingface",
     "the hub cannot be reached and the checkpoint is not in this machine's cache: give a folder, or check "
     "HF_ENDPOINT, the proxy and HF_HUB_OFFLINE"),
)  # fmt: skip


API_KEY = "VLLM_API_KEY"
"""The variable from which vLLM takes the key that its clients must send."""
_AS_VARIABLES = {"--api-key": API_KEY, "--hf-token": "HF_TOKEN"}
"""vLLM's options whose value is a secret, and the variables that say the same."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One server process: what to run, where it listens, and what its log must show."""

    name: str
    """Unique in a run; the target's name."""
    precision: str
    argv: tuple[str, ...]
    runner: tuple[str, ...] = ()
    """What is run here, where `argv` and `env` are those of a container (`loadgen.serving.project`)."""
    gpus: tuple[str, ...] = ()
    """Those that its container gets, by NVML's index or UUID; empty if none were chosen."""
    env: dict[str, str] = {}
    """Variables added to loadgen's own environment."""
    host: str = "127.0.0.1"
    port: int
    device: Device = "cpu"
    expect: tuple[str, ...] = ()
    """Regular expressions that the log must show."""
    kernel: str | None = None
    """A regular expression whose first group names the kernel that was selected."""
    emulating: str | None = None
    """A regular expression that finds something in the names of kernels that do not compute in the format."""
    simulated: bool = False
    checkpoint: str | None = None
    """The folder or id that vLLM serves; None for a simulated server."""
    dtype: Dtype | None = None
    """The activation dtype; None for a simulated server."""
    in_flight: bool = False
    """The recipe quantizes the checkpoint while loading."""
    note: str | None = None
    """`loadgen_note` of the checkpoint's config.json."""

    @property
    def started(self) -> tuple[str, ...]:
        """The command that is run on this machine."""
        return self.runner or self.argv

    @property
    def needs_secrets(self) -> bool:
        """Whether it may need a token or key of loadgen's environment: vLLM may, a simulated server does not."""
        return self.checkpoint is not None or (bool(self.runner) and not self.simulated)

    @property
    def api_key(self) -> str | None:
        """The key that its clients must send, the first of several; None: it asks for none."""
        named = option(self.argv, "--api-key") or self.env.get(API_KEY)
        return named or (os.environ.get(API_KEY) or None if self.checkpoint is not None else None)

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return http_url(self.host, self.port)

    @property
    def shell(self) -> str:
        """The command with its environment, quoted for a POSIX shell; secrets are masked."""
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
    tensor_parallel: int | None = None,
    max_model_len: int | None = None,
    naming: Naming = in_sweep,
    extra_args: Sequence[str] = (),
    host: str = "127.0.0.1",
) -> Launch:
    """The vLLM server of a recipe for the 16-bit `model`, an id or a folder.

    `dtype` is the activation dtype of recipes that do not fix their own (default: the device's); `checkpoint`
    overrides the recipe's choice; `vllm` is the command (default: `find_vllm`); `tensor_parallel` GPUs share the model
    (default: the recipe's number, else 1); `max_model_len` tokens are the most of prompt and answer (default: that of
    all recipes); `naming` is how a sentence gives a checkpoint; `extra_args` come last and win; keys and tokens among
    them become variables, since every user can read a command line. Raises UsageError when the recipe has no checkpoint
    for the model, the checkpoint's config.json on this machine is of another kind, this CPU cannot run it, or no vLLM
    is found.
    """
    if device == "cpu":
        require_cpu(recipe)
    require_place(model)
    require_place(served := gguf_file(checkpoint or recipe.checkpoint_for(model, naming)))
    in_flight = recipe.in_flight_args if served == model else ()
    extra_args, secret_env = _secrets_apart(extra_args)
    require_quantization(recipe, served, in_flight=bool(in_flight), online=False, naming=naming)
    fair = fair_settings().caching_prefixes() if prefix_cache else fair_settings()
    on_device = fair.device[device]
    activation = recipe.dtype or dtype or on_device.dtype
    local, source = Path(served).expanduser(), Path(model).expanduser()
    if local.exists():
        served = str(local.resolve())
    named = {"{model}": str(source.resolve()) if source.is_dir() else model}
    quantization = local_quantization(served)
    asks_for_cache = quantization is not None and quantization.kv_cache is not None
    kv_cache_dtype = activation if asks_for_cache else on_device.kv_cache_dtype or activation
    shared = tensor_parallel or recipe.tensor_parallel or 1
    fair_args = list(fair.args)
    if max_model_len is not None:
        fair_args[fair_args.index("--max-model-len") + 1] = str(max_model_len)
    argv = (
        vllm or find_vllm(device), "serve", served, "--host", host, "--port", str(port),
        "--dtype", activation, "--kv-cache-dtype", kv_cache_dtype, "--max-num-seqs", str(max_num_seqs),
        *(("--tensor-parallel-size", str(shared)) if shared > 1 else ()),
        *fair_args, *on_device.args, *(named.get(word, word) for word in recipe.args), *in_flight, *extra_args,
    )  # fmt: skip
    expect = expectations(recipe, activation, option(argv, "--kv-cache-dtype"), fair)
    offline = {"HF_HUB_OFFLINE": "1"} if local.is_dir() or (local.is_file() and source.is_dir()) else {}
    return Launch(
        name=recipe.name,
        precision=recipe.name,
        argv=argv,
        env={**fair.env, **on_device.env, **offline, **recipe.env, **secret_env},
        host=host,
        port=port,
        device=device,
        expect=expect,
        kernel=recipe.kernel,
        emulating=recipe.emulating,
        checkpoint=served,
        dtype=activation,
        in_flight=bool(in_flight),
        note=note_of(served),
    )


def confirm_checkpoint(launch: Launch, naming: Naming = in_sweep) -> None:
    """Raises UsageError when the hub can be asked and says that the checkpoint is not what the recipe serves."""
    if launch.checkpoint is not None:
        recipe = load_recipe(launch.precision)
        require_quantization(recipe, launch.checkpoint, in_flight=launch.in_flight, online=True, naming=naming)


def plan_simulated(
    precision: str, *, port: int, seed: int = 0, data_file: Path | None = None, extra_args: Sequence[str] = ()
) -> Launch:
    """A simulated server of that precision, run by this Python; it takes its answers from the dataset's items."""
    options = ["--precision", precision, "--port", str(port), "--seed", str(seed)]
    options += [] if data_file is None else ["--data-file", str(data_file)]
    argv = (sys.executable, "-m", "loadgen", "simulate", *options, *extra_args)
    return Launch(name=precision, precision=precision, argv=argv, port=port, simulated=True)


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
    remedy = "run `loadgen cpu-env` to build one" if device == "cpu" else "install it with `pip install vllm`"
    raise UsageError(f"no vllm command for device {device!r} was found; {remedy}, or name one with --vllm PATH")


def _secrets_apart(args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without secrets, and the secrets as variables; an option with several values is left as it is."""
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
