"""Files that lmtiny did not write stay as they are, and a run that somebody else made decides nothing outside of its folder."""

import json
import shutil

import pytest

from lmtiny.training import manifests
from tests.pipeline.in_process import everything


def altered(run, step, **config):
    """Changes knobs in the config of a checkpoint, as whoever made the run could: the hash is right."""
    path = run / "checkpoints" / str(step) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    for name, value in config.items():
        section, _, knob = name.partition("__")
        manifest["config"][section][knob] = value
    path.write_bytes(manifests._sealed(manifest))


@pytest.mark.parametrize("flags", [[], ["--find-lr"]], ids=["train", "find-lr"])
def test_a_folder_of_somebody_elses_is_refused_before_anything_is_prepared(trained, tmp_path, flags):
    for step in (5, 10, 100):
        (tmp_path / f"proj/checkpoints/{step}").mkdir(parents=True)
        (tmp_path / f"proj/checkpoints/{step}/weights.bin").write_text("theirs")
    for name in ("config.json", "metrics.jsonl", "samples.txt", "curves.png", "learning_rates.png"):
        (tmp_path / "proj" / name).write_text("theirs")
    before = everything(tmp_path)
    done = trained("--workdir", "proj", "--config.data.dir=new", *flags)
    assert "proj holds files that lmtiny did not write (checkpoints, config.json, curves.png, ...)" in done.line()
    assert everything(tmp_path) == before


NAMES = ("metrics.jsonl", "samples.txt", "curves.png", "config.json", "checkpoints", "tensorboard", "tokenizer", ".lock")


@pytest.mark.parametrize("name", NAMES)
def test_no_link_in_a_run_is_written_through(trained, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lmtiny").write_text("lmtiny wrote this folder: a run\n")
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "run" / name).symlink_to(tmp_path / ("theirs" if name != "samples.txt" else "dead"))
    before = everything(tmp_path)
    assert "is a link" in trained("--workdir", "run").line()
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt", "curves.png"])
def test_a_folder_where_a_file_belongs_is_told_before_the_first_step(trained, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lmtiny").write_text("lmtiny wrote this folder: a run\n")
    (tmp_path / "run" / name).mkdir()
    assert f"run/{name} is not a file but a folder" in trained("--workdir", "run").line()


@pytest.mark.parametrize("flag", ["--workdir", "--resume"])
def test_an_address_is_refused_and_no_folder_of_that_name_made(trained, tmp_path, flag):
    assert f"{flag}: gs:" in (line := trained(flag, "gs://bucket/run").line()) and "is an address" in line
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("where", ["x" * 5000, "run/²", "run/" + "9" * 5000, "run/\udcff"])
def test_an_odd_path_is_told_in_one_line(trained, where):
    for flag in ("--workdir", "--resume"):
        if flag == "--resume" or "x" in where:
            assert len(trained(flag, where).line()) < 12_000


def test_a_folder_without_manifest_where_a_checkpoint_will_be_is_refused(trained, run):
    for step in (2, 4):
        (run / f"checkpoints/{step}/manifest.json").unlink()  # as a copy may leave it
    before = everything(run)
    assert "checkpoints/2 has no manifest.json, so lmtiny cannot tell whose it is; move it away" in trained("--workdir", "run").line()
    assert everything(run) == before
    for step in (2, 4):
        (run / f"checkpoints/{step}").rename(run / f"checkpoints/{step}.orbax-checkpoint-tmp")
    assert "checkpoints/2.orbax-checkpoint-tmp has no manifest.json" in trained("--workdir", "run").line()


def test_an_older_lmtinys_run_goes_on_and_is_marked(trained, run):
    (run / ".lmtiny").unlink()
    done = trained("--workdir", "run", "--config.train.num_steps=5", "--config.checkpoint.every=5")
    assert done.code == 0 and "going on after step 4" in done.out, done.err
    assert (run / ".lmtiny").read_text() == "lmtiny wrote this folder: a run\n"
    assert manifests.steps(run / "checkpoints") == [4, 5]


AWAY = {
    "data__dir": "/elsewhere/rows", "corpus__path": "/elsewhere/texts", "corpus__kind": "files", "tokenizer__path": "/elsewhere/tokenizer",
}  # fmt: skip


def test_a_run_whose_rows_are_not_at_hand_asks_before_it_reads_and_writes_what_its_config_says(trained, run, tmp_path, monkeypatch):
    looked_at = []
    monkeypatch.setattr("lmtiny.data.prepare", lambda *_, **__: pytest.fail("it prepares"))
    monkeypatch.setattr("lmtiny.data.shards.read", looked_at.append)
    altered(run, 4, **AWAY)
    line = trained("--resume", "run").line()
    for words in ("the rows that run was trained on", "the run says /elsewhere/rows", "--config FILE --workdir run", "--trust-run",
                  "which reads /elsewhere/texts, /elsewhere/tokenizer and writes to /elsewhere/rows"):  # fmt: skip
        assert words in line
    sources = [{"path": "http://127.0.0.1/a.txt"}, {"path": "file:///elsewhere/b.txt"}, {"path": "tfds:some"}]
    altered(run, 4, corpus__kind="sources", corpus__path="", corpus__sources=sources, corpus__download_dir="../d", data__dir="../rows")
    before = everything(tmp_path)
    line = trained("--resume", "run").line()
    assert "reads http://127.0.0.1/a.txt, file:///elsewhere/b.txt, tfds:some, /elsewhere/tokenizer and writes" in line
    assert line.endswith("to ../rows and ../d")
    assert "add --trust-run" in trained("--resume", "run", "--rebuild").line()
    assert everything(tmp_path) == before and looked_at == []


def test_a_run_whose_rows_are_at_hand_takes_nothing_else_from_its_config(trained, run, tmp_path, rows):
    """They are in prepared/, or where the command line says, or below the current folder; the tokenizer is the rows' own."""
    shutil.copytree(rows, tmp_path / "prepared/mine")
    altered(run, 4, **AWAY, train__num_steps=5)
    done = trained("--resume", "run", "--config.checkpoint.every=5")
    assert done.code == 0 and "going on after step 4" in done.out, done.err
    (tmp_path / "prepared").rename(tmp_path / "below")
    altered(run, 5, data__dir="below/mine", train__num_steps=6)
    assert trained("--resume", "run").code == 0


def test_trust_and_rebuild_want_a_run(trained):
    assert "--trust-run says nothing without --resume" in trained("--trust-run").line()
