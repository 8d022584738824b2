"""SweepPlan: everything that is known before a server is started, and what it says to servers and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from loadgen.errors import UsageError
from loadgen.load.body import BodyChanges
from loadgen.load.workers import Assignment
from loadgen.measure.config import api_key
from loadgen.measure.machine import client_record, host_record
from loadgen.measure.settings import as_stored
from loadgen.record.cell import Block, Cell, plan_blocks
from loadgen.record.config import SweepConfig
from loadgen.record.manifest import BodyChangesRecord, DatasetRecord, Manifest, PowerPlan, ProtocolRecord
from loadgen.record.rundir import unfinished
from loadgen.secret import Mask
from loadgen.serving.checkpoint import weights_of
from loadgen.serving.facts import Target
from loadgen.serving.recipe import recipe_sha256
from loadgen.workload.dataset import Dataset, load_dataset
from loadgen.workload.grading import Grader
from loadgen.workload.grading.words import check_speed
from loadgen.workload.item import facts_of
from loadgen.workload.protocol import Protocol, load_protocol
from loadgen.workload.questions import warmup_items

EXPECTED_ANSWER_S = {"simulated": 0.6, "target": 5.0, "serve": 5.0, "compose": 5.0}
EXPECTED_START_S = {"simulated": 1.0, "target": 0.0, "serve": 90.0, "compose": 90.0}


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The settings, the questions, and the cells in the order they are measured."""

    config: SweepConfig
    dataset: Dataset
    protocol: Protocol
    """As it is asked: `--api` and `--thinking` are in it."""
    blocks: tuple[Block, ...]

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
    def expected_s(self) -> float:
        """A first guess of the sweep's length; the live view corrects it as cells end."""
        mode = self.config.mode
        more_s = (self.config.warmup_s or 0.0) + 3 * EXPECTED_ANSWER_S[mode]
        cells_s = sum(self._window_s(cell) + more_s for cell in self.cells)
        return cells_s + len(self.blocks) * EXPECTED_START_S[mode]

    def _window_s(self, cell: Cell) -> float:
        """Its length as far as it is known: of a count of requests in an open loop, not in a closed one."""
        if self.config.duration_s is not None:
            return self.config.duration_s
        return (self.config.requests or 0) / cell.rate_asked_per_s if cell.rate_asked_per_s else 30.0

    def assignment(self, target: Target, cell: Cell, changes: BodyChanges) -> Assignment:
        """What the load of a cell asks its server."""
        config, dataset = self.config, self.dataset
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


def planned_blocks(config: SweepConfig) -> tuple[Block, ...]:
    """Every block of the run, measured or not."""
    return tuple(plan_blocks(config.targets, config.concurrency, config.repeats, config.arrival))


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
    return SweepPlan(config=config, dataset=dataset, protocol=protocol, blocks=planned_blocks(config))


def plan_rest(run_dir: Path, config: SweepConfig) -> SweepPlan:
    """The plan of what an interrupted run lacks; without blocks if it lacks nothing."""
    return replace(plan_sweep(config), blocks=unfinished(run_dir, planned_blocks(config)))
