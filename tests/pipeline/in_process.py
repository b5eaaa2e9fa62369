"""`python -m lmtiny.train` in the process of the test: seconds faster than a process of its own, and open to monkeypatch."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import signal
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lmtiny import console, train
from lmtiny.parallel import host, mesh

REPOSITORY = pathlib.Path(__file__).parents[2]
FLAGS = (
    "--config.tokenizer.vocab_size=280", "--config.model.context_length=16", "--config.model.width=16", "--config.model.num_layers=1",
    "--config.model.num_heads=1", "--config.train.batch_size=8", "--config.train.num_steps=4", "--config.log.every=1",
    "--config.checkpoint.every=2", "--config.evaluation.every=0", "--config.evaluation.prompts=[]", "--config.log.tensorboard=false",
    "--config.optimizer.warmup_steps=1", "--config.corpus.kind=files", "--config.model.ngram_rows=0", "--config.model.induction=0",
    "--config.model.copying=false", "--config.optimizer.name=adamw", "--config.optimizer.embedding_learning_rate=0",
)  # fmt: skip


@dataclasses.dataclass
class Ended:
    code: int
    out: str
    err: str

    def warnings(self):
        return [line for line in self.err.splitlines() if line.startswith("lmtiny: warning: ")]

    def line(self):
        """The one line of an error, beside which there are at most warnings."""
        (line,) = [line for line in self.err.splitlines() if line not in self.warnings()]
        assert line.startswith("lmtiny: error: ") and self.code == 1
        return line


class Trainer:
    """Runs training in the current folder, with the rows in `shards` (made by the first who needs them)."""

    def __init__(self, monkeypatch, capfd, shards, text):
        self.monkeypatch, self.capfd, self.cache = monkeypatch, capfd, shards.with_name("compiled")
        config = ["--config", str(REPOSITORY / "configs/tiny.py"), f"--config.corpus.path={text}", f"--config.data.dir={shards}"]
        self.flags = [*config, *FLAGS]

    def __call__(self, *flags):
        """Trains by the config, or with --resume among the `flags`."""
        command = ["lmtiny.train", *([] if "--resume" in flags else self.flags), *flags]
        self.monkeypatch.setattr(sys, "argv", command)
        self.monkeypatch.setattr(host, "keep_freed_memory", lambda: None)  # it would hold for the tests after this one
        self.monkeypatch.setattr(mesh, "make_mesh", functools.partial(mesh.make_mesh, devices=jax.devices()[:1]))
        self.monkeypatch.setattr(mesh, "use_compile_cache", lambda: None)  # not the one of a run of its own
        before = signal.getsignal(signal.SIGINT)
        self.capfd.readouterr()
        try:
            with compiled_once(self.cache), pytest.raises(SystemExit) as stop:
                console.run_main(train.main)
        finally:
            signal.signal(signal.SIGINT, before)
            console.silence(False)
        return Ended(stop.value.code or 0, *self.capfd.readouterr())


@contextlib.contextmanager
def compiled_once(folder):
    """Keeps what is compiled for one device; see tests/conftest.py for why nothing else is kept."""
    values = {"jax_enable_compilation_cache": True, "jax_compilation_cache_dir": str(folder),
              "jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, value in values.items():
            stack.callback(jax.config.update, name, getattr(jax.config, name))
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        stack.callback(compilation_cache.reset_cache)
        yield


def losses(run):
    """Returns step -> loss."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def everything(folder):
    """Returns name -> content of all that lies below `folder`: what a link leads to stands for the link."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    return {str(name): str((folder / name).readlink()) if (folder / name).is_symlink() else
            (folder / name).read_bytes() if (folder / name).is_file() else None for name in names}  # fmt: skip
