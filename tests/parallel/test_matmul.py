"""Products summed in float32, with the gradients of the plain product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtiny import config as config_lib
from lmtiny.model import size
from lmtiny.parallel.matmul import matmul, product_over_rows, product_with_rows, transposed
from lmtiny.training.step import make_gradients


def whole_numbers(seed, *shape, dtype=jnp.bfloat16):
    """Small ones, so that sums are exact in float32 in whatever order."""
    return jnp.asarray(np.random.default_rng(seed).integers(-8, 9, shape), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(64, 48, 40), (37, 8, 65), (16, 1, 3), (768, 128, 512)])
def test_values_and_gradients_are_those_of_the_plain_product(tokens, inputs, outputs, dtype):
    x, w, grad = (whole_numbers(i, *shape, dtype=dtype) for i, shape in enumerate(((tokens, inputs), (inputs, outputs), (tokens, outputs))))
    y, pull = jax.jit(functools.partial(jax.vjp, lambda x, w: matmul(x, w, jnp.float32)))(x, w)
    dx, dw = jax.jit(lambda pull, grad: pull(grad))(pull, jnp.float32(grad))
    wide = [np.float64(one) for one in (x, w, grad)]
    np.testing.assert_array_equal(y, wide[0] @ wide[1])
    np.testing.assert_array_equal(np.float32(dx), np.float32(jnp.asarray(wide[2] @ wide[1].T, dtype)))
    np.testing.assert_array_equal(np.float32(dw), np.float32(jnp.asarray(wide[0].T @ wide[2], dtype)))
    assert (dx.dtype, dw.dtype) == (x.dtype, w.dtype)


def test_many_small_terms_are_not_lost():
    """256 + 1 is 256 in bfloat16."""
    x, w = jnp.ones((16, 4096), jnp.bfloat16), jnp.ones((4096, 16), jnp.bfloat16)
    np.testing.assert_array_equal(np.float32(matmul(x, w)), np.full((16, 16), 4096.0))


@pytest.mark.parametrize("shape", [(3, 32, 5), (3, 7, 5), (16, 16)])
def test_sums_over_rows_and_with_rows_of_many_matrices(shape):
    x, y = whole_numbers(0, *shape), whole_numbers(1, *shape)
    wide_x, wide_y = np.float32(x), np.float32(y)
    np.testing.assert_array_equal(jax.jit(product_over_rows)(x, y), wide_x.swapaxes(-1, -2) @ wide_y)
    np.testing.assert_array_equal(jax.jit(product_with_rows)(x, y), wide_x @ wide_y.swapaxes(-1, -2))
    np.testing.assert_array_equal(np.float32(jax.jit(transposed)(x)), wide_x.swapaxes(-1, -2))


@pytest.mark.parametrize(("width", "heads", "tied"), [(64, 2, True), (24, 3, False), (40, 1, True)])
def test_a_bfloat16_model_of_any_size_has_gradients_near_those_of_float32(width, heads, tied):
    """XLA refuses some bfloat16 products on a CPU only when they run: every form that a model makes is run here."""

    def gradients(dtype):
        config = config_lib.defaults()
        config.tokenizer.vocab_size = 300
        config.model.update({"num_layers": 2, "width": width, "num_heads": heads, "context_length": 17, "zero_projections": False,
                             "tied_embeddings": tied, "compute_dtype": dtype})  # fmt: skip
        tokens = jax.random.randint(jax.random.key(1), (4, 18), 0, 250)
        return jax.jit(make_gradients(config, 299))(size.init_params(config), tokens, jax.random.key(0), jnp.float32(1))[1]

    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients(dtype))]) for dtype in ("float32", "bfloat16")]
    assert np.dot(*flat) / np.prod([np.linalg.norm(one) for one in flat]) > 0.998
