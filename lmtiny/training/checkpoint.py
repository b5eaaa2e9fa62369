"""Checkpoints: orbax writes the arrays, a manifest of hashes makes them a checkpoint.

    checkpoints/<step>/params/     the weights, all that chat and export read
    checkpoints/<step>/rest/       optimizer state and counters
    checkpoints/<step>/manifest.json

The manifest (`training.manifests`) is written last, aside and then renamed, so a step folder without one is a save that was
cut short.  It holds the step, the data's row index, the config, the hashes of tokenizer and data, every array's shape and
type and every file's hash: orbax by itself restores flipped bits without a word and takes an empty folder for the latest
checkpoint.
"""

import contextlib
import dataclasses
import errno
import functools
import logging
import math
import os
import pathlib
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from lmtiny import console, ownership
from lmtiny.errors import UserError
from lmtiny.training import manifests
from lmtiny.training.state import TrainState


class Saver:
    """Saves checkpoints of one run in the background, and keeps the newest and the best.

    A save that fails is a warning, and the next save tries again; `finish` is where it is an error. What is discarded are
    checkpoints of this very run, once a newer one is complete; trouble with them is a warning.
    """

    def __init__(self, folder: str | pathlib.Path, config: ml_collections.ConfigDict, tokenizer_hash: str, data_hash: str):
        self.folder, self.config = pathlib.Path(folder).absolute(), config
        self.hashes = {"tokenizer_hash": tokenizer_hash, "data_hash": data_hash}
        self._hook = sys.unraisablehook
        _let_a_failure_be_told_in_one_line(self._hook)
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._thread: threading.Thread | None = None
        self._step, self._error = -1, None  # of the last save: its step, and what went wrong
        self._warnings, self._told = list[str](), set[str]()  # for the loop's own thread to tell; what was told already

    _error: Exception | None

    def save(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Starts saving; returns when the arrays are copied to the host, so that the next step may overwrite them.

        Args:
          metrics: recorded with the checkpoint; "validation_bits_per_byte" decides which is the best.
        """
        if not self.wait():
            self._warn("training goes on, and step {step} is saved instead", step)
        self._step, self._error, target = step, None, self.folder / str(step)
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                clear(self.folder, stay_begun=True)  # a save that failed takes room
            self._attempt(lambda: ownership.begin(target))
        if self._agreed():
            manifest = {
                "step": step,
                "row": step * self.config.train.batch_size,
                "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
                **self.hashes,
                "config": self.config.to_dict(),
                "arrays": _describe(state),
            }
            params, rest = ocp.args.StandardSave(state.params), ocp.args.StandardSave(_rest(state))
            self._attempt(lambda: self._checkpointer.save(target, args=ocp.args.Composite(params=params, rest=rest)))
            if self._error is None:
                complete = functools.partial(self._attempt, lambda: self._complete(target, manifest))
                self._thread = threading.Thread(target=complete, name="checkpoint")
                self._thread.start()
        self.look()

    def look(self) -> None:
        """Warns of what went wrong meanwhile; waits for nothing."""
        if self._thread is None or not self._thread.is_alive():
            if self._error is not None:
                self._warn("training goes on, and the next save tries again")
            while self._warnings:
                console.warn(self._warnings.pop(0))

    def wait(self) -> bool:
        """Returns, once what was begun is at its end, whether it is on disk; all processes ask, and get the same answer."""
        self._join()
        return self._agreed()

    def finish(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Returns when `step`, which is being saved, is on disk, if need be after one more attempt.

        Raises:
          UserError: it cannot be saved; says which checkpoint is the newest.
        """
        if not self.wait():
            self._warn("that is tried once more")
            self.save(step, state, metrics)
        if not self.wait():
            newest = self.newest()
            goes_on = f"step {newest} is the newest that is saved: the same command goes on from it"
            raise UserError(f"{self._problem()}; {goes_on if newest else 'nothing was saved'}")
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                clear(self.folder)
        self.look()

    def newest(self) -> int:
        """Returns the newest step that is saved, 0 where none is; waits for what was begun."""
        self._join()
        return (manifests.steps(self.folder) or [0])[-1]

    def close(self) -> None:
        """Waits for what was begun, then lets go of orbax's threads."""
        try:
            self._join()
            self.look()
        finally:
            self._checkpointer.close()
            sys.unraisablehook = self._hook

    def _attempt(self, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # told by `look` or `finish`: a thread cannot raise into the loop
            self._error = self._error or error

    def _agreed(self) -> bool:
        """Returns whether no process has failed; none returns before all have asked."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils  # its import costs time a laptop never needs

            if multihost_utils.process_allgather(np.asarray(self._error is not None)).any():
                self._error = self._error or OSError(0, "it failed on another process")
        return self._error is None

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _problem(self) -> str:
        return f"step {self._step} could not be saved in {self.folder}: {_words(self._error)}"

    def _warn(self, then: str, next_step: int = -1) -> None:
        """Tells, once a step, that it was not saved."""
        if f"step {self._step}" not in self._told:
            self._told.add(f"step {self._step}")
            console.warn(f"{self._problem()}; {then.format(step=next_step)}")

    def _complete(self, target: pathlib.Path, manifest: dict[str, Any]) -> None:
        self._checkpointer.wait_until_finished()
        if jax.process_index() == 0:
            manifests.write(target, manifest)
            try:
                ownership.complete(target)
                self._discard_old()
            except OSError as error:  # tidying up is not worth a run
                what = f"{self.folder} cannot be tidied up: {_words(error)}"
                self._complain("tidying", f"{what}; older checkpoints stay")

    def _complain(self, about: str, text: str) -> None:
        if about not in self._told:
            self._told.add(about)
            self._warnings.append(text)

    def _discard_old(self) -> None:
        saved = {}
        for step in manifests.steps(self.folder):
            try:
                manifest = manifests.read(self.folder / str(step))
            except UserError as error:
                self._complain(str(error), f"{error}; it stays")
                continue
            if {name: manifest[name] for name in self.hashes} == self.hashes:
                saved[step] = manifest
        kept = set(sorted(saved)[-self.config.checkpoint.keep :])
        values = {step: manifest["metrics"].get("validation_bits_per_byte") for step, manifest in saved.items()}
        measured = {step: value for step, value in values.items() if value is not None}
        if self.config.checkpoint.keep_best and measured:
            kept.add(min(measured, key=lambda step: (measured[step], -step)))
        for step in saved.keys() - kept:
            path = self.folder / str(step)
            if stays := manifests.discard(path, saved[step]):
                what = f"{path} holds what is no part of the checkpoint ({', '.join(stays[:3])})"
                self._complain(str(path), f"{what}: it stays")


def clear(folder: pathlib.Path, stay_begun: bool = False) -> None:
    """Removes the saves in `folder` that were cut short, and the marks of those that were not.

    Args:
      stay_begun: the marks of the former stay: where one of orbax's writers failed, others may still be at work.

    Raises:
      OSError: something cannot be removed.
    """
    for mark in folder.glob(f"*{ownership.BEGUN}"):
        path = mark.with_suffix("")
        if (path / manifests.MANIFEST).is_file():
            ownership.complete(path)
            continue
        for left in reversed(range(50)):
            try:
                ownership.remove_begun(path, stay_begun)
                break
            except OSError as error:  # something is written there at this moment
                if not left or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                time.sleep(0.1)


def _let_a_failure_be_told_in_one_line(otherwise: Callable[["sys.UnraisableHookArgs"], Any]) -> None:
    """Silences the hundreds of lines in which orbax and tensorstore tell of a save that failed: `Saver` does that."""

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # to which a writer reports that nobody waits for
            otherwise(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _words(error: BaseException | None) -> str:
    """Returns the system's words for what went wrong, where an exception, or one behind it, has them; else its own."""
    one = error
    while one is not None:
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
        if number := re.search(r"os_error_code='(\d+)'", str(one)):  # of tensorstore, which writes the arrays
            return os.strerror(int(number[1]))
        one = one.__cause__ or one.__context__
    return " ".join(str(error).split())[:200]


def restore(path: pathlib.Path, wanted: TrainState) -> TrainState:
    """Returns the verified state, every array placed as `wanted` (`state.abstract_state`) says.

    Raises:
      UserError: damaged (`verify`), or other arrays than wanted.
    """
    manifest = manifests.verify(path)
    _compare(path, manifest["arrays"], _describe(wanted))
    arguments = ocp.args.Composite(
        params=ocp.args.StandardRestore(wanted.params), rest=ocp.args.StandardRestore(_rest(wanted))
    )
    restored = _restored(path, arguments)
    return dataclasses.replace(wanted, params=restored["params"], **restored["rest"])


def restore_params(path: pathlib.Path, wanted: Any) -> Any:
    """Returns only the verified weights, placed as the tree `wanted` of ShapeDtypeStructs says."""
    manifest = manifests.verify(path, "params")
    saved = {name: array for name, array in manifest["arrays"].items() if name.startswith("params")}
    _compare(path, saved, _describe({"params": wanted}))
    return _restored(path, ocp.args.Composite(params=ocp.args.StandardRestore(wanted)))["params"]


def _restored(path: pathlib.Path, arguments: ocp.args.Composite) -> Any:
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path.absolute(), args=arguments)
    except Exception as error:  # of many kinds; the files are those that were saved, so that was no lmtiny
        raise UserError(f"checkpoint {path} cannot be restored: {_words(error)}") from error


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
