"""Prepares text for training: reads the corpus, learns a tokenizer, writes shards of packed tokens.

    python -m lmtiny.prepare --config configs/tiny.py
    python -m lmtiny.prepare --config configs/tiny.py --config.corpus.kind=files --config.corpus.path=my_texts/

What is finished is not done again; what was killed goes on where it stopped. `python -m lmtiny.train` does all this by
itself where it is missing.
"""

import argparse
import shlex

from lmtiny import command_line, console
from lmtiny.data import REPORT, prepare, verify


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rebuild", action="store_true", help="prepare anew, replacing what the folder holds")
    parser.add_argument("--verify", action="store_true", help="also compare every byte of the shards with the manifest's hashes")


def main() -> None:
    config, args = command_line.parse(__doc__ or "", flags)
    prepared = prepare(config, rebuild=args.rebuild)
    if args.verify:
        verify(prepared)
    train, validation = (prepared.manifest["splits"][split] for split in ("train", "validation"))
    console.say(
        f"{prepared.folder}: {console.human(train['tokens'], 'tokens')} to train on, {console.human(validation['tokens'], 'tokens')}"
        f" to validate with, vocabulary {prepared.tokenizer.vocab_size:,}" + (", verified" if args.verify else "")
    )
    if (report := prepared.folder / REPORT).exists():
        console.say(f"report: {report}")
    overrides = (f"--config.{name}={shlex.quote(value)}" for name, value in args.overrides.items())
    console.say("next: " + " ".join(["python -m lmtiny.train --config", shlex.quote(args.config), *overrides]))


if __name__ == "__main__":
    console.run_main(main)
