"""Products in 8 bits: close to the exact ones, exact where 8 bits suffice, and with the gradients of the exact ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtiny import config as config_lib
from lmtiny.model import size
from lmtiny.model.low_precision import matmul
from lmtiny.training.step import make_gradients


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.005), ("float8", 0.03)])
def test_product_and_gradients_are_close(kind, error):
    x, w, weight = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate(((64, 96), (96, 32), (64, 32))))
    # A row and a column far larger than the others must not cost them their digits.
    x, w, weight = x.at[3].mul(1000.0), w.at[:, 5].mul(1000.0), weight.at[7].mul(1000.0)

    def worst(found, left, right):
        """Returns the largest error of an entry over the lengths of the row and the column it is the product of."""
        lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=0)[None]
        return np.max(np.abs(found - left @ right) / lengths)

    product, backward = jax.vjp(lambda x, w: matmul(x, w, kind), x, w)
    dx, dw = backward(weight)
    assert worst(product, x, w) < error and worst(dx, weight, w.T) < 2 * error
    np.testing.assert_array_equal(dw, x.T @ weight)


def test_small_whole_numbers_are_exact():
    x, w = jnp.array([[127.0, -3, 0], [0, 0, 0]]), jnp.array([[127.0], [5], [1]])
    np.testing.assert_array_equal(matmul(x, w, "int8"), [[127 * 127 - 15], [0]])


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_a_models_gradients_point_the_same_way(kind):
    def gradients(matmul_dtype):
        config = config_lib.defaults()
        config.tokenizer.vocab_size, config.model.matmul_dtype = 300, matmul_dtype
        config.model.update({"num_layers": 2, "width": 64, "context_length": 16, "zero_projections": False})
        tokens = jax.random.randint(jax.random.key(1), (4, 17), 0, 250)
        return jax.jit(make_gradients(config, 299))(size.init_params(config), tokens, jax.random.key(0), jnp.float32(1))[:2]

    (exact_loss, exact), (loss, found) = gradients("compute"), gradients(kind)
    assert float(loss) == pytest.approx(float(exact_loss), rel=1e-3) and loss != exact_loss
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree["blocks"])]) for tree in (exact, found)]
    assert np.dot(*flat) / np.prod([np.linalg.norm(one) for one in flat]) > 0.99
