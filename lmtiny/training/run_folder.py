"""The folder of a run: what is put there at its start, and whether a start goes on with what is there."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Collection, Iterator

import jax
import ml_collections
import numpy as np

from lmtiny import config as config_lib
from lmtiny import console, files, ownership
from lmtiny.data import Prepared, mixture, prepared_before
from lmtiny.errors import UserError
from lmtiny.model import size
from lmtiny.run_log import RunLog
from lmtiny.training import checkpoint, manifests

WHAT = "a run"  # says the mark in its folder
_OWN = (
    ownership.MARK, ".lock", "checkpoints", "config.json", "tokenizer", "metrics.jsonl", "samples.txt", "curves.png",
    "tensorboard", "learning_rates.png",
)  # fmt: skip


def config_of_checkpoint(where: str, overrides: dict[str, str]) -> tuple[ml_collections.ConfigDict, pathlib.Path, int | None, str]:
    """Returns (config with `overrides` applied, run folder, step or None for the newest, digest of its rows) of a `RUN[/step]`."""
    found = manifests.opened(where, "--resume")
    config = found.config
    for name, value in overrides.items():
        config_lib.set_knob(config, name, value)
    config_lib.check(config)
    return config, found.run, found.step, found.manifest["data_hash"]


def _lies_here(folder: str) -> bool:
    """Returns whether a path leads below the current folder."""
    try:
        return not os.path.isabs(folder) and pathlib.Path(folder).resolve().is_relative_to(pathlib.Path().resolve())
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, a loop of links
        return False


def rows_at_hand(
    config: ml_collections.ConfigDict, rows: str, workdir: pathlib.Path, overrides: Collection[str], trusted: bool
) -> Prepared | None:
    """Returns the prepared shards with the digest `rows`, from data.dir or prepared/; None where a run is `trusted` to make them.

    The run may be a stranger's: unless it is trusted, a data.dir of its own is looked at only where it lies below the current
    folder, and is emptied in `config` elsewhere.

    Args:
      overrides: the knobs that the command line gave.

    Raises:
      UserError: they are not there, and to make them would be to read, fetch and write what the run's config says.
    """
    named = config.data.dir
    if not (trusted or "data.dir" in overrides or _lies_here(named)):
        config.data.dir = ""
    anywhere = config_lib.from_dict(config.to_dict(), "")
    anywhere.data.dir = ""
    found = prepared_before(config, rows) or prepared_before(anywhere, rows)
    if found is None and not trusted:
        length, said = config_lib.validation_length(config), f" (the run says {named[:100]})" if named else ""
        raise UserError(
            f"the rows that {workdir} was trained on, with validation rows of {length} tokens, are not here. "
            f"Name their folder with --config.data.dir{said}, or start the run with --config FILE --workdir {workdir}, "
            f"or add --trust-run: they are made as the run's config says, which {_what_it_would_do(config, named)}"
        )
    return found


def _what_it_would_do(config: ml_collections.ConfigDict, data_dir: str) -> str:
    """Returns in words what preparing by this config reads and writes."""
    corpus = config.corpus
    read = [source["path"] for source in corpus.sources] if corpus.kind == "sources" else [corpus.path or "the builtin corpus"]
    read += [path for path in (corpus.validation_path, corpus.decontaminate, corpus.quality_good, corpus.quality_bad) if path]
    read += [config.tokenizer.path] if config.tokenizer.path else []
    written = [data_dir or "prepared/"] + ([corpus.download_dir] if corpus.kind == "sources" else [])
    shown = ", ".join(map(str, read))
    return f"reads {shown[:200]}{'...' if len(shown) > 200 else ''} and writes to {' and '.join(written)[:100]}"


def how_to_go_on(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> str:
    """Returns the command that goes on with the run."""
    elsewhere = "" if _lies_here(config.data.dir) else f" --config.data.dir={config.data.dir}"
    return f"python -m lmtiny.train --resume {workdir}{elsewhere}"


def refuse_unusable(workdir: pathlib.Path) -> None:
    """Raises UserError where `workdir` cannot become the folder of a run or is a stranger's: before anything is prepared."""
    files.refuse_url(workdir, "--workdir")
    try:
        there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"--workdir {workdir}: {there} is a file, not a folder")
        if not os.access(there, os.W_OK):
            raise UserError(f"--workdir {workdir}: {there} cannot be written to")
        ownership.refuse_strangers(workdir, WHAT, "--workdir", lambda: _is_run(workdir))
        for name in _OWN:
            if (workdir / name).is_symlink():
                raise UserError(f"{workdir / name} is a link, and would be written through; move it away")
    except OSError as error:
        raise UserError(f"--workdir {str(workdir)[:60]}: {error.strerror}") from None


def claim(workdir: pathlib.Path) -> None:
    """Makes the folder of a run and marks it as lmtiny's; raises UserError where it is not, or cannot be."""
    try:
        ownership.claim(workdir, WHAT, "--workdir", lambda: _is_run(workdir))
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be used: {error.strerror}") from None


def _is_run(workdir: pathlib.Path) -> bool:
    """Returns whether an older lmtiny, which left no mark, trained there: whether one of its checkpoints has a manifest."""
    for step in manifests.steps(workdir / manifests.FOLDER):
        with contextlib.suppress(UserError):
            return bool(manifests.read(workdir / manifests.FOLDER / str(step)))
    return False


def refuse_another_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Raises UserError where the newest checkpoint in `workdir` is of a run with another config; reads its manifest alone."""
    if not (steps := manifests.steps(workdir / manifests.FOLDER)):
        return
    path = workdir / manifests.FOLDER / str(steps[-1])
    try:
        before = manifests.config_of(manifests.read(path), path)
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
      UserError: another run holds it, it cannot be made, or not all processes see it.
    """
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            claim(workdir)
            try:
                file = stack.enter_context(open(workdir / ".lock", "ab"))
            except OSError as error:
                raise UserError(f"--workdir {workdir} cannot be used: {error.strerror}") from None
            if not files.try_lock(file):
                raise UserError(f"{workdir} is being trained by another process: wait for it, or choose another --workdir")
        _refuse_unshared(workdir)
        yield


def _refuse_unshared(workdir: pathlib.Path) -> None:
    """Raises UserError, in all processes, where one of them does not see what the first one writes in `workdir`."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    random = multihost_utils.broadcast_one_to_all(np.frombuffer(secrets.token_bytes(8), np.uint8))
    token = workdir / (name := f".shared-{random.tobytes().hex()}")
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            token.write_bytes(b"")
            stack.callback(token.unlink)
        multihost_utils.sync_global_devices(name)
        seen = multihost_utils.process_allgather(np.asarray(token.exists()))
    if not seen.all():
        blind = ", ".join(map(str, np.flatnonzero(~seen)))
        raise UserError(
            f"--workdir {workdir} is not on a file system that all {len(seen)} processes share: process {blind} does not see "
            "what process 0 writes there; name a folder of a file system that every host mounts at that path"
        )


def open_run(workdir: pathlib.Path, config: ml_collections.ConfigDict, data: Prepared, step: int | None) -> int:
    """Returns how many steps of this run are done (0: it is new) after making sure that config, tokenizer and data are its own.

    Writes config.json and tokenizer/. `step` picks an older checkpoint. Later ones than the one gone on from (damaged,
    or not wanted) are renamed, so that none of them is taken for the newest of this run, and none is lost. Saves that were
    cut short are removed.

    Raises:
      UserError: the folder holds a run of another config, tokenizer or text, only damaged checkpoints, what stands in the way of
        later ones, or cannot be written.
    """
    folder = workdir / manifests.FOLDER
    done = manifests.newest_intact(workdir) if step is None else step
    if done is not None:
        path = folder / str(done)
        manifest = manifests.verify(path)
        manifests.warn_if_unsealed(manifest, path)
        if changed := config_lib.changed_on_resume(manifests.config_of(manifest, path), config):
            raise _another_config(workdir, changed)
        if (manifest["tokenizer_hash"], manifest["data_hash"]) != (data.tokenizer.hash, data.digest):
            raise UserError(_other_data(workdir, config, data, manifest["data_hash"]))
    for path in manifests.in_the_way(folder, done or 0):
        raise UserError(f"{path} has no {manifests.MANIFEST}, so lmtiny cannot tell whose it is; move it away")
    if jax.process_index() == 0:
        try:
            checkpoint.clear(folder)
            if done is not None:
                _set_aside_later(folder, done)
            files.write_aside(workdir / "config.json", config_lib.to_json(config))
            data.tokenizer.save(workdir / "tokenizer")
        except OSError as error:
            raise UserError(f"{workdir} cannot be written: {error.strerror}") from None
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
    for later in manifests.steps(folder):
        if later > step:
            console.say(f"checkpoint {later} is later than {step}: kept as {ownership.set_aside(folder / str(later))}")


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
