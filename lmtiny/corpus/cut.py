"""Where one text becomes several documents: its chapters, its paragraphs or its lines. The pieces joined are the text."""

import re
from collections.abc import Iterator

_DIVISIONS = ("chapter", "book", "part", "volume", "letter", "stave", "canto", "act")
_NUMBERS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen",
    "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
)  # fmt: skip


def _any_of(words: tuple[str, ...]) -> str:
    return "|".join(form for word in words for form in (word.upper(), word.capitalize()))


_NUMBER = rf"(?:\d{{1,4}}|[IVXLCDM]{{1,9}}|(?:THE |The )?(?:{_any_of(_NUMBERS)}))"
_HEADING = re.compile(rf"(?:\A|(?<=\n\n))[ \t]*(?:{_any_of(_DIVISIONS)})[ \t]+{_NUMBER}(?:[ \t]*[.:—–-][^\n]{{0,80}})?[ \t]*(?=\n|\Z)")


def chapters(text: str) -> Iterator[str]:
    """Yields the text before the first heading, if any, then each heading with the text that follows it.

    A heading is a line of its own, at the beginning or behind a blank line: CHAPTER, BOOK, PART, VOLUME, LETTER, STAVE,
    CANTO or ACT, in capitals or with a capital first letter; then a number in digits ("12"), in Roman capitals ("XII")
    or in words up to twenty ("ONE", "The First"); then nothing, or one of . : - and a title of at most 80 characters. A
    heading with nothing before the next one ("PART I", a table of contents) begins the piece of that next one.
    """
    start, end_of_heading = 0, 0
    for heading in _HEADING.finditer(text):
        if text[end_of_heading : heading.start()].strip():
            yield text[start : heading.start()]
            start = heading.start()
        end_of_heading = heading.end()
    if text[start:]:
        yield text[start:]


def paragraphs(text: str) -> Iterator[str]:
    """Yields the pieces between blank lines, each with the line ends behind it."""
    yield from _behind(r"\n\n+", text)


def lines(text: str) -> Iterator[str]:
    """Yields each line, with the line ends behind it."""
    yield from _behind(r"\n+", text)


def _behind(gap: str, text: str) -> Iterator[str]:
    start = 0
    for found in re.finditer(gap, text):
        yield text[start : found.end()]
        start = found.end()
    if text[start:]:
        yield text[start:]
