"""What lmtiny may delete or replace: only what a mark of its own shows that it wrote.

A folder that lmtiny makes, or finds empty, gets a file `.lmtiny` that says what the folder is for. In a folder with that
mark, the names that lmtiny uses are lmtiny's; a folder that holds anything else is refused and left as it is.

A folder that another program fills for lmtiny, as orbax does, has a file `NAME.saving` beside it until it
is complete.
"""

import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable

from lmtiny.errors import UserError

MARK = ".lmtiny"
MAX_BYTES = 200  # of a mark
_FIRST_WORDS = "lmtiny wrote this folder: "
# A lock that a killed process left; what a new file system comes with.
_COUNTS_AS_EMPTY = {".lock", "lost+found"}


def purpose(folder: pathlib.Path) -> str:
    """Returns what the mark in `folder` says that it is for, "" where there is none."""
    mark = folder / MARK
    if mark.is_symlink() or not mark.is_file() or mark.stat().st_size > MAX_BYTES:
        return ""
    first, _, said = mark.read_bytes().decode(errors="replace").partition(_FIRST_WORDS)
    return said[:-1] if not first and said[:-1].isprintable() and said.endswith("\n") else ""


def refuse_strangers(folder: pathlib.Path, what: str, named_by: str, is_ours: Callable[[], bool] = lambda: False) -> None:
    """Raises UserError where `folder` holds anything, and neither a mark for `what` nor, so says `is_ours`, an older lmtiny's work.

    Args:
      what: what the folder is for, as in "prepared data".
      named_by: the flag or knob that another folder is named with, as in "--workdir".
      is_ours: looks for what lmtiny wrote there before it left marks.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{named_by}: {folder} is a file; name a folder")
    # Before the mark is read: another process that claims the folder marks it first of all.
    found = _strangers(folder)
    marked = purpose(folder)
    if marked and marked != what:
        raise UserError(f"{named_by}: {folder} holds {marked}, not {what}; name another folder")
    if found and not marked and not is_ours():
        raise UserError(
            f"{named_by}: {folder} holds files that lmtiny did not write ({', '.join(found[:3])}{', ...' if found[3:] else ''}); "
            "nothing was changed. Name an empty folder or one that does not exist"
        )


def claim(folder: pathlib.Path, what: str, named_by: str, is_ours: Callable[[], bool] = lambda: False) -> None:
    """Makes `folder` where it is missing and marks it, after `refuse_strangers` with the same arguments.

    Raises:
      UserError: the folder is not lmtiny's to write in.
      OSError: it cannot be made or written.
    """
    refuse_strangers(folder, what, named_by, is_ours)
    if purpose(folder) != what:
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(folder / MARK) and not _is_half_written(folder / MARK):
            mark = f"{folder / MARK} was not written by lmtiny"
            raise UserError(f"{named_by}: {mark}; nothing was changed. Name another folder")
        # Not aside and renamed: another process that claims the same folder would take the file aside for a stranger's.
        (folder / MARK).write_text(f"{_FIRST_WORDS}{what}\n")


def remove(folder: pathlib.Path) -> None:
    """Removes a marked folder with all in it, the mark last, or an empty one; does nothing where there is none.

    Raises:
      UserError: it has no mark.
      OSError: something in it cannot be removed.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir() or (not purpose(folder) and _strangers(folder)):
        raise UserError(f"{folder} was not written by lmtiny, so it is not deleted; move it away")
    for path in folder.iterdir():
        if path.name != MARK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()


def remove_files(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Removes those of the files `names` that a marked folder holds, in order; a folder of such a name stays.

    Raises:
      UserError: it has no mark.
      OSError: one of them cannot be removed.
    """
    if not purpose(folder):
        raise UserError(f"{folder} was not written by lmtiny, so nothing in it is deleted; move it away")
    for path in (folder / name for name in names):
        if path.is_file() or path.is_symlink():
            path.unlink()


def remove_unused(folder: pathlib.Path) -> None:
    """Removes a marked folder that holds no more than its mark and a lock; any other stays.

    Raises:
      OSError: it cannot be removed.
    """
    if purpose(folder) and not any(path.name not in (MARK, ".lock") for path in folder.iterdir()):
        remove(folder)


def _strangers(folder: pathlib.Path) -> list[str]:
    """Returns the names of all that makes an unmarked folder one that is not empty, sorted."""
    names = {path.name for path in folder.iterdir()} - _COUNTS_AS_EMPTY
    if MARK in names and _is_half_written(folder / MARK):
        names.remove(MARK)
    return sorted(names)


def _is_half_written(mark: pathlib.Path) -> bool:
    """Returns whether the file is a mark, or the beginning of one, as a kill or a full disk leaves it."""
    if mark.is_symlink() or not mark.is_file() or mark.stat().st_size > MAX_BYTES:
        return False
    text = mark.read_bytes().decode(errors="replace")
    return text.startswith(_FIRST_WORDS) or _FIRST_WORDS.startswith(text)


BEGUN = ".saving"
OF_ORBAX = ".orbax-checkpoint-tmp"  # what orbax appends to a name until it has written all


def begin(folder: pathlib.Path) -> None:
    """Leaves a mark beside `folder`, which is not there yet: what lies there until `complete` is lmtiny's, unfinished.

    Raises:
      UserError: something lies there that was not begun so.
      OSError: something in the way cannot be removed, or the mark not be written.
    """
    remove_begun(folder)
    if there := _parts(folder) or [path for path in [_beside(folder)] if path.is_symlink()]:
        raise UserError(f"{there[0]} exists already and is not overwritten; move it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _beside(folder).write_text(f"{_FIRST_WORDS}{folder.name}\n")


def begun(folder: pathlib.Path) -> bool:
    """Returns whether `folder` was begun and is not known to be complete."""
    mark = _beside(folder)
    return mark.is_file() and not mark.is_symlink()


def complete(folder: pathlib.Path) -> None:
    """Takes the mark of `begin` away again; raises OSError where it cannot be."""
    _beside(folder).unlink(missing_ok=True)


def remove_begun(folder: pathlib.Path, stays_begun: bool = False) -> None:
    """Removes what was begun and not completed, its mark last; nothing where there is no mark.

    Args:
      stays_begun: the mark stays, as something may still be written there.

    Raises:
      OSError: something cannot be removed.
    """
    if begun(folder):
        for path in _parts(folder):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not stays_begun:
            complete(folder)


def _beside(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(folder.name + BEGUN)


def _parts(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folder, and what orbax makes before it, as far as they are there."""
    if not folder.parent.is_dir():
        return []
    of_orbax = folder.name + OF_ORBAX
    return sorted(path for path in folder.parent.iterdir() if path.name == folder.name or path.name.startswith(of_orbax))


def contents(folder: pathlib.Path) -> list[str]:
    """Returns the relative names of all files and links in `folder` and the folders below; follows no link."""
    found = []
    for parent, folders, names in os.walk(folder):
        names += [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in names]
    return sorted(found)


def remove_listed(folder: pathlib.Path, names: Iterable[str]) -> list[str]:
    """Removes the files `names` of `folder`, in this order, and folders that become empty; returns the files that stay.

    Raises:
      OSError: something cannot be removed.
    """
    here = set(contents(folder))
    for name in names:
        if name in here:  # so none that leads out of the folder
            (folder / name).unlink()
    for parent, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(parent):
            os.rmdir(parent)
    return contents(folder)


def set_aside(folder: pathlib.Path) -> pathlib.Path:
    """Renames `folder`, so that nothing of it is lost, and returns its new path; raises OSError."""
    return folder.rename(folder.with_name(f"{folder.name}.set-aside-{time.strftime('%Y%m%d-%H%M%S')}"))
