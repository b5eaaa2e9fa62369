"""Bytes -> text: what is not UTF-8 is read as U+FFFD and told of, once for a file however many records it has."""

import pathlib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from lmtiny.console import counted, warn
from lmtiny.corpus.compressed import compression, opened
from lmtiny.errors import UserError

# Of the characters of a text that are no UTF-8, or control characters: of programs and images over 0.35, of French in
# Latin-1 0.03.
NO_TEXT = 0.2
_CONTROLS = bytes([*range(8), *range(0x0E, 0x1B)])  # those that no text has; Cyrillic in UTF-16 is half of them
HEAD_BYTES = 4096  # by which a file is told to be text, and in which encoding
# The longer mark first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
)  # fmt: skip
# Without a mark: the bytes of a unit, and which of them is zero for most letters.
_UNMARKED = (("UTF-32LE", 4, 3), ("UTF-32BE", 4, 0), ("UTF-16LE", 2, 1), ("UTF-16BE", 2, 0))


@contextmanager
def opened_text(file: pathlib.Path) -> Iterator[IO[bytes]]:
    """Yields the file's bytes, uncompressed, to read; what is wrong with the text in them is for others to find.

    Raises:
      UserError: what `opened` refuses, or the file is UTF-16 or UTF-32.
    """
    with opened(file) as stream:
        if encoding := wide_encoding(_head(stream)):
            name, first = shlex.quote(str(file)), ""
            if compression(file):
                name, first = shlex.quote(str(file.with_suffix(""))), "uncompress it, then "
            remedy = f"{first}convert it: iconv -f {encoding} -t UTF-8 {name} > new && mv new {name}"
            raise UserError(f"{file}: is {encoding}, not UTF-8; {remedy}")
        yield stream


def is_text(file: pathlib.Path) -> bool:
    """Returns whether the file begins like text: in UTF-8 without NUL, which an archive has, or in what `opened_text` names.

    Raises:
      UserError: it cannot be read.
    """
    with opened(file) as stream:
        head = _head(stream)
    text, replaced = _replacing(head)
    narrow = b"\0" not in head and replaced + _controls(head) <= NO_TEXT * len(text)
    return narrow or bool(wide_encoding(head))


def wide_encoding(head: bytes) -> str:
    """Returns "UTF-32", "UTF-16" or the name of one of the four without a mark if a file begins so, or ""."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    sample = head[: len(head) // 4 * 4]
    for encoding, step, zero in _UNMARKED:
        if sample[zero::step].count(0) * 2 * step > len(sample):
            text = sample.decode(encoding, "replace").replace("\ufffd", "\0")
            if sum(one.isprintable() or one.isspace() for one in text) > 0.9 * len(text):
                return encoding
    return ""


def _head(stream: IO[bytes]) -> bytes:
    return stream.peek(HEAD_BYTES)[:HEAD_BYTES]  # type: ignore[attr-defined]  # what `opened` yields is buffered


def _controls(data: bytes) -> int:
    return len(data) - len(data.translate(None, _CONTROLS))


def decoded(data: bytes, where: str, most: float = 1.0) -> str:
    """Returns the text; bytes that are not UTF-8 become U+FFFD, counted in a warning.

    Raises:
      UserError: more than the share `most` of its characters are such places, or control characters.
    """
    text, replaced = _replacing(data)
    if (broken := replaced + _controls(data)) > most * len(text):
        what = f"{broken:,} of its {len(text):,} characters are not UTF-8, or control characters"
        raise UserError(f"{where}: is not text ({what}); take it away, or convert it: iconv -f ITS_ENCODING -t UTF-8")
    _warn(where, replaced, "")
    return text


class Records:
    """Decodes the records of a file one by one, and counts the places that became U+FFFD, to be warned of together."""

    def __init__(self, where: str) -> None:
        self.where, self.records, self.places = where, 0, 0

    def decoded(self, data: bytes) -> str:
        """Returns the text of a record."""
        text, replaced = _replacing(data)
        self.places += replaced
        self.records += bool(replaced)
        return text

    def warn(self) -> None:
        """Tells how many places there were, if any; to be called when all records are read."""
        _warn(self.where, self.places, f" in {counted(self.records, 'record')}")


def _replacing(data: bytes) -> tuple[str, int]:
    """Returns the text, and how many places of it are U+FFFD that were not so in `data`."""
    text = data.decode(errors="replace")
    return text, text.count(chr(0xFFFD)) - data.count(chr(0xFFFD).encode())


def _warn(where: str, replaced: int, of_what: str) -> None:
    if replaced:
        are = "is not UTF-8 and was" if replaced == 1 else "are not UTF-8 and were"
        warn(f"{where}: {counted(replaced, 'place')}{of_what} {are} read as U+FFFD; if that is too much: iconv -f ITS_ENCODING -t UTF-8")
