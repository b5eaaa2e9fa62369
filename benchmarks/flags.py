"""What the command lines of the benchmarks share: `--set KNOB=VALUE`, and one line for a package or a checkout that is not there."""

import argparse
import contextlib
import pathlib


def add_set(parser, meaning="another knob of lmtiny's config"):
    """Adds --set, as often as wanted; `overrides` reads it."""
    parser.add_argument("--set", action="append", default=[], type=_knob, metavar="KNOB=VALUE", help=meaning)


def _knob(text):
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not KNOB=VALUE, as in --set train.batch_size=8")
    return text


def overrides(args):
    """Returns {knob: text} of --set; the last of two of a name counts."""
    return dict(text.split("=", 1) for text in args.set)


@contextlib.contextmanager
def needed(install):
    """Around imports: a package that is not there ends the program with one line, which says how to `install` it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: {install}") from None


def refuse_unless_there(folder, *names):
    """Ends the program with the first of the files and folders `names` that --data has not."""
    if missing := [name for name in names if not (folder / name).exists()]:
        raise SystemExit(f"--data {folder} has no {missing[0]}")


def refuse_unless_checkout(folder, file, peer):
    """Ends the program unless `folder` (nothing: no peer is wanted) has the peer's `file` in it."""
    if folder and not (pathlib.Path(folder) / file).is_file():
        raise SystemExit(f"--peer {folder}: no checkout of {peer} (there is no {file})")
