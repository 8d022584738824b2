"""Rewrites compose.yaml and models/*.env from servers/*.toml: `python docker/generate.py`; --check only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from loadgen.serving.compose import generated_files

DOCKER = Path(__file__).parent


def stale_files() -> list[str]:
    """The generated files that differ from the recipes, and those that no recipe needs."""
    fresh = generated_files()
    stale = [name for name, text in fresh.items() if not _holds(DOCKER / name, text)]
    return stale + [f"models/{path.name}" for path in DOCKER.glob("models/*.env") if f"models/{path.name}" not in fresh]


def write() -> None:
    """Rewrites the stale files."""
    fresh = generated_files()
    for name in stale_files():
        path = DOCKER / name
        if name in fresh:
            path.parent.mkdir(exist_ok=True)
            path.write_text(fresh[name], encoding="utf-8")
        else:
            path.unlink()


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if stale := stale_files():
            sys.exit(f"stale: {', '.join(stale)}; run `python docker/generate.py`")
    else:
        write()
