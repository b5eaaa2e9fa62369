"""The formula for what devices send: the bytes that the traced step asks for, on every kind of mesh."""

import pytest

from lmtiny.parallel import mesh as mesh_lib
from lmtiny.planning import traffic
from lmtiny.training.step import traced_train_step
from tests.parallel.small_step import config_on
from tests.planning.jaxpr_traffic import sent_bytes


def asked_for(config):
    """Returns {(kind, axes): bytes} of the traced step, and the mesh's shape; single numbers and vectors of rows are left out."""
    mesh = mesh_lib.make_mesh(config)
    return sent_bytes(traced_train_step(config, mesh).jaxpr, mesh, least=100), dict(mesh.shape)


OF_JIT = ("new weights, gathered",)  # outside shard_map: XLA's own doing, not in the trace
MESHES = [
    {"fsdp": 8}, {"data": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 4}, {"context": 8}, {"pipeline": 4, "fsdp": 2},
    {"pipeline": 2, "tensor": 2, "data": 2}, {"context": 2, "tensor": 2, "fsdp": 2}, {"data": 2, "fsdp": 2, "tensor": 2},
]  # fmt: skip
CHANGES = [
    ({"fsdp": 8}, {"train.accumulation": 2}),
    ({"pipeline": 2, "fsdp": 2, "tensor": 2}, {"train.accumulation": 2}),
    ({"fsdp": 4, "tensor": 2}, {"model.tied_embeddings": True}),
    ({"pipeline": 2, "tensor": 2, "fsdp": 2}, {"train.loss_chunk": 40}),
    ({"pipeline": 2, "data": 2, "fsdp": 2}, {"optimizer.name": "muon"}),
    ({"context": 2, "tensor": 2, "fsdp": 2}, {"optimizer.name": "muon"}),
    ({"data": 2, "fsdp": 2, "tensor": 2}, {"model.position": "learned", "model.bias": "all", "model.norm_scale": True}),
    ({"expert": 4, "fsdp": 2}, {"model.num_experts": 8}),
    ({"expert": 2, "tensor": 2, "fsdp": 2}, {"model.num_experts": 4, "model.remat": "names", "train.accumulation": 2}),
    ({"expert": 4, "tensor": 2}, {"model.num_experts": 8, "model.expert_capacity": 1.5, "model.experts_per_token": 3}),
    ({"expert": 2, "data": 2, "fsdp": 2}, {"model.num_experts": 4, "optimizer.name": "muon"}),
    ({"data": 2, "fsdp": 4}, {"parallel.zero": 1}),
    ({"data": 4, "tensor": 2}, {"model.remat": "none"}),
    ({"context": 2, "tensor": 2, "fsdp": 2}, {"model.remat": "dots"}),
    ({"fsdp": 4, "tensor": 2}, {"model.remat": "names", "model.num_kv_heads": 2}),
    ({"fsdp": 2, "tensor": 4}, {"model.remat": "none", "model.scan_layers": False}),
    ({"data": 2, "tensor": 4}, {"model.remat": "names", "model.remat_names": ("value", "attended")}),
    ({"pipeline": 2, "tensor": 2, "fsdp": 2}, {"model.scan_layers": False, "model.ngram_rows": 64, "model.induction": 2}),
    ({"context": 2, "data": 2, "fsdp": 2}, {"model.ngram_rows": 64, "model.longest_ngram": 3, "train.accumulation": 2}),
]


@pytest.mark.parametrize(("mesh", "changes"), [*((mesh, {}) for mesh in MESHES), *CHANGES], ids=str)
def test_the_formula_is_what_the_step_asks_for(mesh, changes):
    config = config_on(mesh, **{"model.compute_dtype": "bfloat16", **changes})
    asked, shape = asked_for(config)
    lines = [
        line for line in traffic.traffic(config, shape, tied_once=False) if line.what not in OF_JIT
    ]
    found = {}
    for line in lines:
        found[line.kind, frozenset(line.axes)] = found.get((line.kind, frozenset(line.axes)), 0.0) + line.sent_bytes
    merged = {}
    for (kind, axes), sent in asked.items():
        key = kind, frozenset(name for name in axes if shape[name] > 1)
        merged[key] = merged.get(key, 0.0) + sent
    for key in {*found, *merged}:
        assert found.get(key, 0) == pytest.approx(merged.get(key, 0), rel=0.01, abs=4000), (key, found, merged)
