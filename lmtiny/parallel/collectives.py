"""What devices send each other, by the logical axis that is split; nothing at all outside `jax.shard_map`.

The model's code is that of one device, with these calls where a value crosses devices; on one device, and where the
model runs under plain `jax.jit` (decoding), each returns its argument.

One rule makes every gradient right: **the loss is the sum of what all devices contribute**.  Each collective's transpose
is then jax's own (a sum's is a sum, a gather's is a scattered sum), a value that several devices hold contributes its
share on each, and a parameter's gradient is the sum over the devices that hold the same part of it.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lmtiny.parallel import axes as axes_lib


def present(*logical: str) -> tuple[str, ...]:
    """Returns the mesh axes of the logical axes that do split something here: inside shard_map, and of more than one device."""
    return _present([name for axis in logical for name in axes_lib.mesh_axes(axis)])


def _present(names: Sequence[str]) -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name in names if name in mesh.manual_axes and mesh.shape[name] > 1)


def parts(*logical: str) -> int:
    """Returns into how many parts the logical axes split an array here."""
    return math.prod(jax.lax.axis_size(name) for name in present(*logical))


def part(*logical: str) -> jax.Array | int:
    """Returns the number of the part that is here, 0 .. parts - 1."""
    names = present(*logical)
    return jax.lax.axis_index(names) if names else 0


def total(x: Any, *logical: str) -> Any:
    """Returns the sum of x over the devices that hold the parts."""
    names = present(*logical)
    return jax.lax.psum(x, names) if names else x


def total_gradient(grad: jax.Array, axes: Sequence[str | None], *, scatter: bool) -> jax.Array:
    """Returns the sum of a parameter's gradient over the devices that hold the same part of it; `axes`: its logical axes.

    Over fsdp the backward pass of `gather_weight` has summed it already, unless the weights are whole over fsdp (ZeRO-1):
    then `scatter` makes the sum, and leaves each device the part whose optimizer state it holds.
    """
    split = {name for axis in axes for name in axes_lib.mesh_axes(axis)}
    if scatter and _present([axes_lib.FSDP_AXIS]):
        for dimension, axis in enumerate(axes):
            if axes_lib.FSDP_AXIS in axes_lib.mesh_axes(axis):
                grad = jax.lax.psum_scatter(grad, axes_lib.FSDP_AXIS, scatter_dimension=dimension, tiled=True)
    names = _present([name for name in axes_lib.MESH_AXES if name not in split])
    return jax.lax.psum(grad, names) if names else grad


def largest(x: jax.Array, *logical: str) -> jax.Array:
    """Returns the elementwise maximum over the devices that hold the parts; it has no gradient."""
    names = present(*logical)
    x = jax.lax.stop_gradient(x)
    return jax.lax.pmax(x, names) if names else x


def gather(x: jax.Array, logical: str, dimension: int) -> jax.Array:
    """Returns x with the parts of all devices, in order, along `dimension`."""
    names = present(logical)
    return jax.lax.all_gather(x, names, axis=dimension, tiled=True) if names else x


def scatter_total(x: jax.Array, logical: str, dimension: int) -> jax.Array:
    """Returns this device's part, along `dimension`, of the sum of x over the devices."""
    names = present(logical)
    return jax.lax.psum_scatter(x, names, scatter_dimension=dimension, tiled=True) if names else x


def exchange(x: jax.Array, logical: str, split: int, join: int) -> jax.Array:
    """Returns, joined along dimension `join`, the parts along `split` that the devices have for this one (all-to-all)."""
    names = present(logical)
    return jax.lax.all_to_all(x, names, split, join, tiled=True) if names else x


def own_part(x: jax.Array, logical: str, dimension: int) -> jax.Array:
    """Returns this device's part, along `dimension`, of an x that all hold whole; nothing is sent."""
    if (count := parts(logical)) == 1:
        return x
    size = x.shape[dimension] // count
    return jax.lax.dynamic_slice_in_dim(x, part(logical) * size, size, dimension)


def gather_weight(weight: jax.Array, axes: Sequence[str | None], shape: Sequence[int], dtype: Any) -> jax.Array:
    """Returns the weight in `dtype`, whole over fsdp (ZeRO-3, arXiv 1910.02054); it stays split over the other axes.

    It travels in `dtype`; its gradient is summed over the devices in float32.

    Args:
      axes, shape: logical axes and size of the weight before it was split.  Where it is whole over fsdp already (ZeRO-1),
        nothing is sent.
    """
    for dimension, axis in enumerate(axes):
        names = present(axis) if axis is not None else ()
        if axes_lib.FSDP_AXIS in names and weight.shape[dimension] * parts(axis or "") == shape[dimension]:
            return _gather_weight(weight, dimension, jnp.dtype(dtype))
    return weight.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather_weight(weight: jax.Array, dimension: int, dtype: Any) -> jax.Array:
    return jax.lax.all_gather(weight.astype(dtype), axes_lib.FSDP_AXIS, axis=dimension, tiled=True)


def _gather_weight_forward(weight: jax.Array, dimension: int, dtype: Any) -> tuple[jax.Array, None]:
    return _gather_weight(weight, dimension, dtype), None


def _gather_weight_backward(dimension: int, dtype: Any, _: None, grad: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.psum_scatter(grad.astype(jnp.float32), axes_lib.FSDP_AXIS, scatter_dimension=dimension, tiled=True),)


_gather_weight.defvjp(_gather_weight_forward, _gather_weight_backward)
