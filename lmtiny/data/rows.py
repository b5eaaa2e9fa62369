"""What a packed row says about itself: segments, positions and the loss mask, from its tokens alone.

Each document in a row, and each chunk of one that goes on, starts with `<|bos|>`; what is left of a row is filled with
more of them. The functions take NumPy or JAX integer arrays, of any leading shape, and return the same kind.
"""

from typing import Any

Array = Any  # np.ndarray or jax.Array: this room does not import jax


def segments(tokens: Array, bos_id: int) -> Array:
    """Returns int[..., T], equal for two tokens exactly if they are of the same document; it grows along the row."""
    numpy = tokens.__array_namespace__()
    return numpy.cumsum((tokens == bos_id).astype(numpy.int32), axis=-1, dtype=numpy.int32)


def positions(tokens: Array, bos_id: int) -> Array:
    """Returns int32[..., T], the place of each token in its document's chunk: 0 at each `<|bos|>` and at the row's start."""
    numpy = tokens.__array_namespace__()
    length = tokens.shape[-1]
    places = numpy.broadcast_to(numpy.arange(length, dtype=numpy.int32), tokens.shape)
    starts = numpy.where(tokens == bos_id, places, numpy.zeros_like(places))
    reach = 1  # a running maximum by doubling: log2(T) steps, in words that NumPy and JAX share
    while reach < length:
        behind = numpy.concatenate([numpy.zeros_like(starts[..., :reach]), starts[..., :-reach]], axis=-1)
        starts = numpy.maximum(starts, behind)
        reach *= 2
    return places - starts


def target_mask(tokens: Array, bos_id: int) -> Array:
    """Returns bool[..., T] for tokens[..., T+1]: False where input and target are both `<|bos|>`, which is padding.

    A `<|bos|>` after a text is a target like any other: it is how a model learns where documents end.
    """
    return (tokens[..., 1:] != bos_id) | (tokens[..., :-1] != bos_id)
