"""A corpus of the person's own files: .txt, .jsonl and .parquet, cut into units of work.

Large .txt and .jsonl files become several units, each a range of bytes that begins and ends where a text or a line
does; the ranges follow from the file alone, so the documents are the same however many processes read them.
"""

import difflib
import functools
import glob
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from lmtiny.console import warn
from lmtiny.corpus.documents import Document, Unit, clean, cleaned, digest, sections
from lmtiny.corpus.fingerprint import of_file
from lmtiny.errors import UserError

EXTENSIONS = (".txt", ".jsonl", ".parquet")
RANGE_BYTES = 64 << 20  # of a .txt or .jsonl file that one unit reads
LOOK_AHEAD_BYTES = 1 << 20  # how far a range of a .txt file is moved on in search of a blank line


def units(path: str, validation_path: str, text_key: str, section_bytes: int) -> list[Unit]:
    """Returns the units of the files that `path` names, sorted; those that `validation_path` names are held out.

    Names are relative to the folder that all files share, so a corpus may be moved.

    Raises:
      UserError: nothing matches, an extension is not supported, or a file cannot be read.
    """
    training = find(path, "corpus.path")
    held_out = _held_out(validation_path, training) if validation_path else set()
    files = sorted({*training, *held_out})
    if validation_path and len(held_out) == len(files):
        raise UserError(f"corpus.validation_path = {validation_path!r} holds out all {len(files)} files; nothing is left to train on")
    root = pathlib.Path(os.path.commonpath([file.parent for file in files]))
    found = []
    for file in files:
        name = file.relative_to(root).as_posix()
        try:
            size, fingerprint = file.stat().st_size, of_file(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}); leave it out of corpus.path or change its permissions") from None
        option = section_bytes if file.suffix == ".txt" else text_key
        step = size if file.suffix == ".parquet" else RANGE_BYTES
        for start in range(0, size, step or 1):
            end = min(start + step, size)
            read = functools.partial(READERS[file.suffix], file, name, start, end, option)
            found.append(Unit(f"{name}@{start}", digest(name, fingerprint, start, end, option), end - start, read, file in held_out))
    if not found:
        raise UserError(f"corpus.path = {path!r}: all {len(files)} files are empty")
    return found


def find(path: str, knob: str) -> list[pathlib.Path]:
    """Returns the absolute paths of the supported files that `path` names: folders, files, globs, several separated by commas."""
    found: set[pathlib.Path] = set()
    for part in [path] if os.path.exists(path) else [part.strip() for part in path.split(",") if part.strip()]:
        matches = [part] if os.path.exists(part) else sorted(glob.glob(os.path.expanduser(part), recursive=True))
        if not matches:
            raise UserError(f"{knob}: nothing matches {part!r} (seen from {os.getcwd()}); name a folder, a file or a glob of files")
        inside = [file for match in matches for file in _inside(pathlib.Path(match).absolute())]
        supported = [file for file in inside if file.suffix in EXTENSIONS]
        if not supported and inside:
            raise UserError(f"{knob}: {inside[0]} is not one of {', '.join(EXTENSIONS)}; convert it or rename it")
        if not supported:
            raise UserError(f"{knob}: {part!r} holds no {', '.join(EXTENSIONS)} file")
        found.update(supported)
    if not found:
        raise UserError(f"{knob} = {path!r} names no file")
    return sorted(found)


def _inside(path: pathlib.Path) -> list[pathlib.Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and not any(map(_hidden, file.relative_to(path).parts)))


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _held_out(pattern: str, files: list[pathlib.Path]) -> set[pathlib.Path]:
    """Returns the files of the glob: as seen from here, or else, like a .gitignore's, those of the corpus whose path ends in it."""
    if os.path.exists(pattern) or "," in pattern or glob.glob(os.path.expanduser(pattern), recursive=True):
        return set(find(pattern, "corpus.validation_path"))
    matching = {file for file in files if file.match(pattern)}
    if not matching:
        raise UserError(f"corpus.validation_path: nothing matches {pattern!r}, neither from {os.getcwd()} nor among the {len(files)} files")
    return matching


def read_text(file: pathlib.Path, name: str, start: int, end: int, section_bytes: int) -> Iterator[Document]:
    """Yields the sections of a .txt file that begin in its bytes [start, end); a short file is one document."""
    with _opened(file) as stream:
        if stream.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{file}: is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8 {file.name}")
        start, end = _text_boundary(stream, start), _text_boundary(stream, end)
        stream.seek(start)
        text = clean(_decoded(stream.read(end - start), str(file)))
    for number, section in enumerate(sections(text, section_bytes)):
        yield from cleaned([{"text": section, "source": name, "id": f"{name}@{start}.{number}"}])


def _text_boundary(stream: Any, offset: int) -> int:
    """Returns where a range of a .txt file may begin: at `offset` or behind the next blank line, or line, or character."""
    if offset == 0:
        return 0
    stream.seek(offset)
    ahead = stream.read(LOOK_AHEAD_BYTES)
    for mark in (rb"\n\r?\n", rb"\n"):
        if found := re.search(mark, ahead):
            return offset + found.end()
    return offset + next((i for i, byte in enumerate(ahead) if byte & 0xC0 != 0x80), len(ahead))


def read_jsonl(file: pathlib.Path, name: str, start: int, end: int, text_key: str) -> Iterator[Document]:
    """Yields a document for each line of a .jsonl file that begins in its bytes [start, end).

    Raises:
      UserError: a line that is not a JSON object, or lacks the text; names the line.
    """
    with _opened(file) as stream:
        offset = start
        if start:
            stream.seek(start - 1)
            offset += len(stream.readline()) - 1
        while offset < end and (line := stream.readline()):
            if line.strip():
                text = _text_of(line, file, offset, text_key)
                yield from cleaned([{"text": text, "source": name, "id": f"{name}@{offset}"}])
            offset += len(line)


def _text_of(line: bytes, file: pathlib.Path, offset: int, text_key: str) -> str:
    try:
        record = json.loads(_decoded(line, str(file)).lstrip("\ufeff"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{_at(file, offset)}: not JSON ({error}); every line must be an object with the field {text_key!r}") from None
    if not isinstance(record, dict):
        raise UserError(f"{_at(file, offset)}: is a JSON {type(record).__name__}, not an object with the field {text_key!r}")
    if text_key not in record:
        raise UserError(f"{_at(file, offset)}: no field {text_key!r}{_among(text_key, list(record))}")
    text = record[text_key]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{_at(file, offset)}: the field {text_key!r} is {type(text).__name__}, not text; set corpus.text_key")
    return text or ""


def _at(file: pathlib.Path, offset: int) -> str:
    """Returns "file:line": the line is counted only now that it is needed."""
    line = 1
    with _opened(file) as stream:
        while offset > 0 and (data := stream.read(min(offset, 1 << 20))):
            line += data.count(b"\n")
            offset -= len(data)
    return f"{file}:{line}"


def _among(text_key: str, names: list[str]) -> str:
    close = difflib.get_close_matches(text_key, names, 1)
    hint = f"; did you mean --config.corpus.text_key={close[0]}?" if close else "; set corpus.text_key"
    return f" among {', '.join(map(repr, names[:8])) or 'none'}{hint}"


def read_parquet(file: pathlib.Path, name: str, _start: int, _end: int, text_key: str) -> Iterator[Document]:
    """Yields a document for each row of a .parquet file; its row groups are read one after the other.

    Raises:
      UserError: pyarrow is not installed, the file is not parquet, or it has no such column of text.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{file}: reading .parquet needs pyarrow: pip install 'lmtiny[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            if text_key not in table.schema_arrow.names:
                raise UserError(f"{file}: no column {text_key!r}{_among(text_key, table.schema_arrow.names)}")
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[text_key]):
                for text in batch.column(0).to_pylist():
                    if text is not None and not isinstance(text, str):
                        raise UserError(f"{file}: the column {text_key!r} is {type(text).__name__}, not text; set corpus.text_key")
                    yield from cleaned([{"text": text or "", "source": name, "id": f"{name}@{row}"}])
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable .parquet file ({' '.join(str(error).split())[:200]})") from None


READERS: dict[str, Any] = {".txt": read_text, ".jsonl": read_jsonl, ".parquet": read_parquet}


def _opened(file: pathlib.Path) -> Any:
    try:
        return open(file, "rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _decoded(data: bytes, where: str) -> str:
    """Returns the text; bytes that are not UTF-8 become U+FFFD, counted in a warning."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
        warn(f"{where}: {text.count(chr(0xFFFD)) - data.count(chr(0xFFFD).encode())} places are not UTF-8 and were read as U+FFFD")
        return text
