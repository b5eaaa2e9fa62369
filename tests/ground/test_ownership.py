"""What lmtiny may delete: a folder with its mark; a stranger's folder is refused and stays as it was."""

import pytest

from lmtiny import ownership
from lmtiny.errors import UserError


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("found", [None, [], [".lock"], ["lost+found/"]])
def test_a_folder_that_is_missing_or_empty_is_claimed_and_can_be_removed(tmp_path, found):
    folder = tmp_path / "one" / "two"
    for name in found or []:
        (folder / name).mkdir(parents=True) if name.endswith("/") else (folder.mkdir(parents=True), (folder / name).touch())
    ownership.claim(folder, "a run", "--workdir")
    ownership.claim(folder, "a run", "--workdir")
    assert ownership.purpose(folder) == "a run"
    (folder / "later").mkdir()
    (folder / "later" / "file").write_text("ours")
    ownership.refuse_strangers(folder, "a run", "--workdir")
    ownership.remove(folder)
    ownership.remove(folder)
    assert not folder.exists()


def test_a_folder_with_a_strangers_file_is_refused_and_stays(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    before = contents(tmp_path)
    for attempt in (
        lambda: ownership.claim(tmp_path, "a run", "--workdir"),
        lambda: ownership.refuse_strangers(tmp_path, "a run", "--workdir"),
        lambda: ownership.remove(tmp_path),
    ):
        with pytest.raises(UserError):
            attempt()
        assert contents(tmp_path) == before
    ownership.claim(tmp_path, "a run", "--workdir", is_ours=lambda: True)
    assert ownership.purpose(tmp_path) == "a run"


def test_a_mark_for_something_else_is_no_mark(tmp_path):
    ownership.claim(tmp_path, "prepared data", "data.dir")
    with pytest.raises(UserError, match="holds prepared data, not a run"):
        ownership.claim(tmp_path, "a run", "--workdir")


@pytest.mark.parametrize(
    "mark", ["", "mine", "lmtiny wrote this folder: ", "lmtiny wrote this folder: a\nb\n", "x" * 10_000]
)
def test_a_file_with_the_marks_name_and_other_content_is_no_mark(tmp_path, mark):
    (tmp_path / ownership.MARK).write_text(mark)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError):
        ownership.remove(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_nothing_is_removed_through_a_link(tmp_path):
    target, link, inside = tmp_path / "target", tmp_path / "link", tmp_path / "ours"
    ownership.claim(target, "a run", "--workdir")
    link.symlink_to(target)
    with pytest.raises(UserError):
        ownership.remove(link)
    ownership.claim(inside, "a run", "--workdir")
    (inside / "link").symlink_to(target)
    ownership.remove(inside)
    assert not inside.exists() and ownership.purpose(target) == "a run"


def test_a_strangers_file_with_the_marks_name_stays_and_what_a_mark_links_to(tmp_path):
    mark, thesis, whole = (
        tmp_path / "folder" / ownership.MARK,
        tmp_path / "thesis.txt",
        "lmtiny wrote this folder: a run\n",
    )
    mark.parent.mkdir()
    thesis.write_text("mine")
    for make in (lambda: mark.write_text("mine"), lambda: mark.symlink_to(thesis), mark.mkdir):
        make()
        for is_ours in (lambda: False, lambda: True):
            with pytest.raises(UserError):
                ownership.claim(mark.parent, "a run", "--workdir", is_ours)
        assert thesis.read_text() == "mine" and not (mark.is_file() and mark.read_text() != "mine")
        mark.rmdir() if mark.is_dir() else mark.unlink()
    for half in ("", whole[:9], whole[:-3]):
        mark.write_text(half)
        ownership.claim(mark.parent, "a run", "--workdir")
        assert mark.read_text() == whole
    (mark.parent / "ours").write_text("")
    mark.write_text(whole[:-3])
    with pytest.raises(UserError):
        ownership.remove(mark.parent)


def test_an_empty_folder_can_be_removed_and_files_by_name_in_a_marked_one(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    ownership.remove(folder)
    assert not folder.exists()
    folder.mkdir()
    (folder / "a").write_text("mine")
    with pytest.raises(UserError, match="so nothing in it is deleted"):
        ownership.remove_files(folder, ["a"])
    ownership.claim(folder, "a run", "--workdir", lambda: True)
    (folder / "b").mkdir()
    (folder / "b" / "c").write_text("mine")
    (folder / "d").write_text("mine")
    ownership.remove_files(folder, ["a", "b", "none"])
    ownership.remove_unused(folder)
    assert contents(folder) == {
        ".lmtiny": b"lmtiny wrote this folder: a run\n",
        "b": None,
        "b/c": b"mine",
        "d": b"mine",
    }
    (folder / "d").unlink()
    (folder / "b" / "c").unlink()
    (folder / "b").rmdir()
    (folder / ".lock").touch()
    ownership.remove_unused(folder)
    assert not folder.exists()


def test_a_mark_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lmtiny").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="files that lmtiny did not write"):
        ownership.claim(tmp_path / "run", "a run", "--workdir")
    assert not (tmp_path / "theirs").exists()
