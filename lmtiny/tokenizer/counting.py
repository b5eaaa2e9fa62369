"""Text -> how often each piece of the split occurs in it, within memory that does not grow with the text."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from lmtiny.tokenizer.vocabulary import SPLIT_PATTERN

MAX_PIECES = 2_000_000  # different ones at a time; a few billion bytes of English have about as many
MAX_WORDS = 1_000_000  # different ones before they are split into pieces

# SPLIT_PATTERN for text without other letters, digits and spaces than ASCII's: Python's own engine runs it in half the time.
# For re.ASCII: \s is only what it is there.
ASCII_SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\nA-Za-z0-9]?+[A-Za-z]+|[0-9]{1,2}| ?[^\sA-Za-z0-9]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
# What else prose has: dashes, quotes, dots, currencies; no letter, no digit, no space.
_SIGNS = "\u00a1-\u00a9\u00ab\u00ac\u00ae-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u00d7\u00f7\u2010-\u2027\u2030-\u205e"
_NEITHER = re.compile(f"[^\x00-\x7f{_SIGNS}]")
_BLOCK = 1 << 10  # characters
_BEHIND_A_LETTER = re.compile("[A-Za-z](?=[ \n])")
_NO_SPACE = "\x01"  # in front of a word with no space before it
# Where white space is one space, or line ends, a space begins a piece and a line end ends one, whatever stands around.
_MORE_SPACE = ("  ", "\n ", "\t", "\r", "\x0b", "\x0c", _NO_SPACE)
_OTHER_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


def piece_counts(texts: Iterable[str]) -> Counter[str]:
    """Returns how often each piece of SPLIT_PATTERN occurs; above MAX_PIECES different ones, the rarest so far are forgotten."""
    import regex  # here, not above: slow to import, and only needed by who learns

    any_text, ascii_text = regex.compile(SPLIT_PATTERN).findall, re.compile(ASCII_SPLIT, re.ASCII).findall

    def pieces(text: str) -> list[str]:
        return (any_text if _NEITHER.search(text) else ascii_text)(text)

    counts: Counter[str] = Counter()
    words: Counter[str] = Counter()  # most of a text is words that were seen before, which need not be split again
    for text in texts:
        for block in split_blocks(text):
            if any(space in block for space in _MORE_SPACE) or (not block.isascii() and _OTHER_SPACE.search(block)):
                counts.update(pieces(block))
            else:
                words.update(_words(block))
        if len(words) > MAX_WORDS or len(counts) > MAX_PIECES:
            _add_pieces(counts, words, pieces)
            counts = commonest(counts, MAX_PIECES // 2) if len(counts) > MAX_PIECES else counts
    _add_pieces(counts, words, pieces)
    return commonest(counts, MAX_PIECES) if len(counts) > MAX_PIECES else counts


def _words(block: str) -> list[str]:
    """Returns the block cut before every space, which is left out, and behind the last of line ends in a row."""
    return f"{_NO_SPACE}{block}".replace("\n", f"\n {_NO_SPACE}").replace(f" {_NO_SPACE}\n", "\n").split(" ")


def _add_pieces(counts: Counter[str], words: Counter[str], pieces: Callable[[str], list[str]]) -> None:
    """Adds to `counts` the pieces of the words, and empties those."""
    for word, count in words.items():
        text = word[1:] if word.startswith(_NO_SPACE) else f" {word}"
        for piece in (text,) if word.isascii() and word.isalpha() else pieces(text):
            counts[piece] = counts.get(piece, 0) + count
    words.clear()


def split_blocks(text: str) -> Iterator[str]:
    """Yields `text` in blocks of about 1,024 characters, cut only where SPLIT_PATTERN cuts too, whatever stands around: behind a word."""
    start = 0
    while len(text) - start > _BLOCK and (found := _BEHIND_A_LETTER.search(text, start + _BLOCK)):
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def commonest(counts: Counter[str], most: int) -> Counter[str]:
    """Returns `counts` without the pieces of the lowest counts, so many of those that at most `most` are left."""
    pieces_of_count = Counter(counts.values())
    left, floor = len(counts), 0
    while left > most:
        floor += 1
        left -= pieces_of_count[floor]
    return Counter({piece: count for piece, count in counts.items() if count > floor})
