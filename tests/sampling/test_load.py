"""Loading beside a run that trains: what it discards meanwhile gives way to its newest checkpoint."""

import pytest

from lmtiny.errors import UserError
from lmtiny.sampling import load
from lmtiny.training import manifests


@pytest.mark.parametrize("asked", [None, 1], ids=["newest", "a step"])
def test_what_is_discarded_while_it_is_read_gives_way_to_the_newest(monkeypatch, tmp_path, asked):
    for step in (1, 2):
        (tmp_path / str(step)).mkdir()
        (tmp_path / str(step) / "manifest.json").touch()
    steps = iter([1, 2])

    def opened(*_):
        step = next(steps)
        return manifests.Opened(tmp_path, asked, tmp_path / str(step), {}, None)

    def loaded(found):
        if found.path.name == "1":
            (found.path / "manifest.json").unlink()
            raise UserError("checkpoint 1: params is missing")
        return "the model"

    monkeypatch.setattr(manifests, "opened", opened)
    monkeypatch.setattr(load, "_loaded", loaded)
    if asked:
        with pytest.raises(UserError, match="params is missing"):
            load.load_model("run/1")
    else:
        assert load.load_model("run") == "the model"
