"""How long a step takes at best: the slowest of arithmetic, memory and links, each at its published speed.

The roofline model (Williams, Waterman and Patterson 2009) with a third roof for links.  No efficiency is assumed: what is
computed here cannot be beaten, and a real step is slower.
"""

import dataclasses
import math

import ml_collections

from lmtiny.parallel.chips import Chip
from lmtiny.planning.shapes import Shape, parameters, saved_leaves, sizes
from lmtiny.planning.traffic import Line

FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step, were each of the three all there is. flops: what a device computes; memory_bytes: what it moves."""

    compute: float
    memory: float
    links: float
    flops: float
    memory_bytes: float
    model_flops: float
    peak_flops: float
    idle: float  # share of the time a pipeline's stage waits

    @property
    def at_best(self) -> float:
        """All three overlap."""
        return max(self.compute, self.memory, self.links) / (1 - self.idle)

    @property
    def at_worst(self) -> float:
        """Nothing is sent while something is computed."""
        return (max(self.compute, self.memory) + self.links) / (1 - self.idle)

    def mfu(self, seconds: float) -> float:
        """Returns the share of the peak that the model's own FLOPs (no recomputation, causal attention) make up."""
        return self.model_flops / (seconds * self.peak_flops)


def roofline(config: ml_collections.ConfigDict, shape: Shape, chip: Chip, lines: list[Line], num_slices: int = 1) -> Roofline | None:
    """Returns the roofline of a train step, or None where the chip's speed is not known (CPU)."""
    from lmtiny.model import size

    if not chip.peak_flops:
        return None
    tokens = config.train.batch_size * config.model.context_length / math.prod(shape.values())
    model_flops = size.flops_per_token(config)["causal"] * tokens  # a core that computes more of the scores than that is slower
    # Recomputing a block is one more forward pass of the three that a step is.
    again = {"none": 0.0, "block": 1 / 3}.get(config.model.remat, 0.1)
    flops = model_flops * (1 + again)
    moved = _memory_bytes(config, shape)
    z = sizes(config, shape)
    return Roofline(
        compute=flops / chip.peak_flops, memory=moved / chip.memory_bandwidth,
        links=sum(seconds(line, shape, chip, num_slices) for line in lines), flops=flops, memory_bytes=moved,
        model_flops=model_flops, peak_flops=chip.peak_flops, idle=(z.ticks - z.M) / z.ticks,
    )  # fmt: skip


def seconds(line: Line, shape: Shape, chip: Chip, num_slices: int = 1) -> float:
    """Returns how long a line of traffic takes by itself.

    On TPU a mesh axis is one ring: two links of the chip.  GPUs of one host go through a switch at full speed.  What goes
    across slices or hosts goes over the network, after a reduction inside.
    """
    devices = math.prod(shape[name] for name in line.axes)
    ring = chip.link_bandwidth if chip.links == 1 else chip.link_bandwidth * 2 / chip.links
    outer = _outer(line, shape, chip, num_slices)
    if devices == outer:
        return line.sent_bytes / chip.network_bandwidth
    inner = devices // outer
    once = line.sent_bytes / ((devices - 1) / devices)  # the ring formulas' operand, once or twice
    inside = once * (inner - 1) / inner / ring
    return inside + (once / inner * (outer - 1) / outer / chip.network_bandwidth if outer > 1 else 0.0)


def _outer(line: Line, shape: Shape, chip: Chip, num_slices: int) -> int:
    """Returns into how many parts the network cuts the devices of a line."""
    if num_slices > 1:
        return num_slices if "data" in line.axes else 1
    if not chip.domain or math.prod(shape.values()) <= chip.domain:
        return 1
    # Mesh axes are laid out with the last innermost: an axis leaves the domain where those within it fill it.
    names, outer, within = list(shape), 1, 1
    for name in reversed(names):
        inside = max(1, min(shape[name], chip.domain // within))
        if name in line.axes:
            outer *= shape[name] // inside
        within *= shape[name]
    return outer


def _memory_bytes(config: ml_collections.ConfigDict, shape: Shape) -> float:
    """Returns what a device reads and writes in a step: weights in each pass, optimizer, saved activations, logits."""
    z, params = sizes(config, shape), parameters(config, shape)
    passes = 3 + (config.model.remat != "none")
    weights = sum(one.whole for one in params) * z.c * passes * z.A
    # Weight, gradient and two moments are read, weight and moments written (Muon has one moment for most).
    moments = 1 if config.optimizer.name == "muon" else 2
    optimizer = sum(one.local for one in params) * FLOAT32 * (3 + 2 * moments)
    saved = sum(math.prod(leaf) * itemsize for leaf, itemsize in saved_leaves(config, shape)) * 2 * z.A
    # Residual stream, queries, keys, values, attended and hidden, written and read once in each pass.
    a_layer = z.b * (2 * z.S * z.D + z.T * ((2 * z.H + 2 * z.K) * z.N + 2 * z.F)) * z.c
    blocks = 2 * a_layer * z.L * passes * z.A * z.ticks / z.M
    logits = 4 * z.A * z.b * z.T * z.V * FLOAT32
    return weights + optimizer + saved + blocks + logits
