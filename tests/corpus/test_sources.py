"""A list of sources: each kind from its config line to its documents, under its own name; and what is refused."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections
import pytest

from lmtiny import corpus
from lmtiny.config import check, defaults, set_knob
from lmtiny.corpus import sources
from lmtiny.errors import UserError


def config_of(tmp_path: pathlib.Path, *listed: dict[str, Any]) -> ml_collections.ConfigDict:
    config = defaults()
    for name, value in {"kind": "sources", "sources": listed, "download_dir": str(tmp_path / "downloads"), "section_bytes": 1024}.items():
        set_knob(config, f"corpus.{name}", value)
    check(config)
    return config


def read(tmp_path: pathlib.Path, *listed: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Returns (source, text, held out) of every document, after what holds for every source."""
    units = corpus.units(config_of(tmp_path, *listed))
    found = [(unit, document) for unit in units for document in unit.read()]
    assert all(document["source"] == unit.source and document["id"].startswith(f"{unit.source}/") for unit, document in found)
    assert len({document["id"] for _, document in found}) == len(found)
    assert len({unit.name for unit in units}) == len({unit.fingerprint for unit in units}) == len(units)
    return [(unit.source, document["text"], unit.held_out) for unit, document in found]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("CHAPTER I\n\nOne.\n\nCHAPTER II\n\nTwo.")
    (tmp_path / "books" / "b.txt").write_text("Held\n\nout.")
    (tmp_path / "web.jsonl").write_text('{"body": "One."}\n{"body": "Three."}\n')
    return tmp_path


def test_local_files(folder: pathlib.Path) -> None:
    found = read(
        folder,
        {"name": "novels", "path": f"{folder}/books/*.txt", "cut": "chapters", "validation": "b.txt"},
        {"path": f"{folder}/web.jsonl", "text_key": "body"},
        {"name": "again", "path": f"{folder}/web.jsonl", "text_key": "body"},
    )
    assert found == [
        ("novels", "CHAPTER I\n\nOne.", False), ("novels", "CHAPTER II\n\nTwo.", False), ("novels", "Held\n\nout.", True),
        ("web", "One.", False), ("web", "Three.", False), ("again", "One.", False), ("again", "Three.", False),
    ]  # fmt: skip


def test_the_builtin_corpus_is_one_source_among_others(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtiny.corpus.builtin._grouped", lambda *_: [])  # its first unit will do
    builtin = [document["text"] for unit in corpus.units(defaults()) for document in unit.read()]
    found = read(folder, {"path": "builtin"}, {"path": f"{folder}/web.jsonl", "text_key": "body"})
    assert [text for source, text, _ in found if source == "builtin"] == builtin
    assert [text for source, text, _ in found if source == "web"] == ["One.", "Three."]


def test_a_url(folder: pathlib.Path) -> None:
    found = read(folder, {"name": "far", "path": f"file://{folder}/books", "cut": "file", "validation": "b.*"})
    assert found == [("far", "CHAPTER I\n\nOne.\n\nCHAPTER II\n\nTwo.", False), ("far", "Held\n\nout.", True)]


def test_hugging_face(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("pyarrow")
    from tests.corpus import hub_server

    hub = hub_server.Hub({f"data/{number}.parquet": hub_server.parquet([f"Text {number}."], "body") for number in range(4)})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        found = read(folder, {"name": "web", "path": "hf:owner/set", "subset": "data", "shards": 2, "text_key": "body"})
        assert found == [("web", "Text 0.", False), ("web", "Text 1.", False), ("web", "Text 3.", True)]
        with pytest.raises(UserError, match=r"source owner-set: .*0\.parquet: no column 'text' among 'body'; set text_key"):
            read(folder, {"path": "hf:owner/set", "shards": 2})
    finally:
        huggingface_hub.close_session()
        hub.close()


def test_tfds(folder: pathlib.Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    from tests.corpus import tiny_dataset

    tiny_dataset.build(folder / "tfds")
    found = read(folder, {"path": "tfds:tiny_texts", "data_dir": str(folder / "tfds"), "validation": "validation"})
    assert [held_out for *_, held_out in found] == [False] * 50 + [True] * 10
    assert {source for source, *_ in found} == {"tiny_texts"}
    assert read(folder, {"path": "tfds:tiny_texts", "data_dir": str(folder / "tfds"), "subset": "validation"})[0][2] is False


def test_names(tmp_path: pathlib.Path) -> None:
    paths = {"hf:a/b": "a-b", "tfds:wiki40b/en": "wiki40b-en", "builtin": "builtin", "books/*.txt": "books"}
    paths |= {"x/web.jsonl": "web", "gs://b/c": "c"}
    config = config_of(tmp_path, *[{"path": path} for path in paths], {"path": "y", "name": "Zoë's"})
    assert [sources.name(source) for source in config.corpus.sources] == [*paths.values(), "Zoë's"]
    assert corpus.name(config) == "a-b-wiki40b-en-builtin-books-web-c-Zoë-s"
    kinds = {"hf://datasets/a/b": "url", "s3://x": "url", "hf": "files", "C:/x": "files", "builtin": "builtin"}
    kinds |= {"tfds:x": "tfds", "hf:a": "hf"}
    assert {path: sources.kind_of(path) for path in kinds} == kinds


def test_the_fingerprint_depends_on_the_name_the_text_and_how_it_is_cut(folder: pathlib.Path) -> None:
    def fingerprint(**changed: Any) -> str:
        return corpus.units(config_of(folder, {"path": f"{folder}/books/a.txt", **changed}))[0].fingerprint

    assert fingerprint() == fingerprint() == fingerprint(weight=3) == fingerprint(name="a")
    assert len({fingerprint(), fingerprint(name="b"), fingerprint(cut="file"), fingerprint(cut="chapters")}) == 4


REFUSED: list[tuple[list[dict[str, Any]], str]] = [
    ([{"path": "nowhere/*.txt"}], r"corpus.sources\[0\] \(nowhere\): path: nothing matches 'nowhere/\*.txt'"),
    ([{"path": "builtin"}, {"path": "builtin"}], r"corpus.sources\[1\] \(builtin\): an earlier source has the same name"),
    ([{"path": "builtin", "shards": 3}], "shards says nothing about 'builtin', a source of the kind builtin; it is for hf"),
    ([{"path": "x.txt", "subset": "en"}], "subset says nothing about 'x.txt', a source of the kind files; it is for hf, tfds"),
    ([{"path": "hf:a/b", "validation": "x"}], "validation says nothing about 'hf:a/b', .* it is for files, url, tfds"),
    ([{"path": "hf:a b"}], "is not hf:OWNER/DATASET"),
    ([{"path": "web.jsonl", "validation": "web.jsonl"}], "validation holds out the only file"),
    ([{"path": "web.jsonl", "validation": "z*"}], "validation: nothing matches 'z\\*'"),
    ([{"path": "web.jsonl"}], r"source web: .*web.jsonl:1: no field 'text' among 'body'; set text_key"),
    ([{"path": "web.jsonl", "cut": "chapters"}], "cut = 'chapters' says nothing about web.jsonl: it is for texts; a record is a document"),
    ([{"path": "books", "text_key": "body"}], r"text_key = 'body' says nothing about a.txt: it is for records of .jsonl and .parquet"),
    ([{"path": "empty.txt"}], r"corpus.sources\[0\] \(empty\): path = 'empty.txt': the file is empty"),
    ([{"path": "file://{}/empty.txt"}], r"corpus.sources\[0\] \(empty\): there is nothing in it"),
]


@pytest.mark.parametrize(("listed", "message"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_refusals_name_the_source(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, listed: list[dict[str, Any]], message: str
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(folder)
    (folder / "empty.txt").write_bytes(b"")
    with pytest.raises(UserError, match=message) as error:
        read(folder, *[{**source, "path": source["path"].replace("{}", str(folder))} for source in listed])
    assert "\n" not in str(error.value)


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield
