"""Matrix products that are summed in float32 whatever the type of the operands, at full speed on every backend.

TPU and GPU sum bfloat16 products in float32 by themselves.  XLA on a CPU runs them at full speed only where the result is
asked for in float32 and the summed dimension lies innermost in the left operand; all else it converts to float32 first, at
half the speed.  Products on a CPU may be made elsewhere (`lmtiny.parallel.cpu_matmul`), as fast whatever is transposed.

n tokens, I inputs, O outputs; leading dimensions number matrices.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmtiny.parallel import cpu_matmul, mesh
from lmtiny.parallel.apart import apart

ROWS_AT_ONCE = 16  # rows that `transposed` moves together; 2 to 32 measured the same


class Transposed(NamedTuple):
    """A matrix W [I, O] that lies in memory as its transpose: products and gradients of it are made without another copy."""

    w_OI: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.w_OI.shape[::-1]

    @property
    def dtype(self) -> Any:
        return self.w_OI.dtype

    def astype(self, dtype: Any) -> "Transposed":
        return Transposed(self.w_OI.astype(dtype))


Matrix = jax.Array | Transposed


def matmul(x_nI: jax.Array, w_IO: Matrix, dtype: Any = None) -> jax.Array:
    """Returns x W, [n, O], summed in float32, in `dtype` (default: that of x)."""
    dtype = jnp.dtype(dtype or x_nI.dtype)
    if cpu_matmul.takes(x_nI, w_IO) or (x_nI.dtype == jnp.bfloat16 and mesh.platform() == "cpu"):
        return _wide_matmul(x_nI, w_IO, dtype)
    return jnp.matmul(x_nI, w_IO.w_OI.T if isinstance(w_IO, Transposed) else w_IO, preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _wide_matmul(x_nI: jax.Array, w_IO: Matrix, dtype: Any) -> jax.Array:
    """Returns x W; its gradient is rounded to the type of x before it is multiplied."""
    return product(x_nI, w_IO, dtype)


def _forward(x_nI: jax.Array, w_IO: Matrix, dtype: Any) -> tuple[jax.Array, tuple[jax.Array, Matrix]]:
    return product(x_nI, w_IO, dtype), (x_nI, w_IO)


def _backward(dtype: Any, saved: tuple[jax.Array, Matrix], grad_nO: jax.Array) -> tuple[jax.Array, Matrix]:
    x_nI, w_IO = saved
    grad_nO = grad_nO.astype(x_nI.dtype)
    return product_with_rows(grad_nO, w_IO, x_nI.dtype), gradient_of(w_IO, x_nI, grad_nO).astype(w_IO.dtype)


_wide_matmul.defvjp(_forward, _backward)


def gradient_of(w_IO: Matrix, x_nI: jax.Array, grad_nO: jax.Array) -> Matrix:
    """Returns the gradient in float32 of W, lying as W does, by that of x W."""
    if isinstance(w_IO, Transposed):
        return Transposed(product_over_rows(grad_nO, x_nI))
    return product_over_rows(x_nI, grad_nO)


def product(x_nI: jax.Array, w_IO: Matrix, dtype: Any = jnp.float32) -> jax.Array:
    """Returns x W in `dtype`, summed in float32."""
    if isinstance(w_IO, Transposed):
        return product_with_rows(x_nI, w_IO.w_OI, dtype)
    if cpu_matmul.takes(x_nI, w_IO):
        return cpu_matmul.matmul(x_nI, w_IO, dtype=dtype)
    return jnp.matmul(x_nI, w_IO, preferred_element_type=jnp.float32).astype(dtype)


def product_with_rows(x_nI: jax.Array, w_OI: Matrix, dtype: Any = jnp.float32) -> jax.Array:
    """Returns x W^T in `dtype`, summed in float32: each row of x times each row of W."""
    if isinstance(w_OI, Transposed):
        return product(x_nI, w_OI.w_OI, dtype)
    if cpu_matmul.takes(x_nI, w_OI):
        return cpu_matmul.matmul(x_nI, w_OI, b_transposed=True, dtype=dtype)
    numbers, last = tuple(range(x_nI.ndim - 2)), x_nI.ndim - 1
    axes = ((last,), (last,)), (numbers, numbers)
    return jax.lax.dot_general(x_nI, w_OI, axes, preferred_element_type=jnp.float32).astype(dtype)


def product_over_rows(x_nI: jax.Array, y_nO: jax.Array) -> jax.Array:
    """Returns x^T y in float32: a sum over rows."""
    if cpu_matmul.takes(x_nI, y_nO):
        return cpu_matmul.matmul(x_nI, y_nO, a_transposed=True)
    return product(transposed(x_nI), y_nO)


def transposed(x_nI: jax.Array) -> jax.Array:
    """Returns x^T; on a CPU as an array of its own, since XLA would fold it into a product, and run that in float32."""
    if mesh.platform() != "cpu" or x_nI.shape[-2] % ROWS_AT_ONCE:
        return x_nI.swapaxes(-1, -2)
    return apart(_transposed_in_pieces, x_nI)


def _transposed_in_pieces(x_nI: jax.Array) -> jax.Array:
    rows, columns = x_nI.shape[-2:]
    pieces = x_nI.reshape(*x_nI.shape[:-2], -1, ROWS_AT_ONCE, columns)
    return jnp.moveaxis(pieces, -1, -3).reshape(*x_nI.shape[:-2], columns, rows)
