"""The order of rows that shuffles each epoch anew, asked for many rows at once.

It is that of grain's `MapDataset.range(count).seed(seed).shuffle().repeat()`, which answers for one row at a time and lets go
of Python's GIL for each: threads that read rows spend most of their time handing it to each other (docs/log.md).
"""

import functools
import math

import numpy as np

SMALLEST = 16  # bits that are permuted at least: with fewer, order shows through


def rows_at(places: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns int64[...]: which of `count` rows stand at `places` of an endless sequence of shuffled epochs.

    A row comes once an epoch. The same rows as grain's, but where `count` is 2**16 + 1, 2**18 + 1 and so on, for which grain
    gives one row twice and another never.
    """
    epochs, inner = np.divmod(places, count)
    rows = np.empty_like(inner)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        rows[here] = _permuted(inner[here], count, (_seed_of_shuffle(seed) + epoch) % 2**32)
    return rows


def _seed_of_shuffle(seed: int) -> int:
    return int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])  # 1: grain's shuffle is one transformation behind its source


def _permuted(places: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns int64[...]: the rows at these places of one epoch, whose seed this is."""
    bits = max(SMALLEST, 2 * math.ceil((count - 1).bit_length() / 2))  # an even number of them: two words
    if bits == SMALLEST:
        return _small_permutation(count, seed)[places]
    # Cycle walking: what is encrypted to a number past the last row is encrypted again (Black and Rogaway 2002, "Ciphers with
    # arbitrary finite domains").
    rows = _encrypted(places.astype(np.uint64), seed, bits)
    while len(past := np.flatnonzero(rows >= count)):
        rows[past] = _encrypted(rows[past], seed, bits)
    return rows.astype(np.int64)


@functools.lru_cache(maxsize=16)  # sources that are mixed are each in an epoch of their own
def _small_permutation(count: int, seed: int) -> np.ndarray:
    """Returns int64[count]: the walks of all places at once; of few rows they may be thousands of steps long."""
    everything = np.arange(1 << SMALLEST)
    encrypted = _encrypted(everything.astype(np.uint64), seed, SMALLEST).astype(np.int64)
    stop = np.where(everything < count, everything, encrypted)
    for _ in range(SMALLEST):  # each time twice as far along the walk
        stop = stop[stop]
    return stop[encrypted[:count]]


def _encrypted(numbers: np.ndarray, seed: int, bits: int) -> np.ndarray:
    """Returns uint64[...], numbers of so many bits permuted, by rounds of Simon (Beaulieu et al. 2013, eprint.iacr.org/2013/404)."""
    half = bits // 2
    mask = np.uint64((1 << half) - 1)

    def mixed(word: np.ndarray) -> np.ndarray:
        once, twice, eight = (((word << turn) | (word >> (half - turn))) & mask for turn in (1, 2, 8))
        return (once & eight) ^ twice

    left, right = numbers >> half, numbers & mask
    keys = (_keys(seed) & mask).reshape(-1, 2)
    for first, second in keys:
        left = left ^ mixed(right) ^ first
        right = right ^ mixed(left) ^ second
    return (left << half) | right


@functools.lru_cache(maxsize=16)
def _keys(seed: int) -> np.ndarray:
    """Returns uint64[4] of 32 bits: what C++'s `std::seed_seq{seed}` generates (ISO C++, [rand.util.seedseq]) as four words."""
    keys, word = [0x8B8B8B8B] * 4, 2**32 - 1
    for here, added in enumerate((1, 1 + seed, 2, 3)):
        next_one, opposite, before = (here + 1) % 4, (here + 2) % 4, (here + 3) % 4
        mixed = keys[here] ^ keys[next_one] ^ keys[before]
        mixed = 1664525 * (mixed ^ mixed >> 27)
        keys[next_one] = keys[next_one] + mixed & word
        keys[opposite] = keys[opposite] + mixed + added & word
        keys[here] = mixed + added & word
    for here in range(4):
        next_one, opposite, before = (here + 1) % 4, (here + 2) % 4, (here + 3) % 4
        mixed = keys[here] + keys[next_one] + keys[before] & word
        mixed = 1566083941 * (mixed ^ mixed >> 27) & word
        keys[next_one] ^= mixed
        keys[opposite] ^= mixed - here & word
        keys[here] = mixed - here & word
    return np.array(keys, np.uint64)
