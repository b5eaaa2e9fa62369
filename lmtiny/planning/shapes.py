"""What one device holds of a config's arrays on a mesh that need not exist: parameters, state, saved activations.

All of it is traced over an abstract mesh: nothing is computed, nothing compiled.
"""

import collections
import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from lmtiny import config as config_lib
from lmtiny.parallel.chips import Chip

Shape = Mapping[str, int]  # mesh axis -> devices, of all axes


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter. size: elements in all.  local: elements of a device's part.  whole: the same, whole over fsdp.

    split: mesh axes (of more than one device) it is split over.  in_blocks: stacked over layers.
    """

    path: tuple[str, ...]
    axes: tuple[str | None, ...]
    size: int
    local: int
    whole: int
    split: frozenset[str]

    @property
    def in_blocks(self) -> bool:
        """Whether it is one of the stacked blocks' parameters."""
        return self.path[0] == "blocks"

    @property
    def by_rows(self) -> bool:
        """Whether a step has gradients of the rows it read alone, and no other state than a number a row: the table of n-grams."""
        return self.path[0] == "ngrams"

    @property
    def part(self) -> str:
        """What it belongs to, in a reader's words."""
        names = {"ngrams": "n-grams", "followers": "followers of n-grams", "final_norm": "norms"}
        return names.get(self.path[0], self.path[0])


def abstract_mesh(shape: Shape) -> Any:
    """Returns a mesh of these sizes without devices."""
    from jax.sharding import AbstractMesh, AxisType

    from lmtiny.parallel.axes import MESH_AXES

    return AbstractMesh(tuple(shape[name] for name in MESH_AXES), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def parameters(config: ml_collections.ConfigDict, shape: Shape) -> list[Parameter]:
    """Returns the config's parameters on a mesh of this shape."""
    import jax

    from lmtiny.model import size
    from lmtiny.parallel.axes import FSDP_AXIS, mesh_axes

    _, shapes, axes = size.abstract(config)
    found = []
    named = jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple))
    for (path, leaf), names in zip(jax.tree_util.tree_leaves_with_path(shapes), named, strict=True):
        split = {name for axis in names for name in mesh_axes(axis) if shape[name] > 1}
        count = math.prod(leaf.shape)
        whole = count // math.prod(shape[name] for name in split - {FSDP_AXIS})
        keys = tuple(entry.key for entry in path)
        found.append(Parameter(keys, names, count, count // math.prod(shape[name] for name in split), whole, frozenset(split)))
    return found


def state_leaves(config: ml_collections.ConfigDict, shape: Shape) -> dict[str, list[tuple[tuple[int, ...], int]]]:
    """Returns {"weights", "optimizer", "rest"} -> [(shape of a device's part, bytes of an element)] of a run's state."""
    import jax

    from lmtiny.model import size
    from lmtiny.training.optimizer import make_optimizer
    from lmtiny.training.state import abstract_state

    state = abstract_state(config, make_optimizer(config, size.abstract(config)[2]), abstract_mesh(shape))
    parts = {"weights": state.params, "optimizer": state.optimizer}
    parts["rest"] = [leaf for name, leaf in vars(state).items() if name not in ("params", "optimizer")]
    return {
        name: [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree)]
        for name, tree in parts.items()
    }


def saved_leaves(config: ml_collections.ConfigDict, shape: Shape) -> list[tuple[tuple[int, ...], int]]:
    """Returns [(shape, bytes of an element)] of what the backward pass of one microbatch keeps of the forward pass.

    Up to what the head reads; the weights themselves are not counted, gathered copies of them are.

    Layers that are written out one after the other take a tenth of a second each to trace, and each time the pattern of
    windows comes round they keep the same: of many, two and three rounds are traced, and what the third adds is counted
    for the rest.
    """
    layers, a_round = config.model.num_layers, len(config.model.window_pattern) * shape["pipeline"]
    few = 2 * a_round + layers % a_round
    if config.model.scan_layers or layers <= few + a_round:
        return _saved_leaves(config, shape)
    shorter = copy.deepcopy(config)
    shorter.model.num_layers = few
    of_few = collections.Counter(_saved_leaves(shorter, shape))
    shorter.model.num_layers = few + a_round
    added = collections.Counter(_saved_leaves(shorter, shape))
    added.subtract(of_few)
    rounds = (layers - few) // a_round
    return [leaf for leaf, count in of_few.items() for _ in range(count)] + [
        leaf for leaf, count in added.items() for _ in range(count * rounds)
    ]


def _saved_leaves(config: ml_collections.ConfigDict, shape: Shape) -> list[tuple[tuple[int, ...], int]]:
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import PartitionSpec

    from lmtiny.data import rows
    from lmtiny.model import size
    from lmtiny.parallel import axes as axes_lib
    from lmtiny.training.state import weight_specs

    graph, shapes, axes = size.abstract(config)
    specs, mesh = weight_specs(config, axes), abstract_mesh(shape)

    def saved(params: Any, tokens: jax.Array) -> Any:
        def hidden(params: Any) -> tuple[Any, Any]:
            inputs = tokens[:, :-1]
            x, _, losses = nnx.merge(graph, params).hidden(inputs, rows.positions(inputs, 0), rows.segments(inputs, 0), None, None)
            return x, losses

        return jax.vjp(hidden, params)[1]

    tokens = jax.ShapeDtypeStruct((config.train.batch_size // config.train.accumulation, config.model.context_length + 1), jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh):
        run = jax.shard_map(saved, in_specs=(specs, axes_lib.spec(("batch", None))), out_specs=PartitionSpec(), check_vma=False)
        leaves = jax.tree.leaves(jax.eval_shape(run, shapes, tokens))
    weights = jax.tree.map(lambda leaf, spec: jax.sharding.NamedSharding(mesh, spec).shard_shape(leaf.shape), shapes, specs)
    own = [(one, 4) for one in jax.tree.leaves(weights, is_leaf=lambda node: isinstance(node, tuple))]
    kept = []
    for leaf in leaves:
        one = (tuple(leaf.shape), leaf.dtype.itemsize)
        if one in own:
            own.remove(one)
        else:
            kept.append(one)
    return kept


def with_attention(config: ml_collections.ConfigDict, shape: Shape, chip: Chip) -> ml_collections.ConfigDict:
    """Returns a copy of the config with the core of attention that a run on such chips would take (`model.attend`).

    Raises:
      UserError: the core that the config asks for cannot honour it there.
    """
    from lmtiny.model import attend

    model, chosen = config.model, copy.deepcopy(config)
    attend.refuse_without_ring(model.attention, shape["context"])
    if shape["context"] == 1:
        chosen.model.attention, _ = attend.choose(
            model.attention, backend=chip.backend, device_kind=f"nvidia {chip.kinds[0]}", num_queries=model.context_length,
            head_dim=config_lib.head_dim(model), dtype=model.compute_dtype, segments=model.mask_documents,
            window=model.window or model.context_length, soft_cap=model.attention_soft_cap,
        )  # fmt: skip
    return chosen


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes on one device, by the letters of the model's files.

    b rows of a microbatch, M microbatches of the pipeline, ticks: runs of a stage in a pass; T time, S time between the
    matrices; D, H, K, N, F, V here; L layers here; c bytes of the compute type; A accumulation.
    """

    b: int
    M: int
    ticks: int
    T: int
    S: int
    D: int
    H: int
    K: int
    N: int
    F: int
    V: int
    L: int
    c: int
    A: int


_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def sizes(config: ml_collections.ConfigDict, shape: Shape) -> Sizes:
    """Returns the sizes that one device works on."""
    c, train = config.model, config.train
    stages, tensor = shape["pipeline"], shape["tensor"]
    microbatches = config_lib.pipeline_microbatches(config)
    time = c.context_length // shape["context"]
    return Sizes(
        b=train.batch_size // train.accumulation // (shape["data"] * shape["fsdp"] * shape["expert"]),
        M=microbatches, ticks=microbatches + stages - 1, T=time, S=time // tensor, D=c.width,
        H=c.num_heads // tensor, K=config_lib.num_kv_heads(c) // tensor, N=config_lib.head_dim(c), F=config_lib.mlp_size(c) // tensor,
        V=config_lib.padded_vocab(config) // (tensor * stages), L=c.num_layers // stages,
        c=_BYTES[c.compute_dtype], A=train.accumulation,
    )  # fmt: skip
