"""The value of a knob from what a person wrote: a config file's or a config.json's value, or text of a command line.

What is not of the knob's type is refused; so is a key that no knob of a table of keys has, with the nearest one named.
"""

import collections
import decimal
import difflib
import functools
import json
import math
from typing import Any

from lmtiny.errors import LONGEST_SHOWN, UserError, cut, shown
from lmtiny.knobs import SYNONYMS, Knob


def nearest(name: Any, names: list[str], otherwise: str = "; --help lists them all") -> str:
    """Returns "; did you mean X?" for the closest of `names`, or those of the section that it is or names, or `otherwise`.

    What others call a knob (`knobs.SYNONYMS`) leads to it. In a section that there is, a name from elsewhere is
    offered only if it is the very same. What is no text has none that is close.
    """
    if not isinstance(name, str) or len(name) > LONGEST_SHOWN:
        return otherwise
    if below := [known for known in names if known.startswith(f"{name}.")]:
        return _listed(below)
    section, _, own = name.rpartition(".")
    meant = SYNONYMS.get(own.strip("-").replace("-", "_").lower())
    if found := [known for known in names if meant and known.removeprefix("--config.") == meant]:
        return f"; did you mean {found[0]}?"
    beside = [known for known in names if section.strip("-") not in ("", "config") and known.rpartition(".")[0] == section]
    last = {known.rpartition(".")[2]: known for known in reversed(names)}
    if beside:
        inside = {known.rpartition(".")[2]: known for known in beside}
        close = [inside[match] for match in difflib.get_close_matches(own, inside, 1, 0.6)] or ([last[own]] if own in last else [])
        return f"; did you mean {close[0]}?" if close else _listed(beside)
    close = difflib.get_close_matches(name, names, 1, 0.6) or [last[match] for match in difflib.get_close_matches(own, last, 1, 0.6)]
    return f"; did you mean {close[0]}?" if close else otherwise


def _listed(names: list[str]) -> str:
    return f"; there are {', '.join(names[:8])}" + (f" and {len(names) - 8} more: --help lists them all" if len(names) > 8 else "")


def converted(name: str, knob: Knob, value: Any) -> Any:
    """Returns `value` as the knob's type, or raises UserError that calls the knob `name`."""
    if knob.keys:
        return _tables(name, knob.keys, value)
    given = value
    try:
        if knob.type is tuple:
            if isinstance(value, str):
                value = json.loads(value) if value.startswith("[") else (value,)
            value = tuple(value) if isinstance(value, list | tuple) else value
        elif isinstance(value, str) and knob.type is not str:
            value = _BOOLS[value.lower()] if knob.type is bool else number(value, knob.type)
        elif knob.type is float and type(value) is int:
            value = float(value)
    except (KeyError, ValueError, OverflowError, RecursionError):
        value = None
    of_texts = not isinstance(value, tuple) or all(isinstance(item, str) for item in value)
    if type(value) is not knob.type or not of_texts or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{name}: {shown(given)} is not {_TYPE_NAMES[knob.type]}")
    return value


_BOOLS = {"true": True, "false": False}
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: 'a list of texts, ["like", "this"]'}
_MOST_DIGITS = 400  # of a whole number: any range ends before


def number(text: str, kind: type) -> int | float:
    """Returns the number that `text` says, a whole one exactly (65_536 and 1e6 are whole numbers too); raises ValueError if none."""
    if not text.isascii():
        raise ValueError(text)
    if kind is float:
        return float(text)
    try:
        exact = decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise ValueError(text) from None
    if not exact.is_finite() or abs(exact.adjusted()) > _MOST_DIGITS or exact != exact.to_integral_value():
        raise ValueError(text)
    return int(exact)


def _tables(name: str, keys: tuple[Knob, ...], value: Any) -> tuple[dict[str, Any], ...]:
    """Returns a tuple of dicts, each with all of `keys`, checked: of a list of dicts, or of one, or of either as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=functools.partial(_once, name))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}: {shown(value)} is not JSON ({cut(str(error))}); write {_example(keys)}") from None
    tables = [value] if isinstance(value, dict) else value
    if not isinstance(tables, list | tuple) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{name}: {shown(value)} is not a list of objects, {_example(keys)}")
    return tuple(_table(f"{name}[{number}]", keys, table) for number, table in enumerate(tables))


def _once(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object of a JSON text, in which JSON itself would let the last of equal keys win."""
    for key, times in collections.Counter(key for key, _ in pairs).items():
        if times > 1:
            raise UserError(f"{name}: an object has {shown(key)} twice; leave one out")
    return dict(pairs)


def _example(keys: tuple[Knob, ...]) -> str:
    return f'[{{"{keys[0].name}": ...}}]'


def _table(name: str, keys: tuple[Knob, ...], value: dict[str, Any]) -> dict[str, Any]:
    known = [key.name for key in keys]
    for written in value:
        if written not in known:
            raise UserError(f"{name} has no {shown(written)}{nearest(written, known, '; there are ' + ', '.join(known))}")
    table: dict[str, Any] = {}
    for key in keys:
        given = value.get(key.name, key.default)
        unset = given is None and key.default is None
        table[key.name] = None if unset else converted(f"{name}.{key.name}", key, given)
        if not unset and (problem := key.check(table[key.name])):
            raise UserError(f"{name}.{key.name} = {shown(table[key.name])} {problem}")
    return table
