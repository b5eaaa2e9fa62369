"""The one table from logical axes to mesh axes; no other file says "data", "fsdp" or "tensor" of a device.

Every array dimension that matters has a logical name: parameters carry theirs (`param.axes`), activations are named
where they are constrained.  Sharding is derived from the names, so the model's code is that of a single device.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # both hold different rows of the batch
TENSOR_AXIS = "tensor"

RULES: dict[str, None | str | tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "time": None,
    "layer": None,  # the leading axis of stacked blocks
    "residual": None,  # D of activations, norms and tables: whole on every device
    "embed": "fsdp",  # D of a weight matrix: gathered where it is used (ZeRO-3)
    "heads": TENSOR_AXIS,
    "kv_heads": TENSOR_AXIS,
    "head_dim": None,
    "mlp": TENSOR_AXIS,
    "vocab": TENSOR_AXIS,
    # Rows of an embedding table. Splitting D as well makes XLA rematerialise the whole table at the lookup.
    "table": (TENSOR_AXIS, "fsdp"),
}


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Returns the PartitionSpec of logical `axes`.

    Raises:
      ValueError: an unknown name, or two dimensions that would be split over the same mesh axis.
    """
    entries: list[None | str | tuple[str, ...]] = []
    used: set[str] = set()
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"no rule for the logical axis {axis!r}; RULES has {', '.join(RULES)}")
        entry = RULES[axis] if axis is not None else None
        names = {entry} if isinstance(entry, str) else set(entry or ())
        if names & used:
            raise ValueError(f"axes {tuple(axes)} split two dimensions over {', '.join(sorted(names & used))}")
        used |= names
        entries.append(entry)
    return PartitionSpec(*entries)


def sharding(mesh: jax.sharding.Mesh, axes: Sequence[str | None]) -> NamedSharding:
    """Returns where an array with these logical axes lies on `mesh`."""
    return NamedSharding(mesh, spec(axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns `x`, placed by its logical axes where a mesh is set (`jax.set_mesh`); without one, `x` itself."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def tree_shardings(mesh: jax.sharding.Mesh, axes_tree: Any) -> Any:
    """Returns the tree of NamedShardings of a tree whose leaves are tuples of logical axes."""
    return jax.tree.map(lambda axes: sharding(mesh, axes), axes_tree, is_leaf=lambda node: isinstance(node, tuple))
