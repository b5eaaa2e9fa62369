"""Chapters and paragraphs: found where a reader would find them, and never a word lost."""

import pathlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtiny.corpus import cut, files

PIECES = ["CHAPTER I", "Chapter 2. In Which", "PART THE FIRST", "Act V", "\n", "\n\n", "\n\n\n", "word ", "  ", "BOOK"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_the_pieces_joined_are_the_text(text: str) -> None:
    for cutter in (cut.chapters, cut.paragraphs, cut.lines):
        pieces = list(cutter(text))
        assert "".join(pieces) == text and all(pieces)


@pytest.mark.parametrize(
    "heading",
    ["CHAPTER I", "Chapter 12", "CHAPTER XIV. The End", "BOOK ONE: 1805", "PART THE SECOND", "Volume III", "Letter 4", "STAVE ONE.",
     "  CHAPTER 3  ", "ACT V", "Canto I — Of Woods", "Part Two", "CHAPTER 9. " + "x" * 79],
)  # fmt: skip
def test_a_heading_begins_a_chapter(heading: str) -> None:
    text = f"Front matter.\n\n{heading}\n\nIt was a dark night.\n\nIt rained."
    assert list(cut.chapters(text)) == ["Front matter.\n\n", text[15:]]


@pytest.mark.parametrize(
    "line",
    ["chapter I", "CHAPTER", "CHAPTER I of the book", "Chapters 1", "PART ONE of two", "See CHAPTER I", "CHAPTER 12345", "Part mild",
     "Chapter I, where", "CHAPTER 9. " + "x" * 81],
)  # fmt: skip
def test_other_lines_do_not(line: str) -> None:
    assert len(list(cut.chapters(f"Front matter.\n\n{line}\n\nIt was a dark night."))) == 1
    assert len(list(cut.chapters(f"It is in\nCHAPTER I\n{line}"))) == 1  # not behind a blank line


def test_headings_without_text_begin_the_next_chapter() -> None:
    text = "Title\n\nCHAPTER I\n\nCHAPTER II\n\nPART I\n\nCHAPTER I\n\nText one.\n\nCHAPTER II\n\nText two.\n\nCHAPTER III"
    assert [piece.strip().replace("\n\n", "|") for piece in cut.chapters(text)] == [
        "Title", "CHAPTER I|CHAPTER II|PART I|CHAPTER I|Text one.", "CHAPTER II|Text two.", "CHAPTER III",
    ]  # fmt: skip


def documents(path: pathlib.Path, how: str) -> list[str]:
    units = files.units(str(path), "", files.Reading("text", 1024, how))
    return [document["text"] for unit in units for document in unit.read()]


def test_each_way_to_cut_a_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paragraphs = "\n\n".join(f"Paragraph {n} " + "word " * 30 + "end." for n in range(9))
    chapters = [f"CHAPTER {number}\n\n{paragraphs}" for number in (1, 2, 3)]
    text = "\n\n\n".join(chapters)
    (tmp_path / "a.txt").write_text(text.replace("\n", "\r\n"))
    assert documents(tmp_path, "file") == [text]
    assert documents(tmp_path, "chapters") == chapters
    assert documents(tmp_path, "blank lines") == re.split(r"\n\n+", text)
    assert documents(tmp_path, "lines") == re.split(r"\n+", text)
    assert "".join("".join(documents(tmp_path, "sections")).split()) == "".join(text.split())
    found = {how: documents(tmp_path, how) for how in ("file", "chapters", "blank lines", "lines")}
    monkeypatch.setattr(files, "RANGE_BYTES", 700)
    assert {how: documents(tmp_path, how) for how in found} == found
    prints = [files.units(str(tmp_path), "", files.Reading("text", 1024, how))[0].fingerprint for how in (*found, "sections")]
    assert len(set(prints)) == 5


def test_the_articles_of_a_file_of_one_a_line(test_data: pathlib.Path) -> None:
    articles = documents(test_data / "wiki_demo.txt", "lines")
    assert len(articles) == 30 and len(documents(test_data / "wiki_demo.txt", "blank lines")) == 1
    assert sum(map(len, articles)) + 29 == len((test_data / "wiki_demo.txt").read_text(encoding="utf-8").strip())


@pytest.mark.parametrize(("number", "chapters"), [("11", 12), ("1342", 61), ("1260", 38)])
def test_the_chapters_of_real_books(test_data: pathlib.Path, number: str, chapters: int) -> None:
    text = (test_data / "books" / f"{number}.txt").read_text(encoding="utf-8").replace("\r\n", "\n")
    pieces = list(cut.chapters(text))
    assert "".join(pieces) == text
    assert sum(piece.lstrip().upper().startswith("CHAPTER") for piece in pieces) == chapters
