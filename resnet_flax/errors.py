"""The exception that means "the user can correct this"."""

from parity.errors import UsageError


class UserError(UsageError):
    """Unusable input: the message is one sentence that names the thing, what was expected and found, and what to do.

    Examples:
        >>> import resnet_flax
        >>> try:
        ...     resnet_flax.create_model("resnet5O")
        ... except resnet_flax.UserError as error:
        ...     print(error)
        no architecture named 'resnet5O'; did you mean resnet50, resnet50t, resnet50s?
    """
