"""Refining inside a preparation: named in what the shards depend on, resumed to the same shards, and told of where it cannot be."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from lmtiny import corpus
from lmtiny.data import preparation, prepare
from lmtiny.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
KNOBS = {"corpus.cleaning": ("unwrap",), "corpus.filters": ("gopher_repetition",), "corpus.deduplicate": True}


def test_the_settings_decide_the_shards_and_only_where_they_are_on(config_of) -> None:
    def depends_on(**knobs) -> dict:
        config = config_of(**knobs)
        return preparation._depends_on(config, corpus.units(config), None)

    plain = depends_on()
    assert not [name for name in plain if "refining" in name or "filters" in name]
    with pytest.raises(UserError, match="corpus.executor = 'ray' does nothing while no document is refined"):
        depends_on(**{"corpus.executor": "ray"})
    with pytest.raises(UserError, match="does nothing while corpus.deduplicate = False"):
        depends_on(**{"corpus.minhash_buckets": 3})
    on = depends_on(**KNOBS)
    assert on != plain and depends_on(**KNOBS, **{"corpus.executor": "ray"}) == on
    for knob, value in (("corpus.cleaning", ("unicode",)), ("corpus.minhash_buckets", 3), ("corpus.language", "en")):
        assert depends_on(**{**KNOBS, knob: value}) != on


def test_a_moved_evaluation_set_is_the_same_and_a_changed_one_another(config_of, tmp_path) -> None:
    def depends_on(path: pathlib.Path) -> dict:
        config = config_of(**{"corpus.decontaminate": str(path)})
        return preparation._depends_on(config, corpus.units(config), None)

    (tmp_path / "a.txt").write_text("what is asked")
    before = depends_on(tmp_path / "a.txt")
    moved = (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert depends_on(moved) == before
    moved.write_text("what is asked now")
    assert depends_on(moved) != before


def test_an_evaluation_set_that_cannot_be_read_is_named(config_of, tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("what is asked")

    def denied(file: pathlib.Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("lmtiny.refining.settings.of_file", denied)  # not by chmod: root may read all
    with pytest.raises(UserError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        prepare(config_of(**{"corpus.decontaminate": str(tmp_path / "a.txt")}))


@pytest.mark.parametrize("name", ["datatrove", "ftfy"])
def test_a_library_that_is_not_there_is_named(config_of, monkeypatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"need {name}: pip install 'lmtiny\[corpus\]'") as caught:
        prepare(config_of(**{"corpus.cleaning": ("unicode",)}))
    assert "\n" not in str(caught.value)


KILL = """
import json, os, signal, sys
from lmtiny.config import from_dict
from lmtiny.data import prepare
from lmtiny.refining import steps
reading = steps.ReadPart.run
def run(self, data, rank=0, world_size=1):
    for number, document in enumerate(reading(self, data, rank, world_size)):
        if self.wanted is None and (rank, number) == (3, 6): os.kill(os.getpid(), signal.SIGKILL)
        yield document
steps.ReadPart.run = run
prepare(from_dict(json.loads(sys.argv[1]), "test"))
"""


def test_a_preparation_killed_while_refining_ends_in_the_same_shards(config_of, hashes, tmp_path) -> None:
    pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
    whole = prepare(config_of("whole", **KNOBS))
    config = config_of("killed", **KNOBS)
    command = [sys.executable, "-c", KILL, config.to_json()]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (pathlib.Path(config.data.dir) / "manifest.json").exists()
    assert hashes(prepare(config).folder) == hashes(whole.folder)
