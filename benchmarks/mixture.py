"""What a cleaned, filtered, deduplicated, weighted mixture buys over the same texts as they lie: bits per byte of a held-out book.

    python benchmarks/mixture.py --data FOLDER
    python benchmarks/mixture.py --data FOLDER --steps 400 --only "raw;books first" --work kept/

FOLDER has books/*.txt (the last by name is held out), wiki_demo.txt, web_c4_300.jsonl and benchmarks/gsm8k_train.jsonl; the fourth
source is the builtin documentation.  Every way trains configs/tiny.py, with a tokenizer learned from what it trains on, for the
same number of steps, and is scored on the same bytes.  What the refining did stands in the report.html of each.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
import tempfile

from sides import run, say

HERE = pathlib.Path(__file__).resolve()
REFINED = {"deduplicate": True}
SHARES = {  # books, wiki, web, documentation; None: as they lie, by their sizes, nothing dropped
    "raw": None,
    "by size": (0.0, 0.0, 0.0, 0.0),
    "40 % books": (0.40, 0.30, 0.15, 0.15),
    "books first": (0.94, 0.03, 0.02, 0.01),
}


def sources(data, weights):
    """Returns corpus.sources: refined and weighted, or raw where weights is None."""
    last = max((data / "books").glob("*.txt"), key=lambda path: path.name).name
    found = [
        {"name": "books", "path": str(data / "books"), "validation": last},
        {"name": "wiki", "path": str(data / "wiki_demo.txt"), "cut": "blank lines"},
        {"name": "web", "path": str(data / "web_c4_300.jsonl")},
        {"name": "documentation", "path": "builtin"},
    ]
    if weights is None:
        return found
    own = (
        {"cleaning": ["unicode", "gutenberg"]},
        {"cleaning": ["unicode"], "filters": ["gopher_repetition"]},
        {"cleaning": ["unicode"], "filters": ["gopher_repetition", "gopher_quality", "c4"], "language": "en"},
        {"cleaning": ["unicode"]},
    )
    contaminated = {"decontaminate": str(data / "benchmarks" / "gsm8k_train.jsonl")}
    refined = [one | more | REFINED | contaminated for one, more in zip(found, own, strict=True)]
    return [one | {"weight": weight} for one, weight in zip(refined, weights, strict=True)]


def train(args, work, name, seed):
    """Returns (bits per byte of the held-out book, its bytes that were scored, source -> tokens to train on)."""
    from lmtiny import run_log
    from lmtiny.data import shards

    folder = work / name.replace(" ", "-")
    knobs = {
        "corpus.kind": "sources", "corpus.sources": json.dumps(sources(args.data, SHARES[name])), "data.dir": folder / "prepared",
        "seed": seed, "train.num_steps": args.steps, "optimizer.warmup_steps": 20, "evaluation.every": 0, "evaluation.sample_every": 0,
        "evaluation.rows": 10**6, "checkpoint.every": 0, **dict(text.split("=", 1) for text in args.set),
    }  # fmt: skip
    command = [sys.executable, "-m", "lmtiny.train", "--config", str(HERE.parents[1] / "configs" / "tiny.py")]
    flags = [f"--config.{knob}={value}" for knob, value in knobs.items()]
    run([*command, "--workdir", str(folder / f"seed{seed}"), *flags], work / f"{name}-{seed}.log", work)
    manifest = shards.read(folder / "prepared").manifest
    shares = {source: counts["train"][2] for source, counts in manifest["sources"].items()}
    return run_log.read_metrics(folder / f"seed{seed}")[-1]["validation_bits_per_byte"], manifest["splits"]["validation"]["bytes"], shares


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of texts, as above")
    parser.add_argument("--steps", type=int, default=400, help="of configs/tiny.py: 2,048 tokens each")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each way")
    parser.add_argument("--only", default=";".join(SHARES), help="these ways, separated by semicolons")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", help="another knob of the config")
    parser.add_argument("--work", type=pathlib.Path, help="folder for what is made, kept (default: a temporary one)")
    args = parser.parse_args()
    args.data = args.data.resolve()
    if missing := [name for name in ("books", "wiki_demo.txt", "web_c4_300.jsonl", "benchmarks") if not (args.data / name).exists()]:
        raise SystemExit(f"--data {args.data} has no {missing[0]}")
    if unknown := [name for name in args.only.split(";") if name not in SHARES]:
        raise SystemExit(f"--only {unknown[0]}: there are {'; '.join(SHARES)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or pathlib.Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        found = {}
        for name in args.only.split(";"):
            runs = [train(args, work, name, seed) for seed in range(args.seeds)]
            found[name] = {"bits": [bits for bits, _, _ in runs], "bytes": runs[0][1], "tokens": runs[0][2]}
            say(f"{name}: {', '.join(f'{bits:.4f}' for bits in found[name]['bits'])} bits per byte of {runs[0][1]:,} bytes")
    base = statistics.fmean(next(iter(found.values()))["bits"])
    say("\n| way | books, wiki, web, documentation: tokens | seeds | bits per byte | of the first |\n|---|---|---|---:|---:|")
    for name, one in found.items():
        mean, tokens = statistics.fmean(one["bits"]), ", ".join(f"{count / 1e6:.2f} M" for count in one["tokens"].values())
        say(f"| {name} | {tokens} | {', '.join(f'{bits:.4f}' for bits in one['bits'])} | {mean:.4f} | {mean / base - 1:+.1%} |")
    if not math.isclose(min(one["bytes"] for one in found.values()), max(one["bytes"] for one in found.values()), rel_tol=1e-3):
        say("the ways were not scored on the same bytes: cleaning changed the held-out book")
    bits = {name: one["bits"] for name, one in found.items()}
    say(json.dumps({"what": f"mixtures after {args.steps} steps, a held-out book", "units": "bits per byte", **bits}))


if __name__ == "__main__":
    main()
