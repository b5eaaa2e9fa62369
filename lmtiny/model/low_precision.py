"""Matrix products in 8 bits for training: int8 or float8 operands, sums in the wide type.

Forward and the gradient of the input run in 8 bits; the gradient of the weight, a sum over all tokens in which small terms
matter, in the compute type (SwitchBack, arXiv 2304.13013, algorithm 1).  Scales are taken anew at each product, one for
each row of the left and each column of the right operand, so that there is no state and no calibration.

n tokens, I inputs, O outputs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

# Of the values (e4m3: more digits) and of the gradients (e5m2: more range): FP8 Formats for Deep Learning, arXiv 2209.05433.
_VALUES = {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}
_GRADIENTS = {"int8": jnp.int8, "float8": jnp.float8_e5m2}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x_nI: jax.Array, w_IO: jax.Array, kind: str) -> jax.Array:
    """Returns x W, [n, O] in the type of x, through operands of `kind`: "int8" or "float8"."""
    return _product(x_nI, w_IO, _VALUES[kind], _VALUES[kind])


def _forward(x_nI: jax.Array, w_IO: jax.Array, kind: str) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x_nI, w_IO, kind), (x_nI, w_IO)


def _backward(kind: str, saved: tuple[jax.Array, jax.Array], grad_nO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_nI, w_IO = saved
    return _product(grad_nO, w_IO.T, _GRADIENTS[kind], _VALUES[kind]), x_nI.T @ grad_nO


matmul.defvjp(_forward, _backward)


def _product(left: jax.Array, right: jax.Array, left_type: Any, right_type: Any) -> jax.Array:
    quantised_left, left_scale = _quantised(left, 1, left_type)
    quantised_right, right_scale = _quantised(right, 0, right_type)
    wide = jnp.int32 if left_type is jnp.int8 else jnp.float32
    product = jnp.matmul(quantised_left, quantised_right, preferred_element_type=wide)
    return (product.astype(jnp.float32) * left_scale * right_scale).astype(left.dtype)


def _quantised(x: jax.Array, axis: int, kind: Any) -> tuple[jax.Array, jax.Array]:
    """Returns (x / scale in `kind`, scale), one scale along each line of `axis`: the largest entry uses the whole range."""
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True).astype(jnp.float32)
    top = float(jnp.iinfo(kind).max if kind is jnp.int8 else jnp.finfo(kind).max)
    scale = jnp.where(largest > 0, largest, 1.0) / top
    scaled = x.astype(jnp.float32) / scale
    return (jnp.round(scaled) if kind is jnp.int8 else scaled).astype(kind), scale
