"""Checkpoints: orbax writes the arrays, a manifest of hashes makes them a checkpoint.

    checkpoints/<step>/params/     the weights, all that chat and export read
    checkpoints/<step>/rest/       optimizer state and counters
    checkpoints/<step>/manifest.json

The manifest is written last, aside and then renamed, so a step folder without one is a save that was cut short.  It holds
the step, the data's row index, the config, the hashes of tokenizer and data, every array's shape and type and every file's hash:
orbax by itself restores flipped bits without a word and takes an empty folder for the latest checkpoint.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import threading
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp

from lmtiny import config as config_lib
from lmtiny import console
from lmtiny.errors import UserError
from lmtiny.files import write_aside
from lmtiny.training.state import TrainState

FORMAT = 1
MANIFEST = "manifest.json"
KEYS = ("format", "step", "row", "metrics", "tokenizer_hash", "data_hash", "config", "arrays", "files")  # of the manifest


class Saver:
    """Saves checkpoints of one run in the background, and keeps the newest and the best."""

    def __init__(self, folder: str | pathlib.Path, config: ml_collections.ConfigDict, tokenizer_hash: str, data_hash: str):
        self.folder, self.config = pathlib.Path(folder).absolute(), config
        self.hashes = {"tokenizer_hash": tokenizer_hash, "data_hash": data_hash}
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Starts saving; returns when the arrays are copied to the host, so that the next step may overwrite them.

        Args:
          metrics: recorded with the checkpoint; "validation_bits_per_byte" decides which is the best.
        """
        self.wait()
        target = self.folder / str(step)
        if jax.process_index() == 0 and target.exists():
            if (target / MANIFEST).exists():
                raise UserError(f"checkpoint {target} exists already and is not overwritten: does another run write there?")
            shutil.rmtree(target)  # a save that was cut short
        _barrier(f"save {step}")
        self._checkpointer.save(
            target,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params), rest=ocp.args.StandardSave(_rest(state))
            ),
        )
        manifest = {
            "format": FORMAT,
            "step": step,
            "row": step * self.config.train.batch_size,
            "metrics": metrics,
            **self.hashes,
            "config": self.config.to_dict(),
            "arrays": _describe(state),
        }
        self._thread = threading.Thread(target=self._finish, args=(target, manifest), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when what was begun is on disk; raises what went wrong on the way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise UserError(f"saving a checkpoint under {self.folder} failed: {' '.join(str(error).split())[:300]}") from error

    def close(self) -> None:
        """Waits, then lets go of orbax's threads."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def _finish(self, target: pathlib.Path, manifest: dict[str, Any]) -> None:
        try:
            self._checkpointer.wait_until_finished()
            if jax.process_index() == 0:
                manifest["files"] = {name: _sha256(target / name) for name in _files(target)}
                write_aside(target / MANIFEST, json.dumps(manifest, indent=1) + "\n")
                self._discard_old()
        except BaseException as error:  # told by the next wait(): a thread cannot raise into the loop
            self._error = error

    def _discard_old(self) -> None:
        values = {step: read_manifest(self.folder / str(step))["metrics"].get("validation_bits_per_byte") for step in steps(self.folder)}
        kept = set(sorted(values)[-self.config.checkpoint.keep :])
        measured = {step: value for step, value in values.items() if value is not None}
        if self.config.checkpoint.keep_best and measured:
            kept.add(min(measured, key=lambda step: (measured[step], -step)))
        newest = max(values)
        for path in self.folder.iterdir():  # older saves that were cut short go too
            outdated = path.name.isdigit() and int(path.name) < newest and int(path.name) not in kept
            if outdated or ".orbax-checkpoint-tmp" in path.name:
                shutil.rmtree(path)


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the finished checkpoints in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and (path / MANIFEST).is_file())


def find(where: str | pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """Returns (run folder, step or None for the newest) of `RUN` or `RUN/step` (or `RUN/checkpoints/step`).

    Raises:
      UserError: nothing there is a run.
    """
    path = pathlib.Path(where)
    run, step = (path.parent, int(path.name)) if path.name.isdigit() and not (path / "checkpoints").is_dir() else (path, None)
    run = run.parent if run.name == "checkpoints" else run
    if not (run / "checkpoints").is_dir():
        what = "has no checkpoints/ folder" if run.is_dir() else "is a file" if run.exists() else "does not exist"
        raise UserError(f"no checkpoint at {where}: {run} {what}; give the folder of a run, such as runs/tiny")
    return run, step


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest of the checkpoint in the folder `path`; raises UserError where there is none, or another format."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        missing = [key for key in KEYS if key not in manifest]
    except FileNotFoundError:
        what = "has no manifest.json: its save was cut short" if path.is_dir() else "does not exist"
        raise UserError(f"checkpoint {path} {what}") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"checkpoint {path}: {MANIFEST} cannot be read: {' '.join(str(error).split())}") from None
    if missing:
        raise UserError(f"checkpoint {path}: {MANIFEST} lacks {', '.join(missing)}")
    if manifest["format"] != FORMAT:
        raise UserError(f"checkpoint {path} has format {manifest['format']}; this lmtiny reads {FORMAT}")
    return manifest


def verify(path: pathlib.Path, part: str = "") -> dict[str, Any]:
    """Returns the manifest after comparing every file (of `part`: "params" or "rest") with its hash.

    Raises:
      UserError: naming the first file that is missing, altered, or not in the manifest.
    """
    manifest = read_manifest(path)
    here = {name for name in _files(path) if name.startswith(part)}
    for name, (size, sha256) in manifest["files"].items():
        if not name.startswith(part):
            continue
        if name not in here:
            raise UserError(f"checkpoint {path}: {name} is missing")
        if [size, sha256] != (found := _sha256(path / name)):
            what = f"has {found[0]} bytes, not {size}" if found[0] != size else "is not what was saved (its hash differs)"
            raise UserError(f"checkpoint {path}: {name} {what}")
    if extra := sorted(here - set(manifest["files"])):
        raise UserError(f"checkpoint {path}: {extra[0]} is not part of it")
    return manifest


def load_config(manifest: dict[str, Any], path: pathlib.Path) -> ml_collections.ConfigDict:
    """Returns the checked config a checkpoint was trained with."""
    config = config_lib.from_dict(manifest["config"], str(path / MANIFEST))
    config_lib.check(config)
    return config


def restore(path: pathlib.Path, wanted: TrainState) -> TrainState:
    """Returns the verified state, every array placed as `wanted` (`state.abstract_state`) says.

    Raises:
      UserError: damaged (`verify`), or other arrays than wanted.
    """
    manifest = verify(path)
    _compare(path, manifest["arrays"], _describe(wanted))
    arguments = ocp.args.Composite(
        params=ocp.args.StandardRestore(wanted.params), rest=ocp.args.StandardRestore(_rest(wanted))
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(path.absolute(), args=arguments)
    return dataclasses.replace(wanted, params=restored["params"], **restored["rest"])


def restore_params(path: pathlib.Path, wanted: Any) -> Any:
    """Returns only the verified weights, placed as the tree `wanted` of ShapeDtypeStructs says."""
    manifest = verify(path, "params")
    saved = {name: array for name, array in manifest["arrays"].items() if name.startswith("params")}
    _compare(path, saved, _describe({"params": wanted}))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path.absolute(), args=ocp.args.Composite(params=ocp.args.StandardRestore(wanted)))["params"]


def newest_intact(run: pathlib.Path) -> int | None:
    """Returns the newest step whose files are all as saved, or None where nothing was saved yet; tells what it passes over.

    Raises:
      UserError: there are checkpoints, and none is intact: starting anew would lose the run without a word.
    """
    folder = run / "checkpoints"
    finished = steps(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and not (path / MANIFEST).is_file():
            console.warn(f"checkpoint {path} was cut short while it was saved; it is left out")
    problem = ""
    for step in reversed(finished):
        try:
            verify(folder / str(step))
            return step
        except UserError as error:
            problem = str(error)
            if step != finished[0]:
                console.warn(f"{problem}; trying the one before")
    if problem:
        raise UserError(f"{problem}; no intact checkpoint is left in {folder}: move the folder away to train anew")
    return None


def _rest(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in (field.name for field in dataclasses.fields(state)) if name != "params"}


def _describe(tree: Any) -> dict[str, list[Any]]:
    """Returns path -> [shape, type] for every array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def _compare(path: pathlib.Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved or name not in wanted:
            what = "lacks" if name not in saved else "has an unexpected"
            raise UserError(f"checkpoint {path} {what} array {name}; is it another model's?")
        if saved[name] != wanted[name]:
            raise UserError(f"checkpoint {path}: {name} is {_text(saved[name])}, but the config asks for {_text(wanted[name])}")


def _text(array: list[Any]) -> str:
    return f"{array[1]}[{', '.join(map(str, array[0]))}]"


def _files(path: pathlib.Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)


def _sha256(path: pathlib.Path) -> list[Any]:
    with open(path, "rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils  # its import starts nothing, but costs time a laptop never needs

        multihost_utils.sync_global_devices(name)
