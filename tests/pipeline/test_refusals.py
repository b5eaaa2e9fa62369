"""What cannot work is refused by `python -m lmtiny.train` in one line, before anything is prepared or compiled."""

import shutil
import signal
import subprocess
import sys

import pytest

from lmtiny.data import shards


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.optimizer.learning_rat=1"], "did you mean --config.optimizer.learning_rate?"),
        (["--confg", "x"], "did you mean --config?"),
        (["--config.train.num_steps=many"], "'many' is not a whole number"),
        (["--config.model.num_heads=5"], "model.width = 32 is not divisible by model.num_heads = 5"),
        (["--config.train.batch_size=8388608"], "which has"),
        (["--config.model.attention=cudnn"], "does not run on cpu"),
        (["--config.parallel.tensor=3"], "launch/local.sh --devices 3 -- COMMAND emulates them"),
        (["--config.data.row_length=16"], "longer than the rows"),
        (["--config.corpus.path=/nowhere/at/all"], "/nowhere/at/all"),
        (["--config.tokenizer.path=/nowhere"], "/nowhere"),
        (["--config.data.row_length=64"], "--rebuild"),
        (["--config.tokenizer.vocab_size=280"], "--rebuild"),
        (["--resume", "x"], "leave --config out"),
    ],
    ids=str,
)
def test_one_line_and_nothing_else(whole, runs, flags, message):
    done = runs.train("run", *flags)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("lmtiny: error: ") and message in line
    assert not (runs.folder / "run").exists()


@pytest.mark.parametrize("where", ["file", "file/inside"])
def test_a_workdir_that_is_a_file(whole, runs, where):
    (runs.folder / "file").write_text("mine")
    done = runs.train(where)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("lmtiny: error: --workdir ") and "is a file, not a folder" in done.stderr
    assert (runs.folder / "file").read_text() == "mine"


def test_a_run_is_trained_by_one_process_at_a_time(whole, runs):
    with runs.start("run", "--config.train.num_steps=100000", "--config.evaluation.every=0") as first:
        for line in first.stdout:
            if "first step done" in line:
                break
        second = runs.train("run")
        assert second.returncode == 1
        assert "is being trained by another process" in second.stderr and len(second.stderr.splitlines()) == 1
        first.send_signal(signal.SIGINT)
        rest = first.stdout.read()
    assert first.returncode == 130
    assert "stopping after this step" in rest and "stopped as asked" in rest


def test_resume_needs_a_run(runs):
    done = runs.train("", command=[sys.executable, "-m", "lmtiny.train", "--resume", "nowhere"])
    assert done.returncode == 1
    assert done.stderr == "lmtiny: error: no checkpoint at nowhere: nowhere does not exist; give the folder of a run, such as runs/tiny\n"


CONFIG = "--config configs/tiny.py"


@pytest.mark.parametrize("words", [f"train {CONFIG}", "chat --checkpoint runs/none", f"plan {CONFIG}"])
def test_a_kind_of_device_that_jax_does_not_find_is_refused(runs, words):
    command = [sys.executable, "-m", f"lmtiny.{words.split()[0]}", *words.split()[1:]]
    env = runs.env(JAX_PLATFORMS="cuda")
    done = subprocess.run(command, cwd=runs.repository, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("lmtiny: error: JAX_PLATFORMS=cuda: jax finds no such device here; unset it")


@pytest.mark.parametrize("module", ["train", "prepare", "chat"])
def test_help_answers_at_once(runs, module):
    command = [sys.executable, "-X", "importtime", "-m", f"lmtiny.{module}", "--help"]
    done = subprocess.run(command, env=runs.env(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert f"python -m lmtiny.{module}" in done.stdout.splitlines()[2]
    imported = [line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines()]
    assert "lmtiny.config" in imported and not {"jax", "flax", "orbax", "grain"} & set(imported)  # seconds, for nothing


def test_find_lr(runs):
    done = runs.train("run", "--find-lr", "--config.train.num_steps=30")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("suggested")]
    assert 1e-6 < float(line.split("learning_rate=")[1].split()[0]) < 0.3
    assert (runs.folder / "run/learning_rates.png").stat().st_size > 10_000
    assert not (runs.folder / "run/checkpoints").exists()


def test_training_refuses_the_same_rows_in_another_order(whole, runs):
    """Of the same size, and before anything is written: from new, and resumed."""
    from array_record.python import array_record_module

    folder = shutil.copytree(runs.shared / "shards", runs.folder / "shards")
    shard = next(folder.glob("train-*"))
    rows = array_record_module.ArrayRecordReader(str(shard), shards.READ_OPTIONS).read_all()
    size = shard.stat().st_size
    writer = array_record_module.ArrayRecordWriter(str(shard), shards.WRITE_OPTIONS)
    for row in reversed(rows):
        writer.write(row)
    writer.close()
    assert shard.stat().st_size == size
    shutil.copytree(whole[0].folder / "whole", runs.folder / "old")
    before = sorted(runs.folder.rglob("*"))
    resumed = [
        sys.executable,
        "-m",
        "lmtiny.train",
        "--resume",
        "old",
        f"--config.data.dir={folder}",
        "--config.train.num_steps=20",
    ]
    for done in (runs.train("new", f"--config.data.dir={folder}"), runs.train("", command=resumed)):
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert f"{shard} was altered or damaged: its SHA-256 is not the manifest's" in line
    assert sorted(runs.folder.rglob("*")) == before
