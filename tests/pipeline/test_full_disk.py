"""A full disk or a lost permission at any write of a run: training goes on where it can, and one line has the system's words."""

import errno
import os

import pytest

from lmtiny import files, ownership, run_log
from lmtiny.training import manifests
from tests.pipeline.in_process import losses

SAMPLED = ['--config.evaluation.prompts=["The "]', "--config.evaluation.sample_tokens=2", "--config.log.tensorboard=true"]


def failing(number, when=lambda *_: True, otherwise=None):
    """Returns a function that fails with the system's error of that number, where `when` says so."""

    def fail(*args, **named):
        if when(*args):
            raise OSError(number, os.strerror(number))
        return otherwise(*args, **named)

    return fail


def test_logs_that_cannot_be_written_do_not_end_a_run(trained, run, tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "append_samples", failing(errno.EACCES))
    monkeypatch.setattr(run_log, "_append", failing(errno.ENOSPC, lambda _, line: b'"step": 3' in line, run_log._append))
    monkeypatch.setattr(run_log._Events, "add_scalar", failing(errno.EIO))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", failing(errno.EROFS))
    done = trained("--workdir", "new", *SAMPLED)
    assert done.code == 0 and manifests.verify(tmp_path / "new/checkpoints/4")
    assert sorted(line.removeprefix("lmtiny: warning: new/") for line in done.err.splitlines()) == [
        "curves.png cannot be written: Read-only file system; training does not wait for it",
        "metrics.jsonl cannot be written: No space left on device; training does not wait for it",
        "samples.txt cannot be written: Permission denied; training does not wait for it",
        "tensorboard cannot be written: Input/output error; training does not wait for it",
    ]
    assert sorted(losses(tmp_path / "new")) == [1, 2, 4]


def test_a_log_that_cannot_be_begun_and_a_plot_that_cannot_be_written(trained, run, tmp_path, monkeypatch):
    (tmp_path / "begun").mkdir()
    monkeypatch.setattr(run_log, "write_aside", failing(errno.EROFS))
    monkeypatch.setattr(run_log._Events, "__init__", failing(errno.ENOSPC))
    done = trained("--workdir", "begun", *SAMPLED)
    assert done.code == 0 and manifests.steps(tmp_path / "begun/checkpoints") == [2, 4]
    assert "metrics.jsonl cannot be written: Read-only file system" in done.err and "No space left on device" in done.err
    assert len(done.err.splitlines()) == 3 == len(done.warnings())  # there are no numbers to plot, either
    monkeypatch.undo()


def test_a_line_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    log = run_log.RunLog(tmp_path, tensorboard=False)
    log.write(1, loss=1.0)
    write = log._file.write

    class Full:
        fileno, truncate, close = log._file.fileno, log._file.truncate, log._file.close

        def write(self, line):
            return write(line[:5])

    whole, log._file = log._file, Full()
    log.write(2, loss=2.0)
    log._file = whole
    log.write(3, loss=3.0)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n{"step": 3, "loss": 3.0}\n'


AT_THE_START = {
    "the mark": (ownership, "claim", lambda *_: True),
    "config.json": (files, "write_aside", lambda path, _: path.name == "config.json"),
    "tokenizer": ("lmtiny.tokenizer.storage", "write_aside", lambda path, _: path.parent.name == "tokenizer"),
}


@pytest.mark.parametrize("what", AT_THE_START)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS], ids=errno.errorcode.get)
def test_what_cannot_be_written_before_the_first_step_is_told_in_one_line(trained, run, monkeypatch, what, number):
    where, name, when = AT_THE_START[what]
    if isinstance(where, str):
        monkeypatch.setattr(f"{where}.{name}", failing(number, when))
    else:
        monkeypatch.setattr(where, name, failing(number, when, getattr(where, name)))
    assert os.strerror(number) in trained("--workdir", "run", "--config.train.num_steps=5").line()
    assert manifests.steps(run / "checkpoints") == [2, 4]


def test_a_save_that_fails_is_followed_by_others_and_the_losses_are_the_same(trained, run, tmp_path, monkeypatch):
    write = manifests.write
    monkeypatch.setattr(manifests, "write", failing(errno.ENOSPC, lambda path, _: path.name == "2", write))
    done = trained("--workdir", "new")
    assert done.code == 0 and losses(tmp_path / "new") == losses(run)
    (warning,) = done.err.splitlines()
    assert "step 2 could not be saved in " in warning and "No space left on device; training goes on" in warning
    assert sorted(path.name for path in (tmp_path / "new/checkpoints").iterdir()) == ["4"]


def test_where_nothing_can_be_saved_the_run_trains_to_its_end_and_says_so_in_one_line(trained, run, tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "write", failing(errno.EROFS))
    done = trained("--workdir", "run", "--config.train.num_steps=6")
    assert done.line().endswith("Read-only file system; step 4 is the newest that is saved: the same command goes on from it")
    assert [line.count("Read-only file system") for line in done.warnings()] == [1]
    assert sorted(losses(run)) == [1, 2, 3, 4, 5, 6]
    monkeypatch.undo()
    assert manifests.steps(run / "checkpoints") == [2, 4] and manifests.verify(run / "checkpoints/4")
