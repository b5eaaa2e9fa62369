"""Datasets of TFDS: read from disk without TensorFlow, in ranges that miss and repeat nothing."""

import json
import pathlib
import pickle
import shutil
import subprocess
import sys
from typing import Any

import pytest

from lmtiny.corpus import Unit, tfds
from lmtiny.errors import UserError

pytest.importorskip("tensorflow_datasets")
from tests.corpus import tiny_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("tfds")
    tiny_dataset.build(made)
    return made


def units(folder: pathlib.Path, **changed: Any) -> list[Unit]:
    asked = {"name": "tiny_texts", "split": "train", "validation": "", "text_key": "text", "data_dir": str(folder), **changed}
    return tfds.units(**asked)


def texts(found: list[Unit]) -> list[str]:
    return [document["text"] for unit in found for document in unit.read()]


def expected(split: str) -> list[str]:
    return [f"Example number {number}, naïve and plain.\n\nIts second paragraph." for number in tiny_dataset.SPLITS[split]]


def test_every_example_is_a_document_however_the_ranges_lie(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = units(folder)
    assert len(whole) == 1 and sorted(texts(whole)) == sorted(expected("train"))
    monkeypatch.setattr(tfds, "UNIT_BYTES", 500)
    monkeypatch.setattr(tfds, "READ_AT_ONCE", 3)
    ranges = units(folder)
    assert len(ranges) > 4 and texts(ranges) == texts(whole)
    documents = [document for unit in ranges for document in unit.read()]
    assert len({document["id"] for document in documents}) == 50
    assert len({unit.fingerprint for unit in ranges}) == len(ranges)
    assert sum(unit.num_bytes for unit in ranges) == pytest.approx(whole[0].num_bytes, abs=len(ranges))


def test_a_split_is_held_out(folder: pathlib.Path) -> None:
    found = units(folder, validation="validation")
    assert sorted(texts([unit for unit in found if unit.held_out])) == sorted(expected("validation"))
    assert sorted(texts([unit for unit in found if not unit.held_out])) == sorted(expected("train"))


def test_another_process_reads_the_same_without_tensorflow(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "unit").write_bytes(pickle.dumps(units(folder)[0]))  # as a pool of processes sends it
    code = (
        "import pickle, sys, pathlib; unit = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(sum(1 for _ in unit.read()), 'tensorflow' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "unit")], capture_output=True, text=True, timeout=60)
    assert ended.stdout.split() == ["50", "False"], ended.stderr


def test_the_fingerprint_follows_the_text(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(folder, copy)
    assert [unit.fingerprint for unit in units(copy)] == [unit.fingerprint for unit in units(folder)]
    (file,) = copy.rglob("*train*")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert units(copy)[0].fingerprint != units(folder)[0].fingerprint != units(folder, split="validation")[0].fingerprint


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "no_such_set"}, "tfds:no_such_set: there is none in .*, and TFDS knows no recipe of that name; check the name"),
        ({"name": "tiny_texts:9.9.9"}, "cannot be loaded at version 9.9.9, only: 1.2.0"),
        ({"split": "trian"}, "has no split 'trian'; there are train, validation"),
        ({"validation": "test"}, "has no split 'test'"),
        ({"validation": "train"}, "is both to train on .subset. and held out"),
        ({"text_key": "txt"}, r"tfds:tiny_texts has no field 'txt' among 'number', 'text'; did you mean text_key=text\?"),
        ({"text_key": "number"}, "the field 'number' is int(64)?, not text"),
        ({"data_dir": "/nowhere"}, "prepare it: python -c"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(folder: pathlib.Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        texts(units(folder, **changed))
    assert "\n" not in str(error.value)


def test_files_that_only_tensorflow_reads_are_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(folder, copy)
    info = copy / "tiny_texts" / "1.2.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for file in info.parent.glob("*.array_record*"):
        file.rename(str(file).replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="is stored as tfrecord, which only TensorFlow reads; prepare it: .*file_format='array_record'"):
        units(copy)


def test_without_the_extra_one_line_names_it(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lmtiny\[tfds\]'"):
        units(folder)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_module_that_a_dataset_names_is_imported(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("tensorflow_datasets.core.registered._DATASET_REGISTRY", {})  # as where its code is not at hand
    (path,) = copy.rglob("features.json")
    features = json.loads(path.read_text())
    nested = {"pythonClassName": "theirs.Text", "text": {}} if not legacy else {"type": "theirs.Text", "content": {}}
    if legacy:
        features = nested
    else:
        features["featuresDict"]["features"]["text"] = nested
    path.write_text(json.dumps(features))
    with pytest.raises(UserError, match="theirs.Text.*none of TFDS's own") as refused:
        units(copy)
    assert "\n" not in str(refused.value) and not (tmp_path / "ran").exists()


def test_a_namespace_is_refused(folder: pathlib.Path) -> None:
    with pytest.raises(UserError, match="is of a namespace"):
        units(folder, name="somebody:tiny_texts")
