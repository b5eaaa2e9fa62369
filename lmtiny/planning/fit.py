"""Whether a train step and a validation row fit into a device's memory, and what to lower if the step does not."""

import bisect
import contextlib
import copy
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import ml_collections

from lmtiny import config as config_lib
from lmtiny import console
from lmtiny.errors import UserError
from lmtiny.parallel import host
from lmtiny.parallel.chips import GIB, Chip
from lmtiny.planning.memory import memory_on
from lmtiny.planning.meshes import divisors
from lmtiny.planning.shapes import Shape, sizes

REFUSED_ABOVE, WARNED_ABOVE = 1.10, 0.95  # of the memory there is: the formula is not exact


@dataclasses.dataclass(frozen=True)
class Advice:
    """Knobs to change, as the command line takes them, the config with them and its mesh; looked at on one kind of device."""

    overrides: dict[str, Any]
    config: ml_collections.ConfigDict
    shape: Shape
    chip: Chip

    @property
    def text(self) -> str:
        """The flags, as typed."""
        return " ".join(f"--config.{name}={value}" for name, value in self.overrides.items())

    @functools.cached_property
    def needed(self) -> float:
        """Bytes of the step on each device, traced when they are first asked for: about half a second."""
        return memory_on(self.chip, self.config, self.shape).needed

    @property
    def fits(self) -> bool:
        return self.needed <= WARNED_ABOVE * self.chip.memory


def refuse_if_too_large(config: ml_collections.ConfigDict, shape: Shape, chip: Chip | None) -> None:
    """Raises UserError for a train step or a validation row that clearly needs more memory than the device has; warns where a step may.

    Where a CPU's memory has no room for a step's twice, malloc keeps none of it between steps.

    Args:
      shape: mesh axis -> devices (`config.mesh_shape`).
      chip: the device; None, or one whose memory is not known: nothing is refused.
    """
    if chip is None or not chip.memory:
        return
    refuse_rows_too_long(config, shape, chip)
    needs = memory_on(chip, config, shape)
    if chip.backend == "cpu" and needs.needed + needs.temporaries > chip.memory:
        host.give_freed_memory_back()  # slower, but what malloc keeps of one step is in the way of the next
    if (needed := needs.needed) <= WARNED_ABOVE * chip.memory:
        return
    if needed <= (REFUSED_ABOVE if chip.backend != "cpu" else 1.0) * chip.memory:  # a machine that runs out takes others along
        console.warn(f"{sizes_text(needed, chip)}; it may not fit")
        return
    first = next(advice(config, shape, chip), None)
    remedy = f"try {first.text} (about {first.needed / GIB:,.1f} GiB)" if first else "take more devices, shorter rows or a smaller model"
    raise UserError(f"{sizes_text(needed, chip)}; {remedy}; python -m lmtiny.plan shows what takes the memory")


def sizes_text(needed: float, chip: Chip) -> str:
    """Returns in words what a step needs and what there is, in bytes of one device."""
    return f"a train step needs about {needed / GIB:,.1f} GiB on each device, which has {chip.memory / GIB:,.1f}"


def refuse_rows_too_long(config: ml_collections.ConfigDict, shape: Shape, chip: Chip) -> None:
    """Raises UserError where one row of evaluation.context_length does not fit, by the largest array that it needs: a floor, no estimate.

    A row as long as training's is left to the formula for the train step.
    """
    length = config_lib.validation_length(config)
    if length == config.model.context_length or not chip.memory:
        return
    z, chunk = sizes(config, shape), config.train.loss_chunk
    time = length // shape["context"]
    activations, logits = time * (z.D + z.F) * z.c, min(chunk or time, time) * z.V * 4
    needed = max(activations, logits)
    if needed > chip.memory:
        remedy = "give a shorter one, or a train.loss_chunk" if logits > activations and not chunk else "give a shorter one"
        raise UserError(
            f"evaluation.context_length = {length:,}: a row needs {needed / GIB:,.1f} GiB or more on each device, which has"
            f" {chip.memory / GIB:,.1f}; {remedy}"
        )


def advice(config: ml_collections.ConfigDict, shape: Shape, chip: Chip) -> Iterator[Advice]:
    """Yields what would make the step fit: each knob that does so alone, or else the first ones together, or else another mesh
    and more microbatches, or else a smaller batch.

    Nothing where no knob can help: each try traces the step.
    """
    if _floor(config, shape) > chip.memory:
        return

    def fits_with(before: dict[str, Any], name: str, values: list[Any]) -> tuple[Advice | None, list[Advice]]:
        possible = _possible(config, shape, chip, before, name, values)
        return _first_that_fits(possible), possible

    changes, alone = _changes(config, shape), False
    for name, values in changes:
        if found := fits_with({}, name, values)[0]:
            alone = True
            yield found
    if alone:
        return
    together: dict[str, Any] = {}
    for name, values in changes:
        found, possible = fits_with(together, name, values)
        if found:
            yield found
            return
        together = possible[-1].overrides if possible else together
    if found := _other_mesh(config, shape, chip):
        yield found
        return
    if found := fits_with({}, "train.batch_size", _smaller_batches(config, shape))[0]:
        yield found


def _floor(config: ml_collections.ConfigDict, shape: Shape) -> float:
    """Returns bytes that each device needs whatever is changed: its part of the weights; alone, also one row between blocks."""
    num_devices, z = math.prod(shape.values()), sizes(config, shape)
    rows = z.L * z.S * z.D * z.c if num_devices == 1 else 0
    return 4 * config_lib.matrix_parameters(config) / num_devices + rows


def _other_mesh(config: ml_collections.ConfigDict, shape: Shape, chip: Chip) -> Advice | None:
    """Returns the mesh and the microbatches of `survey` where they fit, with as many copies as now, or more: slices are copies."""
    from lmtiny.planning import survey

    num_devices = math.prod(shape.values())
    option = survey.option(config, chip, "", num_devices) if num_devices > 1 else None
    if option is None or not option.fits or option.mesh.get("data", 1) % shape["data"]:
        return None
    mesh = {axis: option.mesh.get(axis, 1) for axis in config_lib.MESH_AXES}
    asked = {f"parallel.{axis}": count for axis, count in mesh.items() if axis != "data" and max(count, shape[axis]) > 1}
    return Advice({**asked, "train.accumulation": option.accumulation}, option.config, mesh, chip)


def _possible(
    config: ml_collections.ConfigDict, shape: Shape, chip: Chip, before: dict[str, Any], name: str, values: list[Any]
) -> list[Advice]:
    """Returns the config with `before` and each of these values, but for those that it cannot have."""
    possible = []
    for value in values:
        with contextlib.suppress(UserError):
            overrides = before | {name: value}
            possible.append(Advice(overrides, *_changed(config, shape, overrides), chip))
    return possible


def _first_that_fits(possible: list[Advice]) -> Advice | None:
    """Returns the first that fits of some that need less and less memory, by halves."""
    first = bisect.bisect_left(possible, True, key=lambda one: one.fits)
    return possible[first] if first < len(possible) else None


def _changes(config: ml_collections.ConfigDict, shape: Shape) -> list[tuple[str, list[Any]]]:
    """Returns (knob, values to try), from what costs least time to what costs most."""
    z, train = sizes(config, shape), config.train
    tokens, chunk = z.b * z.T, train.loss_chunk or z.b * z.T
    splits = shape["data"] * shape["fsdp"] * shape["expert"]
    rows = train.batch_size // splits
    accumulations = [divisor for divisor in divisors(rows) if divisor > train.accumulation]
    changes: list[tuple[str, list[Any]]] = [
        ("train.loss_chunk", [size for size in (8192, 4096, 2048, 1024) if size < min(chunk, tokens)]),
        ("model.remat", ["block"] if config.model.remat != "block" else []),
        ("train.accumulation", accumulations),
        ("parallel.fsdp", [shape["fsdp"] * more for more in range(2, shape["data"] + 1) if shape["data"] % more == 0]),
    ]
    return [change for change in changes if change[1]]


def _smaller_batches(config: ml_collections.ConfigDict, shape: Shape) -> list[int]:
    """Returns half as many rows, a quarter, ..., down to one a device and microbatch."""
    least = shape["data"] * shape["fsdp"] * shape["expert"] * config.train.accumulation
    times = config.train.batch_size // least
    return [least * (times >> halvings) for halvings in range(1, times.bit_length())]


def _changed(config: ml_collections.ConfigDict, shape: Shape, overrides: dict[str, Any]) -> tuple[ml_collections.ConfigDict, Shape]:
    """Returns (the config with these knobs, its mesh over as many devices); raises UserError where that cannot work."""
    new_config = copy.deepcopy(config)
    for name, value in overrides.items():
        config_lib.set_knob(new_config, name, value)
    if "parallel.fsdp" in overrides:
        new_config.parallel.data = 0
    config_lib.check(new_config)
    return new_config, config_lib.mesh_shape(new_config, math.prod(shape.values()))
