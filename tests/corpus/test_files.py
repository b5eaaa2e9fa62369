"""The person's own files: every kind of input, the order, the cuts, and a clear line for each thing that is wrong."""

import gzip
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
from typing import Any

import pytest

from lmtiny import corpus
from lmtiny.config import defaults
from lmtiny.corpus import files
from lmtiny.errors import UserError


def units_of(path: Any, **knobs: Any) -> list[corpus.Unit]:
    config = defaults()
    config.corpus.kind, config.corpus.path = "files", str(path)
    for name, value in knobs.items():
        config.corpus[name] = value
    return corpus.units(config)


def read(path: Any, **knobs: Any) -> list[corpus.Document]:
    return [document for unit in units_of(path, **knobs) for document in unit.read()]


def texts(path: Any, **knobs: Any) -> list[str]:
    return [document["text"] for document in read(path, **knobs)]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "b.txt").write_text("text b")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext a  \r\nline\x00 two\t\r\n\r\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.jsonl").write_text('{"text": "one"}\n\n{"text": "  "}\n{"text": null}\n{"text": "two", "more": [1]}')
    (tmp_path / "ignored.py").write_text("not read")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "d.txt").write_text("not read")
    return tmp_path


def test_a_folder_is_read_in_order_and_cleaned(folder: pathlib.Path) -> None:
    found = read(folder)
    assert [document["text"] for document in found] == ["text a\nline two", "text b", "one", "", "", "two"]
    assert [document["source"] for document in found] == ["a.txt", "b.txt", *["deep/c.jsonl"] * 4]
    assert len({document["id"] for document in found}) == 6


def test_files_globs_and_several(folder: pathlib.Path) -> None:
    assert texts(folder / "b.txt") == ["text b"]
    assert texts(folder / "*.txt") == ["text a\nline two", "text b"]
    assert texts(folder / "**" / "*.jsonl") == ["one", "", "", "two"]
    assert texts(f"{folder / 'b.txt'}, {folder / 'deep'}") == ["text b", "one", "", "", "two"]
    assert texts(f"{folder},{folder / 'b.txt'}") == texts(folder)  # named twice, read once


def test_moving_a_corpus_changes_nothing(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = units_of(folder)
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "x")
    assert [(unit.name, unit.fingerprint) for unit in units_of(moved)] == [(unit.name, unit.fingerprint) for unit in before]
    (moved / "b.txt").write_text("text B")
    assert [unit.fingerprint for unit in units_of(moved)] != [unit.fingerprint for unit in before]


def test_fingerprints_stay_from_version_to_version(tmp_path: pathlib.Path) -> None:
    """Others than these mean that everybody's prepared corpora are made anew; then raise documents.READER_VERSION too."""
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert [(unit.name, unit.fingerprint) for unit in units_of(tmp_path, validation_path="b.jsonl")] == [
        ("a.txt@0", "78a5db6ae940bfc289a79c925c138254"), ("b.jsonl@0", "4cd7a270d9067dceae30dd6109e0c46d"),
    ]  # fmt: skip


def test_a_long_text_is_cut_at_blank_lines(tmp_path: pathlib.Path) -> None:
    paragraphs = [f"Paragraph {number}." + " word" * 20 + "\nmore" + " words" * 20 + " end." for number in range(100)]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    found = texts(tmp_path, section_bytes=2048)
    assert "\n\n".join(found) == "\n\n".join(paragraphs)
    assert all(900 < len(text) <= 2048 for text in found)
    assert all(text.startswith("Paragraph") and text.endswith("end.") for text in found)


def test_a_text_without_line_ends_is_cut_between_words(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"word{number}é" for number in range(3000)]
    (tmp_path / "a.txt").write_text(" ".join(words))
    assert " ".join(found := texts(tmp_path, section_bytes=2048)).split() == words and len(found) > 10
    monkeypatch.setattr(files, "RANGE_BYTES", 1000)
    assert " ".join(found := texts(tmp_path, section_bytes=2048)).split() == words and len(found) > 20


@pytest.mark.parametrize("newline", ["\n\n", "\r\n\r\n", "\n", "é"])
def test_ranges_of_a_large_file_join_to_the_whole(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, newline: str) -> None:
    pieces = [f"{number:04d} é日 " + "x" * (number % 50) for number in range(300)]
    (tmp_path / "a.txt").write_bytes(newline.join(pieces).encode())
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    whole = texts(tmp_path / "b.jsonl")
    monkeypatch.setattr(files, "RANGE_BYTES", 1000)
    monkeypatch.setattr(files, "LOOK_AHEAD_BYTES", 200)
    assert len(units_of(tmp_path / "a.txt")) > 5
    joined = "".join(texts(tmp_path / "a.txt"))
    assert "".join(joined.split()) == "".join(newline.join(pieces).split())
    assert texts(tmp_path / "b.jsonl") == whole == [piece.rstrip() for piece in pieces]


def compressed(kind: str, data: bytes) -> bytes:
    return gzip.compress(data) if kind == "gz" else pytest.importorskip("pyarrow").Codec("zstd").compress(data, asbytes=True)


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_compressed_file_gives_the_documents_of_the_plain_one(tmp_path: pathlib.Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"text": f"Line {number} of {number * 7919}."}).encode() + b"\n" for number in range(2000)]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    plain = read(tmp_path / "a.jsonl")
    monkeypatch.setattr(files, "RANGE_BYTES", 1000)
    halves = compressed(kind, b"".join(lines[:1000])) + compressed(kind, b"".join(lines[1000:]))  # as `cat a.gz b.gz` makes
    (tmp_path / f"a.jsonl.{kind}").write_bytes(halves)
    assert len(units_of(tmp_path / f"a.jsonl.{kind}")) == 1 < len(units_of(tmp_path / "a.jsonl"))
    found = read(tmp_path / f"a.jsonl.{kind}")
    assert [{**document, "id": document["id"].replace(f".{kind}", ""), "source": "a.jsonl"} for document in found] == plain
    flipped = halves[:900] + b"~~~~" + halves[904:] if kind == "gz" else b""  # pyarrow writes no checksum into a .zst
    for damaged in filter(None, (halves[:-20], halves[: len(halves) // 2], flipped, b"no such thing")):
        (tmp_path / f"a.jsonl.{kind}").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"a\.jsonl\.{kind}: is damaged or cut short|a\.jsonl\.{kind}:\d+: not JSON"):
            read(tmp_path / f"a.jsonl.{kind}")
    (tmp_path / f"a.jsonl.{kind}").write_bytes(compressed(kind, b'{"text": "a"}\n{"txt": "b"}\n'))
    with pytest.raises(UserError, match=rf"a\.jsonl\.{kind}:2: no field 'text' among 'txt'; the records before it have it"):
        read(tmp_path / f"a.jsonl.{kind}")


def test_zst_without_pyarrow_names_the_extra(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'lmtiny\[parquet\]'"):
        read(tmp_path)


def test_undecodable_bytes_are_replaced_and_counted(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 and na\xefve and \xef\xbf\xbd")
    assert texts(tmp_path) == ["caf\ufffd and na\ufffdve and \ufffd"]
    assert "2 places are not UTF-8" in capsys.readouterr().err


def test_parquet(tmp_path: pathlib.Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"body": ["one", None, "two"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    assert texts(tmp_path, text_key="body") == ["one", "", "two"]
    with pytest.raises(UserError, match=r"a\.parquet: no column 'bdy' among 'body', 'n'; did you mean --config\.corpus\.text_key=body\?"):
        read(tmp_path, text_key="bdy")
    with pytest.raises(UserError, match="the column 'n' is int64, not text"):
        read(tmp_path, text_key="n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="not a readable .parquet file"):
        read(tmp_path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'lmtiny\[parquet\]'"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 1}", r"x\.jsonl:3: not JSON"),
        ('["text"]', r"x\.jsonl:3: is a JSON list, not an object"),
        ('{"txt": "a"}', r"x\.jsonl:3: no field 'text' among 'txt'; the records before it have it: mend this one, or take it away"),
        ("{}", r"x\.jsonl:3: no field 'text' among none"),
        ('{"text": 5}', r"x\.jsonl:3: the field 'text' is int, not text; the records before it have it"),
        ("[" * 100_000, r"x\.jsonl:3: not JSON"),
        ('{"text": "a\0b"}', r"x\.jsonl:3: not JSON \(Invalid control character"),
        ('{"text": ' + "9" * 5000 + "}", r"x\.jsonl:3: the field 'text' is float, not text"),
        ('{"text": ["a"]}', r"x\.jsonl:3: the field 'text' is list, not text"),
        ("null", r"x\.jsonl:3: is a JSON NoneType"),
        ('{"' + "t" * 10_000 + '": 1}', r"x\.jsonl:3: no field 'text' among 't{60}'; "),
    ],
)
def test_a_bad_line_among_others_is_named(tmp_path: pathlib.Path, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"text": "fine"}}\n\n{line}\n')
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "a", "id": 1}', r"x\.jsonl:1: no field 'text' among 'txt', 'id'; did you mean --config\.corpus\.text_key=txt\?"),
        ('{"qqq": "a"}', r"x\.jsonl:1: no field 'text' among 'qqq'; set --config.corpus.text_key"),
        ('{"text": 5}', r"x\.jsonl:1: the field 'text' is int, not text; set --config.corpus.text_key"),
    ],
)
def test_a_field_that_the_first_line_lacks_may_have_another_name(tmp_path: pathlib.Path, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_a_file_name_that_is_not_utf_8(tmp_path: pathlib.Path) -> None:
    (tmp_path / os.fsdecode(b"n\xff.txt")).write_text("text")
    (document,) = read(tmp_path)
    assert document == {"text": "text", "source": "n\\xff.txt", "id": "n\\xff.txt@0.0"}


@pytest.mark.parametrize(
    ("name", "content", "path", "message"),
    [
        ("a.txt", b"x", "nothing*.txt", "nothing matches '.*nothing"),
        ("a.txt", b"x", "no/folder", "nothing matches"),
        ("a.doc", b"x", "", r"a\.doc is not one of \.txt, \.md, .*, \.parquet \(or such with \.gz or \.zst\)"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 99, "a.doc", r"a\.doc is not one of .*, nor a text"),
        ("a.json", b"[1]", "a.json", r"a\.json is not read; make it a \.jsonl"),
        ("a.txt", b"", "", "the file is empty"),
        ("a.txt", b"\xff\xfeh\0i\0", "", "is UTF-16, not UTF-8; convert it: iconv"),
    ],
)
def test_bad_inputs_are_refused(tmp_path: pathlib.Path, name: str, content: bytes, path: str, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / path)


def test_what_is_left_out_of_a_folder_is_named(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "NOTES.DOC").write_text("capitals")
    (folder / "empty.txt").write_text("")
    (folder / "nowhere.txt").symlink_to(folder / "nothing")
    (folder / "elsewhere").symlink_to(folder / "deep")
    os.mkfifo(folder / "pipe.txt")
    units_of(folder)
    left_out = "NOTES.DOC, elsewhere (a link to a folder), empty.txt (empty), ignored.py, nowhere.txt (a link to nothing)"
    pipe = "pipe.txt (no file, but a pipe or a device)"
    assert capsys.readouterr().out == f"{folder}: 6 files left out: {left_out}, {pipe}\n"
    (folder / "pipe.txt").unlink()
    for number in range(20):
        (folder / f"x{number:02d}.py").write_text("x")
    units_of(folder)
    assert "25 files left out: NOTES.DOC, " in (told := capsys.readouterr().out) and told.endswith(", x02.py and 17 more\n")
    units_of(folder / "*.txt", validation_path="b.txt")
    assert "2 files left out: empty.txt (empty), nowhere.txt (a link to nothing)" in capsys.readouterr().out
    units_of(folder / "deep")
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_read_is_refused(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if pathlib.Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)  # not by chmod: root may read all
    for path in (folder, folder / "deep", folder / "**" / "*.txt", folder / "d*" / "**" / "*.txt"):
        with pytest.raises(UserError, match=r"deep: cannot be read \(Permission denied\); leave it out of corpus.path or change its"):
            units_of(path)


def test_a_folder_that_a_glob_has_to_look_into_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "locked", "empty"):
        (tmp_path / "in" / name / "deep").mkdir(parents=True)
        if name != "empty":
            (tmp_path / "in" / name / "a.txt").write_text("a text")
            (tmp_path / "in" / name / "deep" / "b.txt").write_text("b text")
    looked_into = []

    def denying(name: str, asked: Any) -> Any:
        def denied(path: Any, *more: Any, **named: Any) -> Any:
            whole = pathlib.Path(os.path.abspath(path))
            needed = [*whole.parents, *([whole] if name == "scandir" else [])]
            if any(folder.name == "locked" for folder in needed):
                raise PermissionError(13, "Permission denied", str(path))
            looked_into.extend([needed[-1].name] if name == "scandir" else [])
            return asked(path, *more, **named)

        return denied

    for name in ("scandir", "stat", "lstat"):  # not by chmod: root may read all
        monkeypatch.setattr(os, name, denying(name, getattr(os, name)))
    monkeypatch.chdir(tmp_path)
    globs = ["in/*/*.txt", "in/*/a.txt", "in/*/deep/*.txt", "in/*/*/b.txt", "in/l*/*.txt", "*/locked/*.txt", "in/locked/**/*.txt"]
    for path in (*globs, tmp_path / "in" / "*" / "a.txt", "in/locked/a.txt", "in/locked/deep/b.txt", "in/open/a.txt,in/locked/a.txt"):
        with pytest.raises(UserError, match=r"in/locked: cannot be read \(Permission denied\); leave it out of corpus.path or change its"):
            units_of(path)
    assert texts("in/o*/*.txt") == texts("in/open/a.txt") == ["a text"]
    with pytest.raises(UserError, match="nothing matches 'in/locked.txt'"):
        units_of("in/locked.txt")
    looked_into.clear()
    with pytest.raises(UserError, match=r"nothing matches '\*/x.txt'"):
        units_of("*/x.txt")
    assert set(looked_into) == {tmp_path.name}  # and nothing below it


def test_endings_in_capitals_are_those_in_small_letters(tmp_path: pathlib.Path) -> None:
    (tmp_path / "A.TXT").write_text("a text")
    (tmp_path / "B.JSONL").write_text('{"text": "a line"}\n')
    (tmp_path / "C.Txt.GZ").write_bytes(gzip.compress(b"a compressed text"))
    assert [document["text"] for document in read(tmp_path)] == ["a text", "a line", "a compressed text"]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("step", [100, 1777, 64 << 20])
def test_a_compressed_text_is_read_as_the_text(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, suffix: str, step: int) -> None:
    text = "\n\n".join(f"Paragraph {number} é." for number in range(200)) + "x" * 300 + "\n"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / f"a.txt.{suffix}").write_bytes(compressed(suffix, text.encode()))
    monkeypatch.setattr(files, "RANGE_BYTES", step)
    monkeypatch.setattr(files, "LOOK_AHEAD_BYTES", 50)
    for cut in ("sections", "file", "blank lines", "lines", "chapters"):
        reading = files.Reading("text", 1024, cut)
        plain, other = (
            [document for unit in files.units(str(tmp_path / name), "", reading) for document in unit.read()]
            for name in ("a.txt", f"a.txt.{suffix}")
        )
        assert [{**document, "id": document["id"].replace(f".{suffix}", ""), "source": "a.txt"} for document in other] == plain
        assert len(plain) > 3 or cut in ("file", "chapters")


def test_a_text_of_any_ending_is_read_where_it_is_named(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.txt", "b.md", "c.markdown", "d.rst", "e.tex", "f.py", "g.csv", "Makefile", "h.log.gz", "i.json", "deep/j.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(name.encode()) if name.endswith(".gz") else name.encode())
    (tmp_path / "k.png").write_bytes(b"\x89PNG\r\n" + random.Random(0).randbytes(500))
    assert texts(tmp_path) == texts(tmp_path / "*") == ["a.txt", "b.md", "c.markdown", "d.rst", "e.tex"]
    assert "7 files left out: Makefile, j.py, f.py, g.csv, h.log.gz, i.json, k.png\n" in capsys.readouterr().out
    for name in ("f.py", "g.csv", "Makefile", "h.log.gz"):
        assert texts(tmp_path / name) == [name]
    assert texts(tmp_path / "**" / "*.py") == ["deep/j.py", "f.py"]
    assert texts(f"{tmp_path},{tmp_path}/*.csv") == ["a.txt", "b.md", "c.markdown", "d.rst", "e.tex", "g.csv"]
    assert [unit.name for unit in units_of(tmp_path / "*.*", validation_path="e.tex") if unit.held_out] == ["e.tex@0"]
    refused = {"*.json": "i.json is not read; make it a .jsonl", "k.*g": "k.png is not one of .txt, .md, .*, nor a text"}
    for name, message in refused.items():
        with pytest.raises(UserError, match=message):
            texts(tmp_path / name)
    with pytest.raises(UserError, match=r"'.*/deep' holds no \.txt, \.md|deep/j.py is not one of \.txt, \.md"):
        texts(tmp_path / "deep")


def test_another_encoding_is_named_with_what_mends_it(tmp_path: pathlib.Path) -> None:
    text = "Some text, été.\nIn two lines.\n"
    with_mark = {"UTF-16": b"\xff\xfe" + text.encode("utf-16-le"), "UTF-32": b"\0\0\xfe\xff" + text.encode("utf-32-be")}
    unmarked = {name: text.encode(name) for name in ("UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE")}
    others = {"UTF-32": text.encode("utf-32"), "UTF-16": text.encode("utf-16")}
    for number, (name, data) in enumerate([*with_mark.items(), *unmarked.items(), *others.items()]):
        file = tmp_path / f"it's {number}.txt"
        file.write_bytes(data)
        with pytest.raises(UserError, match=rf"{number}\.txt: is {name}, not UTF-8; convert it: iconv") as refused:
            read(file)
        if shutil.which("iconv"):
            subprocess.run(str(refused.value).partition("convert it: ")[2], shell=True, check=True, cwd=tmp_path)
            assert texts(file) == [text.strip()]
    for name in ("a.jsonl", "a.txt.gz"):
        data = '{"text": "some"}\n'.encode("utf-16")
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        with pytest.raises(UserError, match=rf"{name}: is UTF-16, not UTF-8; "):
            read(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16-le", "gb18030", "shift_jis", "koi8-r", "cp1253"])
def test_an_encoding_that_cannot_be_told_is_refused_all_the_same(tmp_path: pathlib.Path, encoding: str) -> None:
    words = {"gb18030": "人人生而自由", "shift_jis": "すべての人間は", "cp1253": "Όλοι οι άνθρωποι"}.get(encoding, "Все люди рождаются")
    (tmp_path / "a.txt").write_bytes(words.encode(encoding) * 50)
    with pytest.raises(UserError, match=r"a\.txt: is not text"):
        read(tmp_path)


def test_a_record_is_taken_whatever_its_other_fields_are(tmp_path: pathlib.Path) -> None:
    others = ["9" * 5000, "-" + "1" * 700, "1e999", "NaN", "-Infinity", '"\\ud800"', "[" * 500 + "]" * 500, '{"text": 5}', "null"]
    lines = [f'{{"text": "text {number}", "n": {other}}}' for number, other in enumerate(others)]
    twice = '{"text": "first", "text": "last"}'
    lone = '{"text": "lone \\ud83d surrogate, \\ud83d\\ude00"}'
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\r\n".join([*lines, twice, lone, '{"text": "a\u2028b\x85c"}']), newline="")
    assert texts(tmp_path) == [*(f"text {n}" for n in range(len(others))), "last", "lone  surrogate, \U0001f600", "a\nb\nc"]


def test_what_is_not_text_is_refused_and_a_few_strange_bytes_are_not(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise, zeros, russian = random.Random(0).randbytes(5000), b"ELF\0\0\0\1\0" * 99, ("Привет, мир. " * 99).encode("cp1251")
    for name, data in {"noise.txt": noise, "zeros.txt": zeros, "russian.txt": russian}.items():
        (tmp_path / name).write_bytes(data)
        what = rf"{name}: is not text \([\d,]+ of its [\d,]+ characters are not UTF-8, or control characters\); take"
        with pytest.raises(UserError, match=what):
            read(tmp_path / name)
    (tmp_path / "french.txt").write_bytes(("Une journée d'été, très courte. " * 1000).encode("latin-1"))
    assert len(read(tmp_path / "french.txt")) == 1
    (tmp_path / "one.txt").write_bytes(b"naive with \xef")
    read(tmp_path / "one.txt")
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode("latin-1") for text in ("été", "plain", "là")]
    (tmp_path / "records.jsonl").write_bytes(b"\n".join(lines))
    assert [document["text"] for document in read(tmp_path / "records.jsonl")] == ["\ufffdt\ufffd", "plain", "l\ufffd"]
    *texts, records = capsys.readouterr().err.splitlines()
    assert "records.jsonl: 3 places in 2 records are not UTF-8 and were read as U+FFFD; if" in records
    remedy = "; if that is too much: iconv -f ITS_ENCODING -t UTF-8"
    assert [line.partition(".txt: ")[2] for line in texts] == [
        f"4,000 places are not UTF-8 and were read as U+FFFD{remedy}", f"1 place is not UTF-8 and was read as U+FFFD{remedy}",
    ]  # fmt: skip


def test_an_empty_folder_and_an_unreadable_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no .txt, .*, .parquet .* file; a text of another ending is named itself"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("x")

    def denied(_: pathlib.Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "of_file", denied)
    with pytest.raises(UserError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        read(tmp_path)


def test_validation_files(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held_out(pattern: Any) -> list[str]:
        return [unit.name for unit in units_of(folder, validation_path=str(pattern)) if unit.held_out]

    assert held_out("b.txt") == held_out("b.*") == held_out(folder / "b.txt") == ["b.txt@0"]
    assert held_out("deep/*") == held_out(folder / "deep") == ["deep/c.jsonl@0"]
    monkeypatch.chdir(folder / "deep")
    assert held_out("*.jsonl") == ["deep/c.jsonl@0"]
    with pytest.raises(UserError, match="validation_path: nothing matches 'z.txt'"):
        held_out("z.txt")
    with pytest.raises(UserError, match="holds out all 3 files"):
        held_out(folder)


def test_each_name_of_a_list_of_validation_files_is_found_by_itself(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held_out(pattern: Any) -> list[str]:
        return [unit.name for unit in units_of(folder, validation_path=str(pattern)) if unit.held_out]

    assert held_out("b.txt,c.jsonl") == held_out(f" {folder / 'b.txt'} , deep/*,") == ["b.txt@0", "deep/c.jsonl@0"]
    monkeypatch.chdir(folder / "deep")
    assert held_out("c.jsonl, a.*") == ["a.txt@0", "deep/c.jsonl@0"]
    (folder / "Poe, Edgar.txt").write_text("a comma")
    assert held_out("Poe, Edgar.txt") == ["Poe, Edgar.txt@0"]
    with pytest.raises(UserError, match="validation_path: nothing matches 'z.txt', neither from .* nor among the 4 files"):
        held_out("b.txt,z.txt")
    with pytest.raises(UserError, match="validation_path = ',' names no file"):
        held_out(",")


def test_a_validation_file_in_a_folder_that_cannot_be_read(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lstat = os.lstat

    def denied(path: Any, **named: Any) -> Any:
        if pathlib.Path(path).name == "d.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return lstat(path, **named)

    monkeypatch.setattr(os, "lstat", denied)
    with pytest.raises(UserError, match=r"no: cannot be read \(Permission denied\); leave it out of corpus.validation_path or change its"):
        (folder / "no").mkdir()
        units_of(folder, validation_path=str(folder / "no" / "d.txt"))
