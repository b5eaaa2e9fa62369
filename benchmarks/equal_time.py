"""Equal training time on this machine's CPU: lmtiny's whole pipeline against nanochat's, by bits per byte on held-out books.

    python benchmarks/equal_time.py --peer NANOCHAT --peer-python TORCH_ENV/bin/python --books FOLDER
    python benchmarks/equal_time.py --books FOLDER --only ours --set train.batch_size=4
    python benchmarks/equal_time.py --peer NANOCHAT --peer-python TORCH_ENV/bin/python --books FOLDER --only peer --peer-flags "--depth=2"

NANOCHAT is a checkout of github.com/karpathy/nanochat, TORCH_ENV an environment with torch, rustbpe, tiktoken, pyarrow,
wandb and what else it imports; FOLDER has .txt books, of which the last two by name are held out from tokenizer and
training.  Each side learns its own tokenizer, of the config's vocabulary, and trains its own model by its own program.

- Time: calibration runs of --calibrate steps, in turns, give the seconds of our step and how many times as long the other
  side's takes, medians; with those the numbers of steps that take --minutes, which schedules follow.  A machine that is slower
  or faster in the runs changes the seconds, which are told, and a side that missed --minutes by more than 5 %.  Compilation
  (the first step), data, validation and checkpoints do not count.  The runs take turns, seed by seed.
- Text: books are cleaned as lmtiny does for both.  nanochat's training documents are pieces of about --document-bytes, cut
  at blank lines and shuffled, since its loader reads them in order; lmtiny's are what its defaults make of the files.
- Score: both see the held-out text as the same sections (corpus.section_bytes), in windows of <|bos|> and at most T
  tokens; every token but <|bos|> is a target once.  bits per byte = sum of nats / (ln 2 * bytes of the targets).  Each side has
  the windows that suit it: lmtiny's T is evaluation.context_length; nanochat's is that of its training, windows one behind the
  other or, so that most tokens have more before them, overlapping by half; the lower of the two counts.
- Seeds: lmtiny's are of weights and shuffles; nanochat has none to set, so torch.manual_seed is given another number than
  its 42 (the weights; its data keeps its order).

Variables such as NANOCHAT_DTYPE=bfloat16 and OMP_NUM_THREADS reach both.  Let nothing else run meanwhile.
"""

import json
import os
import pathlib
import random
import shutil
import statistics
import sys
import tempfile

import flags
from sides import ours, peer, program, refuse_unless_imports, say, steps_for

from lmtiny import console

HELD_OUT = 2  # books
PEER_FLAGS = "--depth=4 --head-dim=64 --device-batch-size=8 --total-batch-size=2048"
PEER_NEEDS = "torch, rustbpe, tiktoken, pyarrow.parquet, wandb, requests, filelock, yaml, jinja2"
HERE = pathlib.Path(__file__).resolve()


def check_books(args):
    """Ends the program with one line where books, minutes, seeds or knobs are not what is needed; returns the books."""
    folder = pathlib.Path(args.books)
    if not folder.is_dir():
        raise SystemExit(f"--books {args.books}: no such folder")
    books = sorted(folder.glob("*.txt"), key=lambda path: path.name)
    if len(books) <= HELD_OUT:
        raise SystemExit(f"--books {args.books}: {len(books)} .txt books; at least {HELD_OUT + 1} are needed, {HELD_OUT} of them held out")
    return books


def check(args):
    """Ends the program with one line where calibration, nanochat or its Python are not what is needed either; returns the books."""
    books = check_books(args)
    if args.only == "ours":
        return books
    if not (pathlib.Path(args.peer) / "scripts" / "base_train.py").is_file():
        raise SystemExit(f"--peer {args.peer or '(not given)'}: no checkout of nanochat; --only ours does without")
    args.peer_python = program(args.peer_python)
    refuse_unless_imports(args.peer_python, PEER_NEEDS)
    return books


def write_texts(books, config, work, document_bytes):
    """Copies the books into work/books and its held_out/; writes the texts of the peer.

    Returns (folder of the books, file of the texts, bytes of the held-out text when cleaned, and as it lies in the files).
    """
    from lmtiny.corpus.documents import clean, sections

    folder, texts = work / "books", {"train": [], "held_out": [], "sections": []}
    (folder / "held_out").mkdir(parents=True)
    num_bytes = 0
    for number, book in enumerate(books):
        held_out = number >= len(books) - HELD_OUT
        shutil.copy(book, folder / "held_out" if held_out else folder)
        text = clean(book.read_bytes().decode(errors="replace"))
        texts["held_out" if held_out else "train"] += sections(text, document_bytes)
        if held_out:
            texts["sections"] += sections(text, config.corpus.section_bytes)
            num_bytes += len(text.encode())
    random.Random(0).shuffle(texts["train"])
    path = work / "texts.json"
    path.write_text(json.dumps(texts))
    return folder, path, num_bytes, sum(book.stat().st_size for book in books[-HELD_OUT:])


def compare(args):
    """Does all of it and prints the table and the record."""
    books = check(args)
    from lmtiny import config as config_lib

    config = config_lib.load(args.config, flags.overrides(args))
    if args.work:
        if os.path.exists(args.work) and not os.path.isdir(args.work):
            raise SystemExit(f"--work {args.work} is no folder")
        os.makedirs(args.work, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix="equal_time-", dir=args.work)).resolve()
    folder, texts, num_bytes, raw_bytes = write_texts(books, config, work, args.document_bytes)
    say(f"held out: {', '.join(book.name for book in books[-HELD_OUT:])}, {num_bytes:,} bytes cleaned ({raw_bytes:,} in the files)")
    say(f"work in {work}")
    sides = {}
    if args.only != "peer":
        sides["ours"] = ours(args, config, folder, work)
    if args.only != "ours":
        sides["peer"] = peer(args, config, texts, work)
    steps = equal_steps(args, {side: calibrate for side, (_, calibrate, _) in sides.items()})
    results = {side: [] for side in sides}
    for seed in range(args.seeds):
        for side, (_, _, train) in sides.items():
            results[side].append(train(seed, steps[side]))
            say(f"{side}, seed {seed}: {results[side][-1][0]:.4f} bits per byte after {results[side][-1][1]:.1f} s of training")
    report(args, {side: facts for side, (facts, _, _) in sides.items()}, results, num_bytes)


def equal_steps(args, calibrations):
    """Returns {side: steps of a run}, of the calibrations {side: f() -> seconds of a step}, which take --turns turns."""
    seconds = {side: [] for side in calibrations}
    for turn in range(args.turns):
        for side, calibrate in calibrations.items():
            seconds[side].append(calibrate())
            say(f"{side}, calibration {turn}: {seconds[side][-1] * 1e3:.1f} ms a step")
    first = next(iter(seconds.values()))
    ratios = {side: statistics.median(own / others for own, others in zip(found, first, strict=True)) for side, found in seconds.items()}
    steps = {side: steps_for(args.minutes, statistics.median(first) * ratio) for side, ratio in ratios.items()}
    say(", ".join(f"{side}: {count} steps" for side, count in steps.items()))
    return steps


def report(args, facts, results, num_bytes):
    """Prints a row a side, what is wrong with the comparison, and the line of JSON.

    facts: {side: its settings and counts}. results: {side: [(bits per byte, seconds) of each seed]}. num_bytes: of the text.
    """
    median = {side: statistics.median(score for score, _ in runs) for side, runs in results.items()}
    seconds = {side: statistics.median(time for _, time in runs) for side, runs in results.items()}
    line = "{:8}  {:>10}  {:>6}  {:>12}  {:>9}  {:>11}  {:>18}  {:>7}  {}"
    print(line.format("who", "parameters", "steps", "tokens", "seconds", "bytes", "bits per byte", "median", "settings"))
    for side, fact in facts.items():
        scores = " ".join(f"{score:.4f}" for score, _ in results[side])
        counts = [f"{fact[name]:,}" for name in ("parameters", "steps", "tokens", "bytes")]
        counts.insert(3, f"{seconds[side]:.1f}")
        print(line.format(fact["who"], *counts, scores, f"{median[side]:.4f}", fact["settings"]))
    for side, fact in facts.items():
        for seed, (_, time) in enumerate(results[side]):
            if abs(time / (60 * args.minutes) - 1) > 0.05:
                print(f"{side}, seed {seed}: trained for {time:.1f} s, not {60 * args.minutes:.1f} s; the machine was not at rest")
        if abs(fact["bytes"] / num_bytes - 1) > 1e-3:
            raise SystemExit(f"{side}: scored {fact['bytes']:,} bytes, but the held-out text has {num_bytes:,}: not the same text")
    record = {"what": f"{args.minutes:g} minutes of training on CPU, held-out books", "units": "bits per byte", "cores": os.cpu_count()}
    record |= {side: round(value, 4) for side, value in median.items()}
    if len(median) == 2:
        record["ratio"] = round(median["ours"] / median["peer"], 4)
    record |= {"seconds": {side: [round(time, 1) for _, time in runs] for side, runs in results.items()}}
    record |= {"seeds": {side: [round(score, 4) for score, _ in runs] for side, runs in results.items()}}
    record |= {"bytes": {"text": num_bytes, **{side: fact["bytes"] for side, fact in facts.items()}}}
    record |= {name: {side: fact[name] for side, fact in facts.items()} for name in ("parameters", "tokens", "settings")}
    print(json.dumps(record))


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("--books", required=True, help="folder of .txt books; the last two by name are held out")
    parser.add_argument("--peer", default="", help="folder of nanochat")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has torch and nanochat's needs (default: this one)")
    parser.add_argument("--minutes", type=flags.above_zero, default=5.0, help="of training, without compilation")
    parser.add_argument("--config", default=str(HERE.parents[1] / "configs" / "tiny.py"), help="lmtiny's config file")
    flags.add_set(parser)
    parser.add_argument("--peer-flags", default=PEER_FLAGS, help=f"of nanochat's base_train (default: {PEER_FLAGS})")
    parser.add_argument("--only", choices=("ours", "peer"), help="one side alone")
    parser.add_argument("--seeds", type=flags.at_least(1), default=2, help="runs of each side")
    parser.add_argument("--calibrate", type=flags.at_least(10), default=60, help="steps of a calibration run")
    parser.add_argument("--turns", type=flags.at_least(1), default=3, help="calibration runs of each side")
    parser.add_argument("--document-bytes", type=flags.at_least(1), default=4000, help="of nanochat's training documents, at most")
    parser.add_argument("--work", help="a new folder is made in this one, and stays (default: where temporary files go)")
    args = parser.parse_args()
    args.peer, args.peer_python = os.path.abspath(args.peer) if args.peer else "", program(args.peer_python)
    compare(args)


if __name__ == "__main__":
    console.run_main(main)
