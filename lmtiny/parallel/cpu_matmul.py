"""Products on a CPU that are not XLA's (`parallel.cpu_matmul`): lmtiny's own, or float32 ones by Intel's MKL.

XLA calls cpu_matmul.cc, which shares a product out over XLA's own threads; each runs product.h, or the library's sgemm.  They
are compiled by this machine's C++ compiler, for its processor, when they are first used, and kept beside compiled programs
(`mesh.cache_folder`).
"""

import ctypes
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
from typing import Any

import jax
import jax.ffi
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from lmtiny import files
from lmtiny.errors import UserError
from lmtiny.parallel import mesh as mesh_lib

SOURCE = pathlib.Path(__file__).with_suffix(".cc")
_HEADERS = [SOURCE.with_name(name) for name in ("product.h", "vectors.h")]
TARGET = "lmtiny_cpu_matmul"  # what XLA calls it
_MKL_LP64, _MKL_SEQUENTIAL = 0, 1  # mkl_service.h: whole numbers of 32 bits; no threads of its own
_COMPILERS = ("c++", "g++", "clang++")
_NEEDED = {"float32": "AVX2", "bfloat16": "AVX512-BF16"}  # of an x86 processor, by what `own` multiplies
_TYPES = {"mkl": ("float32",), "own": tuple(_NEEDED)}  # what they multiply

_registered: list[ctypes.CDLL] = []  # what programs call, which must stay in memory
_type = ""  # of the matrices that are multiplied here; "": none


def use(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Makes programs that are traced from now on take the products of parallel.cpu_matmul; call before any is traced.

    Off CPUs nothing changes, so that a config runs everywhere.

    Raises:
      UserError: several devices, a model that computes in another type, or the processor, the library or a compiler lacks something.
    """
    global _type
    _type, name = "", config.parallel.cpu_matmul
    if name == "xla" or mesh.devices.flat[0].platform != "cpu":
        return
    if mesh.size > 1:
        raise UserError(f"parallel.cpu_matmul = {name} works on one device, and these are {mesh.size}; set parallel.cpu_matmul = xla")
    if (dtype := config.model.compute_dtype) not in _TYPES[name]:
        raise UserError(
            f"parallel.cpu_matmul = {name} makes {' and '.join(_TYPES[name])} products, and model.compute_dtype = {dtype} has none; set it "
            f"to {' or '.join(_TYPES[name])}, or parallel.cpu_matmul = xla"
        )
    if name == "mkl":
        register(mkl_sgemm())
    elif dtype not in (others := own_types()):
        remedy = f"model.compute_dtype = {others[0]}, or parallel.cpu_matmul = xla" if others else "parallel.cpu_matmul = xla"
        raise UserError(
            f"parallel.cpu_matmul = own needs an x86 processor with {_NEEDED[dtype]} for model.compute_dtype = {dtype}, and a C++ compiler "
            f"that knows it (g++ 10 does); set {remedy}"
        )
    _type = dtype


def own_types() -> list[str]:
    """Returns the types of matrices that `own` multiplies on this processor.

    Raises:
      UserError: as `register`.
    """
    library = register()
    return [dtype for dtype in _NEEDED if getattr(library, f"lmtiny_multiplies_{dtype}")()]


def takes(*operands: Any) -> bool:
    """Returns whether a product of these arrays is to be made here: all are of the type that `use` asked for."""
    return bool(_type) and mesh_lib.platform() == "cpu" and all(operand.dtype == _type for operand in operands)


def matmul(
    a_NMK: jax.Array, b_NKO: jax.Array, a_transposed: bool = False, b_transposed: bool = False, dtype: Any = jnp.float32
) -> jax.Array:
    """Returns the products [N, M, O] of matrices of one type, summed in float32; a transposed operand is given as [N, K, M], or [N, O, K].

    N: any number of leading dimensions, the same in both.  Not differentiable: `lmtiny.parallel.matmul` has the gradients.

    Args:
      dtype: of the result: float32, or that of the matrices.

    Raises:
      ValueError: shapes that do not go together, or types that there is no product of.
    """
    dtype = jnp.dtype(dtype)
    if str(a_NMK.dtype) not in _NEEDED or b_NKO.dtype != a_NMK.dtype or dtype not in (jnp.float32, a_NMK.dtype):
        raise ValueError(f"no product of {a_NMK.dtype} and {b_NKO.dtype} in {dtype}")
    rows, inner = a_NMK.shape[-2:][::-1] if a_transposed else a_NMK.shape[-2:]
    inner_of_b, columns = b_NKO.shape[-2:][::-1] if b_transposed else b_NKO.shape[-2:]
    if inner != inner_of_b or a_NMK.shape[:-2] != b_NKO.shape[:-2]:  # C++ would read past an end
        raise ValueError(f"no product of {a_NMK.shape} and {b_NKO.shape}, transposed: {a_transposed}, {b_transposed}")
    result = jax.ShapeDtypeStruct((*a_NMK.shape[:-2], rows, columns), dtype)
    call = jax.ffi.ffi_call(TARGET, result, vmap_method="broadcast_all")
    return call(a_NMK, b_NKO, a_transposed=a_transposed, b_transposed=b_transposed)


def register(sgemm: int = 0) -> ctypes.CDLL:
    """Tells XLA of cpu_matmul.cc, compiled, which is returned.

    Args:
      sgemm: for float32, the address of that of a Fortran BLAS which takes 32-bit whole numbers; 0: lmtiny's own product.

    Raises:
      UserError: no C++ compiler, it refused, or what it made cannot be loaded.
    """
    path = compiled()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be loaded: {error}; delete it, or set parallel.cpu_matmul = xla") from None
    library.lmtiny_set_sgemm(ctypes.c_void_p(sgemm))
    if not _registered:
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.LmtinyMatmul), platform="cpu")
        _registered.append(library)
    return library


def mkl_sgemm() -> int:
    """Returns the address of MKL's sgemm, told to use no threads of its own.

    Raises:
      UserError: MKL is not installed.
    """
    missing = UserError("parallel.cpu_matmul = mkl needs Intel's MKL: pip install 'lmtiny[mkl]' (Linux on x86), or set it to xla")
    try:
        installed = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        raise missing from None
    found = sorted(str(file.locate()) for file in installed if file.name.startswith("libmkl_rt.so"))
    if not found:
        raise missing
    try:
        mkl = ctypes.CDLL(found[0])
    except OSError as error:
        raise UserError(f"{found[0]}: cannot be loaded: {error}; set parallel.cpu_matmul = xla") from None
    # Threads of its own would wait for XLA's, and XLA's for them.  Both calls return what is in force.
    if (mkl.MKL_Set_Interface_Layer(_MKL_LP64), mkl.MKL_Set_Threading_Layer(_MKL_SEQUENTIAL)) != (_MKL_LP64, _MKL_SEQUENTIAL):
        raise UserError("this process uses MKL already, with other threads or numbers; set parallel.cpu_matmul = xla")
    return ctypes.cast(mkl.sgemm_, ctypes.c_void_p).value or 0


def compiled() -> pathlib.Path:
    """Returns cpu_matmul.cc as a shared library beside compiled programs, made now if it is not there.

    Raises:
      UserError: no C++ compiler, it refused, or the folder cannot be written.
    """
    command = [*_compiler(), "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-isystem", jax.ffi.include_dir()]
    # jaxlib's version, since the way XLA calls it is that of the header; the machine, since several may share a home; the compiler that
    # c++ stands for today, since a newer one may know more of the processor.
    facts = [os.path.realpath(command[0]), importlib.metadata.version("jaxlib"), platform.machine(), _features(), *platform.libc_ver()]
    key = "\0".join([*(path.read_text(encoding="utf-8") for path in (SOURCE, *_HEADERS)), *facts, *command])
    library = mesh_lib.cache_folder() / f"cpu_matmul-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with files.written(library) as target:
            _compile([*command, str(SOURCE), "-o", str(target)])
    except OSError as error:
        raise UserError(f"{library}: cannot be written: {error.strerror}; set XDG_CACHE_HOME, or parallel.cpu_matmul = xla") from None
    return library


def _features() -> str:
    """Returns what the processor can, as Linux names it, since -march=native compiles for that; "" elsewhere."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("flags")), "")


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("collect2")]
        why = next((line for line in lines if "error:" in line or "ld:" in line), lines[-1] if lines else f"exit code {done.returncode}")
        raise UserError(f"{command[0]} cannot compile {SOURCE.name}: {why}; set parallel.cpu_matmul = xla")


def _compiler() -> list[str]:
    """Returns the C++ compiler that CXX names, with the words that stand there, or the first that is on the PATH."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = next(filter(None, map(shutil.which, named[:1] or _COMPILERS)), None)
    if found is None:
        looked = f"CXX names {named[0]}, which is not there" if named else f"none of {', '.join(_COMPILERS)} is there"
        raise UserError(f"parallel.cpu_matmul needs a C++ compiler: {looked}; install g++, or set parallel.cpu_matmul = xla")
    return [found, *named[1:]]
