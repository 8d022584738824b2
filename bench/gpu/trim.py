"""Trim: wheels made smaller, of parts that are not needed for what is measured, and by a denser compression."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bench.gpu.fetch import wheel_name
from loadgen.errors import UsageError

_PRESERVED = ("dist-info/RECORD", "dist-info/METADATA", "dist-info/WHEEL")
_SMALL = 1 << 20


@dataclass(frozen=True)
class Trimmed:
    """What became of one wheel."""

    name: str
    bytes_before: int
    bytes: int
    dropped: tuple[str, ...]


def trim(folder: Path, out: Path, drop: Mapping[str, Sequence[str]]) -> list[Trimmed]:
    """Every wheel of `folder` in `out`, without the members that match its distribution's patterns in `drop`.

    Members of a wheel above 1 MiB are packed with LZMA, which pip unpacks as well, where that makes it smaller. A
    wheel that is in `out` already is left. Raises UsageError for a pattern that matches nothing: the wheel is another
    one than the pattern was written for.
    """
    out.mkdir(parents=True, exist_ok=True)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise UsageError(f"{folder} holds no wheel; name the folder that fetch filled")
    for stale in {path.name for path in out.glob("*.whl")} - {wheel.name for wheel in wheels}:
        (out / stale).unlink()
    return [_trim_one(wheel, out / wheel.name, drop.get(wheel_name(wheel)[0], ())) for wheel in wheels]


def _trim_one(wheel: Path, target: Path, patterns: Sequence[str]) -> Trimmed:
    with zipfile.ZipFile(wheel) as source:
        names = source.namelist()
        dropped = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(f"{wheel.name}: nothing in it matches {pattern!r}; the pattern is for another version")
        if kept := [name for name in dropped if name.endswith(_PRESERVED)]:
            raise UsageError(f"{wheel.name}: {kept[0]} must stay; mend the pattern that drops it")
        if not target.exists():
            partial = target.with_name(target.name + ".partial")
            if wheel.stat().st_size < _SMALL and not dropped:
                partial.write_bytes(wheel.read_bytes())
            else:
                _rewrite(source, partial, dropped)
            partial.replace(target)
    return Trimmed(wheel.name, wheel.stat().st_size, target.stat().st_size, tuple(sorted(dropped)))


def _rewrite(source: zipfile.ZipFile, target: Path, dropped: set[str]) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as out:
        for info in source.infolist():
            if info.filename in dropped:
                continue
            content = source.read(info)
            if info.filename.endswith("dist-info/RECORD"):
                content = _record(content, dropped)
            # The original's time and mode (scripts are executable) stay.
            out.writestr(info, content, zipfile.ZIP_LZMA if content else zipfile.ZIP_STORED)


def _record(content: bytes, dropped: set[str]) -> bytes:
    rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8"))) if row and row[0] not in dropped]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8")
