"""The same function for many jobs: in this process, or in several when there is enough to do."""

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from lmtiny import console, ctrl_c
from lmtiny.errors import UserError

PAYS_FROM_BYTES = 16 << 20  # below, starting processes takes longer than they save

UNGUARDED = "a script that calls prepare() lacks `if __name__ == '__main__':`"

Run = Callable[[str, Callable[..., None], Sequence[tuple[Any, ...]], Sequence[int]], None]


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runs_the_script_again() -> bool:
    """Returns whether this is a started process that still imports the script of the one that started it."""
    # Such a process has its name from the first, and its parent only when its own work begins.
    return multiprocessing.current_process().name != "MainProcess" and multiprocessing.parent_process() is None


@contextmanager
def workers(num_processes: int, num_jobs: int, num_bytes: int) -> Iterator[Run]:
    """Yields `run(what, function, jobs, sizes)`: calls function(*job) for each job, showing progress in bytes.

    `num_processes` 0 means one a core if the `num_bytes` of the work pay for it. What a job makes, it leaves on disk:
    the result cannot depend on who did it.

    Raises:
      UserError: that of a job, or that a process died.
    """
    count = min(num_processes or (cores() if num_bytes >= PAYS_FROM_BYTES else 1), num_jobs)
    if count <= 1:
        with _sigterm_raises():
            yield _here
        return
    # Spawned, not forked: the caller may have threads (JAX has). They end with this process, even when it is killed.
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(count, context, _start_worker)

    def run(what: str, function: Callable[..., None], jobs: Sequence[tuple[Any, ...]], sizes: Sequence[int]) -> None:
        if not jobs:
            return
        with console.progress(what, sum(sizes), "bytes") as shown:
            done = 0
            # Largest first: a large job that starts last keeps all others waiting.
            order = sorted(range(len(jobs)), key=lambda job: -sizes[job])
            with _held_back():  # the first of them starts the processes
                futures = {executor.submit(function, *jobs[job]): sizes[job] for job in order}
            for future in concurrent.futures.as_completed(futures):
                future.result()
                done += futures[future]
                shown.update(done)

    with _sigterm_raises():
        try:
            yield run
        except BrokenProcessPool:
            raise UserError(
                f"a process that prepares data died: for want of memory, or because {UNGUARDED};"
                " --config.data.num_processes=1 starts none; what is finished is kept"
            ) from None
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _here(what: str, function: Callable[..., None], jobs: Sequence[tuple[Any, ...]], sizes: Sequence[int]) -> None:
    if not jobs:
        return
    with console.progress(what, sum(sizes), "bytes") as shown:
        done = 0
        for job, size in zip(jobs, sizes, strict=True):
            function(*job)
            done += size
            shown.update(done)


@contextmanager
def _held_back() -> Iterator[None]:
    """Lets Ctrl-C and a closed terminal wait until the end of the block.

    Processes that start in it never hear of them, not even while they import.  SIGTERM they hear: so the pool ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(ctrl_c.SIGNALS) - {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Lets SIGTERM raise SystemExit, with a line, in a script that prepares data: an entry point hears it already (`ctrl_c`).

    A sudden death would leave the locks of the processes behind, and a warning of that.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    ctrl_c.tell(b"lmtiny: terminated; the same command goes on from what is finished\n")
    sys.exit(128 + number)


def _start_worker() -> None:
    for number in set(ctrl_c.SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)  # the parent's to handle
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
