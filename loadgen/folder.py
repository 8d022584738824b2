"""Folder: a run directory's files are written whole or not at all, read only if they are regular, and no link inside
the directory is followed. Run directories travel; what is inside one may have been made to point elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from loadgen.bounds import MOST_FILE_BYTES, MOST_JSON_DEPTH, shown_bytes
from loadgen.errors import StorageError, UsageError

SUBFOLDERS = ("figures", "journal", "journal/attempts", "journal/power", "servers")
"""The folders inside a run directory."""
_MODE = 0o666
"""Of new files, less the process's umask."""
_NOT_FOLLOWED = os.O_NOFOLLOW | os.O_CLOEXEC
_PARTIAL = ".partial"


class Folder:
    """A directory, whose own path may hold links; names below it may not, and may not lead out of it.

    Names use `/` for a folder inside, such as `figures/energy.svg`. Raises UsageError for a link, for a name that leads
    out, and for what is not a regular file. Other failures are the OSError, with the whole path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, content: bytes, *, mode: int = _MODE, durable: bool = False) -> None:
        """The file holds `content`, or what it held before; with `durable`, also after a sudden power loss."""
        with self.replacing(name, mode=mode, durable=durable) as file:
            file.write(content)

    @contextlib.contextmanager
    def replacing(self, name: str, *, mode: int = _MODE, durable: bool = False) -> Iterator[IO[bytes]]:
        """A new file to write to; it takes the place of `name` at the end, unless an exception is raised.

        Raises StorageError if another process writes the same file at the same time.
        """
        with self._parent(name, make=True) as (parent, last):
            partial = last + _PARTIAL
            with self._named(name + _PARTIAL):
                file = os.fdopen(_made(partial, parent, mode), "wb")
            try:
                with file:
                    yield file
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                    own = os.fstat(file.fileno())
                with self._named(name):
                    if not _is_still(own, partial, parent):
                        raise StorageError(
                            f"{self.path / name} is being written by another process; wait for it to end, then run "
                            "the command again"
                        )
                    os.replace(partial, last, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(partial, dir_fd=parent)
                raise
            if durable:
                os.fsync(parent)

    def create(self, name: str, *, mode: int = _MODE) -> int:
        """The descriptor of a new file to append to. Raises FileExistsError if anything has that name."""
        with self._parent(name, make=True) as (parent, last), self._named(name):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | _NOT_FOLLOWED
            return os.open(last, flags, mode, dir_fd=parent)

    def append(self, name: str, *, mode: int = _MODE) -> IO[bytes]:
        """A file to append to, made if need be; a second name (hard link) of another file is refused too."""
        with self._parent(name, make=True) as (parent, last), self._named(name):
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | _NOT_FOLLOWED
            opened = self._regular(os.open(last, flags, mode, dir_fd=parent), name)
        file = os.fdopen(opened, "ab")
        if os.fstat(opened).st_nlink > 1:
            file.close()
            raise UsageError(f"{self.path / name} has a second name elsewhere (a hard link); move it away")
        return file

    def open(self, name: str, buffering: int = -1) -> IO[bytes]:
        """A regular file, to be read. Raises FileNotFoundError if there is none."""
        with self._parent(name) as (parent, last), self._named(name):
            opened = os.open(last, os.O_RDONLY | os.O_NONBLOCK | _NOT_FOLLOWED, dir_fd=parent)
            return os.fdopen(self._regular(opened, name), "rb", buffering)

    def read(self, name: str, most_bytes: int = MOST_FILE_BYTES) -> bytes:
        """The whole content of a regular file. Raises UsageError if it is longer than `most_bytes`."""
        with self.open(name) as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise UsageError(f"{self.path / name} is longer than {shown_bytes(most_bytes)}; name another run")
        return content

    def has(self, name: str) -> bool:
        """Whether a file or anything else has the name."""
        return os.path.lexists(self.path / name)

    def make(self, name: str, *, mode: int | None = None) -> Path:
        """The path of a folder inside, made if need be; with `mode`, it has that mode, also if it was there."""
        with self._parent(f"{name}/.", make=True) as (opened, _):
            if mode is not None:
                os.fchmod(opened, mode)
            return self.path / name

    def check(self) -> None:
        """Raises UsageError if one of a run's folders is a link, or is no folder."""
        for name in SUBFOLDERS:
            if self.has(name):
                with self._parent(f"{name}/."):
                    pass

    @contextlib.contextmanager
    def _parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The descriptor of the folder that holds the name, and its last part."""
        *folders, last = name.split("/")
        if ".." in folders or last == ".." or "" in (*folders, last) or "\0" in name:
            raise UsageError(f"{name!r} is not a file name inside {self.path}; loadgen did not write it so")
        with self._named(""):
            place = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for depth, folder in enumerate(folders, start=1):
                with self._named("/".join(folders[:depth])):
                    if make:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(folder, dir_fd=place)
                    inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NOT_FOLLOWED, dir_fd=place)
                os.close(place)
                place = inner
            yield place, last
        finally:
            os.close(place)

    def _regular(self, opened: int, name: str) -> int:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            os.close(opened)
            raise UsageError(_unlike(self.path / name))
        return opened

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Within, a failure has the whole path; what can only be a link or the like is told as such."""
        path = self.path / name if name else self.path
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV) and name:
                raise UsageError(_unlike(path)) from None
            error.filename, error.filename2 = str(path), None
            raise


def read_file(path: Path, most_bytes: int = MOST_FILE_BYTES) -> bytes:
    """The whole content of a regular file that a user named, wherever it is; links are followed.

    Raises OSError with a reason as its `strerror`: also, without waiting, for a pipe or the like, and for a file that
    is longer than `most_bytes`.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(opened).st_mode
    if not stat.S_ISREG(mode):
        os.close(opened)
        raise OSError(errno.EINVAL, f"it is {_kind(mode)}, and only regular files are read", str(path))
    with os.fdopen(opened, "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EINVAL, f"it is longer than {shown_bytes(most_bytes)}", str(path))
    return content


def read_json(folder: Path, name: str, kind: Any = Any) -> Any:
    """The content of a JSON file of a run as `kind`.

    Raises ValueError, whose text says why, if it is none; FileNotFoundError; and UsageError as `Folder.read`.
    """
    content = Folder(folder).read(name)
    try:
        value = msgspec.json.decode(content, type=kind)
    except RecursionError:
        raise ValueError(f"nested more than {MOST_JSON_DEPTH} levels deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(str(error)) from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    """Raises ValueError for lists and objects nested deeper than MOST_JSON_DEPTH."""
    level = [value]
    for _ in range(MOST_JSON_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"nested more than {MOST_JSON_DEPTH} levels deep")


def _made(name: str, parent: int, mode: int) -> int:
    """A new file; what a killed process left under the name, or a link, is removed first, not followed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOT_FOLLOWED, mode, dir_fd=parent)


def _is_still(own: os.stat_result, name: str, parent: int) -> bool:
    try:
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(own, there)


def _unlike(path: Path) -> str:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        mode = 0
    kind = _kind(mode)
    if kind == "a link":
        return f"{path} is a link; loadgen follows no links inside a run directory: put the file or folder itself there"
    return f"{path} is {kind}, where a run directory has something else; remove it, or name another run"


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISREG, "a file"), (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    )  # fmt: skip
    return next((word for is_kind, word in kinds if is_kind(mode)), "a device")
