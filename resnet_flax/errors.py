"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """Unusable input: the message is one sentence that names the thing, what was found, and the way out.

    The command line prints it without a traceback and exits with status 2.
    """
