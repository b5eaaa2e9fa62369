"""Prepared data of anyone's: right, or refused in one line, whoever computed the hash of its manifest."""

import json
import random
import shutil

import numpy as np
import pytest

from lmtiny.data import preparation, prepare, prepared_before, report, shards, verify
from lmtiny.data.loader import Rows, batches
from lmtiny.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function: (config_of) -> a fresh copy of one small preparation, and its config."""
    kept = {}

    def copied(config_of, tmp_path):
        config = config_of()
        if not kept:
            kept["folder"] = tmp_path_factory.mktemp("made") / "prepared"
            shutil.move(prepare(config).folder, kept["folder"])
        shutil.copytree(kept["folder"], config.data.dir)
        return shards.read(tmp_path / "prepared"), config

    return copied


def forge(folder, change):
    """Writes the manifest, changed, with the right hash of its own."""
    manifest = json.loads((folder / shards.MANIFEST).read_text())
    del manifest["sha256"]
    change(manifest)
    shards.write_manifest(folder, manifest)


def of_shard(name, value):
    return lambda manifest: manifest["splits"]["train"]["shards"][0].update({name: value})


def of_split(**values):
    return lambda manifest: manifest["splits"]["train"].update(values)


HUGE = 10**4000
HOSTILE = {
    "a name that leads up": of_shard("name", "../train-00000-of-00006.array_record"),
    "an absolute name": of_shard("name", "/etc/passwd"),
    "a name of another split": of_shard("name", "validation-00000-of-00001.array_record"),
    "a name that is none": of_shard("name", "manifest.json"),
    "a name with a line break": of_shard("name", "train-00000-of-00006.array_record\n"),
    "negative rows of a shard": of_shard("rows", -1),
    "huge rows of a shard": of_shard("rows", HUGE),
    "negative bytes": of_shard("bytes", -1),
    "huge bytes": of_shard("bytes", HUGE),
    "bytes as text": of_shard("bytes", "1"),
    "a hash that is none": of_shard("sha256", None),
    "negative rows": of_split(rows=-5),
    "other rows": of_split(rows=7),
    "huge tokens": of_split(tokens=HUGE),
    "true tokens": of_split(tokens=True),
    "a huge share": of_split(padding_share=HUGE),
    "no shards": of_split(shards=[]),
    "shards as an object": of_split(shards={}),
    "a shard of nothing": of_split(shards=[{}]),
    "a shard that is a number": of_split(shards=[1]),
    "a mixture that is none": of_split(mixture={"a": 1}),
    "a mixture of other rows": of_split(mixture=[{"source": "a", "rows": 1}]),
    "a row length of 0": lambda manifest: manifest.update(row_length=0),
    "a huge row length": lambda manifest: manifest.update(row_length=HUGE),
    "a row length of a split that is text": of_split(row_length="32"),
    "a dtype of objects": lambda manifest: manifest.update(dtype="O"),
    "a dtype of floats": lambda manifest: manifest.update(dtype="<f4"),
    "a dtype that is none": lambda manifest: manifest.update(dtype={}),
    "no splits": lambda manifest: manifest.pop("splits"),
    "one split": lambda manifest: manifest["splits"].pop("validation"),
    "another split": lambda manifest: manifest["splits"].update(test=manifest["splits"]["train"]),
    "splits as a list": lambda manifest: manifest.update(splits=[]),
    "depends_on as text": lambda manifest: manifest.update(depends_on="x"),
    "no depends_on": lambda manifest: manifest.pop("depends_on"),
    "depends_on of long texts": lambda manifest: manifest.update(
        depends_on={"x" * 10**6: "y" * 10**6, "corpus.kind": ["z" * 10**6]}
    ),
    "no tokenizer": lambda manifest: manifest.update(tokenizer=None),
    "a small vocabulary": lambda manifest: manifest["tokenizer"].update(vocab_size=10),
    "another bos_id": lambda manifest: manifest["tokenizer"].update(bos_id=1),
    "a negative bos_id": lambda manifest: manifest["tokenizer"].update(bos_id=-1),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_with_a_right_hash_and_values_that_cannot_be_is_told_in_one_line(
    config_of, tmp_path, made, change
) -> None:
    prepared, config = made(config_of, tmp_path)
    forge(prepared.folder, change)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        verify(prepare(config))
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


DEEP = '{"format": 1, "depends_on": ' + "[" * 900 + "]" * 900 + "}"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, DEEP, "\xff", "", "9" * 5000, "NaN", "[]"], ids=lambda text: text[:9]
)
def test_a_manifest_that_is_damaged_is_told_in_one_line(config_of, tmp_path, made, text) -> None:
    prepared, config = made(config_of, tmp_path)
    (prepared.folder / shards.MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"manifest\.json .*--rebuild") as error:
        prepare(config)
    assert "\n" not in str(error.value)
    assert prepared_before(config, prepared.digest) is None


@pytest.mark.exhaustive
def test_a_file_changed_at_random_is_noticed_or_changes_nothing_500(config_of, tmp_path, made) -> None:
    change_at_random(config_of, tmp_path, made, 500)


def test_a_file_changed_at_random_is_noticed_or_changes_nothing(config_of, tmp_path, made) -> None:
    change_at_random(config_of, tmp_path, made, 50)


def change_at_random(config_of, tmp_path, made, times: int) -> None:
    """One line, or the very same rows: a byte, a cut or a doubled piece in any file of a finished preparation."""
    prepared, config = made(config_of, tmp_path)
    rows = Rows(prepared, "train", 32).batch(np.arange(prepared.num_rows("train")))
    files = [path for path in sorted(prepared.folder.rglob("*")) if path.is_file()]
    for number in range(times):
        choose = random.Random(number)
        path = choose.choice(files)
        good = path.read_bytes()
        place, size = choose.randrange(len(good) + 1), choose.randrange(1, 40)
        changed = choose.choice([
            good[:place] + choose.randbytes(size) + good[place + size :],
            good[:place],
            good[:place] + good[place + size :],
            good[: place + size] + good[place:],
            good[:place] + choose.choice([b"null", b"[]", b"{}", b'""', b"1e999", b"-1", b"[" * 5000]) + good[place:],
        ])  # fmt: skip
        path.write_bytes(changed)
        try:
            found = prepare(config)
            verify(found)
            assert (Rows(found, "train", 32).batch(np.arange(len(rows))) == rows).all(), (path, number)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 700
        path.write_bytes(good)


def test_rows_in_another_order_with_a_right_manifest_are_other_rows(config_of, tmp_path, made) -> None:
    prepared, config = made(config_of, tmp_path)
    files = prepared.shards("train")
    first, second = files[0].read_bytes(), files[1].read_bytes()
    assert len(first) == len(second)
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    again = prepare(config)  # a look at the sizes does not see it
    with pytest.raises(
        UserError, match=r"train-00000-of-\d+\.array_record was altered or damaged: its SHA-256"
    ):
        verify(again)

    def swapped(manifest) -> None:
        hashes = manifest["splits"]["train"]["shards"]
        hashes[0]["sha256"], hashes[1]["sha256"] = hashes[1]["sha256"], hashes[0]["sha256"]

    forge(prepared.folder, swapped)
    verify(prepare(config))
    assert prepared_before(config, prepared.digest) is None and prepare(config).digest != prepared.digest


def test_all_shards_are_checked_with_a_bar_and_one_that_cannot_be_read_is_named(
    config_of, tmp_path, made, capsys, monkeypatch
) -> None:
    prepared, _ = made(config_of, tmp_path)
    total = sum(path.stat().st_size for split in shards.SPLITS for path in prepared.shards(split))
    capsys.readouterr()
    verify(prepared)
    assert (
        f"checking the shards: {total / 1000:.0f} k/{total / 1000:.0f} k bytes" in capsys.readouterr().out
        or total < 100_000
    )
    last = prepared.shards("validation")[-1]

    def failing(path):
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_sha256", failing)
        with pytest.raises(UserError, match=r"cannot be read \(Input/output error\)"):
            verify(prepared)
    last.unlink()
    with pytest.raises(UserError, match=rf"{last.name} cannot be read \(No such file"):
        verify(prepared)


def test_a_token_above_the_vocabulary_stops_the_run(config_of, tmp_path, made) -> None:
    prepared, config = made(config_of, tmp_path)
    prepared.manifest["tokenizer"]["vocab_size"] = int(
        np.max(Rows(prepared, "train", 32).batch(np.arange(9)))
    )
    with pytest.raises(UserError, match="holds a token that its tokenizer does not have"):
        next(batches(prepared, config, "train", 8))


@pytest.mark.parametrize("change", [
    [], {"mixture": []}, {"mixture": {"a": {}}}, {"mixture": {"a": {"tokens": 10**400, "by_size": 1, "wanted": None, "got": 0.5}}},
    {"stages": []}, {"lengths": {"a": []}}, {"evaluation": {"a": [1]}}, {"dropped": {"a": {"b": {"c": []}}}}, {"splits": {}},
    {"settings": {"a": None}}, {"samples": None}, {"lengths": {"a": [1], "b": [0, 1]}},
])  # fmt: skip
def test_a_report_of_anyones_stays_as_it_is(config_of, tmp_path, made, change) -> None:
    prepared, config = made(config_of, tmp_path)
    file = prepared.folder / report.JSON
    mixture = {
        "a": {"tokens": 1, "by_size": 1, "wanted": None, "got": 0.5}
    }  # of other weights: it would be written anew
    content = (
        {**json.loads(file.read_text()), "mixture": mixture, **change} if isinstance(change, dict) else change
    )
    file.write_text(json.dumps(content))
    page = (prepared.folder / report.PAGE).read_bytes()
    assert prepare(config).digest == prepared.digest
    if "settings" not in change and "tokens" not in str(change):  # of which a page can be made
        assert (
            json.loads(file.read_text()) == content and (prepared.folder / report.PAGE).read_bytes() == page
        )


def test_rows_are_not_found_where_a_manifest_cannot_be_read(config_of, tmp_path, made, monkeypatch) -> None:
    prepared, config = made(config_of, tmp_path)
    assert preparation.prepared_before(config, prepared.digest) is not None

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shards.json_data, "read", denied)
    assert preparation.prepared_before(config, prepared.digest) is None
