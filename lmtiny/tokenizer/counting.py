"""Text -> how often each piece of the split occurs in it, within memory that does not grow with the text."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

from lmtiny.tokenizer import split_counts
from lmtiny.tokenizer.vocabulary import SPLIT_PATTERN

MAX_PIECES = 2_000_000  # different ones at a time; a few billion bytes of English have about as many

_BLOCK = 1 << 20  # characters counted at once; with fewer, common pieces are looked up more often
Piece = TypeVar("Piece", str, bytes)
_BEHIND_A_LETTER = re.compile("[A-Za-z](?=[ \n])")


def piece_counts(texts: Iterable[str]) -> Counter[str]:
    """Returns how often each piece of SPLIT_PATTERN occurs; above MAX_PIECES different ones, the rarest so far are forgotten."""
    counts: Counter[bytes] = Counter()
    for gathered in _gathered(texts):
        split_counts.add(counts, (text for text in gathered if split_counts.END not in text))
        _add_one_by_one(counts, (text for text in gathered if split_counts.END in text))
        if len(counts) > MAX_PIECES:
            counts = commonest(counts, MAX_PIECES // 2)
    return Counter({piece.decode(): count for piece, count in counts.items()})


def _add_one_by_one(counts: Counter[bytes], texts: Iterable[str]) -> None:
    import regex  # here, not above: slow to import

    for text in texts:
        pieces = regex.finditer(SPLIT_PATTERN, split_counts.familiar(text))
        counts.update(text[piece.start() : piece.end()].encode() for piece in pieces)


def _gathered(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields the texts, many small ones or parts of large ones at a time."""
    gathered, size = [], 0
    for text in texts:
        for block in split_blocks(text):
            gathered.append(block)
            size += len(block)
            if size >= _BLOCK:
                yield gathered
                gathered, size = [], 0
    yield gathered


def split_blocks(text: str) -> Iterator[str]:
    """Yields `text` in blocks of about 2^20 characters, cut only where SPLIT_PATTERN cuts too, whatever stands around: behind a word."""
    start = 0
    while len(text) - start > _BLOCK and (found := _BEHIND_A_LETTER.search(text, start + _BLOCK)):
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def commonest(counts: Counter[Piece], most: int) -> Counter[Piece]:
    """Returns `counts` without the pieces of the lowest counts, so many of those that at most `most` are left."""
    pieces_of_count = Counter(counts.values())
    left, floor = len(counts), 0
    while left > most:
        floor += 1
        left -= pieces_of_count[floor]
    return Counter({piece: count for piece, count in counts.items() if count > floor})
