"""What a cleaned, filtered, deduplicated, weighted mixture buys over the same texts as they lie: bits per byte of a held-out book.

    python benchmarks/mixture.py --data FOLDER
    python benchmarks/mixture.py --data FOLDER --steps 400 --only "raw;configs/mixture.py" --work kept/

FOLDER is what configs/mixture.py calls texts/: books/*.txt (the last by name is held out), wiki*.txt, web*.jsonl, benchmarks/.
Every way trains that config, with a tokenizer learned from what it trains on, for the same number of steps, and is scored on the
same bytes.  What the refining did stands in the report.html of each.
"""

import json
import math
import os
import pathlib
import re
import statistics
import sys
import tempfile

import flags
from sides import run, say

from lmtiny import console

HERE = pathlib.Path(__file__).resolve()
CONFIG = HERE.parents[1] / "configs" / "mixture.py"
OFF = {"corpus.cleaning": "[]", "corpus.deduplicate": False, "corpus.decontaminate": ""}
AS_IT_LIES = ("name", "path", "cut", "validation")
WEIGHTS = {  # of books, wiki, web, documentation; None: the config's; of each None: by their sizes
    "raw": (None, None, None, None),
    "refined, by size": (None, None, None, None),
    "configs/mixture.py": None,
    "refined, 40 % books": (0.40, 0.30, 0.15, 0.15),
}


def corpus(name):
    """Returns the knobs that make the corpus of a way; texts/ must lie in the working folder, as the config wants it."""
    from lmtiny import config as config_lib

    if WEIGHTS[name] is None:
        return {}
    found = [{key: value for key, value in source.items() if value is not None} for source in config_lib.load(str(CONFIG)).corpus.sources]
    if name == "raw":
        return {"corpus.sources": json.dumps([{key: source[key] for key in AS_IT_LIES if source[key]} for source in found]), **OFF}
    return {"corpus.sources": json.dumps([source | {"weight": weight} for source, weight in zip(found, WEIGHTS[name], strict=True)])}


def train(args, work, name, seed):
    """Returns (bits per byte of the held-out book, its bytes that were scored, source -> tokens to train on)."""
    from lmtiny import run_log
    from lmtiny.data import shards

    folder = work / re.sub(r"\W+", "-", name)
    knobs = {
        **corpus(name), "data.dir": folder / "prepared",
        "seed": seed, "train.num_steps": args.steps, "optimizer.warmup_steps": 20, "evaluation.every": 0, "evaluation.sample_every": 0,
        "evaluation.rows": 10**6, "checkpoint.every": 0, **flags.overrides(args),
    }  # fmt: skip
    command = [sys.executable, "-m", "lmtiny.train", "--config", str(CONFIG)]
    given = [f"--config.{knob}={value}" for knob, value in knobs.items()]
    run([*command, "--workdir", str(folder / f"seed{seed}"), *given], work / f"{folder.name}-{seed}.log", work)
    manifest = shards.read(folder / "prepared").manifest
    shares = {source: counts["train"][2] for source, counts in manifest["sources"].items()}
    return run_log.read_metrics(folder / f"seed{seed}")[-1]["validation_bits_per_byte"], manifest["splits"]["validation"]["bytes"], shares


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of texts, as above")
    parser.add_argument("--steps", type=flags.at_least(1), default=400, help="2,048 tokens each")
    parser.add_argument("--seeds", type=flags.at_least(1), default=2, help="runs of each way")
    ways = flags.some_of(*WEIGHTS, separator=";")
    parser.add_argument("--only", type=ways, default=[*WEIGHTS], help="these ways, separated by semicolons")
    flags.add_set(parser, "another knob of the config")
    parser.add_argument("--work", type=pathlib.Path, help="folder for what is made, kept (default: a temporary one)")
    args = parser.parse_args()
    args.data = args.data.resolve()
    flags.refuse_unless_there(args.data, "books", "benchmarks")
    from lmtiny import config as config_lib

    config_lib.load(str(CONFIG), flags.overrides(args))  # what it refuses, before anything is trained
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or pathlib.Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        os.chdir(work)
        if not pathlib.Path("texts").exists():
            pathlib.Path("texts").symlink_to(args.data)
        found = {}
        for name in args.only:
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
    console.run_main(main)
