"""What reading does to every text: line ends, control characters, blanks; and how a long one is cut into sections."""

import tracemalloc
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtiny.corpus import documents


@settings(deadline=None)
@given(st.text(alphabet="ab \n\u00e9\u65e5\U0001f600", min_size=1, max_size=400), st.integers(1, 60))
def test_sections_lose_nothing(text: str, size: int) -> None:
    found = list(documents.sections(text, size))
    assert "".join(found) == text
    assert all(0 < len(piece.encode()) <= max(size, 7) for piece in found)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = documents.clean(text)
    assert documents.clean(once) == once
    once.encode()


def test_cleaning_keeps_what_is_text() -> None:
    assert documents.clean("\n\n  in\u0301dent\tx\n\n\n- a \u00a0b\u200b\n") == "  in\u0301dent\tx\n\n\n- a \u00a0b\u200b"
    assert documents.clean("a\x00b\x1b[0m\x85\ufeff\ud800c\rd \t\n\te") == "ab[0m\nc\nd\n\te"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_whatever_ends_a_line_is_a_line_end(end: str) -> None:
    assert documents.clean(f"one  {end}two{end}{end}three{end}") == "one\ntwo\n\nthree"
    assert len(f"one{end}two".splitlines()) == 2


@pytest.mark.parametrize("separator", ["\x1c", "\x1d", "\x1e", "\x1f"])
def test_what_separates_fields_is_a_blank(separator: str) -> None:
    assert documents.clean(f"one{separator}two{separator}\nthree") == "one two\nthree"


def test_no_two_words_are_joined_by_what_is_taken_away() -> None:
    """What is taken away has no width; all that Python counts as white space is kept, or stands for a blank or a line end."""
    invisible = [one for one in map(chr, range(0x110000)) if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")]
    kept = [one for one in invisible if documents.clean(f"a{one}b") == f"a{one}b"]
    changed = {one: documents.clean(f"a{one}b") for one in set(invisible) - set(kept) if one.isspace()}
    gone = set(invisible) - set(kept) - set(changed)
    assert set(changed) == set("\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029") and set(changed.values()) == {"a b", "a\nb"}
    assert all(documents.clean(f"a{one}b") == "ab" for one in gone)
    assert {unicodedata.category(one) for one in gone - {"\ufeff"}} == {"Cc", "Cs"}


def test_soft_hyphens_and_what_has_no_width_stay() -> None:
    text = "soft\u00adhyphen zero\u200bwidth non\u200cjoiner joi\u200dner word\u2060joiner"
    assert documents.clean(text) == text
    assert documents.clean("zero\0 and \x7f, bell\a, escape\x1b, mark\ufeff") == "zero and , bell, escape, mark"


def test_blanks_at_line_ends_are_found_in_every_piece_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 7)
    text = "a \nbb\t \n\nccc ccc ccc  \n \nd" * 9
    assert documents.clean(text) == "\n".join(line.rstrip() for line in text.split("\n"))


def test_many_short_lines_are_cleaned_in_a_few_times_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 1 << 14)
    text = "a \n" * (1 << 17)
    tracemalloc.start()
    try:
        documents.clean(text)
        assert tracemalloc.get_traced_memory()[1] < 6 * len(text)
    finally:
        tracemalloc.stop()
