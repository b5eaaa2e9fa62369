"""Bytes -> text: what is not UTF-8 is read as U+FFFD and told of, once for a file however many records it has."""

from lmtiny.console import counted, warn
from lmtiny.errors import UserError

NO_TEXT = 0.2  # of the characters of a .txt that are no UTF-8, or NUL: of programs and images over 0.35, of Latin-1 French 0.03


def decoded(data: bytes, where: str, most: float = 1.0) -> str:
    """Returns the text; bytes that are not UTF-8 become U+FFFD, counted in a warning.

    Raises:
      UserError: more than the share `most` of its characters are such places, or NUL.
    """
    text, replaced = _replacing(data)
    if (broken := replaced + data.count(b"\0")) > most * len(text):
        what = f"{broken:,} of its {len(text):,} characters are not UTF-8, or NUL"
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
