"""The two sides of benchmarks/equal_time.py: each learns its tokenizer, times its steps, trains for the minutes given, is scored.

`program` and `run`, which start them, serve other benchmarks too.
"""

import itertools
import json
import math
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

import flags

PEER_SEED = 42  # what nanochat sets by itself
HERE = pathlib.Path(__file__).resolve()


def say(text):
    print(text, flush=True)


def program(name):
    """Returns the program of that name as it can be started from any folder, or ends this one; links are kept, since a venv is one."""
    if not shutil.which(name):
        raise SystemExit(f"{name}: there is no such program")
    return os.path.abspath(name) if os.sep in name else name


def refuse_unless_imports(python, modules):
    """Ends the program with one line unless that Python, which is `program`'s, imports the modules, separated by commas."""
    found = subprocess.run([python, "-c", f"import {modules}"], capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"--peer-python {python}: {found.stderr.strip().splitlines()[-1]}")


def refuse_unless_nanogpt(args, modules):
    """Ends the program with one line unless --peer, where it is given, is nanoGPT's checkout, and --peer-python imports the modules."""
    args.peer_python = program(args.peer_python)
    if not args.peer:
        return
    if not (pathlib.Path(args.peer) / "model.py").is_file():
        raise SystemExit(f"--peer {args.peer}: no checkout of nanoGPT (there is no model.py)")
    refuse_unless_imports(args.peer_python, modules)


def run(command, log, cwd, **variables):
    """Runs a command in `cwd`, its output into the file `log`; returns the output, or ends the program with its last line."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=cwd, env=environment, check=False).returncode
    output = log.read_text(encoding="utf-8", errors="replace")
    if code:
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
        with tempfile.NamedTemporaryFile("w", prefix=f"{log.stem}-", suffix=".log", delete=False) as kept:
            kept.write(output)  # for the folder of the work may go with this program
        raise SystemExit(f"{log.stem} ended with code {code}: {last.strip()} (all of it: {kept.name})")
    return output


def steps_for(minutes, seconds):
    """Returns how many steps of `seconds` take `minutes`."""
    return max(2, round(60 * minutes / seconds))


def whole(seconds):
    """Returns (seconds of all steps, the first at the median; the mean) of steps behind the first, the one that compiles.

    The mean tells how long many steps will take: a machine that others share has slow moments, which a median leaves out.
    """
    return sum(seconds) + statistics.median(seconds), statistics.fmean(seconds)


def our_command(args, entry, books, work, more):
    """Returns the command that starts lmtiny.`entry` with the config, its changes, the books, and `more` knobs."""
    knobs = flags.overrides(args) | {
        "corpus.kind": "files", "corpus.path": books, "corpus.validation_path": books / "held_out", "data.dir": work / "prepared", **more,
    }  # fmt: skip
    command = [sys.executable, "-m", f"lmtiny.{entry}", "--config", os.path.abspath(args.config)]
    return command + [f"--config.{knob}={value}" for knob, value in knobs.items()]


def our_run(args, config, books, work, name, num_steps, more, score="bits_per_byte"):
    """Trains lmtiny in work/name; returns (seconds of training, seconds of a step, last validation bits per byte or `score`).

    The seconds are right to within a step: a line of the log is timed when the next step has been started.
    """
    from lmtiny import run_log

    knobs = {
        "train.num_steps": num_steps, "optimizer.warmup_steps": min(config.optimizer.warmup_steps, num_steps),
        "evaluation.every": 0, "evaluation.sample_every": 0, "checkpoint.every": 0, **more,
    }  # fmt: skip
    run([*our_command(args, "train", books, work, knobs), "--workdir", str(work / name)], work / f"{name}.log", work)
    lines = run_log.read_metrics(work / name)
    timed = [line for line in lines if "tokens_per_second" in line]
    tokens_a_step, seconds = timed[0]["tokens"], []
    for before, line in itertools.pairwise(timed):
        seconds += [tokens_a_step / line["tokens_per_second"]] * ((line["tokens"] - before["tokens"]) // tokens_a_step)
    return *whole(seconds), lines[-1].get(f"validation_{score}")


def ours(args, config, books, work):
    """Prepares lmtiny's data; returns (its facts, f() -> seconds of a step, f(seed, steps) -> (bits per byte, seconds))."""
    from lmtiny import config as config_lib
    from lmtiny.data import loader, shards
    from lmtiny.model import size

    run(our_command(args, "prepare", books, work, {}), work / "ours-prepare.log", work)
    prepared = shards.read(work / "prepared")
    rows = loader.Rows(prepared, "validation", config_lib.validation_length(config))
    counted = sum(int(prepared.tokenizer.token_bytes[rows[number][1:]].sum()) for number in range(len(rows)))
    config.tokenizer.vocab_size = prepared.tokenizer.vocab_size
    facts = {
        "who": "lmtiny", "settings": " ".join([pathlib.Path(args.config).stem, *args.set]), "vocabulary": prepared.tokenizer.vocab_size,
        "parameters": size.count_parameters(config)["total"], "bytes": counted,
    }  # fmt: skip

    def calibrate():
        name = "ours-calibration"
        shutil.rmtree(work / name, ignore_errors=True)
        return our_run(args, config, books, work, name, args.calibrate, {"evaluation.rows": 1, "log.every": 5})[1]

    def train(seed, num_steps):
        facts["steps"], facts["tokens"] = num_steps, num_steps * config.train.batch_size * config.model.context_length
        more = {"seed": seed, "evaluation.rows": len(rows)}
        seconds, _, score = our_run(args, config, books, work, f"ours-seed{seed}", num_steps, more)
        return score, seconds

    return facts, calibrate, train


def peer(args, config, texts, work):
    """The same of nanochat: its tokenizer, its base_train, its model scored by nanochat_jobs.py."""
    base = work / "nanochat"
    job = [args.peer_python, str(HERE.with_name("nanochat_jobs.py"))]
    variables = {"NANOCHAT_BASE_DIR": str(base), "WANDB_MODE": "disabled", "PYTHONPATH": args.peer}
    say("peer: its tokenizer")
    shards = [*job, "shards", "--texts", str(texts), "--folder", str(base / "base_data_climbmix")]
    run(shards, work / "peer-shards.log", args.peer, **variables)
    tok_train = [args.peer_python, "-m", "scripts.tok_train", f"--vocab-size={config.tokenizer.vocab_size}"]
    run(tok_train, work / "peer-tokenizer.log", args.peer, **variables)

    def base_train(name, num_steps, seed):
        """Returns (seconds of training, seconds of a step, tokens, what it says of its time itself)."""
        flags = f"--run=dummy --device-type=cpu --window-pattern=L --max-seq-len={config.model.context_length} --eval-every=-1"
        flags += f" --core-metric-every=-1 --sample-every=-1 {args.peer_flags} --num-iterations={num_steps} --model-tag={name}"
        command = [*job, "train", f"--flags={flags}", "--seed", str(seed)]
        output = run(command, work / f"{name}.log", args.peer, **variables)
        seconds = [float(ms) / 1e3 for ms in re.findall(r"^step \d+/.* dt: ([\d.]+)ms", output, re.MULTILINE)]
        tokens = int(re.search(r"Total number of training tokens: ([\d,]+)", output)[1].replace(",", ""))
        return *whole(seconds[1:]), tokens, re.search(r"Total training time: (\S+)", output)[1]

    facts = {"who": "nanochat", "settings": args.peer_flags, "vocabulary": config.tokenizer.vocab_size}

    def calibrate():
        return base_train("peer-calibration", args.calibrate, PEER_SEED)[1]

    def train(seed, num_steps):
        name, facts["steps"] = f"peer-seed{seed}", num_steps
        seconds, _, facts["tokens"], told = base_train(name, num_steps, PEER_SEED + seed)
        say(f"peer, seed {seed}: its loop says {told} (without its first 11 steps)")
        command = [*job, "score", "--texts", str(texts), "--folder", str(base / "base_checkpoints" / name)]
        score = json.loads(run(command, work / f"{name}-score.log", args.peer, **variables).splitlines()[-1])
        facts["parameters"], facts["bytes"] = score["parameters"], score["bytes"]
        ways = {way: score[way] / (math.log(2) * score["bytes"]) for way in ("apart", "overlapping")}
        told = ", ".join(f"windows {way} {value:.4f}" for way, value in ways.items())
        say(f"peer, seed {seed}: {told} bits per byte; the lower counts")
        return min(ways.values()), seconds

    return facts, calibrate, train
