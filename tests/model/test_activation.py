"""The activations beside their formulas in float64: in bfloat16 one rounding away, the gradient too."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtiny.model.activation import activated

SLOPE, CUBIC = math.sqrt(2 / math.pi), 0.044715  # of GELU's approximation by tanh, arXiv 1606.08415, section 2


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    t = np.tanh(SLOPE * (x + CUBIC * x**3))
    return x * (1 + t) / 2, (1 + t) / 2 + x * (1 - t**2) / 2 * SLOPE * (1 + 3 * CUBIC * x**2)


def silu(x):
    return x * sigmoid(x), sigmoid(x) * (1 + x * (1 - sigmoid(x)))


def relu2(x):
    return np.maximum(x, 0) ** 2, 2 * np.maximum(x, 0)


def drawn(kind):
    """Returns (inputs, a gate, the gradient of the outputs), each 4,096 numbers that are exact in `kind`."""
    return [(2 * jax.random.normal(jax.random.key(seed), (4096,))).astype(kind) for seed in range(3)]


def within_a_rounding(found, expected, kind):
    # Far below zero 1 + tanh cancels, in float32 too: so a little beside a share, of numbers about one.
    assert found.dtype == kind
    np.testing.assert_allclose(np.array(found, np.float64), expected, rtol=jnp.finfo(kind).eps / 2 * 1.01, atol=5e-5)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("name", "formula"), [("gelu", gelu), ("silu", silu), ("relu2", relu2)])
def test_plain(name, formula, kind):
    up, _, grad = drawn(kind)
    found, pull = jax.jit(lambda up: jax.vjp(lambda up: activated(name, up, None), up))(up)
    hidden, slope = formula(np.array(up, np.float64))
    within_a_rounding(found, hidden, kind)
    within_a_rounding(pull(grad)[0], slope * np.array(grad, np.float64), kind)


@pytest.mark.parametrize(("name", "formula"), [("geglu", gelu), ("swiglu", silu)])
def test_gated(name, formula):
    kind = jnp.bfloat16
    up, gate, grad = drawn(kind)
    found, pull = jax.jit(lambda *inputs: jax.vjp(lambda up, gate: activated(name, up, gate), *inputs))(up, gate)
    wide_up, wide_gate, wide_grad = (np.array(x, np.float64) for x in (up, gate, grad))
    hidden, slope = formula(wide_gate)
    of_up, of_gate = pull(grad)
    within_a_rounding(found, hidden * wide_up, kind)
    within_a_rounding(of_up, hidden * wide_grad, kind)
    within_a_rounding(of_gate, slope * wide_up * wide_grad, kind)


@pytest.mark.parametrize("name", ["gelu", "silu", "relu2"])
def test_the_gradient_keeps_the_input_alone(name):
    up = drawn(jnp.bfloat16)[0]
    _, pull = jax.vjp(lambda up: activated(name, up, None), up)
    assert sum(x.nbytes for x in jax.tree.leaves(pull)) == up.nbytes
