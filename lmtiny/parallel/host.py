"""The machine of this process: told to jax and to malloc before anything touches jax."""

import ctypes
import importlib.util
import os
import pathlib
import platform
import sys

# Where drivers show their devices in /dev, on Linux.
_TPU_FILES, _NVIDIA_FILES, _AMD_FILES = ("accel*", "vfio/[0-9]*"), ("nvidia[0-9]*",), ("kfd",)
_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")  # jax refuses to start where it is told of CUDA and has none
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_EMULATED = "--xla_force_host_platform_device_count="
_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds="

_kept = False  # whether malloc was told to keep what is freed


def leave_out_missing_tpu() -> None:
    """Tells jax not to look for a TPU where there is none; call before anything asks jax for devices.

    libtpu may be installed for its compiler alone (`pip install -e ".[tpu]"`), and prints a screenful when it finds no TPU.
    """
    if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None or _present(*_TPU_FILES):
        return
    cuda = _present(*_NVIDIA_FILES) and any(importlib.util.find_spec(name) for name in _CUDA_PLUGINS)
    os.environ["JAX_PLATFORMS"] = "cuda,cpu" if cuda else "cpu"
    if jax := sys.modules.get("jax"):  # which read that when it was imported
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


def keep_freed_memory() -> None:
    """Lets this process keep the memory it frees, where it computes on CPUs; call before anything else touches jax.

    XLA takes its temporaries anew for each step.  From a block that large glibc gets fresh pages and gives them back, and
    the system clears them at each step: a fifth to a third of the time of a step (docs/performance.md).  The price is memory:
    up to twice as much stays taken.  Nothing is done where there is an accelerator, no glibc, or settings of one's own for it.
    """
    global _kept
    own = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if own or _present(*_TPU_FILES, *_NVIDIA_FILES, *_AMD_FILES) or platform.libc_ver()[0] != "glibc":
        return
    _kept = True
    _tell_malloc((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))


def give_freed_memory_back() -> None:
    """Undoes `keep_freed_memory`, where there is too little memory to take twice as much."""
    if _kept:
        _tell_malloc((_M_MMAP_MAX, 65536), (_M_TRIM_THRESHOLD, 2**17))  # as glibc has them


def _tell_malloc(*settings: tuple[int, int]) -> None:
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in settings:
        mallopt(option, value)


def let_emulated_devices_wait() -> None:
    """Gives emulated devices time to wait for each other; call before anything else touches jax.

    XLA aborts a process in which a device has waited for 40 seconds, which many devices on few cores may well do.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _EMULATED in flags and _PATIENCE not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_PATIENCE}3600"


def _present(*patterns: str) -> bool:
    """Returns whether one of the files is in /dev."""
    return any(True for pattern in patterns for _ in pathlib.Path("/dev").glob(pattern))
