"""A run that was stopped, killed or damaged goes on as if nothing had happened, or says in one line why it cannot."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

STEPS = 12

# Kills the process, as `kill -9` does, at a moment of saving step 8.
KILL = """
import os, signal
from lmtiny.training import checkpoint, manifests
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
"""
MOMENTS = {
    "while orbax writes": KILL + """
import orbax.checkpoint as ocp
save = ocp.AsyncCheckpointer.save
def killed(self, path, *args, **kwargs):
    save(self, path, *args, **kwargs)
    if path.name == "8": die()
ocp.AsyncCheckpointer.save = killed
""",
    "before the manifest": KILL + """
write = manifests.files.write_aside
manifests.files.write_aside = lambda path, text: die() if path.parent.name == "8" else write(path, text)
""",
    "while old ones are discarded": KILL + """
discard = checkpoint.Saver._discard_old
checkpoint.Saver._discard_old = lambda self: die() if (self.folder / "8").exists() else discard(self)
""",
}  # fmt: skip


def one_line(done, *words):
    """Asserts that the run was refused in one line that has these words, and returns it."""
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "lmtiny: warning" not in line]
    assert line.startswith("lmtiny: error: ")
    for word in words:
        assert word in line
    return line


def copy_of_whole(whole, runs, name="run"):
    shutil.copytree(whole[0].folder / "whole", runs.folder / name)
    return runs.folder / name


def test_the_whole_way(whole):
    runs, done = whole
    for text in ("learning the tokenizer", "first step done", "validation", "bits per byte", "python -m lmtiny.chat --checkpoint"):
        assert text in done.stdout
    folder = runs.folder / "whole"
    for name in ("config.json", "metrics.jsonl", "curves.png", "samples.txt", "tokenizer", "checkpoints"):
        assert (folder / name).exists()
    losses = runs.losses("whole")
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1]
    assert json.loads((folder / "checkpoints/12/manifest.json").read_text())["row"] == 12 * 8
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    measured = [line["validation_bits_per_byte"] for line in lines if "validation_loss" in line]
    manifests = [json.loads((folder / f"checkpoints/{step}/manifest.json").read_text()) for step in runs.checkpoints("whole")]
    assert min(manifest["metrics"]["validation_bits_per_byte"] for manifest in manifests) == min(measured)
    assert len(manifests) in (2, 3)


def test_a_second_start_trains_nothing(whole, runs):
    copy_of_whole(whole, runs)
    done = runs.train("run")
    assert done.returncode == 0
    assert "trained already" in done.stdout and "first step" not in done.stdout


def test_stopped_by_sigterm_it_goes_on_bit_by_bit(whole, runs):
    with runs.start("run") as process:
        for line in process.stdout:
            if "first step done" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    assert "stopped as asked" in rest
    (saved,) = runs.checkpoints("run")[-1:]
    assert 1 <= saved < STEPS
    # From its checkpoint and its shards, without the config file.
    assert f"--resume {runs.folder / 'run'} --config.data.dir={runs.shared / 'shards'}" in rest
    resumed = runs.train("", command=runs.resume("run"))
    assert resumed.returncode == 0, resumed.stderr
    assert runs.losses("run") == whole[0].losses("whole")


TERMINAL = "import fcntl, os, termios; os.setsid(); fcntl.ioctl(1, termios.TIOCSCTTY, 0)"


def test_a_run_whose_terminal_is_closed_saves_the_step_it_is_at(whole, runs):
    terminal, stdout = pty.openpty()
    command = runs.command("run", driver=TERMINAL)
    three = dict.fromkeys(("stdin", "stdout", "stderr"), stdout)
    with subprocess.Popen(command, cwd=runs.folder, env=runs.env(), **three) as process:
        os.close(stdout)
        said = b""
        while b"first step done" not in said:
            said += os.read(terminal, 1000)
        os.close(terminal)  # which sends SIGHUP, and lets all that is written fail
    assert process.returncode == 130, said
    (saved,) = runs.checkpoints("run")[-1:]
    assert 1 <= saved < STEPS and (runs.folder / f"run/checkpoints/{saved}/manifest.json").exists()
    undisturbed = whole[0].losses("whole")
    assert runs.losses("run") == {step: undisturbed[step] for step in range(1, saved + 1)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_saving_it_goes_on_from_the_save_before(whole, runs, moment):
    killed = runs.train("run", driver=MOMENTS[moment])
    assert killed.returncode == -signal.SIGKILL
    finished = [4, 8] if moment == "while old ones are discarded" else [4]
    assert [step for step in runs.checkpoints("run") if (runs.folder / f"run/checkpoints/{step}/manifest.json").exists()] == finished
    done = runs.train("run")
    assert done.returncode == 0, done.stderr
    assert f"going on after step {finished[-1]}" in done.stdout
    assert runs.losses("run") == whole[0].losses("whole")
    assert set(runs.checkpoints("run")) == set(whole[0].checkpoints("whole"))
    assert not list((runs.folder / "run/checkpoints").glob("*tmp*"))


def test_on_another_mesh_it_goes_on_with_the_same_batches(whole, runs):
    copy_of_whole(whole, runs)
    flags = ["--config.parallel.fsdp=2", "--config.parallel.tensor=2"]
    done = runs.train("", command=runs.resume("run/8", *flags), devices=8)
    assert done.returncode == 0, done.stderr
    assert "checkpoint 12 is later than 8: kept as" in done.stdout
    assert "data 2, fsdp 2, tensor 2" in done.stdout
    alone, split = whole[0].losses("whole"), runs.losses("run")
    np.testing.assert_allclose([split[step] for step in range(1, 13)], [alone[step] for step in range(1, 13)], rtol=1e-5)


def test_a_resumed_run_may_validate_on_longer_rows(whole, runs):
    copy_of_whole(whole, runs)
    resume = runs.resume("run/8", "--config.evaluation.context_length=128")
    one_line(runs.train("", command=resume), "with validation rows of 128 tokens, are not here", "--trust-run")
    one_line(runs.train("", command=[*resume, "--trust-run"]), "T of validation rows (evaluation.context_length)", "--rebuild")
    done = runs.train("", command=[*resume, "--trust-run", f"--config.data.dir={runs.folder / 'shards'}"])
    assert done.returncode == 0, done.stderr
    assert runs.losses("run") == whole[0].losses("whole"), "training's rows are the same ones"
    before, after = (validation_losses(folder) for folder in (whole[0].folder / "whole", runs.folder / "run"))
    assert before.keys() == after.keys() == {4, 8, 12}
    # Four times as much of its document comes before a token, and copying (model.copying) has that much more to find.
    assert before[8] == after[8] and before[12] - 0.5 < after[12] < before[12]


def validation_losses(folder):
    """Returns step -> nats per token."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}


def damaged(step, how):
    array = max((path for path in step.rglob("*") if path.is_file() and "ocdbt" in str(path)), key=lambda path: path.stat().st_size)
    if how == "flipped":
        content = bytearray(array.read_bytes())
        content[len(content) // 2] ^= 4
        array.write_bytes(content)
    elif how == "truncated":
        array.write_bytes(array.read_bytes()[:-10])
    elif how == "missing":
        array.unlink()
    elif how == "manifest":
        (step / "manifest.json").write_text((step / "manifest.json").read_text()[:100])
    elif how == "empty":
        shutil.rmtree(step)
        step.mkdir()


# Step -> how its checkpoint is damaged, and what is told of it.
HOW_DAMAGED = {12: ("flipped", "its hash differs"), 11: ("truncated", "bytes, not"), 10: ("missing", "is missing"),
               9: ("manifest", "cannot be read"), 4: ("empty", "has no manifest.json")}  # fmt: skip


def test_damaged_checkpoints_are_told_and_the_one_before_taken(whole, runs):
    assert runs.train("run", "--config.checkpoint.every=1", "--config.checkpoint.keep=12").returncode == 0
    for step, (how, _) in HOW_DAMAGED.items():
        damaged(runs.folder / f"run/checkpoints/{step}", how)
    done = runs.train("run")
    assert done.returncode == 0, done.stderr
    warnings = done.stderr.splitlines()
    assert len(warnings) == len(HOW_DAMAGED)
    for step, (_, words) in HOW_DAMAGED.items():
        (warning,) = [line for line in warnings if f"checkpoints/{step}" in line]
        assert words in warning
    assert "going on after step 8" in done.stdout
    assert runs.losses("run") == whole[0].losses("whole")


def test_nothing_intact_is_refused(whole, runs):
    folder = copy_of_whole(whole, runs)
    for step in runs.checkpoints("run"):
        path = next((folder / f"checkpoints/{step}/params").glob("_METADATA"))
        path.write_text(path.read_text() + " ")
    one_line(runs.train("run"), "no intact checkpoint is left", "move the folder away")
    assert runs.checkpoints("run")


def test_a_run_of_another_config_is_not_continued(whole, runs):
    copy_of_whole(whole, runs)
    changed = ("--config.optimizer.learning_rate=0.5", "--config.model.num_layers=3", f"--config.data.dir={runs.folder / 'elsewhere'}")
    line = one_line(runs.train("run", *changed), "another --workdir")
    assert "optimizer.learning_rate: " in line and "-> 0.5" in line and "model.num_layers: 2 -> 3" in line
    assert not (runs.folder / "elsewhere").exists()  # nothing was prepared for a run that cannot be


def test_a_loss_that_is_not_finite_stops_the_run(runs):
    """Row 3 of the sixth step's batch is made to give an infinite loss."""
    driver = """
import lmtiny.training.step as step
import jax.numpy as jnp
losses = step.token_losses
def poisoned(graph, params, tokens, *args):
    total, nll, *others = losses(graph, params, tokens, *args)
    bad = jnp.where(tokens[:, 1:] == 299, jnp.inf, 0.0)
    return total + jnp.sum(bad), nll + bad, *others
step.token_losses = poisoned
import lmtiny.data.loader as loader
batches = loader.batches
def with_marker(prepared, config, split, batch_size, start, *rows):
    for index, batch in enumerate(batches(prepared, config, split, batch_size, start, *rows), start):
        if index == 5:
            batch = batch.copy()
            batch[3, 10] = 299
        yield batch
loader.batches = with_marker
"""
    done = runs.train("run", driver=driver)
    line = one_line(done, "the loss is not finite at step 6", f"row {5 * 8 + 3} ")
    assert "learning_rate" in line
    assert runs.checkpoints("run") == [4]
    again = runs.train("run")
    assert again.returncode == 0 and "going on after step 4" in again.stdout


def test_a_text_that_changed_is_told_and_resume_goes_on_without_it(runs, small_text):
    text = shutil.copy(small_text, runs.folder / "mine.jsonl")
    flags = ["--config.corpus.path=mine.jsonl", "--config.data.dir=", "--config.evaluation.every=0"]
    assert runs.train("run", *flags).returncode == 0
    shutil.rmtree(runs.folder / "run/checkpoints/12")
    (old,) = (runs.folder / "prepared").iterdir()
    with open(text, "a") as file:
        file.write(json.dumps({"text": "One more document that was not there."}) + "\n")
    ways = ("the text has changed since", f"--resume {runs.folder / 'run'} (its rows are in prepared/{old.name})", "another --workdir")
    one_line(runs.train("run", *flags), *ways)
    done = runs.train("", command=[sys.executable, "-m", "lmtiny.train", "--resume", "run"])
    assert done.returncode == 0, done.stderr
    assert "going on after step 8" in done.stdout
