"""Which files on this machine a path names: folders, files and globs; what is left out of them is told, not passed over."""

import glob
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

from lmtiny.console import counted, say
from lmtiny.corpus.compressed import ENDINGS, compression
from lmtiny.corpus.decoding import is_text
from lmtiny.errors import UserError

# A folder is searched for these; other texts are read where they are named.
TEXTS = (".txt", ".md", ".markdown", ".rst", ".tex")
EXTENSIONS = (*(f"{kind}{ending}" for kind in (*TEXTS, ".jsonl") for ending in ("", *ENDINGS)), ".parquet")
# Of records that are not read as such, and should not be taken for a text.
_NO_TEXTS = tuple(f"{kind}{ending}" for kind in (".json", ".ndjson") for ending in ("", *ENDINGS))
NAMED = 8  # files left out, or held out, that are named one by one


def extension(file: pathlib.PurePath, extensions: tuple[str, ...] = EXTENSIONS) -> str:
    """Returns which of `extensions`, in small letters or capitals, the file has; "" for none."""
    return next((known for known in extensions if file.name.lower().endswith(known)), "")


def kind(file: pathlib.PurePath) -> str:
    """Returns how a file is read: "jsonl", "parquet", or "text", whatever its ending."""
    name = file.with_suffix("") if compression(file) else file
    return {".jsonl": "jsonl", ".parquet": "parquet"}.get(name.suffix.lower(), "text")


def find(path: str, knob: str) -> list[pathlib.Path]:
    """Returns the absolute paths of the files with text that `path` names, sorted; says which others it names, and leaves them out.

    Raises:
      UserError: nothing matches, an extension is not supported, all files are empty, or a folder cannot be read.
    """
    supported, others = listed(path, knob, EXTENSIONS)
    found = [file for file in supported if file.stat().st_size]
    if not found:
        raise UserError(f"{knob} = {path!r}: {'the file is' if len(supported) == 1 else f'all {len(supported)} files are'} empty")
    if left_out := sorted({*others, *supported} - {*found}):
        told = [f"{file.name}{' (empty)' if file in supported else _why(file)}" for file in left_out]
        say(f"{path}: {counted(len(left_out), 'file')} left out: {_named(told)}")
    return found


def _named(names: list[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def listed(path: str, knob: str, extensions: tuple[str, ...]) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Returns (files of the `extensions`, all others) that `path` names: folders, files, globs, several separated by commas.

    Absolute and sorted; what is hidden is neither. A link to nothing, or inside a folder to another folder, is among the others.
    A text of another ending is taken where a part of `path` is the file, or a glob that has its ending.

    Raises:
      UserError: nothing matches, none has an extension, or a folder cannot be read.
    """
    found: set[pathlib.Path] = set()
    others: set[pathlib.Path] = set()
    for part in [path] if os.path.exists(path) else _parts(path):
        with _told(knob):
            inside = [file for match in _matches(part, knob) for file in _inside(pathlib.Path(match).absolute())]
            supported = [
                file for file in inside
                if file.is_file() and (extension(file, extensions) or _named_text(file, part))
            ]  # fmt: skip
        if not supported and inside:
            raise refusal(inside[0], knob, extensions)
        if not supported:
            remedy = "a text of another ending is named itself, or by a glob"
            raise UserError(f"{knob}: {part!r} holds no {spelt(extensions)} file; {remedy}")
        found.update(supported)
        others.update(inside)
    if not found:
        raise UserError(f"{knob} = {path!r} names no file")
    return sorted(found), sorted(others - found)


def spelt(extensions: tuple[str, ...]) -> str:
    """Returns the endings as they are told: those of compressed files by the way."""
    plain = [one for one in extensions if not one.endswith(ENDINGS)]
    return f"{', '.join(plain)} (or such with {' or '.join(ENDINGS)})"


def named(file: pathlib.PurePath, part: str) -> bool:
    """Returns whether the part of a path names this file or its ending, so that it is taken for a text whatever its ending."""
    by_name = file.name == pathlib.PurePath(part).name or (bool(file.suffix) and part.endswith(file.suffix))
    return by_name and not extension(file, _NO_TEXTS)


def _named_text(file: pathlib.Path, part: str) -> bool:
    return not os.path.isdir(part) and named(file, part) and is_text(file)


def _why(file: pathlib.Path) -> str:
    """Returns why a file that is not empty is left out, where its name does not say it."""
    if not file.exists():
        return " (a link to nothing)"
    return " (a link to a folder)" if file.is_dir() else "" if file.is_file() else " (no file, but a pipe or a device)"


def _parts(path: str) -> list[str]:
    return [part.strip() for part in path.split(",") if part.strip()]


@contextmanager
def _told(knob: str) -> Iterator[None]:
    """Turns an OSError into the UserError that names the folder or file, and what to do about it."""
    try:
        yield
    except OSError as error:
        remedy = f"leave it out of {knob} or change its permissions"
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); {remedy}") from None


def _matches(part: str, knob: str) -> list[str]:
    """Returns what a path or a glob names. Raises OSError of a folder that cannot be read, and UserError where nothing matches."""
    if os.path.exists(part):
        return [part]
    pattern = os.path.expanduser(part)
    _look_where(pattern)
    if matches := sorted(glob.glob(pattern, recursive=True)):
        return matches
    raise UserError(f"{knob}: nothing matches {part!r} (seen from {os.getcwd()}); name a folder, a file or a glob of files")


def _look_where(pattern: str) -> None:
    """Raises OSError of the first folder that glob would look into for the pattern, and that it would pass over as it cannot be read.

    It looks no further than the pattern leads: everywhere below a folder for `**` alone.
    """
    folders = [os.getcwd()]
    for part in pathlib.PurePath(pattern).parts:
        for folder in folders:
            if part == "**":
                _inside(pathlib.Path(folder))
            elif glob.has_magic(part):
                os.scandir(folder).close()
            else:
                _look_for(part, folder)
        if part == "**":
            return
        found = [os.path.join(folder, match) for folder in folders for match in sorted(glob.glob(part, root_dir=folder))]
        folders = [match for match in found if os.path.isdir(match)]


def _look_for(name: str, folder: str) -> None:
    """Raises PermissionError of the folder where it does not even tell whether the name is in it."""
    try:
        os.lstat(os.path.join(folder, name))
    except PermissionError as error:
        raise PermissionError(error.errno, error.strerror, folder) from None
    except (OSError, ValueError):  # there is none, or can be none, such as one that is too long
        return


def refusal(file: pathlib.Path, knob: str, extensions: tuple[str, ...]) -> UserError:
    """Returns what is said of a file that is none of the `extensions`, or none at all."""
    if not file.is_file():
        return UserError(f"{knob}: {file} is no file, but a link to nothing, a folder elsewhere or a device; take it away")
    if extension(file, _NO_TEXTS):
        remedy = "make it a .jsonl, one record a line (jq -c '.[]' for a list), or else rename it"
        return UserError(f"{knob}: {file} is not read; {remedy}")
    remedy = "convert it, rename it or take it away"
    known = f"{spelt(extensions)}, nor a text that is named itself or by a glob"
    return UserError(f"{knob}: {file} is not one of {known}; {remedy}")


def _inside(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns what lies in a folder and the folders in it, but for what is hidden; links to folders are not followed."""
    if not path.is_dir():
        return [path]
    found: list[pathlib.Path] = []
    for folder, folders, names in os.walk(path, onerror=_raised):
        folders[:] = [name for name in folders if not _hidden(name)]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [pathlib.Path(folder, name) for name in (*names, *links) if not _hidden(name)]
    return sorted(found)


def _raised(error: OSError) -> None:
    raise error


def _hidden(name: str) -> bool:
    return name.startswith(".")


def held_out_of(files: list[pathlib.Path], path: str, knob: str) -> set[pathlib.Path]:
    """Returns the files that a path, a glob or several with commas between them hold out, each looked for by itself.

    It names files as seen from here, or else, like a line of a .gitignore, those of the corpus whose path ends in it.

    Raises:
      UserError: one matches nothing, or what `find` refuses.
    """
    from_here: list[str] = []
    found: set[pathlib.Path] = set()
    whole = os.path.exists(path) or any(file.match(path) for file in files)  # a comma in it is a part of a name
    for part in [path] if whole else _parts(path):
        if os.path.exists(part) or glob.glob(os.path.expanduser(part), recursive=True):
            from_here.append(part)
        elif matching := {file for file in files if file.match(part)}:
            found |= matching
        else:
            with _told(knob):
                _look_where(os.path.expanduser(part))
            raise UserError(f"{knob}: nothing matches {part!r}, neither from {os.getcwd()} nor among the {len(files)} files")
    if from_here or not found:
        found |= set(find(",".join(from_here) or path, knob))
    say(f"{knob}: held out are {_named([file.name for file in sorted(found)])}")
    return found
