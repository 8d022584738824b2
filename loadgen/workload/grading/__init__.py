"""Grading: what became of an answer. `docs/grading.md` says by which rules and why."""

from loadgen.workload.grading.grader import Grader, grade
from loadgen.workload.grading.verdict import FAILED, Extractor, Outcome, Verdict

__all__ = ["FAILED", "Extractor", "Grader", "Outcome", "Verdict", "grade"]
