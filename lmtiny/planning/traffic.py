"""What a device sends in a train step, by formula: a line for each reason, each a term of docs/planning.md.

It follows what `parallel.collectives` is asked for; XLA may do better (a gather shared by two uses, a sum moved out of the
loop over microbatches) or worse (a scattered sum run as a whole one).  Ring algorithms: of g devices each sends (g-1)/g of
what a gather gives or a scattered sum takes, and twice that for a sum (Patarasuk and Yuan 2009).
"""

import dataclasses
import math

import ml_collections

from lmtiny.parallel.axes import mesh_axes
from lmtiny.planning.shapes import Parameter, Shape, Sizes, parameters, sizes

FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Line:
    """One reason to send. axes: over which mesh axes; sent_bytes: by each device, in a step."""

    what: str
    kind: str
    axes: tuple[str, ...]
    sent_bytes: float


def traffic(config: ml_collections.ConfigDict, shape: Shape, *, regathers: bool | None = None, tied_once: bool = True) -> list[Line]:
    """Returns what a train step sends on a mesh of this shape; lines that send nothing are left out.

    Args:
      regathers: whether blocks gather their weights again in the backward pass; None: they do (no policy of model.remat keeps
        a gathered weight).
      tied_once: a tied table, gathered for the lookup and for the head, is gathered once (XLA shares the two).
    """
    z, params = sizes(config, shape), parameters(config, shape)
    lines = [
        *_weights(config, shape, z, params, True if regathers is None else regathers, tied_once),
        *_gradients(config, shape, params),
        *_sequence(config, shape, z),
        *_vocabulary(config, shape, z),
        *_ngrams(config, shape, z),
        *_experts(config, shape, z),
        *_ring(config, shape, z),
        *_stages(shape, z),
        *_muon(config, shape, params),
    ]
    return [line for line in lines if line.sent_bytes]


def total(lines: list[Line]) -> float:
    """Returns the bytes that all lines send together."""
    return sum(line.sent_bytes for line in lines)


def by_kind(lines: list[Line]) -> dict[str, float]:
    """Returns kind -> bytes sent, the largest first."""
    kinds = {line.kind: 0.0 for line in lines}
    for line in lines:
        kinds[line.kind] += line.sent_bytes
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def _share(devices: int) -> float:
    return (devices - 1) / devices


def _weights(
    config: ml_collections.ConfigDict, shape: Shape, z: Sizes, params: list[Parameter], regathers: bool, tied_once: bool
) -> list[Line]:
    """Weights gathered over fsdp in the compute type, and their gradients' scattered sums in float32 (ZeRO-3)."""
    fsdp = shape["fsdp"]
    split = [one for one in params if "fsdp" in one.split]
    blocks = sum(one.whole for one in split if one.in_blocks)
    read = sum(one.whole * (FLOAT32 if "router" in one.path else z.c) for one in split if one.in_blocks)
    tables = sum(one.whole for one in split if not one.in_blocks)
    if config.model.tied_embeddings and not tied_once:
        tables += sum(one.whole for one in split if one.part == "embedding")
    once = z.A * _share(fsdp)
    if config.parallel.zero == 1:
        # Weights are whole; what the optimizer changed of them is gathered once a step.
        return [Line("new weights, gathered", "all-gather", ("fsdp",), _share(fsdp) * sum(one.whole for one in split) * FLOAT32)]
    return [
        # A pipeline's stage gathers, and sums gradients, at every tick; what it gathers again is the same at all ticks, which jax sees.
        Line("weights of blocks, forward", "all-gather", ("fsdp",), read * once * z.ticks),
        Line("weights of blocks, backward", "all-gather", ("fsdp",), read * once * regathers),
        Line("weights of embedding and head", "all-gather", ("fsdp",), tables * z.c * once),
        Line("gradients of blocks", "reduce-scatter", ("fsdp",), blocks * FLOAT32 * once * z.ticks),
        Line("gradients of embedding and head", "reduce-scatter", ("fsdp",), tables * FLOAT32 * once),
    ]


def _gradients(config: ml_collections.ConfigDict, shape: Shape, params: list[Parameter]) -> list[Line]:
    """Sums of each parameter's gradient over the devices that hold the same part of it, once a step, in float32."""
    sums: dict[tuple[str, ...], float] = {}
    scattered = 0.0
    for one in params:
        if one.by_rows:
            continue
        over = tuple(name for name, count in shape.items() if count > 1 and name not in one.split)
        devices = math.prod(shape[name] for name in over)
        sums[over] = sums.get(over, 0.0) + 2 * _share(devices) * one.local * FLOAT32
        if config.parallel.zero == 1 and "fsdp" in one.split:
            scattered += _share(shape["fsdp"]) * one.whole * FLOAT32
    lines = [Line("gradients, summed over copies", "all-reduce", over, sent) for over, sent in sums.items()]
    return [*lines, Line("gradients, scattered for the optimizer", "reduce-scatter", ("fsdp",), scattered)]


def _sequence(config: ml_collections.ConfigDict, shape: Shape, z: Sizes) -> list[Line]:
    """Activations between the matrices, split over time (sequence parallelism, arXiv 2205.05198): two gathers and two
    scattered sums a block and pass, mirrored backward; recomputed but for the block's last sum."""
    tensor, passes = shape["tensor"], z.A * z.L * z.ticks / z.M
    whole = z.b * z.T * z.D * z.c * _share(tensor) * passes
    remat = config.model.remat
    again = 0 if remat == "none" and shape["fsdp"] == 1 else 2 if remat == "none" else 3
    return [
        Line("activations of blocks, forward: gathered", "all-gather", ("tensor",), 2 * whole),
        Line("activations of blocks, forward: summed", "reduce-scatter", ("tensor",), 2 * whole),
        Line("activations of blocks, recomputed: gathered", "all-gather", ("tensor",), min(again, 2) * whole),
        Line("activations of blocks, recomputed: summed", "reduce-scatter", ("tensor",), max(again - 2, 0) * whole),
        Line("activations of blocks, backward: gathered", "all-gather", ("tensor",), 2 * whole),
        Line("activations of blocks, backward: summed", "reduce-scatter", ("tensor",), 2 * whole),
    ]


def _experts(config: ml_collections.ConfigDict, shape: Shape, z: Sizes) -> list[Line]:
    """Tokens to the devices of their experts and back (`model.experts`)."""
    c, devices, tensor = config.model, shape["expert"], shape["tensor"]
    if not c.num_experts:
        return []
    passes, remat = z.A * z.L * z.ticks / z.M, c.remat != "none"
    tokens = z.b * z.T * passes
    gates, choices = c.experts_per_token * FLOAT32, c.experts_per_token * 4
    lines = [
        Line("gates and choices", "all-gather", ("tensor",), tokens * (gates + choices) * (1 + remat) * _share(tensor)),
        Line("gates, backward", "reduce-scatter", ("tensor",), tokens * gates * _share(tensor)),
    ]
    if c.expert_capacity:
        capacity = min(c.context_length, math.ceil(c.expert_capacity * c.experts_per_token * c.context_length / c.num_experts))
        slots = c.num_experts * z.b * capacity * z.D * z.c * passes
        swaps = 2 * (2 + remat)  # there and back, forward, backward and recomputed
        return [*lines, Line("tokens to experts and back", "all-to-all", ("expert",), swaps * slots * _share(devices))]
    x, over = tokens * devices * z.D * z.c * _share(devices), ("expert",)
    numbers = tokens * devices * _share(devices)
    return [
        *lines,
        Line("tokens to all experts, forward", "all-gather", over, x + numbers * (gates + choices)),
        Line("tokens to all experts, recomputed", "all-gather", over, (x + numbers * (gates + choices)) * remat),
        Line("what experts made, summed", "reduce-scatter", over, x),
        Line("tokens to all experts, backward", "reduce-scatter", over, x + numbers * gates),
        Line("what experts made, backward", "all-gather", over, x),
    ]


def _vocabulary(config: ml_collections.ConfigDict, shape: Shape, z: Sizes) -> list[Line]:
    """Embedding and loss with the vocabulary split over tensor and pipeline (arXiv 1909.08053, section 3)."""
    tensor, stages = shape["tensor"], shape["pipeline"]
    over = tuple(name for name in ("pipeline", "tensor") if shape[name] > 1)
    x = z.A * z.b * z.T * z.D * z.c
    looked_up = z.A * z.b * z.T * z.D * (1 + bool(config.model.ngram_rows) + bool(config.model.induction)) * z.c
    numbers = z.A * z.b * z.T * FLOAT32 * 2 * _share(tensor * stages)
    tokens, chunk = z.b * z.T, config.train.loss_chunk
    chunked = 0 < chunk < tokens
    if chunked:
        numbers *= -(-tokens // chunk) * chunk / tokens
    # Forward: maximum, sum of exponentials, target's logit; backward: the transposes of the two sums, or, with chunks, whose
    # gradients are made in the forward pass, one number.
    return [
        Line("embeddings, summed over stages", "all-reduce", ("pipeline",), 2 * looked_up * 2 * _share(stages)),
        Line("embeddings, summed over vocabulary", "reduce-scatter", ("tensor",), looked_up * _share(tensor)),
        Line("embeddings, backward", "all-gather", ("tensor",), looked_up * _share(tensor)),
        Line("what the head reads", "all-gather", ("tensor",), x * _share(tensor)),
        Line("what the head reads, backward", "reduce-scatter", ("tensor",), x * _share(tensor)),
        Line("loss over the vocabulary", "all-reduce", over, numbers * (3 if chunked else 5)),
    ]


def _ngrams(config: ml_collections.ConfigDict, shape: Shape, z: Sizes) -> list[Line]:
    """Every token's gradient and rows of the table of n-grams to all devices (`training.row_adagrad`)."""
    c, over = config.model, tuple(name for name in mesh_axes("batch") if shape[name] > 1)
    devices = math.prod(shape[name] for name in over)
    row = z.A * z.b * z.T * shape["context"] * (z.D * z.c + (c.longest_ngram - 1) * 4) * (c.ngram_rows > 0)
    return [
        Line("n-grams' gradients to all, over time", "all-gather", ("context",), row * _share(shape["context"])),
        Line("n-grams' gradients to all, over rows", "all-gather", over, row * devices * _share(devices)),
    ]


def _ring(config: ml_collections.ConfigDict, shape: Shape, z: Sizes) -> list[Line]:
    """Keys and values round the ring (arXiv 2310.01889), and on the way back their gradients in float32."""
    devices, passes = shape["context"], z.A * z.L * z.ticks / z.M
    keys_and_values = 2 * z.b * z.T * z.K * z.N * passes * (devices > 1)
    hops, again = devices - 1, config.model.remat != "none"
    return [
        Line("keys and values, forward", "collective-permute", ("context",), keys_and_values * z.c * hops),
        Line("keys and values, recomputed", "collective-permute", ("context",), keys_and_values * z.c * hops * again),
        Line("keys and values, backward", "collective-permute", ("context",), keys_and_values * z.c * hops),
        Line("gradients of keys and values", "collective-permute", ("context",), keys_and_values * FLOAT32 * devices),
    ]


def _stages(shape: Shape, z: Sizes) -> list[Line]:
    """Activations from stage to stage at every tick, and the last stage's to all for the loss (GPipe, arXiv 1811.06965)."""
    stages = shape["pipeline"]
    x = z.A * z.b * z.S * z.D * z.c * (stages > 1)
    return [
        Line("stage to stage, forward and backward", "collective-permute", ("pipeline",), 2 * x * z.ticks / z.M),
        Line("last stage to all, forward and backward", "all-reduce", ("pipeline",), 2 * x * 2 * _share(stages)),
    ]


def _muon(config: ml_collections.ConfigDict, shape: Shape, params: list[Parameter]) -> list[Line]:
    """Parts of matrices swapped for whole matrices of some layers, and back (`training.muon`), in float32."""
    if config.optimizer.name != "muon":
        return []
    swapped: dict[tuple[str, ...], float] = {}
    gathered: dict[tuple[str, ...], float] = {}
    present = {name for name, count in shape.items() if count > 1}
    for one in params:
        if not one.in_blocks or one.path[-1] != "kernel":
            continue
        swaps = [name for name in ("fsdp", "tensor") if name in one.split]
        copies = tuple(sorted(present - one.split - {"data"}))
        layers = config.model.num_layers // shape["pipeline"]
        parts = math.prod(shape[name] for name in (*swaps, *copies))
        size = one.local / layers * (-(-layers // parts) * parts) * FLOAT32
        for name in swaps:
            swapped[name,] = swapped.get((name,), 0.0) + 2 * _share(shape[name]) * size
        devices = math.prod(shape[name] for name in copies)
        gathered[copies] = gathered.get(copies, 0.0) + _share(devices) * size
    return [
        *(Line("Muon: parts swapped for matrices", "all-to-all", over, sent) for over, sent in swapped.items()),
        *(Line("Muon: directions of other copies", "all-gather", over, sent) for over, sent in gathered.items()),
    ]
