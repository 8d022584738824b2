"""Unpack: the archives of `pack` side by side again. Needs nothing but Python, as the offline machine does it too."""

from __future__ import annotations

import lzma
import tarfile
from pathlib import Path

from loadgen.errors import UsageError

REST = "kit.tar.xz"
"""The archive of what belongs to no run."""
SUFFIX = ".tar.xz"


def unpack(folder: Path, into: Path) -> Path:
    """The folder that measure worked in, as far as it was packed. Raises UsageError for what is damaged or missing."""
    archives = sorted(folder.glob(f"*{SUFFIX}"))
    if folder / REST not in archives:
        raise UsageError(f"{folder} holds no {REST}; name the folder that pack wrote")
    for archive in archives:
        try:
            with tarfile.open(archive) as content:
                content.extractall(into, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise UsageError(f"{archive} is damaged ({error}); bring it anew") from None
    return into
