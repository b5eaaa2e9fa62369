"""Byte-pair encoding in its two writings: tokens by rank (tiktoken, lmtiny) and a list of pairs (GPT-2, Hugging Face).

By rank, any two neighbours merge whose bytes together are a token; with a list, only the pairs in it. They are the same
if the list has, for each token, the pair that is merged last when the token by itself is encoded by rank: what is
merged inside a token never depends on what stands around it, or the token would not come about.
"""

from collections.abc import Mapping


def printable_bytes() -> dict[int, str]:
    """Returns GPT-2's printable character for each byte: itself where Latin-1 shows it, else the next from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in shown]
    return {**{value: chr(value) for value in shown}, **{value: chr(256 + index) for index, value in enumerate(hidden)}}


def last_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """Returns the two tokens that are merged last when `token` is encoded by rank; None if that does not end with the token."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        rank, place = min((ranks.get(parts[place] + parts[place + 1], 1 << 60), place) for place in range(len(parts) - 1))
        if rank == 1 << 60:
            return None
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None
