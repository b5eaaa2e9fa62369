"""Adam's directions from moments that a step which is not taken leaves alone."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmtiny.training.state import chosen


def scale_by_adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformationExtraArgs:
    """Returns optax.scale_by_adam (Adam, arXiv 1412.6980), whose update is told `take`: if not, its state stays as it was.

    The directions are of the moments after that choice.  Where a choice is made of old and new moments afterwards, XLA computes the
    new parameters from the old moments and the gradients once more, and copies the old moments first, as the new ones take their
    place: on a CPU 1.5 times as long.
    """

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None, *, take: Any = True, **_: Any) -> tuple[Any, Any]:
        del params
        mu = chosen(take, optax.tree.update_moment(grads, state.mu, b1, 1), state.mu)
        nu = chosen(take, optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2), state.nu)
        count = jnp.where(take, optax.safe_increment(state.count), state.count)
        mu_hat, nu_hat = optax.tree.bias_correction(mu, b1, count), optax.tree.bias_correction(nu, b2, count)
        directions = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu_hat, nu_hat)
        return directions, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2, epsilon).init, update)
