"""What each choice of a recipe is worth: a config with one choice changed, at equal training time, on held-out books.

    python benchmarks/recipe.py --out recipe.jsonl --time                          first: let nothing else run
    python benchmarks/recipe.py --out recipe.jsonl --books FOLDER                  then; started again, it goes on
    python benchmarks/recipe.py --out recipe.jsonl --books FOLDER --only "base;GELU" --seeds 3
    python benchmarks/recipe.py --out recipe.jsonl --plot recipe.png               the table and the plot of what is there
    python benchmarks/recipe.py --out questions.jsonl --questions --time           the same of wide, narrow, many layers ...
    python benchmarks/recipe.py --out questions.jsonl --questions --tokens --books FOLDER      at equal tokens instead

--time times each variant's train step beside the base's, in turns.  A run then has as many steps as take --minutes, so
that other work slows it down but does not change what comes of it.  What is tried: benchmarks/variants.py.  Tokenizer and
score: benchmarks/equal_time.py.
"""

import argparse
import json
import pathlib
import statistics
import tempfile

import flags
import variants
from equal_time import check_books, write_texts
from sides import ours, say, steps_for

from lmtiny import config as config_lib
from lmtiny import console

HERE = pathlib.Path(__file__).resolve()
TURNS = 15
KINDS = {  # of runs: their place in a row of the plot, how they are drawn, what the legend says
    "time": (0.12, {"marker": "o", "color": "tab:blue"}, "after {:g} minutes"),
    "tokens": (-0.12, {"marker": "o", "color": "tab:orange", "markerfacecolor": "none"}, "after the base's tokens"),
}
SAME_TIME = ("optimizer.schedule", "optimizer.warmdown_fraction", "optimizer.learning_rate", "optimizer.embedding_learning_rate")


def relative(base, knob, value):
    """Returns the value of a variant's knob, "x2" as twice the base's."""
    if not isinstance(value, str) or not value.startswith("x"):
        return value
    found = config_lib.get_knob(base, knob) * float(value[1:])
    return round(found) if isinstance(config_lib.get_knob(base, knob), int) else found


def changes(args, name):
    """Returns the knobs of a variant that differ from those of the config file, as "KNOB=VALUE"."""
    base = config_lib.load(args.config, flags.overrides(args))
    return [*args.set, *(f"{knob}={relative(base, knob, value)}" for knob, value in args.variants[name].items())]


def config_of(args, name):
    return config_lib.load(args.config, dict(text.split("=", 1) for text in changes(args, name)))


def timed(args, names):
    """Yields the record of each variant that has none yet: milliseconds of the base's step, the variant's over it, in turns."""
    import steps

    from lmtiny.parallel import host

    host.keep_freed_memory()
    base = steps.of(config_of(args, variants.BASE))
    for name in names:
        if name not in args.times:
            # The same program with other numbers in it takes the same time, and is not left to the machine's moods.
            same = all(knob in SAME_TIME for knob in args.variants[name])
            pair = {"base": base} | ({} if same else {"its": steps.of(config_of(args, name))})
            seconds = steps.seconds_in_turns(pair, TURNS)
            ratios = [1.0] if same else [its / of_base for its, of_base in zip(seconds["its"], seconds["base"], strict=True)]
            yield {"time": name, "ratio": statistics.median(ratios), "base_ms": statistics.median(seconds["base"]) * 1e3, "base": args.base}


def steps_of(args, name, tokens_equal):
    """Returns (steps of a run of the variant, milliseconds that a step takes where a base's takes its median)."""
    if missing := [one for one in (variants.BASE, name) if one not in args.times]:
        raise SystemExit(f"{missing[0]} has not been timed; run it with --time first")
    base_ms = statistics.median(record["base_ms"] for record in args.times.values())
    ms = base_ms * args.times[name]["ratio"]
    if not tokens_equal:
        return steps_for(args.minutes, ms / 1e3), ms
    base, own = (one.train.batch_size * one.model.context_length for one in (config_of(args, variants.BASE), config_of(args, name)))
    return round(steps_for(args.minutes, base_ms / 1e3) * base / own), ms


def run(args, books, name):
    """Yields the record of each seed of a variant that is not yet in `args.done`."""
    num_steps, ms = steps_of(args, name, args.tokens)
    seeds = [seed for seed in range(args.seeds) if (name, seed, args.tokens) not in args.done]
    if num_steps == steps_of(args, name, not args.tokens)[0]:  # one run says both
        same = [args.done[name, seed, not args.tokens] for seed in seeds if (name, seed, not args.tokens) in args.done]
        yield from (record | {"tokens_equal": args.tokens} for record in same)
        seeds = [seed for seed in seeds if seed not in [record["seed"] for record in same]]
    if not seeds:
        return
    one, config = argparse.Namespace(**vars(args) | {"set": changes(args, name)}), config_of(args, name)
    with tempfile.TemporaryDirectory(prefix="recipe-", dir=args.work) as folder:
        work = pathlib.Path(folder).resolve()
        texts, _, num_bytes, _ = write_texts(books, config, work, 4000)
        facts, _, train = ours(one, config, texts, work)
        for seed in seeds:
            score, _ = train(seed, num_steps)
            if abs(facts["bytes"] / num_bytes - 1) > 1e-3:
                raise SystemExit(f"{name}: scored {facts['bytes']:,} bytes of {num_bytes:,}: not the same text")
            yield {"name": name, "seed": seed, "tokens_equal": args.tokens, "bits_per_byte": score, "ms": ms, "base": args.base,
                   **{key: facts[key] for key in ("parameters", "steps", "tokens", "settings")}}  # fmt: skip


def summary(records):
    """Returns [(name, {"time": scores of its seeds at equal time, "tokens": at equal tokens}, the first record)], best first."""
    named = {}
    for record in records:
        named.setdefault(record["name"], []).append(record)
    rows = []
    for name, ones in named.items():
        scores = {kind: [one["bits_per_byte"] for one in ones if one["tokens_equal"] == (kind == "tokens")] for kind in KINDS}
        rows.append((name, {kind: found for kind, found in scores.items() if found}, ones[0]))
    return sorted(rows, key=lambda row: statistics.fmean(next(iter(row[1].values()))))


def table(records):
    """Returns a Markdown table: bits per byte, the difference to the base, and the seeds of each, at equal time and at equal tokens."""
    rows = summary(records)
    kinds = [kind for kind in KINDS if any(kind in scores for _, scores, _ in rows)]
    bases = next((scores for name, scores, _ in rows if name == variants.BASE), {})
    head = "".join(f" equal {kind}, bits per byte | of the base | seeds |" for kind in kinds)
    lines = [f"| variant |{head} ms a step | parameters |", "|---|" + "---:|---:|---|" * len(kinds) + "---:|---:|"]
    for name, scores, first in rows:
        cells = ""
        for kind in kinds:
            if kind not in scores:
                cells += " | | |"
                continue
            mean = statistics.fmean(scores[kind])
            change = f"{mean / statistics.fmean(bases[kind]) - 1:+.1%}" if kind in bases else ""
            cells += f" {mean:.4f} | {change} | {', '.join(f'{score:.4f}' for score in scores[kind])} |"
        lines.append(f"| {name} |{cells} {first['ms']:.0f} | {first['parameters'] / 1e6:.2f} M |")
    return "\n".join(lines)


def plot(records, path, minutes):
    """Draws each variant's seeds, best on top: at equal time filled, at equal tokens open; a line marks the base's mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = summary(records)[::-1]
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.26 * len(rows)))
    for kind, (place_in_row, marker, label) in KINDS.items():
        points = [(score, place + place_in_row) for place, (_, scores, _) in enumerate(rows) for score in scores.get(kind, [])]
        if points:
            axis.plot(*zip(*points, strict=True), linestyle="", markersize=4, label=label.format(minutes), **marker)
        for name, scores, _ in rows:
            if name == variants.BASE and kind in scores:
                axis.axvline(statistics.fmean(scores[kind]), linewidth=0.8, color=marker["color"], alpha=0.6)
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axis.set_xlabel("bits per byte of held-out books")
    axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def parsed():
    parser = flags.parser(__doc__)
    parser.add_argument("--out", type=flags.new_file, required=True, help="JSON lines, one a timing or a run")
    parser.add_argument("--time", action="store_true", help="time the steps of what has not been timed, and stop")
    parser.add_argument("--books", help="folder of .txt books; the last two by name are held out; without it nothing is trained")
    parser.add_argument("--config", default=str(HERE.parents[1] / "configs" / "tiny.py"), help="the base")
    parser.add_argument("--questions", action="store_true", help="the questions' base and variants, not the recipe's")
    flags.add_set(parser, "another knob of the base")
    parser.add_argument("--only", default="", help="these variants, separated by semicolons")
    parser.add_argument("--minutes", type=flags.above_zero, default=5.0, help="of training, without compilation")
    parser.add_argument("--tokens", action="store_true", help="as many tokens as the base has in that time, whatever time they take")
    parser.add_argument("--seeds", type=flags.at_least(1), default=2, help="runs of each variant")
    parser.add_argument("--work", help="folder for temporary files")
    parser.add_argument("--plot", type=flags.new_file, help="write a plot, as PNG")
    args = parser.parse_args()
    args.variants = variants.QUESTIONS if args.questions else variants.RECIPE
    if args.questions:
        args.set = [*(f"{knob}={value}" for knob, value in variants.QUESTIONS_BASE.items()), *args.set]
    args.names = args.only.split(";") if args.only else list(args.variants)
    if unknown := [name for name in args.names if name not in args.variants]:
        raise SystemExit(f"--only {unknown[0]}: there are {'; '.join(args.variants)}")
    args.base = [args.config, args.minutes, *args.set]
    return args


def main():
    args = parsed()
    try:
        records = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SystemExit(f"--out {args.out} is no file of JSON lines: {error}") from None
    if (args.books or args.time) and any(record["base"] != args.base for record in records):
        raise SystemExit(f"--out {args.out} holds runs of another base, {records[0]['base']}; name another file")
    args.times = {record["time"]: record for record in records if "time" in record}
    args.done = {(record["name"], record["seed"], record["tokens_equal"]): record for record in records if "name" in record}

    def keep(record):
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        records.append(record)

    if args.time:
        for record in timed(args, args.names):
            keep(record)
            say(f"{record['time']}: {record['ratio']:.3f} of the base's time, which took {record['base_ms']:.1f} ms a step")
        return
    if args.books:
        if args.work:
            pathlib.Path(args.work).mkdir(parents=True, exist_ok=True)
        books = check_books(args)
        for name in args.names:
            for record in run(args, books, name):
                keep(record)
                say(f"{name}, seed {record['seed']}: {record['bits_per_byte']:.4f} bits per byte")
    runs = [record for record in records if "name" in record and (not args.only or record["name"] in args.names)]
    if not runs:
        asked = f" of {args.only}" if args.only else ""
        there = "has" if args.out.is_file() else "is not there:"
        raise SystemExit(f"{args.out} {there} no run{asked} yet; --time, then --books FOLDER make some")
    print(table(runs))
    if args.plot:
        plot(runs, args.plot, runs[0]["base"][1])


if __name__ == "__main__":
    console.run_main(main)
