"""The one table from logical axes to mesh axes; no other file says "data", "fsdp" or "tensor" of a device.

Every array dimension that matters has a logical name: parameters carry theirs (`param.axes`).  Where arrays lie is
derived from the names, and so is what is sent between devices (`parallel.collectives`).
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from lmtiny import config as config_lib

MESH_AXES = config_lib.MESH_AXES

RULES: dict[str, None | str | tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),  # all three hold different rows
    "time": "context",  # in the order of `parallel.zigzag`
    "sequence": "tensor",  # time between the matrices: what "time" leaves to a device is split once more
    "layer": "pipeline",  # the leading axis of stacked blocks
    "residual": None,  # D of activations and norms: whole on every device
    "embed": "fsdp",  # D of a weight matrix: gathered where it is used (ZeRO-3)
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": "expert",
    "vocab": ("tensor", "pipeline"),  # columns of the head: no stage idles while the loss is computed
    "table": ("tensor", "pipeline", "fsdp"),  # rows of an embedding table; gathered over fsdp, they are split as "vocab"
}
DATA_AXIS = "data"
FSDP_AXIS = "fsdp"
PIPELINE_AXIS = "pipeline"
CONTEXT_AXIS = "context"


def mesh_axes(axis: str | None) -> tuple[str, ...]:
    """Returns the mesh axes of one logical axis; raises ValueError for an unknown name."""
    if axis is not None and axis not in RULES:
        raise ValueError(f"no rule for the logical axis {axis!r}; RULES has {', '.join(RULES)}")
    entry = RULES[axis] if axis is not None else None
    return (entry,) if isinstance(entry, str) else entry or ()


def spec(axes: Sequence[str | None], *, without: str | None = None) -> PartitionSpec:
    """Returns the PartitionSpec of logical `axes`, leaving out the mesh axis `without`.

    Raises:
      ValueError: an unknown name, or two dimensions that would be split over the same mesh axis.
    """
    entries: list[None | tuple[str, ...]] = []
    used: set[str] = set()
    for axis in axes:
        names = tuple(name for name in mesh_axes(axis) if name != without)
        if used & set(names):
            raise ValueError(f"axes {tuple(axes)} split two dimensions over {', '.join(sorted(used & set(names)))}")
        used |= set(names)
        entries.append(names or None)
    return PartitionSpec(*entries)


def sharding(mesh: jax.sharding.Mesh, axes: Sequence[str | None], *, without: str | None = None) -> NamedSharding:
    """Returns where an array with these logical axes lies on `mesh`."""
    return NamedSharding(mesh, spec(axes, without=without))


def tree_specs(axes_tree: Any, *, without: str | None = None) -> Any:
    """Returns the tree of PartitionSpecs of a tree whose leaves are tuples of logical axes."""
    return jax.tree.map(lambda axes: spec(axes, without=without), axes_tree, is_leaf=lambda node: isinstance(node, tuple))


def tree_shardings(mesh: jax.sharding.Mesh, axes_tree: Any, *, without: str | None = None) -> Any:
    """Returns the tree of NamedShardings of a tree whose leaves are tuples of logical axes."""
    return jax.tree.map(lambda one: NamedSharding(mesh, one), tree_specs(axes_tree, without=without))
