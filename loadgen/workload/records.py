"""Records: the rows of a data file, whatever it is kept in: JSON lines, a JSON array, CSV, Parquet, gzip around any."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from loadgen.bounds import MOST_DATA_BYTES, shown_bytes
from loadgen.errors import UsageError
from loadgen.folder import read_file

_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_HUB = ("data", "rows", "test")
"""Names under which a JSON object of the hub's viewers and exports keeps its rows."""


def records(path: Path) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    """Rows with their numbers from 1, told by content and, for CSV, by the name's suffix; a line of JSON as its bytes.

    A byte order mark is dropped, blank lines are skipped. Raises UsageError for a file that is damaged.
    """
    try:
        data = read_file(path, MOST_DATA_BYTES)
        if data.startswith(_GZIP):
            data = _unpacked(data)
        data = data.removeprefix(_BOM)
        if data.startswith(_PARQUET):
            yield from enumerate(pq.read_table(pa.BufferReader(data)).to_pylist(), start=1)
            return
        if _is_csv(path):
            text = io.StringIO(data.decode(), newline="")
            yield from enumerate((dict(row) for row in csv.DictReader(text)), start=1)
            return
        listed = _listed(data)
        if listed is not None:
            yield from enumerate(listed, start=1)
            return
    except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read ({reason}); is it damaged? Give JSON lines, CSV or Parquet") from None
    yield from ((number, line) for number, line in enumerate(data.splitlines(), start=1) if line.strip())


def _unpacked(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        content = file.read(MOST_DATA_BYTES + 1)
    if len(content) > MOST_DATA_BYTES:
        raise OSError(errno.EINVAL, f"unpacked it is longer than {shown_bytes(MOST_DATA_BYTES)}")
    return content


def _is_csv(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".csv")


def _listed(data: bytes) -> list[dict[str, Any]] | None:
    """The rows of one JSON array, or of an object that holds one; None for JSON lines."""
    begun = data.lstrip()[:1]
    if begun not in (b"[", b"{"):
        return None
    try:
        whole = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(whole, dict):
        whole = next((whole[name] for name in _HUB if isinstance(whole.get(name), list)), None)
    if not isinstance(whole, list) or not all(isinstance(row, dict) for row in whole):
        return None
    inner = [row["row"] if isinstance(row.get("row"), dict) else row for row in whole]
    return inner or None
