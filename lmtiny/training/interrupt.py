"""Being told to stop: SIGINT and SIGTERM end the run after the step at hand, on every process at the same step."""

import os
import signal
from types import FrameType, TracebackType

import jax

from lmtiny import ctrl_c


class Interruption:
    """`with Interruption() as interruption:` and ask `interruption.asked(step)` once a step, on all processes.

    The first signal lets the step and the save finish; a second SIGINT stops at once (KeyboardInterrupt).
    """

    def __enter__(self) -> "Interruption":
        self._signal = 0
        if ctrl_c.heard:
            raise KeyboardInterrupt
        handled: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
        if jax.process_count() > 1:
            # jax.distributed hears SIGTERM itself and makes the processes agree on a step; SIGINT is passed on to it.
            handled = (signal.SIGINT,)
        self._before = {number: signal.signal(number, self._hear) for number in handled}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        if not self._signal:
            # Not through console: this may interrupt it in the middle of a line.
            os.write(2, b"\nlmtiny: stopping after this step, to save it; Ctrl-C once more leaves at once\n")
        self._signal = number
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def asked(self, step: int) -> bool:
        """Returns whether the run is to stop now."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal != 0
