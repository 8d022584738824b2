"""GGUF: checkpoints of llama.cpp, which have no config.json; vLLM serves them through vllm-gguf-plugin."""

from __future__ import annotations

import re
from pathlib import Path

MAGIC = b"GGUF"
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*:([\w+-]+)")
_TYPE = re.compile(r"(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|B?F16|F32|MXFP4\w*))(?:-\d+-of-\d+)?\.gguf$", re.IGNORECASE)


def is_gguf(checkpoint: str) -> bool:
    """Whether it is a file NAME.gguf, a folder that holds one and no config.json, or ORG/REPO:TYPE on the hub."""
    return checkpoint.endswith(".gguf") or _ON_HUB.fullmatch(checkpoint) is not None or _file_in(checkpoint) is not None


def gguf_file(checkpoint: str) -> str:
    """What vLLM is to be given: the file in a folder, else the checkpoint itself."""
    found = _file_in(checkpoint)
    return checkpoint if found is None else str(found)


def gguf_type(checkpoint: str) -> str | None:
    """How its weights are stored, such as Q4_K_M, by its name; None: the name does not say."""
    on_hub = _ON_HUB.fullmatch(checkpoint)
    named = on_hub or _TYPE.search(Path(gguf_file(checkpoint)).name)
    return named[1].upper() if named else None


def fault_of_gguf(checkpoint: str) -> str | None:
    """One sentence where the name of a file on this machine is not that of a GGUF file that can be read, else None."""
    path = Path(gguf_file(checkpoint)).expanduser()
    if path.suffix != ".gguf" or _ON_HUB.fullmatch(checkpoint):
        return None
    try:
        with path.open("rb") as file:
            held = file.read(len(MAGIC))
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}); name a .gguf file, or ORG/REPO:TYPE on the hub"
    return None if held == MAGIC else f"{path} is not a GGUF file: it does not begin with the letters GGUF"


def _file_in(checkpoint: str) -> Path | None:
    """The only .gguf file of a folder without config.json, or the first of its parts."""
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir() or (folder / "config.json").exists():
        return None
    files = sorted(folder.glob("*.gguf"))
    first = [path for path in files if not re.search(r"-(?!0*1-)\d+-of-\d+\.gguf$", path.name)]
    return first[0].resolve() if len(first) == 1 else None
