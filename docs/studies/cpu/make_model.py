"""Writes the study's model: a Llama of 104 million random weights, as bfloat16, int8 and fp8 checkpoints.

Runs under the Python of the server environment (`loadgen cpu-env`), which has torch:

    ~/.cache/loadgen/cpu/venv/bin/python docs/studies/cpu/make_model.py --out MODELS
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tokenizers import pre_tokenizers

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "servers" / "cpu"))
from make_tiny_model import VOCABULARY, Shape, random_weights, texts, train_tokenizer, write_checkpoints  # noqa: E402

# 208 MB in bfloat16: far beyond this class of machine's caches, so that every step reads its weights from memory.
SMALL = Shape(hidden=768, intermediate=2048, layers=16, heads=12, kv_heads=4)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the checkpoints of the CPU study.")
    parser.add_argument("--out", type=Path, required=True, help="folder for small, small-int8 and small-fp8")
    options = parser.parse_args()
    sample = PROJECT / "loadgen" / "workload" / "sample.jsonl"
    tokenizer = train_tokenizer(texts([sample]), VOCABULARY, pre_tokenizers.ByteLevel(add_prefix_space=False))
    weights = random_weights(SMALL, len(tokenizer), seed=0)
    write_checkpoints(options.out, "small", SMALL, tokenizer, weights)
    print(f"vocabulary {len(tokenizer)}, parameters {sum(w.numel() for w in weights.values()):,}")


if __name__ == "__main__":
    main()
