"""Prepares text for training: reads the corpus, learns a tokenizer, writes shards of packed tokens.

    python -m lmtiny.prepare --config configs/tiny.py
    python -m lmtiny.prepare --config configs/tiny.py --config.corpus.kind=files --config.corpus.path=my_texts/
    python -m lmtiny.prepare --config configs/tiny.py --config.tokenizer.path=tokenizer_data/builtin_16384 --compare

What is finished is not done again; what was killed goes on where it stopped. `python -m lmtiny.train` does all this by
itself where it is missing. With --compare or --export and a ready tokenizer, only that is looked at.

With --config.tokenizer.kind=superword, tokens reach across spaces: shorter rows, but a prompt that ends inside a phrase is
encoded otherwise than in running text (docs/tokenizers.md).
"""

from lmtiny import ctrl_c

if __name__ == "__main__":
    ctrl_c.end_at_once()  # before the imports below, which take their time

import argparse
import contextlib
import functools
import os
import pathlib
import shlex
from collections.abc import Iterator

from lmtiny import command_line, console, ownership
from lmtiny.data import REPORT, prepare, ready_tokenizer, refuse_another_tokenizer, verify
from lmtiny.errors import UserError
from lmtiny.files import refuse_url, write_aside
from lmtiny.tokenizer import KINDS, load, refuse_to_export, tokenizer_json, warning_about

COMPARISON = "a comparison of tokenizers"


def flags(parser: argparse.ArgumentParser) -> None:
    what = "prepare anew, replacing what lmtiny wrote into the folder"
    parser.add_argument("--rebuild", action="store_true", help=what)
    parser.add_argument("--verify", action="store_true", help="also compare every byte of the shards with the manifest's hashes")
    what = "count the tokens of sample texts beside other tokenizers; tables and a plot go into FOLDER (default: %(const)s)"
    parser.add_argument("--compare", metavar="FOLDER", type=pathlib.Path, nargs="?", const="compare", help=what)
    parser.add_argument("--compare-with", metavar="NAME", nargs="+",
                        help="tiktoken names, or files as for tokenizer.path (default: those of GPT-2, GPT-4 and GPT-4o)")  # fmt: skip
    parser.add_argument("--ranks", metavar="FOLDER", type=pathlib.Path, help="where NAME.tiktoken lie (default: tiktoken fetches them)")
    parser.add_argument("--samples", metavar="FOLDER", type=pathlib.Path, help="texts to compare on, KIND.txt (default: eight of our own)")
    parser.add_argument("--export", metavar="FILE", type=pathlib.Path, help="write the tokenizer as Hugging Face's tokenizer.json")


@contextlib.contextmanager
def _written_to(flag: str, path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be written: {error.strerror}") from error


def _refuse_to_write(export: pathlib.Path) -> None:
    """Raises UserError where a tokenizer.json cannot be, or anything but one that lmtiny wrote is."""
    if not (folder := export.absolute().parent).is_dir():
        raise UserError(f"--export {export} cannot be written: there is no folder {folder}")
    if export.is_dir():
        raise UserError(f"--export {export} is a folder; name a file, such as {export / 'tokenizer.json'}")
    if os.path.lexists(export) and not _is_an_export(export):
        what_to_do = "name another file, or take it away"
        raise UserError(f"--export {export} is there, and is no tokenizer.json of lmtiny's; {what_to_do}")


def _is_an_export(file: pathlib.Path) -> bool:
    """Returns whether the file is one that `tokenizer_json` gives: no other is read as one of our own kind."""
    if not file.is_file() or file.is_symlink():
        return False
    try:
        return load(file).kind in KINDS
    except UserError:
        return False


def _is_a_comparison(folder: pathlib.Path) -> bool:
    """Returns whether the folder holds what an lmtiny that left no marks wrote there, and nothing else."""
    from lmtiny.tokenizer import compare

    text = folder / "compare.txt"
    own = {f"compare.{suffix}" for suffix in ("txt", "md", "png")}
    return (
        {path.name for path in folder.iterdir()} <= own
        and text.is_file()
        and compare.EXPLAINED.encode() in text.read_bytes()
    )


def main() -> None:
    config, args = command_line.parse(__doc__ or "", flags)
    only_compared = {"--compare-with": args.compare_with, "--ranks": args.ranks, "--samples": args.samples}
    if not args.compare and (idle := [flag for flag, value in only_compared.items() if value]):
        raise UserError(f"{', '.join(idle)}: only with --compare")
    for flag in ("--export", "--compare", "--ranks", "--samples", "--compare-with"):
        value = getattr(args, flag[2:].replace("-", "_"))
        for path in value if isinstance(value, list) else [value]:
            refuse_url(path or "", flag)
    refuse_another_tokenizer(config, args.overrides)
    tokenizer = ready_tokenizer(config) if args.compare or args.export else None
    # Before anything is prepared, which may take an hour.
    if args.export:
        refuse_to_export(tokenizer.kind if tokenizer else config.tokenizer.kind)
        with _written_to("--export", args.export):
            _refuse_to_write(args.export)
    if args.compare:
        from lmtiny.tokenizer import compare

        with _written_to("--compare", args.compare):
            is_ours = functools.partial(_is_a_comparison, args.compare)
            ownership.refuse_strangers(args.compare, COMPARISON, "--compare", is_ours)
        peers = compare.peers(args.compare_with or list(compare.PEERS), args.ranks)
        texts = compare.samples(args.samples or compare.SAMPLES)
    if tokenizer is None or args.rebuild or args.verify:
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
        tokenizer = prepared.tokenizer
    if warning := warning_about(tokenizer):
        console.say(f"note: {warning}")
    if args.export:
        with _written_to("--export", args.export):
            write_aside(args.export, tokenizer_json(tokenizer))
        console.say(f"{args.export}: {tokenizer} as tokenizer.json")
    if args.compare:
        found = compare.compare(tokenizer, peers, texts)
        with _written_to("--compare", args.compare):
            ownership.claim(args.compare, COMPARISON, "--compare", is_ours)
        title = f"{tokenizer.kind}, {tokenizer.vocab_size:,} tokens, {tokenizer.hash[:12]}"
        console.say(f"{compare.as_text(found)}\n\n" + " ".join(map(str, compare.save(found, args.compare, title))))
    overrides = (f"--config.{name}={shlex.quote(value)}" for name, value in args.overrides.items())
    own = [] if args.workdir == pathlib.Path("runs") / config.name else ["--workdir", shlex.quote(str(args.workdir))]
    console.say("next: " + " ".join(["python -m lmtiny.train --config", shlex.quote(args.config), *overrides, *own]))


if __name__ == "__main__":
    console.run_main(main, "the same command goes on from what is finished")
