"""A tokenizer on disk: two plain text files, checked byte by byte when they are read.

`lmtiny_tokenizer.json` says kind, split pattern, special tokens, hash and provenance; `tokens.tiktoken` has a line
"base64-of-the-token id" for each token but the special ones (the format of tiktoken's own files).  What is read is
data from a stranger: nothing in it is executed, unpickled or used as a regular expression.
"""

import base64
import binascii
import difflib
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from lmtiny import json_data
from lmtiny.errors import UserError
from lmtiny.files import write_aside
from lmtiny.tokenizer import foreign as foreign_lib
from lmtiny.tokenizer.encoders import BLOCK
from lmtiny.tokenizer.foreign import Foreign
from lmtiny.tokenizer.vocabulary import KINDS, PATTERNS, SMALLEST, SPECIAL_TOKENS, problem_with

FORMAT = 1
DESCRIPTION_FILE = "lmtiny_tokenizer.json"
TOKENS_FILE = "tokens.tiktoken"
FILES = (DESCRIPTION_FILE, TOKENS_FILE, *foreign_lib.FILES.values())  # of a tokenizer of whatever kind
_MAX_BYTES = {DESCRIPTION_FILE: 16 << 20, TOKENS_FILE: 256 << 20}


def content_hash(kind: str, tokens: Sequence[bytes]) -> str:
    """Returns the SHA-256 (hex) of all that decides which ids a text becomes, and of nothing else."""
    return _content(kind, tokens)["hash"]


def write(folder: str | os.PathLike[str], kind: str, tokens: Sequence[bytes], provenance: dict[str, Any]) -> None:
    """Writes a tokenizer into `folder`, which is made if need be; each file is written aside and then renamed.

    Raises:
      TypeError, ValueError: `provenance` is not JSON.
      UserError: the folder cannot be written.
    """
    # The tokens go first: were the second rename never to happen, the old description would refuse the new tokens.
    description = _sealed({**_content(kind, tokens), "provenance": provenance})
    _write(folder, {TOKENS_FILE: _token_lines(tokens), DESCRIPTION_FILE: description})


def _write(folder: str | os.PathLike[str], files: dict[str, bytes]) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        for name, content in files.items():
            write_aside(pathlib.Path(folder, name), content)
    except OSError as error:
        raise UserError(f"cannot write the tokenizer to {folder}: {error.strerror}") from error


def foreign_hash(foreign: Foreign) -> str:
    """Returns the SHA-256 (hex) of all that decides which ids a text becomes with a foreign tokenizer."""
    return _foreign_content(foreign)["hash"]


def write_foreign(folder: str | os.PathLike[str], foreign: Foreign, provenance: dict[str, Any]) -> None:
    """Writes a foreign tokenizer into `folder`, its own file as it was, as `write` does."""
    description = _sealed({**_foreign_content(foreign), "provenance": provenance})
    _write(folder, {foreign_lib.FILES[foreign.kind]: foreign.source, DESCRIPTION_FILE: description})


def read(folder: str | os.PathLike[str]) -> tuple[str, Sequence[bytes], dict[str, Any], Foreign | None]:
    """Returns (kind, tokens without the special ones, provenance, the foreign tokenizer it is, if so) of the tokenizer in `folder`.

    Raises:
      UserError: it is not there, is of another format, was altered, or is no tokenizer.
    """
    path = pathlib.Path(folder, DESCRIPTION_FILE)
    if not os.path.isfile(path):
        raise UserError(_nothing_at(pathlib.Path(folder)))
    raw = _file_bytes(path)
    description = _checked_description(raw, path)
    if isinstance(description.get("kind"), str) and description["kind"] in foreign_lib.FILES:
        return _read_foreign(description, raw, path)
    tokens_path = pathlib.Path(folder, TOKENS_FILE)
    token_lines = _file_bytes(tokens_path)
    if hashlib.sha256(token_lines).hexdigest() != description.get("tokens_sha256"):
        raise UserError(f"{tokens_path} was altered or damaged: its hash is not the one in {DESCRIPTION_FILE}")
    tokens = _parsed_lines(token_lines, tokens_path)
    kind, provenance = description.get("kind"), description.get("provenance")
    if kind not in KINDS:
        raise UserError(f"{path} has kind {_short(kind)}; this lmtiny knows {', '.join(KINDS)}")
    if problem := problem_with(kind, tokens):
        raise UserError(f"{tokens_path} is no {kind} vocabulary: {problem}")
    if not isinstance(provenance, dict) or _sealed({**_content(kind, tokens), "provenance": provenance}) != raw:
        raise UserError(f"{path} does not describe the tokens beside it, or was made with another split or other special tokens")
    return kind, tokens, provenance, None


def _read_foreign(description: dict[str, Any], raw: bytes, path: pathlib.Path) -> tuple[str, Sequence[bytes], dict[str, Any], Foreign]:
    kind, provenance = description["kind"], description.get("provenance")
    source_path = path.with_name(foreign_lib.FILES[kind])
    source = _file_bytes(source_path)
    if hashlib.sha256(source).hexdigest() != description.get("source_sha256"):
        raise UserError(f"{source_path} was altered or damaged: its hash is not the one in {DESCRIPTION_FILE}")
    foreign = foreign_lib.parsed(kind, source, str(source_path))
    if not isinstance(provenance, dict) or _sealed({**_foreign_content(foreign), "provenance": provenance}) != raw:
        raise UserError(f"{path} does not describe the tokenizer beside it, or was made with other special tokens")
    return kind, foreign.tokens, provenance, foreign


def _checked_description(raw: bytes, path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in `raw`; raises UserError if it is of another format or a byte of it was altered."""
    description = json_data.parsed(raw, str(path))
    try:
        if not isinstance(description, dict) or "format" not in description:
            raise UserError(f"{path} does not describe a tokenizer")
        if description["format"] != FORMAT:
            raise UserError(f"{path} has format {_short(description['format'])}; this lmtiny reads format {FORMAT}")
        # Comparing with what would be written now leaves no byte unchecked, spaces and doubled keys included.
        if _sealed({name: value for name, value in description.items() if name != "checksum"}) != raw:
            raise UserError(f"{path} was altered or damaged: its checksum is not that of its content")
    except (ValueError, RecursionError):  # 1e999, brackets that can be read and not written
        raise UserError(f"{path} is not JSON that lmtiny writes: damaged") from None
    return description


def _content(kind: str, tokens: Sequence[bytes]) -> dict[str, Any]:
    """Returns the description without provenance: what decides the ids, and the hash of that."""
    decides = {
        "format": FORMAT,
        "kind": kind,
        "vocab_size": len(tokens) + len(SPECIAL_TOKENS),
        "pattern": PATTERNS.get(kind, ""),
        "block": BLOCK if kind in PATTERNS else 0,
        "special": {name: len(tokens) + index for index, name in enumerate(SPECIAL_TOKENS)},
        "tokens_sha256": hashlib.sha256(_token_lines(tokens)).hexdigest(),
    }
    return {**decides, "hash": hashlib.sha256(_json(decides)).hexdigest()}


def _foreign_content(foreign: Foreign) -> dict[str, Any]:
    decides = {
        "format": FORMAT,
        "kind": foreign.kind,
        "vocab_size": len(foreign.tokens) + len(SPECIAL_TOKENS),
        "special": {name: len(foreign.tokens) + index for index, name in enumerate(SPECIAL_TOKENS)},
        "source_sha256": hashlib.sha256(foreign.source).hexdigest(),
    }
    return {**decides, "hash": hashlib.sha256(_json(decides)).hexdigest()}


def _sealed(description: dict[str, Any]) -> bytes:
    """Returns the JSON of `description` with a checksum of its own at the end."""
    return _json({**description, "checksum": hashlib.sha256(_json(description)).hexdigest()})


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _token_lines(tokens: Sequence[bytes]) -> bytes:
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))


def _parsed_lines(lines: bytes, path: pathlib.Path) -> list[bytes]:
    """Returns the tokens of a `tokens.tiktoken`; raises UserError where a line is not the one that `write` makes."""
    tokens: list[bytes] = []
    for rank, line in enumerate(lines.split(b"\n")[:-1]):
        word, _, number = line.partition(b" ")
        try:
            token = base64.b64decode(word, validate=True)
        except binascii.Error:
            raise UserError(f"{path}, line {rank + 1}: not base64") from None
        if number != b"%d" % rank or base64.b64encode(token) != word:
            raise UserError(f"{path}, line {rank + 1}: expected a token in base64, a space and {rank}")
        tokens.append(token)
    if len(tokens) + len(SPECIAL_TOKENS) < SMALLEST or not lines.endswith(b"\n"):
        raise UserError(f"{path} is cut short")
    return tokens


def _file_bytes(path: pathlib.Path) -> bytes:
    try:
        if not path.is_file():
            raise UserError(f"no tokenizer in {str(path.parent)!r}: {path.name} is missing")
    except OSError as error:  # the name is too long, say
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return foreign_lib.file_bytes(path, _MAX_BYTES.get(path.name, foreign_lib.MAX_FILE_BYTES))


def _nothing_at(place: pathlib.Path) -> str:
    """Returns what is wrong with `place`, where no tokenizer is, the nearest name that there is, and what a tokenizer may be."""
    inside = place / "tokenizer"  # as in a prepared folder and in that of a run
    if os.path.isfile(inside / DESCRIPTION_FILE):
        return f"no tokenizer in {str(place)!r}: did you mean {inside}?"
    known = ", ".join(foreign_lib.NAMES)
    kinds = f"a tokenizer is lmtiny's folder, a tokenizer.json, a sentencepiece .model, a .tiktoken, or one of {known}"
    if os.path.isdir(place):
        return f"no tokenizer in {str(place)!r}: {DESCRIPTION_FILE} is missing, and so is a tokenizer.json; {kinds}"
    if os.path.exists(place):
        return f"{str(place)!r} is no tokenizer; {kinds}"
    there = {name: name for name in foreign_lib.NAMES} if str(place) == place.name else {}
    if os.path.isdir(place.parent):
        there |= {path.name: str(path) for path in place.parent.iterdir()}
    close = difflib.get_close_matches(place.name, there, 1, 0.6)
    return f"there is no {str(place)!r}{f'; did you mean {there[close[0]]}?' if close else f': {kinds}'}"


def _short(value: Any) -> str:
    # A list may be nested too deep to be shown.
    text = "a list or an object" if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
