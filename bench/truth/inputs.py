"""What the peers need besides a server: prompts, and a tokenizer they can load without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

PROMPTS = 5000
"""GuideLLM asks each one once."""
WORDS = "each box holds the same number of pears and what is left is shared among them so we add both parts"
WORDS_PER_PROMPT = 100
UNKNOWN = "[UNK]"


class Inputs(msgspec.Struct, frozen=True):
    """Files in one folder."""

    tokenizer: Path
    """A folder that transformers loads: one token a word."""
    prompts: Path
    """JSON lines with a prompt as `text`."""


def write_inputs(folder: Path) -> Inputs:
    words = WORDS.split()
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys([UNKNOWN, *words, *map(str, range(1000))]))}
    unknown: dict[str, Any] = {"id": 0, "content": UNKNOWN, "special": True}
    unknown |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN}
    parts: dict[str, Any] = {"pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": [unknown], "model": model}
    parts |= dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    (tokenizer / "tokenizer.json").write_text(json.dumps({"version": "1.0", **parts}))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": UNKNOWN, "model_max_length": 32768}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"model_type": "gpt2", "vocab_size": len(vocabulary), "bos_token_id": None, "eos_token_id": None}
    (tokenizer / "config.json").write_text(json.dumps(config))
    prompts = folder / "prompts.jsonl"
    rows = [[words[(k + n) % len(words)] for n in range(WORDS_PER_PROMPT)] for k in range(PROMPTS)]
    prompts.write_text("".join(json.dumps({"text": " ".join(row)}) + "\n" for row in rows))
    return Inputs(tokenizer=tokenizer, prompts=prompts)
