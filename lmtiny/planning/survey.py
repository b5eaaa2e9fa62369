"""On how many devices a config fits, and how: for each size of slice, the mesh and the fewest microbatches."""

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

    The accumulation is the config's, or the next higher one with which the step fits; where none fits, the highest.
    """
    named = {name: slices.parse(name).num_chips for name, (kind, _) in slices.NAMED.items() if kind == chip.name}
    for name, count in (named or {f"{chip.name} x {number}": number for number in COUNTS}).items():
        if found := _option(config, chip, name, count):
            yield found


def _option(config: ml_collections.ConfigDict, chip: chips.Chip, name: str, num_devices: int) -> Option | None:
    last = None
    batch = config.train.batch_size
    for accumulation in (count for count in range(config.train.accumulation, batch + 1) if batch % count == 0):
        changed = copy.deepcopy(config)
        changed.train.accumulation = accumulation
        try:
            mesh = meshes.suggest(changed, num_devices)
            if last and mesh != last.mesh:  # another mesh only because there are too few rows: more microbatches do not help
                break
            changed = meshes.with_mesh(changed, mesh)
            shape = config_lib.mesh_shape(changed, num_devices)
        except UserError:
            break
        changed = shapes.with_attention(changed, shape, chip)
        needed = memory_on(chip, changed, shape).needed
        last = Option(name, num_devices, mesh, accumulation, changed, needed, needed <= WARNED_ABOVE * chip.memory)
        if last.fits:
            break
    return last
