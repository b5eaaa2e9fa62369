"""How long a program takes to be at work: imports, and from the start of lmtiny.train to its first step, cold and again.

    python benchmarks/start.py
    python benchmarks/start.py --config configs/gpt2_124m.py --set train.batch_size=1 --set train.accumulation=1

Cold: nothing prepared, nothing compiled.  Again: a new run, with the shards and the compiled programs of the first one.
The corpus is the built-in one.  Medians of --repeats; let nothing else run meanwhile.
"""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import flags

from lmtiny import config as config_lib
from lmtiny import console

ROOT = pathlib.Path(__file__).resolve().parents[1]
IMPORTS = ("lmtiny.train", "lmtiny.chat", "lmtiny.plan", "lmtiny.prepare", "jax", "lmtiny.training.step")


def timed(command, **variables):
    """Returns (seconds, output) of a command; ends the program with its last line where it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)} | variables, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ended with code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return time.perf_counter() - start, done.stdout + done.stderr


def first_step(args, work, number):
    """Returns (seconds to the end of the first step, as lmtiny.train says it; seconds of the whole program)."""
    knobs = {"train.num_steps": 1, "optimizer.warmup_steps": 1, "evaluation.rows": 1, "evaluation.sample_tokens": 1,
             "data.dir": work / "prepared"} | flags.overrides(args)  # fmt: skip
    command = [sys.executable, "-m", "lmtiny.train", "--config", os.path.abspath(args.config), "--workdir", str(work / f"run{number}")]
    command += [f"--config.{knob}={value}" for knob, value in knobs.items()]
    whole, output = timed(command, XDG_CACHE_HOME=str(work / "cache"))
    found = re.search(r"first step done (?:(\d+) min )?([\d.]+) s after the start", output)
    if not found:
        raise SystemExit(f"lmtiny.train did not say when its first step was done: {output[-300:]}")
    return 60 * int(found[1] or 0) + float(found[2]), whole


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("--config", default=str(ROOT / "configs" / "tiny.py"))
    flags.add_set(parser, "a knob of the config")
    parser.add_argument("--repeats", type=flags.at_least(1), default=3, help="starts after the cold one, and imports of each module")
    args = parser.parse_args()
    config_lib.load(args.config, flags.overrides(args))  # what it refuses, before anything is timed
    empty = statistics.median(timed([sys.executable, "-c", ""])[0] for _ in range(args.repeats))
    imports = {}
    for name in IMPORTS:
        timed([sys.executable, "-c", f"import {name}"])  # the files' bytes are in memory from here on
        imports[name] = statistics.median(timed([sys.executable, "-c", f"import {name}"])[0] for _ in range(args.repeats)) - empty
        print(f"import {name}: {imports[name]:.2f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cold = first_step(args, pathlib.Path(folder), 0)
        print(f"cold: first step done after {cold[0]:.1f} s, the whole program {cold[1]:.1f} s", flush=True)
        again = [first_step(args, pathlib.Path(folder), number) for number in range(1, args.repeats + 1)]
    warm = [statistics.median(column) for column in zip(*again, strict=True)]
    print(f"again: first step done after {warm[0]:.1f} s, the whole program {warm[1]:.1f} s")
    record = {"what": f"start of {pathlib.Path(args.config).stem}", "units": "s", "ours": round(warm[0], 2), "cold": round(cold[0], 2)}
    print(json.dumps(record | {"cores": os.cpu_count(), "python": sys.version.split()[0], "imports": imports}))


if __name__ == "__main__":
    console.run_main(main)
