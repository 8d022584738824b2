"""Grading: what became of an answer. `docs/grading.md` says by which rules and why."""

from loadgen.workload.grading.grader import Grader, grade
from loadgen.workload.grading.verdict import FAILED, GUESSES, VERSION, Extractor, Outcome, Verdict

__all__ = ["FAILED", "GUESSES", "VERSION", "Extractor", "Grader", "Outcome", "Verdict", "grade"]
