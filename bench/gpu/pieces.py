"""Pieces: a folder as one archive, cut into files of a stated size, and joined again with every byte checked.

Each piece can be carried alone and in any order with `pieces.json`, which lists all of them with their sha256.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import tarfile
import tempfile
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
    """The content of pieces.json: the pieces in their order, and the files that they hold."""

    pieces: tuple[Piece, ...]
    files: dict[str, str]
    """Path in the folder -> sha256."""

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.pieces)


@dataclass(frozen=True)
class State:
    """The state of the pieces in a folder."""

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
        raise UsageError(f"{out} holds other files than pieces; name an empty folder")
    pieces: list[Piece] = []
    with tempfile.TemporaryFile(dir=out.parent) as whole:
        with tarfile.open(fileobj=whole, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = (folder / name).stat().st_size, 0o644
                with (folder / name).open("rb") as content:
                    archive.addfile(entry, content)
        whole.seek(0)
        while part := whole.read(piece_bytes):
            piece = Piece(f"piece-{len(pieces):03d}", len(part), hashlib.sha256(part).hexdigest())
            (out / piece.name).write_bytes(part)
            pieces.append(piece)
    listed = PieceList(tuple(pieces), {name: sha256(folder / name) for name in names})
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
        raise UsageError(f"{path} cannot be read ({error}); carry it again") from None


def state(folder: Path, listed: PieceList) -> State:
    """Which of the listed pieces are whole in the folder."""
    missing = tuple(piece.name for piece in listed.pieces if not (folder / piece.name).is_file())
    there = {piece.name: folder / piece.name for piece in listed.pieces if piece.name not in missing}
    whole = {(piece.name, piece.bytes, piece.sha256) for piece in listed.pieces}
    good = tuple(name for name, path in there.items() if (name, path.stat().st_size, sha256(path)) in whole)
    return State(good, tuple(name for name in there if name not in good), missing)


def receive(source: Path, store: Path) -> State:
    """Copies the whole pieces of `source` into `store`, which keeps what came before; the state of the store.

    Raises UsageError, naming the pieces, when one in `source` is damaged, or when it is cut from another archive.
    """
    listed = read_list(source)
    here = state(source, listed)
    if here.damaged:
        raise UsageError(f"damaged: {', '.join(here.damaged)} (size or sha256 differs from {LIST}); carry them again")
    store.mkdir(parents=True, exist_ok=True)
    if (store / LIST).exists() and read_list(store) != listed:
        raise UsageError(f"{store} holds pieces of another archive; name another folder or empty it")
    if source.resolve() != store.resolve():
        shutil.copyfile(source / LIST, store / LIST)
        for name in here.good:
            partial = store / f"{name}.partial"  # a kill leaves no half piece under its name
            shutil.copyfile(source / name, partial)
            partial.replace(store / name)
    return state(store, listed)


def join(store: Path, into: Path) -> int:
    """Unpacks the pieces of `store` into a folder, once, and checks every file; the number of files.

    Raises UsageError naming each damaged and each missing piece, or a file that differs.
    """
    listed = read_list(store)
    stamp = into / ".joined"
    mark = sha256(store / LIST)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == mark:
        return len(listed.files)
    found = state(store, listed)
    if not found.complete:
        raise UsageError(f"{store} is not complete: {found}; carry these pieces (again)")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=into) as whole:
        for piece in listed.pieces:
            whole.write((store / piece.name).read_bytes())
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(into, filter="data")
    wrong = [name for name, expected in listed.files.items() if sha256(into / name) != expected]
    if wrong:
        raise UsageError(f"{into}: {', '.join(wrong)} differ from what was split; the disk may be full or failing")
    stamp.write_text(mark, encoding="utf-8")
    return len(listed.files)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


REST = "kit.tar.xz"
"""The archive of everything outside of runs."""
SUFFIX = ".tar.xz"


def unpack(folder: Path, into: Path) -> Path:
    """The packed part of the folder that `measure` worked in. Raises UsageError for damaged or missing archives."""
    archives = sorted(folder.glob(f"*{SUFFIX}"))
    if folder / REST not in archives:
        raise UsageError(f"{folder} holds no {REST}; name the folder that pack wrote")
    for archive in archives:
        try:
            with tarfile.open(archive) as content:
                content.extractall(into, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise UsageError(f"{archive} is damaged ({error}); bring it again") from None
    return into
