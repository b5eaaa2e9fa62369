"""JSON that others may have written or damaged: parsed and compared with the shape it must have, or refused in one line."""

import json
import pathlib
from typing import Any

from lmtiny.errors import UserError

MAX_BYTES = 64 << 20


def parsed(raw: bytes | str, where: str) -> Any:
    """Returns the value of a JSON text; raises UserError, which begins with `where`, for whatever is none."""
    try:
        return json.loads(raw, parse_constant=_refuse_constant)
    except RecursionError:
        raise UserError(f"{where} is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, an integer of thousands of digits
        raise UserError(f"{where} is not JSON: {' '.join(str(error).split())[:100]}") from None


def read(path: pathlib.Path, shape: Any = object, max_bytes: int = MAX_BYTES) -> Any:
    """Returns the value of a JSON file that has the `shape` (see `check`).

    Raises:
      UserError: it is larger than `max_bytes`, no JSON, or of another shape.
      OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise UserError(f"{path} is larger than {max_bytes:,} bytes")
    value = parsed(raw, str(path))
    check(value, shape, str(path))
    return value


def check(value: Any, shape: Any, where: str) -> None:
    """Raises UserError where `value` does not have the `shape`; the line says where in it, beginning with `where`.

    A shape is a type; a tuple of shapes, one of which must fit; a list of one shape, for each item; a dict, for an object
    with at least these keys, or with the one key `str`, for each value of an object. True is no int, and an int is a float.
    """
    if isinstance(shape, dict):
        _check_type(value, dict, where)
        if list(shape) == [str]:
            shape = dict.fromkeys(value, shape[str])
        for key, inner in shape.items():
            if key not in value:
                raise UserError(f"{where} lacks {short(key)}")
            check(value[key], inner, f"{where}: {short(key)}")
    elif isinstance(shape, list):
        _check_type(value, list, where)
        for number, item in enumerate(value):
            check(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, tuple):
        if not any(_fits(value, one, where) for one in shape):
            raise UserError(f"{where} is {short(value)}, which is none of the kinds of value that belong there")
    else:
        _check_type(value, shape, where)


_NAMES = {
    dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null",
}  # fmt: skip


def _check_type(value: Any, wanted: type, where: str) -> None:
    right = (int, float) if wanted is float else wanted
    if not isinstance(value, right) or (isinstance(value, bool) and wanted in (int, float)):
        raise UserError(f"{where} is {short(value)}, not {_NAMES[wanted]}")


def _fits(value: Any, shape: Any, where: str) -> bool:
    try:
        check(value, shape, where)
    except UserError:
        return False
    return True


def short(value: Any) -> str:
    """Returns the value as a line may show it: no longer than 40 characters, whatever it is."""
    if isinstance(value, dict | list):  # whose repr may be nested too deep
        return _NAMES[type(value)]
    text = repr(value) if not isinstance(value, int) or isinstance(value, bool) or abs(value) < 10**30 else "a huge number"
    return text if len(text) <= 40 else text[:37] + "..."


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON's")
