"""Valid text -> ids, one function a kind.  None of them knows a special token, so no text can contain one."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lmtiny.tokenizer.vocabulary import PATTERNS

Encoder = Callable[[str], list[int]]

# tiktoken's regex backtracks through white space and panics (stack overflow) on some 300,000 characters of it in a row.
# Runs of letters or punctuation are harmless in tiktoken 0.14: 1,000,000 of them take 0.15 s.
BLOCK = 32768  # characters


def encoder(kind: str, tokens: Sequence[bytes]) -> Encoder:
    """Returns the function that encodes valid text (no surrogates) with `tokens`, the vocabulary without its special tokens."""
    if kind in PATTERNS:
        return _merged(tokens, PATTERNS[kind])
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


def _merged(tokens: Sequence[bytes], pattern: str) -> Encoder:
    import tiktoken  # here, not above: whoever only wants the names of the special tokens need not wait for it

    core = tiktoken.Encoding(
        "lmtiny", pat_str=pattern, mergeable_ranks={token: rank for rank, token in enumerate(tokens)}, special_tokens={}
    )

    def encode(text: str) -> list[int]:
        if len(text) < BLOCK:
            return core.encode_ordinary(text)
        return list(itertools.chain.from_iterable(map(core.encode_ordinary, blocks(text))))

    return encode


def _char(tokens: Sequence[bytes]) -> Encoder:
    table = np.full(0x110000, -1, np.int32)  # code point -> id, or -1
    table[:128] = np.arange(128)  # an ASCII character is its one byte
    table[[ord(token.decode()) for token in tokens[256:]]] = np.arange(256, len(tokens))

    def encode(text: str) -> list[int]:
        found = table[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
        ids: list[int] = []
        start = 0
        for unseen in np.flatnonzero(found < 0).tolist():
            ids += found[start:unseen].tolist()
            ids += text[unseen].encode()
            start = unseen + 1
        return ids + found[start:].tolist()

    return encode


def _byte(text: str) -> list[int]:
    return list(text.encode())
