"""Train steps on one GPU: lmtiny's gpt2_124m and d12 in bfloat16, beside nanoGPT's compiled GPT of the same shape, in turns.

    python benchmarks/gpu.py                                                     lmtiny alone, and its parts one by one
    python benchmarks/gpu.py --peer NANOGPT --peer-python TORCH_ENV/bin/python   beside nanoGPT (compiled, flash attention)
    python benchmarks/gpu.py --rehearse                                          small shapes on what is here, a CPU for one

Rows hold one document each (model.mask_documents=false), as nanoGPT's do, so that cuDNN's flash attention may run.
MFU is given in both countings: attention over all T x T scores ("full"), and over those that causality leaves ("causal").
Takes under 10 minutes on an H100.  Rows: of a batch, for each config; as many as 80 GB hold with ease.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

import contest
import flags
import sides

from lmtiny import console
from lmtiny.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ("gpt2_124m", "d12")
REHEARSAL = {"model.num_layers": "2", "model.width": "128", "model.num_heads": "2", "model.context_length": "64"}
FITTING = {"train.accumulation": "1", "model.mask_documents": "false", "model.scan_layers": "false", "model.remat": "none"}


def config_of(name, rows, overrides):
    from lmtiny import config as config_lib

    knobs = FITTING | {"train.batch_size": str(rows)} | overrides
    return config_lib.load(str(ROOT / "configs" / f"{name}.py"), knobs)


def shape_of(config):
    """Returns the shape of nanoGPT's model that has the same sizes."""
    from lmtiny import config as config_lib

    model = config.model
    return (model.num_layers, model.num_heads, model.width, model.context_length, config.train.batch_size, config_lib.padded_vocab(config))


def work(who, name, rows, args):
    """One contestant; the peer's own process has no jax, so its shape comes on the command line."""
    if who == "ours":
        contest.serve(lambda: contest.lmtiny_steps(config_of(name, rows, overrides_of(args))))
    else:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        contest.serve(lambda: contest.nanogpt_steps(args.peer, tuple(json.loads(name)), "compiled", "bfloat16", device))


def overrides_of(args):
    return (REHEARSAL if args.rehearse else {}) | flags.overrides(args)


def steps_of(name, rows, args):
    """Times a config's step, and the peer's of that shape; returns the record of it."""
    from lmtiny.model import size
    from lmtiny.parallel import mesh

    config = config_of(name, rows, overrides_of(args))
    same = [os.path.abspath(__file__), "--peer", args.peer, *["--rehearse"] * args.rehearse, *(f"--set={text}" for text in args.set)]
    wanted = [("ours", name, sys.executable)]
    if args.peer:
        wanted.append(("peer", json.dumps(shape_of(config)), args.peer_python))
    contestants = [contest.Contestant(who, kind, [python, *same, "--work", who, kind, str(rows)]) for who, kind, python in wanted]
    contest.contest(contestants, args.turns, args.seconds)
    tokens, flops, record = rows * config.model.context_length, size.flops_per_token(config), {"rows": rows}
    chip = mesh.chip_here()
    peak = chip.peak_flops if chip else 0
    for one in contestants:
        speed = tokens / one.median
        found = {"ms": round(one.median * 1e3, 2), "tokens_per_second": round(speed), "peak_gib": round(one.peak_memory / 2**30, 2) or None}
        record[one.who] = found | {f"mfu_{kind}": round(count * speed / peak, 4) for kind, count in flops.items() if peak}
        print(f"{name}, {rows} rows: {one.who} {json.dumps(record[one.who])}", flush=True)
    if args.peer:
        record["ratio"] = round(contestants[1].median / contestants[0].median, 3)
        print(f"{name}: {record['ratio']} times the peer's tokens/s", flush=True)
    return record


def parts_of(name, rows, args):
    """Returns {part: ms} of what a step is made of, each timed alone, forward and backward where it has one."""
    import jax
    import jax.numpy as jnp

    from lmtiny import config as config_lib
    from lmtiny.model import attend, size
    from lmtiny.parallel import mesh as mesh_lib
    from lmtiny.parallel.matmul import matmul
    from lmtiny.parallel.vocab_cross_entropy import cross_entropy
    from lmtiny.training.optimizer import make_optimizer

    config = config_of(name, rows, overrides_of(args))
    model, vocab = config.model, config_lib.padded_vocab(config)
    tokens, mesh = rows * model.context_length, mesh_lib.make_mesh(config, jax.devices()[:1])
    core = attend.resolved(config, mesh)[0].model.attention
    key, dtype = jax.random.key(0), model.compute_dtype
    heads = (rows, model.context_length, model.num_heads, config_lib.head_dim(model))
    q = jax.random.normal(key, heads, dtype)
    x, up = jax.random.normal(key, (tokens, model.width), dtype), jnp.ones((model.width, config_lib.mlp_size(model)), dtype)
    hidden, head = x.reshape(rows, -1, model.width), jnp.ones((model.width, vocab), dtype)
    targets = jnp.zeros((rows, model.context_length), jnp.int32)
    loss = {"vocab_size": vocab, "soft_cap": model.logit_soft_cap, "chunk": config.train.loss_chunk}
    run = {"window": model.context_length, "soft_cap": 0.0, "implementation": core}
    params, optimizer = size.init_params(config), make_optimizer(config, size.abstract(config)[2])
    state = optimizer.init(params)
    layers = model.num_layers
    found = {
        f"attention of {layers} layers ({core})": layers * timed(gradient(lambda q: attend.attend(q, q, q, None, **run)), q),
        f"MLP's first product, {layers} layers": layers * timed(gradient(matmul), x, up),
        "head and cross-entropy": timed(gradient(lambda x, head: cross_entropy(x, head, targets, **loss)), hidden, head),
        "optimizer": timed(jax.jit(lambda grads, state: optimizer.update(grads, state, params)), params, state),
    }
    rows_np = jax.device_get(jnp.zeros((rows, model.context_length + 1), jnp.int32))
    found["a batch to the device"] = timed(lambda: mesh_lib.place_batch(mesh, rows_np, rows))
    for part, ms in found.items():
        print(f"{name}, {rows} rows: {part}: {ms:.2f} ms", flush=True)
    return {part: round(ms, 3) for part, ms in found.items()}


def gradient(run):
    """Returns the jitted gradient of the sum of run(*arrays) by all of them."""
    import jax
    import jax.numpy as jnp

    def total(*arrays):
        return jnp.sum(run(*arrays).astype(jnp.float32))

    return jax.jit(lambda *arrays: jax.grad(total, argnums=tuple(range(len(arrays))))(*arrays))


def timed(run, *arrays):
    """Returns the median milliseconds of a call, of 10 after 3."""
    import jax

    times = []
    for turn in range(13):
        start = time.perf_counter()
        jax.block_until_ready(run(*arrays))
        if turn >= 3:
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def refuse_without_gpu(args):
    """Ends the program where there is no GPU, unless it is a rehearsal: these shapes take 43 GB, and hours of a CPU."""
    import jax

    if not args.rehearse and jax.default_backend() != "gpu":
        raise UserError(
            f"jax finds no GPU here, only {jax.devices()[0].platform}: where there is one, pip install -e '.[cuda]'; --rehearse takes "
            "small shapes on what is here"
        )


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("--peer", default="", help="folder of nanoGPT; without it only lmtiny is timed")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has torch (default: this one)")
    parser.add_argument("--rehearse", action="store_true", help="small shapes, on any device: shows that it runs; its numbers mean nothing")
    parser.add_argument("--rows", type=flags.at_least(1), nargs=2, metavar=("GPT2", "D12"), help="rows of a batch (default: 32 16)")
    parser.add_argument("--turns", type=flags.at_least(1), default=7, help="turns of each")
    parser.add_argument("--seconds", type=flags.above_zero, default=2.0, help="of a turn, about")
    flags.add_set(parser, "another knob of lmtiny's configs")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    # lmtiny and the peer lie in the device's memory side by side, so neither may take all of it at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if args.work:
        who, name, rows = args.work
        work(who, name, int(rows), args)
        return
    sides.refuse_unless_nanogpt(args, "torch")
    import steps  # here, not in the peer's process; it keeps jax from looking for a TPU that is not there

    refuse_without_gpu(args)
    records = {}
    for name, rows in zip(CONFIGS, args.rows or ((2, 2) if args.rehearse else (32, 16)), strict=True):
        records[name] = {"steps": steps_of(name, rows, args), "parts_ms": parts_of(name, rows, args)}
    record = steps.machine() | {"what": "train step on a GPU, bfloat16", "rehearsal": args.rehearse, "configs": records}
    print(json.dumps(record | {"units": "ms, tokens/s, GiB, ms of each part"}))


if __name__ == "__main__":
    console.run_main(main)
