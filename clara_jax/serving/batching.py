"""Continuous batching: a thread that reads prompts into free slots and decodes all slots together.

Everything else talks to it through `submit`, and is told through a request's own callbacks, which
run on that thread and must be quick.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from absl import logging

from clara_jax.inference.sampling import before_stop, stop_ids
from clara_jax.runs.setup import Model
from clara_jax.serving.device_rows import DeviceRows
from clara_jax.serving.metrics import Metrics
from clara_jax.serving.slots import Choice, Slots

_UNFINISHED = "\ufffd"  # what half of a character decodes to


class Cancelled(Exception):
    """Whoever asked has gone."""


class Late(Exception):
    """The deadline is over."""


class Broken(Exception):
    """The server's own error: its thread has ended."""


@dataclasses.dataclass(eq=False)
class Request:
    """One prompt and how its answer is to be made.

    Attributes:
        ids: the prompt, the common prefix included; memory tokens of rows follow one another.
        rows: of the store, whose memories fill the prompt's slots in their order.
        memories: [M, D] of some of these rows, read already.
        max_new_tokens: most tokens of the answer.
        on_text: called with each new piece of the answer.
        on_end: called once, with None or with why there is no (whole) answer.
        deadline: by `time.monotonic`.
        temperature: as `Sampling`.
        top_p: as `Sampling`.
        seed: as `Sampling`.
        stop: texts that end the answer.
        cancelled: set by whoever does not want it any more.
        tokens: ids of the answer so far, the end token included.
        reason: stop or length, once it has ended.
    """

    ids: Sequence[int]
    rows: Sequence[int]
    memories: Mapping[int, np.ndarray]
    max_new_tokens: int
    on_text: Callable[[str], None]
    on_end: Callable[[Exception | None], None]
    deadline: float
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    cancelled: bool = False
    tokens: list[int] = dataclasses.field(default_factory=list)
    reason: str = ""
    text: str = ""  # that was passed on


class Engine:
    """Decodes answers in slots.

    Args:
        slots: on the devices.
        rows: memories on the devices.
        model: the model.
        read: reads memories [n, M, D] of rows of the store.
        metrics: of the server.
        started: called whenever a request waits no more, with whether it got a slot.
    """

    def __init__(
        self, model: Model, slots: Slots, rows: DeviceRows,
        read: Callable[[Sequence[int]], np.ndarray], metrics: Metrics,
        started: Callable[[bool], None] = lambda served: None,
    ):  # fmt: skip
        self._model, self._slots, self._rows, self._read = model, slots, rows, read
        self._metrics, self._started = metrics, started
        self._ends = set(stop_ids(model.tokenizer))
        self._waiting: collections.deque[Request] = collections.deque()
        self._in: list[Request | None] = [None] * slots.count
        # Steps that run while their results are not read yet: arrays, and whose they are.
        self._pending: collections.deque[tuple[jax.Array, list[tuple[int, Request]]]]
        self._pending = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Takes requests from now on."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; what has not ended is cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def check(self, ids: Sequence[int]) -> int:
        """How many tokens too long a prompt is, 0 or less if it fits."""
        return len(ids) - len(self._slots.prefix) - self._slots.buckets[-1]

    def submit(self, request: Request) -> None:
        """Puts a request into the queue, whose length is its caller's to bound."""
        with self._changed:
            broken = self.error is not None or self._closed
            if not broken:
                self._waiting.append(request)
                self._changed.notify()
        if broken:
            self._started(False)
            request.on_end(Broken("the engine has ended"))

    @property
    def busy(self) -> int:
        """Slots in use."""
        return sum(request is not None for request in self._in)

    # --- The thread ---

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (self._waiting or self._pending or self.busy or self._closed):
                        self._changed.wait()
                    if self._closed:
                        break
                self._turn()
        except Exception as e:
            logging.exception("the engine failed")
            self.error = e
        with self._changed:
            self._closed = True
            left = [*self._waiting, *(request for request in self._in if request is not None)]
            waiting = len(self._waiting)
            self._waiting.clear()
            self._in = [None] * len(self._in)
        for i, request in enumerate(left):
            if i < waiting:
                self._started(False)
            request.on_end(Broken("the engine has ended"))

    def _turn(self) -> None:
        """One prompt if a slot is free, one step, and the results of what was started before."""
        self._admit()
        for slot, request in enumerate(self._in):
            if request is not None and (why := _gone(request)):
                self._end(slot, why)
        if self.busy:
            owners = [(i, request) for i, request in enumerate(self._in) if request is not None]
            self._pending.append((self._slots.step(), owners))
        # The newest step stays in flight, so that the devices have work while texts are made.
        while len(self._pending) > (1 if self.busy else 0):
            array, owners = self._pending.popleft()
            tokens = np.asarray(array)
            live = [(slot, request) for slot, request in owners if self._in[slot] is request]
            for slot, request in live:
                self._add(slot, request, int(tokens[slot if len(tokens) > 1 else 0]))
            self._metrics.step(len(live), time.monotonic())
        self._metrics.slots_busy.set(self.busy)

    def _admit(self) -> None:
        while None in self._in:
            with self._changed:
                if not self._waiting:
                    return
                request = self._waiting.popleft()
            why = _gone(request)
            self._started(why is None)
            if why:
                request.on_end(why)
                continue
            slot = self._in.index(None)
            try:
                places = self._rows.place(request.rows, request.memories, self._read)
            except Exception:  # of the store's files, not of the devices
                logging.exception("memories could not be read")
                request.on_end(Broken("the memories of the documents could not be read"))
                continue
            ids = np.asarray(request.ids[len(self._slots.prefix) :], np.int32)
            vectors = vector_places(self._model, ids, places)
            choice = Choice.create(request.temperature, request.top_p, request.seed)
            token = self._slots.prefill(slot, ids, vectors, self._rows.table_RMD, choice)
            self._in[slot] = request
            self._pending.append((token, [(slot, request)]))
            return  # the others' next token comes before the next prompt

    def _add(self, slot: int, request: Request, token: int) -> None:
        request.tokens.append(token)
        if token in self._ends:
            request.reason = "stop"
        elif len(request.tokens) == request.max_new_tokens:
            request.reason = "length"
        whole = self._model.tokenizer.decode(request.tokens)
        text = before_stop(whole, request.stop)
        if len(text) < len(whole):
            request.reason = "stop"
        text = text.strip()
        shown = text if request.reason else text[: len(text) - _held_back(text, request.stop)]
        shown = shown if request.reason else shown.rstrip()
        if len(shown) > len(request.text) and shown.startswith(request.text):
            piece, request.text = shown[len(request.text) :], shown
            request.on_text(piece)
        if request.reason:
            self._end(slot, None)

    def _end(self, slot: int, why: Exception | None) -> None:
        request, self._in[slot] = self._in[slot], None
        request.on_end(why)


def _gone(request: Request) -> Exception | None:
    if request.cancelled:
        return Cancelled("cancelled")
    return Late("the deadline is over") if time.monotonic() > request.deadline else None


def _held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of a text that may yet turn into another one, or start a stop text."""
    if text.endswith(_UNFINISHED):
        return len(text) - len(text.rstrip(_UNFINISHED))
    starts = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(starts, default=0)


def vector_places(model: Model, ids: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """Which vector of the table, of M a place, fills each token's slot; int32, -1 elsewhere."""
    M = len(model.extra.memory)
    vectors = np.full(len(ids), -1, np.int32)
    slots = np.flatnonzero(model.extra.is_memory(ids))
    if len(slots) != M * len(places):
        raise ValueError(f"a prompt has {len(slots)} slots for {len(places)} documents")
    vectors[slots] = (np.array(places, np.int32)[:, None] * M + np.arange(M)[None]).reshape(-1)
    return vectors


def prompt_ids(model: Model, question: str, documents: int) -> list[int]:
    """The prompt of a question and so many compressed documents."""
    return model.layout.answer_prompt(model.layout.slots(documents), question)[0]


def common_prefix(model: Model) -> list[int]:
    """What the prompts of all questions start with: all that comes before the first memory."""
    ids = prompt_ids(model, "?", 1)
    return ids[: ids.index(model.extra.memory[0])]
