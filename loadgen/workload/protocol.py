"""Protocol: how a question becomes a request, and where its answer must stop."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadgen.errors import UsageError
from loadgen.workload import gsm8k, sample
from loadgen.workload.dataset import existing_file
from loadgen.workload.item import Item
from loadgen.workload.published import fetch, sha256_of

SHOTS = 5


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """Prompt, stops and limit under a name that says where the shots came from.

    The template, the stops and the limit of 256 tokens are those of lm-evaluation-harness's task `gsm8k`
    (version 3); its shots are drawn per question, these are the same five for every question.
    """

    name: str
    shots: tuple[Item, ...]
    stops: tuple[str, ...]
    max_tokens: int
    api: str
    """`completions` or `chat`: what the protocol uses unless `--api` says otherwise."""

    def prompt(self, item: Item) -> str:
        """The whole prompt: worked examples, a blank line between them, then the question."""
        shots = [f"Question: {shot.question}\nAnswer: {shot.solution}" for shot in self.shots]
        return "\n\n".join([*shots, f"Question: {item.question}\nAnswer:"])

    @property
    def sha256(self) -> str:
        """Changes when anything that shapes a request changes: template, shots, stops or limit."""
        probe = Item(id="", question="{question}", solution="", gold="")
        content = [self.prompt(probe), list(self.stops), self.max_tokens, self.api]
        return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def load_protocol(name: str, *, shots_file: Path | None = None) -> Protocol:
    """The protocol `gsm8k` with five shots, or `sample`: the same with one shot, for trying things out.

    Full names: `gsm8k-5shot-train` with shots from GSM8K's train split (`shots_file`, else the cache, else downloaded),
    `gsm8k-5shot-custom` from another file, `gsm8k-5shot-own` with shots written for this project; `sample-1shot-own`.
    Raises UsageError for an unknown name or a bad shots file.
    """
    if name == "sample":
        if shots_file is not None:
            raise UsageError(f"--shots-file {shots_file} needs --protocol gsm8k: 'sample' has its own shot")
        return _protocol("sample-1shot-own", sample.own_shots()[:1])
    if name != "gsm8k":
        raise UsageError(f"unknown protocol {name!r}; known: gsm8k, sample")
    train = _train_split(shots_file)
    if train is None:
        source, shots = "own", sample.own_shots()
    else:
        source, shots = "train", gsm8k.read_gsm8k(train, split="train")
        if sha256_of(train) != gsm8k.TRAIN.sha256:
            source = "custom"
    if len(shots) < SHOTS:
        raise UsageError(f"--shots-file {shots_file} holds {len(shots)} examples; {name} needs {SHOTS}")
    return _protocol(f"gsm8k-{SHOTS}shot-{source}", shots[:SHOTS])


def _protocol(name: str, shots: Sequence[Item]) -> Protocol:
    return Protocol(
        name=name,
        shots=tuple(shots),
        stops=("Question:", "</s>", "<|im_end|>"),
        max_tokens=256,
        api="completions",
    )


def _train_split(shots_file: Path | None) -> Path | None:
    if shots_file is not None:
        return existing_file(shots_file, "--shots-file")
    try:
        return fetch(gsm8k.TRAIN)
    except UsageError:
        return None
