"""Whether a train step fits into a device's memory, and what to lower if it does not."""

import bisect
import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_collections

from lmtiny import config as config_lib
from lmtiny import console
from lmtiny.errors import UserError
from lmtiny.parallel.chips import GIB, Chip
from lmtiny.planning.memory import memory_on
from lmtiny.planning.shapes import Shape, sizes

REFUSED_ABOVE, WARNED_ABOVE = 1.10, 0.95  # of the memory there is: the formula is not exact


@dataclasses.dataclass(frozen=True)
class Advice:
    """Knobs to change, as the command line takes them, the bytes the step then needs, the config with them and its mesh."""

    overrides: dict[str, Any]
    needed: float
    config: ml_collections.ConfigDict
    shape: Shape

    @property
    def text(self) -> str:
        """The flags, as typed."""
        return " ".join(f"--config.{name}={value}" for name, value in self.overrides.items())


class _Change(NamedTuple):
    """Knobs to change, the config with them and its mesh."""

    overrides: dict[str, Any]
    config: ml_collections.ConfigDict
    shape: Shape


def refuse_if_too_large(config: ml_collections.ConfigDict, shape: Shape, chip: Chip | None) -> None:
    """Raises UserError for a train step that clearly needs more memory than the device has; warns where it may.

    Args:
      shape: mesh axis -> devices (`config.mesh_shape`).
      chip: the device; None, or one whose memory is not known: nothing is refused.
    """
    if chip is None or not chip.memory:
        return
    _refuse_rows_too_long(config, shape, chip)
    needed = memory_on(chip, config, shape).needed
    if needed <= WARNED_ABOVE * chip.memory:
        return
    sizes_text = f"about {needed / GIB:,.1f} GiB on each device, which has {chip.memory / GIB:,.1f}"
    if needed <= REFUSED_ABOVE * chip.memory:
        console.warn(f"a train step needs {sizes_text}; it may not fit")
        return
    first = next(advice(config, shape, chip), None)
    remedy = f"try {first.text} (about {first.needed / GIB:,.1f} GiB)" if first else "take more devices, shorter rows or a smaller model"
    raise UserError(f"a train step needs {sizes_text}; {remedy}; python -m lmtiny.plan shows what takes the memory")


def _refuse_rows_too_long(config: ml_collections.ConfigDict, shape: Shape, chip: Chip) -> None:
    """Raises UserError where a single validation row does not fit, by the largest array that its tokens need: a floor, not an estimate."""
    length = config_lib.validation_length(config)
    if length == config.model.context_length:
        return
    z, model = sizes(config, shape), config.model
    time = length // shape["context"]
    logits = min(config.train.loss_chunk or time, time) * z.V * 4
    needed = max(time * (z.F + model.width) * z.c, logits)
    if needed > chip.memory:
        whole = " or a train.loss_chunk" if logits == needed and not config.train.loss_chunk else ""
        raise UserError(
            f"evaluation.context_length = {length:,}: a row needs {needed / GIB:,.1f} GiB or more on each device, which has"
            f" {chip.memory / GIB:,.1f}; give a shorter one{whole}"
        )


def advice(config: ml_collections.ConfigDict, shape: Shape, chip: Chip) -> Iterator[Advice]:
    """Yields what would make the step fit: each knob that does so alone, or else the first ones together, or else a smaller batch."""
    changes = _changes(config, shape)
    alone = False
    for name, values in changes:
        if found := _first_that_fits(chip, _possible(config, shape, {}, name, values)):
            alone = True
            yield found
    together: dict[str, Any] = {}
    for name, values in [] if alone else changes:
        if not (possible := _possible(config, shape, together, name, values)):
            continue
        if found := _first_that_fits(chip, possible):
            yield found
            return
        together = possible[-1].overrides
    if not alone and (found := _first_that_fits(chip, _possible(config, shape, {}, "train.batch_size", _smaller_batches(config, shape)))):
        yield found


def _possible(config: ml_collections.ConfigDict, shape: Shape, before: dict[str, Any], name: str, values: list[Any]) -> list[_Change]:
    """Returns the config with each of these values, but those that it cannot have."""
    possible = []
    for value in values:
        with contextlib.suppress(UserError):
            overrides = before | {name: value}
            possible.append(_Change(overrides, *_changed(config, shape, overrides)))
    return possible


def _first_that_fits(chip: Chip, changes: list[_Change]) -> Advice | None:
    """Returns the first of changes that need less and less memory, by halves: each look takes half a second."""
    first = bisect.bisect_left(changes, True, key=lambda change: _that_fits(chip, change) is not None)
    return _that_fits(chip, changes[first]) if first < len(changes) else None


def _that_fits(chip: Chip, change: _Change) -> Advice | None:
    needed = memory_on(chip, change.config, change.shape).needed
    return Advice(change.overrides, needed, change.config, change.shape) if needed <= WARNED_ABOVE * chip.memory else None


def _changes(config: ml_collections.ConfigDict, shape: Shape) -> list[tuple[str, list[Any]]]:
    """Returns (knob, values to try), from what costs least time to what costs most."""
    z, train = sizes(config, shape), config.train
    tokens, chunk = z.b * z.T, train.loss_chunk or z.b * z.T
    splits = shape["data"] * shape["fsdp"] * shape["expert"]
    rows = train.batch_size // splits
    accumulations = [divisor for divisor in _divisors(rows) if divisor > train.accumulation]
    changes: list[tuple[str, list[Any]]] = [
        ("train.loss_chunk", [size for size in (8192, 4096, 2048, 1024) if size < min(chunk, tokens)]),
        ("model.remat", ["block"] if config.model.remat != "block" else []),
        ("train.accumulation", accumulations),
        ("parallel.fsdp", [shape["fsdp"] * more for more in range(2, shape["data"] + 1) if shape["data"] % more == 0]),
    ]
    return [change for change in changes if change[1]]


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


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
