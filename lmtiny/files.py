"""Files that are there whole or not at all."""

import os
import pathlib


def write_aside(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replaces `path` as a whole: a kill at any moment leaves the old or the new content, never half of it."""
    path = pathlib.Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(aside, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
