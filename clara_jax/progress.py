"""One line that says how far long work is: redrawn on a terminal, else printed now and then."""

import contextlib
import sys
import threading
import time
from collections.abc import Generator
from typing import TextIO

_REDRAW, _PRINT = 0.2, 10.0  # seconds between updates on a terminal and elsewhere


class Progress:
    """Share done, rate and time left, on standard error.

    Args:
        total: units of all the work.
        what: its name.
        start: units that were done before, as in a resumed run.
        stream: where to write; standard error by default.
    """

    def __init__(self, total: int, what: str, start: int = 0, stream: TextIO | None = None):
        self._total, self._what, self._start = total, what, start
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._begun = self._shown = time.monotonic()
        self._width = 0

    def update(self, done: int, extra: str = "") -> None:
        """Shows that `done` units are finished, and some words of the caller's."""
        now = time.monotonic()
        if now - self._shown < (_REDRAW if self._terminal else _PRINT):
            return
        self._shown = now
        rate = (done - self._start) / max(now - self._begun, 1e-9)
        left = _clock(max(self._total - done, 0) / rate) if rate > 0 else "?"
        text = f"{self._what}: {done}/{self._total}, {_rate(rate)}, {left} left"
        text += f", {extra}" if extra else ""
        if self._terminal:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Removes the line from a terminal."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextlib.contextmanager
def doing(what: str, stream: TextIO | None = None, every: float = _PRINT) -> Generator[None]:
    """Says every ten seconds that work of unknown length continues, such as compiling.

    Args:
        what: its name.
        stream: where to write; standard error by default.
        every: seconds between lines.
    """
    stream, ended, begun = sys.stderr if stream is None else stream, threading.Event(), time.time()

    def say() -> None:
        while not ended.wait(every):
            stream.write(f"{what}: {_clock(time.time() - begun)} so far\n")
            stream.flush()

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
