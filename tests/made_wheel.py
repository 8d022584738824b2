"""A wheel made for tests: a small module, and a large library of stated bytes."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

LIBRARY = b"machine code " * 100_000
"""Compresses well."""


def make_wheel(folder: Path, name: str = "kit_example", version: str = "1.0", library: bytes = LIBRARY) -> Path:
    """NAME-VERSION-py3-none-any.whl in `folder`, stored without compression."""
    info = f"{name}-{version}.dist-info"
    members = {
        f"{name}/__init__.py": f'__version__ = "{version}"\n'.encode(),
        f"{name}/large.so": library,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{member},sha256={_digest(content)},{len(content)}" for member, content in members.items()]
    members[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        for member, content in members.items():
            out.writestr(member, content)
    return path


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
