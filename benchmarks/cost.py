"""How time, memory and traffic grow with the work: one size varied at a time, beside the law that is expected of it.

    python benchmarks/cost.py --out cost.png
    launch/local.sh --devices 8 -- python benchmarks/cost.py --only devices

Around four layers of 192, T 256, batch 8, 4,096 tokens of vocabulary, bfloat16, AdamW.  Time: medians, against the step's
FLOPs (`model.size`; a tenfold work that takes twelvefold time is told as 1.2).  Memory: temporaries of the compiled step,
against the formula of `lmtiny.plan`.  Devices: bytes that a device sends in a step by the compiled program's collectives,
against the formula; they need emulated devices.  Rows of the data set: the time to draw a batch of 256 shuffled rows' numbers.
"""

import math
import time

import flags
import jax
import numpy as np
import steps

from lmtiny import console
from lmtiny.data import shuffle
from lmtiny.model import size
from lmtiny.parallel import host
from lmtiny.planning import hlo, memory, traffic

BASE = {
    "model.num_layers": 4, "model.width": 192, "model.num_heads": 3, "model.context_length": 256, "tokenizer.vocab_size": 4096,
    "model.ngram_rows": 0, "model.induction": 0, "model.copying": False, "model.compute_dtype": "bfloat16",
    "train.batch_size": 8, "optimizer.name": "adamw",
}  # fmt: skip
SWEEPS = {
    "T": [{"model.context_length": length, "train.batch_size": 4} for length in (64, 128, 256, 512, 1024, 2048)],
    "batch": [{"train.batch_size": rows} for rows in (2, 4, 8, 16, 32)],
    "depth": [{"model.num_layers": layers} for layers in (2, 4, 8, 16)],
    "width": [{"model.width": width, "model.num_heads": width // 64} for width in (64, 128, 256, 512)],
    "vocabulary": [{"tokenizer.vocab_size": vocabulary} for vocabulary in (1024, 4096, 16384, 65536)],
}
DEVICES = [{"fsdp": 2}, {"fsdp": 4}, {"fsdp": 8}, {"tensor": 2}, {"tensor": 4}, {"tensor": 8}, {"data": 2}, {"data": 4}, {"data": 8},
           {"context": 2}, {"context": 4}, {"context": 8}]  # fmt: skip
DATA_ROWS, DATA_BATCHES = (10**4, 10**6, 10**8), 100


def swept(args, name):
    """Returns a row for each size: its value, seconds, MiB, and what law and formula make of them."""
    rows = []
    for change in SWEEPS[name]:
        step = steps.build(args.config, BASE | flags.overrides(args) | change)
        seconds, share = steps.paired_seconds({"": step}, args.repeats)[""]
        config, one = step.config, dict(step.mesh.shape)
        tokens = config.train.batch_size * config.model.context_length
        rows.append({"value": next(iter(change.values())), "seconds": seconds, "cores": round(share, 2), "mib": step.temp_mib,
                     "gflop": size.flops_per_token(config)["causal"] * tokens / 1e9,
                     "formula_mib": memory.memory(config, one, tiled=False).temporaries / steps.MIB})  # fmt: skip
        row = rows[-1]
        print(f"{name:>10} {row['value']:>7,}: {seconds * 1e3:9.1f} ms, {row['gflop']:9.1f} GFLOP, {row['gflop'] / seconds:6.0f} GFLOP/s, "
              f"{step.temp_mib:8.1f} MiB (formula {row['formula_mib']:.1f})", flush=True)  # fmt: skip
    return rows


def growth(rows, key, law):
    """Returns by how much `key` grew, from the first row to the last, over how much its law did."""
    return (rows[-1][key] / rows[0][key]) / (rows[-1][law] / rows[0][law])


def on_devices(args):
    """Returns {mesh: (bytes sent by the compiled step, by the formula)}."""
    found = {}
    for mesh in DEVICES:
        if math.prod(mesh.values()) > len(jax.devices()):
            continue
        # XLA on a CPU sends bfloat16 as float32, so all is float32 here.
        change = {"model.num_heads": 8, "train.batch_size": 16, "model.scan_layers": True, "model.compute_dtype": "float32"}
        meshed = {f"parallel.{axis}": count for axis, count in mesh.items()}
        step = steps.build(args.config, BASE | flags.overrides(args) | change | meshed, math.prod(mesh.values()))
        sent = sum(one["sent_bytes"] for one in hlo.total_by_kind(hlo.collectives(step.run.as_text())).values())
        formula = traffic.total(traffic.traffic(step.config, dict(step.mesh.shape)))
        name = " x ".join(f"{axis} {count}" for axis, count in mesh.items())
        found[name] = sent, formula
        print(f"{name:>12}: {sent / 1e6:8.1f} MB sent by a device, formula {formula / 1e6:8.1f}, ratio {sent / formula:.2f}", flush=True)
    return found


def over_rows():
    """Returns {rows of the data set: milliseconds to draw a batch of 256 shuffled rows' numbers}."""
    found = {}
    for count in DATA_ROWS:
        start = time.perf_counter()
        for first in range(0, 256 * DATA_BATCHES, 256):
            shuffle.rows_at(np.arange(first, first + 256), count, 0)
        found[count] = round((time.perf_counter() - start) / DATA_BATCHES * 1e3, 3)
        print(f"{count:>13,} rows: {found[count]:.2f} ms for the numbers of a batch of 256", flush=True)
    return found


def plot(sweeps, path):
    """Draws time and memory over each size, and their laws through the last point."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, len(sweeps), figsize=(3 * len(sweeps), 6), squeeze=False)
    for column, (name, rows) in enumerate(sweeps.items()):
        values = [row["value"] for row in rows]
        for axis, key, law, scale, label in ((panels[0, column], "seconds", "gflop", 1e3, "ms a step"),
                                             (panels[1, column], "mib", "formula_mib", 1, "temporaries, MiB")):  # fmt: skip
            axis.loglog(values, [scale * row[key] for row in rows], "o-", base=2)
            axis.loglog(values, [scale * rows[-1][key] * row[law] / rows[-1][law] for row in rows], ":", color="grey", base=2)
            axis.set(xlabel=name, ylabel=label if column == 0 else "")
            axis.set_xticks(values, [f"{value:,}" for value in values], fontsize=7)
            axis.yaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
    figure.suptitle("dotted: the law (FLOPs; the memory formula) through the last point")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = steps.flags(__doc__)
    every = [*SWEEPS, "devices", "rows"]
    parser.add_argument("--only", type=flags.some_of(*every), default=every, help="these, separated by commas")
    args = parser.parse_args()
    host.keep_freed_memory()
    wanted = args.only
    if args.out and not set(wanted) & {*SWEEPS}:
        raise SystemExit(f"--out: there is no plot of {', '.join(wanted)}")
    if "devices" in wanted and len(jax.devices()) == 1:
        emulated = "launch/local.sh --devices 8 -- python benchmarks/cost.py --only devices"
        alone = f"devices: left out, since one alone is here; {emulated}"
        if wanted == ["devices"]:
            raise SystemExit(alone)
        print(alone, flush=True)
    sweeps = {name: swept(args, name) for name in SWEEPS if name in wanted}
    for name, rows in sweeps.items():
        print(f"{name}: time grew {growth(rows, 'seconds', 'gflop'):.2f} times as much as the FLOPs, "
              f"memory {growth(rows, 'mib', 'formula_mib'):.2f} times as much as its formula")  # fmt: skip
    sent = on_devices(args) if "devices" in wanted else {}
    drawn = over_rows() if "rows" in wanted else {}
    if args.out and sweeps:
        plot(sweeps, args.out)
    units = "seconds, MiB, GFLOP; bytes sent; ms for a batch of rows"
    steps.finish({"what": "cost as work grows", "units": units, "sweeps": sweeps, "sent": sent, "rows": drawn})


if __name__ == "__main__":
    console.run_main(main)
