"""Files that are damaged, hostile or none at all: documents or one clear line, in bounded memory, and never a wait."""

import functools
import gzip
import io
import json
import os
import pathlib
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtiny.corpus import compressed, files
from lmtiny.errors import UserError

TEXT = "One line.\n\nTwo é 日 \U0001f600 lines here.\n" * 9
LINES = "".join(json.dumps({"text": f"line {number} é", "n": number, "x": [1, {"a": None}]}) + "\n" for number in range(9))


def texts(path: pathlib.Path, cut: str = "sections") -> list[str]:
    return [document["text"] for unit in files.units(str(path), "", files.Reading("text", 1024, cut)) for document in unit.read()]


@functools.cache
def whole(name: str) -> bytes:
    """Returns the bytes of a sound file of this name."""
    if name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table({"text": [*(f"row {number} é" for number in range(40)), None], "n": range(41), "nested": [[{"a": 1}]] * 41})
        written = io.BytesIO()
        parquet.write_table(table, written, compression=name.partition(".")[0])
        return written.getvalue()
    data = (LINES if ".jsonl" in name else TEXT).encode()
    if name.endswith(".gz"):
        return gzip.compress(data)
    return pytest.importorskip("pyarrow").Codec("zstd").compress(data, asbytes=True) if name.endswith(".zst") else data


KINDS = ("a.txt", "a.py", "a.jsonl", "a.txt.gz", "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst", "snappy.parquet", "zstd.parquet", "none.parquet")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.parametrize("name", KINDS)
def test_whatever_is_in_a_file_it_gives_documents_or_one_line(tmp_path: pathlib.Path, name: str, data: st.DataObject) -> None:
    content = bytearray(whole(name))
    change = data.draw(st.sampled_from(["flip", "cut", "put", "take", "other"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if change == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif change == "cut":
        del content[place:]
    elif change == "put":
        content[place:place] = data.draw(st.binary(min_size=1, max_size=30))
    elif change == "take":
        del content[place : place + data.draw(st.integers(1, 50))]
    else:
        content = bytearray(data.draw(st.binary(max_size=200)))
    file = tmp_path / name
    file.write_bytes(content)
    try:
        for text in texts(file):
            text.encode()
    except UserError as error:
        assert "\n" not in str(error) and name in str(error) and len(str(error)) < 600


def test_what_is_no_file_is_neither_opened_nor_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "nowhere.txt").symlink_to(tmp_path / "nothing.txt")
    (tmp_path / "folder.txt").mkdir()
    for name in ("pipe.txt", "*.txt"):
        with pytest.raises(UserError, match=r"is no file, but a link to nothing, a folder elsewhere or a device"):
            texts(tmp_path / name)
    for name in ("loop.txt", "nowhere.txt"):
        with pytest.raises(UserError, match=r"nothing matches|is no file"):
            texts(tmp_path / name)
    with pytest.raises(UserError, match=r"holds no \.txt"):
        texts(tmp_path / "folder.txt")
    (tmp_path / "folder.txt" / "a.txt").write_text("in a folder that is named like a file")
    (tmp_path / "folder.txt" / "around").symlink_to(tmp_path)
    assert texts(tmp_path / "folder.txt") == texts(tmp_path) == ["in a folder that is named like a file"]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_line_or_a_whole_text_is_read_up_to_a_bound(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(compressed, "MOST_BYTES", 1 << 20)

    def written(name: str, data: bytes) -> pathlib.Path:
        data = gzip.compress(data) if ending == ".gz" else data
        data = pytest.importorskip("pyarrow").Codec("zstd").compress(data, asbytes=True) if ending == ".zst" else data
        (tmp_path / f"{name}{ending}").write_bytes(data)
        return tmp_path / f"{name}{ending}"

    line = b'{"text": "%b"}\n' % (b"word " * 400_000)
    for lines in (line, line[:-1]):
        with pytest.raises(UserError, match=r"a\.jsonl.*:2: is longer than 1 MiB; every record is a line of its own"):
            texts(written("a.jsonl", b'{"text": "fine"}\n' + lines))
    text = written("a.txt", b"word " * 400_000)
    assert "".join(texts(text)).count("word") == 400_000
    for cut in ("file", "chapters"):
        with pytest.raises(UserError, match=r"a\.txt.*: is more than 1 MiB of text that is read as a whole; cut it into smaller files"):
            texts(text, cut)


def test_a_window_that_is_too_large_is_told_with_what_helps(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("pyarrow")
    frame = b"\x28\xb5\x2f\xfd\0" + bytes([18 << 3]) + (11 << 3 | 1).to_bytes(3, "little") + b"hello world"  # 256 MiB
    (tmp_path / "a.txt.zst").write_bytes(frame)
    with pytest.raises(UserError, match=r"too much memory for decoding; uncompress it first: zstd -d --long=31 "):
        texts(tmp_path)


def test_a_long_line_is_read_in_a_few_times_its_memory(tmp_path: pathlib.Path) -> None:
    text = "\n".join(f"line {number} of a long text \t" for number in range(100_000))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text, "n": 1}) + "\n")
    unit, *_ = files.units(str(tmp_path), "", files.Reading("text", 1024))
    tracemalloc.start()
    try:
        assert len([len(document["text"]) for document in unit.read()]) == 1
        assert tracemalloc.get_traced_memory()[1] < 6 * len(text)
    finally:
        tracemalloc.stop()


def test_a_file_that_fails_while_it_is_read_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (unit,) = files.units(str(tmp_path), "", files.Reading("text", 1024))

    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "_text_boundary", failing)
    with pytest.raises(UserError, match=r"a\.txt: cannot be read \(\[Errno 5\] Input/output error\)"):
        list(unit.read())
