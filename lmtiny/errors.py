"""The one exception that means "the person asked for something that cannot be done"."""


class UserError(Exception):
    """What is wrong, where, and what to do, in one line; entry points print it and exit with 1."""
