"""Valid text -> ids, one function a kind.  None of them knows a special token, so no text can contain one."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lmtiny.tokenizer.engine import engine_split
from lmtiny.tokenizer.vocabulary import PATTERNS

# A special token for tiktoken to look for: with none, it finds the empty one at every character (8.5 MB/s instead of 14).
# These are noncharacters, and where a text has them they are text.
_UNHEARD_OF = "\U0010ffff\U0010fffe"

Encoder = Callable[[str], np.ndarray]  # whole numbers, one a token

# tiktoken's regex backtracks through white space and panics (stack overflow) on some 300,000 characters of it in a row.
# Runs of letters or punctuation are harmless in tiktoken 0.14: 1,000,000 of them take 0.15 s.
BLOCK = 32768  # characters


def encoder(kind: str, tokens: Sequence[bytes]) -> Encoder:
    """Returns the function that encodes valid text (no surrogates) with `tokens`, the vocabulary without its special tokens."""
    if kind in PATTERNS:
        return merging_encoder({token: rank for rank, token in enumerate(tokens)}, PATTERNS[kind])
    return _char(tokens) if kind == "char" else _byte


def blocks(text: str) -> Iterator[str]:
    """Yields `text` cut before and after every block of white space: characters [k * BLOCK, (k + 1) * BLOCK), all white.

    A run of white space then has fewer than 2 * BLOCK characters, and text without such a block is not cut at all.
    """
    start = 0
    for low in range(0, len(text) - BLOCK + 1, BLOCK):
        if text[low : low + BLOCK].isspace():
            if start < low:
                yield text[start:low]
            yield text[low : low + BLOCK]
            start = low + BLOCK
    if start < len(text):
        yield text[start:]


def merging_encoder(ranks: Mapping[bytes, int], pattern: str) -> Encoder:
    """Returns byte-pair encoding by `ranks` (which hold all 256 bytes) within what `pattern` splits text into; ids are ranks."""
    import tiktoken  # here, not above: whoever only wants the names of the special tokens need not wait for it

    specials = {_UNHEARD_OF: len(ranks)}
    core = tiktoken.Encoding("lmtiny", pat_str=engine_split(pattern), mergeable_ranks=dict(ranks), special_tokens=specials)

    def encode_block(text: str) -> np.ndarray:
        # Into one buffer, not a list of ints, which would be made while all other threads wait. No special token is allowed.
        return core.encode_to_numpy(text, allowed_special=set(), disallowed_special=()).view(np.int32)

    def encode(text: str) -> np.ndarray:
        if len(text) < BLOCK:
            return encode_block(text)
        return np.concatenate([encode_block(block) for block in blocks(text)])

    return encode


def _char(tokens: Sequence[bytes]) -> Encoder:
    table = np.full(0x110000, -1, np.int32)  # code point -> id, or -1
    table[:128] = np.arange(128)  # an ASCII character is its one byte
    table[[ord(token.decode()) for token in tokens[256:]]] = np.arange(256, len(tokens))

    def encode(text: str) -> np.ndarray:
        found = table[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
        unseen = np.flatnonzero(found < 0)
        if not unseen.size:
            return found
        ids: list[int] = []
        start = 0
        for place in unseen.tolist():
            ids += found[start:place].tolist()
            ids += text[place].encode()
            start = place + 1
        return np.array(ids + found[start:].tolist())

    return encode


def _byte(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
