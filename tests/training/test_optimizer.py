"""Schedules by hand, groups by name, Muon and AdamW against optax and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmtiny import config as config_lib
from lmtiny.model import size
from lmtiny.training.adam import scale_by_adam
from lmtiny.training.muon import orthogonalized
from lmtiny.training.optimizer import group, make_optimizer, peak_rates, schedule

PLAIN = {"optimizer__clip_norm": 0.0, "optimizer__schedule": "constant"}


def config_with(**changes):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 300
    config.model.update({"num_layers": 2, "width": 16, "num_heads": 2, "num_kv_heads": 1, "context_length": 8})
    config.model.update({"norm_scale": True, "bias": "all"})
    config.train.num_steps = 100
    for name, value in changes.items():
        config_lib.set_knob(config, name.replace("__", "."), value)
    return config


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "cosine", "warmup_steps": 10, "final_fraction": 0.1}, {0: 0.1, 4: 0.5, 9: 1, 10: 1, 55: 0.55, 100: 0.1, 200: 0.1}),
        ({"schedule": "linear", "warmup_steps": 0, "warmdown_fraction": 0.4, "final_fraction": 0.0}, {0: 1, 60: 1, 80: 0.5, 100: 0.0}),
        ({"schedule": "linear", "warmup_steps": 20, "warmdown_fraction": 1.0, "final_fraction": 0.0}, {19: 1, 20: 1, 60: 0.5, 100: 0.0}),
        ({"schedule": "constant", "warmup_steps": 2}, {0: 0.5, 1: 1.0, 2: 1.0, 99: 1.0}),
    ],
)
def test_schedules(changes, expected):
    rate = schedule(config_with(**{f"optimizer__{name}": value for name, value in changes.items()}))
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-6), step


def tree_of(config, seed):
    _, shapes, _ = size.abstract(config)
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), shapes)


def one_update(config, seed=0):
    """Returns path -> (parameter, gradient, first update)."""
    optimizer = make_optimizer(config, size.abstract(config)[2])
    params, grads = tree_of(config, seed), tree_of(config, seed + 1)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    rows = zip(*(jax.tree_util.tree_leaves_with_path(tree) for tree in (params, grads, updates)), strict=True)
    return {tuple(entry.key for entry in path): (np.array(p), np.array(g), np.array(u)) for (path, p), (_, g), (_, u) in rows}


def test_groups_and_their_rates():
    assert group(("embedding", "table")) == group(("positions", "table")) == "embedding"
    assert group(("ngrams", "table")) == "ngrams"
    assert group(("head", "kernel")) == "head" and group(("blocks", "mlp", "up", "kernel")) == "matrix"
    assert group(("blocks", "mlp", "up", "bias")) == group(("final_norm", "scale")) == "scalar"
    config = config_with(optimizer__learning_rate=0.1, optimizer__head_learning_rate=0.2)
    assert peak_rates(config) == {"matrix": 0.1, "embedding": 0.1, "ngrams": 0.025, "head": 0.2, "scalar": 0.1}


@pytest.mark.parametrize("decay", ["matrices", "tables", "all"])
def test_adamw_is_optax_adamw_with_a_rate_and_a_decay_for_each_group(decay):
    rates = {"matrix": 0.1, "embedding": 0.2, "head": 0.3, "scalar": 0.4}
    config = config_with(
        **PLAIN, optimizer__name="adamw", optimizer__decay=decay, optimizer__weight_decay=0.5, optimizer__learning_rate=0.1,
        optimizer__embedding_learning_rate=0.2, optimizer__head_learning_rate=0.3, optimizer__scalar_learning_rate=0.4,
    )  # fmt: skip
    decayed = {"matrices": {"matrix"}, "tables": {"matrix", "embedding", "head"}, "all": set(rates)}[decay]
    for path, (param, grad, update) in one_update(config).items():
        name = group(path)
        reference = optax.adamw(rates[name], 0.9, 0.95, 1e-8, weight_decay=0.5 if name in decayed else 0.0)
        expected, _ = reference.update(grad, reference.init(param), param)
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7, err_msg=str(path))


def newton_schulz(matrix):
    """Five steps of the quintic iteration, from Keller Jordan's description of Muon."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / np.linalg.norm(x)
    for _ in range(5):
        y = x @ x.T
        x = a * x + (b * y + c * y @ y) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_muon_orthogonalises_each_layers_matrices_and_nothing_else():
    config = config_with(**PLAIN, optimizer__name="muon", optimizer__learning_rate=0.1, optimizer__weight_decay=0.0)
    rows_of = {"query": 16, "key": 16, "value": 16, "out": 16, "up": 16, "down": 64}
    seen = set()
    for path, (param, grad, update) in one_update(config).items():
        if group(path) != "matrix":
            reference = optax.adam(0.1, 0.9, 0.95, 1e-8)
            expected, _ = reference.update(grad, reference.init(param), param)
            np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7, err_msg=str(path))
            continue
        seen.add(path[-2])
        for layer in range(2):
            matrix = grad[layer].reshape(rows_of[path[-2]], -1)
            expected = -0.1 * 0.2 * max(matrix.shape) ** 0.5 * newton_schulz(matrix)
            # The first Nesterov momentum points along the gradient, and Newton-Schulz does not see its length.
            np.testing.assert_allclose(update[layer].reshape(matrix.shape), expected, rtol=2e-3, atol=1e-4, err_msg=str(path))
    assert seen == set(rows_of)


def test_muon_goes_the_way_of_optax_over_several_steps():
    config = config_with(**PLAIN, optimizer__name="muon", optimizer__learning_rate=0.1, optimizer__weight_decay=0.0)
    optimizer = make_optimizer(config, size.abstract(config)[2])
    reference = optax.contrib.scale_by_muon(beta=0.95)
    params, update = tree_of(config, 0), jax.jit(optimizer.update)
    state, reference_state = optimizer.init(params), [reference.init(jnp.zeros((16, 64)))] * 2
    for step in range(1, 4):
        grads = tree_of(config, step)
        updates, state = update(grads, state, params)
        for layer in range(2):
            grad = grads["blocks"]["mlp"]["up"]["kernel"][layer]
            expected, reference_state[layer] = reference.update(grad, reference_state[layer])
            found = updates["blocks"]["mlp"]["up"]["kernel"][layer]
            np.testing.assert_allclose(found, -0.1 * 0.2 * 8 * expected, rtol=1e-3, atol=1e-5)


def test_adam_is_optaxs_and_steps_that_are_not_taken_leave_it_as_it_was():
    params = tree_of(config_with(), 0)
    ours, theirs = scale_by_adam(0.9, 0.99, 1e-8), optax.scale_by_adam(0.9, 0.99, 1e-8)
    update, state, reference_state = jax.jit(ours.update), ours.init(params), theirs.init(params)
    for step in range(1, 6):
        grads = tree_of(config_with(), step)
        if step in (1, 4):
            _, after = update(grads, state, params, take=jnp.array(False))
            jax.tree.map(np.testing.assert_array_equal, after, state)
            continue
        found, state = update(grads, state, params, take=jnp.array(True))
        expected, reference_state = jax.jit(theirs.update)(grads, reference_state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), (found, state), (expected, reference_state))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_not_taken_leaves_the_whole_state_as_it_was(name):
    config = config_with(optimizer__name=name)
    optimizer = make_optimizer(config, size.abstract(config)[2])
    params = tree_of(config, 0)
    _, state = optimizer.update(tree_of(config, 1), optimizer.init(params), params)
    _, after = jax.jit(optimizer.update)(tree_of(config, 2), state, params, take=jnp.array(False))
    assert len(jax.tree.leaves(after)) > 10
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_muon_in_bfloat16_reaches_what_it_is_to_reach():
    """Singular values from the largest to 2 % of it end between 0.7 and 1.2, as in the original's plot, in either type."""
    left, _, right = np.linalg.svd(np.random.default_rng(0).normal(size=(48, 64)), full_matrices=False)
    matrix = (left * np.geomspace(1, 0.02, 48)) @ right
    for dtype in ("float32", "bfloat16"):
        found = np.linalg.svd(np.asarray(orthogonalized(jnp.asarray(matrix, jnp.float32)[None], dtype)[0]), compute_uv=False)
        assert found.min() > 0.65 and found.max() < 1.25, dtype


def test_clipping_scales_the_whole_gradient():
    plain = PLAIN | {"optimizer__clip_norm": 0.5, "optimizer__weight_decay": 0.0}
    config = config_with(**plain, optimizer__name="adamw", optimizer__epsilon=1e3)
    # With a huge epsilon, Adam's update is proportional to the gradient.
    rows = one_update(config)
    norm = np.sqrt(sum(np.sum(grad.astype(np.float64) ** 2) for _, grad, _ in rows.values()))
    for _, grad, update in rows.values():
        np.testing.assert_allclose(update, -3e-4 * grad * 0.5 / norm / 1e3, rtol=1e-4, atol=1e-12)


def test_the_finders_sweep_takes_the_place_of_the_schedule():
    config = config_with(optimizer__name="adamw", optimizer__clip_norm=0.0, optimizer__learning_rate=0.1)
    optimizer = make_optimizer(config, size.abstract(config)[2], lambda step: jnp.array([1.0, 7.0])[step])
    params, grads = tree_of(config, 0), tree_of(config, 1)
    state = optimizer.init(params)
    first, state = optimizer.update(grads, state, jax.tree.map(jnp.zeros_like, params))
    second, _ = optimizer.update(grads, state, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(second["head"]["kernel"], 7 * first["head"]["kernel"], rtol=1e-3)
