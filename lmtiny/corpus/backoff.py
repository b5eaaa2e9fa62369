"""How long to wait for a server that refuses or drops a request, and when to give up."""

import dataclasses
import email.utils
import random
import time
from collections.abc import Callable

from lmtiny import console
from lmtiny.errors import UserError


class Interrupted(Exception):
    """A request failed in a way that may pass; `retry_after` is the server's Retry-After header, "" for none."""

    def __init__(self, problem: str, retry_after: str = "") -> None:
        super().__init__(problem)
        self.retry_after = retry_after


@dataclasses.dataclass
class Backoff:
    """Exponential backoff with jitter: 1, 2, 4, ... s, or as long as the server asks; given up after `tries` in a row.

    `sleep`, `now` (s since 1970) and `jitter` (0 to 1) are there to be replaced in tests.
    """

    tries: int = 8
    longest_s: float = 60.0  # between two tries, unless the server asks for more
    longest_asked_s: float = 900.0  # the Hub's rates are counted over 5 minutes
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.time
    jitter: Callable[[], float] = random.random
    failed: int = 0  # in a row

    def worked(self) -> None:
        """Tells that there was progress: the count of failures starts anew."""
        self.failed = 0

    def wait(self, what: str, interrupted: Interrupted) -> None:
        """Waits before `what` is tried again.

        Raises:
          UserError: too many failures in a row, or the server asks for more patience than `longest_asked_s`.
        """
        self.failed += 1
        again = "what is downloaded is kept, and the same command goes on from there"
        if self.failed >= self.tries:
            raise UserError(f"{what}: {interrupted}; given up after {self.failed} tries; {again}")
        asked = self._asked(interrupted.retry_after)
        if asked > self.longest_asked_s:
            raise UserError(f"{what}: {interrupted}; the server asks to come back in {console.duration(asked)}; {again}")
        # Jitter, so that the hosts of a pod that were refused together do not come back together.
        seconds = asked + self.jitter() if asked else min(self.longest_s, 2.0 ** (self.failed - 1)) * (0.5 + self.jitter() / 2)
        console.warn(f"{what}: {interrupted}; trying again in {console.duration(seconds)}")
        self.sleep(seconds)

    def _asked(self, retry_after: str) -> float:
        """Returns the seconds of a Retry-After header, which holds a number or a date (RFC 9110, 10.2.3); 0 for none."""
        if retry_after.strip().isdecimal():
            return float(retry_after)
        try:
            return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - self.now())
        except ValueError:
            return 0.0
