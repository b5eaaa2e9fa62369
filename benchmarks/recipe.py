"""What each choice of the recipe is worth: configs/tiny.py with one choice changed, at equal training time, on held-out books.

    python benchmarks/recipe.py --books FOLDER --out recipe.jsonl                  all of it; started again, it goes on
    python benchmarks/recipe.py --books FOLDER --out recipe.jsonl --only "base;GELU" --seeds 3
    python benchmarks/recipe.py --out recipe.jsonl --plot recipe.png               the table and the plot of what is there

Each variant learns its tokenizer, is timed for --calibrate steps and trained for as many as take --minutes, once for each
seed; how, benchmarks/equal_time.py says.  Let nothing else run meanwhile.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

from equal_time import check, write_texts
from sides import ours, say

from lmtiny import config as config_lib
from lmtiny.errors import UserError

BASE = "base"
VARIANTS = {  # what is changed of the base, by the knob; "x2": twice the base's value
    BASE: {},
    "GELU": {"model.activation": "gelu"},
    "SwiGLU, same parameters": {"model.activation": "swiglu", "model.mlp_ratio": 8 / 3},
    "no QK-norm": {"model.qk_norm": False},
    "projections not from zero": {"model.zero_projections": False},
    "norm after the embedding": {"model.embedding_norm": True},
    "residual mixing": {"model.residual_mixing": True},
    "pairs of tokens, 16,384 rows": {"model.pair_rows": 16384},
    "pairs of tokens, 65,536 rows": {"model.pair_rows": 65536},
    "value embeddings, last layer": {"model.value_embeddings": 1},
    "value embeddings, last 2": {"model.value_embeddings": 2},
    "logit soft cap 15": {"model.logit_soft_cap": 15.0},
    "windows of 64, SL": {"model.window": 64, "model.window_pattern": "SL"},
    "documents not masked": {"model.mask_documents": False},
    "cosine": {"optimizer.schedule": "cosine"},
    "warmdown 0.4": {"optimizer.warmdown_fraction": 0.4},
    "warmdown 1.0": {"optimizer.warmdown_fraction": 1.0},
    "AdamW": {"optimizer.name": "adamw"},
    "half the batch": {"train.batch_size": "x0.5"},
    "twice the batch": {"train.batch_size": "x2"},
    "rate x 0.5": {"optimizer.learning_rate": "x0.5"},
    "rate x 2": {"optimizer.learning_rate": "x2"},
    "embedding rate x 3": {"optimizer.embedding_learning_rate": "x3"},
    "no weight decay": {"optimizer.weight_decay": 0.0},
    "bfloat16": {"model.compute_dtype": "bfloat16"},
    "1 layer": {"model.num_layers": 1},
    "2 layers": {"model.num_layers": 2},
    "3 layers": {"model.num_layers": 3},
    "6 layers": {"model.num_layers": 6},
    "narrower: 128": {"model.width": 128},
    "wider: 256": {"model.width": 256, "model.num_heads": 4},
    "MLP ratio 3": {"model.mlp_ratio": 3.0},
    "MLP ratio 2.5": {"model.mlp_ratio": 2.5},
    "heads of 48": {"model.num_heads": 4},
    "GQA by 2": {"model.num_kv_heads": 1},
    "tied embeddings": {"model.tied_embeddings": True},
    "half the context": {"model.context_length": "x0.5", "train.batch_size": "x2"},
    "twice the context": {"model.context_length": "x2", "train.batch_size": "x0.5"},
    "vocabulary 2,048": {"tokenizer.vocab_size": 2048},
    "vocabulary 8,192": {"tokenizer.vocab_size": 8192},
}


def relative(base, knob, value):
    """Returns the value of a variant's knob, "x2" as twice the base's."""
    if not isinstance(value, str) or not value.startswith("x"):
        return value
    found = config_lib.get_knob(base, knob) * float(value[1:])
    return round(found) if isinstance(config_lib.get_knob(base, knob), int) else found


def run(args, books, name, overrides):
    """Yields the record of each seed of a variant that is not yet in `args.done`."""
    seeds = [seed for seed in range(args.seeds) if (name, seed) not in args.done]
    if not seeds:
        return
    base = config_lib.load(args.config, dict(text.split("=", 1) for text in args.set))
    changed = [f"{knob}={relative(base, knob, value)}" for knob, value in overrides.items()]
    one = argparse.Namespace(**vars(args) | {"set": [*args.set, *changed]})
    config = config_lib.load(args.config, dict(text.split("=", 1) for text in one.set))
    with tempfile.TemporaryDirectory(prefix="recipe-", dir=args.work) as folder:
        work = pathlib.Path(folder).resolve()
        texts, _, num_bytes, _ = write_texts(books, config, work, 4000)
        facts, train = ours(one, config, texts, work)
        for seed in seeds:
            score, seconds = train(seed)
            if abs(facts["bytes"] / num_bytes - 1) > 1e-3:
                raise SystemExit(f"{name}: scored {facts['bytes']:,} bytes of {num_bytes:,}: not the same text")
            yield {"name": name, "seed": seed, "bits_per_byte": score, "seconds": seconds, "base": args.base,
                   **{key: facts[key] for key in ("parameters", "steps", "tokens", "settings")}}  # fmt: skip


def summary(records):
    """Returns [(name, median bits per byte, those of the seeds, the first record)], best first."""
    named = {}
    for record in records:
        named.setdefault(record["name"], []).append(record)
    rows = [(name, [one["bits_per_byte"] for one in ones], ones[0]) for name, ones in named.items()]
    return sorted(((name, statistics.median(scores), scores, first) for name, scores, first in rows), key=lambda row: row[1])


def table(records):
    rows = summary(records)
    base = next((median for name, median, _, _ in rows if name == BASE), rows[0][1])
    lines = ["| variant | bits per byte | of the base | seeds | tokens | ms a step | parameters |", "|---|---:|---:|---|---:|---:|---:|"]
    for name, median, scores, first in rows:
        seeds = ", ".join(f"{score:.4f}" for score in scores)
        lines.append(
            f"| {name} | {median:.4f} | {median / base - 1:+.1%} | {seeds} | {first['tokens'] / 1e6:.2f} M "
            f"| {first['seconds'] / first['steps'] * 1e3:.0f} | {first['parameters'] / 1e6:.2f} M |"
        )
    return "\n".join(lines)


def plot(records, path):
    """Draws each variant's seeds, best on top, beside the base."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = summary(records)[::-1]
    figure, axis = plt.subplots(figsize=(7, 1 + 0.24 * len(rows)))
    for place, (_, median, scores, _) in enumerate(rows):
        axis.plot(scores, [place] * len(scores), "o", color="tab:blue", markersize=4)
        axis.plot(median, place, "|", color="black", markersize=10)
    if BASE in (names := [name for name, *_ in rows]):
        axis.axvline(rows[names.index(BASE)][1], color="gray", linewidth=0.8)
    axis.set_yticks(range(len(rows)), names)
    axis.set_xlabel(f"bits per byte of held-out books after {records[0]['base'][1]:g} minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON lines, one a run")
    parser.add_argument("--books", help="folder of .txt books; the last two by name are held out; without it nothing is run")
    parser.add_argument("--config", default=str(pathlib.Path(__file__).resolve().parents[1] / "configs" / "tiny.py"), help="the base")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", help="another knob of the base")
    parser.add_argument("--only", default="", help="these variants, separated by semicolons")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, without compilation")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each variant")
    parser.add_argument("--calibrate", type=int, default=60, help="steps of a calibration run")
    parser.add_argument("--work", help="folder for temporary files")
    parser.add_argument("--plot", help="write a plot, as PNG")
    args = parser.parse_args()
    records = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    args.base = [args.config, args.minutes, *args.set]
    if args.books and any(record["base"] != args.base for record in records):
        raise SystemExit(f"--out {args.out} holds runs of another base, {records[0]['base']}; name another file")
    args.done = {(record["name"], record["seed"]) for record in records}
    if args.books:
        names = args.only.split(";") if args.only else list(VARIANTS)
        if unknown := [name for name in names if name not in VARIANTS]:
            raise SystemExit(f"--only {unknown[0]}: there are {'; '.join(VARIANTS)}")
        if args.work:
            pathlib.Path(args.work).mkdir(parents=True, exist_ok=True)
        books = check(argparse.Namespace(**vars(args) | {"only": "ours"}))
        try:
            for name in names:
                for record in run(args, books, name, VARIANTS[name]):
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
                    records.append(record)
                    say(f"{name}, seed {record['seed']}: {record['bits_per_byte']:.4f} bits per byte after {record['seconds']:.0f} s")
        except UserError as error:
            raise SystemExit(str(error)) from None
    if not records:
        raise SystemExit(f"{args.out} has no run yet; --books FOLDER makes some")
    print(table(records))
    if args.plot:
        plot(records, args.plot)


if __name__ == "__main__":
    sys.exit(main())
