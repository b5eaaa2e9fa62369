"""Near-duplicates of held-out documents, found exactly: word 5-grams, an inverted index, Jaccard similarity.

Jaccard similarity of the sets of word n-grams ("shingles"): Broder, "On the resemblance and containment of documents",
1997. No MinHash: only the held-out side is indexed, which is small enough to be compared with in full.
"""

import functools
import pathlib
from collections.abc import Iterable

import numpy as np

from lmtiny import files

WORDS = 5  # in a shingle
MOST_BITS = 26  # of a key that are looked at first: 64 MiB
BLOCK = 1 << 16  # characters that are hashed at once: a power and its inverse for each are kept, and eight numbers made
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplication is a bijection of 64-bit integers


class Index:
    """The shingles of a set of documents: `keys` (sorted) and, beside each, the `owners` document; `sizes` by document."""

    def __init__(self, keys: np.ndarray, owners: np.ndarray, sizes: np.ndarray) -> None:
        self.keys, self.owners, self.sizes = keys, owners, sizes
        # Whether a key begins with these bits: most shingles of other documents are told by one look, and need no search.
        self._unused_bits = np.uint64(64 - min(MOST_BITS, len(keys).bit_length() + 4))
        self._begins = np.zeros(1 << (64 - int(self._unused_bits)), bool)
        self._begins[keys >> self._unused_bits] = True

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Index":
        sets = [shingles(text) for text in texts]
        sizes = np.array([len(one) for one in sets], np.int64)
        keys = np.concatenate([np.empty(0, np.uint64), *sets])
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], np.repeat(np.arange(len(sets), dtype=np.int32), sizes)[order], sizes)

    def save(self, folder: pathlib.Path) -> None:
        """Writes the index as three arrays, which `load` maps into memory: processes share them."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("keys", "owners", "sizes"):
            files.write_array(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Index":
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("keys", "owners", "sizes")))

    def similarity(self, text: str) -> float:
        """Returns the highest Jaccard similarity of the text with an indexed document, 0 to 1."""
        own = shingles(text)
        likely = own[self._begins[own >> self._unused_bits]]
        first = np.searchsorted(self.keys, likely, "left")
        counts = np.searchsorted(self.keys, likely, "right") - first
        if not counts.any():
            return 0.0
        first, counts = first[counts > 0], counts[counts > 0]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        documents, shared = np.unique(self.owners[np.repeat(first, counts) + within], return_counts=True)
        return float((shared / (len(own) + self.sizes[documents] - shared)).max())


def shingles(text: str) -> np.ndarray:
    """Returns the sorted distinct 64-bit hashes of the text's word 5-grams, case and punctuation aside.

    A text of fewer words is one shingle, one without any has none; where a script is written without spaces, each
    character counts as a word.
    """
    words = _word_hashes(text)
    if not len(words):
        return words
    if len(words) < WORDS:
        words = np.concatenate([words, np.zeros(WORDS - len(words), np.uint64)])
    grams = np.zeros(len(words) - WORDS + 1, np.uint64)
    for place in range(WORDS):
        grams *= _MULTIPLIER
        grams += words[place : place + len(grams)]
    grams ^= grams >> np.uint64(31)
    grams *= _MULTIPLIER
    grams.sort()  # with the line below, twice as fast as np.unique
    return grams[np.concatenate([[True], grams[1:] != grams[:-1]])]


def _word_hashes(text: str) -> np.ndarray:
    """Returns a hash for each word: the sum of (a hash of the character) x (a constant to the power of its place).

    A running sum over the text gives every word's sum; dividing by the power of its begin makes it the word's own.
    """
    text = text.lower()
    powers, inverses = _powers()
    # What lies before the block: its power, the inverse of that, its sum, the kind of its last character, and of a word
    # that has not ended yet the sum before it and the inverse at its begin.
    power, inverse, total, kind = powers[:1], inverses[:1], np.zeros(1, np.uint64), 0
    open_sums, open_inverses = (np.empty(0, np.uint64) for _ in range(2))
    hashes = [open_sums]
    for start in range(0, len(text), BLOCK):
        # One character more than the block, since a word ends where the next character is of another kind.
        codes = np.frombuffer(text[start : start + BLOCK + 1].encode("utf-32-le", "surrogatepass"), np.uint32)
        if codes.max() > 0xFFFF:
            codes = np.where(codes > 0xFFFF, 0xE000 + codes % 0x1900, codes)  # into the private use area
        kinds = np.concatenate([np.array([kind], np.uint8), _kinds()[codes], np.zeros(1, np.uint8)])
        count = min(BLOCK, len(codes))
        before, own, after = kinds[:count], kinds[1 : count + 1], kinds[2 : count + 2]
        begins = np.flatnonzero((own == 2) | ((own == 1) & (before != 1)))
        ends = np.flatnonzero((own == 2) | ((own == 1) & (after != 1))) + 1
        sums = np.concatenate([total, total + power * np.cumsum(_characters()[codes[:count]] * powers[:count])])
        open_sums = np.concatenate([open_sums, sums[begins]])
        open_inverses = np.concatenate([open_inverses, inverse * inverses[begins]])
        found = (sums[ends] - open_sums[: len(ends)]) * open_inverses[: len(ends)]
        hashes.append(found ^ (found >> np.uint64(32)))
        open_sums, open_inverses = open_sums[len(ends) :], open_inverses[len(ends) :]
        power, inverse, total, kind = power * powers[-1:], inverse * inverses[-1:], sums[-1:], own[-1]
    return np.concatenate(hashes)


@functools.cache
def _kinds() -> np.ndarray:
    """Returns, for each 16-bit character, 0: between words, 1: part of a word, 2: a word by itself."""
    kinds = np.array([chr(code).isalnum() for code in range(0x10000)], np.uint8)
    for first, last in ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF)):
        kinds[first : last + 1] *= 2  # Thai and Lao, Burmese, Khmer, kana, Chinese
    kinds[0xE000:0xF900] = 1  # private use: stands for all that lies above
    return kinds


@functools.cache
def _characters() -> np.ndarray:
    mixed = np.arange(1, 0x10001, dtype=np.uint64) * _MULTIPLIER
    return (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIER


@functools.cache
def _powers() -> np.ndarray:
    """Returns the powers 0, 1, ... BLOCK of an odd number modulo 2^64, and in a second row their inverses."""
    base = 0xD1342543DE82EF95
    factors = np.ones((2, BLOCK + 1), np.uint64)
    factors[0, 1:], factors[1, 1:] = base, pow(base, -1, 1 << 64)
    return np.cumprod(factors, axis=1, dtype=np.uint64)
