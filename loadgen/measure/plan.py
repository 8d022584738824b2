"""SweepPlan: everything that is known before a server is started, and what it says to servers and the manifest.

Cost: what a sweep will take: minutes, downloads, and the memory of each target's server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from loadgen.errors import UsageError
from loadgen.load.body import BodyChanges
from loadgen.load.worker import Assignment
from loadgen.measure.config import api_key
from loadgen.measure.machine import client_record, host_record
from loadgen.measure.observer import Timetable
from loadgen.measure.settings import as_stored
from loadgen.record.cell import Block, Cell, SweepConfig, plan_blocks, step_blocks
from loadgen.record.journal import unfinished
from loadgen.record.manifest import BodyChangesRecord, DatasetRecord, Manifest, PowerPlan, ProtocolRecord
from loadgen.secret import Mask
from loadgen.serving.checkpoint import cache_folder, cached_snapshot, downloaded_bytes, free_bytes, weights_of
from loadgen.serving.facts import Target
from loadgen.serving.launch import Launch, option, workers_of
from loadgen.serving.recipe import load_recipe, recipe_sha256
from loadgen.serving.requirements import ModelSize, size_of
from loadgen.words import memory
from loadgen.workload.dataset import Dataset, load_dataset
from loadgen.workload.grading import Grader
from loadgen.workload.grading.words import check_speed
from loadgen.workload.item import facts_of
from loadgen.workload.protocol import Protocol, load_protocol
from loadgen.workload.questions import warmup_items

if TYPE_CHECKING:
    from loadgen.search.goal import Goal
    from loadgen.search.price import Price

EXPECTED_ANSWER_S = {"simulated": 0.6, "target": 5.0, "serve": 5.0, "compose": 5.0}
EXPECTED_START_S = {"simulated": 1.0, "target": 0.0, "serve": 90.0, "compose": 90.0}


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The settings, the questions, and the cells in the order they are measured."""

    config: SweepConfig
    dataset: Dataset
    protocol: Protocol
    """As it is asked: `--api` and `--thinking` are in it."""
    blocks: tuple[Block, ...]
    """Of a search those of the next step."""

    @property
    def cells(self) -> list[Cell]:
        return [cell for block in self.blocks for cell in block.cells]

    @property
    def grader(self) -> Grader:
        """Grades nothing where the answers' length was fixed, and where no right answer is known."""
        items = self.dataset.items if self.graded else ()
        return Grader({item.id: facts_of(item) for item in items}, self.protocol.name, self.config.answer_regex)

    @property
    def graded(self) -> bool:
        return self.config.fixed_length is None and self.dataset.answer != "none"

    @property
    def caps_by_record(self) -> bool:
        """Each answer may be as long as the recorded one, whose length is to be counted."""
        capped = self.config.fixed_length or self.config.max_tokens
        return not capped and self.dataset.answer == "none" and any(item.solution for item in self.dataset.items[:1])

    @property
    def max_tokens(self) -> int:
        """The limit of an answer, or its length."""
        return self.config.fixed_length or self.config.max_tokens or self.protocol.max_tokens

    @property
    def warmup_s(self) -> float:
        """The shortest warm-up; without `--warmup` a tenth of the window. Each slot has one staggered request in any
        case."""
        config = self.config
        return 0.1 * (config.duration_s or 0.0) if config.warmup_s is None else config.warmup_s

    @property
    def timetable(self) -> Timetable:
        """The cells with a first guess of their length and of a start's; the views correct it by what they see."""
        mode = self.config.mode
        more_s = (self.config.warmup_s or 0.0) + 3 * EXPECTED_ANSWER_S[mode]
        cells_s = tuple(self._window_s(cell) + more_s for cell in self.cells)
        return Timetable(cells=tuple(self.cells), cells_s=cells_s, start_s=EXPECTED_START_S[mode])

    @property
    def expected_s(self) -> float:
        """A first guess of the sweep's length."""
        sizing = len(self.config.targets) if self.config.same_kv else 0  # a start of each
        return self.timetable.expected_s + sizing * self.timetable.start_s

    @property
    def goal(self) -> Goal:
        """What a search looks for, with what loadgen expects its cells and starts to take."""
        from loadgen.search.readings import goal_of

        table = self.timetable
        return goal_of(self.config, max(table.cells_s, default=0.0), table.start_s)

    @property
    def price(self) -> Price:
        """What a search is expected to take in all."""
        from loadgen.search.price import expected

        return expected(self.goal, self.config.sides)

    def _window_s(self, cell: Cell) -> float:
        """Its length as far as it is known: of a count of requests in an open loop, not in a closed one."""
        if self.config.duration_s is not None:
            return self.config.duration_s
        return (self.config.requests or 0) / cell.rate_asked_per_s if cell.rate_asked_per_s else 30.0

    def assignment(self, target: Target, cell: Cell, changes: BodyChanges) -> Assignment:
        """What the load of a cell asks its server."""
        config, dataset = self.config, self.dataset.of_shape(cell.shape)
        shipped = tuple(warmup_items())
        if dataset.unwritten:  # asked before the others have texts: with the fields that these will have
            shipped = tuple(replace(item, output_tokens=self.max_tokens) for item in shipped)
        return Assignment(
            url=target.url,
            model=target.model,
            api_key=api_key(config),
            transport=config.transport,
            timeout_s=config.timeout_s,
            protocol=self.protocol,
            seed=config.seed,
            max_tokens=config.max_tokens,
            fixed_length=config.fixed_length,
            thinking=config.thinking,
            items=dataset.items,
            warmup_items=shipped if dataset.unwritten else dataset.warmup or shipped,
            concurrency=cell.concurrency,
            requests=config.requests,
            duration_s=config.duration_s,
            arrivals=cell.arrivals,
            arrival_seed=f"{config.seed}/{cell.repeat}",
            changes=changes,
            drain_s=config.drain_s,
            prefix_cache=config.prefix_cache,
        )

    @property
    def dataset_record(self) -> DatasetRecord:
        data = self.dataset
        return DatasetRecord(name=data.name, sha256=data.sha256, published=data.published, items=len(data.items))

    def protocol_record(self, changes: BodyChanges) -> ProtocolRecord:
        """The protocol with the decoding that is left after the changes of the requests."""
        protocol = self.protocol
        decoding = changes.applied({"temperature": 0, "seed": self.config.seed})
        return ProtocolRecord(
            name=protocol.name,
            sha256=protocol.sha256,
            api=protocol.api,
            stops=protocol.stops,
            max_tokens=self.max_tokens,
            version=protocol.version,
            answer=protocol.answer,
            thinking=self.config.thinking,
            temperature=decoding.get("temperature"),
            seed=decoding.get("seed"),
        )

    @property
    def recipes(self) -> dict[str, str]:
        """The sha256 of each recipe that servers are launched from."""
        targets = self.config.targets if self.config.mode in ("serve", "compose") else ()
        return {target.precision: recipe_sha256(target.precision) for target in targets}

    def manifest(
        self, power: PowerPlan, changes: BodyChanges, given: Mapping[str, Any] | None, *, simulated: bool
    ) -> Manifest:
        """The manifest of a run that is about to begin."""
        config, mask = self.config, Mask(api_key(self.config))
        return Manifest(
            simulated=simulated,
            config=replace(config, extra_body=mask.content(config.extra_body)),
            given=None if given is None else as_stored(given, mask),
            dataset=self.dataset_record,
            protocol=self.protocol_record(changes),
            recipes=self.recipes,
            body_changes=changes_record(changes),
            graded=self.graded,
            weights=weights_of(Path(config.model).expanduser()) if config.model else None,
            client=client_record(),
            host=host_record(),
            power=power,
            servers=(),
            failures=(),
        )


def changes_record(changes: BodyChanges) -> BodyChangesRecord:
    """The changes that the servers asked for."""
    return msgspec.convert({"refused": changes.refused, "limit_field": changes.limit_field}, BodyChangesRecord)


def plan_sweep(config: SweepConfig) -> SweepPlan:
    """Loads data and protocol; raises UsageError. Starts nothing, creates nothing but the cache of published files."""
    data_file, shots_file, platinum = (
        Path(name) if name else None for name in (config.data_file, config.shots_file, config.platinum_file)
    )
    dataset = load_dataset(
        config.dataset,
        data_file=data_file,
        limit=config.limit,
        platinum_file=platinum,
        seed=config.seed,
        requests=config.requests,
    )
    protocol = load_protocol(config.protocol, shots_file=shots_file)
    protocol.check_fits(dataset)
    conversation = next((item for item in dataset.items if item.messages), None)
    if conversation is not None and config.api == "completions":
        raise UsageError(
            f"--api completions: {conversation.id} of --dataset {dataset.name} has messages, which need --api chat; "
            "omit --api"
        )
    if conversation is not None:
        protocol = replace(protocol, api="chat")
    if config.answer_regex is not None:
        check_speed(config.answer_regex)
    if config.thinking is not None:
        protocol = config.thinking.shape(protocol)
    protocol = replace(protocol, api=config.api or protocol.api)
    if config.find:
        from loadgen.search.readings import first_step

        blocks = step_blocks(config.targets, [first_step(config)])
    else:
        blocks = plan_blocks(config.targets, config.concurrency, config.repeats, config.arrival, config.shapes)
    return SweepPlan(config=config, dataset=dataset, protocol=protocol, blocks=tuple(blocks))


def plan_rest(run_dir: Path, begun: Manifest, config: SweepConfig) -> SweepPlan:
    """The plan of what an interrupted run lacks; without blocks if it lacks nothing."""
    return replace(plan_sweep(config), blocks=blocks_left(run_dir, begun))


def blocks_left(run_dir: Path, manifest: Manifest) -> tuple[Block, ...]:
    """The blocks with the cells that a run lacks; of a search those of the step that has begun or comes next."""
    left = unfinished(run_dir, manifest.blocks)
    if left or not manifest.config.find:
        return left
    from loadgen.search.readings import Readings

    found = Readings(run_dir, manifest).search(manifest)
    steps = (*manifest.steps, *([] if found.next is None else [found.next]))
    return tuple(step_blocks(manifest.config.targets, steps)[len(manifest.blocks) :])


GPU_MEMORY_UTILIZATION = 0.92
"""The share of a GPU that vLLM takes by default."""
CHARACTERS_PER_TOKEN = 3.0
"""Few, so that prompts are not taken for shorter than they are: English text has about 4."""
MOST_PROMPTS = 200
"""That are looked at."""
GB = 1e9


def cost_sentences(plan: SweepPlan, launches: Mapping[str, Launch], gpu_bytes: int | None = None) -> Iterator[str]:
    """What the sweep costs, a sentence each; `launches`: the server of each target that loadgen starts;
    `gpu_bytes`: the memory of the smallest of their GPUs.

    The memory is an estimate by the model's config.json: weights, and keys and values of the largest batch with the
    longest prompts and answers. Nothing is said of what is not known.
    """
    minutes, starts = f"{plan.expected_s / 60:.1f} min", len(plan.blocks) if launches else 0
    starts += len(launches) * bool(plan.config.same_kv)
    what = f"{len(plan.cells)} cell{'s' * (len(plan.cells) != 1)}"
    what += f" and {starts} start{'s' * (starts != 1)} of a server" * bool(starts)
    if not plan.config.find:  # its price is in the run's first line
        yield f"{what}: about {minutes}" + ", downloads apart" * bool(starts)
    size = size_of(plan.config.model, online=True) if launches and plan.config.model else None
    yield from _downloads(launches, size)
    for name, launch in launches.items():
        sentence = _memory(plan, launch, size, gpu_bytes)
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


def _memory(plan: SweepPlan, launch: Launch, size: ModelSize | None, gpu_bytes: int | None) -> str | None:
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
    total = weights + keys
    each = f", {memory(total / gpus)} on each of {gpus}" if gpus > 1 else ""
    where = "memory" if launch.device == "cpu" else f"GPU memory{each}"
    small = ""
    if gpu_bytes is not None and launch.device == "cuda":
        given = option(launch.argv, "--gpu-memory-utilization") or ""
        share = float(given) if given.replace(".", "", 1).isdecimal() else GPU_MEMORY_UTILIZATION
        taken = share * gpu_bytes
        if total / gpus > taken:
            small = (
                f"; that is more than the {memory(taken)} that vLLM takes of a GPU with {memory(gpu_bytes)}: choose "
                "smaller --concurrency or --max-tokens, fewer bits, or more GPUs with --tensor-parallel"
            )
    return (
        f"needs about {memory(total)} of {where}: weights {memory(weights)}, keys and values {memory(keys)} "
        f"(B = {b}, prompts of at most about {prompt} tokens, answers of at most {answer}){small}"
    )


def _weight_bytes(launch: Launch, size: ModelSize | None) -> float | None:
    """Bytes of the files if they are here and not quantized while loading, else estimated."""
    checkpoint = launch.checkpoint or ""
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else cached_snapshot(checkpoint)
    files = [path.stat().st_size for path in folder.glob("*.safetensors")] if folder and not launch.in_flight else []
    return sum(files) or (size.weight_bytes(load_recipe(launch.precision)) if size else None)


def _longest(plan: SweepPlan) -> tuple[int, int]:
    """Tokens of the prompt and of the answer, at most, of the item that needs the most room."""
    config, lengths = plan.config, list[tuple[int, int]]()
    parts = [plan.dataset.of_shape(shape).items for shape in plan.dataset.shapes or [None]]
    for item in (item for items in parts for item in items[:MOST_PROMPTS]):
        text = "".join(str(turn.get("content")) for turn in item.messages) or plan.protocol.prompt(item)
        prompt = item.input_tokens or round(len(text) / CHARACTERS_PER_TOKEN)
        own = config.fixed_length or config.max_tokens or item.output_tokens or item.most_tokens
        lengths.append((prompt, own or plan.max_tokens))
    return max(lengths, key=sum, default=(0, plan.max_tokens))
