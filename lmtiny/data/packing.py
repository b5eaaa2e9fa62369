"""Documents -> rows: chunks of at most one row each, packed best-fit-decreasing over large windows.

"Fewer Truncations Improve Language Modeling" (Ding et al., 2024, arXiv 2404.10830): a document is cut only where it is
longer than a row, and the pieces are packed so that almost nothing is padding.
"""

import dataclasses

import numpy as np

WINDOW = 1 << 20  # chunks packed together: bounds memory and time, and is far more than a good fit needs


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Pieces of tokenised documents: the `part` file, where in it they `start`, and their `length`; `<|bos|>` not counted."""

    part: np.ndarray  # int32
    start: np.ndarray  # int64
    length: np.ndarray  # int32


@dataclasses.dataclass(frozen=True)
class Rows:
    """A plan of rows: row r holds the chunks order[first[r] : first[r + 1]], one after the other."""

    order: np.ndarray  # int64, indices of chunks
    first: np.ndarray  # int64[rows + 1]

    def __len__(self) -> int:
        return len(self.first) - 1


def cut(lengths: list[np.ndarray], chosen: list[np.ndarray], row_length: int) -> Chunks:
    """Returns the chunks, of at most `row_length` tokens, of the `chosen` (bool) documents of each part, in order."""
    parts, starts, sizes = [], [], []
    for number, (of_documents, wanted) in enumerate(zip(lengths, chosen, strict=True)):
        begins = (np.cumsum(of_documents) - of_documents)[wanted]
        wanted_lengths = of_documents[wanted]
        pieces = -(-wanted_lengths // row_length)
        within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        offsets = within * row_length
        starts.append(np.repeat(begins, pieces) + offsets)
        sizes.append(np.minimum(np.repeat(wanted_lengths, pieces) - offsets, row_length))
        parts.append(np.full(len(within), number, np.int32))
    return Chunks(
        np.concatenate([np.empty(0, np.int32), *parts]),
        np.concatenate([np.empty(0, np.int64), *starts]),
        np.concatenate([np.empty(0, np.int64), *sizes]).astype(np.int32),
    )


def pack(lengths: np.ndarray, capacity: int) -> Rows:
    """Returns rows of at most `capacity` tokens that hold every chunk once; `lengths` count their `<|bos|>`."""
    orders, counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(lengths), WINDOW):
        row_of = best_fit_decreasing(lengths[start : start + WINDOW], capacity)
        orders.append(start + np.argsort(row_of, kind="stable"))
        counts.append(np.bincount(row_of))
    return Rows(np.concatenate(orders), np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64))


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Returns int64, the row of each chunk: longest first, each into the fullest row it fits, or else a new one.

    Rows are kept by the space they have left. One integer's bits say which of these lists hold any, so that the
    smallest sufficient space is found without a search: O(chunks x capacity / 64), 0.1 s for 100,000 chunks.

    Raises:
      ValueError: a chunk is longer than a row.
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise ValueError(f"a chunk of {int(lengths.max())} tokens does not fit a row of {capacity}")
    rows = np.empty(len(lengths), np.int64)
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    full = int((lengths == capacity).sum())  # these come first, and leave nothing
    rows[order[:full]] = np.arange(full)
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces, new_row = 0, full
    placed = []
    for length in lengths[order[full:]].tolist():
        sufficient = spaces >> length
        if sufficient:
            space = length + (sufficient & -sufficient).bit_length() - 1
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, row = capacity, new_row
            new_row += 1
        left = space - length
        if left > 1:  # no chunk is shorter than <|bos|> and one token
            by_space[left].append(row)
            spaces |= 1 << left
        placed.append(row)
    rows[order[full:]] = placed
    return rows
