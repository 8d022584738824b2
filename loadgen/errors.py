"""The errors a user can cause or mend."""


class UsageError(Exception):
    """Wrong use: `str(error)` is one sentence that names the thing, the value and the remedy (exit status 2)."""


class ServerError(Exception):
    """A server that loadgen launched or talks to failed: `str(error)` says what and shows its last words."""
