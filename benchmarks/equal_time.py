"""Equal training time on this machine's CPU: lmtiny's whole pipeline against nanochat's, by bits per byte on held-out books.

    python benchmarks/equal_time.py --peer NANOCHAT --peer-python TORCH_ENV/bin/python --books FOLDER
    python benchmarks/equal_time.py --books FOLDER --only ours --set train.batch_size=4
    python benchmarks/equal_time.py --peer NANOCHAT --peer-python TORCH_ENV/bin/python --books FOLDER --only peer --peer-flags "--depth=2"

NANOCHAT is a checkout of github.com/karpathy/nanochat, TORCH_ENV an environment with torch, rustbpe, tiktoken, pyarrow,
wandb and what else it imports; FOLDER has .txt books, of which the last two by name are held out from tokenizer and
training.  Each side learns its own tokenizer, of the config's vocabulary, and trains its own model by its own program.

- Time: a calibration run of --calibrate steps gives the seconds of a step, and with it the number of steps that take
  --minutes; schedules follow that number.  Compilation (the first step), data, validation and checkpoints do not count.
  A side that missed the time by more than 5 % is told.  The runs take turns, seed by seed.
- Text: books are cleaned as lmtiny does for both.  nanochat's training documents are pieces of about --document-bytes, cut
  at blank lines and shuffled, since its loader reads them in order; lmtiny's are what its defaults make of the files.
- Score: both see the held-out text as the same sections (corpus.section_bytes), cut in windows of <|bos|> and at most T
  tokens; every token but <|bos|> is a target once.  bits per byte = sum of nats / (ln 2 * bytes of the targets).
- Seeds: lmtiny's are of weights and shuffles; nanochat has none to set, so torch.manual_seed is given another number than
  its 42 (the weights; its data keeps its order).

Variables such as NANOCHAT_DTYPE=bfloat16 and OMP_NUM_THREADS reach both.  Let nothing else run meanwhile.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import random
import re
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile

HELD_OUT = 2  # books
PEER_FLAGS = "--depth=4 --head-dim=64 --device-batch-size=8 --total-batch-size=2048"
PEER_SEED = 42  # what nanochat sets by itself
PEER_NEEDS = "torch, rustbpe, tiktoken, pyarrow.parquet, wandb, requests, filelock, yaml, jinja2"
HERE = pathlib.Path(__file__).resolve()


# ---- what the peer's Python does: --job ----


def write_shards(texts, folder):
    """Writes the "train" and "held_out" texts of the JSON file `texts` as nanochat's shards; the last one is its validation."""
    import pyarrow
    import pyarrow.parquet

    documents = json.loads(pathlib.Path(texts).read_text())
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    for number, split in enumerate(("train", "held_out")):
        table = pyarrow.table({"text": documents[split]})
        pyarrow.parquet.write_table(table, folder / f"shard_{number:05d}.parquet", row_group_size=512)


def train_peer(flags, seed):
    """Runs scripts.base_train with `flags`, its torch.manual_seed given `seed`."""
    import torch

    set_seed = torch.manual_seed
    torch.manual_seed = lambda _: set_seed(seed)
    sys.argv = ["base_train", *shlex.split(flags)]
    runpy.run_module("scripts.base_train", run_name="__main__", alter_sys=True)


def score_peer(texts, folder):
    """Prints {"nats", "bytes", "tokens", "parameters"} of nanochat's newest checkpoint in `folder` over the sections of `texts`."""
    import torch
    from nanochat.checkpoint_manager import build_model, find_last_step

    model, tokenizer, meta = build_model(folder, find_last_step(folder), torch.device("cpu"), "eval")
    length, bos = meta["model_config"]["sequence_len"], tokenizer.get_bos_token_id()
    windows = []
    for ids in tokenizer.encode(json.loads(pathlib.Path(texts).read_text())["sections"]):
        windows += [ids[start : start + length] for start in range(0, len(ids), length)]
    nats, num_bytes = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(windows), 16):
            some = windows[start : start + 16]
            inputs = torch.tensor([[bos, *ids[:-1]] + [bos] * (length - len(ids)) for ids in some])
            targets = torch.tensor([ids + [-1] * (length - len(ids)) for ids in some])  # -1: no loss
            nats += model(inputs, targets, loss_reduction="none").double().sum().item()
            num_bytes += sum(len(tokenizer.decode_single_token_bytes(token)) for ids in some for token in ids)
    parameters = sum(value.numel() for value in model.parameters())
    print(json.dumps({"nats": nats, "bytes": num_bytes, "tokens": sum(map(len, windows)), "parameters": parameters}))


# ---- the two sides ----


def run(command, log, cwd, **variables):
    """Runs a command in `cwd`, its output into the file `log`; returns the output, or ends the program with its last line."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=cwd, env=environment, check=False).returncode
    output = log.read_text(encoding="utf-8", errors="replace")
    if code:
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
        raise SystemExit(f"{log.stem} ended with code {code}: {last.strip()} (all of it: {log})")
    return output


def steps_for(minutes, seconds):
    """Returns how many steps of `seconds` take `minutes`."""
    return max(2, round(60 * minutes / seconds))


def whole(seconds):
    """Returns (seconds of all steps, the first at the median; the median) of steps behind the first, the one that compiles."""
    median = statistics.median(seconds)
    return sum(seconds) + median, median


def our_run(args, config, books, work, name, num_steps, more):
    """Trains lmtiny in work/name; returns (seconds of training, seconds of a step, last validation bits per byte).

    The seconds are right to within a step: a line of the log is timed when the next step has been started.
    """
    from lmtiny import run_log

    knobs = dict(text.split("=", 1) for text in args.set) | {
        "corpus.kind": "files", "corpus.path": books, "corpus.validation_path": books / "held_out", "data.dir": work / "prepared",
        "train.num_steps": num_steps, "optimizer.warmup_steps": min(config.optimizer.warmup_steps, num_steps),
        "evaluation.every": 0, "evaluation.sample_every": 0, "checkpoint.every": 0, **more,
    }  # fmt: skip
    command = [sys.executable, "-m", "lmtiny.train", "--config", os.path.abspath(args.config), "--workdir", str(work / name)]
    run(command + [f"--config.{knob}={value}" for knob, value in knobs.items()], work / f"{name}.log", work)
    lines = run_log.read_metrics(work / name)
    timed = [line for line in lines if "tokens_per_second" in line]
    tokens_a_step, seconds = timed[0]["tokens"], []
    for before, line in itertools.pairwise(timed):
        seconds += [tokens_a_step / line["tokens_per_second"]] * ((line["tokens"] - before["tokens"]) // tokens_a_step)
    return *whole(seconds), lines[-1].get("validation_bits_per_byte")


def ours(args, config, books, work):
    """Prepares and calibrates lmtiny; returns (its facts, f(seed) -> (bits per byte, seconds))."""
    from lmtiny.data import loader, shards
    from lmtiny.model import size

    say("ours: calibrating")
    _, step, _ = our_run(args, config, books, work, "ours-calibration", args.calibrate, {"evaluation.rows": 1, "log.every": 5})
    prepared = shards.read(work / "prepared")
    rows = loader.Rows(prepared, "validation", config.model.context_length)
    counted = sum(int(prepared.tokenizer.token_bytes[rows[number][1:]].sum()) for number in range(len(rows)))
    config.tokenizer.vocab_size = prepared.tokenizer.vocab_size
    num_steps = steps_for(args.minutes, step)
    say(f"ours: {step * 1e3:.1f} ms a step, {num_steps} steps")

    def train(seed):
        more = {"seed": seed, "evaluation.rows": len(rows)}
        seconds, _, score = our_run(args, config, books, work, f"ours-seed{seed}", num_steps, more)
        return score, seconds

    return {
        "who": "lmtiny", "settings": " ".join([pathlib.Path(args.config).stem, *args.set]), "vocabulary": prepared.tokenizer.vocab_size,
        "parameters": size.count_parameters(config)["total"], "steps": num_steps,
        "tokens": num_steps * config.train.batch_size * config.model.context_length, "bytes": counted,
    }, train  # fmt: skip


def peer(args, config, texts, work):
    """The same of nanochat: its tokenizer, its base_train, its model scored by score_peer."""
    base = work / "nanochat"
    job = [args.peer_python, str(HERE), "--books", "", "--texts", str(texts)]
    variables = {"NANOCHAT_BASE_DIR": str(base), "WANDB_MODE": "disabled", "PYTHONPATH": args.peer}
    say("peer: its tokenizer")
    run([*job, "--job", "shards", "--folder", str(base / "base_data_climbmix")], work / "peer-shards.log", args.peer, **variables)
    tok_train = [args.peer_python, "-m", "scripts.tok_train", f"--vocab-size={config.tokenizer.vocab_size}"]
    run(tok_train, work / "peer-tokenizer.log", args.peer, **variables)

    def base_train(name, num_steps, seed):
        """Returns (seconds of training, seconds of a step, tokens, what it says of its time itself)."""
        flags = f"--run=dummy --device-type=cpu --window-pattern=L --max-seq-len={config.model.context_length} --eval-every=-1"
        flags += f" --core-metric-every=-1 --sample-every=-1 {args.peer_flags} --num-iterations={num_steps} --model-tag={name}"
        command = [*job, "--job", "train", f"--peer-flags={flags}", "--seed", str(seed)]
        output = run(command, work / f"{name}.log", args.peer, **variables)
        seconds = [float(ms) / 1e3 for ms in re.findall(r"^step \d+/.* dt: ([\d.]+)ms", output, re.MULTILINE)]
        tokens = int(re.search(r"Total number of training tokens: ([\d,]+)", output)[1].replace(",", ""))
        return *whole(seconds[1:]), tokens, re.search(r"Total training time: (\S+)", output)[1]

    say("peer: calibrating")
    _, step, _, _ = base_train("peer-calibration", args.calibrate, PEER_SEED)
    num_steps = steps_for(args.minutes, step)
    say(f"peer: {step * 1e3:.1f} ms a step, {num_steps} steps")
    facts = {"who": "nanochat", "settings": args.peer_flags, "vocabulary": config.tokenizer.vocab_size, "steps": num_steps}

    def train(seed):
        name = f"peer-seed{seed}"
        seconds, _, facts["tokens"], told = base_train(name, num_steps, PEER_SEED + seed)
        say(f"peer, seed {seed}: its loop says {told} (without its first 11 steps)")
        command = [*job, "--job", "score", "--folder", str(base / "base_checkpoints" / name)]
        score = json.loads(run(command, work / f"{name}-score.log", args.peer, **variables).splitlines()[-1])
        facts["parameters"], facts["bytes"] = score["parameters"], score["bytes"]
        return score["nats"] / (math.log(2) * score["bytes"]), seconds

    return facts, train


# ---- the comparison ----


def say(text):
    print(text, flush=True)


def check(args):
    """Ends the program with one line where folder, books, nanochat or its Python are not what is needed; returns the books."""
    folder = pathlib.Path(args.books)
    if not folder.is_dir():
        raise SystemExit(f"--books {args.books}: no such folder")
    books = sorted(folder.glob("*.txt"), key=lambda path: path.name)
    if len(books) <= HELD_OUT:
        raise SystemExit(f"--books {args.books}: {len(books)} .txt books; at least {HELD_OUT + 1} are needed, {HELD_OUT} of them held out")
    if args.minutes <= 0 or args.seeds < 1 or args.calibrate < 10:
        raise SystemExit("--minutes must be above 0, --seeds at least 1, --calibrate at least 10")
    if wrong := [text for text in args.set if "=" not in text]:
        raise SystemExit(f"--set {wrong[0]}: must be KNOB=VALUE")
    if args.only == "ours":
        return books
    if not (pathlib.Path(args.peer) / "scripts" / "base_train.py").is_file():
        raise SystemExit(f"--peer {args.peer or '(not given)'}: no checkout of nanochat; --only ours does without")
    try:
        found = subprocess.run([args.peer_python, "-c", f"import {PEER_NEEDS}"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise SystemExit(f"--peer-python {args.peer_python}: {error.strerror}") from None
    if found.returncode:
        raise SystemExit(f"--peer-python {args.peer_python}: {found.stderr.strip().splitlines()[-1]}")
    return books


def write_texts(books, config, work, document_bytes):
    """Copies the books into work/books and its held_out/; writes the texts of the peer.

    Returns (folder of the books, file of the texts, bytes of the held-out text when cleaned, and as it lies in the files).
    """
    from lmtiny.corpus.documents import clean, sections

    folder, texts = work / "books", {"train": [], "held_out": [], "sections": []}
    (folder / "held_out").mkdir(parents=True)
    num_bytes = 0
    for number, book in enumerate(books):
        held_out = number >= len(books) - HELD_OUT
        shutil.copy(book, folder / "held_out" if held_out else folder)
        text = clean(book.read_bytes().decode(errors="replace"))
        texts["held_out" if held_out else "train"] += sections(text, document_bytes)
        if held_out:
            texts["sections"] += sections(text, config.corpus.section_bytes)
            num_bytes += len(text.encode())
    random.Random(0).shuffle(texts["train"])
    path = work / "texts.json"
    path.write_text(json.dumps(texts))
    return folder, path, num_bytes, sum(book.stat().st_size for book in books[-HELD_OUT:])


def compare(args):
    """Does all of it and prints the table and the record."""
    books = check(args)
    from lmtiny import config as config_lib
    from lmtiny.errors import UserError

    try:
        config = config_lib.load(args.config, dict(text.split("=", 1) for text in args.set))
    except UserError as error:
        raise SystemExit(str(error)) from None
    if args.work:
        os.makedirs(args.work, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix="equal_time-", dir=args.work)).resolve()
    folder, texts, num_bytes, raw_bytes = write_texts(books, config, work, args.document_bytes)
    say(f"held out: {', '.join(book.name for book in books[-HELD_OUT:])}, {num_bytes:,} bytes cleaned ({raw_bytes:,} in the files)")
    say(f"work in {work}")
    sides = {}
    if args.only != "peer":
        sides["ours"] = ours(args, config, folder, work)
    if args.only != "ours":
        sides["peer"] = peer(args, config, texts, work)
    results = {side: [] for side in sides}
    for seed in range(args.seeds):
        for side, (_, train) in sides.items():
            results[side].append(train(seed))
            say(f"{side}, seed {seed}: {results[side][-1][0]:.4f} bits per byte after {results[side][-1][1]:.1f} s of training")
    report(args, {side: facts for side, (facts, _) in sides.items()}, results, num_bytes)


def report(args, facts, results, num_bytes):
    """Prints a row a side, what is wrong with the comparison, and the line of JSON.

    facts: {side: its settings and counts}. results: {side: [(bits per byte, seconds) of each seed]}. num_bytes: of the text.
    """
    median = {side: statistics.median(score for score, _ in runs) for side, runs in results.items()}
    seconds = {side: statistics.median(time for _, time in runs) for side, runs in results.items()}
    line = "{:8}  {:>10}  {:>6}  {:>12}  {:>9}  {:>11}  {:>18}  {:>7}  {}"
    print(line.format("who", "parameters", "steps", "tokens", "seconds", "bytes", "bits per byte", "median", "settings"))
    for side, fact in facts.items():
        scores = " ".join(f"{score:.4f}" for score, _ in results[side])
        counts = [f"{fact[name]:,}" for name in ("parameters", "steps", "tokens", "bytes")]
        counts.insert(3, f"{seconds[side]:.1f}")
        print(line.format(fact["who"], *counts, scores, f"{median[side]:.4f}", fact["settings"]))
    for side, fact in facts.items():
        for seed, (_, time) in enumerate(results[side]):
            if abs(time / (60 * args.minutes) - 1) > 0.05:
                print(f"{side}, seed {seed}: trained for {time:.1f} s, not {60 * args.minutes:.1f} s; the machine was not at rest")
        if abs(fact["bytes"] / num_bytes - 1) > 1e-3:
            raise SystemExit(f"{side}: scored {fact['bytes']:,} bytes, but the held-out text has {num_bytes:,}: not the same text")
    record = {"what": f"{args.minutes:g} minutes of training on CPU, held-out books", "units": "bits per byte", "cores": os.cpu_count()}
    record |= {side: round(value, 4) for side, value in median.items()}
    if len(median) == 2:
        record["ratio"] = round(median["ours"] / median["peer"], 4)
    record |= {"seconds": {side: [round(time, 1) for _, time in runs] for side, runs in results.items()}}
    record |= {"seeds": {side: [round(score, 4) for score, _ in runs] for side, runs in results.items()}}
    record |= {"bytes": {"text": num_bytes, **{side: fact["bytes"] for side, fact in facts.items()}}}
    record |= {name: {side: fact[name] for side, fact in facts.items()} for name in ("parameters", "tokens", "settings")}
    print(json.dumps(record))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", required=True, help="folder of .txt books; the last two by name are held out")
    parser.add_argument("--peer", default="", help="folder of nanochat")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has torch and nanochat's needs (default: this one)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, without compilation")
    parser.add_argument("--config", default=str(HERE.parents[1] / "configs" / "tiny.py"), help="lmtiny's config file")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", help="another knob of lmtiny's config")
    parser.add_argument("--peer-flags", default=PEER_FLAGS, help=f"of nanochat's base_train (default: {PEER_FLAGS})")
    parser.add_argument("--only", choices=("ours", "peer"), help="one side alone")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each side")
    parser.add_argument("--calibrate", type=int, default=30, help="steps of a calibration run")
    parser.add_argument("--document-bytes", type=int, default=4000, help="of nanochat's training documents, at most")
    parser.add_argument("--work", help="a new folder is made in this one, and stays (default: where temporary files go)")
    parser.add_argument("--job", choices=("shards", "train", "score"), help=argparse.SUPPRESS)
    for name in ("--texts", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job == "shards":
        write_shards(args.texts, args.folder)
    elif args.job == "train":
        train_peer(args.peer_flags, args.seed)
    elif args.job == "score":
        score_peer(args.texts, args.folder)
    else:
        args.peer = os.path.abspath(args.peer) if args.peer else ""
        compare(args)


if __name__ == "__main__":
    main()
