"""What any model of lmtiny must satisfy; a changed transformer.py that passes here can be trained, sharded and sampled."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from lmtiny import config as config_lib
from lmtiny.model import size
from lmtiny.model.transformer import init_cache
from lmtiny.parallel.axes import RULES

VARIANTS = {
    "rope": {},
    "gpt2": {"position": "learned", "norm": "layernorm", "norm_scale": True, "bias": "all", "activation": "gelu",
             "qk_norm": False, "tied_embeddings": True},
    "qwen": {"num_kv_heads": 2, "bias": "qkv", "activation": "swiglu", "norm_scale": True, "qk_norm": False},
    "windows": {"window": 4, "window_pattern": "SSL", "logit_soft_cap": 15.0, "activation": "geglu", "num_kv_heads": 1},
    "ratios": {"mlp_ratio": 2.5, "activation": "silu", "init": "xavier", "head_dim": 6},
    "lookups": {"num_kv_heads": 2, "ngram_rows": 64, "longest_ngram": 3, "induction": 2, "induction_places": 2},
    "copying": {"induction": 2, "copying": True},
    "experts": {"num_experts": 4, "activation": "swiglu", "mlp_ratio": 1.0},
    "kaiming": {"mlp_ratio": 3.0, "init": "kaiming", "vocab_multiple": 128},
}  # fmt: skip
TIME = 12  # shorter pieces are 1, 3, 5, 7 and 8 long in all tests: each new length is compiled anew, most of this file's time


def tiny_config(**model):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = 300
    # Projections that start at zero would make every block the identity, and most of these tests true of anything.
    config.model.update({"num_layers": 3, "width": 32, "context_length": 16, "zero_projections": False, **model})
    config_lib.check(config)
    return config


@pytest.fixture(params=VARIANTS, scope="module")
def config(request):
    return tiny_config(**VARIANTS[request.param])


@pytest.fixture(scope="module")
def params(config):
    # Larger weights than at the start, so that an error of order one is not lost in a nearly linear network.
    params = jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, size.init_params(config))
    if config.model.ngram_rows:  # as after some training: they start at zero
        for name in ("ngrams", "followers"):
            params[name]["table"] = 0.02 * jax.random.normal(jax.random.key(2), params[name]["table"].shape)
    return params


def jitted(config):
    """Returns f(params, tokens, positions, segments, cache, dropout_key) -> (logits, cache)."""
    graph, _, _ = size.abstract(config)
    return jax.jit(lambda params, *args: nnx.merge(graph, params)(*args))


@pytest.fixture(scope="module")
def model(config):
    return jitted(config)


@pytest.fixture(scope="module")
def tokens_BT():
    return jnp.tile(jax.random.randint(jax.random.key(1), (2, TIME // 2), 0, 300), (1, 2))  # said twice: n-grams come again


def test_a_position_reads_only_what_came_before(model, params, config):
    """By gradient: each token of the row is another one, so d logits[t] / d (row of the table) tells which tokens t reads."""
    if config.model.tied_embeddings:
        config = tiny_config(**VARIANTS["gpt2"] | {"tied_embeddings": False})
        model, params = jitted(config), size.init_params(config)

    @jax.jit
    def sizes_T(table_VD, time):
        logits_at = lambda table: jnp.sum(jnp.sin(model(params | {"embedding": {"table": table}}, jnp.arange(TIME)[None])[0][:, time]))  # noqa: E731
        return jnp.abs(jax.grad(logits_at)(table_VD)).sum(axis=1)[:TIME]

    for time in (0, 5, TIME - 1):
        size_T = np.array(sizes_T(params["embedding"]["table"], time))
        assert (size_T[time + 1 :] == 0).all()
        assert (size_T[: time + 1] > 0).all()


def test_causal_by_values(model, params, tokens_BT):
    changed = tokens_BT.at[:, 7].add(1)
    before, after = np.array(model(params, tokens_BT)[0]), np.array(model(params, changed)[0])
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(axis=(0, 2)).all()


@pytest.mark.parametrize("pieces", [[1] * TIME, [8, 1, 3]], ids=str)
def test_cache_equals_full_forward(model, params, config, tokens_BT, pieces):
    full, _ = model(params, tokens_BT)
    cache, start, parts = init_cache(config, 2, 16), 0, []
    for length in pieces:
        positions = jnp.broadcast_to(jnp.arange(start, start + length)[None], (2, length))
        logits, cache = model(params, tokens_BT[:, start : start + length], positions, None, cache)
        parts.append(np.array(logits))
        start += length
    np.testing.assert_allclose(np.concatenate(parts, axis=1), full, rtol=2e-4, atol=2e-5)


def test_rows_of_a_cache_may_stand_at_different_places(model, params, config, tokens_BT):
    full, _ = model(params, tokens_BT)
    _, cache = model(params, tokens_BT[:, :8], jnp.arange(8)[None].repeat(2, axis=0), None, init_cache(config, 2, 16))
    # Row 0 goes on at 8; row 1 at 4 again, overwriting what was there.
    tokens = jnp.stack([tokens_BT[0, 8:11], tokens_BT[1, 4:7]])
    logits, _ = model(params, tokens, jnp.array([[8, 9, 10], [4, 5, 6]]), None, cache)
    np.testing.assert_allclose(logits[0], full[0, 8:11], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(logits[1], full[1, 4:7], rtol=2e-4, atol=2e-5)


def loss_and_gradient(config, params, tokens_BT):
    graph, _, _ = size.abstract(config)
    return jax.jit(jax.value_and_grad(lambda params: jnp.mean(jnp.square(nnx.merge(graph, params)(tokens_BT)[0]))))(params)


@pytest.fixture(scope="module")
def expected(config, params, tokens_BT):
    return loss_and_gradient(config, params, tokens_BT)


@pytest.mark.parametrize(
    "other",
    [pytest.param({"scan_layers": True}, marks=pytest.mark.exhaustive), {"remat": "block"}, {"scan_layers": True, "remat": "dots"}],
    ids=str,
)
def test_scan_and_remat_change_nothing(expected, params, config, tokens_BT, other):
    changed = config.copy_and_resolve_references()
    changed.model.update(other)
    found = loss_and_gradient(changed, params, tokens_BT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_remat_recomputes():
    """A remat policy that did nothing would pass the test above: the backward pass must hold more of what is recomputed."""

    def count(jaxpr, primitive):
        inner = [param for equation in jaxpr.eqns for param in jaxprs_in_params(equation.params)]
        return sum(equation.primitive.name == primitive for equation in jaxpr.eqns) + sum(count(one, primitive) for one in inner)

    def counts(**model):
        graph, shapes, _ = size.abstract(tiny_config(**model))
        gradient = jax.grad(lambda params: jnp.sum(nnx.merge(graph, params)(jnp.zeros((2, TIME), jnp.int32))[0]))
        jaxpr = jax.make_jaxpr(gradient)(shapes).jaxpr
        return count(jaxpr, "dot_general"), count(jaxpr, "exp")

    none, dots, block = (counts(remat=policy) for policy in ("none", "dots", "block"))
    assert block[0] > dots[0] > none[0]  # "dots" keeps the weights' matmuls and recomputes those of attention
    assert block[1] == dots[1] > none[1]


def test_documents_of_a_packed_row_do_not_see_each_other(model, params, tokens_BT):
    segments = jnp.where(jnp.arange(TIME) < 5, 1, 2)[None].repeat(2, axis=0)
    positions = jnp.where(jnp.arange(TIME) < 5, jnp.arange(TIME), jnp.arange(TIME) - 5)[None].repeat(2, axis=0)
    packed, _ = model(params, tokens_BT, positions, segments)
    np.testing.assert_allclose(packed[:, :5], model(params, tokens_BT[:, :5])[0], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(packed[:, 5:], model(params, tokens_BT[:, 5:])[0], rtol=2e-4, atol=2e-5)


def test_initial_loss_is_near_ln_v(model, config, tokens_BT):
    tokens_BT = tokens_BT[:, :5]  # nothing said twice
    logp = np.array(jax.nn.log_softmax(model(size.init_params(config), tokens_BT)[0]))
    loss = -np.mean(np.take_along_axis(logp[:, :-1], np.array(tokens_BT)[:, 1:, None], axis=2))
    assert abs(loss - math.log(300)) < 0.1


def test_every_parameter_gets_a_gradient_and_has_axes(expected, config):
    _, shapes, axes = size.abstract(config)
    for path, grad in jax.tree_util.tree_leaves_with_path(expected[1]):
        name = jax.tree_util.keystr(path)
        # A key's bias adds the same to all scores of a query, which softmax does not see (rotation makes it seen).
        if name != "['blocks']['attention']['key']['bias']" or config.model.position == "rope":
            assert float(jnp.abs(grad).max()) > 0, name
            if name.startswith("['blocks']"):
                assert (np.abs(grad).reshape(grad.shape[0], -1).max(axis=1) > 0).all(), f"{name}: a layer without a gradient"
    named = jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple))
    for shape, names in zip(jax.tree.leaves(shapes), named, strict=True):
        assert len(shape.shape) == len(names)
        assert all(name in RULES for name in names if name is not None)


def test_dropout_drops_only_with_a_key(tokens_BT):
    config = tiny_config(dropout=0.5)
    model, params = jitted(config), size.init_params(config)
    plain = np.array(model(params, tokens_BT)[0])
    np.testing.assert_array_equal(plain, jitted(tiny_config())(params, tokens_BT)[0])
    one, other = (np.array(model(params, tokens_BT, None, None, None, jax.random.key(seed))[0]) for seed in (1, 2))
    assert (one != plain).any() and (one != other).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_close_to_float32(tokens_BT, dtype):
    full, low = tiny_config(), tiny_config(compute_dtype=dtype)
    params = size.init_params(low)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    hidden, _, _ = jax.eval_shape(lambda: nnx.merge(size.abstract(low)[0], params).hidden(tokens_BT))
    assert hidden.dtype == dtype
    np.testing.assert_allclose(jitted(low)(params, tokens_BT)[0], jitted(full)(params, tokens_BT)[0], atol=0.02)


def test_logit_soft_cap_and_padded_vocabulary(tokens_BT):
    config = tiny_config(logit_soft_cap=0.05, vocab_multiple=128)
    logits, _ = jitted(config)(size.init_params(config), tokens_BT)
    assert logits.shape[-1] == 300
    assert 0.04 < float(jnp.abs(logits).max()) < 0.0501


def test_windows_reach_as_far_as_they_say():
    """One windowed layer: the logits at t change with the token at t - window + 1, not with the one before it."""
    config = tiny_config(num_layers=1, window=4, window_pattern="S")
    model, params = jitted(config), size.init_params(config)
    tokens_BT = jnp.arange(TIME)[None].repeat(TIME, axis=0).at[jnp.arange(TIME), jnp.arange(TIME)].set(99)  # row i: token i changed
    logits, _ = model(params, jnp.concatenate([jnp.arange(TIME)[None], tokens_BT]))
    changed = np.array((logits[1:] != logits[:1]).any(axis=2))
    for at, changed_T in enumerate(changed):
        assert changed_T.tolist() == [at <= time < at + 4 for time in range(TIME)]


def test_what_is_remembered_of_a_model_is_its_own_and_cannot_be_spoiled(monkeypatch):
    monkeypatch.setattr(size, "KEPT", 2)
    for width in (16, 32, 16, 64, 16):
        config = tiny_config(width=width)
        graph, shapes, axes = size.abstract(config)
        made = size._abstract(config)
        assert graph == made[0] and shapes == made[1] and axes == made[2]
        assert shapes["embedding"]["table"].shape[1] == width
        shapes.clear(), axes["blocks"].clear()
        assert len(size._known) <= 2
    config.parallel.update(pipeline=2, pipeline_microbatches=8)
    assert nnx.merge(*size.abstract(config)[:2]).num_microbatches == 8
