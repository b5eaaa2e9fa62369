"""A train step on this machine's CPU, lmtiny's against nanoGPT's own model and optimizer, in turns.

    python benchmarks/cpu_step.py --peer NANOGPT --peer-python TORCH_ENV/bin/python --shape laptop
    python benchmarks/cpu_step.py --shape gpt --ours "bfloat16,bfloat16+model.attention=reference"      two ways of our own

NANOGPT is a checkout of github.com/karpathy/nanoGPT, TORCH_ENV an environment with torch.  Each contestant is a process
of its own that takes a step when told; they are told in turns, so that a slow minute of the machine is slow for all.
A step is forward, backward, clipping to norm 1 and AdamW, with the loss read back every 10 steps.

The shapes: laptop, that of nanoGPT's README for a CPU (4 layers of 128, T 64, batch 12, 65 characters); gpt, its
Shakespeare model (6 of 384, T 256, batch 8); d4, four layers of 512 with 8,192 tokens (T 256, batch 4).

Where --ours and --peers do not say otherwise, both sides run in every way that they have, and the best of each are compared; a way
whose first step takes four times as long as the fastest of its side is left out of the turns.
"""

import argparse
import json
import os
import sys

import contest
import flags
import sides

from lmtiny import console

SHAPES = {  # layers, heads, width, T, batch, vocabulary
    "laptop": (4, 4, 128, 64, 12, 65),
    "gpt": (6, 6, 384, 256, 8, 65),
    "d4": (4, 8, 512, 256, 4, 8192),
}
PEER = ("eager float32", "eager bfloat16", "compiled float32", "compiled bfloat16")


def make(who, kind, args):
    """Returns the steps of one contestant, as `contest.serve` takes them."""
    if who == "peer":
        return contest.nanogpt_steps(args.peer, SHAPES[args.shape], *kind.split())
    from lmtiny.parallel import host

    host.keep_freed_memory()
    return contest.lmtiny_steps(our_config(kind, args))


def our_ways():
    """Returns lmtiny's ways that this machine has: each compute type by XLA's products, and by lmtiny's own where there are some."""
    from lmtiny.errors import UserError
    from lmtiny.parallel import cpu_matmul

    try:
        own = cpu_matmul.own_types()
    except UserError as error:
        print(f"without lmtiny's own products: {error}", file=sys.stderr)
        own = []
    return ["float32", "bfloat16", *(f"{dtype}+parallel.cpu_matmul=own" for dtype in own)]


def our_config(kind, args):
    """Returns lmtiny's config of the shape in one of the ways of --ours, "DTYPE" or "DTYPE+KNOB=VALUE"."""
    dtype, *more = kind.split("+")
    if wrong := [text for text in more if "=" not in text]:
        raise SystemExit(f"--ours {kind}: {wrong[0]!r} is not KNOB=VALUE")
    return contest.lmtiny_config(SHAPES[args.shape], dtype, dict(text.split("=", 1) for text in more))


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("--peer", default="", help="folder of nanoGPT; without it only lmtiny is timed")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has torch (default: this one)")
    parser.add_argument("--shape", choices=SHAPES, default="laptop")
    ways = "lmtiny's compute types, separated by commas; +KNOB=VALUE adds to one (default: both, and with its own products where it can)"
    parser.add_argument("--ours", help=ways)
    parser.add_argument("--peers", type=flags.some_of(*PEER), default=[*PEER], help="the peer's ways, separated by commas")
    parser.add_argument("--turns", type=flags.at_least(1), default=9, help="turns of each")
    parser.add_argument("--seconds", type=flags.above_zero, default=1.0, help="of a turn, about")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        contest.serve(lambda: make(*args.work, args))
        return
    sides.refuse_unless_nanogpt(args, "torch")
    ours = args.ours.split(",") if args.ours else our_ways()
    for kind in ours:
        our_config(kind, args)  # what it refuses, before anything is started
    wanted = [("ours", kind, sys.executable) for kind in ours]
    wanted += [("peer", kind, args.peer_python) for kind in args.peers if args.peer]
    same = [os.path.abspath(__file__), "--shape", args.shape, "--peer", args.peer]
    contestants = [contest.Contestant(who, kind, [python, *same, "--work", who, kind]) for who, kind, python in wanted]
    running = contest.contest(contestants, args.turns, args.seconds)
    _, _, _, length, batch, _ = SHAPES[args.shape]
    widest = max(len(one.kind) for one in contestants)
    print(f"{args.shape}: {'who':6} {'how':{widest}} {'ms a step':>10} {'tokens/s':>10} {'cpu/wall':>8}")
    for one in contestants:
        share = sum(one.cpu) / sum(one.times)
        row = f"{args.shape}: {one.who:6} {one.kind:{widest}} {one.median * 1e3:10.2f} {length * batch / one.median:10,.0f} {share:8.2f}"
        print(row if one in running else f"{row}  left out after its first step")
    if min(sum(one.cpu) / sum(one.times) for one in running) < 0.7 * os.cpu_count():
        print("less than 0.7 of the cores worked: other work on this machine, which makes the times worth little, or a very small step")
    fastest = {who: one for who in ("ours", "peer") if (one := contest.best(contestants, who))}
    import steps

    record = steps.machine() | {"what": f"train step on CPU, {args.shape}", "units": "tokens/s", "turns": args.turns}
    record |= {who: round(length * batch / one.median) for who, one in fastest.items()}
    if args.peer:
        ratio = fastest["peer"].median / fastest["ours"].median
        record |= {"ratio": round(ratio, 3), "best": {who: one.kind for who, one in fastest.items()}}
    print(json.dumps(record))


if __name__ == "__main__":
    console.run_main(main)
