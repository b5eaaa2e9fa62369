"""Being told to stop from an entry point's first line on: a line and exit 130, no traceback through an import.

Ctrl-C (SIGINT), SIGTERM and a terminal that was closed (SIGHUP) are answered alike.  Entry points call `end_at_once`
before their other imports, so this file has next to none itself.
"""

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from types import FrameType

EXIT = 130  # as a shell says it of Ctrl-C: 128 + SIGINT
# Windows has no SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

heard = False  # KeyboardInterrupt was raised; compiled code may lose it, or raise something else in its place
stopping = False  # a signal was heard, and what is under way comes to its end
_listening = False
_at_once = False  # whether the next signal ends the program, or raises


def end_at_once() -> None:
    """Ends the program at the next signal: for while it imports, with nothing begun that has to be tidied up."""
    global _at_once
    _at_once = True
    _listen()


def raise_it() -> None:
    """Raises KeyboardInterrupt at the next signal, and marks it as `heard`."""
    global _at_once
    _at_once = False
    _listen()


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Ends the program at a signal within: compiled code may crash where an exception breaks its import off."""
    end_at_once()
    yield
    raise_it()


def ignored(number: int) -> bool:
    """Returns whether who started the program ignores this signal for it (a script's background, nohup); never SIGTERM."""
    return number != signal.SIGTERM and signal.getsignal(number) is signal.SIG_IGN


def tell(line: bytes) -> None:
    """Writes a line to stderr from a handler, which may have interrupted `console` in the middle of one.

    The terminal may be gone.
    """
    with contextlib.suppress(OSError):
        os.write(2, line)


def _listen() -> None:
    # Once: where a run has several processes, jax.distributed takes SIGTERM over later, and keeps it.
    global _listening
    if _listening:
        return
    _listening = True
    for number in SIGNALS:
        if not ignored(number):
            signal.signal(number, _hear)


def _hear(number: int, frame: FrameType | None) -> None:
    global heard, stopping
    if _at_once:
        tell(b"lmtiny: interrupted\n")
        os._exit(EXIT)
    heard = stopping = True
    callbacks = [getattr(callback, "__code__", None) for callback in gc.callbacks]
    while frame is not None and frame.f_code not in callbacks:
        frame = frame.f_back
    if frame is not None:
        import threading

        # Raised here (jax has such a callback), it would be printed and forgotten: once more, in a moment.
        threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, number)).start()
        return
    raise KeyboardInterrupt
