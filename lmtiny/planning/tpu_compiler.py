"""Compiles the train step for a TPU slice that is not there: libtpu's own compiler says whether it fits and what it sends.

Needs the extra `tpu` (`pip install -e ".[tpu]"`), no TPU.  `prepare` must run before jax is imported.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lmtiny import console
from lmtiny.errors import UserError
from lmtiny.planning import hlo
from lmtiny.planning.slices import Slice

if TYPE_CHECKING:
    import ml_collections


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a train step; bytes are those of one device.

    fits: whether it compiled.  temporaries: what XLA sets aside for them, gaps included.  peak: arguments and temporaries at
    the fullest moment, which is what must fit.  code: the program itself.  missing_for, available: bytes of temporaries a step
    that does not fit would take, and of memory, as far as the message says.  collectives: what is sent in a step.
    """

    slice: str
    fits: bool
    seconds: float
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    peak: int = 0
    code: int = 0
    missing_for: float = 0.0
    available: float = 0.0
    flops: float = 0.0
    collectives: tuple[hlo.Collective, ...] = ()
    problem: str = ""

    @property
    def needed(self) -> float:
        """Bytes of a device that the step needs at its fullest moment."""
        return float(self.peak) if self.fits else self.missing_for + self.arguments


def prepare(target: Slice) -> None:
    """Sets the environment in which libtpu compiles without a TPU.

    Raises:
      UserError: libtpu is not installed.
    """
    if "jax" in sys.modules:
        raise RuntimeError("jax is imported already, so the environment of the TPU compiler comes too late")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError('compiling for TPU needs libtpu (no TPU): pip install -e ".[tpu]"')
    os.environ.update(
        JAX_PLATFORMS="cpu",  # nothing runs; without this jax would look for a TPU
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE=target.accelerator_type,
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # no chip is taken, so several compilers may work side by side
        TPU_MIN_LOG_LEVEL="3",
        TPU_STDERR_LOG_LEVEL="3",
        TF_CPP_MIN_LOG_LEVEL="3",
    )


def devices(target: Slice) -> list[Any]:
    """Returns the slice's devices, on which a mesh can be built but nothing can run."""
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(**target.topology).devices)


@contextlib.contextmanager
def told_meanwhile(what: str, every_s: float = 10.0) -> Iterator[None]:
    """Says what the block is at, and for how long, until it ends: compiled code does not return to Python meanwhile."""
    started, done = time.monotonic(), threading.Event()

    def tell() -> None:
        while not done.wait(every_s):
            console.say(f"{what}: {console.duration(time.monotonic() - started)} so far")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def compile_train_step(config: "ml_collections.ConfigDict", target: Slice, options: dict[str, str] | None = None) -> tuple[Compiled, Any]:
    """Returns (what the compiler says of the config's train step on the slice, jax's compiled object or None).

    Args:
      options: compiler options of XLA, such as {"xla_tpu_enable_latency_hiding_scheduler": "true"}.

    Raises:
      UserError: the config's mesh is not the slice, or the compiler fails.
    """
    import jax

    from lmtiny.model import attend, size
    from lmtiny.parallel import mesh as mesh_lib
    from lmtiny.training.optimizer import make_optimizer
    from lmtiny.training.step import abstract_inputs, traced_train_step

    mesh = mesh_lib.make_mesh(config, devices(target))
    computed, _ = attend.resolved(config, mesh)
    with jax.set_mesh(mesh):
        lowered = traced_train_step(computed, mesh).lower()
        started = time.monotonic()
        try:
            compiled = lowered.compile(compiler_options=options or None)
        except jax.errors.JaxRuntimeError as error:
            seconds = time.monotonic() - started
            optimizer = make_optimizer(config, size.abstract(config)[2])
            arguments = argument_bytes(*abstract_inputs(config, optimizer, mesh))
            return _too_large(target, str(error), seconds, arguments), None
    seconds = time.monotonic() - started
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return (
        Compiled(
            target.name, True, seconds,
            arguments=memory.argument_size_in_bytes, outputs=memory.output_size_in_bytes, aliased=memory.alias_size_in_bytes,
            temporaries=memory.temp_size_in_bytes, peak=memory.peak_memory_in_bytes, code=memory.generated_code_size_in_bytes,
            flops=float(cost.get("flops", 0.0)), collectives=tuple(hlo.collectives(compiled.as_text())),
        ),
        compiled,
    )  # fmt: skip


def argument_bytes(*trees: Any) -> int:
    """Returns the bytes of one device's part of the arrays (ShapeDtypeStructs with shardings), without padding."""
    import jax

    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _too_large(target: Slice, message: str, seconds: float, arguments: int) -> Compiled:
    """Returns what a RESOURCE_EXHAUSTED message says; raises UserError for any other failure."""
    if "RESOURCE_EXHAUSTED" not in message:
        raise UserError(f"the TPU compiler failed, which is no matter of memory; another mesh may do: {message[:300]}") from None
    temporaries, available = sizes_in(message)
    return Compiled(target.name, False, seconds, arguments=arguments, missing_for=temporaries, available=available,
                    problem=" ".join(message.split())[:300])  # fmt: skip


def sizes_in(message: str) -> tuple[float, float]:
    """Returns (bytes needed, bytes available) of a message of XLA's that memory is exhausted; 0.0 for what it does not say."""
    # "... required for HLO temporaries (27.94G) exceeds available HBM (15.75G)" or "Used 20.12G of 15.75G hbm. Exceeded ..."
    match = re.search(r"\(([\d.]+)([KMGT]?)B?\) exceeds available \w+ \(([\d.]+)([KMGT]?)B?\)", message) or re.search(
        r"[Uu]sed ([\d.]+)([KMGT]?)B? of ([\d.]+)([KMGT]?)B? hbm", message
    )
    if match is None:
        return 0.0, 0.0
    needed, unit, available, other = match.groups()
    return float(needed) * _UNITS[unit], float(available) * _UNITS[other]

