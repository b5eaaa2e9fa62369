"""The manifest of a checkpoint: what makes a folder of arrays a checkpoint, and what is read of one before it is trusted.

    checkpoints/<step>/manifest.json    format, step, row, metrics, hashes, config, arrays, files, sha256
    checkpoints/<step>.saving           this step is being saved, or its save was cut short

The manifest holds the hash of every file, and at its end that of its own content.  A run may come from a stranger: what is
read has the shape it must have, no link is followed, and no name in it is opened that the folder does not list itself.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import ml_collections

from lmtiny import config as config_lib
from lmtiny import console, files, json_data, ownership
from lmtiny.errors import UserError

FORMAT = 2  # 1, of before, lacks the hash of its own content
MANIFEST = "manifest.json"
FOLDER = "checkpoints"  # in that of a run
LISTINGS = 20  # how often the checkpoints are listed anew when a run that trains beside discards what was listed
_SHAPE = {
    "format": int, "step": int, "row": int, "metrics": {str: (float, type(None))}, "tokenizer_hash": str, "data_hash": str,
    "config": dict, "arrays": {str: [object]}, "files": {str: [object]},
}  # fmt: skip
_STEP = re.compile(r"0|[1-9][0-9]{0,17}")  # as int() takes digits of other scripts too, and any number of them


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint whose manifest and config were read. step: the one that was asked for, None for the newest."""

    run: pathlib.Path
    step: int | None
    path: pathlib.Path
    manifest: dict[str, Any]
    config: ml_collections.ConfigDict


def opened(where: str | os.PathLike[str], named_by: str) -> Opened:
    """Returns the checkpoint of `RUN[/step]`: of the newest intact one where no step is given; its arrays are not compared yet.

    Args:
      named_by: the flag that `where` is given with.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    run, step = find(where, named_by)
    found = step if step is not None else newest_intact(run)
    if found is None:
        raise UserError(f"no checkpoint at {where}: nothing was saved there yet")
    path = run / FOLDER / str(found)
    manifest = read(path)
    return Opened(run, step, path, manifest, config_of(manifest, path))


def write(path: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Makes the folder `path` a checkpoint; `manifest` holds all of its values but format and files. Raises OSError."""
    manifest = {"format": FORMAT, **manifest, "files": {name: _size_and_hash(path / name) for name in _files(path)}}
    files.write_aside(path / MANIFEST, _sealed(manifest))


def _sealed(manifest: dict[str, Any]) -> bytes:
    """Returns the bytes of a manifest.json, which end with the hash of what is before it."""
    sha256 = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": sha256}, indent=1).encode() + b"\n"


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the finished checkpoints in `folder`, ascending."""
    return [step for step in _numbered(folder) if (folder / str(step) / MANIFEST).is_file()]


def _numbered(folder: pathlib.Path) -> list[int]:
    """Returns the numbers, ascending, that are names of folders (not of links) in `folder`."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    with os.scandir(folder) as entries:
        return sorted(int(one.name) for one in entries if _STEP.fullmatch(one.name) and one.is_dir(follow_symlinks=False))


def without_manifest(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of steps in `folder` that are no checkpoints, ascending."""
    return [folder / str(step) for step in _numbered(folder) if not (folder / str(step) / MANIFEST).is_file()]


def in_the_way(folder: pathlib.Path, done: int) -> list[pathlib.Path]:
    """Returns what lies where a step later than `done` is to be saved, and is neither a checkpoint nor begun by a save."""
    names = [path.name for path in without_manifest(folder)]
    names += sorted(path.name for path in folder.glob(f"*{ownership.OF_ORBAX}*"))
    steps_of = {name: name.partition(ownership.OF_ORBAX)[0] for name in names}
    return [
        folder / name
        for name, step in steps_of.items()
        if _STEP.fullmatch(step) and int(step) > done and not ownership.begun(folder / step)
    ]


def find(where: str | os.PathLike[str], named_by: str) -> tuple[pathlib.Path, int | None]:
    """Returns (run folder, step or None for the newest) of `RUN` or `RUN/step` (or `RUN/checkpoints/step`).

    Raises:
      UserError: nothing there is a run.
    """
    files.refuse_url(where, named_by)
    path = pathlib.Path(where)
    try:
        is_step = bool(_STEP.fullmatch(path.name)) and not (path / FOLDER).is_dir()
        run, step = (path.parent, int(path.name)) if is_step else (path, None)
        run = run.parent if run.name == FOLDER else run
        if (run / FOLDER).is_symlink():
            raise UserError(f"no checkpoint at {where}: {run / FOLDER} is a link; a run's own folders are none")
        if not (run / FOLDER).is_dir():
            what = f"has no {FOLDER}/ folder" if run.is_dir() else "is a file" if run.exists() else "does not exist"
            raise UserError(f"no checkpoint at {where}: {run} {what}; give the folder of a run, such as runs/tiny")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UserError(f"{named_by} {os.fspath(where)[:60]}: {error.strerror}; give the folder of a run, such as runs/tiny") from None
    return run, step


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest of the checkpoint in the folder `path`.

    Raises:
      UserError: there is none; it is damaged, of another format, or not of this step.
    """
    where = f"checkpoint {path}: {MANIFEST}"
    if not (path / MANIFEST).is_file() or (path / MANIFEST).is_symlink():
        raise UserError(f"checkpoint {path} {_why_none(path)}")
    try:
        raw = (path / MANIFEST).read_bytes() if (path / MANIFEST).stat().st_size <= json_data.MAX_BYTES else b""
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from None
    try:
        manifest = json_data.parsed(raw, MANIFEST)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {MANIFEST} cannot be read: {error}") from None
    json_data.check(manifest, {"format": int}, where)
    if manifest["format"] not in (1, FORMAT):
        raise UserError(f"checkpoint {path} has format {str(manifest['format'])[:40]}; this lmtiny reads {FORMAT}, and 1 of before")
    json_data.check(manifest, _SHAPE, where)
    seal = manifest.pop("sha256", None)
    if manifest["format"] == 1 and seal is not None:
        raise UserError(f"{where} was altered: its format is not the one it was written in")
    if manifest["format"] == FORMAT and _sealed(manifest) != raw:
        raise UserError(f"{where} was altered or damaged: its content does not match its hash")
    if str(manifest["step"]) != path.name:
        raise UserError(f"{where} is that of step {manifest['step']}")
    for name, array in manifest["arrays"].items():
        json_data.check(dict(enumerate(array)), {0: [int], 1: str}, f"{where}: array {name[:60]!r}")
    for name, file in manifest["files"].items():
        json_data.check(dict(enumerate(file)), {0: int, 1: str}, f"{where}: file {name[:60]!r}")
    return manifest


def _why_none(path: pathlib.Path) -> str:
    """Returns why a folder is no checkpoint."""
    if not path.is_dir() or path.is_symlink():
        return "is being saved" if ownership.begun(path) and _is_training(path) else "does not exist"
    if not ownership.begun(path):
        return f"has no {MANIFEST}: it is no checkpoint, or a copy left it behind"
    return "is being saved" if _is_training(path) else f"has no {MANIFEST}: its save was cut short"


def _is_training(path: pathlib.Path) -> bool:
    """Returns whether the run of the checkpoint is at work: whether somebody holds its lock."""
    try:
        with open(path.parent.parent / ".lock", "rb") as file:
            return not files.try_lock(file, shared=True)
    except OSError:
        return False


@contextlib.contextmanager
def kept(path: pathlib.Path) -> Iterator[None]:
    """Keeps a run that trains meanwhile from discarding this checkpoint, which is being read."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # whoever reads it will say so
            files.try_lock(stack.enter_context(open(path / MANIFEST, "rb")), shared=True)
        yield


def discard(path: pathlib.Path, manifest: dict[str, Any]) -> list[str]:
    """Removes a checkpoint, and nothing that its manifest does not list; returns the files that stay. None goes while it is `kept`.

    Raises:
      OSError: something cannot be removed.
    """
    with open(path / MANIFEST, "rb") as file:
        if not files.try_lock(file):
            return []
        return ownership.remove_listed(path, [*manifest["files"], MANIFEST])  # the manifest last: cut short, this can go on


def verify(path: pathlib.Path, part: str = "") -> dict[str, Any]:
    """Returns the manifest after comparing every file (of `part`: "params" or "rest") with its hash.

    Raises:
      UserError: naming the first file that is missing, altered, or not in the manifest.
    """
    manifest = read(path)
    here = {name for name in _files(path) if name.startswith(part)}
    for name, saved in manifest["files"].items():
        if not name.startswith(part):
            continue
        if name not in here:
            raise UserError(f"checkpoint {path}: {name} is missing")
        if problem := _problem(path / name, saved):
            raise UserError(f"checkpoint {path}: {name} {problem}")
    if extra := sorted(here - set(manifest["files"])):
        raise UserError(f"checkpoint {path}: {extra[0]} is not part of it")
    return manifest


def _problem(file: pathlib.Path, saved: list[Any]) -> str:
    try:
        if file.is_symlink() or not file.is_file():
            return "is not a file but a link or something else"
        if (size := file.stat().st_size) != saved[0]:
            return f"has {size} bytes, not {saved[0]}"
        return "" if _size_and_hash(file) == saved else "is not what was saved (its hash differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def config_of(manifest: dict[str, Any], path: pathlib.Path) -> ml_collections.ConfigDict:
    """Returns the checked config that the checkpoint in `path` was trained with."""
    config = config_lib.from_dict(manifest["config"], str(path / MANIFEST))
    config_lib.check(config)
    return config


def warn_if_unsealed(manifest: dict[str, Any], path: pathlib.Path) -> None:
    """Warns of a manifest whose values cannot be compared with what was written."""
    if manifest["format"] == 1:
        console.warn(f"checkpoint {path} was saved by an older lmtiny (format 1): its settings cannot be checked, only its arrays")


def newest_intact(run: pathlib.Path) -> int | None:
    """Returns the newest step whose files are all as saved, or None where nothing was saved yet; tells what it passes over.

    Raises:
      UserError: there are checkpoints, and none is intact: starting anew would lose the run without a word.
    """
    folder, told = run / FOLDER, set[str]()
    for path in without_manifest(folder):
        if (why := _why_none(path)) != "is being saved":
            console.warn(f"checkpoint {path} {why}; it is left out")
    for _ in range(LISTINGS):
        finished, problem = steps(folder), ""
        for step in reversed(finished):
            path = folder / str(step)
            try:
                verify(path)
                return step
            except UserError as error:
                if not (path / MANIFEST).is_file():  # discarded meanwhile by a run that trains beside
                    problem = ""
                    break
                problem = str(error)
                if step != finished[0] and problem not in told:
                    console.warn(f"{problem}; trying the one before")
                    told.add(problem)
        else:
            if problem:
                raise UserError(f"{problem}; no intact checkpoint is left in {folder}: move the folder away to train anew")
            return None
    raise UserError(f"the checkpoints in {folder} are discarded faster than they are read: copy the one you want, and name the copy")


def _files(path: pathlib.Path) -> list[str]:
    return [name for name in ownership.contents(path) if name != MANIFEST]


def _size_and_hash(file: pathlib.Path) -> list[Any]:
    with open(file, "rb") as opened_file:
        return [file.stat().st_size, hashlib.file_digest(opened_file, "sha256").hexdigest()]
