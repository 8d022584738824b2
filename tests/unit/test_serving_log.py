"""vLLM's log, as versions 0.26 to 0.33 write it: settings, memory over all workers, the remedy for a failed start."""

from __future__ import annotations

import re

import pytest

from loadgen.serving.facts import kv_cache_bytes, model_bytes
from loadgen.serving.launch import EngineSettings, engine_settings, option, plain, remedy, workers_of
from loadgen.serving.process import emulation
from loadgen.serving.recipe import fair_settings, load_recipe, load_recipes

# The line of each version: 0.26 to 0.31, 0.32, 0.33 differ in what stands between these settings.
CONFIG = {
    "0.26.0": "load_format=auto, tensor_parallel_size={tp}, pipeline_parallel_size=1, data_parallel_size=1, "
    "decode_context_parallel_size=1, dcp_comm_backend=ag_rs, disable_custom_all_reduce=False, quantization={q}, "
    "quantization_config=None, enforce_eager={eager}, enable_return_routed_experts=False, kv_cache_dtype={kv}, "
    "device_config=cuda, ",
    "0.32.0": "load_format=auto, tensor_parallel_size={tp}, pipeline_parallel_size=1, data_parallel_size=1, "
    "quantization={q}, quantization_config=None, enforce_eager={eager}, kv_cache_dtype={kv}, device_config=cpu, ",
    "0.33.0": "tensor_parallel_size={tp}, pipeline_parallel_size=1, data_parallel_size=1, quantization={q}, "
    "quantization_config=None, enforce_eager={eager}, aux_output_config=None, kv_cache_dtype={kv}, ",
}
END = "enable_prefix_caching=False, enable_chunked_prefill=True, pooler_config=None"
QUANTIZATION = {
    "awq": ("awq", "awq_marlin", "auto_awq"), "gptq": ("gptq", "gptq_marlin", "auto_gptq"), "fp16": ("None",),
    "bf16": ("None",), "int8": ("compressed-tensors",), "bnb-nf4": ("bitsandbytes",), "bnb-int8": ("bitsandbytes",),
    "fp8": ("fp8", "compressed-tensors", "fp8_per_channel", "online"), "w4a16": ("compressed-tensors",),
    "w8a16": ("compressed-tensors",), "gptq-int8": ("gptq", "auto_gptq"), "fp16-kvfp8": ("None",),
    "nvfp4": ("compressed-tensors", "modelopt_fp4"), "mxfp4": ("compressed-tensors", "gpt_oss_mxfp4"),
    "fp8-block": ("fp8", "compressed-tensors", "modelopt"), "modelopt-fp8": ("modelopt",), "torchao": ("torchao",),
    "gguf": ("gguf",),
}  # fmt: skip


def config(version: str, *, tp: int = 1, q: str = "None", eager: bool = False, kv: str = "bfloat16") -> str:
    middle = CONFIG[version].format(tp=tp, q=q, eager=eager, kv=kv)
    head = (
        f"(EngineCore pid=9) INFO 11-28 22:00:00 [core.py:134] Initializing a V1 LLM engine (v{version}) with config: "
    )
    return f"{head}model='x', dtype=torch.bfloat16, max_seq_len=4096, {middle}{END}\n"


@pytest.mark.parametrize("version", CONFIG)
def test_the_patterns_of_every_recipe_match_the_log_of_every_version(version: str) -> None:
    for name, recipe in load_recipes().items():
        for quantization in QUANTIZATION[name]:
            cache = "fp8" if name == "fp16-kvfp8" else "bfloat16"
            log = config(version, q=quantization, kv=cache)
            for pattern in (*fair_settings().expect, *recipe.expect):
                filled = pattern.replace("{dtype}", "bfloat16").replace("{kv_cache_dtype}", cache)
                assert re.search(filled, log), (name, pattern)


# (recipe, a line of vLLM 0.26 to 0.33, the kernel, whether it computes in 16 bits though the recipe's format has fewer)
KERNELS = [
    ("w4a16", "Using MacheteLinearKernel for mixed-precision linear", "MacheteLinearKernel", False),
    ("w4a16", "Using MarlinLinearKernel for CompressedTensorsWNA16", "MarlinLinearKernel", False),
    ("w8a16", "Using MarlinLinearKernel for mixed-precision linear", "MarlinLinearKernel", False),
    ("gptq-int8", "Using MarlinLinearKernel for AutoGPTQLinearMethod", "MarlinLinearKernel", False),
    ("nvfp4", "Using FlashInferCutlassNvFp4LinearKernel for NVFP4 GEMM", "FlashInferCutlassNvFp4LinearKernel", False),
    ("nvfp4", "Using MarlinNvFp4LinearKernel for NVFP4 GEMM", "MarlinNvFp4LinearKernel", True),
    ("nvfp4", "Using 'VLLM_CUTLASS' NvFp4 MoE backend out of potential backends: ['MARLIN'].", "VLLM_CUTLASS", False),
    ("mxfp4", "Using HummingMxFp4LinearKernel for MXFP4 GEMM", "HummingMxFp4LinearKernel", True),
    ("mxfp4", "Using 'TRITON' Mxfp4 MoE backend.", "TRITON", True),
    ("mxfp4", "Using 'FLASHINFER_TRTLLM_MXFP4_MXFP8' Mxfp4 MoE backend.", "FLASHINFER_TRTLLM_MXFP4_MXFP8", False),
    ("fp8-block", "Selected DeepGemmFp8BlockScaledMMKernel for Fp8LinearMethod",
     "DeepGemmFp8BlockScaledMMKernel for Fp8LinearMethod", False),
    ("fp8-block", "Selected MarlinFP8ScaledMMLinearKernel for Fp8LinearMethod",
     "MarlinFP8ScaledMMLinearKernel for Fp8LinearMethod", True),
    ("fp8-block", "Using TRITON Fp8 MoE backend out of potential backends: ['X'].", "TRITON Fp8 MoE backend", False),
    ("fp8", "Selected MarlinFP8ScaledMMLinearKernel for CompressedTensorsW8A8Fp8",
     "MarlinFP8ScaledMMLinearKernel for CompressedTensorsW8A8Fp8", True),
    ("modelopt-fp8", "Selected PerTensorTorchFP8ScaledMMLinearKernel for QKVParallelLinear",
     "PerTensorTorchFP8ScaledMMLinearKernel for QKVParallelLinear", False),
    ("fp16-kvfp8", "Using FLASHINFER attention backend out of potential backends: ['FLASHINFER', 'TRITON_ATTN'].",
     "FLASHINFER", False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "kernel", "emulated"), KERNELS)
def test_the_log_says_which_kernel_ran_and_whether_the_gpu_has_units_for_the_format(
    name: str, line: str, kernel: str, emulated: bool
) -> None:
    recipe = load_recipe(name)
    assert recipe.kernel is not None
    found = re.search(recipe.kernel, f"(EngineCore pid=1) INFO 11-29 16:41:13 [__init__.py:797] {line}\n")
    assert found is not None
    assert found[1] == kernel
    sentences = emulation((kernel,), recipe.emulating)
    assert [sentence.partition(" unpacks")[0] for sentence in sentences] == [kernel] * emulated


@pytest.mark.parametrize("version", CONFIG)
def test_eager_mode_the_kv_cache_and_the_workers_are_read(version: str) -> None:
    assert engine_settings(config(version)) == EngineSettings(eager=False, kv_cache_dtype="bfloat16", workers=1)
    log = config(version, tp=2, eager=True, kv="fp8")
    assert engine_settings(log) == EngineSettings(eager=True, kv_cache_dtype="fp8", graph_sizes=(), workers=2)


@pytest.mark.parametrize("quote", ["'", '"'])
def test_the_sizes_of_cuda_graphs_are_read_as_old_and_new_versions_write_them(quote: str) -> None:
    sizes = f"{quote}compile_sizes{quote}: [], {quote}cudagraph_capture_sizes{quote}:[16,8, 4,2,1],"
    assert engine_settings(config("0.33.0") + sizes).graph_sizes == (1, 2, 4, 8, 16)
    capped = "WARNING [compilation.py:1233] Capping cudagraph capture sizes from max 16 to 8 to fit\n"
    assert engine_settings(config("0.33.0") + sizes + capped).graph_sizes == (1, 2, 4, 8)
    assert engine_settings(config("0.33.0", eager=True) + sizes).graph_sizes == ()


def test_colours_and_rewritten_lines_are_not_in_a_plain_log() -> None:
    coloured = "\x1b[0;36m(Engine pid=1)\x1b[0;0m INFO \x1b[90m[core.py:1]\x1b[0m dtype=\x1b[1mtorch.bfloat16\x1b[0m,"
    assert plain(coloured) == "(Engine pid=1) INFO [core.py:1] dtype=torch.bfloat16,"
    assert plain("a\r\n10%\r20%\n\x1b]0;title\x07b") == "a\n10%\n20%\nb"
    assert engine_settings(plain(coloured)) == EngineSettings()


def test_memory_is_that_of_all_workers_whether_each_logs_its_own_line_or_one_for_all() -> None:
    weights = "(Worker_TP{} pid=1) INFO [gpu_model_runner.py:5] Model loading took 3.5 GiB memory and 3.1 seconds\n"
    cache = "(Worker_TP0 pid=1) INFO [gpu_worker.py:7] Available KV cache memory: 10.25 GiB\n"
    fixed = "Initial free memory 78.0 GiB, reserved 8.0 GiB memory for KV Cache as specified by kv_cache_memory_bytes\n"
    each = weights.format(0) + weights.format(1)
    assert model_bytes(each, 2) == model_bytes(weights.format(0), 2) == model_bytes(each) == 7 * 2**30
    assert kv_cache_bytes(cache, 2) == kv_cache_bytes(cache * 2, 2) == 20.5 * 2**30
    assert kv_cache_bytes(cache) == 10.25 * 2**30
    assert kv_cache_bytes(fixed, 4) == 32 * 2**30
    assert model_bytes("nothing of the kind", 2) is None


def test_the_command_says_how_many_workers_where_the_log_does_not() -> None:
    assert workers_of(("vllm", "serve", "m", "--tensor-parallel-size", "2", "-pp=3")) == 6
    assert workers_of(("vllm", "serve", "m")) is None
    assert option(("--dtype", "float16", "--dtype=bfloat16"), "--dtype") == "bfloat16"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("OSError: You are trying to access a gated repo.\nMake sure to have access to it at "
         "https://huggingface.co/org/name.", "does not give org/name to this user: accept its licence"),
        ("401 Client Error. Cannot access gated repo for url https://huggingface.co/org/name/resolve/main/config.json",
         "org/name to this user: accept its licence on its page and set HF_TOKEN"),
        ("huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.", "the hub has no such checkpoint"),
        ("ValueError: Free memory on device cuda:0 (1.2/23.6 GiB) on startup is less than desired GPU memory "
         "utilization (0.92, 21.7 GiB).",
         "GPU cuda:0 has 1.2 of 23.6 GiB free and vLLM wants 21.7 (92%): stop what else uses"),
        ("ValueError: To serve at least one request with the model's max seq len (4096), (4.5 GiB KV cache is needed, "
         "which is larger than the available KV cache memory (1.25 GiB).",
         "one request of 4096 tokens needs 4.5 GiB and 1.25 GiB are left: give a smaller --max-model-len"),
        ("ValueError: No available memory for the cache blocks.", "leave no GPU memory for the KV cache"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", "memory is too small for this server"),
        ("Value error, Unknown quantization method: bitsandbytes. Must be one of", "install vllm-bnb-plugin bitsan"),
        ("Value error, Unknown quantization method: gguf. Must be one of", "pip install vllm-gguf-plugin"),
        ("Value error, Unknown quantization method: aqlm. Must be one of", "know the quantization method aqlm"),
        ("ValueError: VLLM_PORT 'tcp://10.0.0.1:8000' appears to be a URI.", "VLLM_PORT is 'tcp://10.0.0.1:8000'"),
        ("OSError: [Errno 98] Address already in use", "took the port while the server started: start it again"),
        ("vllm: error: unrecognized arguments: --new-flag", "does not know --new-flag: omit it"),
        ("vllm: error: argument --dtype: invalid choice: 'x'", "does not accept the value of --dtype: invalid choice"),
        ("User-specified max_model_len (4096) is greater than the derived max_model_len (max_position=2048 or",
         "a context of 2048 tokens and the server was asked for 4096: give --max-model-len 2048"),
        ("RuntimeError: No CUDA GPUs are available", "vLLM sees no GPU"),
        ("Value error, GPTQ group activation ordering (desc_act=True) is no longer supported. Use a checkpoint with",
         "this vLLM no longer serves checkpoints with activation order"),
        ("ValueError: Compressed-tensors group/dynamic activation ordering (actorder='group') is no longer supported.",
         "use another, or vLLM 0.26"),
        ("ValueError: The quantization method modelopt is not supported for the current GPU. Minimum capability: 89. "
         "Current capability: 80.", "this GPU has compute capability 8.0 and modelopt needs 8.9: use a newer GPU"),
        ("ValueError: torch.float16 is not supported for quantization method mxfp4. Supported dtypes: [torch.bfloat16]",
         "mxfp4 cannot be served with activations of torch.float16, only of [torch.bfloat16]: give --dtype"),
        ("ValueError: Failed to find a kernel that can implement the NVFP4 linear layer. Reasons: ",
         "no kernel for NVFP4 weights of these sizes on this device"),
        ("AttributeError: '_OpNamespace' '_C' object has no attribute 'cpu_gemm_wna16'", "this CPU has no AVX-512"),
        ("RuntimeError: _C::static_scaled_fp8_quant() expected at most 0 argument(s) but received 4",
         "cannot scale FP8 activations by the checkpoint: use one with dynamic activations"),
        ("NotImplementedError: FP8 KV cache on CPU requires x86 with AVX-512 or AMX.", "omit --kv-cache-dtype fp8"),
        ("ImportError: Please install torchao>=0.10.0 via `pip install torchao>=0.10.0` to use torchao quantization.",
         "`pip install torchao` in vLLM's environment"),
        ("OSError: [Errno 28] No space left on device", "a disk or /dev/shm is full"),
    ],
)  # fmt: skip
def test_a_failed_start_is_explained_with_its_values_and_a_remedy(line: str, said: str) -> None:
    found = remedy(
        f"(APIServer pid=7) INFO starting\n(APIServer pid=7) {line}\n(APIServer pid=7) RuntimeError: See root"
    )
    assert found is not None
    assert said in found
    assert "\n" not in found


def test_the_last_cause_in_the_log_counts() -> None:
    found = remedy(
        "WARNING 404 Client Error. for url .../generation_config.json\ntorch.OutOfMemoryError: CUDA out of memory"
    )
    assert found is not None
    assert found.startswith("the GPU's memory is too small")


def test_what_is_not_known_has_no_remedy() -> None:
    assert remedy("(APIServer pid=7) ValueError: something new") is None
