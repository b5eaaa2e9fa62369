"""Every mesh of eight devices gives the loss, the gradients and the update of one device (all: pytest -m exhaustive)."""

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
from lmtiny.training.state import init_state, state_shardings, weight_shardings
from lmtiny.training.step import make_eval_step, make_gradients, make_train_step

BOS = 290
CUBE = {"data": 2, "fsdp": 2, "tensor": 2}
WHOLE = dict.fromkeys(axes_lib.MESH_AXES, 1)


def all_meshes(num_devices):
    sizes = itertools.product((1, 2, 4, 8), repeat=len(axes_lib.MESH_AXES))
    meshes = (dict(zip(axes_lib.MESH_AXES, shape, strict=True)) for shape in sizes if math.prod(shape) == num_devices)
    return [mesh for mesh in meshes if mesh["pipeline"] <= 4]  # there are four layers


def mesh_name(mesh):
    return "-".join(f"{name}{size}" for name, size in mesh.items() if size > 1) or "one"


def small_config(mesh=WHOLE, **changes):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 299
    config.model.update(
        {"num_layers": 4, "width": 64, "num_heads": 16, "num_kv_heads": 8, "head_dim": 4, "mlp_ratio": 2.0, "activation": "swiglu",
         "context_length": 16, "zero_projections": False, "vocab_multiple": 64, "scan_layers": True, "bias": "qkv", "norm_scale": True,
         "window": 5, "window_pattern": "SLS"}
    )  # fmt: skip
    config.train.batch_size = 8
    config.parallel.pipeline_microbatches = 2
    config.parallel.update(WHOLE | mesh)
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


def loss_and_gradients(config, tokens, weights=None):
    mesh = on_mesh(config)
    with jax.set_mesh(mesh):
        places = weight_shardings(config, size.abstract(config)[2], mesh)
        params = jax.device_put(weights or initial_weights(), places)
        gradients = jax.jit(make_gradients(config, BOS), in_shardings=(places, mesh_lib.batch_sharding(mesh), None, None))
        batch = mesh_lib.place_batch(mesh, tokens, 8)
        loss, grads, weight, bad_row, table_rows = gradients(params, batch, jax.random.key(0), jnp.float32(1))
        assert int(bad_row) == -1
        if table_rows is not None:  # whose gradients they are counts, too
            grads = {**grads, "rows": table_rows.astype(jnp.float32)}
        return float(loss), jax.device_get(grads), float(weight)


@pytest.fixture(scope="module")
def one_device(tokens):
    return loss_and_gradients(small_config(), tokens)


def assert_close(found, expected, tolerance=1e-5):
    """Relative to each array's own norm."""
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other), jax.tree_util.keystr(path)


ALWAYS = [
    {"fsdp": 8}, {"tensor": 8}, {"context": 8}, {"pipeline": 4, "fsdp": 2}, CUBE, {"pipeline": 2, "context": 2, "tensor": 2},
]  # fmt: skip


def thoroughly(*case):
    """Returns the case as one of those that only `pytest -m exhaustive` runs."""
    return pytest.param(*case, marks=pytest.mark.exhaustive)


def and_the_others(mesh, *more, always=ALWAYS):
    return pytest.param(mesh, *more, marks=() if mesh in [WHOLE | one for one in always] else pytest.mark.exhaustive)


# On expert a model without experts has more rows, as on data.
@pytest.mark.parametrize("mesh", [and_the_others(mesh) for mesh in all_meshes(8) if mesh["expert"] == 1], ids=mesh_name)
def test_loss_and_gradients_are_those_of_one_device(mesh, tokens, one_device):
    loss, grads, weight = loss_and_gradients(small_config(mesh), tokens)
    assert loss == pytest.approx(one_device[0], rel=1e-5)
    assert weight == one_device[2]
    assert_close(grads, one_device[1])


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        ({}, {"train.loss_chunk": 10}),
        (CUBE, {"train.loss_chunk": 10}),
        thoroughly({"pipeline": 2, "tensor": 2, "context": 2}, {"train.loss_chunk": 5}),
        ({}, {"train.accumulation": 4}),
        thoroughly({"data": 2, "tensor": 2}, {"train.accumulation": 2}),
        ({"pipeline": 2, "fsdp": 2}, {"train.accumulation": 2, "parallel.pipeline_microbatches": 1}),
        ({}, {"model.scan_layers": False}),
        thoroughly(CUBE, {"model.scan_layers": False}),
        ({"pipeline": 2, "context": 2}, {"model.scan_layers": False}),
        (CUBE, {"model.remat": "block"}),
        thoroughly({"fsdp": 2, "context": 2}, {"model.remat": "dots"}),
        thoroughly({"pipeline": 2, "fsdp": 2}, {"model.remat": "names"}),
        (CUBE, {"parallel.zero": 1}),
        thoroughly({"fsdp": 4, "pipeline": 2}, {"parallel.zero": 1}),
        thoroughly({"fsdp": 2, "expert": 2}, {}),
    ],
    ids=lambda value: mesh_name(WHOLE | value) if set(value) <= set(WHOLE) else str(value),
)
def test_how_it_is_computed_changes_nothing(mesh, changes, tokens, one_device):
    loss, grads, _ = loss_and_gradients(small_config(mesh, **changes), tokens)
    assert loss == pytest.approx(one_device[0], rel=1e-5)
    assert_close(grads, one_device[1])


LOOKED_UP = {
    "model.ngram_rows": 64, "model.longest_ngram": 3, "model.induction": 2, "model.induction_places": 2, "model.copying": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained_tables():
    """Tables and gates as if they were trained: they start at zero."""
    params = jax.device_get(size.init_params(small_config(**LOOKED_UP)))
    random = np.random.default_rng(1)
    params["copying"] = {name: gate + random.normal(size=gate.shape).astype(np.float32) / 5 for name, gate in params["copying"].items()}
    for name in ("ngrams", "followers"):
        params[name]["table"] = np.random.default_rng(0).normal(size=params[name]["table"].shape).astype(np.float32) / 50
    return params


@pytest.fixture(scope="module")
def few_tokens(tokens):
    return np.where(tokens == BOS, BOS, tokens % 5)  # so that n-grams come again


@pytest.fixture(scope="module")
def one_device_that_looks_up(few_tokens, trained_tables):
    return loss_and_gradients(small_config(**LOOKED_UP), few_tokens, trained_tables)


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        thoroughly(CUBE, {}),
        ({"pipeline": 2, "context": 2, "tensor": 2}, {}),
        ({"pipeline": 2, "tensor": 2, "data": 2}, {"train.loss_chunk": 5}),
        thoroughly({"pipeline": 4, "tensor": 2}, {"model.scan_layers": False}),
        thoroughly({"tensor": 8}, {"model.scan_layers": False}),
        thoroughly({"context": 4, "fsdp": 2}, {"model.remat": "block"}),
    ],
    ids=lambda value: mesh_name(WHOLE | value) if set(value) <= set(WHOLE) else str(value),
)
def test_what_is_looked_up_is_that_of_one_device(mesh, changes, few_tokens, trained_tables, one_device_that_looks_up):
    loss, grads, _ = loss_and_gradients(small_config(mesh, **LOOKED_UP | changes), few_tokens, trained_tables)
    assert loss == pytest.approx(one_device_that_looks_up[0], rel=1e-5)
    assert_close(grads, one_device_that_looks_up[1], 2e-5)


def test_a_ring_caps_its_scores_as_one_device_does(tokens):
    cap = {"model.attention_soft_cap": 0.5}  # low enough to bend every score
    alone = loss_and_gradients(small_config(**cap), tokens)
    loss, grads, _ = loss_and_gradients(small_config({"context": 4, "tensor": 2}, **cap), tokens)
    assert loss == pytest.approx(alone[0], rel=1e-5)
    assert_close(grads, alone[1])


EXPERTS = {"model.num_experts": 8, "model.router_balance_loss": 1.0, "model.router_z_loss": 0.1}
CHOSEN = [{"expert": 4, "tensor": 2}, {"pipeline": 2, "expert": 2, "tensor": 2}]


@pytest.fixture(scope="module")
def one_device_of_experts(tokens):
    config = small_config(**EXPERTS)
    return loss_and_gradients(config, tokens, jax.device_get(size.init_params(config)))


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        *(and_the_others(mesh, {}, always=CHOSEN) for mesh in all_meshes(8)),
        thoroughly({"data": 2, "expert": 2, "fsdp": 2}, {"model.expert_capacity": 100.0}),
    ],
    ids=lambda value: mesh_name(WHOLE | value) if set(value) <= set(WHOLE) else str(value),
)
def test_experts_on_a_mesh_are_those_of_one_device(mesh, changes, tokens, one_device_of_experts):
    """The gradient of the router's own losses is in it: they weigh a hundred times more than usual."""
    config = small_config(mesh, **EXPERTS | changes)
    loss, grads, _ = loss_and_gradients(config, tokens, jax.device_get(size.init_params(config)))
    assert loss == pytest.approx(one_device_of_experts[0], rel=1e-5)
    assert_close(grads, one_device_of_experts[1])


def test_chunked_loss_never_holds_all_logits():
    config = small_config(**{"train.loss_chunk": 8})
    _, shapes, _ = size.abstract(config)
    args = (shapes, jax.ShapeDtypeStruct((8, 17), jnp.int32), jax.random.key(0), jnp.float32(1))
    whole = str(jax.make_jaxpr(make_gradients(small_config(), BOS))(*args))
    chunked = str(jax.make_jaxpr(make_gradients(config, BOS))(*args))
    assert "f32[128,320]" in whole and "f32[128,320]" not in chunked


@pytest.mark.parametrize(
    ("name", "mesh", "changes"),
    [
        thoroughly("adamw", CUBE, {}), thoroughly("muon", CUBE, {}), thoroughly("muon", {"pipeline": 2, "fsdp": 2, "context": 2}, {}),
        ("adamw", {"fsdp": 4, "zero": 1}, {}), ("muon", {"pipeline": 2, "tensor": 2, "fsdp": 2}, LOOKED_UP),
    ],
    ids=str,
)
def test_a_step_is_that_of_one_device(name, mesh, changes, tokens):
    def step(shape):
        config = small_config(shape, **{"optimizer.name": name}, **changes)
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

    (alone, alone_scores), (split, split_scores) = step({}), step(mesh)
    # Adam divides by the root of a square that may be tiny: the update is less exact than the gradient.
    assert_close(split, alone, 2e-3)
    np.testing.assert_allclose(split_scores, alone_scores, rtol=1e-5)


@pytest.mark.parametrize(
    "mesh", [{"fsdp": 8}, {"tensor": 8}, {"fsdp": 2, "tensor": 4}, CUBE, {"pipeline": 4, "fsdp": 2}], ids=mesh_name
)
def test_nothing_large_is_replicated(mesh):
    """A device holds its share of weights and optimizer state; norms and biases, whole on some axes, are a few percent."""
    config = small_config(mesh)
    parts = math.prod(size for name, size in mesh.items() if name not in ("data", "context"))
    with jax.set_mesh(on_mesh(config)):
        state = init_state(config, make_optimizer(config, size.abstract(config)[2]), on_mesh(config))
    for tree in (state.params, state.optimizer):
        leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size > 64 * config.model.num_layers]
        held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
        assert held * parts <= 1.1 * sum(leaf.size for leaf in leaves)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        if path[-1].key in ("kernel", "table"):
            assert math.prod(leaf.sharding.shard_shape(leaf.shape)) * parts == leaf.size, jax.tree_util.keystr(path)


def test_zero_1_splits_the_optimizer_state_and_not_the_weights():
    config = small_config({"fsdp": 8}, **{"parallel.zero": 1})
    state = init_state(config, make_optimizer(config, size.abstract(config)[2]), on_mesh(config))
    kernel, mean = state.params["blocks"]["mlp"]["up"]["kernel"], jax.tree.leaves(state.optimizer)
    assert kernel.sharding.shard_shape(kernel.shape) == kernel.shape
    (momentum,) = [leaf for leaf in mean if leaf.shape == kernel.shape and leaf.sharding.spec[1] == "fsdp"][:1]
    assert momentum.sharding.shard_shape(momentum.shape)[1] * 8 == momentum.shape[1]


def test_every_mesh_starts_from_the_same_weights():
    split = small_config({"pipeline": 2, "fsdp": 2, "tensor": 2})
    places = axes_lib.tree_shardings(on_mesh(split), size.abstract(split)[2])
    one, parts = size.init_params(small_config()), size.init_params(split, places)
    # The same random bits; the inverse error function may round the last one otherwise when it is compiled for a shard.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.device_get(one), jax.device_get(parts))


def test_an_axis_is_not_used_twice():
    with pytest.raises(ValueError, match="two dimensions over tensor"):
        axes_lib.spec(("heads", "mlp"))
    with pytest.raises(ValueError, match="no rule for the logical axis 'haeds'"):
        axes_lib.spec(("haeds",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel.data": "3"}, "data 3 makes 3 devices, but there are 8"),
        ({"parallel.tensor": "8", "model.num_kv_heads": "4"}, "num_kv_heads = 4 is not divisible by tensor = 8"),
        ({"train.batch_size": "12"}, "12 is not divisible by data x fsdp x expert = 8"),
        ({"train.accumulation": "2"}, "4 is not divisible by data x fsdp x expert = 8"),
        ({"model.vocab_multiple": "1", "parallel.fsdp": "8"}, "the vocabulary .* = 299 is not divisible by fsdp x tensor x pipeline = 8"),
        ({"parallel.pipeline": "8"}, "model.num_layers = 4 is not divisible by pipeline = 8"),
        ({"parallel.pipeline": "2", "parallel.pipeline_microbatches": "4"}, "= 2 is not divisible by parallel.pipeline_microbatches"),
        ({"parallel.context": "4", "parallel.tensor": "2", "model.context_length": "24"}, "24 is not divisible by .* = 16"),
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


class Chip:
    """What `create_hybrid_device_mesh` asks of a device."""

    platform, device_kind, process_index = "cpu", "cpu", 0

    def __init__(self, number):
        self.id, self.slice_index = number, number // 4


def test_only_copies_go_across_slices():
    config = small_config({"data": 4, "fsdp": 2})
    mesh = mesh_lib.make_mesh(config, [Chip(number) for number in range(8)])
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    along = slices.reshape(4, 2)  # data x fsdp
    assert (along == along[:, :1]).all() and sorted(along[:, 0]) == [0, 0, 1, 1]
    with pytest.raises(UserError, match="not divisible by the 2 slices"):
        mesh_lib.make_mesh(small_config({"fsdp": 8}), [Chip(number) for number in range(8)])
