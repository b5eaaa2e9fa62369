"""nanoGPT's first example, Shakespeare by the character on a CPU: its own program against lmtiny.train, by validation loss.

    python benchmarks/shakespeare.py --peer NANOGPT --peer-python TORCH_ENV/bin/python --text tinyshakespeare.txt

nanoGPT runs its train.py with the flags of its README for a CPU (2,000 steps of 12 x 64 characters, 4 layers of 128), in a
copy of its folder.  lmtiny trains on the same first 90 % of the text, for a third of the peer's time and for all of it, and
is validated on all of the last 10 %, from the start of each row on; nanoGPT on random pieces of it (--eval-iters batches).
Time is that of the steps: no compilation, data, validation.  Let nothing else run meanwhile.
"""

import json
import os
import pathlib
import re
import shutil
import statistics
import sys
import tempfile

import flags
from sides import our_run, refuse_unless_nanogpt, run, say, steps_for

from lmtiny import config as config_lib
from lmtiny import console

PEER_FLAGS = ("--device=cpu --compile=False --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
              "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0 --eval_interval=2000 --always_save_checkpoint=False")  # fmt: skip
OURS = {
    "tokenizer.kind": "char", "model.num_layers": "4", "model.width": "128", "model.num_heads": "2", "model.context_length": "128",
    "train.batch_size": "8", "model.compute_dtype": "bfloat16", "optimizer.learning_rate": "6e-3",
}  # fmt: skip


def peer(args, text, work):
    """Returns (seconds of all steps, validation loss) of nanoGPT's own training."""
    folder = work / "nanoGPT"
    shutil.copytree(args.peer, folder, ignore=shutil.ignore_patterns(".git", "*.bin", "out*"))
    data = folder / "data" / "shakespeare_char"
    (data / "input.txt").write_text(text)
    run([args.peer_python, "prepare.py"], work / "peer-prepare.log", data)
    command = [args.peer_python, "train.py", "config/train_shakespeare_char.py", *PEER_FLAGS.split(), f"--eval_iters={args.eval_iters}"]
    output = run(command, work / "peer.log", folder, PYTHONPATH=str(folder))
    seconds = [float(ms) / 1e3 for ms in re.findall(r"^iter \d+: loss [\d.]+, time ([\d.]+)ms", output, re.MULTILINE)]
    losses = re.findall(r"^step \d+: train loss [\d.]+, val loss ([\d.]+)", output, re.MULTILINE)
    # Its first step holds a validation, its last one another.
    return sum(seconds[1:-1]) + 2 * statistics.median(seconds), float(losses[-1])


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("--text", required=True, help="tinyshakespeare.txt")
    parser.add_argument("--peer", help="folder of nanoGPT; without it --seconds says how long lmtiny trains")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has torch and numpy (default: this one)")
    parser.add_argument("--eval-iters", type=flags.at_least(1), default=200, help="batches of the peer's validation")
    parser.add_argument("--seconds", type=flags.above_zero, default=97.0, help="the time to compare with, where the peer is not run")
    parser.add_argument("--config", default=str(pathlib.Path(__file__).resolve().parents[1] / "configs" / "tiny.py"))
    flags.add_set(parser)
    parser.add_argument("--calibrate", type=flags.at_least(10), default=60, help="steps that are timed first")
    args = parser.parse_args()
    refuse_unless_nanogpt(args, "torch, numpy")
    if not pathlib.Path(args.text).is_file():
        raise SystemExit(f"--text {args.text}: no such file")
    text = pathlib.Path(args.text).read_text(encoding="utf-8")
    knobs = OURS | flags.overrides(args)
    config_lib.load(args.config, knobs)  # what it refuses, before the peer's minutes
    args.set = [f"{name}={value}" for name, value in knobs.items()]
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder).resolve()
        if args.peer:
            say("nanoGPT trains: 2,000 steps, some minutes")
        seconds, theirs = (args.seconds, None) if args.peer is None else peer(args, text, work)
        if theirs is not None:
            say(f"nanoGPT: validation loss {theirs:.4f} after {seconds:.1f} s")
        texts = work / "text"
        (texts / "held_out").mkdir(parents=True)
        cut = int(len(text) * 0.9)  # as nanoGPT's prepare.py
        (texts / "train.txt").write_text(text[:cut])
        (texts / "held_out" / "rest.txt").write_text(text[cut:])
        config = config_lib.load(args.config, knobs | {"corpus.kind": "files", "corpus.path": str(texts)})
        say(f"lmtiny: {args.calibrate} steps, timed, to know how many fit")
        _, step, _ = our_run(args, config, texts, work, "calibration", args.calibrate, {"evaluation.rows": 1, "log.every": 5})
        record = {"what": "Shakespeare by the character, CPU", "units": "validation loss", "cores": os.cpu_count(), "peer": theirs}
        for share, name in ((1 / 3, "a third"), (1, "all")):
            number = steps_for(seconds * share / 60, step)
            spent, _, loss = our_run(args, config, texts, work, name.replace(" ", "-"), number, {"evaluation.rows": 10**6}, "loss")
            say(f"lmtiny: validation loss {loss:.4f} after {spent:.1f} s, {number:,} steps ({name} of the peer's time)")
            record[f"ours, {name}"] = {"loss": round(loss, 4), "seconds": round(spent, 1), "steps": number}
    print(json.dumps(record | {"seconds": round(seconds, 1)}))


if __name__ == "__main__":
    console.run_main(main)
