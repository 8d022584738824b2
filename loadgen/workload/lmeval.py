"""Worked examples and wording of lm-evaluation-harness's tasks, read from its installed package or a file of it.

Nothing of it is shipped with loadgen, and it is never imported: its task files are found and parsed.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import msgspec
import yaml

from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.workload.item import Item

FILES = {"gsm8k_cot": "gsm8k/gsm8k-cot.yaml", "gsm8k_cot_llama": "gsm8k/gsm8k-cot-llama.yaml"}
"""Task files below `lm_eval/tasks`."""
PINNED = {
    "gsm8k_cot": "780310899fecda3a08e9c38b6aee53973ed35251eab3affbf45c445daa6ec44a",
    "gsm8k_cot_llama": "7b66f7635b1252d38487e387c1e3ed4e7e2c8ca421904b27ebf108cccee74a9c",
}
"""`HarnessTask.sha256` in release 0.4.13."""
_QUESTION = "{{question}}"


class HarnessTask(msgspec.Struct, frozen=True, kw_only=True):
    """What a task asks: its question turn and its worked examples."""

    ask: str
    """The question turn, `{question}` standing for the question."""
    delimiter: str
    """Between the question turn and its answer in plain text."""
    shots: tuple[Item, ...]
    """`solution` is the answer turn; `gold` is empty."""

    @property
    def sha256(self) -> str:
        """Hex sha256 of all of it."""
        content = [self.ask, self.delimiter, [[shot.question, shot.solution] for shot in self.shots]]
        return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def installed_task(name: str) -> HarnessTask | None:
    """The task of the installed lm_eval; None where there is no lm_eval, or one without this task file."""
    spec = importlib.util.find_spec("lm_eval")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "tasks" / FILES[name]
        if path.is_file():
            return read_task(path)
    return None


def read_task(path: Path) -> HarnessTask:
    """The task of a YAML file with fixed worked examples (`sampler: first_n`, `samples` of question and target).

    Raises UsageError for a file that is not such a task.
    """
    try:
        content = yaml.safe_load(read_file(path).decode())
        fewshot = content["fewshot_config"]
        task = HarnessTask(
            ask=_plain(content["doc_to_text"]),
            delimiter=str(content.get("target_delimiter", " ")),
            shots=tuple(_shot(row) for row in fewshot["samples"][: int(content["num_fewshot"])]),
        )
        if fewshot["sampler"] != "first_n" or not task.shots:
            raise ValueError("its examples are not fixed ones")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        reason = getattr(error, "strerror", None) or reason
        raise UsageError(
            f"{path} is not a task file of lm-evaluation-harness with fixed examples ({reason}); "
            "give its gsm8k-cot.yaml or gsm8k-cot-llama.yaml"
        ) from None
    return task


def _plain(template: str) -> str:
    """The Jinja template with its one field as `{question}`; anything more is not understood here."""
    before, field, after = template.partition(_QUESTION)
    if not field or any(mark in before + after for mark in ("{{", "{%", "{#", "{question}")):
        raise ValueError("doc_to_text asks for more than {{question}}")
    return f"{before}{{question}}{after}"


def _shot(row: dict[str, Any]) -> Item:
    question, target = row["question"], row["target"]
    if not isinstance(question, str) or not isinstance(target, str):
        raise TypeError("an example is no text")
    return Item(id="", question=question, solution=target, gold="")
