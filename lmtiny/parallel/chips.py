"""What one accelerator can do: peak, memory, links. Published figures; nothing here is measured.

A link figure is what one chip can send in one direction over all its links together.  Google publishes twice that
("bidirectional ICI bandwidth per chip"), as NVIDIA does for NVLink.
"""

import dataclasses
import os
import pathlib

from lmtiny.errors import UserError

GIB = 2**30
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as jax sees it.

    kinds: substrings of jax's `device_kind`, in small letters.  peak_flops: dense bfloat16 FLOP/s; 0: not known.
    memory: bytes a program may use.  memory_bandwidth, link_bandwidth: bytes/s.  links: how many the link figure adds up
    (TPU: two for each axis of the torus; GPU: a switch, 1).  network_bandwidth: bytes/s a chip's share of its host's network,
    over which slices (or hosts of GPUs) talk.  domain: chips that reach each other over links; 0: a whole slice.
    """

    name: str
    kinds: tuple[str, ...]
    peak_flops: float
    memory: int
    memory_bandwidth: float
    link_bandwidth: float
    links: int
    network_bandwidth: float
    domain: int = 0

    @property
    def backend(self) -> str:
        """What jax calls such devices: "tpu", "gpu" or "cpu"."""
        return "cpu" if self.name == "cpu" else "gpu" if self.domain else "tpu"


# TPU: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e.  Memory is what libtpu 0.0.42 lets a program have (its own message when a
# program is too large); the published sizes are 32, 16, 95 and 32 GB.  Network: per-host NICs over the chips of a host.
# GPU: NVIDIA's data sheets (SXM forms unless named otherwise; "with sparsity" halved).  Memory is the published size less
# about 1 GB that driver and runtime keep.  Network: one 400 Gbit/s (A100: 200) adapter a GPU, as in NVIDIA's own systems.
_GB = 10**9
CHIPS = (
    Chip("v6e", ("tpu v6 lite", "tpu v6e"), 918e12, int(31.25 * GIB), 1640e9, 448e9, 4, 12.5e9),
    Chip("v5e", ("tpu v5 lite", "tpu v5e"), 197e12, int(15.75 * GIB), 819e9, 200e9, 4, 3.1e9),
    Chip("v5p", ("tpu v5",), 459e12, int(95.74 * GIB), 2765e9, 600e9, 6, 6.25e9),
    Chip("v4", ("tpu v4",), 275e12, int(30.75 * GIB), 1228e9, 300e9, 6, 6.25e9),
    Chip("b200", ("b200",), 2250e12, 179 * _GB, 8000e9, 900e9, 1, 50e9, 8),
    Chip("h200", ("h200",), 989e12, 140 * _GB, 4800e9, 450e9, 1, 50e9, 8),
    Chip("h100-pcie", ("h100 pcie",), 756e12, 79 * _GB, 2000e9, 63e9, 1, 25e9, 8),
    Chip("h100", ("h100",), 989e12, 84 * _GB, 3350e9, 450e9, 1, 50e9, 8),
    Chip("a100-40g", ("a100-sxm4-40gb", "a100-pcie-40gb"), 312e12, 41 * _GB, 1555e9, 300e9, 1, 25e9, 8),
    Chip("a100", ("a100",), 312e12, 84 * _GB, 2039e9, 300e9, 1, 25e9, 8),
    Chip("l4", ("nvidia l4",), 121e12, 23 * _GB, 300e9, 32e9, 1, 3.1e9, 8),
    Chip("rtx4090", ("rtx 4090",), 165e12, 24 * _GB, 1008e9, 32e9, 1, 3.1e9, 8),
)  # fmt: skip


def names() -> list[str]:
    """Returns the names of all chips, "cpu" last."""
    return [chip.name for chip in CHIPS] + ["cpu"]


def by_name(name: str, num_devices: int = 1) -> Chip | None:
    """Returns the chip of that name, or None; "cpu" is this machine, shared by `num_devices` emulated devices."""
    return cpu(num_devices) if name == "cpu" else next((chip for chip in CHIPS if chip.name == name), None)


def for_jax(chip: Chip) -> Chip:
    """Returns the chip with the memory that jax takes of it: of a GPU three quarters, or what FRACTION says.

    Raises:
      UserError: FRACTION is no number above 0 and at most 1.
    """
    if chip.backend != "gpu" or os.environ.get("XLA_PYTHON_CLIENT_ALLOCATOR", "").lower() == "platform":
        return chip
    asked = os.environ.get("XLA_CLIENT_MEM_FRACTION") or os.environ.get(FRACTION) or "0.75"
    try:
        share = float(asked)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"{FRACTION}={asked} should be the share of a GPU's memory that jax takes, above 0 and at most 1")
    return dataclasses.replace(chip, memory=int(share * chip.memory))


def alike(name: str) -> Chip | None:
    """Returns the chip that somebody may mean who spells it otherwise ("RTX-4090", "NVIDIA H100 80GB HBM3"), or None."""
    letters = _letters(name)
    return next((chip for chip in CHIPS if _letters(chip.name) == letters), None) or by_kind(name)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def by_kind(device_kind: str) -> Chip | None:
    """Returns the chip that jax calls `device_kind`, or None for one that is not in the table."""
    kind = device_kind.lower()
    return next((chip for chip in CHIPS if any(part in kind for part in chip.kinds)), None)


def cpu(num_devices: int = 1) -> Chip:
    """Returns this machine as `num_devices` equal devices: the memory that is free is known, its speed is not."""
    return Chip("cpu", ("cpu",), 0.0, _free_memory() // num_devices, 0.0, 0.0, 1, 0.0)


def _free_memory() -> int:
    """Returns the bytes that programs may still take, or 0 where the system does not tell; a container has a limit of its own."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError, AttributeError):  # not a Unix
        return 0
    for path, field in (("/proc/meminfo", 1), *((f"/sys/fs/cgroup/{name}", 0) for name in _LIMITS)):
        try:
            lines = [line.split() for line in pathlib.Path(path).read_text().splitlines()]
        except OSError:
            continue
        if field:
            found += [1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:"]
        else:
            found += [int(word) for words in lines for word in words if word.isdecimal()]
    return min(found)


_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of version 2 and 1, as a container sees its own
