"""Folder: a run directory's files are written whole or not at all and read only if they are regular; no link inside the
directory is followed, because a run directory from elsewhere may have been made to point out of itself."""

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
"""The mode of new files, less the process's umask."""
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC
_PARTIAL = ".partial"


class Folder:
    """A directory, whose own path may hold links; names below it (`figures/energy.svg`) may not, and may not leave it.

    Raises UsageError for a link, for a name that leads out, and for anything but a regular file. Other failures are the
    OSError, with the whole path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, content: bytes, *, mode: int = _MODE, durable: bool = False) -> None:
        """Writes `content`, or leaves the file as it was; with `durable` this also holds for a power loss."""
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
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial, dir_fd=parent)  # a link, or left by a killed process
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK
                file = os.fdopen(os.open(partial, flags, mode, dir_fd=parent), "wb")
            try:
                with file:
                    yield file
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                    own = os.fstat(file.fileno())
                with self._named(name):
                    if not _is_same(own, partial, parent):
                        raise StorageError(
                            f"another process is writing {self.path / name}; wait for it to end, then run the command "
                            "again"
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
            return os.open(last, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | _NO_LINK, mode, dir_fd=parent)

    def append(self, name: str, *, mode: int = _MODE) -> IO[bytes]:
        """A file to append to, made if need be; a hard link is refused too."""
        with self._parent(name, make=True) as (parent, last), self._named(name):
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | _NO_LINK
            opened = self._regular(os.open(last, flags, mode, dir_fd=parent), name)
        file = os.fdopen(opened, "ab")
        if os.fstat(opened).st_nlink > 1:
            file.close()
            raise UsageError(f"{self.path / name} is a hard link: it has a second name; move it away")
        return file

    def open(self, name: str, buffering: int = -1) -> IO[bytes]:
        """A regular file, to be read. Raises FileNotFoundError if there is none."""
        with self._parent(name) as (parent, last), self._named(name):
            opened = os.open(last, os.O_RDONLY | os.O_NONBLOCK | _NO_LINK, dir_fd=parent)
            return os.fdopen(self._regular(opened, name), "rb", buffering)

    def read(self, name: str, most_bytes: int = MOST_FILE_BYTES) -> bytes:
        """The whole content of a regular file. Raises UsageError if it is longer than `most_bytes`."""
        with self.open(name) as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise UsageError(f"{self.path / name} is longer than {shown_bytes(most_bytes)}; choose another run")
        return content

    def has(self, name: str) -> bool:
        """Whether a file, a link or anything else has the name."""
        return os.path.lexists(self.path / name)

    def make(self, name: str, *, mode: int | None = None) -> Path:
        """The path of a folder inside, made if need be; with `mode`, an existing one gets that mode too."""
        with self._parent(f"{name}/.", make=True) as (opened, _):
            if mode is not None:
                os.fchmod(opened, mode)
            return self.path / name

    def check(self) -> None:
        """Raises UsageError if one of a run's folders is a link, or is not a folder."""
        for name in filter(self.has, SUBFOLDERS):
            with self._parent(f"{name}/."):
                pass

    @contextlib.contextmanager
    def _parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The descriptor of the folder that holds the name, and the name's last part."""
        *folders, last = name.split("/")
        if ".." in folders or last == ".." or "" in (*folders, last) or "\0" in name:
            raise UsageError(f"{name!r} is not a valid file name inside {self.path}; loadgen did not write it")
        with self._named(""):
            opened = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for depth, folder in enumerate(folders, start=1):
                with self._named("/".join(folders[:depth])):
                    if make:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(folder, dir_fd=opened)
                    inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=opened)
                os.close(opened)
                opened = inner
            yield opened, last
        finally:
            os.close(opened)

    def _regular(self, opened: int, name: str) -> int:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            os.close(opened)
            raise UsageError(_not_expected(self.path / name))
        return opened

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Inside the block a failure has the whole path; one that only a link or the like causes is a UsageError."""
        path = self.path / name if name else self.path
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV) and name:
                raise UsageError(_not_expected(path)) from None
            error.filename, error.filename2 = str(path), None
            raise


def read_file(path: Path, most_bytes: int = MOST_FILE_BYTES) -> bytes:
    """The whole content of a regular file that a user named, wherever it is; links are followed.

    Raises OSError, with the reason as its `strerror`, also for a pipe or the like and beyond `most_bytes`.
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
    """The content of a JSON file of a run as `kind`. Raises ValueError with the reason if it is not one;
    FileNotFoundError; and UsageError as `Folder.read`."""
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


def _is_same(own: os.stat_result, name: str, parent: int) -> bool:
    try:
        return os.path.samestat(own, os.stat(name, dir_fd=parent, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _not_expected(path: Path) -> str:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        mode = 0
    kind = _kind(mode)
    if kind == "a link":
        return f"{path} is a link; loadgen does not follow links inside a run directory: replace it by its target"
    return f"{path} is {kind}, where a run directory has something else; remove it, or choose another run"


def _kind(mode: int) -> str:
    kinds = {"l": "a link", "d": "a folder", "-": "a file", "p": "a pipe", "s": "a socket"}
    return kinds.get(stat.filemode(mode)[0], "a device")
