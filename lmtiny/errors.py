"""The exceptions that mean "the person asked for something that cannot be done", and values as their lines show them."""

from typing import Any


class UserError(Exception):
    """What is wrong, where, and what to do, in one line; entry points print it and exit with 1."""


class NothingLeft(UserError):
    """So few documents of a corpus stay that there is nothing to train on, or to validate with: what led there is of no use."""


LONGEST_SHOWN = 100  # letters of a value


def shown(value: Any, most: int = LONGEST_SHOWN) -> str:
    """Returns `value` as Python writes it, for a line that refuses it: at most about `most` letters, the middle left out."""
    try:
        return cut(repr(cut(value, most) if isinstance(value, str) else value), most + 2)
    except (ValueError, RecursionError):  # a number of thousands of digits; what is nested too deep
        return f"a huge {type(value).__name__}"


def cut(text: str, most: int = LONGEST_SHOWN) -> str:
    """Returns `text`, or its beginning and its end where it has more than `most` letters."""
    return text if len(text) <= most else f"{text[: most - most // 3 - 3]}...{text[-(most // 3) :]}"
