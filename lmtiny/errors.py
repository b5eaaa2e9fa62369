"""The exceptions that mean "the person asked for something that cannot be done"."""


class UserError(Exception):
    """What is wrong, where, and what to do, in one line; entry points print it and exit with 1."""


class NothingLeft(UserError):
    """So few documents of a corpus stay that there is nothing to train on, or to validate with: what led there is of no use."""
