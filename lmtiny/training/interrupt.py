"""Being told to stop: SIGINT, SIGTERM or SIGHUP ends the run after the step at hand, on every process at the same."""

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
        handled = [number for number in ctrl_c.SIGNALS if not ctrl_c.ignored(number)]
        if jax.process_count() > 1:
            # jax.distributed hears SIGTERM and makes the processes agree on a step; the others are passed on to it.
            handled.remove(signal.SIGTERM)
        self._before = {number: signal.signal(number, self._hear) for number in handled}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        if not self._signal:
            ctrl_c.tell(b"\nlmtiny: stopping after this step, to save it; Ctrl-C once more leaves at once\n")
        self._signal, ctrl_c.stopping = number, True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def asked(self, step: int) -> bool:
        """Returns whether the run is to stop now."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal != 0
