"""What the backward pass keeps of a block, and what it computes again (checkpointing, arXiv 1604.06174)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend

from lmtiny.parallel import collectives, cpu_matmul

_policies = jax.checkpoint_policies


def rematerialised(run: Callable[..., Any], remat: str, names: Sequence[str]) -> Callable[..., Any]:
    """Returns `run` (one block) with the policy of model.remat; `names` are what "names" and "offload" keep."""
    if remat == "none":
        # A weight gathered over fsdp is never kept: it would undo what splitting it saved.
        return jax.checkpoint(run, policy=_all_but_gathered) if collectives.parts("embed") > 1 else run
    policy = {
        "block": lambda: None,
        "dots": lambda: _policies.save_from_both_policies(_policies.dots_with_no_batch_dims_saveable, _by_another_library),
        "names": lambda: _policies.save_only_these_names(*names),
        "offload": lambda: _policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=list(names), offload_src="device", offload_dst="pinned_host"
        ),
    }[remat]()
    return jax.checkpoint(run, policy=policy)


def _all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    # The matmul reads a reshape of the gathered weight, so that must not be kept either; recomputing it costs nothing.
    if primitive.name == "custom_vjp_call":  # `collectives.gather_weight` is one, and shows its inside only here
        inside = [value.jaxpr for value in params.values() if isinstance(value, jax.extend.core.ClosedJaxpr)]
        return not any(equation.primitive.name == "all_gather" for jaxpr in inside for equation in jaxpr.eqns)
    return primitive.name not in ("all_gather", "reshape")


def _by_another_library(primitive: Any, *_: Any, **params: Any) -> bool:
    # jax knows only its own products. One of many matrices is left out, as jax's are.
    return primitive.name == "ffi_call" and params["target_name"] == cpu_matmul.TARGET and len(params["result_avals"][0].shape) == 2
