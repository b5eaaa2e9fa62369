"""Parts of a preparation on disk: written aside, then renamed, so that what has its name is whole.

A part's name holds the key of all that it depends on. So a run that was killed finds what it had finished, and never
takes a part of another corpus, tokenizer or setting for its own.
"""

import pathlib
import shutil

from lmtiny.files import is_aside


def sweep(folder: pathlib.Path) -> None:
    """Removes what killed processes left unfinished in `folder`; to be called by the one that holds the lock."""
    for path in filter(is_aside, folder.iterdir()):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
