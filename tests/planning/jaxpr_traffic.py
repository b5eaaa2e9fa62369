"""What a traced function asks devices to send, before any compiler changes it: the hand count that `traffic` is held to."""

import math
from collections import defaultdict

import jax

KINDS = {"all_gather": "all-gather", "reduce_scatter": "reduce-scatter", "psum": "all-reduce", "psum2": "all-reduce",
         "psum_invariant": "all-reduce", "pmax": "all-reduce", "ppermute": "collective-permute", "all_to_all": "all-to-all"}  # fmt: skip


def sent_bytes(jaxpr, mesh, least=0):
    """Returns {(kind, axes): bytes a device sends}, by the ring formulas; operands of fewer than `least` bytes are left out."""
    found = defaultdict(float)
    _walk(jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr, dict(mesh.shape), 1, found, least)
    return dict(found)


def _walk(jaxpr, sizes, times, found, least):
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in KINDS:
            axes = eqn.params.get("axes") or eqn.params.get("axis_name")
            axes = (axes,) if isinstance(axes, str) else tuple(axes)
            group = math.prod(sizes[axis] for axis in axes)
            for operand, result in zip(eqn.invars, eqn.outvars, strict=True):
                size = operand.aval.size * operand.aval.dtype.itemsize
                if group == 1 or size < least:
                    continue
                share = (group - 1) / group
                sent = {
                    "all-gather": share * result.aval.size * result.aval.dtype.itemsize,
                    "reduce-scatter": share * size,
                    "all-reduce": 2 * share * size,
                    "all-to-all": share * size,
                    "collective-permute": size,
                }[KINDS[name]]
                found[KINDS[name], axes] += sent * times
        inner_times = times * (eqn.params["length"] if name == "scan" else 1)
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, jax.extend.core.ClosedJaxpr):
                    _walk(inner.jaxpr, sizes, inner_times, found, least)
                elif isinstance(inner, jax.extend.core.Jaxpr):
                    _walk(inner, sizes, inner_times, found, least)
