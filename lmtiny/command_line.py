"""The command line that every entry point shares: `--config FILE`, `--config.X.Y=VALUE`, `--workdir`, its own flags.

A flag that does not exist is refused in one line that names its neighbour; so is one that is given twice, a name that
is empty or that no file can have, and a number outside its range; of a knob that is given twice the last value counts. A
flag of the type str takes any text. `--help` ends with all knobs, taken from `lmtiny.knobs`, and answers at once: nothing
here imports jax.
"""

import argparse
import functools
import math
import pathlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import ml_collections

from lmtiny import config as config_module
from lmtiny import knobs as knobs_lib
from lmtiny import values
from lmtiny.errors import UserError, cut, shown

Flags = Callable[[argparse.ArgumentParser], None]

# What is looked for as a flag, and is said elsewhere: lmtiny.plan has --mesh, where the same command is tried with many.
_SAID_ELSEWHERE = {"--mesh": "; the axes of the mesh are knobs, as in --config.parallel.fsdp=4 --config.parallel.tensor=2"}


def parse(doc: str, flags: Flags | None = None, argv: Sequence[str] | None = None) -> tuple[ml_collections.ConfigDict, argparse.Namespace]:
    """Returns (checked config, flags) of a command line; prints help and exits where that is asked for.

    `doc` is the entry point's docstring, with an example on top; `flags` adds its own flags to the parser. Among the
    flags: `workdir`, a pathlib.Path (by default runs/<config name>); `overrides`, {dotted knob: text}, what the
    command line changed. An entry point with a flag `--resume` may be started with it in place of `--config`; the
    config is then that of the defaults, to be replaced by the checkpoint's.

    Raises:
      UserError: an unknown flag, a missing or refused value, a config that `config.load` refuses.
    """
    parser = _new_parser(flags)
    parser.add_argument("--config", metavar="FILE", help="a config file, configs/X.py")
    parser.add_argument("--workdir", metavar="RUN", type=pathlib.Path, help="the run's folder (default: runs/<config name>)")
    rest, overrides = _split(sys.argv[1:] if argv is None else argv)
    args = _parsed(parser, rest, doc, with_knobs=True)
    args.overrides = overrides
    if not args.config and getattr(args, "resume", None):
        return config_module.defaults(), args  # the checkpoint holds the config: the caller reads it there
    if args.config and getattr(args, "resume", None):
        raise UserError("--resume takes the config from the checkpoint: leave --config out")
    if not args.config:
        raise UserError(f"--config is missing: name a config file{_configs_there()}")
    config = config_module.load(args.config, overrides)
    args.workdir = args.workdir or pathlib.Path("runs") / config.name
    return config, args


def parse_plain(doc: str, flags: Flags | None = None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the flags of an entry point that reads no config file; raises UserError as `parse` does."""
    return _parsed(_new_parser(flags), list(sys.argv[1:] if argv is None else argv), doc, with_knobs=False)


def number(kind: type, check: knobs_lib.Check) -> Callable[[str], Any]:
    """Returns the type of a flag that is a number, an int or a float, which `check`, as of a knob, takes."""

    def read(text: str) -> int | float:
        try:
            found = values.number(text, kind)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a {'whole ' * (kind is int)}number") from None
        if problem := check(found):
            raise argparse.ArgumentTypeError(f"{shown(found)} {problem}")
        return found

    return read


def _name(kind: type, text: str) -> Any:
    """Returns the value of a flag that names something, which may be a file."""
    if problem := knobs_lib.text(text) if text else "is empty":
        raise argparse.ArgumentTypeError(f"{shown(text)} {problem}")
    return kind(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(cut(message, 400))


def _new_parser(flags: Flags | None) -> _Parser:
    width = _width()
    parser = _Parser(
        usage=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=width),
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this text")
    if flags is not None:
        flags(parser)
    return parser


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Returns (arguments for argparse, {dotted knob: text}); the last of two overrides counts."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    knob_flags = [f"--config.{name}" for name, _ in knobs_lib.knobs()]
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        flag, equals, value = argument.partition("=")
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise UserError(f"{cut(flag)} needs a value, as in {cut(flag)}=VALUE")
            value = waiting.pop(0)
        if flag not in knob_flags:
            raise UserError(f"there is no flag {cut(flag)}{values.nearest(flag, knob_flags)}")
        overrides[flag.removeprefix("--config.")] = value
    return rest, overrides


def _parsed(parser: _Parser, argv: list[str], doc: str, with_knobs: bool) -> argparse.Namespace:
    if "-h" in argv or "--help" in argv:
        print(help_text(parser, doc, with_knobs))
        sys.exit(0)
    known = list(parser._option_string_actions)
    names = known + [f"--config.{name}" for name, _ in knobs_lib.knobs()] * with_knobs
    # Unknown flags are looked for first: argparse would rather complain that the flag so mistyped is missing.
    seen: set[str] = set()
    for argument in argv:
        if argument == "--":
            break
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise UserError(f"there is no flag {cut(name)}{_SAID_ELSEWHERE.get(name) or values.nearest(name, names)}")
        if name in known and name in seen:
            raise UserError(f"{name} is given twice: leave one out")
        seen.add(name)
    for action in parser._actions:
        if action.nargs != 0 and action.type in (None, pathlib.Path):
            action.type = functools.partial(_name, action.type or str)
    args, extra = parser.parse_known_args(argv)
    if extra:
        meant = _meant(extra[0]) if with_knobs else ""
        raise UserError(f"unexpected argument {shown(extra[0])}{meant or '; --help shows what is understood'}")
    del args.help
    return args


def _meant(argument: str) -> str:
    """Returns what to type where a config file stands without its flag, else nothing."""
    named = {file.stem: str(file) for file in config_module.files_there()}
    file = argument if argument.endswith(".py") else named.get(argument)
    return f"; did you mean --config {cut(file)}?" if file else ""


def _configs_there() -> str:
    if not (found := config_module.files_there()):
        return ", as in --config configs/X.py"
    first = next((file for file in found if file.stem == "tiny"), found[0])
    return f", as in --config {first}; there are: {', '.join(map(str, found))}"


def help_text(parser: argparse.ArgumentParser, doc: str, with_knobs: bool) -> str:
    """Returns `doc`, the flags of `parser` and, if asked for, all knobs, wrapped to the terminal's width."""
    width = _width()
    parts = [_wrapped_doc(doc, width), parser.format_help().strip().replace("options:", "Flags:", 1)]
    if with_knobs:
        parts.append(_knob_text(width))
    return "\n\n".join(parts)


def _width() -> int:
    return max(60, min(140, shutil.get_terminal_size((100, 24)).columns - 1))


def _wrapped_doc(doc: str, width: int) -> str:
    """Returns the docstring; paragraphs of prose are filled to `width`, indented lines and lists stay as they are."""
    paragraphs = doc.strip().split("\n\n")
    return "\n\n".join(
        paragraph if any(line[:1] in " -|" for line in paragraph.splitlines()) else textwrap.fill(" ".join(paragraph.split()), width)
        for paragraph in paragraphs
    )


def _knob_text(width: int) -> str:
    lines = [textwrap.fill("Knobs, set in the config file or as --config.NAME=VALUE; with type, default and unit:", width)]
    for section, members in knobs_lib.KNOBS.items():
        rows: list[tuple[str, knobs_lib.Knob]] = []
        for knob in members:
            rows += [(f"{section}.{knob.name}".lstrip("."), knob), *((f"  {key.name}", key) for key in knob.keys)]
        names, knobs = [name for name, _ in rows], [knob for _, knob in rows]
        kinds = [f"{knob.type.__name__} {_shown(knob.default)} {knob.unit}".rstrip() for knob in knobs]
        left, middle = max(map(len, names)) + 2, min(28, max(map(len, kinds))) + 2
        lines += ["", f"{section or 'of the run'}:"]
        for name, kind, knob in zip(names, kinds, knobs, strict=True):
            allowed = _allowed(knob)
            meaning = knob.meaning + (f" ({allowed})" if allowed else "")
            head = f"  {name:<{left}}{kind:<{middle}}"
            if width - 2 - left - middle >= 40:
                indent, first = " " * (2 + left + middle), head if len(kind) + 2 <= middle else head + "  "
            else:  # a narrow terminal: the meaning goes below
                lines.append(head.rstrip())
                indent = first = " " * 6
            lines.append(textwrap.fill(meaning, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False))
    return "\n".join(lines)


def _shown(default: object) -> str:
    if default is None:
        return "-"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return "[" + ", ".join(f'"{item}"' for item in default) + "]"
    return '""' if default == "" else str(default)


def _allowed(knob: knobs_lib.Knob) -> str:
    """Returns what the knob's check allows, in its own words: those with which it refuses an impossible value."""
    problem = knob.check("" if knob.type is str else -math.inf) if knob.type in (str, int, float) else ""
    return problem.removeprefix("must ").removeprefix("be ").removeprefix("lie ")
