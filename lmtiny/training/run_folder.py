"""The folder of a run: what is put there at its start, and whether a start goes on with what is there."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator

import jax
import ml_collections

from lmtiny import config as config_lib
from lmtiny import console
from lmtiny.data import Prepared, mixture, prepared_before
from lmtiny.errors import UserError
from lmtiny.files import try_lock, write_aside
from lmtiny.model import size
from lmtiny.run_log import RunLog
from lmtiny.training import checkpoint


def config_of_checkpoint(where: str, overrides: dict[str, str]) -> tuple[ml_collections.ConfigDict, pathlib.Path, int | None, str]:
    """Returns (config with `overrides` applied, run folder, step or None for the newest, digest of its rows) of a `RUN[/step]`."""
    run, step = checkpoint.find(where)
    found = step if step is not None else checkpoint.newest_intact(run)
    if found is None:
        raise UserError(f"no checkpoint at {where}: nothing was saved there yet")
    path = run / "checkpoints" / str(found)
    manifest = checkpoint.read_manifest(path)
    config = checkpoint.load_config(manifest, path)
    for name, value in overrides.items():
        config_lib.set_knob(config, name, value)
    config_lib.check(config)
    return config, run, step, manifest["data_hash"]


def refuse_unusable(workdir: pathlib.Path) -> None:
    """Raises UserError where `workdir` cannot become a folder: before anything is prepared for it."""
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--workdir {workdir}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"--workdir {workdir}: {there} cannot be written to")


def refuse_another_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Raises UserError where the newest checkpoint in `workdir` is of a run with another config; reads its manifest alone."""
    if not (steps := checkpoint.steps(workdir / "checkpoints")):
        return
    path = workdir / "checkpoints" / str(steps[-1])
    try:
        before = checkpoint.load_config(checkpoint.read_manifest(path), path)
    except UserError:
        return  # damaged: that is for `open_run` to tell, which looks for one that is not
    now = config_lib.from_dict(config.to_dict(), "")
    now.tokenizer.vocab_size = before.tokenizer.vocab_size  # what it comes to follows from the text
    if changed := config_lib.changed_on_resume(before, now):
        raise _another_config(workdir, changed)


def _another_config(workdir: pathlib.Path, changed: list[str]) -> UserError:
    return UserError(f"{workdir} holds a run of another config ({'; '.join(changed)}): choose another --workdir, or undo the change")


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder of a run and holds it for this run alone; the first of its processes does so for all.

    Raises:
      UserError: another run holds it, or it cannot be made.
    """
    if jax.process_index():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / ".lock", "ab")  # noqa: SIM115 -- closed below; what happens meanwhile is not this OSError's
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be used: {error.strerror}") from None
    with file:
        if not try_lock(file):
            raise UserError(f"{workdir} is being trained by another process: wait for it, or choose another --workdir")
        yield


def open_run(workdir: pathlib.Path, config: ml_collections.ConfigDict, data: Prepared, step: int | None) -> int:
    """Returns how many steps of this run are done (0: it is new) after making sure that config, tokenizer and data are its own.

    Writes config.json and tokenizer/. `step` picks an older checkpoint. Later ones than the one gone on from (damaged,
    or not wanted) are renamed, so that none of them is taken for the newest of this run, and none is lost.

    Raises:
      UserError: the folder holds a run of another config, tokenizer or text, or only damaged checkpoints.
    """
    done = checkpoint.newest_intact(workdir) if step is None else step
    if done is not None:
        path = workdir / "checkpoints" / str(done)
        manifest = checkpoint.verify(path)
        if changed := config_lib.changed_on_resume(checkpoint.load_config(manifest, path), config):
            raise _another_config(workdir, changed)
        if (manifest["tokenizer_hash"], manifest["data_hash"]) != (data.tokenizer.hash, data.digest):
            raise UserError(_other_data(workdir, config, data, manifest["data_hash"]))
    if jax.process_index() == 0:
        if done is not None:
            _set_aside_later(workdir / "checkpoints", done)
        write_aside(workdir / "config.json", config_lib.to_json(config))
        data.tokenizer.save(workdir / "tokenizer")
    return done or 0


def _other_data(workdir: pathlib.Path, config: ml_collections.ConfigDict, data: Prepared, rows: str) -> str:
    """Returns why `data` are not the `rows` that the run was trained on, with the very same knobs, and the ways on."""
    before = prepared_before(config, rows)
    name = "text of the corpus"
    same_text = before is not None and before.manifest["depends_on"].get(name) == data.manifest["depends_on"].get(name)
    changed = "what is made of the text" if same_text else "the text"
    if config.tokenizer.path:
        changed += f", or the tokenizer at {config.tokenizer.path},"
    old = "bring back what was there, or name its prepared folder with --config.data.dir"
    if before is not None:
        old = f"python -m lmtiny.train --resume {workdir} (its rows are in {before.folder})"
    tokenizer = "" if config.tokenizer.path else f", with --config.tokenizer.path={workdir / 'tokenizer'} if the tokenizer is to stay"
    return (
        f"{workdir} was trained on other rows than {data.folder} holds: {changed} has changed since. "
        f"To go on with the old rows: {old}. To train on the new ones: another --workdir{tokenizer}"
    )


def _set_aside_later(folder: pathlib.Path, step: int) -> None:
    for later in checkpoint.steps(folder):
        if later > step:
            aside = folder / f"{later}.set-aside-{time.strftime('%Y%m%d-%H%M%S')}"
            (folder / str(later)).rename(aside)
            console.say(f"checkpoint {later} is later than {step}: kept as {aside}")


def open_log(workdir: pathlib.Path, config: ml_collections.ConfigDict, first_step: int) -> RunLog | None:
    """Returns the run's log, lines after `first_step` dropped; None in all processes but the first."""
    if jax.process_index():
        return None
    return RunLog(workdir, config.log.tensorboard, resume_step=first_step or None)


def say_what_is_trained(config: ml_collections.ConfigDict, data: Prepared, mesh: jax.sharding.Mesh, first_step: int) -> None:
    """Prints the model's size, the devices and the length of the run; warns of text that is read too often."""
    counts = size.count_parameters(config)
    parts = ", ".join(f"{name} {console.human(float(count))}" for name, count in counts.items() if count and name != "total")
    devices = ", ".join(f"{name} {parts}" for name, parts in mesh.shape.items() if parts > 1) or "one device"
    tokens = config.train.num_steps * config.train.batch_size * config.model.context_length
    flops, passes = size.flops_per_token(config)["causal"] * tokens, tokens / (data.num_rows("train") * data.row_length("train"))
    console.say(f"model: {console.human(float(counts['total']))} parameters ({parts})")
    console.say(
        f"training: {config.train.num_steps:,} steps of {config.train.batch_size} rows x {config.model.context_length} tokens "
        f"= {console.human(float(tokens))} tokens, {console.human(passes)} times the text, {flops:.2g} FLOPs, "
        f"{config.model.compute_dtype}, on {jax.device_count()} {jax.devices()[0].device_kind} ({devices})"
    )
    if (length := config_lib.validation_length(config)) != config.model.context_length:
        console.say(f"validation: rows of {length} tokens")
    if not data.manifest["splits"]["train"].get("mixture"):  # of each source of a mixture it was told when that was prepared
        mixture.warn_if_worn_out("its text", passes, "lower train.num_steps, or give it more text")
    if first_step:
        console.say(f"going on after step {first_step}")
