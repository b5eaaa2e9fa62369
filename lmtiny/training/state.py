"""All of a run's state that lives on devices, and where it lies."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from lmtiny.model import size
from lmtiny.parallel import axes as axes_lib


@flax.struct.dataclass
class TrainState:
    """What a step takes and returns.

    step: steps done, so also the number of the next batch. params, optimizer: trees, float32.
    loss_scale, steps_since_scaled: of float16 (1 and 0 elsewhere).
    bad_step, bad_row: the first step whose loss or gradient was not finite, and the row of its batch (-1: none, or not one
    row's doing); from then on steps change nothing, so the state stays the last good one until the loop looks.
    """

    step: jax.Array
    params: Any
    optimizer: Any
    loss_scale: jax.Array
    steps_since_scaled: jax.Array
    bad_step: jax.Array
    bad_row: jax.Array


FIRST_LOSS_SCALE = 2.0**15


def init_state(config: ml_collections.ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the state before the first step, each array made where it lies."""
    shardings = state_shardings(config, optimizer, mesh)
    params = size.init_params(config, shardings.params)
    # A function of the parameters, so that on a mesh the moments are made where the parameters are.
    make = jax.jit(lambda params: _with_optimizer(config, optimizer, params), out_shardings=shardings, donate_argnums=0)
    return make(params)


def abstract_state(config: ml_collections.ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the state's shapes, types and shardings: what a checkpoint is compared with and restored onto."""
    shapes = _shapes(config, optimizer)
    place = state_shardings(config, optimizer, mesh)
    return jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, place)


def state_shardings(config: ml_collections.ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the state's tree of NamedShardings: an optimizer's array that mirrors a parameter lies where that lies."""
    _, shapes, axes = size.abstract(config)
    by_path = dict(
        zip(
            (jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)),
            zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple)), strict=True),
            strict=True,
        )
    )

    def place(path: Any, leaf: Any) -> jax.sharding.NamedSharding:
        name = jax.tree_util.keystr(path)
        for suffix, (parameter, parameter_axes) in by_path.items():
            if name.endswith(suffix) and leaf.shape == parameter.shape:
                return axes_lib.sharding(mesh, parameter_axes)
        return axes_lib.sharding(mesh, (None,) * len(leaf.shape))

    shardings: TrainState = jax.tree_util.tree_map_with_path(place, _shapes(config, optimizer))
    return dataclasses.replace(shardings, params=weight_shardings(config, axes, mesh))


def weight_specs(config: ml_collections.ConfigDict, axes: Any) -> Any:
    """Returns the tree of PartitionSpecs of the weights; under ZeRO-1 each device of fsdp holds them whole."""
    return axes_lib.tree_specs(axes, without=axes_lib.FSDP_AXIS if config.parallel.zero == 1 else None)


def weight_shardings(config: ml_collections.ConfigDict, axes: Any, mesh: Mesh) -> Any:
    """Returns the tree of NamedShardings of the weights."""
    return jax.tree.map(lambda one: jax.sharding.NamedSharding(mesh, one), weight_specs(config, axes))


def _shapes(config: ml_collections.ConfigDict, optimizer: optax.GradientTransformation) -> TrainState:
    _, shapes, _ = size.abstract(config)
    return jax.eval_shape(lambda params: _with_optimizer(config, optimizer, params), shapes)


def _with_optimizer(config: ml_collections.ConfigDict, optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    scale = FIRST_LOSS_SCALE if config.model.compute_dtype == "float16" else 1.0
    return TrainState(
        step=jnp.int32(0),
        params=params,
        optimizer=optimizer.init(params),
        loss_scale=jnp.float32(scale),
        steps_since_scaled=jnp.int32(0),
        bad_step=jnp.int32(-1),
        bad_row=jnp.int32(-1),
    )


def chosen(take: Any, new: Any, old: Any) -> Any:
    """Returns the tree `new` where `take`, else `old`."""
    return jax.tree.map(lambda n, o: jnp.where(take, n, o), new, old)
