"""Coverage-guided search for inputs, by hand: `python tests/fuzz/explore.py TARGET [libFuzzer options]`.

Needs `pip install atheris` (Linux, Python up to 3.13). Inputs that reach something new are kept in a folder of their
own; move those that are worth it, and every one that fails, to corpus/TARGET under a name that says what they are.
"""

from __future__ import annotations

import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["loadgen", "targets"]):
    from targets import CORPUS, TARGETS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: explore.py TARGET [-max_total_time=600 ...]; targets: {', '.join(TARGETS)}")
    name = sys.argv[1]
    found = tempfile.mkdtemp(prefix=f"fuzz-{name}-")
    print(f"new inputs: {found}", file=sys.stderr)
    atheris.Setup([sys.argv[0], *sys.argv[2:], found, str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
