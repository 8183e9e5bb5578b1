"""Continuous batching: a thread that reads prompts into free slots and decodes all slots together.

Other threads call `submit`; results arrive through the callbacks of a question, which run on this
thread and must be quick.
"""

import collections
import threading
import time
from collections.abc import Callable, Iterable

import jax
import numpy as np
from absl import logging

from clara_jax.data.tokenizer import Tokenizer
from clara_jax.inference.sampling import before_stop, stop_ids
from clara_jax.serving.device_rows import DeviceRows
from clara_jax.serving.metrics import Metrics
from clara_jax.serving.queueing import Broken, Question
from clara_jax.serving.slots import Slots

_UNFINISHED = "\ufffd"  # what half of a character decodes to


class Batcher:
    """Decodes answers in slots.

    Args:
        tokenizer: of the model.
        slots: on the devices.
        rows: memories on the devices.
        metrics: of the server.
        started: called whenever a question waits no more, with whether it got a slot.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        slots: Slots,
        rows: DeviceRows,
        metrics: Metrics,
        started: Callable[[bool], None],
    ):
        self._tokenizer, self._slots, self._rows = tokenizer, slots, rows
        self._metrics, self._started = metrics, started
        self._ends = set(stop_ids(tokenizer))
        self._waiting: collections.deque[Question] = collections.deque()
        self._in: list[Question | None] = [None] * slots.count
        # Steps that run while their results are not read yet: arrays, and whose they are.
        self._pending: collections.deque[tuple[jax.Array, list[tuple[int, Question]]]]
        self._pending = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Takes questions from now on."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; what has not ended is cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, question: Question) -> None:
        """Puts a question with its prompt into the queue, whose length is its caller's to bound."""
        with self._changed:
            broken = self.error is not None or self._closed
            if not broken:
                self._waiting.append(question)
                self._changed.notify()
        if broken:
            self._started(False)
            question.on_end(Broken("the engine has ended"))

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._owners())

    # --- The thread ---

    def _owners(self) -> list[tuple[int, Question]]:
        return [(slot, question) for slot, question in enumerate(self._in) if question is not None]

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
            waiting, answered = list(self._waiting), [question for _, question in self._owners()]
            self._waiting.clear()
            self._in = [None] * len(self._in)
        for _ in waiting:
            self._started(False)
        for question in (*waiting, *answered):
            question.on_end(Broken("the engine has ended"))

    def _turn(self) -> None:
        """One prompt if a slot is free, one step, and the results of what was started before."""
        self._admit()
        for slot, question in self._owners():
            if why := question.over():
                self._end(slot, why)
        if self.busy:
            self._pending.append((self._slots.step(), self._owners()))
        # The newest step stays in flight, so that the devices have work while texts are made.
        while len(self._pending) > (1 if self.busy else 0):
            array, owners = self._pending.popleft()
            tokens = np.asarray(array)
            live = [(slot, question) for slot, question in owners if self._in[slot] is question]
            for slot, question in live:
                self._add(slot, question, int(tokens[slot if len(tokens) > 1 else 0]))
            self._metrics.step(len(live), time.monotonic())
        self._metrics.slots_busy.set(self.busy)

    def _admit(self) -> None:
        while None in self._in:
            with self._changed:
                if not self._waiting:
                    return
                question = self._waiting.popleft()
            why = question.over()
            self._started(why is None)
            if why:
                question.on_end(why)
                continue
            assert question.options is not None  # else it is answered by the search alone
            slot = self._in.index(None)
            try:
                places = self._rows.place(question.rows, question.memories)
            except Exception:  # of the store's files, not of the devices
                logging.exception("memories could not be read")
                question.on_end(Broken("the memories of the documents could not be read"))
                continue
            token_1 = self._slots.prefill(
                slot, question.ids, places, self._rows.table_RMD, question.options.sampling
            )
            self._in[slot] = question
            self._pending.append((token_1, [(slot, question)]))
            return  # the others' next token comes before the next prompt

    def _add(self, slot: int, question: Question, token: int) -> None:
        options = question.options
        assert options is not None  # as in `_admit`
        question.tokens.append(token)
        if token in self._ends:
            question.reason = "stop"
        elif len(question.tokens) == options.max_new_tokens:
            question.reason = "length"
        stops = options.stop
        whole = self._tokenizer.decode(question.tokens)
        text = before_stop(whole, stops)
        if len(text) < len(whole):
            question.reason = "stop"
        text = text.strip()
        if not question.reason:
            text = text[: len(text) - _held_back(text, stops)].rstrip()
        if len(text) > len(question.answer) and text.startswith(question.answer):
            piece, question.answer = text[len(question.answer) :], text
            question.on_text(piece)
        if question.reason:
            self._end(slot, None)

    def _end(self, slot: int, why: Exception | None) -> None:
        question, self._in[slot] = self._in[slot], None
        assert question is not None
        question.on_end(why)


def _held_back(text: str, stops: Iterable[str]) -> int:
    """Characters at the end of a text that may yet turn into another one, or start a stop text."""
    if text.endswith(_UNFINISHED):
        return len(text) - len(text.rstrip(_UNFINISHED))
    starts = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(starts, default=0)
