"""Text -> how often each piece of the split occurs in it, within memory that does not grow with the text."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from lmtiny.tokenizer.vocabulary import SPLIT_PATTERN

MAX_PIECES = 2_000_000  # different ones at a time; a few billion bytes of English have about as many

# SPLIT_PATTERN for text without other letters, digits and spaces than ASCII's: Python's own engine runs it in half the time.
# For re.ASCII: \s is only what it is there.
ASCII_SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\nA-Za-z0-9]?+[A-Za-z]+|[0-9]{1,2}| ?[^\sA-Za-z0-9]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
# What else prose has: dashes, quotes, dots, currencies; no letter, no digit, no space.
_SIGNS = "\u00a1-\u00a9\u00ab\u00ac\u00ae-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u00d7\u00f7\u2010-\u2027\u2030-\u205e"
_NEITHER = re.compile(f"[^\x00-\x7f{_SIGNS}]")
_BLOCK = 1 << 12  # characters
_BEHIND_A_LETTER = re.compile("[A-Za-z](?=[ \n])")


def piece_counts(texts: Iterable[str]) -> Counter[str]:
    """Returns how often each piece of SPLIT_PATTERN occurs; above MAX_PIECES different ones, the rarest so far are forgotten."""
    import regex  # here, not above: slow to import, and only needed by who learns

    any_text, ascii_text = regex.compile(SPLIT_PATTERN).findall, re.compile(ASCII_SPLIT, re.ASCII).findall
    counts: Counter[str] = Counter()
    for text in texts:
        for block in split_blocks(text):
            counts.update((any_text if _NEITHER.search(block) else ascii_text)(block))
            if len(counts) > MAX_PIECES:
                counts = commonest(counts, MAX_PIECES // 2)
    return counts


def split_blocks(text: str) -> Iterator[str]:
    """Yields `text` in blocks of about 4,096 characters, cut only where SPLIT_PATTERN cuts too, whatever stands around: behind a word."""
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
