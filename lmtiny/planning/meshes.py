"""Which mesh to use: the one asked for, or one that needs the least memory without sending more than it must."""

import copy
import math

import ml_collections

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.values import nearest


def parse(text: str) -> dict[str, int]:
    """Returns {"data": 2, "fsdp": 4} of "data=2,fsdp=4"; raises UserError for anything else."""
    shape = {}
    for part in text.replace(" ", "").split(","):
        name, equals, count = part.partition("=")
        if name not in config_lib.MESH_AXES:
            close = nearest(name, list(config_lib.MESH_AXES), f"; there are {', '.join(config_lib.MESH_AXES)}")
            raise UserError(f"--mesh: there is no mesh axis {name!r}{close}")
        if name in shape:
            raise UserError(f"--mesh: {name} is given twice")
        if not equals or not count.isdecimal() or len(count) > 9 or int(count) < 1:
            raise UserError(f"--mesh: {part!r} should read {name}=NUMBER, as in --mesh data=2,fsdp=4")
        shape[name] = int(count)
    return shape


def with_mesh(config: ml_collections.ConfigDict, shape: dict[str, int]) -> ml_collections.ConfigDict:
    """Returns a copy of the config whose mesh is `shape`; axes that it leaves out have one device, "data" the rest."""
    changed = copy.deepcopy(config)
    for name in config_lib.MESH_AXES:
        config_lib.set_knob(changed, f"parallel.{name}", shape.get(name, 0 if name == "data" else 1))
    return changed


def is_default(config: ml_collections.ConfigDict) -> bool:
    """Returns whether the config leaves the mesh open."""
    return all(config.parallel[name] <= 1 for name in config_lib.MESH_AXES)


def suggest(config: ml_collections.ConfigDict, num_devices: int, num_slices: int = 1, tensor: int = 0) -> dict[str, int]:
    """Returns a mesh (axis -> devices, ones left out) over `num_devices` in all that `config.mesh_shape` accepts.

    All of a slice's devices share the weights (fsdp) as far as width, vocabulary and batch divide; the rest, and the
    slices, are copies (data).  Only where the batch has too few rows, or those do not divide, are heads and MLP split (tensor);
    `tensor` above 0: over so many devices.

    Raises:
      UserError: there is none; the line says what does not divide on the smallest.
    """
    inside = num_devices // num_slices
    experts = int(config.model.get("num_experts", 0) or 0)
    problem: UserError | None = None
    for split in [tensor] if tensor else divisors(inside):
        for fsdp in reversed(divisors(inside // split)):
            # With experts, an expert axis takes what it can of what fsdp would have had.
            expert = math.gcd(experts, fsdp) if experts else 1
            shape = {"data": num_devices // (split * fsdp), "fsdp": fsdp // expert, "expert": expert, "tensor": split}
            try:
                config_lib.mesh_shape(with_mesh(config, shape), num_devices)
            except UserError as error:
                problem = problem or error
                continue
            return {name: count for name, count in shape.items() if count > 1} or {"data": 1}
    raise problem or UserError("no device")


def name(shape: dict[str, int]) -> str:
    """Returns "data 2 x fsdp 4", ones left out; "one device" for a mesh of one."""
    return " x ".join(f"{axis} {count}" for axis, count in shape.items() if count > 1) or "one device"


def divisors(number: int) -> list[int]:
    """Returns the whole numbers that divide it, ascending."""
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})
