"""vLLM's log: the settings that it runs with, and the remedy for what ended its start. Read in vLLM 0.26 to 0.33."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

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
