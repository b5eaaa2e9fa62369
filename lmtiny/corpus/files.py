"""A corpus of files on this machine: texts and .jsonl (plain, .gz or .zst) and .parquet, cut into units of work.

Large texts and .jsonl files become several units, each a range of bytes that begins and ends where a text or a line
does; the ranges follow from the file alone, so the documents are the same however many processes read them.
"""

import difflib
import functools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from lmtiny.corpus import json_lines
from lmtiny.corpus.compressed import BUFFER_BYTES, compression, missing, needs_pyarrow, whole
from lmtiny.corpus.cut import chapters, lines, paragraphs
from lmtiny.corpus.decoding import NO_TEXT, decoded, opened_text
from lmtiny.corpus.documents import Document, Unit, clean, cleaned, digest, of_record, sections
from lmtiny.corpus.fingerprint import of_file
from lmtiny.corpus.paths import find, held_out_of, kind
from lmtiny.errors import UserError
from lmtiny.knobs import TEXT_KEY

RANGE_BYTES = 64 << 20  # of a text or a .jsonl file that one unit reads
ROWS = 16  # of a .parquet that are decoded at once: a few kilobytes may stand for rows of many megabytes
CUTS = {"file": lambda text: iter([text]), "blank lines": paragraphs, "lines": lines, "chapters": chapters}
LIKE_THE_OTHERS = "the records before it have it: mend this one, or take it away"
LOOK_AHEAD_BYTES = 1 << 20  # how far a range of a text is moved on in search of a blank line


class Reading(NamedTuple):
    """How files become documents: the knobs for it; and what errors call those that say which files, and which field."""

    text_key: str
    section_bytes: int
    cut: str = "sections"
    path_knob: str = "corpus.path"
    validation_knob: str = "corpus.validation_path"
    text_key_knob: str = "--config.corpus.text_key"


def units(path: str, validation_path: str, reading: Reading) -> list[Unit]:
    """Returns the units of the files that `path` names, sorted; those that `validation_path` names are held out.

    Names are relative to the folder that all files share, so a corpus may be moved.

    Raises:
      UserError: nothing matches, an extension is not supported, or a file cannot be read.
    """
    training = find(path, reading.path_knob)
    held_out = held_out_of(training, validation_path, reading.validation_knob) if validation_path else set()
    files = sorted({*training, *held_out})
    root = pathlib.Path(os.path.commonpath([file.parent for file in files]))
    return units_of(files, held_out, root, reading)


def units_of(files: list[pathlib.Path], held_out: set[pathlib.Path], root: pathlib.Path, reading: Reading) -> list[Unit]:
    """Returns the units of `files`, all under `root`, in their order; an empty file has none. Raises UserError."""
    if held_out and len(held_out) == len(files):
        all_files = "the only file" if len(files) == 1 else f"all {len(files)} files"
        raise UserError(f"{reading.validation_knob} holds out {all_files}; nothing is left to train on")
    if reading.cut != "sections" and not any(kind(file) == "text" for file in files):
        raise UserError(f"cut = {reading.cut!r} says nothing about {files[0].name}: it is for texts; a record is a document")
    if reading.text_key != TEXT_KEY and files and all(kind(file) == "text" for file in files):
        idle = f"{reading.text_key_knob.removeprefix('--config.')} = {reading.text_key!r} says nothing about {files[0].name}"
        raise UserError(f"{idle}: it is for records of .jsonl and .parquet; leave it out")
    found = []
    for file in files:
        # A name that is not UTF-8 (of an old archive, say) is written as Python escapes it: ids are text.
        name = os.fsencode(file.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")
        try:
            size, fingerprint = file.stat().st_size, of_file(file)
        except OSError as error:
            knob = reading.validation_knob if file in held_out else reading.path_knob
            remedy = f"leave it out of {knob} or change its permissions"
            raise UserError(f"{file}: cannot be read ({error.strerror}); {remedy}") from None
        step = size if compression(file) or kind(file) == "parquet" else RANGE_BYTES
        if kind(file) == "text":
            read, option = functools.partial(read_text, cut=reading.cut, section_bytes=reading.section_bytes), _cut_option(reading)
            step = size if reading.cut in ("file", "chapters") else step
        else:
            reader = read_parquet if kind(file) == "parquet" else read_jsonl
            read, option = functools.partial(reader, text_key=reading.text_key, knob=reading.text_key_knob), reading.text_key
        for start in range(0, size, step or 1):
            end = min(start + step, size)
            own = functools.partial(read, file, name, start, end)
            of_range = digest(name, fingerprint, start, end, option)
            found.append(Unit(f"{name}@{start}", of_range, end - start, own, file in held_out, missing=missing(file)))
    return found


def _cut_option(reading: Reading) -> int | str:
    """Returns what decides the documents of a text."""
    return reading.section_bytes if reading.cut == "sections" else reading.cut


def read_text(file: pathlib.Path, name: str, start: int, end: int, cut: str, section_bytes: int) -> Iterator[Document]:
    """Yields the documents of a text that begin in its bytes [start, end); `cut` says what they are.

    sections: pieces of about `section_bytes`, cut at blank lines; file: the whole; blank lines: its paragraphs (one of
    more than LOOK_AHEAD_BYTES may be cut at a line end); lines: each by itself; chapters: as `cut.chapters` finds them.
    A compressed file is read as a whole, range by range.

    Raises:
      UserError: it is not text in UTF-8, or one that is read as a whole has more than MOST_BYTES.
    """
    with opened_text(file) as stream:
        if cut in ("file", "chapters"):
            ranges = iter([(0, whole(stream, file))])
        elif compression(file):
            ranges = _ranges(stream)
        else:
            start, end = _text_boundary(stream, start), _text_boundary(stream, end)
            stream.seek(start)
            ranges = iter([(start, stream.read(end - start))])
        for begin, data in ranges:
            text = clean(decoded(data, str(file), NO_TEXT))
            if cut == "sections":
                pieces = sections(text, section_bytes)
            else:
                pieces = CUTS[cut](text)
            for number, piece in enumerate(pieces):
                yield from cleaned([{"text": piece, "source": name, "id": f"{name}@{begin}.{number}"}])


def _ranges(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yields (begin, bytes) of the ranges that the stream has as a file of its own: no more than one is held."""
    begin, goal, data = 0, RANGE_BYTES, b""
    while True:
        data += stream.read(goal + LOOK_AHEAD_BYTES - begin - len(data))
        if begin + len(data) <= goal:
            yield begin, data
            return
        end = goal - begin + _behind_mark(data[goal - begin : goal - begin + LOOK_AHEAD_BYTES])
        yield begin, data[:end]
        begin, goal, data = begin + end, goal + RANGE_BYTES, data[end:]


def _text_boundary(stream: IO[bytes], offset: int) -> int:
    """Returns where a range of a text may begin: at 0, or behind the next blank line, or line, or blank, or character."""
    if offset == 0:
        return 0
    stream.seek(offset)
    return offset + _behind_mark(stream.read(LOOK_AHEAD_BYTES))


def _behind_mark(ahead: bytes) -> int:
    """Returns how many of the bytes come before such a place."""
    for mark in (rb"\n\r?\n", rb"\n", rb"[ \t]"):
        if found := re.search(mark, ahead):
            return found.end()
    return next((i for i, byte in enumerate(ahead) if byte & 0xC0 != 0x80), len(ahead))


def read_jsonl(file: pathlib.Path, name: str, start: int, end: int, text_key: str, knob: str) -> Iterator[Document]:
    """Yields a document for each line of a .jsonl file that begins in its bytes [start, end); a compressed one is read whole.

    Raises:
      UserError: a line that is not a JSON object, or lacks the text; names the line, and the `knob` of the field.
    """
    for offset, record in json_lines.values(file, start, end):
        yield of_record(_text_of(record, file, offset, text_key, knob), name, f"{name}@{offset}")
        knob = ""  # others of the file have the field


def _text_of(record: Any, file: pathlib.Path, offset: int, text_key: str, knob: str) -> str | None:
    """Returns the text of a record; `knob` is what may name another field, "" where other records of the file have this one."""
    if isinstance(record, dict) and isinstance(text := record.get(text_key, 0), str | None):
        return text
    where = json_lines.at(file, offset)
    if not isinstance(record, dict):
        raise UserError(f"{where}: is a JSON {type(record).__name__}, not an object with the field {text_key!r}")
    if text_key not in record:
        raise UserError(f"{where}: no field {text_key!r}{among(text_key, list(record), knob)}")
    remedy = f"set {knob}" if knob else LIKE_THE_OTHERS
    raise UserError(f"{where}: the field {text_key!r} is {type(text).__name__}, not text; {remedy}")


def among(text_key: str, names: list[str], knob: str) -> str:
    """Returns " among X, Y; did you mean KNOB=X?", or without a knob that there are others which have the field."""
    names = names[:1000]
    close = [name for name in difflib.get_close_matches(text_key, names, 1) if name.isprintable()]
    hint = LIKE_THE_OTHERS if not knob else f"did you mean {knob}={close[0]}?" if close else f"set {knob}"
    return f" among {', '.join(repr(name[:60]) for name in names[:8]) or 'none'}; {hint}"


def read_parquet(file: pathlib.Path, name: str, _start: int, _end: int, text_key: str, knob: str) -> Iterator[Document]:
    """Yields a document for each row of a .parquet file; its row groups are read one after the other.

    Raises:
      UserError: pyarrow is not installed, the file is not parquet, or it has no such column of text.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(needs_pyarrow(file)) from None
    try:
        with pyarrow.parquet.ParquetFile(file, buffer_size=BUFFER_BYTES) as table:
            if text_key not in table.schema_arrow.names:
                raise UserError(f"{file}: no column {text_key!r}{among(text_key, table.schema_arrow.names, knob)}")
            column = table.schema_arrow.names.index(text_key)
            found = table.schema_arrow.field(column).type
            texts = found.value_type if pyarrow.types.is_dictionary(found) else found
            types = pyarrow.types
            if not any(one(texts) for one in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)):
                raise UserError(f"{file}: the column {text_key!r} is {str(found)[:60]}, not text; set {knob}")
            row = 0
            for batch in table.iter_batches(batch_size=ROWS, columns=[text_key]):
                for text in batch.column(0):
                    yield of_record(text.as_py(), name, f"{name}@{row}")
                    row += 1
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: what is said to be UTF-8 is none
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: not a readable .parquet file ({detail}); have it anew, or take it away") from None
