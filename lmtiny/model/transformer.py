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
from lmtiny.model.attention import Attention, Cache, Rows, Window, written
from lmtiny.model.copying import Copying
from lmtiny.model.experts import Experts
from lmtiny.model.induction import followers
from lmtiny.model.layers import Mlp, Norm, dropout, rope_angles
from lmtiny.model.rematerialisation import rematerialised
from lmtiny.model.tables import Head, Ngrams, Table
from lmtiny.parallel import collectives
from lmtiny.parallel.matmul import Matrix, Transposed, matmul
from lmtiny.parallel.pipeline import run_stages
from lmtiny.parallel.soft_cap import soft_capped
from lmtiny.parallel.vocab_cross_entropy import Mixture
from lmtiny.parallel.zigzag import own_time

Losses = dict[str, jax.Array]  # of the blocks' own, beside the cross-entropy: name -> this device's share of the sum


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ml_collections.ConfigDict, rngs: nnx.Rngs):
        # GPT-2 scales the 2L matrices that write to the residual stream so that its variance does not grow with depth.
        out_scale = 0.0 if config.zero_projections else 1 / math.sqrt(2 * config.num_layers) if config.init == "gpt" else 1.0
        self.attention_norm, self.attention = Norm(config), Attention(config, rngs, out_scale)
        self.mlp_norm, self.mlp = Norm(config), (Experts if config.num_experts else Mlp)(config, rngs, out_scale)
        self.dropout = config.dropout

    def __call__(
        self, x_BTD: jax.Array, rows: Rows, window: Window, cache: Cache | None, key: jax.Array | None
    ) -> tuple[jax.Array, Cache | None, Losses]:
        keys = jax.random.split(key) if key is not None else (None, None)
        y_BTD, cache = self.attention(self.attention_norm(x_BTD), rows, window, cache)
        x_BTD += dropout(y_BTD, self.dropout, keys[0])
        y_BTD, losses = self.mlp(self.mlp_norm(x_BTD))
        return x_BTD + dropout(y_BTD, self.dropout, keys[1]), cache, losses


class Transformer(nnx.Module):
    """A decoder-only Transformer with pre-normalisation; `config` is a whole lmtiny config."""

    def __init__(self, config: ml_collections.ConfigDict, rngs: nnx.Rngs):
        model = config.model
        self.config = model.to_dict()  # plain data: a ConfigDict is not hashable, which jax.jit asks of a module's attributes
        self.vocab_size, self.num_microbatches = config.tokenizer.vocab_size, config_lib.pipeline_microbatches(config)
        rows = config_lib.padded_vocab(config)
        self.embedding = Table(rngs, rows, model.width, "table")
        self.positions = nnx.data(Table(rngs, model.context_length, model.width, None) if model.position == "learned" else None)
        self.ngrams = nnx.data(Ngrams(model.ngram_rows, model.width, model.longest_ngram) if model.ngram_rows else None)
        self.followers = nnx.data(Table(rngs, rows, model.width, "table", std=0.0) if model.induction else None)
        self.blocks = _stack(lambda key: Block(model, nnx.Rngs(key)), model.num_layers, rngs.params())
        self.final_norm = Norm(model)
        self.copying = nnx.data(Copying(model) if model.copying else None)
        self.head = nnx.data(None if model.tied_embeddings else Head(rngs, model.width, rows))

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: Cache | None = None,
        dropout_key: jax.Array | None = None,
        ngrams_BTD: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, Losses]:
        """Returns (what the head reads [B, T, D] in the compute type, the new cache, losses of the blocks' own).

        Arguments as `__call__`; `ngrams_BTD`: what `looked_up_ngrams` gives, where it has been done.  Inside shard_map they are
        whole in time, and the result holds the time steps of this device (`parallel.zigzag`); the losses are its share.
        """
        c = ml_collections.FrozenConfigDict(self.config)
        dtype = jnp.dtype(c.compute_dtype)
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        read_BS = None
        if cache is not None and "token" in cache:
            read_BS = written(cache["token"], tokens_BT, positions_BT)
            cache = {name: cache[name] for name in ("key", "value")}
        segments_BT = segments_BT if c.mask_documents else None
        x_BTD = self._looked_up(tokens_BT, positions_BT, segments_BT, read_BS, dtype)
        if self.ngrams is not None:
            x_BTD += self.looked_up_ngrams(tokens_BT, positions_BT, read_BS)[0] if ngrams_BTD is None else ngrams_BTD
        positions_BT = own_time(positions_BT)
        if dropout_key is not None:
            dropout_key = jax.random.fold_in(dropout_key, collectives.part("batch", "time", "sequence"))
            x_BTD = dropout(x_BTD, c.dropout, jax.random.fold_in(dropout_key, c.num_layers))
        angles = rope_angles(positions_BT, config_lib.head_dim(c), c.rope_base) if c.position == "rope" else None
        rows = Rows(positions_BT, angles, segments_BT)
        if collectives.parts("layer") == 1:
            x_BTD, (cache, losses) = self._run_blocks(x_BTD, rows, cache, dropout_key)
        else:
            def stage(x_bTD: jax.Array, rows: Rows, microbatch: jax.Array | int) -> tuple[jax.Array, Losses]:
                key = None if dropout_key is None else jax.random.fold_in(dropout_key, microbatch)
                x_bTD, (_, losses) = self._run_blocks(x_bTD, rows, None, key)
                return x_bTD, losses

            x_BTD, losses = run_stages(stage, x_BTD, rows, self.num_microbatches)
        if cache is not None and read_BS is not None:
            cache = {**cache, "token": read_BS}
        return self.final_norm(x_BTD), cache, losses

    def looked_up_ngrams(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, read_BS: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (the sum of the vectors of the n-grams that end at each token [B, T, D], their rows [B, T, K]), of the time steps here.

        The vectors are those of this device's "sequence", the rows are not split over it.
        """
        assert self.ngrams is not None
        rows_BTK = own_time(self.ngrams.rows(tokens_BT, positions_BT, read_BS))
        return self.ngrams(rows_BTK, jnp.dtype(self.config["compute_dtype"])), rows_BTK

    def _looked_up(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array | None, read_BS: jax.Array | None, dtype: Any
    ) -> jax.Array:
        """Returns the sum of the vectors of tokens, followers and positions, of the time steps here."""
        x_BTD = self.embedding(own_time(tokens_BT), dtype)
        if self.followers is not None:
            following = self._following(tokens_BT, positions_BT, segments_BT, read_BS)
            x_BTD += self.followers.summed([own_time(next_BT) for next_BT in following], dtype)
        if self.positions is not None:
            x_BTD += self.positions(collectives.own_part(own_time(positions_BT), "sequence", 1), dtype)
        return x_BTD

    def _following(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array | None, read_BS: jax.Array | None
    ) -> list[jax.Array]:
        """Returns `followers`, of what the cache has read where there is one."""
        numbers = self.config["induction"], self.config["induction_places"]
        if read_BS is None:
            return followers(tokens_BT, segments_BT, *numbers)
        found = followers(read_BS, None, *numbers)
        return [jnp.take_along_axis(next_BS, positions_BT, axis=1) for next_BS in found]

    def _run_blocks(
        self, x_BTD: jax.Array, rows: Rows, cache: Cache | None, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, tuple[Cache | None, Losses]]:
        """Returns what the blocks of this device (all of them without a pipeline) make of x, their caches and losses."""
        c = ml_collections.FrozenConfigDict(self.config)
        graph, stacked = nnx.split(self.blocks)
        sizes, kinds, first_layer = _windows_here(c)

        def run(x_BTD: jax.Array, layer: tuple[Any, ...], kind: int | None = None) -> tuple[jax.Array, tuple[Cache | None, Losses]]:
            params, number, traced_kind, layer_cache = layer
            key = jax.random.fold_in(dropout_key, number) if dropout_key is not None and c.dropout else None
            window = Window(sizes, traced_kind if kind is None else kind)
            x_BTD, layer_cache, losses = nnx.merge(graph, params)(x_BTD, rows, window, layer_cache, key)
            return x_BTD, (layer_cache, losses)

        num_layers = len(kinds)
        layers = (nnx.to_pure_dict(stacked), first_layer + jnp.arange(num_layers), jnp.asarray(kinds), cache)
        remat = functools.partial(rematerialised, remat=c.remat, names=c.remat_names)
        if c.scan_layers:
            x_BTD, (cache, losses) = jax.lax.scan(remat(functools.partial(run, kind=0) if len(sizes) == 1 else run), x_BTD, layers)
        else:
            results = []
            for index, layer in enumerate(_unstacked(layers, num_layers)):
                kind = None if isinstance(kinds, jax.Array) else kinds[index]
                x_BTD, result = remat(functools.partial(run, kind=kind))(x_BTD, layer)
                results.append(result)
            cache, losses = jax.tree.map(lambda *parts: jnp.stack(parts), *results)
        return x_BTD, (cache, jax.tree.map(jnp.sum, losses))

    def head_DV(self) -> Matrix:
        """Returns the matrix from the residual stream to the (padded) vocabulary that is here, in the compute type."""
        dtype = self.config["compute_dtype"]
        return Transposed(self.embedding.rows(dtype)) if self.head is None else self.head.columns(dtype)

    def mixture(self, x_BTD: jax.Array, tokens: jax.Array, segments: jax.Array) -> Mixture | None:
        """Returns what model.copying makes of the targets' probabilities, as `Copying.of_targets`; None without it."""
        if self.copying is None:
            return None
        return self.copying.of_targets(x_BTD, tokens, segments if self.config["mask_documents"] else jnp.zeros_like(segments))

    def logits(
        self,
        x_BTD: jax.Array,
        tokens_BS: jax.Array | None = None,
        places_BT: jax.Array | None = None,
        segments_BS: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the logits [B, T, vocab_size] in float32 of what `hidden` returned; with model.copying they are log-probabilities.

        Args, read by model.copying alone:
          tokens_BS: all that has been read, of which x stands at the places `places_BT`; later ones are not looked at.
          segments_BS: as in `__call__`.
        """
        logits_nV = matmul(x_BTD.reshape(-1, x_BTD.shape[-1]), self.head_DV(), jnp.float32)
        logits_BTV = logits_nV.reshape(*x_BTD.shape[:-1], -1)
        logits_BTV = soft_capped(logits_BTV, self.config["logit_soft_cap"])[..., : self.vocab_size]
        if self.copying is None:
            return logits_BTV
        if tokens_BS is None or places_BT is None:
            raise ValueError("model.copying needs the tokens that have been read, and the places in them that x stands at")
        if segments_BS is None or not self.config["mask_documents"]:
            segments_BS = jnp.zeros_like(tokens_BS)
        return self.copying.of_all(logits_BTV, x_BTD, tokens_BS, segments_BS, places_BT)

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
        x_BTD, new_cache, _ = self.hidden(tokens_BT, positions_BT, segments_BT, cache, dropout_key)
        places_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
        if new_cache is None:
            return self.logits(x_BTD, tokens_BT, places_BT, segments_BT), None
        return self.logits(x_BTD, new_cache.get("token"), places_BT if positions_BT is None else positions_BT), new_cache


def window_sizes(model: ml_collections.ConfigDict) -> list[int]:
    """Returns how far back each layer sees, in tokens, itself included: model.window where the pattern says S."""
    unlimited = 2**30
    pattern = (model.window_pattern[layer % len(model.window_pattern)] for layer in range(model.num_layers))
    return [model.window if letter == "S" else unlimited for letter in pattern]


def _windows_here(model: ml_collections.ConfigDict) -> tuple[tuple[int, ...], list[int] | jax.Array, jax.Array | int]:
    """Returns (the windows there are, which of them each layer of this device has, the number of its first layer).

    Which is an array where stages of a pipeline differ, since they run one program.
    """
    windows, num_stages = window_sizes(model), collectives.parts("layer")
    sizes = tuple(sorted(set(windows)))
    num_layers = len(windows) // num_stages
    kinds = [sizes.index(window) for window in windows]
    stages = [kinds[stage * num_layers :][:num_layers] for stage in range(num_stages)]
    first_layer = collectives.part("layer") * num_layers
    if all(stage == stages[0] for stage in stages):
        return sizes, stages[0], first_layer
    return sizes, jnp.array(stages)[collectives.part("layer")], first_layer


def init_cache(config: ml_collections.ConfigDict, batch_size: int, num_slots: int) -> Cache:
    """Returns an empty cache for `num_slots` positions of `batch_size` rows: {"key", "value"} [L, B, S, K, N], compute type.

    With model.ngram_rows or model.induction also {"token"} [B, S], which are read back as the tokens before.
    """
    c = config.model
    shape = (c.num_layers, batch_size, num_slots, config_lib.num_kv_heads(c), config_lib.head_dim(c))
    cache = {"key": jnp.zeros(shape, c.compute_dtype), "value": jnp.zeros(shape, c.compute_dtype)}
    return cache | ({"token": jnp.zeros((batch_size, num_slots), jnp.int32)} if c.ngram_rows or c.induction else {})


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
