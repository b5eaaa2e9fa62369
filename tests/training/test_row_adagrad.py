"""The table of n-grams: its rows' gradients are those of the whole table, and only rows that were looked up move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lmtiny import config as config_lib
from lmtiny.model import size
from lmtiny.parallel import mesh as mesh_lib
from lmtiny.training import row_adagrad
from lmtiny.training.optimizer import make_optimizer
from lmtiny.training.state import init_state
from lmtiny.training.step import make_gradients, make_train_step, token_losses

BOS, ROWS = 63, 40
TOKENS = np.random.default_rng(0).integers(0, 7, (4, 13)).astype(np.int32)
TOKENS[:, 0], TOKENS[1, 5] = BOS, BOS


def small_config(**changes):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 64
    config.model.update({"num_layers": 1, "width": 16, "num_heads": 2, "context_length": 12, "ngram_rows": ROWS, "longest_ngram": 3})
    config.train.update({"batch_size": 4, "num_steps": 3})
    for name, value in changes.items():
        config_lib.set_knob(config, name, value)
    return config


def trained(config):
    params = size.init_params(config)
    params["ngrams"]["table"] = jax.random.normal(jax.random.key(1), (ROWS, 16)) / 50
    return params


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_of_the_rows_are_those_of_the_whole_table(accumulation):
    config = small_config(**{"train.accumulation": accumulation})
    params = trained(config)
    _, grads, weight, _, rows = jax.jit(make_gradients(config, BOS))(params, TOKENS, jax.random.key(0), jnp.float32(1))

    def loss(params):
        return token_losses(size.abstract(config)[0], params, TOKENS, BOS, config)[0] / weight

    whole = jax.jit(jax.grad(loss))(params)
    found = np.zeros((ROWS, 16), np.float32)
    there = np.array(rows) < ROWS
    assert len(np.unique(rows)) == len(rows)
    found[np.array(rows)[there]] = np.array(grads["ngrams"]["table"])[there]
    expected = np.array(whole["ngrams"]["table"])
    assert 10 < (np.abs(expected).sum(1) > 0).sum() < ROWS  # some rows are not looked up
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert not np.array(grads["ngrams"]["table"])[~there].any()
    np.testing.assert_allclose(grads["embedding"]["table"], whole["embedding"]["table"], atol=1e-7)
    assert float(optax.tree.norm(grads)) == pytest.approx(float(optax.tree.norm(whole)), rel=1e-5)  # so clipping is the same


def test_rows_of_one_number_learn_by_adagrad_of_optax():
    table, theirs = {"table": jnp.zeros((6, 1))}, jnp.zeros((6, 1))
    ours, optax_adagrad = row_adagrad.scale_by_row_adagrad(), optax.scale_by_rss(0.0, 0.0)
    state, their_state = ours.init(table), optax_adagrad.init(theirs)
    random = np.random.default_rng(0)
    for looked_up in ([0, 2, 2, 5], [2, 3, 5, 5], [1, 1, 1, 2]):
        of_each = random.normal(size=(4, 1)).astype(np.float32)
        rows, grads = row_adagrad.summed_by_row(jnp.array(looked_up), jnp.array(of_each), 6)
        directions, state = ours.update({"table": grads}, state, rows=rows)
        table = {"table": row_adagrad.added_to_rows(table["table"], rows, directions["table"])}
        dense = jnp.zeros((6, 1)).at[jnp.array(looked_up)].add(of_each)
        of_optax, their_state = optax_adagrad.update(dense, their_state)
        theirs += of_optax
        np.testing.assert_allclose(table["table"], theirs, rtol=1e-6)
    assert table["table"][4] == 0 and (np.array(theirs)[[0, 1, 2, 3, 5]] != 0).all()


def test_a_rows_first_step_has_the_rate_as_its_root_mean_square():
    grads = jnp.array([[3.0, -4.0, 0.0, 0.0], [1e-9, 0, 0, 0], [0, 0, 0, 0]])
    directions, state = row_adagrad.scale_by_row_adagrad().update(
        {"table": grads}, row_adagrad.scale_by_row_adagrad().init({"table": jnp.zeros((5, 4))}), rows=jnp.array([4, 1, 0])
    )
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(directions["table"] ** 2, axis=1)), [1, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(directions["table"][0], [1.2, -1.6, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(state.squares["table"], [0, 0.25e-18, 0, 0, 6.25], rtol=1e-6)


def test_a_prior_makes_first_steps_of_small_gradients_small():
    """Mean squares 4 and 16, of which 10 is usual: root (1 + 3) of the gradient over root (its square + 3 x 10)."""
    grads = jnp.array([[2.0, -2.0], [4.0, 4.0], [0.0, 0.0]])  # the last is none
    adagrad = row_adagrad.scale_by_row_adagrad(prior=3.0)
    directions, state = adagrad.update({"table": grads}, adagrad.init({"table": jnp.zeros((5, 2))}), rows=jnp.array([1, 4, 5]))
    expected = [[2 * 2 / 34**0.5, -2 * 2 / 34**0.5], [4 * 2 / 46**0.5, 4 * 2 / 46**0.5], [0, 0]]
    np.testing.assert_allclose(directions["table"], expected, rtol=1e-6)
    np.testing.assert_array_equal(state.squares["table"], [0, 4, 0, 0, 16])  # what is kept is the sum alone
    again, _ = adagrad.update({"table": grads[1:]}, state, rows=jnp.array([4, 5]))
    np.testing.assert_allclose(again["table"][0], [4 * 2 / (32 + 3 * 16) ** 0.5] * 2, rtol=1e-6)


def run_steps(config, tokens, count):
    mesh = mesh_lib.make_mesh(config, jax.devices()[:1])
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config, size.abstract(config)[2])
        state, step = init_state(config, optimizer, mesh), make_train_step(config, optimizer, mesh, BOS)
        for _ in range(count):
            state, metrics = step(state, mesh_lib.place_batch(mesh, tokens, 4))
        return jax.device_get(state), metrics


def test_a_step_moves_the_rows_it_reads_at_their_own_rate():
    """Whatever the schedule says of the first step: that of all other rates is a tenth of their peak."""
    changes = {"optimizer.ngram_learning_rate": 0.2, "optimizer.ngram_prior": 0.0, "optimizer.warmup_steps": 10, "optimizer.clip_norm": 0.0}
    config = small_config(**changes)
    state, _ = run_steps(config, TOKENS, 1)
    model = nnx.merge(size.abstract(config)[0], size.init_params(config))
    positions = np.where(np.arange(12) >= 5, np.arange(12) - 5, np.arange(12))[None] * np.array([[0], [1], [0], [0]])
    positions += np.arange(12)[None] * np.array([[1], [0], [1], [1]])
    read = np.unique(model.looked_up_ngrams(TOKENS[:, :-1], positions)[1])
    moved = np.sqrt((state.params["ngrams"]["table"] ** 2).mean(1))
    np.testing.assert_array_equal(np.flatnonzero(moved), read)
    np.testing.assert_allclose(moved[read], 0.2, rtol=1e-5)


def test_a_step_that_is_not_finite_leaves_the_table_as_it_was():
    config = small_config()
    good, _ = run_steps(config, TOKENS, 1)
    mesh = mesh_lib.make_mesh(config, jax.devices()[:1])
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config, size.abstract(config)[2])
        state = jax.tree.map(jnp.array, good)
        state.params["embedding"]["table"] = state.params["embedding"]["table"] * jnp.nan
        after, metrics = make_train_step(config, optimizer, mesh, BOS)(state, mesh_lib.place_batch(mesh, TOKENS, 4))
    assert int(metrics["bad_step"]) == 1
    np.testing.assert_array_equal(after.params["ngrams"]["table"], good.params["ngrams"]["table"])
    jax.tree.map(np.testing.assert_array_equal, after.optimizer, good.optimizer)
