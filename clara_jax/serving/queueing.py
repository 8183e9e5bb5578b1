"""What waits for the server's threads: jobs, their ends, and whether one more may wait."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from clara_jax.config import Serve
from clara_jax.corpus.search.search import Hit
from clara_jax.corpus.store import StoredDocument
from clara_jax.inference.lens import Word
from clara_jax.inference.sampling import GenerationOptions

_SHARE = 0.5  # of the deadline that a request may have to wait, as it is accepted
_NEWEST = 0.1  # weight of the newest interval in their mean


class Cancelled(Exception):
    """Whoever asked has gone."""


class Late(Exception):
    """The deadline is over."""


class Broken(Exception):
    """The server's own error: its thread has ended."""


class Full(Exception):
    """The queue is full, or its end would come too late.

    Attributes:
        after: seconds after which to come again.
    """

    def __init__(self, message: str, after: float):
        super().__init__(message)
        self.after = max(1, math.ceil(after))


@dataclasses.dataclass(eq=False)
class Job:
    """Something to do."""

    # called once, with None or with why there is no (whole) result
    on_end: Callable[[Exception | None], None]
    # by `time.monotonic`; set when the service takes it
    deadline: float = dataclasses.field(default=math.inf, kw_only=True)
    cancelled: bool = dataclasses.field(default=False, kw_only=True)  # nobody waits for it any more

    def over(self) -> Exception | None:
        """Why nothing more needs to be done."""
        if self.cancelled:
            return Cancelled("cancelled")
        return Late("the deadline is over") if time.monotonic() > self.deadline else None


@dataclasses.dataclass(eq=False)
class Work(Job):
    """A change of the corpus or a compression; `future` takes what `call` returns."""

    call: Callable[[], Any]
    future: Future


@dataclasses.dataclass(eq=False)
class Question(Job):
    """A question to search for and, where it has options, to answer."""

    text: str  # of the question
    top_k: int  # documents, `live_corpus.MOST` at most
    on_found: Callable[[], None]  # called when the documents are there
    on_text: Callable[[str], None]  # called with each new piece of the answer
    options: GenerationOptions | None = None  # of the answer; None: search alone
    rate: int = 0  # of the memories in the prompt; 0: as they are kept
    wants_words: bool = False  # also read the query by the logit lens
    hits: Sequence[Hit] = ()  # row, score and origin of each document, the best first
    documents: Sequence[StoredDocument] = ()  # the same ones' texts
    words: Sequence[Word] = ()  # of the query's logit lens
    # the prompt, whose slots the memories of the hits fill in their order; empty if there is no
    # answer to be
    ids: Sequence[int] = ()
    # [M, D] of rows among the hits, read already
    memories: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    # ids of the answer so far, the end token included
    tokens: list[int] = dataclasses.field(default_factory=list)
    answer: str = ""  # the part of it that was passed on
    reason: str = ""  # stop or length, once the answer has ended

    @property
    def rows(self) -> list[int]:
        """Of the hits in the store."""
        return [hit.row for hit in self.hits]


class Queue:
    """Numbers of a queue, not its jobs; whoever uses it holds a lock.

    Attributes:
        waiting: jobs that wait.
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
        """One waits no more; those that are served show how fast the queue moves."""
        now = time.monotonic()
        if served and self._moved is not None:
            self.interval += _NEWEST * (now - self._moved - self.interval)
        self.waiting -= 1
        if served:
            self._moved = now
        if not self.waiting:  # then it is for want of requests that nothing moves
            self._moved = None
