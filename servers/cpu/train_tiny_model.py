"""Trains a tiny Llama to solve word problems, in minutes on one core, and writes problems it has not seen.

Runs under the Python of the server environment (torch, tokenizers, transformers), not under loadgen's:

    python train_tiny_model.py --out MODELS

Writes `trained` (bfloat16), `trained-int8` and `trained-fp8` as make_tiny_model.py does, and `problems.jsonl` in
GSM8K's schema: questions that were not trained on. The model is asked as the protocol `gsm8k_cot_zeroshot` asks. It
gets some of them wrong, so that what a precision loses can be measured. The same seed gives the same model on the same
kind of CPU.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from make_tiny_model import Shape, model_config, train_tokenizer, write_checkpoints
from tokenizers import Regex, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from word_problems import DEPTHS, Problem, held_out, training_problems

SHAPE = Shape(hidden=128, intermediate=256, layers=4, heads=2, kv_heads=1)
THREADS = 1
"""Operations are so short that a second thread costs more than it brings, the more if anything else runs."""
VOCABULARY = 640
TOKENIZER_PROBLEMS = 2000
HELD_OUT = 600
GRADED = 200
BATCH = 32
STEPS = 900
WARMUP_STEPS = 100
SORTED_BATCHES = 8
"""Problems of so many batches are sorted by length, so that little is padded."""
MATRIX_RATE = 0.02
"""Muon's, for the layers' matrices: it needs half the steps that AdamW needs."""
MOMENTUM = 0.95
DECAY = 0.01
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Keller Jordan's coefficients: five steps with them bring singular values between 0.5 and 1.5."""
RATE = 3e-3
"""AdamW's, for embeddings, norms and the output layer."""
LAST_RATE = 0.03
"""Share of the rate that is left at the end of the cosine."""
IGNORED = -100
"""cross_entropy's mark for a position without a target."""

Row = tuple[list[int], list[int]]
"""Token ids of a prompt, and of the completion with EOS."""


def digit_splitter() -> pre_tokenizers.PreTokenizer:
    """Byte-level words, every digit a token of its own."""
    digits = pre_tokenizers.Split(Regex(" ?[0-9]"), "isolated")
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def encode(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> Row:
    completion = tokenizer.encode(problem.completion, add_special_tokens=False)
    return tokenizer.encode(problem.prompt), [*completion, tokenizer.eos_token_id]


def batches(rows: Iterator[Row], pad: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids [BATCH, length], padded at the end, and the targets: the completion's tokens, else IGNORED."""
    order = random.Random(seed)
    while True:
        pool = sorted(islice(rows, BATCH * SORTED_BATCHES), key=lambda row: len(row[0]) + len(row[1]))
        groups = [pool[start : start + BATCH] for start in range(0, len(pool), BATCH)]
        order.shuffle(groups)
        for group in groups:
            longest = max(len(prompt) + len(completion) for prompt, completion in group)
            ids = torch.full((BATCH, longest), pad)
            targets = torch.full((BATCH, longest), IGNORED)
            for line, (prompt, completion) in enumerate(group):
                end = len(prompt) + len(completion)
                ids[line, :end] = torch.tensor(prompt + completion)
                targets[line, len(prompt) : end] = torch.tensor(completion)
            yield ids, targets


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon in single precision, matrices of one shape at once.

    That one multiplies in bfloat16: three quarters of a training's time on a CPU without instructions for it.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], rate: float) -> None:
        super().__init__(matrices, {"lr": rate})
        self._alike: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            self._alike.setdefault(matrix.shape, []).append(matrix)
        self._means = {shape: torch.zeros(len(alike), *shape) for shape, alike in self._alike.items()}

    @torch.no_grad()
    def step(self) -> None:
        rate = self.param_groups[0]["lr"]
        for shape, alike in self._alike.items():
            gradient = torch.stack([matrix.grad for matrix in alike])
            self._means[shape].lerp_(gradient, 1 - MOMENTUM)
            updates = orthogonal(gradient.lerp(self._means[shape], MOMENTUM))
            for matrix, update in zip(alike, updates, strict=True):
                matrix.mul_(1 - rate * DECAY)
                matrix.add_(update, alpha=-rate * math.sqrt(max(1, shape[0] / shape[1])))


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Each of these with all its singular values near 1, by Newton and Schulz."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    a, b, c = QUINTIC
    found = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found


def train(model: LlamaForCausalLM, tokens: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """STEPS steps on the completions alone, printing the mean loss of each hundred."""
    matrices = [weight for name, weight in model.named_parameters() if "_proj." in name]
    others = [weight for name, weight in model.named_parameters() if "_proj." not in name]
    optimizers = [
        Muon(matrices, MATRIX_RATE),
        torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.98), weight_decay=DECAY),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate_at) for optimizer in optimizers]
    started, losses = time.monotonic(), list[float]()
    for step, (ids, targets) in enumerate(islice(tokens, STEPS), start=1):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = targets[:, 1:] != IGNORED
        loss = cross_entropy(model.lm_head(hidden[wanted]), targets[:, 1:][wanted])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
        if step % 100 == 0:
            say(f"step {step} of {STEPS}, loss {sum(losses[-100:]) / 100:.3f}, {time.monotonic() - started:.0f} s")


def rate_at(step: int) -> float:
    """Share of the learning rate: a linear warm-up under a half cosine."""
    cosine = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * step / STEPS)) / 2
    return min(1.0, (step + 1) / WARMUP_STEPS) * cosine


@torch.no_grad()
def right_answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Problem]) -> list[bool]:
    """Whether greedy decoding ends in the right answer, problem by problem."""
    tokenizer.padding_side = "left"
    right = []
    for start in range(0, len(problems), 50):
        part = problems[start : start + 50]
        asked = tokenizer([problem.prompt for problem in part], return_tensors="pt", padding=True)
        answers = model.generate(
            input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], do_sample=False, max_new_tokens=128
        )[:, asked["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        right += [text.endswith(f"The answer is {p.gold}.") for text, p in zip(texts, part, strict=True)]
    return right


def say(line: str) -> None:
    """Progress, to standard error; standard output is for the result."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny checkpoint for vLLM's CPU build on word problems.")
    parser.add_argument("--out", type=Path, required=True, help="folder for trained, trained-int8 and problems.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    torch.set_num_threads(THREADS)
    torch.manual_seed(options.seed)

    asked = held_out(HELD_OUT, options.seed)
    source = training_problems(options.seed + 1, without=asked)
    lines = (problem.prompt + problem.completion for problem in islice(source, TOKENIZER_PROBLEMS))
    tokenizer = train_tokenizer(lines, VOCABULARY, digit_splitter())
    config = model_config(SHAPE, tokenizer)
    model = LlamaForCausalLM(LlamaConfig.from_dict(config | {"dtype": "float32", "initializer_range": 0.05}))
    rows = (encode(tokenizer, problem) for problem in source)
    train(model, batches(rows, tokenizer.pad_token_id, options.seed))

    model.to(torch.bfloat16)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    write_checkpoints(options.out, "trained", SHAPE, tokenizer, weights)
    (options.out / "problems.jsonl").write_text("".join(problem.row + "\n" for problem in asked))

    right = right_answers(model.eval(), tokenizer, asked[:GRADED])
    for depth in DEPTHS:
        of_depth = [is_right for is_right, p in zip(right, asked, strict=False) if len(p.steps) == depth]
        say(f"{depth} steps: {sum(of_depth)} of {len(of_depth)} right")
    minutes = (time.monotonic() - started) / 60
    print(f"trained in {minutes:.1f} minutes, {sum(right)} of {GRADED} unseen problems right")


if __name__ == "__main__":
    main()
