"""Where the time of a run goes: how much of it the devices train, and what they wait for."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import jax

PARTS = ("start", "compile", "data", "checkpoints", "evaluation")


class Goodput:
    """Counts seconds from its making on.

    Steps are dispatched ahead, so that what the loop does meanwhile costs nothing unless the
    devices run out of work. A thread therefore waits for each step and sums up when any was under
    way; `spent` counts of a part only the time when none was.
    """

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._lock = threading.Lock()
        self._under_way, self._since, self._trained = 0, 0.0, 0.0
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._first = True
        threading.Thread(target=self._watch, daemon=True).start()

    def run(self, step: Callable[..., tuple[Any, Any]], *arguments: Any) -> tuple[Any, Any]:
        """Dispatches a step, which gives its state and its metrics. The first one is compiled."""
        if self._first:
            self._first = False
            self._spent["start"] = time.perf_counter() - self._begun - sum(self._spent.values())
            with self.spent("compile"):
                out = step(*arguments)
            self._count(1)
        else:
            self._count(1)
            out = step(*arguments)
        self._results.put(out[1])
        return out

    @contextlib.contextmanager
    def spent(self, part: str) -> Generator[None]:
        """Counts what is done inside as one of PARTS, as far as no step is under way."""
        begun, trained = time.perf_counter(), self._steps()
        try:
            yield
        finally:
            self._spent[part] += time.perf_counter() - begun - (self._steps() - trained)

    def seconds(self) -> dict[str, float]:
        """Seconds so far: `time/total`, `time/steps`, each of PARTS, and the `time/other`."""
        total, steps = time.perf_counter() - self._begun, self._steps()
        other = total - steps - sum(self._spent.values())
        spent = {"total": total, "steps": steps, **self._spent, "other": max(other, 0.0)}
        return {f"time/{name}": value for name, value in spent.items()}

    def summary(self) -> str:
        """One line for people: shares of the time, those lost from the largest on."""
        spent = {name.removeprefix("time/"): value for name, value in self.seconds().items()}
        total = spent.pop("total")
        steps = spent.pop("steps") / total
        rest = sorted(spent.items(), key=lambda item: -item[1])
        lost = ", ".join(f"{name} {value / total:.1%}" for name, value in rest)
        return f"goodput {steps:.1%} of {total:.0f} s in steps; {lost}"

    def close(self) -> None:
        """Ends the thread."""
        self._results.put(None)

    def _steps(self) -> float:
        """Seconds in which a step was under way."""
        with self._lock:
            running = time.perf_counter() - self._since if self._under_way else 0.0
            return self._trained + running

    def _count(self, change: int) -> None:
        with self._lock:
            now = time.perf_counter()
            if self._under_way:
                self._trained += now - self._since
            self._under_way += change
            self._since = now

    def _watch(self) -> None:
        while (metrics := self._results.get()) is not None:
            with contextlib.suppress(Exception):  # the loop meets it as well
                jax.block_until_ready(metrics)
            self._count(-1)
