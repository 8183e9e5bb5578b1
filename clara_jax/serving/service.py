"""What the server does, without HTTP: questions, searches, compression, changes of the corpus.

Two threads use the devices: the engine's, and a worker that encodes questions, searches, reads
memories and changes the corpus, one after the other. Callbacks run on these threads.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from absl import logging

from clara_jax.config import Serve
from clara_jax.corpus.format import Damaged
from clara_jax.errors import UserError
from clara_jax.inference import lens
from clara_jax.inference.encode import encode_query
from clara_jax.models.clara import Trees
from clara_jax.runs import abilities
from clara_jax.runs.setup import Model
from clara_jax.serving.batching import (
    Broken,
    Cancelled,
    Engine,
    Late,
    Request,
    common_prefix,
    prompt_ids,
)
from clara_jax.serving.device_rows import DeviceRows
from clara_jax.serving.live_corpus import MOST, TOGETHER, Corpus
from clara_jax.serving.metrics import Metrics
from clara_jax.serving.queueing import Queue
from clara_jax.serving.slots import Slots
from clara_jax.serving.warm_up import compress, warm_up


class Empty(UserError):
    """There is no document to answer from."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search gave.

    Attributes:
        hits: row, score and origin of each document, the best first.
        documents: the same ones' texts.
        words: of the query's logit lens, if asked for.
        prompt_tokens: of the prompt that they make; 0 if there is none.
    """

    hits: list
    documents: list
    words: list[lens.Word]
    prompt_tokens: int = 0


@dataclasses.dataclass(eq=False)
class Job:
    """Something for the worker; `top_k` of a question, `work` of anything else."""

    deadline: float
    on_end: Callable[[Exception | None], None]
    question: str = ""
    top_k: int = 0
    words: bool = False
    on_found: Callable[[Found], None] | None = None
    request: Request | None = None  # of the answer, if there is to be one
    work: Callable[[], None] | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True
        if self.request is not None:
            self.request.cancelled = True


class Service:
    """A model and a corpus, ready to answer.

    Args:
        model: the model.
        trees: its weights.
        corpus: its documents.
        options: of `config.serve`.

    Raises:
        UserError: the model cannot answer, or the options do not fit it.
    """

    def __init__(self, model: Model, trees: Trees, corpus: Corpus, options: Serve):
        abilities.can(model, trees, "ask")
        self.model, self.trees, self.corpus, self.options = model, trees, corpus, options
        self.metrics = Metrics()
        self.top_k = min(model.config.select.k, MOST)
        self._slots = Slots(
            model, trees, common_prefix(model), options.slots, options.prompt_tokens,
            options.max_new_tokens,
        )  # fmt: skip
        # A prompt's documents are on the device together.
        self._rows = DeviceRows(model, max(options.cached, MOST), self.metrics.cache)
        self.engine = Engine(
            model, self._slots, self._rows, corpus.memories, self.metrics, self._one_less
        )
        self._jobs: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self.queue = Queue(options)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Compiles every shape that requests can have, and takes them from then on."""
        begun = time.monotonic()
        self._warm_up()
        self._slots.warm_up(self._rows.table_RMD)
        moment = time.monotonic()
        self._find(["?"])
        self._slots.rehearse(self._rows.table_RMD, 16)
        self.queue.interval = time.monotonic() - moment  # until some are served
        self.engine.start()
        self._thread.start()
        self.metrics.documents.set(len(self.corpus))
        self.metrics.warmed_up()
        logging.info("ready after %.0f s", time.monotonic() - begun)

    def close(self) -> None:
        """Ends both threads; what has not ended is cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.engine.close()

    @property
    def broken(self) -> bool:
        """Whether a thread has ended by an error."""
        return self.engine.error is not None or (not self._closed and not self._thread.is_alive())

    def ask(
        self,
        question: str,
        top_k: int,
        *,
        on_found: Callable[[Found], None],
        on_end: Callable[[Exception | None], None],
        on_text: Callable[[str], None] | None = None,
        words: bool = False,
        **how: Any,
    ) -> Job:
        """Searches for a question, and answers it if `on_text` is given.

        Args:
            question: the question.
            top_k: documents, MOST at most.
            on_found: called with the documents.
            on_end: called once, with None or an exception.
            on_text: called with the pieces of the answer.
            words: also read the query by the logit lens.
            **how: max_new_tokens, temperature, top_p, seed and stop of `batching.Request`.

        Raises:
            Full: too many wait.
        """
        late = time.monotonic() + self.options.deadline
        job = Job(late, on_end, question, top_k, words, on_found)
        if on_text is not None:
            job.request = Request(
                ids=(), rows=(), memories={}, on_text=on_text, on_end=on_end, deadline=late, **how
            )
        self._accept(job)
        return job

    def compress(self, texts: Sequence[str]) -> "tuple[Job, Future]":
        """Memories of texts, `encode.Compressed`."""
        return self._do(lambda: compress(self.model, self.trees, texts))

    def add(self, documents: Sequence[dict[str, Any]]) -> "tuple[Job, Future]":
        """Adds documents to the corpus."""
        return self._do(lambda: self.corpus.add(documents))

    def delete(self, ids: Sequence[str]) -> "tuple[Job, Future]":
        """Deletes documents from the corpus."""
        return self._do(lambda: self.corpus.delete(ids))

    def _do(self, work: Callable[[], Any]) -> "tuple[Job, Future]":
        future: Future = Future()
        # Who waits for it may leave; the work has its end all the same, and the future takes it.
        future.set_running_or_notify_cancel()

        def run() -> None:
            result = work()
            self.metrics.documents.set(len(self.corpus))
            future.set_result(result)

        job = Job(
            time.monotonic() + self.options.deadline,
            lambda error: None if error is None else future.set_exception(error),
            work=run,
        )
        self._accept(job)
        return job, future

    def _accept(self, job: Job) -> None:
        with self._changed:
            if self._closed or self.broken:
                raise Broken("the server has ended")
            self.queue.enter()
            self.metrics.queue_depth.set(self.queue.waiting)
            self._jobs.append(job)
            self._changed.notify()

    def _one_less(self, served: bool = False) -> None:
        """One request waits no more."""
        with self._changed:
            self.queue.leave(served)
            self.metrics.queue_depth.set(self.queue.waiting)

    # --- The worker ---

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._jobs or self._closed):
                    self._changed.wait()
                if self._closed:
                    left = list(self._jobs)
                    break
                jobs = [self._jobs.popleft()]
                while jobs[0].work is None and self._jobs and self._jobs[0].work is None:
                    if len(jobs) == TOGETHER:
                        break
                    jobs.append(self._jobs.popleft())
            jobs = [job for job in jobs if not self._dropped(job)]
            if not jobs:
                continue
            if jobs[0].work is None:
                self._search(jobs)
            else:
                self._work(jobs[0])
        for job in left:
            self._one_less()
            job.on_end(Broken("the server has ended"))

    def _dropped(self, job: Job) -> bool:
        late = time.monotonic() > job.deadline
        if not (job.cancelled or late):
            return False
        self._one_less()
        job.on_end(Cancelled("cancelled") if job.cancelled else Late("the deadline is over"))
        return True

    def _work(self, job: Job) -> None:
        self._one_less(True)
        try:
            job.work()
        except Exception as e:
            job.on_end(_told(e))

    def _search(self, jobs: Sequence[Job]) -> None:
        """Finds the documents of questions, and hands those that want an answer to the engine."""
        try:
            queries, hits = self._find([job.question for job in jobs])
        except Exception as e:
            queries, hits = [_told(e)] * len(jobs), [None] * len(jobs)
        for job, query_MD, found in zip(jobs, queries, hits, strict=True):
            error = query_MD if found is None else None
            if error is None:
                try:
                    self._prepare(job, query_MD, found[: job.top_k])
                except Exception as e:
                    error = _told(e)
            if error is None and job.request is not None:
                self.engine.submit(job.request)  # there it still waits
            else:
                self._one_less(error is None)
                job.on_end(error)

    def _prepare(self, job: Job, query_MD: np.ndarray, hits: list) -> None:
        """Tells what was found, and makes the prompt."""
        documents = self.corpus.documents([hit.row for hit in hits]) if hits else []
        words: list[lens.Word] = []
        if job.words:
            (words,) = lens.words(self.model, self.trees, query_MD[None])
            texts = [f"{document.title} {document.text}" for document in documents]
            words = lens.mark(words, job.question, texts)
        request = job.request
        if request is not None:
            if not hits:
                raise Empty("the store holds no documents; add some")
            request.rows = [hit.row for hit in hits]
            request.ids = prompt_ids(self.model, job.question, len(hits))
            if (more := self.engine.check(request.ids)) > 0:
                raise UserError(
                    f"the prompt is {more} tokens too long: ask a shorter question or for fewer "
                    "documents, or set config.serve.prompt_tokens"
                )
            absent = self._rows.missing(request.rows)
            if absent:
                request.memories = dict(zip(absent, self.corpus.memories(absent), strict=True))
        job.on_found(Found(hits, documents, words, len(request.ids) if request else 0))

    def _find(self, questions: Sequence[str]) -> tuple[np.ndarray, list]:
        """Queries and hits, in one of two shapes whatever the number of questions."""
        filled = list(questions)
        if len(filled) > 1:
            filled += filled[:1] * (TOGETHER - len(filled))
        queries = encode_query(self.model, self.trees, filled, len(filled))
        hits = self.corpus.find(queries, filled, MOST)
        return queries[: len(questions)], hits[: len(questions)]

    def _warm_up(self) -> None:
        warm_up(self.model, self.trees)
        self.corpus.warm_up()
        for texts in (["?"], ["?"] * TOGETHER):
            queries, _ = self._find(texts)
        lens.words(self.model, self.trees, queries[:1])


def _told(error: Exception) -> Exception:
    """What is told of an error: a user's mistake as it is, ours in the log alone."""
    if isinstance(error, UserError) and not isinstance(error, Damaged):
        return error
    logging.error("a job of the worker failed", exc_info=error)
    return Broken("the server failed; its log says why")
