"""Parts of a preparation on disk: written aside, then renamed, so that what has its name is whole.

A part's name holds the key of all that it depends on. So a run that was killed finds what it had finished, and never
takes a part of another corpus, tokenizer or setting for its own.
"""

import pathlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from lmtiny import console
from lmtiny.files import ASIDE, opened, try_lock


def save(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes the array as `path` (.npy)."""
    with opened(path) as file:
        np.save(file, array)


@contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds `folder` for this process alone; waits, and says so, while another has it. A killed process holds nothing.

    Where the system or the file system knows no such locks, nothing is held: parts have unique names until they are
    whole, and equal names mean equal bytes, so two processes then only do the work twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        told = False
        while not try_lock(file):
            if not told:
                console.say(f"{folder} is being prepared by another process; waiting for it")
                told = True
            time.sleep(0.2)
        yield  # closing the file, or dying, lets go


def sweep(folder: pathlib.Path) -> None:
    """Removes what killed processes left unfinished in `folder`; to be called by the one that holds the lock."""
    for path in folder.glob(f"*{ASIDE}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
