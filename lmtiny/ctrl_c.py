"""Ctrl-C from an entry point's first line on: a line and exit 130, not a traceback through whatever is being imported.

Entry points call `end_at_once` before their other imports, so this file has next to none itself.
"""

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

EXIT = 130  # as a shell says it: 128 + SIGINT

heard = False  # KeyboardInterrupt was raised; compiled code may lose it, or raise something else in its place
ending = 0  # the exit code of a SystemExit that another signal raised, and told: compiled code may do the same to it


def end_at_once() -> None:
    """Ends the program at the next Ctrl-C: for while it imports, with nothing begun that would have to be tidied up."""
    _answer(_end)


def raise_it() -> None:
    """Raises KeyboardInterrupt at the next Ctrl-C, and marks it as `heard`."""
    _answer(_raise)


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Ends the program at a Ctrl-C within: for imports of compiled code, which may crash where an exception breaks them off."""
    end_at_once()
    yield
    raise_it()


def _answer(handler: Callable[[int, FrameType | None], Any]) -> None:
    # Not where it is ignored, as in a script's background.
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _end, _raise):
        signal.signal(signal.SIGINT, handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"lmtiny: interrupted\n")
    os._exit(EXIT)


def _raise(number: int, frame: FrameType | None) -> None:
    global heard
    heard = True
    callbacks = [getattr(callback, "__code__", None) for callback in gc.callbacks]
    while frame is not None and frame.f_code not in callbacks:
        frame = frame.f_back
    if frame is not None:
        import threading

        # Raised here (jax has such a callback), it would be printed and forgotten: once more, in a moment.
        threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, number)).start()
        return
    raise KeyboardInterrupt
