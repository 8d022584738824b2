"""Rewrites the dashboards' JSON: `python dashboards/generate.py`; with `--check` it only lists what differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from boards.gpu_power import gpu_power
from boards.precisions import precisions
from boards.run import run
from boards.servers import servers

FOLDER = Path(__file__).parent


def files() -> dict[str, str]:
    """The JSON of every dashboard, by file name."""
    made = {"run": run(), "precisions": precisions(), "gpu-power": gpu_power(), "servers": servers()}
    return {f"{name}.json": json.dumps(board, indent=2, ensure_ascii=False) + "\n" for name, board in made.items()}


def stale() -> list[str]:
    """Names of files that differ from `files()`, missing and surplus ones included."""
    made = files()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    return sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(f"stale: {', '.join(stale())}; run python dashboards/generate.py" if stale() else 0)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
