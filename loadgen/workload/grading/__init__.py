"""Grading: what became of an answer. `docs/grading.md` says by which rules and why."""

from loadgen.workload.grading.grader import Grader, grade
from loadgen.workload.grading.outcome import FAILED, GUESSES, VERSION, Extractor, Grade, Outcome

__all__ = ["FAILED", "GUESSES", "VERSION", "Extractor", "Grade", "Grader", "Outcome", "grade"]
