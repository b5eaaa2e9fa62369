"""Files and folders that are there whole or not at all: written aside, then renamed; and held by one process at a time."""

import os
import pathlib
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from lmtiny.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_ASIDE = re.compile(r"\.aside-\d+-[0-9a-f]{8}(\.|$)")  # in the name of what is not finished
# One slash: of two pathlib leaves one. Two letters: one is a drive of Windows.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_aside(path: pathlib.Path) -> bool:
    """Returns whether the name is one that `written` gives to what is not finished."""
    return bool(_ASIDE.search(path.name))


def refuse_url(path: str | os.PathLike[str], named_by: str) -> None:
    """Raises UserError where `path` is an address, as in gs://bucket/folder: it would become a local folder.

    Args:
      named_by: the flag or knob that gives the path, as in "--workdir".
    """
    if _URL.match(written := os.fspath(path)):
        address = re.sub(":/+", "://", written, count=1)
        raise UserError(f"{named_by}: {address} is an address; only folders and files of this machine can be used there")


def sweep(folder: pathlib.Path) -> None:
    """Removes what killed processes left unfinished in a folder of ours; for the one that holds its lock."""
    for path in filter(is_aside, folder.iterdir()):
        _discard(path)


def _discard(path: pathlib.Path) -> None:
    """Removes what is not finished; where that fails it stays: nothing takes it for something else."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def written(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path beside `path` to write a file or a folder at; renamed to `path` when the block ends well.

    A file takes the place of the file there; a folder that holds anything is never replaced, but an OSError.
    """
    aside = path.with_name(f"{path.stem}.aside-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        _discard(aside)


@contextmanager
def opened(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Yields a file to write `path` through; nothing has that name before the block ends well and the data is on disk."""
    with written(path) as aside, open(aside, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_aside(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replaces `path` as a whole: a kill at any moment leaves the old or the new content, never half of it."""
    with opened(pathlib.Path(path)) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_array(path: pathlib.Path, array: "np.ndarray") -> None:
    """Writes the array as `path` (.npy), whole or not at all. A full disk is an OSError with its number, which np.save does not tell."""
    from numpy.lib import format as npy

    with opened(path) as file:
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(array))
        file.write(array.tobytes(order="A"))


@contextmanager
def locked(folder: pathlib.Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds `folder` (made where it is missing) for this process alone; calls `waiting` once if another has it, and waits.

    A killed process holds nothing.  Where the system or the file system knows no such locks, nothing is held: what is written aside
    has a name of its own until it is whole, so two processes then only do the work twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab", opener=_through_no_link) as file:
        if not try_lock(file):
            waiting()
            while not try_lock(file):
                time.sleep(0.2)
        yield  # closing the file, or dying, lets go


def _through_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def try_lock(file: IO[bytes], shared: bool = False) -> bool:
    """Returns whether this process now holds the open file's lock, until it is closed or the process dies; never waits.

    Several may hold a `shared` one at a time. True as well where the system or the file system knows no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return True
    return True
