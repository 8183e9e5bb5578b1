"""How many requests wait, how fast they are served, and whether one more may wait."""

import math
import time

from clara_jax.config import Serve

_SHARE = 0.5  # of the deadline that a request may have to wait, as it is accepted
_NEWEST = 0.1  # weight of the newest interval in their mean


class Full(Exception):
    """The queue is full, or its end would come too late.

    Attributes:
        after: seconds after which to come again.
    """

    def __init__(self, message: str, after: float):
        super().__init__(message)
        self.after = max(1, math.ceil(after))


class Queue:
    """Numbers of a queue, not its requests; whoever uses it holds a lock.

    Attributes:
        waiting: requests that wait.
        interval: seconds between those that are served while others wait, of late.

    Args:
        options: `queue` and `deadline` count.
    """

    def __init__(self, options: Serve):
        self.waiting, self.interval = 0, 0.0
        self._options = options
        self._moved: float | None = None  # when the last was served, if others waited

    def enter(self) -> None:
        """One more waits.

        Raises:
            Full: too many do, or for too long.
        """
        wait = self.waiting * self.interval
        late = self.waiting and wait > _SHARE * self._options.deadline
        if self.waiting >= self._options.queue or late:
            raise Full(f"{self.waiting} requests wait already", wait / 2)
        self.waiting += 1

    def leave(self, served: bool = False) -> None:
        """One waits no more; those that are served tell how fast the queue moves."""
        now = time.monotonic()
        if served and self._moved is not None:
            self.interval += _NEWEST * (now - self._moved - self.interval)
        self.waiting -= 1
        if served:
            self._moved = now
        if not self.waiting:  # then it is for want of requests that nothing moves
            self._moved = None
