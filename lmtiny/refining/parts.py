"""Where a task's documents and counts lie, a file each, named by the task's number."""

import json
import pathlib
from collections.abc import Iterator

from lmtiny.corpus import Document
from lmtiny.errors import UserError


def documents_path(folder: pathlib.Path, rank: int) -> pathlib.Path:
    """Returns where the documents of a task are, a JSON line each."""
    return folder / f"{rank:05d}.jsonl"


def tally_path(folder: pathlib.Path, rank: int) -> pathlib.Path:
    """Returns where the tally of a task is."""
    return folder / f"{rank:05d}.tally.json"


def tallies(*folders: pathlib.Path) -> list[pathlib.Path]:
    """Returns the tallies of all tasks in the folders."""
    return [path for folder in folders for path in sorted(folder.glob("*.tally.json"))]


def documents_of(path: pathlib.Path) -> Iterator[Document]:
    """Yields the documents of a file; raises UserError where it is damaged."""
    with open(path, "rb") as file:
        for line in file:
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(f"{path} is damaged; remove it, and it is made anew") from None
