"""Quantizes one model into formats of llm-compressor; `loadgen quantize` runs it with that library's own Python.

Its one argument is a JSON object: `model` (folder or id), `texts` (a file of JSON lines, each `{"text": ...}` or
`{"messages": [...]}`; null: no format needs any), `max_tokens`, and `jobs`: each a `format`, a `group_size` and the
folder `out`. It prints a line that starts with EVENT before and after each job.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

EVENT = "loadgen-event "
IGNORED = ["lm_head", r"re:.*mlp\.gate$", r"re:.*block_sparse_moe\.gate$"]
"""The output layer, and the routers of mixtures of experts."""
SMOOTHING = 0.8
"""How much of the activations' range SmoothQuant moves into the weights."""
PRESETS = {"w4a16-gptq": "W4A16", "w4a16-awq": "W4A16_ASYM", "int8": "W8A8", "fp8": "FP8_DYNAMIC"}


def tell(**event: object) -> None:
    print(EVENT + json.dumps(event), flush=True)


def scheme(name: str, group_size: int | None) -> QuantizationScheme:
    """compressed-tensors' preset, with another group size where weights are in groups."""
    found = preset_name_to_scheme(PRESETS[name], ["Linear"])
    if group_size is not None:
        found.weights.group_size = group_size
    return found


def modifiers(name: str, group_size: int | None) -> list[Any]:
    """The steps of the format."""
    settings = {"config_groups": {"group_0": scheme(name, group_size)}, "ignore": IGNORED}
    if name == "w4a16-awq":
        return [AWQModifier(), QuantizationModifier(**settings)]
    if name == "w4a16-gptq":
        return [GPTQModifier(**settings)]
    if name == "int8":
        return [SmoothQuantModifier(smoothing_strength=SMOOTHING), GPTQModifier(**settings)]
    return [QuantizationModifier(**settings)]


def calibration(tokenizer: PreTrainedTokenizerBase, file: str, max_tokens: int) -> Dataset:
    """The texts as tokens, conversations by the model's chat template."""
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    texts = []
    for row in rows:
        if "messages" not in row:
            texts.append(row["text"])
        elif tokenizer.chat_template:
            texts.append(tokenizer.apply_chat_template(row["messages"], tokenize=False))
        else:
            texts.append("\n".join(message["content"] for message in row["messages"]))
    encoded = [tokenizer(text, truncation=True, max_length=max_tokens) for text in texts]
    return Dataset.from_list([{key: list(one[key]) for key in ("input_ids", "attention_mask")} for one in encoded])


def quantize(model_id: str, job: dict[str, Any], texts: str | None, max_tokens: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype="auto")
    wanted = {}
    if texts is not None and job["calibrated"]:
        dataset = calibration(tokenizer, texts, max_tokens)
        wanted = {"dataset": dataset, "num_calibration_samples": len(dataset), "max_seq_length": max_tokens}
    oneshot(model=model, processor=tokenizer, recipe=modifiers(job["format"], job["group_size"]), **wanted)
    model.save_pretrained(job["out"], save_compressed=True)
    tokenizer.save_pretrained(job["out"])


def main() -> None:
    order = json.loads(sys.argv[1])
    if not torch.accelerator.is_available():
        # AWQ pins batches for faster copies to an accelerator, which fails where there is none to copy to.
        IntermediatesCache.pin_memory = lambda *_, **__: None
    packages = ("llmcompressor", "compressed-tensors", "transformers", "torch")
    tell(packages={name: importlib.metadata.version(name) for name in packages},
         device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")  # fmt: skip
    for job in order["jobs"]:
        tell(begun=job["format"])
        began_s = time.monotonic()
        quantize(order["model"], job, order["texts"], order["max_tokens"])
        tell(done=job["format"], duration_s=round(time.monotonic() - began_s, 1))
        gc.collect()


if __name__ == "__main__":
    main()
