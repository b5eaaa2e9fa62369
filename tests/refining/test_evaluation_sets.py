"""Which texts an evaluation set has: those that a reader of it would find, as documents are read."""

import json
import pathlib

import pytest

from lmtiny.errors import UserError
from lmtiny.refining import decontamination
from tests.refining.planted import prose


def items(folder: pathlib.Path, name: str, content: str | bytes) -> list[str]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(decontamination.items(folder / name))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("u2028.jsonl", '{"q": "first\u2028second\x85third"}\n', ["first\nsecond\nthird"]),
        ("mark.jsonl", '\ufeff{"q": "one two"}\r\n\r\n"three"\n', ["one two", "three"]),
        ("integer.jsonl", '{"q": "one", "n": ' + "9" * 5000 + "}\n", ["one"]),
        ("nested.jsonl", '{"b": ' + "[" * 900 + '"one"' + "]" * 900 + ', "a": {"x": "two", "y": ["three", 4]}}', ["one two three"]),
        ("lone.jsonl", '{"q": "lone \\ud800surrogate", "x": NaN}', ["lone surrogate"]),
        ("long.csv", "a,b\n" + "word " * 30_000 + ",c\n", ["a b", "word " * 30_000 + " c"]),
        ("lines.csv", 'a,"b\nc\u2028d"\r\ne,f\r\n', ["a b\nc\nd", "e f"]),
        ("cr.csv", "a,b\rc,d\r", ["a b", "c d"]),
        ("mark.csv", "\ufeffa,b\n", ["a b"]),
        ("marked.txt", "\ufeffone\vtwo", ["one\ntwo"]),
        ("questions.md", "one two", ["one two"]),
        ("blank.csv", ",\n \n", []),
    ],
)
def test_every_item_is_found(tmp_path: pathlib.Path, name: str, content: str, expected: list[str]) -> None:
    assert items(tmp_path, name, content) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '"one"\n{', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: not JSON"),
        ("a.jsonl", '"one"'.encode("utf-16"), r"a\.jsonl: is UTF-16, not UTF-8"),
        ("a.csv", "a,b\n".encode("utf-32"), r"a\.csv: is UTF-32, not UTF-8"),
        ("a.csv", bytes(range(128, 256)) * 9, r"a\.csv: is not text"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: pathlib.Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        items(tmp_path, name, content)


def test_a_document_with_an_item_of_such_a_set_goes(make_corpus, refined, tmp_path) -> None:
    pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
    words = prose(5, 3).split()
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "a.jsonl").write_text("\ufeff" + json.dumps({"q": "\u2028".join(words) + "\ud800"}, ensure_ascii=True))
    (tmp_path / "sets" / "b.csv").write_text(f'"{prose(6, 3)}",{"x" * 200_000}\n')
    texts = [prose(seed, 3) for seed in range(4, 8)]
    documents, _ = refined(make_corpus(web=texts), decontaminate=str(tmp_path / "sets"))
    assert [document["text"] for document in documents] == [texts[0], texts[3]]


def test_texts_without_a_letter_or_digit_are_no_duplicates(make_corpus, refined) -> None:
    pytest.importorskip("datatrove", reason="needs the extra corpus: pip install 'lmtiny[corpus]'")
    texts = ["* * * * * * *", "- - - - - - -", "?! ?! ?! ?! ?! ?! ?!", prose(1, 3), prose(1, 3)]
    documents, _ = refined(make_corpus(web=texts), deduplicate=True)
    assert [document["text"] for document in documents] == texts[:4]
