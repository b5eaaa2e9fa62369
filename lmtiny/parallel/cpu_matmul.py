"""Float32 products on a CPU by Intel's MKL, for CPUs without bfloat16 of their own: `parallel.cpu_matmul = mkl`.

XLA calls a few lines of C++ (cpu_matmul.cc), which call the library's sgemm on XLA's own threads.  They are compiled by
this machine's C++ compiler when they are first used, and kept beside compiled programs (`mesh.cache_folder`).
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

import jax
import jax.ffi
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from lmtiny import files
from lmtiny.errors import UserError
from lmtiny.parallel import mesh as mesh_lib

SOURCE = pathlib.Path(__file__).with_suffix(".cc")
TARGET = "lmtiny_cpu_matmul"  # what XLA calls it
_MKL_LP64, _MKL_SEQUENTIAL = 0, 1  # mkl_service.h: whole numbers of 32 bits; no threads of its own
_COMPILERS = ("c++", "g++", "clang++")

_registered: list[ctypes.CDLL] = []  # what programs call, which must stay in memory
_in_use = False


def use(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Makes programs that are traced from now on take the products of parallel.cpu_matmul; call before any is traced.

    Off CPUs nothing changes, so that a config runs everywhere.

    Raises:
      UserError: several devices, a model that does not compute in float32, or the library or a compiler is missing.
    """
    global _in_use
    _in_use = False
    if config.parallel.cpu_matmul == "xla" or mesh.devices.flat[0].platform != "cpu":
        return
    if mesh.size > 1:
        raise UserError(f"parallel.cpu_matmul = mkl works on one device, and these are {mesh.size}; set parallel.cpu_matmul = xla")
    if (dtype := config.model.compute_dtype) != "float32":
        raise UserError(
            f"parallel.cpu_matmul = mkl makes float32 products, and model.compute_dtype = {dtype} has none; set it to float32, or "
            "parallel.cpu_matmul = xla"
        )
    if not _registered:
        register(mkl_sgemm())
    _in_use = True


def takes(*operands: jax.Array) -> bool:
    """Returns whether a product of these arrays is to be made here: both float32, and `use` asked for it."""
    return _in_use and mesh_lib.platform() == "cpu" and all(operand.dtype == jnp.float32 for operand in operands)


def matmul(a_NMK: jax.Array, b_NKO: jax.Array, a_transposed: bool = False, b_transposed: bool = False) -> jax.Array:
    """Returns the products [N, M, O] of float32 matrices; a transposed operand is given as [N, K, M], or [N, O, K].

    N: any number of leading dimensions, the same in both.  Not differentiable: `lmtiny.parallel.matmul` has the gradients.

    Raises:
      ValueError: shapes that do not go together.
    """
    rows, inner = a_NMK.shape[-2:][::-1] if a_transposed else a_NMK.shape[-2:]
    inner_of_b, columns = b_NKO.shape[-2:][::-1] if b_transposed else b_NKO.shape[-2:]
    if inner != inner_of_b or a_NMK.shape[:-2] != b_NKO.shape[:-2]:  # C++ would read past an end
        raise ValueError(f"no product of {a_NMK.shape} and {b_NKO.shape}, transposed: {a_transposed}, {b_transposed}")
    result = jax.ShapeDtypeStruct((*a_NMK.shape[:-2], rows, columns), jnp.float32)
    call = jax.ffi.ffi_call(TARGET, result, vmap_method="broadcast_all")
    return call(a_NMK, b_NKO, a_transposed=a_transposed, b_transposed=b_transposed)


def register(sgemm: int) -> None:
    """Tells XLA of cpu_matmul.cc, compiled, with the address of a Fortran BLAS's sgemm that takes 32-bit whole numbers.

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
    command = [*_compiler(), "-O2", "-std=c++17", "-shared", "-fPIC", "-isystem", jax.ffi.include_dir()]
    # jaxlib's version, since the way XLA calls it is that of the header; the machine, since several may share a home.
    facts = [importlib.metadata.version("jaxlib"), platform.machine(), *platform.libc_ver()]
    key = "\0".join([SOURCE.read_text(encoding="utf-8"), *facts, *command])
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
        raise UserError(f"parallel.cpu_matmul = mkl needs a C++ compiler: {looked}; install g++, or set parallel.cpu_matmul = xla")
    return [found, *named[1:]]
