"""What a person sees: lines, progress, tables, readable numbers, and how a program ends.

On a terminal, progress is a bar; on a pipe or in CI it is a plain line every few seconds, without any control code.
Nothing here is slow to import: rich is loaded only when a bar is drawn.
"""

import errno
import io
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from lmtiny import ctrl_c
from lmtiny.errors import UserError, cut

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

LINE_EVERY_S = 5.0  # between plain progress lines
DRAW_EVERY_S = 0.1  # between redraws of a bar
LONGEST_LINE = 3000  # letters of an error: where a value that was given is longer than it should be
RATE_OVER_S = 20.0  # the rate shown is that of about the last so many seconds

# Text may come from a model or a corpus: an escape sequence in it must not reach the terminal.
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

_bar: "RichProgress | None" = None  # the bar on the screen, if any
_silent = False


def silence(silent: bool = True) -> None:
    """Lets this process print no lines and no progress: for every process of a run but the first. Warnings stay."""
    global _silent
    _silent = silent


def on_terminal() -> bool:
    """Returns whether a person watches stdout: a terminal that can move its cursor, and not a CI job."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def say(text: str = "") -> None:
    """Prints a line (or several) to stdout at once, above the progress bar if one is shown."""
    if _silent:
        return
    text = text.translate(_CONTROLS)
    if _bar is not None:
        _bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        print(text, flush=True)


def stream(text: str) -> None:
    """Prints `text` as it is, without ending the line: a model's words while they are made."""
    print(text.translate(_CONTROLS), end="", flush=True)


def warn(text: str) -> None:
    """Prints `lmtiny: warning: text` to stderr, above the progress bar if one is shown on the same terminal."""
    line = f"lmtiny: warning: {text}".translate(_CONTROLS)
    if _bar is not None and sys.stderr.isatty():
        _bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        print(line, file=sys.stderr, flush=True)


def human(number: float, unit: str = "") -> str:
    """Returns three significant digits with an SI prefix: "12.3 M", "12.3 MB", "12.3 M tokens".

    A unit written in capitals (B, FLOP/s) joins its prefix; a word stands apart.
    """
    prefix, shown = "", f"{number}"
    if (isinstance(number, float) and math.isfinite(number)) or abs(number) >= 1000:
        shown = f"{number:.3g}"
    if math.isfinite(number) and abs(number) >= 999.5:
        for exponent, letter in ((3, "k"), (6, "M"), (9, "G"), (12, "T"), (15, "P"), (18, "E")):
            if abs(number) < 999.5 * 10**exponent or letter == "E":
                prefix, shown = letter, f"{number / 10**exponent:.3g}"
                break
    joined = prefix + unit if unit[:1].isupper() else f"{prefix} {unit}".strip()
    return f"{shown} {joined}".strip()


def duration(seconds: float) -> str:
    """Returns a span of time: "20 µs", "350 ms", "4.2 s", "3 min 05 s", "2 h 05 min", "3 d 04 h"."""
    if not math.isfinite(seconds):
        return "unknown"
    if 0 < seconds < 0.00095:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def counted(number: int, what: str, several: str = "") -> str:
    """Returns "1 unit", "2,048 units", or `several` in place of "units"."""
    return f"{number:,} {what if number == 1 else several or f'{what}s'}"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns an aligned table as text (no newline at its end); columns of numbers stand to the right."""
    cells = [[str(cell).translate(_CONTROLS).replace("\n", " ") for cell in row] for row in rows]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"a row of {len(row)} cells under {len(headers)} headers: {row}")
    lines = [list(headers), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rights = [bool(cells) and all(not row[i] or row[i][0] in "0123456789-+." for row in cells) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, rights, strict=True)
        ).rstrip()

    return "\n".join([line(headers), "  ".join("-" * width for width in widths), *map(line, cells)])


class Progress:
    """How far a task is; made by `progress`."""

    def __init__(self, what: str, total: float | None, unit: str, start: float) -> None:
        self.what, self.total, self.unit, self.start, self.done = what, total, unit, start, start
        self.began = self.shown_at = time.monotonic()
        self._marks = [(self.began, start)]  # (time, done) of the last RATE_OVER_S or so, for the rate
        self._figures: dict[str, str | float] = {}
        self._task = None if _bar is None else _bar.add_task(what, total=total, status="")

    def update(self, done: float, **figures: str | float) -> None:
        """Tells that `done` (absolute, in `unit`) is reached; `figures` are shown after the rate."""
        now = time.monotonic()
        self.done, self._figures = done, {**self._figures, **figures}
        if now - self._marks[-1][0] >= RATE_OVER_S / 20:
            self._marks = [(at, mark) for at, mark in self._marks if now - at <= RATE_OVER_S][-19:] or self._marks[-1:]
            self._marks.append((now, done))
        if now - self.shown_at >= (LINE_EVERY_S if self._task is None else DRAW_EVERY_S):
            self.shown_at = now
            self._show(now)

    def _show(self, now: float) -> None:
        if self._task is not None and _bar is not None:
            _bar.update(self._task, completed=self.done, status=self._status(now))
            _bar.refresh()
        else:
            say(f"{self.what}: {self._status(now)}")

    def _count(self) -> str:
        """Returns "1,200/5,000 steps" or "1.2 M/50 M bytes"."""
        exact = max(self.total or 0, self.done) < 100_000
        numbers = [f"{number:,.0f}" if exact else human(float(number)) for number in (self.done, self.total) if number is not None]
        return f"{'/'.join(numbers)} {self.unit}"

    def _status(self, now: float) -> str:
        began, start = self._marks[0]
        rate = (self.done - start) / (now - began) if now > began else 0.0
        parts = [self._count()]
        if rate > 0:
            parts.append(human(rate, f"{self.unit}/s"))
        if self.total is not None and rate > 0:
            parts.append(f"{duration(max(0.0, self.total - self.done) / rate)} left")
        return ", ".join(parts + self._shown_figures())

    def _shown_figures(self) -> list[str]:
        return [
            f"{name.replace('_', ' ')} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in self._figures.items()
        ]

    def finish(self, completed: bool) -> None:
        """Prints the last line: what was done, in what time, at what rate; `completed` is False after an exception."""
        spent = time.monotonic() - self.began
        rate = (self.done - self.start) / spent if spent > 0 else 0.0
        if self._task is not None and _bar is not None:
            _bar.remove_task(self._task)  # the line below says the same, and stays
            _bar.refresh()
        parts = [f"{self._count()} in {duration(spent)}", human(rate, f"{self.unit}/s"), *self._shown_figures()]
        say(f"{self.what}: {'' if completed else 'stopped at '}{', '.join(parts)}")


@contextmanager
def progress(what: str, total: float | None, unit: str, start: float = 0) -> Iterator[Progress]:
    """Shows the progress of `what` towards `total` (None: unknown) from `start`, in `unit` (a word in the plural).

    Yields:
      The object whose `update(done, **figures)` is to be called often; it draws no more often than is useful, and
      from the caller's thread only, so that processes may be forked meanwhile.
    """
    global _bar
    draws = _bar is None and on_terminal() and not _silent
    if draws:
        _bar = _new_bar()
        _bar.start()
    shown = Progress(what, total, unit, start)
    completed = False
    try:
        if draws:
            shown._show(time.monotonic())
        yield shown
        completed = True
    finally:
        try:
            shown.finish(completed)
        finally:
            if draws and _bar is not None:
                _bar.stop()
                _bar = None


def _new_bar() -> "RichProgress":
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    return RichProgress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=max(6, min(24, shutil.get_terminal_size().columns // 8))),
        TextColumn("{task.fields[status]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        auto_refresh=False,
        transient=True,
        expand=True,
    )


class _Output(io.FileIO):
    """stdout or stderr: what is written when nobody can read it goes nowhere, where the program is to go on.

    So with a terminal that is gone, its window closed or its connection lost; and with a pipe in a program that
    was told to stop, and has still to save: who read it (`| tee`) was told as well.
    """

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO and not (error.errno == errno.EPIPE and ctrl_c.stopping):
                raise
            return len(data)


def _let_readers_go() -> None:
    for name in ("stdout", "stderr"):
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            binary = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
            at_once = stream.line_buffering or stream.write_through
            # A sample in another script must not end a run on an ASCII terminal either.
            setattr(sys, name, io.TextIOWrapper(binary, stream.encoding, "replace", line_buffering=at_once))


def run_main(main: Callable[[], int | None], to_go_on: str = "") -> NoReturn:
    """Runs an entry point and exits with what it returns (None: 0).

    UserError becomes one line on stderr and exit 1; Ctrl-C, SIGTERM and SIGHUP a line, which ends with how
    `to_go_on`, and exit 130; a reader that went away (`| head`) is no error to talk about, exit 1, and a terminal
    that did none at all; memory that jax did not get is a line, exit 1; any other exception keeps its traceback,
    exit 1.
    """
    ctrl_c.raise_it()
    _let_readers_go()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # nor must a typed byte that is no UTF-8 end a chat
    code: int | str | None
    try:
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code
        sys.stdout.flush()
    except UserError as error:
        code = _ended(f"lmtiny: error: {cut(' '.join(str(error).split()), LONGEST_LINE)}", 1)
    except KeyboardInterrupt:
        _interrupted(to_go_on)
    except BrokenPipeError:
        # Python flushes stdout once more at exit and would complain: let it flush into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if ctrl_c.heard:  # an import that it broke off, say
            _interrupted(to_go_on)
        code = _ended(_out_of_memory(error) or traceback.format_exc().rstrip(), 1)
    sys.exit(code)


def _out_of_memory(error: Exception) -> str:
    """Returns the line for an error of jax's that says so, else nothing."""
    first = str(error).partition("\n")[0]
    if not first.startswith("RESOURCE_EXHAUSTED"):
        return ""
    return (
        f"lmtiny: error: out of memory ({first.removeprefix('RESOURCE_EXHAUSTED').strip(': .')}); python -m lmtiny.plan shows "
        "what takes it; training takes less with model.remat=block or a higher train.accumulation, validation with train.loss_chunk or a "
        "shorter evaluation.context_length"
    )


def _interrupted(to_go_on: str) -> NoReturn:
    _ended(f"lmtiny: interrupted{to_go_on and f'; {to_go_on}'}", ctrl_c.EXIT)
    sys.stdout.flush()
    os._exit(ctrl_c.EXIT)  # at once: libraries whose threads are at work have been seen to crash in an orderly exit


def _ended(line: str, code: int) -> int:
    print(line.translate(_CONTROLS), file=sys.stderr, flush=True)
    return code
