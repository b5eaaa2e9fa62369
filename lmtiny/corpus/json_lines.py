"""JSON, a value a line: how lines are found and read, for documents and for evaluation sets alike."""

import json
import math
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from lmtiny.corpus import compressed
from lmtiny.corpus.decoding import Records, opened_text
from lmtiny.errors import UserError

_DIGITS = 600  # of an integer that any Python converts (sys.set_int_max_str_digits)


def values(file: pathlib.Path, start: int = 0, end: float = math.inf) -> Iterator[tuple[int, Any]]:
    """Yields (offset, value) of each line that begins in the bytes [start, end) and is not blank.

    A compressed file is read whole, whatever they are. A line ends with LF or CR LF, and with nothing else: U+2028 may
    stand in a text. A byte order mark before it is passed over. What is not UTF-8 is warned of. An integer of very many
    digits becomes infinite: no reader wants numbers.

    Raises:
      UserError: a line that is not JSON, or has more than compressed.MOST_BYTES; names the line.
    """
    records = Records(str(file))
    with opened_text(file) as stream:
        if start:
            stream.seek(start - 1)
            start += len(_line(stream, file, start - 1)) - 1
        while (start < end or compressed.compression(file)) and (line := _line(stream, file, start)):
            offset, start = start, start + len(line)
            if not line.isspace():
                text, line = records.decoded(line), b""  # it may be long: there is to be one copy at a time
                value, text = _parsed(text, file, offset), ""
                yield offset, value
    records.warn()


def _line(stream: IO[bytes], file: pathlib.Path, offset: int) -> bytes:
    if len(line := stream.readline(compressed.MOST_BYTES + 1)) > compressed.MOST_BYTES:
        what = f"is longer than {compressed.MOST_BYTES >> 20} MiB"
        raise UserError(f"{at(file, offset)}: {what}; every record is a line of its own")
    return line


def _parsed(text: str, file: pathlib.Path, offset: int) -> Any:
    try:
        return _DECODER.decode(text.lstrip("\ufeff"))
    except (json.JSONDecodeError, RecursionError) as error:
        remedy = "every line must be a JSON value by itself"
        raise UserError(f"{at(file, offset)}: not JSON ({error}); {remedy}") from None


_DECODER = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < _DIGITS else math.inf)


def at(file: pathlib.Path, offset: int) -> str:
    """Returns "file:line" of the line that begins at `offset`; it is counted only now that it is needed."""
    line = 1
    with compressed.opened(file) as stream:
        while offset > 0 and (data := stream.read(min(offset, 1 << 20))):
            line += data.count(b"\n")
            offset -= len(data)
    return f"{file}:{line}"
