"""Collectives of a compiled program are found and counted: programs whose count is known by hand, and TPU's own ways of writing."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from lmtiny.planning import hlo


def compiled_text(f, *shapes, mesh_shape=(8,), names=("x",)):
    mesh = jax.make_mesh(mesh_shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))
    run = jax.shard_map(f, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(run).lower(*args).compile().as_text()


def kinds(text):
    return {kind: (entry["count"], entry["sent_bytes"]) for kind, entry in hlo.total_by_kind(hlo.collectives(text)).items()}


def ring(x):
    return jax.lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)])


def test_each_kind_sends_what_its_ring_sends():
    size = 1024 * 4
    assert kinds(compiled_text(lambda x: jax.lax.psum(x, "x"), (1024,))) == {"all-reduce": (1, 2 * size * 7 / 8)}
    assert kinds(compiled_text(lambda x: jax.lax.all_gather(x, "x"), (1024,))) == {"all-gather": (1, 7 * size)}
    assert kinds(compiled_text(ring, (1024,))) == {"collective-permute": (1, size)}

    def swap(x):
        return jax.lax.all_to_all(x, "x", 0, 0, tiled=True)

    assert kinds(compiled_text(swap, (1024,))) == {"all-to-all": (1, size * 7 / 8)}


def test_a_scattered_sum_is_one_or_a_whole_sum():
    # CPU sums all and slices, in some versions.
    found = kinds(compiled_text(lambda x: jax.lax.psum_scatter(x, "x", tiled=True), (1024,)))
    assert found in ({"reduce-scatter": (1, 4096 * 7 / 8)}, {"all-reduce": (1, 2 * 4096 * 7 / 8)})


def test_groups_are_those_of_the_axis():
    text = compiled_text(lambda x: jax.lax.psum(x, "b"), (1024,), mesh_shape=(2, 4), names=("a", "b"))
    (one,) = hlo.collectives(text)
    assert one.group_size == 4 and one.sent_bytes == 2 * 4096 * 3 / 4
    assert one.groups == () or {frozenset(group) for group in one.groups} == {frozenset(range(4)), frozenset(range(4, 8))}


def test_a_permutation_of_nobody_sends_nothing():
    assert kinds(compiled_text(lambda x: jax.lax.ppermute(x, "x", [(i, i) for i in range(8)]), (1024,))) == {}


def test_loops_multiply():
    def nested(x):
        def outer(x, _):
            x, _ = jax.lax.scan(lambda x, _: (ring(x) * 2, None), x, None, length=3)
            return jax.lax.psum(x, "x") * 0.1, None

        return jax.lax.scan(outer, x, None, length=5)[0]

    found = kinds(compiled_text(nested, (1024,)))
    assert found["collective-permute"][0] == 15 and found["all-reduce"][0] == 5
    assert all(one.counted for one in hlo.collectives(compiled_text(nested, (1024,))))


def test_a_loop_of_unknown_length_is_told():
    def until(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e6, lambda x: ring(x) * 2, x)

    (one,) = [one for one in hlo.collectives(compiled_text(until, (1024,))) if one.kind == "collective-permute"]
    assert (one.times, one.counted) == (1, False)


def test_of_branches_the_one_that_sends_most_counts():
    def branch(x):
        return jax.lax.cond(jax.lax.axis_index("x") == 0, lambda x: ring(ring(x)) + 1, lambda x: ring(x) * 2, x)

    assert kinds(compiled_text(branch, (1024,))) == {"collective-permute": (2, 2 * 4096)}


# Lines as long as the compiler's own.
# ruff: noqa: E501
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add.1 (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[]{:T(128)} parameter(0)
  %b.1 = f32[]{:T(128)} parameter(1)
  ROOT %sum.1 = f32[]{:T(128)} add(%a.1, %b.1)
}

%all-reduce-scatter.1 (p.1: f32[64,128]) -> f32[8,128] {
  %p.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,128]{1,0:T(8,128)} all-reduce(%p.1), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add.1
  %zero.1 = u32[] constant(0)
  ROOT %slice.1 = f32[8,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %zero.1, %zero.1), dynamic_slice_sizes={8,128}
}

%start.1 (p.2: bf16[96,64]) -> (bf16[96,64], bf16[768,64], s32[2]) {
  %p.2 = bf16[96,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.2 = bf16[768,64]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=1, replica_groups=mesh['x'=8,'y'=1] {'x'}, dimensions={0}
  ROOT %custom-call.2 = (bf16[96,64]{1,0}, bf16[768,64]{1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}) custom-call(%all-gather.2), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.3 (p.3: bf16[96,64], q.3: bf16[768,64]) -> bf16[768,64] {
  %p.3 = bf16[96,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %q.3 = bf16[768,64]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %all-gather.3 = bf16[768,64]{1,0:T(8,128)(2,1)} all-gather(%p.3), channel_id=1, replica_groups=mesh['x'=8,'y'=1] {'x'}, dimensions={0}
}

%done.4 (p.4: bf16[96,64], q.4: bf16[768,64]) -> bf16[768,64] {
  %p.4 = bf16[96,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %q.4 = bf16[768,64]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-gather.4 = bf16[768,64]{1,0:T(8,128)(2,1)} all-gather(%p.4), channel_id=1, replica_groups=mesh['x'=8,'y'=1] {'x'}, dimensions={0}
  ROOT %custom-call.4 = bf16[768,64]{1,0:T(8,128)(2,1)S(1)} custom-call(%p.4, %q.4, %all-gather.4), custom_call_target="AsyncCollectiveDone"
}

%body.5 (carry.5: (s32[], bf16[96,64], f32[64,128])) -> (s32[], bf16[96,64], f32[64,128]) {
  %carry.5 = (s32[]{:T(128)}, bf16[96,64]{1,0:T(8,128)(2,1)}, /*index=2*/f32[64,128]{1,0:T(8,128)}) parameter(0)
  %i.5 = s32[]{:T(128)} get-tuple-element(%carry.5), index=0
  %w.5 = bf16[96,64]{1,0:T(8,128)(2,1)} get-tuple-element(%carry.5), index=1
  %g.5 = f32[64,128]{1,0:T(8,128)} get-tuple-element(%carry.5), index=2
  %one.5 = s32[]{:T(128)} constant(2)
  %next.5 = s32[]{:T(128)} add(%i.5, %one.5)
  %fusion.5 = (bf16[96,64]{1,0}, bf16[768,64]{1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}) fusion(%w.5), kind=kCustom, calls=%start.1
  %whole.5 = bf16[768,64]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%fusion.5), index=1
  %kernel.5 = f32[8,128]{1,0:T(8,128)} custom-call(%g.5), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, backend_config={"flag_configs":[]}
  %fusion.6 = bf16[768,64]{1,0:T(8,128)(2,1)S(1)} fusion(%w.5, %whole.5), kind=kOutput, calls=%async_collective_fusion.3
  %fusion.7 = bf16[768,64]{1,0:T(8,128)(2,1)S(1)} fusion(%w.5, %fusion.6), kind=kCustom, calls=%done.4
  %fusion.8 = f32[8,128]{1,0:T(8,128)} fusion(%g.5), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out.5 = (s32[]{:T(128)}, bf16[96,64]{1,0:T(8,128)(2,1)}, f32[64,128]{1,0:T(8,128)}) tuple(%next.5, %w.5, %g.5)
}

%condition.6 (carry.6: (s32[], bf16[96,64], f32[64,128])) -> pred[] {
  %limit.6 = s32[]{:T(128)} constant(12)
  %carry.6 = (s32[]{:T(128)}, bf16[96,64]{1,0:T(8,128)(2,1)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %i.6 = s32[]{:T(128)} get-tuple-element(%carry.6), index=0
  ROOT %less.6 = pred[]{:T(512)} compare(%i.6, %limit.6), direction=LT
}

ENTRY %main.7 (w.7: bf16[96,64], g.7: f32[64,128]) -> bf16[96,64] {
  %w.7 = bf16[96,64]{1,0:T(8,128)(2,1)} parameter(0)
  %g.7 = f32[64,128]{1,0:T(8,128)} parameter(1)
  %first.7 = s32[]{:T(128)} constant(4)
  %tuple.7 = (s32[]{:T(128)}, bf16[96,64]{1,0:T(8,128)(2,1)}, f32[64,128]{1,0:T(8,128)}) tuple(%first.7, %w.7, %g.7)
  %while.7 = (s32[]{:T(128)}, bf16[96,64]{1,0:T(8,128)(2,1)}, f32[64,128]{1,0:T(8,128)}) while(%tuple.7), condition=%condition.6, body=%body.5
  ROOT %out.7 = bf16[96,64]{1,0:T(8,128)(2,1)} get-tuple-element(%while.7), index=1
}
"""


def test_tpu_text_from_4_to_12_by_2_with_a_spread_gather_and_a_fused_scattered_sum():
    gather, scatter = sorted(hlo.collectives(TPU), key=lambda one: one.kind)
    assert (gather.kind, scatter.kind) == ("all-gather", "reduce-scatter")
    assert (gather.times, gather.group_size, gather.result_bytes) == (4, 8, 768 * 64 * 2)
    assert (scatter.times, scatter.operand_bytes, scatter.result_bytes) == (4, 64 * 128 * 4, 8 * 128 * 4)
    assert gather.counted and scatter.counted


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, x", 2),
        ("replica_groups=[2,4]<=[8], x", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, x", 8),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, x", 2),
        ("replica_groups={}, x", 16),
    ],
)
def test_group_sizes_in_every_notation(attributes, size):
    assert hlo._groups(attributes, 16, "all-gather")[1] == size


def test_transposed_groups_are_listed_as_they_are():
    assert hlo._groups("replica_groups=[4,2]<=[2,4]T(1,0)", 8, "all-gather")[0] == ((0, 4), (1, 5), (2, 6), (3, 7))


def test_what_goes_to_another_slice_is_sent():
    text = TPU.replace("  ROOT %out.7", """  %token.7 = token[] after-all()
  %send.7 = (f32[64,128]{1,0:T(8,128)}, u32[], token[]) send(%g.7, %token.7), channel_id=16, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %out.7""")
    (sent,) = [one for one in hlo.collectives(text) if one.kind == hlo.SEND]
    assert (sent.times, sent.sent_bytes) == (1, 64 * 128 * 4)


def test_bytes_of_types():
    assert hlo._bytes("bf16[12,3]{1,0:T(8,128)(2,1)S(1)}") == 72
    assert hlo._bytes("(f32[2]{0}, /*index=1*/s32[], pred[4])") == 16
    assert hlo._bytes("f8e4m3fn[16]") == 16 and hlo._bytes("s4[16]") == 8
