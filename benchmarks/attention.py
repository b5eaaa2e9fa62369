"""Attention alone, forward and backward: chunks of queries against all scores at once, in turns.

    python benchmarks/attention.py
    python benchmarks/attention.py --length 256,1024 --chunk 64,128 --documents
    python benchmarks/attention.py --length 4096 --window 64,128,256,512,1024

A batch has 4,096 tokens in rows of T, 6 heads of 64. Ratios above 1: chunks are faster, or need less memory.
"""

import argparse
import functools
import itertools
import json

import flags
import jax
import jax.numpy as jnp
import steps

from lmtiny import console
from lmtiny.model.attend import attend
from lmtiny.parallel import host

TOKENS, HEADS, HEAD_DIM = 4096, 6, 64
UNLIMITED = 2**30


def numbers(least):
    """Returns the type of a flag that takes whole numbers from `least` on, separated by commas."""
    return lambda text: [flags.at_least(least)(one) for one in text.split(",")]


def lengths(text):
    """The type of --length."""
    found = numbers(1)(text)
    if wrong := [length for length in found if TOKENS % length]:
        raise argparse.ArgumentTypeError(f"{wrong[0]} is no divisor of {TOKENS}, the tokens of a batch")
    return found


def compiled(arrays, segments, **request):
    def forward_and_backward(q, k, v, grad):
        core = functools.partial(attend, segments_BT=segments, soft_cap=0.0, **request)
        out, pull = jax.vjp(core, q, k, v)
        return out, *pull(grad)

    return jax.jit(forward_and_backward).lower(*arrays).compile()


def measured(arrays, segments, window, chunks, repeats):
    """Returns {name: (median seconds, MiB of temporaries)}; "reference" and each chunk, run in turns."""
    runs = {"reference": compiled(arrays, segments, window=window, implementation="reference")}
    runs |= {chunk: compiled(arrays, segments, window=window, implementation="chunked", chunk=chunk) for chunk in chunks}
    seconds = steps.medians_in_turns({name: functools.partial(run, *arrays) for name, run in runs.items()}, repeats)
    memory = {name: run.memory_analysis().temp_size_in_bytes / steps.MIB for name, run in runs.items()}
    return {name: (seconds[name], memory[name]) for name in runs}


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("--length", type=lengths, default=[64, 256, 1024, 4096], help=f"of a row, divisors of {TOKENS:,}")
    parser.add_argument("--chunk", type=numbers(1), default=[64, 128, 256], help="queries in a chunk, separated by commas")
    parser.add_argument("--window", type=numbers(0), default=[0], help="keys a query sees, separated by commas; 0: all")
    parser.add_argument("--documents", action="store_true", help="rows hold packed documents")
    parser.add_argument("--repeats", type=flags.at_least(1), default=7, help="turns of each")
    args = parser.parse_args()
    host.keep_freed_memory()
    records = []
    print(f"{'T':>6} {'window':>6} {'type':9} {'chunk':>9} {'ms':>8} {'times as fast':>13} {'MiB':>7}")
    for length, window, dtype in itertools.product(args.length, args.window, ("float32", "bfloat16")):
        shape = (TOKENS // length, length, HEADS, HEAD_DIM)
        arrays = [jax.random.normal(jax.random.key(seed), shape, dtype) for seed in range(4)]
        starts = jax.random.uniform(jax.random.key(4), shape[:2]) < 0.005
        segments = jnp.cumsum(starts, axis=1, dtype=jnp.int32) if args.documents else None
        chunks = [chunk for chunk in args.chunk if chunk <= length]
        found = measured(arrays, segments, window or UNLIMITED, chunks, args.repeats)
        for name, (seconds, mib) in found.items():
            ratio = found["reference"][0] / seconds
            print(f"{length:6} {window or 'all':>6} {dtype:9} {name:>9} {seconds * 1e3:8.1f} {ratio:13.2f} {mib:7.0f}", flush=True)
            records.append({"T": length, "window": window, "dtype": dtype, "chunk": name, "ms": round(seconds * 1e3, 2),
                            "ratio": round(ratio, 3), "mib": round(mib, 1)})  # fmt: skip
    units = "ms, times as fast as reference, MiB"
    record = {"what": "attention, forward and backward", "units": units, "documents": args.documents, "rows": records}
    print(json.dumps(steps.machine() | record))


if __name__ == "__main__":
    console.run_main(main)
