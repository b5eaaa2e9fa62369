"""Tokenizers: learning a gigabyte within bounded memory, encoding beside tiktoken, and bytes per token on text left out.

    python benchmarks/tokenization.py learning --data DATA --gigabytes 1
    python benchmarks/tokenization.py encoding --data DATA
    python benchmarks/tokenization.py targets --data DATA --weight documentation=4

DATA is a folder with books/*.txt, wiki_demo.txt, web_c4_300.jsonl and tokenizers/*.tiktoken; the documentation is the built-in corpus.
Every twentieth document (a book's section of 64 KiB) is left out of learning.  Let nothing else run while speed is measured.
"""

import argparse
import collections
import json
import pathlib
import random
import resource
import statistics
import string
import time

import flags

with flags.needed("pip install tiktoken"):
    import tiktoken

from lmtiny import console
from lmtiny.corpus import builtin
from lmtiny.corpus.documents import sections
from lmtiny.tokenizer import compare, learn, load
from lmtiny.tokenizer.vocabulary import PATTERNS

SIZES = (16384, 24576, 32768, 65536)
SOURCES = ("books", "wiki", "web", "documentation")
LEFT_OUT = 20  # one document in so many


def documents(data):
    """Returns {source: [text]}."""
    web = [json.loads(line)["text"] for line in (data / "web_c4_300.jsonl").read_text().splitlines()]
    return {
        "books": [part for file in sorted((data / "books").glob("*.txt")) for part in sections(file.read_text(errors="replace"), 1 << 16)],
        "wiki": list(sections((data / "wiki_demo.txt").read_text(), 1 << 12)),
        "web": web,
        "documentation": [document["text"] for unit in builtin.units(False) for document in unit.read()],
    }


def split(texts):
    """Returns ({source: [text]} to learn from, the same left out)."""
    sides = ({}, {})
    for source, own in texts.items():
        for side in (0, 1):
            sides[side][source] = [text for number, text in enumerate(own) if (number % LEFT_OUT == 7) == bool(side)]
    return sides


def varied(texts, total, spent):
    """Yields the texts again and again up to `total` bytes, each time with three random letters behind one word in fifty."""
    rng, done = random.Random(0), 0
    while done < total:
        for text in texts:
            start = time.process_time()
            words = text.split(" ")
            for _ in range(len(words) // 50):
                words[rng.randrange(len(words))] += "".join(rng.choices(string.ascii_lowercase, k=3))
            made = " ".join(words)
            done += len(made.encode())
            spent[0] += time.process_time() - start
            yield made
            if done >= total:
                return


def learning(args):
    texts = [text for own in documents(args.data).values() for text in own]
    total, spent, start = int(args.gigabytes * 1e9), [0.0], time.process_time()
    learned = learn(args.kind, varied(texts, total, spent), args.vocab, total)
    seconds = time.process_time() - start - spent[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = total / seconds / 1e6
    what = f"{args.kind}, {learned.vocab_size:,} tokens from {total:,} bytes"
    print(f"{what}: {seconds:.0f} s of one core, {rate:.1f} MB/s, peak {peak:.0f} MiB")


def weight(text):
    source, _, number = text.partition("=")
    if source not in SOURCES or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not SOURCE=N, of the sources {', '.join(SOURCES)}")
    return source, int(number)


def encoding(args):
    texts = documents(args.data)["books"] if args.small_documents else [
        file.read_text(errors="replace") for file in sorted((args.data / "books").glob("*.txt"))
    ]  # fmt: skip
    num_bytes = sum(len(text.encode()) for text in texts)
    for ours in map(load, args.ready) if args.ready else (learn(kind, texts, args.vocab, 10**10) for kind in PATTERNS):
        kind = ours.kind
        ranks = {token: rank for rank, token in enumerate(ours.tokens[: ours.bos_id])}
        theirs = tiktoken.Encoding("same", pat_str=PATTERNS[kind], mergeable_ranks=ranks, special_tokens={})
        times = collections.defaultdict(list)
        for _ in range(args.repeats):
            for threads in (1, 2):
                for who, work in (("lmtiny", ours.encode_batch), ("tiktoken", theirs.encode_ordinary_batch)):
                    start = time.perf_counter()
                    found = work(texts, num_threads=threads)
                    times[who, threads].append(time.perf_counter() - start)
                    times[who, "tokens"] = sum(map(len, found))
        if times["lmtiny", "tokens"] != times["tiktoken", "tokens"]:
            raise SystemExit("lmtiny and tiktoken encode to other tokens")
        for threads in (1, 2):
            rates = {who: num_bytes / statistics.median(times[who, threads]) / 1e6 for who in ("lmtiny", "tiktoken")}
            print(f"{kind}, {threads} threads, MB/s: lmtiny {rates['lmtiny']:.1f}, tiktoken {rates['tiktoken']:.1f}, "
                  f"ratio {rates['lmtiny'] / rates['tiktoken']:.2f}", flush=True)  # fmt: skip


def targets(args):
    train, held_out = split(documents(args.data))
    weights = dict(args.weight)
    texts = [text for source, own in train.items() for text in own * weights.get(source, 1)]
    for source, own in train.items():
        print(f"learned from {source}: {sum(len(text.encode()) for text in own):,} bytes x {weights.get(source, 1)}")
    rows = compare.peers(list(compare.PEERS), args.data / "tokenizers")
    full = learn("bpe", texts, max(SIZES), 10**10)
    rows |= {f"bpe {size:,}": full.cut(size) for size in SIZES}
    for size in (32768, 65536):
        rows[f"superword {size:,}"] = learn("superword", texts, size, 10**10, word_share=args.word_share)
    print("| bytes per token, left out | " + " | ".join(held_out) + " | all |\n|---|" + "---:|" * (len(held_out) + 1))
    for name, tokenizer in rows.items():
        sizes = {source: sum(len(text.encode()) for text in own) for source, own in held_out.items()}
        counts = {source: sum(map(len, tokenizer.encode_batch(own))) for source, own in held_out.items()}
        cells = [*(sizes[source] / counts[source] for source in held_out), sum(sizes.values()) / sum(counts.values())]
        print(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |", flush=True)
    if args.save:
        for name in ("bpe 65,536", "superword 65,536"):
            says = {"corpus": "benchmarks/tokenization.py targets", "weights": weights}
            rows[name].save(args.save / name.replace(" ", "_").replace(",", ""), says)


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("what", choices=("learning", "encoding", "targets"))
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of the texts and ranks")
    parser.add_argument("--gigabytes", type=flags.above_zero, default=1.0, help="learning: of text")
    parser.add_argument("--kind", default="bpe", choices=tuple(PATTERNS), help="learning: what is learned")
    parser.add_argument("--vocab", type=flags.at_least(300), default=65536, help="learning, encoding: tokens")
    parser.add_argument("--ready", metavar="FOLDER", nargs="+", help="encoding: with these saved tokenizers, rather than learn some")
    parser.add_argument("--repeats", type=flags.at_least(1), default=3, help="encoding: turns")
    parser.add_argument("--small-documents", action="store_true", help="encoding: sections of 64 KiB rather than whole books")
    parser.add_argument("--weight", type=weight, metavar="SOURCE=N", nargs="*", default=[], help="targets: learn from a source N times")
    parser.add_argument("--word-share", type=float, default=0.5, help="targets: tokenizer.word_share")
    parser.add_argument("--save", metavar="FOLDER", type=pathlib.Path, help="targets: save both tokenizers of 64K there")
    args = parser.parse_args()
    flags.refuse_unless_there(args.data, "books", "wiki_demo.txt", "web_c4_300.jsonl")
    {"learning": learning, "encoding": encoding, "targets": targets}[args.what](args)


if __name__ == "__main__":
    console.run_main(main)
