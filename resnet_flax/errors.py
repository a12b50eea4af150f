"""The exception that means "the user can correct this"."""

from parity.errors import UsageError


class UserError(UsageError):
    """Unusable input: the message is one sentence that names the thing, what was expected and found, and what to do."""
