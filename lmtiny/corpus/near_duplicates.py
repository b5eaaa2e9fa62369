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

    A text of fewer words is one shingle; where a script is written without spaces, each character counts as a word.
    """
    words = _word_hashes(text)
    if len(words) < WORDS:
        words = np.concatenate([words, np.zeros(WORDS - len(words), np.uint64)])
    grams = np.zeros(len(words) - WORDS + 1, np.uint64)
    for place in range(WORDS):
        grams = grams * _MULTIPLIER + words[place : place + len(grams)]
    grams ^= grams >> np.uint64(31)
    grams = np.sort(grams * _MULTIPLIER)  # with the line below, twice as fast as np.unique
    return grams[np.concatenate([[True], grams[1:] != grams[:-1]])]


def _word_hashes(text: str) -> np.ndarray:
    """Returns a hash for each word: the sum of (a hash of the character) x (a constant to the power of its place)."""
    codes = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), np.uint32)
    if len(codes) and codes.max() > 0xFFFF:
        codes = np.where(codes > 0xFFFF, 0xE000 + codes % 0x1900, codes)  # into the private use area
    kinds = _kinds()[codes]
    before, after = np.zeros_like(kinds), np.zeros_like(kinds)
    before[1:], after[:-1] = kinds[:-1], kinds[1:]
    begins = np.flatnonzero((kinds == 2) | ((kinds == 1) & (before != 1)))
    ends = np.flatnonzero((kinds == 2) | ((kinds == 1) & (after != 1))) + 1
    # A running sum over the text gives every word's sum; dividing by the power of its begin makes it the word's own.
    powers, inverses = _powers(1 << max(16, len(codes).bit_length()))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(_characters()[codes] * powers[: len(codes)], out=sums[1:])
    hashes = (sums[ends] - sums[begins]) * inverses[begins]
    return hashes ^ (hashes >> np.uint64(32))


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


@functools.lru_cache(2)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the powers 0, 1, ... of an odd number modulo 2^64, and their inverses."""
    base = 0xD1342543DE82EF95
    bases = (np.full(count, number, np.uint64) for number in (base, pow(base, -1, 1 << 64)))
    powers, inverses = (np.cumprod(one, dtype=np.uint64) for one in bases)
    return powers, inverses
