"""Cost: what a sweep will take, said before it starts: minutes, downloads, and the memory of each target's server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from loadgen.measure.plan import SweepPlan
from loadgen.serving.checkpoint import cache_folder, cached_snapshot, downloaded_bytes, free_bytes
from loadgen.serving.launch import Launch, option, workers_of
from loadgen.serving.memory import ModelSize, size_of
from loadgen.serving.recipe import load_recipe

CHARACTERS_PER_TOKEN = 3.0
"""Few, so that prompts are not taken for shorter than they are: English text has about 4."""
MOST_PROMPTS = 200
"""That are looked at."""
GB, GIB = 1e9, 2**30


def cost_sentences(plan: SweepPlan, launches: Mapping[str, Launch]) -> Iterator[str]:
    """What the sweep costs, a sentence each; `launches`: the server of each target that loadgen starts.

    The memory is an estimate by the model's config.json: weights, and keys and values of the largest batch with the
    longest prompts and answers. Nothing is said of what is not known.
    """
    minutes = f"{plan.expected_s / 60:.1f} min"
    yield f"{len(plan.cells)} cells and {len(plan.blocks)} starts of a server take about {minutes}, downloads apart"
    size = size_of(plan.config.model, online=True) if launches and plan.config.model else None
    yield from _downloads(launches, size)
    for name, launch in launches.items():
        sentence = _memory(plan, launch, size)
        yield f"{name} {sentence}" if sentence else f"{name}: its memory is not known before it starts"


def _downloads(launches: Mapping[str, Launch], size: ModelSize | None) -> Iterator[str]:
    """What the hub's cache lacks, each checkpoint once."""
    lacking: dict[str, float | None] = {}
    for launch in launches.values():
        checkpoint = launch.checkpoint or ""
        if not Path(checkpoint).is_dir() and cached_snapshot(checkpoint) is None:
            recipe = load_recipe("fp16" if launch.in_flight else launch.precision)
            whole = size.weight_bytes(recipe) if size else None
            lacking[checkpoint] = max(whole - downloaded_bytes(checkpoint), 0) / GB if whole else None
    if lacking:
        each = [f"{name} {'of unknown size' if gb is None else f'{gb:.1f} GB'}" for name, gb in lacking.items()]
        free = f"{free_bytes(cache_folder()) / GB:.0f} GB are free in {cache_folder()}"
        yield f"still to download, about: {', '.join(each)}; {free}"


def _memory(plan: SweepPlan, launch: Launch, size: ModelSize | None) -> str | None:
    """Weights, and keys and values, of one server."""
    weights = _weight_bytes(launch, size)
    kv_bits = 8 if (option(launch.argv, "--kv-cache-dtype") or "").startswith("fp8") else 16
    kept = size.kv_bytes_per_token(kv_bits) if size else None
    if weights is None or kept is None:
        return None
    config, gpus = plan.config, workers_of(launch.argv) or 1
    b = min(max(config.concurrency), config.max_num_seqs)
    prompt, answer = _longest(plan)
    keys = b * (prompt + answer) * kept
    total = (weights + keys) / GIB
    where = (
        "memory" if launch.device == "cpu" else f"GPU memory{f', {total / gpus:.1f} on each of {gpus}' * (gpus > 1)}"
    )
    return (
        f"needs about {total:.1f} GiB of {where}: weights {weights / GIB:.1f}, keys and values {keys / GIB:.1f} "
        f"(B = {b}, prompts of at most about {prompt} tokens, answers of at most {answer})"
    )


def _weight_bytes(launch: Launch, size: ModelSize | None) -> float | None:
    """Of the files if they are here and not quantized while loading, else estimated."""
    checkpoint = launch.checkpoint or ""
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else cached_snapshot(checkpoint)
    files = [path.stat().st_size for path in folder.glob("*.safetensors")] if folder and not launch.in_flight else []
    return sum(files) or (size.weight_bytes(load_recipe(launch.precision)) if size else None)


def _longest(plan: SweepPlan) -> tuple[int, int]:
    """Tokens of the prompt and of the answer, at most, of the item that needs the most room."""
    config, lengths = plan.config, [(0, plan.max_tokens)]
    for item in plan.dataset.items[:MOST_PROMPTS]:
        text = "".join(str(turn.get("content")) for turn in item.messages) or plan.protocol.prompt(item)
        prompt = item.input_tokens or round(len(text) / CHARACTERS_PER_TOKEN)
        own = config.fixed_length or config.max_tokens or item.output_tokens or item.most_tokens
        lengths.append((prompt, own or plan.max_tokens))
    return max(lengths, key=sum)
