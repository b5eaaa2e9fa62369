"""What a model is made of before it exists: the tree of its parameters, their count, and its FLOPs."""

import copy
import functools
import math
from typing import Any

import jax
import ml_collections
from flax import nnx

from lmtiny import config as config_lib
from lmtiny.model.transformer import Transformer, window_sizes

Tree = Any  # nested dicts


KEPT = 16  # models whose trees are remembered
_known: dict[tuple[str, int, int], tuple[Any, Tree, Tree]] = {}


def abstract(config: ml_collections.ConfigDict) -> tuple[Any, Tree, Tree]:
    """Returns (graph, shapes, axes) of the config's model without computing anything.

    `nnx.merge(graph, params)` gives the model of a parameter tree; `shapes` holds a ShapeDtypeStruct and `axes` a tuple of
    logical axes for each parameter. The last KEPT models are remembered: a start of training asks seventeen times for one.
    """
    key = (config.model.to_json(), int(config.tokenizer.vocab_size), config_lib.pipeline_microbatches(config))
    if key not in _known:
        while len(_known) >= KEPT:
            _known.pop(next(iter(_known)))
        _known[key] = _abstract(config)
    graph, shapes, axes = _known[key]
    return graph, copy.deepcopy(shapes), copy.deepcopy(axes)  # dicts that a caller may change


def _abstract(config: ml_collections.ConfigDict) -> tuple[Any, Tree, Tree]:
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    axes = {path: param.axes for path, param in nnx.to_flat_state(state)}
    shapes = nnx.to_pure_dict(state)
    named = jax.tree_util.tree_map_with_path(lambda path, _: axes[tuple(entry.key for entry in path)], shapes)
    return graph, shapes, named


def init_params(config: ml_collections.ConfigDict, shardings: Tree | None = None) -> Tree:
    """Returns the initial parameters for config.seed, made where they lie (`shardings`); the same on every mesh."""
    make = functools.partial(_init, config)
    return jax.jit(make, out_shardings=shardings)(config.seed)


def _init(config: ml_collections.ConfigDict, seed: jax.Array) -> Tree:
    return nnx.to_pure_dict(nnx.split(Transformer(config, nnx.Rngs(jax.random.key(seed))))[1])


def count_parameters(config: ml_collections.ConfigDict) -> dict[str, int]:
    """Returns {"embedding", "positions", "ngrams", "followers", "blocks", "norm", "copying", "head", "total"} -> parameters.

    Padding of the vocabulary is left out.
    """
    _, shapes, _ = abstract(config)
    parts = {
        "embedding": ("embedding",), "positions": ("positions",), "ngrams": ("ngrams",), "followers": ("followers",), "blocks": ("blocks",),
        "norm": ("final_norm",), "copying": ("copying",), "head": ("head",),
    }  # fmt: skip
    counts = {
        name: sum(math.prod(leaf.shape) for path in paths for leaf in jax.tree.leaves(shapes.get(path))) for name, paths in parts.items()
    }
    rows, vocab_size = config_lib.padded_vocab(config), config.tokenizer.vocab_size
    for name in ("embedding", "followers", "head"):
        counts[name] = counts[name] // rows * vocab_size
    counts["total"] = sum(counts.values())
    return counts


def count_experts(config: ml_collections.ConfigDict) -> int:
    """Returns the parameters of all experts (0 without any), of which a token uses experts_per_token / num_experts."""
    _, shapes, axes = abstract(config)
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple)), strict=True)
    return sum(math.prod(leaf.shape) for leaf, names in leaves if "experts" in names)


def flops_per_token(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns {"full", "causal"} -> FLOPs of a training step for each token (forward and backward, no recomputation).

    Matmul weights count 6 FLOPs each (PaLM, arXiv 2204.02311, appendix B); attention 12 H N for each key that is looked
    at: "full" counts all T keys, as most published MFU figures do, "causal" only those that mask and windows let through.
    """
    c, counts = config.model, count_parameters(config)
    head_dim, context = config_lib.head_dim(c), c.context_length
    idle = count_experts(config) * (1 - c.experts_per_token / c.num_experts) if c.num_experts else 0
    matmuls = 6.0 * (counts["blocks"] - idle + c.width * config.tokenizer.vocab_size)  # biases and norms are noise here
    key = 12.0 * c.num_heads * head_dim
    reached = (min(window, context) for window in window_sizes(c))
    seen = sum((far * (far + 1) // 2 + (context - far) * far) / context for far in reached)  # query q sees min(q + 1, far) keys
    return {"full": matmuls + key * c.num_layers * context, "causal": matmuls + key * seen}
