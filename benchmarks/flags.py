"""What the command lines of the benchmarks share: the types of their flags, `--set KNOB=VALUE`, one line for what is not there."""

import argparse
import contextlib
import os
import pathlib


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves the docstring as it is, and ends what is said of a flag with its default."""

    def _get_help_string(self, action):
        told, default = action.help or "", action.default
        shown = isinstance(default, (int, float, str, list)) and not isinstance(default, bool) and default not in ("", [])
        if shown and "default" not in told and not str(default).startswith(os.sep) and default != argparse.SUPPRESS:
            told += " (default: %(default)s)"
        return told


def parser(doc):
    """Returns the parser of a benchmark, whose docstring is `doc`."""
    return argparse.ArgumentParser(description=doc, formatter_class=_Help)


def at_least(least):
    """Returns the type of a flag that takes whole numbers from `least` on."""

    def number(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return number


def above_zero(text):
    """The type of a flag that takes a number above zero."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def some_of(*known, separator=","):
    """Returns the type of a flag that takes some of the names `known`, as a list; another name is refused with all of them."""

    def names(text):
        found = text.split(separator)
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {f'{separator} '.join(known)}")
        return found

    return names


def new_file(text):
    """The type of a flag that names a file to write: its folder is there, and it is no folder itself."""
    path = pathlib.Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} {'is a folder' if path.is_dir() else 'is in no folder that is there'}")
    return path


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
