"""What each policy of model.remat costs and saves: memory and time of a train step, and the batch that fits instead.

    python benchmarks/remat.py --out docs/plots/remat.png

Steps run in turns on one device.  "batch in the memory of none": the largest batch, by the compiler's count, whose
temporaries stay within those of model.remat=none at --batch rows; its time for each row against that of none.
"""

import flags
import steps

from lmtiny import console

POLICIES = ("none", "dots", "names", "offload", "block")


def build(arguments, remat, rows):
    shape = {"model.scan_layers": True, "model.num_layers": arguments.layers, "train.batch_size": rows, "model.remat": remat,
             "train.loss_chunk": 1024, "model.attention": "chunked"}  # fmt: skip
    step = steps.build(arguments.config, flags.overrides(arguments) | shape)
    print(f"compiled: {remat}, {rows} rows, {step.temp_mib:,.0f} MiB", flush=True)
    return step


def largest_batch(arguments, remat, limit):
    """Returns (rows, the Step) of the largest batch, in steps of --batch / 2 rows, that stays within `limit` MiB."""
    rows, best = arguments.batch, build(arguments, remat, arguments.batch)
    while True:
        step = build(arguments, remat, rows + arguments.batch // 2)
        if step.temp_mib > limit:
            return rows, best
        rows, best = rows + arguments.batch // 2, step


def main():
    parser = steps.flags(__doc__)
    parser.add_argument("--layers", type=flags.at_least(1), default=12, help="of the model")
    parser.add_argument("--batch", type=flags.at_least(2), default=8, help="rows")
    arguments = parser.parse_args()
    compiled = {remat: build(arguments, remat, arguments.batch) for remat in POLICIES}
    print(f"{1 + arguments.repeats} steps of each, in turns", flush=True)
    found = steps.paired_seconds(compiled, arguments.repeats)
    print("policy    temporaries    of none   s a step   of none   cores at work")
    for remat, step in compiled.items():
        seconds, share = found[remat]
        print(f"{remat:<8} {step.temp_mib:>8,.0f} MiB {step.temp_mib / compiled['none'].temp_mib:>10.2f} {seconds:>10.3f} "
              f"{seconds / found['none'][0]:>9.2f} {share:>15.2f}")  # fmt: skip
    limit, larger = compiled["none"].temp_mib, {}
    for remat in ("names", "block"):
        rows, step = largest_batch(arguments, remat, limit)
        both = steps.paired_seconds({"none": compiled["none"], remat: step}, arguments.repeats)
        ratio = both[remat][0] / rows / (both["none"][0] / arguments.batch)
        larger[remat] = {"rows": rows, "times": rows / arguments.batch, "seconds_a_row": ratio}
        print(f"in the memory of none at {arguments.batch} rows, {remat} takes {rows} rows ({rows / arguments.batch:.1f}x), "
              f"each at {ratio:.2f}x the time")  # fmt: skip
    record = {remat: {"mib": step.temp_mib, "seconds": found[remat][0]} for remat, step in compiled.items()}
    if arguments.out:
        plot(record, arguments.out)
    sizes = {"layers": arguments.layers, "batch": arguments.batch}
    steps.finish({"what": "remat policies", "units": "MiB, seconds", **sizes, "policies": record, "larger": larger})


def plot(record, path):
    """Draws time over memory, a point for each policy."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for remat, figures in record.items():
        point = figures["mib"] / record["none"]["mib"], figures["seconds"] / record["none"]["seconds"]
        axis.plot(*point, "o")
        axis.annotate(remat, point, textcoords="offset points", xytext=(6, 4))
    axis.set(xlabel="temporary memory, of none", ylabel="time of a step, of none", xlim=(0, 1.15))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    console.run_main(main)
