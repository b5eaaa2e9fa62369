"""Bytes of a file as they were before gzip or Zstandard; nothing is lost without a word where a file was cut short.

.zst is read by pyarrow, which .parquet needs anyway: python-zstandard's stream reader ends without an error where the
file does, and the end of the text would be missing.
"""

import gzip
import importlib.util
import io
import pathlib
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from lmtiny.errors import UserError

ENDINGS = (".gz", ".zst")
BUFFER_BYTES = 1 << 20
MOST_BYTES = 256 << 20  # of one text or line, uncompressed: what is held in memory at once


def compression(file: pathlib.PurePath) -> str:
    """Returns which of ENDINGS the file has, in small letters or capitals; "" for none."""
    ending = file.suffix.lower()
    return ending if ending in ENDINGS else ""


def missing(file: pathlib.PurePath) -> str:
    """Returns `needs_pyarrow` where that is so and pyarrow is not installed, or ""; opens nothing, imports nothing."""
    by_pyarrow = file.suffix.lower() in (".parquet", ".zst")
    return needs_pyarrow(file) if by_pyarrow and importlib.util.find_spec("pyarrow") is None else ""


def needs_pyarrow(file: pathlib.PurePath) -> str:
    """Returns the line that says that pyarrow reads such a file, and how to get it."""
    return f"{file}: reading {file.suffix.lower()} needs pyarrow: pip install 'lmtiny[parquet]'"


@contextmanager
def opened(file: pathlib.Path) -> Iterator[IO[bytes]]:
    """Yields the file's bytes, uncompressed, to read.

    Raises:
      UserError: it cannot be opened, is damaged or cut short, or pyarrow is missing for a .zst.
    """
    try:
        opens: Any = {".gz": gzip.open, ".zst": _zstandard}.get(compression(file), pathlib.Path.open)
        stream = opens(file, "rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    with stream:
        try:
            yield stream
        except (EOFError, OSError, zlib.error) as error:
            if not compression(file):
                raise UserError(f"{file}: cannot be read ({error})") from None
            if "too much memory" in str(error):  # zstd's word for a window of more than 128 MiB
                remedy = f"uncompress it first: zstd -d --long=31 {shlex.quote(str(file))}"
                raise UserError(f"{file}: {error}; {remedy}") from None
            raise UserError(f"{file}: is damaged or cut short ({error}); have it anew") from None


def whole(stream: IO[bytes], file: pathlib.Path) -> bytes:
    """Returns all bytes of the file that are still to be read; raises UserError of more than MOST_BYTES."""
    if len(data := stream.read(MOST_BYTES + 1)) > MOST_BYTES:
        what = f"is more than {MOST_BYTES >> 20} MiB of text that is read as a whole"
        raise UserError(f"{file}: {what}; cut it into smaller files")
    return data


def _zstandard(file: pathlib.Path, _mode: str) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError:
        raise UserError(needs_pyarrow(file)) from None
    return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"), BUFFER_BYTES)
