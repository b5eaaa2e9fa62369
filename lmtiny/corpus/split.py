"""Which documents are held out for validation, and which are copies of others; both by the hash of their content."""

import enum

import numpy as np

from lmtiny.corpus.documents import clean, sections
from lmtiny.errors import NothingLeft

SHORT_BYTES = 1000  # of validation text, where a single document allows for it


class Side(enum.IntEnum):
    """Where a document goes."""

    TRAIN = 0
    VALIDATION = 1
    DUPLICATE = 2  # the same text came before, or is held out
    NEAR_DUPLICATE = 3  # too similar to a held-out document


def choose(hashes: list[np.ndarray], held_out: list[bool], fraction: float) -> list[np.ndarray]:
    """Returns the Side of each document, for each unit (uint8), from the uint64 content hashes of its documents.

    Of equal documents only the first stays. If any unit is `held_out`, those are the validation side; otherwise it is
    the `fraction` of the documents with the smallest hashes, at least one: a document keeps its side when others come
    or go, but for a few at the border.

    Raises:
      NothingLeft: fewer than two different documents, or one side is left empty.
    """
    if not hashes or not sum(map(len, hashes)):
        raise NothingLeft("the corpus has no text: every document is empty")
    all_hashes = np.concatenate(hashes)
    given = np.repeat(np.array(held_out), [len(one) for one in hashes])
    # Held-out documents come first, so that of two equal ones it is the training copy that goes.
    order = np.argsort(~given, kind="stable")
    distinct, first = np.unique(all_hashes[order], return_index=True)
    first = order[first]
    if len(distinct) < 2:
        same = f"{len(all_hashes)} documents, all of the same text" if len(all_hashes) > 1 else "one document only"
        raise NothingLeft(f"the corpus has {same}; two are needed, one to train on and one to validate with")
    sides = np.full(len(all_hashes), Side.DUPLICATE, np.uint8)
    if given.any():
        sides[first] = np.where(given[first], Side.VALIDATION, Side.TRAIN)
    elif any(held_out):
        raise NothingLeft("the files that corpus.validation_path holds out have no text")
    else:
        count = min(max(1, round(fraction * len(distinct))), len(distinct) - 1)
        sides[first] = Side.TRAIN
        sides[first[:count]] = Side.VALIDATION  # `first` is in the order of the hashes
    if not (sides == Side.TRAIN).any():
        raise NothingLeft("nothing is left to train on: every training document is also held out by corpus.validation_path")
    return np.split(sides, np.cumsum([len(one) for one in hashes])[:-1])


def in_two(text: str, fraction: float) -> tuple[str, str]:
    """Returns the two parts of a corpus of one document: about the last `fraction` of it is for validation.

    Of a short one it is more, up to a third: a few words would tell nothing.

    Raises:
      NothingLeft: the text cannot be divided.
    """
    size = len(text.encode())
    pieces = list(sections(text, max(1, round(size * min(fraction, 0.5)), min(size // 3, SHORT_BYTES))))
    for held_out in range(1, len(pieces)):
        parts = clean("".join(pieces[:-held_out])), clean("".join(pieces[-held_out:]))
        if all(parts):
            return parts
    raise NothingLeft("the corpus is a single document too short to be divided into training and validation text; give more text")
