"""Graders side by side over the same made answers: loadgen, lm-evaluation-harness's two, math-verify where installed.

    python bench/grading.py            # prints the table and writes bench/results/grading.md

The answers are those of tests/unit/grading_cases.py, each with what a careful person says of it. `strict` and
`flexible` are the verdicts that loadgen gives byte-equal to lm-evaluation-harness 0.4.13. math-verify is a second
opinion and no dependency: `pip install math-verify`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "unit"))

from grading_cases import CHOICES, NUMBERS, OPTIONS  # noqa: E402

from loadgen.workload.grading import grade  # noqa: E402
from loadgen.workload.item import ItemFacts  # noqa: E402

RESULT = ROOT / "bench" / "results" / "grading.md"
Judge = Callable[[str, str], bool]


def second_opinion() -> Judge | None:
    """math-verify's verdict on a text and a gold answer; None if it is not installed."""
    try:
        from math_verify import parse, verify
    except ImportError:
        return None

    def judged(text: str, gold: str) -> bool:
        said: Any = parse(text, parsing_timeout=0)
        return bool(verify(parse(gold, parsing_timeout=0), said, timeout_seconds=0))

    return judged


def rows() -> list[tuple[str, ...]]:
    """Per kind: answers, and how many of them each grader judges as a careful person does; "-" where it has no say."""
    math_verify = second_opinion()
    table: list[tuple[str, ...]] = []
    totals = [0, 0, 0, 0, 0]
    for cases, options in ((NUMBERS, ()), (CHOICES, OPTIONS)):
        for kind, answers in cases.items():
            agree = [len(answers), 0, 0, 0, 0]
            for text, gold, right in answers:
                item = ItemFacts(gold=gold, options=options)
                protocol = "mathqa_gen_v1" if options else "gsm8k"
                read = grade(text, item, protocol=protocol, finish_reason="stop")
                agree[1] += (read.outcome == "correct") == right
                agree[2] += read.strict == right
                agree[3] += read.flexible == right
                if math_verify is not None and not options:
                    agree[4] += math_verify(text, gold) == right
            if not options:
                totals = [total + more for total, more in zip(totals, agree, strict=True)]
            theirs = ["-"] * 3 if options else [*map(str, agree[2:4]), str(agree[4]) if math_verify else "-"]
            table.append((kind, str(agree[0]), str(agree[1]), *theirs))
    last = [*map(str, totals[:4]), str(totals[4]) if math_verify else "-"]
    return [*table, ("numbers in all", *last)]


def main() -> None:
    """Prints the table and writes it to `RESULT`."""
    heading = ("kind", "answers", "loadgen", "strict", "flexible", "math-verify")
    lines = [f"| {' | '.join(row)} |" for row in (heading, ("---",) * len(heading), *rows())]
    text = (
        "Answers judged as a careful person does, by grader (`python bench/grading.py`).\n\n" + "\n".join(lines) + "\n"
    )
    print(text)
    RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
