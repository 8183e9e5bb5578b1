"""What the server does, without HTTP: questions, searches, compression, changes of the corpus.

Two threads use the devices: the batcher's, and a worker that encodes questions, searches, reads
memories and changes the corpus, one after the other. Callbacks run on these threads.
"""

import collections
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from absl import logging

from clara_jax.config import Serve
from clara_jax.corpus.format import Damaged
from clara_jax.corpus.search.search import Hit
from clara_jax.errors import UserError
from clara_jax.inference import lens
from clara_jax.inference.encode import encode_query
from clara_jax.models.clara import Trees
from clara_jax.progress import doing
from clara_jax.runs import abilities
from clara_jax.runs.setup import Model
from clara_jax.serving.batching import Batcher
from clara_jax.serving.device_rows import DeviceRows
from clara_jax.serving.live_corpus import MOST, TOGETHER, LiveCorpus
from clara_jax.serving.metrics import Metrics
from clara_jax.serving.queueing import Broken, Job, Question, Queue, Work
from clara_jax.serving.slots import Slots, common_prefix, prompt_ids
from clara_jax.serving.warm_up import warm_up


class Empty(UserError):
    """There is no document to answer from."""


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

    def __init__(self, model: Model, trees: Trees, corpus: LiveCorpus, options: Serve):
        abilities.can(model, trees, "ask")
        self.model, self.trees, self.corpus, self.options = model, trees, corpus, options
        self.metrics = Metrics()
        self.top_k = min(model.config.select.k, MOST)
        prefix, longest = common_prefix(model), options.prompt_tokens
        self._slots = Slots(model, trees, prefix, options.slots, longest, options.max_new_tokens)
        # A prompt's documents are on the device together.
        capacity = max(options.cached, MOST)
        self._rows = DeviceRows(model, capacity, corpus.memories, self.metrics.cache)
        self.batcher = Batcher(
            model.tokenizer, self._slots, self._rows, self.metrics, self._one_less
        )
        self._jobs: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self.queue = Queue(options)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Compiles every shape that requests can have, and takes them from then on."""
        begun = time.monotonic()
        with doing("compiling what requests need"):
            self._warm_up()
        moment = time.monotonic()
        self._find(["?"])
        middle = self._slots.buckets[len(self._slots.buckets) // 2]
        self._slots.rehearse(self._rows.table_RMD, middle, 16)
        self.queue.interval = time.monotonic() - moment  # until some are served
        self.batcher.start()
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
        self.batcher.close()

    @property
    def broken(self) -> bool:
        """Whether a thread has ended by an error."""
        return self.batcher.error is not None or (not self._closed and not self._thread.is_alive())

    def do(self, call: Callable[[], Any]) -> Work:
        """Has the worker do something, such as a change of the corpus; errors as of `accept`."""
        future: Future = Future()
        # Who waits for it may leave; the work has its end all the same, and the future takes it.
        future.set_running_or_notify_cancel()
        work = Work(future.set_exception, call, future)
        self.accept(work)
        return work

    def accept(self, job: Job) -> None:
        """Takes a question or work; its callbacks report what comes of it.

        Raises:
            Full: too many wait.
            Broken: the server has ended.
        """
        job.deadline = time.monotonic() + self.options.deadline
        with self._changed:
            if self._closed or self.broken:
                raise Broken("the server has ended")
            self.queue.enter()
            self.metrics.queue_depth.set(self.queue.waiting)
            self._jobs.append(job)
            self._changed.notify()

    def _one_less(self, served: bool = False) -> None:
        """One job waits no more."""
        with self._changed:
            self.queue.leave(served)
            self.metrics.queue_depth.set(self.queue.waiting)

    # --- The worker ---

    def let_questions_pass(self, *unused: Any) -> None:
        """Answers questions that wait while a long piece of work, which calls this, goes on.

        Raises:
            Broken: the server closes.
        """
        if self._closed:
            raise Broken("the server has ended")
        with self._changed:
            questions = [job for job in self._jobs if isinstance(job, Question)][:TOGETHER]
            for job in questions:
                self._jobs.remove(job)
        live = [job for job in questions if not self._dropped(job)]
        if live:
            self._search(live)

    def _run(self) -> None:
        while jobs := self._next():
            live = [job for job in jobs if not self._dropped(job)]
            for job in live:
                if isinstance(job, Work):
                    self._work(job)
            if questions := [job for job in live if isinstance(job, Question)]:
                self._search(questions)
        for job in self._jobs:
            self._one_less()
            job.on_end(Broken("the server has ended"))

    def _next(self) -> list[Job]:
        """The next job, or the next few questions; none where the server closes."""
        with self._changed:
            while not (self._jobs or self._closed):
                self._changed.wait()
            if self._closed:
                return []
            jobs = [self._jobs.popleft()]
            if isinstance(jobs[0], Question):
                while self._jobs and isinstance(self._jobs[0], Question) and len(jobs) < TOGETHER:
                    jobs.append(self._jobs.popleft())
            return jobs

    def _dropped(self, job: Job) -> bool:
        why = job.over()
        if why is not None:
            self._one_less()
            job.on_end(why)
        return why is not None

    def _work(self, job: Work) -> None:
        self._one_less(True)
        try:
            result = job.call()
            self.metrics.documents.set(len(self.corpus))
            job.future.set_result(result)
        except Exception as e:
            job.on_end(self._reported(e))

    def _search(self, jobs: Sequence[Question]) -> None:
        """Finds the documents of questions, and hands those to be answered to the batcher."""
        try:
            queries_nMD, hits = self._find([job.text for job in jobs])
        except Exception as e:
            error = self._reported(e)
            for job in jobs:
                self._one_less()
                job.on_end(error)
            return
        for job, query_MD, its_hits in zip(jobs, queries_nMD, hits, strict=True):
            error = None
            try:
                self._prepare(job, query_MD, its_hits[: job.top_k])
            except Exception as e:
                error = self._reported(e)
            if error is None and job.options is not None:
                self.batcher.submit(job)  # there it still waits
            else:
                self._one_less(error is None)
                job.on_end(error)

    def _prepare(self, job: Question, query_MD: np.ndarray, hits: list[Hit]) -> None:
        """Enters the documents, and makes the prompt."""
        job.hits = hits
        job.documents = self.corpus.documents(job.rows) if hits else []
        if job.wants_words:
            (words,) = lens.words(self.model, self.trees, query_MD[None])
            texts = [f"{document.title} {document.text}" for document in job.documents]
            job.words = lens.mark(words, job.text, texts)
        if job.options is not None:
            if not hits:
                raise Empty("the store holds no documents; add some")
            model = self.model.at_rate(job.rate) if job.rate else self.model
            job.ids = prompt_ids(model, job.text, len(hits))
            if (more := self._slots.too_long(job.ids)) > 0:
                raise UserError(
                    f"the prompt is {more} tokens too long: ask a shorter question or for fewer "
                    "documents, or set config.serve.prompt_tokens"
                )
            absent = self._rows.missing(job.rows)
            if absent:
                job.memories = dict(zip(absent, self.corpus.memories(absent), strict=True))
        job.on_found()

    def _find(self, questions: Sequence[str]) -> tuple[np.ndarray, list]:
        """Queries and hits, in one of two shapes whatever the number of questions."""
        filled = list(questions)
        if len(filled) > 1:
            filled += filled[:1] * (TOGETHER - len(filled))
        queries_nMD = encode_query(self.model, self.trees, filled, len(filled))
        hits = self.corpus.find(queries_nMD, filled, MOST)
        return queries_nMD[: len(questions)], hits[: len(questions)]

    def _warm_up(self) -> None:
        warm_up(self.model, self.trees)
        self.corpus.warm_up()
        for texts in (["?"], ["?"] * TOGETHER):
            queries_nMD, _ = self._find(texts)
        lens.words(self.model, self.trees, queries_nMD[:1])
        self._slots.warm_up(self._rows.table_RMD)

    def _reported(self, error: Exception) -> Exception:
        """What is reported of an error: a user's mistake as it is, ours in the log alone."""
        if isinstance(error, UserError | Broken) and not isinstance(error, Damaged):
            # Clients need not know the folders of this machine.
            text = str(error).replace(f"{self.corpus.path}: ", "")
            error.args = (text.replace(self.corpus.path, "the store"),)
            return error
        logging.error("a job of the worker failed", exc_info=error)
        return Broken("the server failed; its log says why")
