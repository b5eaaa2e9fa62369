"""From text to batches: learning and encoding beside rustbpe and tiktoken, what packing wastes, the loader alone and in training.

    python benchmarks/data.py --text FOLDER --peer-python ENV/bin/python

ENV is an environment with rustbpe (github.com/karpathy/rustbpe); without --peer-python only lmtiny learns.  tiktoken is
given lmtiny's own ranks, so both encode to the same tokens.  Runs take turns; medians.  Let nothing else run meanwhile.
"""

import contextlib
import itertools
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import flags
import sides
import steps

with flags.needed("pip install tiktoken"):
    import tiktoken

from lmtiny import config as config_lib
from lmtiny import console
from lmtiny.data import loader, preparation
from lmtiny.parallel import host
from lmtiny.parallel import mesh as mesh_lib
from lmtiny.tokenizer import SPLIT_PATTERN, learn

RUSTBPE = """
import json, pathlib, sys, time
import rustbpe
folder, vocab_size, pattern = json.loads(sys.argv[1])
texts = [path.read_text(errors="replace") for path in sorted(pathlib.Path(folder).glob("*.txt"))]
start = time.perf_counter()
tokenizer = rustbpe.Tokenizer()
tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=pattern)
print(time.perf_counter() - start)
"""
SHAPES = ((8, 256), (32, 256), (256, 256), (32, 1024), (256, 2048))  # rows of a batch, T


def seconds(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def learning(texts, args):
    """Returns ({"ours", "peer"} -> median MB/s, the tokenizer)."""
    num_bytes, times = sum(len(text.encode()) for text in texts), {"ours": [], "peer": []}
    for _ in range(args.repeats):
        spent, tokenizer = seconds(lambda: learn("bpe", texts, args.vocab, 2 * 10**9))
        times["ours"].append(spent)
        if args.peer_python:
            command = [args.peer_python, "-c", RUSTBPE, json.dumps([args.text, args.vocab - len(tokenizer.special), SPLIT_PATTERN])]
            times["peer"].append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return {who: num_bytes / statistics.median(spent) / 1e6 for who, spent in times.items() if spent}, tokenizer


def encoding(texts, tokenizer, args):
    """Returns {(who, threads): median MB/s}."""
    num_bytes, times = sum(len(text.encode()) for text in texts), {}
    ranks = {token: rank for rank, token in enumerate(tokenizer.tokens[: -len(tokenizer.special)])}
    peer = tiktoken.Encoding("same", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    for _ in range(args.repeats):
        for threads in (1, 2):
            ours, found = seconds(lambda threads=threads: tokenizer.encode_batch(texts, threads))
            theirs, expected = seconds(lambda threads=threads: peer.encode_ordinary_batch(texts, num_threads=threads))
            times.setdefault(f"ours, {threads} threads", []).append(ours)
            times.setdefault(f"tiktoken, {threads} threads", []).append(theirs)
            if any(list(one) != other for one, other in zip(found, expected, strict=True)):
                raise SystemExit("lmtiny and tiktoken encode to other tokens")
    return {who: num_bytes / statistics.median(spent) / 1e6 for who, spent in times.items()}


def prepared_for(args, work, length):
    config = config_lib.load(args.config, {"corpus.kind": "files", "corpus.path": args.text, "model.context_length": str(length),
                                           "data.dir": str(work / f"T{length}")})  # fmt: skip
    data = preparation.prepare(config)
    config.tokenizer.vocab_size = data.tokenizer.vocab_size
    return config, data


def loading(args, work):
    """Returns ([{rows, T, tokens/s}], {T: padding and cropped shares}) of batches read as fast as they come."""
    rates, waste = [], {}
    for rows, length in SHAPES:
        config, data = prepared_for(args, work, length)
        waste[length] = {name: data.manifest["splits"]["train"][name] for name in ("padding_share", "crop_share")}
        with contextlib.closing(loader.batches(data, config, "train", rows)) as batches:
            for _ in itertools.islice(batches, 20):
                pass
            count, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < args.seconds:
                next(batches)
                count += 1
        rates.append({"rows": rows, "T": length, "tokens_per_second": round(count * rows * length / spent)})
    return rates, waste


def waiting(args, work):
    """Returns the share of training in which the loop waits for its batch, tiny as it stands."""
    config, data = prepared_for(args, work, 256)
    step = steps.of(config)
    state, _ = step.start()
    waited, size = 0.0, config.train.batch_size
    with contextlib.closing(loader.batches(data, config, "train", size)) as batches:
        for number in range(args.train_steps + 3):
            if number == 3:
                waited, start = 0.0, time.perf_counter()
            spent, rows = seconds(lambda: next(batches))
            waited += spent
            state, metrics = step.run(state, mesh_lib.place_batch(step.mesh, rows, size))
            metrics["loss"].block_until_ready()
    return waited / (time.perf_counter() - start)


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("--text", required=True, help="folder of .txt")
    parser.add_argument("--peer-python", help="a Python that has rustbpe")
    parser.add_argument("--config", default=str(pathlib.Path(__file__).resolve().parents[1] / "configs" / "tiny.py"))
    parser.add_argument("--vocab", type=flags.at_least(300), default=32768, help="of the tokenizer that is learned and encodes")
    parser.add_argument("--repeats", type=flags.at_least(1), default=3, help="turns of learning and encoding")
    parser.add_argument("--seconds", type=flags.above_zero, default=3.0, help="of loading, each shape")
    parser.add_argument("--train-steps", type=flags.at_least(1), default=60, help="of tiny, for the share of waiting")
    args = parser.parse_args()
    args.peer_python = sides.program(args.peer_python) if args.peer_python else ""
    args.text = str(pathlib.Path(args.text).resolve())
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(pathlib.Path(args.text).glob("*.txt"))]
    if not texts:
        raise SystemExit(f"--text {args.text}: no .txt there")
    host.keep_freed_memory()
    learned, tokenizer = learning(texts, args)
    sides.say(f"learning {args.vocab:,} tokens, MB/s: " + ", ".join(f"{who} {rate:.1f}" for who, rate in learned.items()))
    encoded = encoding(texts, tokenizer, args)
    sides.say("encoding, MB/s: " + ", ".join(f"{who} {rate:.1f}" for who, rate in encoded.items()))
    with tempfile.TemporaryDirectory() as folder:
        rates, waste = loading(args, pathlib.Path(folder))
        share = waiting(args, pathlib.Path(folder))
    for one in rates:
        print(f"loader, {one['rows']} x {one['T']:,}: {one['tokens_per_second'] / 1e6:.1f} M tokens/s")
    for length, of in waste.items():
        print(f"T {length:,}: padding {of['padding_share']:.3%}, cropped {of['crop_share']:.3%}")
    print(f"training tiny: {share:.3%} of the time waiting for data")
    record = {"what": "from text to batches", "units": "MB/s, tokens/s, shares", "ours": learned["ours"], "peer": learned.get("peer")}
    record["ratio"] = learned["ours"] / learned["peer"] if "peer" in learned else None
    print(json.dumps(steps.machine() | record | {"encoding": encoded, "loader": rates, "waste": waste, "waiting": share}))


if __name__ == "__main__":
    console.run_main(main)
