"""How a train step's memory (and, with --time, its time) grows with the length of a row.

    python benchmarks/context_memory.py --out docs/plots/context_memory.png
    python benchmarks/context_memory.py --lengths 32768 --cores chunked --time

It compiles lmtiny's own train step for one row of each length T, on one device with each core of attention, and on
emulated devices that split the row (ring attention), and reads the memory of a device off the compiled programs; nothing
is run without --time.  It prints a table, then one line of JSON.
"""

import math
import os

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import flags
import steps

from lmtiny import console

CORES = ["reference", "chunked", "ring 4", "ring 8"]
SHAPE = {"model.num_layers": 4, "model.width": 128, "model.num_heads": 2, "model.scan_layers": True, "model.remat": "block",
         "train.batch_size": 1, "train.loss_chunk": 1024, "parallel.data": 1, "optimizer.name": "adamw"}  # fmt: skip


def step_of(arguments, core, length):
    """Returns the Step of a row of `length` tokens by a core of attention, or by a ring over so many devices ("ring 4")."""
    name, _, devices = core.partition(" ")
    split = {"parallel.context": devices} if name == "ring" else {"model.attention": name}
    return steps.build(arguments.config, SHAPE | flags.overrides(arguments) | split | {"model.context_length": length}, int(devices or 1))


def exponent(points):
    """Returns p of memory ~ T^p over the two longest rows: 1 is linear, 2 quadratic."""
    (first, low), (last, high) = points[-2:]
    return round(math.log(high / low) / math.log(last / first), 2)


def plot(memory, path):
    """Draws memory over T, with the linear law through the end of each core that follows it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5))
    for core, points in memory.items():
        axis.loglog(*zip(*points, strict=True), marker="o", label=core, base=2)
        length, end = points[-1]
        if core != "reference":
            axis.loglog(*zip(*((at, end * at / length) for at, _ in points), strict=True), linestyle=":", color="grey", base=2)
    axis.set(xlabel="T, tokens of a row", ylabel="temporary memory of a device, MiB")
    axis.set_title("dotted: linear in T")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = steps.flags(__doc__)
    parser.add_argument("--lengths", type=flags.at_least(1), nargs="+", default=[2048, 4096, 8192, 16384, 32768], help="T, tokens")
    parser.add_argument("--cores", nargs="+", default=CORES, choices=CORES, help="of attention")
    parser.add_argument("--time", action="store_true", help="also run it")
    arguments = parser.parse_args()
    memory = {core: [] for core in arguments.cores}
    times = {}
    for length in arguments.lengths:
        for core in arguments.cores:
            step = step_of(arguments, core, length)
            memory[core].append((length, step.temp_mib))
            took = ""
            if arguments.time:
                times[f"{core}, T={length}"], share = steps.paired_seconds({core: step}, arguments.repeats)[core]
                took = f"  {times[f'{core}, T={length}']:.2f} s a step, {share:.2f} cores at work"
            print(f"{length:>8,}  {core:<10} {step.temp_mib:>10,.1f} MiB{took}", flush=True)
    exponents = {core: exponent(points) for core, points in memory.items() if len(points) > 1}
    for core, power in exponents.items():
        print(f"memory of {core} grows as T^{power} at the end")
    if arguments.out:
        plot(memory, arguments.out)
    steps.finish({"what": "temporary memory of a train step", "units": "MiB", "memory": memory, "exponents": exponents, "seconds": times})


if __name__ == "__main__":
    console.run_main(main)
