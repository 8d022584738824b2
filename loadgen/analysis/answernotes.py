"""Notes on answers: what is odd about them and changes no figure, counted over a cell and told once a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from loadgen.analysis.cells import CellSummary


def note_warnings(cells: Sequence[CellSummary]) -> list[str]:
    """Each kind of note once, with the targets that it is true of and how many answers; and the retries."""
    notes: dict[str, Counter[str]] = {}
    retries: Counter[str] = Counter()
    for cell in cells:
        for note, count in cell.answer_notes.items():
            notes.setdefault(note, Counter())[cell.target] += count
        retries[cell.target] += cell.retries
    said = [f"{_told(counts)} answers: {note}" for note, counts in notes.items()]
    if retries.total():
        said.append(
            f"{_told(+retries)} requests were sent again, because the server had closed their kept connection"
        )
    return said


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{target}: {count}" for target, count in counts.items())
