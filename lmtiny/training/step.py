"""One optimizer step, and one evaluation step, as jitted functions of explicit state.

B rows of a batch, T time, A microbatches of b rows, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from lmtiny.data import rows
from lmtiny.model import size
from lmtiny.parallel import axes as axes_lib
from lmtiny.parallel import collectives
from lmtiny.parallel.mesh import batch_sharding
from lmtiny.parallel.vocab_cross_entropy import summed_cross_entropy
from lmtiny.parallel.zigzag import own_time
from lmtiny.training import row_adagrad
from lmtiny.training.optimizer import make_optimizer
from lmtiny.training.state import TrainState, abstract_state, chosen, state_shardings, weight_shardings, weight_specs

Metrics = dict[str, jax.Array]


class Gradients(NamedTuple):
    """loss: the mean, nats. grads: tree like the parameters, of the table of n-grams those of the rows looked up. weight: target tokens.

    bad_row: the first row of the batch that is not finite, or -1. table_rows: which rows `grads` has of the table; None without one.
    """

    loss: jax.Array
    grads: Any
    weight: jax.Array
    bad_row: jax.Array
    table_rows: jax.Array | None


SCALE_GROWTH_STEPS = 2000  # Mixed Precision Training, arXiv 1710.03740, and the default of most of its implementations


def token_losses(
    graph: Any, params: Any, tokens: jax.Array, bos_id: int, config: ml_collections.ConfigDict,
    dropout_key: jax.Array | None = None, ngrams_BTD: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """Returns (sum of nats, nll_BT in nats, mask_BT as 0.0 or 1.0, losses of the blocks' own) of packed rows tokens[B, T+1].

    Padding has mask 0.  Inside shard_map T is what this device holds of it, and the blocks' losses are its share.  The sum has
    gradients, nll_BT has none.
    """
    model = nnx.merge(graph, params)
    inputs_BT = tokens[:, :-1]
    x_BTD, _, losses = model.hidden(
        inputs_BT, rows.positions(inputs_BT, bos_id), rows.segments(inputs_BT, bos_id), None, dropout_key, ngrams_BTD
    )
    x_BTD = collectives.gather(x_BTD, "sequence", 1)
    mask_BT = own_time(rows.target_mask(tokens, bos_id)).astype(jnp.float32)
    total, nll_BT = summed_cross_entropy(
        x_BTD, model.head_DV(), own_time(tokens[:, 1:]), mask_BT,
        vocab_size=config.tokenizer.vocab_size, soft_cap=config.model.logit_soft_cap, chunk=config.train.loss_chunk,
        mixture=model.mixture(x_BTD, tokens, rows.segments(tokens, bos_id)),
    )  # fmt: skip
    return total, nll_BT, mask_BT, losses


def make_gradients(config: ml_collections.ConfigDict, bos_id: int) -> Callable[..., Gradients]:
    """Returns f(params, tokens[B, T+1], key, loss_scale) -> Gradients.

    The mean is over all target tokens of the batch, whatever the number of microbatches and devices.  Where a mesh is set
    (`jax.set_mesh`), it all runs inside one shard_map: what devices send is what `parallel.collectives` says.
    """
    graph, _, axes = size.abstract(config)
    dense_axes, _ = row_adagrad.without_ngrams(axes)

    def gradients(params: Any, tokens: jax.Array, key: jax.Array, scale: jax.Array) -> tuple[Any, ...]:
        weight = jnp.sum(rows.target_mask(tokens, bos_id).astype(jnp.float32))
        weight = jnp.maximum(collectives.total(weight, "batch"), 1.0)
        run = functools.partial(_local_gradients, config, graph, bos_id)
        nll, grads, looked_up, finite_B = run(params, tokens, key, scale / weight, scale / config.train.batch_size)
        total = functools.partial(collectives.total_gradient, scatter=config.parallel.zero == 1)
        grads = jax.tree.map(lambda grad, names: total(grad, names) / scale, grads, dense_axes)
        if looked_up is None:
            return nll / weight, grads, None, None, weight, finite_B
        table_rows, grads_MD = row_adagrad.of_all_tokens(looked_up, config.model.ngram_rows)
        return nll / weight, grads, table_rows, grads_MD / scale, weight, finite_B

    def whole(params: Any, tokens: jax.Array, key: jax.Array, scale: jax.Array) -> Gradients:
        run = gradients
        if not jax.sharding.get_abstract_mesh().empty:
            batch, everywhere = axes_lib.spec(("batch",)), PartitionSpec()
            run = jax.shard_map(
                gradients,
                in_specs=(weight_specs(config, axes), axes_lib.spec(("batch", None)), everywhere, everywhere),
                out_specs=(everywhere, axes_lib.tree_specs(dense_axes), everywhere, everywhere, everywhere, batch),
                check_vma=False,
            )
        loss, grads, table_rows, grads_MD, weight, finite_B = run(params, tokens, key, scale)
        bad_row = jnp.where(jnp.all(finite_B), -1, jnp.argmin(finite_B))
        return Gradients(loss, row_adagrad.with_ngrams(grads, grads_MD), weight, bad_row, table_rows)

    return whole


def _local_gradients(
    config: ml_collections.ConfigDict, graph: Any, bos_id: int,
    params: Any, tokens: jax.Array, key: jax.Array, token_scale: jax.Array, row_scale: jax.Array,
) -> tuple[jax.Array, Any, Any, jax.Array]:  # fmt: skip
    """Returns (sum of nats over all devices, gradient of this device's share of the loss, `looked_up`, which rows here are finite).

    The loss is token_scale x nats + row_scale x the blocks' own losses, whose weights are in the config.  `looked_up`: the
    n-grams' rows of the table [A, b, T, K], and the gradients of their sums [A, b, T, D]; None without any.
    """
    accumulation, of_blocks = config.train.accumulation, {"balance": config.model.router_balance_loss, "z": config.model.router_z_loss}
    # Devices that hold the same tokens' losses contribute a share each.
    share = token_scale / collectives.parts("vocab")
    dense, table = row_adagrad.without_ngrams(params)

    def microbatch_loss(dense: Any, ngrams_bTD: Any, tokens: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any]:
        params = row_adagrad.with_ngrams(dense, table)
        total, nll_bT, mask_bT, losses = token_losses(graph, params, tokens, bos_id, config, key, ngrams_bTD)
        rows_b = jnp.sum(nll_bT * mask_bT, axis=1)
        own = sum((of_blocks[name] * loss for name, loss in losses.items()), jnp.float32(0))
        return total * share + own * row_scale, rows_b

    def add(grads: Any, microbatch: Any) -> tuple[Any, Any]:
        index, tokens_bT = microbatch
        dropout_key = jax.random.fold_in(key, index) if config.model.dropout else None
        ngrams_bTD = rows_bTK = None
        if table is not None:
            inputs_bT = tokens_bT[:, :-1]
            ngrams_bTD, rows_bTK = nnx.merge(graph, params).looked_up_ngrams(inputs_bT, rows.positions(inputs_bT, bos_id))
        gradient = jax.value_and_grad(microbatch_loss, argnums=(0, 1), has_aux=True)
        (_, rows_b), (more, of_ngrams_bTD) = gradient(dense, ngrams_bTD, tokens_bT, dropout_key)
        return jax.tree.map(jnp.add, grads, more), (rows_b, (rows_bTK, of_ngrams_bTD))

    # Microbatch a holds rows a, a + A, ... of those that are here.
    tokens_AbT = tokens.reshape(-1, accumulation, tokens.shape[1]).swapaxes(0, 1)
    zeros = jax.tree.map(jnp.zeros_like, dense)
    if accumulation == 1:
        grads, each = add(zeros, (jnp.int32(0), tokens_AbT[0]))
        rows_Ab, looked_up = jax.tree.map(lambda one: one[None], each)
    else:
        grads, (rows_Ab, looked_up) = jax.lax.scan(add, zeros, (jnp.arange(accumulation), tokens_AbT))
    rows_B = collectives.total(rows_Ab.swapaxes(0, 1).reshape(-1), "time")
    return collectives.total(jnp.sum(rows_B), "batch"), grads, looked_up if table is not None else None, jnp.isfinite(rows_B)


def make_train_step(
    config: ml_collections.ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh, bos_id: int
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """Returns the jitted step(state, tokens[B, T+1]) -> (state, metrics); it consumes the state it is given.

    Metrics are scalars on the device: "loss" (nats), "grad_norm", "tokens" (targets), "bad_step", "bad_row", "loss_scale".
    """
    gradients = make_gradients(config, bos_id)
    half, alone = config.model.compute_dtype == "float16", mesh.size == 1

    def step(state: TrainState, tokens: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        # Without float16 the scale is 1.  A compiler that does not know it keeps the gradients twice, as they are and divided by it.
        loss_scale = jnp.float32(1) if alone and not half else state.loss_scale
        loss, grads, num_tokens, bad_row, table_rows = gradients(state.params, tokens, key, loss_scale)
        grad_norm = optax.tree.norm(grads)
        loss_ok, grads_ok = jnp.isfinite(loss), jnp.isfinite(grad_norm)
        # Under float16 an overflowing gradient is expected now and then: that step is left out and the scale halved,
        # and only a scale that has gone below 1 means trouble.
        bad = ~loss_ok | (~grads_ok & (state.loss_scale < 1.0 if half else True))
        bad_step = jnp.where((state.bad_step < 0) & bad, state.step, state.bad_step)
        take = loss_ok & grads_ok & (bad_step < 0)
        # On one device the optimizer itself leaves its state alone, which saves copies.  Over several emulated ones, without these
        # copies, XLA's CPU backend was seen to write over arrays that are still read (docs/log.md).
        updates, new_optimizer = optimizer.update(grads, state.optimizer, state.params, rows=table_rows, take=take if alone else True)
        if not alone:
            new_optimizer = chosen(take, new_optimizer, state.optimizer)
        scale, since = _next_scale(state, grads_ok) if half else (state.loss_scale, state.steps_since_scaled)
        new_state = TrainState(
            step=state.step + (bad_step < 0),
            params=_updated(take, state.params, updates, table_rows),
            optimizer=new_optimizer,
            loss_scale=scale,
            steps_since_scaled=since,
            bad_step=bad_step,
            bad_row=jnp.where(state.bad_step >= 0, state.bad_row, jnp.where(bad, bad_row, -1)),
        )
        metrics = {"loss": loss, "grad_norm": grad_norm, "tokens": num_tokens, "loss_scale": scale}
        return new_state, metrics | {"bad_step": bad_step, "bad_row": new_state.bad_row}

    shardings = state_shardings(config, optimizer, mesh)
    return jax.jit(step, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=(shardings, None), donate_argnums=0)


def abstract_inputs(config: ml_collections.ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh) -> tuple[TrainState, Any]:
    """Returns the shapes, types and places of a train step's state and batch."""
    shape = (config.train.batch_size, config.model.context_length + 1)
    return abstract_state(config, optimizer, mesh), jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))


def traced_train_step(config: ml_collections.ConfigDict, mesh: Mesh, bos_id: int = 0) -> Any:
    """Returns the config's train step traced on shapes alone, a `jax.stages.Traced`; nothing is allocated, so the devices may be
    ones that are not here."""
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config, size.abstract(config)[2])
        step: Any = make_train_step(config, optimizer, mesh, bos_id)
        return step.trace(*abstract_inputs(config, optimizer, mesh))


def _updated(take: jax.Array, params: Any, updates: Any, table_rows: jax.Array | None) -> Any:
    """Returns the parameters with the updates, or as they are where not `take`; of the table of n-grams only the rows are touched."""
    (dense, table), (of_dense, of_rows) = map(row_adagrad.without_ngrams, (params, updates))
    new = chosen(take, optax.apply_updates(dense, of_dense), dense)
    if table is None or table_rows is None:
        return new
    return row_adagrad.with_ngrams(new, row_adagrad.added_to_rows(table, table_rows, jnp.where(take, of_rows, 0)))


def _next_scale(state: TrainState, grads_ok: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (loss scale, steps since it changed): halved after an overflow, doubled after SCALE_GROWTH_STEPS without."""
    grow = state.steps_since_scaled + 1 >= SCALE_GROWTH_STEPS
    scale = jnp.where(grads_ok, jnp.where(grow, state.loss_scale * 2, state.loss_scale), state.loss_scale / 2)
    return scale, jnp.where(grads_ok & ~grow, state.steps_since_scaled + 1, 0)


def make_eval_step(config: ml_collections.ConfigDict, mesh: Mesh, bos_id: int) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """Returns the jitted step(params, tokens[B, T+1], token_bytes[V]) -> (nats of ordinary tokens, their bytes, their number).

    Special tokens stand for no bytes and are left out of all three, so bits per byte = nats / (ln 2 * bytes).
    """
    graph, _, axes = size.abstract(config)

    def step(params: Any, tokens: jax.Array, token_bytes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        _, nll_BT, mask_BT, _ = token_losses(graph, params, tokens, bos_id, config)
        bytes_BT = jnp.take(token_bytes, own_time(tokens[:, 1:]), axis=0, mode="clip") * mask_BT
        counted_BT = (bytes_BT > 0).astype(jnp.float32)
        sums: tuple[jax.Array, jax.Array, jax.Array] = collectives.total(
            (jnp.sum(nll_BT * counted_BT), jnp.sum(bytes_BT), jnp.sum(counted_BT)), "batch", "time"
        )
        return sums

    places, everywhere = weight_specs(config, axes), PartitionSpec()
    run = jax.shard_map(
        step, mesh=mesh, in_specs=(places, axes_lib.spec(("batch", None)), everywhere), out_specs=everywhere, check_vma=False
    )
    return jax.jit(run, in_shardings=(weight_shardings(config, axes, mesh), batch_sharding(mesh), None))
