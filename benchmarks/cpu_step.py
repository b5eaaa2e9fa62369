"""A train step on this machine's CPU, lmtiny's against nanoGPT's own model and optimizer, in turns.

    python benchmarks/cpu_step.py --peer NANOGPT --peer-python TORCH_ENV/bin/python --shape laptop

NANOGPT is a checkout of github.com/karpathy/nanoGPT, TORCH_ENV an environment with torch.  Each contestant is a process
of its own that takes a step when told; they are told in turns, so that a slow minute of the machine is slow for all.
A step is forward, backward, clipping to norm 1 and AdamW, with the loss read back every 10 steps.

The shapes: laptop, that of nanoGPT's README for a CPU (4 layers of 128, T 64, batch 12, 65 characters); gpt, its
Shakespeare model (6 of 384, T 256, batch 8); d4, four layers of 512 with 8,192 tokens (T 256, batch 4).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

SHAPES = {  # layers, heads, width, T, batch, vocabulary
    "laptop": (4, 4, 128, 64, 12, 65),
    "gpt": (6, 6, 384, 256, 8, 65),
    "d4": (4, 8, 512, 256, 4, 8192),
}
OURS, PEER = ("float32", "bfloat16"), ("eager float32", "eager bfloat16", "compiled float32", "compiled bfloat16")
LOSS_EVERY = 10


def config_of(shape, dtype, overrides):
    """Returns lmtiny's config of nanoGPT's model: LayerNorm, GELU, learned positions, tied, no biases, AdamW."""
    from lmtiny import config as config_lib

    layers, heads, width, length, batch, vocabulary = SHAPES[shape]
    config = config_lib.defaults()
    for name, value in {
        "name": shape, "model.num_layers": layers, "model.num_heads": heads, "model.width": width,
        "model.context_length": length, "model.norm": "layernorm", "model.norm_scale": True, "model.activation": "gelu",
        "model.position": "learned", "model.qk_norm": False, "model.tied_embeddings": True, "model.mask_documents": False,
        "model.zero_projections": False, "model.compute_dtype": dtype, "train.batch_size": batch, "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.1, "optimizer.clip_norm": 1.0, "train.num_steps": 10**6,
        **overrides,
    }.items():  # fmt: skip
        config_lib.set_knob(config, name, value)
    config_lib.check(config)
    config.tokenizer.vocab_size = vocabulary  # as lmtiny.train sets it from the tokenizer
    return config


def our_steps(shape, kind, overrides):
    """Returns f(n): takes n steps and returns the last loss."""
    import jax
    import numpy as np

    from lmtiny.model import attend, size
    from lmtiny.parallel import mesh as mesh_lib
    from lmtiny.training.optimizer import make_optimizer
    from lmtiny.training.state import init_state
    from lmtiny.training.step import make_train_step

    dtype, *more = kind.split("+")
    config = config_of(shape, dtype, overrides | dict(text.split("=", 1) for text in more))
    mesh_lib.keep_freed_memory()
    mesh = mesh_lib.make_mesh(config)
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config, size.abstract(config)[2])
        step = make_train_step(attend.resolved(config, mesh)[0], optimizer, mesh, config.tokenizer.vocab_size)
        state = init_state(config, optimizer, mesh)
    random, sizes = np.random.default_rng(0), (config.train.batch_size, config.model.context_length + 1)

    def run(number):
        nonlocal state
        with jax.set_mesh(mesh):
            for _ in range(number):
                rows = random.integers(0, config.tokenizer.vocab_size, sizes).astype(np.int32)
                state, metrics = step(state, mesh_lib.place_batch(mesh, rows, sizes[0]))
        return float(metrics["loss"])

    return run


def peer_steps(shape, kind, folder):
    """The same of nanoGPT: its GPT, its configure_optimizers, the body of its training loop."""
    sys.path.insert(0, folder)
    import torch
    from model import GPT, GPTConfig

    how, dtype = kind.split()
    layers, heads, width, length, batch, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=length, vocab_size=vocabulary, n_layer=layers, n_head=heads, n_embd=width, dropout=0.0, bias=False))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    model = torch.compile(model) if how == "compiled" else model

    def run(number):
        for _ in range(number):
            rows = torch.randint(0, vocabulary, (batch, length + 1))
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                _, loss = model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def work(who, shape, kind, folder, overrides):
    """A contestant: for each number on a line of stdin, takes so many steps and prints seconds, CPU seconds and the loss."""
    out, sys.stdout = sys.stdout, sys.stderr
    run = our_steps(shape, kind, overrides) if who == "ours" else peer_steps(shape, kind, folder)
    run(2)  # compiles
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        wall, cpu, loss = time.perf_counter(), time.process_time(), 0.0
        for start in range(0, int(line), LOSS_EVERY):
            loss = run(min(LOSS_EVERY, int(line) - start))
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, loss]), file=out, flush=True)


class Contestant:
    def __init__(self, python, who, kind, args):
        command = [python, os.path.abspath(__file__), "--work", who, "--kind", kind, "--shape", args.shape, "--peer", args.peer]
        command += [f"--set={text}" for text in args.set]
        self.who, self.kind, self.times, self.cpu = who, kind, [], []
        environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def wait(self):
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{self.who}, {self.kind}: did not start")

    def step(self, number):
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        seconds, cpu, self.loss = json.loads(self.process.stdout.readline())
        self.times.append(seconds / number)
        self.cpu.append(cpu / number)

    @property
    def median(self):
        return statistics.median(self.times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", help="folder of nanoGPT; without it only lmtiny is timed")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has torch (default: this one)")
    parser.add_argument("--shape", choices=SHAPES, default="laptop")
    parser.add_argument("--ours", default=",".join(OURS), help="lmtiny's compute types, separated by commas; +KNOB=VALUE adds to one")
    parser.add_argument("--peers", default=",".join(PEER), help="the peer's ways, separated by commas")
    parser.add_argument("--turns", type=int, default=9, help="turns of each")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, about")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", help="another knob of lmtiny's config")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.shape, args.kind, args.peer, dict(text.split("=", 1) for text in args.set))
        return
    contestants = [Contestant(sys.executable, "ours", kind, args) for kind in args.ours.split(",")]
    if args.peer:
        contestants += [Contestant(args.peer_python, "peer", kind, args) for kind in args.peers.split(",")]
    for one in contestants:
        one.wait()
    for one in contestants:
        one.step(3)
        one.number = max(1, round(args.seconds / one.median))
        one.step(one.number)  # warms up
        one.times, one.cpu = [], []
    for _ in range(args.turns):
        for one in contestants:
            one.step(one.number)
    _, _, _, length, batch, _ = SHAPES[args.shape]
    print(f"{args.shape}: {'who':6} {'how':40} {'ms a step':>10} {'tokens/s':>10} {'cpu/wall':>8}")
    for one in contestants:
        share = sum(one.cpu) / sum(one.times)
        print(f"{args.shape}: {one.who:6} {one.kind:40} {one.median * 1e3:10.2f} {length * batch / one.median:10,.0f} {share:8.2f}")
        one.process.stdin.close()
    best = {who: min((one for one in contestants if one.who == who), key=lambda one: one.median, default=None) for who in ("ours", "peer")}
    record = {"what": f"train step on CPU, {args.shape}", "units": "tokens/s", "cores": os.cpu_count()}
    record |= {who: round(length * batch / one.median) for who, one in best.items() if one}
    if best["peer"]:
        record |= {"ratio": round(best["peer"].median / best["ours"].median, 3), "best": {who: one.kind for who, one in best.items()}}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
