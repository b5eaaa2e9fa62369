"""Whole preparation, from text to token shards: MB of raw text for each second of one core, start and all.

    python benchmarks/prepare.py --text BOOKS
    python benchmarks/prepare.py --text BOOKS --set corpus.cleaning=unicode --repeats 3
    python benchmarks/prepare.py --text BOOKS --megabytes 300 --repeats 1

lmtiny.prepare in one process, in turns: learning its tokenizer from the text, and with the one it learned, ready.  Counted is the
core's own time (user and system), which what else the machine does lengthens little; wall time is told beside it.  Medians.
"""

import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import flags
from tokenization import varied

from lmtiny import console

ROOT = pathlib.Path(__file__).resolve().parents[1]


def spent():
    """Returns the seconds of a core that this process's children have spent."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def prepared(args, folder, **knobs):
    """Returns (seconds of a core, seconds) of a preparation into `folder`; ends the program with its last line where it fails."""
    knobs = {"corpus.kind": "files", "corpus.path": os.path.abspath(args.text), "data.num_processes": 1, "data.dir": folder, **knobs}
    knobs |= flags.overrides(args)
    command = [sys.executable, "-m", "lmtiny.prepare", "--config", os.path.abspath(args.config)]
    command += [f"--config.{name}={value}" for name, value in knobs.items()]
    shutil.rmtree(folder, ignore_errors=True)
    before, start = spent(), time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent, check=False)
    if done.returncode:
        raise SystemExit(f"lmtiny.prepare ended with code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return spent() - before, time.perf_counter() - start


def longer(texts, megabytes, folder):
    """Writes the texts as often as it takes, never twice the same, a file each; returns the files."""
    folder.mkdir()
    for number, text in enumerate(varied(texts, int(megabytes * 1e6), [0.0])):
        (folder / f"{number:05}.txt").write_text(text)
    return list(folder.iterdir())


def main():
    parser = flags.parser(__doc__)
    parser.add_argument("--text", required=True, help="a folder of .txt files")
    parser.add_argument("--config", default=str(ROOT / "configs" / "tiny.py"))
    parser.add_argument("--megabytes", type=flags.above_zero, help="the texts again and again, one word in fifty changed, up to so much")
    flags.add_set(parser, "a knob of the config")
    parser.add_argument("--repeats", type=flags.at_least(1), default=3, help="turns of each")
    args = parser.parse_args()
    texts = sorted(pathlib.Path(args.text).rglob("*.txt"))
    if not sum(file.stat().st_size for file in texts):
        raise SystemExit(f"{args.text}: no text in .txt files in it")
    seconds = {"learning": [], "ready": []}
    with tempfile.TemporaryDirectory() as place:
        work = pathlib.Path(place)
        if args.megabytes:
            args.text, texts = work / "text", longer([file.read_text(errors="replace") for file in texts], args.megabytes, work / "text")
        megabytes = sum(file.stat().st_size for file in texts) / 1e6
        for _ in range(args.repeats):
            seconds["learning"].append(prepared(args, work / "learned"))
            shutil.copytree(work / "learned" / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
            seconds["ready"].append(prepared(args, work / "with_ready", **{"tokenizer.path": work / "tokenizer"}))
    rates = {}
    for name, found in seconds.items():
        core, wall = (statistics.median(column) for column in zip(*found, strict=True))
        rates[name] = round(megabytes / core, 2)
        print(f"{name}: {megabytes:.1f} MB in {core:.1f} s of a core, {rates[name]:.2f} MB/s; {wall:.1f} s by the clock", flush=True)
    record = {"what": "prepare", "units": "MB/s of a core", "ours": rates["learning"], "with a ready tokenizer": rates["ready"]}
    print(json.dumps(record | {"MB": round(megabytes, 1), "cores": os.cpu_count(), "python": sys.version.split()[0]}))


if __name__ == "__main__":
    console.run_main(main)
