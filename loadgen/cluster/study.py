"""Study: what `loadgen grid` measures: models x precisions x datasets on several GPUs, as STUDY.toml says it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.measure.config import SIMULATED
from loadgen.notation import did_you_mean, entries, spelled, whole_number
from loadgen.options import SweepOptions, complete, declared

OWN = ("targets", "metrics_url", "compose", "gpu", "out", "metrics_port", "metrics_host", "repeats", "wait_ready")
"""Options of a sweep that the grid decides for each task."""
TABLES = ("sweep", "model", "dataset")
KEYS = ("name", "models", "precisions", "datasets", "gpus", "repeats", "block", *TABLES)
EXAMPLE = 'models = ["Qwen/Qwen3-8B", "Qwen/Qwen3-14B"]'
MOST_REPEATS = 1000


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """A study as its file says it; every option was read and checked by its name."""

    name: str
    models: tuple[str, ...]
    precisions: tuple[str, ...]
    datasets: tuple[str, ...] = ()
    """Empty: the sweep's default."""
    gpus: dict[str, int] = {}
    """How many GPU blocks each model gets, by Ray's accelerator type, "" for any; empty: as many as the cluster has."""
    repeats: int = 2
    """Repeats on each GPU."""
    block: int = 2
    """Most repeats of one task."""
    sweep: dict[str, Any] = {}
    """Options of every sweep."""
    model: dict[str, dict[str, Any]] = {}
    """Further options, by model."""
    dataset: dict[str, dict[str, Any]] = {}
    """Further options, by dataset."""

    @property
    def simulated(self) -> bool:
        """Whether no server needs a GPU."""
        return all(model.startswith(SIMULATED) for model in self.models)

    def options(self, model: str, dataset: str | None) -> dict[str, Any]:
        """The options of a sweep of one model, but for what a task decides."""
        options = {"serve": list(self.precisions), "model": model, **({"dataset": dataset} if dataset else {})}
        return {**options, **self.sweep, **self.dataset.get(dataset or "", {}), **self.model.get(model, {})}


def read_study(path: Path) -> Study:
    """The study in a TOML file. Raises UsageError, one sentence, for the first thing that is not valid."""
    try:
        text = read_file(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(
            f"{path}: cannot be read ({why}); name a study, a TOML file with models and precisions"
        ) from None
    return parse_study(text, str(path))


def parse_study(text: str, where: str) -> Study:
    """The study in a text; sentences begin with `where` it is from. Raises UsageError."""
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: is not TOML ({error})") from None
    found: dict[str, Any] = {}
    for given, value in content.items():
        if (key := spelled(given, KEYS)) not in KEYS:
            say = did_you_mean(given, KEYS)
            if spelled(given, declared(SweepOptions)) in declared(SweepOptions):
                say = "it is an option of a sweep: write it under [sweep]; "
            raise UsageError(f"{where}: {given!r} is not a key of a study; {say}known: {', '.join(KEYS)}")
        if key in found:
            raise UsageError(f"{where}: {key} is given more than once; give it once")
        found[key] = value
    models = _names(found.get("models"), f"{where}: models", EXAMPLE)
    precisions = _names(found.get("precisions"), f"{where}: precisions", 'precisions = ["fp16", "awq"]')
    datasets = _names(found["datasets"], f"{where}: datasets", 'datasets = ["gsm8k"]') if "datasets" in found else ()
    repeats = _count(found.get("repeats", 2), f"{where}: repeats")
    tables = {name: _table(found.get(name, {}), f"{where}: [{name}]") for name in TABLES}
    own = {
        kind: {
            _one_of(name, known, f"{where}: [{kind}.{name!r}]"): _sweep(
                _table(table, f'{where}: [{kind}."{name}"]'), f'{where}: [{kind}."{name}"]'
            )
            for name, table in tables[kind].items()
        }
        for kind, known in (("model", models), ("dataset", datasets))
    }
    name = found.get("name", Path(where).stem)
    if not isinstance(name, str) or not (name := re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")):
        raise UsageError(f'{where}: name is not a name; write letters and digits, as in name = "qwen3"')
    return Study(
        name=name,
        models=models,
        precisions=precisions,
        datasets=datasets,
        gpus=_gpus(found.get("gpus"), f"{where}: gpus"),
        repeats=repeats,
        block=_count(found.get("block", repeats), f"{where}: block"),
        sweep=_sweep(tables["sweep"], f"{where}: [sweep]"),
        **own,
    )


def _names(value: Any, where: str, example: str) -> tuple[str, ...]:
    if value is None:
        raise UsageError(f"{where} is missing; write a list, as in {example}")
    parts = entries(value) if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise UsageError(f"{where} = {value!r} is not a list of names; write {example}")
    names = [part.strip() for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{where}: {name} is listed twice; list each once")
    return tuple(names)


def _count(value: Any, where: str) -> int:
    try:
        number = whole_number(str(value))
    except ValueError:
        number = 0
    if not 1 <= number <= MOST_REPEATS:
        raise UsageError(
            f"{where} = {value!r} is not a number of repeats from 1 to {MOST_REPEATS}; write {where[-7:]} = 2"
        )
    return number


def _gpus(value: Any, where: str) -> dict[str, int]:
    if value is None:
        return {}
    counts = value if isinstance(value, dict) else {"": value}
    for kind, count in counts.items():
        if type(count) is not int or not 1 <= count <= MOST_REPEATS:
            raise UsageError(
                f"{where}{f'.{kind}' * bool(kind)} = {count!r} is not a number of GPUs; write gpus = 2, or by type "
                "gpus = {H100 = 2, L4 = 1}"
            )
    if not counts:
        raise UsageError(f"{where} = {{}} names no GPU; omit it to use all, or write gpus = 2")
    return dict(counts)


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(
            f"{where} = {value!r} is not a table; write [{where.rpartition('[')[2]} on a line and keys below"
        )
    return value


def _one_of(name: str, known: Sequence[str], where: str) -> str:
    if name not in known:
        raise UsageError(f"{where}: {did_you_mean(name, known)}it is none of the study's: {', '.join(known) or 'none'}")
    return name


def _sweep(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of a sweep by the names that `configure` takes, from those of the command line."""
    flags = {option.flag.replace("_", "-"): name for name, option in declared(SweepOptions).items()}
    options = {}
    for given, value in table.items():
        flag = spelled(given, flags)
        if flag not in flags:
            raise UsageError(f"{where}: {given!r} is not an option of loadgen sweep; {did_you_mean(given, flags)}"
                             "see loadgen sweep --help")  # fmt: skip
        name = flags[flag]
        if name in OWN or (name in ("serve", "model", "dataset") and where.endswith("[sweep]")):
            use = {"serve": "precisions", "model": "models", "dataset": "datasets", "repeats": "repeats", "gpu": "gpus"}
            instead = f"write {use[name]} = ... at the top of the file" if name in use else "omit it"
            raise UsageError(f"{where}: {flag} is decided by the grid for each task; {instead}")
        if name in options:
            raise UsageError(f"{where}: {flag} is given more than once; give it once")
        options[name] = ",".join(map(str, value)) if isinstance(value, list) and name != "vllm_args" else value
    try:
        complete(SweepOptions, options)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return options
