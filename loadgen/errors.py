"""The errors that a user can cause or fix."""

import errno
from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
_DENIED = frozenset({errno.EACCES, errno.EPERM})


class UsageError(Exception):
    """Wrong use: `str(error)` is one sentence that names the thing, the value and the remedy (exit status 2)."""


class StorageError(Exception):
    """A run directory that can no longer be written: `str(error)` is one sentence; its files are kept (status 1)."""


class ServerError(Exception):
    """A server that loadgen launched or talks to failed: `str(error)` says how, with the last lines of its log."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM during a sweep: what was measured is in `run_dir`, and `--resume` measures the rest."""

    def __init__(self, run_dir: Path, *, hurried: bool) -> None:
        super().__init__(f"interrupted; what was measured is kept in {run_dir}, and --resume continues it")
        self.run_dir = run_dir
        self.hurried = hurried
        """No report is wanted either."""


def is_of_storage(error: OSError) -> bool:
    """Whether a file could not be written: the disk is full or read-only, or the folder is another user's."""
    return error.errno in _FULL or (error.errno in _DENIED and error.filename is not None)
