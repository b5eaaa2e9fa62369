"""Muon: momentum whose direction, for each matrix, is made orthogonal (Jordan 2024, kellerjordan.github.io/posts/muon).

On a mesh a matrix lies in parts.  Instead of multiplying parts, devices swap them: each gets some layers' whole matrices
(all-to-all), orthogonalises those, and sends the parts back; so the work is shared and nothing is computed twice, but for
the copies along "data".

L layers, I inputs, O outputs of a matrix.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmtiny.parallel import axes as axes_lib
from lmtiny.parallel.matmul import product, product_with_rows
from lmtiny.training.state import chosen

# The quintic's coefficients and number of iterations of the original: singular values end within about 0.7 and 1.2.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5

_INPUT_AXES = {"out": ("heads", "head_dim"), "down": ("mlp",)}  # of a block's matrix, by name; the others read "embed"


class MuonState(NamedTuple):
    """step: updates done. momentum: tree like the parameters, float32."""

    step: jax.Array
    momentum: Any


def scale_by_muon(
    axes_by_path: dict[tuple[str, ...], tuple[str, ...]], decay: float, dtype: Any = jnp.float32
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation from gradients to orthogonalised Nesterov momentum of the size of AdamW's updates.

    Its update is told `take`: if not, its state stays as it was (`scale_by_adam` says why here).

    That size is 0.2 sqrt(longer side) times an orthogonal matrix, so that rates carry over (arXiv 2502.16982, eq. 4).

    Args:
      axes_by_path: logical axes of each parameter by its path.
      decay: of the momentum, an exponential average with bias correction.
      dtype: of the operands of the products that orthogonalise; bfloat16 is enough for what they are to reach.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jnp.int32(0), jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: MuonState, params: Any = None, *, take: Any = True, **_: Any) -> tuple[Any, MuonState]:
        del params
        step = jnp.where(take, state.step + 1, state.step)
        momentum = chosen(take, optax.tree.update_moment(grads, state.momentum, decay, 1), state.momentum)
        ahead = jax.tree.map(
            lambda mean, grad: decay * mean + (1 - decay) * grad,
            optax.tree.bias_correction(momentum, decay, step + 1),
            optax.tree.bias_correction(grads, decay, step),
        )
        directions = jax.tree_util.tree_map_with_path(lambda path, x: _direction(x, *_named(path, axes_by_path), dtype), ahead)
        return directions, MuonState(step, momentum)

    return optax.GradientTransformationExtraArgs(init, update)


def _named(path: Any, axes_by_path: dict[tuple[str, ...], tuple[str, ...]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (logical axes of the parameter, those of them that are its matrix's input)."""
    keys = tuple(entry.key for entry in path)
    return axes_by_path[keys], _INPUT_AXES.get(keys[-2], ("embed",))


def _direction(x: jax.Array, axes: tuple[str, ...], inputs: tuple[str, ...], dtype: Any) -> jax.Array:
    """Returns x with each of its matrices orthogonalised and scaled; "layer" and "experts" number matrices."""
    run = functools.partial(_shared_direction, axes=axes, inputs=inputs, dtype=dtype)
    if jax.sharding.get_abstract_mesh().empty:
        return run(x)
    place = axes_lib.spec(axes)
    return jax.shard_map(run, in_specs=place, out_specs=place, check_vma=False)(x)


def _shared_direction(x: jax.Array, *, axes: tuple[str, ...], inputs: tuple[str, ...], dtype: Any) -> jax.Array:
    """Returns `_direction` of the part that is here, after swapping parts for whole matrices of some layers."""
    mesh = jax.sharding.get_abstract_mesh()
    present = {name for name in mesh.manual_axes if mesh.shape[name] > 1}
    swaps = [(name, dimension) for dimension, axis in enumerate(axes) if dimension > 0 and axis != "experts"
             for name in axes_lib.mesh_axes(axis) if name in present]  # fmt: skip
    split = {name for axis in axes for name in axes_lib.mesh_axes(axis)}
    copies = tuple(sorted(present - split - {axes_lib.DATA_AXIS}))
    num_layers, parts = x.shape[0], math.prod(mesh.shape[name] for name in (*copies, *(name for name, _ in swaps)))
    x = jnp.pad(x, [(0, -num_layers % parts)] + [(0, 0)] * (x.ndim - 1))
    for name, dimension in swaps:
        x = jax.lax.all_to_all(x, name, split_axis=0, concat_axis=dimension, tiled=True)
    if copies:
        size = x.shape[0] // math.prod(mesh.shape[name] for name in copies)
        own = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(copies) * size, size, 0)
        x = jax.lax.all_gather(_of_matrices(own, axes, inputs, dtype), copies, axis=0, tiled=True)
    else:
        x = _of_matrices(x, axes, inputs, dtype)
    for name, dimension in reversed(swaps):
        x = jax.lax.all_to_all(x, name, split_axis=dimension, concat_axis=0, tiled=True)
    return x[:num_layers]


def _of_matrices(x: jax.Array, axes: tuple[str, ...], inputs: tuple[str, ...], dtype: Any) -> jax.Array:
    """Returns x, whose matrices are whole, with each of them orthogonalised and scaled."""
    numbers = [i for i, axis in enumerate(axes) if axis in ("layer", "experts")]
    rows = [i for i, axis in enumerate(axes) if axis in inputs]
    columns = [i for i in range(x.ndim) if i not in (*numbers, *rows)]
    order = (*numbers, *rows, *columns)
    moved = x.transpose(order)
    num_inputs, num_outputs = (math.prod(x.shape[i] for i in dims) for dims in (rows, columns))
    done_LIO = orthogonalized(moved.reshape(-1, num_inputs, num_outputs), dtype) * (0.2 * max(num_inputs, num_outputs) ** 0.5)
    return done_LIO.reshape(moved.shape).transpose([order.index(i) for i in range(x.ndim)])


def orthogonalized(x_LIO: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Returns each matrix, in float32, with its singular values brought near 1, by Newton-Schulz iterations of a quintic.

    `dtype`: of the products' operands; sums are in float32.
    """
    a, b, c = COEFFICIENTS
    tall = x_LIO.shape[1] > x_LIO.shape[2]
    x = x_LIO.swapaxes(1, 2) if tall else x_LIO  # the product below is then of the shorter side
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
    for _ in range(ITERATIONS):
        low = x.astype(dtype)
        square = product_with_rows(low, low)
        fourth = product_with_rows(square.astype(dtype), square.astype(dtype))  # a square is symmetric
        x = a * x + product((b * square + c * fourth).astype(dtype), low)
    return x.swapaxes(1, 2) if tall else x
