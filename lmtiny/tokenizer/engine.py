"""Splits as the engine that encodes runs them fastest: the same pieces of every text as those of the splits as published.

The engine is tiktoken's, Rust's fancy-regex.  It steps through a pattern one alternative after the other, but hands a group in which
nothing looks ahead and nothing is possessive to an automaton, whole.
"""

import numpy as np

from lmtiny.tokenizer.vocabulary import CONTRACTION, MORE_WORDS, NO_WORD, SUPERWORD_PATTERN, WORD

_WHITE_SPACE = r"|\s+(?!"  # so begins what all known splits end with, and all of most that looks ahead

# A run of words with no contraction behind it, which the automaton finds whole; then any run. Letters are not given back one by
# one: what follows them may be nothing, so it never fails, and a million of them would fill the engine's stack.
_RUN = rf"(?>{WORD}(?:,? \p{{L}}+){{0,{MORE_WORDS}}})(?!')"
_ANY_RUN = rf"{WORD}+(?:,? \p{{L}}++|{CONTRACTION}(?!\p{{L}})){{0,{MORE_WORDS}}}"


def engine_split(split: str) -> str:
    """Returns a pattern with which the engine cuts every text as with `split`, one of the known ones.

    What follows a possessive part of those never matches what that part took, so without its mark they match the same.
    """
    if split == SUPERWORD_PATTERN:
        return f"(?:{CONTRACTION})|{_RUN}|{_ANY_RUN}|{_grouped(NO_WORD)}"
    return _grouped(split)


def characters(pattern: str) -> np.ndarray:
    """Returns the code points of the characters that the engine matches with `pattern`, in ascending order.

    Which characters are letters depends on the version of Unicode. The engine has its own, and learning must
    have the same.
    """
    import tiktoken  # here, not above: who only wants the names of the special tokens need not wait for it

    # Above, Unicode has tags and what is private, nothing else.
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
    # The engine encodes what it matches and leaves out the rest: with the bytes for tokens, ids are bytes of
    # matches.
    ranks = {bytes([value]): value for value in range(256)}
    engine = tiktoken.Encoding("lmtiny", pat_str=f"(?:{pattern})+", mergeable_ranks=ranks, special_tokens={})
    found = bytes(engine.encode_ordinary(everything)).decode()
    return np.frombuffer(found.encode("utf-32-le"), np.uint32)


def _grouped(split: str) -> str:
    head, mark, white_space = split.partition(_WHITE_SPACE)
    if not mark:
        raise ValueError(f"{split} does not end with {_WHITE_SPACE}")
    return f"(?:{head.replace('?+', '?').replace('++', '+')}){mark}{white_space}"
