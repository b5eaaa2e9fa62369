"""Runs of `python -m lmtiny.train` as a person starts them, small enough to be over in seconds."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import pytest

from tests.conftest import RUN_ONCE
from tests.pipeline.in_process import Trainer

REPOSITORY = pathlib.Path(__file__).parents[2]
STEPS = 12
SAMPLES = ('--config.evaluation.prompts=["The ", "This "]', "--config.evaluation.sample_tokens=4")


@pytest.fixture(scope="session")
def small_text(tmp_path_factory):
    """A folder with forty documents of made-up English, always the same."""
    words = (REPOSITORY / "LICENSE").read_text().split()
    choose = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    texts = [" ".join(choose.choice(words) for _ in range(300)) for _ in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


class Runs:
    """Starts training in `folder`; all runs share their shards and their compiled programs."""

    repository = REPOSITORY

    def __init__(self, folder, small_text, shared):
        self.folder, self.shared = folder, shared
        self.flags = [
            "--config", str(REPOSITORY / "configs/tiny.py"), "--config.corpus.kind=files", f"--config.corpus.path={small_text}",
            f"--config.data.dir={shared / 'shards'}", "--config.tokenizer.vocab_size=300", "--config.model.context_length=32",
            "--config.model.width=32", "--config.model.num_layers=2", "--config.model.num_heads=2", "--config.train.batch_size=8",
            f"--config.train.num_steps={STEPS}", "--config.log.every=1", "--config.checkpoint.every=4", "--config.evaluation.every=4",
            "--config.evaluation.prompts=[]", "--config.log.tensorboard=false", "--config.optimizer.warmup_steps=2",
        ]  # fmt: skip

    def env(self, devices=1, **more):
        return os.environ | {
            "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(self.shared), "JAX_ENABLE_COMPILATION_CACHE": "true",
            "XLA_FLAGS": f"{RUN_ONCE} --xla_force_host_platform_device_count={devices}", **more,
        }  # fmt: skip

    def command(self, workdir, *flags, driver=""):
        """`driver` is Python that runs first, in the same process: what breaks a run at a chosen moment."""
        program = f"{driver}\nimport runpy; runpy.run_module('lmtiny.train', run_name='__main__', alter_sys=True)"
        start = ["-c", program] if driver else ["-m", "lmtiny.train"]
        return [sys.executable, *start, *self.flags, "--workdir", str(self.folder / workdir), *flags]

    def resume(self, where, *flags):
        """The command that goes on with a run, whose shards are elsewhere than a run may say by itself."""
        shards = f"--config.data.dir={self.shared / 'shards'}"
        return [sys.executable, "-m", "lmtiny.train", "--resume", str(self.folder / where), shards, *flags]

    def train(self, workdir, *flags, driver="", devices=1, command=None):
        command = command or self.command(workdir, *flags, driver=driver)
        return subprocess.run(command, cwd=self.folder, env=self.env(devices), capture_output=True, text=True, timeout=300)

    def start(self, workdir, *flags, driver="", **env):
        command = self.command(workdir, *flags, driver=driver)
        return subprocess.Popen(command, cwd=self.folder, env=self.env(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def losses(self, workdir):
        """Returns step -> loss."""
        lines = (self.folder / workdir / "metrics.jsonl").read_text().splitlines()
        return {line["step"]: line["loss"] for line in map(json.loads, lines) if "loss" in line}

    def checkpoints(self, workdir):
        return sorted(int(path.name) for path in (self.folder / workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def runs(tmp_path, small_text, shared):
    return Runs(tmp_path, small_text, shared)


@pytest.fixture(scope="session")
def whole(tmp_path_factory, small_text, shared):
    """(runs, what it printed) of a run that nothing disturbed: its folder is "whole"; tests copy it before they damage it."""
    runs = Runs(tmp_path_factory.mktemp("whole"), small_text, shared)
    done = runs.train("whole", *SAMPLES)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs, done


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """The folder of the rows of all runs in the process of the tests; the first of them makes them."""
    return tmp_path_factory.mktemp("rows") / "shards"


@pytest.fixture
def trained(monkeypatch, capfd, tmp_path, rows, small_text):
    """Trains in this process, in an empty folder: see `in_process.Trainer`."""
    monkeypatch.chdir(tmp_path)
    return Trainer(monkeypatch, capfd, rows, small_text)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """Where the first test that wants a finished run trains it; later ones copy it."""
    return tmp_path_factory.mktemp("stranger") / "run"


@pytest.fixture
def run(trained, tmp_path, stranger):
    """A finished run, with checkpoints 2 and 4, in the current folder."""
    if not stranger.exists():
        done = trained("--workdir", str(stranger))
        assert done.code == 0, done.err
    return shutil.copytree(stranger, tmp_path / "run", symlinks=True)
