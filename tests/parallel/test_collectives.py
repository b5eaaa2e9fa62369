"""What the compiled train step sends: which collectives, how often, how many bytes; and nothing beside.

Counts are worked out by hand from docs/parallelism.md for L = 4 scanned blocks of 7 matrices (query, key, value, out, up,
gate, down) without biases and norm scales, AdamW, blocks recomputed.  Sums of a few numbers (loss, norms) are left out.
"""

import jax
import pytest

from lmtiny.parallel import mesh as mesh_lib
from lmtiny.planning import hlo, traffic
from lmtiny.training.step import traced_train_step
from tests.parallel.small_step import LAYERS, config_on

MATRICES = 7
FEW = 1024  # bytes


def sent(config):
    """Returns (the collectives of the compiled step that move more than a few bytes, the mesh's shape)."""
    mesh = mesh_lib.make_mesh(config)
    with jax.set_mesh(mesh):
        compiled = traced_train_step(config, mesh).lower().compile()
    found = hlo.collectives(compiled.as_text())
    assert all(one.counted for one in found)
    return [one for one in found if one.group_size > 1 and max(one.operand_bytes, one.result_bytes) > FEW], dict(mesh.shape)


def counts(found):
    kinds = {}
    for one in found:
        kinds[one.kind] = kinds.get(one.kind, 0) + one.times
    return kinds


# Under "tensor" a block gathers before its two halves and scatters after them: forward, recomputed but for the last, backward.
SEQUENCE_GATHERS, SEQUENCE_SCATTERS = (2 + 2 + 2) * LAYERS, (2 + 1 + 2) * LAYERS
EXPECTED = {
    "data": ({"data": 8}, {"all-reduce": MATRICES + 2}),
    "fsdp": ({"fsdp": 8}, {"all-gather": 2 * MATRICES * LAYERS + 2, "reduce-scatter": MATRICES * LAYERS + 2}),
    "zero-1": ({"fsdp": 8, "zero": 1}, {"all-gather": MATRICES + 2, "reduce-scatter": MATRICES + 2}),
    # Embedding: its sum scattered, its gradient gathered; the head: gathered, scattered back; the loss: five sums of numbers.
    "tensor": ({"tensor": 8}, {"all-gather": SEQUENCE_GATHERS + 2, "reduce-scatter": SEQUENCE_SCATTERS + 2, "all-reduce": 5}),
    # Keys and values together: C-1 hops forward, again when recomputed, backward (the first of these two is one); their
    # gradients C hops.
    "context": ({"context": 4, "data": 2}, {"collective-permute": (3 + 3 + 3 - 1 + 4) * LAYERS, "all-reduce": MATRICES + 2}),
    # M + P - 1 ticks forward and backward; embedding and last stage summed over stages, and back; the loss.
    "pipeline": (
        {"pipeline": 4, "data": 2, "pipeline_microbatches": 4},
        {"collective-permute": 2 * (4 + 4 - 1), "all-reduce": MATRICES + 2 + 2 + 2 + 5},
    ),
}


def test_gathered_weights_are_not_kept():
    """Without recomputation too, the backward pass gathers them again."""
    assert counts(sent(config_on({"fsdp": 8}, **{"model.remat": "none"}))[0]) == EXPECTED["fsdp"][1]


@pytest.mark.parametrize("name", EXPECTED)
def test_kinds_and_counts(name):
    mesh, expected = EXPECTED[name]
    found = counts(sent(config_on(mesh))[0])
    sums = found.pop("all-reduce", 0), expected.get("all-reduce", 0)
    assert found == {kind: count for kind, count in expected.items() if kind != "all-reduce"}
    assert (sums[0] > 0) == (sums[1] > 0) and sums[0] <= sums[1]  # a compiler joins sums that it finds side by side


@pytest.mark.parametrize(
    "mesh", [{"fsdp": 2, "tensor": 2, "data": 2}, {"fsdp": 2, "context": 2, "tensor": 2}, {"pipeline": 2, "fsdp": 2, "tensor": 2}], ids=str
)
def test_bytes_are_those_of_the_formula(mesh):
    config = config_on(mesh)
    found, shape = sent(config)
    wanted = traffic.total(traffic.traffic(config, shape))
    assert sum(one.sent_bytes for one in found) == pytest.approx(wanted, rel=0.1)


def test_an_accidental_gather_would_be_seen(monkeypatch):
    """A weight that is not split any more, and activations gathered where they need not be, change the counts."""
    from lmtiny.parallel import axes as axes_lib

    expected = EXPECTED["fsdp"][1]
    monkeypatch.setitem(axes_lib.RULES, "embed", None)
    assert counts(sent(config_on({"fsdp": 8}))[0]) != expected
