"""Every mesh of 1, 2, 4 or 8 devices gives the loss, the gradients and the update of one device."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.model import size
from lmtiny.parallel import axes as axes_lib
from lmtiny.parallel import mesh as mesh_lib
from lmtiny.training.optimizer import make_optimizer
from lmtiny.training.state import init_state, state_shardings
from lmtiny.training.step import make_eval_step, make_gradients, make_train_step

MESHES = [shape for shape in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(shape) <= 8]
BOS = 290


def small_config(mesh=(1, 1, 1), **changes):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 299
    config.model.update(
        {"num_layers": 2, "width": 64, "num_heads": 16, "num_kv_heads": 8, "head_dim": 4, "mlp_ratio": 2.0, "activation": "swiglu",
         "context_length": 16, "zero_projections": False, "vocab_multiple": 64, "scan_layers": True, "bias": "qkv", "norm_scale": True,
         "window": 5, "window_pattern": "SL"}
    )  # fmt: skip
    config.train.batch_size = 8
    config.parallel.update(dict(zip(axes_lib.MESH_AXES, mesh, strict=True)))
    for name, value in changes.items():
        config_lib.set_knob(config, name, value)
    config_lib.check(config)
    return config


def on_mesh(config):
    """Returns the mesh of the config over as many of the emulated devices as it needs."""
    shape = tuple(config.parallel[name] for name in axes_lib.MESH_AXES)
    return mesh_lib.make_mesh(config, jax.devices()[: math.prod(shape)])


@pytest.fixture(scope="module")
def tokens():
    """Rows [8, 17] of several documents each, one of them all padding."""
    rows = np.random.default_rng(0).integers(0, 280, (8, 17)).astype(np.int32)
    rows[:, 0], rows[:, 9], rows[2, 4], rows[5, 12:], rows[7] = BOS, BOS, BOS, BOS, BOS
    return rows


@functools.cache
def initial_weights():
    return jax.device_get(size.init_params(small_config()))


def loss_and_gradients(config, tokens):
    mesh = on_mesh(config)
    with jax.set_mesh(mesh):
        places = axes_lib.tree_shardings(mesh, size.abstract(config)[2])
        params = jax.device_put(initial_weights(), places)
        gradients = jax.jit(make_gradients(config, BOS), in_shardings=(places, mesh_lib.batch_sharding(mesh), None, None))
        loss, grads, weight, bad_row = gradients(params, mesh_lib.place_batch(mesh, tokens, 8), jax.random.key(0), jnp.float32(1))
        assert int(bad_row) == -1
        return float(loss), jax.device_get(grads), float(weight)


@pytest.fixture(scope="module")
def one_device(tokens):
    return loss_and_gradients(small_config(), tokens)


def assert_close(found, expected, tolerance=1e-5):
    """Relative to each array's own norm."""
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other), jax.tree_util.keystr(path)


@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_loss_and_gradients_are_those_of_one_device(shape, tokens, one_device):
    loss, grads, weight = loss_and_gradients(small_config(shape), tokens)
    assert loss == pytest.approx(one_device[0], rel=1e-5)
    assert weight == one_device[2]
    assert_close(grads, one_device[1])


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((1, 1, 1), {"train.loss_chunk": 10}),
        ((2, 2, 2), {"train.loss_chunk": 10}),
        ((1, 1, 1), {"train.accumulation": 4}),
        ((2, 1, 2), {"train.accumulation": 2}),
        ((1, 1, 1), {"model.scan_layers": False}),
        ((2, 2, 2), {"model.scan_layers": False}),
        ((2, 2, 2), {"model.remat": "block"}),
    ],
    ids=str,
)
def test_chunks_microbatches_unrolling_and_remat_change_nothing(shape, changes, tokens, one_device):
    loss, grads, _ = loss_and_gradients(small_config(shape, **changes), tokens)
    assert loss == pytest.approx(one_device[0], rel=1e-5)
    assert_close(grads, one_device[1])


def test_chunked_loss_never_holds_all_logits():
    config = small_config(**{"train.loss_chunk": 8})
    _, shapes, _ = size.abstract(config)
    args = (shapes, jax.ShapeDtypeStruct((8, 17), jnp.int32), jax.random.key(0), jnp.float32(1))
    whole = str(jax.make_jaxpr(make_gradients(small_config(), BOS))(*args))
    chunked = str(jax.make_jaxpr(make_gradients(config, BOS))(*args))
    assert "f32[128,320]" in whole and "f32[128,320]" not in chunked


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_is_that_of_one_device(name, tokens):
    def step(shape):
        config = small_config(shape, **{"optimizer.name": name})
        mesh = on_mesh(config)
        with jax.set_mesh(mesh):
            optimizer = make_optimizer(config, size.abstract(config)[2])
            state = init_state(config, optimizer, mesh)
            before = jax.device_get(state.params)
            train_step = make_train_step(config, optimizer, mesh, BOS)
            for _ in range(2):
                state, _ = train_step(state, mesh_lib.place_batch(mesh, tokens, 8))
            token_bytes = np.arange(299, dtype=np.int32)
            scores = make_eval_step(config, mesh, BOS)(state.params, mesh_lib.place_batch(mesh, tokens, 8), token_bytes)
            assert jax.tree.map(lambda leaf: leaf.sharding, state) == state_shardings(config, optimizer, mesh)
            return jax.tree.map(lambda new, old: new - old, jax.device_get(state.params), before), jax.device_get(scores)

    (alone, alone_scores), (split, split_scores) = step((1, 1, 1)), step((2, 2, 2))
    # Adam divides by the root of a square that may be tiny: the update is less exact than the gradient.
    assert_close(split, alone, 2e-3)
    np.testing.assert_allclose(split_scores, alone_scores, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 1, 8), (1, 2, 4), (2, 2, 2), (1, 4, 2)], ids=str)
def test_nothing_large_is_replicated(shape):
    """A device holds its share of weights and optimizer state; norms and biases, whole on some axes, are a few percent."""
    config = small_config(shape)
    mesh = on_mesh(config)
    with jax.set_mesh(mesh):
        state = init_state(config, make_optimizer(config, size.abstract(config)[2]), mesh)
    for tree in (state.params, state.optimizer):
        leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size > 64 * config.model.num_layers]
        held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
        assert held * shape[1] * shape[2] <= 1.1 * sum(leaf.size for leaf in leaves)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        if path[-1].key in ("kernel", "table"):
            assert math.prod(leaf.sharding.shard_shape(leaf.shape)) * shape[1] * shape[2] == leaf.size, jax.tree_util.keystr(path)


def test_every_mesh_starts_from_the_same_weights():
    one, split = (jax.device_get(size.init_params(small_config(shape), places)) for shape, places in (
        ((1, 1, 1), None), ((2, 2, 2), axes_lib.tree_shardings(on_mesh(small_config((2, 2, 2))), size.abstract(small_config())[2]))
    ))  # fmt: skip
    # The same random bits; the inverse error function may round the last one otherwise when it is compiled for a shard.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, split)


def test_an_axis_is_not_used_twice():
    with pytest.raises(ValueError, match="two dimensions over tensor"):
        axes_lib.spec(("heads", "mlp"))
    with pytest.raises(ValueError, match="no rule for the logical axis 'haeds'"):
        axes_lib.spec(("haeds",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel.data": "3"}, r"3 x 1 x 1 but the devices are 8"),
        ({"parallel.tensor": "8", "model.num_kv_heads": "4"}, "num_kv_heads = 4 is not divisible by tensor = 8"),
        ({"train.batch_size": "12"}, "12 is not divisible by data x fsdp = 8"),
        ({"train.accumulation": "2"}, "4 is not divisible by data x fsdp = 8"),
        ({"model.vocab_multiple": "1", "parallel.fsdp": "8"}, "the vocabulary .* = 299 is not divisible by fsdp x tensor = 8"),
    ],
    ids=str,
)
def test_what_cannot_be_split_is_refused(changes, message):
    config = small_config()
    config.parallel.data = 0
    with pytest.raises(UserError, match=message):
        for name, value in changes.items():
            config_lib.set_knob(config, name, value)
        mesh_lib.make_mesh(config)
