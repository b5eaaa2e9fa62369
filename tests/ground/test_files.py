"""Files: an address is no path of this machine."""

import pathlib

import pytest

from lmtiny import files
from lmtiny.errors import UserError


@pytest.mark.parametrize(
    "address", ["gs://bucket/run", "s3://b", "file:///etc", "HF://datasets/x", "az+v1.0://b"]
)
def test_an_address_is_refused_where_a_local_path_belongs_however_it_is_spelt(address):
    for spelt in (address, pathlib.Path(address), str(pathlib.Path(address))):
        with pytest.raises(UserError, match="^--workdir: .* is an address") as refused:
            files.refuse_url(spelt, "--workdir")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "path", ["", ".", "runs/a", "/tmp/a", "runs/gs:/a", "C:/a", "C:\\a", "a:b", "12:/a", "~/a"]
)
def test_a_path_is_no_address(path):
    files.refuse_url(path, "--workdir")
    files.refuse_url(pathlib.Path(path), "--workdir")


def test_a_folder_that_holds_anything_is_never_replaced(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "thesis.txt").write_text("mine")
    with pytest.raises(OSError), files.written(there) as aside:
        aside.mkdir()
        (aside / "new").write_text("ours")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "there",
        "there/thesis.txt",
    ]


def test_only_what_written_itself_left_is_swept(tmp_path):
    mine = ["x.aside-y", "x.aside-1", "x.aside-1-0123abc", "x.aside-one-0123abcd", "aside-1-0123abcd"]
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    (tmp_path / "x.aside-1-0123abcd.json").write_text("half")
    (tmp_path / "y.aside-22-0123abcd").mkdir()
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(mine)


def test_a_lock_is_not_taken_through_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), files.locked(tmp_path / "folder", lambda: None):
        pass
    assert not (tmp_path / "elsewhere").exists()
