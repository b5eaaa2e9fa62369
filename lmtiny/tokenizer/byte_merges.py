"""Byte-pair encoding in its two writings: tokens by rank (tiktoken, lmtiny) and a list of pairs (GPT-2, Hugging Face).

By rank, any two neighbours merge whose bytes together are a token; with a list, only the pairs in it. They
are the same if each token has the rank of the pair that is merged last when it is encoded by the list, and a
token that does not come about so has none: what is merged inside a token never depends on what stands around
it, or the token would not come about.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

from lmtiny.tokenizer.vocabulary import BYTES

Pair = tuple[bytes, bytes]
_NEVER = 1 << 60  # the rank of what does not merge


def printable_bytes() -> dict[int, str]:
    """Returns GPT-2's printable character for each byte: itself where Latin-1 shows it, else the next from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in shown]
    return {**{value: chr(value) for value in shown}, **{value: chr(256 + index) for index, value in enumerate(hidden)}}


def last_pair(token: bytes, ranks: Mapping[bytes, int]) -> Pair | None:
    """Returns the two tokens that are merged last when `token` is encoded by rank; None if that does not end with the token."""
    return _last_pair(token, lambda left, right: ranks.get(left + right, _NEVER))


def ranks_of(merges: Sequence[Pair]) -> dict[bytes, int]:
    """Returns the 256 bytes and what `merges` make of them, with the ranks by which encoding is the same.

    A pair that is there twice has the later place, as in Hugging Face's library.

    Raises:
      ValueError: a token comes before one that it is merged of, which no learning gives.
    """
    places = {pair: place for place, pair in enumerate(merges)}
    made: dict[int, bytes] = {}  # by the place of the last pair
    for token in dict.fromkeys(left + right for left, right in merges):
        pair = _last_pair(token, lambda left, right: places.get((left, right), _NEVER))
        if pair in places:
            made[places[pair]] = token
    ranks = {token: rank for rank, token in enumerate((*BYTES, *(made[place] for place in sorted(made))))}
    for place, token in made.items():
        if max(ranks[part] for part in merges[place]) > ranks[token]:
            raise ValueError(f"at {token[:40]!r}")
    return ranks


def _last_pair(token: bytes, rank_of: Callable[[bytes, bytes], int]) -> Pair | None:
    parts = [token[place : place + 1] for place in range(len(token))]
    ranks = [rank_of(left, right) for left, right in itertools.pairwise(parts)]  # of each with the next
    while len(parts) > 2:
        rank = min(ranks)
        if rank == _NEVER:
            return None
        place = ranks.index(rank)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        del ranks[place]
        for beside in {max(0, place - 1), min(place, len(ranks) - 1)}:
            ranks[beside] = rank_of(parts[beside], parts[beside + 1])
    return (parts[0], parts[1]) if len(parts) == 2 else None
