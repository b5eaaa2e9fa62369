"""What flows out of this room: documents, in units of work that can be read one by one, by any process, again and again."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict

from lmtiny.errors import UserError

READER_VERSION = 3  # goes into every fingerprint: raise it when the same bytes give other documents
PIECE_CHARACTERS = 1 << 20  # that are divided into lines at once


class Document(TypedDict):
    """A text with the source it is counted under and an id that finds it again; both are names relative to the corpus."""

    text: str
    source: str
    id: str


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of the corpus that one process reads at a time.

    `fingerprint` (hex) changes when its documents may have changed; `read` is picklable and yields cleaned documents in a
    fixed order, that of a record without text with the text "", to be counted and passed over; `held_out` units go to
    validation as a whole; `num_bytes` is the size of what is read; `source` is the name of the listed source it belongs
    to, "" where the config lists none; `missing` is the line that `read` would end with as a library is not installed,
    "" where none is missing.
    """

    name: str
    fingerprint: str
    num_bytes: int
    read: Callable[[], Iterator[Document]]
    held_out: bool = False
    source: str = ""
    missing: str = ""


def check(units: Iterable[Unit]) -> None:
    """Raises UserError of the first unit that needs a library which is not installed; reads none."""
    for unit in units:
        if unit.missing:
            raise UserError(unit.missing)


# Line ends as Unicode and str.splitlines have them; what separates files, groups, records and units is a blank.
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SEPARATORS = re.compile("[\x1c-\x1f]")
# C0 and C1 control characters but tab and newline, the byte order mark, and lone surrogates (a JSON escape may hold one).
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ud800-\udfff]+")
# The rest: ten times faster to be sure of.
_WANTED = re.compile("[\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\U0010ffff]*")


def clean(text: str) -> str:
    """Returns the text with LF line ends, without control characters, trailing blanks and surrounding empty lines.

    Line ends are CR, LF, vertical tab, form feed, next line (U+0085) and U+2028, U+2029; the separators U+001C to U+001F
    become blanks. Nothing else is changed: no Unicode normalisation, no re-wrapping, and soft hyphens and zero-width
    characters stay. Cleaning twice is cleaning once.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not _WANTED.fullmatch(text):
        text = _UNWANTED.sub("", _SEPARATORS.sub(" ", _LINE_ENDS.sub("\n", text)))
    if " \n" in text or "\t\n" in text:
        text = "".join("\n".join(line.rstrip(" \t") for line in piece.split("\n")) for piece in _pieces(text))
    return text.rstrip().lstrip("\n")


def _pieces(text: str) -> Iterator[str]:
    """Yields the text in pieces of whole lines: the lines of all of a long one would be many objects at once."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + PIECE_CHARACTERS) + 1 or len(text)
        yield text[start:end]
        start = end


def cleaned(documents: Iterable[Document]) -> Iterator[Document]:
    """Yields the documents with their text cleaned; those of which nothing is left are dropped."""
    for document in documents:
        text = clean(document["text"])
        if text:
            yield {"text": text, "source": document["source"], "id": document["id"]}


def of_record(text: str | None, source: str, identity: str) -> Document:
    """Returns the document of a record, its text cleaned; "" where it has none."""
    return {"text": clean(text or ""), "source": source, "id": identity}


def content_hash(text: str) -> int:
    """Returns the 64-bit hash that a document is split and deduplicated by."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def digest(*parts: object) -> str:
    """Returns 32 hex digits that depend on every one of `parts` (by their repr)."""
    return hashlib.sha256(repr((READER_VERSION, parts)).encode()).hexdigest()[:32]


def sections(text: str, size: int) -> Iterator[str]:
    """Yields the text in pieces of about equal length, none much above `size` bytes of UTF-8.

    A cut is made at a blank line where there is one, or else at a line end, or else at a blank, or else between two
    characters, in this order of preference, looking back over half a piece. The pieces joined are the text.
    """
    data, start = text.encode(), 0
    while start < len(data):
        remaining = len(data) - start
        pieces = -(-remaining // size)
        end = len(data) if pieces == 1 else cut_before(data, start, start + -(-remaining // pieces))
        yield data[start:end].decode()
        start = end


def cut_before(data: bytes, start: int, goal: int) -> int:
    """Returns the best place in (start, goal] to cut UTF-8 `data` at, as `sections` says."""
    middle = start + (goal - start) // 2
    for mark in (b"\n\n", b"\n", b" ", b"\t"):
        found = data.rfind(mark, middle, goal)
        if found >= 0:
            return min(found + len(mark), goal)
    end = goal
    while end > start and _continues(data, end):
        end -= 1
    if end == start:  # a single character is longer than the piece
        end = goal
        while _continues(data, end):
            end += 1
    return end


def _continues(data: bytes, at: int) -> bool:
    return at < len(data) and data[at] & 0xC0 == 0x80
