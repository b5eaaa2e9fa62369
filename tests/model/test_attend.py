"""Every core of attention gives the reference's values and gradients, and the reference those of jax.nn and of pen and paper."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from lmtiny.errors import UserError
from lmtiny.model import attend as attend_lib
from lmtiny.model import attend_chunked as chunked_lib
from lmtiny.model.attend import FACTS, attend, choose, cudnn_arguments, default_chunk, fact_sheet
from lmtiny.model.attend_local import chunks_read, is_local
from lmtiny.model.attend_reference import attend_with_mask, causal_mask

UNLIMITED = 2**30
GROUPS = {1: (2, 2), 2: (4, 2), 4: (4, 1)}  # G: (H, K)


def inputs(num_queries, groups, *, segments, head_dim=8, dtype=jnp.float32):
    """Returns (q, k, v, the gradient of the output, segments or None) of two rows."""
    num_heads, num_kv_heads = GROUPS[groups]
    rng = np.random.default_rng(num_queries)
    shapes = ((2, num_queries, heads, head_dim) for heads in (num_heads, num_kv_heads, num_kv_heads, num_heads))
    q, k, v, grad = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    documents = jnp.asarray(np.cumsum(rng.random((2, num_queries)) < 0.05, axis=1), jnp.int32)
    return q, k, v, grad, documents if segments else None


@functools.partial(jax.jit, static_argnames=("implementation", "window", "soft_cap", "chunk"))
def value_and_gradients(q, k, v, grad, segments, **request):
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, segments, **request), q, k, v)
    return out, *pull(grad)


def assert_equal_the_reference(implementation, arrays, tolerance, chunk=16, **request):
    found = value_and_gradients(*arrays, implementation=implementation, chunk=chunk, **request)
    expected = value_and_gradients(*arrays, implementation="reference", chunk=chunk, **request)
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=tolerance, atol=tolerance, err_msg=name)


# T, G, window, segments, soft cap; chunks of at most 16: one chunk, a whole number of them, T not divisible, many groups.
CHUNKED_CASES = [
    (13, 2, 5, True, 5.0),
    (64, 1, UNLIMITED, True, 0.0),
    (64, 2, 1, True, 0.0),
    (64, 4, 17, False, 5.0),
    (75, 2, UNLIMITED, True, 5.0),
    (75, 1, 16, True, 0.0),
    (75, 4, 500, False, 5.0),
    (75, 1, 74, False, 0.0),
    (300, 4, UNLIMITED, True, 0.0),
    (75, 2, 40, True, 5.0),
    (300, 2, 130, True, 5.0),
]


@pytest.mark.parametrize(("num_queries", "groups", "window", "segments", "soft_cap"), CHUNKED_CASES)
def test_chunked_equals_the_reference(num_queries, groups, window, segments, soft_cap):
    arrays = inputs(num_queries, groups, segments=segments)
    assert_equal_the_reference("chunked", arrays, 1e-5, window=window, soft_cap=soft_cap)


@pytest.mark.parametrize(
    ("num_queries", "groups", "window", "segments", "soft_cap"),
    [(256, 2, UNLIMITED, True, 0.0), (256, 4, 100, False, 5.0), (384, 1, 500, True, 5.0), (640, 2, 30, True, 0.0)],
)
def test_splash_equals_the_reference(num_queries, groups, window, segments, soft_cap):
    """Interpreted on the CPU; on a TPU the same kernel is compiled."""
    arrays = inputs(num_queries, groups, segments=segments)
    assert_equal_the_reference("splash", arrays, 2e-5, window=window, soft_cap=soft_cap)


def test_both_ways_of_chunks_are_among_the_cases():
    ways = [is_local(num_queries, window, 16) for num_queries, _, window, _, _ in CHUNKED_CASES]
    assert ways.count(True) >= 4 and ways.count(False) >= 4
    assert {chunks_read(case[2], 16) for case, local in zip(CHUNKED_CASES, ways, strict=True) if local} == {1, 2, 4}


@pytest.mark.parametrize(("implementation", "window"), [("chunked", 100), ("chunked", 64), ("splash", 100)])
def test_bfloat16_differs_by_its_rounding_alone(implementation, window):
    arrays = inputs(256, 2, segments=True, dtype=jnp.bfloat16)
    assert_equal_the_reference(implementation, arrays, 4e-2, chunk=64, window=window, soft_cap=0.0)


def test_gradients_of_keys_are_summed_over_chunks_in_float32(monkeypatch):
    """In bfloat16 a sum over 64 chunks would lose what each of them adds: 1 + 2**-9 is 1."""
    monkeypatch.setattr(chunked_lib, "MAX_GROUPS", 1)
    ones = jnp.ones((1, 1024, 1, 8), jnp.bfloat16)
    grads = [
        value_and_gradients(0 * ones, ones, ones, ones, None, implementation=name, window=UNLIMITED, soft_cap=0.0, chunk=16)[3]
        for name in ("chunked", "reference")
    ]
    np.testing.assert_allclose(np.float32(grads[0]), np.float32(grads[1]), rtol=2**-7)


@pytest.mark.parametrize("implementation", ["chunked", "splash"])
def test_a_core_runs_in_shard_map_scan_and_checkpoint(implementation):
    """Rows over one axis of the mesh, heads over the other, as a training step does it."""
    mesh = jax.make_mesh((2, 2), ("rows", "heads"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    q, k, v, grad, documents = inputs(128, 2, segments=True)
    heads, rows = PartitionSpec("rows", None, "heads"), PartitionSpec("rows")

    def gradients(q, k, v, grad, documents, *, implementation):
        def layer(x, _):
            return attend(x, k, v, documents, window=50, soft_cap=0.0, implementation=implementation, chunk=32), None

        return jax.grad(lambda q: jnp.sum(jax.lax.scan(jax.checkpoint(layer), q, length=2)[0] * grad))(q)

    split = jax.shard_map(
        functools.partial(gradients, implementation=implementation),
        mesh=mesh, in_specs=(heads, heads, heads, heads, rows), out_specs=heads, check_vma=False,
    )  # fmt: skip
    found = jax.jit(split)(q, k, v, grad, documents)
    np.testing.assert_allclose(found, gradients(q, k, v, grad, documents, implementation="reference"), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("groups", "window"), [(1, UNLIMITED), (2, 1), (4, 7), (2, 7), (1, 39), (2, 40), (4, 41)])
def test_the_reference_is_that_of_jax_and_cudnn_is_asked_for_the_same(groups, window):
    """The arguments are those cuDNN is called with, the implementation jax's own in plain XLA."""
    q, k, v, grad, _ = inputs(40, groups, segments=False)
    arguments = cudnn_arguments(40, window)
    assert arguments.pop("implementation") == "cudnn"

    @jax.jit
    def by_jax(q, k, v, grad):
        out, pull = jax.vjp(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="xla", **arguments), q, k, v)
        return out, *pull(grad)

    found = value_and_gradients(q, k, v, grad, None, implementation="reference", window=window, soft_cap=0.0)
    for one, other in zip(found, by_jax(q, k, v, grad), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_documents_are_those_of_separate_rows():
    q, k, v, _, _ = inputs(12, 2, segments=False)
    run = jax.jit(functools.partial(attend, window=UNLIMITED, soft_cap=0.0, implementation="reference"))
    packed = run(q, k, v, jnp.array([[0] * 5 + [1] * 7] * 2))
    apart = [run(q[:, part], k[:, part], v[:, part], None) for part in (slice(0, 5), slice(5, 12))]
    np.testing.assert_allclose(packed, jnp.concatenate(apart, axis=1), rtol=1e-5, atol=1e-6)


def test_the_soft_cap_is_the_one_worked_out_by_hand():
    """Scores 3 * 4 / sqrt(4) = 6 and 0; under a cap of 2 the first is 2 tanh(3)."""
    q = jnp.zeros((1, 2, 1, 4)).at[..., 0].set(3.0)
    k = jnp.zeros((1, 2, 1, 4)).at[0, 0, 0, 0].set(4.0)
    v = jnp.zeros((1, 2, 1, 4)).at[0, 0].set(1.0)
    index = jnp.arange(2)[None]
    for cap, score in ((2.0, 2 * math.tanh(3)), (0.0, 6.0)):
        out = attend_with_mask(q, k, v, causal_mask(index, index, UNLIMITED), cap)
        np.testing.assert_allclose(out[0, 1, 0], np.full(4, 1 / (1 + math.exp(-score))), rtol=1e-6)
        np.testing.assert_allclose(out[0, 0, 0], np.ones(4), rtol=1e-6)


def shapes_of(jaxpr):
    """Yields the shape of every array that a jaxpr computes, inner ones included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_of(inner)


def largest_array(implementation, num_queries, window=UNLIMITED, chunk=32):
    """Returns how many elements the largest array has, forward and backward, for one row, one head of size 4."""
    x = jax.ShapeDtypeStruct((1, num_queries, 1, 4), jnp.float32)
    request = {"implementation": implementation, "window": window, "soft_cap": 0.0, "chunk": chunk}
    documents = jax.ShapeDtypeStruct((1, num_queries), jnp.int32)
    jaxpr = jax.make_jaxpr(functools.partial(value_and_gradients, **request))(x, x, x, x, documents)
    return max(math.prod(shape) for shape in shapes_of(jaxpr.jaxpr))


def test_chunked_never_holds_all_scores():
    assert largest_array("reference", 1024) == 1024**2
    assert largest_array("chunked", 1024) == 32 * 1024  # one chunk of queries by all keys
    assert largest_array("chunked", 2048) == 32 * 2048


def test_chunked_makes_its_masks_where_it_uses_them():
    """jax takes what does not depend on a layer out of a scan over layers, and keeps it: T squared of masks."""

    def loss(x_BTHN):
        core = functools.partial(attend, window=UNLIMITED, soft_cap=0.0, implementation="chunked", chunk=32)
        layer = jax.checkpoint(lambda x, _: (core(x, x, x, None), None))
        return jnp.sum(jax.lax.scan(layer, x_BTHN, length=3)[0])

    jaxpr = jax.make_jaxpr(jax.grad(loss))(jax.ShapeDtypeStruct((1, 1024, 1, 4), jnp.float32))
    assert max(math.prod(shape) for shape in shapes_of(jaxpr.jaxpr)) == 32 * 1024


def test_the_program_of_chunked_does_not_grow_with_the_row():
    def size(num_queries):
        x = jax.ShapeDtypeStruct((1, num_queries, 1, 4), jnp.float32)
        request = {"implementation": "chunked", "window": UNLIMITED, "soft_cap": 0.0, "chunk": 32}
        return sum(1 for _ in shapes_of(jax.make_jaxpr(functools.partial(value_and_gradients, **request))(x, x, x, x, None).jaxpr))

    assert size(1024) == size(8192)


def test_chunked_leaves_out_half_of_the_work():
    """Scores that are computed, of those that a causal mask without any saving would take."""
    request = chunked_lib.Request(window=UNLIMITED, soft_cap=0.0, chunk=32)
    computed = sum((group.last - group.first) * 32 * group.num_read for group in chunked_lib._groups(1024, request))
    assert computed / 1024**2 == 36 / 64


def test_chunked_does_not_read_past_its_window():
    """Not more than the window, to the chunk: the scores of a chunk, and where a key out of sight is no number."""
    assert largest_array("chunked", 4096, window=129) == 4096 * 4  # the row itself, not 32 by (128 + 32) scores
    q, k, v, _, _ = inputs(400, 1, segments=False)
    for window, local in ((129, False), (17, True)):
        assert is_local(400, window, 16) is local
        request = {"window": window, "soft_cap": 0.0, "implementation": "chunked", "chunk": 16}
        out = attend(q, k.at[:, :64].set(jnp.nan), v.at[:, :64].set(jnp.nan), None, **request)
        assert jnp.all(jnp.isfinite(out[:, 64 + window + 15 :]))


def test_where_windows_are_short_scores_grow_with_the_row_times_the_window():
    assert largest_array("chunked", 4096, window=33) == 4096 * 64
    assert largest_array("chunked", 8192, window=33) == 8192 * 64


@pytest.mark.parametrize(
    ("num_queries", "window", "chunk"),
    [(256, UNLIMITED, 64), (1024, UNLIMITED, 256), (8192, UNLIMITED, 256), (4096, 32, 64), (4096, 256, 128), (4096, 1024, 256)],
)
def test_by_default_a_chunk_reads_few_keys_that_its_queries_do_not_see(num_queries, window, chunk):
    assert default_chunk(num_queries, window) == chunk
    assert largest_array("chunked", num_queries, window, chunk=0) == largest_array("chunked", num_queries, window, chunk=chunk)


REQUEST = {"num_queries": 1024, "head_dim": 64, "dtype": jnp.bfloat16, "segments": False, "window": UNLIMITED, "soft_cap": 0.0}
GPU = {"backend": "gpu", "device_kind": "NVIDIA A100-SXM4-40GB"}
TPU = {"backend": "tpu", "device_kind": "TPU v5 lite"}
CPU = {"backend": "cpu", "device_kind": "cpu"}


@pytest.mark.parametrize(
    ("device", "changes", "taken", "said"),
    [
        (TPU, {"segments": True, "soft_cap": 50.0, "window": 100}, "splash", "TPU"),
        (TPU, {"dtype": jnp.float32, "head_dim": 80}, "splash", "TPU"),
        (TPU, {"num_queries": 1000}, "chunked", "multiple of 128"),
        (TPU, {"dtype": jnp.float16}, "chunked", "float16"),
        (GPU, {"window": 100}, "cudnn", "GPU"),
        (GPU, {"segments": True}, "chunked", "model.mask_documents=False"),
        (GPU, {"segments": True, "num_queries": 256}, "reference", "model.mask_documents=False"),
        (GPU, {"soft_cap": 50.0}, "chunked", "model.attention_soft_cap=0"),
        (GPU, {"dtype": jnp.float32}, "chunked", "model.compute_dtype"),
        (GPU, {"head_dim": 256}, "chunked", "at most 128"),
        (GPU, {"head_dim": 256, "device_kind": "NVIDIA H100 80GB HBM3"}, "cudnn", "GPU"),
        (GPU, {"head_dim": 20}, "chunked", "multiple of 8"),
        (GPU, {"device_kind": "Tesla V100-SXM2-16GB"}, "chunked", "Ampere"),
        (GPU, {"device_kind": "AMD Instinct MI300X"}, "chunked", "NVIDIA"),
        (CPU, {}, "chunked", "fastest"),
        (CPU, {"num_queries": 32, "segments": True, "soft_cap": 5.0}, "chunked", "fastest"),
    ],
)
def test_auto_takes_the_fused_kernel_where_it_is_exact_and_says_why_not(device, changes, taken, said):
    name, why = choose("auto", **(REQUEST | device | changes))
    assert name == taken
    assert said in why and name in why and "\n" not in why


@pytest.mark.parametrize(
    ("implementation", "device", "changes", "said"),
    [
        ("cudnn", GPU, {"segments": True}, "model.mask_documents=False"),
        ("cudnn", GPU, {"soft_cap": 50.0}, "model.attention_soft_cap=0"),
        ("cudnn", GPU, {"dtype": jnp.float32}, "model.compute_dtype"),
        ("cudnn", GPU, {"head_dim": 12}, "model.head_dim"),
        ("cudnn", CPU, {}, "needs gpu"),
        ("splash", TPU, {"num_queries": 1000}, "model.context_length"),
        ("splash", TPU, {"dtype": jnp.float16}, "model.compute_dtype"),
        ("splash", GPU, {}, "needs tpu or cpu"),
        ("flash", GPU, {}, "none of auto"),
    ],
)
def test_what_is_asked_for_and_cannot_be_exact_is_refused_with_a_remedy(implementation, device, changes, said):
    with pytest.raises(UserError, match=f"model.attention={implementation}") as error:
        choose(implementation, **(REQUEST | device | changes))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_is_asked_for_and_exact_is_taken():
    assert choose("reference", **REQUEST, **TPU)[0] == "reference"
    assert choose("chunked", **REQUEST, **GPU)[0] == "chunked"
    assert choose("cudnn", **REQUEST, **GPU)[0] == "cudnn"
    assert "interpreted" in choose("splash", **REQUEST, **CPU)[1]
    with pytest.raises(UserError, match="model.window"):
        choose("auto", **(REQUEST | {"window": 0}), **CPU)


def test_a_core_leaves_nothing_out_silently():
    q, k, v, _, documents = inputs(100, 1, segments=True)
    run = functools.partial(attend, q, k, v, window=UNLIMITED)
    for bad in (
        {"implementation": "cudnn", "segments_BT": documents, "soft_cap": 0.0},
        {"implementation": "cudnn", "segments_BT": None, "soft_cap": 5.0},
        {"implementation": "splash", "segments_BT": None, "soft_cap": 0.0},
        {"implementation": "auto", "segments_BT": None, "soft_cap": 0.0},
    ):
        with pytest.raises(ValueError):
            run(**bad)
    with pytest.raises(ValueError, match="window 0"):
        attend(q, k, v, None, window=0, soft_cap=0.0, implementation="reference")


@pytest.mark.parametrize("name", FACTS)
def test_facts_say_who_honours_documents_and_caps(name):
    """FACTS is not only text: `attend` refuses exactly what it denies."""
    q, k, v, _, documents = inputs(128, 1, segments=True)
    for fact, changes in ((FACTS[name].documents, {"segments_BT": documents}), (FACTS[name].soft_cap, {"soft_cap": 5.0})):
        call = functools.partial(attend, q, k, v, **({"segments_BT": None, "window": 9, "soft_cap": 0.0, "implementation": name} | changes))
        if fact:
            jax.eval_shape(call)
        else:
            with pytest.raises(ValueError):
                jax.eval_shape(call)


def test_the_fact_sheet_of_the_docs_is_that_of_the_code():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "attention.md").read_text(encoding="utf-8")
    assert fact_sheet() in text
    assert f"T = {attend_lib.CHUNKED_FROM}" in text
