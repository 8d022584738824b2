"""The errors a user can cause or mend."""

import errno

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
_DENIED = frozenset({errno.EACCES, errno.EPERM})


class UsageError(Exception):
    """Wrong use: `str(error)` is one sentence that names the thing, the value and the remedy (exit status 2)."""


class StorageError(Exception):
    """A run directory that can no longer be written: `str(error)` is one sentence, what is there is kept (status 1)."""


class ServerError(Exception):
    """A server that loadgen launched or talks to failed: `str(error)` says what and shows its last words."""


def is_of_storage(error: OSError) -> bool:
    """Whether a file could not be written: a disk that is full or read-only, a folder that is somebody else's."""
    return error.errno in _FULL or (error.errno in _DENIED and error.filename is not None)
