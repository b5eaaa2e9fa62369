"""The activation of an MLP, on a CPU in float32 from its first operation to its last.

In bfloat16 a CPU would round after each operation, and the gradient would keep what came out of most of them: of GELU four
arrays as large as the hidden values.  Here the inputs are kept, and the rest is computed again in one pass over them.
"""

import functools

import jax
import jax.numpy as jnp

from lmtiny.parallel import mesh


def activated(activation: str, up: jax.Array, gate: jax.Array | None) -> jax.Array:
    """Returns the hidden values, in the type of `up`: activation(up), or activation(gate) * up for the gated kinds."""
    inputs = (up,) if gate is None else (gate, up)
    return _activated(activation, inputs) if mesh.platform() == "cpu" else _computed(activation, *inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activated(activation: str, inputs: tuple[jax.Array, ...]) -> jax.Array:
    return _computed(activation, *(x.astype(jnp.float32) for x in inputs)).astype(inputs[0].dtype)


def _forward(activation: str, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _activated(activation, inputs), inputs


def _backward(activation: str, inputs: tuple[jax.Array, ...], grad: jax.Array) -> tuple[tuple[jax.Array, ...]]:
    # Behind the barrier XLA does not know them for those of the forward pass, whose exponentials it would keep instead, in float32.
    again = jax.lax.optimization_barrier(inputs)
    _, pull = jax.vjp(functools.partial(_computed, activation), *(x.astype(jnp.float32) for x in again))
    return (tuple(dx.astype(x.dtype) for dx, x in zip(pull(grad.astype(jnp.float32)), inputs, strict=True)),)


_activated.defvjp(_forward, _backward)


def _computed(activation: str, first: jax.Array, up: jax.Array | None = None) -> jax.Array:
    hidden: jax.Array = _FUNCTIONS[activation](first)
    return hidden if up is None else hidden * up


def _relu2(x: jax.Array) -> jax.Array:
    """Returns the square of what is above zero (Primer, arXiv 2109.08668)."""
    return jnp.square(jax.nn.relu(x))


_FUNCTIONS = {"gelu": jax.nn.gelu, "geglu": jax.nn.gelu, "silu": jax.nn.silu, "swiglu": jax.nn.silu, "relu2": _relu2}
