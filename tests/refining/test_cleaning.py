"""Cleaning: prose is unwrapped and nothing else is, Gutenberg's own words go, and doing it twice is doing it once."""

import pathlib
import re
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtiny.refining.gutenberg import strip
from lmtiny.refining.unwrap import unwrap

PROSE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom--the age of foolishness, it was the well-known "
    "epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness, it was the spring "
    "of hope, it was the winter of despair; we had everything before us."
)


@pytest.mark.parametrize("width", [60, 65, 72, 79])
@pytest.mark.parametrize("hyphens", [True, False])
def test_wrapped_prose_becomes_what_it_was(width: int, hyphens: bool) -> None:
    paragraphs = [PROSE, PROSE[40:].capitalize(), "Short."]
    wrapped = [textwrap.fill(one, width, break_on_hyphens=hyphens, break_long_words=False) for one in paragraphs]
    assert unwrap("\n\n\n".join(wrapped)) == "\n\n\n".join(paragraphs)


KEPT = {
    "verse": """\
Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date.""",
    "verse of long lines": """\
I celebrate myself, and sing myself, and what I assume you shall assume,
For every atom belonging to me as good belongs to you, and I loafe too,
I loafe and invite my soul at ease observing a spear of summer grass.""",
    "verse without capitals": """\
the wind that came over the hill in the evening was cold
and it went through the house and the barn
and over the roofs of the sleeping town to the sea
where nothing was left for it to do""",
    "narrow": """\
a list of
small things
that were
in the box""",
    "indented verse": """\
and he sang to them all in a voice that was low, and he sang them a song
    of the sea, and the ships upon it, and of those who had gone with them,
    never to come home.""",
    "table": """\
name             population of it in the year     area of the whole
France           sixty-eight million and some     551,695 of them
Spain            forty-eight million and some     505,990 of them""",
    "rows": """\
| name of the thing that is sold here | the price that it has in the shop |
| a | b that is there and a longer word |""",
    "code": """\
def frobnicate(first_argument, second_argument, third_argument_of_all):
    return first_argument + second_argument * third_argument_of_all_of_them""",
    "list": """\
- the first thing to be done is to look at all that there is in here
- the second thing is another one of those that take a whole line""",
    "numbered": """\
1. the first thing to be done is to look at all that there is in here
2. the second thing is another one of those that take a whole line""",
    "play": """\
FIRST CITIZEN:
Before we proceed any further, hear me speak of what there is to say in this
place, and then do as you will.""",
    "TeX": """\
The function $f(x) = x^2$ has the derivative that is known to everybody who has
read \\cite{thompson} and is told in \\S2 of it, with its differential being what
you would expect.""",
    "headings": """\
CHAPTER I. DOWN THE RABBIT-HOLE
CHAPTER II. THE POOL OF TEARS
CHAPTER III. A CAUCUS-RACE AND A LONG TALE""",
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_lines_that_mean_something_stay(text: str) -> None:
    assert unwrap(text) == text


pieces = st.sampled_from([*KEPT.values(), *(textwrap.fill(PROSE, width) for width in (52, 66, 80)), "", " ", "word", "a--", "b-", "  c"])
anything = st.text(st.sampled_from("ab-—. \n\tA0|\\"), max_size=300)


@settings(max_examples=150, deadline=None)
@given(st.one_of(anything, st.lists(st.one_of(pieces, anything), max_size=6).map("\n\n".join), st.lists(pieces, max_size=6).map("\n".join)))
def test_no_word_is_changed_and_twice_is_once(text: str) -> None:
    once = unwrap(text)
    assert "".join(once.split()) == "".join(text.split())
    assert re.findall(r"\w+", once) == re.findall(r"\w+", text)
    assert unwrap(once) == once
    assert strip(strip(text)) == strip(text)


def test_the_books_are_unwrapped_and_the_plays_are_not(test_data: pathlib.Path) -> None:
    novel = (test_data / "books/1342.txt").read_text(encoding="utf-8")[:200_000].replace("\r\n", "\n")
    assert unwrap(novel).count("\n") < 0.4 * novel.count("\n")
    assert re.findall(r"\w+", unwrap(novel)) == re.findall(r"\w+", novel)
    for name in ("tinyshakespeare.txt", "calculus_made_easy.tex"):
        text = (test_data / name).read_text(encoding="utf-8", errors="replace")
        assert unwrap(text) == text


HEADER = "The Project Gutenberg EBook of Alice, by Lewis Carroll\n\nThis eBook is for the use of anyone anywhere.\n\n"
START = "*** START OF THIS PROJECT GUTENBERG EBOOK ALICE ***\n"
END = "\n\n*** END OF THIS PROJECT GUTENBERG EBOOK ALICE ***\n\n"
LICENCE = "Section 1. General Terms of Use and Redistributing Project Gutenberg-tm electronic works\n\nThe Project Gutenberg-tm trademark."
BOOK = "ALICE\n\nAlice was beginning to get very tired of sitting by her sister.\n\nThe end of it."


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (HEADER + START + BOOK + END + LICENCE, BOOK),
        (HEADER + START.replace("THIS", "THE") + "\n\nProduced by A. Hwang\nand others\n\n" + BOOK + END + LICENCE, BOOK),
        (HEADER + "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*END*\n" + BOOK + "\n\nEnd of Project Gutenberg's Alice\n", BOOK),
        (BOOK + END + LICENCE, BOOK),
        (LICENCE, ""),
        (BOOK, BOOK),
        (BOOK + "\n\nHe had read about Project Gutenberg in the paper.", BOOK + "\n\nHe had read about Project Gutenberg in the paper."),
    ],
)
def test_gutenberg_s_own_words_go(text: str, left: str) -> None:
    assert strip(text).strip() == left
