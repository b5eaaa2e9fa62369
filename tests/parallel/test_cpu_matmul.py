"""Products behind XLA's custom call: those of numpy, in a model's gradients too; and what is told where a part is missing.

scipy's BLAS stands in for MKL, which few machines have: both are called by the same C++.  lmtiny's own run in every type that the processor
has vectors for.
"""

import ctypes
import importlib.metadata
import itertools
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.linalg import cython_blas

from lmtiny import config as config_lib
from lmtiny.errors import UserError
from lmtiny.model import size
from lmtiny.parallel import cpu_matmul, mesh
from lmtiny.parallel.matmul import matmul, product
from lmtiny.training.step import make_gradients


def scipys_sgemm():
    capsule = cython_blas.__pyx_capi__["sgemm"]
    name, pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return pointer(capsule, name(capsule))


def registered(sgemm=0):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler on the PATH: none of c++, g++, clang++")
    return cpu_matmul.register(sgemm)


@pytest.fixture
def in_use(monkeypatch):
    """All float32 products by scipy's BLAS, on XLA's threads."""
    registered(scipys_sgemm())
    monkeypatch.setattr(cpu_matmul, "_type", "float32")
    jax.clear_caches()  # of what was traced without it
    yield
    jax.clear_caches()


@pytest.fixture(params=["float32", "bfloat16"])
def own(request, monkeypatch):
    """All products of this type by lmtiny's C++."""
    if not getattr(registered(), f"lmtiny_multiplies_{request.param}")():
        pytest.skip(f"no vectors of {request.param} in this processor, or the C++ compiler knows none")
    monkeypatch.setattr(cpu_matmul, "_type", request.param)
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


def whole_numbers(seed, *shape):
    """Small ones, so that sums are exact in float32 in whatever order."""
    return jnp.asarray(np.random.default_rng(seed).integers(-8, 9, shape), jnp.float32)


def products_by_all_transposes(a, b, dtype=jnp.float32):
    """a @ b four times over, with neither, either and both of the operands lying transposed, in one program."""
    at, bt = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
    run = jax.jit(
        lambda a, b, at, bt: [
            cpu_matmul.matmul(at if swap_a else a, bt if swap_b else b, swap_a, swap_b, dtype)
            for swap_a, swap_b in itertools.product((False, True), repeat=2)
        ]
    )
    return run(a, b, at, bt)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (37, 8, 65), (400, 70, 130), (3, 5, 7, 9), (2, 3, 100, 33, 200), (9, 64, 16, 64), (4, 0, 3), (0, 4, 3)]
)
def test_products_are_numpys(in_use, shape):
    """Of one matrix and many, in one piece and cut among threads, by rows that 16 does not divide; of nothing at all."""
    *leading, rows, inner, columns = shape
    a, b = whole_numbers(0, *leading, rows, inner), whole_numbers(1, *leading, inner, columns)
    for y in products_by_all_transposes(a, b):
        np.testing.assert_array_equal(y, np.float32(a) @ np.float32(b))


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (37, 8, 65), (400, 70, 130), (3, 5, 7, 9), (2, 3, 100, 33, 200), (9, 64, 16, 64), (14, 5001, 49), (1100, 31, 31),
     (26, 3, 7000), (4, 0, 3), (0, 4, 3)],
)  # fmt: skip
def test_own_products_are_numpys(own, shape):
    """Tiles, pieces, blocks of columns and parts of sums that are not whole ones; sums of an odd number of terms."""
    *leading, rows, inner, columns = shape
    a, b = whole_numbers(0, *leading, rows, inner), whole_numbers(1, *leading, inner, columns)
    for dtype in {own, "float32"}:
        for y in products_by_all_transposes(a.astype(own), b.astype(own), jnp.dtype(dtype)):
            assert y.dtype == dtype
            np.testing.assert_array_equal(y, jnp.asarray(np.float32(a) @ np.float32(b)).astype(dtype))


def test_own_products_of_what_is_not_finite(own):
    """A row with an infinity or with no number has such in the result, and the rows beside it have not."""
    x = jnp.ones((40, 10), own).at[3, 4].set(jnp.inf).at[20, 1].set(jnp.nan)
    for dtype in {own, "float32"}:
        y = jax.jit(lambda x, dtype=dtype: product(x, jnp.ones((10, 50), own), dtype))(x)
        expected = jnp.full((40, 50), 10, dtype).at[3].set(jnp.inf).at[20].set(jnp.nan)
        assert y.dtype == dtype
        np.testing.assert_array_equal(np.float32(y), np.float32(expected))


def test_products_under_vmap(in_use):
    a, b = whole_numbers(0, 3, 20, 8), whole_numbers(1, 8, 6)
    np.testing.assert_array_equal(jax.jit(jax.vmap(cpu_matmul.matmul, in_axes=(0, None)))(a, b), np.float32(a) @ np.float32(b))


def test_many_products_at_once_come_to_an_end(in_use):
    """XLA may run products that do not read each other at the same time, each of which asks the same few threads for help."""
    matrices = [whole_numbers(seed, 160, 160) for seed in range(24)]
    run = jax.jit(lambda matrices: [product(x, y) for x, y in itertools.pairwise(matrices)])
    for _ in range(20):
        for (x, y), z in zip(itertools.pairwise(matrices), run(matrices), strict=True):
            np.testing.assert_array_equal(z, np.float32(x) @ np.float32(y))


def test_a_model_has_the_gradients_that_xlas_products_give(in_use, monkeypatch):
    _compare_with_xla(monkeypatch, "float32", False, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_has_the_gradients_that_xlas_products_give_by_own(own, monkeypatch, tied):
    _compare_with_xla(monkeypatch, own, tied, **({"rtol": 2e-4, "atol": 1e-6} if own == "float32" else {"rtol": 0.05, "atol": 1e-3}))


def _compare_with_xla(monkeypatch, dtype, tied, **tolerance):
    config = config_lib.defaults()
    config.model.update({"compute_dtype": dtype, "tied_embeddings": tied})
    config.tokenizer.vocab_size = 300
    config.model.update(
        {"num_layers": 2, "width": 24, "num_heads": 2, "context_length": 32, "zero_projections": False, "window": 8, "window_pattern": "SL"}
    )
    params = size.init_params(config)
    tokens = jax.random.randint(jax.random.key(1), (4, 33), 0, 250)

    def gradients():
        run = jax.jit(make_gradients(config, 299)).lower(params, tokens, jax.random.key(0), jnp.float32(1))
        return run.compile()(params, tokens, jax.random.key(0), jnp.float32(1)), run.as_text()

    elsewhere, program = gradients()
    assert "lmtiny_cpu_matmul" in program
    assert "dot_general" not in program
    monkeypatch.setattr(cpu_matmul, "_type", "")
    jax.clear_caches()
    by_xla, program = gradients()
    assert "lmtiny_cpu_matmul" not in program
    assert "dot_general" in program
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), elsewhere, by_xla)


def test_other_types_and_other_backends_keep_xlas_products(in_use, monkeypatch):
    x, y = whole_numbers(0, 8, 8), whole_numbers(1, 8, 8)
    assert cpu_matmul.takes(x, y)
    assert not cpu_matmul.takes(x.astype(jnp.bfloat16), y)
    assert "lmtiny_cpu_matmul" not in jax.jit(matmul).lower(*[z.astype(jnp.bfloat16) for z in (x, y)]).as_text()
    monkeypatch.setattr(mesh, "platform", lambda: "tpu")
    assert not cpu_matmul.takes(x, y)


def test_shapes_that_do_not_go_together_are_refused():
    """XLA's C++ reads as far as the first operand and the result say."""
    for a, b, swapped in (((3, 4), (5, 6), (False, False)), ((4, 3), (4, 3), (True, True)), ((1, 3, 4), (2, 4, 5), (False, False))):
        with pytest.raises(ValueError, match="no product of"):
            cpu_matmul.matmul(jnp.zeros(a), jnp.zeros(b), *swapped)
    for a, b, result in (("float32", "bfloat16", "float32"), ("float16", "float16", "float32"), ("float32", "float32", "bfloat16")):
        with pytest.raises(ValueError, match="no product of float"):
            cpu_matmul.matmul(jnp.zeros((2, 2), a), jnp.zeros((2, 2), b), dtype=jnp.dtype(result))


def test_remat_of_dots_keeps_these_products_too(in_use):
    """Of the same model, "dots" makes those of weights once more less often than "block", and not more often than "none" does."""

    def products(remat):
        config = config_lib.defaults()
        config.tokenizer.vocab_size = 300
        config.model.update({"num_layers": 2, "width": 24, "num_heads": 2, "context_length": 16, "remat": remat, "attention": "reference"})
        graph, shapes, _ = size.abstract(config)
        gradient = jax.grad(lambda params: jnp.sum(nnx.merge(graph, params)(jnp.zeros((2, 16), jnp.int32))[0]))
        return str(jax.make_jaxpr(gradient)(shapes)).count("target_name=lmtiny_cpu_matmul")

    none, dots, block = map(products, ("none", "dots", "block"))
    assert block > dots == none > 0


def config_of(name):
    config = config_lib.defaults()
    config.parallel.cpu_matmul = name
    return config


def test_one_device_alone(monkeypatch):
    monkeypatch.setattr(cpu_matmul, "_type", "")
    eight = mesh.make_mesh(config_of("mkl"))
    with pytest.raises(UserError, match=r"parallel\.cpu_matmul = mkl works on one device, and these are 8; set parallel\.cpu_matmul = xla"):
        cpu_matmul.use(config_of("mkl"), eight)
    cpu_matmul.use(config_of("xla"), eight)
    assert not cpu_matmul._type


def test_a_model_in_bfloat16_has_no_such_products(monkeypatch):
    monkeypatch.setattr(cpu_matmul, "_type", "float32")
    config = config_of("mkl")
    config.model.compute_dtype = "bfloat16"
    with pytest.raises(UserError, match=r"makes float32 products, and model\.compute_dtype = bfloat16 has none; set it to float32, or"):
        cpu_matmul.use(config, mesh.make_mesh(config, jax.devices()[:1]))
    assert not cpu_matmul._type


def test_own_products_are_in_use_when_asked_for(own, monkeypatch):
    monkeypatch.setattr(cpu_matmul, "_type", "")
    config = config_of("own")
    config.model.compute_dtype = own
    cpu_matmul.use(config, mesh.make_mesh(config, jax.devices()[:1]))
    assert cpu_matmul.takes(jnp.ones(3, own), jnp.ones(3, own)) and not cpu_matmul.takes(jnp.ones(3, own), jnp.ones(3, "float16"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_processor_or_a_compiler_without_vectors(monkeypatch, dtype):
    config = config_of("own")
    config.model.compute_dtype = dtype
    library = types.SimpleNamespace(**{f"lmtiny_multiplies_{t}": lambda t=t: t != dtype for t in ("float32", "bfloat16")})
    monkeypatch.setattr(cpu_matmul, "register", lambda: library)
    needed = {"float32": "AVX2", "bfloat16": "AVX512-BF16"}[dtype]
    with pytest.raises(UserError, match=rf"own needs an x86 processor with {needed} for model\.compute_dtype = {dtype}, and a C\+\+ comp"):
        cpu_matmul.use(config, mesh.make_mesh(config, jax.devices()[:1]))
    assert not cpu_matmul._type


@pytest.fixture
def nothing_registered(monkeypatch):
    monkeypatch.setattr(cpu_matmul, "_registered", [])
    monkeypatch.setattr(cpu_matmul, "_type", "")


def test_without_mkl(nothing_registered, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(UserError, match=r"needs Intel's MKL: pip install 'lmtiny\[mkl\]' \(Linux on x86\), or set it to xla"):
        cpu_matmul.use(config_of("mkl"), mesh.make_mesh(config_of("mkl"), jax.devices()[:1]))
    assert not cpu_matmul._type


def test_without_a_compiler(nothing_registered, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler: none of c\+\+, g\+\+, clang\+\+ is there; install g\+\+, or set"):
        cpu_matmul.register(scipys_sgemm())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="CXX names no-such-compiler, which is not there"):
        cpu_matmul.register(scipys_sgemm())


def test_a_compiler_that_refuses_leaves_nothing(nothing_registered, monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'x.cc:1: error: no such standard' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(
        UserError, match=r"compiler cannot compile cpu_matmul\.cc: x\.cc:1: error: no such standard; set parallel\.cpu_matmul = xla"
    ):
        cpu_matmul.register(scipys_sgemm())
    assert not list(mesh.cache_folder().iterdir())


def test_a_compiler_of_several_words_and_what_a_linker_says(nothing_registered, monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\ntest $1 = -one || exit 2\necho '/usr/bin/ld: cannot find -lx' >&2\necho 'collect2: error: ld' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"{compiler} -one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"compiler cannot compile cpu_matmul\.cc: /usr/bin/ld: cannot find -lx; set"):
        cpu_matmul.register(scipys_sgemm())


def test_a_folder_that_cannot_be_written_and_a_library_that_cannot_be_loaded(nothing_registered, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho no library > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written: Not a directory; set XDG_CACHE_HOME, or parallel\.cpu_matmul = xla"):
        cpu_matmul.register(scipys_sgemm())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cannot be loaded: .*; delete it, or set parallel\.cpu_matmul = xla"):
        cpu_matmul.register(scipys_sgemm())


def test_mkl_itself(nothing_registered, monkeypatch):
    try:
        importlib.metadata.version("mkl")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("MKL is not installed: pip install 'lmtiny[mkl]'")
    cpu_matmul.use(config_of("mkl"), mesh.make_mesh(config_of("mkl"), jax.devices()[:1]))
    x, y = whole_numbers(0, 300, 200), whole_numbers(1, 200, 500)
    np.testing.assert_array_equal(jax.jit(lambda x, y: product(x, y))(x, y), np.float32(x) @ np.float32(y))
