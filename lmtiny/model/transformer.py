"""The Transformer: token ids -> logits.

B batch, T time, S cache slots, D width, V vocabulary (padded), L layers, K key/value heads, N head size.

Blocks are stored stacked, every parameter with a leading "layer" axis, whether they are scanned (one compiled block, run
L times) or unrolled; so a checkpoint does not depend on that choice.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from lmtiny import config as config_lib
from lmtiny.model.attention import Attention, Cache
from lmtiny.model.layers import Mlp, Norm, dropout, rope_angles
from lmtiny.parallel.axes import constrain
from lmtiny.parallel.vocab_cross_entropy import soft_capped


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ml_collections.ConfigDict, rngs: nnx.Rngs):
        # GPT-2 scales the 2L matrices that write to the residual stream so that its variance does not grow with depth.
        out_scale = 0.0 if config.zero_projections else 1 / math.sqrt(2 * config.num_layers) if config.init == "gpt" else 1.0
        self.attention_norm, self.attention = Norm(config), Attention(config, rngs, out_scale)
        self.mlp_norm, self.mlp = Norm(config), Mlp(config, rngs, out_scale)
        self.dropout = config.dropout

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array | None,
        angles: tuple[jax.Array, jax.Array] | None,
        window: jax.Array | int,
        cache: Cache | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        keys = jax.random.split(key) if key is not None else (None, None)
        y_BTD, cache = self.attention(self.attention_norm(x_BTD), positions_BT, segments_BT, angles, window, cache)
        x_BTD = constrain(x_BTD + dropout(y_BTD, self.dropout, keys[0]), "batch", "time", "residual")
        y_BTD = self.mlp(self.mlp_norm(x_BTD))
        return constrain(x_BTD + dropout(y_BTD, self.dropout, keys[1]), "batch", "time", "residual"), cache


class Transformer(nnx.Module):
    """A decoder-only Transformer with pre-normalisation; `config` is a whole lmtiny config."""

    def __init__(self, config: ml_collections.ConfigDict, rngs: nnx.Rngs):
        model = config.model
        self.config = model.to_dict()  # plain data: a ConfigDict is not hashable, which jax.jit asks of a module's attributes
        self.vocab_size = config.tokenizer.vocab_size
        rows = config_lib.padded_vocab(config)
        self.embedding = Table(rngs, rows, model.width, "table")
        self.positions = nnx.data(Table(rngs, model.context_length, model.width, None) if model.position == "learned" else None)
        self.blocks = _stack(lambda key: Block(model, nnx.Rngs(key)), model.num_layers, rngs.params())
        self.final_norm = Norm(model)
        self.head = nnx.data(None if model.tied_embeddings else Head(rngs, model.width, rows))

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: Cache | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns (what the head reads [B, T, D] in the compute type, the new cache); arguments as `__call__`."""
        c = ml_collections.FrozenConfigDict(self.config)
        dtype = jnp.dtype(c.compute_dtype)
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        x_BTD = self.embedding(tokens_BT, dtype)
        if self.positions is not None:
            x_BTD += self.positions(positions_BT, dtype)
        head_dim = c.head_dim or c.width // c.num_heads
        angles = rope_angles(positions_BT, head_dim, c.rope_base) if c.position == "rope" else None
        keys = jax.random.split(dropout_key, c.num_layers + 1) if dropout_key is not None and c.dropout else None
        x_BTD = dropout(x_BTD, c.dropout, keys[0] if keys is not None else None)
        x_BTD = constrain(x_BTD, "batch", "time", "residual")
        segments_BT = segments_BT if c.mask_documents else None

        graph, stacked = nnx.split(self.blocks)

        def run(x_BTD: jax.Array, layer: tuple[Any, ...]) -> tuple[jax.Array, Cache | None]:
            params, window, layer_cache, key = layer
            return nnx.merge(graph, params)(x_BTD, positions_BT, segments_BT, angles, window, layer_cache, key)

        run = _rematerialised(run, c.remat)
        layers = (nnx.to_pure_dict(stacked), jnp.array(window_sizes(c)), cache, None if keys is None else keys[1:])
        if c.scan_layers:
            x_BTD, cache = jax.lax.scan(run, x_BTD, layers)
        else:
            caches = []
            for layer in _unstacked(layers, c.num_layers):
                x_BTD, layer_cache = run(x_BTD, layer)
                caches.append(layer_cache)
            cache = jax.tree.map(lambda *parts: jnp.stack(parts), *caches)
        return self.final_norm(x_BTD), cache

    def head_DV(self) -> jax.Array:
        """Returns the matrix from the residual stream to the (padded) vocabulary, in the compute type."""
        matrix = self.embedding.table[...].T if self.head is None else self.head.kernel[...]
        return matrix.astype(self.config["compute_dtype"])

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the logits [B, T, vocab_size] in float32 of what `hidden` returned."""
        logits_BTV = jnp.matmul(x_BTD, self.head_DV(), preferred_element_type=jnp.float32)
        return soft_capped(logits_BTV, self.config["logit_soft_cap"])[..., : self.vocab_size]

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: Cache | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns (logits [B, T, vocab_size] in float32, the new cache or None).

        Args:
          tokens_BT: ids.
          positions_BT: position of each token in its document; default 0..T-1. With a cache: the slot it is written to,
            consecutive within a row.
          segments_BT: number of the document each token belongs to; tokens see only their own. Default: one document.
          cache: from `init_cache`, or from an earlier call.
          dropout_key: turns dropout on.
        """
        x_BTD, cache = self.hidden(tokens_BT, positions_BT, segments_BT, cache, dropout_key)
        return self.logits(x_BTD), cache


class Table(nnx.Module):
    """Rows looked up by number: token embeddings, learned positions."""

    def __init__(self, rngs: nnx.Rngs, rows: int, width: int, axis: str | None):
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, width)), axes=(axis, "residual" if axis else "embed"))

    def __call__(self, indices: jax.Array, dtype: Any) -> jax.Array:
        return jnp.take(self.table[...].astype(dtype), indices, axis=0, mode="clip")


class Head(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int, rows: int):
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width, rows)), axes=("embed", "vocab"))


def window_sizes(model: ml_collections.ConfigDict) -> list[int]:
    """Returns how far back each layer sees, in tokens, itself included: model.window where the pattern says S."""
    unlimited = 2**30
    pattern = (model.window_pattern[layer % len(model.window_pattern)] for layer in range(model.num_layers))
    return [model.window if letter == "S" else unlimited for letter in pattern]


def init_cache(config: ml_collections.ConfigDict, batch_size: int, num_slots: int) -> Cache:
    """Returns an empty cache for `num_slots` positions of `batch_size` rows: {"key", "value"} [L, B, S, K, N], compute type."""
    c = config.model
    shape = (c.num_layers, batch_size, num_slots, c.num_kv_heads or c.num_heads, c.head_dim or c.width // c.num_heads)
    return {"key": jnp.zeros(shape, c.compute_dtype), "value": jnp.zeros(shape, c.compute_dtype)}


def _stack(make: Any, num_layers: int, key: jax.Array) -> Block:
    """Returns a Block whose every parameter has a leading axis "layer"."""
    states = jax.vmap(lambda one: nnx.split(make(one))[1])(jax.random.split(key, num_layers))
    blocks = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: make(jax.random.key(0)))), states)
    for _, param in nnx.to_flat_state(nnx.state(blocks)):
        param.set_metadata("axes", ("layer", *param.axes))
    return blocks


def _unstacked(layers: Any, num_layers: int) -> list[Any]:
    """Returns one tree for each layer. `lax.split`, since its gradient is one concatenation and not L padded sums."""
    leaves, tree = jax.tree.flatten(layers)
    parts = [[part.reshape(part.shape[1:]) for part in jax.lax.split(leaf, [1] * num_layers)] for leaf in leaves]
    return [jax.tree.unflatten(tree, [part[layer] for part in parts]) for layer in range(num_layers)]


def _rematerialised(run: Any, policy: str) -> Any:
    if policy == "none":
        return run
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return functools.partial(jax.checkpoint, policy=saved)(run)
