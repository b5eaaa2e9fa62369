"""Devices: the mesh of a run, the processes it spans, and moving batches onto it."""

import dataclasses
import hashlib
import math
import os
import pathlib
import re
import threading
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lmtiny import config as config_lib
from lmtiny import console, ctrl_c
from lmtiny.errors import UserError
from lmtiny.parallel import axes, chips

PATIENCE_S = 300.0  # how long the processes of a run wait for each other


def start_processes() -> None:
    """Joins the other processes of this run, when there are others; call before anything else touches jax.

    Three variables name them, as `launch/local.sh --processes` sets: LMTINY_COORDINATOR (host:port),
    LMTINY_NUM_PROCESSES, LMTINY_PROCESS_ID.  With LMTINY_COORDINATOR=auto jax finds them by itself, which it can on
    Cloud TPU (`launch/tpu_vm.sh run` sets it) and under Slurm.

    Raises:
      UserError: variables that are wrong or do not go together, or the others are not found.
    """
    names = [f"LMTINY_{name}" for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID")]
    coordinator, count, index = (os.environ.get(name, "") for name in names)
    if not coordinator and not count and not index:
        return
    if coordinator == "auto":
        _join("LMTINY_COORDINATOR=auto: jax finds processes on Cloud TPU and under Slurm; elsewhere give HOST:PORT")
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not 1 <= _whole(port) <= 65535:
        raise UserError(f"LMTINY_COORDINATOR={coordinator!r} should read HOST:PORT, as in localhost:1234, or auto")
    if _whole(count) < 1:
        raise UserError(f"LMTINY_NUM_PROCESSES={count!r} should be the number of processes of this run, 1 or more")
    if not 0 <= _whole(index) < _whole(count):
        raise UserError(f"LMTINY_PROCESS_ID={index!r} should be this process's own number, 0 to {_whole(count) - 1}")
    lost = f"process {index} of {count} does not find the others by LMTINY_COORDINATOR={coordinator}"
    _join(f"{lost}; all are given the same, the address of process 0 and a port free there", coordinator, int(count), int(index))


def _whole(text: str) -> int:
    """Returns a whole number of at most nine digits, or -1 for anything else."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else -1


def _join(lost: str, coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Calls jax.distributed.initialize; where that fails, or does not return, the program ends with the line `lost`."""

    def give_up() -> None:  # before jax does, which aborts with a stack trace
        ctrl_c.tell(f"lmtiny: error: {lost} (nobody answered for {console.duration(PATIENCE_S)})\n".encode())
        os._exit(1)

    timer = threading.Timer(PATIENCE_S, give_up)
    timer.start()
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=int(PATIENCE_S) + 60)
    except Exception as error:  # ValueError, RuntimeError, those of sockets: no address, a port that is taken
        raise UserError(f"{lost} ({_first_line(error)})") from None
    finally:
        timer.cancel()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


def all_devices() -> list[Any]:
    """Returns the devices of this run.

    Raises:
      UserError: JAX_PLATFORMS names a kind of which there is none, or jax cannot use them.
    """
    try:
        return jax.devices()
    except Exception as error:  # for "cuda" without jax's plugin an AssertionError, else a RuntimeError
        asked = os.environ.get("JAX_PLATFORMS")
        what = f"JAX_PLATFORMS={asked}: jax finds no such device here; unset it" if asked else "jax can use no device here"
        raise UserError(f"{what}, or set JAX_PLATFORMS=cpu ({_first_line(error)})") from None


def platform() -> str:
    """Returns what the program that is being traced will run on: "cpu", "gpu", "tpu", or "" for a mesh without devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend()
    device = mesh.abstract_device
    return device.platform if device is not None else ""


def make_mesh(config: ml_collections.ConfigDict, devices: list[Any] | None = None) -> Mesh:
    """Returns the config's mesh over `devices` (default: all), `axes.MESH_AXES` from the slowest links to the fastest.

    Where the devices are several TPU slices, the copies of `parallel.data` go across them and all else stays inside.

    Raises:
      UserError: the mesh is not the devices, the model does not divide by it (`config.mesh_shape`), or the slices do not
        divide parallel.data.
    """
    devices = all_devices() if devices is None else devices
    asked = math.prod(max(1, config.parallel[name]) for name in axes.MESH_AXES)
    if len(devices) == 1 < asked and devices[0].platform == "cpu":
        raise UserError(f"parallel: {asked} devices asked for, a CPU is one; launch/local.sh --devices {asked} -- COMMAND emulates them")
    shape = config_lib.mesh_shape(config, len(devices))
    sizes = tuple(shape[name] for name in axes.MESH_AXES)
    types = (AxisType.Auto,) * len(sizes)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(sizes, axes.MESH_AXES, axis_types=types, devices=devices)
    if shape["data"] % slices:
        raise UserError(f"parallel.data = {shape['data']} is not divisible by the {slices} slices: only copies go across slices")
    across = [slices if name == "data" else 1 for name in axes.MESH_AXES]
    inside = [size // count for size, count in zip(sizes, across, strict=True)]
    try:
        grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices)
    except NotImplementedError:  # no axis of the torus, nor several, has such a size: part of one will do
        grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    return Mesh(grid, axes.MESH_AXES, axis_types=types)


def batch_sharding(mesh: Mesh) -> jax.sharding.NamedSharding:
    """Returns where a batch tokens[B, T+1] lies: rows split over the mesh, time whole."""
    return axes.sharding(mesh, ("batch", None))


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Returns (start, count): which rows of every global batch this process must read.

    Processes that share rows (tensor parallelism across hosts) get the same answer.
    """
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size, 1)).values()
    starts, stops = zip(*[index[0].indices(batch_size)[:2] for index in slices if index is not None], strict=True)
    return min(starts), max(stops) - min(starts)


def place_batch(mesh: Mesh, rows: np.ndarray, batch_size: int) -> jax.Array:
    """Returns the global array [batch_size, ...] of which `rows` are this process's (`local_rows`)."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), rows, (batch_size, *rows.shape[1:]))


def peak_flops() -> float:
    """Returns the published dense bfloat16 peak of one device in FLOP/s, or 0.0 where it is not known (CPU)."""
    chip = chips.by_kind(jax.devices()[0].device_kind)
    return chip.peak_flops if chip else 0.0


def chip_here() -> chips.Chip | None:
    """Returns this run's kind of device with the memory that a program may use of it; None for one that is not known."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return chips.cpu(jax.local_device_count())
    chip, statistics = chips.by_kind(device.device_kind), device.memory_stats() or {}
    return dataclasses.replace(chip, memory=statistics.get("bytes_limit", chip.memory)) if chip else None


def cache_folder() -> pathlib.Path:
    """Returns where this user's compiled programs are kept: in ~/.cache/lmtiny, or under XDG_CACHE_HOME."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "lmtiny" / "compiled"


def use_compile_cache() -> None:
    """Keeps compiled programs (`cache_folder`): a second start does not compile again.

    Not where several CPU devices compute together: XLA does not write into the cache which of such a program's collectives
    comes first.  From there a device may be at several at a time, and they wait for each other for ever, or are aborted
    (docs/log.md).  A folder in JAX_COMPILATION_CACHE_DIR is not used either.
    """
    if len(devices := all_devices()) > 1 and devices[0].platform == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    # By default jax leaves out what compiles fast, which is all of a small model.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def refuse_unless_same_everywhere(text: str, what: str) -> None:
    """Raises UserError on all processes if `text` (a hash, say) is not the same on each; `what` names it."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        if (multihost_utils.process_allgather(digest) != digest[None]).any():
            raise UserError(f"{what} is not the same on all processes")
