"""Computations that XLA's CPU backend does not fuse with what stands before and after them."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from lmtiny.parallel import mesh

Result = TypeVar("Result")


def apart(compute: Callable[..., Result], *args: jax.Array) -> Result:
    """Returns compute(*args), on a CPU as a call of its own; its gradient is one too.

    Copies that a CPU does at the speed of memory it does one number after the other once they are fused with a sum, a conversion or a
    join of other arrays, and what two fusions read is computed in each of them.  Other backends fuse as they like.

    Args:
      compute: a function of a module, so that it is compiled once where no program is being traced.
    """
    if mesh.platform() != "cpu":
        return compute(*args)
    with set_xla_metadata(inlineable="false"):
        return jax.jit(compute)(*args)
