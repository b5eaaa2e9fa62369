"""How often each piece of SPLIT_PATTERN occurs in megabytes of text at once: numpy in place of a regular expression.

Where a piece begins follows from what kind of character is there, and the one before it; beside that there are numbers, white space,
contractions, and a sign before a word, which each takes a look further.
"""

import functools
from collections import Counter
from collections.abc import Iterable

import numpy as np

from lmtiny.tokenizer.engine import characters

END = "\0"  # between two texts
_KINDS = 8
_END, _LETTER, _DIGIT, _SPACE, _WHITE, _LINE, _SIGN, _SIGNED_LINE = range(_KINDS)  # signed: directly behind a sign, which takes it
_ALWAYS, _NEVER, _IF_LAST_WHITE, _IF_NOT_ALONE = range(4)
_SHORT, _LONG = 8, 16  # bytes of the pieces that are held in one number, and in two


def add(counts: Counter[bytes], texts: Iterable[str]) -> None:
    """Adds to `counts` how often each piece of SPLIT_PATTERN occurs, as UTF-8, in the texts, in none of which is END."""
    text = END.join(["", "", *texts, "", ""])  # every character has two neighbours on both sides
    if text.isascii():
        content = np.frombuffer(text.encode(), np.uint8)
        codes, ends = content, np.arange(1, len(content) + 1)  # of each character, in bytes
    else:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        content = np.frombuffer(text.encode(), np.uint8)
        widths = 1 + (codes > 0x7F).view(np.uint8) + (codes > 0x7FF) + (codes > 0xFFFF)
        ends = np.cumsum(widths, dtype=np.int64)
    kinds = _kinds()[codes]
    begins = np.flatnonzero(_begins(codes, kinds))
    of_text = kinds[begins] != _END
    places = ends[begins - 1]  # a piece never begins at the first, which is END
    lengths = np.diff(places, append=len(content))
    _add_bytes(counts, content, places[of_text], lengths[of_text])


@functools.cache
def _kinds() -> np.ndarray:
    """Returns the kind of each character."""
    kinds = np.full(0x110000, _SIGN, np.uint8)
    for kind, pattern in ((_LETTER, r"\p{L}"), (_DIGIT, r"\p{N}"), (_WHITE, r"\s")):
        kinds[characters(pattern)] = kind
    for kind, text in ((_LINE, "\r\n"), (_SPACE, " "), (_END, END)):
        kinds[[ord(one) for one in text]] = kind
    return kinds


def familiar(text: str) -> str:
    """Returns `text` with an old character of the same kind in place of each beyond ASCII.

    Any version of Unicode splits it as the engine that encodes splits `text`.
    """
    if text.isascii():
        return text
    return _familiar()[np.frombuffer(text.encode("utf-32-le"), np.uint32)].tobytes().decode("utf-32-le")


@functools.cache
def _familiar() -> np.ndarray:
    """Returns the code point that stands for each character."""
    table = np.zeros(_KINDS, "<u4")
    for kind, character in ((_LETTER, "\u00e9"), (_DIGIT, "\u00b2"), (_WHITE, "\u3000"), (_SIGN, "\u2019")):
        table[kind] = ord(character)
    stands_for = table[_kinds()]
    themselves = [*range(0x80), ord("\u017f")]  # the last is an s in a contraction
    stands_for[themselves] = themselves
    return stands_for


@functools.cache
def _rules() -> np.ndarray:
    """Returns when a piece begins, by the kind of the character before (times _KINDS) and that of the character."""
    rules = np.full((_KINDS, _KINDS), _ALWAYS, np.uint8)
    for before, this in ((_LETTER, _LETTER), (_DIGIT, _DIGIT), (_SIGN, _SIGN), (_LINE, _LINE), (_END, _END)):
        rules[before, this] = _NEVER
    for before, this in ((_SPACE, _LETTER), (_WHITE, _LETTER), (_SPACE, _SIGN)):
        rules[before, this] = _NEVER
    rules[:, _SIGNED_LINE] = _NEVER
    rules[[[_SPACE], [_WHITE]], [_SPACE, _WHITE]] = _IF_LAST_WHITE
    rules[_SIGN, _LETTER] = _IF_NOT_ALONE
    return rules.reshape(-1)


def _begins(codes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Returns whether a piece begins at each character; `kinds` is changed."""
    _mark_lines(kinds)
    rules = np.zeros(len(kinds), np.uint8)
    rules[1:] = _rules()[kinds[:-1] * np.uint8(_KINDS) + kinds[1:]]
    begins = rules == _ALWAYS
    # \s+(?!\S): of white space in a row the last goes with what follows, but not where it is the end.
    white = np.flatnonzero(rules == _IF_LAST_WHITE)
    begins[white[~np.isin(kinds[white + 1], (_SPACE, _WHITE, _END))]] = True
    # [^\r\n\p{L}\p{N}]?+\p{L}+: one sign goes with the letters, but not where it goes with a space before it.
    lettered = np.flatnonzero(rules == _IF_NOT_ALONE)
    joined = ~np.isin(kinds[lettered - 2], (_SIGN, _SPACE))
    begins[lettered[~joined]] = True
    _begin_behind_contractions(codes, lettered[joined], begins)
    # \p{N}{1,2}
    digits = np.flatnonzero(kinds == _DIGIT)
    place_in_row = np.arange(len(digits))
    first = np.maximum.accumulate(np.where(np.diff(digits, prepend=-1) > 1, place_in_row, 0))
    begins[digits[(place_in_row - first) % 2 == 0]] = True
    return begins


def _mark_lines(kinds: np.ndarray) -> None:
    """Gives line ends in a row behind a sign their own kind, and white space with a line end somewhere behind it that of a line end."""
    lines = np.flatnonzero(kinds == _LINE)
    if not len(lines):
        return
    first = np.flatnonzero(np.diff(lines, prepend=-1) > 1)
    counts = np.diff(first, append=len(lines))
    before = kinds[lines[first] - 1]
    kinds[lines[np.repeat(before == _SIGN, counts)]] = _SIGNED_LINE  # [\r\n]*
    if np.isin(before, (_SPACE, _WHITE)).any():  # \s*[\r\n]
        white = np.flatnonzero((kinds == _SPACE) | (kinds == _WHITE))
        last = np.flatnonzero(np.diff(white, append=len(kinds) + 1) > 1)
        ended = kinds[white[last] + 1] == _LINE
        kinds[white[np.repeat(ended, np.diff(last, prepend=-1))]] = _LINE


def _begin_behind_contractions(codes: np.ndarray, letters: np.ndarray, begins: np.ndarray) -> None:
    """Marks in `begins` what follows '(?i:[sdmt]|ll|ve|re), letters too; `letters`: those behind a sign that goes with them."""
    letters = letters[codes[letters - 1] == ord("'")]
    one, two = codes[letters] | 32, codes[letters + 1] | 32  # in small letters
    begins[letters[np.isin(one, list(b"sdmt")) | (codes[letters] == ord("ſ"))] + 1] = True
    pairs = [(one == ord(pair[0])) & (two == ord(pair[1])) for pair in ("ll", "ve", "re")]
    begins[letters[np.logical_or.reduce(pairs)] + 2] = True


def _add_bytes(counts: Counter[bytes], content: np.ndarray, places: np.ndarray, lengths: np.ndarray) -> None:
    """Adds how often the bytes at each place, so many, occur; none of them has a byte of zero."""
    text = content.tobytes() + bytes(_SHORT)
    numbers = np.ndarray(len(content), "<u8", text, strides=(1,))  # the eight bytes at every place
    masks = np.array([(1 << 8 * length) - 1 for length in range(_SHORT + 1)], np.uint64)
    short = lengths <= _SHORT
    _add_runs(counts, np.sort(numbers[places[short]] & masks[lengths[short]]))
    long = np.flatnonzero((lengths > _SHORT) & (lengths <= _LONG))
    first, second = numbers[places[long]], numbers[places[long] + _SHORT] & masks[lengths[long] - _SHORT]
    order = np.lexsort((first, second))
    _add_runs(counts, first[order], second[order])
    longer = np.flatnonzero(lengths > _LONG)
    spans = zip(places[longer].tolist(), lengths[longer].tolist(), strict=True)
    counts.update(text[place : place + length] for place, length in spans)


def _add_runs(counts: Counter[bytes], *numbers: np.ndarray) -> None:
    """Adds how often each piece occurs, of their bytes in one column of numbers or more, equal ones neighbours."""
    changed = np.logical_or.reduce([column[1:] != column[:-1] for column in numbers])
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(numbers[0])), bool), changed]))
    pieces = np.stack([column[first] for column in numbers], axis=1).view(f"S{8 * len(numbers)}")[:, 0].tolist()
    times = np.diff(first, append=len(numbers[0])).tolist()
    for piece, count in zip(pieces, times, strict=True):
        counts[piece] = counts.get(piece, 0) + count
