"""Stages over layers: each device of the pipeline axis runs its own layers on one microbatch after the other (GPipe).

P stages, M microbatches, M + P - 1 ticks; a share (P - 1) / (M + P - 1) of them is idle (arXiv 1811.06965, section 2.3).
The ticks are one scan, so that the compiled program does not grow with M.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmtiny.parallel import collectives
from lmtiny.parallel.axes import PIPELINE_AXIS

Stage = Callable[[jax.Array, Any, jax.Array | int], tuple[jax.Array, Any]]


def run_stages(stage: Stage, x: jax.Array, rows: Any, num_microbatches: int) -> tuple[jax.Array, Any]:
    """Returns (what the last stage makes of x, on all stages; the sum over microbatches of this stage's other results).

    Args:
      stage: f(x, rows, microbatch number) -> (y of x's shape, tree of sums); the layers of this device.
      x: [rows here, ...], the same on all stages; only the first stage reads it.
      rows: tree of arrays [rows here, ...] that go with x.
      num_microbatches: M; divides the rows.
    """
    num_stages, here = collectives.parts("layer"), collectives.part("layer")
    x_M, rows_M = jax.tree.map(lambda array: array.reshape(num_microbatches, -1, *array.shape[1:]), (x, rows))
    onward = [(i, (i + 1) % num_stages) for i in range(num_stages)]

    def tick(arrived: jax.Array, time: jax.Array) -> tuple[jax.Array, Any]:
        number = jnp.clip(time - here, 0, num_microbatches - 1)
        busy = (time >= here) & (time - here < num_microbatches)
        y, sums = stage(jnp.where(here == 0, x_M[number], arrived), jax.tree.map(lambda array: array[number], rows_M), number)
        # An idle stage works on what is at hand: its results go nowhere.
        return jax.lax.ppermute(y, PIPELINE_AXIS, onward), (y, jax.tree.map(lambda one: jnp.where(busy, one, 0), sums))

    _, (y_ticks, sums_ticks) = jax.lax.scan(tick, jnp.zeros_like(x_M[0]), jnp.arange(num_microbatches + num_stages - 1))
    finished = y_ticks[num_stages - 1 :].reshape(x.shape)
    last = collectives.total(jnp.where(here == num_stages - 1, finished, 0), "layer")
    return last, jax.tree.map(lambda ticks: jnp.sum(ticks, axis=0), sums_ticks)
