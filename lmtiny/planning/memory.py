"""What a train step keeps in one device's memory, by formula, in a fraction of a second and without compiling.

Exact, up to the padding of tiles: the state (weights, optimizer), the batch, what jax's backward pass keeps of the forward
pass (`shapes.saved_leaves`).  Estimated: how much of that one TPU alone keeps of unrolled layers, gradients, gathered weights,
logits, and the block that is at work; how XLA overlaps them is its own affair.  docs/planning.md compares with the TPU compiler.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import ml_collections

from lmtiny import config as config_lib
from lmtiny.parallel.chips import Chip
from lmtiny.planning.shapes import Parameter, Shape, Sizes, parameters, saved_leaves, sizes, state_leaves

FLOAT32 = 4
AT_ONCE = 0.42  # of what a block keeps for its own backward pass, how much XLA has in memory at one time
ALONE = 0.395  # of what jax keeps of unrolled layers, how much XLA does where one TPU takes a step alone; the rest it makes again
WRITTEN_OUT = 0.04  # of a device's memory: a chunk's logits' gradient that takes less is written out, else made twice, where it is read
MOVED_OUT = 0.75  # of the tables' gradients: how much XLA adds up whole over microbatches, to scatter it once a step
ON_CPU = 1.4  # what XLA for CPUs sets aside for temporaries over the formula's: 0.9 to 1.42 in seven steps (docs/planning.md)
LANES, SUBLANES = 128, 8  # a TPU lays the two innermost dimensions out in tiles of 8 x 128

SizeOf = Callable[[tuple[int, ...], int], int]  # (shape, bytes of an element) -> bytes


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device. parts: what takes memory at the fullest moment of a step -> bytes; `needed` is their sum."""

    parts: Mapping[str, float]

    @property
    def arguments(self) -> float:
        """What lies there between steps: weights, optimizer state, batch."""
        return sum(self.parts[name] for name in ("weights", "optimizer state", "batch"))

    @property
    def temporaries(self) -> float:
        """What a step needs beside that."""
        return self.needed - self.arguments

    @property
    def needed(self) -> float:
        """Bytes a step needs at its fullest moment."""
        return sum(self.parts.values())


def memory(config: ml_collections.ConfigDict, shape: Shape, *, tiled: bool = True, available: float = math.inf) -> Memory:
    """Returns what a train step keeps in a device's memory on a mesh of this shape.

    tiled: with a TPU's padding.  available: bytes of the device, of which XLA spends some to save time.
    """
    z = sizes(config, shape)
    size_of = tiled_bytes if tiled else plain_bytes
    state = {name: sum(size_of(*leaf) for leaf in leaves) for name, leaves in state_leaves(config, shape).items()}
    params = parameters(config, shape)
    tables = [one for one in params if not one.in_blocks and not one.by_rows]
    saved, made_again = _saved(config, shape, z, size_of)
    return Memory(
        {
            "weights": state["weights"],
            "optimizer state": state["optimizer"],
            "batch": z.b * z.A * (config.model.context_length + 1) * FLOAT32,
            "gradients": _gradients(config, params, z),
            "gradients not yet scattered": MOVED_OUT * sum(one.whole - one.local for one in tables) * FLOAT32 if z.A > 1 else 0.0,
            "n-grams at work": _ngrams_at_work(config, params, z, tiled),
            "saved activations": saved - made_again,
            **_at_work(config, shape, params, made_again, size_of, available),
        }
    )


def memory_on(chip: Chip, config: ml_collections.ConfigDict, shape: Shape) -> Memory:
    """Returns what a train step keeps in the memory of one such chip: TPUs, which have links of their own, pad to tiles.

    XLA for CPUs undoes remat where layers are unrolled, and takes more for temporaries.
    """
    if chip.backend != "cpu":
        return memory(config, shape, tiled=chip.links > 1, available=chip.memory)
    if not config.model.scan_layers:
        config = copy.deepcopy(config)
        config.model.remat = "none"
    found = memory(config, shape, tiled=False, available=chip.memory)
    return Memory({**found.parts, "more on a CPU": (ON_CPU - 1) * found.temporaries})


def cache_bytes(config: ml_collections.ConfigDict, num_rows: int = 1, num_slots: int = 0) -> int:
    """Returns the bytes a chat keeps of what it read: keys, values, tokens for model.ngram_rows and model.induction.

    `num_slots` 0: the whole context.
    """
    c = config.model
    one = sizes(config, dict.fromkeys(config_lib.MESH_AXES, 1))
    tokens = num_rows * (num_slots or c.context_length)
    return tokens * (2 * c.num_layers * one.K * one.N * one.c + (4 if c.ngram_rows or c.induction else 0))


def tiled_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Returns the bytes of an array on a TPU, whose compiler chooses the two dimensions that waste least as the tiled ones."""
    if len(shape) < 2:
        return plain_bytes(shape, itemsize)
    best = math.inf
    for lanes in range(len(shape)):
        for rows in range(len(shape)):
            if rows != lanes:
                padded = -(-shape[lanes] // LANES) * LANES * _sublanes(shape[rows])
                best = min(best, math.prod(shape) // (shape[lanes] * shape[rows]) * padded)
    return int(best) * itemsize


def _at_work(
    config: ml_collections.ConfigDict, shape: Shape, params: list[Parameter], made_again: float, size_of: SizeOf, available: float
) -> dict[str, float]:
    """Returns what the head, or a block, takes while it is at work: whichever is more.

    The head is done before the backward pass comes to the blocks; but all logits at once stay until the end of it.  In the
    blocks gradients take the place of what the head did without.
    """
    z = sizes(config, shape)
    head = next(one for one in params if one.path[0] == ("embedding" if config.model.tied_embeddings else "head"))
    layer = sum(one.whole for one in params if one.in_blocks) / z.L
    # A gradient that is to be scattered lies there whole before; one that is whole anyway is counted as a gradient.
    scattered = FLOAT32 if shape["fsdp"] > 1 else 0
    chunked = 0 < config.train.loss_chunk < z.b * z.T
    logits = {"logits": _logits(config, z), "head and its gradient": head.whole * (z.c + scattered)}
    gradient = logits["logits"] * z.c / FLOAT32
    split = shape["tensor"] * shape["pipeline"] > 1  # the vocabulary
    if chunked and gradient < WRITTEN_OUT * available and not split and not _unrolled_on_tpu(config.model, size_of):
        logits["gradient of the logits"] = gradient
    block = {
        "block at work": _block_at_work(config, shape, size_of) + made_again,
        "weights of two layers": 2 * layer * (z.c + scattered),
    }
    if not chunked:
        block["logits"] = logits["logits"]
    return max(logits, block, key=lambda parts: sum(parts.values()))


def _saved(config: ml_collections.ConfigDict, shape: Shape, z: Sizes, size_of: SizeOf) -> tuple[float, float]:
    """Returns (bytes that the forward pass leaves for the backward pass, those of them that are not there while the head is at work).

    Outside the blocks jax keeps what goes into the last norm and what comes out of it, in float32; XLA keeps one, and makes
    the others of it again.  Unrolled, and with nothing to send, it makes more than half of all again.
    """
    leaves = saved_leaves(config, shape)
    around = ((z.b, z.S, z.D), FLOAT32)
    again = max(leaves.count(around) - 1, 0) if config.model.scan_layers else 0  # unrolled, those of the blocks are of this shape too
    kept = functools.partial(_kept, model=config.model, z=z, size_of=size_of)
    alone = math.prod(shape.values()) == 1 and config.model.remat == "none" and _unrolled_on_tpu(config.model, size_of)
    return (ALONE if alone else 1.0) * sum(map(kept, leaves)), again * kept(around)


def _kept(leaf: tuple[tuple[int, ...], int], model: ml_collections.ConfigDict, z: Sizes, size_of: SizeOf) -> int:
    """Returns the bytes of a saved array.

    Activations have their width (D, or H and N as one) in a TPU's lanes, and what splash attention reads, [.., T, N], its N,
    whatever that wastes.  Arrays of layers that are not stacked have N there too.
    """
    size, itemsize = leaf
    if size_of is tiled_bytes:
        heads, for_splash = size[-2:] == (z.H, z.N), model.attention == "splash" and size[-2:] == (z.T, z.N)
        if heads and not _unrolled_on_tpu(model, size_of):
            size = (*size[:-2], z.H * z.N)
        if heads or for_splash or size[-1:] in ((z.D,), (z.H * z.N,)):
            size = (*size[:-1], -(-size[-1] // LANES) * LANES)
    return size_of(size, itemsize)


def _unrolled_on_tpu(model: ml_collections.ConfigDict, size_of: SizeOf) -> bool:
    """Returns whether layers are not stacked, and XLA for TPUs chooses what it keeps of each."""
    return size_of is tiled_bytes and not model.scan_layers


def _sublanes(count: int) -> int:
    """Returns how many rows a tiled dimension takes: few rows have tiles of 1, 2 or 4."""
    small = next((size for size in (1, 2, 4) if count <= size), 0)
    return small or -(-count // SUBLANES) * SUBLANES


def plain_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Returns the bytes of an array without padding."""
    return math.prod(shape) * itemsize


def _gradients(config: ml_collections.ConfigDict, params: list[Parameter], z: Sizes) -> float:
    """Float32, as the weights lie; with several microbatches their sum beside the newest."""
    whole = config.parallel.zero == 1
    return sum(one.whole if whole else one.local for one in params if not one.by_rows) * FLOAT32 * (2.0 if z.A > 1 else 1.0)


def _ngrams_at_work(config: ml_collections.ConfigDict, params: list[Parameter], z: Sizes, tiled: bool) -> float:
    """Of every token of the batch, on every device, the gradient of its n-grams' vectors, in float32; and the sum for each row.

    A width that does not fill a TPU's lanes lies with rows and width changed over, to save their padding; where rows are looked up
    XLA copies the table, padded (docs/log.md, "n-grams: rows that a step does not read").
    """
    c, tables = config.model, [one for one in params if one.by_rows]
    if not tables:
        return 0.0
    gradients = c.longest_ngram * config.train.batch_size * c.context_length * z.D * FLOAT32
    padded = sum(one.local // z.D for one in tables) * math.ceil(z.D / LANES) * LANES * FLOAT32
    return float(gradients + (padded if tiled and z.D % LANES else 0))


def _logits(config: ml_collections.ConfigDict, z: Sizes) -> float:
    """The logits of a chunk, or of all tokens, in float32; their gradient is fused into what reads it."""
    tokens, chunk = z.b * z.T, config.train.loss_chunk
    return float((min(tokens, chunk) if chunk else tokens) * z.V * FLOAT32)


def _block_at_work(config: ml_collections.ConfigDict, shape: Shape, size_of: SizeOf) -> float:
    """What the backward pass of one block makes again and holds, as far as it is not saved for all blocks."""
    if config.model.remat == "none":
        return 0.0
    alone = copy.deepcopy(config)
    alone.model.remat, alone.model.num_layers, alone.model.scan_layers = "none", shape["pipeline"], True
    return AT_ONCE * sum(size_of(*leaf) for leaf in saved_leaves(alone, shape))
