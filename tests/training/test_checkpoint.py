"""Checkpoints: what is discarded, what a failed save leaves, and what is read of a manifest that may be anybody's."""

import contextlib
import json
import random
import resource
import shutil

import jax.numpy as jnp
import pytest

from lmtiny import config as config_lib
from lmtiny import files, ownership
from lmtiny.errors import UserError
from lmtiny.training import checkpoint, manifests
from lmtiny.training.state import TrainState

NUMBERS = 100_000  # 400 kB


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run/checkpoints"


def state(step):
    small = {name: jnp.int32(0) for name in ("loss_scale", "steps_since_scaled", "bad_step", "bad_row")}
    return TrainState(step=jnp.int32(step), params={"w": jnp.arange(NUMBERS) + step}, optimizer={"m": jnp.ones(3)}, **small)


@contextlib.contextmanager
def saver(folder, keep=1, data="rows"):
    config = config_lib.defaults()
    config.checkpoint.update({"keep": keep, "keep_best": False})
    with contextlib.closing(checkpoint.Saver(folder, config, "tokens", data)) as one:
        yield one


def saved(folder, *steps, **options):
    with saver(folder, **options) as one:
        for step in steps:
            one.save(step, state(step), {})
        assert one.wait()


@contextlib.contextmanager
def no_room():
    """No file becomes larger than this, as on a full disk, but that the system says it in other words."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (NUMBERS // 2, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_discarded_is_this_runs_and_listed_in_its_manifest(folder, capfd):
    saved(folder, 1, data="other rows")
    saved(folder, 2, 3, keep=9)
    (folder / "4").mkdir()
    (folder / "4/weights.bin").write_text("theirs")  # or one's own, whose manifest a copy left behind
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    (folder / "3/notes.txt").write_text("mine")
    shutil.copy(folder / "1/manifest.json", folder / "3/params/manifest.json")
    (folder / "elsewhere").mkdir()
    saved(folder, 5, 6)
    assert manifests.steps(folder) == [1, 6]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "3", "4", "6", "9.orbax-checkpoint-tmp", "elsewhere"]
    assert ownership.contents(folder / "3") == ["notes.txt", "params/manifest.json"]
    assert manifests.verify(folder / "1") and (folder / "4/weights.bin").read_text() == "theirs"
    (warning,) = capfd.readouterr().err.splitlines()
    assert "checkpoints/3 holds what is no part of the checkpoint (notes.txt, params/manifest.json): it stays" in warning


@pytest.mark.parametrize("there", ["2", "2.orbax-checkpoint-tmp"])
def test_a_folder_that_this_run_did_not_begin_is_not_saved_over(folder, there, capfd):
    (folder / there).mkdir(parents=True)
    (folder / there / "weights.bin").write_text("theirs")
    (folder / "2.saving").symlink_to(folder / "elsewhere")
    with saver(folder) as one:
        one.save(2, state(2), {})
        one.save(3, state(3), {})
        assert one.wait()
    assert manifests.steps(folder) == [3] and (folder / there / "weights.bin").read_text() == "theirs"
    assert not (folder / "elsewhere").exists()
    (warning,) = capfd.readouterr().err.splitlines()
    assert f"step 2 could not be saved in {folder}: {folder / there} exists already" in warning


def test_what_was_begun_and_cut_short_is_removed(folder):
    saved(folder, 1, 2, keep=2)
    ownership.begin(folder / "7")
    for name in ("7", "7.orbax-checkpoint-tmp"):
        (folder / name / "params").mkdir(parents=True)
    (folder / "2.saving").write_text("")  # killed after the manifest: complete
    checkpoint.clear(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    assert manifests.verify(folder / "2")


def test_a_damaged_older_manifest_stays_and_ends_nothing(folder, capfd):
    saved(folder, 1)
    text = (folder / "1/manifest.json").read_text()
    (folder / "1/manifest.json").write_text("#" + text[1:])
    saved(folder, 2, 3, 4)
    assert manifests.steps(folder) == [1, 4]
    (warning,) = capfd.readouterr().err.splitlines()
    assert "manifest.json cannot be read" in warning and warning.endswith("it stays")


def test_what_cannot_be_discarded_is_told_once(folder, capfd, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ownership, "remove_listed", denied)
    saved(folder, 1, 2, 3, 4)
    assert manifests.steps(folder) == [1, 2, 3, 4]
    (warning,) = capfd.readouterr().err.splitlines()
    assert "cannot be tidied up: Permission denied" in warning


def test_a_failed_save_is_one_line_in_the_systems_words_and_the_next_one_tries_again(folder, capfd):
    with saver(folder) as one:
        one.save(1, state(1), {})
        assert one.wait()
        with no_room():
            one.save(2, state(2), {})
            one._thread.join()
            one.look()
            one.look()
        (line,) = capfd.readouterr().err.splitlines()
        assert line.endswith(f"step 2 could not be saved in {folder}: File too large; training goes on, and the next save tries again")
        assert manifests.steps(folder) == [1] and one.newest() == 1
        one.save(3, state(3), {})
        one.finish(3, state(3), {})
    assert capfd.readouterr().err == ""
    assert sorted(path.name for path in folder.iterdir()) == ["3"]


def test_the_last_save_is_tried_twice_and_then_an_error(folder, capfd):
    with saver(folder) as one, no_room():
        one.save(2, state(2), {})
        with pytest.raises(UserError) as refused:
            one.finish(2, state(2), {})
    assert str(refused.value) == f"step 2 could not be saved in {folder}: File too large; nothing was saved"
    (line,) = capfd.readouterr().err.splitlines()
    assert "that is tried once more" in line or "the next save tries again" in line
    assert manifests.steps(folder) == []
    saved(folder, 1)
    with saver(folder) as one, no_room(), pytest.raises(UserError, match="step 1 is the newest that is saved"):
        one.save(2, state(2), {})
        one.finish(2, state(2), {})
    assert manifests.verify(folder / "1")


@pytest.mark.parametrize("where", ["manifest", "mark"])
def test_a_disk_that_is_full_for_small_files_too(folder, where, monkeypatch, capfd):
    def full(*_):
        raise OSError(28, "No space left on device")

    with saver(folder) as one, monkeypatch.context() as patch:
        patch.setattr(*((files, "write_aside") if where == "manifest" else (ownership, "begin")), full)
        one.save(2, state(2), {})
        assert not one.wait()
        patch.undo()
        one.save(3, state(3), {})
        assert one.wait()
        one.finish(3, state(3), {})
    (line,) = capfd.readouterr().err.splitlines()
    assert "step 2 could not be saved" in line and "No space left on device" in line
    assert sorted(path.name for path in folder.iterdir()) == ["3"]


def test_what_a_writer_leaves_late_is_still_known_to_be_begun(folder):
    """Where one of orbax's writers fails, others may make the folder again after it was removed."""
    with saver(folder) as one:
        with no_room():
            one.save(2, state(2), {})
            assert not one.wait()
        one.save(4, state(4), {})
        assert one.wait() and ownership.begun(folder / "2")
        (folder / "2.orbax-checkpoint-tmp").mkdir(exist_ok=True)
        one.save(6, state(6), {})
        one.finish(6, state(6), {})
    assert sorted(path.name for path in folder.iterdir()) == ["6"]


def test_what_is_read_is_not_discarded_meanwhile(folder):
    saved(folder, 1)
    with manifests.kept(folder / "1"):
        saved(folder, 2)
        assert manifests.steps(folder) == [1, 2]
    saved(folder, 3)
    assert manifests.steps(folder) == [3]


def test_a_checkpoint_that_is_discarded_while_it_is_looked_at_gives_way_to_the_next(folder, monkeypatch, capfd):
    saved(folder, 1)
    verify = manifests.verify

    def discarded(path):
        monkeypatch.setattr(manifests, "verify", verify)
        saved(folder, 2)
        return verify(path)

    monkeypatch.setattr(manifests, "verify", discarded)
    assert manifests.newest_intact(folder.parent) == 2
    assert capfd.readouterr().err == ""


def test_a_save_at_work_is_not_called_cut_short(folder, capfd):
    saved(folder, 1)
    ownership.begin(folder / "2")
    (folder / "2").mkdir()
    with open(folder.parent / ".lock", "ab") as lock:
        assert files.try_lock(lock)
        assert manifests.newest_intact(folder.parent) == 1 and capfd.readouterr().err == ""
        with pytest.raises(UserError, match="checkpoints/2 is being saved"):
            manifests.read(folder / "2")
    with pytest.raises(UserError, match="its save was cut short"):
        manifests.read(folder / "2")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint with the smallest arrays."""
    folder = tmp_path_factory.mktemp("small") / "checkpoints"
    with saver(folder) as one:
        one.save(1, state(1).replace(params={"w": jnp.ones(1)}), {"validation_bits_per_byte": float("nan")})
        one.wait()
    return folder / "1"


def test_one_character_more_or_less_in_a_manifest_is_refused(small, tmp_path):
    text, choose = (small / "manifest.json").read_text(), random.Random(0)
    (tmp_path / "1").mkdir()
    assert json.loads(text)["metrics"] == {"validation_bits_per_byte": None}
    for place in range(0, len(text), 3):
        other = choose.choice([character for character in '0123456789ae":,{}[] \n' if character != text[place]])
        (tmp_path / "1/manifest.json").write_text(text[:place] + other + text[place + 1 :])
        with pytest.raises(UserError):
            manifests.read(tmp_path / "1")


def written(tmp_path, manifest, sealed=True):
    """Returns a checkpoint's folder with that manifest, whose own hash is right."""
    (tmp_path / "1").mkdir(exist_ok=True)
    content = manifests._sealed(manifest) if sealed else json.dumps(manifest).encode()
    (tmp_path / "1/manifest.json").write_bytes(content)
    return tmp_path / "1"


def test_the_format_of_before_is_read_and_warned_of(small, tmp_path, capfd):
    manifest = json.loads((small / "manifest.json").read_text())
    old = {name: value for name, value in manifest.items() if name != "sha256"} | {"format": 1}
    path = written(tmp_path, old, sealed=False)
    read = manifests.read(path)
    assert read["config"] == manifest["config"]
    manifests.warn_if_unsealed(read, path)
    assert capfd.readouterr().err.count("its settings cannot be checked") == 1
    for altered in (manifest | {"format": 1}, manifest | {"format": 3}, manifest | {"format": "2"}):
        with pytest.raises(UserError, match="format"):
            manifests.read(written(tmp_path, altered, sealed=False))


HOSTILE = [
    {"files": None}, {"metrics": None}, {"metrics": {"validation_bits_per_byte": "low"}}, {"files": {"a": ["400", "b"]}},
    {"files": {"a": []}}, {"files": {"a": 5}}, {"arrays": {"a": [[1], 2]}}, {"arrays": {"a": [["1"], "b"]}}, {"arrays": []}, {"config": []},
    {"step": 2}, {"step": True}, {"step": "1"}, {"row": None}, {"tokenizer_hash": 7}, {"format": 10**3000}, {"format": [[]]},
]  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: str(change)[:40])
def test_a_value_of_another_shape_is_refused_in_one_line(small, tmp_path, change):
    manifest = json.loads((small / "manifest.json").read_text())
    del manifest["sha256"]
    with pytest.raises(UserError, match="manifest.json|format") as refused:
        manifests.read(written(tmp_path, manifest | change))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize("content", ["[" * 100_000, '{"format": ' + "9" * 5000 + "}", "null", '"text"', "", "\x00", '{"format": NaN}'])
def test_what_is_no_json_object_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest.json") as refused:
        manifests.read(tmp_path / "1")
    assert "\n" not in str(refused.value)


def test_a_name_that_leads_out_and_a_link_are_not_followed(small, tmp_path):
    shutil.copytree(small, tmp_path / "1")
    (tmp_path / "secret").write_text("theirs")
    manifest = manifests.read(small)
    size_and_hash = manifests._size_and_hash(tmp_path / "secret")
    for name in ("../secret", str(tmp_path / "secret"), "a\0b"):
        written(tmp_path, manifest | {"files": manifest["files"] | {name: size_and_hash}})
        with pytest.raises(UserError, match="is missing"):
            manifests.verify(tmp_path / "1")
        assert manifests.discard(shutil.copytree(tmp_path / "1", tmp_path / "2"), manifests.read(tmp_path / "1")) == []
    assert (tmp_path / "secret").read_text() == "theirs"
    (tmp_path / "1/params/link").symlink_to(tmp_path / "secret")
    written(tmp_path, manifest | {"files": manifest["files"] | {"params/link": size_and_hash}})
    with pytest.raises(UserError, match="link"):
        manifests.verify(tmp_path / "1")


@pytest.mark.parametrize("step", ["²", "٣", "07", "9" * 5000, "x" * 5000, "-1"])
def test_what_is_no_step_is_told_in_one_line(folder, step):
    (folder / step[:200]).mkdir(parents=True)
    assert manifests.steps(folder) == [] == manifests.without_manifest(folder)
    with pytest.raises(UserError, match="--resume|no checkpoint at") as refused:
        manifests.find(folder.parent / step, "--resume")
    assert len(str(refused.value)) < 12_000 and "\n" not in str(refused.value)


def test_an_address_is_no_run(folder):
    with pytest.raises(UserError, match="--checkpoint: gs://bucket/run is an address"):
        manifests.find("gs://bucket/run", "--checkpoint")
