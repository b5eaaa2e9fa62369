"""Experts: what they compute, whom they drop, and that every mesh of eight devices agrees with one device."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.model import experts as experts_lib
from lmtiny.model.experts import Experts
from lmtiny.model.layers import Mlp
from lmtiny.parallel import axes as axes_lib
from lmtiny.parallel import collectives

ROWS, TIME, WIDTH = 8, 16, 16


def model_config(**changes):
    knobs = {
        "num_experts": 8, "experts_per_token": 2, "expert_capacity": 0.0, "width": WIDTH, "mlp_ratio": 2.0,
        "activation": "swiglu", "init": "xavier", "bias": "none",
    }  # fmt: skip
    return ml_collections.ConfigDict(config_lib.defaults().model.to_dict() | knobs | changes)


def make(config, seed=0):
    return Experts(config, nnx.Rngs(seed), 1.0)


def inputs(seed=0, rows=ROWS):
    """Returns (x [rows, TIME, WIDTH], weights of a sum over y of the same shape)."""
    return np.random.default_rng(seed).standard_normal((2, rows, TIME, WIDTH)).astype(np.float32)


def assert_close(found, expected, tolerance=1e-5):
    """Relative to each array's own norm."""
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other), jax.tree_util.keystr(path)


def parameters(module):
    return nnx.to_pure_dict(nnx.state(module))


@pytest.mark.parametrize(
    ("capacity", "activation"), [*((0.0, kind) for kind in ("swiglu", "geglu", "gelu", "silu", "relu2")), (1.0, "swiglu"), (2.0, "relu2")]
)
def test_one_expert_is_the_dense_mlp(capacity, activation):
    config = model_config(num_experts=1, experts_per_token=1, expert_capacity=capacity, activation=activation)
    x, wanted = inputs()
    dense, mixture = Mlp(config, nnx.Rngs(0), 1.0), make(config)
    weights = parameters(dense)
    start = {**jax.tree.map(lambda kernel: kernel[None], weights), "router": parameters(mixture)["router"]}

    def loss(module, params, x):
        y = nnx.merge(nnx.graphdef(module), params)(x)
        y = y[0] if isinstance(y, tuple) else y
        return jnp.sum(y * wanted), y

    run = lambda module: jax.jit(jax.grad(functools.partial(loss, module), argnums=(0, 1), has_aux=True))  # noqa: E731
    (grads, grad_x), y = run(dense)(weights, x)
    (mixture_grads, mixture_grad_x), mixture_y = run(mixture)(start, x)
    assert_close(mixture_y, y, 1e-6)
    assert not np.any(mixture_grads.pop("router")["kernel"])
    assert_close(jax.tree.map(lambda grad: grad[0], mixture_grads), grads, 1e-6)
    assert_close(mixture_grad_x, grad_x, 1e-6)


def naive(params, x_BTD, num_choices, slots=math.inf):
    """Returns y_BTD of swiglu experts in float64, token by token; an expert takes the first `slots` of a row that chose it."""
    y_BTD = np.zeros(x_BTD.shape)
    router, up, gate, down = (np.float64(params[name]["kernel"]) for name in ("router", "up", "gate", "down"))
    for row, x_TD in enumerate(np.float64(x_BTD)):
        taken = np.zeros(router.shape[1])
        for time, x_D in enumerate(x_TD):
            scores = np.exp(x_D @ router)
            chosen = np.argsort(-scores)[:num_choices]
            for e in chosen:
                weight = scores[e] / (scores.sum() if num_choices == 1 else scores[chosen].sum())
                gated = x_D @ gate[e]
                if taken[e] < slots:
                    y_BTD[row, time] += weight * ((gated / (1 + np.exp(-gated)) * (x_D @ up[e])) @ down[e])
                taken[e] += 1
    return y_BTD


@pytest.mark.parametrize("num_choices", [1, 2, 3])
@pytest.mark.parametrize("capacity", [0.0, 0.5, 1.0])
def test_experts_are_a_loop_over_tokens(num_choices, capacity):
    x, _ = inputs()
    module = make(model_config(experts_per_token=num_choices, expert_capacity=capacity))
    y, _ = jax.jit(lambda x: module(x))(x)
    slots = math.ceil(capacity * num_choices * TIME / 8) if capacity else math.inf
    expected = naive(parameters(module), x, num_choices, slots)
    assert_close(y, expected)
    assert (np.linalg.norm(expected - naive(parameters(module), x, num_choices)) > 0.1) == bool(capacity)  # something was dropped


def test_a_large_capacity_drops_nothing():
    x, wanted = inputs()
    graph, params = nnx.split(make(model_config()))
    loss = lambda graph, params: jnp.sum(nnx.merge(graph, params)(x)[0] * wanted)  # noqa: E731
    ample = nnx.graphdef(make(model_config(expert_capacity=4.0)))  # C = T
    (one, grads), (other, other_grads) = (jax.jit(jax.value_and_grad(functools.partial(loss, way)))(params) for way in (graph, ample))
    assert one == pytest.approx(float(other), rel=1e-5)
    assert_close(parameters(grads), parameters(other_grads))


def test_capacity_keeps_the_first_in_the_row():
    """Logits are the input itself: 4 experts, 1 choice, factor 1, so C = 2 of 8 tokens."""
    module = make(model_config(width=4, num_experts=4, experts_per_token=1, expert_capacity=1.0))
    module.router.kernel[...] = jnp.eye(4)
    x = np.zeros((2, 8, 4), np.float32)
    choices = np.array([[0, 0, 1, 0, 1, 0, 2, 1], [3, 3, 3, 3, 3, 3, 3, 3]])
    np.put_along_axis(x, choices[:, :, None], 2.0, axis=2)
    kept = np.any(np.asarray(jax.jit(lambda x: module(x)[0])(x)), axis=2)
    np.testing.assert_array_equal(kept, [[1, 1, 1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0, 0, 0]])


def test_capacity_does_not_look_ahead():
    """Whoever is dropped at the end, the tokens before it are computed alike: second choices too."""
    module = make(model_config(experts_per_token=2, expert_capacity=0.5))
    run = jax.jit(lambda x: module(x)[0])
    x, other = inputs()
    changed = np.concatenate([x[:, :8], other[:, 8:]], axis=1)
    np.testing.assert_array_equal(run(x)[:, :8], run(changed)[:, :8])


@pytest.mark.parametrize("num_choices", [2, 8])
def test_gates_sum_to_one(num_choices):
    x, _ = inputs()
    gates, choices, _ = make(model_config(experts_per_token=num_choices)).router(jnp.asarray(x))
    np.testing.assert_allclose(jnp.sum(gates, axis=-1), 1.0, rtol=1e-6)
    assert np.all(np.diff(np.sort(choices, axis=-1), axis=-1) > 0)  # no expert twice


@pytest.mark.parametrize("num_choices", [1, 2])
def test_balance_is_one_a_row_when_even_and_more_when_not(num_choices):
    module = make(model_config(experts_per_token=num_choices, width=8))
    module.router.kernel[...] = jnp.eye(8)
    # The first and the next expert of token t are t and t + 1 mod 8: all are used alike.
    even = jnp.stack([jnp.roll(jnp.array([3.0, 2, 0, 0, 0, 0, 0, 0]), time) for time in range(TIME)])
    even = jnp.broadcast_to(even[None], (ROWS, TIME, 8))
    route = jax.jit(lambda x: module.router(x)[2])
    losses = route(even)
    assert losses["balance"] == pytest.approx(ROWS, rel=1e-6)
    assert losses["z"] == pytest.approx(ROWS * math.log(6 + math.exp(3) + math.exp(2)) ** 2, rel=1e-5)
    collapsed = jnp.broadcast_to(10 * even[:1, :1], even.shape)
    assert route(collapsed)["balance"] > ROWS * 8 / num_choices * 0.99
    some = inputs()[0][:, :, :8]
    whole, parts = route(some), [route(some[row : row + 1]) for row in range(ROWS)]
    assert_close(whole, jax.tree.map(lambda *rows: sum(rows), *parts))  # linear in rows


@pytest.mark.parametrize("capacity", [0.0, 1.0])
@pytest.mark.parametrize("num_choices", [1, 2])
def test_the_gradient_reaches_the_router(num_choices, capacity):
    x, wanted = inputs()
    graph, params = nnx.split(make(model_config(experts_per_token=num_choices, expert_capacity=capacity)))

    def losses(params):
        y, losses = nnx.merge(graph, params)(jnp.asarray(x))
        return {**losses, "y": jnp.sum(y * wanted)}

    for name in ("y", "balance", "z"):
        grads = jax.jit(jax.grad(lambda params: losses(params)[name]))(params)  # noqa: B023
        assert np.linalg.norm(grads["router"]["kernel"][...]) > 1e-3, name


@pytest.mark.parametrize(("sizes", "block"), [((8, 0, 16, 4), 4), ((0, 0, 0, 0), 4), ((0, 24, 0, 8), 8)], ids=str)
def test_grouped_matmul_is_ragged_dot(sizes, block):
    rng = np.random.default_rng(0)
    x, weights, wanted = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((32, 5), (4, 5, 6), (32, 6)))
    sizes, rows = jnp.array(sizes), sum(sizes)

    def loss(matmul, x, weights):
        return jnp.sum(matmul(x, weights, sizes)[:rows] * wanted[:rows])

    ours, theirs = (
        jax.jit(jax.value_and_grad(functools.partial(loss, matmul), argnums=(0, 1)))(x, weights)
        for matmul in (functools.partial(experts_lib.grouped_matmul, block=block), jax.lax.ragged_dot)
    )
    assert_close(ours, theirs)


def test_half_precision_stays_near():
    module = make(model_config())
    x = jnp.asarray(inputs()[0])
    run = jax.jit(lambda x: module(x))
    y, losses = run(x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and losses["balance"].dtype == losses["z"].dtype == jnp.float32
    rounded = x.astype(jnp.bfloat16).astype(jnp.float32)
    assert_close(y.astype(jnp.float32), run(rounded)[0], 0.02)


def make_mesh(shape):
    sizes = tuple(shape.get(name, 1) for name in axes_lib.MESH_AXES)
    return jax.make_mesh(sizes, axes_lib.MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes), devices=jax.devices()[: math.prod(sizes)])


def on_mesh(shape, config):
    """Returns (y, losses over all rows, gradients of all parameters, that of x), computed inside one shard_map."""
    x, wanted = inputs()
    graph, state = nnx.split(make(config))
    logical = {name: {"kernel": matrix["kernel"].axes} for name, matrix in state.items()}
    specs = axes_lib.tree_specs(logical)
    rows = PartitionSpec(axes_lib.mesh_axes("batch"), (*axes_lib.mesh_axes("time"), *axes_lib.mesh_axes("sequence")), None)

    def local(params, x, wanted):
        def loss(params, x):
            y, losses = nnx.merge(graph, params)(x)
            return jnp.sum(y * wanted) + 3.0 * losses["balance"] + 0.5 * losses["z"], (y, losses)

        (_, (y, losses)), (grads, grad_x) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        grads = jax.tree.map(lambda grad, axes: collectives.total_gradient(grad, axes, scatter=False), grads, logical)
        return y, jax.lax.psum(losses, axes_lib.MESH_AXES), grads, grad_x

    mesh = make_mesh(shape)
    with jax.set_mesh(mesh):
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(specs, rows, rows), out_specs=(rows, PartitionSpec(), specs, rows), check_vma=False
        )
        return jax.device_get(jax.jit(mapped)(nnx.to_pure_dict(state), x, wanted))


@functools.cache
def one_device(num_choices, capacity):
    """Computed without a mesh: the plain module under plain autodiff."""
    config = model_config(experts_per_token=num_choices, expert_capacity=capacity)
    x, wanted = inputs()
    graph, state = nnx.split(make(config))

    def loss(params, x):
        y, losses = nnx.merge(graph, params)(x)
        return jnp.sum(y * wanted) + 3.0 * losses["balance"] + 0.5 * losses["z"], (y, losses)

    (_, (y, losses)), (grads, grad_x) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(nnx.to_pure_dict(state), x)
    return jax.device_get((y, losses, grads, grad_x))


MIXED = {"expert": 2, "fsdp": 2, "tensor": 2}
WHOLE_ROWS = [{"expert": 8}, {"expert": 4, "tensor": 2}, MIXED, {"data": 2, "expert": 2, "fsdp": 2}, {"expert": 2, "tensor": 4}]
SPLIT_ROWS = [{"expert": 4, "context": 2}, {"expert": 2, "context": 2, "tensor": 2}, {"fsdp": 2, "context": 2, "tensor": 2}]


@pytest.mark.parametrize(
    ("shape", "num_choices", "capacity"),
    [
        *((shape, 2, 0.0) for shape in WHOLE_ROWS + SPLIT_ROWS),
        *((shape, 2, 0.75) for shape in WHOLE_ROWS),
        (MIXED, 1, 0.0),
        (MIXED, 1, 1.0),
    ],
    ids=str,
)
def test_every_mesh_computes_what_one_device_does(shape, num_choices, capacity):
    found = on_mesh(shape, model_config(experts_per_token=num_choices, expert_capacity=capacity))
    assert_close(found, one_device(num_choices, capacity))


def test_capacity_is_refused_where_rows_are_split():
    with pytest.raises(UserError, match="model.expert_capacity = 0.75 .* parallel.context = 2"):
        on_mesh(SPLIT_ROWS[0], model_config(expert_capacity=0.75))


def test_exchange_gives_each_device_its_experts():
    """Device i of 4 begins with rows i of all 8 experts and ends with all rows of experts 2i and 2i + 1; and back."""
    x_EB = jnp.arange(32.0).reshape(8, 4)
    mesh = make_mesh({"expert": 4})

    def there(x_EB):
        y_EB = experts_lib.exchange(x_EB, "experts", 0, 1)
        return y_EB, experts_lib.exchange(y_EB, "experts", 1, 0)

    rows, experts = PartitionSpec(None, "expert"), PartitionSpec("expert", None)
    with jax.set_mesh(mesh):
        sent, back = jax.jit(jax.shard_map(there, mesh=mesh, in_specs=rows, out_specs=(experts, rows), check_vma=False))(x_EB)
    np.testing.assert_array_equal(sent, x_EB)
    np.testing.assert_array_equal(back, x_EB)
    assert sent.addressable_shards[1].data.shape == (2, 4)
