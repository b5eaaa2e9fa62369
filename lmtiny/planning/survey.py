"""On how many devices a config fits, and how: for each size of slice, the mesh and the microbatches."""

import copy
import dataclasses
from collections.abc import Iterator

import ml_collections

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.parallel import chips
from lmtiny.planning import meshes, shapes, slices
from lmtiny.planning.fit import WARNED_ABOVE
from lmtiny.planning.memory import memory_on

TENSOR = (2, 4, 8)  # heads and MLP are split over so many devices where nothing else makes it fit
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of devices that are not counted in slices


@dataclasses.dataclass(frozen=True)
class Option:
    """A number of devices for a config.

    name: as `--device` or `--compile` take it.  mesh: axis -> devices, ones left out.  config: with that mesh, with
    `accumulation` microbatches a step and the core of attention that runs there.  needed: bytes on a device, by formula.
    """

    name: str
    num_devices: int
    mesh: dict[str, int]
    accumulation: int
    config: ml_collections.ConfigDict
    needed: float
    fits: bool

    @property
    def overrides(self) -> dict[str, int]:
        """Knobs to set for it: the mesh but for "data", which takes the devices that are left, and the microbatches."""
        asked = {f"parallel.{axis}": count for axis, count in self.mesh.items() if axis != "data"}
        return asked | ({"train.accumulation": self.accumulation} if self.accumulation > 1 else {})


def survey(config: ml_collections.ConfigDict, chip: chips.Chip) -> Iterator[Option]:
    """Yields an Option for each size of slice (TPU) or number of devices, smallest first, that the config can be split over.

    The accumulation is the config's, or the next higher one with which the step fits; where none fits, the highest.  Heads and
    MLP are split (tensor) only where the step does not fit without, or the rows do not divide.
    """
    named = {name: slices.parse(name).num_chips for name, (kind, _) in slices.NAMED.items() if kind == chip.name}
    for name, count in (named or {f"{chip.name} x {number}": number for number in COUNTS}).items():
        if found := option(config, chip, name, count):
            yield found


def option(config: ml_collections.ConfigDict, chip: chips.Chip, name: str, num_devices: int) -> Option | None:
    """Returns the first that fits: without tensor parallelism if it can be, then with as few microbatches as can be.

    Where none fits, the one of the most microbatches, for the least tensor parallelism there is.
    """
    none_fits = None
    for tensor in (count for count in (1, *TENSOR) if num_devices % count == 0):
        candidates = _candidates(config, chip, num_devices, tensor)
        if not candidates:
            continue
        # The first apart, as a step of one microbatch has no sum of gradients; from two on more never need more.
        last = _measured(chip, name, num_devices, *candidates[0])
        if last.fits:
            return last
        if candidates[1:] and (last := _measured(chip, name, num_devices, *candidates[-1])).fits:
            return next(found for one in candidates[1:] if (found := _measured(chip, name, num_devices, *one)).fits)
        none_fits = none_fits or last
    return none_fits


def _candidates(
    config: ml_collections.ConfigDict, chip: chips.Chip, num_devices: int, tensor: int
) -> list[tuple[ml_collections.ConfigDict, dict[str, int]]]:
    """Returns (config, mesh) for each number of microbatches from the config's own on that the mesh of the first leaves room for."""
    found: list[tuple[ml_collections.ConfigDict, dict[str, int]]] = []
    batch = config.train.batch_size
    for accumulation in (count for count in meshes.divisors(batch) if count >= config.train.accumulation):
        changed = copy.deepcopy(config)
        changed.train.accumulation = accumulation
        try:
            mesh = meshes.suggest(changed, num_devices, tensor=tensor)
        except UserError:  # rows that do not divide: more microbatches may have others
            continue
        if found and mesh != found[-1][1]:  # another mesh only because there are too few rows
            break
        changed = meshes.with_mesh(changed, mesh)
        found.append((shapes.with_attention(changed, config_lib.mesh_shape(changed, num_devices), chip), mesh))
    return found


def _measured(chip: chips.Chip, name: str, num_devices: int, config: ml_collections.ConfigDict, mesh: dict[str, int]) -> Option:
    needed = memory_on(chip, config, config_lib.mesh_shape(config, num_devices)).needed
    return Option(name, num_devices, mesh, config.train.accumulation, config, needed, needed <= WARNED_ABOVE * chip.memory)
