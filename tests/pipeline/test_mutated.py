"""A run that a stranger made, changed at random: it opens as it was, or is refused in one line, and nothing outside is touched."""

import random
import shutil
import time

import jax
import numpy as np
import pytest

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.sampling.load import load_model
from lmtiny.training import manifests, run_folder
from tests.pipeline.in_process import everything
from tests.pipeline.mutations import OUTSIDE, mutate, nothing_outside


def seal(path, value):
    """Returns a manifest as whoever made the run could write it."""
    return manifests._sealed({key: one for key, one in value.items() if key != "sha256"}) if path.name == manifests.MANIFEST else None


def for_chat(where):
    model = load_model(where)
    return model.step, model.config, jax.tree.map(np.asarray, model.params)


def for_resume(where, rows):
    """What train does before it compiles."""
    given = {"data.dir": str(rows)}
    config, workdir, step, digest = run_folder.config_of_checkpoint(str(where), given)
    run_folder.refuse_unusable(workdir)
    run_folder.refuse_another_config(workdir, config)
    data = run_folder.rows_at_hand(config, digest, workdir, given, trusted=False)
    config.tokenizer.vocab_size = data.tokenizer.vocab_size
    with run_folder.held(workdir):
        done = run_folder.open_run(workdir, config, data, step)
        log = run_folder.open_log(workdir, config, done)
        log.close()
    return done, config


@pytest.mark.parametrize("seeds", [range(50), pytest.param(range(50, 550), marks=pytest.mark.exhaustive)], ids=["50", "500"])
def test_a_mutated_run_is_what_it_was_or_refused_in_one_line(trained, run, rows, tmp_path, seeds, capfd):
    outside = tmp_path / OUTSIDE
    outside.parent.mkdir()
    outside.write_text("theirs")
    right = {step: for_chat(f"{run}/{step}") for step in manifests.steps(run / "checkpoints")}
    originals, secret = everything(run), everything(outside.parent)
    wrong = []
    for seed in seeds:
        copy, choose = tmp_path / "copy", random.Random(seed)
        shutil.copytree(run, copy)
        what = mutate(copy, choose, outside, seal)
        where = choose.choice([copy, copy, copy / "4"])
        for opens in (for_chat, lambda where: for_resume(where, rows)):
            began = time.monotonic()
            try:
                with nothing_outside(copy):
                    step, config, *params = opens(where)
                if "sealed" not in what:  # else it is another run's, and as good as that
                    assert not config_lib.changed_on_resume(right[step][1], config)
                    for loaded in params:
                        jax.tree.map(np.testing.assert_array_equal, loaded, right[step][2])
            except UserError as error:
                assert len(str(error)) < 12_000
            except Exception as error:
                wrong.append(f"seed {seed}, {what}: {type(error).__name__}: {str(error)[:300]}")
            if time.monotonic() - began > 10:
                wrong.append(f"seed {seed}, {what}: {time.monotonic() - began:.0f} s")
        shutil.rmtree(copy)
    assert not wrong, "\n".join(wrong)
    assert everything(run) == originals and everything(outside.parent) == secret
