"""Files from elsewhere into a folder: resumed by byte range, checked by size, hash and parquet footer, never half there.

A file grows as `NAME.partial` and gets its name when it is whole and has been checked. So what has its name is not asked
for again, and a killed download goes on at the byte where it stopped. Who knows how to ask for the bytes (HTTP, fsspec)
says so with `Remote.read`.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Any

from lmtiny import console, json_data, ownership
from lmtiny.corpus.backoff import Backoff, Interrupted
from lmtiny.errors import UserError
from lmtiny.files import locked, write_aside

PARTIAL = ".partial"
PURPOSE = "downloaded texts"
HASH_BYTES = 1 << 20  # read at a time

# From a byte on: (the byte it begins at after all, which is 0 where the server cannot begin elsewhere; the pieces).
Read = Callable[[int], AbstractContextManager[tuple[int, Iterator[bytes]]]]


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file elsewhere: its name in the folder (with "/"), size in bytes, hash (see `has_hash`; "": unknown), reader.

    `read` raises Interrupted for what may pass, UserError for what will not.
    """

    name: str
    size: int
    hash: str
    read: Read

    def __post_init__(self) -> None:
        if not 0 <= self.size < 2**63 or not re.fullmatch("|sha256:[0-9a-f]{64}|git:[0-9a-f]{40}", self.hash):
            raise UserError(
                f"the listing is damaged: {self.name!r:.80} has a size or a hash that no file has"
            )


def download(files: list[Remote], folder: pathlib.Path, what: str, backoff: Backoff) -> list[pathlib.Path]:
    """Returns the paths of the files in `folder`, downloaded now unless they are there; `what` is their name to a person.

    Raises:
      UserError: a name that leads out of the folder, no room on the disk, a server that does not give a file whole, or
        gives one whose hash or parquet footer is wrong. What is finished stays.
    """
    paths = [place(folder, file.name) for file in files]
    if len(set(paths)) < len(paths):
        raise UserError(f"{what}: two files have the same place in {folder}")
    if not any(_missing(files, paths)):
        return paths
    with _written_to(folder), locked(folder, lambda: console.say(f"{folder} is being downloaded to by another process; waiting for it")):
        todo = list(_missing(files, paths))
        have = [_partial(path).stat().st_size if _partial(path).exists() else 0 for _, path in todo]
        needed = sum(file.size for file, _ in todo)
        _refuse_without_room(folder, needed - sum(have))
        with console.progress(f"downloading {what}", needed, "bytes", start=sum(have)) as shown:
            done = 0
            for file, path in todo:
                _download_one(file, path, folder, backoff, functools.partial(_reached, shown, done))
                done += file.size
    return paths


def listing(file: pathlib.Path, ask: Callable[[], dict[str, Any]], shape: Any) -> dict[str, Any]:
    """Returns what `ask` said when it was asked first, and was then written to `file` as JSON of that `shape`.

    The folder of `file` is marked as lmtiny's, which what is listed may then be downloaded into.

    Raises:
      UserError: the folder is not lmtiny's, or the file is damaged.
    """

    def is_ours() -> bool:  # made before folders were marked
        return any(_is_listing(other, shape) for other in file.parent.glob("listing*.json"))

    with _written_to(file.parent):
        ownership.refuse_strangers(file.parent, PURPOSE, "corpus.download_dir", is_ours)
        if file.exists():
            return _read_listing(file, shape)
    found = ask()
    with _written_to(file.parent):
        ownership.claim(file.parent, PURPOSE, "corpus.download_dir", is_ours)
        write_aside(file, json.dumps(found, indent=1) + "\n")
    return found


def _is_listing(file: pathlib.Path, shape: Any) -> bool:
    try:
        return file.is_file() and bool(json_data.read(file, shape))
    except UserError:
        return False


def _read_listing(file: pathlib.Path, shape: Any) -> dict[str, Any]:
    try:
        return dict(json_data.read(file, shape))
    except UserError as error:
        raise UserError(
            f"{file} is damaged; remove it, and what it lists is asked for again ({error})"
        ) from None


@contextmanager
def _written_to(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "--config.corpus.download_dir names another folder"
        raise UserError(f"{folder} cannot be written: {error.strerror or error}; {remedy}; what is downloaded is kept") from error


def _reached(shown: console.Progress, before: int, size: int) -> None:
    shown.update(before + size)


def place(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns where a file of that name goes; raises UserError for a name that leads out of the folder."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or not name.isprintable():
        raise UserError(f"the name {name!r} leads out of {folder} or is no file's: nothing is written there")
    return folder.joinpath(*parts)


def _missing(files: list[Remote], paths: list[pathlib.Path]) -> Iterator[tuple[Remote, pathlib.Path]]:
    for file, path in zip(files, paths, strict=True):
        if not path.is_file() or path.stat().st_size != file.size:
            yield file, path


def _partial(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + PARTIAL)


def _refuse_without_room(folder: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"needs {console.human(needed, 'B')}, but {console.human(free, 'B')} are free"
        raise UserError(f"{folder}: the download {sizes}; ask for fewer shards, or --config.corpus.download_dir names another folder")


def _download_one(
    file: Remote, path: pathlib.Path, folder: pathlib.Path, backoff: Backoff, reached: Callable[[int], None]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    if partial.is_symlink() or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{partial} leads out of {folder} through a link: nothing is written there")
    for last in (False, True):  # a flaw may have come from an earlier, interrupted download: once more, from the first byte
        with open(partial, "ab") as out:
            _fill(out, file, backoff, reached)
            os.fsync(out.fileno())
        problem = "" if has_hash(partial, file.hash) else "its hash is not the one that was announced"
        problem = problem or (parquet_problem(partial) if path.suffix.lower() == ".parquet" else "")
        if not problem:
            os.replace(partial, path)
            return
        partial.unlink()
        if last:
            raise UserError(f"{file.name}: {problem}, twice; it is not kept; try later, or tell the owner of the data")
        console.warn(f"{file.name}: {problem}; downloading it anew")


def _fill(out: IO[bytes], file: Remote, backoff: Backoff, reached: Callable[[int], None]) -> None:
    """Appends to `out` until it has `file.size` bytes; reports the size reached."""
    furthest = out.tell()
    if furthest > file.size:
        out.truncate(0)
        out.seek(0)
    while (have := out.tell()) < file.size:
        try:
            with file.read(have) as (begin, pieces):
                out.truncate(begin)
                out.seek(begin)
                for piece in pieces:
                    if out.tell() + len(piece) > file.size:
                        out.truncate(0)
                        out.seek(0)
                        raise Interrupted(f"more than the announced {file.size:,} bytes came")
                    out.write(piece)
                    reached(out.tell())
            if out.tell() < file.size:
                raise Interrupted(f"ended after {out.tell():,} of {file.size:,} bytes")
        except Interrupted as interrupted:
            # Only what was never reached before is progress: a server that starts over each time must not keep us for ever.
            if out.tell() > furthest:
                furthest = out.tell()
                backoff.worked()
            backoff.wait(file.name, interrupted)
    backoff.worked()


def has_hash(path: pathlib.Path, expected: str) -> bool:
    """Returns whether the file has the hash "sha256:HEX" or "git:HEX" (SHA-1 of "blob SIZE", NUL, the bytes); "": any."""
    kind, _, value = expected.partition(":")
    if not kind:
        return True
    known = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as stream:
        while data := stream.read(HASH_BYTES):
            known.update(data)
    return known.hexdigest() == value


def parquet_problem(path: pathlib.Path) -> str:
    """Returns what is wrong with the ends and the footer of a .parquet file, or ""; raises UserError without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("downloading .parquet needs pyarrow: pip install 'lmtiny[hub]'") from None
    with open(path, "rb") as stream:
        begin = stream.read(4)
        stream.seek(-min(4, path.stat().st_size), 2)
        if begin != b"PAR1" or stream.read() != b"PAR1":
            return "it does not begin and end as a .parquet file does"
    try:
        pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError) as error:
        return f"its parquet footer cannot be read ({' '.join(str(error).split())[:200]})"
    return ""
