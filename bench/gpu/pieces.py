"""Pieces: a folder as one archive, cut into files of a stated size, and put together again with every byte checked.

Each piece can be carried alone and in any order, together with `pieces.json`, which names them all with their sha256.

Unpack: the archives of `pack` side by side again. Needs nothing but Python, as the offline machine does it too.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from loadgen.errors import UsageError

LIST = "pieces.json"
MIB = 2**20
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Piece:
    """One file of the archive."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PieceList:
    """What pieces.json says: the pieces in their order, and the files of the folder they hold."""

    pieces: tuple[Piece, ...]
    files: dict[str, str]
    """Path in the folder -> sha256."""

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.pieces)


@dataclass(frozen=True)
class State:
    """Which pieces lie in a folder."""

    good: tuple[str, ...]
    damaged: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.damaged and not self.missing

    def __str__(self) -> str:
        lists = (("damaged", self.damaged), ("missing", self.missing))
        return "; ".join(f"{word}: {', '.join(names)}" for word, names in lists if names) or "all pieces are there"


def split(folder: Path, out: Path, piece_bytes: int) -> PieceList:
    """Writes the folder's files as pieces of at most `piece_bytes` into `out`, and pieces.json last.

    The same files give the same pieces. Raises UsageError for a folder without files or an `out` that holds others.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if not names:
        raise UsageError(f"{folder} holds no file to split; run fetch first, or name the folder that it filled")
    if piece_bytes < _BLOCK:
        raise UsageError(f"pieces of {piece_bytes} bytes are too small; give at least 1 MiB")
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("piece-*"), out / LIST]:
        old.unlink(missing_ok=True)
    if any(out.iterdir()):
        raise UsageError(f"{out} holds other files than pieces; name a folder of its own")
    writer = _Writer(out, piece_bytes)
    with tarfile.open(fileobj=writer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = (folder / name).stat().st_size
            entry.mode = 0o644
            with (folder / name).open("rb") as content:
                archive.addfile(entry, content)
    listed = PieceList(writer.finish(), {name: sha256(folder / name) for name in names})
    (out / LIST).write_text(json.dumps(asdict(listed), indent=1) + "\n", encoding="utf-8")
    return listed


def read_list(folder: Path) -> PieceList:
    """pieces.json of a folder. Raises UsageError when there is none or it cannot be read."""
    path = folder / LIST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return PieceList(tuple(Piece(**piece) for piece in content["pieces"]), dict(content["files"]))
    except OSError:
        raise UsageError(f"{folder} has no {LIST}; carry it with every piece") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); carry it anew") from None


def state(folder: Path, listed: PieceList) -> State:
    """Which of the listed pieces lie whole in the folder."""
    good, damaged, missing = [], [], []
    for piece in listed.pieces:
        path = folder / piece.name
        if not path.is_file():
            missing.append(piece.name)
        elif path.stat().st_size != piece.bytes or sha256(path) != piece.sha256:
            damaged.append(piece.name)
        else:
            good.append(piece.name)
    return State(tuple(good), tuple(damaged), tuple(missing))


def receive(source: Path, store: Path) -> State:
    """Copies the whole pieces of `source` into `store`, which keeps what came before; the state of the store.

    Raises UsageError, naming the pieces, when one in `source` is damaged, or when it is cut from another archive.
    """
    listed = read_list(source)
    here = state(source, listed)
    if here.damaged:
        raise UsageError(f"damaged: {', '.join(here.damaged)} (size or sha256 is not that of {LIST}); carry anew")
    store.mkdir(parents=True, exist_ok=True)
    if (store / LIST).exists() and read_list(store) != listed:
        raise UsageError(f"{store} holds pieces of another archive; name another folder or empty it")
    if source.resolve() != store.resolve():
        shutil.copyfile(source / LIST, store / LIST)
        for name in here.good:
            _copy(source / name, store / name)
    return state(store, listed)


def join(store: Path, into: Path) -> int:
    """Unpacks the pieces of `store` into a folder and checks every file; the number of files. Done once: a second
    call finds its stamp and does nothing.

    Raises UsageError naming each damaged and each missing piece, or a file that differs.
    """
    listed = read_list(store)
    stamp = into / ".joined"
    mark = sha256(store / LIST)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == mark:
        return len(listed.files)
    found = state(store, listed)
    if not found.complete:
        raise UsageError(f"{store} is not complete: {found}; carry these pieces (anew)")
    into.mkdir(parents=True, exist_ok=True)
    reader = _Reader([store / piece.name for piece in listed.pieces])
    with tarfile.open(fileobj=reader, mode="r|") as archive:
        archive.extractall(into, filter="data")
    wrong = [name for name, expected in listed.files.items() if sha256(into / name) != expected]
    if wrong:
        raise UsageError(f"{into}: {', '.join(wrong)} differ from what was split; the disk may be full or failing")
    stamp.write_text(mark, encoding="utf-8")
    return len(listed.files)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Path, target: Path) -> None:
    """So that a kill leaves no half piece under its name."""
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    partial.replace(target)


class _Writer:
    """What tarfile writes to: begins a new piece whenever one is full."""

    def __init__(self, out: Path, piece_bytes: int) -> None:
        self._out, self._most = out, piece_bytes
        self._pieces: list[Piece] = []
        self._open_next()

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            room = self._most - self._bytes
            if not room:
                self._close()
                self._open_next()
                continue
            part = view[:room]
            self._file.write(part)
            self._hash.update(part)
            self._bytes += len(part)
            view = view[len(part) :]
        return len(data)

    def finish(self) -> tuple[Piece, ...]:
        self._close()
        return tuple(self._pieces)

    def _open_next(self) -> None:
        self._name = f"piece-{len(self._pieces):03d}"
        self._file = (self._out / self._name).open("wb")
        self._hash, self._bytes = hashlib.sha256(), 0

    def _close(self) -> None:
        self._file.close()
        self._pieces.append(Piece(self._name, self._bytes, self._hash.hexdigest()))


class _Reader:
    """What tarfile reads from: the pieces one after the other."""

    def __init__(self, paths: list[Path]) -> None:
        self._blocks = self._read(paths)
        self._left = memoryview(b"")

    def read(self, size: int) -> bytes:
        parts, wanted = [], size
        while wanted:
            if not self._left:
                self._left = memoryview(next(self._blocks, b""))
                if not self._left:
                    break
            part, self._left = self._left[:wanted], self._left[wanted:]
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)

    @staticmethod
    def _read(paths: list[Path]) -> Iterator[bytes]:
        for path in paths:
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    yield block


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
